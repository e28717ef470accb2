//! What is refused, and how: every fault by name, in OpenAI's form, the text of nobody repeated.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, chat, completion};
use crate::worker::{Config, Worker};

/// The error of a request, which must have OpenAI's form.
async fn error(worker: &Worker, path: &str, body: &Value) -> (u16, Value) {
    let response = worker.post(path, body).await;
    let status = response.status().as_u16();
    let mut body: Value = response.json().await.unwrap();
    let error = body["error"].take();
    assert_eq!(error.as_object().unwrap_or_else(|| panic!("{body}")).len(), 4, "{error}");
    assert!(error["message"].is_string() && error["type"].is_string() && error["code"].is_string(), "{error}");
    (status, error)
}

/// One line for each: the field, what was sent, what came back.
async fn table(worker: &Worker, path: &str, bodies: impl IntoIterator<Item = Value>) -> String {
    let mut lines = Vec::new();
    for body in bodies {
        let (status, error) = error(worker, path, &body).await;
        let (param, code) = (&error["param"], error["code"].as_str().unwrap());
        lines.push(format!("{status} {code} {param}: {}", error["message"].as_str().unwrap()));
    }
    lines.join("\n")
}

#[tokio::test]
async fn every_rule_of_the_shared_fields_has_its_fault() {
    let worker = Worker::start().await;
    let many = |n: usize| (0..n).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>();
    let faults = [
        json!({ "model": 7 }),
        json!({ "n": 0 }),
        json!({ "n": 17 }),
        json!({ "stream": "yes" }),
        json!({ "stream_options": {} }),
        json!({ "stream": true, "stream_options": [] }),
        json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
        json!({ "max_tokens": 0 }),
        json!({ "max_tokens": "10" }),
        json!({ "max_completion_tokens": -2 }),
        json!({ "max_tokens": 5, "max_completion_tokens": 6 }),
        json!({ "temperature": 2.1 }),
        json!({ "top_p": -0.1 }),
        json!({ "top_k": -2 }),
        json!({ "min_p": 1.5 }),
        json!({ "repetition_penalty": 0 }),
        json!({ "presence_penalty": 2.5 }),
        json!({ "frequency_penalty": -2.5 }),
        json!({ "logit_bias": [] }),
        json!({ "logit_bias": { "a": 1 } }),
        json!({ "logit_bias": { "268": 1 } }),
        json!({ "logit_bias": { "5": 101 } }),
        json!({ "logit_bias": { "5": "1" } }),
        json!({ "logit_bias": many(1025) }),
        json!({ "stop": 5 }),
        json!({ "stop": "" }),
        json!({ "stop": ["a", "b", "c", "d", "e"] }),
        json!({ "stop": ["a", null] }),
        json!({ "stop": "d".repeat(101) }),
        json!({ "seed": 1.5 }),
        json!({ "seed": "7" }),
        json!({ "ignore_eos": 1 }),
        json!({ "add_special_tokens": "no" }),
    ];
    insta::assert_snapshot!(table(&worker, COMPLETIONS, faults.iter().map(completion)).await);
}

#[tokio::test]
async fn every_rule_of_a_conversation_has_its_fault() {
    let worker = Worker::start().await;
    let messages = |messages: Value| json!({ "messages": messages });
    let content = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    let faults = [
        json!({}),
        messages(json!(null)),
        messages(json!("secret")),
        messages(json!([])),
        messages(json!(vec![json!({ "role": "user", "content": "secret" }); 1025])),
        messages(json!(["secret"])),
        messages(json!([{}])),
        messages(json!([{ "role": "robot", "content": "secret" }])),
        messages(json!([{ "role": 7, "content": "secret" }])),
        content(json!(null)),
        content(json!(7)),
        content(json!([])),
        content(json!(["secret"])),
        content(json!([{ "type": "image_url", "image_url": { "url": "secret" } }])),
        content(json!([{ "type": "text" }, { "type": "secret" }])),
        content(json!(vec![json!({ "type": "text", "text": "secret" }); 257])),
        messages(json!([{ "role": "user", "content": "secret".repeat(90_000) }])),
        messages(json!([{ "role": "user", "content": "secret", "name": "" }])),
        messages(json!([{ "role": "assistant", "content": null, "tool_calls": [{ "id": "secret" }] }])),
        messages(
            json!([{ "role": "assistant", "tool_calls": [{ "id": "1", "function": { "name": "f", "arguments": "[secret" } }] }]),
        ),
        messages(
            json!([{ "role": "user", "content": "secret", "tool_calls": [{ "function": { "name": "f", "arguments": "{}" } }] }]),
        ),
        messages(json!([{ "role": "assistant", "tool_calls": 7 }])),
        chat(&json!({ "logprobs": 5 })),
        chat(&json!({ "logprobs": true, "top_logprobs": 21 })),
        chat(&json!({ "top_logprobs": 3 })),
        chat(&json!({ "chat_template_kwargs": [] })),
        chat(&json!({ "chat_template_kwargs": { "messages": 5 } })),
        chat(&json!({ "echo": true })),
        chat(&json!({ "max_tokens": 0 })),
    ];
    let table = table(&worker, CHAT, faults).await;
    assert!(!table.contains("secretsecret"), "a text is repeated");
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn every_rule_of_a_prompt_has_its_fault() {
    let worker = Worker::start().await;
    let prompt = |prompt: Value| json!({ "prompt": prompt });
    let faults = [
        json!({}),
        prompt(json!(null)),
        prompt(json!(7)),
        prompt(json!({})),
        prompt(json!("")),
        prompt(json!([])),
        prompt(json!([[]])),
        prompt(json!(["secret", 5])),
        prompt(json!([5, "secret"])),
        prompt(json!([[5], "secret"])),
        prompt(json!([268])),
        prompt(json!([-1])),
        prompt(json!([1.5])),
        prompt(json!([[1], [268]])),
        prompt(json!(vec!["secret"; 65])),
        prompt(json!(vec![vec![1]; 65])),
        completion(&json!({ "prompt": vec!["a"; 33], "n": 2 })),
        prompt(json!("x".repeat(5000))),
        completion(&json!({ "logprobs": 21 })),
        completion(&json!({ "logprobs": true })),
        completion(&json!({ "top_logprobs": 3 })),
        completion(&json!({ "max_tokens": 0 })),
        completion(&json!({ "max_tokens": 0, "echo": false, "logprobs": 1 })),
        completion(&json!({ "max_tokens": -1, "max_completion_tokens": -2, "echo": true })),
        completion(&json!({ "echo": true, "prompt_logprobs": 1 })),
        completion(&json!({ "echo": 1, "max_tokens": 0 })),
        completion(&json!({ "echo": true, "max_tokens": 0, "prompt": "x".repeat(5000) })),
    ];
    let table = table(&worker, COMPLETIONS, faults).await;
    assert!(!table.contains("secret"), "a prompt is repeated");
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn what_is_known_and_not_supported_is_refused_by_name_and_what_asks_for_nothing_is_let_pass() {
    let worker = Worker::start().await;
    worker.script("a");
    let refused = [
        json!({ "functions": [{}] }),
        json!({ "structural_tag": {} }),
        json!({ "best_of": 2 }),
        json!({ "reasoning_effort": "high" }),
        json!({ "audio": {} }),
        json!({ "min_tokens": 3 }),
        json!({ "stop_token_ids": [1] }),
        json!({ "use_beam_search": true }),
        json!({ "prompt_logprobs": 1 }),
        json!({ "mirostat": 2 }),
        json!({ "chat_template": "{{ messages }}" }),
        json!({ "t_max_predict_ms": 100, "n_indent": 2, "min_keep": 2, "repeat_last_n": 64 }),
        json!({ "guided_regex": "a", "guided_whitespace_pattern": " " }),
        json!({ "structured_outputs": { "regex": "a", "whitespace_pattern": " ", "disable_any_whitespace": true,
            "disable_additional_properties": true } }),
    ];
    insta::assert_snapshot!(table(&worker, CHAT, refused.iter().map(chat)).await);
    let passed = json!({
        "response_format": { "type": "text" }, "tools": [], "tool_choice": "none", "parallel_tool_calls": true,
        "best_of": 1, "store": false, "max_tokens": -1, "repeat_last_n": -1, "modalities": ["text"], "min_tokens": 0,
        "stop_token_ids": [],
        "skip_special_tokens": true, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "top_k": -1,
        "user": "me", "metadata": { "a": "b" }, "safety_identifier": "x", "unheard_of": [[[{}]]], "stop": null, "grammar": null,
    });
    for (path, body) in [(CHAT, chat(&passed)), (COMPLETIONS, completion(&passed))] {
        assert_eq!(worker.post(path, &body).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn every_fault_is_told_at_once() {
    let worker = Worker::start().await;
    let body =
        json!({ "messages": [{ "role": "user" }, { "role": "x", "content": "a" }], "temperature": 9, "tools": [1] });
    insta::assert_snapshot!(table(&worker, CHAT, [body]).await);
}

#[tokio::test]
async fn a_model_without_a_template_says_so() {
    let worker = Worker::start_with(Config { has_template: false, ..Config::default() }).await;
    worker.script("a");
    insta::assert_snapshot!(table(&worker, CHAT, [chat(&json!({}))]).await);
    assert_eq!(worker.post(COMPLETIONS, &completion(&json!({}))).await.status(), 200);
}

#[tokio::test]
async fn errors_made_before_and_beside_the_routes_have_openais_form_too() {
    let worker = Worker::start().await;
    let mut lines = Vec::new();
    let json_type = "application/json";
    for (what, method, path, content_type, body) in [
        ("no such route", "GET", "/v1/nowhere", json_type, String::new()),
        ("no such model", "GET", "/v1/models/other", json_type, String::new()),
        ("no text", "GET", "/v1/models/%ff", json_type, String::new()),
        ("wrong method", "GET", "/v1/chat/completions", json_type, String::new()),
        ("wrong method, no prefix", "DELETE", "/completions", json_type, String::new()),
        ("not announced as JSON", "POST", "/v1/completions", "text/plain", "{}".into()),
        ("not JSON", "POST", "/v1/completions", json_type, "{\"prompt\": secret}".into()),
        ("not an object", "POST", "/chat/completions", json_type, "[]".into()),
        ("too long", "POST", "/v1/chat/completions", json_type, " ".repeat((1 << 20) + 1)),
    ] {
        let request = worker.client.request(method.parse().unwrap(), format!("{}{path}", worker.url));
        let response = request.header("content-type", content_type).body(body).send().await.unwrap();
        let (status, allow) = (response.status().as_u16(), response.headers().get("allow").cloned());
        let error: Value = response.json().await.unwrap();
        let allow = allow.map(|allow| format!(" allow: {}", allow.to_str().unwrap()));
        lines.push(format!("{what}: {status}{} {error}", allow.unwrap_or_default()));
    }
    let foreign = worker.client.get(format!("{}/v1/models", worker.url)).header("origin", "http://evil.example");
    let foreign = foreign.send().await.unwrap();
    lines.push(format!("foreign page: {} {}", foreign.status().as_u16(), foreign.json::<Value>().await.unwrap()));
    worker.state.begin_drain();
    let draining = worker.post(CHAT, &chat(&json!({}))).await;
    assert_eq!(draining.headers()["retry-after"], "1");
    lines.push(format!("draining: {} {}", draining.status().as_u16(), draining.json::<Value>().await.unwrap()));
    insta::assert_snapshot!(lines.join("\n"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2i64..6).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "text",
            "assistant",
            "json_object",
            "none",
            "5",
            "function",
            "required",
            "(a|b"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let name = prop::sample::select(vec![
            "role",
            "content",
            "type",
            "text",
            "name",
            "include_usage",
            "5",
            "tool_calls",
            "function",
            "schema",
            "json",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name, inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

const FIELDS: &[&str] = &[
    "model",
    "messages",
    "prompt",
    "n",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "seed",
    "ignore_eos",
    "logprobs",
    "top_logprobs",
    "echo",
    "response_format",
    "tools",
    "tool_choice",
    "guided_json",
    "guided_choice",
    "structured_outputs",
    "chat_template_kwargs",
    "best_of",
    "unknown",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_body_makes_the_worker_fail(
        fields in prop::collection::btree_map(prop::sample::select(FIELDS), any_json(), 0..8),
        is_chat in any::<bool>(),
        well_founded in any::<bool>(),
    ) {
        let mut body: Value = fields.into_iter().map(|(field, value)| (field.to_string(), value)).collect();
        if well_founded {
            body["messages"] = json!([{ "role": "user", "content": "hi" }]);
            body["prompt"] = json!("hi");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let worker = Worker::start().await;
            worker.script("ab");
            let response = worker.post(if is_chat { CHAT } else { COMPLETIONS }, &body).await;
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            match status {
                400 => {
                    let error: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(error["error"]["type"], "invalid_request_error", "{body}: {text}");
                }
                429 => assert!(text.contains("queue_full"), "{body}: {text}"),
                200 => assert!(!text.contains("\"error\""), "{body}: {text}"),
                status => panic!("{status} for {body}: {text}"),
            }
        });
    }
}

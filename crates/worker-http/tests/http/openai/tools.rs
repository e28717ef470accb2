//! Tools: calls found in what the model says, and made where they are required.

use serde_json::{Value, json};

use test_support::tiny_model::{TagKind, TinyModel};

use super::{CHAT, COMPLETIONS, ask, chat, completion, stream, text_of};
use crate::worker::{Config, Worker};

fn tools() -> Value {
    let place = json!({ "type": "object", "properties": { "place": { "enum": ["Rome", "Oslo"] } }, "required": ["place"],
        "additionalProperties": false });
    json!([
        { "type": "function", "function": { "name": "weather", "description": "Of a place.", "parameters": place } },
        { "type": "function", "function": { "name": "time" } },
    ])
}

fn with_tools(extra: Value) -> Value {
    let mut body = chat(&extra);
    body["tools"] = tools();
    body
}

const CALL: &str = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";

/// Names and arguments; everything else is asserted.
fn calls(calls: &Value) -> Vec<(String, String)> {
    let mut ids = Vec::new();
    let told = |call: &Value| {
        assert_eq!(call["type"], "function");
        ids.push(call["id"].as_str().unwrap().to_owned());
        let function = &call["function"];
        (function["name"].as_str().unwrap().to_owned(), function["arguments"].as_str().unwrap().to_owned())
    };
    let told = calls.as_array().into_iter().flatten().map(told).collect();
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]) && ids.iter().all(|id| id.starts_with("call_")));
    told
}

/// What a stream says: text, calls, the reason of its end.
fn put_together(chunks: &[Value], index: usize) -> (String, Vec<(String, String)>, Value) {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let choices: Vec<&Value> = choices.filter(|choice| choice["index"] == index).collect();
    let deltas = choices.iter().flat_map(|choice| choice["delta"]["tool_calls"].as_array().into_iter().flatten());
    let all: Vec<Value> = deltas.cloned().collect();
    assert!(all.iter().enumerate().all(|(at, call)| call["index"] == at), "{all:?}");
    (text_of(chunks, index), calls(&all.into()), choices.last().unwrap()["finish_reason"].clone())
}

#[tokio::test]
async fn calls_that_the_model_writes_are_told_whole_and_streamed() {
    let worker = Worker::start().await;
    let rome = ("weather".to_owned(), "{\"place\": \"Rome\"}".to_owned());
    let time = ("time".to_owned(), "{}".to_owned());
    for (says, text, expected, reason) in [
        (CALL.to_owned(), None, vec![rome.clone()], "tool_calls"),
        (format!("Let me see.\n{CALL}\n{CALL}"), Some("Let me see."), vec![rome.clone(), rome.clone()], "tool_calls"),
        ("{\"name\": \"time\", \"parameters\": {}}".into(), None, vec![time], "tool_calls"),
        (
            "{\"name\": \"other\", \"parameters\": {}}".into(),
            Some("{\"name\": \"other\", \"parameters\": {}}"),
            vec![],
            "stop",
        ),
        ("Just <b>text</b>, {}".into(), Some("Just <b>text</b>, {}"), vec![], "stop"),
        (CALL[..40].into(), Some(&CALL[..40]), vec![], "stop"),
    ] {
        worker.script(&says);
        let answer = ask(&worker, CHAT, &with_tools(json!({}))).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], json!(text), "{says}");
        assert_eq!(calls(&choice["message"]["tool_calls"]), expected, "{says}");
        assert_eq!(choice["finish_reason"], reason, "{says}");
        let streamed = stream(&worker, CHAT, &with_tools(json!({}))).await;
        assert_eq!(
            put_together(&streamed, 0),
            (text.unwrap_or_default().to_owned(), expected, json!(reason)),
            "{says}"
        );
    }
    worker.script(&format!("{CALL}{CALL}"));
    let answer = ask(&worker, CHAT, &with_tools(json!({ "parallel_tool_calls": false }))).await;
    assert_eq!(calls(&answer["choices"][0]["message"]["tool_calls"]), [rome]);
}

#[tokio::test]
async fn without_tools_or_with_none_to_be_called_text_is_text() {
    let worker = Worker::start().await;
    worker.script(CALL);
    for body in [chat(&json!({})), with_tools(json!({ "tool_choice": "none" })), chat(&json!({ "tools": [] }))] {
        let message = ask(&worker, CHAT, &body).await["choices"][0]["message"].clone();
        assert_eq!((&message["content"], &message["tool_calls"]), (&json!(CALL), &Value::Null), "{body}");
    }
}

#[tokio::test]
async fn a_model_that_has_to_call_does_so() {
    let worker = Worker::start().await;
    worker.script("I would rather not");
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    for (choice, name) in
        [(json!("required"), None), (named("weather"), Some("weather")), (named("time"), Some("time"))]
    {
        let body =
            with_tools(json!({ "tool_choice": choice, "parallel_tool_calls": false, "n": 2, "temperature": 1.0 }));
        let answer = ask(&worker, CHAT, &body).await;
        let streamed = stream(&worker, CHAT, &body).await;
        for index in 0..2 {
            let whole = &answer["choices"][index];
            assert_eq!((&whole["finish_reason"], &whole["message"]["content"]), (&json!("tool_calls"), &Value::Null));
            let (text, told, reason) = put_together(&streamed, index);
            assert_eq!((text.as_str(), reason), ("", json!("tool_calls")));
            for calls in [calls(&whole["message"]["tool_calls"]), told] {
                let [(called, arguments)] = calls.as_slice() else { panic!("{calls:?}") };
                assert!(name.is_none_or(|name| name == called), "{called}");
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                let is_valid = match called.as_str() {
                    "weather" => ["Rome", "Oslo"].contains(&arguments["place"].as_str().unwrap()),
                    "time" => arguments.is_object(),
                    _ => false,
                };
                assert!(is_valid, "{called} {arguments}");
            }
        }
    }
    let cut = ask(&worker, CHAT, &with_tools(json!({ "tool_choice": "required", "max_tokens": 5 }))).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert!(cut["choices"][0]["message"]["content"].as_str().unwrap().starts_with("{\"n"), "{cut}");
}

/// A model whose template teaches Qwen's form.
const QWEN: &str = "{% if tools %}{{ '<tools>' + tools | tojson + '</tools> <tool_call>' }}{% endif %}\
     {% for message in messages %}{{ message['content'] }}{% endfor %}";
/// A model that is told of no tools.
const PLAIN: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";

async fn with_model(model: TinyModel) -> Worker {
    Worker::start_with(Config { model, ..Config::default() }).await
}

fn strict_tools() -> Value {
    let mut tools = tools();
    tools[0]["function"]["strict"] = true.into();
    tools
}

#[tokio::test]
async fn a_strict_tool_is_called_with_what_fits_its_schema_or_not_at_all() {
    use TagKind::{Control, UserDefined};
    // As long as the places that there are, so that the script goes on behind it where it would.
    let bad = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Lima\"}}\n</tool_call>";
    let llama_bad = "{\"name\": \"weather\", \"parameters\": {\"place\": \"Lima\"}}";
    let free = "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": [1]}}\n</tool_call>";
    let vocabularies: [&[(&str, TagKind)]; 3] = [
        &[],
        &[("<tool_call>", UserDefined), ("</tool_call>", UserDefined)],
        &[("<tool_call>", Control), ("</tool_call>", Control)],
    ];
    let ask_for = |extra: Value| {
        let mut body = chat(&extra);
        body["tools"] = strict_tools();
        body["seed"] = 3.into();
        body
    };
    for tags in vocabularies {
        let worker = with_model(TinyModel { tags, chat_template: QWEN, ..TinyModel::default() }).await;
        // One that is strict is held to its schema, one that is not is free.
        worker.script(&format!("I look.\n{bad}\n{free}"));
        let answer = ask(&worker, CHAT, &ask_for(json!({}))).await;
        let message = &answer["choices"][0]["message"];
        let told = calls(&message["tool_calls"]);
        assert_eq!(message["content"], "I look.", "{tags:?}");
        let place: Value = serde_json::from_str(&told[0].1).unwrap();
        assert!(
            told[0].0 == "weather" && (place == json!({"place": "Rome"}) || place == json!({"place": "Oslo"})),
            "{told:?}"
        );
        let streamed = put_together(&stream(&worker, CHAT, &ask_for(json!({}))).await, 0);
        assert_eq!(streamed, ("I look.".to_owned(), told.clone(), json!("tool_calls")), "{tags:?}");
        assert_eq!(told[1..], [("time".to_owned(), "{\"zone\": [1]}".to_owned())], "{tags:?}");
        worker.script(free);
        let answer = ask(&worker, CHAT, &ask_for(json!({ "parallel_tool_calls": false }))).await;
        let free = ("time".to_owned(), "{\"zone\": [1]}".to_owned());
        assert_eq!(calls(&answer["choices"][0]["message"]["tool_calls"]), [free], "{tags:?}");
        // What is no call in the model's form is text.
        for text in ["Just <b>text</b>, {}", llama_bad] {
            worker.script(text);
            let choice = ask(&worker, CHAT, &ask_for(json!({}))).await["choices"][0].clone();
            assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!("stop")));
        }
    }
    // Llama's form, which a template without tags has.
    let worker = Worker::start().await;
    worker.script(llama_bad);
    let answer = ask(&worker, CHAT, &ask_for(json!({}))).await;
    let told = calls(&answer["choices"][0]["message"]["tool_calls"]);
    let place: Value = serde_json::from_str(&told[0].1).unwrap();
    assert!(
        told[0].0 == "weather" && (place == json!({"place": "Rome"}) || place == json!({"place": "Oslo"})),
        "{told:?}"
    );
    worker.script(bad);
    let message = ask(&worker, CHAT, &ask_for(json!({}))).await["choices"][0]["message"].clone();
    assert_eq!((&message["content"], &message["tool_calls"]), (&json!(bad), &Value::Null));
    // Without a strict tool nobody checks.
    let worker = with_model(TinyModel { chat_template: QWEN, ..TinyModel::default() }).await;
    worker.script(bad);
    let answer = ask(&worker, CHAT, &with_tools(json!({}))).await;
    let paris = ("weather".to_owned(), "{\"place\": \"Lima\"}".to_owned());
    assert_eq!(calls(&answer["choices"][0]["message"]["tool_calls"]), [paris]);
}

#[tokio::test]
async fn calls_in_tags_without_text_are_found_behind_text_and_made_where_they_are_required() {
    let tags = &[("<tool_call>", TagKind::Control), ("</tool_call>", TagKind::Control)];
    let worker = with_model(TinyModel { tags, chat_template: QWEN, ..TinyModel::default() }).await;
    worker.script(&format!("Let me see.\n{CALL}"));
    let rome = ("weather".to_owned(), "{\"place\": \"Rome\"}".to_owned());
    let message = ask(&worker, CHAT, &with_tools(json!({}))).await["choices"][0]["message"].clone();
    assert_eq!((&message["content"], calls(&message["tool_calls"])), (&json!("Let me see."), vec![rome.clone()]));
    worker.script(&format!("{CALL}\n{CALL}"));
    let answer = ask(&worker, CHAT, &with_tools(json!({ "tool_choice": "required" }))).await;
    assert_eq!(calls(&answer["choices"][0]["message"]["tool_calls"]), [rome.clone(), rome]);
    // Without tools they stay out of sight.
    let answer = ask(&worker, CHAT, &chat(&json!({}))).await;
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().contains("tool_call"));
}

#[tokio::test]
async fn tools_that_the_template_does_not_tell_the_model_of_are_refused_unless_it_has_to_call() {
    let worker = with_model(TinyModel { chat_template: PLAIN, ..TinyModel::default() }).await;
    worker.script("I would rather not");
    let mut lines = Vec::new();
    let strict = chat(&json!({ "tools": strict_tools() }));
    for (path, body) in [
        (CHAT, with_tools(json!({}))),
        (CHAT, with_tools(json!({ "tool_choice": "auto", "stream": true }))),
        (CHAT, strict),
        ("/apply-template", with_tools(json!({}))),
    ] {
        let response = worker.post(path, &body).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        lines.push(format!("{path} {status} {body}"));
    }
    insta::assert_snapshot!(lines.join("\n"));
    for (choice, n_calls) in [(json!("required"), 1), (json!("none"), 0)] {
        let body = with_tools(json!({ "tool_choice": choice, "parallel_tool_calls": false }));
        let answer = ask(&worker, CHAT, &body).await;
        assert_eq!(calls(&answer["choices"][0]["message"]["tool_calls"]).len(), n_calls, "{answer}");
        assert_eq!(worker.post("/apply-template", &body).await.status(), 200);
    }
}

#[tokio::test]
async fn log_probabilities_of_a_call_are_all_told() {
    let worker = Worker::start().await;
    worker.script(CALL);
    let streamed = stream(&worker, CHAT, &with_tools(json!({ "logprobs": true }))).await;
    let choices = streamed.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let told = choices.flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default());
    let text: String = told.map(|token| token["token"].as_str().unwrap().to_owned()).collect();
    assert_eq!(text, CALL);
}

#[tokio::test]
async fn a_conversation_with_calls_and_their_results_goes_on() {
    let worker = Worker::start().await;
    worker.script("Sunny.");
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"place\": \"Rome\"}" } });
    let messages = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ]);
    let answer = ask(&worker, CHAT, &with_tools(json!({ "messages": messages }))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Sunny.");
}

#[tokio::test]
async fn faults_name_the_tool() {
    let worker = Worker::start().await;
    let tool = |parameters: Value| json!({ "type": "function", "function": { "name": "f", "parameters": parameters } });
    let bad = json!([tools()[0], tool(json!({ "properties": { "a": { "not": {} } } }))]);
    let strict = |parameters: Value| {
        let mut tool = tool(parameters);
        tool["function"]["strict"] = true.into();
        json!([tools()[0], tool])
    };
    let mut lines = Vec::new();
    for extra in [
        json!({ "tools": "weather" }),
        json!({ "tools": [{}] }),
        json!({ "tools": [{ "type": "web_search" }] }),
        json!({ "tools": [{ "type": "function", "function": { "name": "" } }] }),
        json!({ "tools": [tool(json!([]))] }),
        json!({ "tools": [tool(json!({})), tool(json!({}))] }),
        json!({ "tools": bad, "tool_choice": "required" }),
        json!({ "tools": bad, "tool_choice": { "type": "function", "function": { "name": "f" } } }),
        json!({ "tools": [tool(json!({ "type": "string" }))], "tool_choice": "required" }),
        json!({ "tool_choice": "required" }),
        json!({ "tools": tools(), "tool_choice": "sometimes" }),
        json!({ "tools": tools(), "tool_choice": { "type": "function" } }),
        json!({ "tools": tools(), "tool_choice": { "type": "function", "function": { "name": "rain" } } }),
        json!({ "tools": tools(), "tool_choice": "required", "ignore_eos": true }),
        json!({ "tools": strict_tools(), "ignore_eos": true }),
        json!({ "tools": strict_tools(), "grammar": "root ::= \"a\"" }),
        json!({ "tools": strict(json!({ "properties": { "a": { "not": {} } } })) }),
        json!({ "tools": strict(json!({ "properties": { "a": { "type": "string", "pattern": "(" } } })) }),
        json!({ "tools": [{ "type": "function", "function": { "name": "f", "strict": "yes" } }] }),
        json!({ "tools": tools(), "response_format": { "type": "json_object" } }),
        json!({ "function_call": "auto" }),
    ] {
        let response = worker.post(CHAT, &chat(&extra)).await;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap();
        lines.push(format!("{status} {}: {}", body["error"]["param"], body["error"]["message"].as_str().unwrap()));
    }
    // A schema that cannot be enforced is nobody's concern where it need not be.
    worker.script("a");
    ask(&worker, CHAT, &chat(&json!({ "tools": bad }))).await;
    let response = worker.post(COMPLETIONS, &completion(&json!({ "tools": tools() }))).await;
    lines.push(response.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().to_owned());
    insta::assert_snapshot!(lines.join("\n"));
}

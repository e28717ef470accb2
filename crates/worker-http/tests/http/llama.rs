//! llama-server's routes: `/tokenize`, `/detokenize`, `/apply-template`, `/props`.

use serde_json::{Value, json};
use worker_http::AppState;

use crate::worker::{Config, Worker, settings};

async fn ask(worker: &Worker, path: &str, body: Value) -> (u16, Value) {
    let response = worker.post(path, &body).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn tokens_are_those_of_the_tokenizer_and_come_back_as_the_text() {
    let worker = Worker::start().await;
    for text in ["", "hello world", "語 and é", "<|im_start|>user\nhi<|im_end|>"] {
        let (status, reply) = ask(&worker, "/tokenize", json!({ "content": text })).await;
        assert_eq!((status, &reply), (200, &json!({ "tokens": worker.ids(text) })), "{text:?}");
        let (status, reply) = ask(&worker, "/detokenize", json!({ "tokens": reply["tokens"] })).await;
        assert_eq!((status, reply), (200, json!({ "content": text })));
    }
}

#[tokio::test]
async fn special_tokens_are_parsed_unless_told_not_to() {
    let worker = Worker::start().await;
    let count = async |body: Value| ask(&worker, "/tokenize", body).await.1["tokens"].as_array().unwrap().len();
    assert_eq!(count(json!({ "content": "<|im_end|>" })).await, 1);
    assert!(count(json!({ "content": "<|im_end|>", "parse_special": false })).await > 1);
    let added = worker.tokenizer.added_bos().iter().len() + worker.tokenizer.added_eos().iter().len();
    assert_eq!(count(json!({ "content": "a", "add_special": true })).await, 1 + added);
}

#[tokio::test]
async fn a_piece_is_text_or_its_bytes() {
    let worker = Worker::start().await;
    let (_, reply) = ask(&worker, "/tokenize", json!({ "content": "a語<|im_end|>", "with_pieces": true })).await;
    let tokens = reply["tokens"].as_array().unwrap();
    let ids: Vec<u32> = tokens.iter().map(|token| token["id"].as_u64().unwrap() as u32).collect();
    assert_eq!(ids, worker.ids("a語<|im_end|>"));
    let pieces: Vec<&Value> = tokens.iter().map(|token| &token["piece"]).collect();
    assert_eq!(pieces, [&json!("a"), &json!([0xe8]), &json!([0xaa]), &json!([0x9e]), &json!("<|im_end|>")]);
}

#[tokio::test]
async fn a_template_writes_what_chat_would_continue() {
    let worker = Worker::start().await;
    let messages = json!([{ "role": "system", "content": "be brief" }, { "role": "user", "content": "hi" }]);
    let (status, reply) = ask(&worker, "/apply-template", json!({ "messages": messages })).await;
    let prompt = reply["prompt"].as_str().unwrap();
    assert_eq!(status, 200, "{reply}");
    worker.script("fine");
    let (_, answer) = ask(&worker, "/v1/chat/completions", json!({ "messages": messages })).await;
    assert_eq!(answer["usage"]["prompt_tokens"], worker.ids(prompt).len());
    let (_, open) =
        ask(&worker, "/apply-template", json!({ "messages": messages, "add_generation_prompt": false })).await;
    let open = open["prompt"].as_str().unwrap();
    assert!(prompt.starts_with(open) && prompt.len() > open.len(), "{open:?} {prompt:?}");
}

#[tokio::test]
async fn a_template_is_given_the_tools_that_may_be_called() {
    let worker = Worker::start().await;
    let body = |choice: &str| {
        let tool =
            json!({ "type": "function", "function": { "name": "introduce", "parameters": { "type": "object" } } });
        json!({ "messages": [{ "role": "user", "content": "hi" }], "tools": [tool], "tool_choice": choice })
    };
    for (choice, is_told) in [("auto", true), ("required", true), ("none", false)] {
        let (status, reply) = ask(&worker, "/apply-template", body(choice)).await;
        let prompt = reply["prompt"].as_str().unwrap_or_else(|| panic!("{status} {reply}"));
        assert_eq!(prompt.contains("introduce"), is_told, "{choice}: {prompt}");
        if choice != "required" {
            worker.script("fine");
            let (_, answer) = ask(&worker, "/v1/chat/completions", body(choice)).await;
            assert_eq!(answer["usage"]["prompt_tokens"], worker.ids(prompt).len(), "{choice}");
        }
    }
}

#[tokio::test]
async fn props_tell_what_clients_of_llama_server_ask_for() {
    let worker = Worker::start().await;
    let mut props: Value = worker.get("/props").await.json().await.unwrap();
    assert!(props["chat_template"].as_str().unwrap().contains("add_generation_prompt"));
    props["chat_template"] = "[template]".into();
    props["build_info"] = "[version]".into();
    insta::assert_json_snapshot!(props);
}

#[tokio::test]
async fn faults_are_told_in_the_workers_own_form() {
    let worker = Worker::start_with(Config { has_template: false, ..Config::default() }).await;
    let n_vocab = worker.tokenizer.n_vocab();
    let user = json!([{ "role": "user", "content": "hi" }]);
    let mut table = String::new();
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({ "content": 1, "add_special": 1, "parse_special": "no", "with_pieces": [] })),
        ("/tokenize", json!({ "content": "x".repeat((512 << 10) + 1) })),
        ("/detokenize", json!({})),
        ("/detokenize", json!({ "tokens": "1" })),
        ("/detokenize", json!({ "tokens": [1, -1] })),
        ("/detokenize", json!({ "tokens": [n_vocab] })),
        ("/detokenize", json!({ "tokens": [1.5] })),
        ("/apply-template", json!({ "messages": user })),
    ] {
        let (status, error) = ask(&worker, path, body).await;
        table.push_str(&format!("{path} {status} {error}\n"));
    }
    let worker = Worker::start().await;
    for body in [
        json!({}),
        json!({ "messages": user, "chat_template_kwargs": 1, "tools": [{}] }),
        json!({ "messages": [{ "role": "nobody", "content": "hi" }] }),
    ] {
        let (status, error) = ask(&worker, "/apply-template", body).await;
        table.push_str(&format!("/apply-template {status} {error}\n"));
    }
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn nothing_is_told_before_there_is_a_model() {
    use tower::ServiceExt;
    let state = AppState::new(settings(&Config::default()));
    for (method, path) in
        [("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/apply-template"), ("GET", "/props")]
    {
        let request =
            axum::http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(axum::body::Body::from("{}")).unwrap();
        let response = worker_http::app(state.clone()).oneshot(request).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &"1".parse().unwrap()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_body_of_nothing_but_faults_gets_a_short_answer() {
    let worker = Worker::start().await;
    let message = json!({ "role": "user", "content": vec![json!({}); 256] });
    let (status, error) = ask(&worker, "/apply-template", json!({ "messages": vec![message; 1024] })).await;
    assert_eq!((status, &error["code"]), (400, &json!("INVALID_REQUEST")));
    assert_eq!(error["message"], "262144 faults, the first 64 listed in errors");
    let errors = error["errors"].as_array().unwrap();
    assert_eq!(errors[63]["field"], "messages[0].content[63].type");
    assert_eq!((errors.len(), &errors[64]["message"]), (65, &json!("body: and 262080 more faults")));
}

//! OpenAI's routes over a real socket.

mod answers;
mod echo;
mod jobs;
mod logprobs;
mod refusals;
mod structured;
mod tools;

use serde_json::{Value, json};

use crate::worker::{Stream, Worker};

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// A conversation of one turn, with `extra`.
pub(crate) fn chat(extra: &Value) -> Value {
    with(json!({ "model": "any", "messages": [{ "role": "user", "content": "hi" }] }), extra)
}

/// A prompt, with `extra`.
pub(crate) fn completion(extra: &Value) -> Value {
    with(json!({ "model": "any", "prompt": "hi" }), extra)
}

fn with(mut body: Value, extra: &Value) -> Value {
    for (field, value) in extra.as_object().into_iter().flatten() {
        body[field] = value.clone();
    }
    body
}

/// A whole answer.
pub(crate) async fn ask(worker: &Worker, path: &str, body: &Value) -> Value {
    let response = worker.post(path, body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

/// All chunks of a streamed answer, which must end with `[DONE]`.
pub(crate) async fn stream(worker: &Worker, path: &str, body: &Value) -> Vec<Value> {
    let body = with(body.clone(), &json!({ "stream": true }));
    let mut stream = Stream::new(worker.post(path, &body).await).await;
    let mut chunks = Vec::new();
    while let Some(frame) = stream.frame().await {
        chunks.push(data(&frame));
    }
    assert_eq!(chunks.pop(), Some(json!("[DONE]")));
    chunks
}

/// What a frame carries; `[DONE]` as a string.
pub(crate) fn data(frame: &str) -> Value {
    let data = frame.strip_prefix("data: ").unwrap_or_else(|| panic!("{frame}"));
    if data == "[DONE]" { json!(data) } else { serde_json::from_str(data).unwrap() }
}

/// A choice's text, put together from chunks.
pub(crate) fn text_of(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    let texts = choices
        .filter(|choice| choice["index"] == index)
        .map(|choice| choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default().to_owned());
    texts.collect()
}

/// Asserts a snapshot in which ids and times are named instead of told.
macro_rules! assert_redacted_snapshot {
    ($text:expr) => {
        let text = $text;
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(r"(chatcmpl|cmpl)-[0-9a-f]{32}", "$1-[id]");
        settings.add_filter(r#""created": ?\d+"#, r#""created":[time]"#);
        settings.add_filter(r"fp_[0-9a-f]{10}", "fp_[hash]");
        settings.bind(|| insta::assert_snapshot!(text));
    };
}
pub(crate) use assert_redacted_snapshot;

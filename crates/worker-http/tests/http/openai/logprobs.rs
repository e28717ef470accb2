//! Log-probabilities in both forms.

use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, ask, chat, completion, stream};
use crate::worker::Worker;

async fn worker() -> Worker {
    let worker = Worker::start().await;
    worker.script("a語b");
    worker
}

#[tokio::test]
async fn chats_form_has_an_object_for_each_token() {
    let worker = worker().await;
    let body = chat(&json!({ "logprobs": true, "top_logprobs": 2 }));
    let answer = ask(&worker, CHAT, &body).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], content.len());
    let bytes: Vec<u8> = content.iter().flat_map(|token| token["bytes"].as_array().unwrap()).map(byte).collect();
    assert_eq!(bytes, "a語b".as_bytes());
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[1]["token"], "\u{fffd}");
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        for field in ["token", "logprob", "bytes"] {
            assert_eq!(top[0][field], token[field], "the most likely is the one that was scripted");
        }
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    // Streamed: the same, one for each token, also where its text is held back.
    let chunks = stream(&worker, CHAT, &body).await;
    let streamed: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].get(0)).collect();
    assert_eq!(streamed, content.iter().collect::<Vec<_>>());
    // Without alternatives, and without any.
    let body = chat(&json!({ "logprobs": true }));
    assert_eq!(ask(&worker, CHAT, &body).await["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    assert_eq!(ask(&worker, CHAT, &chat(&json!({}))).await["choices"][0]["logprobs"], Value::Null);
}

fn byte(byte: &Value) -> u8 {
    byte.as_u64().unwrap() as u8
}

#[tokio::test]
async fn the_form_of_completions_has_parallel_lists() {
    let worker = worker().await;
    let body = completion(&json!({ "logprobs": 1 }));
    let answer = ask(&worker, COMPLETIONS, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xe8", "bytes:\\xaa", "bytes:\\x9e", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 1, 2]));
    assert_eq!(logprobs["bytes"], json!([[0x61], [0xe8], [0xaa], [0x9e], [0x62]]));
    for i in 0..5 {
        let name = logprobs["tokens"][i].as_str().unwrap();
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        assert_eq!((top.len(), &top[name]), (1, &logprobs["token_logprobs"][i]));
    }
    let chunks = stream(&worker, COMPLETIONS, &body).await;
    for (i, chunk) in chunks.iter().take(5).enumerate() {
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset", "bytes"] {
            assert_eq!(chunk["choices"][0]["logprobs"][list], json!([logprobs[list][i]]), "{list}");
        }
    }
    assert_eq!(chunks[5]["choices"][0]["logprobs"], Value::Null, "the reason comes alone");
    let none = ask(&worker, COMPLETIONS, &completion(&json!({ "logprobs": 0 }))).await;
    assert_eq!(none["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1, "the chosen one");
}

#[tokio::test]
async fn the_chosen_token_is_told_although_it_is_not_likely() {
    let worker = Worker::start().await;
    let body = completion(&json!({ "logprobs": 1, "temperature": 2, "seed": 3, "max_tokens": 40, "ignore_eos": true }));
    let answer = ask(&worker, COMPLETIONS, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    let n_top: Vec<usize> =
        logprobs["top_logprobs"].as_array().unwrap().iter().map(|top| top.as_object().unwrap().len()).collect();
    assert!(n_top.contains(&2), "{n_top:?}");
    for (i, top) in logprobs["top_logprobs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(top[logprobs["tokens"][i].as_str().unwrap()], logprobs["token_logprobs"][i]);
    }
}

#[tokio::test]
async fn an_empty_answer_has_empty_lists() {
    let worker = Worker::start().await;
    worker.script("");
    let answer = ask(&worker, CHAT, &chat(&json!({ "logprobs": true }))).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"], json!([]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let answer = ask(&worker, COMPLETIONS, &completion(&json!({ "logprobs": 0 }))).await;
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!([]));
}

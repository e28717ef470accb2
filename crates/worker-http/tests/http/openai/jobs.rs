//! Requests with several answers: taken whole or refused whole, ended whole.

use std::time::Duration;

use serde_json::{Value, json};
use transformer::ExecutorError;

use super::{CHAT, COMPLETIONS, ask, chat, completion, data};
use crate::worker::{Config, Stream, Worker, wait_until};

/// Two running jobs, two in the queue behind them.
async fn worker() -> Worker {
    let worker = Worker::start().await;
    worker.script(&"a".repeat(1000));
    worker
}

/// The chunks up to one that satisfies `is_it`.
async fn until(stream: &mut Stream, is_it: impl Fn(&Value) -> bool) -> Value {
    loop {
        let frame = stream.frame().await.expect("more chunks");
        // A comment keeps a silent stream alive.
        if frame.starts_with(':') {
            continue;
        }
        let chunk = data(&frame);
        if is_it(&chunk) {
            return chunk;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_all_of_its_answers() {
    let worker = worker().await;
    worker.control.hold_after(2);
    let body = completion(&json!({ "prompt": ["one", "two"], "n": 2, "stream": true }));
    let mut stream = Stream::new(worker.post(COMPLETIONS, &body).await).await;
    stream.frame().await.unwrap();
    worker.control.wait_until_held();
    assert_eq!(worker.state.n_live_jobs(), 1);
    drop(stream);
    wait_until("the job is given up", || worker.state.n_live_jobs() == 0).await;
    let n_steps = worker.control.n_steps();
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() <= n_steps + 1);
}

#[tokio::test]
async fn a_client_that_does_not_wait_for_a_whole_answer_ends_it() {
    let worker = worker().await;
    worker.control.hold_after(2);
    let body = chat(&json!({ "n": 3 }));
    let mut request = Box::pin(worker.post(CHAT, &body));
    tokio::select! {
        _ = &mut request => panic!("it is held"),
        () = wait_until("the job is live", || worker.state.n_live_jobs() == 1) => {}
    }
    drop(request);
    wait_until("the job is given up", || worker.state.n_live_jobs() == 0).await;
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() < 10, "{}", worker.control.n_steps());
}

#[tokio::test]
async fn several_answers_find_places_for_all_or_none() {
    let worker = worker().await;
    worker.control.hold_after(0);
    let mut running = worker.execute("running", "hi", json!({ "max_tokens": 2 })).await;
    running.expect("started").await;
    // Four places in all, one is taken.
    let four = json!({ "n": 4, "max_tokens": 2 });
    let refused = worker.post(CHAT, &chat(&four)).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
    let error: Value = refused.json().await.unwrap();
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
    let refused = worker.post(CHAT, &chat(&json!({ "n": 5 }))).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.json::<Value>().await.unwrap()["error"]["param"]),
        (400, &json!("n"))
    );
    // Nothing of them is left: three still fit.
    let body = chat(&json!({ "n": 3, "max_tokens": 2 }));
    let three = ask(&worker, CHAT, &body);
    worker.control.release();
    assert_eq!(three.await["usage"]["completion_tokens"], 6);
    assert_eq!(running.rest().await.last["tokens_out"], 2);
}

#[tokio::test]
async fn cancel_knows_the_id_and_the_stream_ends_with_an_error() {
    let worker = worker().await;
    worker.control.hold_after(4);
    let mut stream = Stream::new(worker.post(CHAT, &chat(&json!({ "n": 2, "stream": true }))).await).await;
    let first = data(&stream.frame().await.unwrap());
    let id = first["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-"));
    worker.control.wait_until_held();
    worker.cancel(id).await;
    let error = until(&mut stream, |chunk| chunk.get("error").is_some()).await;
    assert_eq!(
        error,
        json!({ "error": { "message": "the job was cancelled", "type": "server_error", "param": null, "code": "cancelled" } })
    );
    assert_eq!(data(&stream.frame().await.unwrap()), "[DONE]");
    assert!(stream.frame().await.is_none());
    worker.control.release();
    worker.wait_until_free().await;
    assert_eq!(worker.state.n_live_jobs(), 0);
}

#[tokio::test]
async fn a_failure_in_the_middle_is_told_in_the_stream_and_as_a_status() {
    let worker = worker().await;
    worker.control.fail_after(2, ExecutorError::OutOfMemory("no room for scratch".into()));
    let mut stream = Stream::new(worker.post(COMPLETIONS, &completion(&json!({ "stream": true }))).await).await;
    let error = until(&mut stream, |chunk| chunk.get("error").is_some()).await;
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("server_error"), &json!("vram_oom")));
    assert_eq!(data(&stream.frame().await.unwrap()), "[DONE]");
    assert!(stream.frame().await.is_none());
    worker.control.fail_after(2, ExecutorError::OutOfMemory("no room for scratch".into()));
    let failed = worker.post(CHAT, &chat(&json!({ "n": 2 }))).await;
    assert_eq!(failed.status(), 500);
    assert_eq!(failed.json::<Value>().await.unwrap()["error"]["code"], "vram_oom");
    worker.wait_until_free().await;
    worker.script("fine");
    assert_eq!(ask(&worker, CHAT, &chat(&json!({}))).await["choices"][0]["message"]["content"], "fine");
}

#[tokio::test]
async fn more_answers_than_run_at_a_time_wait_their_turn() {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    config.engine.queue_limit = 15;
    let worker = Worker::start_with(config).await;
    worker.script("abc");
    let answer = ask(&worker, COMPLETIONS, &completion(&json!({ "n": 16 }))).await;
    assert_eq!(answer["usage"]["completion_tokens"], 48);
    let choices = answer["choices"].as_array().unwrap();
    assert!(choices.len() == 16 && choices.iter().all(|choice| choice["text"] == "abc"));
}

#[tokio::test]
async fn nothing_but_comments_comes_before_the_first_token() {
    let worker = Worker::start_with(Config { keep_alive: Duration::from_millis(20), ..Config::default() }).await;
    worker.script("a");
    worker.control.hold_after(0);
    let mut stream = Stream::new(worker.post(CHAT, &chat(&json!({ "stream": true }))).await).await;
    for _ in 0..2 {
        assert_eq!(stream.frame().await.unwrap(), ": keep-alive");
    }
    worker.control.release();
    until(&mut stream, |chunk| chunk == "[DONE]").await;
    assert!(stream.transcript.contains("assistant"));
}

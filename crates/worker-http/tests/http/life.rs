//! From loading to the last answer.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use worker_http::{AppState, BODY_READ_TIMEOUT, Phase, app};

use crate::worker::{Config, PATIENCE, Worker, served, settings};

/// A request without a socket.
async fn ask(state: &AppState, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = app(state.clone()).oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[tokio::test]
async fn answers_from_the_first_moment_and_says_how_far_it_is() {
    let config = Config::default();
    let state = AppState::new(settings(&config));
    let (status, health) = ask(&state, "GET", "/health", "").await;
    assert_eq!((status, &health["status"], &health["progress"]), (503, &json!("loading"), &json!(0.0)));
    assert_eq!((&health["model"], &health["architecture"]), (&json!("tiny"), &Value::Null));
    state.set_progress(0.5);
    assert_eq!(ask(&state, "GET", "/health", "").await.1["progress"], 0.5);
    let (status, error) = ask(&state, "GET", "/ready", "").await;
    assert_eq!((status, &error["code"], &error["retriable"]), (503, &json!("NOT_READY"), &json!(true)));
    let (status, error) = ask(&state, "POST", "/execute", r#"{"job_id": "a", "prompt": "b"}"#).await;
    assert_eq!((status, &error["code"]), (503, &json!("NOT_READY")));
    assert_eq!(ask(&state, "POST", "/cancel", r#"{"job_id": "a"}"#).await.0, 202);

    state.set_ready(served(&config).0);
    let (status, mut health) = ask(&state, "GET", "/health", "").await;
    assert_eq!(status, 200);
    health["uptime_seconds"] = Value::Null;
    health["memory_bytes"] = Value::Null;
    insta::assert_json_snapshot!(health);
    assert_eq!(ask(&state, "GET", "/ready", "").await, (200, json!({ "ready": true })));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_waited_for_no_longer_than_its_limit() {
    let state = AppState::new(settings(&Config::default()));
    let half = futures_util::stream::iter([Ok::<_, std::io::Error>("{\"job_id\"")]);
    let body = Body::from_stream(half.chain(futures_util::stream::pending()));
    let request = Request::post("/execute").header("content-type", "application/json").body(body).unwrap();
    let begun = tokio::time::Instant::now();
    let response = app(state).oneshot(request).await.unwrap();
    assert_eq!((response.status(), begun.elapsed()), (axum::http::StatusCode::BAD_REQUEST, BODY_READ_TIMEOUT));
}

#[tokio::test]
async fn a_worker_that_cannot_load_says_why() {
    let state = AppState::new(settings(&Config::default()));
    state.set_failed("tensor \"output.weight\" is missing");
    let (status, health) = ask(&state, "GET", "/health", "").await;
    assert_eq!((status, &health["status"]), (503, &json!("failed")));
    assert_eq!(health["message"], "tensor \"output.weight\" is missing");
    assert_eq!(ask(&state, "GET", "/ready", "").await.0, 503);
}

#[tokio::test]
async fn a_shutdown_while_loading_is_not_undone_by_becoming_ready() {
    let config = Config::default();
    let state = AppState::new(settings(&config));
    assert_eq!(ask(&state, "POST", "/shutdown", "").await.0, 202);
    state.shutdown_requested().await;
    state.set_ready(served(&config).0);
    assert_eq!(state.phase(), Phase::Draining);
    assert!(state.drain(PATIENCE).await);
}

#[tokio::test]
async fn health_counts_running_and_queued_jobs() {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    let worker = Worker::start_with(config).await;
    worker.script("abc");
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({})).await;
    running.expect("started").await;
    running.expect("token").await;
    let mut queued = worker.execute("queued", "hi", json!({})).await;
    queued.expect("started").await;
    let health: Value = worker.get("/health").await.json().await.unwrap();
    assert_eq!((&health["active_jobs"], &health["queued_jobs"]), (&json!(1), &json!(1)));
    assert_eq!(worker.metric("vllm:num_requests_running").await, 1.0);
    assert_eq!(worker.metric("vllm:num_requests_waiting").await, 1.0);
    assert!(worker.metric("vllm:kv_cache_usage_perc").await > 0.0);
    worker.control.release();
    running.rest().await;
    queued.rest().await;
    assert_eq!(worker.metric("vllm:kv_cache_usage_perc").await, 0.0);
}

#[tokio::test]
async fn a_drain_finishes_what_is_live_and_refuses_what_is_new() {
    let mut worker = Worker::start().await;
    worker.script("abc");
    worker.control.hold_after(1);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    assert_eq!(worker.post("/shutdown", &json!({})).await.status(), 202);
    worker.state.shutdown_requested().await;
    // Again, without a body: idempotent.
    assert_eq!(worker.client.post(format!("{}/shutdown", worker.url)).send().await.unwrap().status(), 202);
    let refused = worker.post("/execute", &json!({ "job_id": "job-2", "prompt": "hi" })).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "NOT_READY");
    let health = worker.get("/health").await;
    assert_eq!(health.status(), 200);
    assert_eq!(health.json::<Value>().await.unwrap()["status"], "draining");
    assert_eq!(worker.get("/ready").await.status(), 503);
    assert!(!worker.state.drain(Duration::from_millis(50)).await, "the job is still live");
    worker.control.release();
    let answer = stream.rest().await;
    assert_eq!((answer.text().as_str(), &answer.last["type"]), ("abc", &json!("end")));
    assert!(worker.state.drain(PATIENCE).await);
    worker.stop().await;
    let engine = worker.engine.clone();
    tokio::task::spawn_blocking(move || engine.join()).await.unwrap();
    assert!(worker.control.is_dropped(), "the model's memory is free");
}

#[tokio::test]
async fn jobs_that_outlive_the_drain_are_told_so_although_the_engine_is_in_a_step() {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    let worker = Worker::start_with(config).await;
    worker.script(&"a".repeat(2000));
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({})).await;
    running.expect("started").await;
    running.expect("token").await;
    let mut queued = worker.execute("queued", "hi", json!({})).await;
    worker.control.wait_until_held();
    assert!(!worker.state.drain(Duration::from_millis(50)).await);
    worker.state.cut_off();
    for stream in [&mut running, &mut queued] {
        let last = stream.rest().await.last;
        assert_eq!(
            (&last["type"], &last["code"], &last["retriable"]),
            (&json!("error"), &json!("NOT_READY"), &json!(true))
        );
    }
    assert!(worker.state.drain(PATIENCE).await);
    worker.control.release();
    let engine = worker.engine.clone();
    tokio::task::spawn_blocking(move || engine.join()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_finishes_open_streams() {
    let mut worker = Worker::start().await;
    worker.script("abc");
    worker.control.set_delay(Duration::from_millis(20));
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    worker.stop().await;
    assert_eq!(stream.rest().await.text(), "abc");
}

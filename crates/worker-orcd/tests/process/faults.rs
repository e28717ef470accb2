//! What becomes of a worker whose device fails.

use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Worker, command};

const JOB: &str = r#"{"job_id": "a", "prompt": "Write", "max_tokens": 60, "temperature": 0}"#;

/// A worker whose step fails.
fn worker(fault: &str) -> Worker {
    let worker = Worker::spawn(command(&["--port", "0", "--device", "cpu"]).env("WORKER_TEST_FAULT", fault));
    worker.wait_for("/ready", 200);
    worker
}

/// The last event of a stream.
fn last_event(stream: &str) -> Value {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).next_back().expect("an event");
    serde_json::from_str(data).expect("JSON")
}

#[test]
fn a_device_that_is_lost_ends_the_process_after_telling_everyone() {
    let worker = worker("device-lost:3");
    let began = Instant::now();
    let mut stream = String::new();
    BufReader::new(worker.send("POST", "/execute", JOB)).read_to_string(&mut stream).unwrap();
    let last = last_event(&stream);
    assert_eq!((last["type"].as_str(), last["code"].as_str()), (Some("error"), Some("CUDA_ERROR")), "{stream}");
    assert!(stream.contains("event: token"), "{stream}");

    let (status, body) = worker.request("GET", "/health", "");
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, health["status"].as_str()), (503, Some("failed")), "{body}");
    assert_eq!(health["message"], "device failed: on demand");
    assert_eq!(worker.request("GET", "/ready", "").0, 503);
    let (status, body) = worker.request("POST", "/execute", JOB);
    assert!(status == 503 && body.contains("NOT_READY"), "{status} {body}");

    let (status, log) = worker.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("error: the engine has failed: device failed: on demand"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn an_idle_client_does_not_hold_up_the_end_of_a_failed_worker() {
    let worker = worker("device-lost:0");
    // Neither reads what it is sent nor goes away.
    let stream = worker.send("POST", "/execute", JOB);
    let began = Instant::now();
    assert_eq!(worker.end().0.code(), Some(1));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(stream);
}

#[test]
fn a_step_without_memory_ends_its_job_and_the_next_one_works() {
    let worker = worker("out-of-memory:3");
    let (status, stream) = worker.request("POST", "/execute", JOB);
    let last = last_event(&stream);
    assert_eq!((status, last["code"].as_str(), last["retriable"].as_bool()), (200, Some("VRAM_OOM"), Some(true)));
    let (_, stream) = worker.request("POST", "/execute", JOB);
    assert_eq!(last_event(&stream)["type"], "end", "{stream}");
    assert_eq!(worker.health()["status"], "ready");
    let (_, metrics) = worker.request("GET", "/metrics", "");
    assert!(
        metrics.lines().any(|line| line.starts_with("vllm:kv_cache_usage_perc") && line.ends_with(" 0.0")),
        "{metrics}"
    );
    worker.signal("TERM");
    assert_eq!(worker.end().0.code(), Some(0));
}

//! What becomes of a worker whose device fails: the CPU, on demand; or with `WORKER_TEST_DEVICE=cuda` the GPU, in earnest too.

use std::io::{BufReader, Read};

use serde_json::Value;

use crate::harness::{Worker, command, device};

const JOB: &str = r#"{"job_id": "a", "prompt": "Write", "max_tokens": 60, "temperature": 0}"#;

/// A worker whose step fails.
fn worker(fault: &str) -> Worker {
    let worker = Worker::spawn(command(&["--port", "0", "--device", &device()]).env("WORKER_TEST_FAULT", fault));
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
    ends_after_telling_everyone("device-lost:3", "device failed: on demand");
}

/// The GPU's context is destroyed by a kernel that reads where there is no memory.
#[test]
#[cfg(all(feature = "cuda", feature = "fault-injection"))]
fn a_poisoned_cuda_context_is_reported_by_name_and_ends_the_process() {
    if device() != "cuda" {
        let required = std::env::var("WORKER_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(!required, "needs WORKER_TEST_DEVICE=cuda and a GPU");
        println!("SKIPPED: a poisoned context needs WORKER_TEST_DEVICE=cuda");
        return;
    }
    ends_after_telling_everyone("poison:3", "cudaErrorIllegalAddress (700)");
}

/// The job's client, whoever asks for the health, and whoever started the process are told `message`.
fn ends_after_telling_everyone(fault: &str, message: &str) {
    let worker = worker(fault);
    let mut stream = String::new();
    BufReader::new(worker.send("POST", "/execute", JOB)).read_to_string(&mut stream).unwrap();
    let last = last_event(&stream);
    assert_eq!((last["type"].as_str(), last["code"].as_str()), (Some("error"), Some("CUDA_ERROR")), "{stream}");
    assert!(last["message"].as_str().unwrap().contains(message), "{stream}");
    assert!(stream.contains("event: token") && stream.matches("event: error").count() == 1, "{stream}");

    let (status, body) = worker.request("GET", "/health", "");
    let health: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, health["status"].as_str()), (503, Some("failed")), "{body}");
    let reason = health["message"].as_str().unwrap();
    assert!(reason.starts_with("device failed: ") && reason.contains(message), "{body}");
    assert_eq!(worker.request("GET", "/ready", "").0, 503);
    let (status, body) = worker.request("POST", "/execute", JOB);
    assert!(status == 503 && body.contains("NOT_READY"), "{status} {body}");

    let (status, log) = worker.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("error: the engine has failed: {reason}")), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_idle_client_does_not_hold_up_the_end_of_a_failed_worker() {
    let worker = worker("device-lost:0");
    // Neither reads what it is sent nor goes away.
    let stream = worker.send("POST", "/execute", JOB);
    assert_eq!(worker.end().0.code(), Some(1));
    drop(stream);
}

#[test]
fn a_step_without_memory_ends_its_job_frees_what_it_held_and_the_next_one_works() {
    // The first job takes at most six steps; the second one's fail.
    let worker = worker("out-of-memory:8");
    let (_, stream) = worker.request("POST", "/execute", &JOB.replace("60", "5"));
    assert_eq!(last_event(&stream)["type"], "end", "{stream}");
    // Whatever the first steps of a process load has been loaded.
    let before = held(&worker);
    let (status, stream) = worker.request("POST", "/execute", JOB);
    let last = last_event(&stream);
    assert_eq!((status, last["code"].as_str(), last["retriable"].as_bool()), (200, Some("VRAM_OOM"), Some(true)));
    assert!(stream.contains("event: token"), "{stream}");
    assert_eq!(held(&worker), before);
    let (_, stream) = worker.request("POST", "/execute", JOB);
    assert_eq!(last_event(&stream)["type"], "end", "{stream}");
    assert_eq!(held(&worker), before);
    assert_eq!(worker.health()["status"], "ready");
    worker.signal("TERM");
    assert_eq!(worker.end().0.code(), Some(0));
}

/// Memory that an idle worker says it holds, in all and of the GPU; no KV block is part of a job.
fn held(worker: &Worker) -> (u64, u64) {
    let (_, metrics) = worker.request("GET", "/metrics", "");
    let blocks = metrics.lines().find(|line| line.starts_with("vllm:kv_cache_usage_perc"));
    assert!(blocks.is_some_and(|line| line.ends_with(" 0.0")), "{metrics}");
    let health = worker.health();
    let [all, gpu] = ["memory_bytes", "vram_bytes_used"].map(|name| health[name].as_u64().unwrap());
    assert!(all > 0 && (gpu > 0) == (device() == "cuda"), "{health}");
    (all, gpu)
}

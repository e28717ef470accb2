//! The ready callback, as an orchestrator sees it.

use std::net::TcpListener;

use test_support::tiny_model::TinyModel;

use crate::harness::{Files, Orchestrator, Worker, command, error_of, plain_error, run};

#[test]
fn is_made_once_ready_and_names_the_port_that_was_picked() {
    let orchestrator = Orchestrator::start(&["200 OK"]);
    let worker = Worker::start(&["--worker-id", "w1", "--callback-url", &orchestrator.url]);
    let call = orchestrator.next_call();
    assert_eq!(worker.health()["status"], "ready");
    assert_eq!(call["uri"], format!("http://{}", worker.address));
    assert_eq!((call["worker_id"].as_str(), call["worker_type"].as_str()), (Some("w1"), Some("cpu")));
    assert_eq!(call["model_ref"], "builtin:haiku-qwen2-5.8m-f16");
    assert_eq!((call["memory_architecture"].as_str(), call["vram_bytes"].as_u64()), (Some("system"), Some(0)));
    assert!(call["memory_bytes"].as_u64().unwrap() > 11_000_000);
    assert!(call["capabilities"].as_array().unwrap().contains(&"text-gen".into()));
    assert_eq!(call.as_object().unwrap().len(), 8);
    assert_eq!(call["memory_bytes"], worker.health()["memory_bytes"]);
}

#[test]
fn is_tried_again_while_the_orchestrator_is_busy() {
    let orchestrator = Orchestrator::start(&["503 Service Unavailable", "429 Too Many Requests", "200 OK"]);
    let worker = Worker::start(&["--callback-url", &orchestrator.url]);
    for _ in 0..3 {
        orchestrator.next_call();
    }
    worker.signal("TERM");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("answered 503 Service Unavailable; trying again in 0."), "{stderr}");
}

#[test]
fn a_404_ends_the_worker() {
    let orchestrator = Orchestrator::start(&["404 Not Found"]);
    let worker = Worker::start(&["--callback-url", &orchestrator.url]);
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(1));
    let error = plain_error(&stderr);
    assert!(error.starts_with(&format!("error: callback to {}: answered 404 Not Found", orchestrator.url)), "{error}");
}

#[test]
fn a_signal_ends_a_worker_whose_orchestrator_is_not_there() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let worker = Worker::ready(&["--callback-url", &format!("http://{nobody}/")]);
    worker.signal("TERM");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "it did not wait for the callback's end: {stderr}");
}

#[test]
fn its_own_address_means_standalone() {
    // The port must be known before: it is free a moment after this listener is gone.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://localhost:{port}/callback");
    let worker =
        Worker::spawn(command(&["--worker-id", "test", "--callback-url", &url]).args(["--port", &port.to_string()]));
    worker.wait_for("/ready", 200);
    worker.signal("TERM");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("is this worker's own address: standalone"), "{stderr}");
}

#[test]
fn heartbeats_follow_it_and_tell_of_work_and_of_the_drain() {
    let orchestrator = Orchestrator::start(&["200 OK"]);
    let args = ["--worker-id", "w1", "--heartbeat-sec", "2", "--callback-url", &orchestrator.url];
    let worker = Worker::start(&args);
    let ready = orchestrator.next_call();
    assert!(ready.get("type").is_none());
    let beat = orchestrator.next_call();
    assert_eq!((beat["type"].as_str(), beat["state"].as_str()), (Some("heartbeat"), Some("ready")));
    assert_eq!((beat["active_jobs"].as_u64(), beat["queued_jobs"].as_u64()), (Some(0), Some(0)));
    assert!(beat["uptime_seconds"].as_u64() >= Some(1));
    for (field, value) in ready.as_object().unwrap() {
        assert_eq!(&beat[field], value, "{field}: an orchestrator that was away learns it from a beat");
    }
    worker.signal("TERM");
    // Ready may be told once more before the signal is seen.
    let last = std::iter::repeat_with(|| orchestrator.next_call()).find(|beat| beat["state"] != "ready").unwrap();
    assert_eq!(last["state"], "draining");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[test]
fn a_busy_worker_says_so_and_drains_as_soon_as_it_is_told() {
    let files = Files::new();
    let model = files.write("endless.gguf", &TinyModel { n_ctx: 1 << 20, ..TinyModel::default() }.build());
    let orchestrator = Orchestrator::start(&["200 OK"]);
    let worker = Worker::start(&["--model", &model, "--heartbeat-sec", "1", "--callback-url", &orchestrator.url]);
    orchestrator.next_call();
    let jobs: Vec<_> = (0..3).map(|i| keep_busy(&worker, i)).collect();
    let busy = std::iter::repeat_with(|| orchestrator.next_call()).find(|beat| beat["state"] == "busy").unwrap();
    assert!(busy["active_jobs"].as_u64().unwrap() + busy["queued_jobs"].as_u64().unwrap() > 0);
    assert_eq!(worker.request("POST", "/shutdown", "").0, 202);
    let draining =
        std::iter::repeat_with(|| orchestrator.next_call()).find(|beat| beat["state"] == "draining").unwrap();
    assert_eq!(draining["type"], "heartbeat");
    drop(jobs);
    assert_eq!(worker.end().0.code(), Some(0));
}

/// Submits one job after the other, as soon as the one before has ended, until the worker takes no more.
fn keep_busy(worker: &Worker, i: usize) -> std::thread::JoinHandle<()> {
    let address = worker.address;
    std::thread::spawn(move || {
        for n in 0.. {
            let body = format!(r#"{{"job_id": "{i}-{n}", "prompt": "a", "max_tokens": 2048, "temperature": 0}}"#);
            let Ok((200, _)) = crate::harness::request(address, "POST", "/execute", &body) else { return };
        }
    })
}

#[test]
fn an_orchestrator_that_goes_away_costs_two_lines_of_log() {
    let statuses = &["200 OK", "404 Not Found", "500 Internal Server Error", "204 No Content"];
    let orchestrator = Orchestrator::start(statuses);
    // A beat may take four fifths of that, so that a test which hangs for a moment costs no further line.
    let worker = Worker::start(&["--heartbeat-sec", "3", "--callback-url", &orchestrator.url]);
    for _ in statuses {
        orchestrator.next_call();
    }
    assert_eq!(worker.health()["status"], "ready");
    worker.signal("TERM");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains("heartbeat to")).collect();
    let gone = lines.iter().position(|line| line.ends_with("answered 404 Not Found; working on without it"));
    let back = lines.iter().position(|line| line.ends_with("taken again, after 2 that were not"));
    assert!(gone.is_some() && gone.map(|at| at + 1) == back, "{stderr}");
}

#[test]
#[cfg(any(debug_assertions, feature = "fault-injection"))]
fn a_failed_worker_says_so_before_it_ends() {
    let orchestrator = Orchestrator::start(&["200 OK"]);
    let args = ["--port", "0", "--heartbeat-sec", "3600", "--callback-url", &orchestrator.url];
    let worker = Worker::spawn(command(&args).env("WORKER_TEST_FAULT", "device-lost:3"));
    orchestrator.next_call();
    worker.request("POST", "/execute", r#"{"job_id": "a", "prompt": "a", "temperature": 0}"#);
    let beat = orchestrator.next_call();
    assert_eq!((beat["type"].as_str(), beat["state"].as_str()), (Some("heartbeat"), Some("failed")));
    assert!(beat["message"].as_str().unwrap().contains("on demand"), "{beat}");
    assert_eq!(worker.end().0.code(), Some(1));
}

#[test]
fn a_heartbeat_needs_somebody_to_hear_it() {
    let error = error_of(&run(&["--port", "0", "--heartbeat-sec", "5"]));
    assert_eq!(error, "error: --heartbeat-sec 5: needs --callback-url, which says where to");
}

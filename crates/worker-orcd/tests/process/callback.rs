//! The ready callback, as an orchestrator sees it.

use std::net::TcpListener;
use std::time::Instant;

use crate::harness::{Orchestrator, Worker, command, plain_error};

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
    let began = Instant::now();
    worker.signal("TERM");
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(began.elapsed().as_secs() < 5, "it did not wait for the callback's end");
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

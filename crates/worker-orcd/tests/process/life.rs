//! A worker's life: loading, ready, draining, gone.

use std::io::{BufRead, BufReader, Read};

use test_support::tiny_model::TinyModel;

use crate::harness::{Files, Worker, command};
use crate::models;

/// Greedy, it writes until it is told to end.
const ENDLESS: TinyModel = TinyModel {
    architecture: test_support::tiny_model::Architecture::Qwen2,
    n_layers: 2,
    d_model: 64,
    n_heads: 4,
    n_kv_heads: 2,
    d_ff: 96,
    n_ctx: 1 << 20,
    tied_output: false,
    f16: true,
    seed: 1,
    tags: &[],
    chat_template: test_support::tiny_model::CHAT_TEMPLATE,
};

/// A few seconds of work: a test that hangs for a moment still finds it at work.
const LONG_JOB: &str =
    r#"{"prompt": "a", "max_tokens": 8192, "temperature": 0, "ignore_eos": true, "stream": true, "model": ""}"#;
/// More than anybody waits for.
const ENDLESS_JOB: &str =
    r#"{"prompt": "a", "max_tokens": 1000000, "temperature": 0, "ignore_eos": true, "stream": true, "model": ""}"#;
const COMPLETIONS: &str = "/v1/completions";

#[test]
fn health_answers_from_the_first_moment() {
    let files = Files::new();
    let model = files.path("large.gguf");
    models::write_large(&model);
    let worker = Worker::start(&["--model", model.to_str().unwrap()]);
    let (status, body) = worker.request("GET", "/health", "");
    // A fast machine, or a test that was held up, may find it ready.
    let is_loading = status == 503 && body.contains(r#""status":"loading""#);
    assert!(is_loading || (status == 200 && body.contains(r#""status":"ready""#)), "{status} {body}");
    worker.wait_for("/ready", 200);
    assert_eq!(worker.health()["status"], "ready");
}

#[test]
fn a_signal_while_loading_ends_it_at_once() {
    let files = Files::new();
    let model = files.path("large.gguf");
    models::write_large(&model);
    let worker = Worker::start(&["--model", model.to_str().unwrap()]);
    worker.signal("INT");
    assert_eq!(worker.end().0.code(), Some(0));
}

#[test]
fn sigterm_lets_live_jobs_finish_and_refuses_new_ones() {
    let files = Files::new();
    let model = files.write("endless.gguf", &ENDLESS.build());
    let worker = Worker::ready(&["--model", &model]);
    let mut job = BufReader::new(worker.send("POST", COMPLETIONS, LONG_JOB));
    wait_for_token(&mut job);
    worker.signal("TERM");
    worker.wait_for("/ready", 503);
    let refused = worker.request("POST", COMPLETIONS, LONG_JOB);
    let health = worker.health();
    let mut rest = String::new();
    job.read_to_string(&mut rest).unwrap();
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!((refused.0, health["status"].as_str()), (503, Some("draining")));
    let end = &rest[rest.len().saturating_sub(300)..];
    assert!(end.contains(r#""finish_reason":"length""#) && end.contains("[DONE]"), "{end}");
}

#[test]
fn the_drain_limit_cuts_jobs_off() {
    let files = Files::new();
    let model = files.write("endless.gguf", &ENDLESS.build());
    let worker = Worker::ready(&["--model", &model, "--drain-timeout-sec", "0"]);
    let mut job = BufReader::new(worker.send("POST", COMPLETIONS, ENDLESS_JOB));
    wait_for_token(&mut job);
    worker.signal("TERM");
    let mut rest = String::new();
    job.read_to_string(&mut rest).unwrap();
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let end = &rest[rest.len().saturating_sub(300)..];
    assert!(end.contains(r#""error""#) && end.to_lowercase().contains("not_ready"), "{end}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let files = Files::new();
    let model = files.write("endless.gguf", &ENDLESS.build());
    let worker = Worker::ready(&["--model", &model]);
    let mut job = BufReader::new(worker.send("POST", COMPLETIONS, ENDLESS_JOB));
    wait_for_token(&mut job);
    worker.signal("TERM");
    worker.wait_for("/ready", 503);
    worker.signal("INT");
    assert_eq!(worker.end().0.code(), Some(130));
}

#[test]
fn post_shutdown_ends_it_too() {
    let worker = Worker::ready(&[]);
    assert_eq!(worker.request("POST", "/shutdown", "").0, 202);
    let (status, stderr) = worker.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

#[test]
fn post_shutdown_is_answered_while_the_model_loads() {
    let files = Files::new();
    let model = files.path("large.gguf");
    models::write_large(&model);
    for _ in 0..5 {
        let worker = Worker::start(&["--model", model.to_str().unwrap()]);
        assert_eq!(worker.request("POST", "/shutdown", "").0, 202);
        let (status, stderr) = worker.end();
        assert_eq!(status.code(), Some(0), "{stderr}");
    }
}

#[test]
fn logs_are_json_where_asked_for_and_a_requests_lines_have_its_id() {
    let worker =
        Worker::spawn(&mut command(&["--log-format", "json", "--port", "0", "--worker-id", "w", "--log-prompts"]));
    worker.wait_for("/ready", 200);
    worker.request(
        "POST",
        "/execute",
        r#"{"job_id": "job\n7", "prompt": "two\nlines", "max_tokens": 3, "temperature": 0}"#,
    );
    worker.request("POST", "/execute", r#"{"job_id": 8}"#);
    worker.signal("TERM");
    let (_, stderr) = worker.end();
    let lines = stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
    let lines: Vec<serde_json::Value> = lines.collect();
    let messages: Vec<String> = lines.iter().map(|line| line["message"].to_string()).collect();
    assert!(messages.iter().any(|m| m.contains("ready in ")), "{stderr}");
    assert!(messages.iter().any(|m| m.contains("loading weights: 100 %")), "{stderr}");
    // Before it is ready it says so to whoever asks.
    let asked = lines.iter().filter(|line| line["path"] != "/ready");
    let of_requests = asked.filter_map(|line| Some((line["message"].as_str()?, line.get("span")?)));
    let (mut messages, mut ids): (Vec<&str>, Vec<&str>) =
        of_requests.map(|(message, span)| (message, span["correlation_id"].as_str().expect("an id"))).unzip();
    messages.sort_unstable();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((messages.as_slice(), ids.len()), (&["answer", "job done", "prompt", "refused"][..], 2), "{stderr}");
    let done = lines.iter().find(|line| line["message"] == "job done").expect("found above");
    assert_eq!((&done["job_id"], &done["tokens_out"]), (&"job\n7".into(), &3.into()), "{stderr}");
    assert!(done["total_ms"].is_u64() && done["outcome"] == "length", "{stderr}");
}

#[test]
fn works_on_when_nobody_reads_its_log() {
    let closed = |stderr| {
        drop(stderr);
        String::new()
    };
    let worker = Worker::spawn_and(&mut command(&["--port", "0", "--log-level", "trace"]), closed);
    worker.wait_for("/ready", 200);
    assert_eq!(worker.request("POST", "/execute", r#"{"job_id": "a", "prompt": "a", "temperature": 0}"#).0, 200);
    worker.signal("TERM");
    assert_eq!(worker.end().0.code(), Some(0));
}

#[test]
fn the_alias_is_the_models_name() {
    assert_eq!(Worker::start(&["--alias", "poet"]).health()["model"], "poet");
    assert_eq!(Worker::start(&[]).health()["model"], "haiku-qwen2-5.8m-f16");
}

/// Reads a stream of events until the first token has come.
fn wait_for_token(job: &mut impl BufRead) {
    for line in job.lines() {
        if line.expect("a line").starts_with("data: ") {
            return;
        }
    }
    panic!("no token");
}

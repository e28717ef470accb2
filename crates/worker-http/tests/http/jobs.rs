//! Jobs side by side: cancelling, leaving, queueing, failing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use transformer::ExecutorError;

use crate::worker::{Config, PATIENCE, Worker, wait_until};

/// One running job, one in the queue behind it.
async fn worker_for_one() -> Worker {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    config.engine.queue_limit = 1;
    let worker = Worker::start_with(config).await;
    worker.script(&"a".repeat(1000));
    worker
}

fn code(error: &Value) -> &str {
    error["code"].as_str().unwrap()
}

#[tokio::test]
async fn cancel_ends_a_running_job_with_an_error_event() {
    let worker = Worker::start().await;
    worker.script(&"a".repeat(1000));
    worker.control.hold_after(3);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    stream.expect("token").await;
    worker.control.wait_until_held();
    worker.cancel("job-1").await;
    let answer = stream.rest().await;
    assert_eq!((&answer.last["type"], code(&answer.last)), (&json!("error"), "CANCELLED"));
    assert_eq!(answer.last["retriable"], false);
    let n_steps = worker.control.n_steps();
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() <= n_steps + 1, "the job is freed within one step");
    // Again, and for a job that never was: as good as the first time.
    worker.cancel("job-1").await;
    worker.cancel("no such job").await;
}

#[tokio::test]
async fn cancel_ends_a_queued_job() {
    let worker = worker_for_one().await;
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({ "max_tokens": 5 })).await;
    let mut queued = worker.execute("queued", "hi", json!({})).await;
    queued.expect("started").await;
    worker.cancel("queued").await;
    let answer = queued.rest().await;
    assert_eq!((answer.ids.len(), code(&answer.last)), (0, "CANCELLED"));
    worker.control.release();
    assert_eq!(running.rest().await.last["tokens_out"], 5);
    worker.wait_until_free().await;
}

#[tokio::test]
async fn cancel_ends_a_job_in_the_middle_of_its_prompt() {
    let mut config = Config::default();
    config.engine.max_chunk_tokens = 4;
    let worker = Worker::start_with(config).await;
    worker.script("a");
    worker.control.hold_after(2);
    let mut stream = worker.execute("job-1", &"x".repeat(400), json!({})).await;
    worker.control.wait_until_held();
    worker.cancel("job-1").await;
    let answer = stream.rest().await;
    assert_eq!((answer.ids.len(), code(&answer.last)), (0, "CANCELLED"));
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() <= 4, "{}", worker.control.n_steps());
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_job_within_one_step() {
    let worker = Worker::start().await;
    worker.script(&"a".repeat(1000));
    worker.control.hold_after(2);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    stream.expect("started").await;
    stream.expect("token").await;
    worker.control.wait_until_held();
    drop(stream);
    // As soon as the worker has seen that the client is gone, no job is live, although the executor still holds its step.
    assert!(worker.state.drain(PATIENCE).await);
    let n_steps = worker.control.n_steps();
    worker.control.release();
    worker.wait_until_free().await;
    assert!(worker.control.n_steps() <= n_steps + 1);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_leaves_is_noticed_although_it_sent_more_than_its_request() {
    for behind in ["", "\r\n", "GET /health HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let worker = Worker::start().await;
        worker.script(&"a".repeat(1000));
        worker.control.hold_after(2);
        let body = json!({ "prompt": "hi" }).to_string();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}{behind}", body.len());
        let mut stream = TcpStream::connect(worker.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        wait_until("the job is live", || worker.state.n_live_jobs() == 1).await;
        worker.control.wait_until_held();
        drop(stream);
        wait_until("the job is given up", || worker.state.n_live_jobs() == 0).await;
        worker.control.release();
        worker.wait_until_free().await;
        assert!(worker.control.n_steps() < 10, "{behind:?}: {}", worker.control.n_steps());
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    let worker = worker_for_one().await;
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({ "max_tokens": 3 })).await;
    let queued = worker.execute("queued", "hi", json!({})).await;
    drop(queued);
    wait_until("its name is free again", || worker.state.n_live_jobs() == 1).await;
    worker.control.release();
    running.rest().await;
    let next = worker.execute("queued", "hi", json!({ "max_tokens": 3 })).await.rest().await;
    assert_eq!(next.last["tokens_out"], 3);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let worker = worker_for_one().await;
    worker.control.hold_after(0);
    let mut running = worker.execute("running", "hi", json!({ "max_tokens": 2 })).await;
    let mut queued = worker.execute("queued", "hi", json!({ "max_tokens": 2 })).await;
    let refused = worker.post("/execute", &json!({ "job_id": "late", "prompt": "hi" })).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body: Value = refused.json().await.unwrap();
    assert_eq!((code(&body), &body["retriable"]), ("QUEUE_FULL", &json!(true)));
    worker.control.release();
    assert_eq!(running.rest().await.last["tokens_out"], 2);
    assert_eq!(queued.rest().await.last["tokens_out"], 2);
    // Its name was never taken.
    assert_eq!(worker.execute("late", "hi", json!({ "max_tokens": 2 })).await.rest().await.last["type"], "end");
}

#[tokio::test]
async fn a_name_is_taken_while_its_job_is_live() {
    let worker = Worker::start().await;
    worker.script("abc");
    worker.control.hold_after(1);
    let mut stream = worker.execute("job-1", "hi", json!({})).await;
    let refused = worker.post("/execute", &json!({ "job_id": "job-1", "prompt": "hi" })).await;
    assert_eq!(refused.status(), 409);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(code(&error), "DUPLICATE_JOB");
    assert_eq!(error["message"], "job_id: expected a name that no live job has, got \"job-1\"");
    worker.control.release();
    while stream.event().await.unwrap()["type"] != "end" {}
    // Whoever has read the terminal event may use the name again at once.
    assert_eq!(worker.execute("job-1", "hi", json!({})).await.rest().await.text(), "abc");
}

#[tokio::test]
async fn jobs_do_not_see_each_other() {
    let worker = Worker::start().await;
    let mut both = Vec::new();
    for (name, prompt) in [("a", "first prompt"), ("b", "second prompt")] {
        both.push(worker.execute(name, prompt, json!({ "max_tokens": 30, "temperature": 0 })).await);
    }
    let together = [both[0].rest().await.ids, both[1].rest().await.ids];
    for (prompt, ids) in ["first prompt", "second prompt"].into_iter().zip(together) {
        let extra = json!({ "max_tokens": 30, "temperature": 0 });
        assert_eq!(worker.execute("alone", prompt, extra).await.rest().await.ids, ids);
    }
}

#[tokio::test]
async fn device_failures_have_their_codes_and_take_nothing_else_with_them() {
    let worker = Worker::start().await;
    worker.script("abc");
    worker.control.fail_after(1, ExecutorError::OutOfMemory("no room for scratch".into()));
    let answer = worker.execute("job-1", "hi", json!({})).await.rest().await;
    assert_eq!((answer.text().as_str(), code(&answer.last)), ("a", "VRAM_OOM"));
    assert_eq!(answer.last["retriable"], true);
    worker.control.fail_after(0, ExecutorError::InvalidBatch("a test".into()));
    let answer = worker.execute("job-1", "hi", json!({})).await.rest().await;
    assert_eq!(code(&answer.last), "INTERNAL");
    assert_eq!(worker.execute("job-1", "hi", json!({})).await.rest().await.text(), "abc");
}

#[tokio::test]
async fn a_lost_device_ends_every_job_and_shows_in_health() {
    let worker = Worker::start().await;
    worker.script("abc");
    worker.control.fail_after(1, ExecutorError::DeviceLost("it fell off the bus".into()));
    let answer = worker.execute("job-1", "hi", json!({})).await.rest().await;
    assert_eq!((answer.text().as_str(), code(&answer.last)), ("a", "CUDA_ERROR"));
    let health = worker.get("/health").await;
    assert_eq!(health.status(), 503);
    let health: Value = health.json().await.unwrap();
    assert_eq!(health["status"], "failed");
    assert!(health["message"].as_str().unwrap().contains("it fell off the bus"), "{health}");
    let refused = worker.post("/execute", &json!({ "job_id": "job-2", "prompt": "hi" })).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(worker.get("/ready").await.status(), 503);
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_cut_off() {
    let timeout = Some(Duration::from_millis(100));
    let worker = Worker::start_with(Config { inference_timeout: timeout, ..Config::default() }).await;
    worker.script("abc");
    worker.control.hold_after(1);
    let begun = Instant::now();
    let answer = worker.execute("job-1", "hi", json!({})).await.rest().await;
    assert_eq!(code(&answer.last), "INFERENCE_TIMEOUT");
    assert_eq!(answer.last["message"], "the job took longer than the 0.1 s that this worker allows");
    assert!(begun.elapsed() >= Duration::from_millis(100));
    worker.control.release();
    worker.wait_until_free().await;
}

#[tokio::test]
async fn long_prompts_are_read_whole() {
    let worker = Worker::start().await;
    worker.script("abc");
    // Beyond 4,096 bytes a prompt is encoded on a thread of its own.
    let prompt = "the ".repeat(1100);
    let extra = json!({ "max_tokens": 3 });
    let mut jobs = Vec::new();
    for job_id in ["a", "b", "c"] {
        jobs.push(worker.execute(job_id, &prompt, extra.clone()).await);
    }
    for job in &mut jobs {
        assert_eq!(job.expect("started").await["prompt_tokens"], worker.ids(&prompt).len());
        assert_eq!(job.rest().await.text(), "abc");
    }
}

#[tokio::test]
async fn counters_move_by_what_was_streamed() {
    let worker = Worker::start().await;
    worker.script("one\n\ntwo three four five");
    let before = worker.metric("vllm:generation_tokens_total").await;
    let mut stream = worker.execute("job-1", "hi", json!({ "stop": ["\n\n"] })).await;
    let n_prompt = stream.expect("started").await["prompt_tokens"].as_f64().unwrap();
    let answer = stream.rest().await;
    assert_eq!(worker.metric("vllm:generation_tokens_total").await - before, answer.ids.len() as f64);
    assert_eq!(worker.metric("vllm:prompt_tokens_total").await, n_prompt);
}

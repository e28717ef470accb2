//! What a request leaves in the log: one line, with everything about it but what it says; and its correlation id on each.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use transformer::ExecutorError;

use crate::worker::{Config, Worker, wait_until};

/// Everything logged by this process, which other tests share, from the finest level on: what is in none of its lines is
/// never logged.
fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&log);
        tracing_subscriber::fmt()
            .json()
            .with_env_filter(EnvFilter::new("trace"))
            .with_writer(move || Writer(Arc::clone(&writer)))
            .init();
        log
    })
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn text() -> String {
    String::from_utf8(log().lock().unwrap().clone()).unwrap()
}

/// The worker's own lines of the request with this correlation id. Every line of the log is read: each is JSON.
fn all_lines(correlation_id: &str) -> Vec<Value> {
    let text = text();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines
        .filter(|line: &Value| {
            let spans = line["spans"].as_array().into_iter().flatten();
            let mut ids = spans.map(|span| &span["correlation_id"]);
            ids.any(|id| id == correlation_id) && line["target"].as_str().unwrap().starts_with("worker_http")
        })
        .collect()
}

/// What the request with this correlation id has left for those who ask for nothing special.
fn lines(correlation_id: &str) -> Vec<Value> {
    all_lines(correlation_id).into_iter().filter(|line| line["level"] == "INFO").collect()
}

async fn post(worker: &Worker, path: &str, correlation_id: &str, body: &Value) -> String {
    let request = worker.client.post(format!("{}{path}", worker.url)).header("x-correlation-id", correlation_id);
    request.json(body).send().await.unwrap().text().await.unwrap()
}

/// The one line of a request, its times taken out after a look at their types.
fn summary(correlation_id: &str) -> Value {
    let [line] = lines(correlation_id).try_into().unwrap();
    let mut fields = line["fields"].clone();
    for figure in ["queue_ms", "first_token_ms", "prefill_ms", "decode_ms", "total_ms"] {
        assert!(fields[figure].is_u64(), "{fields}");
        fields[figure] = Value::Null;
    }
    assert!(fields["tokens_per_sec"].is_number());
    fields["tokens_per_sec"] = Value::Null;
    fields
}

#[tokio::test]
async fn a_job_leaves_one_line_without_its_prompt() {
    log();
    let worker = Worker::start().await;
    worker.script("abc, a VbNqJx answer");
    post(&worker, "/execute", "corr-ok", &json!({ "job_id": "job\n1", "prompt": "a deep QxWvZk" })).await;
    post(&worker, "/execute", "corr-bad", &json!({ "job_id": "job-2", "prompt": 7, "seed": "a deep QxWvZk" })).await;
    insta::assert_json_snapshot!(summary("corr-ok"));
    let [line] = lines("corr-bad").try_into().unwrap();
    insta::assert_json_snapshot!(line["fields"]);
    assert!(!text().contains("QxWvZk") && !text().contains("VbNqJx"));
}

#[tokio::test]
async fn openais_routes_leave_one_line_too_however_many_answers() {
    log();
    let worker = Worker::start().await;
    worker.script("abc");
    let prompts = json!({ "prompt": ["one", "another"], "n": 1, "stream": true });
    post(&worker, "/v1/completions", "corr-two", &prompts).await;
    let mut fields = summary("corr-two");
    assert!(fields["job_id"].as_str().unwrap().starts_with("cmpl-"));
    fields["job_id"] = Value::Null;
    insta::assert_json_snapshot!(fields);
    let whole = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    post(&worker, "/v1/chat/completions", "corr-chat", &whole).await;
    assert_eq!(summary("corr-chat")["outcome"], "stop");
    post(&worker, "/v1/chat/completions", "corr-chat-bad", &json!({ "messages": [] })).await;
    let [line] = lines("corr-chat-bad").try_into().unwrap();
    assert_eq!((&line["fields"]["message"], &line["fields"]["code"]), (&json!("refused"), &json!("INVALID_REQUEST")));
}

#[tokio::test]
async fn a_job_that_fails_says_why_in_its_one_line() {
    log();
    let worker = Worker::start().await;
    worker.control.fail_after(0, ExecutorError::OutOfMemory("no room".into()));
    let whole = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    post(&worker, "/v1/chat/completions", "corr-oom", &whole).await;
    let [line] = lines("corr-oom").try_into().unwrap();
    let fields = &line["fields"];
    assert_eq!((&fields["message"], &fields["outcome"]), (&json!("job done"), &json!("VRAM_OOM")));
    assert!(fields["error"].is_string() && fields["first_token_ms"].is_null(), "{fields}");
}

#[tokio::test]
async fn prompts_and_answers_are_logged_where_that_is_asked_for() {
    log();
    let worker = Worker::start_with(Config { log_prompts: true, ..Config::default() }).await;
    worker.script("an open answer");
    post(&worker, "/execute", "corr-open", &json!({ "job_id": "job-1", "prompt": "an open question" })).await;
    let lines = all_lines("corr-open");
    let prompts: Vec<&Value> = lines.iter().filter(|line| line["target"] == worker_http::PROMPTS).collect();
    let [prompt, answer] = prompts.try_into().unwrap();
    assert_eq!((&prompt["level"], &prompt["fields"]["prompt"]), (&json!("DEBUG"), &json!("an open question")));
    assert_eq!((&answer["level"], &answer["fields"]["answer"]), (&json!("DEBUG"), &json!("an open answer")));
}

#[tokio::test]
async fn a_client_that_leaves_leaves_a_line_too() {
    log();
    let worker = Worker::start().await;
    worker.script(&"a".repeat(1000));
    worker.control.hold_after(1);
    let request = worker.client.post(format!("{}/execute", worker.url)).header("x-correlation-id", "corr-left");
    let mut response = request.json(&json!({ "job_id": "job-1", "prompt": "hi" })).send().await.unwrap();
    response.chunk().await.unwrap();
    drop(response);
    wait_until("the line is there", || !lines("corr-left").is_empty()).await;
    assert_eq!(lines("corr-left")[0]["fields"]["outcome"], "abort");
}

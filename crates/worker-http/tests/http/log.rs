//! What a request leaves in the log: one line, with everything about it but what it says.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use crate::worker::{Worker, wait_until};

/// Everything logged by this process, which other tests share.
fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&log);
        tracing_subscriber::fmt()
            .json()
            .with_env_filter(EnvFilter::new("info"))
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

/// The lines of the request with this correlation id.
fn lines(correlation_id: &str) -> Vec<Value> {
    let text = String::from_utf8(log().lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &Value| line["span"]["correlation_id"] == correlation_id).collect()
}

async fn post(worker: &Worker, correlation_id: &str, body: &Value) -> String {
    let request = worker.client.post(format!("{}/execute", worker.url)).header("x-correlation-id", correlation_id);
    request.json(body).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn a_job_leaves_one_line_without_its_prompt() {
    log();
    let worker = Worker::start().await;
    worker.script("abc");
    post(&worker, "corr-ok", &json!({ "job_id": "job\n1", "prompt": "a deep secret" })).await;
    post(&worker, "corr-bad", &json!({ "job_id": "job-2", "prompt": 7, "seed": "a deep secret" })).await;

    let [line] = lines("corr-ok").try_into().unwrap();
    let mut fields = line["fields"].clone();
    for figure in ["queue_ms", "prefill_ms", "decode_ms"] {
        assert!(fields[figure].is_u64(), "{fields}");
        fields[figure] = Value::Null;
    }
    assert!(fields["tokens_per_sec"].is_number());
    fields["tokens_per_sec"] = Value::Null;
    insta::assert_json_snapshot!(fields);

    let [line] = lines("corr-bad").try_into().unwrap();
    insta::assert_json_snapshot!(line["fields"]);
    assert!(!String::from_utf8_lossy(&log().lock().unwrap()).contains("secret"));
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
    assert_eq!(lines("corr-left")[0]["fields"]["outcome"], "disconnected");
}

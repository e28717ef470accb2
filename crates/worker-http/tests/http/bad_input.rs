//! What is refused, and what it may cost: bodies, headers, clients that misbehave. Every test that hurts the worker ends
//! by showing that it still answers.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use worker_http::{MAX_BODY_BYTES, ServerLimits};

use crate::worker::{Config, PATIENCE, Worker, wait_until};

/// Sends bytes as they are and reads until the worker closes the connection.
async fn exchange(worker: &Worker, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_to_end(&mut stream).await
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection that the worker has given up may end with a reset.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn is_well(worker: &Worker) {
    worker.script("fine");
    let answer = worker.execute("still there?", "hi", json!({})).await.rest().await;
    assert_eq!(answer.text(), "fine");
}

/// The status and the error of a request with this body.
async fn refused(worker: &Worker, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let request = worker.client.post(format!("{}/execute", worker.url)).header("content-type", "application/json");
    let response = request.body(body).send().await.unwrap();
    let status = response.status().as_u16();
    let error: Value = response.json().await.unwrap();
    assert!(error["message"].is_string() && error["retriable"].is_boolean(), "{error}");
    (status, error)
}

#[tokio::test]
async fn every_refusal_has_its_status_and_its_code() {
    let mut config = Config::default();
    config.fake.n_ctx = 64;
    config.fake.n_blocks = 2;
    let worker = Worker::start_with(config).await;
    let body = |prompt: &str| json!({ "job_id": "a", "prompt": prompt }).to_string();
    let mut table = Vec::new();
    for (what, body) in [
        ("empty body", String::new()),
        ("not JSON", "{\"job_id\": oops}".into()),
        ("not an object", "[1, 2]".into()),
        (
            "every fault at once",
            json!({ "prompt": "", "temperature": -1, "max_tokens": "many", "seed": 1.5 }).to_string(),
        ),
        ("longer than the context", body(&"x".repeat(64))),
        ("never fits", body("x")),
    ] {
        let (status, error) = refused(&worker, body).await;
        table.push(format!("{what}: {status} {error:#}"));
    }
    for (what, method, path) in [
        ("unknown route", "GET", "/nowhere"),
        ("unknown route, posted to", "POST", "/v2/chat/completions"),
        ("wrong method", "GET", "/execute"),
        ("wrong method", "POST", "/health"),
        ("wrong method", "DELETE", "/cancel"),
    ] {
        let request = worker.client.request(method.parse().unwrap(), format!("{}{path}", worker.url));
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let allow = response.headers().get("allow").map(|allow| format!(" allow: {}", allow.to_str().unwrap()));
        let error: Value = response.json().await.unwrap();
        table.push(format!("{what}: {method} {path}: {status}{} {error:#}", allow.unwrap_or_default()));
    }
    let cancelled = worker.post("/cancel", &json!({ "job": "a" })).await;
    table.push(format!("cancel: {} {:#}", cancelled.status().as_u16(), cancelled.json::<Value>().await.unwrap()));
    insta::assert_snapshot!(table.join("\n"));
}

#[tokio::test]
async fn a_body_must_be_announced_as_json() {
    let worker = Worker::start().await;
    for content_type in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let mut request = worker.client.post(format!("{}/execute", worker.url)).body("{}");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 415);
        let error: Value = response.json().await.unwrap();
        assert_eq!(error["code"], "UNSUPPORTED_MEDIA_TYPE");
        let got = content_type.map_or("none".to_string(), |content_type| format!("{content_type:?}"));
        assert_eq!(error["message"], format!("content-type: expected application/json, got {got}"));
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_however_it_comes() {
    let worker = Worker::start().await;
    let (status, error) = refused(&worker, vec![b' '; MAX_BODY_BYTES + 1]).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("PAYLOAD_TOO_LARGE")));
    let chunks = futures_util::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 << 10])));
    let (status, error) = refused(&worker, reqwest::Body::wrap_stream(chunks)).await;
    assert_eq!((status, error["code"].as_str()), (413, Some("PAYLOAD_TOO_LARGE")));
    // Whoever asks whether to send it is told not to.
    let request = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999999999\r\n\
                   expect: 100-continue\r\n\r\n";
    let reply = exchange(&worker, request.as_bytes()).await;
    assert!(reply.starts_with("HTTP/1.1 413") && reply.contains("PAYLOAD_TOO_LARGE"), "{reply}");
    // The longest body that is allowed is looked at.
    let mut body = json!({ "job_id": "a", "prompt": "hi", "max_tokens": 1 }).to_string();
    body.push_str(&" ".repeat(MAX_BODY_BYTES - body.len()));
    let request = worker.client.post(format!("{}/execute", worker.url)).header("content-type", "application/json");
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_that_is_not_utf8_is_refused_by_its_offset() {
    let worker = Worker::start().await;
    let (status, error) = refused(&worker, b"{\"job_id\": \"\xff\"}".to_vec()).await;
    assert_eq!((status, error["message"].as_str()), (400, Some("body: not UTF-8 at byte 12")));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let limits = ServerLimits { header_read_timeout: Duration::from_millis(100), ..ServerLimits::default() };
    let worker = Worker::start_with(Config { limits, ..Config::default() }).await;
    for beginning in ["", "POST /exe", "POST /execute HTTP/1.1\r\nhost: x\r\n"] {
        let begun = Instant::now();
        let reply = exchange(&worker, beginning.as_bytes()).await;
        assert!(begun.elapsed() >= Duration::from_millis(90));
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 408"), "{reply}");
    }
    is_well(&worker).await;
}

#[tokio::test]
async fn a_head_without_end_costs_no_more_than_its_limit() {
    let worker = Worker::start().await;
    let endless = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}", "a".repeat(1 << 20));
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    // The worker stops reading: the write may fail.
    let _ = stream.write_all(endless.as_bytes()).await;
    let reply = read_to_end(&mut stream).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
    let many: String = (0..10_000).map(|i| format!("x-{i}: a\r\n")).collect();
    let reply = exchange(&worker, format!("GET /health HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 431"), "{reply}");
    is_well(&worker).await;
}

#[tokio::test]
async fn a_client_that_sends_half_a_body_and_leaves_disturbs_nobody() {
    let worker = Worker::start().await;
    let half =
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"job_id\"";
    for _ in 0..20 {
        let mut stream = TcpStream::connect(worker.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
    }
    is_well(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_side_is_taken_to_have_left() {
    let worker = Worker::start().await;
    worker.script(&"a".repeat(1000));
    worker.control.hold_after(2);
    let body = r#"{"job_id": "half", "prompt": "hi"}"#;
    let head = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream.write_all((head + body).as_bytes()).await.unwrap();
    worker.control.wait_until_held();
    stream.shutdown().await.unwrap();
    wait_until("the job is given up", || worker.state.n_live_jobs() == 0).await;
    worker.control.release();
    worker.wait_until_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_holds_up_nobody() {
    let worker = Worker::start().await;
    worker.control.script_all(&worker.ids(&("語".repeat(682) + "ab"))); // 2,048 tokens, of which none is drawn
    let body = r#"{"job_id": "slow", "prompt": "hi", "logprobs": 20}"#;
    let head = format!(
        "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream.write_all((head + body).as_bytes()).await.unwrap();
    // The engine is done with the job although not a byte of it has been read.
    worker.control.wait_for_steps(2046);
    worker.wait_until_free().await;
    is_well(&worker).await;
    // And nothing is lost to a reader who takes it up late.
    let mut reply = String::new();
    let mut buffer = vec![0; 1 << 16];
    while !reply.contains("event: end") {
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(n, 0);
        reply.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert_eq!(reply.matches("event: token").count(), 2048);
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let limits =
        ServerLimits { max_connections: 4, header_read_timeout: Duration::from_millis(200), ..ServerLimits::default() };
    let worker = Worker::start_with(Config { limits, ..Config::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(worker.address).await.unwrap());
    }
    is_well(&worker).await;
}

#[tokio::test]
async fn no_web_page_but_its_own_may_talk_to_it() {
    let worker = Worker::start().await;
    let from = |origin: String| worker.client.post(format!("{}/shutdown", worker.url)).header("origin", origin).send();
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        let refused = from(origin.into()).await.unwrap();
        assert_eq!(refused.status(), 403);
        assert_eq!(refused.json::<Value>().await.unwrap()["code"], "FORBIDDEN");
    }
    assert_eq!(worker.get("/ready").await.status(), 200);
    assert_eq!(from(worker.url.clone()).await.unwrap().status(), 202);
}

#[tokio::test]
async fn correlation_ids_are_taken_over_or_made() {
    let worker = Worker::start().await;
    let with = |id: String| worker.client.get(format!("{}/health", worker.url)).header("x-correlation-id", id).send();
    let echoed = |response: reqwest::Response| response.headers()["x-correlation-id"].to_str().unwrap().to_string();
    assert_eq!(echoed(with("job-7.of/9".into()).await.unwrap()), "job-7.of/9");
    for insane in ["two words".into(), "x".repeat(200), "a\"b".into()] {
        let made = echoed(with(insane).await.unwrap());
        assert_eq!(made.len(), 36, "{made}");
    }
    let (first, second) = (echoed(worker.get("/nowhere").await), echoed(worker.get("/health").await));
    assert_ne!(first, second);
}

fn any_field() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1i64..5).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..3.0f64).prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..6).prop_map(Value::from))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_body_makes_the_worker_fail(
        fields in prop::collection::btree_map(
            prop::sample::select(vec![
                "job_id", "prompt", "max_tokens", "temperature", "top_p", "min_p", "top_k", "repetition_penalty", "stop",
                "seed", "logprobs", "unknown",
            ]),
            any_field(),
            0..8,
        ),
        well_named in any::<bool>(),
    ) {
        let mut body: Value = fields.into_iter().map(|(field, value)| (field.to_string(), value)).collect();
        if well_named {
            body["job_id"] = "a".into();
            body["prompt"] = "hi".into();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let worker = Worker::start().await;
            let response = worker.post("/execute", &body).await;
            match response.status().as_u16() {
                400 => assert_eq!(response.json::<Value>().await.unwrap()["code"], "INVALID_REQUEST"),
                200 => {
                    let text = response.text().await.unwrap();
                    let ends = text.matches("event: end\n").count();
                    assert!(ends == 1 && !text.contains("event: error"), "{body}: {text}");
                }
                status => panic!("{status} for {body}"),
            }
        });
    }
}

//! Who may ask: keys, origins of web pages, names of the worker.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use worker_http::{Access, ApiKeys, CorsOrigins, HostRule};

use crate::worker::{Config, PATIENCE, Worker, wait_until};

const KEY: &str = "sk-first-0123456789";
const OTHER_KEY: &str = "sk-second";
const PAGE: &str = "https://app.example";

async fn with_access(access: Access) -> Worker {
    Worker::start_with(Config { access, ..Config::default() }).await
}

async fn with_keys() -> Worker {
    let api_keys = ApiKeys::new([KEY, OTHER_KEY]).unwrap();
    let worker = with_access(Access { api_keys, ..Access::default() }).await;
    worker.script("fine");
    worker
}

/// Sends a request with these headers and an empty JSON object.
async fn send(worker: &Worker, method: &str, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = worker.client.request(method.parse().unwrap(), format!("{}{path}", worker.url));
    if method == "POST" {
        request = request.json(&json!({}));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// Every route that does something, or tells something of what others ask.
const CLOSED: &[(&str, &str)] = &[
    ("POST", "/execute"),
    ("POST", "/cancel"),
    ("POST", "/shutdown"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
    ("GET", "/props"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/chat/completions"),
    ("POST", "/completions"),
    ("GET", "/models"),
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "//health"),
];

#[tokio::test]
async fn without_a_key_only_probes_are_answered() {
    let worker = with_keys().await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(worker.get(path).await.status(), 200, "{path}");
    }
    assert_ne!(worker.get("/").await.status(), 401);
    for (method, path) in CLOSED {
        for authorization in [None, Some("Bearer sk-wrong"), Some("Basic c2s6c2s="), Some(KEY)] {
            let headers: Vec<_> = authorization.map(|value| ("authorization", value)).into_iter().collect();
            let response = send(&worker, method, path, &headers).await;
            assert_eq!(
                (response.status().as_u16(), header(&response, "www-authenticate")),
                (401, Some("Bearer")),
                "{path}"
            );
            let text = response.text().await.unwrap();
            assert!(!text.contains(KEY) && !text.contains("sk-wrong"), "{text}");
        }
        for key in [KEY, OTHER_KEY].into_iter().filter(|_| *path != "/shutdown") {
            let response = send(&worker, method, path, &[("authorization", &format!("Bearer {key}"))]).await;
            assert_ne!(response.status(), 401, "{method} {path}");
        }
    }
    // The key in another place is no key.
    let response = send(&worker, "POST", "/execute?key=sk-first-0123456789", &[("x-api-key", KEY)]).await;
    assert_eq!(response.status(), 401);
    assert_eq!(worker.get("/ready").await.status(), 200, "no shutdown came through");
}

#[tokio::test]
async fn refusals_have_the_form_of_their_route() {
    let worker = with_keys().await;
    let own: Value = send(&worker, "POST", "/execute", &[]).await.json().await.unwrap();
    let message = "an API key is needed: Authorization: Bearer";
    assert_eq!(own, json!({ "code": "UNAUTHORIZED", "message": message, "retriable": false }));
    let wrong = [("authorization", "Bearer sk-wrong")];
    let openai: Value = send(&worker, "POST", "/v1/chat/completions", &wrong).await.json().await.unwrap();
    let error = json!({
        "message": "the API key is not one of this worker's",
        "type": "invalid_request_error",
        "param": null,
        "code": "invalid_api_key",
    });
    assert_eq!(openai, json!({ "error": error }));
}

#[tokio::test]
async fn a_key_lets_a_job_run() {
    let worker = with_keys().await;
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let request = worker.client.post(format!("{}/v1/chat/completions", worker.url)).bearer_auth(OTHER_KEY).json(&body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.json::<Value>().await.unwrap()["choices"][0]["message"]["content"], "fine");
}

#[tokio::test]
async fn a_long_prompt_with_a_wrong_key_is_told_so() {
    let worker = with_keys().await;
    for _ in 0..5 {
        let body = json!({ "job_id": "a", "prompt": "x".repeat(900_000) });
        let response = worker.post("/execute", &body).await;
        assert_eq!(response.status(), 401);
    }
}

#[tokio::test]
async fn whoever_has_no_key_and_does_not_send_what_it_announced_is_told_soon() {
    let api_keys = ApiKeys::new([KEY]).unwrap();
    let access = Access { api_keys, ..Access::default() };
    let body_read_timeout = Duration::from_secs(3600);
    let worker = Worker::start_with(Config { access, body_read_timeout, ..Config::default() }).await;
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    let head = format!("POST /execute HTTP/1.1\r\nhost: {}\r\ncontent-length: 100\r\n\r\n{{", worker.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut reply)).await.expect("an answer").unwrap();
    assert_eq!(&reply, b"HTTP/1.1 401");
}

#[tokio::test]
async fn long_bodies_that_nobody_reads_get_their_answer() {
    let worker = with_keys().await;
    let body = "x".repeat(4 << 20);
    let post = async |path: &str, key: &str| {
        let request = worker.client.post(format!("{}{path}", worker.url)).bearer_auth(key).body(body.clone());
        request.send().await.expect(path).status().as_u16()
    };
    for _ in 0..5 {
        assert_eq!(post("/execute", "sk-wrong").await, 401);
        assert_eq!(post("/nowhere", KEY).await, 404);
        assert_eq!(post("/props", KEY).await, 405);
        assert_eq!(post("/shutdown", KEY).await, 202);
    }
}

#[tokio::test]
async fn no_key_is_told_by_props_health_or_metrics() {
    let worker = with_keys().await;
    for path in ["/props", "/health", "/metrics", "/v1/models"] {
        let response = send(&worker, "GET", path, &[("authorization", &format!("Bearer {KEY}"))]).await;
        let text = response.text().await.unwrap();
        assert!(!text.contains(KEY) && !text.contains(OTHER_KEY), "{path}: {text}");
    }
}

#[tokio::test]
async fn pages_of_an_allowed_origin_may_ask_and_read() {
    let cors_origins = CorsOrigins::new([PAGE]).unwrap();
    let api_keys = ApiKeys::new([KEY]).unwrap();
    let worker = with_access(Access { api_keys, cors_origins, ..Access::default() }).await;
    // What a browser asks before, without a key.
    let asks = [
        ("origin", PAGE),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-os"),
    ];
    let preflight = send(&worker, "OPTIONS", "/v1/chat/completions", &asks).await;
    assert_eq!(preflight.status(), 200);
    assert_eq!(header(&preflight, "access-control-allow-origin"), Some(PAGE));
    assert_eq!(header(&preflight, "access-control-allow-methods"), Some("GET,POST"));
    assert_eq!(header(&preflight, "access-control-allow-headers"), Some("authorization,content-type,x-stainless-os"));
    assert_eq!(header(&preflight, "access-control-max-age"), Some("600"));
    assert_eq!(header(&preflight, "access-control-allow-credentials"), None);
    // Then it asks; the page may read the answer, and a refusal too.
    for (authorization, status) in [(format!("Bearer {KEY}"), 200), ("Bearer sk-wrong".to_owned(), 401)] {
        let answer = send(&worker, "GET", "/props", &[("origin", PAGE), ("authorization", &authorization)]).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "access-control-allow-origin")), (status, Some(PAGE)));
        assert!(header(&answer, "access-control-expose-headers").unwrap().contains("x-correlation-id"));
        assert!(header(&answer, "vary").unwrap().to_ascii_lowercase().contains("origin"));
    }
    for method in ["OPTIONS", "GET", "POST"] {
        let headers = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
        let refused = send(&worker, method, "/health", &headers).await;
        assert_eq!(
            (refused.status().as_u16(), header(&refused, "access-control-allow-origin")),
            (403, None),
            "{method}"
        );
    }
}

#[tokio::test]
async fn every_origin_may_ask_where_all_are_allowed() {
    let cors_origins = CorsOrigins::new(["*"]).unwrap();
    let worker = with_access(Access { cors_origins, ..Access::default() }).await;
    for origin in ["https://anywhere.example", "null"] {
        let answer = send(&worker, "GET", "/props", &[("origin", origin)]).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "access-control-allow-origin")), (200, Some(origin)));
    }
}

#[tokio::test]
async fn without_allowed_origins_no_browser_is_told_anything() {
    let worker = Worker::start().await;
    let answer = send(&worker, "GET", "/props", &[]).await;
    assert!(answer.headers().keys().all(|name| !name.as_str().starts_with("access-control-")));
    assert_eq!(send(&worker, "OPTIONS", "/props", &[]).await.status(), 405);
}

#[tokio::test]
async fn a_page_that_has_made_its_name_point_here_is_refused() {
    let worker = with_access(Access { hosts: HostRule::only(["worker.lan"]), ..Access::default() }).await;
    // As a browser sends it: to the page's own name, and so of the same origin.
    let rebound = [("host", "evil.example:8080"), ("origin", "http://evil.example:8080")];
    for (method, path) in [("POST", "/shutdown"), ("POST", "/v1/completions"), ("GET", "/health"), ("GET", "/")] {
        for headers in [&rebound[..], &rebound[..1]] {
            let refused = send(&worker, method, path, headers).await;
            assert_eq!(refused.status(), 403, "{method} {path}");
        }
    }
    let error: Value = send(&worker, "POST", "/v1/completions", &rebound).await.json().await.unwrap();
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("permission_error"), &json!("forbidden")));
    for host in ["localhost:8080", "127.0.0.1:1", "[::1]", "worker.lan"] {
        assert_eq!(send(&worker, "GET", "/health", &[("host", host)]).await.status(), 200, "{host}");
    }
    wait_until("nobody has shut it down", || worker.state.n_live_jobs() == 0).await;
    assert_eq!(worker.get("/ready").await.status(), 200);
}

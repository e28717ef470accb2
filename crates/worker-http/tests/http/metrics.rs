//! `GET /metrics`: what is told, and that every request and token is counted once.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use transformer::ExecutorError;
use worker_http::{Access, ApiKeys, AppState, Settings, app};

use crate::worker::{Config, Worker, served, settings, wait_until};

async fn text(worker: &Worker) -> String {
    worker.get("/metrics").await.text().await.unwrap()
}

/// The values of a metric by the value of one of its labels, zeros left out.
async fn by_label(worker: &Worker, name: &str, label: &str) -> BTreeMap<String, f64> {
    let text = text(worker).await;
    let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let values = series.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (_, rest) = series.split_once(&format!("{label}=\"")).unwrap();
        (rest.split('"').next().unwrap().to_string(), value.parse().unwrap())
    });
    values.filter(|(_, value)| *value != 0.0).collect()
}

async fn outcomes(worker: &Worker) -> BTreeMap<String, f64> {
    by_label(worker, "worker_requests_total", "outcome").await
}

async fn reasons(worker: &Worker) -> BTreeMap<String, f64> {
    by_label(worker, "vllm:request_success_total", "finished_reason").await
}

fn counts(expected: &[(&str, f64)]) -> BTreeMap<String, f64> {
    expected.iter().map(|&(name, count)| (name.to_string(), count)).collect()
}

#[tokio::test]
async fn metrics_are_prometheus_text_under_the_names_of_vllm() {
    let worker = Worker::start().await;
    worker.script("abc");
    worker.execute("job-1", "hi", json!({})).await.rest().await;
    let response = worker.get("/metrics").await;
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"(worker_uptime_seconds\S*) [0-9.e-]+", "$1 [seconds]");
    settings.add_filter(r"(worker_memory_bytes\S*) \d+", "$1 [bytes]");
    settings.add_filter(r"(_seconds_sum\S*) [0-9.e-]+", "$1 [seconds]");
    settings.add_filter(r"(_seconds_bucket\S*) \d+", "$1 [count]");
    // A family's members come in the order of a hash map.
    let mut lines: Vec<&str> = text.lines().collect();
    let family = |line: &str| line.split(['{', ' ']).next().unwrap().to_string();
    for series in lines.chunk_by_mut(|a, b| family(a) == family(b)) {
        if !series[0].starts_with('#') && !series[0].contains("_bucket{") {
            series.sort_unstable();
        }
    }
    settings.bind(|| insta::assert_snapshot!(lines.join("\n")));
}

#[tokio::test]
async fn openmetrics_is_for_those_who_ask_for_it() {
    let worker = Worker::start().await;
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let request = worker.client.get(format!("{}/metrics", worker.url)).header("accept", accept);
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE vllm:generation_tokens counter\n"), "{text}");
}

#[tokio::test]
async fn a_models_name_may_hold_anything() {
    let config = Config::default();
    let state = AppState::new(Settings { model: "a \"model\\\n{x=\"1\"}".into(), ..settings(&config) });
    state.set_ready(served(&config).0);
    let response = app(state).oneshot(Request::get("/metrics").body(Body::empty()).unwrap()).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = std::str::from_utf8(&bytes).unwrap();
    let expected = r#"vllm:num_requests_running{model_name="a \"model\\\n{x=\"1\"}",engine="0"} 0"#;
    assert!(text.lines().any(|line| line == expected), "{text}");
}

#[tokio::test]
async fn a_worker_that_loads_has_metrics_without_a_model() {
    let state = AppState::new(settings(&Config::default()));
    let router = app(state);
    let ask = |request: Request<Body>| {
        let router = router.clone();
        async move { router.oneshot(request).await.unwrap().into_body().collect().await.unwrap().to_bytes() }
    };
    ask(Request::post("/execute").header("content-type", "application/json").body(Body::from("{}")).unwrap()).await;
    let text = ask(Request::get("/metrics").body(Body::empty()).unwrap()).await;
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.contains(r#"worker_requests_total{model_name="tiny",outcome="NOT_READY"} 1"#), "{text}");
    assert!(!text.contains("cache_config_info"), "{text}");
}

#[tokio::test]
async fn every_request_has_exactly_one_outcome() {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    config.engine.queue_limit = 1;
    let worker = Worker::start_with(config).await;
    worker.script("abcdef");
    let post = async |path: &str, body: Value| {
        let response = worker.post(path, &body).await;
        let status = response.status().as_u16();
        // To its end: who leaves before that aborts.
        response.text().await.unwrap();
        status
    };
    // Complete, by each route.
    worker.execute("stops", "hi", json!({})).await.rest().await;
    worker.execute("is-long", "hi", json!({ "max_tokens": 2 })).await.rest().await;
    worker.execute("matches", "hi", json!({ "stop": ["cd"] })).await.rest().await;
    assert_eq!(post("/v1/completions", json!({ "prompt": "hi" })).await, 200);
    let message = json!([{ "role": "user", "content": "hi" }]);
    assert_eq!(post("/v1/chat/completions", json!({ "messages": message, "stream": true })).await, 200);
    assert_eq!(post("/chat/completions", json!({ "messages": message, "max_tokens": 1 })).await, 200);
    // Refused: the body's type, its fields, more answers than there is room for.
    let url = format!("{}/execute", worker.url);
    assert_eq!(worker.client.post(&url).body("hi").send().await.unwrap().status(), 415);
    assert_eq!(post("/execute", json!({})).await, 400);
    assert_eq!(post("/v1/completions", json!({ "prompt": "hi", "n": 3 })).await, 400);
    // Not for answers: not counted.
    assert_eq!(worker.client.get(&url).send().await.unwrap().status(), 405);
    assert_eq!(post("/nowhere", json!({})).await, 404);
    worker.cancel("nobody").await;
    // Cut off, or refused for what runs.
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({})).await;
    running.expect("started").await;
    running.expect("token").await;
    let mut waiting = worker.execute("waiting", "hi", json!({})).await;
    waiting.expect("started").await;
    assert_eq!(post("/execute", json!({ "job_id": "waiting", "prompt": "hi" })).await, 409);
    assert_eq!(post("/execute", json!({ "job_id": "third", "prompt": "hi" })).await, 429);
    worker.cancel("waiting").await;
    assert_eq!(waiting.rest().await.last["code"], "CANCELLED");
    drop(running);
    wait_until("the job has ended", || worker.state.n_live_jobs() == 0).await;
    worker.control.release();
    worker.wait_until_free().await;
    worker.control.fail_after(0, ExecutorError::OutOfMemory("no room".into()));
    assert_eq!(post("/v1/completions", json!({ "prompt": "hi" })).await, 500);
    let expected = [
        ("CANCELLED", 1.0),
        ("DUPLICATE_JOB", 1.0),
        ("INVALID_REQUEST", 2.0),
        ("QUEUE_FULL", 1.0),
        ("UNSUPPORTED_MEDIA_TYPE", 1.0),
        ("VRAM_OOM", 1.0),
        ("abort", 1.0),
        ("length", 2.0),
        ("stop", 4.0),
    ];
    assert_eq!(outcomes(&worker).await, counts(&expected));
    let answers = [("abort", 2.0), ("error", 1.0), ("length", 2.0), ("stop", 4.0)];
    assert_eq!(reasons(&worker).await, counts(&answers));
}

#[tokio::test]
async fn requests_refused_for_who_sends_them_have_an_outcome_too() {
    let access = Access { api_keys: ApiKeys::new(["sk-a"]).unwrap(), ..Access::default() };
    let worker = Worker::start_with(Config { access, ..Config::default() }).await;
    for path in ["/execute", "/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"] {
        assert_eq!(worker.post(path, &json!({})).await.status(), 401, "{path}");
    }
    let foreign = worker.client.post(format!("{}/execute", worker.url)).header("origin", "https://evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    // Not for answers.
    assert_eq!(worker.post("/tokenize", &json!({})).await.status(), 401);
    assert_eq!(worker.get("/v1/completions").await.status(), 401);
    assert_eq!(outcomes(&worker).await, counts(&[("FORBIDDEN", 1.0), ("UNAUTHORIZED", 5.0)]));
}

#[tokio::test]
async fn answers_are_counted_by_themselves_and_their_request_once() {
    let worker = Worker::start().await;
    worker.script("abc");
    let body = json!({ "prompt": ["one", "two, of other length"], "n": 2, "max_tokens": 8 });
    assert_eq!(worker.post("/v1/completions", &body).await.status(), 200);
    assert_eq!(outcomes(&worker).await, counts(&[("stop", 1.0)]));
    assert_eq!(reasons(&worker).await, counts(&[("stop", 4.0)]));
    let n_prompt = (worker.ids("one").len() + worker.ids("two, of other length").len()) as f64;
    for (metric, value) in [
        ("vllm:prompt_tokens_total", n_prompt),
        ("vllm:request_prompt_tokens_sum", n_prompt),
        ("vllm:request_prompt_tokens_count", 2.0),
        ("vllm:generation_tokens_total", 12.0),
        ("vllm:request_generation_tokens_sum", 12.0),
        ("vllm:request_generation_tokens_count", 4.0),
        ("vllm:request_params_max_tokens_sum", 32.0),
        ("vllm:request_max_num_generation_tokens_sum", 3.0),
        ("vllm:request_params_n_sum", 2.0),
        ("vllm:request_params_n_count", 1.0),
        ("vllm:time_to_first_token_seconds_count", 4.0),
        ("vllm:inter_token_latency_seconds_count", 8.0),
        ("vllm:e2e_request_latency_seconds_count", 4.0),
    ] {
        assert_eq!(worker.metric(metric).await, value, "{metric}");
    }
}

#[tokio::test]
async fn the_stages_of_an_answer_add_up() {
    let worker = Worker::start().await;
    worker.script("abcd");
    worker.control.set_delay(Duration::from_millis(20));
    worker.execute("job-1", "hi", json!({})).await.rest().await;
    let seconds = async |metric: &str| worker.metric(&format!("vllm:{metric}_seconds_sum")).await;
    let (queue, prefill, decode) = (
        seconds("request_queue_time").await,
        seconds("request_prefill_time").await,
        seconds("request_decode_time").await,
    );
    let inference = seconds("request_inference_time").await;
    assert!((inference - prefill - decode).abs() < 1e-9, "{inference} = {prefill} + {decode}");
    assert!(seconds("e2e_request_latency").await >= queue + inference);
    // Three gaps; what is seen here may lag behind what the engine saw.
    assert!(decode > 0.0, "{decode}");
    assert!((seconds("inter_token_latency").await - decode).abs() < 1e-9);
    assert!((seconds("request_time_per_output_token").await - decode / 3.0).abs() < 1e-9);
    assert!(seconds("time_to_first_token").await >= prefill.min(0.02));
}

#[tokio::test]
async fn the_prefix_cache_tells_tokens_looked_for_and_found() {
    let worker = Worker::start().await;
    worker.script("abc");
    let prompt = "x".repeat(100);
    worker.execute("job-1", &prompt, json!({})).await.rest().await;
    let n_prompt = worker.metric("vllm:prompt_tokens_total").await;
    assert_eq!(worker.metric("vllm:prefix_cache_queries_total").await, n_prompt);
    assert_eq!(worker.metric("vllm:prefix_cache_hits_total").await, 0.0);
    worker.execute("job-2", &prompt, json!({})).await.rest().await;
    assert_eq!(worker.metric("vllm:prefix_cache_queries_total").await, 2.0 * n_prompt);
    let hits = worker.metric("vllm:prefix_cache_hits_total").await;
    assert!(hits > 0.0 && hits < n_prompt, "{hits} of {n_prompt}");
    let computed = worker.metric("vllm:request_prefill_kv_computed_tokens_sum").await;
    assert_eq!(computed, 2.0 * n_prompt - hits);
}

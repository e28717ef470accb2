//! What a connection may cost, over a real socket: heads, bodies, silence, numbers.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use worker_http::ServerLimits;

use crate::worker::{Config, PATIENCE, Worker, wait_until};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Long enough that nothing in these tests ends by it.
const NEVER: Duration = Duration::from_secs(3600);

async fn connect(worker: &Worker) -> TcpStream {
    TcpStream::connect(worker.address).await.unwrap()
}

/// All that comes until the worker closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the worker closes it");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One answer with a `content-length` on a connection that stays open.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() >= length.parse().unwrap() {
                return text;
            }
        }
        let mut buffer = [0; 4096];
        let n = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(n, 0, "closed after {text:?}");
        bytes.extend_from_slice(&buffer[..n]);
    }
}

async fn with_limits(limits: ServerLimits) -> Worker {
    Worker::start_with(Config { limits, ..Config::default() }).await
}

#[tokio::test]
async fn a_head_that_is_too_long_or_has_too_many_headers_gets_431() {
    let worker = Worker::start().await;
    let limits = ServerLimits::default();
    // A head is refused once so much has come without an end: what comes in one piece with the rest may be a little longer.
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(2 * limits.max_head_bytes));
    let headers = |n: usize| (1..n).map(|i| format!("x-{i}: a\r\n")).collect::<String>();
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", headers(limits.max_headers + 1));
    for head in [long, many] {
        let mut stream = connect(&worker).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let reply = read_to_end(&mut stream).await;
        assert!(reply.starts_with("HTTP/1.1 431 "), "{reply:?}");
    }
    let most = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", headers(limits.max_headers));
    let mut stream = connect(&worker).await;
    stream.write_all(most.as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_ends_the_connection() {
    let limit = Duration::from_millis(200);
    let worker = with_limits(ServerLimits { header_read_timeout: limit, ..ServerLimits::default() }).await;
    let mut stream = connect(&worker).await;
    let begun = Instant::now();
    // A byte now and then is not enough.
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        for byte in HEALTH.iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(limit / 10).await;
        }
    };
    let mut bytes = Vec::new();
    tokio::select! {
        () = drip => {}
        _ = reader.read_to_end(&mut bytes) => {}
    }
    assert!(begun.elapsed() < PATIENCE && !String::from_utf8_lossy(&bytes).contains(" 200 "));
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let limit = Duration::from_millis(200);
    let worker = with_limits(ServerLimits { header_read_timeout: limit, ..ServerLimits::default() }).await;
    let mut stream = connect(&worker).await;
    for _ in 0..2 {
        stream.write_all(HEALTH).await.unwrap();
        assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
    }
    let answered = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!(answered.elapsed() >= limit / 2);
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_gets_its_answer_all_the_same() {
    let body_read_timeout = Duration::from_millis(200);
    let worker = Worker::start_with(Config { body_read_timeout, ..Config::default() }).await;
    let mut stream = connect(&worker).await;
    let head = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = read_answer(&mut stream).await;
    assert!(reply.starts_with("HTTP/1.1 400 ") && reply.contains("body: did not arrive within 0.2 seconds"), "{reply}");
}

#[tokio::test]
async fn silent_connections_make_room_at_once() {
    let n = 16;
    let limits = ServerLimits { max_connections: n, header_read_timeout: NEVER, ..ServerLimits::default() };
    let worker = Worker::start_with(Config { limits, body_read_timeout: NEVER, ..Config::default() }).await;
    let mut silent = Vec::new();
    let half_sent = "POST /execute HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let beginnings = ["", "POST /exec", "POST /execute HTTP/1.1\r\nhost: x\r\n", half_sent];
    for beginning in beginnings.iter().cycle().take(4 * n).chain([&half_sent; 16]) {
        let mut stream = connect(&worker).await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    // Nothing times out here: without room being made, this would wait for ever.
    for _ in 0..4 {
        let mut stream = connect(&worker).await;
        stream.write_all(HEALTH).await.unwrap();
        assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 "));
        silent.push(stream);
    }
    // Those that came first had to leave.
    let reply = read_to_end(&mut silent[0]).await;
    assert!(!reply.contains(" 200 "), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_keeps_its_place_however_many_knock() {
    let limits = ServerLimits { max_connections: 2, header_read_timeout: NEVER, ..ServerLimits::default() };
    let worker = with_limits(limits).await;
    worker.script(&"a".repeat(50));
    worker.control.hold_after(1);
    let mut stream = worker.execute("long", "hi", json!({})).await;
    stream.expect("started").await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect(&worker).await);
    }
    let mut asking = connect(&worker).await;
    asking.write_all(HEALTH).await.unwrap();
    assert!(read_answer(&mut asking).await.starts_with("HTTP/1.1 200 "));
    worker.control.release();
    assert_eq!(stream.rest().await.text(), "a".repeat(50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_connections_wait_for_the_first_to_end() {
    let limits = ServerLimits { max_connections: 1, header_read_timeout: NEVER, ..ServerLimits::default() };
    let worker = with_limits(limits).await;
    worker.script("abc");
    worker.control.hold_after(1);
    let mut first = worker.execute("first", "hi", json!({})).await;
    first.expect("started").await;
    let mut others = Vec::new();
    for _ in 0..4 {
        let mut other = connect(&worker).await;
        other.write_all(HEALTH).await.unwrap();
        others.push(other);
    }
    worker.control.release();
    // Whole, although others wait for its place.
    assert_eq!(first.rest().await.text(), "abc");
    // None of them has its place taken before what it sent has been read.
    for mut other in others {
        assert!(read_answer(&mut other).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_full_queue_answers_429_on_every_route_that_generates() {
    let mut config = Config::default();
    config.engine.max_seqs = 1;
    config.engine.queue_limit = 1;
    let worker = Worker::start_with(config).await;
    worker.script("abc");
    worker.control.hold_after(1);
    let mut running = worker.execute("running", "hi", json!({})).await;
    running.expect("started").await;
    running.expect("token").await;
    let mut queued = worker.execute("queued", "hi", json!({})).await;
    queued.expect("started").await;
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let completion = json!({ "prompt": "hi" });
    for (path, body) in [
        ("/execute", &json!({ "job_id": "third", "prompt": "hi" })),
        ("/v1/chat/completions", &chat),
        ("/chat/completions", &chat),
        ("/v1/completions", &completion),
        ("/completions", &completion),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = stream.into();
            let refused = worker.post(path, &body).await;
            assert_eq!(
                (refused.status().as_u16(), &refused.headers()["retry-after"]),
                (429, &"1".parse().unwrap()),
                "{path}"
            );
        }
    }
    worker.control.release();
    running.rest().await;
    queued.rest().await;
    wait_until("all is done", || worker.state.n_live_jobs() == 0).await;
    assert_eq!(worker.post("/v1/completions", &completion).await.status(), 200);
}

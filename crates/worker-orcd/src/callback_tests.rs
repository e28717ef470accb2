//! The callback against a small orchestrator that answers as scripted.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;

/// Gives up before a test does.
const QUICK: Patience = Patience {
    request_timeout: Duration::from_millis(300),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(50),
    give_up_after: Duration::from_millis(250),
};

/// Goes on for longer than a busy machine holds up a test.
const PATIENT: Patience =
    Patience { request_timeout: Duration::from_secs(30), give_up_after: Duration::from_secs(30), ..QUICK };

#[derive(Clone, Copy)]
enum Answer {
    /// Status line and further headers.
    Status(&'static str),
    /// Reads and never answers.
    Hang,
    /// Closes the connection without a word.
    Close,
}
use Answer::{Close, Hang, Status};

/// Listens, gives the answers in turn (the last one again and again), and keeps the requests.
struct Orchestrator {
    url: Url,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Orchestrator {
    async fn start(answers: &'static [Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/callback?pool=a", listener.local_addr().unwrap()).parse().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            for i in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(respond(socket, answers[i.min(answers.len() - 1)], Arc::clone(&seen)));
            }
        });
        Self { url, requests }
    }

    fn n_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

async fn respond(mut socket: TcpStream, answer: Answer, seen: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    // The body is a JSON object: the request is whole when it ends with the closing brace.
    while !request.ends_with(b"}") {
        match socket.read(&mut buffer).await {
            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
            _ => return,
        }
    }
    seen.lock().unwrap().push(String::from_utf8(request).unwrap());
    match answer {
        Status(head) => {
            let reply = format!("HTTP/1.1 {head}\r\nContent-Length: 8\r\nConnection: close\r\n\r\nno thank");
            socket.write_all(reply.as_bytes()).await.unwrap();
        }
        Hang => tokio::time::sleep(Duration::from_secs(60)).await,
        Close => {}
    }
}

fn ready() -> Ready {
    Ready {
        worker_id: "test".to_owned(),
        model_ref: "model.gguf".to_owned(),
        uri: "http://127.0.0.1:8080".to_owned(),
        memory_bytes: 123,
        vram_bytes: 0,
        memory_architecture: "system",
        worker_type: "cpu",
        capabilities: vec!["text-gen"],
    }
}

async fn outcome(answers: &'static [Answer]) -> (Result<(), CallbackError>, usize) {
    let orchestrator = Orchestrator::start(answers).await;
    let result = call(&orchestrator.url, &ready(), &PATIENT).await;
    (result, orchestrator.n_requests())
}

#[tokio::test]
async fn posts_the_contracts_json_to_the_url_as_given() {
    let orchestrator = Orchestrator::start(&[Status("200 OK")]).await;
    call(&orchestrator.url, &ready(), &PATIENT).await.unwrap();
    let request = orchestrator.requests.lock().unwrap()[0].clone();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /callback?pool=a HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    insta::assert_snapshot!(body, @r#"{"worker_id":"test","model_ref":"model.gguf","uri":"http://127.0.0.1:8080","memory_bytes":123,"vram_bytes":0,"memory_architecture":"system","worker_type":"cpu","capabilities":["text-gen"]}"#);
}

#[tokio::test]
async fn tries_again_after_5xx_429_and_a_closed_connection() {
    let answers = &[
        Status("500 Internal Server Error"),
        Status("503 Service Unavailable"),
        Status("429 Too Many Requests"),
        Close,
        Status("204 No Content"),
    ];
    let (result, n_requests) = outcome(answers).await;
    result.unwrap();
    assert_eq!(n_requests, 5);
}

#[tokio::test]
async fn a_404_and_a_redirect_are_final() {
    for answers in [&[Status("404 Not Found")], &[Status("302 Found\r\nLocation: http://127.0.0.1:1/")]] {
        let (result, n_requests) = outcome(answers).await;
        let message = result.unwrap_err().to_string();
        assert!(message.contains(r#"needed 2xx; that will not change"#) && message.contains("no thank"), "{message}");
        assert_eq!(n_requests, 1);
    }
}

#[tokio::test]
async fn an_orchestrator_that_hangs_is_asked_again() {
    let orchestrator = Orchestrator::start(&[Hang]).await;
    // The first request takes longer than the whole patience.
    let error = call(&orchestrator.url, &ready(), &QUICK).await.unwrap_err();
    assert!(matches!(error, CallbackError::GaveUp { n_attempts: 1, .. }), "{error}");
    let orchestrator = Orchestrator::start(&[Hang, Status("200 OK")]).await;
    let patience = Patience { request_timeout: Duration::from_secs(2), ..PATIENT };
    call(&orchestrator.url, &ready(), &patience).await.unwrap();
    assert!(orchestrator.n_requests() >= 2);
}

#[tokio::test]
async fn gives_up_when_nobody_listens() {
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap()
    };
    let error = call(&url, &ready(), &QUICK).await.unwrap_err();
    let CallbackError::GaveUp { n_attempts, last, .. } = error else { panic!("{error}") };
    assert!(n_attempts >= 1, "{n_attempts}");
    assert!(last.contains("refused"), "{last}");
}

#[tokio::test]
async fn retry_after_is_honoured_up_to_the_longest_pause() {
    let began = Instant::now();
    let (result, n_requests) = outcome(&[Status("503 Busy\r\nRetry-After: 3600"), Status("200 OK")]).await;
    result.unwrap();
    assert_eq!(n_requests, 2);
    assert!(began.elapsed() >= QUICK.longest_pause, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_for_https_can_be_made() {
    // Nobody speaks TLS there: the handshake fails, and with it the attempt, not the process.
    let orchestrator = Orchestrator::start(&[Close]).await;
    let mut url = orchestrator.url.clone();
    url.set_scheme("https").unwrap();
    assert!(call(&url, &ready(), &QUICK).await.is_err());
}

#[test]
fn a_password_is_not_shown() {
    let url = "https://user:secret@example.org/x".parse().unwrap();
    assert_eq!(shown(&url), "https://user:***@example.org/x");
}

#[tokio::test]
async fn knows_its_own_address() {
    let own = async |url: &str, bound: &str| names_this_worker(&url.parse().unwrap(), bound.parse().unwrap()).await;
    for url in ["http://localhost:9999/callback", "http://127.0.0.1:9999", "http://[::1]:9999/", "http://0.0.0.0:9999"]
    {
        for bound in ["127.0.0.1:9999", "0.0.0.0:9999", "[::1]:9999", "[::]:9999"] {
            assert!(own(url, bound).await, "{url} {bound}");
        }
        assert!(!own(url, "127.0.0.1:9998").await, "{url}");
    }
    assert!(own("http://localhost/", "127.0.0.1:80").await, "the scheme's port counts");
    assert!(!own("http://127.0.0.2:9999/", "127.0.0.1:9999").await, "another loopback address");
    assert!(own("http://127.0.0.2:9999/", "0.0.0.0:9999").await, "every address of this machine");
    assert!(!own("http://192.0.2.1:9999/", "0.0.0.0:9999").await, "another machine");
    assert!(!own("http://no-such-host.invalid:9999/", "0.0.0.0:9999").await, "a host that cannot be found");
}

#[tokio::test]
async fn the_uri_is_an_address_that_can_be_connected_to() {
    let orchestrator = "http://127.0.0.1:7000/".parse().unwrap();
    assert_eq!(uri("127.0.0.1:8080".parse().unwrap(), &orchestrator).await, "http://127.0.0.1:8080");
    assert_eq!(uri("0.0.0.0:8080".parse().unwrap(), &orchestrator).await, "http://127.0.0.1:8080");
    assert_eq!(uri("[::1]:8080".parse().unwrap(), &orchestrator).await, "http://[::1]:8080");
}

//! Clients that no HTTP library would make: garbage, half requests, half-closed sockets, readers of a few bytes a second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::ledger::Seen;

/// Between two pieces of garbage of one client: there are to be many, but they are not to be the whole load.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest wait for an answer to garbage. Longer than the worker waits for the rest of a head or a body (20 s).
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A slow reader takes so many bytes at a time ...
const SIP_BYTES: usize = 4;
/// ... and then waits.
const SIP_PAUSE: Duration = Duration::from_millis(250);
/// For so many sips a reader is slow; then it leaves, or reads the rest.
const SIPS: std::ops::Range<usize> = 4..24;
/// What the kernel keeps for a slow reader: little, so that the worker has to.
const SLOW_BUFFER_BYTES: u32 = 4 << 10;

/// What is to come of a piece of garbage.
enum Expected {
    /// This status and this code.
    Refusal(u16, &'static str),
    /// An answer from below the routes, or none.
    LetGo(&'static [u16]),
    /// The client leaves in the middle.
    Nothing,
    /// The client has closed its side: whether the job had begun by then is the worker's to say.
    Left,
}

struct Garbage {
    what: &'static str,
    bytes: Vec<u8>,
    expected: Expected,
}

/// Sends piece `i` of garbage.
pub(super) async fn garbage(base: &str, i: usize, label: &str) -> Result<Seen> {
    let all = pieces(label);
    let n = all.len();
    let piece = all.into_iter().nth(i % n).context("there is garbage")?;
    let mut stream = TcpStream::connect(address(base)).await.context("connecting")?;
    // The worker may have stopped reading what it will not take.
    let _ = stream.write_all(&piece.bytes).await;
    let seen = match piece.expected {
        Expected::Nothing => Seen::Garbage(piece.what),
        Expected::Left => {
            stream.shutdown().await.context("closing one side")?;
            match read_all(&mut stream).await {
                Some(_) => Seen::Left { accepted: false },
                None => Seen::Wrong(format!("{}: the connection stays open", piece.what)),
            }
        }
        Expected::Refusal(status, code) => match read_all(&mut stream).await.as_deref().and_then(refusal) {
            Some((got, refused)) if (got, refused.as_str()) == (status, code) => Seen::Refused(refused),
            got => Seen::Wrong(format!("{}: expected {status} {code}, got {got:?}", piece.what)),
        },
        Expected::LetGo(statuses) => match read_all(&mut stream).await {
            Some(reply) if reply.is_empty() => Seen::Garbage(piece.what),
            Some(reply) if status(&reply).is_some_and(|got| statuses.contains(&got)) => Seen::Garbage(piece.what),
            reply => Seen::Wrong(format!("{}: {reply:?}", piece.what)),
        },
    };
    drop(stream);
    tokio::time::sleep(PAUSE).await;
    Ok(seen)
}

fn pieces(label: &str) -> Vec<Garbage> {
    let json = "content-type: application/json\r\n";
    let refused = |what, method, path, headers: &str, body: &[u8], status, code| Garbage {
        what,
        bytes: request(method, path, label, headers, body),
        expected: Expected::Refusal(status, code),
    };
    let raw = |what, bytes: Vec<u8>, expected| Garbage { what, bytes, expected };
    let job = json!({ "job_id": label, "prompt": "a day", "max_tokens": 64 }).to_string();
    let whole = request("POST", "/execute", label, json, job.as_bytes());
    let mut half = whole.clone();
    half.truncate(whole.len() - 10);
    let endless_head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: {}", "a".repeat(40 << 10));
    let many_fields: String = (0..2000).map(|i| format!("x-{i}: a\r\n")).collect();
    vec![
        refused("bad JSON", "POST", "/execute", json, b"{\"job_id\": oops}", 400, "INVALID_REQUEST"),
        refused("wrong types", "POST", "/v1/chat/completions", json, b"{\"messages\": 7}", 400, "INVALID_REQUEST"),
        refused("not UTF-8", "POST", "/v1/completions", json, b"{\"prompt\": \"\xff\"}", 400, "INVALID_REQUEST"),
        refused("no job named", "POST", "/cancel", json, b"{}", 400, "INVALID_REQUEST"),
        refused("no such route", "GET", "/nowhere", "", b"", 404, "NOT_FOUND"),
        refused("no such model", "GET", "/v1/models/other", "", b"", 404, "NOT_FOUND"),
        refused("wrong method", "DELETE", "/execute", "", b"", 405, "METHOD_NOT_ALLOWED"),
        refused("no JSON announced", "POST", "/execute", "", b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
        refused("foreign page", "POST", "/execute", "origin: http://evil.example\r\n", b"{}", 403, "FORBIDDEN"),
        refused("too long a body", "POST", "/execute", json, &[b' '; (1 << 20) + 1], 413, "PAYLOAD_TOO_LARGE"),
        raw("a head without end", endless_head.into(), Expected::LetGo(&[431])),
        raw("too many fields", format!("GET /health HTTP/1.1\r\n{many_fields}\r\n").into(), Expected::LetGo(&[431])),
        raw("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), Expected::LetGo(&[400])),
        raw("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), Expected::LetGo(&[400, 505])),
        raw("half a head", b"POST /execute HTTP/1.1\r\nhost:".to_vec(), Expected::Nothing),
        raw("half a body", half, Expected::Nothing),
        raw("a half-closed socket", whole, Expected::Left),
    ]
}

/// A job whose client reads a few bytes a second, then leaves or reads the rest.
pub(super) async fn slow_reader(base: &str, label: &str, rng: &mut StdRng, end: Instant) -> Result<Seen> {
    let n_sips = rng.random_range(SIPS);
    let leaves = rng.random_range(0..2) == 0;
    let body = json!({
        "job_id": label, "prompt": "the sun and the moon and the rain", "max_tokens": rng.random_range(64..256),
        "temperature": 1.5, "seed": 1, "logprobs": 20,
    });
    let headers = "content-type: application/json\r\n";
    let socket = TcpSocket::new_v4().context("making a socket")?;
    socket.set_recv_buffer_size(SLOW_BUFFER_BYTES).context("making its buffer small")?;
    let mut stream =
        socket.connect(address(base).parse().context("the worker's address")?).await.context("connecting")?;
    stream.write_all(&request("POST", "/execute", label, headers, body.to_string().as_bytes())).await?;
    let mut read = Vec::new();
    for _ in 0..n_sips {
        let mut sip = [0; SIP_BYTES];
        match stream.read(&mut sip).await {
            Ok(n) if n > 0 => read.extend_from_slice(&sip[..n]),
            _ => break,
        }
        if Instant::now() >= end {
            break;
        }
        tokio::time::sleep(SIP_PAUSE).await;
    }
    if leaves && read.len() >= "HTTP/1.1 200".len() && status(&read) == Some(200) {
        return Ok(Seen::Left { accepted: true });
    }
    let Some(rest) = read_all(&mut stream).await else { return Ok(Seen::Wrong("a slow reader's rest".into())) };
    read.extend(rest);
    if let Some((_, code)) = refusal(&read) {
        return Ok(Seen::Refused(code));
    }
    // Each frame is one chunk, so no line of one is cut.
    let text = String::from_utf8_lossy(&read);
    let n_tokens = text.matches("\nevent: token\n").count() as u64;
    let has_ended = text.matches("\nevent: end\n").count() == 1;
    Ok(if has_ended { Seen::Slow { n_tokens } } else { Seen::Wrong("a slow reader's answer has no end".into()) })
}

fn request(method: &str, path: &str, label: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let n = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-correlation-id: {label}\r\n{headers}\
         content-length: {n}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Everything up to the end of the connection; none if it does not end. One that is reset ends too.
async fn read_all(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(ANSWER_LIMIT, stream.read_to_end(&mut bytes)).await.ok()?;
    Some(bytes)
}

fn address(base: &str) -> &str {
    base.trim_start_matches("http://")
}

fn status(reply: &[u8]) -> Option<u16> {
    let digits = reply.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Status and code of a reply that is an error, in either form.
fn refusal(reply: &[u8]) -> Option<(u16, String)> {
    let status = status(reply).filter(|status| *status >= 400)?;
    let text = String::from_utf8_lossy(reply);
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
    let code = body["code"].as_str().map(str::to_owned);
    // OpenAI's form has its own codes for faults of fields.
    let kind = body["error"]["type"].as_str().map(|kind| match (kind, status) {
        ("invalid_request_error", 400) => "INVALID_REQUEST".to_owned(),
        _ => body["error"]["code"].as_str().unwrap_or_default().to_uppercase(),
    });
    Some((status, code.or(kind)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_refusals_in_both_forms() {
        let reply = |status, body: &str| format!("HTTP/1.1 {status} X\r\na: b\r\n\r\n{body}").into_bytes();
        let ours = reply(429, r#"{"code": "QUEUE_FULL"}"#);
        assert_eq!(refusal(&ours), Some((429, "QUEUE_FULL".into())));
        let field = reply(400, r#"{"error": {"type": "invalid_request_error", "code": "invalid_type"}}"#);
        assert_eq!(refusal(&field), Some((400, "INVALID_REQUEST".into())));
        let route = reply(404, r#"{"error": {"type": "invalid_request_error", "code": "not_found"}}"#);
        assert_eq!(refusal(&route), Some((404, "NOT_FOUND".into())));
        assert_eq!(refusal(&reply(200, "{}")), None);
        assert_eq!(refusal(b""), None);
    }
}

//! The ready callback: tells an orchestrator that this worker can be given work.
//!
//! One POST, repeated while the orchestrator cannot be reached or says that it cannot answer now, for a bounded time.
//! An answer that will not change (a 4xx) is final. A URL that names this worker itself means that nobody waits for the
//! call.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use rand::RngExt;
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, ClientBuilder, StatusCode, Url};
use serde::Serialize;

/// The body of the callback.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Ready {
    /// As given, or drawn.
    pub(crate) worker_id: String,
    /// The model as the command line named it.
    pub(crate) model_ref: String,
    /// Where this worker answers.
    pub(crate) uri: String,
    /// Bytes held for weights, KV pool and scratch, wherever they are.
    pub(crate) memory_bytes: u64,
    /// Of these, bytes in GPU memory.
    pub(crate) vram_bytes: u64,
    /// `vram-only` or `system`.
    pub(crate) memory_architecture: &'static str,
    /// `bespoke-cuda` or `cpu`.
    pub(crate) worker_type: &'static str,
    /// What this worker can be asked for.
    pub(crate) capabilities: Vec<&'static str>,
}

/// How patient the callback is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// One request may take this long, connecting included, so that an orchestrator that hangs is asked again.
    pub(crate) request_timeout: Duration,
    /// Pause after the first failure; it doubles with each further one.
    pub(crate) first_pause: Duration,
    /// No pause is longer, neither a doubled one nor one that `Retry-After` asks for.
    pub(crate) longest_pause: Duration,
    /// No new attempt begins later than this after the first.
    pub(crate) give_up_after: Duration,
}

/// An orchestrator that restarts is back within a minute; one that is not has lost this worker anyway.
pub(crate) const PATIENCE: Patience = Patience {
    request_timeout: Duration::from_secs(5),
    first_pause: Duration::from_millis(250),
    longest_pause: Duration::from_secs(10),
    give_up_after: Duration::from_secs(60),
};

/// A pause is lengthened by up to this share of itself, at random, so that workers that were started together do not
/// call together.
const JITTER: f64 = 0.5;
/// Looking up the callback's host may take this long before the question whether it is this worker is given up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the body of a refusal, this many bytes are shown.
const SHOWN_BYTES: usize = 200;

/// Why nobody could be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallbackError {
    /// The orchestrator does not want this call.
    #[error("callback to {url}: answered {status}{body}, needed 2xx; that will not change, so it is not tried again")]
    Refused {
        /// Where.
        url: String,
        /// What it said.
        status: StatusCode,
        /// The beginning of its words, or nothing.
        body: String,
    },
    /// Time ran out.
    #[error("callback to {url}: gave up after {n_attempts} attempts in {seconds:.1} s; the last: {last}")]
    GaveUp {
        /// Where.
        url: String,
        /// How often it was tried.
        n_attempts: u32,
        /// For how long.
        seconds: f64,
        /// What happened last.
        last: String,
    },
    /// No HTTPS client can be made on this machine.
    #[error("callback to {url}: cannot set up an HTTP client: {source}")]
    Client {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
}

/// Posts `ready` to `url` until it is taken.
///
/// # Errors
/// When the answer is final, or `patience` has run out.
///
/// # Cancel safety
/// May be dropped at any time.
pub(crate) async fn call(url: &Url, ready: &Ready, patience: &Patience) -> Result<(), CallbackError> {
    let shown = shown(url);
    let client =
        client(url, patience.request_timeout).map_err(|source| CallbackError::Client { url: shown.clone(), source })?;
    let began = tokio::time::Instant::now();
    let mut pause = patience.first_pause;
    for n_attempts in 1.. {
        let (last, wait) = match attempt(&client, url, ready).await {
            Attempt::Taken => return Ok(()),
            Attempt::Refused(status, body) => return Err(CallbackError::Refused { url: shown, status, body }),
            Attempt::Later(last, wait) => (last, wait),
        };
        let jittered = pause.mul_f64(1.0 + JITTER * rand::rng().random::<f64>());
        let wait = wait.unwrap_or(Duration::ZERO).max(jittered).min(patience.longest_pause);
        if began.elapsed() + wait > patience.give_up_after {
            return Err(CallbackError::GaveUp { url: shown, n_attempts, seconds: began.elapsed().as_secs_f64(), last });
        }
        tracing::warn!("callback to {shown}: {last}; trying again in {:.1} s", wait.as_secs_f64());
        tokio::time::sleep(wait).await;
        pause = (pause * 2).min(patience.longest_pause);
    }
    unreachable!("the loop ends by returning")
}

/// The URL without a password, for messages.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        // Only URLs without a host refuse a password, and http has a host.
        let _ = url.set_password(Some("***"));
    }
    url.to_string()
}

/// A client for `url`, whose requests may take `timeout`, connecting included.
pub(crate) fn client(url: &Url, timeout: Duration) -> Result<Client, reqwest::Error> {
    builder(url).timeout(timeout).pool_max_idle_per_host(0).build()
}

/// What makes a client for `url` and no other: no proxy in between, and no redirect to another one.
pub(crate) fn builder(url: &Url) -> ClientBuilder {
    // A second call finds a provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("worker-orcd/", env!("CARGO_PKG_VERSION")));
    match url.scheme() {
        // Plain HTTP works on a machine without any certificates.
        "http" => builder.tls_certs_only([]),
        _ => builder,
    }
}

enum Attempt {
    Taken,
    Refused(StatusCode, String),
    /// What went wrong, and how long the orchestrator asks to be left alone.
    Later(String, Option<Duration>),
}

async fn attempt(client: &Client, url: &Url, ready: &Ready) -> Attempt {
    let response = match client.post(url.clone()).json(ready).send().await {
        Ok(response) => response,
        Err(e) => return Attempt::Later(innermost(&e), None),
    };
    let status = response.status();
    if status.is_success() {
        return Attempt::Taken;
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(pause_asked_for);
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Attempt::Later(format!("answered {status}"), retry_after);
    }
    Attempt::Refused(status, beginning(response).await)
}

/// The beginning of a refusal's body, on one line, as `: "..."`; empty when there is none.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < SHOWN_BYTES {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            _ => break,
        }
    }
    bytes.truncate(SHOWN_BYTES);
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(" {text:?}") }
}

/// reqwest's own words say "error sending request"; the reason is at the end of the chain.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// `Retry-After` in seconds. (Its other form, a date, needs two clocks that agree; it is ignored.)
fn pause_asked_for(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Whether `url` leads to the worker that listens on `bound`.
///
/// The port must be the same, and one of the host's addresses must be the one listened on. 127.0.0.1 and `::1` count as
/// one: who writes either, or `localhost`, with this worker's port, means this worker.
pub(crate) async fn names_this_worker(url: &Url, bound: SocketAddr) -> bool {
    if url.port_or_known_default() != Some(bound.port()) {
        return false;
    }
    addresses(url).await.iter().any(|address| leads_to(address.ip(), bound.ip(), is_of_this_machine))
}

/// The addresses of the URL's host; none when it cannot be looked up, which the call itself will report.
async fn addresses(url: &Url) -> Vec<SocketAddr> {
    let port = url.port_or_known_default().unwrap_or(0);
    let Some(host) = url.host_str() else { return Vec::new() };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        _ => Vec::new(),
    }
}

fn leads_to(target: IpAddr, bound: IpAddr, of_this_machine: impl Fn(IpAddr) -> bool) -> bool {
    let (target, bound) = (target.to_canonical(), bound.to_canonical());
    if bound.is_unspecified() {
        return target.is_unspecified() || target.is_loopback() || of_this_machine(target);
    }
    // Connecting to the unspecified address leads to the loopback one.
    let is_home = |ip: IpAddr| ip.is_unspecified() || ip == IpAddr::from([127, 0, 0, 1]) || ip.to_string() == "::1";
    target == bound || (is_home(target) && is_home(bound))
}

/// Whether `ip` belongs to one of this machine's interfaces: only then can a socket be bound to it.
fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// The address at which an orchestrator reaches this worker.
///
/// A worker that listens on every interface gives the address that the route to the callback starts from.
pub(crate) async fn uri(bound: SocketAddr, url: &Url) -> String {
    let mut address = bound;
    if bound.ip().is_unspecified() {
        let towards = addresses(url).await.into_iter().find(|a| bound.is_ipv6() || a.is_ipv4());
        let ip = towards.and_then(source_address).unwrap_or(IpAddr::from([127, 0, 0, 1]));
        address = SocketAddr::new(ip, bound.port());
    }
    format!("http://{address}")
}

/// The local address from which packets to `target` leave. Nothing is sent: connecting a UDP socket only looks up the
/// route.
fn source_address(target: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

#[cfg(test)]
#[path = "callback_tests.rs"]
mod tests;

//! A client of the worker's routes that keeps everything it receives, with times.

use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Metrics, SseParser};

/// The longest a stream may last before the client gives up on it: twice what the haiku run allows.
const STREAM_LIMIT: Duration = Duration::from_secs(60);

/// The longest wait for the answer to any other request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Speaks HTTP to one worker.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// One event as it arrived.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimedEvent {
    /// Since the request was sent.
    pub at_ms: f64,
    /// From the frame's `event` field.
    pub event: String,
    /// From the frame's `data` field; a string where it was no JSON.
    pub data: Value,
}

/// A `token` event, picked apart.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamedToken {
    /// The token.
    pub id: u32,
    /// Its text; possibly empty.
    pub text: String,
    /// Its log-probability, when asked for.
    pub logprob: Option<f64>,
    /// The most likely tokens and their log-probabilities, when asked for.
    pub top: Vec<(u32, f64)>,
}

/// Everything that one `POST /execute` brought.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What was sent.
    pub request: Value,
    /// HTTP status.
    pub status: u16,
    /// In order of arrival.
    pub events: Vec<TimedEvent>,
    /// From the request to the terminal event, or to the end of the stream when there was none.
    pub total_ms: f64,
    /// Why the stream stopped, if not by its proper end.
    pub broken: Option<String>,
}

impl Client {
    /// A client of the worker at `base`, such as `http://127.0.0.1:4711`.
    ///
    /// # Errors
    /// When the system offers no sockets.
    pub fn new(base: &str) -> Result<Self> {
        // reqwest wants a provider of cryptography even for plain HTTP.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that somebody was first, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        // A proxy of the user's environment must not stand between the test and a process on this machine.
        let http = reqwest::Client::builder().no_proxy().build().context("making an HTTP client")?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), http })
    }

    /// Where the worker is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// A `POST` of `body` to `path`, to be sent.
    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.base)).json(body)
    }

    /// `GET /health`.
    ///
    /// # Errors
    /// When the worker does not answer with JSON.
    pub async fn health(&self) -> Result<Value> {
        let text = self.get("/health").await?;
        serde_json::from_str(&text).with_context(|| format!("GET /health: not JSON: {text}"))
    }

    /// `GET /metrics`.
    ///
    /// # Errors
    /// When the worker does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics").await?))
    }

    /// `POST /shutdown`.
    ///
    /// # Errors
    /// When the worker answers anything but 202.
    pub async fn shutdown(&self) -> Result<()> {
        let url = format!("{}/shutdown", self.base);
        let reply = self.http.post(&url).timeout(REQUEST_LIMIT).send().await.context("POST /shutdown")?;
        if reply.status() != 202 {
            bail!("POST /shutdown answered {}", reply.status());
        }
        Ok(())
    }

    /// `POST /cancel`.
    ///
    /// # Errors
    /// When the worker answers anything but 202.
    pub async fn cancel(&self, job_id: &str) -> Result<()> {
        let url = format!("{}/cancel", self.base);
        let body = json!({ "job_id": job_id });
        let reply = self.http.post(&url).json(&body).timeout(REQUEST_LIMIT).send().await.context("POST /cancel")?;
        if reply.status() != 202 {
            bail!("POST /cancel answered {}", reply.status());
        }
        Ok(())
    }

    /// `POST /execute`: sends `request`, gives each event to `on_event` as it arrives, and returns them all. A stream
    /// that breaks, or never ends, is an [`Answer`] that says so.
    ///
    /// # Errors
    /// When the worker cannot be reached.
    pub async fn execute(&self, request: Value, mut on_event: impl FnMut(&TimedEvent)) -> Result<Answer> {
        let sent = Instant::now();
        let url = format!("{}/execute", self.base);
        let reply = self.http.post(&url).json(&request).send().await.context("POST /execute")?;
        let mut answer =
            Answer { request, status: reply.status().as_u16(), events: Vec::new(), total_ms: 0.0, broken: None };
        if !reply.status().is_success() {
            let body = reply.text().await.unwrap_or_default();
            answer.broken = Some(format!("HTTP {}: {body}", answer.status));
            return Ok(answer);
        }
        let read = read_stream(reply, sent, &mut answer.events, &mut on_event);
        answer.broken = match tokio::time::timeout(STREAM_LIMIT, read).await {
            Ok(outcome) => outcome.err().map(|error| format!("{error:#}")),
            Err(_) => Some(format!("the stream had not ended after {} s", STREAM_LIMIT.as_secs())),
        };
        let terminal = answer.events.iter().find(|event| matches!(event.event.as_str(), "end" | "error"));
        answer.total_ms = terminal.map_or_else(|| ms(sent.elapsed()), |event| event.at_ms);
        Ok(answer)
    }

    async fn get(&self, path: &str) -> Result<String> {
        let url = format!("{}{path}", self.base);
        let reply = self.http.get(&url).timeout(REQUEST_LIMIT).send().await.with_context(|| format!("GET {path}"))?;
        reply.text().await.with_context(|| format!("GET {path}"))
    }
}

async fn read_stream(
    reply: reqwest::Response,
    sent: Instant,
    events: &mut Vec<TimedEvent>,
    on_event: &mut impl FnMut(&TimedEvent),
) -> Result<()> {
    let kind = reply.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("text/event-stream") {
        bail!("content-type is {kind:?}, not text/event-stream");
    }
    let mut parser = SseParser::default();
    let mut bytes = reply.bytes_stream();
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.context("the stream broke off")?;
        for event in parser.push(&chunk) {
            let data = serde_json::from_str(&event.data).unwrap_or_else(|_| json!(event.data));
            let event = TimedEvent { at_ms: ms(sent.elapsed()), event: event.name, data };
            on_event(&event);
            events.push(event);
        }
    }
    if !parser.is_between_events() {
        bail!("the stream ended in the middle of an event");
    }
    Ok(())
}

impl Answer {
    /// The `token` events. A field that is missing or of the wrong type is [`None`] for the whole token.
    pub fn tokens(&self) -> Vec<Option<StreamedToken>> {
        self.events.iter().filter(|event| event.event == "token").map(|event| parse_token(&event.data)).collect()
    }

    /// The ids of the tokens that could be read.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens().into_iter().flatten().map(|token| token.id).collect()
    }

    /// All text, as a reader of the stream would join it.
    pub fn text(&self) -> String {
        self.tokens().into_iter().flatten().map(|token| token.text).collect()
    }

    /// The data of the first event called `name`.
    pub fn first(&self, name: &str) -> Option<&Value> {
        self.events.iter().find(|event| event.event == name).map(|event| &event.data)
    }
}

fn parse_token(data: &Value) -> Option<StreamedToken> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let top = data["top"].as_array().map(Vec::as_slice).unwrap_or_default();
    let top = top.iter().map(|entry| Some((id(&entry["id"])?, entry["logprob"].as_f64()?))).collect::<Option<_>>()?;
    let text = data["t"].as_str()?.to_owned();
    Some(StreamedToken { id: id(&data["id"])?, text, logprob: data["logprob"].as_f64(), top })
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are as fine as a socket's times mean anything.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

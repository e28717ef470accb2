//! The clients: each does one thing after the other until its round is over.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::jobs::{N_REQUESTS, Patience, Route, Task};
use super::ledger::{Ledger, Seen};
use super::{Options, raw};
use crate::harness::{Client, SseEvent, SseParser};

/// One client in so many sends garbage only.
const GARBAGE_SHARE: usize = 16;
/// One client in so many reads a few bytes a second.
const SLOW_SHARE: usize = 16;
/// How long a refused client waits before it goes on.
const REFUSED_PAUSE_MS: std::ops::Range<u64> = 50..250;
/// The longest that any one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// The text that each request is answered with when nobody else asks for anything, by route and request.
pub(super) type Alone = Vec<(Route, Vec<String>)>;

/// Asks for every answer once, one after the other.
pub(super) async fn answers_alone(base: &str, ledger: &mut Ledger) -> Result<Alone> {
    let client = Client::new(base)?;
    let mut alone = Vec::new();
    for route in super::jobs::ROUTES {
        let mut texts = Vec::new();
        for n in 0..N_REQUESTS {
            let label = format!("alone-{}-{n}", alone.len());
            let mut answer = Answer::default();
            let seen = ask(&client, Task { n, route, patience: Patience::Patient }, &label, &mut answer).await?;
            ensure!(matches!(seen, Seen::Whole { .. }), "{label}: {seen:?}");
            texts.push(answer.text);
            ledger.add(label, Seen::Whole { n_tokens: answer.n_tokens, as_alone: true });
        }
        alone.push((route, texts));
    }
    Ok(alone)
}

/// All clients for a while.
pub(super) struct Round<'a> {
    pub(super) base: &'a str,
    /// Begins each label.
    pub(super) name: &'static str,
    pub(super) options: &'a Options,
    pub(super) alone: &'a Alone,
    /// No client begins anything after it.
    pub(super) end: Instant,
}

impl Round<'_> {
    pub(super) async fn run(&self, ledger: &mut Ledger) -> Result<()> {
        // Connections end with the round.
        let client = Client::new(self.base)?;
        for outcome in join_all((0..self.options.clients).map(|idx| self.client(&client, idx))).await {
            ledger.merge(outcome?);
        }
        Ok(())
    }

    async fn client(&self, client: &Client, idx: usize) -> Result<Ledger> {
        let stream = self.options.seed ^ (idx as u64) << 32 ^ (self.name.len() as u64) << 56;
        let mut rng = StdRng::seed_from_u64(stream);
        let mut ledger = Ledger::default();
        for i in 0.. {
            if Instant::now() >= self.end {
                break;
            }
            let label = format!("{}-{idx}-{i}", self.name);
            let seen = match idx {
                _ if idx % GARBAGE_SHARE == 1 => raw::garbage(self.base, i + idx / GARBAGE_SHARE, &label).await?,
                _ if idx % SLOW_SHARE == 2 => raw::slow_reader(self.base, &label, &mut rng, self.end).await?,
                _ => self.job(client, &label, &mut rng, &mut ledger).await?,
            };
            ledger.add(label, seen);
        }
        Ok(ledger)
    }

    async fn job(&self, client: &Client, label: &str, rng: &mut StdRng, ledger: &mut Ledger) -> Result<Seen> {
        let task = Task::draw(rng);
        let mut answer = Answer::default();
        let mut seen = match tokio::time::timeout(REQUEST_LIMIT, ask(client, task, label, &mut answer)).await {
            Ok(seen) => seen?,
            Err(_) => Seen::Wrong(format!("not answered within {} s", REQUEST_LIMIT.as_secs())),
        };
        if let Seen::Whole { as_alone, .. } = &mut seen {
            let texts = self.alone.iter().find(|(route, _)| *route == task.route).map(|(_, texts)| texts);
            *as_alone = texts.is_some_and(|texts| texts[task.n] == answer.text);
            ledger.add_gaps(&answer.gaps_ms);
        }
        if matches!(seen, Seen::Refused(_)) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(REFUSED_PAUSE_MS))).await;
        }
        Ok(seen)
    }
}

/// Sends one request and reads as far as the client's patience goes.
async fn ask(client: &Client, task: Task, label: &str, answer: &mut Answer) -> Result<Seen> {
    let body = task.route.body(task.n, label);
    let sent = client.post(task.route.path(), &body).header("x-correlation-id", label).send();
    if let (false, Patience::LeavesAfter(n)) = (task.route.is_streamed(), task.patience) {
        let Ok(reply) = tokio::time::timeout(Duration::from_millis(n as u64), sent).await else {
            return Ok(Seen::Left { accepted: false });
        };
        return whole(reply.context("sending")?, answer).await;
    }
    let reply = sent.await.with_context(|| format!("POST {}", task.route.path()))?;
    if !reply.status().is_success() || !task.route.is_streamed() {
        return whole(reply, answer).await;
    }
    let flow = streamed(client, reply, task, answer).await?;
    Ok(match (flow, answer.error.take(), answer.has_ended) {
        (ControlFlow::Break(()), ..) => Seen::Left { accepted: true },
        (_, Some(code), false) if code == "CANCELLED" && matches!(task.patience, Patience::CancelsAfter(_)) => {
            Seen::Cancelled
        }
        (_, None, true) => match task.patience {
            Patience::CancelsAfter(n) if n <= answer.n_events => Seen::TooLate { n_tokens: answer.n_tokens },
            _ => Seen::Whole { n_tokens: answer.n_tokens, as_alone: false },
        },
        (_, error, ended) => Seen::Wrong(format!("{:?}: error {error:?}, ended: {ended}", task.route)),
    })
}

/// An answer that is no stream: all of it, or a refusal.
async fn whole(reply: reqwest::Response, answer: &mut Answer) -> Result<Seen> {
    let status = reply.status();
    let body: Value = reply.json().await.context("reading an answer")?;
    if status.is_success() {
        answer.take_openai(&body);
        return Ok(Seen::Whole { n_tokens: answer.n_tokens, as_alone: false });
    }
    let code = body["code"].as_str().or(body["error"]["code"].as_str());
    Ok(Seen::Refused(code.with_context(|| format!("{status} without a code: {body}"))?.to_uppercase()))
}

/// Reads a stream, cancels it or breaks it off when it is time.
async fn streamed(
    client: &Client,
    mut reply: reqwest::Response,
    task: Task,
    answer: &mut Answer,
) -> Result<ControlFlow<()>> {
    let mut parser = SseParser::default();
    let mut last_token = None::<Instant>;
    while let Some(bytes) = reply.chunk().await.context("a stream broke off")? {
        for event in parser.push(&bytes) {
            if answer.has_ended {
                bail!("an event after the last: {event:?}");
            }
            let n_tokens = answer.n_tokens;
            answer.take(&event)?;
            answer.n_events += 1;
            if answer.n_tokens > n_tokens && !answer.has_ended {
                let now = Instant::now();
                answer.gaps_ms.extend(last_token.map(|last| now.duration_since(last).as_secs_f32() * 1e3));
                last_token = Some(now);
            }
            match task.patience {
                Patience::LeavesAfter(n) if n == answer.n_events && !answer.has_ended => {
                    return Ok(ControlFlow::Break(()));
                }
                Patience::CancelsAfter(n) if n == answer.n_events => client.cancel(&answer.id).await?,
                _ => {}
            }
        }
    }
    ensure!(parser.is_between_events(), "a stream ended in the middle of an event");
    Ok(ControlFlow::Continue(()))
}

/// What has come of an answer so far.
#[derive(Debug, Default)]
struct Answer {
    /// For `POST /cancel`.
    id: String,
    text: String,
    /// Token events, or where the answer says so itself, what it says.
    n_tokens: u64,
    n_events: usize,
    gaps_ms: Vec<f32>,
    /// Its last event has come, and is no error.
    has_ended: bool,
    error: Option<String>,
}

impl Answer {
    fn take(&mut self, event: &SseEvent) -> Result<()> {
        if event.data == "[DONE]" {
            self.has_ended = self.error.is_none();
            return Ok(());
        }
        let data: Value =
            serde_json::from_str(&event.data).with_context(|| format!("no JSON in an event: {:?}", event.data))?;
        if event.name.is_empty() {
            self.take_openai(&data);
            return Ok(());
        }
        match event.name.as_str() {
            "started" => self.id = text_of(&data["job_id"]),
            "token" => {
                self.n_tokens += 1;
                self.text += &text_of(&data["t"]);
            }
            "metrics" => {}
            "end" => {
                let told = data["tokens_out"].as_u64();
                ensure!(told == Some(self.n_tokens), "{} token events, and {data}", self.n_tokens);
                self.has_ended = true;
            }
            "error" => self.error = data["code"].as_str().map(str::to_owned),
            other => bail!("an event that nobody knows: {other:?}"),
        }
        Ok(())
    }

    /// A chunk, or a whole answer.
    fn take_openai(&mut self, data: &Value) {
        if data["id"].is_string() {
            self.id = text_of(&data["id"]);
        }
        if let Some(code) = data["error"]["code"].as_str() {
            self.error = Some(code.to_uppercase());
        }
        let choice = &data["choices"][0];
        for text in [&choice["text"], &choice["delta"]["content"], &choice["message"]["content"]] {
            if let Some(text) = text.as_str().filter(|text| !text.is_empty()) {
                self.text += text;
                self.n_tokens += 1;
            }
        }
        // What is counted above leaves out tokens without a text of their own.
        if let Some(told) = data["usage"]["completion_tokens"].as_u64() {
            self.n_tokens = told;
        }
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(events: &[(&str, Value)]) -> Result<Answer> {
        let mut answer = Answer::default();
        for (name, data) in events {
            answer.take(&SseEvent { name: (*name).into(), data: data.to_string() })?;
        }
        Ok(answer)
    }

    #[test]
    fn counts_what_a_stream_brings_and_holds_it_against_what_it_says() {
        let token = ("token", json!({ "t": "a" }));
        let both = answer(&[token.clone(), token.clone(), ("end", json!({ "tokens_out": 2 }))]).unwrap();
        assert_eq!((both.text.as_str(), both.n_tokens, both.has_ended), ("aa", 2, true));
        assert!(answer(&[token, ("end", json!({ "tokens_out": 2 }))]).is_err());
        let chunk = |text: &str| ("", json!({ "id": "cmpl-1", "choices": [{ "text": text }], "usage": null }));
        let usage = ("", json!({ "choices": [], "usage": { "completion_tokens": 3 } }));
        let chunks = answer(&[chunk("a"), chunk(""), chunk("b"), usage]).unwrap();
        assert_eq!((chunks.id.as_str(), chunks.text.as_str(), chunks.n_tokens), ("cmpl-1", "ab", 3));
        let failed = answer(&[("", json!({ "error": { "code": "cancelled" } }))]).unwrap();
        assert_eq!((failed.error.as_deref(), failed.has_ended), (Some("CANCELLED"), false));
    }
}

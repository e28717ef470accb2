//! The heartbeat: tells an orchestrator again and again what this worker is, and how it is doing.
//!
//! A beat goes to the callback URL, verbatim as the ready callback does, and is told from it by `"type": "heartbeat"`. It
//! repeats everything that the ready callback said, so an orchestrator that was started anew knows its workers after one
//! interval. It may come and go as it likes: a beat that is not taken is not repeated, nothing is stored for later, and the
//! log has one line when it goes and one when it comes back.
//!
//! [`Beats`] decides when a beat is due and what the log says; it knows neither sockets nor clocks. [`Heartbeat`] is the
//! task that does it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use worker_http::{AppState, Phase, Vitals};

use crate::callback::{self, Ready};

/// The longest that a beat may take, connecting included, however long the interval is.
const LONGEST_REQUEST: Duration = Duration::from_secs(5);
/// A worker that ends gives its last beat this long, beyond the drain.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What an orchestrator needs to know to give work, or not to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Takes work and has none.
    Ready,
    /// Takes work and has some.
    Busy,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Of no further use.
    Failed,
}

impl State {
    fn of(vitals: &Vitals) -> Self {
        match vitals.phase {
            Phase::Failed(_) => Self::Failed,
            Phase::Draining => Self::Draining,
            Phase::Loading(_) | Phase::Ready if vitals.active_jobs + vitals.queued_jobs > 0 => Self::Busy,
            Phase::Loading(_) | Phase::Ready => Self::Ready,
        }
    }

    /// Whether an orchestrator that learns of it late loses work.
    fn is_urgent(self) -> bool {
        matches!(self, Self::Draining | Self::Failed)
    }
}

/// The body of a beat.
#[derive(Debug, Serialize)]
struct Beat<'a> {
    /// Always `heartbeat`; the ready callback has no such field.
    r#type: &'static str,
    state: State,
    active_jobs: usize,
    queued_jobs: usize,
    uptime_seconds: u64,
    /// When failed, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// As in the ready callback, with the memory held now.
    #[serde(flatten)]
    ready: &'a Ready,
}

/// When a beat is due, and what is said of those that fail. Times count from any moment, the same for all calls.
#[derive(Debug)]
struct Beats {
    interval: Duration,
    /// When the next regular one is due.
    next: Duration,
    in_flight: bool,
    /// What the last one said.
    told: Option<State>,
    /// The beats that were not taken since the last that was.
    n_missed: u64,
}

/// What there is to tell the log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// The orchestrator does not take beats any more, for this reason.
    Gone(String),
    /// It takes them again, after so many that it did not.
    Back(u64),
}

impl Beats {
    /// The first is due one interval after `now`, when the orchestrator has just been called back.
    fn new(interval: Duration, now: Duration) -> Self {
        Self { interval, next: now + interval, in_flight: false, told: None, n_missed: 0 }
    }

    /// Whether to post now, instead of one that may be in flight. Ready and busy wait for their time; draining and failed
    /// are told at once. The caller must post if so.
    fn is_due(&mut self, now: Duration, state: State) -> bool {
        let is_news = state.is_urgent() && self.told != Some(state);
        let is_time = now >= self.next && !self.in_flight;
        if is_news || is_time {
            // From now, not from when it was due: a worker that was held up does not catch up.
            self.next = now + self.interval;
            self.in_flight = true;
            self.told = Some(state);
        }
        is_news || is_time
    }

    /// How the last one ended.
    fn ended(&mut self, result: Result<(), String>) -> Option<Change> {
        self.in_flight = false;
        match result {
            Ok(()) => match std::mem::take(&mut self.n_missed) {
                0 => None,
                n => Some(Change::Back(n)),
            },
            Err(reason) => {
                self.n_missed += 1;
                (self.n_missed == 1).then_some(Change::Gone(reason))
            }
        }
    }

    /// A beat ends before the next is due.
    fn request_timeout(&self) -> Duration {
        LONGEST_REQUEST.min(self.interval * 4 / 5)
    }
}

/// The task that posts.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    look: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Heartbeat {
    /// Posts to `url` every `interval` how `state` is, and what `ready` said.
    ///
    /// # Errors
    /// When no HTTPS client can be made on this machine.
    pub(crate) fn start(url: &Url, interval: Duration, ready: Ready, state: AppState) -> Result<Self, reqwest::Error> {
        let (look, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let beats = Beats::new(interval, Duration::ZERO);
        let client = callback::client(url, beats.request_timeout())?;
        let heart = Heart { url: url.clone(), client, ready, state, look: Arc::clone(&look), stop: stop.clone() };
        Ok(Self { look, stop, task: tokio::spawn(heart.run(beats)) })
    }

    /// Draining and failed are told now, not at the next beat.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    /// Ends it, once it has told the last news or had time to.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        if tokio::time::timeout(LAST_WORD, self.task).await.is_err() {
            abort.abort();
        }
    }
}

struct Heart {
    url: Url,
    client: Client,
    ready: Ready,
    state: AppState,
    look: Arc<Notify>,
    stop: CancellationToken,
}

impl Heart {
    async fn run(mut self, mut beats: Beats) {
        let began = Instant::now();
        let mut in_flight = None;
        loop {
            let vitals = self.state.vitals();
            let state = State::of(&vitals);
            if beats.is_due(began.elapsed(), state) {
                in_flight = Some(Box::pin(self.post(state, vitals)));
            }
            let Some(post) = &mut in_flight else {
                if self.stop.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = self.look.notified() => {}
                    () = self.stop.cancelled() => {}
                    () = tokio::time::sleep_until(began + beats.next) => {}
                }
                continue;
            };
            tokio::select! {
                result = post => {
                    in_flight = None;
                    self.log(beats.ended(result));
                }
                () = self.look.notified() => {}
            }
        }
    }

    fn post(&mut self, state: State, vitals: Vitals) -> impl Future<Output = Result<(), String>> + use<> {
        (self.ready.memory_bytes, self.ready.vram_bytes) = (vitals.memory_bytes, vitals.vram_bytes);
        let beat = Beat {
            r#type: "heartbeat",
            state,
            active_jobs: vitals.active_jobs,
            queued_jobs: vitals.queued_jobs,
            uptime_seconds: vitals.uptime.as_secs(),
            message: match vitals.phase {
                Phase::Failed(reason) => Some(reason),
                _ => None,
            },
            ready: &self.ready,
        };
        let sent = self.client.post(self.url.clone()).json(&beat).send();
        async move {
            let response = sent.await.map_err(|e| callback::innermost(&e))?;
            let status = response.status();
            if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
        }
    }

    fn log(&self, change: Option<Change>) {
        let url = callback::shown(&self.url);
        match change {
            None => {}
            Some(Change::Gone(reason)) => tracing::warn!("heartbeat to {url}: {reason}; working on without it"),
            Some(Change::Back(n)) => tracing::info!("heartbeat to {url}: taken again, after {n} that were not"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One that has been called back at 100 s and beats every 10 s.
    fn beats() -> Beats {
        Beats::new(10 * SECOND, 100 * SECOND)
    }

    /// Whether one is due at each of these seconds; each that is ends at once.
    fn due(beats: &mut Beats, state: State, seconds: &[u32]) -> Vec<u32> {
        let is_due = |s: &u32| {
            let is_due = beats.is_due(*s * SECOND, state);
            if is_due {
                beats.ended(Ok(()));
            }
            is_due
        };
        seconds.iter().copied().filter(is_due).collect()
    }

    #[test]
    fn ready_and_busy_wait_for_their_time() {
        let mut beats = beats();
        assert_eq!(due(&mut beats, State::Ready, &[100, 101, 109, 110, 111]), [110]);
        assert_eq!(due(&mut beats, State::Busy, &[111, 119, 120, 121]), [120]);
    }

    #[test]
    fn draining_and_failed_are_told_at_once_and_once() {
        let mut beats = beats();
        assert_eq!(due(&mut beats, State::Draining, &[101, 102, 110, 111, 112]), [101, 111]);
        assert_eq!(due(&mut beats, State::Failed, &[112, 113, 121, 122]), [112, 122]);
    }

    #[test]
    fn one_is_in_flight_at_a_time_and_only_news_take_its_place() {
        let mut beats = beats();
        assert!(beats.is_due(110 * SECOND, State::Ready));
        assert!(!beats.is_due(125 * SECOND, State::Busy));
        assert!(beats.is_due(126 * SECOND, State::Draining));
        assert!(!beats.is_due(140 * SECOND, State::Draining));
        assert_eq!(beats.ended(Ok(())), None);
        assert!(beats.is_due(141 * SECOND, State::Draining));
    }

    #[test]
    fn a_worker_that_was_held_up_does_not_catch_up() {
        assert_eq!(due(&mut beats(), State::Ready, &[500, 501, 509, 510]), [500, 510]);
    }

    #[test]
    fn an_orchestrator_that_goes_and_comes_is_logged_once_each_way() {
        let mut beats = beats();
        let away = |reason: &str| Err(reason.to_owned());
        assert_eq!(beats.ended(Ok(())), None);
        assert_eq!(beats.ended(away("refused")), Some(Change::Gone("refused".into())));
        assert_eq!(beats.ended(away("answered 404")), None);
        assert_eq!(beats.ended(away("refused")), None);
        assert_eq!(beats.ended(Ok(())), Some(Change::Back(3)));
        assert_eq!(beats.ended(Ok(())), None);
        assert_eq!(beats.ended(away("again")), Some(Change::Gone("again".into())));
    }

    #[test]
    fn a_beat_ends_before_the_next_is_due() {
        let timeout = |seconds| Beats::new(seconds * SECOND, Duration::ZERO).request_timeout();
        assert_eq!([1, 5, 3600].map(timeout), [SECOND * 4 / 5, 4 * SECOND, 5 * SECOND]);
    }

    #[test]
    fn busy_means_that_somebody_runs_or_waits() {
        let state = |phase, active_jobs, queued_jobs| {
            State::of(&Vitals { phase, active_jobs, queued_jobs, memory_bytes: 0, vram_bytes: 0, uptime: SECOND })
        };
        assert_eq!(state(Phase::Ready, 0, 0), State::Ready);
        assert_eq!(state(Phase::Ready, 1, 0), State::Busy);
        assert_eq!(state(Phase::Ready, 0, 1), State::Busy);
        assert_eq!(state(Phase::Draining, 1, 0), State::Draining);
        assert_eq!(state(Phase::Failed("lost".into()), 1, 0), State::Failed);
    }

    #[test]
    fn a_beat_says_what_the_ready_callback_said_and_how_it_is() {
        let ready = Ready {
            worker_id: "w".into(),
            model_ref: "model.gguf".into(),
            uri: "http://127.0.0.1:8080".into(),
            memory_bytes: 123,
            vram_bytes: 45,
            memory_architecture: "vram-only",
            worker_type: "bespoke-cuda",
            capabilities: vec!["text-gen"],
        };
        let (state, message) = (State::Failed, Some("device lost".to_owned()));
        let beat = Beat {
            r#type: "heartbeat",
            state,
            active_jobs: 1,
            queued_jobs: 2,
            uptime_seconds: 3,
            message,
            ready: &ready,
        };
        insta::assert_snapshot!(serde_json::to_string(&beat).unwrap(), @r#"{"type":"heartbeat","state":"failed","active_jobs":1,"queued_jobs":2,"uptime_seconds":3,"message":"device lost","worker_id":"w","model_ref":"model.gguf","uri":"http://127.0.0.1:8080","memory_bytes":123,"vram_bytes":45,"memory_architecture":"vram-only","worker_type":"bespoke-cuda","capabilities":["text-gen"]}"#);
    }
}

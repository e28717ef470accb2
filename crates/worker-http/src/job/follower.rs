//! One job from acceptance to its terminal event.
//!
//! A task of its own follows the job at the engine's pace, not at the reader's: a stop string or a cancellation ends the
//! job at once even where the client has stopped reading. What the client has not read yet waits in a channel, which
//! `max_tokens` bounds. When the client is gone the channel closes and the task drops the
//! engine's job, which frees it within one step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{EndReason, Event as EngineEvent, Request, Sampling, Timings};
use tokenizer::{EncodeOptions, Tokenizer};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::answer::AnswerText;
use crate::error::{ApiError, ErrorCode};
use crate::event::{End, Event, JobMetrics, Started, StopReason, TokenEvent};
use crate::live::LiveJob;
use crate::state::{AppState, SHUTTING_DOWN};

/// The most tokens one job may generate.
pub const MAX_TOKENS: u64 = 2048;

/// The most events that one job can cause, and so wait for a slow reader: a token and at most one `metrics` for each id,
/// `started`, and the terminal event. About 100 bytes each, 3 KB with 20 log-probabilities.
const fn max_events(max_tokens: usize) -> usize {
    2 * max_tokens + 2
}

/// Time between two `metrics` events of a job. An answer that takes less has none.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Prompts longer than this are encoded off the threads that serve connections. At 5 MB/s and more, shorter ones take
/// under a millisecond.
const INLINE_ENCODE_BYTES: usize = 4096;

/// A seed for a request that names none: 53 random bits, so that every JSON reader, JavaScript's too, gives back the very
/// seed that was reported.
pub fn drawn_seed() -> u64 {
    rand::random::<u64>() >> 11
}

/// A job as a client asks for it, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobRequest {
    pub(crate) job_id: String,
    pub(crate) prompt: String,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) n_logprobs: Option<usize>,
}

/// Accepts a job and starts it. Its events come out of the channel; dropping the receiver cancels it.
///
/// # Errors
/// The worker is not ready, the name is taken, the prompt does not fit, the queue is full, or the job was cancelled
/// while its prompt was encoded.
pub(crate) async fn start(state: &AppState, request: JobRequest) -> Result<mpsc::Receiver<Event>, ApiError> {
    let received = Instant::now();
    let served = state.ready()?;
    let Some(live) = state.jobs().begin(&request.job_id) else {
        let message = format!("job_id: expected a name that no live job has, got {:?}", request.job_id);
        return Err(ApiError::new(ErrorCode::DuplicateJob, message));
    };
    let prompt = tokio::select! {
        prompt = encode(state, &served.tokenizer, request.prompt) => prompt?,
        () = live.cancelled() => return Err(cancelled()),
    };
    let n_prompt = prompt.len();
    let seed = request.seed.unwrap_or_else(drawn_seed);
    let job = served.engine.submit(Request {
        prompt,
        max_tokens: request.max_tokens,
        end_tokens: served.tokenizer.end_tokens().into(),
        sampling: request.sampling,
        logit_bias: Vec::new(),
        constraint: None,
        seed,
        n_logprobs: request.n_logprobs,
    })?;

    let (events, receiver) = mpsc::channel(max_events(request.max_tokens));
    let follower = Follower {
        state: state.clone(),
        job,
        live,
        answer: AnswerText::new(&served.tokenizer, &request.stop),
        tokenizer: Arc::clone(&served.tokenizer),
        stop: request.stop,
        events,
        clock: Clock::new(received),
        n_prompt,
        prompt_counted: false,
    };
    follower.send(Event::Started(Started {
        job_id: request.job_id,
        model: state.settings().model.clone(),
        started_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        seed,
        prompt_tokens: n_prompt,
    }));
    tokio::spawn(follower.run().in_current_span());
    Ok(receiver)
}

async fn encode(state: &AppState, tokenizer: &Arc<Tokenizer>, prompt: String) -> Result<Arc<[u32]>, ApiError> {
    // The contract: the prompt is raw, special tokens in it count as such, and BOS is added where the model wants it.
    let options = EncodeOptions { parse_special: true, add_special: true };
    if prompt.len() <= INLINE_ENCODE_BYTES {
        return Ok(tokenizer.encode(&prompt, options).into());
    }
    let lost = || ApiError::new(ErrorCode::Internal, "the prompt could not be encoded");
    let permit = state.encoders().acquire_owned().await.map_err(|_| lost())?;
    let tokenizer = Arc::clone(tokenizer);
    let encoded = tokio::task::spawn_blocking(move || {
        // Held until the work is done, also where the client has left meanwhile.
        let _permit = permit;
        tokenizer.encode(&prompt, options).into()
    });
    encoded.await.map_err(|_| lost())
}

fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the job was cancelled")
}

/// How a job ended.
enum Outcome {
    End {
        reason: StopReason,
        stop: Option<usize>,
        timings: Option<Timings>,
    },
    Error(ApiError),
    /// The client went away; nobody is left to be told.
    Disconnected,
}

/// Follows a job: engine events in, client events out.
struct Follower {
    state: AppState,
    job: engine::Job,
    live: LiveJob,
    answer: AnswerText,
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    events: mpsc::Sender<Event>,
    clock: Clock,
    n_prompt: usize,
    prompt_counted: bool,
}

impl Follower {
    async fn run(mut self) {
        let deadline = self.state.settings().inference_timeout.map(|limit| self.clock.received + limit);
        let timeout = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timeout);
        let outcome = loop {
            let event = tokio::select! {
                biased;
                () = self.live.cancelled() => break Outcome::Error(cancelled()),
                () = self.events.closed() => break Outcome::Disconnected,
                () = self.state.cut_off_requested() => {
                    break Outcome::Error(ApiError::new(ErrorCode::NotReady, SHUTTING_DOWN));
                }
                () = &mut timeout => {
                    let limit = self.state.settings().inference_timeout.unwrap_or_default().as_secs_f64();
                    let message = format!("the job took longer than the {limit} s that this worker allows");
                    break Outcome::Error(ApiError::new(ErrorCode::InferenceTimeout, message));
                }
                event = self.job.recv() => event,
            };
            if let Some(outcome) = self.on_event(event) {
                break outcome;
            }
        };
        self.end(outcome);
    }

    /// Passes one engine event on; gives the outcome when it is the last.
    fn on_event(&mut self, event: Option<EngineEvent>) -> Option<Outcome> {
        match event {
            Some(EngineEvent::Admitted { .. }) => self.clock.admitted(),
            Some(EngineEvent::Token(token)) => {
                self.count_prompt();
                self.clock.token();
                self.state.metrics().generation_tokens.inc();
                let mut due = Vec::new();
                let stop = self.answer.push(&self.tokenizer, token, &mut due);
                self.send_tokens(due);
                if stop.is_some() {
                    return Some(Outcome::End { reason: StopReason::StopSequence, stop, timings: None });
                }
                self.send_metrics_if_due();
            }
            Some(EngineEvent::Finished(finished)) => {
                self.count_prompt();
                let reason = match finished.reason {
                    EndReason::MaxTokens => StopReason::MaxTokens,
                    EndReason::EndToken(_) => StopReason::Eos,
                };
                return Some(Outcome::End { reason, stop: None, timings: Some(finished.timings) });
            }
            Some(EngineEvent::Failed(failure)) => return Some(Outcome::Error(failure.into())),
            None => {
                let error = ApiError::new(ErrorCode::Internal, "the engine dropped the job");
                return Some(Outcome::Error(error));
            }
        }
        None
    }

    /// Sends the terminal event, with the counters moved and the job's name free before the client can see it.
    fn end(mut self, outcome: Outcome) {
        drop(self.job);
        let mut due = Vec::new();
        let late_stop = self.answer.finish(&mut due);
        for event in due {
            // A client that is gone reads nothing; nothing depends on it.
            let _ = self.events.try_send(Event::Token(event));
        }
        let mut timings = self.clock.timings();
        let tokens_out = self.answer.n_tokens();
        let (label, terminal) = match outcome {
            Outcome::End { reason, stop, timings: measured } => {
                timings = measured.unwrap_or(timings);
                let stop = stop.or(late_stop).map(|stop| self.stop.swap_remove(stop));
                let reason = if stop.is_some() { StopReason::StopSequence } else { reason };
                let label = match reason {
                    StopReason::MaxTokens => "max_tokens",
                    StopReason::Eos => "eos",
                    StopReason::StopSequence => "stop_sequence",
                };
                let end = End {
                    tokens_out,
                    decode_time_ms: timings.decode.as_millis() as u64,
                    stop_reason: reason,
                    stop_sequence_matched: stop,
                };
                (label, Some(Event::End(end)))
            }
            Outcome::Error(error) => (error.code.label(), Some(Event::Error(error.into()))),
            Outcome::Disconnected => ("disconnected", None),
        };
        tracing::info!(
            job_id = self.live.job_id(),
            prompt_tokens = self.n_prompt,
            tokens_out,
            queue_ms = timings.queued.as_millis() as u64,
            prefill_ms = timings.prefill.as_millis() as u64,
            decode_ms = timings.decode.as_millis() as u64,
            tokens_per_sec = tokens_per_sec(tokens_out, timings.decode),
            outcome = label,
            "job done"
        );
        drop(self.live);
        if let Some(terminal) = terminal {
            let _ = self.events.try_send(terminal);
        }
    }

    /// The prompt counts once it has been read, which its first token shows.
    fn count_prompt(&mut self) {
        if !self.prompt_counted {
            self.prompt_counted = true;
            self.state.metrics().prompt_tokens.inc_by(self.n_prompt as u64);
        }
    }

    fn send(&self, event: Event) {
        // The channel has room for all that one job can cause. A client that is gone shows as a closed channel in `run`.
        let _ = self.events.try_send(event);
    }

    fn send_tokens(&self, due: Vec<TokenEvent>) {
        due.into_iter().for_each(|event| self.send(Event::Token(event)));
    }

    fn send_metrics_if_due(&mut self) {
        if !self.clock.metrics_due() {
            return;
        }
        let memory = self.state.snapshot().map(|snapshot| snapshot.memory).unwrap_or_default();
        let tokens_out = self.answer.n_tokens();
        self.send(Event::Metrics(JobMetrics {
            tokens_out,
            tokens_per_sec: tokens_per_sec(tokens_out, self.clock.timings().decode),
            vram_bytes: memory.vram_bytes,
            memory_bytes: memory.total_bytes(),
        }));
    }
}

/// Tokens a second after the first, rounded to a tenth; 0 when there is no second one.
fn tokens_per_sec(n_tokens: usize, decode: Duration) -> f64 {
    if n_tokens < 2 || decode.is_zero() {
        return 0.0;
    }
    ((n_tokens - 1) as f64 / decode.as_secs_f64() * 10.0).round() / 10.0
}

/// When a job's milestones were seen from here: the engine's own figures come only with an answer that ends by itself.
struct Clock {
    received: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    last_metrics: Option<Instant>,
}

impl Clock {
    fn new(received: Instant) -> Self {
        Self { received, admitted: None, first_token: None, last_token: None, last_metrics: None }
    }

    fn admitted(&mut self) {
        self.admitted = Some(Instant::now());
    }

    fn token(&mut self) {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Whether [`METRICS_INTERVAL`] has passed since the last time this was so, or since the first token.
    fn metrics_due(&mut self) -> bool {
        let now = Instant::now();
        let since = self.last_metrics.or(self.first_token).unwrap_or(now);
        let due = now.duration_since(since) >= METRICS_INTERVAL;
        if due {
            self.last_metrics = Some(now);
        }
        due
    }

    /// What has passed so far; a stage that is not over ends now.
    fn timings(&self) -> Timings {
        let now = Instant::now();
        let queued = self.admitted.unwrap_or(now) - self.received;
        let prefill = self.admitted.map_or(Duration::ZERO, |admitted| self.first_token.unwrap_or(now) - admitted);
        let decode = match (self.first_token, self.last_token) {
            (Some(first), Some(last)) => last - first,
            _ => Duration::ZERO,
        };
        Timings { queued, prefill, decode }
    }
}

//! One answer from acceptance to its terminal event.
//!
//! A task of its own follows the answer at the engine's pace, not at the reader's: a stop string or a cancellation ends it
//! at once even where the client has stopped reading. What the client has not read yet waits in a channel, which
//! `max_tokens` bounds. When the client is gone the channel closes and the task drops the engine's job, which frees it
//! within one step.

use std::sync::Arc;
use std::time::Instant;

use engine::{EndReason, Event as EngineEvent, Timings};
use tokenizer::Tokenizer;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::clock::{Clock, tokens_per_sec};
use super::{Generation, cancelled};
use crate::answer::AnswerText;
use crate::error::{ApiError, ErrorCode};
use crate::event::{End, Event, JobMetrics, StopReason, TokenEvent};
use crate::live::LiveJob;
use crate::state::{AppState, SHUTTING_DOWN};

/// How an answer ended.
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

/// Follows an answer: engine events in, client events out.
pub(super) struct Follower {
    state: AppState,
    job: engine::Job,
    /// Shared by all answers of the job: the name is free when the last has ended.
    live: Arc<LiveJob>,
    answer: AnswerText,
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    reports_metrics: bool,
    events: mpsc::Sender<Event>,
    clock: Clock,
    /// Where the job has several answers, which one.
    choice: Option<usize>,
    n_prompt: usize,
    n_cached: usize,
    /// Of several answers to one prompt, the first counts its tokens.
    prompt_counted: bool,
}

impl Follower {
    pub(super) fn new(
        state: &AppState,
        tokenizer: &Arc<Tokenizer>,
        generation: &Generation,
        job: engine::Job,
        live: Arc<LiveJob>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            state: state.clone(),
            job,
            live,
            answer: AnswerText::new(tokenizer, &generation.stop),
            tokenizer: Arc::clone(tokenizer),
            stop: generation.stop.clone(),
            reports_metrics: generation.reports_metrics,
            events,
            clock: Clock::new(Instant::now()),
            choice: None,
            n_prompt: 0,
            n_cached: 0,
            prompt_counted: false,
        }
    }

    /// Its time counts from here.
    pub(super) fn begun(self, received: Instant) -> Self {
        Self { clock: Clock::new(received), ..self }
    }

    /// Which of the job's answers it is, where there are several.
    pub(super) fn of_choice(self, choice: Option<usize>) -> Self {
        Self { choice, ..self }
    }

    /// How long its prompt is, and whether this answer is the one that counts it.
    pub(super) fn after_prompt(self, n_prompt: usize, counts_it: bool) -> Self {
        Self { n_prompt, prompt_counted: !counts_it, ..self }
    }

    pub(super) fn spawn(self) {
        tokio::spawn(self.run().in_current_span());
    }

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
            Some(EngineEvent::Admitted { n_cached }) => {
                self.n_cached = n_cached;
                self.clock.admitted();
            }
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
                self.n_cached = finished.n_cached;
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
                    n_cached: self.n_cached,
                };
                (label, Some(Event::End(end)))
            }
            Outcome::Error(error) => (error.code.label(), Some(Event::Error(error.into()))),
            Outcome::Disconnected => ("disconnected", None),
        };
        tracing::info!(
            job_id = self.live.job_id(),
            choice = self.choice,
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
        if !self.reports_metrics || !self.clock.metrics_due() {
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

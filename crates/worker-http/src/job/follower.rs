//! One answer from acceptance to its terminal event.
//!
//! A task of its own follows the answer at the engine's pace, not at the reader's: a stop string or a cancellation ends it
//! at once even where the client has stopped reading. What the client has not read yet waits in a channel, which
//! `max_tokens` bounds, and the prompt's length where that is scored. When the client is gone the channel closes and the task
//! drops the engine's job, which frees it within one step.

use std::sync::Arc;
use std::time::Instant;

use engine::{EndReason, Event as EngineEvent, TokenLogprobs};
use tokenizer::Tokenizer;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::clock::{Clock, Gap, tokens_per_sec};
use super::record::{Ended, Ending, Record, reason_name};
use super::{Generation, PROMPTS, cancelled};
use crate::answer::AnswerText;
use crate::error::{ApiError, ErrorCode};
use crate::event::{End, Event, JobMetrics, StopReason, TokenEvent};
use crate::metrics::AnswerFigures;
use crate::state::AppState;

/// How an answer ended.
enum Outcome {
    End {
        reason: StopReason,
        stop: Option<usize>,
    },
    Error(ApiError),
    /// The client went away; nobody is left to be told.
    Disconnected,
}

/// Follows an answer: engine events in, client events out.
pub(super) struct Follower {
    state: AppState,
    taken: Taken,
    /// Shared by all answers of the job: it is counted, and its name free, when the last has ended.
    record: Arc<Record>,
    answer: AnswerText,
    tokenizer: Arc<Tokenizer>,
    stop: Vec<String>,
    reports_metrics: bool,
    clock: Clock,
    n_cached: usize,
    end_token: Option<(u32, TokenLogprobs)>,
    prompt_counted: bool,
    /// The answer, where it is to be logged.
    logged: Option<String>,
}

/// One of a job's answers, as the engine has taken it.
pub(super) struct Taken {
    pub(super) job: engine::Job,
    pub(super) submitted: Instant,
    /// Where its events go.
    pub(super) events: mpsc::Sender<Event>,
    /// Which of the job's answers it is.
    pub(super) choice: usize,
    /// The most tokens that it may have.
    pub(super) max_tokens: usize,
    /// Tokens of its prompt.
    pub(super) n_prompt: usize,
    /// Of several answers to one prompt, the first has its length among its figures.
    pub(super) counts_prompt: bool,
}

impl Follower {
    /// Follows `taken`; its time counts from the request.
    pub(super) fn new(
        state: &AppState,
        tokenizer: &Arc<Tokenizer>,
        generation: &Generation,
        record: Arc<Record>,
        taken: Taken,
    ) -> Self {
        Self {
            state: state.clone(),
            answer: AnswerText::new(tokenizer, &generation.stop, &generation.shown),
            tokenizer: Arc::clone(tokenizer),
            stop: generation.stop.clone(),
            reports_metrics: generation.reports_metrics,
            clock: Clock::new(record.received.at(), taken.submitted),
            record,
            taken,
            n_cached: 0,
            end_token: None,
            prompt_counted: false,
            logged: state.settings().log_prompts.then(String::new),
        }
    }

    pub(super) fn spawn(self) {
        tokio::spawn(self.run().in_current_span());
    }

    async fn run(mut self) {
        let state = self.state.clone();
        let over = self.record.received.over(&state);
        tokio::pin!(over);
        let outcome = loop {
            let event = tokio::select! {
                biased;
                () = self.record.live.cancelled() => break Outcome::Error(cancelled()),
                () = self.taken.events.closed() => break Outcome::Disconnected,
                error = &mut over => break Outcome::Error(error),
                event = self.taken.job.recv() => event,
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
            Some(EngineEvent::PromptLogprobs(logprobs)) => self.send(Event::PromptLogprobs(logprobs)),
            Some(EngineEvent::Token(token)) => {
                self.count_prompt();
                let metrics = self.state.metrics();
                match self.clock.token() {
                    Gap::BeforeFirst(time) => metrics.first_token(time),
                    Gap::BetweenTokens(time) => metrics.next_token(time),
                }
                let mut due = Vec::new();
                let stop = self.answer.push(&self.tokenizer, token, &mut due);
                self.send_tokens(due);
                if stop.is_some() {
                    return Some(Outcome::End { reason: StopReason::StopSequence, stop });
                }
                self.send_metrics_if_due();
            }
            Some(EngineEvent::Finished(finished)) => {
                self.count_prompt();
                self.n_cached = finished.n_cached;
                let reason = match finished.reason {
                    EndReason::MaxTokens => StopReason::MaxTokens,
                    EndReason::EndToken(id) => {
                        self.end_token = finished.end_logprobs.map(|logprobs| (id, logprobs));
                        StopReason::Eos
                    }
                };
                return Some(Outcome::End { reason, stop: None });
            }
            Some(EngineEvent::Failed(failure)) => return Some(Outcome::Error(failure.into())),
            None => {
                let error = ApiError::new(ErrorCode::Internal, "the engine dropped the job");
                return Some(Outcome::Error(error));
            }
        }
        None
    }

    /// Sends the terminal event, with everything counted and logged, and the job's name free, before the client can see it.
    fn end(mut self, outcome: Outcome) {
        let Taken { job, events, choice, max_tokens, n_prompt, counts_prompt, .. } = self.taken;
        // The engine is to know at once.
        drop(job);
        let mut due = Vec::new();
        let late_stop = self.answer.finish(&mut due);
        for event in due {
            self.logged.iter_mut().for_each(|logged| logged.push_str(&event.t));
            // A client that is gone reads nothing; nothing depends on it.
            let _ = events.try_send(Event::Token(event));
        }
        let timings = self.clock.timings();
        let n_generated = self.answer.n_tokens();
        let (ending, terminal) = match outcome {
            Outcome::End { reason, stop } => {
                let stop = stop.or(late_stop).map(|stop| self.stop.swap_remove(stop));
                let reason = if stop.is_some() { StopReason::StopSequence } else { reason };
                let end = End {
                    tokens_out: n_generated,
                    decode_time_ms: timings.decode.as_millis() as u64,
                    stop_reason: reason,
                    stop_sequence_matched: stop,
                    n_cached: self.n_cached,
                    end_token: self.end_token,
                };
                (Ending::Complete(reason), Some(Event::End(end)))
            }
            Outcome::Error(error) => (Ending::Error(error.clone()), Some(Event::Error(error.into()))),
            Outcome::Disconnected => (Ending::Left, None),
        };
        let figures = AnswerFigures {
            n_prompt: counts_prompt.then_some(n_prompt),
            n_computed: n_prompt.saturating_sub(self.n_cached),
            n_generated,
            max_tokens,
            total: self.clock.received.elapsed(),
            timings,
        };
        let is_complete = matches!(ending, Ending::Complete(_));
        self.state.metrics().answer_done(ending.finish(), is_complete.then_some(&figures));
        if let (Ending::Complete(reason), true) = (&ending, self.record.has_several()) {
            let stop_reason = reason_name(*reason);
            tracing::debug!(choice, tokens_out = n_generated, stop_reason, "answer done");
        }
        if let Some(answer) = self.logged {
            tracing::debug!(target: PROMPTS, choice, answer, "answer");
        }
        let n_cached = if counts_prompt { self.n_cached } else { 0 };
        let first_token = self.clock.before_first_token();
        self.record.answer_ended(Ended { ending, n_generated, n_cached, timings, first_token });
        drop(self.record);
        if let Some(terminal) = terminal {
            let _ = events.try_send(terminal);
        }
    }

    /// The prompt counts once it has been read, which the first token of any of its answers shows.
    fn count_prompt(&mut self) {
        if !std::mem::replace(&mut self.prompt_counted, true) && self.record.is_first_to_read(self.taken.choice) {
            self.state.metrics().prompt_read(self.taken.n_prompt);
        }
    }

    fn send(&self, event: Event) {
        // The channel has room for all that one job can cause. A client that is gone shows as a closed channel in `run`.
        let _ = self.taken.events.try_send(event);
    }

    fn send_tokens(&mut self, due: Vec<TokenEvent>) {
        for event in due {
            self.logged.iter_mut().for_each(|logged| logged.push_str(&event.t));
            self.send(Event::Token(event));
        }
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

//! Jobs: what a client asks for, from acceptance to the terminal event of each answer.
//!
//! A job has one prompt or several and `n` answers to each; most have one of one. It is accepted whole or refused whole,
//! has one name, and ends as a whole when that is cancelled or its client goes away. Every answer is followed by a task of
//! its own (`follower.rs`).

mod clock;
mod follower;
mod prepare;
mod prompt;
mod received;
mod record;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use engine::Sampling;
use structured::Compiled;
use tokio::sync::mpsc;

use crate::account;
use crate::error::{ApiError, ErrorCode};
use crate::event::Event;
use crate::state::{AppState, Served};
use follower::{Follower, Taken};
use prepare::Prepared;
pub(crate) use prompt::{Prompt, on_encoder};
pub(crate) use received::Received;
use record::Record;

/// The most tokens that one job of `POST /execute` may generate.
pub const MAX_TOKENS: u64 = 2048;

/// What lines with prompts and answers go by in a log filter; they are written at `debug`, and only where
/// [`Settings::log_prompts`](crate::Settings::log_prompts) is set.
pub const PROMPTS: &str = "worker_http::prompts";

/// The most log-probabilities of prompts' tokens that one job may ask for, those of alternatives among them: a whole answer
/// holds all of them, some 50 bytes of JSON each. Enough for 64 prompts of 4,096 tokens with one alternative.
const MAX_PROMPT_LOGPROBS: usize = 1 << 19;

/// The most events that one answer can cause, and so wait for a slow reader: a token and at most one `metrics` for each
/// id, one for each token of a prompt that is scored, and the terminal event. About 100 bytes each, 3 KB with 20
/// log-probabilities.
const fn max_events(max_tokens: usize, n_scored: usize) -> usize {
    2 * max_tokens + n_scored + 1
}

/// A seed for a request that names none: 53 random bits, so that every JSON reader, JavaScript's too, gives back the very
/// seed that was reported.
pub fn drawn_seed() -> u64 {
    rand::random::<u64>() >> 11
}

/// A job as a client asks for it, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobRequest {
    /// Its name, for `POST /cancel`.
    pub(crate) job_id: String,
    /// At least one.
    pub(crate) prompts: Vec<Prompt>,
    /// Answers to each prompt; at least 1.
    pub(crate) n: usize,
    /// How each answer is made.
    pub(crate) generation: Generation,
}

/// How an answer is made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Generation {
    /// `None`: as many as the context leaves, which caps any number.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    /// Each token once.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) stop: Vec<String>,
    /// `None`: one is drawn for each prompt.
    pub(crate) seed: Option<u64>,
    pub(crate) n_logprobs: Option<usize>,
    /// Whether the prompts' tokens have log-probabilities too, and of how many alternatives.
    pub(crate) n_prompt_logprobs: Option<usize>,
    /// End tokens are tokens like any other.
    pub(crate) ignore_eos: bool,
    /// Control tokens that are written out in the answer's text.
    pub(crate) shown: Vec<u32>,
    /// What the answer may be made of; needs end tokens.
    pub(crate) constraint: Option<Compiled>,
    /// Whether `Metrics` events are wanted.
    pub(crate) reports_metrics: bool,
}

/// A job that was accepted.
pub(crate) struct Job {
    /// The prompts' tokens.
    pub(crate) prompts: Vec<Arc<[u32]>>,
    /// Of each prompt's first answer.
    pub(crate) seeds: Vec<u64>,
    /// What comes of it.
    pub(crate) answers: Answers,
}

/// Accepts a job and starts it.
///
/// # Errors
/// The worker is not ready, the name is taken, the queue is full or a prompt does not fit; or the job was cancelled, or its
/// time was over, before the engine had it.
pub(crate) async fn start(state: &AppState, received: Received, request: JobRequest) -> Result<Job, ApiError> {
    let served = state.ready()?;
    let Some(live) = state.jobs().begin(&request.job_id) else {
        let message = format!("job_id: expected a name that no live job has, got {:?}", request.job_id);
        return Err(ApiError::new(ErrorCode::DuplicateJob, message));
    };
    // Before anything is done for it. When that is done, the engine has the last word.
    check_room(served, request.prompts.len() * request.n)?;
    if state.settings().log_prompts {
        for (choice, prompt) in (0..).step_by(request.n).zip(&request.prompts) {
            let prompt = prompt.to_string();
            tracing::debug!(target: PROMPTS, job_id = request.job_id, choice, prompt, "prompt");
        }
    }
    let (n, generation) = (request.n, Arc::new(request.generation));
    let prepared = prepare::prepare(state, served, request.prompts, n, &generation);
    let Prepared { prompts, seeds, requests } = tokio::select! {
        prepared = received.within_limits(state, prepared) => prepared?,
        () = live.cancelled() => return Err(cancelled()),
    };
    check_prompt_logprobs(&prompts, n, generation.n_prompt_logprobs)?;
    let max_tokens: Vec<usize> = requests.iter().map(|request| request.max_tokens).collect();
    let jobs = served.engine.submit_all(requests)?;
    let submitted = Instant::now();

    account::hand_to_job();
    let n_prompt_tokens: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
    let record = Arc::new(Record::new(state, live, received, &n_prompt_tokens, n));
    let mut open = Vec::with_capacity(jobs.len());
    for (choice, (job, max_tokens)) in jobs.into_iter().zip(max_tokens).enumerate() {
        let (n_prompt, counts_prompt) = (n_prompt_tokens[choice / n], choice.is_multiple_of(n));
        let n_scored = generation.n_prompt_logprobs.map_or(0, |_| n_prompt);
        let (events, receiver) = mpsc::channel(max_events(max_tokens, n_scored));
        let taken = Taken { job, submitted, events, choice, max_tokens, n_prompt, counts_prompt };
        Follower::new(state, &served.tokenizer, &generation, Arc::clone(&record), taken).spawn();
        open.push((choice, receiver));
    }
    Ok(Job { prompts, seeds, answers: Answers { open, turn: 0 } })
}

/// Whether a job of so many answers would be taken now: for refusing it before any work is done for it.
///
/// # Errors
/// As [`start`] has them for a full queue.
pub(crate) fn check_room(served: &Served, n_answers: usize) -> Result<(), ApiError> {
    Ok(served.engine.room_for(n_answers)?)
}

/// Whether so many log-probabilities may be asked for, with `n` answers to each prompt.
fn check_prompt_logprobs(prompts: &[Arc<[u32]>], n: usize, n_logprobs: Option<usize>) -> Result<(), ApiError> {
    let Some(n_logprobs) = n_logprobs else { return Ok(()) };
    let n_tokens: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let n_wanted = n_tokens * n * (n_logprobs + 1);
    if n_wanted > MAX_PROMPT_LOGPROBS {
        let message = format!(
            "logprobs: expected at most {MAX_PROMPT_LOGPROBS} for the tokens of all prompts, those of alternatives among \
             them; {n_tokens} tokens, {n} times, with {n_logprobs} alternatives are {n_wanted}"
        );
        return Err(ApiError::field("logprobs", "count", message));
    }
    Ok(())
}

fn cancelled() -> ApiError {
    ApiError::new(ErrorCode::Cancelled, "the job was cancelled")
}

/// The events of all of a job's answers, as they come. Dropping it cancels the answers that have not ended.
#[derive(Debug)]
pub(crate) struct Answers {
    /// Answers without a terminal event so far, by their index: prompt by prompt, `n` for each.
    open: Vec<(usize, mpsc::Receiver<Event>)>,
    /// Whose turn it is to be looked at first, so that none waits for the others.
    turn: usize,
}

impl Answers {
    /// Answers that bring these events; one without a terminal event stays open.
    #[cfg(test)]
    pub(crate) fn of_events(answers: Vec<Vec<Event>>) -> Self {
        let open = answers.into_iter().enumerate().map(|(choice, events)| {
            let (sender, receiver) = mpsc::channel(events.len().max(1));
            let ends = events.iter().any(Event::is_terminal);
            events.into_iter().for_each(|event| sender.try_send(event).unwrap());
            if !ends {
                std::mem::forget(sender);
            }
            (choice, receiver)
        });
        Self { open: open.collect(), turn: 0 }
    }

    /// Answers that have not ended.
    pub(crate) fn n_open(&self) -> usize {
        self.open.len()
    }

    /// Cancels those that have not ended; there is no next event then.
    pub(crate) fn cancel(&mut self) {
        self.open.clear();
    }

    /// The next event of any answer, with the answer's index; `None` after the last terminal event. Never
    /// [`Event::Started`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        std::future::poll_fn(|cx| {
            let n_open = self.open.len();
            if n_open == 0 {
                return std::task::Poll::Ready(None);
            }
            for at in (self.turn..self.turn + n_open).map(|at| at % n_open) {
                let (choice, events) = &mut self.open[at];
                let std::task::Poll::Ready(event) = events.poll_recv(cx) else { continue };
                // An answer's task that ends without a word has panicked.
                let lost = || Event::Error(ApiError::new(ErrorCode::Internal, "the job was lost").into());
                let (choice, event) = (*choice, event.unwrap_or_else(lost));
                self.turn = at + 1;
                if event.is_terminal() {
                    self.open.remove(at);
                    self.turn = at;
                }
                return std::task::Poll::Ready(Some((choice, event)));
            }
            std::task::Poll::Pending
        })
        .await
    }
}

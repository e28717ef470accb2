//! What is counted and logged of a job as a whole: one outcome and one line, when its last answer ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine::Timings;

use super::Received;
use super::clock::tokens_per_sec;
use crate::error::{ApiError, ErrorCode};
use crate::event::StopReason;
use crate::live::LiveJob;
use crate::metrics::{ABORT, Finish};
use crate::state::AppState;

/// How an answer ended, for the books.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ending {
    /// It is complete.
    Complete(StopReason),
    /// It was cut off with this error.
    Error(ApiError),
    /// The client went away.
    Left,
}

impl Ending {
    /// As vLLM divides answers.
    pub(super) fn finish(&self) -> Finish {
        match self {
            Self::Complete(StopReason::MaxTokens) => Finish::Length,
            Self::Complete(StopReason::Eos | StopReason::StopSequence) => Finish::Stop,
            Self::Error(error) if error.code == ErrorCode::Cancelled => Finish::Abort,
            Self::Error(_) => Finish::Error,
            Self::Left => Finish::Abort,
        }
    }

    /// As `worker_requests_total` divides requests: the code of an error is told.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Complete(StopReason::MaxTokens) => Finish::Length.label(),
            Self::Complete(StopReason::Eos | StopReason::StopSequence) => Finish::Stop.label(),
            Self::Error(error) => error.code.label(),
            Self::Left => ABORT,
        }
    }

    /// Of several answers' endings, the gravest is the job's; of equals the first.
    fn gravity(&self) -> u8 {
        match self {
            Self::Complete(StopReason::Eos | StopReason::StopSequence) => 0,
            Self::Complete(StopReason::MaxTokens) => 1,
            // A client that is told of one answer's failure leaves the others.
            Self::Left => 2,
            Self::Error(_) => 3,
        }
    }
}

/// The name of a reason in the log.
pub(super) fn reason_name(reason: StopReason) -> &'static str {
    match reason {
        StopReason::MaxTokens => "max_tokens",
        StopReason::Eos => "eos",
        StopReason::StopSequence => "stop_sequence",
    }
}

/// One answer that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    pub(super) n_generated: usize,
    pub(super) n_cached: usize,
    pub(super) timings: Timings,
    /// From the request to the first token.
    pub(super) first_token: Option<Duration>,
}

/// Shared by the answers of a job. Dropping the last share counts the job, logs its line and gives its name free: a client
/// that knows of the end finds all of that done.
pub(super) struct Record {
    state: AppState,
    pub(super) live: LiveJob,
    pub(super) received: Received,
    /// Of all prompts together.
    n_prompt: usize,
    /// Answers to each prompt.
    n: usize,
    n_answers: usize,
    /// Of each prompt, whether an answer to it has shown that it was read.
    is_read: Vec<AtomicBool>,
    ended: Mutex<Vec<Ended>>,
}

impl Record {
    /// Of a job that the engine has accepted, with the lengths of its prompts and `n` answers to each.
    pub(super) fn new(state: &AppState, live: LiveJob, received: Received, prompts: &[usize], n: usize) -> Self {
        let (n_prompt, n_answers) = (prompts.iter().sum(), prompts.len() * n);
        let is_read = prompts.iter().map(|_| AtomicBool::new(false)).collect();
        Self { state: state.clone(), live, received, n_prompt, n, n_answers, is_read, ended: Mutex::default() }
    }

    /// Whether no other answer to this one's prompt has said so before.
    pub(super) fn is_first_to_read(&self, choice: usize) -> bool {
        !self.is_read[choice / self.n].swap(true, Ordering::Relaxed)
    }

    /// Whether the job has more answers than one, which then have names.
    pub(super) fn has_several(&self) -> bool {
        self.n_answers > 1
    }

    pub(super) fn answer_ended(&self, ended: Ended) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let ended = std::mem::take(self.ended.get_mut().unwrap_or_else(PoisonError::into_inner));
        // An answer's task that ends without a word has panicked, and its client is told the same.
        let lost = Ending::Error(ApiError::new(ErrorCode::Internal, "the job was lost"));
        let n_lost = self.n_answers - ended.len();
        let endings = ended.iter().map(|ended| &ended.ending).chain(std::iter::repeat_n(&lost, n_lost));
        let ending = endings.rev().max_by_key(|ending| ending.gravity()).unwrap_or(&lost);
        let metrics = self.state.metrics();
        if let Ending::Complete(_) = ending {
            metrics.all_answers_done(self.n, ended.iter().map(|ended| ended.n_generated).max().unwrap_or(0));
        }
        metrics.request_done(ending.outcome());
        self.log(&ended, ending);
    }
}

impl Record {
    /// The job's one line. Of several answers, the stages that took longest, and the first token of all.
    fn log(&self, ended: &[Ended], ending: &Ending) {
        let longest = |stage: fn(&Timings) -> Duration| ended.iter().map(|ended| stage(&ended.timings)).max();
        let millis = |time: Duration| time.as_millis() as u64;
        let stage = |stage| millis(longest(stage).unwrap_or_default());
        let tokens_out: usize = ended.iter().map(|ended| ended.n_generated).sum();
        // Each answer's first token came before its decode time began.
        let n_timed = tokens_out.saturating_sub(self.n_answers - 1);
        let decode = longest(|timings| timings.decode).unwrap_or_default();
        let (stop_reason, error) = match ending {
            Ending::Complete(reason) if !self.has_several() => (Some(reason_name(*reason)), None),
            Ending::Error(error) => (None, Some(error.message.as_str())),
            _ => (None, None),
        };
        tracing::info!(
            job_id = self.live.job_id(),
            answers = self.has_several().then_some(self.n_answers),
            prompt_tokens = self.n_prompt,
            cached_tokens = ended.iter().map(|ended| ended.n_cached).sum::<usize>(),
            tokens_out,
            queue_ms = stage(|timings| timings.queued),
            first_token_ms = ended.iter().filter_map(|ended| ended.first_token).min().map(millis),
            prefill_ms = stage(|timings| timings.prefill),
            decode_ms = stage(|timings| timings.decode),
            total_ms = millis(self.received.elapsed()),
            tokens_per_sec = tokens_per_sec(n_timed, decode),
            stop_reason,
            outcome = ending.outcome(),
            error,
            "job done"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_ending_of_a_jobs_answers_is_the_jobs() {
        let error = |code| Ending::Error(ApiError::new(code, "why"));
        let endings = [
            Ending::Complete(StopReason::Eos),
            Ending::Complete(StopReason::MaxTokens),
            Ending::Left,
            error(ErrorCode::VramOom),
        ];
        assert!(endings.is_sorted_by_key(Ending::gravity));
        let outcomes: Vec<&str> = endings.iter().map(Ending::outcome).collect();
        assert_eq!(outcomes, ["stop", "length", "abort", "VRAM_OOM"]);
        assert_eq!((error(ErrorCode::Cancelled).finish(), Ending::Left.finish()), (Finish::Abort, Finish::Abort));
        assert_eq!(error(ErrorCode::InferenceTimeout).finish(), Finish::Error);
    }
}

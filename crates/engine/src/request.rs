//! What goes in and what comes out: a request, and the events it causes.

use std::sync::Arc;
use std::time::Duration;

use transformer::TokenId;
pub use transformer::{Logprob, Sampling, TokenLogprobs};

use crate::constraint::Constraint;

/// Names one submitted request for as long as the engine runs; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// One answer to be generated.
#[derive(Debug)]
pub struct Request {
    /// At least one token, and fewer than the context holds where any are to be generated.
    pub prompt: Arc<[TokenId]>,
    /// The most tokens to generate, end token not counted. The engine caps it by what the context leaves. With 0 the prompt is
    /// read, and that is all; it may then fill the context.
    pub max_tokens: usize,
    /// Tokens that end the answer; they are not part of it.
    pub end_tokens: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Added to the logits of these tokens, from -[`MAX_BIAS`](crate::MAX_BIAS) to it; each token once, at most
    /// [`MAX_LOGIT_BIAS`](crate::MAX_LOGIT_BIAS).
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Says which tokens may be chosen; needs an end token, with which the answer can end.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Every random choice of this request follows from it.
    pub seed: u64,
    /// `Some(n)`: each token event carries its log-probability and the `n` most likely alternatives.
    pub n_logprobs: Option<usize>,
    /// `Some(n)`: the prompt is scored. [`Event::PromptLogprobs`] tell the log-probability of each of its tokens but the first,
    /// after those before it, and the `n` most likely alternatives. Nothing of the prompt is then taken from the cache, and a
    /// step has no more of its rows than the executor gives outputs.
    pub n_prompt_logprobs: Option<usize>,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token; never an end token.
    pub id: TokenId,
    /// Present when the request asked for it.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why an answer ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// `max_tokens`, or the context, is used up.
    MaxTokens,
    /// The model chose this end token.
    EndToken(TokenId),
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to admission.
    pub queued: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: EndReason,
    /// Of the end token, where there is one and the request asked for them.
    pub end_logprobs: Option<TokenLogprobs>,
    /// Tokens generated, end token not counted: the number of [`Event::Token`]s sent.
    pub n_generated: usize,
    /// Prompt tokens whose keys and values were found in the cache.
    pub n_cached: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// What kind of failure ended a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// [`crate::EngineHandle::cancel`] was called.
    Cancelled,
    /// The device ran out of memory.
    OutOfMemory,
    /// The device failed; the engine is stopping.
    DeviceLost,
    /// The engine is stopping and the time to finish has run out.
    ShuttingDown,
    /// A fault of the worker's own, or of the request's constraint.
    Internal,
}

/// A request that did not end by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// What a request causes, in order: one `Admitted`, any number of `PromptLogprobs` where they are wanted, any number of `Token`s,
/// then exactly one `Finished` or `Failed`.
/// A request that is cancelled while it waits goes straight to `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// KV blocks are reserved and the prompt is being read.
    Admitted {
        /// Prompt tokens whose keys and values were found in the cache. While the prompt is being read a neighbour's work
        /// may add to them; [`Finished::n_cached`] has the final number.
        n_cached: usize,
    },
    /// Log-probabilities of the prompt's next tokens, from its second on: one of these for each step that reads some.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// A token was generated.
    Token(Token),
    /// The answer ended by itself. Nothing follows.
    Finished(Finished),
    /// The answer was cut off. Nothing follows.
    Failed(Failure),
}

impl Event {
    /// Whether it ends its request: nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Finished(_) | Event::Failed(_))
    }
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full; try again later.
    #[error("queue is full: {waiting} requests are waiting, the limit is {limit}")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// The limit.
        limit: usize,
    },
    /// Even an otherwise idle worker could not take so many at once.
    #[error("{n_requests} requests at once; the worker holds at most {limit}, the waiting ones included")]
    TooMany {
        /// Requests submitted together.
        n_requests: usize,
        /// The most that may be live.
        limit: usize,
    },
    /// The prompt leaves no room for one token.
    #[error("prompt has {n_prompt} tokens; the context of {n_ctx} leaves no room for an answer")]
    ContextLengthExceeded {
        /// Tokens in the prompt.
        n_prompt: usize,
        /// The context, in tokens.
        n_ctx: usize,
    },
    /// Even an otherwise idle worker could not hold the request's keys and values.
    #[error("needs {needed_blocks} KV blocks, the worker has {n_blocks}")]
    NeverFits {
        /// Blocks the request needs.
        needed_blocks: usize,
        /// Blocks in the pool.
        n_blocks: usize,
    },
    /// The request breaks a rule of [`Request`].
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The engine is draining or has stopped.
    #[error("the engine takes no new requests: it is {0}")]
    NotAccepting(&'static str),
}

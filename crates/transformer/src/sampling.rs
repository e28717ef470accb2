//! How tokens are chosen from logits: what the engine asks of a device that samples, and what that answers.

use std::ops::Range;

use crate::TokenId;

/// The most alternatives that can be asked log-probabilities for: the limit of the OpenAI and vLLM interfaces. Devices
/// size their buffers by it.
pub const MAX_LOGPROBS: usize = 20;

/// How the next token is chosen. Applied in the order of the fields, as `engine::sampler` documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the most likely token, the lowest id of equals.
    pub temperature: f32,
    /// Divides positive and multiplies negative logits of every token in the generated history; 1 is off.
    pub repetition_penalty: f32,
    /// Keeps the `top_k` most likely; 0 is off.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities reach `top_p`; 1 is off.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely; 0 is off.
    pub min_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, repetition_penalty: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

/// How to choose the token after one row of [`Batch::sample_rows`](crate::Batch::sample_rows).
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSpec {
    /// The request's settings.
    pub sampling: Sampling,
    /// The request's seed: the random number is a function of it and `position`.
    pub seed: u64,
    /// Absolute position, in its sequence, of the token to be chosen.
    pub position: u64,
    /// The tokens generated so far, each once, in [`Batch::history`](crate::Batch::history); empty where nothing is
    /// penalized.
    pub history: Range<usize>,
    /// `Some(n)`: the log-probability of the choice and of the `n` most likely tokens are wanted; at most
    /// [`MAX_LOGPROBS`].
    pub n_logprobs: Option<usize>,
}

/// What was chosen after one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token, or why there is none.
    pub id: Result<TokenId, RowFault>,
    /// Present when they were asked for and a token was chosen.
    pub logprobs: Option<TokenLogprobs>,
}

/// A row of logits that cannot be sampled from.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the logits have no finite maximum (it is {maximum}): the model's arithmetic has failed")]
pub struct RowFault {
    /// What was found instead.
    pub maximum: f32,
}

/// A token's log-probability: natural logarithm of the model's own softmax, before any of [`Sampling`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: TokenId,
    /// At most 0.
    pub logprob: f32,
}

/// Log-probabilities at one generated position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The most likely tokens, best first, ties by id.
    pub top: Vec<Logprob>,
}

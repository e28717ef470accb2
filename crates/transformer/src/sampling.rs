//! How tokens are chosen from logits: what the engine asks of a device that samples, and what that answers.

use std::ops::Range;

use crate::TokenId;

/// The most alternatives that can be asked log-probabilities for: the limit of the OpenAI and vLLM interfaces. Devices
/// size their buffers by it.
pub const MAX_LOGPROBS: usize = 20;

/// The most tokens whose logits a request may change by a bias. Devices size their buffers by it. OpenAI's interface takes
/// 300; a list of banned words in several spellings is longer.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// How the next token is chosen; `engine::sampler` documents the order in which the settings apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy: the most likely token, the lowest id of equals.
    pub temperature: f32,
    /// Divides positive and multiplies negative logits of every token in the generated history; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token in the generated history, as OpenAI defines it; 0 is off.
    pub presence_penalty: f32,
    /// Times how often a token stands in the generated history, subtracted from its logit; 0 is off.
    pub frequency_penalty: f32,
    /// Keeps the `top_k` most likely; 0 is off.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities reach `top_p`; 1 is off.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely; 0 is off.
    pub min_p: f32,
}

impl Sampling {
    /// The most likely token, and nothing that changes which one that is.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    /// Whether what was generated before has a say: whether [`SampleRequest::history`] is read.
    pub fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.penalizes_by_count()
    }

    /// Whether it matters how often a token was generated, or by more than a factor, that it was.
    pub fn penalizes_by_count(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, ..Self::GREEDY }
    }
}

/// A token, and how often it was generated: at least once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub id: TokenId,
    /// How often.
    pub count: u32,
}

/// Words of 32 bits in a mask over a vocabulary.
pub fn mask_words(n_vocab: usize) -> usize {
    n_vocab.div_ceil(32)
}

/// What a token is chosen by, beside the logits and its position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRequest<'a> {
    /// The request's settings.
    pub sampling: &'a Sampling,
    /// The request's seed: the random number is a function of it and the position.
    pub seed: u64,
    /// The tokens generated so far, each once, ascending by id. Only penalties read it: empty where nothing is penalized.
    pub history: &'a [TokenCount],
    /// Added to the logits of these tokens, each of which occurs once; ascending by id, at most [`MAX_LOGIT_BIAS`].
    pub logit_bias: &'a [(TokenId, f32)],
    /// A bit for each token of the vocabulary, the first in the lowest bit of the first word: set if it may be chosen.
    /// [`mask_words`] of them; empty if all may.
    pub mask: &'a [u32],
    /// `Some(n)`: the log-probability of the choice and of the `n` most likely tokens are wanted; at most
    /// [`MAX_LOGPROBS`].
    pub n_logprobs: Option<usize>,
    /// The token is known, as a prompt's are, and this is it: no other is chosen, whatever the settings say. Only its
    /// log-probabilities are of interest. There is a mask or this, not both.
    pub given: Option<TokenId>,
}

impl<'a> SampleRequest<'a> {
    /// By `sampling` and `seed` alone: nothing was generated before, nothing is biased, masked, reported or given.
    pub fn new(sampling: &'a Sampling, seed: u64) -> Self {
        Self { sampling, seed, history: &[], logit_bias: &[], mask: &[], n_logprobs: None, given: None }
    }
}

/// How to choose the token after one row of [`Batch::sample_rows`](crate::Batch::sample_rows): a [`SampleRequest`] whose
/// lists stand in the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleSpec {
    /// The request's settings.
    pub sampling: Sampling,
    /// The request's seed.
    pub seed: u64,
    /// Absolute position, in its sequence, of the token to be chosen.
    pub position: u64,
    /// [`SampleRequest::history`] in [`Batch::history`](crate::Batch::history).
    pub history: Range<usize>,
    /// [`SampleRequest::logit_bias`] in [`Batch::logit_bias`](crate::Batch::logit_bias).
    pub logit_bias: Range<usize>,
    /// [`SampleRequest::mask`] in [`Batch::masks`](crate::Batch::masks).
    pub mask: Range<usize>,
    /// [`SampleRequest::n_logprobs`].
    pub n_logprobs: Option<usize>,
    /// [`SampleRequest::given`].
    pub given: Option<TokenId>,
}

/// What was chosen after one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token, or why there is none.
    pub id: Result<TokenId, RowFault>,
    /// Present when they were asked for and a token was chosen.
    pub logprobs: Option<TokenLogprobs>,
}

/// A row of logits that cannot be sampled from, or one in which the token that was given has no finite logit.
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

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was chosen, or given.
    pub logprob: f32,
    /// The most likely tokens, best first, ties by id.
    pub top: Vec<Logprob>,
}

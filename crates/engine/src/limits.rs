//! What an engine accepts: configuration, the limits that follow from it and from the executor, and the check of a request.

use transformer::ExecutorInfo;
pub use transformer::{MAX_LOGIT_BIAS, MAX_LOGPROBS};

use crate::request::{Request, SubmitError};

/// The greatest bias of a logit, up or down: what OpenAI's interface takes. It decides against any logit of a sane model.
pub const MAX_BIAS: f32 = 100.0;
/// The greatest presence and frequency penalty, up or down: what OpenAI's interface takes.
pub const MAX_PENALTY: f32 = 2.0;

/// How an engine schedules. Where the executor allows less, its limit holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The most requests answered at the same time; at least 1.
    pub max_seqs: usize,
    /// The most requests that wait while `max_seqs` are being answered.
    pub queue_limit: usize,
    /// The most rows in a step; at least 1. Less than `max_seqs` lowers that to it, so that each sequence can have its row.
    pub max_batch_tokens: usize,
    /// The most rows of one prompt in a step; at least 1.
    pub max_chunk_tokens: usize,
    /// Whether requests with equal beginnings share keys and values.
    pub prefix_reuse: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_seqs: 8, queue_limit: 64, max_batch_tokens: 512, max_chunk_tokens: usize::MAX, prefix_reuse: true }
    }
}

/// The limits in force: a configuration and an executor's facts brought together.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) n_vocab: usize,
    pub(crate) n_ctx: usize,
    pub(crate) block_tokens: usize,
    pub(crate) n_blocks: usize,
    pub(crate) roles_bit_equal: bool,
    pub(crate) max_seqs: usize,
    /// The most rows of a step that have an output; at least `max_seqs`.
    pub(crate) max_outputs: usize,
    pub(crate) queue_limit: usize,
    pub(crate) max_batch_tokens: usize,
    pub(crate) max_chunk_tokens: usize,
    pub(crate) prefix_reuse: bool,
}

impl Limits {
    pub(crate) fn new(info: &ExecutorInfo, config: &EngineConfig) -> Self {
        let max_batch_tokens = config.max_batch_tokens.min(info.max_batch_tokens).max(1);
        let max_seqs = config.max_seqs.min(info.max_seqs).min(max_batch_tokens).max(1);
        Self {
            n_vocab: info.n_vocab,
            n_ctx: info.n_ctx,
            block_tokens: info.block_tokens,
            n_blocks: info.n_blocks,
            roles_bit_equal: info.roles_bit_equal,
            max_seqs,
            max_outputs: info.max_seqs.max(max_seqs),
            queue_limit: config.queue_limit,
            max_batch_tokens,
            max_chunk_tokens: config.max_chunk_tokens.max(1),
            prefix_reuse: config.prefix_reuse,
        }
    }

    /// The most tokens the request can be given: what it asks for, capped by what its prompt leaves of the context.
    pub(crate) fn max_generated(&self, request: &Request) -> usize {
        request.max_tokens.min(self.n_ctx - request.prompt.len())
    }

    /// KV blocks the request may come to need. The last token generated is never fed back, so it needs no slot.
    pub(crate) fn blocks_needed(&self, request: &Request) -> usize {
        (request.prompt.len() + self.max_generated(request).saturating_sub(1)).div_ceil(self.block_tokens)
    }

    /// Refuses what could never be served.
    pub(crate) fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let invalid = |what: String| Err(SubmitError::Invalid(what));
        let n_prompt = request.prompt.len();
        if n_prompt == 0 {
            return invalid("the prompt has no tokens".into());
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= self.n_vocab) {
            return invalid(format!("the prompt holds token {id}, the vocabulary has {}", self.n_vocab));
        }
        let mut n_logprobs = [request.n_logprobs, request.n_prompt_logprobs].into_iter().flatten();
        if let Some(n) = n_logprobs.find(|&n| n > MAX_LOGPROBS) {
            return invalid(format!("{n} log-probabilities asked for, at most {MAX_LOGPROBS} are given"));
        }
        check_sampling(request)?;
        self.check_bias(request)?;
        self.check_constraint(request)?;
        if n_prompt + request.max_tokens.min(1) > self.n_ctx {
            return Err(SubmitError::ContextLengthExceeded { n_prompt, n_ctx: self.n_ctx });
        }
        let needed_blocks = self.blocks_needed(request);
        if needed_blocks > self.n_blocks {
            return Err(SubmitError::NeverFits { needed_blocks, n_blocks: self.n_blocks });
        }
        Ok(())
    }

    fn check_bias(&self, request: &Request) -> Result<(), SubmitError> {
        let invalid = |what: String| Err(SubmitError::Invalid(what));
        let logit_bias = &request.logit_bias;
        if logit_bias.len() > MAX_LOGIT_BIAS {
            return invalid(format!("logit_bias names {} tokens, the most is {MAX_LOGIT_BIAS}", logit_bias.len()));
        }
        if let Some((id, _)) = logit_bias.iter().find(|(id, _)| *id as usize >= self.n_vocab) {
            return invalid(format!("logit_bias names token {id}, the vocabulary has {}", self.n_vocab));
        }
        if let Some((id, bias)) = logit_bias.iter().find(|(_, bias)| !(-MAX_BIAS..=MAX_BIAS).contains(bias)) {
            return invalid(format!("logit_bias of token {id} is {bias}, it must be from -{MAX_BIAS} to {MAX_BIAS}"));
        }
        let mut ids: Vec<_> = logit_bias.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => invalid(format!("logit_bias names token {} twice", pair[0])),
            None => Ok(()),
        }
    }

    /// A complete answer has to end with a token.
    fn check_constraint(&self, request: &Request) -> Result<(), SubmitError> {
        let can_end = request.end_tokens.iter().any(|&id| (id as usize) < self.n_vocab);
        if request.constraint.is_some() && !can_end {
            return Err(SubmitError::Invalid("a constraint needs an end token of the vocabulary".into()));
        }
        Ok(())
    }
}

fn check_sampling(request: &Request) -> Result<(), SubmitError> {
    let s = &request.sampling;
    let is_penalty = |x: f32| x.abs() <= MAX_PENALTY;
    let rules = [
        ("temperature", s.temperature, s.temperature.is_finite() && s.temperature >= 0.0, "at least 0"),
        (
            "repetition_penalty",
            s.repetition_penalty,
            s.repetition_penalty.is_finite() && s.repetition_penalty > 0.0,
            "above 0",
        ),
        ("presence_penalty", s.presence_penalty, is_penalty(s.presence_penalty), "from -2 to 2"),
        ("frequency_penalty", s.frequency_penalty, is_penalty(s.frequency_penalty), "from -2 to 2"),
        ("top_p", s.top_p, (0.0..=1.0).contains(&s.top_p), "from 0 to 1"),
        ("min_p", s.min_p, (0.0..=1.0).contains(&s.min_p), "from 0 to 1"),
    ];
    match rules.iter().find(|(_, _, holds, _)| !holds) {
        Some((name, value, _, rule)) => Err(SubmitError::Invalid(format!("{name} is {value}, it must be {rule}"))),
        None => Ok(()),
    }
}

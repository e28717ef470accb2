//! What answers look like: the envelope that both forms share, and what each form is to say.

use std::hash::{DefaultHasher, Hash, Hasher};

use engine::TokenLogprobs;
use serde::Serialize;

use crate::event::{End, StopReason, TokenEvent};
use crate::state::AppState;

/// Chat or completions: how its choices look.
pub(super) trait Form: Send + 'static {
    /// `object` of a whole answer.
    const OBJECT: &'static str;
    /// `object` of a chunk.
    const CHUNK_OBJECT: &'static str;
    /// A choice in a chunk.
    type Chunk: Serialize + Send;
    /// A choice in a whole answer.
    type Choice: Serialize + Send;

    /// What a choice begins with, if anything.
    fn first(&self, index: usize) -> Option<Self::Chunk>;
    /// Log-probabilities of the next tokens of a choice's prompt.
    fn prompt(&mut self, _index: usize, _logprobs: &[TokenLogprobs]) -> Option<Self::Chunk> {
        None
    }
    /// The next token of a choice; `None` if it has nothing to say, because its text is held back.
    fn next(&mut self, index: usize, token: &TokenEvent) -> Option<Self::Chunk>;
    /// What is left of a choice when its last token has come, and how it ends is known.
    fn rest(&mut self, _index: usize, _end: &End) -> Option<Self::Chunk> {
        None
    }
    /// The end of a choice: nothing but the reason.
    fn last(&self, index: usize, reason: FinishReason) -> Self::Chunk;
    /// All of it.
    fn whole(&self, index: usize, answer: &Complete) -> Self::Choice;
}

/// Everything that came of a choice.
#[derive(Debug)]
pub(super) struct Complete {
    /// Of its prompt's tokens from the second on, if they were asked for.
    pub(super) prompt_logprobs: Vec<TokenLogprobs>,
    pub(super) tokens: Vec<TokenEvent>,
    pub(super) end: End,
}

impl Complete {
    pub(super) fn reason(&self) -> FinishReason {
        self.end.stop_reason.into()
    }
}

/// Why a choice is complete, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FinishReason {
    /// The model ended it, or a stop string came up.
    Stop,
    /// `max_tokens`, or the context, is used up.
    Length,
    /// The model ended it, and there are calls in it.
    ToolCalls,
}

impl From<StopReason> for FinishReason {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::MaxTokens => Self::Length,
            StopReason::Eos | StopReason::StopSequence => Self::Stop,
        }
    }
}

/// Tokens of a request. Each prompt counts once, however many answers it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
    #[serde(skip)]
    answers_per_prompt: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl Usage {
    /// Before the first answer, with `n` to come for each prompt.
    pub(super) fn of_prompts(prompt_tokens: usize, n: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens: prompt_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: 0 },
            answers_per_prompt: n,
        }
    }

    /// One more token was generated.
    pub(super) fn count_token(&mut self) {
        self.completion_tokens += 1;
        self.total_tokens += 1;
    }

    /// An answer has ended. That the later answers to a prompt find it in the cache goes without saying.
    pub(super) fn count_end(&mut self, index: usize, end: &End) {
        if index.is_multiple_of(self.answers_per_prompt) {
            self.prompt_tokens_details.cached_tokens += end.n_cached;
        }
    }
}

/// What every chunk and every whole answer of a request has in common.
#[derive(Debug)]
pub(super) struct Envelope {
    id: String,
    created: i64,
    model: String,
    system_fingerprint: String,
}

/// An [`Envelope`] with something in it.
#[derive(Serialize)]
pub(super) struct Filled<'a, C> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [C],
    /// `None`: absent. `Some(None)`: `null`, in all chunks but the last where the last has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<&'a Usage>>,
}

impl Envelope {
    pub(super) fn new(state: &AppState, id: String) -> Self {
        Self {
            id,
            created: chrono::Utc::now().timestamp(),
            model: state.settings().model.clone(),
            system_fingerprint: fingerprint(state),
        }
    }

    pub(super) fn fill<'a, C>(
        &'a self,
        object: &'static str,
        choices: &'a [C],
        usage: Option<Option<&'a Usage>>,
    ) -> Filled<'a, C> {
        let Self { id, created, model, system_fingerprint } = self;
        Filled { id, object, created: *created, model, system_fingerprint, choices, usage }
    }
}

/// Equal for equal requests to give equal answers: this version of the worker, its model and its device.
fn fingerprint(state: &AppState) -> String {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    state.settings().model.hash(&mut hasher);
    if let Some(served) = state.served() {
        (&served.facts.quant_kind, &served.facts.device).hash(&mut hasher);
    }
    format!("fp_{:010x}", hasher.finish() & 0xFF_FFFF_FFFF)
}

//! Log-probabilities in OpenAI's two forms: natural logarithms of the model's own probabilities, before any sampling rule.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};
use tokenizer::{StreamDecoder, TokenId, Tokenizer};

use crate::event::TokenEvent;

/// What stands for a probability of 0, whose logarithm JSON cannot write; vLLM's number.
const LEAST_LOGPROB: f32 = -9999.0;

/// Chat's form: an object for each token.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    chosen: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Alternative {
    /// By itself: bytes that are no complete character show as U+FFFD, so that `bytes` are needed to put text together.
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Alternative {
    fn new(tokenizer: &Tokenizer, id: TokenId, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let token = String::from_utf8_lossy(bytes).into_owned();
        Self { token, logprob: logprob.max(LEAST_LOGPROB), bytes: bytes.to_vec() }
    }
}

impl ChatLogprobs {
    /// `None` where none were asked for.
    pub(super) fn of(tokenizer: &Tokenizer, tokens: &[TokenEvent]) -> Option<Self> {
        let content = tokens.iter().map(|token| {
            let logprobs = token.logprobs.as_ref()?;
            let top = logprobs.top.iter().map(|top| Alternative::new(tokenizer, top.id, top.logprob));
            let chosen = Alternative::new(tokenizer, token.id, logprobs.logprob);
            Some(ChatToken { chosen, top_logprobs: top.collect() })
        });
        content.collect::<Option<Vec<_>>>().map(|content| Self { content, refusal: None })
    }
}

/// The form of completions: parallel lists.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// `null` for the first token of a prompt: it comes after nothing.
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens at each place, and the one that is there where it is not among them.
    top_logprobs: Vec<Option<Named>>,
    /// Where each token's text begins, in Unicode scalar values of the choice's text.
    text_offset: Vec<usize>,
    /// Each token's bytes. Not OpenAI's, which writes them into `tokens` where they are no text, as is done here too.
    bytes: Vec<Vec<u8>>,
}

/// Log-probabilities by token, as one object, in order.
#[derive(Debug, PartialEq)]
struct Named(Vec<(String, f32)>);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// How far a choice's text has come.
#[derive(Debug, Clone)]
pub(super) struct Offset {
    decoder: StreamDecoder,
    n_chars: usize,
}

impl Offset {
    /// Of an answer that begins at `n_chars` of its text.
    pub(super) fn new(tokenizer: &Tokenizer, n_chars: usize) -> Self {
        Self { decoder: tokenizer.stream_continuation(), n_chars }
    }

    /// Where the next token begins.
    pub(super) fn at(&self) -> usize {
        self.n_chars
    }

    /// Where the token begins. A character of several tokens belongs to the last.
    fn advance(&mut self, id: TokenId) -> usize {
        let begins = self.n_chars;
        self.n_chars += self.decoder.push(id).chars().count();
        begins
    }
}

impl CompletionLogprobs {
    /// Of an answer's tokens; `None` where none were asked for.
    pub(super) fn of(tokenizer: &Tokenizer, tokens: &[TokenEvent], offset: &mut Offset) -> Option<Self> {
        let mut lists = Self::default();
        for token in tokens {
            let logprobs = token.logprobs.as_ref()?;
            let top = logprobs.top.iter().map(|top| (top.id, top.logprob));
            lists.push_with(tokenizer, token.id, logprobs.logprob, top, offset.advance(token.id));
        }
        Some(lists)
    }

    /// Appends a token that comes after nothing, so that nothing is known of how likely it is.
    pub(super) fn push_first(&mut self, tokenizer: &Tokenizer, id: TokenId, offset: usize) {
        self.push_named(tokenizer, id, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Appends a token that begins at `offset`.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: TokenId, logprobs: &engine::TokenLogprobs, offset: usize) {
        let top = logprobs.top.iter().map(|top| (top.id, top.logprob));
        self.push_with(tokenizer, id, logprobs.logprob, top, offset);
    }

    /// Appends the lists of what comes behind.
    pub(super) fn append(&mut self, mut rest: Self) {
        self.tokens.append(&mut rest.tokens);
        self.token_logprobs.append(&mut rest.token_logprobs);
        self.top_logprobs.append(&mut rest.top_logprobs);
        self.text_offset.append(&mut rest.text_offset);
        self.bytes.append(&mut rest.bytes);
    }

    fn push_with(
        &mut self,
        tokenizer: &Tokenizer,
        id: TokenId,
        logprob: f32,
        likely: impl Iterator<Item = (TokenId, f32)>,
        offset: usize,
    ) {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(likely.size_hint().0 + 1);
        for (id, logprob) in likely.chain([(id, logprob)]) {
            let name = name(tokenizer, id);
            // An object has each name once.
            if !top.iter().any(|(seen, _)| *seen == name) {
                top.push((name, logprob.max(LEAST_LOGPROB)));
            }
        }
        self.push_named(tokenizer, id, offset);
        self.token_logprobs.push(Some(logprob.max(LEAST_LOGPROB)));
        self.top_logprobs.push(Some(Named(top)));
    }

    fn push_named(&mut self, tokenizer: &Tokenizer, id: TokenId, offset: usize) {
        self.tokens.push(name(tokenizer, id));
        self.text_offset.push(offset);
        self.bytes.push(tokenizer.token_bytes(id).unwrap_or_default().to_vec());
    }
}

/// A token as the lists name it: its text, or `bytes:\xe8\xaa` where it is not whole characters.
fn name(tokenizer: &Tokenizer, id: TokenId) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            // Writing to a string does not fail.
            let _ = write!(name, "\\x{byte:02x}");
            name
        }),
    }
}

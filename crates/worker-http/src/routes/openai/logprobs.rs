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
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// The most likely tokens at each place, and the one chosen where it is not among them.
    top_logprobs: Vec<Named>,
    /// Where each token's text begins, in Unicode scalar values of the answer.
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
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        Self { decoder: tokenizer.stream_continuation(), n_chars: 0 }
    }

    /// Where the token begins. A character of several tokens belongs to the last.
    fn advance(&mut self, id: TokenId) -> usize {
        let begins = self.n_chars;
        self.n_chars += self.decoder.push(id).chars().count();
        begins
    }
}

impl CompletionLogprobs {
    /// `None` where none were asked for.
    pub(super) fn of(tokenizer: &Tokenizer, tokens: &[TokenEvent], offset: &mut Offset) -> Option<Self> {
        let mut lists = Self {
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            text_offset: Vec::new(),
            bytes: Vec::new(),
        };
        for token in tokens {
            let logprobs = token.logprobs.as_ref()?;
            let chosen = (name(tokenizer, token.id), logprobs.logprob.max(LEAST_LOGPROB));
            let mut top: Vec<(String, f32)> = Vec::with_capacity(logprobs.top.len() + 1);
            let likely = logprobs.top.iter().map(|top| (name(tokenizer, top.id), top.logprob.max(LEAST_LOGPROB)));
            for (name, logprob) in likely.chain([chosen.clone()]) {
                // An object has each name once.
                if !top.iter().any(|(seen, _)| *seen == name) {
                    top.push((name, logprob));
                }
            }
            lists.tokens.push(chosen.0);
            lists.token_logprobs.push(chosen.1);
            lists.top_logprobs.push(Named(top));
            lists.text_offset.push(offset.advance(token.id));
            lists.bytes.push(tokenizer.token_bytes(token.id).unwrap_or_default().to_vec());
        }
        Some(lists)
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

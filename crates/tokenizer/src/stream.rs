//! Ids to text, one at a time: whole characters only.

use crate::tokenizer::Tokenizer;
use crate::{TokenId, TokenType};

/// Turns ids into text as they come.
///
/// A character whose bytes are spread over several tokens comes out with the last of them. Bytes that cannot become
/// UTF-8 come out as U+FFFD, exactly as [`String::from_utf8_lossy`] would put them in the whole. What
/// [`push`](Self::push) and [`finish`](Self::finish) give, joined, is [`Tokenizer::decode`] of all ids, however they
/// come.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    show_special: bool,
    /// Written out even if they have no text of their own.
    shown: Vec<TokenId>,
    /// The next byte, if it is a space, is the one that the vocabulary puts in front of every text.
    strips_space: bool,
    /// The beginning of a character: at most three bytes between calls.
    unfinished: Vec<u8>,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, show_special: bool, strips_space: bool) -> StreamDecoder {
        StreamDecoder { tokenizer, show_special, shown: Vec::new(), strips_space, unfinished: Vec::new() }
    }

    /// Writes out these control tokens, and no others.
    pub fn showing(self, shown: &[TokenId]) -> StreamDecoder {
        StreamDecoder { shown: shown.to_vec(), ..self }
    }

    /// The text that `id` completes; often empty. An id outside the vocabulary has no text.
    pub fn push(&mut self, id: TokenId) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// Whether a character is unfinished, so that [`finish`](Self::finish) would give something.
    pub fn is_holding(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Ends the text: U+FFFD if a character is unfinished, else nothing.
    pub fn finish(self) -> String {
        if self.unfinished.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }

    pub(crate) fn push_all(mut self, ids: &[TokenId]) -> String {
        let mut text = String::with_capacity(ids.len() * 4);
        ids.iter().for_each(|id| self.push_to(*id, &mut text));
        text + &self.finish()
    }

    fn push_to(&mut self, id: TokenId, text: &mut String) {
        let Some(ty) = self.tokenizer.token_type(id) else { return };
        if ty.is_hidden() && !self.show_special && !self.shown.contains(&id) {
            return;
        }
        let mut bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        if self.strips_space && !bytes.is_empty() {
            self.strips_space = false;
            // Only the text of a token of the text proper was encoded with a space in front.
            if ty != TokenType::Control {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        if !self.unfinished.is_empty() {
            self.unfinished.extend_from_slice(bytes);
            let held = std::mem::take(&mut self.unfinished);
            self.unfinished = push_lossy(&held, text).to_vec();
        } else {
            self.unfinished.extend_from_slice(push_lossy(bytes, text));
        }
    }
}

/// Appends `bytes` to `text`, U+FFFD for what is not UTF-8, and gives back the unfinished character at the end.
fn push_lossy<'b>(bytes: &'b [u8], text: &mut String) -> &'b [u8] {
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let invalid = chunk.invalid();
        if chunks.peek().is_none() && is_unfinished(invalid) {
            return invalid;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    &[]
}

/// Whether more bytes could make a character of these, rather than that they are wrong whatever follows.
fn is_unfinished(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

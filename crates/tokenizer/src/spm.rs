//! The SentencePiece-style vocabulary (`tokenizer.ggml.model = llama`): characters merge to the token of the highest
//! score, and what no token spells becomes bytes.
//!
//! In the file a space is written U+2581; here tokens and text both hold plain spaces, which comes to the same.

use std::borrow::Cow;

use crate::TokenId;
use crate::error::TokenizerError;
use crate::merge::{Joiner, Scratch, merge};
use crate::table::TokenTable;
use crate::vocab::{KEY_SCORES, TokenType, Vocab};
use crate::words::{SeenWords, WholeTokens};

/// The character that stands for a space in the file.
const VISIBLE_SPACE: char = '\u{2581}';

/// The scores of a SentencePiece vocabulary.
#[derive(Debug)]
pub(crate) struct Spm {
    /// For each token, its rank: the higher the score, the lower the rank.
    ranks: Vec<u32>,
    /// The ids for each byte of a character without a token of its own.
    byte_ids: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    add_space_prefix: bool,
    /// No token has a space behind another character, so that nothing merges across the beginning of a word.
    spaces_begin_words: bool,
    whole: WholeTokens,
}

impl Spm {
    /// Checks the scores and byte tokens of `vocab`.
    pub(crate) fn new(vocab: &Vocab<'_>, unknown: Option<TokenId>, tokens: &TokenTable) -> Result<Spm, TokenizerError> {
        let scores = vocab
            .scores
            .as_ref()
            .ok_or(TokenizerError::Missing { key: KEY_SCORES, expected: "a list of scores for a llama vocabulary" })?;
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::BadScore { id: id as u32 });
        }
        let mut byte_ids = [None; 256];
        let mut spaces_begin_words = true;
        for id in 0..tokens.len() as TokenId {
            let bytes = tokens.bytes(id);
            match (tokens.ty(id), bytes) {
                (TokenType::Byte, [byte]) => byte_ids[usize::from(*byte)] = Some(id),
                (ty, _) if ty.is_made_by_merging() => {
                    spaces_begin_words &= !bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
                }
                _ => {}
            }
        }
        if let (Some(byte), None) = (byte_ids.iter().position(Option::is_none), unknown) {
            return Err(TokenizerError::MissingByteToken { byte: byte as u8 });
        }
        Ok(Spm {
            ranks: scores.iter().map(|score| rank_of(*score)).collect(),
            byte_ids,
            unknown,
            add_space_prefix: vocab.add_space_prefix.unwrap_or(true),
            spaces_begin_words,
            whole: WholeTokens::new(tokens.len()),
        })
    }

    /// Whether a space goes in front of a text, and comes off again in decoding.
    pub(crate) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the ids of `text`, in which no special token is looked for. A space goes in front if `begins` (the text
    /// stands at the beginning or behind a special token) and the vocabulary wants it.
    pub(crate) fn encode(&self, tokens: &TokenTable, text: &str, begins: bool, out: &mut Vec<TokenId>) {
        let prefix = if begins && self.add_space_prefix { " " } else { "" };
        let text = if prefix.is_empty() && !text.contains(VISIBLE_SPACE) {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(prefix.to_owned() + &text.replace(VISIBLE_SPACE, " "))
        };
        let mut seen = SeenWords::for_text(text.len());
        let mut scratch = Scratch::new();
        let mut rest = &*text;
        while !rest.is_empty() {
            let (word, behind) = rest.split_at(self.word_len(rest));
            self.encode_word(tokens, word, &mut seen, &mut scratch, out);
            rest = behind;
        }
    }

    /// The length of the word that `text` begins with: up to a space behind something else.
    fn word_len(&self, text: &str) -> usize {
        if !self.spaces_begin_words {
            return text.len();
        }
        let bytes = text.as_bytes();
        let spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
        bytes[spaces..].iter().position(|byte| *byte == b' ').map_or(bytes.len(), |at| spaces + at)
    }

    fn encode_word<'t>(
        &self,
        tokens: &TokenTable,
        word: &'t str,
        seen: &mut SeenWords<'t>,
        scratch: &mut Scratch<Span>,
        out: &mut Vec<TokenId>,
    ) {
        let bytes = word.as_bytes();
        let hash = tokens.hash(bytes);
        let token = tokens.find_hashed(hash, bytes);
        if let Some(id) = token
            && self.whole.get(id) == Some(true)
        {
            out.push(id);
            return;
        }
        if seen.repeat(hash, bytes, out) {
            return;
        }
        let joiner = WordJoiner { spm: self, tokens, bytes };
        scratch.pieces.clear();
        scratch.pieces.extend(word.char_indices().map(|(at, c)| {
            let (begin, end) = (at as u32, (at + c.len_utf8()) as u32);
            Span { begin, end, id: tokens.find(&bytes[at..end as usize]) }
        }));
        merge(&joiner, scratch);
        let begin = out.len();
        for span in &scratch.pieces {
            match span.id {
                Some(id) => out.push(id),
                None => self.push_bytes(&bytes[span.begin as usize..span.end as usize], out),
            }
        }
        if let Some(id) = token {
            self.whole.set(id, out[begin..] == [id]);
        }
        seen.remember(hash, bytes, begin, out);
    }

    /// Appends a character without a token: byte by byte, or as the unknown token.
    fn push_bytes(&self, character: &[u8], out: &mut Vec<TokenId>) {
        let begin = out.len();
        for byte in character {
            match self.byte_ids[usize::from(*byte)] {
                Some(id) => out.push(id),
                None => {
                    out.truncate(begin);
                    out.extend(self.unknown);
                    return;
                }
            }
        }
    }
}

/// A piece of a word during merging: its bytes, and its token if it has one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    begin: u32,
    end: u32,
    id: Option<TokenId>,
}

struct WordJoiner<'a> {
    spm: &'a Spm,
    tokens: &'a TokenTable,
    bytes: &'a [u8],
}

impl Joiner for WordJoiner<'_> {
    type Piece = Span;

    #[inline]
    fn join(&self, left: Span, right: Span) -> Option<(u32, Span)> {
        let (begin, end) = (left.begin, right.end);
        let id = self.tokens.find(&self.bytes[begin as usize..end as usize])?;
        Some((self.spm.ranks[id as usize], Span { begin, end, id: Some(id) }))
    }

    fn n_merged(&self, span: Span) -> usize {
        // Characters: every byte but those that continue one.
        let bytes = &self.bytes[span.begin as usize..span.end as usize];
        bytes.iter().filter(|byte| !(0x80..0xC0).contains(*byte)).count()
    }

    fn digest(&self, span: Span) -> u32 {
        span.begin
    }
}

/// A number that falls as the score rises, and is less than [`NEVER`](crate::merge::NEVER) for every score but NaN.
fn rank_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0.0 + 0.0 is 0.0, so that the zeros are equal.
    if bits >> 31 == 0 { 0x7FFF_FFFF - bits } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::NEVER;

    #[test]
    fn ranks_fall_as_scores_rise() {
        let scores = [f32::NEG_INFINITY, f32::MIN, -10.5, -10.0, -f32::MIN_POSITIVE, 0.0, 1e-30, 3.0, f32::INFINITY];
        assert!(scores.windows(2).all(|pair| rank_of(pair[0]) > rank_of(pair[1])));
        assert_eq!(rank_of(-0.0), rank_of(0.0));
        assert!(rank_of(f32::NEG_INFINITY) < NEVER);
    }
}

//! The SentencePiece-style vocabulary (`tokenizer.ggml.model = llama`): characters merge to the token of the highest
//! score, and what no token spells becomes bytes.
//!
//! In the file a space is written U+2581; here tokens and text both hold plain spaces, which comes to the same.
//!
//! The file lists no merges: any two neighbours merge whose text together is a token. All such pairs are worked out once,
//! so that merging looks up pairs of ids, as in byte-level BPE, and no text.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::TokenId;
use crate::error::TokenizerError;
use crate::merge::{Joiner, Scratch, merge};
use crate::table::{Merge, PairTable, TokenTable};
use crate::vocab::{KEY_SCORES, KEY_TOKENS, TokenType, Vocab};
use crate::words::{SeenWords, WholeTokens};

/// The character that stands for a space in the file.
const VISIBLE_SPACE: char = '\u{2581}';

/// Added to a code point: a piece that is a character without a token. No token has such an id.
const CHARACTER: u32 = 1 << 31;

/// The longest token that can be merged to, in bytes: taking one apart costs the square of its length. Published ones
/// stay below 100.
const LONGEST_TOKEN: usize = 256;

/// Tokens that one task takes apart.
const TOKENS_PER_TASK: usize = 4096;

/// The pairs and bytes of a SentencePiece vocabulary.
#[derive(Debug)]
pub(crate) struct Spm {
    pairs: PairTable,
    /// The ids for each byte of a character without a token of its own.
    byte_ids: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    add_space_prefix: bool,
    /// No token has a space behind another character, so that nothing merges across the beginning of a word.
    spaces_begin_words: bool,
    whole: WholeTokens,
}

impl Spm {
    /// Checks the scores and byte tokens of `vocab`, and works out its pairs.
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
                    let (what, limit, got) = ("in a token", LONGEST_TOKEN, bytes.len());
                    if got > limit {
                        return Err(TokenizerError::TooLong { key: KEY_TOKENS, what, limit, got });
                    }
                    spaces_begin_words &= !bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
                }
                _ => {}
            }
        }
        if let (Some(byte), None) = (byte_ids.iter().position(Option::is_none), unknown) {
            return Err(TokenizerError::MissingByteToken { byte: byte as u8 });
        }
        Ok(Spm {
            pairs: pairs(tokens, scores),
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
        scratch: &mut Scratch<u32>,
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
        scratch.pieces.clear();
        scratch.pieces.extend(word.char_indices().map(|(at, c)| {
            let character = &bytes[at..at + c.len_utf8()];
            tokens.find(character).unwrap_or(CHARACTER | c as u32)
        }));
        merge(&PieceJoiner { pairs: &self.pairs, tokens }, scratch);
        let begin = out.len();
        for piece in &scratch.pieces {
            match char::from_u32(piece ^ CHARACTER) {
                Some(c) if *piece >= CHARACTER => self.push_bytes(c.encode_utf8(&mut [0; 4]).as_bytes(), out),
                _ => out.push(*piece),
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

/// Merging over a vocabulary. A piece is a token's id, or a [`CHARACTER`].
struct PieceJoiner<'a> {
    pairs: &'a PairTable,
    tokens: &'a TokenTable,
}

impl Joiner for PieceJoiner<'_> {
    type Piece = u32;

    #[inline]
    fn join(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.pairs.find(left, right).map(|merge| (merge.rank, merge.id))
    }

    fn n_merged(&self, piece: u32) -> usize {
        if piece >= CHARACTER {
            return 1;
        }
        // Characters: every byte but those that continue one.
        self.tokens.bytes(piece).iter().filter(|byte| !(0x80..0xC0).contains(*byte)).count()
    }

    fn digest(&self, piece: u32) -> u32 {
        piece
    }
}

/// Every pair of pieces whose text together is a token.
fn pairs(tokens: &TokenTable, scores: &[f32]) -> PairTable {
    let piece = |text: &str| {
        let is_character = || text.chars().nth(1).is_none();
        let character = || text.chars().next().filter(|_| is_character()).map(|c| CHARACTER | c as u32);
        tokens.find(text.as_bytes()).or_else(character)
    };
    let of_token = |id: &usize| {
        let id = *id as TokenId;
        // Texts are those of strings; another token of the same text is never made.
        let text = std::str::from_utf8(tokens.bytes(id)).unwrap_or_default();
        let is_made = tokens.find(text.as_bytes()) == Some(id);
        let cuts = text.char_indices().skip(1).filter(move |_| is_made);
        cuts.filter_map(move |(at, _)| Some((piece(&text[..at])?, piece(&text[at..])?, id))).collect::<Vec<_>>()
    };
    let ids: Vec<usize> = (0..tokens.len()).collect();
    let found: Vec<Vec<_>> =
        ids.par_chunks(TOKENS_PER_TASK).map(|ids| ids.iter().flat_map(of_token).collect()).collect();
    let mut pairs = PairTable::with_capacity(found.iter().map(Vec::len).sum());
    for (left, right, id) in found.into_iter().flatten() {
        pairs.insert(left, right, Merge { rank: rank_of(scores[id as usize]), id });
    }
    pairs
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

//! What merging remembers, so that a word is merged once: which tokens are whole words of their own, for the life of
//! the tokenizer, and what other words became, for the length of one text.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::TokenId;

/// For each token, whether its own text merges to just that token. Most words of prose are such tokens, and then cost
/// one look-up.
///
/// Found out when first asked: working it out for a whole vocabulary would take longer than loading it.
#[derive(Debug)]
pub(crate) struct WholeTokens(Vec<AtomicU8>);

const UNKNOWN: u8 = 0;
const WHOLE: u8 = 1;
const IN_PARTS: u8 = 2;

impl WholeTokens {
    /// Nothing known about `n_vocab` tokens.
    pub(crate) fn new(n_vocab: usize) -> WholeTokens {
        WholeTokens((0..n_vocab).map(|_| AtomicU8::new(UNKNOWN)).collect())
    }

    /// Whether the token's text merges to it, if that is known.
    #[inline]
    pub(crate) fn get(&self, id: TokenId) -> Option<bool> {
        // Relaxed: the byte is the whole message, and every thread would write the same.
        match self.0[id as usize].load(Ordering::Relaxed) {
            UNKNOWN => None,
            known => Some(known == WHOLE),
        }
    }

    /// Records it.
    pub(crate) fn set(&self, id: TokenId, whole: bool) {
        self.0[id as usize].store(if whole { WHOLE } else { IN_PARTS }, Ordering::Relaxed);
    }
}

/// The words of one text and where in the output their ids stand.
///
/// Direct-mapped: a word replaces whatever was in its place, so that no text makes a look-up slow.
pub(crate) struct SeenWords<'t> {
    slots: Vec<(&'t [u8], u32, u32)>,
}

/// Words longer than this are seldom seen twice.
const LONGEST_SEEN: usize = 64;
/// 256 KiB of slots.
const MOST_SLOTS: usize = 1 << 13;
/// Below this many bytes of text, words hardly repeat.
const SHORTEST_TEXT: usize = 256;

impl<'t> SeenWords<'t> {
    /// A memory suited to a text of that length.
    pub(crate) fn for_text(n_bytes: usize) -> SeenWords<'t> {
        let n_slots = if n_bytes < SHORTEST_TEXT { 0 } else { (n_bytes / 8).next_power_of_two().min(MOST_SLOTS) };
        SeenWords { slots: vec![(&[], 0, 0); n_slots] }
    }

    /// Appends the ids of `word` to `out` if it was seen.
    #[inline]
    pub(crate) fn repeat(&self, hash: u64, word: &[u8], out: &mut Vec<TokenId>) -> bool {
        let Some(&(seen, begin, end)) = self.slots.get(self.slot(hash)) else { return false };
        if seen != word {
            return false;
        }
        out.extend_from_within(begin as usize..end as usize);
        true
    }

    /// Remembers that `word` became the ids of `out` from `begin` on.
    #[inline]
    pub(crate) fn remember(&mut self, hash: u64, word: &'t [u8], begin: usize, out: &[TokenId]) {
        let slot = self.slot(hash);
        if let (Some(slot), Ok(end), true) =
            (self.slots.get_mut(slot), u32::try_from(out.len()), word.len() <= LONGEST_SEEN)
        {
            *slot = (word, begin as u32, end);
        }
    }

    fn slot(&self, hash: u64) -> usize {
        hash as usize & self.slots.len().wrapping_sub(1)
    }
}

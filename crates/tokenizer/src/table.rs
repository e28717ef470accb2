//! The two tables that merging looks things up in: bytes to token ([`TokenTable`]) and pair to merge ([`PairTable`]).
//!
//! Both are open-addressing tables with linear probing in one flat array, because they are built while the worker
//! starts, for hundreds of thousands of entries, and read for every few bytes of text.

use crate::TokenId;
use crate::hash::{Seed, are_equal};
use crate::vocab::TokenType;

/// The bytes and type of every token, and the id of a token by its bytes.
#[derive(Debug)]
pub(crate) struct TokenTable {
    seed: Seed,
    /// The bytes of all tokens, end to end.
    bytes: Vec<u8>,
    /// Where each token's bytes end; token `id` begins where `id - 1` ends.
    ends: Vec<u32>,
    types: Vec<TokenType>,
    /// `hash's upper half << 32 | id + 1`, 0 where free.
    slots: Vec<u64>,
}

/// What became of an insertion.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Insert {
    /// The token was entered.
    New,
    /// This token has the same bytes, and stays.
    Present(TokenId),
}

impl TokenTable {
    /// An empty table with room for that much.
    pub(crate) fn with_capacity(n_tokens: usize, text_bytes: usize) -> TokenTable {
        TokenTable {
            seed: Seed::draw(),
            bytes: Vec::with_capacity(text_bytes),
            ends: Vec::with_capacity(n_tokens),
            types: Vec::with_capacity(n_tokens),
            slots: vec![0; n_slots(n_tokens)],
        }
    }

    /// Adds the next token; `spell` appends its bytes and says whether it could. The look-up does not find it yet.
    pub(crate) fn push(&mut self, ty: TokenType, spell: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let spelt = spell(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
        self.types.push(ty);
        spelt
    }

    /// Lets the look-up find token `id`.
    pub(crate) fn insert(&mut self, id: TokenId) -> Insert {
        let bytes = self.bytes(id);
        let hash = self.seed.of_bytes(bytes);
        let mut at = slot_of(hash, self.slots.len());
        while self.slots[at] != 0 {
            if let Some(present) = self.matching(self.slots[at], hash, bytes) {
                return Insert::Present(present);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = tag(hash) | u64::from(id + 1);
        Insert::New
    }

    /// The id of the mergeable token with these bytes.
    #[inline]
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<TokenId> {
        self.find_hashed(self.hash(bytes), bytes)
    }

    /// The hash that [`find_hashed`](Self::find_hashed) takes.
    #[inline]
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        self.seed.of_bytes(bytes)
    }

    /// [`find`](Self::find) for a caller that has the hash of `bytes`.
    #[inline]
    pub(crate) fn find_hashed(&self, hash: u64, bytes: &[u8]) -> Option<TokenId> {
        let mut at = slot_of(hash, self.slots.len());
        while self.slots[at] != 0 {
            if let Some(found) = self.matching(self.slots[at], hash, bytes) {
                return Some(found);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        None
    }

    /// Begins to fetch what looking up this hash will read, so that several look-ups wait for memory at once. The result
    /// only keeps the reads from being optimised away.
    #[inline]
    pub(crate) fn touch(&self, hash: u64) -> u32 {
        let slot = self.slots[slot_of(hash, self.slots.len())];
        self.ends.get(slot as u32 as usize).copied().unwrap_or_default()
    }

    #[inline]
    fn matching(&self, slot: u64, hash: u64, bytes: &[u8]) -> Option<TokenId> {
        let id = slot as u32 - 1;
        (tag(slot) == tag(hash) && are_equal(self.bytes(id), bytes)).then_some(id)
    }

    /// Whether `id` is a token with these bytes that text can become.
    #[inline]
    pub(crate) fn is_mergeable(&self, id: TokenId, bytes: &[u8]) -> bool {
        (id as usize) < self.len() && are_equal(self.bytes(id), bytes) && self.ty(id).is_made_by_merging()
    }

    /// The bytes of token `id`, which is in the vocabulary.
    #[inline]
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        let begin = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[begin as usize..self.ends[id] as usize]
    }

    /// The type of token `id`, which is in the vocabulary.
    #[inline]
    pub(crate) fn ty(&self, id: TokenId) -> TokenType {
        self.types[id as usize]
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// A merge: what a pair becomes, and how early. Lower ranks merge first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: TokenId,
}

/// The merge of each mergeable pair of tokens.
#[derive(Debug)]
pub(crate) struct PairTable {
    seed: Seed,
    /// `(left << 32 | right, merge)`, [`FREE`] where free.
    slots: Vec<(u64, Merge)>,
    /// The merges of two ids below [`N_LOW`], by both: these are most often the single bytes, and asked for most often.
    low: Vec<Merge>,
}

const N_LOW: u32 = 256;

/// No merge: the rank is one that none has.
const NO_MERGE: Merge = Merge { rank: u32::MAX, id: 0 };

/// No pair: a vocabulary has fewer than 2^32 - 1 tokens.
const FREE: u64 = u64::MAX;

impl PairTable {
    /// An empty table with room for that many pairs.
    pub(crate) fn with_capacity(n_pairs: usize) -> PairTable {
        PairTable {
            seed: Seed::draw(),
            slots: vec![(FREE, NO_MERGE); n_slots(n_pairs)],
            low: vec![NO_MERGE; (N_LOW * N_LOW) as usize],
        }
    }

    /// Enters a merge; of two for the same pair the first stays.
    pub(crate) fn insert(&mut self, left: TokenId, right: TokenId, merge: Merge) {
        if left < N_LOW && right < N_LOW {
            let low = &mut self.low[(left * N_LOW + right) as usize];
            *low = if *low == NO_MERGE { merge } else { *low };
            return;
        }
        let pair = pair(left, right);
        let mut at = slot_of(self.seed.of_u64(pair), self.slots.len());
        while self.slots[at].0 != FREE {
            if self.slots[at].0 == pair {
                return;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = (pair, merge);
    }

    /// The merge of that pair.
    #[inline]
    pub(crate) fn find(&self, left: TokenId, right: TokenId) -> Option<Merge> {
        if left < N_LOW && right < N_LOW {
            return Some(self.low[(left * N_LOW + right) as usize]).filter(|merge| *merge != NO_MERGE);
        }
        let pair = pair(left, right);
        let mut at = slot_of(self.seed.of_u64(pair), self.slots.len());
        loop {
            let (found, merge) = self.slots[at];
            if found == pair {
                return Some(merge);
            }
            if found == FREE {
                return None;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

fn pair(left: TokenId, right: TokenId) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A power of two of which the entries fill at most three quarters, so that probing is short and ends. Not more: a
/// smaller table stays in nearer caches.
fn n_slots(n_entries: usize) -> usize {
    (n_entries.max(8) * 4).div_ceil(3).next_power_of_two()
}

/// The slot a hash begins at; from its low bits, because the high ones are the tag.
#[inline]
fn slot_of(hash: u64, n_slots: usize) -> usize {
    hash as usize & (n_slots - 1)
}

#[inline]
fn tag(hash: u64) -> u64 {
    hash & 0xFFFF_FFFF_0000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(tokens: &[&str]) -> TokenTable {
        let mut table = TokenTable::with_capacity(tokens.len(), 0);
        for token in tokens {
            assert!(table.push(TokenType::Normal, |bytes| {
                bytes.extend_from_slice(token.as_bytes());
                true
            }));
        }
        table
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        let words: Vec<String> = (0..5000).map(|n| format!("w{n}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut table = table(&words);
        (0..5000).step_by(2).for_each(|id| assert_eq!(table.insert(id), Insert::New));
        for (id, word) in words.iter().enumerate() {
            assert_eq!(table.find(word.as_bytes()), (id % 2 == 0).then_some(id as u32));
            assert_eq!(table.bytes(id as u32), word.as_bytes());
        }
        assert_eq!(table.find(b""), None);
    }

    #[test]
    fn the_first_of_two_equal_tokens_stays() {
        let mut table = table(&["a", "b", "a"]);
        assert_eq!(table.insert(0), Insert::New);
        assert_eq!(table.insert(2), Insert::Present(0));
        assert_eq!(table.find(b"a"), Some(0));
    }

    #[test]
    fn the_first_of_two_merges_of_a_pair_stays() {
        let mut pairs = PairTable::with_capacity(2);
        pairs.insert(1, 2, Merge { rank: 0, id: 3 });
        pairs.insert(1, 2, Merge { rank: 1, id: 4 });
        assert_eq!(pairs.find(1, 2), Some(Merge { rank: 0, id: 3 }));
        assert_eq!(pairs.find(2, 1), None);
        pairs.insert(1, 2000, Merge { rank: 2, id: 5 });
        pairs.insert(1, 2000, Merge { rank: 3, id: 6 });
        assert_eq!(pairs.find(1, 2000), Some(Merge { rank: 2, id: 5 }));
        assert_eq!(pairs.find(2000, 1), None);
    }
}

//! Byte-level BPE (`tokenizer.ggml.model = gpt2`): text is split by the pre-tokenizer, and the bytes of each piece are
//! merged in the order of the merge list.

use std::borrow::Cow;
use std::hint::black_box;

use rayon::prelude::*;

use crate::TokenId;
use crate::byte_alphabet;
use crate::error::TokenizerError;
use crate::merge::{Joiner, Scratch, merge};
use crate::normalize::nfc;
use crate::pretokenize::PreTokenizer;
use crate::table::{Merge, PairTable, TokenTable};
use crate::vocab::{KEY_MERGES, Vocab};
use crate::words::{SeenWords, WholeTokens};

/// The merges of a byte-level vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    pre: PreTokenizer,
    pairs: PairTable,
    byte_ids: [TokenId; 256],
    whole: WholeTokens,
}

/// Merges resolved by one task, so that two cores share the list in good time.
const MERGES_PER_TASK: usize = 8192;

impl Bpe {
    /// Checks the merges of `vocab` and enters them.
    pub(crate) fn new(vocab: &Vocab<'_>, tokens: &TokenTable, pre: PreTokenizer) -> Result<Bpe, TokenizerError> {
        let merges = vocab
            .merges
            .as_ref()
            .ok_or(TokenizerError::Missing { key: KEY_MERGES, expected: "a list of merges for a gpt2 vocabulary" })?;
        let resolved: Vec<_> = merges
            .par_chunks(MERGES_PER_TASK)
            .enumerate()
            .map(|(chunk, merges)| resolve(tokens, merges, chunk * MERGES_PER_TASK))
            .collect::<Result<_, _>>()?;
        let mut pairs = PairTable::with_capacity(merges.len());
        for (rank, [left, right, id]) in resolved.into_iter().flatten().enumerate() {
            pairs.insert(left, right, Merge { rank: rank as u32, id });
        }
        Ok(Bpe { pre, pairs, byte_ids: byte_ids(tokens)?, whole: WholeTokens::new(tokens.len()) })
    }

    /// Appends the ids of `text`, in which no special token is looked for.
    pub(crate) fn encode(&self, tokens: &TokenTable, text: &str, out: &mut Vec<TokenId>) {
        let text = if self.pre.normalises_to_nfc() { nfc(text) } else { Cow::Borrowed(text) };
        let mut seen = SeenWords::for_text(text.len());
        let mut scratch = Scratch::new();
        self.pre.split(&text, |piece| self.encode_piece(tokens, piece.as_bytes(), &mut seen, &mut scratch, out));
    }

    #[inline]
    fn encode_piece<'t>(
        &self,
        tokens: &TokenTable,
        piece: &'t [u8],
        seen: &mut SeenWords<'t>,
        scratch: &mut Scratch<TokenId>,
        out: &mut Vec<TokenId>,
    ) {
        if let [byte] = piece {
            out.push(self.byte_ids[usize::from(*byte)]);
            return;
        }
        let hash = tokens.hash(piece);
        let token = tokens.find_hashed(hash, piece);
        if let Some(id) = token
            && (self.pre.ignores_merges() || self.whole.get(id) == Some(true))
        {
            out.push(id);
            return;
        }
        if seen.repeat(hash, piece, out) {
            return;
        }
        scratch.pieces.clear();
        scratch.pieces.extend(piece.iter().map(|byte| self.byte_ids[usize::from(*byte)]));
        merge(&PieceJoiner { pairs: &self.pairs, tokens }, scratch);
        if let Some(id) = token {
            self.whole.set(id, scratch.pieces == [id]);
        }
        let begin = out.len();
        out.extend_from_slice(&scratch.pieces);
        seen.remember(hash, piece, begin, out);
    }
}

/// Merging over a vocabulary.
struct PieceJoiner<'a> {
    pairs: &'a PairTable,
    tokens: &'a TokenTable,
}

impl Joiner for PieceJoiner<'_> {
    type Piece = TokenId;

    #[inline]
    fn join(&self, left: TokenId, right: TokenId) -> Option<(u32, TokenId)> {
        self.pairs.find(left, right).map(|merge| (merge.rank, merge.id))
    }

    fn n_merged(&self, id: TokenId) -> usize {
        self.tokens.bytes(id).len()
    }

    fn digest(&self, id: TokenId) -> u32 {
        id
    }
}

/// A merge of the list: its parts end to end, and where the second begins.
struct Parts {
    begin: usize,
    middle: usize,
    end: usize,
    hashes: [u64; 2],
}

/// Merges looked up together.
const BATCH: usize = 64;

/// The ids of the two parts and the result of each merge; `first` is the place of the first in the list.
fn resolve(tokens: &TokenTable, merges: &[&str], first: usize) -> Result<Vec<[TokenId; 3]>, TokenizerError> {
    let mut resolved = Vec::with_capacity(merges.len());
    let (mut bytes, mut batch) = (Vec::new(), Vec::with_capacity(BATCH));
    // Most vocabularies list the results in the order of the merges, so the next is the one behind the last.
    let mut guess = 0;
    for (batch_idx, merges) in merges.chunks(BATCH).enumerate() {
        let first = first + batch_idx * BATCH;
        bytes.clear();
        batch.clear();
        for (at, merge) in merges.iter().enumerate() {
            let parts = parts(tokens, merge, &mut bytes)
                .ok_or_else(|| TokenizerError::BadMerge { index: first + at, got: (*merge).to_owned() })?;
            batch.push(parts);
        }
        black_box(batch.iter().flat_map(|parts| parts.hashes).fold(0, |all, hash| all ^ tokens.touch(hash)));
        for (at, parts) in batch.iter().enumerate() {
            let [left, right, whole] =
                [&bytes[parts.begin..parts.middle], &bytes[parts.middle..parts.end], &bytes[parts.begin..parts.end]];
            let result = if tokens.is_mergeable(guess, whole) { Some(guess) } else { tokens.find(whole) };
            let [left_id, right_id] =
                [(0, left), (1, right)].map(|(i, part)| tokens.find_hashed(parts.hashes[i], part));
            let (Some(left_id), Some(right_id), Some(result)) = (left_id, right_id, result) else {
                let unknown =
                    [(left_id, left), (right_id, right), (result, whole)].into_iter().find(|it| it.0.is_none());
                return Err(unknown_in_merge(first + at, merges[at], unknown.map_or(whole, |it| it.1)));
            };
            resolved.push([left_id, right_id, result]);
            guess = result + 1;
        }
    }
    Ok(resolved)
}

/// Spells the two parts of a merge behind each other; none if it has not two parts.
#[inline]
fn parts(tokens: &TokenTable, merge: &str, bytes: &mut Vec<u8>) -> Option<Parts> {
    // A part is never empty, so a space in front belongs to the left part.
    let at = merge.bytes().skip(1).position(|byte| byte == b' ')? + 1;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    if right.is_empty() {
        return None;
    }
    let begin = bytes.len();
    spell(left, bytes);
    let middle = bytes.len();
    spell(right, bytes);
    let hashes = [tokens.hash(&bytes[begin..middle]), tokens.hash(&bytes[middle..])];
    Some(Parts { begin, middle, end: bytes.len(), hashes })
}

#[cold]
fn unknown_in_merge(index: usize, merge: &str, unknown: &[u8]) -> TokenizerError {
    let unknown = String::from_utf8_lossy(unknown).into_owned();
    TokenizerError::UnknownInMerge { index, got: merge.to_owned(), unknown }
}

fn spell(part: &str, bytes: &mut Vec<u8>) {
    if !byte_alphabet::decode_into(part, bytes) {
        bytes.extend_from_slice(part.as_bytes());
    }
}

/// The token of each byte. Bytes that UTF-8 never uses may lack one.
fn byte_ids(tokens: &TokenTable) -> Result<[TokenId; 256], TokenizerError> {
    let mut ids = [TokenId::MAX; 256];
    for byte in 0..=255u8 {
        match tokens.find(&[byte]) {
            Some(id) => ids[usize::from(byte)] = id,
            None if matches!(byte, 0xC0 | 0xC1 | 0xF5..) => {}
            None => return Err(TokenizerError::MissingByteToken { byte }),
        }
    }
    Ok(ids)
}

//! The merging that byte-level BPE and SentencePiece share: of all neighbours that may merge, those of the lowest rank
//! do, the leftmost first, until none may.
//!
//! A short run is scanned for its minimum before each merge, which costs the square of its length but has no overhead.
//! A long run is cut into chunks that are merged by themselves, and mended where they meet ([`Chunks`]), so that a
//! megabyte without a boundary takes about as long as a megabyte of words. Where mending finds no end, the whole run is
//! merged once more with a queue ([`Buckets`]); so no text costs more than a constant times n log n.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use rustc_hash::FxHashMap;

/// Runs up to this many pieces are scanned, longer ones cut into chunks of as many.
const CHUNK: usize = 64;

/// Mending looks at no more pieces than this around a cut. In text that people or machines write a few tokens suffice.
const WIDEST_MEND: usize = 1024;

/// A rank that no merge has: neighbours that may not merge.
pub(crate) const NEVER: u32 = u32::MAX;

/// What decides whether two neighbours merge.
pub(crate) trait Joiner {
    /// A piece of text during merging.
    type Piece: Copy + PartialEq;

    /// The rank (below [`NEVER`]) and the result of merging `left` and `right`, if they may merge.
    fn join(&self, left: Self::Piece, right: Self::Piece) -> Option<(u32, Self::Piece)>;

    /// How many pieces of the beginning `piece` was merged from.
    fn n_merged(&self, piece: Self::Piece) -> usize;

    /// A number that equal pieces share.
    fn digest(&self, piece: Self::Piece) -> u32;
}

/// Reusable memory for merging.
#[derive(Debug, Default)]
pub(crate) struct Scratch<P> {
    /// The run: pieces before [`merge`], result after.
    pub(crate) pieces: Vec<P>,
    ranks: Vec<u32>,
    joined: Vec<P>,
}

impl<P> Scratch<P> {
    /// Empty memory.
    pub(crate) fn new() -> Scratch<P> {
        Scratch { pieces: Vec::new(), ranks: Vec::new(), joined: Vec::new() }
    }
}

/// Merges `scratch.pieces` in place.
pub(crate) fn merge<J: Joiner>(joiner: &J, scratch: &mut Scratch<J::Piece>) {
    if scratch.pieces.len() <= CHUNK {
        scan(joiner, scratch);
    } else {
        let run = std::mem::take(&mut scratch.pieces);
        let whole = Chunks::new(joiner, &run, scratch, WIDEST_MEND).merge(CHUNK);
        scratch.pieces = whole.unwrap_or_else(|| Buckets::merge(joiner, run));
    }
}

/// Fills in the rank and result of each pair: `ranks[i]` and `joined[i]` belong to pieces `i` and `i + 1`.
fn rank_pairs<J: Joiner>(joiner: &J, scratch: &mut Scratch<J::Piece>) {
    scratch.ranks.clear();
    scratch.joined.clear();
    for pair in scratch.pieces.windows(2) {
        let (rank, joined) = joiner.join(pair[0], pair[1]).unwrap_or((NEVER, pair[0]));
        scratch.ranks.push(rank);
        scratch.joined.push(joined);
    }
}

/// Merges by looking for the lowest rank again and again.
fn scan<J: Joiner>(joiner: &J, scratch: &mut Scratch<J::Piece>) {
    rank_pairs(joiner, scratch);
    let Scratch { pieces, ranks, joined } = scratch;
    while let Some(at) = leftmost_lowest(ranks) {
        pieces[at] = joined[at];
        pieces.remove(at + 1);
        ranks.remove(at);
        joined.remove(at);
        for left in [at.wrapping_sub(1), at] {
            if let (Some(rank), Some(&right)) = (ranks.get_mut(left), pieces.get(left.wrapping_add(1))) {
                match joiner.join(pieces[left], right) {
                    Some((new, piece)) => (*rank, joined[left]) = (new, piece),
                    None => *rank = NEVER,
                }
            }
        }
    }
}

/// The place of the lowest rank, the first of several; none if no pair may merge.
fn leftmost_lowest(ranks: &[u32]) -> Option<usize> {
    let lowest = ranks.iter().copied().min().filter(|rank| *rank != NEVER)?;
    ranks.iter().position(|rank| *rank == lowest)
}

/// A long run, merged chunk by chunk.
///
/// What merging gives for a text is determined by neighbours: a row of pieces, each the merging of its own text, is the
/// merging of the whole text if and only if every two neighbours are the merging of theirs. (Of the merges on the way
/// to another result, take the first that crosses a border between two of the pieces. All before it were inside pieces,
/// in the same order as when the two are merged by themselves; so that merging takes the same step.) Therefore two
/// merged chunks may be put together by merging anew only what stands around the cut, if the new pieces at both ends of
/// that are the old ones: every two neighbours are then known to fit.
struct Chunks<'a, J: Joiner> {
    joiner: &'a J,
    run: &'a [J::Piece],
    scratch: &'a mut Scratch<J::Piece>,
    widest: usize,
    seen: SeenChunks<J::Piece>,
    /// The merging of the run up to here.
    done: Vec<J::Piece>,
}

/// Tokens on each side of a cut that mending begins with.
const MEND_FROM: usize = 2;

impl<'a, J: Joiner> Chunks<'a, J> {
    fn new(joiner: &'a J, run: &'a [J::Piece], scratch: &'a mut Scratch<J::Piece>, widest: usize) -> Self {
        Chunks { joiner, run, scratch, widest, seen: SeenChunks::for_run(run.len()), done: Vec::new() }
    }

    /// The merging of the run; none if a cut could not be mended.
    fn merge(mut self, chunk_len: usize) -> Option<Vec<J::Piece>> {
        let mut chunk = Vec::new();
        for begin in (0..self.run.len()).step_by(chunk_len) {
            let end = self.run.len().min(begin + chunk_len);
            chunk.clear();
            chunk.extend_from_slice(self.merged(begin..end));
            self.append(begin, &chunk)?;
        }
        Some(self.done)
    }

    /// Appends the pieces of the chunk that begins at `cut`.
    fn append(&mut self, cut: usize, chunk: &[J::Piece]) -> Option<()> {
        let n_merged = |pieces: &[J::Piece]| pieces.iter().map(|piece| self.joiner.n_merged(*piece)).sum::<usize>();
        let (mut n_before, mut n_behind) = (MEND_FROM, MEND_FROM);
        while !self.done.is_empty() {
            n_before = n_before.min(self.done.len());
            n_behind = n_behind.min(chunk.len());
            let kept = self.done.len() - n_before;
            let around = cut - n_merged(&self.done[kept..])..cut + n_merged(&chunk[..n_behind]);
            if around.len() > self.widest {
                return None;
            }
            let first = (kept > 0).then(|| self.done[kept]);
            let last = (n_behind < chunk.len()).then(|| chunk[n_behind - 1]);
            let mended = self.merged(around);
            let fits_before = first.is_none_or(|first| mended.first() == Some(&first));
            let fits_behind = last.is_none_or(|last| mended.last() == Some(&last));
            if fits_before && fits_behind {
                let mended = std::mem::take(&mut self.scratch.pieces);
                self.done.truncate(kept);
                self.done.extend_from_slice(&mended);
                self.done.extend_from_slice(&chunk[n_behind..]);
                self.scratch.pieces = mended;
                return Some(());
            }
            n_before *= if fits_before { 1 } else { 2 };
            n_behind *= if fits_behind { 1 } else { 2 };
        }
        self.done.extend_from_slice(chunk);
        Some(())
    }

    /// The merging of a part of the run, by itself; left in `scratch`.
    fn merged(&mut self, part: Range<usize>) -> &[J::Piece] {
        let part = &self.run[part];
        let slot = self.seen.slot(part.iter().map(|piece| self.joiner.digest(*piece)));
        self.scratch.pieces.clear();
        match self.seen.slots.get_mut(slot) {
            Some((seen, merged)) if seen == part => self.scratch.pieces.extend_from_slice(merged),
            slot => {
                self.scratch.pieces.extend_from_slice(part);
                scan(self.joiner, self.scratch);
                if let Some((seen, merged)) = slot {
                    seen.clear();
                    seen.extend_from_slice(part);
                    merged.clone_from(&self.scratch.pieces);
                }
            }
        }
        &self.scratch.pieces
    }
}

/// Chunks and what they merged to: a long run without a boundary often repeats itself.
///
/// Direct-mapped, so that no text makes a look-up slow.
struct SeenChunks<P> {
    slots: Vec<(Vec<P>, Vec<P>)>,
}

/// Enough for the chunks and mended parts of a run with a short period.
const SEEN_CHUNKS: usize = 128;
/// Shorter runs do not repeat often enough.
const SHORTEST_REPEATING: usize = 8 * CHUNK;

impl<P> SeenChunks<P> {
    fn for_run(len: usize) -> Self {
        let n_slots = if len < SHORTEST_REPEATING { 0 } else { SEEN_CHUNKS };
        SeenChunks { slots: (0..n_slots).map(|_| (Vec::new(), Vec::new())).collect() }
    }

    fn slot(&self, digests: impl Iterator<Item = u32>) -> usize {
        if self.slots.is_empty() {
            return 0;
        }
        let hash = digests
            .fold(0u64, |hash, digest| (hash.rotate_left(5) ^ u64::from(digest)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (hash >> 32) as usize % self.slots.len()
    }
}

/// Positions that wait to merge, by rank.
struct Buckets {
    /// The ranks that have a bucket, lowest first.
    ranks: BinaryHeap<Reverse<u32>>,
    of_rank: FxHashMap<u32, Bucket>,
    spare: Vec<Bucket>,
}

/// The positions that wait for one rank.
#[derive(Default)]
struct Bucket {
    /// Ascending; those before `next` are done.
    run: Vec<u32>,
    next: usize,
    /// Positions that came out of order.
    late: BinaryHeap<Reverse<u32>>,
}

impl Bucket {
    fn push(&mut self, position: u32) {
        if self.run.last().is_none_or(|last| *last <= position) {
            self.run.push(position);
        } else {
            self.late.push(Reverse(position));
        }
    }

    /// Takes the leftmost position.
    fn pop(&mut self) -> Option<u32> {
        let next = self.run.get(self.next).copied();
        match (next, self.late.peek()) {
            (None, None) => None,
            (Some(next), late) if late.is_none_or(|late| next <= late.0) => {
                self.next += 1;
                Some(next)
            }
            _ => self.late.pop().map(|late| late.0),
        }
    }
}

/// No neighbour.
const NOBODY: u32 = u32::MAX;

impl Buckets {
    fn merge<J: Joiner>(joiner: &J, run: Vec<J::Piece>) -> Vec<J::Piece> {
        let mut scratch = Scratch { pieces: run, ranks: Vec::new(), joined: Vec::new() };
        rank_pairs(joiner, &mut scratch);
        let Scratch { mut pieces, mut ranks, mut joined } = scratch;
        ranks.push(NEVER); // The last piece has no pair.
        let n_pieces = pieces.len() as u32;
        let mut next: Vec<u32> = (1..n_pieces).chain([NOBODY]).collect();
        let mut prev: Vec<u32> = [NOBODY].into_iter().chain(0..n_pieces - 1).collect();
        let mut buckets = Buckets { ranks: BinaryHeap::new(), of_rank: FxHashMap::default(), spare: Vec::new() };
        for (position, rank) in ranks.iter().enumerate() {
            buckets.push(*rank, position as u32);
        }
        while let Some((rank, position)) = buckets.pop() {
            let at = position as usize;
            if ranks[at] != rank {
                continue; // One of the pair has merged with its other neighbour since.
            }
            let right = next[at] as usize;
            pieces[at] = joined[at];
            ranks[right] = NEVER;
            next[at] = next[right];
            if let Some(prev) = prev.get_mut(next[at] as usize) {
                *prev = position;
            }
            for left in [prev[at], position] {
                let Some(&after) = next.get(left as usize) else { continue };
                let left_piece = pieces[left as usize];
                let found = pieces.get(after as usize).and_then(|right| joiner.join(left_piece, *right));
                let (rank, piece) = found.unwrap_or((NEVER, left_piece));
                (ranks[left as usize], joined[left as usize]) = (rank, piece);
                buckets.push(rank, left);
            }
        }
        let (mut at, mut n_left) = (0, 0);
        while at != NOBODY {
            pieces[n_left] = pieces[at as usize];
            n_left += 1;
            at = next[at as usize];
        }
        pieces.truncate(n_left);
        pieces
    }

    fn push(&mut self, rank: u32, position: u32) {
        if rank == NEVER {
            return;
        }
        let Buckets { ranks, of_rank, spare } = self;
        of_rank
            .entry(rank)
            .or_insert_with(|| {
                ranks.push(Reverse(rank));
                spare.pop().unwrap_or_default()
            })
            .push(position);
    }

    /// Takes the leftmost position of the lowest rank.
    fn pop(&mut self) -> Option<(u32, u32)> {
        loop {
            let Reverse(rank) = *self.ranks.peek()?;
            if let Some(position) = self.of_rank.get_mut(&rank).and_then(Bucket::pop) {
                return Some((rank, position));
            }
            self.ranks.pop();
            if let Some(mut empty) = self.of_rank.remove(&rank) {
                (empty.next, empty.run) = (0, {
                    empty.run.clear();
                    empty.run
                });
                self.spare.push(empty);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers that merge to a number that tells how, where the table gives the pair a rank.
    struct Table(FxHashMap<(u32, u32), (u32, u32)>);

    /// The low byte is the kind; above it, of how many pieces.
    impl Joiner for Table {
        type Piece = u32;

        fn join(&self, left: u32, right: u32) -> Option<(u32, u32)> {
            let (rank, kind) = self.0.get(&(left & 0xFF, right & 0xFF))?;
            Some((*rank, ((left >> 8) + (right >> 8)) << 8 | kind))
        }

        fn n_merged(&self, piece: u32) -> usize {
            (piece >> 8) as usize
        }

        fn digest(&self, piece: u32) -> u32 {
            piece
        }
    }

    /// The definition, word for word.
    fn defined(table: &Table, mut pieces: Vec<u32>) -> Vec<u32> {
        loop {
            let lowest = (1..pieces.len())
                .filter_map(|at| table.join(pieces[at - 1], pieces[at]).map(|(rank, joined)| (rank, at, joined)))
                .min();
            let Some((_, at, joined)) = lowest else { return pieces };
            pieces[at - 1] = joined;
            pieces.remove(at);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_algorithm_merges_as_defined(
            // Few kinds and ranks, so that ties, falling ranks and far-reaching merges are common.
            ranks in prop::collection::hash_map((1..6u32, 1..6u32), (0..12u32, 1..6u32), 0..25),
            pieces in prop::collection::vec((1..4u32).prop_map(|kind| 1 << 8 | kind), 1..120),
            chunk in 1..20usize,
            widest in 1..60usize,
        ) {
            let table = Table(ranks.into_iter().collect());
            let expected = defined(&table, pieces.clone());
            let mut scratch = Scratch { pieces: pieces.clone(), ..Scratch::new() };
            scan(&table, &mut scratch);
            prop_assert_eq!(&scratch.pieces, &expected);
            prop_assert_eq!(&Buckets::merge(&table, pieces.clone()), &expected);
            if let Some(mended) = Chunks::new(&table, &pieces, &mut scratch, widest).merge(chunk) {
                prop_assert_eq!(&mended, &expected);
            }
            prop_assert_eq!(&Chunks::new(&table, &pieces, &mut scratch, usize::MAX).merge(chunk).unwrap(), &expected);
            let mut scratch = Scratch { pieces: pieces.repeat(8), ..Scratch::new() };
            merge(&table, &mut scratch);
            prop_assert_eq!(&scratch.pieces, &defined(&table, pieces.repeat(8)));
        }
    }
}

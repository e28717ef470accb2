//! The merging that byte-level BPE and SentencePiece share: of all neighbours that may merge, those of the lowest rank
//! do, the leftmost first, until none may.
//!
//! Two algorithms give the same result. A short run is scanned for its minimum before each merge, which costs the
//! square of its length but has no overhead. A long run keeps, for every rank that occurs, the positions that wait for
//! it; each position enters and leaves a few such buckets, so a megabyte of one letter takes about as long as a
//! megabyte of prose.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// Runs up to this many pieces are scanned, longer ones use buckets. Measured: the two cost the same at about this
/// length.
const LONGEST_SCANNED: usize = 96;

/// A rank that no merge has: neighbours that may not merge.
pub(crate) const NEVER: u32 = u32::MAX;

/// What decides whether two neighbours merge.
pub(crate) trait Joiner {
    /// A piece of text during merging.
    type Piece: Copy;

    /// The rank (below [`NEVER`]) and the result of merging `left` and `right`, if they may merge.
    fn join(&self, left: Self::Piece, right: Self::Piece) -> Option<(u32, Self::Piece)>;
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
    if scratch.pieces.len() < 2 {
        return;
    }
    // ranks[i] and joined[i] belong to the pair (i, i + 1); the last piece has no pair.
    scratch.ranks.clear();
    scratch.joined.clear();
    for pair in scratch.pieces.windows(2) {
        let (rank, joined) = joiner.join(pair[0], pair[1]).unwrap_or((NEVER, pair[0]));
        scratch.ranks.push(rank);
        scratch.joined.push(joined);
    }
    if scratch.pieces.len() <= LONGEST_SCANNED { scan(joiner, scratch) } else { Buckets::run(joiner, scratch) }
}

/// Merges by looking for the lowest rank again and again.
fn scan<J: Joiner>(joiner: &J, scratch: &mut Scratch<J::Piece>) {
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
    fn run<J: Joiner>(joiner: &J, scratch: &mut Scratch<J::Piece>) {
        let Scratch { pieces, ranks, joined } = scratch;
        ranks.push(NEVER);
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

    /// Numbers that merge to their sum where the table gives the pair a rank.
    struct Sums(FxHashMap<(u32, u32), u32>);

    impl Joiner for Sums {
        type Piece = u32;

        fn join(&self, left: u32, right: u32) -> Option<(u32, u32)> {
            self.0.get(&(left, right)).map(|rank| (*rank, left + right))
        }
    }

    /// The definition, word for word.
    fn defined(sums: &Sums, mut pieces: Vec<u32>) -> Vec<u32> {
        loop {
            let lowest = (1..pieces.len())
                .filter_map(|at| sums.join(pieces[at - 1], pieces[at]).map(|(rank, sum)| (rank, at, sum)))
                .min();
            let Some((_, at, sum)) = lowest else { return pieces };
            pieces[at - 1] = sum;
            pieces.remove(at);
        }
    }

    fn prepared(sums: &Sums, pieces: &[u32]) -> Scratch<u32> {
        let mut scratch = Scratch { pieces: pieces.to_vec(), ranks: Vec::new(), joined: Vec::new() };
        for pair in pieces.windows(2) {
            let (rank, sum) = sums.join(pair[0], pair[1]).unwrap_or((NEVER, 0));
            scratch.ranks.push(rank);
            scratch.joined.push(sum);
        }
        scratch
    }

    proptest! {
        #[test]
        fn both_algorithms_merge_as_defined(
            // Few ranks, so that ties and falling ranks are common.
            ranks in prop::collection::hash_map((1..9u32, 1..9u32), 0..12u32, 0..50),
            pieces in prop::collection::vec(1..4u32, 2..150),
        ) {
            let sums = Sums(ranks.into_iter().collect());
            let expected = defined(&sums, pieces.clone());
            let mut scanned = prepared(&sums, &pieces);
            scan(&sums, &mut scanned);
            prop_assert_eq!(&scanned.pieces, &expected);
            let mut bucketed = prepared(&sums, &pieces);
            Buckets::run(&sums, &mut bucketed);
            prop_assert_eq!(&bucketed.pieces, &expected);
        }
    }
}

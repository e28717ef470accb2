//! Attention of some queries of one KV head over one piece of their context, and how pieces are put together.
//!
//! A piece is [`PIECE`] positions, cut at multiples of it. Its result is a maximum score, a sum of exponentials and a
//! weighted sum of values, each computed from nothing but the query and the piece; results are merged in ascending order.
//! So a query's bits depend on its own context alone, whether one thread walks it or several share it.
#![allow(unsafe_code)] // Raw loads: a tile walks several blocks and queries at once.

use super::cache::KvCache;
use crate::BlockId;
use crate::cpu::exp::{exp, exp_one};
use crate::{BLOCK_TOKENS, KvType};
use quant::Kernel;
use quant::simd::Simd;

/// Positions of a piece: whole blocks. 64 KiB of keys and values of a head of 64, some microseconds of work.
pub(super) const PIECE: usize = 256;
/// The most queries of a tile: query heads that share a KV head, times rows.
pub(super) const MAX_QUERIES: usize = 32;

/// What a piece, or all pieces so far, gave for one query: `[max, sum, acc...]`, `2 + d_head` numbers.
pub(super) const HEAD: usize = 2;

/// Queries that share a KV head, over one piece.
pub(super) struct Piece<'a> {
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    pub(super) kv_head: usize,
    /// The piece's blocks; blocks behind the last query's position may be missing.
    pub(super) blocks: &'a [BlockId],
    /// Queries, already scaled. `[d_head, n_queries]`
    pub(super) q: &'a [f32],
    /// Positions of the piece that each query sees, ascending, at most [`PIECE`]. `[n_queries]`
    pub(super) n_positions: &'a [usize],
    /// `[n_queries, PIECE]`
    pub(super) scores: &'a mut [f32],
    /// Each query's result; untouched where it sees no position. `[n_queries, 2 + d_head]`
    pub(super) out: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match self.cache.shape().ty {
            KvType::F16 => self.with::<S, Half>(simd),
            KvType::F32 => self.with::<S, Single>(simd),
        }
    }
}

/// How an element of the cache is loaded.
trait Element {
    const BYTES: usize;
    /// # Safety
    /// `S::LANES` elements may be read.
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F;
    /// # Safety
    /// `n < S::LANES` elements may be read.
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F;
}

struct Half;
impl Element for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F {
        // SAFETY: as the caller vouches.
        unsafe { simd.load_f16(from) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F {
        // SAFETY: as the caller vouches.
        unsafe { simd.load_f16_part(from, n) }
    }
}

struct Single;
impl Element for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u8) -> S::F {
        // SAFETY: as the caller vouches.
        unsafe { simd.load_ptr(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, from: *const u8, n: usize) -> S::F {
        // SAFETY: as the caller vouches.
        unsafe { simd.load_ptr_part(from.cast(), n) }
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn with<S: Simd, E: Element>(&mut self, simd: S) {
        let n_queries = self.n_positions.len();
        let d_head = self.cache.shape().d_head;
        assert!(self.q.len() == d_head * n_queries && self.scores.len() >= PIECE * n_queries);
        assert!(self.n_positions.is_sorted() && self.n_positions[n_queries - 1] <= PIECE);
        self.score::<S, E>(simd);
        let first = self.n_positions.partition_point(|n| *n == 0);
        for i in first..n_queries {
            let scores = &mut self.scores[i * PIECE..][..self.n_positions[i]];
            let (max, sum) = exponentials(simd, scores);
            let out = &mut self.out[i * (HEAD + d_head)..][..HEAD + d_head];
            out[..HEAD].copy_from_slice(&[max, sum]);
            out[HEAD..].fill(0.0);
        }
        if first < n_queries {
            self.weigh::<S, E>(simd, first);
        }
    }

    /// Scores of all queries against every slot of every block that the last query reaches. Those behind a query's own
    /// positions are computed like the others and never read.
    #[inline(always)]
    fn score<S: Simd, E: Element>(&mut self, simd: S) {
        let n_queries = self.n_positions.len();
        let n_blocks = self.n_positions[n_queries - 1].div_ceil(BLOCK_TOKENS);
        let n_vectors = n_blocks * BLOCK_TOKENS / S::LANES;
        // Two vectors of keys by as many queries as the registers take: 16 or 8 sums.
        let max_queries = if S::LANES == 16 { 8 } else { 4 };
        let mut vector = 0;
        while vector < n_vectors {
            let both = vector + 1 < n_vectors;
            let keys = [self.key_vector::<S, E>(vector), self.key_vector::<S, E>(vector + usize::from(both))];
            let mut query = 0;
            while query < n_queries {
                let n = (n_queries - query).min(max_queries);
                match n {
                    1 => self.score_tile::<S, E, 1>(simd, keys, vector, query, both),
                    2 => self.score_tile::<S, E, 2>(simd, keys, vector, query, both),
                    3 => self.score_tile::<S, E, 3>(simd, keys, vector, query, both),
                    4 => self.score_tile::<S, E, 4>(simd, keys, vector, query, both),
                    5 => self.score_tile::<S, E, 5>(simd, keys, vector, query, both),
                    6 => self.score_tile::<S, E, 6>(simd, keys, vector, query, both),
                    7 => self.score_tile::<S, E, 7>(simd, keys, vector, query, both),
                    _ => self.score_tile::<S, E, 8>(simd, keys, vector, query, both),
                }
                query += n;
            }
            vector += 2;
        }
    }

    /// The keys of one vector of slots: `[d_head]` vectors, [`BLOCK_TOKENS`] elements apart.
    #[inline(always)]
    fn key_vector<S: Simd, E: Element>(&self, vector: usize) -> *const u8 {
        let slot = vector * S::LANES;
        let block = self.blocks[slot / BLOCK_TOKENS].0 as usize;
        self.cache.keys(self.layer, block, self.kv_head)[slot % BLOCK_TOKENS * E::BYTES..].as_ptr()
    }

    /// Scores of `Q` queries against two vectors of slots, or the same one twice.
    #[inline(always)]
    fn score_tile<S: Simd, E: Element, const Q: usize>(
        &mut self,
        simd: S,
        keys: [*const u8; 2],
        vector: usize,
        query: usize,
        both: bool,
    ) {
        let n_queries = self.n_positions.len();
        let mut acc = [[simd.splat(0.0); 2]; Q];
        for d in 0..self.cache.shape().d_head {
            // SAFETY: `keys` points to `d_head` vectors of slots of a block, BLOCK_TOKENS elements apart.
            let k = unsafe {
                keys.map(
                    #[inline(always)]
                    |k| E::load(simd, k.add(d * BLOCK_TOKENS * E::BYTES)),
                )
            };
            // SAFETY: `q` is [d_head, n_queries], and `query + Q <= n_queries`.
            let q: &[f32; Q] = unsafe { &*self.q.as_ptr().add(d * n_queries + query).cast() };
            for (acc, q) in acc.iter_mut().zip(q) {
                let q = simd.splat(*q);
                acc[0] = simd.mul_add(k[0], q, acc[0]);
                acc[1] = simd.mul_add(k[1], q, acc[1]);
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            let scores = &mut self.scores[(query + i) * PIECE..][..PIECE];
            simd.store(acc[0], &mut scores[vector * S::LANES..]);
            if both {
                simd.store(acc[1], &mut scores[(vector + 1) * S::LANES..]);
            }
        }
    }

    /// Adds the values, weighted, to the queries from `first` on.
    #[inline(always)]
    fn weigh<S: Simd, E: Element>(&mut self, simd: S, first: usize) {
        let n_queries = self.n_positions.len();
        // What all these queries see, several at a time; then each one's own rest.
        let common = self.n_positions[first];
        let mut query = first;
        while query < n_queries {
            let n = (n_queries - query).min(4);
            match n {
                1 => self.weigh_queries::<S, E, 1>(simd, query, 0, common),
                2 => self.weigh_queries::<S, E, 2>(simd, query, 0, common),
                3 => self.weigh_queries::<S, E, 3>(simd, query, 0, common),
                _ => self.weigh_queries::<S, E, 4>(simd, query, 0, common),
            }
            query += n;
        }
        for query in first..n_queries {
            if self.n_positions[query] > common {
                self.weigh_queries::<S, E, 1>(simd, query, common, self.n_positions[query]);
            }
        }
    }

    /// `acc[i] += weight[i, p] * v[p]` for `Q` queries and the positions `from..to`, ascending.
    #[inline(always)]
    fn weigh_queries<S: Simd, E: Element, const Q: usize>(&mut self, simd: S, query: usize, from: usize, to: usize) {
        let d_head = self.cache.shape().d_head;
        let mut d = 0;
        while d + 4 * S::LANES <= d_head {
            self.weigh_tile::<S, E, Q, 4>(simd, query, from, to, d);
            d += 4 * S::LANES;
        }
        while d < d_head {
            self.weigh_tile::<S, E, Q, 1>(simd, query, from, to, d);
            d += S::LANES;
        }
    }

    /// The elements `d..d + V * LANES` of it; with `V` 1, as many of them as there are.
    #[inline(always)]
    fn weigh_tile<S: Simd, E: Element, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        query: usize,
        from: usize,
        to: usize,
        d: usize,
    ) {
        let d_head = self.cache.shape().d_head;
        let n = (d_head - d).min(V * S::LANES);
        let place = |i: usize| (query + i) * (HEAD + d_head) + HEAD + d;
        let mut acc = [[simd.splat(0.0); V]; Q];
        for (i, acc) in acc.iter_mut().enumerate() {
            let out = &self.out[place(i)..][..n];
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = if n < S::LANES { simd.load_part(out) } else { simd.load(&out[v * S::LANES..]) };
            }
        }
        let mut position = from;
        while position < to {
            let block = self.blocks[position / BLOCK_TOKENS].0 as usize;
            let values = self.cache.values(self.layer, block, self.kv_head).as_ptr();
            let end = to.min((position / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
            while position < end {
                // SAFETY: row `position % BLOCK_TOKENS` of the block, elements `d..d + n` of it; scores are
                // [n_queries, PIECE], and `position < PIECE`.
                unsafe {
                    let row = values.add((position % BLOCK_TOKENS * d_head + d) * E::BYTES);
                    let mut value = [simd.splat(0.0); V];
                    for (v, value) in value.iter_mut().enumerate() {
                        let row = row.add(v * S::LANES * E::BYTES);
                        *value = if n < S::LANES { E::load_part(simd, row, n) } else { E::load(simd, row) };
                    }
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let weight = simd.splat(*self.scores.as_ptr().add((query + i) * PIECE + position));
                        for v in 0..V {
                            acc[v] = simd.mul_add(value[v], weight, acc[v]);
                        }
                    }
                }
                position += 1;
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            let out = &mut self.out[place(i)..][..n];
            for (v, acc) in acc.into_iter().enumerate() {
                if n < S::LANES { simd.store_part(acc, out) } else { simd.store(acc, &mut out[v * S::LANES..]) }
            }
        }
    }
}

/// Replaces scores by `exp(score - max)` and returns `max` and their sum. Lanes take every `LANES`-th position of the piece.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> (f32, f32) {
    let mut maxima = simd.splat(f32::NEG_INFINITY);
    let (whole, rest) = scores.split_at_mut(scores.len() / S::LANES * S::LANES);
    for scores in whole.chunks_exact(S::LANES) {
        maxima = simd.max(simd.load(scores), maxima);
    }
    // A NaN is lost here and comes back below, as the exponential of itself.
    let max = rest.iter().copied().fold(simd.max_lane(maxima), f32::max);
    let mut sums = simd.splat(0.0);
    for scores in whole.chunks_exact_mut(S::LANES) {
        let e = exp(simd, simd.sub(simd.load(scores), simd.splat(max)));
        simd.store(e, scores);
        sums = simd.add(sums, e);
    }
    let e = exp(simd, simd.sub(simd.load_part(rest), simd.splat(max)));
    simd.store_part(e, rest);
    sums = simd.add(sums, simd.load_part(rest));
    (max, simd.sum(sums))
}

/// Takes a further piece's result into what the pieces before it gave.
pub(super) struct Merge<'a> {
    /// `[2 + d_head]`
    pub(super) into: &'a mut [f32],
    /// `[2 + d_head]`
    pub(super) from: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let max = self.into[0].max(self.from[0]);
        let (old, new) = (exp_one(simd, self.into[0] - max), exp_one(simd, self.from[0] - max));
        self.into[0] = max;
        for (into, from) in self.into[1..].iter_mut().zip(&self.from[1..]) {
            *into = *into * old + *from * new;
        }
    }
}

/// `out = acc / sum`
pub(super) fn finish(result: &[f32], out: &mut [f32]) {
    for (out, acc) in out.iter_mut().zip(&result[HEAD..]) {
        *out = acc / result[1];
    }
}

//! Attention over the paged KV cache.
//!
//! Work is cut into tasks that threads take one after the other: a tile of neighbouring rows by one KV head, whose query
//! heads all use a key while it is at hand; and, where a sequence has a single row (a generated token) and a long context,
//! one piece of that context. Which thread takes a task, and which way a row is cut, changes no bit: see `piece`.
#![allow(unsafe_code)] // Threads write different parts of the same output and scratch memory.

mod cache;
mod piece;
#[cfg(test)]
mod tests;

pub use cache::{KvCache, KvShape};

use super::pool::{Pool, SharedSlice};
use crate::{BLOCK_TOKENS, Batch, Segment};
use piece::{HEAD, MAX_QUERIES, Merge, PIECE, Piece, finish};
use quant::Isa;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The most rows of a tile: with more, too much of what the first row's mask hides would be computed.
const MAX_ROWS: usize = 16;

/// What a thread takes at a time.
#[derive(Debug, Clone)]
struct Task {
    segment: usize,
    /// Rows of the batch.
    rows: Range<usize>,
    kv_head: usize,
    /// Of the context; all of it, unless `split`.
    pieces: Range<usize>,
    /// For a row whose context is divided: where its pieces' results go, `[n_pieces, group, 2 + d_head]`.
    split: Option<usize>,
}

/// Working memory of [`attend`], of a fixed size but for the list of tasks, which keeps the longest step's.
#[derive(Debug)]
pub struct AttentionScratch {
    group: usize,
    threads: Vec<ThreadScratch>,
    tasks: Vec<Task>,
    /// Results of divided contexts: of as many rows as there may be sequences. `[max_seqs, n_pieces, n_heads, 2 + d_head]`
    partials: Vec<f32>,
}

/// Memory for one tile.
#[derive(Debug)]
struct ThreadScratch {
    /// `[d_head, MAX_QUERIES]`
    q: Vec<f32>,
    /// `[MAX_QUERIES, PIECE]`
    scores: Vec<f32>,
    n_positions: Vec<usize>,
    /// Of one piece. `[MAX_QUERIES, 2 + d_head]`
    piece: Vec<f32>,
    /// Of all pieces so far. `[MAX_QUERIES, 2 + d_head]`
    result: Vec<f32>,
}

impl AttentionScratch {
    /// Memory for a pool of `n_threads`, contexts of `n_ctx` tokens and `max_seqs` sequences a step, of a model with
    /// `n_heads` query heads.
    ///
    /// # Panics
    /// When the KV heads do not divide the query heads.
    pub fn new(n_threads: usize, shape: &KvShape, n_heads: usize, n_ctx: usize, max_seqs: usize) -> AttentionScratch {
        assert!(n_heads.is_multiple_of(shape.n_kv_heads), "{} KV heads do not divide {n_heads}", shape.n_kv_heads);
        let group = n_heads / shape.n_kv_heads;
        let n_queries = MAX_QUERIES.max(group);
        let result_len = HEAD + shape.d_head;
        let thread = |_| ThreadScratch {
            q: vec![0.0; shape.d_head * n_queries],
            scores: vec![0.0; n_queries * PIECE],
            n_positions: vec![0; n_queries],
            piece: vec![0.0; n_queries * result_len],
            result: vec![0.0; n_queries * result_len],
        };
        AttentionScratch {
            group,
            threads: (0..n_threads).map(thread).collect(),
            tasks: Vec::new(),
            partials: vec![0.0; max_seqs * n_ctx.div_ceil(PIECE) * n_heads * result_len],
        }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        let floats = |t: &ThreadScratch| t.q.len() + t.scores.len() + t.piece.len() + t.result.len();
        let n_floats = self.threads.iter().map(floats).sum::<usize>() + self.partials.len();
        n_floats * size_of::<f32>() + self.tasks.capacity() * size_of::<Task>()
    }

    /// Fills in the tasks of a batch.
    fn plan(&mut self, batch: &Batch, shape: &KvShape) {
        self.tasks.clear();
        let tile_rows = (MAX_QUERIES / self.group).clamp(1, MAX_ROWS);
        let mut n_partials = 0;
        for (segment, Segment { rows, .. }) in batch.segments.iter().enumerate() {
            for first in rows.clone().step_by(tile_rows) {
                let rows = first..(first + tile_rows).min(rows.end);
                let n_pieces = (batch.positions[rows.end - 1] as usize + 1).div_ceil(PIECE);
                let partials = n_pieces * self.group * (HEAD + shape.d_head);
                for kv_head in 0..shape.n_kv_heads {
                    let whole = Task { segment, rows: rows.clone(), kv_head, pieces: 0..n_pieces, split: None };
                    if rows.len() == 1 && n_pieces > 1 && n_partials + partials <= self.partials.len() {
                        let split = Some(n_partials);
                        let piece = |piece| Task { pieces: piece..piece + 1, split, ..whole.clone() };
                        self.tasks.extend((0..n_pieces).map(piece));
                        n_partials += partials;
                    } else {
                        self.tasks.push(whole);
                    }
                }
            }
        }
    }
}

/// `out[t, h] = softmax_p(scale * q[t, h] . k[p, h / group]) . v[p, h / group]` over positions `p` up to row `t`'s own, in
/// its own sequence, with `scale = 1 / sqrt(d_head)` and `group = n_heads / n_kv_heads`.
///
/// q, out `[n_tokens, n_heads, d_head]`; the batch's own keys and values have been appended to `cache`. The bits of a row
/// depend on its query, its context and `isa` alone. Source: Vaswani et al. 2017; Ainslie et al. 2023 (groups); Dao et
/// al. 2023 (pieces).
///
/// # Panics
/// When the shapes do not fit, the batch names blocks that the pool lacks, or the processor lacks `isa`.
#[allow(clippy::too_many_arguments)] // A kernel's operands; a struct for them would only rename this list.
pub fn attend(
    pool: &Pool,
    isa: Isa,
    cache: &KvCache,
    layer: usize,
    batch: &Batch,
    q: &[f32],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let width = cache.shape().n_kv_heads * scratch.group * cache.shape().d_head;
    assert_eq!(q.len(), batch.n_tokens() * width, "q is [n_tokens, n_heads, d_head]");
    assert_eq!(out.len(), q.len(), "out has the shape of q");
    assert!(scratch.threads.len() >= pool.n_threads(), "scratch is for {} threads", scratch.threads.len());
    scratch.plan(batch, cache.shape());
    let step = AttentionStep {
        isa,
        cache,
        layer,
        batch,
        group: scratch.group,
        q,
        tasks: &scratch.tasks,
        out: SharedSlice::new(out),
        threads: SharedSlice::new(&mut scratch.threads),
        partials: SharedSlice::new(&mut scratch.partials),
    };
    // Later rows have more to do: they go first, so that the threads end together.
    let n_taken = AtomicUsize::new(0);
    let next = || step.tasks.len().checked_sub(n_taken.fetch_add(1, Relaxed) + 1);
    pool.run(|thread_idx, _| {
        // SAFETY: each thread has its own index.
        let scratch = &mut unsafe { step.threads.range_mut(thread_idx..thread_idx + 1) }[0];
        while let Some(task) = next() {
            step.run(&step.tasks[task], scratch);
        }
    });
    if step.tasks.iter().any(|task| task.split.is_some()) {
        pool.run(|thread_idx, n_threads| {
            let split = step.tasks.iter().filter(|task| task.split.is_some() && task.pieces.start == 0);
            split.skip(thread_idx).step_by(n_threads).for_each(|task| step.merge(task));
        });
    }
}

/// One call of [`attend`].
struct AttentionStep<'a> {
    isa: Isa,
    cache: &'a KvCache,
    layer: usize,
    batch: &'a Batch,
    group: usize,
    q: &'a [f32],
    tasks: &'a [Task],
    out: SharedSlice<'a, f32>,
    threads: SharedSlice<'a, ThreadScratch>,
    partials: SharedSlice<'a, f32>,
}

impl AttentionStep<'_> {
    fn run(&self, task: &Task, scratch: &mut ThreadScratch) {
        let result_len = HEAD + self.cache.shape().d_head;
        let n_queries = task.rows.len() * self.group;
        self.gather(task, &mut scratch.q);
        if let Some(split) = task.split {
            let at = split + task.pieces.start * self.group * result_len;
            // SAFETY: each task of a divided row has its own piece's part.
            let out = unsafe { self.partials.range_mut(at..at + n_queries * result_len) };
            self.piece(task, task.pieces.start, scratch, out);
            return;
        }
        let mut results = std::mem::take(&mut scratch.result);
        let mut results_of_piece = std::mem::take(&mut scratch.piece);
        for piece in task.pieces.clone() {
            if piece == 0 {
                self.piece(task, piece, scratch, &mut results[..n_queries * result_len]);
                continue;
            }
            let from = &mut results_of_piece[..n_queries * result_len];
            self.piece(task, piece, scratch, from);
            let pairs = results.chunks_exact_mut(result_len).zip(from.chunks_exact(result_len));
            for ((into, from), n) in pairs.zip(&scratch.n_positions) {
                if *n > 0 {
                    self.isa.run(Merge { into, from });
                }
            }
        }
        for (query, result) in results.chunks_exact(result_len).take(n_queries).enumerate() {
            self.write(task, query, result);
        }
        scratch.result = results;
        scratch.piece = results_of_piece;
    }

    /// Scales a task's queries and lays them out for [`Piece`]: query `row * group + head`, `[d_head, n_queries]`.
    fn gather(&self, task: &Task, to: &mut [f32]) {
        let d_head = self.cache.shape().d_head;
        let scale = 1.0 / (d_head as f32).sqrt();
        let n_queries = task.rows.len() * self.group;
        for query in 0..n_queries {
            let from = &self.q[self.place(task, query)];
            for (d, x) in from.iter().enumerate() {
                to[d * n_queries + query] = x * scale;
            }
        }
    }

    /// Where a query of a task lies in `q` and `out`.
    fn place(&self, task: &Task, query: usize) -> Range<usize> {
        let shape = self.cache.shape();
        let (row, head) = (task.rows.start + query / self.group, task.kv_head * self.group + query % self.group);
        let start = (row * shape.n_kv_heads * self.group + head) * shape.d_head;
        start..start + shape.d_head
    }

    fn piece(&self, task: &Task, piece: usize, scratch: &mut ThreadScratch, out: &mut [f32]) {
        let n_queries = task.rows.len() * self.group;
        let n_positions = &mut scratch.n_positions[..n_queries];
        for (query, n) in n_positions.iter_mut().enumerate() {
            let end = self.batch.positions[task.rows.start + query / self.group] as usize + 1;
            *n = end.saturating_sub(piece * PIECE).min(PIECE);
        }
        let blocks = &self.batch.block_table[self.batch.segments[task.segment].blocks.clone()];
        self.isa.run(Piece {
            cache: self.cache,
            layer: self.layer,
            kv_head: task.kv_head,
            blocks: &blocks[piece * PIECE / BLOCK_TOKENS..],
            q: &scratch.q[..n_queries * self.cache.shape().d_head],
            n_positions,
            scores: &mut scratch.scores,
            out,
        });
    }

    /// Puts the pieces of a divided row together.
    fn merge(&self, task: &Task) {
        let result_len = HEAD + self.cache.shape().d_head;
        let n_pieces = (self.batch.positions[task.rows.start] as usize + 1).div_ceil(PIECE);
        let piece_len = self.group * result_len;
        let at = task.split.expect("a task of a divided row");
        // SAFETY: one thread merges each row and KV head, after all pieces are done.
        let pieces = unsafe { self.partials.range_mut(at..at + n_pieces * piece_len) };
        let (first, others) = pieces.split_at_mut(piece_len);
        for piece in others.chunks_exact(piece_len) {
            for (into, from) in first.chunks_exact_mut(result_len).zip(piece.chunks_exact(result_len)) {
                self.isa.run(Merge { into, from });
            }
        }
        for (query, result) in first.chunks_exact(result_len).enumerate() {
            self.write(task, query, result);
        }
    }

    fn write(&self, task: &Task, query: usize, result: &[f32]) {
        // SAFETY: every query belongs to one task, or to one merge.
        finish(result, unsafe { self.out.range_mut(self.place(task, query)) });
    }
}

//! Products from a panel: some weight rows are widened to `f32` once and then serve all tokens.
//!
//! So are products with many tokens taken, where widening is the smaller part of the work, and all products of packed
//! formats ([`crate::formats`]), whose vectors cannot be loaded one by one. Rows longer than a panel are taken in stretches,
//! between which the accumulators rest in memory, so that no order of operations changes.
#![allow(clippy::needless_range_loop)] // Indices of rows and tokens, which address memory too.
#![allow(unsafe_code)] // Runs tiles.

use crate::aligned::Aligned;
use crate::formats::{BlockFormat, F32, Format, Visitor};
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use crate::tile::{Acc, Operands, OutView, step_bytes, step_len, tile};
use std::marker::PhantomData;

/// The size of a panel.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    /// Elements of a row: a multiple of every format's block.
    len: usize,
}

/// The panel lies in the second-level cache; a tile's tokens stay in the first while the panel's rows pass by: six tokens of
/// that length fit it beside four rows.
const MANY_TOKENS: Shape = Shape { rows: PANEL_ROWS, len: 1024 };
/// The panel lies in the first-level cache, beside the tokens of a tile.
const FEW_TOKENS: Shape = Shape { rows: 8, len: 512 };
/// The most tokens that are few: those of one tile.
const MAX_FEW_TOKENS: usize = 6;

impl Shape {
    /// Distance of the rows. Not a power of two, or all rows would compete for the same cache sets.
    const fn stride(self) -> usize {
        self.len + 16
    }
}

/// Rows of the largest panel.
const PANEL_ROWS: usize = 32;
/// Tokens whose accumulators rest in memory.
const MAX_TOKENS: usize = 120;
/// Lanes of the widest vector.
const MAX_LANES: usize = 16;
/// Rows of a tile.
const TILE_ROWS: usize = 4;

/// A panel and the accumulators of its rows by `MAX_TOKENS` tokens.
#[derive(Debug)]
pub struct Scratch {
    panel: Aligned,
    acc: Aligned,
}

impl Scratch {
    /// Memory for one thread.
    pub fn new() -> Scratch {
        Scratch {
            panel: Aligned::zeros(MANY_TOKENS.rows * MANY_TOKENS.stride()),
            acc: Aligned::zeros(PANEL_ROWS * MAX_TOKENS * MAX_LANES),
        }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.panel.n_bytes() + self.acc.n_bytes()
    }

    /// The first `n_bytes`, on a cache line, for whatever they are needed for.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bytes(&mut self, n_bytes: usize) -> *mut u8 {
        assert!(n_bytes <= size_of_val(&*self.panel), "{n_bytes} bytes of working memory");
        self.panel.as_mut_ptr().cast()
    }

    /// For products of any size.
    pub(crate) fn memory(&mut self) -> Memory<'_> {
        Memory { panel: &mut self.panel, acc: &mut self.acc }
    }
}

/// A panel, and accumulators of its rows by as many tokens as there will be.
pub(crate) struct Memory<'a> {
    panel: &'a mut [f32],
    acc: &'a mut [f32],
}

/// Memory for one row by one token, which fits the stack.
#[repr(align(64))]
pub(crate) struct OneRow {
    panel: [f32; FEW_TOKENS.stride()],
    acc: [f32; MAX_LANES],
}

impl OneRow {
    pub(crate) fn new() -> OneRow {
        OneRow { panel: [0.0; FEW_TOKENS.stride()], acc: [0.0; MAX_LANES] }
    }

    pub(crate) fn memory(&mut self) -> Memory<'_> {
        Memory { panel: &mut self.panel, acc: &mut self.acc }
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

/// The product of all rows and tokens of `out`.
pub(crate) struct Panels<'a> {
    format: Format,
    ops: Operands,
    out: OutView<'a>,
    memory: Memory<'a>,
}

impl<'a> Panels<'a> {
    /// # Safety
    /// The operands have all rows and tokens of `out`.
    pub(crate) unsafe fn new(format: Format, ops: Operands, out: OutView<'a>, memory: Memory<'a>) -> Panels<'a> {
        Panels { format, ops, out, memory }
    }
}

impl Panels<'_> {
    /// Runs the product with `isa`.
    pub(crate) fn run(self, isa: Isa) {
        self.format.visit(WithIsa(self, isa));
    }
}

struct WithIsa<'a>(Panels<'a>, Isa);

impl Visitor for WithIsa<'_> {
    type Output = ();
    fn visit<F: BlockFormat>(self) {
        let WithIsa(Panels { ops, mut out, memory, .. }, isa) = self;
        let shape = if out.n_tokens() <= MAX_FEW_TOKENS { FEW_TOKENS } else { MANY_TOKENS };
        for first_token in (0..out.n_tokens()).step_by(MAX_TOKENS) {
            let n_tokens = (out.n_tokens() - first_token).min(MAX_TOKENS);
            for first_row in (0..out.n_rows()).step_by(shape.rows) {
                let n_rows = (out.n_rows() - first_row).min(shape.rows);
                // One run through the panel even where rows have no elements: the outputs are then zeros.
                for start in (0..ops.len.max(1)).step_by(shape.len) {
                    let len = (ops.len - start).min(shape.len);
                    // SAFETY: rows and tokens of `out`, which the maker of the `Panels` says the operands have;
                    // `start + len <= ops.len`, and `start` is a multiple of every block.
                    unsafe {
                        let from = ops.weight.add(first_row * ops.row_stride + start / F::BLOCK_LEN * F::BLOCK_BYTES);
                        let (row_bytes, stride, panel) = (ops.row_stride, shape.stride(), &mut *memory.panel);
                        isa.run(Widen::<F> { from, row_bytes, n_rows, len, panel, stride, _format: PhantomData });
                        let block = Block {
                            ops: Operands {
                                weight: memory.panel.as_ptr().cast(),
                                row_stride: shape.stride() * size_of::<f32>(),
                                x: ops.x.add(first_token * ops.x_stride + start),
                                x_stride: ops.x_stride,
                                len,
                            },
                            next: ops.weight.wrapping_add(if start + len < ops.len {
                                first_row * ops.row_stride + (start + len) / F::BLOCK_LEN * F::BLOCK_BYTES
                            } else {
                                (first_row + n_rows) * ops.row_stride
                            }),
                            next_stride: ops.row_stride,
                            next_bytes: len / F::BLOCK_LEN * F::BLOCK_BYTES,
                            panel_rows: shape.rows,
                            first_row,
                            first_token,
                            n_rows,
                            n_tokens,
                            is_first: start == 0,
                            is_last: start + len == ops.len,
                        };
                        isa.run(Tokens { block: &block, out: &mut out, acc: &mut *memory.acc });
                    }
                }
            }
        }
    }
}

/// Widens `n_rows` rows, `len` elements of each, into a panel whose rows are `stride >= len` apart. The rows may be read, and
/// `len` is whole blocks.
struct Widen<'a, F> {
    from: *const u8,
    row_bytes: usize,
    n_rows: usize,
    len: usize,
    panel: &'a mut [f32],
    stride: usize,
    _format: PhantomData<F>,
}

impl<F: BlockFormat> Kernel for Widen<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (row, to) in self.panel.chunks_exact_mut(self.stride).take(self.n_rows).enumerate() {
            let from = self.from.wrapping_add(row * self.row_bytes);
            // SAFETY: made only with rows that may be read.
            unsafe {
                if F::PACKED {
                    unpack::<S, F>(simd, from, &mut to[..self.len]);
                } else {
                    widen::<S, F>(simd, from, &mut to[..self.len]);
                }
            }
        }
    }
}

/// A block's tokens: the same code whatever format the panel was widened from. `out` has the block's rows and tokens, and
/// `acc` is large enough for them.
struct Tokens<'a, 'b> {
    block: &'a Block,
    out: &'a mut OutView<'b>,
    acc: &'a mut [f32],
}

impl Kernel for Tokens<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Rows by tokens that fill the registers: 24 sums, 4 weights and an activation of 32. 12, 1 and 3 of 16.
        // SAFETY: made only with a block that has its operands.
        unsafe {
            if S::LANES == 16 {
                self.block.tokens::<S, 6>(simd, self.out, self.acc);
            } else {
                self.block.tokens::<S, 3>(simd, self.out, self.acc);
            }
        }
    }
}

/// Unpacks a row's blocks.
///
/// # Safety
/// The blocks of `to` may be read from `from`.
#[inline(always)]
unsafe fn unpack<S: Simd, F: BlockFormat>(simd: S, from: *const u8, to: &mut [f32]) {
    for (block, to) in to.chunks_exact_mut(F::BLOCK_LEN).enumerate() {
        // SAFETY: a block of the row, and room for its values.
        unsafe { F::unpack(simd, from.add(block * F::BLOCK_BYTES), to.as_mut_ptr()) }
    }
}

/// Widens a row, vector by vector.
///
/// # Safety
/// The elements of `to` may be read from `from`.
#[inline(always)]
unsafe fn widen<S: Simd, F: BlockFormat>(simd: S, from: *const u8, to: &mut [f32]) {
    let (step_len, step_bytes) = (step_len::<S, F>(), step_bytes::<S, F>());
    let n_steps = to.len() / step_len;
    // SAFETY: the row may be read, and has `n_steps` whole steps and a rest.
    unsafe {
        for step in 0..n_steps {
            for part in 0..step_len / S::LANES {
                let w = F::load(simd, from.add(step * step_bytes), part);
                simd.store_ptr(w, to.as_mut_ptr().add(step * step_len + part * S::LANES));
            }
        }
        let rest = &mut to[n_steps * step_len..];
        if F::BLOCK_LEN == 1 && !rest.is_empty() {
            let w = F::load_part(simd, from.add(n_steps * step_bytes), rest.len());
            simd.store_part(w, rest);
        }
    }
}

/// A panel's rows by some tokens, over one stretch of their length.
struct Block {
    ops: Operands,
    /// The bytes that the next panel will be widened from, asked for while this one is at work; they may lie behind the
    /// matrix, as nobody reads them here.
    next: *const u8,
    next_stride: usize,
    next_bytes: usize,
    /// Rows of a full panel.
    panel_rows: usize,
    first_row: usize,
    first_token: usize,
    n_rows: usize,
    n_tokens: usize,
    /// Whether the stretch begins the rows: there are no accumulators yet.
    is_first: bool,
    /// Whether it ends them: the accumulators are summed.
    is_last: bool,
}

impl Block {
    /// All tokens, `T` at a time.
    ///
    /// # Safety
    /// The operands and `out` have the block's rows and tokens, and `acc` is large enough for them.
    #[inline(always)]
    unsafe fn tokens<S: Simd, const T: usize>(&self, simd: S, out: &mut OutView<'_>, acc: &mut [f32]) {
        let n_tiles = self.n_tokens.div_ceil(T);
        for tile in 0..n_tiles {
            let token = tile * T;
            for row in self.panel_rows * tile / n_tiles..self.panel_rows * (tile + 1) / n_tiles {
                for offset in (0..self.next_bytes).step_by(64) {
                    simd.prefetch(self.next.wrapping_add(row * self.next_stride + offset));
                }
            }
            // SAFETY: tokens below `n_tokens`; the rest as the caller vouches.
            unsafe {
                match self.n_tokens - token {
                    n if n >= T => self.rows::<S, T>(simd, out, acc, token),
                    1 => self.rows::<S, 1>(simd, out, acc, token),
                    2 => self.rows::<S, 2>(simd, out, acc, token),
                    3 => self.rows::<S, 3>(simd, out, acc, token),
                    4 if T > 4 => self.rows::<S, 4>(simd, out, acc, token),
                    _ if T > 5 => self.rows::<S, 5>(simd, out, acc, token),
                    _ => unreachable!("fewer than T tokens are left"),
                }
            }
        }
    }

    /// All rows by `T` tokens.
    ///
    /// # Safety
    /// As [`Block::tokens`], and those tokens are the block's.
    #[inline(always)]
    unsafe fn rows<S: Simd, const T: usize>(&self, simd: S, out: &mut OutView<'_>, acc: &mut [f32], token: usize) {
        let mut row = 0;
        // SAFETY: rows below `n_rows`; the rest as the caller vouches.
        unsafe {
            while row + TILE_ROWS <= self.n_rows {
                self.tile::<S, TILE_ROWS, T>(simd, out, acc, row, token);
                row += TILE_ROWS;
            }
            while row < self.n_rows {
                self.tile::<S, 1, T>(simd, out, acc, row, token);
                row += 1;
            }
        }
    }

    /// # Safety
    /// As [`Block::tokens`], and those rows and tokens are the block's.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const T: usize>(
        &self,
        simd: S,
        out: &mut OutView<'_>,
        memory: &mut [f32],
        row: usize,
        token: usize,
    ) {
        let mut acc: Acc<S, R, T> = [[simd.splat(0.0); R]; T];
        let place = |r: usize, t: usize| ((token + t) * PANEL_ROWS + row + r) * S::LANES;
        if !self.is_first {
            for t in 0..T {
                for r in 0..R {
                    acc[t][r] = simd.load(&memory[place(r, t)..]);
                }
            }
        }
        // SAFETY: as the caller vouches.
        unsafe {
            let ops = Operands {
                weight: self.ops.weight.add(row * self.ops.row_stride),
                x: self.ops.x.add(token * self.ops.x_stride),
                ..self.ops
            };
            acc = tile::<S, F32, R, T, false>(simd, ops, acc);
            if self.is_last {
                out.put(simd, self.first_row + row, 1, self.first_token + token, acc);
                return;
            }
        }
        for t in 0..T {
            for r in 0..R {
                simd.store(acc[t][r], &mut memory[place(r, t)..]);
            }
        }
    }
}

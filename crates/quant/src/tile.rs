//! Dot products of rows with tokens, some rows by some tokens at a time.
//!
//! Everything that multiplies weights goes through [`tile`], whose order of operations is the crate's promise: an output
//! element is one accumulator of [`Simd::LANES`] lanes that walks along the row from its first element to its last, one
//! fused multiply-add a vector, and is then summed by [`Simd::sum`]. Rows by tokens changes which outputs are under way
//! at once and nothing else.
#![allow(clippy::needless_range_loop)] // Indices of rows and tokens, which address memory too.
#![allow(unsafe_code)] // Raw loads: a tile walks several rows and tokens at once.

use crate::formats::BlockFormat;
use crate::simd::Simd;
use std::marker::PhantomData;

/// A part of a row-major matrix that one thread may write: `n_tokens` rows of `n_rows` elements, `stride` elements apart.
///
/// The output of a product is `[n_tokens, n_rows]` while threads divide the weight's rows, so a thread writes columns.
#[derive(Debug)]
pub struct OutView<'a> {
    first: *mut f32,
    stride: usize,
    n_tokens: usize,
    n_rows: usize,
    _out: PhantomData<&'a mut [f32]>,
}

// SAFETY: an exclusive view of plain numbers, like `&mut [f32]`.
unsafe impl Send for OutView<'_> {}

impl<'a> OutView<'a> {
    /// All of a matrix `[n_tokens, n_rows]`.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn new(out: &'a mut [f32], n_tokens: usize, n_rows: usize) -> OutView<'a> {
        assert_eq!(out.len(), n_tokens * n_rows, "out is [{n_tokens}, {n_rows}]");
        OutView { first: out.as_mut_ptr(), stride: n_rows, n_tokens, n_rows, _out: PhantomData }
    }

    /// `n_tokens` rows of `n_rows` elements, `stride` elements apart, from `first` on.
    ///
    /// # Safety
    /// For the lifetime `'a` those elements are valid and nobody else reads or writes them.
    pub unsafe fn from_raw(first: *mut f32, stride: usize, n_tokens: usize, n_rows: usize) -> OutView<'a> {
        OutView { first, stride, n_tokens, n_rows, _out: PhantomData }
    }

    /// Rows of the matrix.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Elements of each row.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
}

/// How far ahead of its loads a tile asks for weights: on one core, streams of whole rows then come from memory as fast as
/// a plain read of the same bytes (16.5 GB/s; 14.4 without). Anything from 512 to 2048 does.
const PREFETCH_BYTES: usize = 512;

/// Where a tile's weight rows and tokens lie, or a stretch of them along the rows.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// The first weight row; the next is `row_stride` bytes further.
    pub(crate) weight: *const u8,
    pub(crate) row_stride: usize,
    /// The first token; the next is `x_stride` elements further.
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    /// Elements of a row, or of the stretch.
    pub(crate) len: usize,
}

/// Accumulators of `R` weight rows by `T` tokens.
pub(crate) type Acc<S, const R: usize, const T: usize> = [[<S as Simd>::F; R]; T];

/// Elements of a step ([`BlockFormat::load`]).
#[inline(always)]
pub(crate) const fn step_len<S: Simd, F: BlockFormat>() -> usize {
    if F::BLOCK_LEN == 1 { S::LANES } else { F::BLOCK_LEN }
}

/// Bytes of a step.
#[inline(always)]
pub(crate) const fn step_bytes<S: Simd, F: BlockFormat>() -> usize {
    step_len::<S, F>() / F::BLOCK_LEN * F::BLOCK_BYTES
}

/// Carries `acc` on along the operands' first `R` weight rows and `T` tokens.
///
/// Where rows are cut into stretches, all but the last are a multiple of a step long.
///
/// `PREFETCH`: whether the weights come from memory. Where they are in a cache, asking for them only takes time.
///
/// # Safety
/// The operands hold those rows and tokens.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, F: BlockFormat, const R: usize, const T: usize, const PREFETCH: bool>(
    simd: S,
    ops: Operands,
    mut acc: Acc<S, R, T>,
) -> Acc<S, R, T> {
    let Operands { weight, row_stride, x, x_stride, .. } = ops;
    // SAFETY: `R` rows of `weight`, `T` tokens of `x`, and elements below `len` of each.
    unsafe {
        let (len, bytes) = (step_len::<S, F>(), step_bytes::<S, F>());
        let n_steps = ops.len / len;
        for step in 0..n_steps {
            for part in 0..len / S::LANES {
                let mut w = [simd.splat(0.0); R];
                for r in 0..R {
                    w[r] = F::load(simd, weight.add(r * row_stride + step * bytes), part);
                    if PREFETCH && part == 0 {
                        simd.prefetch(weight.wrapping_add(r * row_stride + step * bytes + PREFETCH_BYTES));
                    }
                }
                for t in 0..T {
                    let x = simd.load_ptr(x.add(t * x_stride + step * len + part * S::LANES));
                    for r in 0..R {
                        acc[t][r] = simd.mul_add(w[r], x, acc[t][r]);
                    }
                }
            }
        }
        let rest = ops.len - n_steps * len;
        if F::BLOCK_LEN == 1 && rest > 0 {
            let mut w = [simd.splat(0.0); R];
            for r in 0..R {
                w[r] = F::load_part(simd, weight.add(r * row_stride + n_steps * bytes), rest);
            }
            for t in 0..T {
                let x = simd.load_ptr_part(x.add(t * x_stride + n_steps * len), rest);
                for r in 0..R {
                    acc[t][r] = simd.mul_add(w[r], x, acc[t][r]);
                }
            }
        }
        acc
    }
}

impl OutView<'_> {
    /// Where an element lies; those of the rows after it follow.
    ///
    /// # Safety
    /// The view has that token and that row.
    #[inline(always)]
    pub(crate) unsafe fn at(&mut self, token: usize, row: usize) -> *mut f32 {
        // SAFETY: an element of the view, as the caller vouches.
        unsafe { self.first.add(token * self.stride + row) }
    }

    /// Writes a tile's sums: of rows `row`, `row + row_step` and so on, and of neighbouring tokens.
    ///
    /// # Safety
    /// The view has those rows and tokens.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd, const R: usize, const T: usize>(
        &mut self,
        simd: S,
        row: usize,
        row_step: usize,
        token: usize,
        acc: Acc<S, R, T>,
    ) {
        for (t, acc) in acc.iter().enumerate() {
            // SAFETY: elements of the view, as the caller vouches.
            unsafe {
                let out = self.first.add((token + t) * self.stride + row);
                for r in (0..R).step_by(4) {
                    if r + 4 <= R {
                        let sums = simd.sum4([acc[r], acc[r + 1], acc[r + 2], acc[r + 3]]);
                        for (i, sum) in sums.into_iter().enumerate() {
                            out.add((r + i) * row_step).write(sum);
                        }
                    } else {
                        for r in r..R {
                            out.add(r * row_step).write(simd.sum(acc[r]));
                        }
                    }
                }
            }
        }
    }
}

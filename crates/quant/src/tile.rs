//! Dot products of rows with tokens, some rows by some tokens at a time.
//!
//! Everything that multiplies weights goes through [`tile`], whose order of operations is the crate's promise: an output
//! element is one accumulator of [`Simd::LANES`] lanes that walks along the row from its first element to its last, one
//! fused multiply-add a vector, and is then summed by [`Simd::sum`]. Rows by tokens changes which outputs are under way
//! at once and nothing else.
#![allow(unsafe_code)] // Raw loads: a tile walks several rows and tokens at once.

use crate::formats::{BlockFormat, Format, Visitor};
use crate::isa::{Isa, Kernel};
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

/// The operands of a product: `out[t, r] = dot(weight row r, x row t)`.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// `[n_rows, row_bytes]`
    pub(crate) weight: *const u8,
    pub(crate) row_bytes: usize,
    /// `[n_tokens, x_stride]`, of which `row_len` are read.
    pub(crate) x: *const f32,
    pub(crate) x_stride: usize,
    pub(crate) row_len: usize,
}

/// Elements of a step ([`BlockFormat::load`]).
#[inline(always)]
const fn step_len<S: Simd, F: BlockFormat>() -> usize {
    if F::BLOCK_LEN == 1 { S::LANES } else { F::BLOCK_LEN }
}

/// Accumulators of `R` weight rows by `T` tokens, from row `row` and token `token` on.
///
/// # Safety
/// The operands hold those rows and tokens.
#[inline(always)]
unsafe fn tile<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    ops: Operands,
    row: usize,
    token: usize,
) -> [[S::F; T]; R] {
    // SAFETY: rows `row..row + R` of `weight`, tokens `token..token + T` of `x`, elements below `row_len` of each.
    unsafe {
        let weight = ops.weight.add(row * ops.row_bytes);
        let x = ops.x.add(token * ops.x_stride);
        let mut acc = [[simd.splat(0.0); T]; R];
        let len = step_len::<S, F>();
        let step_bytes = len / F::BLOCK_LEN * F::BLOCK_BYTES;
        let n_steps = ops.row_len / len;
        for step in 0..n_steps {
            for part in 0..len / S::LANES {
                let mut w = [simd.splat(0.0); R];
                for r in 0..R {
                    w[r] = F::load(simd, weight.add(r * ops.row_bytes + step * step_bytes), part);
                }
                for t in 0..T {
                    let x = simd.load_ptr(x.add(t * ops.x_stride + step * len + part * S::LANES));
                    for r in 0..R {
                        acc[r][t] = simd.mul_add(w[r], x, acc[r][t]);
                    }
                }
            }
        }
        let rest = ops.row_len - n_steps * len;
        if F::BLOCK_LEN == 1 && rest > 0 {
            let mut w = [simd.splat(0.0); R];
            for r in 0..R {
                w[r] = F::load_part(simd, weight.add(r * ops.row_bytes + n_steps * step_bytes), rest);
            }
            for t in 0..T {
                let x = simd.load_ptr_part(x.add(t * ops.x_stride + n_steps * len), rest);
                for r in 0..R {
                    acc[r][t] = simd.mul_add(w[r], x, acc[r][t]);
                }
            }
        }
        acc
    }
}

/// A tile's outputs, written to `out`.
///
/// # Safety
/// As [`tile`], and `out` has those rows and tokens.
#[inline(always)]
unsafe fn tile_out<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    ops: Operands,
    out: &mut OutView<'_>,
    row: usize,
    token: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let acc = tile::<S, F, R, T>(simd, ops, row, token);
        for t in 0..T {
            let out = out.first.add((token + t) * out.stride + row);
            for r in 0..R {
                *out.add(r) = simd.sum(acc[r][t]);
            }
        }
    }
}

/// All rows by `T` tokens from `token` on: eight rows at a time, or four where eight would not fit the registers.
///
/// # Safety
/// The operands and `out` have those tokens, and the operands have all rows of `out`.
#[inline(always)]
unsafe fn rows<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    ops: Operands,
    out: &mut OutView<'_>,
    token: usize,
) {
    let mut row = 0;
    // SAFETY: rows below `n_rows`; the rest as the caller vouches.
    unsafe {
        while row + R <= out.n_rows {
            tile_out::<S, F, R, T>(simd, ops, out, row, token);
            row += R;
        }
        while row < out.n_rows {
            tile_out::<S, F, 1, T>(simd, ops, out, row, token);
            row += 1;
        }
    }
}

/// Weights straight from their blocks: for few tokens, where reading the weights is what takes the time.
pub(crate) struct Direct<'a> {
    pub(crate) format: Format,
    pub(crate) ops: Operands,
    pub(crate) out: OutView<'a>,
}

impl Direct<'_> {
    /// # Safety
    /// The operands have all rows and tokens of `out`.
    pub(crate) unsafe fn run(self, isa: Isa) {
        isa.run(DirectKernel(self));
    }
}

struct DirectKernel<'a>(Direct<'a>);

impl Kernel for DirectKernel<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        struct PerFormat<'a, S>(Direct<'a>, S);
        impl<S: Simd> Visitor for PerFormat<'_, S> {
            type Output = ();
            #[inline(always)]
            fn visit<F: BlockFormat>(mut self) {
                let (simd, ops, out) = (self.1, self.0.ops, &mut self.0.out);
                let mut token = 0;
                // SAFETY: `Direct::run`'s caller vouches for the operands; tokens stay below `n_tokens`.
                unsafe {
                    while token < out.n_tokens {
                        match out.n_tokens - token {
                            1 => rows::<S, F, 8, 1>(simd, ops, out, token),
                            2 => rows::<S, F, 8, 2>(simd, ops, out, token),
                            3 => rows::<S, F, 4, 3>(simd, ops, out, token),
                            _ => rows::<S, F, 4, 4>(simd, ops, out, token),
                        }
                        token += 4;
                    }
                }
            }
        }
        self.0.format.visit(PerFormat(self.0, simd));
    }
}

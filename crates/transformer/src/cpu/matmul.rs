//! Products of activations with weight matrices, the weights' rows divided among the threads.
#![allow(unsafe_code)] // Threads write columns of the same output.

use super::pool::{Pool, SharedSlice, share};
use quant::{Format, Isa, OutView, Scratch};

/// Rows of a weight matrix are handed to threads in multiples of this: 16 outputs fill a cache line, so that no two
/// threads write the same one.
const ROW_UNIT: usize = 16;

/// A weight matrix in the bytes of its file.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// How the rows are stored.
    pub format: Format,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
    /// `[n_rows, n_cols]`, row-major.
    pub bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// When `bytes` is not `[n_rows, n_cols]` of `format`.
    pub fn new(format: Format, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Matrix<'a> {
        assert_eq!(bytes.len(), n_rows * format.row_bytes(n_cols), "bytes of [{n_rows}, {n_cols}] in {format:?}");
        Matrix { format, n_rows, n_cols, bytes }
    }

    /// One row, as `f32`.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not `[n_cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_cols, "a row has n_cols elements");
        let row_bytes = self.format.row_bytes(self.n_cols);
        quant::dequantize(self.format, &self.bytes[row * row_bytes..][..row_bytes], out);
    }
}

/// One product of a [`matmul`]: `out[t, r] = dot(weight[r], x[t]) + bias[r]`.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[n_rows, n_cols]`
    pub weight: Matrix<'a>,
    /// `[n_rows]`
    pub bias: Option<&'a [f32]>,
    /// `[n_tokens, n_rows]`
    pub out: &'a mut [f32],
}

/// The threads' working memory, of a fixed size.
#[derive(Debug)]
pub struct MatmulScratch {
    per_thread: Vec<Scratch>,
}

impl MatmulScratch {
    /// Memory for a pool of `n_threads`.
    pub fn new(n_threads: usize) -> MatmulScratch {
        MatmulScratch { per_thread: (0..n_threads).map(|_| Scratch::new()).collect() }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.per_thread.iter().map(Scratch::n_bytes).sum()
    }
}

/// Computes some products of the same activations `x [n_tokens, n_cols]` in one parallel section.
///
/// The bits of an output depend on its weight row, its token and `isa` alone: not on `n_tokens`, the number of threads, or
/// which products share the call.
///
/// # Panics
/// When a shape does not fit, `scratch` is for fewer threads than `pool` has, or the processor lacks `isa`.
pub fn matmul(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    n_tokens: usize,
    products: &mut [Product<'_>],
    scratch: &mut MatmulScratch,
) {
    for p in products.iter_mut() {
        let (n_rows, n_cols) = (p.weight.n_rows, p.weight.n_cols);
        assert_eq!(x.len(), n_tokens * n_cols, "x is [{n_tokens}, {n_cols}]");
        assert_eq!(p.out.len(), n_tokens * n_rows, "out is [{n_tokens}, {n_rows}]");
        assert!(p.bias.is_none_or(|bias| bias.len() == n_rows), "bias is [{n_rows}]");
        let out = SharedSlice::new(p.out);
        let scratches = SharedSlice::new(&mut scratch.per_thread);
        let (weight, bias) = (p.weight, p.bias);
        pool.run(|thread_idx, n_threads| {
            let rows = share(n_rows, ROW_UNIT, thread_idx, n_threads);
            if rows.is_empty() || n_tokens == 0 {
                return;
            }
            let row_bytes = weight.format.row_bytes(n_cols);
            let bytes = &weight.bytes[rows.start * row_bytes..rows.end * row_bytes];
            // SAFETY: each thread has its own index; threads write different columns.
            unsafe {
                let scratch = &mut scratches.range_mut(thread_idx..thread_idx + 1)[0];
                let view = OutView::from_raw(out.ptr(rows.start), n_rows, n_tokens, rows.len());
                quant::matmul(isa, weight.format, bytes, n_cols, x, view, scratch);
                if let Some(bias) = bias {
                    for t in 0..n_tokens {
                        let out = std::slice::from_raw_parts_mut(out.ptr(t * n_rows + rows.start), rows.len());
                        out.iter_mut().zip(&bias[rows.clone()]).for_each(|(out, bias)| *out += bias);
                    }
                }
            }
        });
    }
}

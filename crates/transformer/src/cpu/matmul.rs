//! Products of activations with weight matrices, the weights' rows divided among the threads.
#![allow(unsafe_code)] // Threads write columns of the same output.

use super::pool::{Pool, SharedSlice, share};
use quant::{Activations16, Activations16Parts, Format, IntegerIsa, Interleaved, Isa, OutView, Scratch, matmul16};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Rows of a weight matrix are handed to threads in multiples of this: 16 outputs fill a cache line, so that no two
/// threads write the same one.
const ROW_UNIT: usize = 16;

/// Threads take rows chunk by chunk, about this many each, so that one that the system interrupts, on a machine whose
/// cores also serve HTTP, holds up the others by a chunk at most. More would cut the streams of weights short.
const CHUNKS_PER_THREAD: usize = 8;

/// The fewest units of a chunk: a panel's rows.
const MIN_CHUNK: usize = 2;

/// A block of activations that are rounded to 16 bits.
const ROUNDED_BLOCK: usize = 32;
/// The fewest activations for which other threads are woken to round them.
const MIN_SHARED_ROUNDING: usize = 1 << 15;

/// The most products of one call: query, key and value, and one to spare.
pub const MAX_PRODUCTS: usize = 4;

/// A weight matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// How the rows are stored, or were in the file.
    pub format: Format,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
    /// `[n_rows, n_cols]`
    pub values: Values<'a>,
}

/// Where a matrix's weights are.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// In the bytes of the file, row-major; multiplied with activations in F32.
    Rows(&'a [u8]),
    /// Interleaved; multiplied with activations rounded to 16 bits, by these instructions.
    Interleaved(&'a Interleaved, IntegerIsa),
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// When `bytes` is not `[n_rows, n_cols]` of `format`.
    pub fn new(format: Format, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Matrix<'a> {
        assert_eq!(bytes.len(), n_rows * format.row_bytes(n_cols), "bytes of [{n_rows}, {n_cols}] in {format:?}");
        Matrix { format, n_rows, n_cols, values: Values::Rows(bytes) }
    }

    /// Interleaved weights.
    pub fn interleaved(interleaved: &'a Interleaved, isa: IntegerIsa) -> Matrix<'a> {
        let (n_rows, n_cols) = (interleaved.n_rows(), interleaved.n_cols());
        Matrix { format: interleaved.format(), n_rows, n_cols, values: Values::Interleaved(interleaved, isa) }
    }

    /// One row, as `f32`.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not `[n_cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_cols, "a row has n_cols elements");
        let row_bytes = self.format.row_bytes(self.n_cols);
        match self.values {
            Values::Rows(bytes) => quant::dequantize(self.format, &bytes[row * row_bytes..][..row_bytes], out),
            Values::Interleaved(interleaved, _) => interleaved.row(row, out),
        }
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
    activations: Activations16,
}

impl MatmulScratch {
    /// Memory for a pool of `n_threads`, and for `n_rounded` activations of products with interleaved weights.
    pub fn new(n_threads: usize, n_rounded: usize) -> MatmulScratch {
        let per_thread = (0..n_threads).map(|_| Scratch::new()).collect();
        MatmulScratch { per_thread, activations: Activations16::with_capacity(n_rounded) }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.per_thread.iter().map(Scratch::n_bytes).sum::<usize>() + self.activations.n_bytes()
    }
}

/// Computes some products of the same activations `x [n_tokens, n_cols]` in one parallel section.
///
/// The bits of an output depend on its weight row, its token and `isa` alone: not on `n_tokens`, the number of threads, or
/// which products share the call.
///
/// # Panics
/// When a shape does not fit, there are more than [`MAX_PRODUCTS`], `scratch` is for fewer threads than `pool` has, or the
/// processor lacks `isa` or what interleaved weights need.
pub fn matmul(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    n_tokens: usize,
    products: &mut [Product<'_>],
    scratch: &mut MatmulScratch,
) {
    assert!(products.len() <= MAX_PRODUCTS, "{} products, at most {MAX_PRODUCTS} at once", products.len());
    let mut n_units = 0;
    let mut products = products.iter_mut().map(|product| Part::new(product, x, n_tokens, &mut n_units));
    let parts: [Option<Part<'_>>; MAX_PRODUCTS] = std::array::from_fn(|_| products.next());
    if n_tokens == 0 || n_units == 0 {
        return;
    }
    let MatmulScratch { per_thread, activations } = scratch;
    if let Some(interleaved) = parts.iter().flatten().find(|part| matches!(part.weight.values, Values::Interleaved(..)))
    {
        round(pool, x, n_tokens, interleaved.weight.n_cols, activations);
    }
    let activations = &*activations;
    let chunk = n_units.div_ceil(pool.n_threads() * CHUNKS_PER_THREAD).max(MIN_CHUNK);
    let n_taken = AtomicUsize::new(0);
    let scratches = SharedSlice::new(per_thread);
    pool.run(|thread_idx, _| {
        // SAFETY: each thread has its own index.
        let scratch = &mut unsafe { scratches.range_mut(thread_idx..thread_idx + 1) }[0];
        loop {
            let first = n_taken.fetch_add(chunk, Relaxed);
            if first >= n_units {
                return;
            }
            for part in parts.iter().flatten() {
                let rows = part.rows(&(first..(first + chunk).min(n_units)));
                if !rows.is_empty() {
                    // SAFETY: chunks do not overlap, and each is taken once.
                    unsafe { part.compute(isa, x, activations, n_tokens, rows, scratch) };
                }
            }
        }
    });
}

/// Rounds `x [n_tokens, n_cols]` to 16 bits, once for all products.
fn round(pool: &Pool, x: &[f32], n_tokens: usize, n_cols: usize, activations: &mut Activations16) {
    activations.resize(n_tokens, n_cols);
    let whole = activations.parts();
    if x.len() < MIN_SHARED_ROUNDING {
        return whole.quantize(x);
    }
    let Activations16Parts { quants, scales, sums, scaled_sums } = whole;
    let (quants, scales) = (SharedSlice::new(quants), SharedSlice::new(scales));
    let (sums, scaled_sums) = (SharedSlice::new(sums), SharedSlice::new(scaled_sums));
    pool.run(|thread_idx, n_threads| {
        let values = share(x.len(), ROUNDED_BLOCK, thread_idx, n_threads);
        let blocks = values.start / ROUNDED_BLOCK..values.end / ROUNDED_BLOCK;
        // SAFETY: the shares of different threads do not overlap.
        let part = unsafe {
            Activations16Parts {
                quants: quants.range_mut(2 * values.start..2 * values.end),
                scales: scales.range_mut(blocks.clone()),
                sums: sums.range_mut(2 * blocks.start..2 * blocks.end),
                scaled_sums: scaled_sums.range_mut(blocks),
            }
        };
        part.quantize(&x[values]);
    });
}

/// A product whose rows, in units of [`ROW_UNIT`], follow those of the products before it.
struct Part<'a> {
    weight: Matrix<'a>,
    bias: Option<&'a [f32]>,
    out: SharedSlice<'a, f32>,
    first_unit: usize,
}

impl<'a> Part<'a> {
    fn new(product: &'a mut Product<'_>, x: &[f32], n_tokens: usize, n_units: &mut usize) -> Part<'a> {
        let weight = product.weight;
        let Matrix { n_rows, n_cols, .. } = weight;
        assert_eq!(x.len(), n_tokens * n_cols, "x is [{n_tokens}, {n_cols}]");
        assert_eq!(product.out.len(), n_tokens * n_rows, "out is [{n_tokens}, {n_rows}]");
        assert!(product.bias.is_none_or(|bias| bias.len() == n_rows), "bias is [{n_rows}]");
        let first_unit = *n_units;
        *n_units += n_rows.div_ceil(ROW_UNIT);
        Part { weight, bias: product.bias, out: SharedSlice::new(product.out), first_unit }
    }

    /// The rows of this product within a range of the units of all products.
    fn rows(&self, units: &Range<usize>) -> Range<usize> {
        let row = |unit: usize| (unit.saturating_sub(self.first_unit) * ROW_UNIT).min(self.weight.n_rows);
        row(units.start)..row(units.end)
    }

    /// Computes some rows, for all tokens.
    ///
    /// # Safety
    /// Nobody else computes those rows meanwhile.
    unsafe fn compute(
        &self,
        isa: Isa,
        x: &[f32],
        rounded: &Activations16,
        n_tokens: usize,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Matrix { format, n_rows, n_cols, values } = self.weight;
        // SAFETY: columns `rows` of a matrix `[n_tokens, n_rows]`, which only this call writes.
        let view = unsafe { OutView::from_raw(self.out.ptr(rows.start), n_rows, n_tokens, rows.len()) };
        match values {
            Values::Rows(bytes) => {
                let row_bytes = format.row_bytes(n_cols);
                let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                quant::matmul(isa, format, bytes, n_cols, x, view, scratch);
            }
            Values::Interleaved(interleaved, integers) => {
                matmul16(integers, interleaved, rows.clone(), rounded, view, scratch)
            }
        }
        let Some(bias) = self.bias else { return };
        for t in 0..n_tokens {
            // SAFETY: as above, row by row.
            let out = unsafe { self.out.range_mut(t * n_rows + rows.start..t * n_rows + rows.end) };
            out.iter_mut().zip(&bias[rows.clone()]).for_each(|(out, bias)| *out += bias);
        }
    }
}

#[cfg(test)]
mod tests;

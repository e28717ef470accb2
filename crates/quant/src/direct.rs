//! Products with weights straight from their blocks: for few tokens, where reading the weights is what takes the time.
#![allow(unsafe_code)] // Runs tiles.

use crate::formats::{BlockFormat, Format, Visitor};
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::tile::{Operands, OutView, tile};
use std::ops::Range;

/// Bytes of weights that stay in the second-level cache while tokens pass by.
const BLOCK_BYTES: usize = 128 << 10;

/// The product of all rows and tokens of `out`.
pub(crate) struct Direct<'a> {
    format: Format,
    ops: Operands,
    out: OutView<'a>,
}

impl<'a> Direct<'a> {
    /// # Safety
    /// The operands have all rows and tokens of `out`.
    pub(crate) unsafe fn new(format: Format, ops: Operands, out: OutView<'a>) -> Direct<'a> {
        Direct { format, ops, out }
    }
}

impl Kernel for Direct<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.format.visit(WithSimd(self, simd));
    }
}

struct WithSimd<'a, S>(Direct<'a>, S);

impl<S: Simd> Visitor for WithSimd<'_, S> {
    type Output = ();
    #[inline(always)]
    fn visit<F: BlockFormat>(self) {
        let WithSimd(Direct { ops, mut out, .. }, simd) = self;
        // Rows by tokens that fill the registers: up to 24 sums of 32, 16 of 16.
        let max_tokens = if S::LANES == 16 { 6 } else { 4 };
        let (n_tokens, n_rows) = (out.n_tokens(), out.n_rows());
        // Where the tokens do not fit one tile, rows that stay in the cache until all tokens have met them.
        let block_len = if n_tokens <= max_tokens { n_rows } else { (BLOCK_BYTES / ops.row_stride.max(1)).max(8) };
        for first_row in (0..n_rows).step_by(block_len.max(1)) {
            let rows = first_row..(first_row + block_len).min(n_rows);
            // SAFETY: the maker of the `Direct` vouches for the operands; rows and tokens stay below those of `out`.
            unsafe {
                for first in (0..n_tokens).step_by(max_tokens) {
                    let run = Run { ops, rows: rows.clone(), token: first };
                    match (n_tokens - first).min(max_tokens) {
                        1 if first > 0 => run.walk::<S, F, 8, 1, false>(simd, &mut out),
                        1 => run.walk::<S, F, 8, 1, true>(simd, &mut out),
                        2 if first > 0 => run.walk::<S, F, 8, 2, false>(simd, &mut out),
                        2 => run.walk::<S, F, 8, 2, true>(simd, &mut out),
                        3 => run.walk::<S, F, 4, 3, true>(simd, &mut out),
                        4 => run.walk::<S, F, 4, 4, true>(simd, &mut out),
                        5 => run.walk::<S, F, 4, 5, true>(simd, &mut out),
                        _ if first > 0 => run.walk::<S, F, 4, 6, false>(simd, &mut out),
                        _ => run.walk::<S, F, 4, 6, true>(simd, &mut out),
                    }
                }
            }
        }
    }
}

/// Some rows by some tokens.
struct Run {
    ops: Operands,
    rows: Range<usize>,
    token: usize,
}

impl Run {
    /// The rows by `T` tokens.
    ///
    /// `R` rows are under way at once, which hides the time that one multiply-add takes. They lie far apart: each begins
    /// a run of neighbouring rows of its own, so that memory is read as `R` long streams, which the processor sees coming.
    /// (`R` neighbouring rows would be `R` short streams, all of which end with the row: 10 GB/s instead of 14 on one
    /// core, without prefetching.)
    ///
    /// # Safety
    /// The operands and `out` have those rows and tokens.
    #[inline(always)]
    unsafe fn walk<S: Simd, F: BlockFormat, const R: usize, const T: usize, const PREFETCH: bool>(
        self,
        simd: S,
        out: &mut OutView<'_>,
    ) {
        let Run { ops, rows, token } = self;
        let n = rows.len() / R;
        // SAFETY: as the caller vouches.
        unsafe {
            let x = ops.x.add(token * ops.x_stride);
            let at = |row: usize| Operands { weight: ops.weight.add(row * ops.row_stride), x, ..ops };
            for row in rows.start..rows.start + n {
                let ops = Operands { row_stride: n * ops.row_stride, ..at(row) };
                let acc = tile::<S, F, R, T, PREFETCH>(simd, ops, [[simd.splat(0.0); R]; T]);
                out.put(simd, row, n, token, acc);
            }
            for row in rows.start + n * R..rows.end {
                let acc = tile::<S, F, 1, T, PREFETCH>(simd, at(row), [[simd.splat(0.0); 1]; T]);
                out.put(simd, row, 1, token, acc);
            }
        }
    }
}

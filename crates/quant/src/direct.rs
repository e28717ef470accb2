//! Products with weights straight from their blocks: for few tokens, where reading the weights is what takes the time.
#![allow(unsafe_code)] // Runs tiles.

use crate::formats::{BlockFormat, Format, Visitor};
use crate::isa::{Isa, Kernel};
use crate::simd::Simd;
use crate::tile::{Operands, OutView, tile};
use std::marker::PhantomData;
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

impl Direct<'_> {
    /// Runs the product with `isa`.
    pub(crate) fn run(self, isa: Isa) {
        self.format.visit(WithIsa(self, isa));
    }
}

struct WithIsa<'a>(Direct<'a>, Isa);

impl Visitor for WithIsa<'_> {
    type Output = ();
    fn visit<F: BlockFormat>(self) {
        if F::PACKED {
            unreachable!("a packed format is multiplied from panels"); // Not compiled for it either.
        }
        let WithIsa(Direct { ops, mut out, .. }, isa) = self;
        let max_tokens = if isa == Isa::Avx512 { max_tokens(16) } else { max_tokens(8) };
        let (n_tokens, n_rows) = (out.n_tokens(), out.n_rows());
        // Where the tokens do not fit one tile, rows that stay in the cache until all tokens have met them.
        let block_len = if n_tokens <= max_tokens { n_rows } else { (BLOCK_BYTES / ops.row_stride.max(1)).max(8) };
        for first_row in (0..n_rows).step_by(block_len.max(1)) {
            let rows = first_row..(first_row + block_len).min(n_rows);
            for token in (0..n_tokens).step_by(max_tokens) {
                let run = Run { ops, rows: rows.clone(), token, out: &mut out };
                match (n_tokens - token).min(max_tokens) {
                    1 if token > 0 => isa.run(Walk::<F, 8, 1, false>::new(run)),
                    1 => isa.run(Walk::<F, 8, 1, true>::new(run)),
                    2 if token > 0 => isa.run(Walk::<F, 8, 2, false>::new(run)),
                    2 => isa.run(Walk::<F, 8, 2, true>::new(run)),
                    3 => isa.run(Walk::<F, 4, 3, true>::new(run)),
                    4 => isa.run(Walk::<F, 4, 4, true>::new(run)),
                    5 => isa.run(Walk::<F, 4, 5, true>::new(run)),
                    _ if token > 0 => isa.run(Walk::<F, 4, 6, false>::new(run)),
                    _ => isa.run(Walk::<F, 4, 6, true>::new(run)),
                }
            }
        }
    }
}

/// Tokens of a tile, so that rows by tokens fill the registers: up to 24 sums of 32, 16 of 16.
const fn max_tokens(lanes: usize) -> usize {
    if lanes == 16 { 6 } else { 4 }
}

/// Some rows by some tokens, which the operands and `out` have.
struct Run<'a, 'b> {
    ops: Operands,
    rows: Range<usize>,
    token: usize,
    out: &'a mut OutView<'b>,
}

/// A [`Run`] with tiles of `R` rows by `T` tokens.
///
/// A kernel of its own for each shape: as parts of one function they take the compiler minutes.
struct Walk<'a, 'b, F, const R: usize, const T: usize, const PREFETCH: bool> {
    run: Run<'a, 'b>,
    _format: PhantomData<F>,
}

impl<'a, 'b, F, const R: usize, const T: usize, const PREFETCH: bool> Walk<'a, 'b, F, R, T, PREFETCH> {
    fn new(run: Run<'a, 'b>) -> Self {
        Walk { run, _format: PhantomData }
    }
}

impl<F: BlockFormat, const R: usize, const T: usize, const PREFETCH: bool> Kernel for Walk<'_, '_, F, R, T, PREFETCH> {
    type Output = ();

    /// The rows by `T` tokens.
    ///
    /// `R` rows are under way at once, which hides the time that one multiply-add takes. They lie far apart: each begins
    /// a run of neighbouring rows of its own, so that memory is read as `R` long streams, which the processor sees coming.
    /// (`R` neighbouring rows would be `R` short streams, all of which end with the row: 10 GB/s instead of 14 on one
    /// core, without prefetching.)
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if T > const { max_tokens(S::LANES) } {
            return; // Never asked for; not compiled either.
        }
        let Run { ops, rows, token, out } = self.run;
        let n = rows.len() / R;
        // SAFETY: the maker of the `Direct` vouches for the operands; rows and tokens stay below those of `out`.
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

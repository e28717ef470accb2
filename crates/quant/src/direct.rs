//! Products with weights straight from their blocks: for few tokens, where reading the weights is what takes the time.
#![allow(unsafe_code)] // Runs tiles.

use crate::formats::{BlockFormat, Format, Visitor};
use crate::isa::Kernel;
use crate::simd::Simd;
use crate::tile::{Operands, OutView, tile};

/// The most tokens of a tile here.
const MAX_TOKENS: usize = 4;

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
        let mut token = 0;
        // SAFETY: the maker of the `Direct` vouches for the operands; tokens stay below `n_tokens`.
        unsafe {
            while token < out.n_tokens() {
                let n_tokens = (out.n_tokens() - token).min(MAX_TOKENS);
                match n_tokens {
                    1 => rows::<S, F, 8, 1>(simd, ops, &mut out, token),
                    2 => rows::<S, F, 8, 2>(simd, ops, &mut out, token),
                    3 => rows::<S, F, 4, 3>(simd, ops, &mut out, token),
                    _ => rows::<S, F, 4, 4>(simd, ops, &mut out, token),
                }
                token += n_tokens;
            }
        }
    }
}

/// All rows by `T` tokens from `token` on, `R` rows at a time: that many sums are under way at once, which hides the time
/// that one multiply-add takes, and reads as many streams of memory.
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
        while row + R <= out.n_rows() {
            let acc = tile::<S, F, R, T>(simd, ops, row, token, [[simd.splat(0.0); R]; T]);
            out.put(simd, row, token, acc);
            row += R;
        }
        while row < out.n_rows() {
            let acc = tile::<S, F, 1, T>(simd, ops, row, token, [[simd.splat(0.0); 1]; T]);
            out.put(simd, row, token, acc);
            row += 1;
        }
    }
}

//! Activations in 16 bits, as two planes of 8.

use super::{BLOCK, IntegerIsa};
use crate::aligned::Aligned;

/// Rows of activations in blocks of 32: whole numbers of at most 127 * 256 in magnitude with one `f32` scale, kept as
/// `256 high + low`, each a signed byte.
#[derive(Debug, Default)]
pub struct Activations16 {
    row_len: usize,
    n_rows: usize,
    /// Of [`Activations16::quants`].
    quants: Bytes,
    /// `[n_rows, row_len / 32]`
    pub(crate) scales: Vec<f32>,
    /// Sums of 16. `[n_rows, row_len / 32, 2]`
    pub(crate) sums: Vec<i32>,
    /// A block's sum times its scale. `[n_rows, row_len / 32]`
    pub(crate) scaled_sums: Vec<f32>,
}

/// The greatest magnitude: one of which both bytes are in range.
pub(super) const MOST: f32 = 127.0 * 256.0;

/// Smaller than any activation that matters: a block of such is zeros.
const TINY: f32 = 1e-30;

impl Activations16 {
    /// None yet, with room for `n_values`.
    pub fn with_capacity(n_values: usize) -> Self {
        let n_blocks = n_values.div_ceil(BLOCK);
        Self {
            quants: Bytes::with_capacity(2 * n_values),
            scales: Vec::with_capacity(n_blocks),
            sums: Vec::with_capacity(2 * n_blocks),
            scaled_sums: Vec::with_capacity(n_blocks),
            ..Self::default()
        }
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        let Self { quants, scales, sums, scaled_sums, .. } = self;
        quants.memory.n_bytes() + (scales.capacity() + sums.capacity() + scaled_sums.capacity()) * size_of::<f32>()
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Makes it `n_rows` rows of `row_len`, to be written by [`Activations16::parts`].
    ///
    /// # Panics
    /// When a row does not hold whole blocks of 32.
    pub fn resize(&mut self, n_rows: usize, row_len: usize) {
        assert!(row_len.is_multiple_of(BLOCK), "rows of {row_len} do not hold whole blocks of {BLOCK}");
        (self.n_rows, self.row_len) = (n_rows, row_len);
        let n_blocks = n_rows * row_len / BLOCK;
        self.quants.resize(2 * n_rows * row_len);
        self.scales.resize(n_blocks, 0.0);
        self.sums.resize(2 * n_blocks, 0);
        self.scaled_sums.resize(n_blocks, 0.0);
    }

    /// `[n_rows, row_len / 32, 2, 32]`: a block's high bytes, then its low ones. A block begins a cache line.
    pub(crate) fn quants(&self) -> &[i8] {
        self.quants.as_slice()
    }

    /// All blocks, to be written.
    pub fn parts(&mut self) -> Activations16Parts<'_> {
        let Self { quants, scales, sums, scaled_sums, .. } = self;
        Activations16Parts { quants: quants.as_mut_slice(), scales, sums, scaled_sums }
    }
}

/// Bytes that begin a cache line: a tile's row that lies in two is two reads, and prompts are 7 % slower.
#[derive(Debug, Default)]
struct Bytes {
    memory: Aligned,
    len: usize,
}

impl Bytes {
    fn with_capacity(n_bytes: usize) -> Bytes {
        Bytes { memory: Aligned::zeros(n_bytes.div_ceil(size_of::<f32>())), len: 0 }
    }

    fn resize(&mut self, len: usize) {
        if len > size_of_val(&*self.memory) {
            *self = Bytes::with_capacity(len);
        }
        self.len = len;
    }

    fn as_slice(&self) -> &[i8] {
        // SAFETY: plain numbers, at least as many bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [i8] {
        // SAFETY: as above, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }
}

/// Blocks of activations that are not written yet.
#[derive(Debug)]
pub struct Activations16Parts<'a> {
    /// `[2 n]`
    pub quants: &'a mut [i8],
    /// `[n / 32]`
    pub scales: &'a mut [f32],
    /// Sums of 16. `[n / 16]`
    pub sums: &'a mut [i32],
    /// Each block's sum times its scale. `[n / 32]`
    pub scaled_sums: &'a mut [f32],
}

impl Activations16Parts<'_> {
    /// Rounds `x`, which has as many values.
    ///
    /// The scale takes the greatest magnitude to 127 * 256. One value that is no number makes its block's products none; so does an
    /// infinite one.
    pub fn quantize(self, x: &[f32]) {
        let best = [IntegerIsa::Vnni, IntegerIsa::Avx2].into_iter().find(|isa| isa.is_available());
        self.quantize_with(best, x);
    }

    /// The same with these instructions, or in plain Rust.
    #[doc(hidden)]
    pub fn quantize_with(self, isa: Option<IntegerIsa>, x: &[f32]) {
        assert_eq!(2 * x.len(), self.quants.len(), "activations");
        assert!(isa.is_none_or(IntegerIsa::is_available), "this processor lacks {isa:?}");
        match isa {
            // SAFETY: the processor has the instructions, and the lengths fit.
            #[cfg(target_arch = "x86_64")]
            Some(IntegerIsa::Vnni | IntegerIsa::Amx) => unsafe { super::avx512::quantize(x, self) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Some(IntegerIsa::Avx2) => unsafe { super::avx2::quantize(x, self) },
            _ => self.quantize_plainly(x),
        }
    }

    fn quantize_plainly(self, x: &[f32]) {
        let blocks = x.chunks_exact(BLOCK).zip(self.quants.chunks_exact_mut(2 * BLOCK));
        for (b, (x, quants)) in blocks.enumerate() {
            let (scale, inverse) = scale_of(f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap_or(0)));
            let mut sums = [0; 2];
            let (high, low) = quants.split_at_mut(BLOCK);
            for (i, x) in x.iter().enumerate() {
                let quant = (x * inverse).round_ties_even() as i32;
                high[i] = ((quant + 128) >> 8) as i8;
                low[i] = (quant - 256 * i32::from(high[i])) as i8;
                sums[i / 16] += quant;
            }
            self.scales[b] = scale;
            self.sums[2 * b..][..2].copy_from_slice(&sums);
            self.scaled_sums[b] = scale * (sums[0] + sums[1]) as f32;
        }
    }
}

/// Of the greatest magnitude: the scale, and what values are multiplied with.
#[inline(always)]
pub(super) fn scale_of(max: f32) -> (f32, f32) {
    (max / MOST, if max >= TINY { MOST / max } else { 0.0 })
}

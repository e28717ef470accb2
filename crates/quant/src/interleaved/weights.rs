//! Weights with sixteen rows interleaved.

use std::ops::Range;

use half::f16;

use super::{BLOCK, GROUP, can_interleave};
use crate::aligned::Aligned;
use crate::formats::Format;

/// A matrix whose rows are kept sixteen together, in as many bytes as in the file but for the last sixteen, which are filled
/// up with zeros.
///
/// A group is the scales of its blocks, `[n_blocks, 16]` in half precision, and then its blocks: of 8 bits
/// `[n_blocks, 8, 16, 4]`, which is element `4 k + j` of row `r` at `[block, k, r, j]`, with 128 added; of 4 bits
/// `[n_blocks, 4, 16, 4]`, a byte of which is that element and, in its upper half, the one 16 further, as in the file.
#[derive(Debug)]
pub struct Interleaved {
    format: Format,
    n_rows: usize,
    n_cols: usize,
    memory: Aligned,
}

impl Interleaved {
    /// Room for a matrix, with nothing in it yet.
    ///
    /// # Errors
    /// When there is no memory.
    ///
    /// # Panics
    /// When the format cannot be interleaved, or a row does not hold whole blocks.
    pub fn new(format: Format, n_rows: usize, n_cols: usize) -> Result<Self, std::collections::TryReserveError> {
        assert!(can_interleave(format), "{format:?} cannot be interleaved");
        let n_bytes = n_rows.div_ceil(GROUP) * GROUP * format.row_bytes(n_cols);
        Ok(Self { format, n_rows, n_cols, memory: Aligned::try_zeros(n_bytes.div_ceil(size_of::<f32>()))? })
    }

    /// How the rows were stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Elements of a row.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Groups of sixteen rows, the last of which may be filled up.
    pub fn n_groups(&self) -> usize {
        self.n_rows.div_ceil(GROUP)
    }

    /// Bytes held.
    pub fn n_bytes(&self) -> usize {
        self.memory.n_bytes()
    }

    pub(crate) fn group_bytes(&self) -> usize {
        GROUP * self.format.row_bytes(self.n_cols)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let n_bytes = self.n_groups() * self.group_bytes();
        // SAFETY: plain numbers, as many bytes as were taken for them.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), n_bytes) }
    }

    /// The memory of all groups, to be written by [`Interleaved::interleave_groups`] in parts of the second value.
    pub fn groups_mut(&mut self) -> (&mut [u8], usize) {
        let (n_bytes, group_bytes) = (self.n_groups() * self.group_bytes(), self.group_bytes());
        // SAFETY: as above, and exclusive.
        (unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), n_bytes) }, group_bytes)
    }

    /// Interleaves some groups: `to` is their memory, of [`Interleaved::groups_mut`], and `rows` all rows of the matrix as they lie
    /// in the file.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn interleave_groups(format: Format, n_cols: usize, rows: &[u8], groups: Range<usize>, to: &mut [u8]) {
        let row_bytes = format.row_bytes(n_cols);
        let n_blocks = n_cols / BLOCK;
        assert_eq!(to.len(), groups.len() * GROUP * row_bytes, "memory of {} groups", groups.len());
        for (group, to) in groups.zip(to.chunks_exact_mut((GROUP * row_bytes).max(1))) {
            let rows = &rows[group * GROUP * row_bytes..];
            let (scales, columns) = to.split_at_mut(n_blocks * GROUP * size_of::<f16>());
            for (r, row) in rows.chunks_exact(row_bytes).take(GROUP).enumerate() {
                let n_bytes = GROUP * (format.block_bytes() - 2);
                for (b, block) in row.chunks_exact(format.block_bytes()).enumerate() {
                    scales[(b * GROUP + r) * 2..][..2].copy_from_slice(&block[..2]);
                    let columns = &mut columns[b * n_bytes..][..n_bytes];
                    let offset = if format == Format::Q8_0 { 0x80 } else { 0 };
                    for (k, four) in block[2..].chunks_exact(4).enumerate() {
                        let to = &mut columns[(k * GROUP + r) * 4..][..4];
                        to.iter_mut().zip(four).for_each(|(to, quants)| *to = quants ^ offset);
                    }
                }
            }
        }
    }

    /// One row, as `f32`.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not `[n_cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n_rows && out.len() == self.n_cols, "row {row} of {}, {}", self.n_rows, out.len());
        let group = &self.bytes()[row / GROUP * self.group_bytes()..][..self.group_bytes()];
        let (scales, columns) = group.split_at(self.n_cols / BLOCK * GROUP * size_of::<f16>());
        let (r, n_bytes) = (row % GROUP, GROUP * (self.format.block_bytes() - 2));
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let scale = &scales[(b * GROUP + r) * 2..];
            let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
            let columns = &columns[b * n_bytes..][..n_bytes];
            let byte = |i: usize| columns[(i / 4 * GROUP + r) * 4 + i % 4];
            for (i, out) in out.iter_mut().enumerate() {
                let quant = match self.format {
                    Format::Q8_0 => i32::from((byte(i) ^ 0x80) as i8),
                    _ if i < BLOCK / 2 => i32::from(byte(i) & 15) - 8,
                    _ => i32::from(byte(i - BLOCK / 2) >> 4) - 8,
                };
                *out = scale * quant as f32;
            }
        }
    }
}

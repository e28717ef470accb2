//! Weights with sixteen rows interleaved.

use std::ops::Range;

use super::layout::{Layout, Scales};
use super::{BLOCK, GROUP};
use crate::aligned::Aligned;
use crate::formats::Format;
use crate::parts::{self, Parts};

/// A matrix whose rows are kept sixteen together, in about as many bytes as in the file: of `Q4_K` and `Q5_K` 3 % more, and the
/// last sixteen are filled up with zeros.
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
        assert!(n_cols.is_multiple_of(format.block_len()), "rows of {n_cols} do not hold whole blocks of {format:?}");
        let n_bytes = n_rows.div_ceil(GROUP) * layout(format).group_bytes(n_cols);
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
        layout(self.format).group_bytes(self.n_cols)
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
        let (layout, row_bytes) = (layout(format), format.row_bytes(n_cols));
        let group_bytes = layout.group_bytes(n_cols);
        let mut parts = Parts::default();
        assert_eq!(to.len(), groups.len() * group_bytes, "memory of {} groups", groups.len());
        for (group, to) in groups.zip(to.chunks_exact_mut(group_bytes.max(1))) {
            let (heads, columns) = to.split_at_mut(layout.columns_at(n_cols));
            let columns_of_head = layout.blocks_per_head * layout.column_bytes();
            let rows = &rows[group * GROUP * row_bytes..];
            for (r, row) in rows.chunks_exact(row_bytes).take(GROUP).enumerate() {
                let to = heads.chunks_exact_mut(layout.head_bytes()).zip(columns.chunks_exact_mut(columns_of_head));
                for (block, (head, columns)) in row.chunks_exact(format.block_bytes()).zip(to) {
                    parts::take_apart(format, block, &mut parts);
                    layout.put_head(head, r, &parts);
                    let columns = columns.chunks_exact_mut(layout.column_bytes());
                    for (columns, numbers) in columns.zip(parts.numbers.as_chunks::<BLOCK>().0) {
                        layout.put_numbers(columns, r, numbers);
                    }
                }
            }
        }
    }

    /// One row, as `f32`: what [`dequantize`](crate::dequantize) makes of the file's.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not `[n_cols]`.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n_rows && out.len() == self.n_cols, "row {row} of {}, {}", self.n_rows, out.len());
        let layout = layout(self.format);
        let group = &self.bytes()[row / GROUP * self.group_bytes()..][..self.group_bytes()];
        let (heads, columns) = group.split_at(layout.columns_at(self.n_cols));
        let r = row % GROUP;
        let blocks = out.chunks_exact_mut(BLOCK).zip(columns.chunks_exact(layout.column_bytes()));
        for (b, (out, columns)) in blocks.enumerate() {
            let head = &heads[b / layout.blocks_per_head * layout.head_bytes()..][..layout.head_bytes()];
            let Scales { scales, min } = layout.scales(head, r, b % layout.blocks_per_head);
            for (i, out) in out.iter_mut().enumerate() {
                let number = i32::from(layout.number(columns, r, i)) - layout.offset;
                let product = scales[i / 16] * number as f32;
                *out = if layout.has_min { product + min } else { product };
            }
        }
    }
}

/// Of a format that can be interleaved.
fn layout(format: Format) -> Layout {
    Layout::of(format).unwrap_or_else(|| panic!("{format:?} cannot be interleaved"))
}

//! Weights with sixteen rows interleaved.

use std::ops::Range;

use super::layout::{Layout, Scales};
use super::{BLOCK, GROUP};
use crate::aligned::{Aligned, gather_in_huge_pages};
use crate::formats::Format;
use crate::isa::{Isa, Kernel};
use crate::parts::{self, Parts};
use crate::simd::Simd;

/// A matrix whose rows are kept sixteen together, in about as many bytes as in the file: of `IQ4_XS`, `Q3_K`, `Q4_K` and `Q5_K` 1 to 4 %
/// more, and the last sixteen are filled up with zeros.
#[derive(Debug)]
pub struct Interleaved {
    format: Format,
    n_rows: usize,
    n_cols: usize,
    memory: Aligned,
}

impl Interleaved {
    /// Room for a matrix, with nothing in it yet; `None` where there is no memory for it.
    ///
    /// # Panics
    /// When the format cannot be interleaved, or a row does not hold whole blocks.
    pub fn new(format: Format, n_rows: usize, n_cols: usize) -> Option<Self> {
        assert!(n_cols.is_multiple_of(format.block_len()), "rows of {n_cols} do not hold whole blocks of {format:?}");
        let n_bytes = n_rows.div_ceil(GROUP) * layout(format).group_bytes(n_cols);
        let memory = Aligned::try_zeros(n_bytes.div_ceil(size_of::<f32>()))?;
        Some(Self { format, n_rows, n_cols, memory })
    }

    /// Asks the system to gather matrices in pages of 2 MiB, those together that were made one after the other. It takes a second
    /// for a gigabyte, in which they may be read.
    pub fn gather_in_huge_pages<'a>(matrices: impl Iterator<Item = &'a Interleaved>) {
        gather_in_huge_pages(matrices.map(|matrix| &matrix.memory));
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
        let (group_bytes, rows_bytes) = (layout(format).group_bytes(n_cols), GROUP * format.row_bytes(n_cols));
        assert_eq!(to.len(), groups.len() * group_bytes, "memory of {} groups", groups.len());
        // The last group may have fewer rows; a group behind it has none.
        let [start, end] = [groups.start, groups.end].map(|group| rows.len().min(group * rows_bytes));
        Isa::detect().run(Interleave { format, n_cols, rows: &rows[start..end], to });
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
            let scales = layout.scales(head, r, b % layout.blocks_per_head);
            for (i, out) in out.iter_mut().enumerate() {
                let Scales { scale, min } = scales[i / 16];
                let product = scale * layout.value(layout.number(columns, r, i)) as f32;
                *out = if layout.has_min { product + min } else { product };
            }
        }
    }
}

/// Interleaves the rows of whole groups; the last may have fewer than sixteen.
struct Interleave<'a> {
    format: Format,
    n_cols: usize,
    rows: &'a [u8],
    to: &'a mut [u8],
}

impl Kernel for Interleave<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// One arm for each format, so that each is compiled by itself, with its layout known.
        macro_rules! compiled_for {
            ($($name:ident)*) => {
                match self.format {
                    $(Format::$name => Self { format: Format::$name, ..self }.run_inlined(simd),)*
                    other => unreachable!("{other:?} is never interleaved"),
                }
            };
        }
        with_formats!(compiled_for);
    }
}

impl Interleave<'_> {
    #[inline(always)]
    fn run_inlined<S: Simd>(self, simd: S) {
        let Self { format, n_cols, rows, to } = self;
        let (layout, row_bytes, block_bytes) = (layout(format), format.row_bytes(n_cols), format.block_bytes());
        let mut parts: [Parts; GROUP] = Default::default();
        let groups = to.chunks_exact_mut(layout.group_bytes(n_cols).max(1));
        for (rows, to) in rows.chunks((GROUP * row_bytes).max(1)).zip(groups) {
            if rows.len() < GROUP * row_bytes {
                parts = Default::default(); // Zeros for the rows that are not there.
            }
            let (heads, columns) = to.split_at_mut(layout.columns_at(n_cols));
            let columns = columns.chunks_exact_mut(layout.blocks_per_head * layout.column_bytes());
            for (block, (head, columns)) in heads.chunks_exact_mut(layout.head_bytes()).zip(columns).enumerate() {
                // The next group, in step: sixteen rows side by side are more than the processor foresees, and formats of four
                // bits would take twice as long.
                for at in (0..GROUP * block_bytes).step_by(64) {
                    simd.prefetch(rows.as_ptr().wrapping_add(GROUP * (row_bytes + block * block_bytes) + at));
                }
                for (r, (row, parts)) in rows.chunks_exact(row_bytes).zip(&mut parts).enumerate() {
                    parts::take_apart(format, &row[block * block_bytes..][..block_bytes], parts);
                    layout.put_head(head, r, parts);
                }
                for (i, columns) in columns.chunks_exact_mut(layout.column_bytes()).enumerate() {
                    layout.put_numbers(simd, columns, parts.each_ref().map(|parts| &parts.numbers.as_chunks().0[i]));
                }
            }
        }
    }
}

/// Of a format that can be interleaved.
fn layout(format: Format) -> Layout {
    Layout::of(format).unwrap_or_else(|| panic!("{format:?} cannot be interleaved"))
}

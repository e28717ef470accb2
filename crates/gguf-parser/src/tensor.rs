//! Tensor descriptions: name, type, shape and where the data lies.

use std::fmt;
use std::ops::Deref;

use crate::{MAX_DIMS, TensorType};

/// A tensor's dimensions, row-major: the slowest first, the row length last. At most [`MAX_DIMS`]; none is 0; their
/// product fits 64 bits. No dimensions at all make a scalar: one element.
///
/// Dereferences to `[u64]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [u64; MAX_DIMS],
    n_dims: u8,
}

/// Why dimensions are no [`Shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShapeError {
    TooManyDims,
    ZeroDim(usize),
    Overflow,
}

impl Shape {
    /// A shape from its dimensions, slowest first; `None` where it breaks a rule of [`Shape`].
    pub fn new(dims: &[u64]) -> Option<Shape> {
        Shape::checked(dims).ok()
    }

    pub(crate) fn checked(dims: &[u64]) -> Result<Shape, ShapeError> {
        let mut inline = [1; MAX_DIMS];
        inline.get_mut(..dims.len()).ok_or(ShapeError::TooManyDims)?.copy_from_slice(dims);
        if let Some(dim) = dims.iter().position(|&n| n == 0) {
            return Err(ShapeError::ZeroDim(dim));
        }
        dims.iter().try_fold(1u64, |product, &n| product.checked_mul(n)).ok_or(ShapeError::Overflow)?;
        Ok(Shape { dims: inline, n_dims: dims.len() as u8 })
    }

    /// The number of elements.
    pub fn n_elements(&self) -> u64 {
        self.iter().product()
    }

    /// Elements in a row: the last dimension, or 1 for a scalar.
    pub fn row_len(&self) -> u64 {
        self.last().copied().unwrap_or(1)
    }
}

impl Deref for Shape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        self.dims.get(..usize::from(self.n_dims)).unwrap_or_default()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, n) in self.iter().enumerate() {
            write!(f, "{}{n}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// One tensor of the directory. Its extent has been proved to lie inside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// The name: `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// How its elements are stored.
    pub ty: TensorType,
    /// Its dimensions, slowest first: the file's `ne` reversed.
    pub shape: Shape,
    /// Where its data begins, in bytes from the beginning of the file: a multiple of the file's alignment.
    pub offset: u64,
    /// The size of its data in bytes, without padding.
    pub n_bytes: u64,
}

impl TensorInfo<'_> {
    /// The tensor's data.
    ///
    /// # Panics
    /// If `file` is shorter than the file that was parsed.
    pub fn bytes<'f>(&self, file: &'f [u8]) -> &'f [u8] {
        let end = self.offset.saturating_add(self.n_bytes);
        usize::try_from(self.offset)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(start, end)| file.get(start..end))
            .expect("TensorInfo::bytes: given fewer bytes than were parsed")
    }
}

/// Why a type and a shape make no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeError {
    RowNotWholeBlocks,
    Overflow,
}

/// The bytes that a tensor takes.
pub(crate) fn data_bytes(ty: TensorType, shape: &Shape) -> Result<u64, SizeError> {
    if !shape.row_len().is_multiple_of(ty.block_len()) {
        return Err(SizeError::RowNotWholeBlocks);
    }
    let n_blocks = shape.n_elements() / ty.block_len();
    n_blocks.checked_mul(ty.block_bytes()).ok_or(SizeError::Overflow)
}

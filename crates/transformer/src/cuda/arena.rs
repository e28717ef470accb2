//! Where every weight lies in device memory: planned before anything is allocated.
//!
//! Matrices go into one allocation, in the format of their file: quantised ones as planes ([`quant::planes`]), others with each
//! row padded to whole chunks of columns, so that kernels need no code for ragged ends. Matrices that are multiplied with the same
//! activations lie behind each other. Vectors (norms, biases) are few bytes; they are widened to F32 and go into a second allocation.

use std::collections::HashMap;

use cuda_sys::{DeviceBuffer, sys};
use gguf_parser::{Gguf, TensorInfo};
use quant::Format;
use quant::planes::{Layout, N_PLANES};

use super::CudaError;
use crate::ModelSpec;

/// Columns that kernels read together.
pub(super) const CHUNK: usize = sys::ORCD_CHUNK as usize;

/// What a matrix's first byte is aligned to: a line of the L2 cache, twice.
const ALIGNMENT: usize = 256;

/// A matrix's place in the arena.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MatrixAt {
    /// Byte offset of the values, or of the first plane.
    pub(super) values: usize,
    /// Where the planes of a quantised matrix are.
    pub(super) planes: Option<PlanesAt>,
    pub(super) format: Format,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    /// Bytes from one row's values to the next.
    pub(super) row_bytes: usize,
    /// The power of two that kernels multiply values by before rounding them to F16.
    pub(super) scale: f32,
}

/// Where the planes of a matrix are, and how long each is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlanesAt {
    pub(super) layout: Layout,
    /// Byte offsets in the arena.
    pub(super) at: [usize; N_PLANES],
    /// Bytes; 0 where the format has no such plane.
    pub(super) n_bytes: [usize; N_PLANES],
}

impl MatrixAt {
    /// For a kernel. Valid as long as the arena.
    pub(super) fn raw(&self, arena: &DeviceBuffer<u8>) -> sys::orcd_matrix {
        let plane = |i: usize| match &self.planes {
            Some(planes) if planes.n_bytes[i] > 0 => arena.typed::<u8>(planes.at[i], planes.n_bytes[i]).as_ptr().cast(),
            _ => std::ptr::null(),
        };
        sys::orcd_matrix {
            values: arena.typed::<u8>(self.values, self.n_rows * self.row_bytes).as_ptr().cast(),
            high: plane(1),
            scales: plane(2),
            supers: plane(3),
            row_bytes: self.row_bytes as u64,
            n_rows: self.n_rows as u32,
            n_cols: self.n_cols as u32,
            format: raw_format(self.format),
            scale: self.scale,
        }
    }

    /// Columns with the padding.
    pub(super) fn n_padded_cols(&self) -> usize {
        self.n_cols.next_multiple_of(CHUNK)
    }

    /// Whether `next` follows without a gap, in the same format, which is not quantised: the two are then one matrix with more rows.
    pub(super) fn is_followed_by(&self, next: &MatrixAt) -> bool {
        self.planes.is_none()
            && self.format == next.format
            && self.n_cols == next.n_cols
            && self.values + self.n_rows * self.row_bytes == next.values
    }
}

/// The kernels' number for a format.
fn raw_format(format: Format) -> u32 {
    match format {
        Format::F32 => sys::ORCD_FORMAT_F32,
        Format::F16 => sys::ORCD_FORMAT_F16,
        Format::BF16 => sys::ORCD_FORMAT_BF16,
        Format::Q8_0 => sys::ORCD_FORMAT_Q8_0,
        Format::Q4_0 => sys::ORCD_FORMAT_Q4_0,
        Format::Q4_1 => sys::ORCD_FORMAT_Q4_1,
        Format::Q5_0 => sys::ORCD_FORMAT_Q5_0,
        Format::Q5_1 => sys::ORCD_FORMAT_Q5_1,
        Format::Q2_K => sys::ORCD_FORMAT_Q2_K,
        Format::Q3_K => sys::ORCD_FORMAT_Q3_K,
        Format::Q4_K => sys::ORCD_FORMAT_Q4_K,
        Format::Q5_K => sys::ORCD_FORMAT_Q5_K,
        Format::Q6_K => sys::ORCD_FORMAT_Q6_K,
        Format::IQ4_NL => sys::ORCD_FORMAT_IQ4_NL,
        Format::IQ4_XS => sys::ORCD_FORMAT_IQ4_XS,
        Format::MXFP4 => sys::ORCD_FORMAT_MXFP4,
    }
}

/// Where tensors go, by name.
#[derive(Debug)]
pub(super) struct Plan {
    /// Matrices, in bytes of the arena.
    pub(super) matrices: HashMap<String, MatrixAt>,
    /// Vectors: where they begin and how many values they have, in values.
    pub(super) vectors: HashMap<String, (usize, usize)>,
    /// Bytes of the arena.
    pub(super) arena_bytes: usize,
    /// Values of all vectors.
    pub(super) n_vector_values: usize,
}

impl Plan {
    /// Places every tensor of the spec.
    ///
    /// # Errors
    /// [`CudaError::Tensor`] for one that the file does not have, or that the kernels cannot read.
    pub(super) fn new(spec: &ModelSpec, gguf: &Gguf<'_>) -> Result<Self, CudaError> {
        let mut plan = Self { matrices: HashMap::new(), vectors: HashMap::new(), arena_bytes: 0, n_vector_values: 0 };
        for tensor in spec.tensors() {
            // In the spec's order: q, k and v follow each other, and so do gate and up.
            let info = gguf.tensor(&tensor.name).filter(|info| info.shape[..] == tensor.shape[..]);
            let info = info.ok_or_else(|| CudaError::Tensor {
                name: tensor.name.clone(),
                expected: format!("shape {:?}", tensor.shape),
                got: gguf.tensor(&tensor.name).map_or("none".into(), |info| info.shape.to_string()),
            })?;
            match tensor.shape[..] {
                [n] => plan.place_vector(&tensor.name, n as usize),
                [n_rows, n_cols] => plan.place_matrix(info, n_rows as usize, n_cols as usize)?,
                _ => unreachable!("a decoder's tensors are vectors and matrices"),
            }
        }
        Ok(plan)
    }

    fn place_vector(&mut self, name: &str, n_values: usize) {
        if !name.ends_with(".bias") {
            // Norms are read 16 bytes at a time; the biases of q, k and v follow each other without a gap.
            self.n_vector_values = self.n_vector_values.next_multiple_of(4);
        }
        self.vectors.insert(name.to_owned(), (self.n_vector_values, n_values));
        self.n_vector_values += n_values;
    }

    fn place_matrix(&mut self, info: &TensorInfo<'_>, n_rows: usize, n_cols: usize) -> Result<(), CudaError> {
        let unknown = || CudaError::Tensor {
            name: info.name.to_owned(),
            expected: "a type with kernels for the GPU".into(),
            got: info.ty.name().to_owned(),
        };
        let format = Format::from_name(info.ty.name()).ok_or_else(unknown)?;
        let at = match Layout::of(format) {
            Some(layout) => {
                if !n_cols.is_multiple_of(format.block_len()) {
                    return Err(CudaError::Tensor {
                        name: info.name.to_owned(),
                        expected: format!("rows of whole blocks of {}", format.block_len()),
                        got: format!("rows of {n_cols}"),
                    });
                }
                let n_bytes = layout.n_bytes(n_rows * n_cols);
                let at = n_bytes.map(|n_bytes| self.reserve(n_bytes));
                let row_bytes = n_bytes[0] / n_rows;
                let planes = Some(PlanesAt { layout, at, n_bytes });
                MatrixAt { values: at[0], planes, format, n_rows, n_cols, row_bytes, scale: 1.0 }
            }
            None => {
                let row_bytes = format.row_bytes(n_cols.next_multiple_of(CHUNK));
                let values = self.reserve(n_rows * row_bytes);
                MatrixAt { values, planes: None, format, n_rows, n_cols, row_bytes, scale: 1.0 }
            }
        };
        self.matrices.insert(info.name.to_owned(), at);
        Ok(())
    }

    fn reserve(&mut self, n_bytes: usize) -> usize {
        let at = self.arena_bytes.next_multiple_of(ALIGNMENT);
        self.arena_bytes = at + n_bytes;
        at
    }
}

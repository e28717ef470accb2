//! Tensors by name, each a view of the mapped file.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use gguf_parser::{Gguf, Shape, TensorType};

use crate::load::byte_range;
use crate::mapping::Mapping;

/// A model's tensors: checked, in memory, by name. Cheap to clone; keeps the file mapped.
#[derive(Debug, Clone)]
pub struct Weights {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tensors: Vec<Tensor>,
    index: HashMap<Arc<str>, usize>,
    n_bytes: u64,
}

/// One tensor. Cheap to clone; keeps the file mapped.
#[derive(Clone)]
pub struct Tensor {
    /// Its name in the file.
    pub name: Arc<str>,
    /// How its elements are stored.
    pub ty: TensorType,
    /// Its shape, slowest first.
    pub shape: Shape,
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Weights {
    /// # Panics
    /// If a tensor lies outside the mapping.
    pub(crate) fn new(mapping: &Arc<Mapping>, gguf: &Gguf<'_>) -> Weights {
        let tensors: Vec<Tensor> = gguf
            .tensors
            .iter()
            .map(|info| Tensor {
                name: info.name.into(),
                ty: info.ty,
                shape: info.shape,
                mapping: Arc::clone(mapping),
                range: byte_range(info),
            })
            .collect();
        let index = tensors.iter().enumerate().map(|(i, tensor)| (Arc::clone(&tensor.name), i)).collect();
        let n_bytes = tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum();
        Weights { inner: Arc::new(Inner { tensors, index, n_bytes }) }
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.inner.index.get(name).map(|&i| self.inner.tensors[i].clone())
    }

    /// All tensors, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.inner.tensors.iter()
    }

    /// Bytes of tensor data.
    pub fn n_bytes(&self) -> u64 {
        self.inner.n_bytes
    }
}

impl Tensor {
    /// The data, rows one behind the other: `shape.n_elements() / ty.block_len()` blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }

    /// Says that the data is not needed in memory any more: pages of the mapped file that lie wholly within it are given back
    /// to the system, and read again by whoever looks.
    pub fn give_back_pages(&self) {
        self.mapping.give_back(self.range.clone());
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.name, self.ty, self.shape)
    }
}

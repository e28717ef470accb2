//! Bytes to directory: header, metadata, tensor descriptions, extents.

use std::collections::HashMap;

use crate::error::{ParseError, Subject};
use crate::reader::Reader;
use crate::tensor::{ShapeError, SizeError, data_bytes};
use crate::value::read_value_type;
use crate::{
    DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, MIN_ALIGNMENT, Metadata, Shape,
    TensorInfo, TensorType, Value,
};

/// The fewest bytes of a metadata entry: length and one byte of key, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes of a tensor description: length and one byte of name, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// The most entries for which memory is reserved before they have been read: more than any real file has. A file of a
/// gigabyte may promise millions; it gets memory for those that are there.
const MAX_RESERVED: usize = 4096;

/// The checked directory of a GGUF file. Strings and arrays borrow from the file's bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Gguf<'a> {
    /// 2 or 3.
    pub version: u32,
    /// Every tensor's offset is a multiple of this power of two: `general.alignment`, or 32.
    pub alignment: u64,
    /// Keys and values.
    pub metadata: Metadata<'a>,
    /// The tensors, in file order.
    pub tensors: Vec<TensorInfo<'a>>,
    /// Where the data section begins, in bytes from the beginning of the file. In a file without tensors (a vocabulary)
    /// it may lie past the end, by less than the alignment.
    pub data_offset: u64,
    index: HashMap<&'a str, usize>,
}

impl<'a> Gguf<'a> {
    /// Parses the directory of a GGUF file: header, metadata and tensor descriptions.
    ///
    /// `bytes` is the whole file. Tensor data is not touched; every tensor's extent is proved to be aligned, to lie inside
    /// the file and to share no byte with another's, so a [`TensorInfo`] can be read without further checks. Time and
    /// memory are bounded by a constant times the size of the directory, whatever the bytes say.
    ///
    /// # Errors
    /// Each names the key or tensor being read, where it stands, what was expected and what is there.
    ///
    /// # Source
    /// ggml `docs/gguf.md`, "File structure", versions 2 and 3 (which differ only in that 3 has a big-endian form).
    pub fn parse(bytes: &'a [u8]) -> Result<Gguf<'a>, ParseError> {
        Gguf::parse_directory(bytes, bytes.len() as u64)
    }

    /// As [`parse`](Self::parse), of a file of `file_len` bytes of which `bytes` holds at least the directory.
    pub(crate) fn parse_directory(bytes: &'a [u8], file_len: u64) -> Result<Gguf<'a>, ParseError> {
        let mut r = Reader::new(bytes);
        let version = read_version(&mut r, bytes)?;
        let (n_tensors, n_entries) = read_counts(&mut r)?;
        let metadata = read_metadata(&mut r, n_entries)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::with_capacity(n_tensors.min(MAX_RESERVED));
        let mut index = HashMap::with_capacity(n_tensors.min(MAX_RESERVED));
        for i in 0..n_tensors {
            let offset = r.offset();
            let tensor = read_tensor(&mut r, i as u64)?;
            if index.insert(tensor.name, i).is_some() {
                return Err(ParseError::DuplicateTensor { tensor: tensor.name.to_owned(), offset });
            }
            tensors.push(tensor);
        }
        // Cannot overflow: the directory was read from memory, and the alignment is at most MAX_ALIGNMENT.
        let data_offset = r.offset().next_multiple_of(alignment);
        for tensor in &mut tensors {
            place(tensor, data_offset, alignment, file_len)?;
        }
        check_overlap(&tensors)?;
        Ok(Gguf { version, alignment, metadata, tensors, data_offset, index })
    }

    /// The tensor of this name, in constant time.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        self.tensors.get(*self.index.get(name)?)
    }
}

fn read_version(r: &mut Reader<'_>, bytes: &[u8]) -> Result<u32, ParseError> {
    let magic = bytes.get(..4).unwrap_or(bytes);
    if magic != b"GGUF" {
        return Err(ParseError::NotGguf { got: magic.to_vec() });
    }
    r.take(4, Subject::Header)?;
    match r.u32(Subject::Header)? {
        version @ (2 | 3) => Ok(version),
        // A big-endian file has the same magic and its version the other way round.
        swapped if matches!(swapped.swap_bytes(), 1..=3) => {
            Err(ParseError::BigEndian { version: swapped.swap_bytes() })
        }
        got => Err(ParseError::UnsupportedVersion { got }),
    }
}

/// The numbers of tensors and of metadata entries, both proved to fit the bytes that remain.
fn read_counts(r: &mut Reader<'_>) -> Result<(usize, usize), ParseError> {
    let tensors_offset = r.offset();
    let n_tensors = r.u64(Subject::Header)?;
    let entries_offset = r.offset();
    let n_entries = r.u64(Subject::Header)?;
    let remaining = r.remaining();
    let need = n_tensors.saturating_mul(MIN_TENSOR_BYTES);
    let tensors = usize::try_from(n_tensors).ok().filter(|_| need <= remaining).ok_or(ParseError::TooManyTensors {
        offset: tensors_offset,
        count: n_tensors,
        need,
        remaining,
    })?;
    let need = n_entries.saturating_mul(MIN_ENTRY_BYTES);
    let entries = usize::try_from(n_entries).ok().filter(|_| need <= remaining).ok_or(ParseError::TooManyKeys {
        offset: entries_offset,
        count: n_entries,
        need,
        remaining,
    })?;
    Ok((tensors, entries))
}

fn read_metadata<'a>(r: &mut Reader<'a>, n_entries: usize) -> Result<Metadata<'a>, ParseError> {
    let mut metadata = Metadata::with_capacity(n_entries.min(MAX_RESERVED));
    for index in 0..n_entries as u64 {
        let offset = r.offset();
        let key = r.str(Subject::KeyName(index))?;
        if key.is_empty() {
            return Err(ParseError::EmptyKey { index, offset });
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(ParseError::KeyTooLong { index, offset, len: key.len() as u64 });
        }
        let ty = read_value_type(r, key)?;
        let value = Value::read(r, key, ty, 0)?;
        if !metadata.insert(key, value) {
            return Err(ParseError::DuplicateKey { key: key.to_owned(), offset });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata<'_>) -> Result<u64, ParseError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n)) => {
            let got = u64::from(*n);
            let ok = got.is_power_of_two() && (MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&got);
            if ok { Ok(got) } else { Err(ParseError::Alignment { got }) }
        }
        Some(other) => Err(ParseError::AlignmentType { got: other.value_type() }),
    }
}

/// Reads one tensor description. Its `offset` is still relative to the data section; [`place`] makes it absolute.
fn read_tensor<'a>(r: &mut Reader<'a>, index: u64) -> Result<TensorInfo<'a>, ParseError> {
    let offset = r.offset();
    let name = r.str(Subject::TensorName(index))?;
    if name.is_empty() {
        return Err(ParseError::EmptyTensorName { index, offset });
    }
    if name.len() > MAX_TENSOR_NAME_BYTES {
        return Err(ParseError::TensorNameTooLong { index, offset, len: name.len() as u64 });
    }
    let shape = read_shape(r, name)?;
    let type_offset = r.offset();
    let id = r.u32(Subject::Tensor(name))?;
    let ty = TensorType::from_id(id).ok_or_else(|| unusable_type(name, type_offset, id))?;
    let offset = r.u64(Subject::Tensor(name))?;
    let n_bytes = data_bytes(ty, &shape).map_err(|error| match error {
        SizeError::RowNotWholeBlocks => {
            ParseError::RowNotWholeBlocks { tensor: name.to_owned(), ty, row_len: shape.row_len() }
        }
        SizeError::Overflow => ParseError::SizeOverflow { tensor: name.to_owned(), ty, shape, offset },
    })?;
    Ok(TensorInfo { name, ty, shape, offset, n_bytes })
}

fn unusable_type(tensor: &str, offset: u64, got: u32) -> ParseError {
    let tensor = tensor.to_owned();
    match TensorType::removed_name(got) {
        Some(name) => ParseError::RemovedTensorType { tensor, offset, got, name },
        None => ParseError::UnknownTensorType { tensor, offset, got },
    }
}

/// Reads a tensor's dimensions and turns them round.
///
/// GGUF lists `ne`, the fastest dimension first: `ne = [896, 151936]` is a row-major matrix of 151,936 rows of 896
/// elements. Everything outside this function speaks row-major, slowest first: `[151936, 896]`. The bytes do not move;
/// this is the only place (with the writer's mirror of it) that knows the file's order.
fn read_shape(r: &mut Reader<'_>, tensor: &str) -> Result<Shape, ParseError> {
    let offset = r.offset();
    let n_dims = r.u32(Subject::Tensor(tensor))?;
    let mut dims = [0; MAX_DIMS];
    let dims = usize::try_from(n_dims).ok().and_then(|n| dims.get_mut(..n)).ok_or_else(|| ParseError::TooManyDims {
        tensor: tensor.to_owned(),
        offset,
        got: n_dims,
    })?;
    for n in dims.iter_mut().rev() {
        *n = r.u64(Subject::Tensor(tensor))?;
    }
    Shape::checked(dims).map_err(|error| {
        let (tensor, shape) = (tensor.to_owned(), dims.to_vec());
        match error {
            ShapeError::ZeroDim(dim) => ParseError::ZeroDim { tensor, dim, shape },
            ShapeError::TooManyDims => ParseError::TooManyDims { tensor, offset, got: n_dims },
            ShapeError::Overflow => ParseError::ElementCountOverflow { tensor, shape },
        }
    })
}

/// Makes a tensor's offset absolute and proves that its data lies in the file.
fn place(tensor: &mut TensorInfo<'_>, data_offset: u64, alignment: u64, file_len: u64) -> Result<(), ParseError> {
    let name = || tensor.name.to_owned();
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(ParseError::MisalignedTensor { tensor: name(), offset: tensor.offset, alignment });
    }
    let start = data_offset.checked_add(tensor.offset);
    let end = start.and_then(|start| start.checked_add(tensor.n_bytes));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(ParseError::SizeOverflow {
            tensor: name(),
            ty: tensor.ty,
            shape: tensor.shape,
            offset: tensor.offset,
        });
    };
    if end > file_len {
        return Err(ParseError::TensorPastEnd { tensor: name(), offset: start, need: tensor.n_bytes, file_len });
    }
    tensor.offset = start;
    Ok(())
}

/// Refuses tensors that share bytes. Gaps, and any order in the file, are allowed: they harm nobody.
fn check_overlap(tensors: &[TensorInfo<'_>]) -> Result<(), ParseError> {
    let mut by_offset: Vec<&TensorInfo<'_>> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if let [previous, tensor] = pair {
            let end = previous.offset + previous.n_bytes; // `place` has proved that it fits
            if tensor.offset < end {
                return Err(ParseError::OverlappingTensors {
                    tensor: tensor.name.to_owned(),
                    offset: tensor.offset,
                    previous: previous.name.to_owned(),
                    expected: end,
                });
            }
        }
    }
    Ok(())
}

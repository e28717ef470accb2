//! What can be wrong with a file's structure: one variant per way to break it.

use std::fmt;

use crate::{MAX_ALIGNMENT, MAX_ARRAY_DEPTH, MAX_DIMS, MAX_KEY_BYTES, MAX_TENSOR_NAME_BYTES, MIN_ALIGNMENT};
use crate::{Shape, TensorType, ValueType};

/// Why bytes are not a usable GGUF file.
///
/// Each variant names the key or tensor it is about, where it stands, what was expected and what was there. Offsets are
/// bytes from the beginning of the file. `subject` is ready to print: `key "general.name"`, `tensor "output.weight"`,
/// `header`, or `metadata entry 3` where the name itself could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: begins with {}, expected \"GGUF\"", ShowBytes(got))]
    NotGguf {
        /// The file's first bytes, at most four.
        got: Vec<u8>,
    },
    /// The file was written for big-endian machines.
    #[error(
        "big-endian GGUF version {version}: only little-endian files are supported; convert it with gguf-convert-endian"
    )]
    BigEndian {
        /// The version, read as big-endian.
        version: u32,
    },
    /// The version is neither 2 nor 3.
    #[error("GGUF version {got}: expected 2 or 3")]
    UnsupportedVersion {
        /// The version that the file names.
        got: u32,
    },
    /// The file ends in the middle of its directory.
    #[error("{subject}: needs {need} bytes at offset {offset}, file has {file_len}")]
    Truncated {
        /// What was being read.
        subject: String,
        /// Where it begins.
        offset: u64,
        /// Bytes it takes.
        need: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// The header promises more metadata entries than the rest of the file can hold.
    #[error("header: {count} metadata entries at offset {offset} need at least {need} bytes, {remaining} remain")]
    TooManyKeys {
        /// Where the count stands.
        offset: u64,
        /// The count.
        count: u64,
        /// The fewest bytes that many entries take; `u64::MAX` where it overflows.
        need: u64,
        /// Bytes after the count.
        remaining: u64,
    },
    /// The header promises more tensors than the rest of the file can hold.
    #[error("header: {count} tensors at offset {offset} need at least {need} bytes, {remaining} remain")]
    TooManyTensors {
        /// Where the count stands.
        offset: u64,
        /// The count.
        count: u64,
        /// The fewest bytes that many descriptions take; `u64::MAX` where it overflows.
        need: u64,
        /// Bytes after the count.
        remaining: u64,
    },
    /// A string is longer than the rest of the file.
    #[error("{subject}: string of {len} bytes at offset {offset}, {remaining} remain")]
    StringTooLong {
        /// Whose string it is.
        subject: String,
        /// Where its length stands.
        offset: u64,
        /// The length.
        len: u64,
        /// Bytes after the length.
        remaining: u64,
    },
    /// A string is not UTF-8.
    #[error("{subject}: byte at offset {offset} is not valid UTF-8")]
    InvalidUtf8 {
        /// Whose string it is.
        subject: String,
        /// The first byte that is wrong.
        offset: u64,
    },
    /// A metadata key is empty.
    #[error("metadata entry {index}: empty key at offset {offset}")]
    EmptyKey {
        /// The entry, counted from 0.
        index: u64,
        /// Where the key stands.
        offset: u64,
    },
    /// A metadata key is longer than [`MAX_KEY_BYTES`].
    #[error("metadata entry {index}: key of {len} bytes at offset {offset}, expected at most {MAX_KEY_BYTES}")]
    KeyTooLong {
        /// The entry, counted from 0.
        index: u64,
        /// Where the key stands.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// A metadata key occurs twice.
    #[error("key {}: occurs a second time at offset {offset}", Quoted(key))]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where it occurs again.
        offset: u64,
    },
    /// A metadata value's type is none of the thirteen.
    #[error("key {}: value type {got} at offset {offset}, expected 0 to 12", Quoted(key))]
    UnknownValueType {
        /// The key.
        key: String,
        /// Where the type stands.
        offset: u64,
        /// The type's number.
        got: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("key {}: boolean is {got} at offset {offset}, expected 0 or 1", Quoted(key))]
    InvalidBool {
        /// The key.
        key: String,
        /// Where the byte stands.
        offset: u64,
        /// The byte.
        got: u8,
    },
    /// An array has more elements than the rest of the file can hold.
    #[error(
        "key {}: array of {len} x {elem_type} at offset {offset} needs at least {need} bytes, {remaining} remain",
        Quoted(key)
    )]
    ArrayTooLong {
        /// The key.
        key: String,
        /// Where the length stands.
        offset: u64,
        /// The element type.
        elem_type: ValueType,
        /// The number of elements.
        len: u64,
        /// The fewest bytes that many elements take; `u64::MAX` where it overflows.
        need: u64,
        /// Bytes after the length.
        remaining: u64,
    },
    /// Arrays are nested more than [`MAX_ARRAY_DEPTH`] deep.
    #[error("key {}: array at offset {offset} is nested deeper than {MAX_ARRAY_DEPTH}", Quoted(key))]
    ArrayTooDeep {
        /// The key.
        key: String,
        /// Where the array that is too deep begins.
        offset: u64,
    },
    /// `general.alignment` is no `u32`.
    #[error("key \"general.alignment\": expected u32, got {got}")]
    AlignmentType {
        /// The type it has.
        got: ValueType,
    },
    /// `general.alignment` is 0, no power of two, too small or too large.
    #[error("key \"general.alignment\": expected a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}, got {got}")]
    Alignment {
        /// The value it has.
        got: u64,
    },
    /// A tensor's name is empty.
    #[error("tensor {index}: empty name at offset {offset}")]
    EmptyTensorName {
        /// The tensor, counted from 0.
        index: u64,
        /// Where the name stands.
        offset: u64,
    },
    /// A tensor's name is longer than [`MAX_TENSOR_NAME_BYTES`].
    #[error("tensor {index}: name of {len} bytes at offset {offset}, expected at most {MAX_TENSOR_NAME_BYTES}")]
    TensorNameTooLong {
        /// The tensor, counted from 0.
        index: u64,
        /// Where the name stands.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// Two tensors have the same name.
    #[error("tensor {}: described a second time at offset {offset}", Quoted(tensor))]
    DuplicateTensor {
        /// The name.
        tensor: String,
        /// Where it occurs again.
        offset: u64,
    },
    /// A tensor has more than [`MAX_DIMS`] dimensions.
    #[error("tensor {}: {got} dimensions at offset {offset}, expected at most {MAX_DIMS}", Quoted(tensor))]
    TooManyDims {
        /// The name.
        tensor: String,
        /// Where the count stands.
        offset: u64,
        /// The count.
        got: u32,
    },
    /// One of a tensor's dimensions is 0.
    #[error("tensor {}: dimension {dim} of {shape:?} is 0, expected at least 1", Quoted(tensor))]
    ZeroDim {
        /// The name.
        tensor: String,
        /// The dimension, counted from 0, slowest first.
        dim: usize,
        /// All dimensions, slowest first.
        shape: Vec<u64>,
    },
    /// The product of a tensor's dimensions does not fit 64 bits.
    #[error("tensor {}: the number of elements of {shape:?} exceeds 64 bits", Quoted(tensor))]
    ElementCountOverflow {
        /// The name.
        tensor: String,
        /// Its dimensions, slowest first.
        shape: Vec<u64>,
    },
    /// A tensor's type is not in ggml's table.
    #[error("tensor {}: unknown type {got} at offset {offset}", Quoted(tensor))]
    UnknownTensorType {
        /// The name.
        tensor: String,
        /// Where the type stands.
        offset: u64,
        /// The type's number.
        got: u32,
    },
    /// A tensor's type was in ggml's table once and has been removed.
    #[error(
        "tensor {}: type {name} ({got}) at offset {offset} has been removed from GGUF; convert the model again",
        Quoted(tensor)
    )]
    RemovedTensorType {
        /// The name.
        tensor: String,
        /// Where the type stands.
        offset: u64,
        /// The type's number.
        got: u32,
        /// The type's former name.
        name: &'static str,
    },
    /// A tensor's rows are no whole number of blocks.
    #[error(
        "tensor {}: rows of {row_len} elements, expected a multiple of {} ({ty} block)",
        Quoted(tensor), ty.block_len()
    )]
    RowNotWholeBlocks {
        /// The name.
        tensor: String,
        /// Its type.
        ty: TensorType,
        /// Elements in a row.
        row_len: u64,
    },
    /// A tensor's size in bytes, or the end of its data, does not fit 64 bits.
    #[error("tensor {}: size of {ty} {shape} at offset {offset} exceeds 64 bits", Quoted(tensor))]
    SizeOverflow {
        /// The name.
        tensor: String,
        /// Its type.
        ty: TensorType,
        /// Its shape, slowest first.
        shape: Shape,
        /// Its offset in the data section.
        offset: u64,
    },
    /// A tensor's offset is no multiple of the alignment.
    #[error("tensor {}: offset {offset} in the data section, expected a multiple of {alignment}", Quoted(tensor))]
    MisalignedTensor {
        /// The name.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor's data ends past the file.
    #[error("tensor {}: needs {need} bytes at offset {offset}, file has {file_len}", Quoted(tensor))]
    TensorPastEnd {
        /// The name.
        tensor: String,
        /// Where its data begins.
        offset: u64,
        /// The size of its data.
        need: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensor {}: begins at offset {offset}, expected at least {expected}, the end of tensor {}",
        Quoted(tensor),
        Quoted(previous)
    )]
    OverlappingTensors {
        /// The one that begins too early.
        tensor: String,
        /// Where it begins.
        offset: u64,
        /// The tensor before it.
        previous: String,
        /// Where that one ends.
        expected: u64,
    },
}

/// What is being read, so that an error can say it. Becomes text only when there is an error.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Subject<'n> {
    Header,
    KeyName(u64),
    Key(&'n str),
    TensorName(u64),
    Tensor(&'n str),
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Header => f.write_str("header"),
            Subject::KeyName(index) => write!(f, "metadata entry {index}"),
            Subject::Key(key) => write!(f, "key {}", Quoted(key)),
            Subject::TensorName(index) => write!(f, "tensor {index}"),
            Subject::Tensor(name) => write!(f, "tensor {}", Quoted(name)),
        }
    }
}

/// The most characters of a name or a string value that a message shows: enough for every real name, and short enough
/// for a log line when the name is an attack.
const MAX_SHOWN_CHARS: usize = 80;

/// A text from the file as messages show it: quoted, control characters escaped, cut at [`MAX_SHOWN_CHARS`].
pub(crate) struct Quoted<'t>(pub(crate) &'t str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_quoted(f, self.0, MAX_SHOWN_CHARS)
    }
}

/// Writes the first `max_chars` characters of `text` in quotes, escaped, with `…` after the quotes where more follow.
pub(crate) fn write_quoted(f: &mut fmt::Formatter<'_>, text: &str, max_chars: usize) -> fmt::Result {
    let end = text.char_indices().nth(max_chars).map_or(text.len(), |(at, _)| at);
    let (shown, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    write!(f, "{shown:?}{}", if rest.is_empty() { "" } else { "…" })
}

/// A few raw bytes, readable where they are ASCII.
struct ShowBytes<'b>(&'b [u8]);

impl fmt::Display for ShowBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

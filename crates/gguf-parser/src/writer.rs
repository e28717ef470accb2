//! Directory to bytes: the head of a GGUF file, for tools that make models and tests that need them.

use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};

use crate::tensor::data_bytes;
use crate::{Array, DEFAULT_ALIGNMENT, Gguf, ParseError, Shape, TensorType, Value, ValueType};

macro_rules! owned_values {
    ($($variant:ident($ty:ty);)*) => {
        /// A metadata value to be written.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)] // each variant is the ValueType of its name
        pub enum OwnedValue {
            $($variant($ty),)*
            Array(OwnedArray),
        }

        /// A metadata array to be written: all elements of one type, by construction.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum OwnedArray {
            $($variant(Vec<$ty>),)*
            Array(Vec<OwnedArray>),
        }

        impl OwnedValue {
            fn value_type(&self) -> ValueType {
                match self {
                    $(OwnedValue::$variant(_) => ValueType::$variant,)*
                    OwnedValue::Array(_) => ValueType::Array,
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(OwnedValue::$variant(value) => value.write(out),)*
                    OwnedValue::Array(array) => array.write(out),
                }
            }
        }

        impl OwnedArray {
            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(OwnedArray::$variant(values) => {
                        write_u32(out, ValueType::$variant.id());
                        write_u64(out, values.len() as u64);
                        for value in values {
                            value.write(out);
                        }
                    })*
                    OwnedArray::Array(arrays) => {
                        write_u32(out, ValueType::Array.id());
                        write_u64(out, arrays.len() as u64);
                        for array in arrays {
                            array.write(out);
                        }
                    }
                }
            }
        }

        /// What was read, to be written again.
        impl From<&Value<'_>> for OwnedValue {
            fn from(value: &Value<'_>) -> Self {
                match *value {
                    $(Value::$variant(value) => OwnedValue::$variant(value.into()),)*
                    Value::Array(array) => OwnedValue::Array((&array).into()),
                }
            }
        }

        /// What was read, to be written again.
        impl From<&Array<'_>> for OwnedArray {
            fn from(array: &Array<'_>) -> Self {
                match array.elem_type() {
                    // The parser gives an array elements of its own type and no others.
                    $(ValueType::$variant => OwnedArray::$variant(
                        array.values().filter_map(|v| if let Value::$variant(v) = v { Some(v.into()) } else { None }).collect(),
                    ),)*
                    ValueType::Array => OwnedArray::Array(
                        array.values().filter_map(|v| if let Value::Array(v) = v { Some((&v).into()) } else { None }).collect(),
                    ),
                }
            }
        }

        $(
            impl From<$ty> for OwnedValue {
                fn from(value: $ty) -> Self {
                    OwnedValue::$variant(value)
                }
            }

            impl From<Vec<$ty>> for OwnedValue {
                fn from(values: Vec<$ty>) -> Self {
                    OwnedValue::Array(OwnedArray::$variant(values))
                }
            }
        )*
    };
}

owned_values! {
    U8(u8);
    I8(i8);
    U16(u16);
    I16(i16);
    U32(u32);
    I32(i32);
    F32(f32);
    Bool(bool);
    String(String);
    U64(u64);
    I64(i64);
    F64(f64);
}

impl From<&str> for OwnedValue {
    fn from(text: &str) -> Self {
        OwnedValue::String(text.to_owned())
    }
}

impl From<Vec<&str>> for OwnedValue {
    fn from(texts: Vec<&str>) -> Self {
        OwnedValue::Array(OwnedArray::String(texts.into_iter().map(str::to_owned).collect()))
    }
}

/// Plans a GGUF file: metadata and tensor descriptions in, the file's head and every tensor's place out.
///
/// It writes no tensor data and does no I/O: the caller writes [`Header::bytes`], then each tensor at its range, zeros in
/// the gaps. Tensors are laid out in the order in which they were added, each at the next multiple of the alignment, as
/// llama.cpp demands.
///
/// ```
/// use gguf_parser::{Gguf, TensorType, writer::GgufWriter};
///
/// let mut writer = GgufWriter::new();
/// writer.kv("general.architecture", "llama").tensor("output_norm.weight", TensorType::F32, &[4]);
/// let header = writer.finish()?;
///
/// let mut file = header.bytes.clone();
/// for range in &header.tensors {
///     file.resize(range.start as usize, 0); // the gap
///     file.resize(range.end as usize, 0x3f); // the data
/// }
/// assert_eq!(Gguf::parse(&file)?.tensors[0].shape[..], [4]);
/// # Ok::<(), gguf_parser::ParseError>(())
/// ```
#[derive(Debug, Clone)]
pub struct GgufWriter {
    version: u32,
    alignment: u64,
    entries: Vec<(String, OwnedValue)>,
    tensors: Vec<(String, TensorType, Vec<u64>)>,
}

/// The head of a file and the layout of the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Header, metadata and tensor descriptions, padded to the beginning of the data section.
    pub bytes: Vec<u8>,
    /// Where each tensor's data goes, in bytes from the beginning of the file, in the order of the tensors.
    pub tensors: Vec<Range<u64>>,
    /// The length of the whole file: the end of the last tensor, padded, as llama.cpp's own writer leaves it.
    pub file_len: u64,
}

impl Default for GgufWriter {
    fn default() -> Self {
        GgufWriter::new()
    }
}

impl GgufWriter {
    /// An empty file of version 3.
    pub fn new() -> Self {
        GgufWriter { version: 3, alignment: DEFAULT_ALIGNMENT, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Writes version 2 instead, for readers that know no other.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// Appends a metadata entry. `general.alignment`, as a `u32`, also sets the alignment of the tensors.
    pub fn kv(&mut self, key: impl Into<String>, value: impl Into<OwnedValue>) -> &mut Self {
        let (key, value) = (key.into(), value.into());
        if let ("general.alignment", OwnedValue::U32(n)) = (key.as_str(), &value) {
            self.alignment = u64::from(*n);
        }
        self.entries.push((key, value));
        self
    }

    /// Appends a tensor's description: its shape row-major, slowest first.
    pub fn tensor(&mut self, name: impl Into<String>, ty: TensorType, shape: &[u64]) -> &mut Self {
        self.tensors.push((name.into(), ty, shape.to_vec()));
        self
    }

    /// The head of the file and the layout of the rest.
    ///
    /// # Errors
    /// The parser reads the result once, so that what is written can always be read: a duplicate name, a bad alignment
    /// or shape is the [`ParseError`] that a reader would have had.
    pub fn finish(&self) -> Result<Header, ParseError> {
        let mut bytes = b"GGUF".to_vec();
        write_u32(&mut bytes, self.version);
        write_u64(&mut bytes, self.tensors.len() as u64);
        write_u64(&mut bytes, self.entries.len() as u64);
        for (key, value) in &self.entries {
            key.write(&mut bytes);
            write_u32(&mut bytes, value.value_type().id());
            value.write(&mut bytes);
        }
        let mut end = 0u64;
        for (name, ty, shape) in &self.tensors {
            name.write(&mut bytes);
            write_u32(&mut bytes, shape.len() as u32);
            shape.iter().rev().for_each(|&n| write_u64(&mut bytes, n)); // the file wants the fastest first
            write_u32(&mut bytes, ty.id());
            let start = next_multiple(end, self.alignment);
            write_u64(&mut bytes, start);
            // A shape that makes no tensor is refused by the parser below; its size does not matter any more.
            let n_bytes = Shape::new(shape).and_then(|shape| data_bytes(*ty, &shape).ok()).unwrap_or(0);
            end = start.saturating_add(n_bytes);
        }
        let padded = next_multiple(bytes.len() as u64, self.alignment);
        let file_len = padded.saturating_add(next_multiple(end, self.alignment));
        let directory = Gguf::parse_directory(&bytes, file_len)?;
        let tensors = directory.tensors.iter().map(|tensor| tensor.offset..tensor.offset + tensor.n_bytes).collect();
        let padded = directory.data_offset as usize;
        bytes.resize(padded, 0);
        Ok(Header { bytes, tensors, file_len })
    }
}

/// `n` rounded up; `n` itself where that is impossible, for the parser to refuse.
fn next_multiple(n: u64, alignment: u64) -> u64 {
    if alignment == 0 { n } else { n.checked_next_multiple_of(alignment).unwrap_or(n) }
}

fn write_u32(out: &mut Vec<u8>, value: u32) {
    value.write(out);
}

fn write_u64(out: &mut Vec<u8>, value: u64) {
    value.write(out);
}

trait Write {
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! write_numbers {
    ($($ty:ty: $write:ident),*) => {
        $(impl Write for $ty {
            fn write(&self, out: &mut Vec<u8>) {
                let mut bytes = [0; size_of::<$ty>()];
                LittleEndian::$write(&mut bytes, *self);
                out.extend_from_slice(&bytes);
            }
        })*
    };
}

write_numbers!(u16: write_u16, i16: write_i16, u32: write_u32, i32: write_i32, u64: write_u64, i64: write_i64,
    f32: write_f32, f64: write_f64);

impl Write for u8 {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }
}

impl Write for i8 {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
}

impl Write for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Write for String {
    fn write(&self, out: &mut Vec<u8>) {
        write_u64(out, self.len() as u64);
        out.extend_from_slice(self.as_bytes());
    }
}

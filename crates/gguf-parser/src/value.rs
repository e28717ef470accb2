//! Metadata values: the thirteen types, and arrays that stay bytes until they are asked for.

use std::fmt;

use crate::error::{ParseError, Subject};
use crate::metadata::ValueError;
use crate::reader::{Reader, split_str};
use crate::{MAX_ARRAY_DEPTH, error::write_quoted};

macro_rules! value_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $min_bytes:literal;)*) => {
        /// The type of a metadata value.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ValueType {
            $($(#[$doc])* $variant,)*
        }

        impl ValueType {
            /// Every type, by ascending number.
            pub const ALL: &[ValueType] = &[$(ValueType::$variant,)*];

            /// The type's number in the file.
            pub const fn id(self) -> u32 {
                match self { $(ValueType::$variant => $id,)* }
            }

            /// The type with this number.
            pub const fn from_id(id: u32) -> Option<ValueType> {
                match id { $($id => Some(ValueType::$variant),)* _ => None }
            }

            /// The type's name in messages: `u32`, `string`.
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }

            /// The fewest bytes a value of this type takes; exact for all but strings and arrays.
            pub(crate) const fn min_bytes(self) -> u64 {
                match self { $(ValueType::$variant => $min_bytes,)* }
            }
        }
    };
}

value_types! {
    /// 8-bit unsigned integer.
    U8 = 0, "u8", 1;
    /// 8-bit integer.
    I8 = 1, "i8", 1;
    /// 16-bit unsigned integer.
    U16 = 2, "u16", 2;
    /// 16-bit integer.
    I16 = 3, "i16", 2;
    /// 32-bit unsigned integer.
    U32 = 4, "u32", 4;
    /// 32-bit integer.
    I32 = 5, "i32", 4;
    /// 32-bit float.
    F32 = 6, "f32", 4;
    /// One byte, 0 or 1.
    Bool = 7, "bool", 1;
    /// UTF-8, with a length before it.
    String = 8, "string", 8;
    /// Element type, length, elements.
    Array = 9, "array", 12;
    /// 64-bit unsigned integer.
    U64 = 10, "u64", 8;
    /// 64-bit integer.
    I64 = 11, "i64", 8;
    /// 64-bit float.
    F64 = 12, "f64", 8;
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value. Strings and arrays borrow from the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// 8-bit unsigned integer.
    U8(u8),
    /// 8-bit integer.
    I8(i8),
    /// 16-bit unsigned integer.
    U16(u16),
    /// 16-bit integer.
    I16(i16),
    /// 32-bit unsigned integer.
    U32(u32),
    /// 32-bit integer.
    I32(i32),
    /// 32-bit float.
    F32(f32),
    /// Boolean.
    Bool(bool),
    /// Text.
    String(&'a str),
    /// Any number of values of one type.
    Array(Array<'a>),
    /// 64-bit unsigned integer.
    U64(u64),
    /// 64-bit integer.
    I64(i64),
    /// 64-bit float.
    F64(f64),
}

impl<'a> Value<'a> {
    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value of an integer of any width; `None` for everything else.
    pub fn as_integer(&self) -> Option<i128> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U64(n) => Some(n.into()),
            Value::I64(n) => Some(n.into()),
            _ => None,
        }
    }

    /// The value of a float of either width; `None` for everything else.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    /// Reads and checks one value. For arrays this walks every element, so that later decoding cannot fail.
    pub(crate) fn read(r: &mut Reader<'a>, key: &'a str, ty: ValueType, depth: usize) -> Result<Value<'a>, ParseError> {
        let subject = Subject::Key(key);
        Ok(match ty {
            ValueType::U8 => Value::U8(r.u8(subject)?),
            ValueType::I8 => Value::I8(r.u8(subject)? as i8),
            ValueType::U16 => Value::U16(r.u16(subject)?),
            ValueType::I16 => Value::I16(r.u16(subject)? as i16),
            ValueType::U32 => Value::U32(r.u32(subject)?),
            ValueType::I32 => Value::I32(r.u32(subject)? as i32),
            ValueType::F32 => Value::F32(f32::from_bits(r.u32(subject)?)),
            ValueType::Bool => {
                let offset = r.offset();
                match r.u8(subject)? {
                    0 => Value::Bool(false),
                    1 => Value::Bool(true),
                    got => return Err(ParseError::InvalidBool { key: key.to_owned(), offset, got }),
                }
            }
            ValueType::String => Value::String(r.str(subject)?),
            ValueType::Array => Value::Array(Array::read(r, key, depth)?),
            ValueType::U64 => Value::U64(r.u64(subject)?),
            ValueType::I64 => Value::I64(r.u64(subject)? as i64),
            ValueType::F64 => Value::F64(f64::from_bits(r.u64(subject)?)),
        })
    }
}

/// How many characters of a string value messages and listings show: about what fits a terminal line beside its key.
const MAX_SHOWN_CHARS: usize = 60;

/// How many elements of an array listings show.
const MAX_SHOWN_ELEMENTS: usize = 6;

/// As listings and messages show it: long strings and arrays cut, control characters escaped.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(n) => n.fmt(f),
            Value::I8(n) => n.fmt(f),
            Value::U16(n) => n.fmt(f),
            Value::I16(n) => n.fmt(f),
            Value::U32(n) => n.fmt(f),
            Value::I32(n) => n.fmt(f),
            Value::F32(x) => write!(f, "{x:?}"),
            Value::Bool(b) => b.fmt(f),
            Value::String(text) => write_quoted(f, text, MAX_SHOWN_CHARS),
            Value::Array(array) => array.fmt(f),
            Value::U64(n) => n.fmt(f),
            Value::I64(n) => n.fmt(f),
            Value::F64(x) => write!(f, "{x:?}"),
        }
    }
}

/// An array of the metadata: its elements were checked when the file was parsed and are decoded when they are asked for,
/// so that a vocabulary of 150,000 tokens costs no memory until somebody builds a tokenizer from it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Array<'a> {
    key: &'a str,
    elem_type: ValueType,
    len: usize,
    /// Exactly the elements, in file order.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of all elements.
    pub fn elem_type(&self) -> ValueType {
        self.elem_type
    }

    /// The key whose value this array is, or is part of.
    pub fn key(&self) -> &'a str {
        self.key
    }

    /// The elements, whatever their type.
    pub fn values(&self) -> Values<'a> {
        Values { reader: Reader::at(self.bytes, 0), key: self.key, elem_type: self.elem_type, n_left: self.len }
    }

    /// The elements of an array of strings.
    ///
    /// # Errors
    /// [`ValueError::WrongType`] for any other array, an empty one too.
    pub fn strings(&self) -> Result<Strings<'a>, ValueError> {
        self.expect(self.elem_type == ValueType::String, "array of string")?;
        Ok(Strings { rest: self.bytes, n_left: self.len })
    }

    /// The elements of an array of integers that all fit `u32`, whatever their width in the file.
    ///
    /// # Errors
    /// [`ValueError::WrongType`] for an array of anything else, [`ValueError::OutOfRange`] for an element that does not fit.
    pub fn u32s(&self) -> Result<impl ExactSizeIterator<Item = u32> + Clone + use<'a>, ValueError> {
        self.integers::<u32>("u32", ValueType::U32)
    }

    /// The elements of an array of integers that all fit `i32`, whatever their width in the file.
    ///
    /// # Errors
    /// As [`Array::u32s`].
    pub fn i32s(&self) -> Result<impl ExactSizeIterator<Item = i32> + Clone + use<'a>, ValueError> {
        self.integers::<i32>("i32", ValueType::I32)
    }

    /// The elements of an array of integers that all fit `u64`, whatever their width in the file.
    ///
    /// # Errors
    /// As [`Array::u32s`].
    pub fn u64s(&self) -> Result<impl ExactSizeIterator<Item = u64> + Clone + use<'a>, ValueError> {
        self.integers::<u64>("u64", ValueType::U64)
    }

    /// The elements of an array of floats; those of 64 bits are rounded.
    ///
    /// # Errors
    /// [`ValueError::WrongType`] for an array of anything else.
    pub fn f32s(&self) -> Result<impl ExactSizeIterator<Item = f32> + Clone + use<'a>, ValueError> {
        self.expect(matches!(self.elem_type, ValueType::F32 | ValueType::F64), "array of f32")?;
        Ok(self.values().map_exact(|value| match value {
            Value::F32(x) => x,
            other => other.as_float().unwrap_or_default() as f32,
        }))
    }

    /// The elements of an array of booleans.
    ///
    /// # Errors
    /// [`ValueError::WrongType`] for an array of anything else.
    pub fn bools(&self) -> Result<impl ExactSizeIterator<Item = bool> + Clone + use<'a>, ValueError> {
        self.expect(self.elem_type == ValueType::Bool, "array of bool")?;
        Ok(self.values().map_exact(|value| value == Value::Bool(true)))
    }

    fn integers<T: TryFrom<i128> + Default>(
        &self,
        name: &'static str,
        same: ValueType,
    ) -> Result<MapExact<'a, T>, ValueError> {
        let expected = match name {
            "u32" => "array of u32",
            "i32" => "array of i32",
            _ => "array of u64",
        };
        let is_integer = !matches!(
            self.elem_type,
            ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::String | ValueType::Array
        );
        self.expect(is_integer, expected)?;
        if self.elem_type != same {
            // Decoding must not fail halfway, so what might not fit is looked at first.
            for (index, value) in self.values().enumerate() {
                if value.as_integer().and_then(|n| T::try_from(n).ok()).is_none() {
                    return Err(ValueError::OutOfRange {
                        key: self.key.to_owned(),
                        expected,
                        got: format!("{value} at index {index}"),
                    });
                }
            }
        }
        Ok(self.values().map_exact(|value| value.as_integer().and_then(|n| T::try_from(n).ok()).unwrap_or_default()))
    }

    fn expect(&self, ok: bool, expected: &'static str) -> Result<(), ValueError> {
        if ok {
            return Ok(());
        }
        Err(ValueError::WrongType { key: self.key.to_owned(), expected, got: format!("array of {}", self.elem_type) })
    }

    /// Reads and checks an array, `depth` arrays deep.
    fn read(r: &mut Reader<'a>, key: &'a str, depth: usize) -> Result<Array<'a>, ParseError> {
        let subject = Subject::Key(key);
        if depth >= MAX_ARRAY_DEPTH {
            return Err(ParseError::ArrayTooDeep { key: key.to_owned(), offset: r.offset() });
        }
        let elem_type = read_value_type(r, key)?;
        let offset = r.offset();
        let len = r.u64(subject)?;
        // Every element takes bytes, so this bounds the loop below and everything that is ever allocated for it.
        let need = len.saturating_mul(elem_type.min_bytes());
        let too_long =
            || ParseError::ArrayTooLong { key: key.to_owned(), offset, elem_type, len, need, remaining: r.remaining() };
        if need > r.remaining() {
            return Err(too_long());
        }
        let n_elements = usize::try_from(len).map_err(|_| too_long())?;
        let start = *r;
        match elem_type {
            ValueType::String => {
                for _ in 0..n_elements {
                    r.str(subject)?;
                }
            }
            ValueType::Array | ValueType::Bool => {
                for _ in 0..n_elements {
                    Value::read(r, key, elem_type, depth + 1)?;
                }
            }
            _ => {
                r.take(need, subject)?;
            }
        }
        Ok(Array { key, elem_type, len: n_elements, bytes: start.up_to(r) })
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Array({self})")
    }
}

impl fmt::Display for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} [", self.len, self.elem_type)?;
        for (i, value) in self.values().take(MAX_SHOWN_ELEMENTS).enumerate() {
            write!(f, "{}{value}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str(if self.len > MAX_SHOWN_ELEMENTS { ", …]" } else { "]" })
    }
}

/// The elements of an [`Array`], decoded one by one.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    reader: Reader<'a>,
    key: &'a str,
    elem_type: ValueType,
    n_left: usize,
}

impl<'a> Values<'a> {
    fn map_exact<T>(self, decode: fn(Value<'a>) -> T) -> MapExact<'a, T> {
        self.map(decode)
    }
}

/// A named type for `values().map(…)`, so that all typed getters share it.
type MapExact<'a, T> = std::iter::Map<Values<'a>, fn(Value<'a>) -> T>;

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.n_left = self.n_left.checked_sub(1)?;
        // The parser has read every element with this same function; it cannot fail here. The depth limit was its
        // business too.
        Value::read(&mut self.reader, self.key, self.elem_type, 0).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.n_left, Some(self.n_left))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// The elements of an [`Array`] of strings.
#[derive(Debug, Clone)]
pub struct Strings<'a> {
    rest: &'a [u8],
    n_left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.n_left = self.n_left.checked_sub(1)?;
        let (text, rest) = split_str(self.rest)?; // cannot fail: the parser has been here
        self.rest = rest;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.n_left, Some(self.n_left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// Reads the number of a value type.
pub(crate) fn read_value_type(r: &mut Reader<'_>, key: &str) -> Result<ValueType, ParseError> {
    let offset = r.offset();
    let got = r.u32(Subject::Key(key))?;
    ValueType::from_id(got).ok_or_else(|| ParseError::UnknownValueType { key: key.to_owned(), offset, got })
}

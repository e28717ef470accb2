//! The metadata: keys in file order, found by name in constant time, read through typed getters.

use std::collections::HashMap;

use crate::error::Quoted;
use crate::{Array, Value, ValueType};

/// Why a metadata value is not what its reader needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A required key is absent.
    #[error("key {}: missing, expected {expected}", Quoted(key))]
    Missing {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The value has another type.
    #[error("key {}: expected {expected}, got {got}", Quoted(key))]
    WrongType {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds: `string "abc"`, `array of f32`.
        got: String,
    },
    /// The value is an integer that does not fit.
    #[error("key {}: expected {expected}, got {got}", Quoted(key))]
    OutOfRange {
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
        /// The value.
        got: String,
    },
}

/// The file's metadata: values by key.
///
/// Typed getters come in two kinds. `u32(key)` gives `Ok(None)` where the key is absent; `require_u32(key)` makes that an
/// error. Integers are taken at any width, signed or not, as long as the value fits, because converters disagree on it.
#[derive(Debug, Clone, Default)]
pub struct Metadata<'a> {
    entries: Vec<(&'a str, Value<'a>)>,
    index: HashMap<&'a str, usize>,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $get:ident, $require:ident -> $ty:ty, $expected:literal, $decode:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`ValueError`] names the key, what was expected and what is there.
            pub fn $get(&self, key: &str) -> Result<Option<$ty>, ValueError> {
                let Some(value) = self.get(key) else { return Ok(None) };
                let decode: fn(&Value<'a>) -> Decoded<$ty> = $decode;
                match decode(value) {
                    Decoded::Is(it) => Ok(Some(it)),
                    Decoded::Range => Err(ValueError::OutOfRange {
                        key: key.to_owned(),
                        expected: $expected,
                        got: value.to_string(),
                    }),
                    Decoded::Other => Err(wrong_type(key, $expected, value)),
                }
            }

            #[doc = concat!("As [`", stringify!($get), "`](Self::", stringify!($get), "), with an absent key an error.")]
            ///
            /// # Errors
            /// [`ValueError`] names the key, what was expected and what is there.
            pub fn $require(&self, key: &str) -> Result<$ty, ValueError> {
                self.$get(key)?.ok_or_else(|| ValueError::Missing { key: key.to_owned(), expected: $expected })
            }
        )*
    };
}

enum Decoded<T> {
    Is(T),
    Range,
    Other,
}

impl<'a> Metadata<'a> {
    pub(crate) fn with_capacity(n: usize) -> Self {
        Metadata { entries: Vec::with_capacity(n), index: HashMap::with_capacity(n) }
    }

    /// Appends an entry; `false` where the key is there already.
    pub(crate) fn insert(&mut self, key: &'a str, value: Value<'a>) -> bool {
        if self.index.insert(key, self.entries.len()).is_some() {
            return false;
        }
        self.entries.push((key, value));
        true
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A key's value.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries.get(*self.index.get(key)?).map(|(_, value)| value)
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &Value<'a>)> {
        self.entries.iter().map(|(key, value)| (*key, value))
    }

    getters! {
        /// An integer that fits `u32`.
        u32, require_u32 -> u32, "u32", integer;
        /// An integer that fits `u64`.
        u64, require_u64 -> u64, "u64", integer;
        /// An integer that fits `i64`.
        i64, require_i64 -> i64, "i64", integer;
        /// A float; one of 64 bits is rounded.
        f32, require_f32 -> f32, "f32", |value| match value {
            Value::F32(x) => Decoded::Is(*x),
            Value::F64(x) => Decoded::Is(*x as f32),
            _ => Decoded::Other,
        };
        /// A boolean.
        bool, require_bool -> bool, "bool", |value| match value {
            Value::Bool(b) => Decoded::Is(*b),
            _ => Decoded::Other,
        };
        /// A string.
        str, require_str -> &'a str, "string", |value| match value {
            Value::String(text) => Decoded::Is(text),
            _ => Decoded::Other,
        };
        /// An array.
        array, require_array -> Array<'a>, "array", |value| match value {
            Value::Array(array) => Decoded::Is(*array),
            _ => Decoded::Other,
        };
    }
}

fn integer<T: TryFrom<i128>>(value: &Value<'_>) -> Decoded<T> {
    match value.as_integer() {
        Some(n) => T::try_from(n).map_or(Decoded::Range, Decoded::Is),
        None => Decoded::Other,
    }
}

fn wrong_type(key: &str, expected: &'static str, value: &Value<'_>) -> ValueError {
    let got = match value {
        Value::Array(array) => format!("array of {}", array.elem_type()),
        _ if value.value_type() == ValueType::String => format!("string {value}"),
        _ => format!("{} {value}", value.value_type()),
    };
    ValueError::WrongType { key: key.to_owned(), expected, got }
}

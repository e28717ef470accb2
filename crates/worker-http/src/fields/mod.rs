//! A JSON object's known fields, read one by one, with every fault collected.
//!
//! `serde` stops at the first fault and quotes what it found, which would echo prompts. Here the object is cut into the
//! raw text of the fields an endpoint knows (anything else is skipped without being stored, however deep or long), and
//! each is then read against its rule. A field that is absent or `null` takes its default, as in vLLM and llama-server.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{ApiError, FieldError};

/// The longest value that an error repeats, in bytes of its JSON text. Longer ones are left out.
const MAX_ECHO_BYTES: usize = 64;

/// The largest integer that a number written with a point or exponent may stand for: beyond it not every integer has an
/// `f64`, so the text no longer says which one is meant.
const MAX_EXACT_F64: f64 = (1u64 << 53) as f64;

/// What a number may be: from `min` (itself excluded when `above_min`) to `max`.
pub(crate) struct NumberRule {
    pub(crate) min: f32,
    pub(crate) above_min: bool,
    pub(crate) max: f32,
}

/// What a string may be.
pub(crate) struct TextRule {
    /// Lengths allowed.
    pub(crate) len: RangeInclusive<usize>,
    /// What a length counts.
    pub(crate) unit: Unit,
    /// Whether an error may repeat the string.
    pub(crate) echo: bool,
}

/// What a string's length counts.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    /// Unicode scalar values.
    Characters,
    /// Bytes of UTF-8.
    Bytes,
}

/// The known fields of one body, and the faults found in them so far.
pub(crate) struct Fields<'a> {
    values: Vec<(&'static str, &'a RawValue)>,
    errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    /// Reads the body as one JSON object. Of a field given twice, the last counts.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, with line and column, when the body is not JSON; and when it is not an object.
    pub(crate) fn parse(body: &'a str, known: &'static [&'static str]) -> Result<Self, ApiError> {
        let mut json = serde_json::Deserializer::from_str(body);
        let values = KnownFields(known).deserialize(&mut json).and_then(|values| json.end().map(|()| values));
        values.map(|values| Self { values, errors: Vec::new() }).map_err(|error| {
            if error.is_data() {
                ApiError::field("body", "type", "body: expected a JSON object")
            } else {
                ApiError::field("body", "json", format!("body: not valid JSON: {error}"))
            }
        })
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every fault that was found.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        if self.errors.is_empty() { Ok(()) } else { Err(ApiError::fields(self.errors)) }
    }

    /// A string that must be there.
    pub(crate) fn required_text(&mut self, field: &'static str, rule: &TextRule) -> Option<String> {
        let Some(raw) = self.raw(field) else {
            self.fault(field, "required", "expected a string, got nothing", None);
            return None;
        };
        self.text(field, raw, rule, field)
    }

    /// At most `max` strings.
    pub(crate) fn texts(&mut self, field: &'static str, max: usize, rule: &TextRule) -> Option<Vec<String>> {
        let raw = self.raw(field)?;
        // One more than allowed is enough to know that there are too many; the rest is counted, not kept.
        let Ok(list) = serde_json::from_str::<List<'_>>(raw.get()) else {
            self.fault(field, "type", &format!("expected a list of strings, got {}", kind(raw)), Some(raw));
            return None;
        };
        if list.len > max {
            self.fault(field, "count", &format!("expected at most {max} strings, got {}", list.len), None);
            return None;
        }
        let texts = list.first.iter().enumerate();
        // Each is read although one before it is wrong: every fault at once.
        let texts: Vec<_> = texts.map(|(i, raw)| self.text(field, raw, rule, &format!("{field}[{i}]"))).collect();
        texts.into_iter().collect()
    }

    /// An integer in `range`. `4.0` is one, as in JSON Schema; `4.5` is not.
    pub(crate) fn integer(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let raw = self.raw(field)?;
        let text = raw.get();
        let expected = if *range.end() == u64::MAX {
            format!("expected an integer from {} to 2^64 - 1", range.start())
        } else {
            format!("expected an integer from {} to {}", range.start(), range.end())
        };
        if !is_number(raw) {
            self.fault(field, "type", &format!("{expected}, got {}", kind(raw)), Some(raw));
            return None;
        }
        let number = text.parse::<f64>().unwrap_or(f64::NAN);
        let integer = match text.parse::<u64>() {
            Ok(integer) => Some(integer),
            Err(_) if number.fract() == 0.0 && (0.0..=MAX_EXACT_F64).contains(&number) => Some(number as u64),
            Err(_) => None,
        };
        match integer {
            Some(integer) if range.contains(&integer) => Some(integer),
            _ => {
                let constraint = if number.is_finite() && number.fract() != 0.0 { "type" } else { "range" };
                self.fault(field, constraint, &format!("{expected}, got {}", echo(raw)), Some(raw));
                None
            }
        }
    }

    /// A number that obeys `rule`, as the `f32` that is used: `1e-60` is 0.
    pub(crate) fn number(&mut self, field: &'static str, rule: &NumberRule) -> Option<f32> {
        let raw = self.raw(field)?;
        let (min, max) = (rule.min, rule.max);
        let expected = if rule.above_min {
            format!("expected a number above {min}, at most {max}")
        } else {
            format!("expected a number from {min} to {max}")
        };
        if !is_number(raw) {
            self.fault(field, "type", &format!("{expected}, got {}", kind(raw)), Some(raw));
            return None;
        }
        let wide = raw.get().parse::<f64>().unwrap_or(f64::NAN);
        let number = wide as f32;
        // Compared before and after rounding: 2.00000001 is not 2.
        let in_range = (f64::from(min)..=f64::from(max)).contains(&wide) && !(rule.above_min && number <= min);
        if in_range {
            return Some(number);
        }
        self.fault(field, "range", &format!("{expected}, got {}", echo(raw)), Some(raw));
        None
    }

    fn text(&mut self, field: &'static str, raw: &RawValue, rule: &TextRule, subject: &str) -> Option<String> {
        let value = rule.echo.then_some(raw);
        if !raw.get().starts_with('"') {
            let message = format!("{subject}: expected a string, got {}", kind(raw));
            self.push(field, "type", message, value);
            return None;
        }
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            // The JSON is well formed, so only half of a surrogate pair is left to go wrong.
            let message = format!("{subject}: expected Unicode text, got an unpaired surrogate");
            self.push(field, "text", message, None);
            return None;
        };
        let (n, unit) = match rule.unit {
            Unit::Characters => (text.chars().count(), "characters"),
            Unit::Bytes => (text.len(), "bytes"),
        };
        if rule.len.contains(&n) {
            return Some(text);
        }
        let (min, max) = (rule.len.start(), rule.len.end());
        let message = format!("{subject}: expected {min} to {max} {unit}, got {n}");
        self.push(field, "length", message, value);
        None
    }

    /// The field's JSON, unless it is absent or `null`.
    fn raw(&self, field: &str) -> Option<&'a RawValue> {
        self.values.iter().find(|(name, _)| *name == field).map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    fn fault(&mut self, field: &'static str, constraint: &'static str, message: &str, value: Option<&RawValue>) {
        self.push(field, constraint, format!("{field}: {message}"), value);
    }

    fn push(&mut self, field: &'static str, constraint: &'static str, message: String, value: Option<&RawValue>) {
        let value = value.filter(|raw| raw.get().len() <= MAX_ECHO_BYTES);
        // A number beyond f64, such as 1e999, has no JSON value of its own: its text stands for it.
        let value = value.map(|raw| serde_json::from_str(raw.get()).unwrap_or_else(|_| Value::from(raw.get())));
        self.errors.push(FieldError { field, constraint, message, value });
    }
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

fn echo(raw: &RawValue) -> &str {
    if raw.get().len() <= MAX_ECHO_BYTES { raw.get() } else { "a longer number" }
}

/// Reads an object into the raw text of the fields that are known.
struct KnownFields(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for KnownFields {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for KnownFields {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut values: Self::Value = Vec::with_capacity(self.0.len());
        while let Some(key) = map.next_key::<String>()? {
            let Some(&name) = self.0.iter().find(|name| **name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&RawValue>()?;
            match values.iter_mut().find(|(seen, _)| *seen == name) {
                Some(seen) => seen.1 = raw,
                None => values.push((name, raw)),
            }
        }
        Ok(values)
    }
}

/// A list's first elements and its length.
struct List<'a> {
    first: Vec<&'a RawValue>,
    len: usize,
}

/// Elements of a list that are kept: more than any list field may have.
const MAX_KEPT_ELEMENTS: usize = 16;

impl<'de> serde::Deserialize<'de> for List<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct ListVisitor;
        impl<'de> Visitor<'de> for ListVisitor {
            type Value = List<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<S: serde::de::SeqAccess<'de>>(self, mut seq: S) -> Result<List<'de>, S::Error> {
                let mut list = List { first: Vec::new(), len: 0 };
                while list.first.len() < MAX_KEPT_ELEMENTS {
                    let Some(raw) = seq.next_element::<&RawValue>()? else { return Ok(list) };
                    list.first.push(raw);
                    list.len += 1;
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    list.len += 1;
                }
                Ok(list)
            }
        }
        json.deserialize_seq(ListVisitor)
    }
}

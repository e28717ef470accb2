//! A JSON object's known fields, read one by one, with every fault collected.
//!
//! `serde` stops at the first fault and quotes what it found, which would echo prompts. Here the object is cut into the
//! raw text of the fields an endpoint knows (anything else is skipped without being stored, however deep or long), and
//! each is then read against its rule. A field that is absent or `null` takes its default, as in vLLM and llama-server.

mod json;

use std::ops::RangeInclusive;

use serde::de::DeserializeSeed;
use serde_json::Value;
use serde_json::value::RawValue;

use json::{KnownFields, List, Members, echo, is_number, kind};

use crate::error::{ApiError, FieldError};

/// The longest value that an error repeats, in bytes of its JSON text. Longer ones are left out.
const MAX_ECHO_BYTES: usize = 64;

/// The largest integer that a number written with a point or exponent may stand for: beyond it not every integer has an
/// `f64`, so the text no longer says which one is meant.
const MAX_EXACT_F64: f64 = (1u64 << 53) as f64;

/// The most faults of one body that are kept; the rest are counted. A body has room for hundreds of thousands.
const MAX_FAULTS: usize = 64;

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

/// The known fields of one body, or of an object in it, and the faults found in all of the body so far.
pub(crate) struct Fields<'a> {
    values: Vec<(&'static str, &'a RawValue)>,
    /// What stands before the names of the fields: `messages[0].`; nothing for the body's own.
    prefix: String,
    faults: Faults,
}

/// The first faults of a body, and how many more there are.
#[derive(Default)]
struct Faults {
    first: Vec<FieldError>,
    n_more: usize,
}

impl Faults {
    fn len(&self) -> usize {
        self.first.len() + self.n_more
    }
}

impl<'a> Fields<'a> {
    /// Reads the body as one JSON object. Of a field given twice, the last counts.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, with line and column, when the body is not JSON; and when it is not an object.
    pub(crate) fn parse(body: &'a str, known: &'static [&'static str]) -> Result<Self, ApiError> {
        let values = Self::read(body, known);
        values.map(|values| Self { values, prefix: String::new(), faults: Faults::default() }).map_err(|error| {
            if error.is_data() {
                ApiError::field("body", "type", "body: expected a JSON object")
            } else {
                ApiError::field("body", "json", format!("body: not valid JSON: {error}"))
            }
        })
    }

    fn read(json: &'a str, known: &'static [&'static str]) -> serde_json::Result<Vec<(&'static str, &'a RawValue)>> {
        let mut json = serde_json::Deserializer::from_str(json);
        let values = KnownFields(known).deserialize(&mut json)?;
        json.end().map(|()| values)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// The faults that were found: the first of them, and how many more there are.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Faults { first, n_more } = self.faults;
        if first.is_empty() { Ok(()) } else { Err(ApiError::many_fields(first, n_more)) }
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
        let Some(list) = List::read(raw, max) else {
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

    /// [`texts`](Self::texts), or one string that stands for a list of it.
    pub(crate) fn text_or_texts(&mut self, field: &'static str, max: usize, rule: &TextRule) -> Option<Vec<String>> {
        let raw = self.raw(field)?;
        match raw.get().as_bytes().first() {
            Some(b'"') => self.text(field, raw, rule, field).map(|text| vec![text]),
            Some(b'[') => self.texts(field, max, rule),
            _ => {
                let message = format!("expected a string or a list of strings, got {}", kind(raw));
                self.fault(field, "type", &message, None);
                None
            }
        }
    }

    /// A string that may be there.
    pub(crate) fn optional_text(&mut self, field: &'static str, rule: &TextRule) -> Option<String> {
        let raw = self.raw(field)?;
        self.text(field, raw, rule, field)
    }

    /// One of these strings.
    pub(crate) fn one_of(&mut self, field: &'static str, names: &[&'static str]) -> Option<&'static str> {
        let raw = self.raw(field)?;
        let given = serde_json::from_str::<String>(raw.get()).ok();
        let found = names.iter().find(|name| given.as_deref() == Some(**name)).copied();
        if found.is_none() {
            self.fault(field, "value", &format!("expected one of {}", names.join(", ")), Some(raw));
        }
        found
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, field: &'static str) -> Option<bool> {
        let raw = self.raw(field)?;
        let value = serde_json::from_str(raw.get()).ok();
        if value.is_none() {
            self.fault(field, "type", &format!("expected a boolean, got {}", kind(raw)), Some(raw));
        }
        value
    }

    /// A list of objects, as many as `n` allows, each read by `read` as fields of its own. `None` if the list or any of them
    /// has a fault.
    pub(crate) fn objects<T>(
        &mut self,
        field: &'static str,
        n: RangeInclusive<usize>,
        known: &'static [&'static str],
        mut read: impl FnMut(&mut Fields<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let raw = self.raw(field)?;
        let Some(list) = List::read(raw, *n.end()) else {
            self.fault(field, "type", &format!("expected a list of objects, got {}", kind(raw)), None);
            return None;
        };
        if !n.contains(&list.len) {
            let (min, max) = (n.start(), n.end());
            self.fault(field, "count", &format!("expected {min} to {max} objects, got {}", list.len), None);
            return None;
        }
        let objects = list.first.iter().enumerate();
        let objects: Vec<_> =
            objects.map(|(i, raw)| self.fields_of(&format!("{field}[{i}]"), raw, known, &mut read)).collect();
        objects.into_iter().collect()
    }

    /// An object, read by `read` as fields of its own. `None` if it has a fault.
    pub(crate) fn object<T>(
        &mut self,
        field: &'static str,
        known: &'static [&'static str],
        read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
    ) -> Option<T> {
        let raw = self.raw(field)?;
        self.fields_of(field, raw, known, read)
    }

    fn fields_of<T>(
        &mut self,
        name: &str,
        raw: &'a RawValue,
        known: &'static [&'static str],
        read: impl FnOnce(&mut Fields<'a>) -> Option<T>,
    ) -> Option<T> {
        let values = match Self::read(raw.get(), known) {
            Ok(values) => values,
            Err(_) if raw.get().starts_with('{') => {
                // The JSON is well formed, so only half of a surrogate pair is left to go wrong, in a name.
                self.push(
                    name,
                    "text",
                    &format!("{name}: expected names in Unicode text, got an unpaired surrogate"),
                    None,
                );
                return None;
            }
            Err(_) => {
                self.push(name, "type", &format!("{name}: expected an object, got {}", kind(raw)), None);
                return None;
            }
        };
        let n_before = self.faults.len();
        let prefix = format!("{}{name}.", self.prefix);
        let mut fields = Fields { values, prefix, faults: std::mem::take(&mut self.faults) };
        let value = read(&mut fields);
        self.faults = fields.faults;
        value.filter(|_| self.faults.len() == n_before)
    }

    /// An object's members, at most `max`, whatever their names.
    pub(crate) fn members(&mut self, field: &'static str, max: usize) -> Option<Vec<(String, &'a RawValue)>> {
        let raw = self.raw(field)?;
        let Some(members) = Members::read(raw, max) else {
            self.fault(field, "type", &format!("expected an object, got {}", kind(raw)), Some(raw));
            return None;
        };
        if members.len > max {
            self.fault(field, "count", &format!("expected at most {max} members, got {}", members.len), None);
            return None;
        }
        Some(members.first)
    }

    /// An integer in `range`. `4.0` is one, as in JSON Schema; `4.5` is not.
    pub(crate) fn integer(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let range = i128::from(*range.start())..=i128::from(*range.end());
        self.signed(field, range).map(|integer| integer as u64)
    }

    /// [`integer`](Self::integer), which may be negative.
    pub(crate) fn signed(&mut self, field: &'static str, range: RangeInclusive<i128>) -> Option<i128> {
        let raw = self.raw(field)?;
        let text = raw.get();
        let expected = match *range.end() {
            end if end == i128::from(u64::MAX) => format!("expected an integer from {} to 2^64 - 1", range.start()),
            end => format!("expected an integer from {} to {end}", range.start()),
        };
        if !is_number(raw) {
            self.fault(field, "type", &format!("{expected}, got {}", kind(raw)), Some(raw));
            return None;
        }
        let number = text.parse::<f64>().unwrap_or(f64::NAN);
        let integer = match text.parse::<i128>() {
            Ok(integer) => Some(integer),
            Err(_) if number.fract() == 0.0 && number.abs() <= MAX_EXACT_F64 => Some(number as i128),
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
            self.push(field, "type", &message, value);
            return None;
        }
        let Ok(text) = serde_json::from_str::<String>(raw.get()) else {
            // The JSON is well formed, so only half of a surrogate pair is left to go wrong.
            let message = format!("{subject}: expected Unicode text, got an unpaired surrogate");
            self.push(field, "text", &message, None);
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
        self.push(field, "length", &message, value);
        None
    }

    /// The field's JSON, unless it is absent or `null`.
    pub(crate) fn raw(&self, field: &str) -> Option<&'a RawValue> {
        self.values.iter().find(|(name, _)| *name == field).map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// Holds something against a field, `message` without its name. The value is repeated only where it is short.
    pub(crate) fn fault(
        &mut self,
        field: &'static str,
        constraint: &'static str,
        message: &str,
        value: Option<&RawValue>,
    ) {
        self.push(field, constraint, &format!("{field}: {message}"), value);
    }

    /// Keeps a fault of the field of this name, or counts it where enough are kept.
    fn push(&mut self, name: &str, constraint: &'static str, message: &str, value: Option<&RawValue>) {
        if self.faults.first.len() == MAX_FAULTS {
            self.faults.n_more += 1;
            return;
        }
        let value = value.filter(|raw| raw.get().len() <= MAX_ECHO_BYTES);
        // A number beyond f64, such as 1e999, has no JSON value of its own: its text stands for it.
        let value = value.map(|raw| serde_json::from_str(raw.get()).unwrap_or_else(|_| Value::from(raw.get())));
        let (field, message) = (format!("{}{name}", self.prefix).into(), format!("{}{message}", self.prefix));
        self.faults.first.push(FieldError { field, constraint, message, value });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_so_many_faults_of_a_body_and_counts_the_rest() {
        let lists: Vec<String> = (0..100).map(|i| format!(r#"{{"list": [{}]}}"#, vec!["{}"; i].join(","))).collect();
        let body = format!(r#"{{"lists": [{}]}}"#, lists.join(","));
        let mut fields = Fields::parse(&body, &["lists"]).unwrap();
        let read = fields.objects("lists", 0..=100, &["list"], |fields| {
            fields.objects("list", 0..=100, &["text"], |fields| {
                fields.required_text("text", &TextRule { len: 0..=1, unit: Unit::Bytes, echo: true })
            })
        });
        assert_eq!(read, None);
        let error = fields.finish().unwrap_err();
        assert_eq!((error.errors.len(), error.n_more), (MAX_FAULTS, 99 * 100 / 2 - MAX_FAULTS));
        assert_eq!(error.message, "4950 faults, the first 64 listed in errors");
        let last = error.errors.last().unwrap();
        assert_eq!(last.field, "lists[11].list[8].text");
        assert_eq!(last.message, "lists[11].list[8].text: expected a string, got nothing");
    }

    #[test]
    fn a_name_that_is_no_text_is_told_apart_from_what_is_no_object() {
        let mut fields = Fields::parse(r#"{"a": {"\ud800": 1}, "b": [1]}"#, &["a", "b"]).unwrap();
        for field in ["a", "b"] {
            assert_eq!(fields.object(field, &["x"], |_| Some(())), None);
        }
        let messages: Vec<String> =
            fields.finish().unwrap_err().errors.into_iter().map(|error| error.message).collect();
        let expected =
            ["a: expected names in Unicode text, got an unpaired surrogate", "b: expected an object, got a list"];
        assert_eq!(messages, expected);
    }
}

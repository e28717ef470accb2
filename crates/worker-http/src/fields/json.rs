//! JSON cut into the raw text of its parts, so that nothing is stored that nobody asked for.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::MAX_ECHO_BYTES;

pub(super) fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

pub(super) fn kind(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(b'"') => "a string",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        _ => "a number",
    }
}

pub(super) fn echo(raw: &RawValue) -> &str {
    if raw.get().len() <= MAX_ECHO_BYTES { raw.get() } else { "a longer number" }
}

/// Reads an object into the raw text of the fields that are known.
pub(super) struct KnownFields(pub(super) &'static [&'static str]);

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
pub(super) struct List<'a> {
    pub(super) first: Vec<&'a RawValue>,
    pub(super) len: usize,
}

impl<'a> List<'a> {
    /// Reads a list, of which `keep` elements are kept; `None` when it is none.
    pub(super) fn read(raw: &'a RawValue, keep: usize) -> Option<Self> {
        serde_json::Deserializer::from_str(raw.get()).deserialize_seq(KeepElements(keep)).ok()
    }
}

/// An object's first members and their number, whatever their names.
pub(super) struct Members<'a> {
    pub(super) first: Vec<(String, &'a RawValue)>,
    pub(super) len: usize,
}

impl<'a> Members<'a> {
    /// Reads an object, of which `keep` members are kept; `None` when it is none.
    pub(super) fn read(raw: &'a RawValue, keep: usize) -> Option<Self> {
        serde_json::Deserializer::from_str(raw.get()).deserialize_map(KeepMembers(keep)).ok()
    }
}

/// Keeps so many elements, and counts the rest.
struct KeepElements(usize);

impl<'de> Visitor<'de> for KeepElements {
    type Value = List<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<List<'de>, S::Error> {
        let mut list = List { first: Vec::new(), len: 0 };
        while list.len < self.0 {
            let Some(raw) = seq.next_element()? else { return Ok(list) };
            list.first.push(raw);
            list.len += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            list.len += 1;
        }
        Ok(list)
    }
}

/// Keeps so many members, and counts the rest.
struct KeepMembers(usize);

impl<'de> Visitor<'de> for KeepMembers {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
        let mut members = Members { first: Vec::new(), len: 0 };
        while members.len < self.0 {
            let Some(member) = map.next_entry()? else { return Ok(members) };
            members.first.push(member);
            members.len += 1;
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            members.len += 1;
        }
        Ok(members)
    }
}

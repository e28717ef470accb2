//! JSON schemas before they are compiled: what is not supported, by name and place; and where a fault lies.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::compile::{MAX_DEPTH, ShapeError, check_len};

/// The most faults of one schema that are told.
const MAX_FAULTS: usize = 8;
/// The most parts of a schema that are tried by themselves to find one that is at fault.
const MAX_TRIED: usize = 64;

/// Between any two parts of a JSON text: what JSON is commonly written with, on one line or on indented lines. Not more of it:
/// a model that has nothing to say would fill its answer with blank lines.
const WHITESPACE: &str = r"\x20|\r?\n(\x20{0,16}|\t{0,8})";

/// Keywords that restrict what they stand in, and that nothing here heeds.
const UNSUPPORTED: &[&str] = &[
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "contains",
    "maxContains",
    "minContains",
    "contentSchema",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "then",
    "else",
    "not",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// Keywords whose value is a schema, a list of schemas, or an object of schemas.
const ONE: &[&str] = &["items", "additionalItems", "additionalProperties"];
const LIST: &[&str] = &["anyOf", "oneOf", "allOf", "prefixItems", "items"];
const NAMED: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];

/// Whether a schema is short and flat enough and has no keyword that is not supported.
pub(crate) fn check(schema: &Value) -> Result<(), ShapeError> {
    check_len(schema.to_string().len())?;
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(ShapeError::new("expected a JSON schema, which is an object"));
    }
    if depth_exceeds(schema, MAX_DEPTH) {
        return Err(ShapeError::new(format!("expected a schema at most {MAX_DEPTH} deep")));
    }
    if schema.get("x-guidance").is_some() {
        return Err(ShapeError::new("\"x-guidance\" is not supported"));
    }
    let mut faults = Vec::new();
    walk(schema, &mut String::new(), &mut |place, schema| {
        for keyword in UNSUPPORTED.iter().filter(|keyword| is_asked(schema, keyword)) {
            faults.push((place.to_owned(), format!("{keyword:?} is not supported")));
        }
    });
    let Some((place, message)) = faults.first().cloned() else { return Ok(()) };
    let more = faults[1..].iter().take(MAX_FAULTS).map(|(place, message)| format!("; at {place}: {message}"));
    Err(ShapeError { place, tool: None, message: message + &more.collect::<String>() })
}

fn is_asked(schema: &Map<String, Value>, keyword: &str) -> bool {
    // Some generators write what asks for nothing.
    schema.get(keyword).is_some_and(|value| !(keyword == "uniqueItems" && *value == Value::Bool(false)))
}

fn depth_exceeds(value: &Value, limit: usize) -> bool {
    let inside: Vec<&Value> = match value {
        Value::Array(values) => values.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => return false,
    };
    limit == 0 || inside.into_iter().any(|value| depth_exceeds(value, limit - 1))
}

/// Visits each schema object that stands in another, with its place.
fn walk<'a>(schema: &'a Value, place: &mut String, visit: &mut impl FnMut(&str, &'a Map<String, Value>)) {
    let Some(members) = schema.as_object() else { return };
    visit(place, members);
    for (keyword, value) in members {
        let len = place.len();
        place.push('/');
        place.push_str(&pointer_part(keyword));
        match value {
            Value::Object(_) if ONE.contains(&keyword.as_str()) => walk(value, place, visit),
            Value::Array(values) if LIST.contains(&keyword.as_str()) => {
                walk_all(values.iter().enumerate(), place, visit);
            }
            Value::Object(named) if NAMED.contains(&keyword.as_str()) => walk_all(named, place, visit),
            _ => {}
        }
        place.truncate(len);
    }
}

fn walk_all<'a, N: ToString>(
    values: impl IntoIterator<Item = (N, &'a Value)>,
    place: &mut String,
    visit: &mut impl FnMut(&str, &'a Map<String, Value>),
) {
    let len = place.len();
    for (name, value) in values {
        place.push('/');
        place.push_str(&pointer_part(&name.to_string()));
        walk(value, place, visit);
        place.truncate(len);
    }
}

fn pointer_part(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The schema, with how much whitespace there may be between the parts of the text.
pub(crate) fn with_layout(schema: &Value) -> Value {
    with_options(schema, json!({ "whitespace_pattern": WHITESPACE }))
}

/// The schema of a text that is written as models are trained to write it, without any choice of whitespace.
pub(crate) fn with_fixed_layout(schema: &Value) -> Value {
    with_options(schema, json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " }))
}

fn with_options(schema: &Value, options: Value) -> Value {
    let mut schema = match schema {
        Value::Object(members) => members.clone(),
        // What `true` and `false` stand for.
        Value::Bool(true) => Map::new(),
        _ => json!({ "enum": [] }).as_object().cloned().unwrap_or_default(),
    };
    schema.insert("x-guidance".into(), options);
    schema.into()
}

/// The smallest part of a faulty schema that is at fault by itself, with what `fault` says of it, if it is found by `until`.
/// References of a part are those of the whole.
pub(crate) fn locate(
    schema: &Value,
    error: String,
    until: Instant,
    fault: impl Fn(&Value) -> Option<String>,
) -> (String, String) {
    let mut parts = Vec::new();
    walk(schema, &mut String::new(), &mut |place, part| parts.push((place.to_owned(), part)));
    // From the deepest up.
    parts.sort_by_key(|(place, _)| std::cmp::Reverse(place.matches('/').count()));
    for (place, part) in parts.into_iter().take(MAX_TRIED).filter(|(place, _)| !place.is_empty()) {
        if Instant::now() >= until {
            break;
        }
        let mut part = part.clone();
        for definitions in ["$defs", "definitions"] {
            if let Some(all) = schema.get(definitions) {
                part.entry(definitions).or_insert_with(|| all.clone());
            }
        }
        if let Some(error) = fault(&part.into()) {
            return (place, error);
        }
    }
    (String::new(), error)
}

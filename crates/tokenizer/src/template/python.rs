//! Values as Python writes them: `str()`, `repr()` and `json.dumps()`.
//!
//! Models were trained on text that Python rendered, so that `True`, `None`, `1e+16` and `{'a': 1}` matter.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The options of `json.dumps`.
pub(super) struct JsonStyle {
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    /// What a level is indented by; everything on one line where absent.
    pub(super) indent: Option<String>,
    /// Between items.
    pub(super) item: String,
    /// Between a key and its value.
    pub(super) key: String,
}

/// Every value written costs fuel: a list that holds itself many times over is small, its text is not.
const FUEL_PER_VALUE: u64 = 1;

/// How deep lists and objects may be nested to be written; Python gives up at about 1,000.
const MAX_DEPTH: usize = 500;

/// `str(value)`; nothing for an undefined value.
pub(super) fn write_str(state: &State<'_, '_>, value: &Value, out: &mut String) -> Result<(), Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => out.push_str(text),
        (ValueKind::Undefined, _) => {}
        _ => write_repr(state, value, 0, out)?,
    }
    Ok(())
}

/// `repr(value)`.
fn write_repr(state: &State<'_, '_>, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    charge(state, value, depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => write_display(value, out),
        ValueKind::Number => write_float(f64::try_from(value.clone())?, ["nan", "inf", "-inf"], out),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_repr(state, &item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => write_display(value, out),
    }
    Ok(())
}

/// `json.dumps(value)` in that style, at that depth of nesting.
pub(super) fn write_json(
    state: &State<'_, '_>,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
) -> Result<(), Error> {
    charge(state, value, depth)?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => write_display(value, out),
        ValueKind::Number => write_float(f64::try_from(value.clone())?, ["NaN", "Infinity", "-Infinity"], out),
        ValueKind::String => write_json_str(value.as_str().unwrap_or_default(), style.ensure_ascii, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Items::begin('[', ']', style, depth, out);
            for item in value.try_iter()? {
                items.next(state, out)?;
                write_json(state, &item, style, depth + 1, out)?;
            }
            items.end(out);
        }
        ValueKind::Map => {
            let mut keys =
                value.try_iter()?.map(|key| Ok((json_key(&key)?, key))).collect::<Result<Vec<_>, Error>>()?;
            if style.sort_keys {
                keys.sort_by(|a, b| a.0.cmp(&b.0));
            }
            let mut items = Items::begin('{', '}', style, depth, out);
            for (name, key) in keys {
                items.next(state, out)?;
                write_json_str(&name, style.ensure_ascii, out);
                out.push_str(&style.key);
                write_json(state, &value.get_item(&key)?, style, depth + 1, out)?;
            }
            items.end(out);
        }
        kind => {
            let message = format!("tojson: expected a value that JSON has, got {kind}");
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
    }
    Ok(())
}

/// The items of a JSON list or object: separators, and lines where there is an indent.
struct Items<'a> {
    style: &'a JsonStyle,
    depth: usize,
    is_empty: bool,
    end: char,
}

impl<'a> Items<'a> {
    fn begin(begin: char, end: char, style: &'a JsonStyle, depth: usize, out: &mut String) -> Items<'a> {
        out.push(begin);
        Items { style, depth, is_empty: true, end }
    }

    fn next(&mut self, state: &State<'_, '_>, out: &mut String) -> Result<(), Error> {
        if !std::mem::take(&mut self.is_empty) {
            out.push_str(&self.style.item);
        }
        if let Some(indent) = &self.style.indent {
            // Deep nesting makes long lines of nothing.
            state.consume_fuel((indent.len() * self.depth) as u64 / 64)?;
        }
        self.new_line(self.depth + 1, out);
        Ok(())
    }

    fn end(self, out: &mut String) {
        if !self.is_empty {
            self.new_line(self.depth, out);
        }
        out.push(self.end);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }
}

fn charge(state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let message = format!("expected values nested at most {MAX_DEPTH} deep");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    state.consume_fuel(FUEL_PER_VALUE + value.as_str().map_or(0, str::len) as u64 / 64)
}

/// A key as `json.dumps` writes it: text, or a scalar's text.
fn json_key(key: &Value) -> Result<String, Error> {
    let mut name = String::new();
    match key.kind() {
        ValueKind::String => name.push_str(key.as_str().unwrap_or_default()),
        ValueKind::None => name.push_str("null"),
        ValueKind::Bool => name.push_str(if key.is_true() { "true" } else { "false" }),
        ValueKind::Number if key.is_integer() => write_display(key, &mut name),
        ValueKind::Number => write_float(f64::try_from(key.clone())?, ["NaN", "Infinity", "-Infinity"], &mut name),
        kind => {
            let message = format!("tojson: expected keys that are text or numbers, got {kind}");
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
    }
    Ok(name)
}

fn write_display(value: &Value, out: &mut String) {
    write!(out, "{value}").expect("a String takes everything");
}

/// `repr` of a float: the shortest digits that give it back, with an exponent of at least two digits below 1e-4 and from
/// 1e16 on. Rust's `{:?}` turns to exponents at the same places.
fn write_float(x: f64, [nan, infinity, minus_infinity]: [&str; 3], out: &mut String) {
    if x.is_nan() {
        return out.push_str(nan);
    }
    if x.is_infinite() {
        return out.push_str(if x > 0.0 { infinity } else { minus_infinity });
    }
    let digits = format!("{x:?}");
    match digits.split_once('e') {
        None => out.push_str(&digits),
        Some((mantissa, exponent)) => {
            out.push_str(mantissa.strip_suffix(".0").unwrap_or(mantissa));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            write!(out, "e{sign}{exponent:0>2}").expect("a String takes everything");
        }
    }
}

/// `repr` of a string: single quotes, unless it holds some and no double ones.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => {
                let code = c as u32;
                write!(out, "\\x{code:02x}").expect("a String takes everything");
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A JSON string as Python writes it: only quotes, backslashes and control characters are escaped, and everything beyond
/// ASCII if asked.
fn write_json_str(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes everything");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

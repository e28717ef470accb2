//! The environment that templates are run in: Hugging Face's additions to Jinja.

use std::fmt::Write;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Local};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};

use super::python::{JsonStyle, write_json, write_str};

/// Where `strftime_now` gets the time from.
pub type Clock = fn() -> DateTime<Local>;

/// What `raise_exception` was called with; the source of the error that ends the rendering.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment set up as `transformers` does (`utils/chat_template_utils.py`, `_cached_compile_jinja_template`).
pub(super) fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the delimiters are the default ones"));
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_debug(false);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, state, value| Ok(out.write_str(&python_str(state, value)?)?));
    env.add_filter("tojson", tojson);
    env.add_filter("string", |state: &State<'_, '_>, value: &Value| python_str(state, value));
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: &str| strftime(clock(), format));
    env
}

/// `str(value)`.
fn python_str(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_str(state, value, &mut out)?;
    Ok(out)
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &State<'_, '_>, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(n) => Some(" ".repeat(usize::try_from(n)?.min(MAX_INDENT))),
    };
    let (item, key) = match options.get::<Option<Vec<String>>>("separators")? {
        Some(pair) => match <[String; 2]>::try_from(pair) {
            Ok([item, key]) => (item, key),
            Err(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators: expected two strings")),
        },
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        item,
        key,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(state, value, &style, 0, &mut out)?;
    Ok(out)
}

/// More than anyone reads; an indent is written for every line.
const MAX_INDENT: usize = 16;

/// `datetime.now().strftime(format)`.
fn strftime(now: DateTime<Local>, format: &str) -> Result<String, Error> {
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    let bad = || Error::new(ErrorKind::InvalidOperation, "strftime_now: expected a format as Python's strftime knows");
    if items.contains(&Item::Error) {
        return Err(bad());
    }
    let mut out = String::new();
    write!(out, "{}", now.format_with_items(items.iter())).map_err(|_| bad())?;
    Ok(out)
}

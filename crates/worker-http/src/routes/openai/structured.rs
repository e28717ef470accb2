//! Answers of a given structure: OpenAI's `response_format`, llama-server's `grammar` and `json_schema`, vLLM's
//! `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` and `structured_outputs`.

use std::sync::LazyLock;

use serde_json::Value;
use serde_json::value::RawValue;
use structured::{Compiled, MAX_SHAPE_BYTES, Shape, ShapeError};

use crate::body::MAX_BODY_BYTES;
use crate::error::{ApiError, ErrorCode};
use crate::fields::{Fields, TextRule, Unit};
use crate::grammars::NoConstraint;
use crate::state::{AppState, Served};

/// Every field that asks for structure; tools have their own (`tools.rs`).
pub(super) const FIELDS: &[&str] = &[
    "response_format",
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structural_tag",
];

const TEXT: TextRule = TextRule { len: 1..=MAX_SHAPE_BYTES, unit: Unit::Bytes, echo: false };
const NAME: TextRule = TextRule { len: 1..=64, unit: Unit::Characters, echo: true };
const DESCRIPTION: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };
/// The most texts of a choice.
const MAX_CHOICES: usize = 1024;
/// What llama-server takes for the beginning of a grammar that is not its own, but Lark.
const LARK_MARK: &str = "%llguidance";

/// What an answer is to be, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    pub(super) field: &'static str,
    pub(super) shape: Shape,
    /// The one tool that it is about, where it is about one.
    pub(super) tool: Option<usize>,
}

impl Wanted {
    fn new(field: &'static str, shape: Shape) -> Self {
        Self { field, shape, tool: None }
    }
}

/// Reads what the answer is to be, if anything is asked.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Wanted> {
    let found: Vec<Wanted> = [
        read_response_format(fields),
        read_grammar(fields),
        read_json(fields, "json_schema").map(|shape| Wanted::new("json_schema", shape)),
        read_structured_outputs(fields),
        read_json(fields, "guided_json").map(|shape| Wanted::new("guided_json", shape)),
        read_text(fields, "guided_regex", Shape::Regex).map(|shape| Wanted::new("guided_regex", shape)),
        read_choice(fields, "guided_choice").map(|shape| Wanted::new("guided_choice", shape)),
        read_text(fields, "guided_grammar", gbnf_or_lark).map(|shape| Wanted::new("guided_grammar", shape)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if fields.raw("structural_tag").is_some() {
        fields.fault("structural_tag", "unsupported", "not supported", None);
    }
    if let [first, second, ..] = found.as_slice() {
        let message = format!("expected one field that says what the answer is to be, got {} too", first.field);
        fields.fault(second.field, "value", &message, None);
    }
    found.into_iter().next()
}

/// OpenAI's; and, as with llama-server, a `schema` beside the type.
fn read_response_format(fields: &mut Fields<'_>) -> Option<Wanted> {
    const KNOWN: &[&str] = &["text", "json_object", "json_schema"];
    let shape = fields.object("response_format", &["type", "json_schema", "schema"], |fields| {
        if fields.raw("type").is_none() {
            fields.fault("type", "required", "expected a string, got nothing", None);
        }
        let schema = read_json(fields, "schema");
        match fields.one_of("type", KNOWN)? {
            "text" => Some(None),
            "json_object" => Some(Some(schema.unwrap_or(Shape::JsonObject))),
            _ if schema.is_some() => Some(schema),
            _ => {
                if fields.raw("json_schema").is_none() {
                    fields.fault("json_schema", "required", "expected an object, got nothing", None);
                }
                fields.object("json_schema", &["name", "description", "schema", "strict"], |fields| {
                    let _ = fields.optional_text("name", &NAME);
                    let _ = fields.optional_text("description", &DESCRIPTION);
                    // The schema always holds.
                    let _ = fields.boolean("strict");
                    if fields.raw("schema").is_none() {
                        fields.fault("schema", "required", "expected a JSON schema, got nothing", None);
                    }
                    read_json(fields, "schema").map(Some)
                })
            }
        }
    });
    shape.flatten().map(|shape| Wanted::new("response_format", shape))
}

fn read_grammar(fields: &mut Fields<'_>) -> Option<Wanted> {
    let is_empty = fields.raw("grammar").is_some_and(|raw| raw.get() == "\"\"");
    let shape = if is_empty { None } else { read_text(fields, "grammar", gbnf_lark_or_regex) };
    shape.map(|shape| Wanted::new("grammar", shape))
}

/// vLLM's newer form: one of the `guided_` fields' values, in an object.
fn read_structured_outputs(fields: &mut Fields<'_>) -> Option<Wanted> {
    const SHAPES: [&str; 5] = ["json", "regex", "choice", "grammar", "json_object"];
    const UNSUPPORTED: [&str; 4] =
        ["structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"];
    static KNOWN: LazyLock<Vec<&str>> = LazyLock::new(|| [&SHAPES[..], &UNSUPPORTED[..]].concat());
    let shape = fields.object("structured_outputs", &KNOWN, |fields| {
        for field in UNSUPPORTED {
            if fields.raw(field).is_some_and(|raw| raw.get() != "false") {
                fields.fault(field, "unsupported", "not supported", None);
            }
        }
        let any_object = fields.boolean("json_object").filter(|&wanted| wanted).map(|_| Shape::JsonObject);
        let mut all = [
            read_json(fields, "json"),
            read_text(fields, "regex", Shape::Regex),
            read_choice(fields, "choice"),
            read_text(fields, "grammar", gbnf_or_lark),
            any_object,
        ]
        .into_iter()
        .flatten();
        let (first, second) = (all.next(), all.next());
        let asks = KNOWN.iter().any(|field| fields.raw(field).is_some());
        if second.is_some() || !asks {
            fields.fault("json", "value", "expected one of json, regex, choice, grammar and json_object", None);
        }
        Some(first)
    });
    shape.flatten().map(|shape| Wanted::new("structured_outputs", shape))
}

fn read_text(fields: &mut Fields<'_>, field: &'static str, shape: impl FnOnce(String) -> Shape) -> Option<Shape> {
    fields.optional_text(field, &TEXT).map(shape)
}

fn read_choice(fields: &mut Fields<'_>, field: &'static str) -> Option<Shape> {
    fields.texts(field, MAX_CHOICES, &TEXT).map(Shape::Choice)
}

/// A schema: an object, or, as vLLM takes it too, a string that holds one.
fn read_json(fields: &mut Fields<'_>, field: &'static str) -> Option<Shape> {
    let raw = fields.raw(field)?;
    let schema = value(raw).map(|value| match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        value => value,
    });
    match schema {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Some(Shape::JsonSchema(schema)),
        _ => {
            fields.fault(field, "type", "expected a JSON schema, which is an object", None);
            None
        }
    }
}

/// A JSON value; `None` where it is nested deeper than anything that is of use here.
pub(super) fn value(raw: &RawValue) -> Option<Value> {
    serde_json::from_str(raw.get()).ok()
}

/// llama-server's field: its own grammars and, with the mark, Lark; without a mark what looks like one or the other, and a
/// regular expression between slashes, as Lark writes them.
fn gbnf_lark_or_regex(text: String) -> Shape {
    let regex = text.trim().strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    match regex {
        Some(regex) => Shape::Regex(regex.to_owned()),
        None if text.trim_start().starts_with(LARK_MARK) => Shape::Lark(text),
        None => gbnf_or_lark(text),
    }
}

/// As vLLM tells them apart.
fn gbnf_or_lark(text: String) -> Shape {
    if text.contains("::=") { Shape::Gbnf(text) } else { Shape::Lark(text) }
}

/// Makes a constraint of what is wanted.
///
/// # Errors
/// What is wrong with it, and where; [`ErrorCode::QueueFull`] where others' took all the time.
pub(super) async fn compile(
    state: &AppState,
    served: &Served,
    wanted: Option<Wanted>,
) -> Result<Option<Compiled>, ApiError> {
    let Some(Wanted { field, shape, tool }) = wanted else { return Ok(None) };
    let compiled = state.grammars().compile(&served.tokenizer, shape).await;
    compiled.map(Some).map_err(|why| match why {
        NoConstraint::Shape(error) => refusal(field, tool.or(error.tool), &error),
        NoConstraint::Busy => {
            ApiError::new(ErrorCode::QueueFull, format!("{field}: too many others are waiting to be understood"))
        }
    })
}

fn refusal(field: &'static str, tool: Option<usize>, error: &ShapeError) -> ApiError {
    let field = match tool {
        Some(tool) => format!("tools[{tool}].function.parameters"),
        None => field.to_owned(),
    };
    let message = format!("{field}: {error}");
    ApiError::field(field, "value", message)
}

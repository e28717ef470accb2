//! Tools: what a request offers the model, and how its calls are told.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use structured::{Call, CallForm, CallParser, Piece, Shape, Tool};
use uuid::Uuid;

use super::structured::{Wanted, value};
use crate::body::MAX_BODY_BYTES;
use crate::fields::{Fields, TextRule, Unit};

/// Every field about tools.
pub(super) const FIELDS: &[&str] = &["tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"];

/// The most tools, as OpenAI has it.
const MAX_TOOLS: usize = 128;
/// The most calls of one answer, where calls are all that it may be made of.
const MAX_CALLS: usize = 16;

const NAME: TextRule = TextRule { len: 1..=64, unit: Unit::Characters, echo: true };
const DESCRIPTION: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };

/// Tools that the model may, or must, call.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Offered {
    /// As the request has them, for the template.
    pub(super) list: Value,
    tools: Vec<Tool>,
    choice: Choice,
    is_parallel: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    /// The tool of this number.
    Named(usize),
}

/// Reads the tools; `None` where there are none, or none is to be called.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Offered> {
    for field in ["functions", "function_call"] {
        let asks = fields.raw(field).is_some_and(|raw| !matches!(raw.get(), "[]" | "\"none\""));
        if asks {
            fields.fault(field, "unsupported", "not supported: tools and tool_choice have taken its place", None);
        }
    }
    let is_parallel = fields.boolean("parallel_tool_calls").unwrap_or(true);
    let inside = |raw: &'_ RawValue| Some(raw.get().strip_prefix('[')?.strip_suffix(']')?.trim().is_empty());
    let is_empty = fields.raw("tools").is_none_or(|raw| inside(raw) == Some(true));
    let read = if is_empty { None } else { fields.objects("tools", 1..=MAX_TOOLS, &["type", "function"], read_tool) };
    let (list, tools): (Vec<Value>, Vec<Tool>) = read.unwrap_or_default().into_iter().unzip();
    let repeated = (1..tools.len()).find(|&at| tools[..at].iter().any(|tool| tool.name == tools[at].name));
    if let Some(at) = repeated {
        fields.fault("tools", "value", &format!("expected tools of different names, got number {at} again"), None);
    }
    let choice = read_choice(fields, &tools, is_empty)?;
    Some(Offered { list: list.into(), tools, choice, is_parallel }).filter(|_| !is_empty)
}

/// Refuses tools where there is no conversation.
pub(super) fn refuse(fields: &mut Fields<'_>) {
    if read(fields).is_some() {
        fields.fault("tools", "unsupported", "not supported here: POST /v1/chat/completions takes tools", None);
    }
}

fn read_tool(fields: &mut Fields<'_>) -> Option<(Value, Tool)> {
    for field in ["type", "function"] {
        if fields.raw(field).is_none() {
            fields.fault(field, "required", "expected a value, got nothing", None);
        }
    }
    let kind = fields.one_of("type", &["function"]);
    let function = fields.object("function", &["name", "description", "parameters", "strict"], |fields| {
        let name = fields.required_text("name", &NAME);
        let description = fields.optional_text("description", &DESCRIPTION);
        let is_strict = fields.boolean("strict").unwrap_or(false);
        let parameters = match fields.raw("parameters").map(value) {
            None => Some(json!({ "type": "object", "properties": {} })),
            Some(Some(schema @ Value::Object(_))) => Some(schema),
            Some(_) => {
                fields.fault("parameters", "type", "expected a JSON schema, which is an object", None);
                None
            }
        };
        Some((name?, description, parameters?, is_strict))
    });
    let ((name, description, parameters, is_strict), kind) = (function?, kind?);
    let mut function = Map::new();
    function.insert("name".into(), name.clone().into());
    function.insert("description".into(), description.unwrap_or_default().into());
    function.insert("parameters".into(), parameters.clone());
    Some((json!({ "type": kind, "function": function }), Tool { name, parameters, is_strict }))
}

/// `None`: no tool is to be called.
fn read_choice(fields: &mut Fields<'_>, tools: &[Tool], is_empty: bool) -> Option<Choice> {
    let Some(raw) = fields.raw("tool_choice") else { return Some(Choice::Auto) };
    if raw.get().starts_with('{') {
        let name = fields.object("tool_choice", &["type", "function"], |fields| {
            let _ = fields.one_of("type", &["function"]);
            if fields.raw("function").is_none() {
                fields.fault("function", "required", "expected an object, got nothing", None);
            }
            fields.object("function", &["name"], |fields| fields.required_text("name", &NAME))
        })?;
        let found = tools.iter().position(|tool| tool.name == name);
        if found.is_none() && (is_empty || !tools.is_empty()) {
            fields.fault("tool_choice", "value", "expected the name of one of the tools", None);
        }
        return found.map(Choice::Named);
    }
    match fields.one_of("tool_choice", &["none", "auto", "required"])? {
        "none" => None,
        "auto" => Some(Choice::Auto),
        _ => {
            if is_empty {
                fields.fault("tool_choice", "value", "expected tools where one is required, got none", None);
            }
            Some(Choice::Required)
        }
    }
}

impl Offered {
    /// What the answer has to be where a call is required, or to be held to where a tool is strict.
    pub(super) fn wanted(&self, form: CallForm) -> Option<Wanted> {
        let (all, is_parallel) = (|| self.tools.clone(), self.is_parallel);
        let shape = match self.choice {
            Choice::Auto if !self.is_held() => return None,
            Choice::Auto => Shape::TextAndCalls { tools: all(), form, is_parallel },
            Choice::Required => Shape::Calls { tools: all(), form, max_calls: if is_parallel { MAX_CALLS } else { 1 } },
            Choice::Named(at) => Shape::Calls { tools: vec![self.tools[at].clone()], form, max_calls: 1 },
        };
        let tool = if let Choice::Named(at) = self.choice { Some(at) } else { None };
        Some(Wanted { field: "tools", shape, tool })
    }

    /// Whether a grammar holds the answer: it has to be a call, or a tool is strict.
    pub(super) fn is_held(&self) -> bool {
        self.choice != Choice::Auto || self.tools.iter().any(|tool| tool.is_strict)
    }

    /// Whether the model has to be told of the tools to call any of them.
    pub(super) fn must_be_told(&self) -> bool {
        self.choice == Choice::Auto
    }

    /// What finds the calls in an answer of a model that writes them in this form.
    pub(super) fn reader(&self, form: CallForm) -> CallReader {
        let names = self.tools.iter().map(|tool| tool.name.clone()).collect();
        let parser = CallParser::new(names);
        // The grammar knows the model's form alone: what looks like a call in the other was held to nothing.
        let parser = if self.is_held() { parser.only(form) } else { parser };
        CallReader { parser, is_parallel: self.is_parallel, n_told: 0 }
    }
}

/// Takes one answer apart.
#[derive(Debug, Clone)]
pub(super) struct CallReader {
    parser: CallParser,
    is_parallel: bool,
    n_told: usize,
}

/// A call as OpenAI's form has it.
#[derive(Debug, Serialize)]
pub(super) struct ToolCall {
    /// In chunks alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

/// Text and calls of a part of an answer.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
}

impl CallReader {
    /// Takes the next text.
    pub(super) fn push(&mut self, text: &str) -> Parts {
        let pieces = self.parser.push(text);
        self.parts(pieces)
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Parts {
        let pieces = self.parser.finish();
        self.parts(pieces)
    }

    /// A whole answer.
    pub(super) fn whole(mut self, text: &str) -> Parts {
        let (mut parts, rest) = (self.push(text), self.finish());
        parts.text.push_str(&rest.text);
        parts.calls.extend(rest.calls);
        parts
    }

    /// Whether there was a call.
    pub(super) fn has_called(&self) -> bool {
        self.n_told > 0
    }

    fn parts(&mut self, pieces: Vec<Piece>) -> Parts {
        let mut parts = Parts::default();
        for piece in pieces {
            match piece {
                Piece::Text(text) => parts.text.push_str(&text),
                // Where only one call is wanted, the first is it.
                Piece::Call(_) if self.n_told > 0 && !self.is_parallel => {}
                Piece::Call(call) => {
                    parts.calls.push(ToolCall::new(call, self.n_told));
                    self.n_told += 1;
                }
            }
        }
        parts
    }
}

impl ToolCall {
    fn new(call: Call, index: usize) -> Self {
        let Call { name, arguments } = call;
        let id = format!("call_{}", Uuid::new_v4().simple());
        Self { index: Some(index), id, kind: "function", function: Function { name, arguments } }
    }

    /// As a whole answer has it.
    pub(super) fn without_index(self) -> Self {
        Self { index: None, ..self }
    }
}

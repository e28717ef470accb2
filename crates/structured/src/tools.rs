//! Tools: functions that the model may call, and how a call is written.

use llguidance::toktrie::TokTrie;
use serde_json::{Map, Value, json};

use crate::compile::{ShapeError, check_len};
use crate::schema;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// A call that the model has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The function.
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

/// How calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>`, line end, `{"name": ..., "arguments": {...}}`, line end, `</tool_call>`: Qwen2.5, Qwen3, Hermes.
    Tagged,
    /// `{"name": ..., "parameters": {...}}` and nothing else, `; ` between several: Llama 3. Also for models whose template
    /// knows no tools.
    Bare,
}

pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

impl CallForm {
    /// The form that a chat template teaches its model.
    pub fn of_template(source: &str) -> Self {
        if source.contains(OPEN) { Self::Tagged } else { Self::Bare }
    }
}

/// Checks a tool's schema, with those of the tools before it being `n_bytes` long; gives the length with it.
pub(crate) fn check(tool: &Tool, n_bytes: usize) -> Result<usize, ShapeError> {
    schema::check(&tool.parameters)?;
    match tool.parameters.get("type") {
        None => {}
        Some(Value::String(kind)) if kind == "object" => {}
        Some(_) => {
            let error = ShapeError::new("expected \"object\": arguments have names");
            return Err(ShapeError { place: "/type".into(), ..error });
        }
    }
    let n_bytes = n_bytes + tool.name.len() + tool.parameters.to_string().len();
    check_len(n_bytes).map(|()| n_bytes)
}

/// The schema of a call's arguments: an object, with the names that are declared and no others, unless the schema says
/// something else of them.
pub(crate) fn arguments_schema(parameters: &Value) -> Value {
    let mut members: Map<String, Value> = parameters.as_object().cloned().unwrap_or_default();
    let others = ["additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf", "enum", "const"];
    if !others.iter().any(|keyword| members.contains_key(*keyword)) {
        members.insert("additionalProperties".into(), false.into());
    }
    members.insert("type".into(), json!("object"));
    members.into()
}

/// A grammar of one to `max_calls` calls.
pub(crate) fn lark(tools: &[Tool], form: CallForm, max_calls: usize, trie: &TokTrie) -> String {
    let (begin, arguments, end, between) = match form {
        CallForm::Tagged => ("\n{\"name\": ", ", \"arguments\": ", "}\n", "\n"),
        CallForm::Bare => ("{\"name\": ", ", \"parameters\": ", "}", "; "),
    };
    // Where a tag is a token without text, that token stands in the grammar.
    let tag = |text: &str| match trie.get_special_token(text) {
        Some(id) => format!("<[{id}]>"),
        None => quoted(text),
    };
    let (open, close) = match form {
        CallForm::Tagged => (tag(OPEN), tag(CLOSE)),
        CallForm::Bare => (String::new(), String::new()),
    };
    let mut lark = String::from("start: call");
    if max_calls > 1 {
        lark.push_str(&format!(" ({} call){{0,{}}}", quoted(between), max_calls - 1));
    }
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    lark.push_str(&format!("\ncall: {}\n", names.join(" | ")));
    for (i, tool) in tools.iter().enumerate() {
        let begin = quoted(&format!("{begin}{}{arguments}", quoted(&tool.name)));
        lark.push_str(&format!("call_{i}: {open} {begin} arguments_{i} {} {close}\n", quoted(end)));
        let schema = schema::with_fixed_layout(&arguments_schema(&tool.parameters));
        lark.push_str(&format!("arguments_{i}: %json {schema}\n"));
    }
    lark
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

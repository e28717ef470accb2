//! Tools: functions that the model may call, and how a call is written.

use llguidance::toktrie::TokTrie;
use serde_json::{Map, Value, json};
use tokenizer::{EncodeOptions, TokenId, Tokenizer};

use crate::compile::{ShapeError, check_len};
use crate::schema;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
    /// Whether its arguments fit the schema also where the model need not call. Where it has to, all tools' do.
    pub is_strict: bool,
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
/// What Llama 3.1 may write in front of a call.
pub(crate) const PYTHON_TAG: &str = "<|python_tag|>";

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

/// The tokens around tagged calls that have no text of their own, and that a [`CallParser`](crate::CallParser) has to see as
/// text. None where the tags are text to the vocabulary.
pub fn hidden_tags(tokenizer: &Tokenizer) -> Vec<TokenId> {
    let options = EncodeOptions { parse_special: true, add_special: false };
    let ids = [OPEN, CLOSE].into_iter().filter_map(|tag| match tokenizer.encode(tag, options).as_slice() {
        [id] => Some(*id),
        _ => None,
    });
    ids.filter(|&id| tokenizer.is_special(id)).collect()
}

/// A grammar of one to `max_calls` calls, each with arguments that fit its tool's schema.
pub(crate) fn lark(tools: &[Tool], form: CallForm, max_calls: usize, trie: &TokTrie) -> String {
    let (open, between) = match form {
        CallForm::Tagged => (tag(OPEN, trie), "\n"),
        CallForm::Bare => (String::new(), "; "),
    };
    let mut lark = String::from("start: tagged");
    if max_calls > 1 {
        lark.push_str(&format!(" ({} tagged){{0,{}}}", quoted(between), max_calls - 1));
    }
    lark.push_str(&format!("\ntagged: {open} call\n"));
    add_calls(&mut lark, tools, form, trie, |_| true);
    lark
}

/// A grammar of any text, and of calls where the model begins one in its form: of one of the tools, with arguments that are
/// an object, and fit the schema of a tool that is strict.
///
/// Tokens without text stand nowhere but where they are named: what a reader sees is what was matched.
pub(crate) fn lark_among_text(tools: &[Tool], form: CallForm, is_parallel: bool, trie: &TokTrie) -> String {
    let more = if is_parallel { "*" } else { "?" };
    let mut lark = match form {
        CallForm::Tagged => {
            // A tag that is text ends the text before it as soon as it is complete; one that is a token does so by itself.
            let begin = match trie.get_special_token(OPEN) {
                Some(id) => format!("begin: TEXT <[{id}]>\n"),
                None => format!("begin[lazy]: /(?s:.*){OPEN}/\n"),
            };
            format!("start: (begin call){more} TEXT\n{begin}TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/\n")
        }
        CallForm::Bare => {
            let rest = if is_parallel { "(\"; \" call)*" } else { "" };
            let python_tag = regex_escaped(PYTHON_TAG);
            let begin = match trie.get_special_token(PYTHON_TAG) {
                Some(id) => format!("begin: LAYOUT? <[{id}]>?\n"),
                None => format!("begin: LAYOUT | TAG | \"\"\nTAG: /\\s*{python_tag}/\n"),
            };
            let text = format!("TEXT: /\\s*([^\\s{{](?s:.*))?/ & ~/\\s*{python_tag}(?s:.*)/\n");
            format!("start: TEXT | begin call {rest}\n{begin}LAYOUT: /\\s+/\n{text}")
        }
    };
    add_calls(&mut lark, tools, form, trie, |tool| tool.is_strict);
    lark
}

/// The rules of a call, without the tag in front.
fn add_calls(lark: &mut String, tools: &[Tool], form: CallForm, trie: &TokTrie, is_held: impl Fn(&Tool) -> bool) {
    let (begin, arguments, end) = match form {
        CallForm::Tagged => ("\n{\"name\": ", ", \"arguments\": ", "}\n"),
        CallForm::Bare => ("{\"name\": ", ", \"parameters\": ", "}"),
    };
    let close = if form == CallForm::Tagged { tag(CLOSE, trie) } else { String::new() };
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    lark.push_str(&format!("call: {}\n", names.join(" | ")));
    for (i, tool) in tools.iter().enumerate() {
        let begin = quoted(&format!("{begin}{}{arguments}", quoted(&tool.name)));
        lark.push_str(&format!("call_{i}: {begin} arguments_{i} {} {close}\n", quoted(end)));
        let schema = if is_held(tool) { arguments_schema(&tool.parameters) } else { json!({ "type": "object" }) };
        lark.push_str(&format!("arguments_{i}: %json {}\n", schema::with_fixed_layout(&schema)));
    }
}

/// Where a tag is a token without text, that token stands in the grammar.
fn tag(text: &str, trie: &TokTrie) -> String {
    match trie.get_special_token(text) {
        Some(id) => format!("<[{id}]>"),
        None => quoted(text),
    }
}

fn regex_escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

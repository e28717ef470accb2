//! A conversation: `messages`, checked and brought into the form that chat templates know.

use serde_json::{Map, Value, json};

use crate::body::MAX_BODY_BYTES;
use crate::fields::{Fields, TextRule, Unit};

/// The most messages of a conversation.
const MAX_MESSAGES: usize = 1024;
/// The most calls of one message.
const MAX_CALLS: usize = 128;
/// The most parts of one message.
const MAX_PARTS: usize = 256;
/// The longest conversation, in bytes of its text.
const MAX_TEXT_BYTES: usize = 512 << 10;
/// The longest name of a speaker or a call.
const MAX_NAME_CHARS: usize = 256;

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];
const MESSAGE: &[&str] = &[
    "role",
    "content",
    "reasoning_content",
    "reasoning",
    "refusal",
    "name",
    "tool_call_id",
    "tool_calls",
    "function_call",
    "audio",
];
const CALL: &[&str] = &["id", "type", "function", "index"];
const PART: &[&str] = &["type", "text"];

/// Parts that are known and not supported.
const OTHER_PARTS: &[&str] = &["image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "refusal"];

const TEXT: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };
const NAME: TextRule = TextRule { len: 1..=MAX_NAME_CHARS, unit: Unit::Characters, echo: true };

/// Reads `messages`; `None` with a fault.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Vec<Value>> {
    if fields.raw("messages").is_none() {
        fields.fault("messages", "required", "expected a list of objects, got nothing", None);
    }
    let messages = fields.objects("messages", 1..=MAX_MESSAGES, MESSAGE, read_message)?;
    let n_bytes: usize = messages.iter().map(|(_, n_bytes)| n_bytes).sum();
    if n_bytes > MAX_TEXT_BYTES {
        let message = format!("expected at most {MAX_TEXT_BYTES} bytes of text in all, got {n_bytes}");
        fields.fault("messages", "length", &message, None);
        return None;
    }
    Some(messages.into_iter().map(|(message, _)| message).collect())
}

/// One message, and the length of its text in bytes.
fn read_message(fields: &mut Fields<'_>) -> Option<(Value, usize)> {
    if fields.raw("role").is_none() {
        fields.fault("role", "required", &format!("expected one of {}", ROLES.join(", ")), None);
    }
    let role = fields.one_of("role", ROLES);
    for field in ["function_call", "audio", "refusal"] {
        if fields.raw(field).is_some_and(|raw| raw.get() != "[]") {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
    let has_calls = fields.raw("tool_calls").is_some_and(|raw| raw.get() != "[]");
    let calls = if has_calls { read_calls(fields, role) } else { None };
    // The model's turn may have no text: it may be calls, or nothing.
    let may_be_empty = role == Some("assistant") && fields.raw("content").is_none();
    let content = if may_be_empty { Some(String::new()) } else { read_content(fields) };
    let reasoning = read_reasoning(fields);
    let mut message = Map::new();
    // What OpenAI calls so since its reasoning models; no published template knows it.
    let role = if role == Some("developer") { Some("system") } else { role };
    message.insert("role".into(), role?.into());
    for field in ["name", "tool_call_id"] {
        if let Some(name) = fields.optional_text(field, &NAME) {
            message.insert(field.into(), name.into());
        }
    }
    let content = content?;
    let mut n_bytes = content.len();
    message.insert("content".into(), content.into());
    if let Some(reasoning) = reasoning {
        n_bytes += reasoning.len();
        message.insert("reasoning_content".into(), reasoning.into());
    }
    if has_calls {
        let (calls, n_call_bytes) = calls?;
        n_bytes += n_call_bytes;
        message.insert("tool_calls".into(), calls.into());
    }
    Some((message.into(), n_bytes))
}

/// What the model thought before it answered: templates of reasoning models know it as `reasoning_content`, which vLLM calls
/// `reasoning` too.
fn read_reasoning(fields: &mut Fields<'_>) -> Option<String> {
    let old = fields.optional_text("reasoning_content", &TEXT);
    let new = fields.optional_text("reasoning", &TEXT);
    old.or(new)
}

/// The calls of an assistant's turn, and the length of their arguments in bytes. Templates want the arguments as an object,
/// which OpenAI's form has as a string.
fn read_calls(fields: &mut Fields<'_>, role: Option<&str>) -> Option<(Vec<Value>, usize)> {
    if role.is_some_and(|role| role != "assistant") {
        fields.fault("tool_calls", "value", "expected only in messages of the assistant", None);
    }
    let calls = fields.objects("tool_calls", 1..=MAX_CALLS, CALL, |fields| {
        let _ = fields.one_of("type", &["function"]);
        let id = fields.optional_text("id", &NAME);
        if fields.raw("function").is_none() {
            fields.fault("function", "required", "expected an object, got nothing", None);
        }
        let (name, arguments, n_bytes) = fields.object("function", &["name", "arguments"], |fields| {
            let name = fields.required_text("name", &NAME);
            let text = fields.required_text("arguments", &TEXT)?;
            let arguments = if text.trim().is_empty() { Some(Map::new()) } else { serde_json::from_str(&text).ok() };
            if arguments.is_none() {
                fields.fault("arguments", "value", "expected a JSON object, as a string", None);
            }
            Some((name?, arguments?, text.len()))
        })?;
        let mut call = Map::new();
        if let Some(id) = id {
            call.insert("id".into(), id.into());
        }
        call.insert("type".into(), "function".into());
        call.insert("function".into(), json!({ "name": name, "arguments": arguments }));
        Some((Value::from(call), n_bytes))
    })?;
    let n_bytes = calls.iter().map(|(_, n_bytes)| n_bytes).sum();
    Some((calls.into_iter().map(|(call, _)| call).collect(), n_bytes))
}

/// A string, or parts of text, which are put together line by line as vLLM and llama-server do.
fn read_content(fields: &mut Fields<'_>) -> Option<String> {
    match fields.raw("content") {
        Some(raw) if raw.get().starts_with('[') => {
            fields.objects("content", 1..=MAX_PARTS, PART, read_part).map(|parts| parts.join("\n"))
        }
        _ => fields.required_text("content", &TEXT),
    }
}

fn read_part(fields: &mut Fields<'_>) -> Option<String> {
    let kind = fields.raw("type").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    match kind.as_deref() {
        Some("text") => fields.required_text("text", &TEXT),
        other => {
            let known = OTHER_PARTS.iter().find(|known| Some(**known) == other);
            match known {
                Some(known) => {
                    fields.fault("type", "unsupported", &format!("{known} is not supported, only text is"), None);
                }
                None => fields.fault("type", "value", "expected \"text\"", None),
            }
            None
        }
    }
}

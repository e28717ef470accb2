//! A conversation: `messages`, checked and brought into the form that chat templates know.

use serde_json::{Map, Value};

use crate::body::MAX_BODY_BYTES;
use crate::fields::{Fields, TextRule, Unit};

/// The most messages of a conversation.
const MAX_MESSAGES: usize = 1024;
/// The most parts of one message.
const MAX_PARTS: usize = 256;
/// The longest conversation, in bytes of its text.
const MAX_TEXT_BYTES: usize = 512 << 10;
/// The longest name of a speaker or a call.
const MAX_NAME_CHARS: usize = 256;

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];
const MESSAGE: &[&str] = &["role", "content", "name", "tool_call_id", "tool_calls", "function_call", "audio"];
const PART: &[&str] = &["type", "text"];

/// Parts that are known and not supported.
const OTHER_PARTS: &[&str] = &["image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "refusal"];

const TEXT: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };
const NAME: TextRule = TextRule { len: 1..=MAX_NAME_CHARS, unit: Unit::Characters, echo: true };

/// Reads `messages`; `None` with a fault.
pub(in crate::routes) fn read(fields: &mut Fields<'_>) -> Option<Vec<Value>> {
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
    for field in ["tool_calls", "function_call", "audio"] {
        if fields.raw(field).is_some_and(|raw| raw.get() != "[]") {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
    let content = read_content(fields);
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
    let n_bytes = content.len();
    message.insert("content".into(), content.into());
    Some((message.into(), n_bytes))
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

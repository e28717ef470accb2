//! `POST /apply-template`: the prompt that the chat template makes of a conversation, in llama-server's form.

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use serde_json::Map;
use tokenizer::ChatInput;

use super::openai::read_messages;
use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::on_encoder;
use crate::state::AppState;

const FIELDS: &[&str] = &["messages", "add_generation_prompt", "chat_template_kwargs", "tools", "tool_choice"];

/// What `POST /apply-template` answers.
#[derive(Serialize)]
pub(crate) struct Applied {
    prompt: String,
}

/// The text that `POST /v1/chat/completions` would continue for the same `messages` and `chat_template_kwargs`.
pub(crate) async fn apply_template(State(state): State<AppState>, request: Request) -> Result<Json<Applied>, ApiError> {
    let body = read_json(request).await?;
    let template = state.loaded()?.chat_template.clone();
    let template = template.map_err(|why| ApiError::field("messages", "unsupported", format!("messages: {why}")))?;
    let mut fields = Fields::parse(&body, FIELDS)?;
    let messages = read_messages(&mut fields);
    let add_generation_prompt = fields.boolean("add_generation_prompt").unwrap_or(true);
    let extra = fields.raw("chat_template_kwargs").map_or(Some(Map::new()), |raw| serde_json::from_str(raw.get()).ok());
    if extra.is_none() {
        fields.fault("chat_template_kwargs", "type", "expected an object", None);
    }
    for field in ["tools", "tool_choice"] {
        if fields.raw(field).is_some_and(|raw| !matches!(raw.get(), "[]" | "\"none\"" | "\"auto\"")) {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
    fields.finish()?;
    // Both are there, or `finish` would have said so.
    let (messages, extra) = (messages.unwrap_or_default(), extra.unwrap_or_default());
    let rendered = on_encoder(&state, move || {
        template.render(&ChatInput { messages: &messages, tools: None, add_generation_prompt, extra })
    });
    let prompt = rendered.await?;
    let prompt = prompt.map_err(|error| ApiError::field("messages", "template", format!("messages: {error}")))?;
    Ok(Json(Applied { prompt }))
}

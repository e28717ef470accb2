//! `POST /apply-template`: the prompt that the chat template makes of a conversation, in llama-server's form.

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use super::openai::read_messages;
use super::openai::template::{self, Conversation};
use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::Fields;
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
    let chat_template = state.loaded()?.chat_template.clone();
    let chat_template =
        chat_template.map_err(|why| ApiError::field("messages", "unsupported", format!("messages: {why}")))?;
    let mut fields = Fields::parse(&body, FIELDS)?;
    let messages = read_messages(&mut fields);
    let add_generation_prompt = fields.boolean("add_generation_prompt").unwrap_or(true);
    let variables = template::read_variables(&mut fields);
    for field in ["tools", "tool_choice"] {
        if fields.raw(field).is_some_and(|raw| !matches!(raw.get(), "[]" | "\"none\"" | "\"auto\"")) {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
    fields.finish()?;
    // There, or `finish` would have said so.
    let messages = messages.unwrap_or_default();
    let conversation = Conversation { messages, tools: None, add_generation_prompt, variables };
    let prompt = template::render(&state, chat_template, conversation).await?;
    Ok(Json(Applied { prompt }))
}

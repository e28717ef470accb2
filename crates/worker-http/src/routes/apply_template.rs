//! `POST /apply-template`: the prompt that the chat template makes of a conversation, in llama-server's form.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;

use super::openai::template::{self, Conversation};
use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::AppState;

static FIELDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| template::fields().chain(["add_generation_prompt"]).collect());

/// What `POST /apply-template` answers.
#[derive(Serialize)]
pub(crate) struct Applied {
    prompt: String,
}

/// The text that `POST /v1/chat/completions` would continue for the same `messages`, `tools` and
/// `chat_template_kwargs`.
pub(crate) async fn apply_template(State(state): State<AppState>, request: Request) -> Result<Json<Applied>, ApiError> {
    let body = read_json(request).await?;
    let chat_template = state.loaded()?.chat_template.clone();
    let chat_template =
        chat_template.map_err(|why| ApiError::field("messages", "unsupported", format!("messages: {why}")))?;
    let prompt = template::render(&state, chat_template, parse(&body)?).await?;
    Ok(Json(Applied { prompt }))
}

/// Reads the conversation.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str) -> Result<Conversation, ApiError> {
    let mut fields = Fields::parse(body, &FIELDS)?;
    let add_generation_prompt = fields.boolean("add_generation_prompt").unwrap_or(true);
    let mut conversation = template::read(&mut fields);
    conversation.add_generation_prompt = add_generation_prompt;
    fields.finish()?;
    Ok(conversation)
}

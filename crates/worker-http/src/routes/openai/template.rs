//! A conversation into a prompt, by the model's chat template.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizer::{ChatInput, ChatTemplate};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::on_encoder;
use crate::state::AppState;

/// What a template is given.
pub(in crate::routes) struct Conversation {
    pub(in crate::routes) messages: Vec<Value>,
    pub(in crate::routes) tools: Option<Value>,
    pub(in crate::routes) add_generation_prompt: bool,
    /// Further variables, by their names.
    pub(in crate::routes) variables: Map<String, Value>,
}

/// Reads `chat_template_kwargs`.
pub(in crate::routes) fn read_variables(fields: &mut Fields<'_>) -> Map<String, Value> {
    let Some(raw) = fields.raw("chat_template_kwargs") else { return Map::new() };
    serde_json::from_str(raw.get()).unwrap_or_else(|_| {
        fields.fault("chat_template_kwargs", "type", "expected an object", None);
        Map::new()
    })
}

/// The prompt, made off the threads that serve connections.
///
/// # Errors
/// A conversation that the template refuses, as a fault of `messages`.
pub(in crate::routes) async fn render(
    state: &AppState,
    template: Arc<ChatTemplate>,
    conversation: Conversation,
) -> Result<String, ApiError> {
    let Conversation { messages, tools, add_generation_prompt, variables } = conversation;
    let rendered = on_encoder(state, move || {
        template.render(&ChatInput {
            messages: &messages,
            tools: tools.as_ref(),
            add_generation_prompt,
            extra: variables,
        })
    });
    rendered.await?.map_err(|error| ApiError::field("messages", "template", format!("messages: {error}")))
}

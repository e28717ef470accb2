//! A conversation into a prompt, by the model's chat template.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizer::{ChatInput, ChatTemplate};

use super::messages;
use super::tools::{self, Offered};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::job::on_encoder;
use crate::state::AppState;

/// The fields that a conversation is read from, without those of the tools.
pub(super) const FIELDS: &[&str] = &["messages", "chat_template_kwargs"];

/// Why tools are refused that the model may call and is not told of.
const UNTOLD: &str = "tools: the model's chat template does not tell it of tools, so it would not call any by itself; tool_choice \
     \"required\" or the name of one makes it call, by grammar, and \"none\" leaves them out";

/// What a template is given.
#[derive(Debug)]
pub(in crate::routes) struct Conversation {
    pub(super) messages: Vec<Value>,
    pub(super) tools: Option<Offered>,
    /// Whether the prompt ends where the assistant's turn begins.
    pub(in crate::routes) add_generation_prompt: bool,
    /// Further variables, by their names.
    pub(super) variables: Map<String, Value>,
}

/// Every field that a conversation is read from.
pub(in crate::routes) fn fields() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().chain(tools::FIELDS).copied()
}

/// Reads a conversation that the model is to go on with. Where something is missing, there is a fault.
pub(in crate::routes) fn read(fields: &mut Fields<'_>) -> Conversation {
    Conversation {
        messages: messages::read(fields).unwrap_or_default(),
        variables: read_variables(fields),
        tools: tools::read(fields),
        add_generation_prompt: true,
    }
}

fn read_variables(fields: &mut Fields<'_>) -> Map<String, Value> {
    let Some(raw) = fields.raw("chat_template_kwargs") else { return Map::new() };
    serde_json::from_str(raw.get()).unwrap_or_else(|_| {
        fields.fault("chat_template_kwargs", "type", "expected an object", None);
        Map::new()
    })
}

/// The prompt, made off the threads that serve connections.
///
/// # Errors
/// A conversation that the template refuses, as a fault of `messages`; tools that it leaves out, as one of `tools`, where the
/// model would have to be told of them.
pub(in crate::routes) async fn render(
    state: &AppState,
    template: Arc<ChatTemplate>,
    conversation: Conversation,
) -> Result<String, ApiError> {
    let Conversation { messages, tools, add_generation_prompt, variables } = conversation;
    let rendered = on_encoder(state, move || {
        let render = |tools| {
            template.render(&ChatInput { messages: &messages, tools, add_generation_prompt, extra: variables.clone() })
        };
        let text = render(tools.as_ref().map(|tools| &tools.list));
        let text = text.map_err(|error| ApiError::field("messages", "template", format!("messages: {error}")))?;
        // The same text without the tools: the template knows nothing of them.
        if tools.as_ref().is_some_and(Offered::must_be_told) && render(None).is_ok_and(|without| without == text) {
            return Err(ApiError::field("tools", "unsupported", UNTOLD));
        }
        Ok(text)
    });
    rendered.await?
}

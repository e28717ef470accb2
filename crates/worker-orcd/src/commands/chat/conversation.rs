//! What was said, and how it becomes a prompt.

use anyhow::Context as _;
use serde_json::{Value, json};
use tokenizer::{ChatInput, ChatTemplate, EncodeOptions, TokenId, Tokenizer};

/// The share of the context that is left to the answer: where a conversation needs more, its oldest turns are forgotten.
const ANSWER_SHARE: usize = 4;

/// A conversation with one model.
pub(crate) struct Conversation {
    /// None for a model that was not made for conversations: each message is a prompt of its own.
    template: Option<ChatTemplate>,
    /// What the model is told before it.
    pub(crate) system: Option<String>,
    /// Message and answer, oldest first.
    turns: Vec<(String, String)>,
}

/// What the model is asked to continue.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// Turns that had to be forgotten for it.
    pub(crate) n_forgotten: usize,
}

impl Conversation {
    pub(crate) fn new(template: Option<ChatTemplate>, system: Option<String>) -> Self {
        Self { template, system, turns: Vec::new() }
    }

    pub(crate) fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Takes in a turn.
    pub(crate) fn add(&mut self, message: String, answer: String) {
        if self.has_template() {
            self.turns.push((message, answer));
        }
    }

    /// Forgets every turn.
    pub(crate) fn reset(&mut self) {
        self.turns.clear();
    }

    /// The prompt for `message`, after as much of the conversation as `n_ctx` tokens have room for.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub(crate) fn prompt(&mut self, message: &str, tokenizer: &Tokenizer, n_ctx: usize) -> anyhow::Result<Prompt> {
        let mut n_forgotten = 0;
        loop {
            let text = self.text(message)?;
            let ids = tokenizer.encode(&text, EncodeOptions { parse_special: true, add_special: true });
            if self.turns.is_empty() || ids.len() <= n_ctx - n_ctx / ANSWER_SHARE {
                return Ok(Prompt { ids, n_forgotten });
            }
            self.turns.remove(0);
            n_forgotten += 1;
        }
    }

    fn text(&self, message: &str) -> anyhow::Result<String> {
        let Some(template) = &self.template else { return Ok(message.to_owned()) };
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let mut messages: Vec<Value> = self.system.iter().map(|text| turn("system", text)).collect();
        for (message, answer) in &self.turns {
            messages.extend([turn("user", message), turn("assistant", answer)]);
        }
        messages.push(turn("user", message));
        let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        template.render(&input).context("the model's template")
    }
}

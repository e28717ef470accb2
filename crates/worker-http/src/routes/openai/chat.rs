//! `POST /v1/chat/completions`: a conversation goes on.

use std::sync::{Arc, LazyLock};

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value};
use tokenizer::{ChatInput, ChatTemplate, EncodeOptions, Tokenizer};

use super::form::{FinishReason, Form};
use super::generation::{self, Asked};
use super::logprobs::{ChatLogprobs, MAX_LOGPROBS};
use super::{answer, messages, new_id};
use crate::body::read_json;
use crate::error::ApiError;
use crate::event::TokenEvent;
use crate::fields::Fields;
use crate::job::{JobRequest, Prompt, on_encoder};
use crate::state::{AppState, Served};

static FIELDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| generation::known(&["messages", "logprobs", "top_logprobs", "chat_template_kwargs", "echo"]));

/// A conversation, checked.
#[derive(Debug)]
pub(super) struct ChatRequest {
    messages: Vec<Value>,
    template_variables: Map<String, Value>,
    asked: Asked,
}

pub(super) async fn chat(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let body = read_json(request).await?;
    let served = state.ready()?;
    let template = template(served)?;
    let request = parse(&body, served.tokenizer.n_vocab())?;
    drop(body);
    let ChatRequest { messages, template_variables, asked } = request;
    let rendered = on_encoder(&state, move || {
        template.render(&ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: template_variables,
        })
    });
    let text =
        rendered.await?.map_err(|error| ApiError::field("messages", "template", format!("messages: {error}")))?;
    let options = EncodeOptions { parse_special: true, add_special: asked.add_special };
    let job = JobRequest {
        job_id: new_id("chatcmpl"),
        prompts: vec![Prompt::Text { text, options }],
        n: asked.n,
        generation: asked.generation,
    };
    let has_logprobs = job.generation.n_logprobs.is_some();
    let form = Chat { tokenizer: Arc::clone(&served.tokenizer), has_logprobs };
    answer(&state, job, form, asked.stream).await
}

fn template(served: &Served) -> Result<Arc<ChatTemplate>, ApiError> {
    served.chat_template.clone().map_err(|why| {
        let message = format!("messages: {why}; POST /v1/completions takes a prompt as it is");
        ApiError::field("messages", "unsupported", message)
    })
}

/// Reads a request; fields that nobody knows are ignored.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str, n_vocab: usize) -> Result<ChatRequest, ApiError> {
    let mut fields = Fields::parse(body, &FIELDS)?;
    let messages = messages::read(&mut fields);
    let mut asked = generation::read(&mut fields, n_vocab);
    asked.generation.n_logprobs = read_logprobs(&mut fields);
    let template_variables = read_template_variables(&mut fields);
    if fields.boolean("echo") == Some(true) {
        fields.fault("echo", "unsupported", "not supported", None);
    }
    fields.finish()?;
    // There, or `finish` would have said so.
    Ok(ChatRequest { messages: messages.unwrap_or_default(), template_variables, asked })
}

fn read_logprobs(fields: &mut Fields<'_>) -> Option<usize> {
    let wanted = fields.boolean("logprobs").unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS);
    if top.is_some_and(|top| top > 0) && !wanted {
        fields.fault("top_logprobs", "value", "expected only where logprobs is true", None);
    }
    wanted.then(|| top.unwrap_or(0) as usize)
}

fn read_template_variables(fields: &mut Fields<'_>) -> Map<String, Value> {
    let Some(raw) = fields.raw("chat_template_kwargs") else { return Map::new() };
    serde_json::from_str(raw.get()).unwrap_or_else(|_| {
        fields.fault("chat_template_kwargs", "type", "expected an object", None);
        Map::new()
    })
}

/// How chat's choices look.
struct Chat {
    tokenizer: Arc<Tokenizer>,
    has_logprobs: bool,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Chunk {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<FinishReason>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Form for Chat {
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    type Chunk = Chunk;
    type Choice = Choice;

    fn first(&self, index: usize) -> Option<Chunk> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(Chunk { index, delta, logprobs: None, finish_reason: None })
    }

    fn next(&mut self, index: usize, token: &TokenEvent) -> Option<Chunk> {
        let logprobs = ChatLogprobs::of(&self.tokenizer, std::slice::from_ref(token));
        if token.t.is_empty() && logprobs.is_none() {
            return None;
        }
        let delta = Delta { role: None, content: Some(token.t.clone()) };
        Some(Chunk { index, delta, logprobs, finish_reason: None })
    }

    fn last(&self, index: usize, reason: FinishReason) -> Chunk {
        Chunk { index, delta: Delta::default(), logprobs: None, finish_reason: Some(reason) }
    }

    fn whole(&self, index: usize, tokens: &[TokenEvent], reason: FinishReason) -> Choice {
        let content = tokens.iter().map(|token| token.t.as_str()).collect();
        let logprobs = ChatLogprobs::of(&self.tokenizer, tokens).filter(|_| self.has_logprobs);
        Choice {
            index,
            message: Message { role: "assistant", content, refusal: None },
            logprobs,
            finish_reason: reason,
        }
    }
}

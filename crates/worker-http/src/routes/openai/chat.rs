//! `POST /v1/chat/completions`: a conversation goes on.

use std::sync::{Arc, LazyLock};

use ::structured::{CallForm, hidden_tags};
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use tokenizer::{ChatTemplate, EncodeOptions, Tokenizer};

use super::form::{Complete, FinishReason, Form};
use super::generation::{self, Asked};
use super::logprobs::ChatLogprobs;
use super::structured::Wanted;
use super::template::{self, Conversation};
use super::tools::{CallReader, Offered, Parts, ToolCall};
use super::{answer, new_id, structured};
use crate::body::read_json;
use crate::error::ApiError;
use crate::event::{End, TokenEvent};
use crate::fields::Fields;
use crate::job::{self, JobRequest, Prompt, Received};
use crate::routes::sampling::MAX_LOGPROBS;
use crate::state::{AppState, Served};

static FIELDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| generation::known(&[template::FIELDS, &["logprobs", "top_logprobs", "echo"]].concat()));

/// A conversation, checked.
#[derive(Debug)]
pub(super) struct ChatRequest {
    conversation: Conversation,
    asked: Asked,
}

pub(super) async fn chat(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let received = Received::now();
    let body = read_json(request).await?;
    let served = state.ready()?;
    let chat_template = chat_template(served)?;
    let request = parse(&body, served.tokenizer.n_vocab())?;
    drop(body);
    let ChatRequest { conversation, mut asked } = request;
    job::check_room(served, asked.n)?;
    let tools = conversation.tools.as_ref();
    let form = CallForm::of_template(chat_template.source());
    let wanted = tools.and_then(|tools| tools.wanted(form)).or(asked.wanted.take());
    let readers = tools.map(|tools| vec![tools.reader(form); asked.n]);
    if tools.is_some() {
        asked.generation.shown = hidden_tags(&served.tokenizer);
    }
    let work = async {
        let constraint = structured::compile(&state, served, wanted).await?;
        Ok((constraint, template::render(&state, chat_template, conversation).await?))
    };
    let (constraint, text) = received.within_limits(&state, work).await?;
    asked.generation.constraint = constraint;
    let options = EncodeOptions { parse_special: true, add_special: asked.add_special };
    let job = JobRequest {
        job_id: new_id("chatcmpl"),
        prompts: vec![Prompt::Text { text, options }],
        n: asked.n,
        generation: asked.generation,
    };
    let has_logprobs = job.generation.n_logprobs.is_some();
    let form = Chat { tokenizer: Arc::clone(&served.tokenizer), has_logprobs, readers };
    answer(&state, received, job, asked.stream, async |_| Ok(form)).await
}

fn chat_template(served: &Served) -> Result<Arc<ChatTemplate>, ApiError> {
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
    let conversation = template::read(&mut fields);
    let mut asked = generation::read(&mut fields, n_vocab, 1);
    asked.generation.n_logprobs = read_logprobs(&mut fields);
    if fields.boolean("echo") == Some(true) {
        fields.fault("echo", "unsupported", "not supported", None);
    }
    refuse_both(&mut fields, conversation.tools.as_ref(), &asked);
    fields.finish()?;
    Ok(ChatRequest { conversation, asked })
}

/// An answer is of a given form, or it calls tools: a constraint for either would forbid the other.
fn refuse_both(fields: &mut Fields<'_>, tools: Option<&Offered>, asked: &Asked) {
    let Some(tools) = tools else { return };
    if let Some(Wanted { field, .. }) = &asked.wanted {
        let message = "not supported together with tools, unless tool_choice is \"none\"";
        fields.fault(field, "unsupported", message, None);
    }
    if tools.is_held() && asked.generation.ignore_eos {
        fields.fault("ignore_eos", "value", "expected false where a call is required or a tool is strict", None);
    }
}

fn read_logprobs(fields: &mut Fields<'_>) -> Option<usize> {
    let wanted = fields.boolean("logprobs").unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_LOGPROBS);
    if top.is_some_and(|top| top > 0) && !wanted {
        fields.fault("top_logprobs", "value", "expected only where logprobs is true", None);
    }
    wanted.then(|| top.unwrap_or(0) as usize)
}

/// How chat's choices look.
struct Chat {
    tokenizer: Arc<Tokenizer>,
    has_logprobs: bool,
    /// Of each choice, where there are tools.
    readers: Option<Vec<CallReader>>,
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
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

impl Delta {
    /// `None` where there is nothing to tell.
    fn of(parts: Parts) -> Option<Self> {
        let Parts { text, calls } = parts;
        let content = Some(text).filter(|text| !text.is_empty());
        (content.is_some() || !calls.is_empty()).then_some(Self { role: None, content, tool_calls: calls })
    }
}

impl Chat {
    /// Text as it is, or taken apart where there are tools.
    fn parts(&mut self, index: usize, text: &str) -> Parts {
        match &mut self.readers {
            Some(readers) => readers[index].push(text),
            None => Parts { text: text.to_owned(), calls: Vec::new() },
        }
    }
}

/// A call is why an answer ends where the model has ended it.
fn reason_with(reason: FinishReason, has_called: bool) -> FinishReason {
    if has_called && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason }
}

impl Form for Chat {
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    type Chunk = Chunk;
    type Choice = Choice;

    fn first(&self, index: usize) -> Option<Chunk> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: Vec::new() };
        Some(Chunk { index, delta, logprobs: None, finish_reason: None })
    }

    fn next(&mut self, index: usize, token: &TokenEvent) -> Option<Chunk> {
        let logprobs = ChatLogprobs::of(&self.tokenizer, std::slice::from_ref(token));
        let delta = Delta::of(self.parts(index, &token.t));
        if delta.is_none() && logprobs.is_none() {
            return None;
        }
        // A token whose text is held back is told of for its log-probability.
        let empty = || Delta { content: Some(String::new()), ..Delta::default() };
        Some(Chunk { index, delta: delta.unwrap_or_else(empty), logprobs, finish_reason: None })
    }

    fn rest(&mut self, index: usize, _: &End) -> Option<Chunk> {
        let delta = Delta::of(self.readers.as_mut()?[index].finish())?;
        Some(Chunk { index, delta, logprobs: None, finish_reason: None })
    }

    fn last(&self, index: usize, reason: FinishReason) -> Chunk {
        let has_called = self.readers.as_ref().is_some_and(|readers| readers[index].has_called());
        let reason = reason_with(reason, has_called);
        Chunk { index, delta: Delta::default(), logprobs: None, finish_reason: Some(reason) }
    }

    fn whole(&self, index: usize, answer: &Complete) -> Choice {
        let text: String = answer.tokens.iter().map(|token| token.t.as_str()).collect();
        let logprobs = ChatLogprobs::of(&self.tokenizer, &answer.tokens).filter(|_| self.has_logprobs);
        let Parts { text, calls } = match &self.readers {
            Some(readers) => readers[index].clone().whole(&text),
            None => Parts { text, calls: Vec::new() },
        };
        let reason = reason_with(answer.reason(), !calls.is_empty());
        let content = Some(text).filter(|text| calls.is_empty() || !text.is_empty());
        let tool_calls = calls.into_iter().map(ToolCall::without_index).collect();
        let message = Message { role: "assistant", content, refusal: None, tool_calls };
        Choice { index, message, logprobs, finish_reason: reason }
    }
}

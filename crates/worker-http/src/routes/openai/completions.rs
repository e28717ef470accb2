//! `POST /v1/completions`: texts, or token ids, go on.

use std::sync::{Arc, LazyLock};

use axum::extract::{Request, State};
use axum::response::Response;
use engine::TokenLogprobs;
use serde::Serialize;
use tokenizer::{EncodeOptions, TokenId, Tokenizer};

use super::echo::Echo;
use super::form::{Complete, FinishReason, Form};
use super::generation::{self, Asked};
use super::logprobs::{CompletionLogprobs, Offset};
use super::{answer, new_id, structured, tools};
use crate::body::{MAX_BODY_BYTES, read_json};
use crate::error::ApiError;
use crate::event::{End, TokenEvent};
use crate::fields::{Fields, TextRule, Unit};
use crate::job::{self, JobRequest, Prompt, Received};
use crate::routes::detokenize::check_text_len;
use crate::routes::sampling::MAX_LOGPROBS;
use crate::state::AppState;

/// The most prompts, and the most answers to all of them.
const MAX_CHOICES: usize = 64;

const TEXT: TextRule = TextRule { len: 0..=MAX_BODY_BYTES, unit: Unit::Bytes, echo: false };

static FIELDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| generation::known(&["prompt", "logprobs", "echo", "top_logprobs"]));

/// A request, checked.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    prompts: Prompts,
    echo: bool,
    asked: Asked,
}

/// What is to go on.
#[derive(Debug, Clone, PartialEq)]
enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<TokenId>>),
}

pub(super) async fn completions(State(state): State<AppState>, request: Request) -> Result<Response, ApiError> {
    let received = Received::now();
    let body = read_json(request).await?;
    let served = state.ready()?;
    let CompletionRequest { prompts, echo, mut asked } = parse(&body, served.tokenizer.n_vocab())?;
    drop(body);
    job::check_room(served, prompts.len() * asked.n)?;
    let constraint = structured::compile(&state, served, asked.wanted.take());
    asked.generation.constraint = received.within_limits(&state, constraint).await?;
    let echoed = echo.then(|| prompts.clone());
    let is_scored = asked.generation.n_prompt_logprobs.is_some();
    if let Some(Prompts::Ids(ids)) = &echoed {
        check_text_len(&served.tokenizer, ids.iter().flatten().copied(), "prompt")?;
    }
    let (n, n_choices) = (asked.n, prompts.len() * asked.n);
    let state = &state;
    let has_logprobs = asked.generation.n_logprobs.is_some();
    let options = EncodeOptions { parse_special: true, add_special: asked.add_special };
    let job =
        JobRequest { job_id: new_id("cmpl"), prompts: prompts.into_prompts(options), n, generation: asked.generation };
    answer(state, received, job, asked.stream, async |ids: &[Arc<[TokenId]>]| {
        let tokenizer = Arc::clone(&served.tokenizer);
        let echo = match echoed {
            Some(prompts) if is_scored => prompts.into_scored(state, &tokenizer, ids.to_vec()).await?,
            Some(prompts) => prompts.into_texts(state, &tokenizer).await?,
            None => Vec::new(),
        };
        let answer_offset = |choice: usize| echo.get(choice / n).map_or(0, Echo::answer_offset);
        let offsets = (0..n_choices).map(|choice| Offset::new(&tokenizer, answer_offset(choice))).collect();
        Ok(Completion { tokenizer, echo, n, has_logprobs, n_told: vec![1; n_choices], offsets })
    })
    .await
}

/// Reads a request; fields that nobody knows are ignored.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str, n_vocab: usize) -> Result<CompletionRequest, ApiError> {
    let mut fields = Fields::parse(body, &FIELDS)?;
    let prompts = Prompts::read(&mut fields, n_vocab);
    let echo = fields.boolean("echo").unwrap_or(false);
    let mut asked = generation::read(&mut fields, n_vocab, u64::from(!echo));
    asked.generation.n_logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS).map(|n| n as usize);
    if fields.raw("top_logprobs").is_some() {
        fields.fault("top_logprobs", "unsupported", "not supported here: logprobs is the number of alternatives", None);
    }
    tools::refuse(&mut fields);
    asked.generation.n_prompt_logprobs = asked.generation.n_logprobs.filter(|_| echo);
    let n_choices = prompts.as_ref().map_or(0, Prompts::len) * asked.n;
    if n_choices > MAX_CHOICES {
        let message = format!("expected at most {MAX_CHOICES} answers to all prompts, got {n_choices}");
        fields.fault("n", "count", &message, None);
    }
    fields.finish()?;
    // There, or `finish` would have said so.
    Ok(CompletionRequest { prompts: prompts.unwrap_or(Prompts::Texts(Vec::new())), echo, asked })
}

impl Prompts {
    /// A string, a list of strings, a list of ids, or a list of such lists; `None` with a fault.
    fn read(fields: &mut Fields<'_>, n_vocab: usize) -> Option<Self> {
        let Some(raw) = fields.raw("prompt") else {
            fields.fault("prompt", "required", "expected a string, got nothing", None);
            return None;
        };
        let json = raw.get();
        let Some(inside) = json.strip_prefix('[').map(str::trim_start) else {
            return fields.text_or_texts("prompt", MAX_CHOICES, &TEXT).map(Self::Texts);
        };
        let is_list_of_lists = inside.starts_with('[');
        let prompts = match inside.as_bytes().first() {
            Some(b'[') => serde_json::from_str(json).ok().map(Self::Ids),
            Some(b'-' | b'0'..=b'9') => serde_json::from_str(json).ok().map(|ids| Self::Ids(vec![ids])),
            _ => return Self::read_texts(fields),
        };
        let is_known = |id: &TokenId| (*id as usize) < n_vocab;
        let sound = prompts.filter(|prompts| matches!(prompts, Self::Ids(all) if all.iter().flatten().all(is_known)));
        let Some(prompts) = sound else {
            let ids = if is_list_of_lists { "lists of token ids" } else { "token ids" };
            fields.fault("prompt", "value", &format!("expected {ids}: integers from 0 to {}", n_vocab - 1), None);
            return None;
        };
        if prompts.len() > MAX_CHOICES {
            let message = format!("expected at most {MAX_CHOICES} prompts, got {}", prompts.len());
            fields.fault("prompt", "count", &message, None);
            return None;
        }
        Some(prompts)
    }

    fn read_texts(fields: &mut Fields<'_>) -> Option<Self> {
        let texts = fields.texts("prompt", MAX_CHOICES, &TEXT)?;
        if texts.is_empty() {
            fields.fault("prompt", "count", "expected at least one prompt, got none", None);
            return None;
        }
        Some(Self::Texts(texts))
    }

    fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(ids) => ids.len(),
        }
    }

    /// As text, to be sent back, special tokens written out.
    async fn into_texts(self, state: &AppState, tokenizer: &Arc<Tokenizer>) -> Result<Vec<Echo>, ApiError> {
        let ids = match self {
            Self::Texts(texts) => return Ok(texts.into_iter().map(Echo::of_text).collect()),
            Self::Ids(ids) => ids,
        };
        let tokenizer = Arc::clone(tokenizer);
        let text = move |ids: &Vec<TokenId>| Echo::of_text(tokenizer.decode_with(ids, true));
        job::on_encoder(state, move || ids.iter().map(text).collect()).await
    }

    /// The same with log-probabilities to come for `ids`, the prompts' tokens.
    async fn into_scored(
        self,
        state: &AppState,
        tokenizer: &Arc<Tokenizer>,
        ids: Vec<Arc<[TokenId]>>,
    ) -> Result<Vec<Echo>, ApiError> {
        let tokenizer = Arc::clone(tokenizer);
        let work = move || {
            let texts = match self {
                Self::Texts(texts) => texts,
                Self::Ids(ids) => ids.iter().map(|ids| tokenizer.decode_with(ids, true)).collect(),
            };
            texts.into_iter().zip(ids).map(|(text, ids)| Echo::scored(&tokenizer, text, ids)).collect()
        };
        job::on_encoder(state, work).await
    }

    fn into_prompts(self, options: EncodeOptions) -> Vec<Prompt> {
        match self {
            Self::Texts(texts) => texts.into_iter().map(|text| Prompt::Text { text, options }).collect(),
            Self::Ids(ids) => ids.into_iter().map(|ids| Prompt::Ids(ids.into())).collect(),
        }
    }
}

/// How the choices of completions look.
struct Completion {
    tokenizer: Arc<Tokenizer>,
    /// The prompts, where they are to stand before the answers.
    echo: Vec<Echo>,
    /// Answers to each prompt.
    n: usize,
    has_logprobs: bool,
    /// Of each choice, how many of its prompt's tokens have been told.
    n_told: Vec<usize>,
    /// Of each choice.
    offsets: Vec<Offset>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<FinishReason>,
}

impl Completion {
    fn echoed(&self, index: usize) -> Option<&Echo> {
        self.echo.get(index / self.n)
    }

    /// The end token behind an answer to a prompt that was scored. A client that asks for one token, as one has to elsewhere, and
    /// takes one entry off the lists is to be left with the prompt's, also where the answer is empty.
    fn end_token(&self, index: usize, end: &End, offset: usize) -> Option<CompletionLogprobs> {
        self.echoed(index)?;
        let (id, logprobs) = end.end_token.as_ref()?;
        let mut lists = CompletionLogprobs::default();
        lists.push(&self.tokenizer, *id, logprobs, offset);
        Some(lists)
    }
}

impl Form for Completion {
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    type Chunk = Choice;
    type Choice = Choice;

    fn first(&self, index: usize) -> Option<Choice> {
        let echo = self.echoed(index)?;
        Some(Choice { index, text: echo.text.clone(), logprobs: echo.first(&self.tokenizer), finish_reason: None })
    }

    fn prompt(&mut self, index: usize, logprobs: &[TokenLogprobs]) -> Option<Choice> {
        let start = self.n_told[index];
        self.n_told[index] += logprobs.len();
        let logprobs = self.echoed(index)?.rest(&self.tokenizer, start, logprobs);
        Some(Choice { index, text: String::new(), logprobs, finish_reason: None })
    }

    fn next(&mut self, index: usize, token: &TokenEvent) -> Option<Choice> {
        let tokens = std::slice::from_ref(token);
        let logprobs = CompletionLogprobs::of(&self.tokenizer, tokens, &mut self.offsets[index]);
        let has_something = !token.t.is_empty() || logprobs.is_some();
        has_something.then(|| Choice { index, text: token.t.clone(), logprobs, finish_reason: None })
    }

    fn rest(&mut self, index: usize, end: &End) -> Option<Choice> {
        let logprobs = Some(self.end_token(index, end, self.offsets[index].at())?);
        Some(Choice { index, text: String::new(), logprobs, finish_reason: None })
    }

    fn last(&self, index: usize, reason: FinishReason) -> Choice {
        Choice { index, text: String::new(), logprobs: None, finish_reason: Some(reason) }
    }

    fn whole(&self, index: usize, answer: &Complete) -> Choice {
        let echo = self.echoed(index);
        let echoed = echo.map_or("", |echo| echo.text.as_str());
        let text = std::iter::once(echoed).chain(answer.tokens.iter().map(|token| token.t.as_str())).collect();
        let logprobs = self.has_logprobs.then(|| {
            let mut offset = self.offsets[index].clone();
            let of_prompt = echo.and_then(|echo| {
                let rest = echo.rest(&self.tokenizer, 1, &answer.prompt_logprobs);
                [echo.first(&self.tokenizer), rest].into_iter().collect::<Option<Vec<_>>>()
            });
            let of_answer = CompletionLogprobs::of(&self.tokenizer, &answer.tokens, &mut offset);
            let of_end = self.end_token(index, &answer.end, offset.at());
            let mut lists = CompletionLogprobs::default();
            of_prompt.into_iter().flatten().chain(of_answer).chain(of_end).for_each(|more| lists.append(more));
            lists
        });
        Choice { index, text, logprobs, finish_reason: Some(answer.reason()) }
    }
}

//! OpenAI's routes, as far as a worker with one model has something to say to them: each under `/v1` and without it.
//!
//! A request becomes a job like any other (`crate::job`); what comes of it is brought into OpenAI's forms, streamed
//! (`stream.rs`) or whole (`whole.rs`). A [`Form`] is what differs between chat and completions. Fields that neither
//! OpenAI, vLLM nor llama-server knows are ignored; what they know and this worker does not do is refused by name
//! (`unsupported.rs`). What an answer is to be made of
//! (`structured.rs`, `tools.rs`) becomes a constraint before the job begins.

mod chat;
mod completions;
mod echo;
mod errors;
mod form;
mod generation;
mod logprobs;
mod messages;
mod models;
mod stream;
mod structured;
pub(super) mod template;
mod tools;
mod unsupported;
mod whole;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use uuid::Uuid;

use crate::error::ApiError;
use crate::job::{self, Job, JobRequest, Received};
use crate::sse;
use crate::state::AppState;
pub(crate) use errors::in_openai_form;
use form::{Envelope, Form, Usage};
use stream::{Chunks, StreamOptions};

/// What each path begins with, or nothing.
const PREFIXES: [&str; 2] = ["/v1", ""];
const CHAT: &str = "/chat/completions";
const COMPLETIONS: &str = "/completions";

/// Routes that answer prompts.
pub(super) fn generating() -> Router<AppState> {
    PREFIXES.into_iter().fold(Router::new(), |router, prefix| {
        let path = |path: &str| format!("{prefix}{path}");
        router.route(&path(CHAT), post(chat::chat)).route(&path(COMPLETIONS), post(completions::completions))
    })
}

/// Whether it is the path of one of [`generating`]'s.
pub(super) fn is_generating(path: &str) -> bool {
    PREFIXES.into_iter().any(|prefix| path.strip_prefix(prefix).is_some_and(|path| [CHAT, COMPLETIONS].contains(&path)))
}

/// Routes that tell of the model.
pub(super) fn models() -> Router<AppState> {
    PREFIXES.into_iter().fold(Router::new(), |router, prefix| {
        let path = |path: &str| format!("{prefix}{path}");
        router.route(&path("/models"), get(models::list)).route(&path("/models/{*model}"), get(models::retrieve))
    })
}

/// Whether errors of this path are in OpenAI's form: those of the routes above, and of whatever else is asked for below
/// `/v1`.
fn is_openai_path(path: &str) -> bool {
    let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    ["/v1", "/chat/completions", "/completions", "/models"].into_iter().any(below)
}

/// What a body of chat has against it.
pub(super) fn check_chat(body: &str, n_vocab: usize) -> Result<(), ApiError> {
    chat::parse(body, n_vocab).map(drop)
}

/// What a body of completions has against it.
pub(super) fn check_completions(body: &str, n_vocab: usize) -> Result<(), ApiError> {
    completions::parse(body, n_vocab).map(drop)
}

/// A name for a job, with OpenAI's beginning. It is the answer's `id`, and `POST /cancel` knows it.
fn new_id(beginning: &str) -> String {
    format!("{beginning}-{}", Uuid::new_v4().simple())
}

/// Runs the job, and answers in the form that `form` makes, of the prompts' tokens, once the job is accepted.
async fn answer<F: Form>(
    state: &AppState,
    received: Received,
    request: JobRequest,
    stream: Option<StreamOptions>,
    form: impl AsyncFnOnce(&[Arc<[u32]>]) -> Result<F, ApiError>,
) -> Result<Response, ApiError> {
    let (id, n) = (request.job_id.clone(), request.n);
    let Job { prompts, answers, .. } = job::start(state, received, request).await?;
    let form = form(&prompts).await?;
    let usage = Usage::of_prompts(prompts.iter().map(|prompt| prompt.len()).sum(), n);
    let envelope = Envelope::new(state, id);
    match stream {
        Some(options) => {
            Ok(sse::response(state.settings().keep_alive, Chunks::new(envelope, form, answers, usage, options)))
        }
        None => whole::collect(envelope, form, answers, usage).await.map(IntoResponse::into_response),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_which_paths_are_openais() {
        for path in [
            "/v1",
            "/v1/",
            "/v1/nowhere",
            "/v1/models/a/b",
            "/models",
            "/models/a",
            "/completions",
            "/chat/completions",
        ] {
            assert!(is_openai_path(path), "{path}");
        }
        for path in ["/", "/execute", "/v2/chat/completions", "/v1x", "/chat", "/modelsx", "/health"] {
            assert!(!is_openai_path(path), "{path}");
        }
    }
}

//! `GET /props`: what llama-server's clients ask of a server, as far as this worker has it. Nothing of it is secret.

use axum::Json;
use axum::extract::State;
use engine::Sampling;
use serde::Serialize;
use tokenizer::{TokenId, Tokenizer};

use crate::error::ApiError;
use crate::state::{AppState, Served};

/// What `GET /props` answers.
#[derive(Serialize)]
pub(crate) struct Props {
    default_generation_settings: Defaults,
    /// Requests that are answered at the same time.
    total_slots: usize,
    model_alias: String,
    /// The file's name; its folders are nobody's business.
    model_path: String,
    /// As it stands in the GGUF; empty where there is none.
    chat_template: String,
    bos_token: String,
    eos_token: String,
    modalities: Modalities,
    build_info: &'static str,
    is_sleeping: bool,
}

#[derive(Serialize)]
struct Defaults {
    /// The longest prompt and answer together, in tokens.
    n_ctx: usize,
    params: Params,
}

/// What holds where a request says nothing, under llama-server's names.
#[derive(Serialize)]
struct Params {
    /// What the context leaves.
    n_predict: i64,
    max_tokens: i64,
    /// One is drawn.
    seed: i64,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    stop: [String; 0],
    ignore_eos: bool,
    n_probs: u32,
    /// In the order in which they are applied.
    samplers: [&'static str; 5],
}

#[derive(Serialize)]
struct Modalities {
    vision: bool,
    audio: bool,
}

/// Once there is a model; also while the worker drains.
pub(crate) async fn props(State(state): State<AppState>) -> Result<Json<Props>, ApiError> {
    let served = state.loaded()?;
    let text = |id: Option<TokenId>| token_text(&served.tokenizer, id);
    Ok(Json(Props {
        default_generation_settings: Defaults { n_ctx: served.facts.context_length, params: params() },
        total_slots: served.engine.snapshot().info.max_seqs,
        model_alias: state.settings().model.clone(),
        model_path: state.settings().model_file.clone(),
        chat_template: template_source(served),
        bos_token: text(served.tokenizer.bos()),
        eos_token: text(served.tokenizer.eos()),
        modalities: Modalities { vision: false, audio: false },
        build_info: concat!("worker-orcd ", env!("CARGO_PKG_VERSION")),
        is_sleeping: false,
    }))
}

fn params() -> Params {
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } =
        Sampling::default();
    Params {
        n_predict: -1,
        max_tokens: -1,
        seed: -1,
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty: repetition_penalty,
        presence_penalty,
        frequency_penalty,
        stop: [],
        ignore_eos: false,
        n_probs: 0,
        samplers: ["temperature", "penalties", "top_k", "top_p", "min_p"],
    }
}

fn template_source(served: &Served) -> String {
    served.chat_template.as_ref().map_or_else(|_| String::new(), |template| template.source().to_owned())
}

fn token_text(tokenizer: &Tokenizer, id: Option<TokenId>) -> String {
    let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

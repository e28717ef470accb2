//! `GET /health`: what this worker is and how it is doing, from the first moment on.
//!
//! Device figures are the engine's last sample: the handler never waits for the device.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::state::{AppState, Phase};

/// What `GET /health` answers. What only a loaded model can tell is `null` before.
#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
    worker_id: String,
    model: String,
    architecture: Option<String>,
    quant_kind: Option<String>,
    device: Option<String>,
    resident: bool,
    memory_bytes: u64,
    vram_bytes_used: u64,
    tokenizer_kind: Option<String>,
    vocab_size: Option<usize>,
    context_length: Option<usize>,
    /// Answers: a job with several counts as often.
    active_jobs: usize,
    queued_jobs: usize,
    uptime_seconds: u64,
    /// While loading, the part that is done, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f32>,
    /// When failed, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

pub(crate) async fn health(State(state): State<AppState>) -> (StatusCode, Json<Health>) {
    let vitals = state.vitals();
    let (code, status, progress, message) = match vitals.phase {
        Phase::Loading(done) => (StatusCode::SERVICE_UNAVAILABLE, "loading", Some(done), None),
        Phase::Ready => (StatusCode::OK, "ready", None, None),
        Phase::Draining => (StatusCode::OK, "draining", None, None),
        Phase::Failed(reason) => (StatusCode::SERVICE_UNAVAILABLE, "failed", None, Some(reason)),
    };
    let facts = state.served().map(|served| served.facts.clone());
    let health = Health {
        status,
        worker_id: state.settings().worker_id.clone(),
        model: state.settings().model.clone(),
        resident: facts.as_ref().is_some_and(|facts| facts.resident),
        vocab_size: facts.as_ref().map(|facts| facts.vocab_size),
        context_length: facts.as_ref().map(|facts| facts.context_length),
        architecture: facts.as_ref().map(|facts| facts.architecture.clone()),
        quant_kind: facts.as_ref().map(|facts| facts.quant_kind.clone()),
        device: facts.as_ref().map(|facts| facts.device.clone()),
        tokenizer_kind: facts.map(|facts| facts.tokenizer_kind),
        memory_bytes: vitals.memory_bytes,
        vram_bytes_used: vitals.vram_bytes,
        active_jobs: vitals.active_jobs,
        queued_jobs: vitals.queued_jobs,
        uptime_seconds: vitals.uptime.as_secs(),
        progress,
        message,
    };
    (code, Json(health))
}

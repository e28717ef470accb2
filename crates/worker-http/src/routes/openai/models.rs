//! `GET /v1/models` and `/v1/models/{model}`: the one model there is.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::error::{ApiError, ErrorCode};
use crate::state::AppState;

/// What `GET /v1/models` answers.
#[derive(Serialize)]
pub(crate) struct List {
    object: &'static str,
    data: [Model; 1],
}

/// A model.
#[derive(Serialize)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    /// The longest sequence, in tokens; vLLM's.
    max_model_len: usize,
}

/// Once there is a model; also while the worker drains.
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<List>, ApiError> {
    model(&state).map(|model| Json(List { object: "list", data: [model] }))
}

/// By its name, which may have slashes. Requests may name any model; asked whether it is there, this worker knows but its
/// own.
pub(super) async fn retrieve(
    State(state): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // A percent-encoding may stand for any bytes.
    let Path(name) = name.map_err(|_| ApiError::field("model", "text", "model: expected a name in UTF-8"))?;
    let model = model(&state)?;
    if model.id != name {
        return Err(ApiError::new(ErrorCode::NotFound, format!("no such model here; there is {:?}", model.id)));
    }
    Ok(Json(model))
}

fn model(state: &AppState) -> Result<Model, ApiError> {
    let served = state.loaded()?;
    Ok(Model {
        id: state.settings().model.clone(),
        object: "model",
        created: state.started_at(),
        owned_by: "worker-orcd",
        max_model_len: served.facts.context_length,
    })
}

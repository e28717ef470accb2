//! `GET /ready`: whether new work is welcome.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

/// 200 between ready and drain, 503 before and after.
pub(crate) async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    state.ready().map(|_| Json(json!({ "ready": true })))
}

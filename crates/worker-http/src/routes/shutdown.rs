//! `POST /shutdown`: finish what is live, then end the process.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::body;
use crate::state::AppState;

/// Refuses new work from now on and lets the binary know; idempotent. The body, if any, says nothing.
pub(crate) async fn shutdown(State(state): State<AppState>, request: Request) -> (StatusCode, Json<Value>) {
    body::discard(request).await;
    tracing::info!("shutdown requested");
    state.request_shutdown();
    (StatusCode::ACCEPTED, Json(json!({ "status": "draining" })))
}

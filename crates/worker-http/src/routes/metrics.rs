//! `GET /metrics`: Prometheus text.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorCode};
use crate::metrics::CONTENT_TYPE;
use crate::state::AppState;

pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    let snapshot = state.snapshot();
    match state.metrics().encode(state.uptime().as_secs_f64(), snapshot.as_ref()) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => ApiError::new(ErrorCode::Internal, error.to_string()).into_response(),
    }
}

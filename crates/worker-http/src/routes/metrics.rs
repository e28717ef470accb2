//! `GET /metrics`: Prometheus text, or OpenMetrics where the client asks for it.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorCode};
use crate::metrics::TextForm;
use crate::state::AppState;

pub(crate) async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let form = TextForm::of(&headers);
    let snapshot = state.snapshot();
    match state.metrics().encode(form, state.uptime(), snapshot.as_ref()) {
        Ok(text) => {
            let head = [(header::CONTENT_TYPE, form.content_type()), (header::VARY, "accept")];
            (head, text).into_response()
        }
        Err(error) => ApiError::new(ErrorCode::Internal, error.to_string()).into_response(),
    }
}

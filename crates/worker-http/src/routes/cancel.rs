//! `POST /cancel`: ends a job early.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;

use crate::body::read_json;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::routes::execute::JOB_ID;
use crate::state::AppState;

/// What `POST /cancel` answers.
#[derive(Serialize)]
pub(crate) struct Cancelled {
    job_id: String,
    /// Whether there was such a job to cancel.
    live: bool,
}

/// 202 whether or not the job is live, so that it can be sent again. The job's stream ends with `CANCELLED`.
pub(crate) async fn cancel(
    State(state): State<AppState>,
    request: Request,
) -> Result<(StatusCode, Json<Cancelled>), ApiError> {
    let job_id = parse(&read_json(request).await?)?;
    let live = state.jobs().cancel(&job_id);
    tracing::info!(job_id, live, "cancel requested");
    Ok((StatusCode::ACCEPTED, Json(Cancelled { job_id, live })))
}

/// Reads the name of the job.
///
/// # Errors
/// Every fault at once.
pub(super) fn parse(body: &str) -> Result<String, ApiError> {
    let mut fields = Fields::parse(body, &["job_id"])?;
    let job_id = fields.required_text("job_id", &JOB_ID);
    fields.finish()?;
    // There, or `finish` would have said so.
    Ok(job_id.unwrap_or_default())
}

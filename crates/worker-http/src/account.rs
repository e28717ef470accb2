//! Every request for answers ends in exactly one outcome of `worker_requests_total`.
//!
//! One that becomes a job is counted with the job's last answer (`job/record.rs`); one that does not, here: refused, with
//! its code, or left by its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ErrorCode;
use crate::metrics::ABORT;
use crate::routes;
use crate::state::AppState;

tokio::task_local! {
    /// Whether the request that this task answers has become a job.
    static IS_JOB: Arc<AtomicBool>;
}

/// From here on the request is a job's to account for.
pub(crate) fn hand_to_job() {
    // There is no request where a test starts a job by itself.
    let _ = IS_JOB.try_with(|is_job| is_job.store(true, Ordering::Relaxed));
}

/// Whether the request that this task answers has become a job.
fn is_job() -> bool {
    IS_JOB.try_with(|is_job| is_job.load(Ordering::Relaxed)).unwrap_or(false)
}

/// Marks the response of a request that became a job, which logs a line of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfJob;

/// Counts a request for answers that is refused before [`keep`] sees it, for who sends it.
pub(crate) fn refused_at_the_door(state: &AppState, request: &Request, code: ErrorCode) {
    if routes::is_generating(request.method(), request.uri().path()) {
        state.metrics().request_done(code.label());
    }
}

/// Runs a request for answers, and counts it if no job does.
pub(crate) async fn keep(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let is_job = Arc::default();
    let account = Account { state, is_job: Arc::clone(&is_job), outcome: None };
    IS_JOB.scope(is_job, account.run(request, next)).await
}

struct Account {
    state: AppState,
    is_job: Arc<AtomicBool>,
    /// None for as long as there is no response.
    outcome: Option<ErrorCode>,
}

impl Account {
    async fn run(mut self, request: Request, next: Next) -> Response {
        let mut response = next.run(request).await;
        if is_job() {
            response.extensions_mut().insert(OfJob);
        }
        // A response that is neither a job's nor an error would be a fault of the route.
        self.outcome = Some(response.extensions().get::<ErrorCode>().copied().unwrap_or(ErrorCode::Internal));
        response
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_job.load(Ordering::Relaxed) {
            return;
        }
        let outcome = match self.outcome {
            Some(code) => code.label(),
            None if std::thread::panicking() => ErrorCode::Internal.label(),
            None => {
                tracing::info!(outcome = ABORT, "client left before its job began");
                ABORT
            }
        };
        self.state.metrics().request_done(outcome);
    }
}

//! When a request for answers came, and how long it may take.

use std::time::{Duration, Instant};

use crate::error::{ApiError, ErrorCode};
use crate::state::{AppState, SHUTTING_DOWN};

/// The moment in which a request's handler began. Its times and its time limit count from here, whatever is done first: the
/// body, a grammar, the chat template, the tokens of the prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received(Instant);

impl Received {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    pub(super) fn at(self) -> Instant {
        self.0
    }

    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// Does a part of a job's work, unless the job's time is over first.
    ///
    /// # Errors
    /// Those of the work, and those of [`over`](Self::over).
    pub(crate) async fn within_limits<T>(
        self,
        state: &AppState,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            error = self.over(state) => Err(error),
            done = work => done,
        }
    }

    /// Returns once the job's time is over, or that of all jobs where the worker drains, with what its client is told.
    pub(super) async fn over(self, state: &AppState) -> ApiError {
        let limit = state.settings().inference_timeout;
        let timeout = async {
            match limit {
                Some(limit) => tokio::time::sleep_until((self.0 + limit).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = state.cut_off_requested() => ApiError::new(ErrorCode::NotReady, SHUTTING_DOWN),
            () = timeout => {
                let limit = limit.unwrap_or_default().as_secs_f64();
                let message = format!("the job took longer than the {limit} s that this worker allows");
                ApiError::new(ErrorCode::InferenceTimeout, message)
            }
        }
    }
}

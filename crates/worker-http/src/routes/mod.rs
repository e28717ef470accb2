//! One file an endpoint, one line here.

mod cancel;
mod execute;
mod health;
mod metrics;
mod openai;
mod ready;
mod shutdown;

use axum::Router;
use axum::routing::{get, post};

use crate::state::AppState;
pub(crate) use openai::in_openai_form;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/execute", post(execute::execute))
        .route("/cancel", post(cancel::cancel))
        .route("/shutdown", post(shutdown::shutdown))
        .route("/health", get(health::health))
        .route("/ready", get(ready::ready))
        .route("/metrics", get(metrics::metrics))
        .merge(openai::routes())
}

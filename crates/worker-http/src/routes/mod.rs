//! One file an endpoint, one line here.

mod apply_template;
mod cancel;
mod detokenize;
mod execute;
mod health;
mod metrics;
mod openai;
mod page;
pub(crate) mod parsers;
mod props;
mod ready;
mod sampling;
mod shutdown;
mod tokenize;

use axum::http::Method;
use axum::routing::{get, post};
use axum::{Router, middleware};

use crate::account;
use crate::state::AppState;
pub(crate) use openai::in_openai_form;

pub(crate) fn routes(state: &AppState) -> Router<AppState> {
    Router::new()
        .merge(generating(state))
        .route("/cancel", post(cancel::cancel))
        .route("/shutdown", post(shutdown::shutdown))
        .route("/health", get(health::health))
        .route("/ready", get(ready::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(detokenize::detokenize))
        .route("/apply-template", post(apply_template::apply_template))
        .route("/props", get(props::props))
        .merge(openai::models())
        .merge(page::routes())
}

/// Whether a request is for answers, by its method and path: those of [`generating`].
pub(crate) fn is_generating(method: &Method, path: &str) -> bool {
    method == Method::POST && (path == execute::PATH || openai::is_generating(path))
}

/// Routes that answer prompts. Their requests are accounted for.
fn generating(state: &AppState) -> Router<AppState> {
    Router::new()
        .route(execute::PATH, post(execute::execute))
        .merge(openai::generating())
        .route_layer(middleware::from_fn_with_state(state.clone(), account::keep))
}

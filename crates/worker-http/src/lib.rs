//! The worker over HTTP: routes, wire types, server-sent events.
//!
//! This is the only crate that knows HTTP and JSON. What comes in is checked here, whole, before anything else sees it;
//! what goes out is made here from the engine's ids: decoded, searched for stop strings, and framed.
//!
//! - [`AppState`] is there from the first moment, before the model is: `/health` answers while it loads. The binary moves
//!   it along: [`AppState::set_progress`], [`AppState::set_ready`], [`AppState::drain`].
//! - [`app`] is the whole service as an [`axum::Router`], which needs no socket to be tested.
//! - [`serve`] runs it on a listener, within [`ServerLimits`]; [`Access`] says who may ask.
//! - An error is an [`ApiError`] with an [`ErrorCode`], as a response and as the last event of a stream alike.
//!
//! `POST /execute` and OpenAI's routes (`routes/openai`) differ in their words alone: both make a job, whose answers come as
//! the same events. An answer is followed by a task of its own (`job/follower.rs`), between the engine, which never waits
//! for a reader, and the connection, which may read as slowly as it likes. The task ends where either of them does.
//!
//! # Example
//! A worker that is still loading says so:
//! ```
//! use tower::ServiceExt;
//! use worker_http::{Access, AppState, BODY_READ_TIMEOUT, KEEP_ALIVE, Settings, app};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let state = AppState::new(Settings {
//!     worker_id: "worker-1".into(),
//!     model: "haiku".into(),
//!     model_file: "haiku.gguf".into(),
//!     inference_timeout: None,
//!     keep_alive: KEEP_ALIVE,
//!     log_prompts: false,
//!     body_read_timeout: BODY_READ_TIMEOUT,
//!     access: Access::default(),
//! });
//! let request = axum::http::Request::get("/health").body(axum::body::Body::empty()).unwrap();
//! let response = app(state).oneshot(request).await.unwrap();
//! assert_eq!(response.status(), 503);
//! # }
//! ```

mod access;
mod account;
mod answer;
mod body;
mod correlation;
mod error;
mod event;
mod fields;
mod grammars;
mod job;
mod live;
mod metrics;
mod request_body;
mod routes;
mod server;
mod sse;
mod state;
mod stop;

use std::any::Any;

use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use body::BodyTimeout;

pub use access::{Access, ApiKeys, CorsOrigins, HostRule, KeyError, MAX_KEY_BYTES, MAX_KEYS, OriginError};
pub use body::{BODY_READ_TIMEOUT, MAX_BODY_BYTES};
pub use correlation::CORRELATION_ID;
pub use error::{ApiError, ErrorCode, FieldError, RETRY_AFTER_SECS};
pub use job::{MAX_TOKENS, PROMPTS, drawn_seed};
pub use request_body::RequestBody;
pub use server::{ServerLimits, serve};
pub use state::{AppState, KEEP_ALIVE, ModelFacts, Phase, Served, Settings, Vitals};
pub use stop::{Scan, StopMatcher};

/// The whole service: every route, and what holds for all of them.
pub fn app(state: AppState) -> Router {
    let settings = state.settings();
    let cors = tower::util::option_layer(settings.access.cors_origins.layer());
    let body_timeout = BodyTimeout(settings.body_read_timeout);
    routes::routes(&state)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(state.clone(), access::check_key))
        // A browser asks whether it may ask without a key, and a page may read that its key is wrong.
        .layer(cors)
        .layer(middleware::from_fn_with_state(state.clone(), access::check_host_and_origin))
        .layer(middleware::from_fn(routes::in_openai_form))
        .layer(middleware::from_fn(correlation::correlate))
        .layer(Extension(body_timeout))
        .with_state(state)
}

async fn not_found(uri: Uri, request: Request) -> ApiError {
    body::discard(request).await;
    ApiError::new(ErrorCode::NotFound, format!("no such route: {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri, request: Request) -> ApiError {
    body::discard(request).await;
    ApiError::new(ErrorCode::MethodNotAllowed, format!("{} does not answer to {method}", uri.path()))
}

fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    // The panic hook has logged it; its words are not for clients.
    ApiError::new(ErrorCode::Internal, "the worker made a mistake").into_response()
}

//! Who may ask: hosts by which the worker is called, origins of web pages, API keys.
//!
//! The three checks stand before every route, in this order, and none of them looks at what is asked for:
//! 1. [`HostRule`]: the name in `Host` is one by which the worker may be called (403). It is what stops a web page whose own
//!    name has been made to point here (DNS rebinding): to the browser such a request is of the page's own origin.
//! 2. [`CorsOrigins`]: a web page is the worker's own or of an origin that was allowed (403).
//! 3. [`ApiKeys`]: where there are keys, the request has one of them (401).

mod host;
mod keys;
mod origin;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::account;
use crate::body;
use crate::error::{ApiError, ErrorCode};
use crate::state::AppState;
pub use host::HostRule;
pub use keys::{ApiKeys, KeyError, MAX_KEY_BYTES, MAX_KEYS};
pub use origin::{CorsOrigins, OriginError};

/// Who may ask. The default lets everybody but web pages of other origins.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The keys, one of which a request must have; none: no key is wanted.
    pub api_keys: ApiKeys,
    /// The origins whose web pages may ask, beside the worker's own.
    pub cors_origins: CorsOrigins,
    /// The names by which the worker may be called.
    pub hosts: HostRule,
}

/// Routes that want no key: a probe, a scraper and a person who opens the page have none.
const OPEN_PATHS: [&str; 4] = ["/", "/health", "/ready", "/metrics"];
/// Below it lie the page's own files, which the page cannot send a key for.
const OPEN_FOLDER: &str = "/page/";

fn wants_key(path: &str) -> bool {
    !OPEN_PATHS.contains(&path) && !path.starts_with(OPEN_FOLDER)
}

/// Lets requests pass that are sent to this worker, by no web page or one that may.
pub(crate) async fn check_host_and_origin(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let access = &state.settings().access;
    let checked = access.hosts.check(request.headers()).and_then(|()| access.cors_origins.check(request.headers()));
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => refuse(&state, request, error).await,
    }
}

/// Lets requests pass that have a key, or need none.
pub(crate) async fn check_key(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let keys = &state.settings().access.api_keys;
    if keys.is_empty() || !wants_key(request.uri().path()) || keys.admit(request.headers()) {
        return next.run(request).await;
    }
    let given = request.headers().contains_key(header::AUTHORIZATION);
    let message =
        if given { "the API key is not one of this worker's" } else { "an API key is needed: Authorization: Bearer" };
    let mut response = refuse(&state, request, ApiError::new(ErrorCode::Unauthorized, message)).await;
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Refuses, once what is left of the request has been read.
async fn refuse(state: &AppState, request: Request<Body>, error: ApiError) -> Response {
    account::refused_at_the_door(state, &request, error.code);
    body::discard(request).await;
    error.into_response()
}

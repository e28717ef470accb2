//! `X-Correlation-Id`: one name for a request, here and in the logs of whoever sent it.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use uuid::Uuid;

use crate::account::OfJob;
use crate::error::ErrorCode;

/// The header's name.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// The longest id that is taken over. A UUID has 36 characters, a W3C trace parent 55.
const MAX_CORRELATION_ID_BYTES: usize = 128;

/// Runs the request in a span that carries its correlation id, and sends the id back.
pub(crate) async fn correlate(request: Request, next: Next) -> Response {
    let given = request.headers().get(CORRELATION_ID).and_then(accepted);
    let id = given.unwrap_or_else(|| Uuid::new_v4().to_string());
    let span = tracing::info_span!("request", correlation_id = %id);
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let mut response = async {
        let response = next.run(request).await;
        let status = response.status().as_u16();
        // A job has a line of its own, whatever came of it.
        let is_of_job = response.extensions().get::<OfJob>().is_some();
        match response.extensions().get::<ErrorCode>().filter(|_| !is_of_job) {
            Some(code) => tracing::info!(%method, path, status, code = code.label(), "refused"),
            None => tracing::debug!(%method, path, status, "answered"),
        }
        response
    }
    .instrument(span)
    .await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(CORRELATION_ID, id);
    }
    response
}

/// The id, if it is one that can stand in a log line: short, and of characters that need no escaping anywhere.
fn accepted(id: &HeaderValue) -> Option<String> {
    let id = id.to_str().ok()?;
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    ((1..=MAX_CORRELATION_ID_BYTES).contains(&id.len()) && id.bytes().all(sane)).then(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, taken: bool) {
        assert_eq!(HeaderValue::from_str(id).ok().as_ref().and_then(accepted).is_some(), taken, "{id:?}");
    }

    #[test]
    fn takes_ids_that_are_short_and_plain() {
        check("5f0c1d9e-8d0b-4f0e-9d3a-0f6f5a2b7c11", true);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true);
        check(&"a".repeat(128), true);
        check(&"a".repeat(129), false);
        check("", false);
        check("two words", false);
        check("\"quoted\"", false);
        check("tab\there", false);
    }
}

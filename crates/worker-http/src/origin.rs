//! No web page but the worker's own may talk to it.
//!
//! A browser lets any page send requests to `localhost`; only the answer is kept from it, and `POST /shutdown` needs no
//! answer. Browsers name the page's origin in such requests, so a foreign one is refused before anything is done.

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::{ApiError, ErrorCode};

/// Lets requests pass that come from no web page or from one of this server's.
pub(crate) async fn same_origin(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        return ApiError::new(ErrorCode::Forbidden, "requests from web pages of another origin are not allowed")
            .into_response();
    }
    next.run(request).await
}

/// Whether the request names an origin other than the host it is sent to. `Origin: null` is foreign.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let authority =
        origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()).and_then(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")).then(|| uri.authority().cloned()).flatten()
        });
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (authority, host) {
        (Some(authority), Some(host)) => !authority.as_str().eq_ignore_ascii_case(host),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(origin: Option<&str>, host: &str, foreign: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        assert_eq!(is_foreign(&headers), foreign, "{origin:?} to {host}");
    }

    #[test]
    fn only_pages_of_this_server_may_ask() {
        check(None, "localhost:8080", false);
        check(Some("http://localhost:8080"), "localhost:8080", false);
        check(Some("http://LOCALHOST:8080"), "localhost:8080", false);
        check(Some("http://[::1]:8080"), "[::1]:8080", false);
        check(Some("http://localhost:3000"), "localhost:8080", true);
        check(Some("https://evil.example"), "localhost:8080", true);
        check(Some("null"), "localhost:8080", true);
        check(Some("localhost:8080"), "localhost:8080", true);
        check(Some("file://"), "localhost:8080", true);
    }
}

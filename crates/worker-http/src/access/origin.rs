//! No web page but the worker's own, and those of origins that were allowed, may talk to it.
//!
//! A browser lets any page send requests to `localhost`; only the answer is kept from it, and `POST /shutdown` needs no
//! answer. Browsers name the page's origin in such requests, so a foreign one is refused before anything is done.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::correlation::CORRELATION_ID;
use crate::error::{ApiError, ErrorCode};

/// How long a browser may remember what was allowed.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// The origins whose web pages may ask, beside the worker's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorsOrigins {
    /// `*` was among them.
    any: bool,
    /// Lower case, without a default port.
    allowed: Arc<[String]>,
}

/// An origin that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an origin such as https://app.example or http://localhost:3000, or *; got {got:?}")]
pub struct OriginError {
    got: String,
}

impl CorsOrigins {
    /// These origins: `*`, or scheme and host with a port where it is not the scheme's own.
    ///
    /// # Errors
    /// The first that is none, such as one with a path.
    pub fn new<O: AsRef<str>>(origins: impl IntoIterator<Item = O>) -> Result<Self, OriginError> {
        let (mut any, mut allowed) = (false, Vec::new());
        for origin in origins {
            match origin.as_ref() {
                "*" => any = true,
                origin => allowed.push(normal(origin).ok_or_else(|| OriginError { got: origin.to_owned() })?),
            }
        }
        Ok(Self { any, allowed: allowed.into() })
    }

    /// Whether every origin is allowed.
    pub fn allows_any(&self) -> bool {
        self.any
    }

    /// The hosts of the origins, without their ports.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.allowed.iter().filter_map(|origin| {
            let (_, authority) = origin.split_once("://")?;
            // What stands behind the last colon is a port, unless it is within an IPv6 address.
            Some(
                authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(authority, |(host, _)| host),
            )
        })
    }

    /// # Errors
    /// The request names an origin that may not ask. One that names none, as programs do, may.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        if origins.all(|origin| self.allows(origin) || is_own(origin, headers)) {
            return Ok(());
        }
        let message = "requests from web pages of another origin are not allowed; --cors-origin allows one";
        Err(ApiError::new(ErrorCode::Forbidden, message))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.any || origin.to_str().ok().and_then(normal).is_some_and(|origin| self.allowed.contains(&origin))
    }

    /// What tells a browser that a page may read the answers, and answers the questions it asks first. None where no other
    /// origin is allowed.
    ///
    /// Any header may be sent: which ones says nothing about who sends them, and OpenAI's clients send a dozen of their own.
    pub(crate) fn layer(&self) -> Option<CorsLayer> {
        if !self.any && self.allowed.is_empty() {
            return None;
        }
        let origins = self.clone();
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(move |origin, _| origins.allows(origin)))
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([CORRELATION_ID, header::RETRY_AFTER])
            .max_age(PREFLIGHT_MAX_AGE);
        Some(layer)
    }
}

/// Whether the origin is the host that the request is sent to.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| Uri::from_str(origin).ok());
    let authority =
        origin.as_ref().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https"))).and_then(Uri::authority);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    matches!((authority, host), (Some(authority), Some(host)) if authority.as_str().eq_ignore_ascii_case(host))
}

/// An origin as browsers write it; none where the text is no origin of the web.
fn normal(text: &str) -> Option<String> {
    let uri = Uri::from_str(text).ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = uri.authority()?;
    // The parser gives every URI a path.
    if text.ends_with('/') || uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
        return None;
    }
    let default_port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.as_str().to_ascii_lowercase();
    Some(format!("{scheme}://{}", authority.strip_suffix(default_port).unwrap_or(&authority)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allowed: &[&str], origins: &[&str], host: &str, passes: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for origin in origins {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        let checked = CorsOrigins::new(allowed).unwrap().check(&headers);
        assert_eq!(checked.is_ok(), passes, "{origins:?} to {host}, allowed {allowed:?}");
    }

    #[test]
    fn only_pages_of_this_server_may_ask() {
        check(&[], &[], "localhost:8080", true);
        check(&[], &["http://localhost:8080"], "localhost:8080", true);
        check(&[], &["http://LOCALHOST:8080"], "localhost:8080", true);
        check(&[], &["http://[::1]:8080"], "[::1]:8080", true);
        for origin in ["http://localhost:3000", "https://evil.example", "null", "localhost:8080", "file://", ""] {
            check(&[], &[origin], "localhost:8080", false);
        }
        check(&[], &["http://localhost:8080", "https://evil.example"], "localhost:8080", false);
    }

    #[test]
    fn and_pages_of_origins_that_were_allowed() {
        let allowed = ["https://App.example", "http://localhost:3000", "http://plain.example:80"];
        for origin in
            ["https://app.example", "https://app.example:443", "http://localhost:3000", "http://plain.example"]
        {
            check(&allowed, &[origin], "localhost:8080", true);
        }
        for origin in ["http://app.example", "https://app.example:8443", "https://app.example.evil.example", "null"] {
            check(&allowed, &[origin], "localhost:8080", false);
        }
        check(&["*"], &["https://anywhere.example"], "localhost:8080", true);
        check(&["*"], &["null"], "localhost:8080", true);
    }

    #[test]
    fn refuses_what_is_no_origin() {
        for text in
            ["", "app.example", "https://app.example/", "https://app.example/a", "ftp://a", "null", "https://u@a"]
        {
            let error = CorsOrigins::new([text]).unwrap_err();
            assert!(error.to_string().ends_with(&format!("got {text:?}")), "{error}");
        }
    }

    #[test]
    fn knows_the_hosts_of_its_origins() {
        let origins =
            CorsOrigins::new(["https://app.example", "http://b.example:3000", "http://[::1]:1", "*"]).unwrap();
        assert_eq!(origins.hosts().collect::<Vec<_>>(), ["app.example", "b.example", "[::1]"]);
    }
}

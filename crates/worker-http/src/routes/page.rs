//! `GET /`: a page to try the worker in a browser. Its files lie in `page/` and are part of the binary.
//!
//! The page asks for nothing but these files, `/health` and OpenAI's routes, and its policy lets it ask nobody else.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::state::AppState;

/// Scripts, styles and connections of this origin alone, none of them inline; nobody may frame the page.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

/// A file of the page.
#[derive(Debug, Clone, Copy)]
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const FILES: &[File] = &[
    File { path: "/", content_type: "text/html; charset=utf-8", text: include_str!("../../page/index.html") },
    File {
        path: "/page/style.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("../../page/style.css"),
    },
    File {
        path: "/page/app.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("../../page/app.js"),
    },
    File {
        path: "/page/client.js",
        content_type: "text/javascript; charset=utf-8",
        text: include_str!("../../page/client.js"),
    },
    File { path: "/page/icon.svg", content_type: "image/svg+xml", text: include_str!("../../page/icon.svg") },
];

pub(super) fn routes() -> Router<AppState> {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = tag(file.text);
        router.route(file.path, get(async move |headers: HeaderMap| respond(file, tag, &headers)))
    })
}

/// Changes with the text, so that a browser that has the same one need not be sent it again.
fn tag(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn respond(file: &File, tag: u64, request: &HeaderMap) -> Response {
    let tag = format!("\"{tag:016x}\"");
    let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    let is_known = known.flat_map(|tags| tags.split(',')).any(|known| {
        // A proxy that compresses makes the tag a weak one.
        let known = known.trim();
        known == "*" || known.trim_start_matches("W/") == tag
    });
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { file.text.into_response() };
    let fixed: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, file.content_type),
        // A browser asks each time whether its copy still holds: the next worker on this port may be another version.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

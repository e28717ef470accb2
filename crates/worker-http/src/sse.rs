//! Streams of server-sent events: the response, and the comments that keep it alive.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;

/// Sent while nothing else is, so that neither end nor a proxy between them takes the connection for dead. A comment:
/// clients ignore it.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// What a stream sends. It is dropped when the client goes away.
pub(crate) trait Frames: Send + 'static {
    /// The next frames, whole; `None` at the end.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// A response that streams `frames`, with a comment after each silence of `keep_alive`.
pub(crate) fn response(keep_alive: Duration, frames: impl Frames) -> Response {
    let body = stream::unfold(frames, move |mut frames| async move {
        let bytes = match tokio::time::timeout(keep_alive, frames.next()).await {
            Ok(bytes) => bytes?,
            Err(_) => Bytes::from_static(KEEP_ALIVE),
        };
        Some((Ok::<_, Infallible>(bytes), frames))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect the stream before it passes it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

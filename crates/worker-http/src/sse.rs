//! Streams of server-sent events: the response, and the comments that keep it alive.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use serde::Serialize;

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

/// A value as one server-sent event, with its name where it has one. JSON escapes line ends, so `data:` is always one line.
pub(crate) fn frame(event: Option<&str>, value: &impl Serialize) -> Bytes {
    let mut frame = BytesMut::with_capacity(256);
    if let Some(event) = event {
        frame.put_slice(b"event: ");
        frame.put_slice(event.as_bytes());
        frame.put_u8(b'\n');
    }
    frame.put_slice(b"data: ");
    let mut frame = frame.writer();
    // Writing to memory does not fail, and every value that is sent has a JSON form.
    let written = serde_json::to_writer(&mut frame, value);
    debug_assert!(written.is_ok());
    let mut frame = frame.into_inner();
    frame.put_slice(b"\n\n");
    frame.freeze()
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

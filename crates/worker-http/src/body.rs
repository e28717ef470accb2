//! Request bodies: announced as JSON, of bounded size, within bounded time.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;

use crate::error::{ApiError, ErrorCode};

/// The longest body that is read.
///
/// The longest prompt of `POST /execute` is 32,768 characters: 128 KiB, or 384 KiB when all of it is escaped. On OpenAI's
/// routes a context of 32,768 tokens has 32 bytes of JSON for each: an English token has some 4.5, a Chinese one that is
/// escaped some 9, an id in a list at most 8.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// How much of a body that is refused is read and thrown away before the refusal is sent, beyond [`MAX_BODY_BYTES`]: most
/// clients that send too much do so by less than this.
const MAX_DISCARDED_BYTES: usize = 8 << 20;

/// The longest that a request which is refused whatever it says may keep its connection until its body is there.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// The default of [`Settings::body_read_timeout`](crate::Settings::body_read_timeout).
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(20);

/// The time that a body may take to arrive, in each request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyTimeout(pub(crate) Duration);

impl BodyTimeout {
    fn of(request: &Request) -> Duration {
        request.extensions().get::<Self>().map_or(BODY_READ_TIMEOUT, |timeout| timeout.0)
    }
}

/// Reads a request that is refused, or answered, whatever it says: a client that is still writing when the connection closes
/// never sees why.
pub(crate) async fn discard(request: Request) {
    // Whoever asks first is told before anything is sent.
    if request.headers().contains_key(header::EXPECT) {
        return;
    }
    let mut body = request.into_body();
    let read = async {
        let mut n_read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            n_read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if n_read > MAX_BODY_BYTES + MAX_DISCARDED_BYTES {
                break;
            }
        }
    };
    // The answer is the same whether or not all has come.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, read).await;
}

/// Reads a JSON body as text.
///
/// The body is read before anything is held against it: a server that refuses and closes while the client still writes
/// makes its kernel drop the refusal.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`, `PAYLOAD_TOO_LARGE`, and `INVALID_REQUEST` for a body that is not UTF-8, that breaks off, or
/// that takes longer than its time.
pub(crate) async fn read_json(request: Request) -> Result<String, ApiError> {
    let is_json = is_json(request.headers());
    let announced = request.headers().get(header::CONTENT_TYPE).map(|value| format!("{value:?}"));
    let timeout = BodyTimeout::of(&request);
    let bytes = match tokio::time::timeout(timeout, read(request)).await {
        Ok(read) => read?,
        Err(_) => {
            let message = format!("body: did not arrive within {} seconds", timeout.as_secs_f64());
            return Err(ApiError::field("body", "time", message));
        }
    };
    if !is_json {
        let message =
            format!("content-type: expected application/json, got {}", announced.as_deref().unwrap_or("none"));
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    utf8(bytes)
}

/// # Errors
/// `INVALID_REQUEST`, with the offset of the first byte that is at fault.
pub(crate) fn utf8(bytes: Vec<u8>) -> Result<String, ApiError> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ApiError::field("body", "text", format!("body: not UTF-8 at byte {at}"))
    })
}

async fn read(request: Request) -> Result<Vec<u8>, ApiError> {
    let too_large =
        || ApiError::new(ErrorCode::PayloadTooLarge, format!("body: expected at most {MAX_BODY_BYTES} bytes"));
    let announced = content_length(request.headers());
    let is_too_large = announced.is_some_and(|n| n > MAX_BODY_BYTES as u64);
    // Whoever asks first is told before anything is sent.
    if is_too_large && request.headers().contains_key(header::EXPECT) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    let mut n_read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::field("body", "length", "body: broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        n_read += data.len();
        if n_read > MAX_BODY_BYTES + MAX_DISCARDED_BYTES {
            return Err(too_large());
        }
        if is_too_large || n_read > MAX_BODY_BYTES {
            bytes = Vec::new();
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    if n_read > MAX_BODY_BYTES { Err(too_large()) } else { Ok(bytes) }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `application/json`, or a JSON dialect of it such as `application/problem+json`, with any parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(content_type)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content_type: Option<&str>, json: bool) {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = content_type {
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        assert_eq!(is_json(&headers), json, "{content_type:?}");
    }

    #[test]
    fn knows_json_by_its_content_type() {
        check(Some("application/json"), true);
        check(Some("Application/JSON; charset=utf-8"), true);
        check(Some("application/vnd.api+json"), true);
        check(Some("text/plain"), false);
        check(Some("application/x-www-form-urlencoded"), false);
        check(Some("application/jsonp"), false);
        check(Some(""), false);
        check(None, false);
    }
}

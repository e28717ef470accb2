//! What a caller is told when something is refused or fails: one form, with a code that never changes.
//!
//! The same `{code, message, retriable}` is a response body and the payload of an `error` event, so a client needs one
//! table of codes and no more. Codes name the class of a failure, not the device: [`ErrorCode::VramOom`] is "the device's
//! memory ran out" on a CPU worker too.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{Failure, FailureKind, SubmitError};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// Seconds a client is asked to wait before it tries again (`Retry-After`), where trying again may help.
///
/// One job of a full queue ends within a second or so; an orchestrator has other workers to turn to meanwhile.
pub const RETRY_AFTER_SECS: u64 = 1;

/// The stable codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The request breaks a rule; it will never work as it is.
    InvalidRequest,
    /// The prompt leaves no room for one token.
    ContextLengthExceeded,
    /// The request has no API key, or one that is not the worker's.
    Unauthorized,
    /// The request comes from a web page of another origin, or is for a name that the worker does not answer to.
    Forbidden,
    /// No such route.
    NotFound,
    /// The route exists, but not for this method.
    MethodNotAllowed,
    /// A live job has this `job_id`.
    DuplicateJob,
    /// The body is longer than the limit.
    PayloadTooLarge,
    /// The body is not announced as JSON.
    UnsupportedMediaType,
    /// As many jobs are waiting as may wait.
    QueueFull,
    /// `POST /cancel` named this job.
    Cancelled,
    /// The device's memory ran out.
    VramOom,
    /// The device failed.
    CudaError,
    /// A fault of the worker's own.
    Internal,
    /// The worker is loading, draining or has failed.
    NotReady,
    /// The job took longer than the worker allows.
    InferenceTimeout,
}

impl ErrorCode {
    /// The status of a response that carries this code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::DuplicateJob => StatusCode::CONFLICT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            // nginx's "client closed request": no registered status says it.
            Self::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::VramOom | Self::CudaError | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::InferenceTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The code as it is written.
    pub fn label(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::ContextLengthExceeded => "CONTEXT_LENGTH_EXCEEDED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Forbidden => "FORBIDDEN",
            Self::NotFound => "NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::DuplicateJob => "DUPLICATE_JOB",
            Self::PayloadTooLarge => "PAYLOAD_TOO_LARGE",
            Self::UnsupportedMediaType => "UNSUPPORTED_MEDIA_TYPE",
            Self::QueueFull => "QUEUE_FULL",
            Self::Cancelled => "CANCELLED",
            Self::VramOom => "VRAM_OOM",
            Self::CudaError => "CUDA_ERROR",
            Self::Internal => "INTERNAL",
            Self::NotReady => "NOT_READY",
            Self::InferenceTimeout => "INFERENCE_TIMEOUT",
        }
    }

    /// Whether the same request may work later, or on another worker.
    pub fn retriable(self) -> bool {
        matches!(self, Self::QueueFull | Self::VramOom | Self::CudaError | Self::NotReady | Self::InferenceTimeout)
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

/// One fault of one field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldError {
    /// The field's name; `body` when the fault is of the body as a whole.
    pub field: Cow<'static, str>,
    /// The kind of rule it breaks: `required`, `type`, `value`, `range`, `length`, `count`, `text`, `json`, `time`,
    /// `capacity`, `template` or `unsupported`.
    pub constraint: &'static str,
    /// Subject, expected, got.
    pub message: String,
    /// What was sent, where it is short and is not the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// A refused or failed request, as the caller sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// Every fault at once, up to a limit: at least one for [`ErrorCode::InvalidRequest`], none for any other code.
    pub errors: Vec<FieldError>,
    /// Faults beyond those in `errors`.
    pub n_more: usize,
}

impl ApiError {
    /// An error of any code but [`ErrorCode::InvalidRequest`], which wants to know the fields.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), errors: Vec::new(), n_more: 0 }
    }

    /// [`ErrorCode::InvalidRequest`] with the faults of fields; the message sums them up.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        Self::many_fields(errors, 0)
    }

    /// [`fields`](Self::fields), with so many more faults that nothing is kept of.
    pub(crate) fn many_fields(errors: Vec<FieldError>, n_more: usize) -> Self {
        let message = match (errors.as_slice(), n_more) {
            ([only], 0) => only.message.clone(),
            (all, 0) => format!("{} faults, listed in errors", all.len()),
            (first, _) => format!("{} faults, the first {} listed in errors", first.len() + n_more, first.len()),
        };
        Self { code: ErrorCode::InvalidRequest, message, errors, n_more }
    }

    /// [`ErrorCode::InvalidRequest`] with one fault.
    pub fn field(field: impl Into<Cow<'static, str>>, constraint: &'static str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { field: field.into(), constraint, message: message.into(), value: None }])
    }
}

#[derive(Serialize)]
struct Body<'a> {
    code: ErrorCode,
    message: &'a str,
    retriable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<&'a FieldError>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let more = (self.n_more > 0).then(|| FieldError {
            field: "body".into(),
            constraint: "count",
            message: format!("body: and {} more faults", self.n_more),
            value: None,
        });
        let body = Body {
            code: self.code,
            message: &self.message,
            retriable: self.code.retriable(),
            errors: self.errors.iter().chain(&more).collect(),
        };
        let mut response = (self.code.status(), Json(body)).into_response();
        let code = self.code;
        // For the log line of the request, and for routes whose errors have another form.
        response.extensions_mut().insert(code);
        response.extensions_mut().insert(self);
        if matches!(code, ErrorCode::QueueFull | ErrorCode::NotReady) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
        }
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        let code = match error {
            SubmitError::QueueFull { .. } => ErrorCode::QueueFull,
            SubmitError::ContextLengthExceeded { .. } => ErrorCode::ContextLengthExceeded,
            SubmitError::NotAccepting(_) => ErrorCode::NotReady,
            SubmitError::NeverFits { .. } => {
                let message = format!("max_tokens: the prompt and its answer can never be held: {message}");
                return Self::field("max_tokens", "capacity", message);
            }
            SubmitError::TooMany { .. } => {
                return Self::field("n", "capacity", format!("n: all answers can never be held: {message}"));
            }
            // All that is checked here before leaves only a prompt without tokens.
            SubmitError::Invalid(_) => return Self::field("prompt", "length", message),
        };
        Self::new(code, message)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            FailureKind::Cancelled => ErrorCode::Cancelled,
            FailureKind::OutOfMemory => ErrorCode::VramOom,
            FailureKind::DeviceLost => ErrorCode::CudaError,
            FailureKind::ShuttingDown => ErrorCode::NotReady,
            FailureKind::Internal => ErrorCode::Internal,
        };
        Self::new(code, failure.message)
    }
}

//! OpenAI's form of an error: `{"error": {"message", "type", "param", "code"}}`.
//!
//! Every [`ApiError`] under OpenAI's paths gets this form on its way out, whoever made it: a route, the router (404, 405),
//! the body's limits (413, 415), or what stands before them all.

use axum::Json;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::is_openai_path;
use crate::error::{ApiError, ErrorCode, FieldError};
use crate::event::ErrorEvent;

/// Faults that the message of one error tells; OpenAI's form has no list for them.
const MAX_FAULTS_TOLD: usize = 16;

/// An error in OpenAI's form.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Debug, PartialEq, Serialize)]
struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field at fault, the first where there are several.
    param: Option<String>,
    code: String,
}

impl From<ApiError> for ErrorBody {
    fn from(error: ApiError) -> Self {
        let first = error.errors.first();
        let code = first.map_or_else(|| own_code(error.code), |fault| field_code(fault).into());
        let param = first.map(|fault| fault.field.clone().into_owned());
        let mut message = error.message;
        if error.errors.len() > 1 {
            let told = error.errors.iter().take(MAX_FAULTS_TOLD).map(|fault| fault.message.as_str());
            message = told.collect::<Vec<_>>().join("; ");
            let n_more = error.errors.len().saturating_sub(MAX_FAULTS_TOLD) + error.n_more;
            if n_more > 0 {
                message.push_str(&format!("; and {n_more} more"));
            }
        }
        Self { error: ErrorObject { message, kind: kind(error.code), param, code } }
    }
}

impl From<ErrorEvent> for ErrorBody {
    fn from(error: ErrorEvent) -> Self {
        ApiError::new(error.code, error.message).into()
    }
}

fn kind(code: ErrorCode) -> &'static str {
    match code.status().as_u16() {
        403 => "permission_error",
        429 => "rate_limit_error",
        400..499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// OpenAI's code where it has one, else the worker's own.
fn own_code(code: ErrorCode) -> String {
    match code {
        ErrorCode::Unauthorized => "invalid_api_key".to_owned(),
        code => code.label().to_ascii_lowercase(),
    }
}

/// OpenAI's codes for a field, as far as it has any.
fn field_code(fault: &FieldError) -> &'static str {
    match fault.constraint {
        "required" => "missing_required_parameter",
        "unsupported" => "unsupported_parameter",
        "type" => "invalid_type",
        _ => "invalid_value",
    }
}

/// Gives errors of OpenAI's paths OpenAI's form; status and headers stay.
pub(crate) async fn in_openai_form(request: Request, next: Next) -> Response {
    let is_openais = is_openai_path(request.uri().path());
    let mut response = next.run(request).await;
    if !is_openais {
        return response;
    }
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    let body = Json(ErrorBody::from(error)).into_response().into_body();
    *response.body_mut() = body;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told_up_to_a_limit() {
        let fault = |i: usize| FieldError {
            field: format!("messages[{i}].role").into(),
            constraint: "required",
            message: format!("messages[{i}].role: missing"),
            value: None,
        };
        let body =
            |n: usize| serde_json::to_value(ErrorBody::from(ApiError::fields((0..n).map(fault).collect()))).unwrap();
        insta::assert_json_snapshot!([body(1), body(2)]);
        assert!(body(100)["error"]["message"].as_str().unwrap().ends_with("messages[15].role: missing; and 84 more"));
    }
}

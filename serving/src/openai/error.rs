//! API errors in the format that OpenAI's clients expect.
//!
//! The `code` is the stable error code with `_` for `-`. It equals OpenAI's own code where OpenAI has one
//! (`context_length_exceeded`, `invalid_api_key`); `quorate explain` documents each of them.

use crate::batcher::BatchError;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use protocol::ErrorCode;
use protocol::error_code as code;
use serde_json::json;

/// Rejection or failure of an API request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status of the answer.
    pub status: StatusCode,
    /// Stable error code.
    pub code: ErrorCode,
    /// Human-readable description of the fault and its remedy.
    pub message: String,
    /// Field of the request that is invalid.
    pub param: Option<String>,
    /// Time after which to retry, in seconds.
    pub retry_after: Option<u64>,
    /// Whether a retry of the same request would do the same harm again.
    pub is_hopeless: bool,
}

impl ApiError {
    /// Creates an error about no particular field.
    #[must_use]
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None, is_hopeless: false }
    }

    /// Creates a 400 about one field.
    #[must_use]
    pub fn field(code: ErrorCode, param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into());
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// Adds the advice to retry after `seconds`.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Forbids a retry: OpenAI's clients repeat a 503 automatically.
    #[must_use]
    pub fn not_again(self) -> Self {
        Self { is_hopeless: true, ..self }
    }

    /// Creates the error for a model that is not served.
    #[must_use]
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("the model `{}` does not exist", printable(model));
        let error = Self::field(code::MODEL_NOT_FOUND, "model", message);
        Self { status: StatusCode::NOT_FOUND, ..error }
    }

    /// Creates the error for a body above the limit; it was not read to its end.
    #[must_use]
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code::REQUEST_TOO_LARGE, message)
    }

    /// Converts a batcher's rejection into an error about the field that holds the input.
    #[must_use]
    pub fn from_batch(error: &BatchError, input: &str) -> Self {
        let unavailable =
            |code| Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string()).retry_after(1);
        match error {
            BatchError::Overloaded { .. } => unavailable(code::WORKER_OVERLOADED),
            BatchError::Draining => unavailable(code::WORKER_DRAINING),
            BatchError::Refused { code, message } => {
                let field = if *code == code::OPERATION_UNSUPPORTED { "model" } else { input };
                Self::field(*code, field, message)
            }
            BatchError::Failed { code, message } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, *code, message)
            }
        }
    }

    /// Returns the code in OpenAI's spelling.
    #[must_use]
    pub fn wire_code(&self) -> String {
        self.code.as_str().replace('-', "_")
    }

    /// Returns the body: `{"error": {...}}`.
    #[must_use]
    pub fn body(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.wire_code(),
        } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.is_hopeless {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Writes a refusal that a listener makes before any route is chosen: a head that is too large or invalid, an
/// answer that took too long.
#[must_use]
pub fn transport_refusal(status: StatusCode, sentence: &'static str) -> String {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => code::REQUEST_TOO_LARGE,
        StatusCode::GATEWAY_TIMEOUT => code::TIMED_OUT,
        _ => code::REQUEST_INVALID,
    };
    ApiError::new(status, code, sentence).body().to_string()
}

/// Makes untrusted text safe to display: escapes control characters and limits the length.
#[must_use]
pub fn printable(text: &str) -> String {
    const CHARACTERS_MAX: usize = 64;
    let mut shown: String = text.chars().take(CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_openais_shape() {
        let error = ApiError::field(code::CONTEXT_LENGTH_EXCEEDED, "messages", "too long");
        let expected = concat!(
            r#"{"error":{"message":"too long","type":"invalid_request_error","#,
            r#""param":"messages","code":"context_length_exceeded"}}"#,
        );
        assert_eq!(error.body().to_string(), expected);
    }

    #[test]
    fn refusals_of_the_transport_have_openais_shape() {
        for (status, code, kind) in [
            (431, "request_too_large", "invalid_request_error"),
            (414, "request_too_large", "invalid_request_error"),
            (400, "request_invalid", "invalid_request_error"),
            (504, "timed_out", "server_error"),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let body: serde_json::Value =
                serde_json::from_str(&transport_refusal(status, "why")).expect("JSON");
            let expected = json!({ "message": "why", "type": kind, "param": null, "code": code });
            assert_eq!(body["error"], expected, "{status}");
        }
    }

    #[test]
    fn client_text_is_escaped_and_truncated() {
        assert_eq!(printable("a\u{202e}\nb"), "a\\u{202e}\\nb");
        assert_eq!(printable(&"x".repeat(70)).chars().count(), 65);
    }

    #[test]
    fn batcher_refusals_become_openai_errors() {
        let refused = |code| BatchError::Refused { code, message: "m".into() };
        for (error, status, code) in [
            (BatchError::Overloaded { waiting: 3 }, 503, "worker_overloaded"),
            (BatchError::Draining, 503, "worker_draining"),
            (refused(code::CONTEXT_LENGTH_EXCEEDED), 400, "context_length_exceeded"),
            (refused(code::OPERATION_UNSUPPORTED), 400, "operation_unsupported"),
            (refused(code::INVALID_VALUE), 400, "invalid_value"),
            (BatchError::Failed { code: code::ENGINE_FAILED, message: "m".into() }, 500, "engine_failed"),
        ] {
            let answer = ApiError::from_batch(&error, "input");
            assert_eq!((answer.status.as_u16(), answer.wire_code().as_str()), (status, code), "{error:?}");
            assert_eq!(answer.retry_after.is_some(), status == 503);
        }
    }
}

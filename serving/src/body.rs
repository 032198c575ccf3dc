//! Reading the bodies of strangers: bounded, and without letting go of a client that is still sending.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use protocol::error_code as code;

use crate::openai::ApiError;

/// How much of a refused body is still read and thrown away, and for how long. A connection that is closed
/// under a client's hands takes the answer with it; this is time enough for the answer to arrive.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(1);
/// Longest a client may take to send its body.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413, at once when the declared length is above the limit; 408; 400 when the client went away.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        linger(headers, body);
        return Err(ApiError::body_too_large(limit));
    }
    let mut limited = Limited::new(body, limit);
    let collected = tokio::time::timeout(BODY_TIME_MAX, (&mut limited).collect()).await;
    match collected {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(limit)),
        Ok(Err(_)) => {
            Err(ApiError::new(StatusCode::BAD_REQUEST, code::REQUEST_INVALID, "the request body broke off"))
        }
        Err(_) => {
            let message = format!("the request body took longer than {} s", BODY_TIME_MAX.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, code::REQUEST_INVALID, message))
        }
    }
}

fn linger(headers: &HeaderMap, body: Body) {
    if headers.contains_key(header::EXPECT) {
        // This client asked first, and sends nothing after a refusal.
        return;
    }
    tokio::spawn(async move {
        let rest = Limited::new(body, LINGER_BYTES_MAX);
        // Whatever comes of it, the answer stands.
        let _ = tokio::time::timeout(LINGER, discard(rest)).await;
    });
}

async fn discard(mut body: Limited<Body>) {
    while let Some(Ok(_)) = body.frame().await {}
}

//! Request body reader: bounded in bytes, in time without progress and by a memory budget. A rejected client
//! that is still sending is drained for a moment, so that it receives the answer.

use crate::memory::{Buffer, Charge};
use crate::openai::ApiError;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use protocol::error_code as code;
use std::time::Duration;

/// Bytes of a rejected body that are still read and discarded, and the time limit for that. Closing a
/// connection while the client sends can destroy the answer in transit; one second lets it arrive.
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time without progress within a body: a lost packet is retransmitted several times in a second or
/// two.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time for a client to send its body: 8 MiB over a line of 256 kbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Reads a body of at most `limit` bytes and charges `charge` for the bytes as they arrive; `full` makes the
/// error for an exhausted budget.
///
/// # Errors
/// 413, immediately when the declared length exceeds the limit; 408; `full`; 400 when the client
/// disconnected.
pub(crate) async fn read<K: Ord + Clone>(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    charge: &mut Charge<K>,
    full: fn() -> ApiError,
) -> Result<Bytes, ApiError> {
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        linger(headers, body);
        return Err(ApiError::body_too_large(limit));
    }
    // The charge follows the bytes received; the declared length only keeps the buffer from growing past it.
    let expected = declared.and_then(|length| usize::try_from(length).ok()).unwrap_or(limit);
    let evicted = charge.eviction();
    let reading = tokio::select! {
        read = tokio::time::timeout(BODY_TIMEOUT, collect(&mut body, limit, expected, charge)) => read,
        () = evicted.cancelled() => Ok(Err(BodyError::BudgetExhausted)),
    };
    match reading {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(BodyError::TooLarge)) => {
            linger(headers, body);
            Err(ApiError::body_too_large(limit))
        }
        Ok(Err(BodyError::BudgetExhausted)) => {
            linger(headers, body);
            Err(full())
        }
        Ok(Err(BodyError::Stalled)) => {
            Err(timed_out(format!("the request body made no progress for {} s", STALL_TIMEOUT.as_secs())))
        }
        Ok(Err(BodyError::Disconnected)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            code::REQUEST_INVALID,
            "the client disconnected within the request body",
        )),
        Err(_) => Err(timed_out(format!("the request body took longer than {} s", BODY_TIMEOUT.as_secs()))),
    }
}

/// Cause of an incomplete body.
enum BodyError {
    TooLarge,
    BudgetExhausted,
    Stalled,
    Disconnected,
}

async fn collect<K: Ord + Clone>(
    body: &mut Body,
    limit: usize,
    expected: usize,
    charge: &mut Charge<K>,
) -> Result<Bytes, BodyError> {
    let mut buffer = Buffer::default();
    loop {
        let frame =
            tokio::time::timeout(STALL_TIMEOUT, body.frame()).await.map_err(|_| BodyError::Stalled)?;
        let Some(frame) = frame else { return Ok(buffer.into_bytes()) };
        let Ok(data) = frame.map_err(|_| BodyError::Disconnected)?.into_data() else { continue };
        if buffer.len() + data.len() > limit {
            return Err(BodyError::TooLarge);
        }
        buffer.push(&data, expected, charge).await.map_err(|_| BodyError::BudgetExhausted)?;
    }
}

fn timed_out(message: String) -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, code::REQUEST_INVALID, message)
}

fn linger(headers: &HeaderMap, body: Body) {
    if headers.contains_key(header::EXPECT) {
        // A client with `Expect` waits for permission and sends nothing after a rejection.
        return;
    }
    tokio::spawn(async move {
        let rest = Limited::new(body, LINGER_BYTES_MAX);
        // The answer stands whether or not the rest arrives.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, discard(rest)).await;
    });
}

async fn discard(mut body: Limited<Body>) {
    while let Some(Ok(_)) = body.frame().await {}
}

//! One attempt of a request on one worker: it is sent, and its answer arrives frame by frame.

use super::pool::RequestPermit;
use crate::openai::ApiError;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use overlay::ResponseBody;
use protocol::error_code as code;

/// Reason for which a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttemptFailure {
    /// The worker never received it.
    Unsent,
    /// The worker was lost while it had the request.
    Lost,
}

/// Sends a request to the permit's worker; returns the head of its answer, and the body to come.
///
/// # Errors
/// [`AttemptFailure`].
pub(super) async fn send(
    permit: RequestPermit,
    request: http::Request<Body>,
) -> Result<(http::response::Parts, WorkerAnswer), AttemptFailure> {
    let link = permit.link().clone();
    let sent = tokio::select! {
        sent = link.channel.send(request) => sent,
        () = link.lost.cancelled() => return Err(AttemptFailure::Lost),
    };
    match sent {
        Ok(response) => {
            let (head, body) = response.into_parts();
            Ok((head, WorkerAnswer { permit, body }))
        }
        Err(error) => {
            tracing::warn!(worker = link.channel.peer().short(), %error, "request failed");
            match error {
                overlay::Error::Lost { sent: false, .. } => Err(AttemptFailure::Unsent),
                _ => Err(AttemptFailure::Lost),
            }
        }
    }
}

/// A worker's answer in progress.
pub(super) struct WorkerAnswer {
    pub(super) permit: RequestPermit,
    pub(super) body: ResponseBody,
}

/// The next frame of an answer.
pub(super) enum AnswerFrame {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Lost,
}

impl WorkerAnswer {
    /// Waits for the next frame. A call that is dropped loses none.
    pub(super) async fn next(&mut self) -> AnswerFrame {
        let frame = tokio::select! {
            frame = self.body.frame() => frame,
            () = self.permit.link().lost.cancelled() => return AnswerFrame::Lost,
        };
        match frame {
            None => AnswerFrame::End,
            Some(Err(error)) => {
                let worker = self.permit.link().channel.peer();
                tracing::warn!(worker = worker.short(), %error, "answer interrupted");
                AnswerFrame::Lost
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.permit.link().record_progress();
                    AnswerFrame::Data(data)
                }
                Err(frame) => AnswerFrame::Trailers(frame.into_trailers().unwrap_or_default()),
            },
        }
    }
}

/// Reads a number that a worker sends beside its answer.
pub(super) fn count(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name).map(HeaderValue::to_str)?.ok()?.parse().ok()
}

/// Builds the error for an answer whose worker is gone.
pub(super) fn worker_lost() -> ApiError {
    let message = "the worker that served this request was lost";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_LOST, message).retry_after(1)
}

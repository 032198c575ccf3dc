//! Request forwarding: from an admitted request to a worker and back, with retries.
//!
//! A request runs on one worker at a time. Until the first byte reaches the client, a worker that rejects the
//! request is replaced by another. So is a worker that is lost; but the request may have caused the loss.
//! Such a suspect is retried once, alone ([`super::pool`]), and fails when that worker is lost too. No
//! request ends more than two workers, and no request that ran beside a suspect fails.
//!
//! After the first byte, a stream continues on another worker, or a worker's death is reported in it
//! ([`super::stream`]). Without a worker, the request waits for
//! one for a limited time (`hold_timeout`). A client that disconnects drops the response, which resets the
//! worker's stream, which stops the engine.

use super::answer::{AnswerFrame, AttemptFailure, WorkerAnswer, count, send, worker_lost};
use super::pool::{RequestPermit, Suspect};
use super::stream::{KeptRequest, StreamedAnswer, request};
use super::target::{InferenceTarget, StreamKind, memory_full};
use super::{ANSWER_BYTES_MAX, Gateway};
use crate::memory::{Buffer, Charge, ChargedBody, REQUEST_BYTES_MIN};
use crate::metrics::Observation;
use crate::openai::{ApiError, printable};
use crate::resumable::StreamOrigin;
use crate::worker::{COMPLETION_TOKENS, PROMPT_TOKENS, now, random_number};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use overlay::ResponseBody;
use protocol::TokenName;
use protocol::error_code as code;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum workers that may reject one request before the client gets the rejection.
const REFUSALS_MAX: usize = 3;
/// Time limit for the body of a worker's rejection after its headers.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a worker is reserved for one suspect. A request that harms its worker when it is read
/// has done so by then; a whole answer may take minutes, and others wait.
const QUARANTINE: Duration = Duration::from_secs(10);

/// Outcome of one attempt on one worker.
enum ForwardAttempt {
    /// A complete answer.
    Whole(Response<()>, Bytes),
    /// A streamed answer that has begun, with its permit and observation.
    Begun(Box<StreamedAnswer>),
    /// The worker rejected the request or never received it.
    Refused(ApiError, Observation),
    /// The worker was lost while it had the request.
    Lost(Observation),
    /// The client gets this error immediately.
    Failed(ApiError, Observation),
}

/// An admitted request: its target, body and memory charge.
pub(super) struct Admitted {
    pub(super) wanted: InferenceTarget,
    pub(super) body: Bytes,
    pub(super) charge: Charge<TokenName>,
}

impl Gateway {
    /// Sends a request to workers until one answers.
    pub(super) async fn forward(
        self: &Arc<Self>,
        admitted: Admitted,
        mut observation: Observation,
    ) -> Result<Response, (ApiError, Observation)> {
        let evicted = admitted.charge.eviction();
        observation.evicted_by(evicted.clone());
        tokio::select! {
            answered = self.try_forward(admitted, observation) => answered,
            // The observation records an eviction itself.
            () = evicted.cancelled() => Ok(axum::response::IntoResponse::into_response(memory_full())),
        }
    }

    async fn try_forward(
        self: &Arc<Self>,
        admitted: Admitted,
        mut observation: Observation,
    ) -> Result<Response, (ApiError, Observation)> {
        let Admitted { wanted, body, mut charge } = admitted;
        let mut tried = Vec::new();
        let mut refusals = 0;
        let mut suspect: Option<Suspect<'_>> = None;
        let mut reason = no_worker(&wanted);
        let origin = StreamOrigin { number: random_number(), at: now() };
        let until = Instant::now() + self.hold_timeout;
        while refusals < REFUSALS_MAX {
            let permit = match &suspect {
                Some(suspect) => self.wait_for_idle_worker(&wanted, &tried, suspect).await,
                None => match self.try_pick_worker(&wanted, &tried) {
                    // A rejection for overload is returned immediately; waiting would only lengthen the
                    // queue.
                    Ok(None) if reason.code != code::WORKER_OVERLOADED => {
                        self.wait_for_worker(&wanted, &tried, until).await
                    }
                    found => found,
                },
            };
            let permit = match permit {
                Ok(Some(permit)) => permit,
                Ok(None) => break,
                Err(error) => return Err((error, observation)),
            };
            tried.push(permit.link().id);
            // Each attempt is a rejection, or the one that made the request a suspect.
            assert!(tried.len() <= REFUSALS_MAX + 1, "no request is tried on every worker");
            if tried.len() > 1 {
                self.metrics.retried(wanted.model.as_str());
            }
            let link = permit.link().clone();
            let attempt = attempt(permit, &wanted, body.clone(), &mut charge, observation, origin);
            let (error, back) = match in_quarantine(attempt, suspect.as_ref()).await {
                ForwardAttempt::Begun(begun) => {
                    let (gateway, was_lost) = (self.clone(), suspect.is_some());
                    let kept = KeptRequest { gateway, wanted, body, charge, origin, tried, was_lost };
                    return Ok(begun.into_response(kept));
                }
                ForwardAttempt::Whole(head, answer) => {
                    drop(body);
                    charge.shrink_to(REQUEST_BYTES_MIN + answer.len());
                    return Ok(head.map(|()| Body::new(ChargedBody::new(answer, charge))));
                }
                ForwardAttempt::Failed(error, back) => return Err((error, back)),
                ForwardAttempt::Refused(error, back) => (error, back),
                ForwardAttempt::Lost(back) if link.left_in_order() => (worker_lost(), back),
                ForwardAttempt::Lost(back) if suspect.is_some() => return Err((two_workers_lost(), back)),
                ForwardAttempt::Lost(back) => {
                    suspect = Some(self.pool.suspect());
                    (reason, observation) = (worker_lost(), back);
                    continue;
                }
            };
            tracing::info!(model = wanted.model.as_str(), %error, "trying another worker");
            refusals += 1;
            (reason, observation) = (error, back);
        }
        Err((reason, observation))
    }
}

/// Runs the attempt; a suspect's worker is reserved for it for a limited time.
async fn in_quarantine(
    attempt: impl Future<Output = ForwardAttempt>,
    suspect: Option<&Suspect<'_>>,
) -> ForwardAttempt {
    let Some(suspect) = suspect else { return attempt.await };
    tokio::pin!(attempt);
    tokio::select! {
        done = &mut attempt => return done,
        () = tokio::time::sleep(QUARANTINE) => suspect.release(),
    }
    attempt.await
}

async fn attempt(
    permit: RequestPermit,
    wanted: &InferenceTarget,
    body: Bytes,
    charge: &mut Charge<TokenName>,
    mut observation: Observation,
    origin: StreamOrigin,
) -> ForwardAttempt {
    observation.sent_to(&permit.link().channel.peer());
    let is_resumable = matches!(wanted.delivery, StreamKind::Resumable { .. });
    let class = permit.link().numeric_class().filter(|_| is_resumable);
    let request = request(wanted, charge.key(), body, class.map(|_| (origin, <&[u32]>::default())));
    let (head, answer) = match send(permit, request).await {
        Ok(answered) => answered,
        Err(AttemptFailure::Unsent) => return ForwardAttempt::Refused(worker_lost(), observation),
        Err(AttemptFailure::Lost) => return ForwardAttempt::Lost(observation),
    };
    if head.status == StatusCode::SERVICE_UNAVAILABLE {
        return ForwardAttempt::Refused(refusal(answer.body).await, observation);
    }
    if wanted.delivery == StreamKind::Whole || head.status != StatusCode::OK {
        return whole(answer, &head, charge, observation).await;
    }
    match StreamedAnswer::begin(&head.headers, answer, observation, wanted.delivery, class).await {
        Ok(begun) => ForwardAttempt::Begun(Box::new(begun)),
        Err((true, observation)) => ForwardAttempt::Lost(observation),
        Err((false, observation)) => ForwardAttempt::Refused(worker_lost(), observation),
    }
}

/// Reads a whole answer.
async fn whole(
    mut answer: WorkerAnswer,
    sent: &http::response::Parts,
    charge: &mut Charge<TokenName>,
    mut observation: Observation,
) -> ForwardAttempt {
    let (status, headers): (StatusCode, &HeaderMap) = (sent.status, &sent.headers);
    let mut read = Buffer::default();
    loop {
        match answer.next().await {
            AnswerFrame::Data(data) => {
                if read.push(&data, ANSWER_BYTES_MAX, charge).await.is_err() {
                    return ForwardAttempt::Failed(memory_full(), observation);
                }
            }
            AnswerFrame::Trailers(_) => {}
            AnswerFrame::Lost => return ForwardAttempt::Lost(observation),
            AnswerFrame::End => break,
        }
    }
    observation.tokens(count(headers, &PROMPT_TOKENS), count(headers, &COMPLETION_TOKENS));
    observation.end(status, if status.is_success() { "" } else { "refused-by-worker" });
    let mut head = Response::new(());
    *head.status_mut() = status;
    for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
        if let Some(value) = headers.get(&name) {
            head.headers_mut().insert(name, value.clone());
        }
    }
    ForwardAttempt::Whole(head, read.into_bytes())
}

fn no_worker(wanted: &InferenceTarget) -> ApiError {
    let message = format!("no worker serves `{}` at the moment", wanted.model);
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::NO_WORKER, message).retry_after(1)
}

/// Builds an error that forbids a retry: a client that retries automatically would end two workers each time.
fn two_workers_lost() -> ApiError {
    let message = "two workers were lost while they served this request, the second one with no other \
        request; it is not tried on a third";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_LOST, message).not_again()
}

/// Reads a worker's rejection. Its text goes to the gateway's log, not to clients.
async fn refusal(body: ResponseBody) -> ApiError {
    let text = tokio::time::timeout(REFUSAL_TIMEOUT, body.collect()).await;
    let text = text.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    tracing::info!(answer = %printable(&text), "worker rejected the request");
    let message = "every worker of this model is busy at the moment";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_OVERLOADED, message).retry_after(1)
}

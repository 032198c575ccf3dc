//! Request forwarding: from an admitted request to a worker and back, with retries.
//!
//! A request runs on one worker at a time. Until the first byte reaches the client, a worker that rejects the
//! request is replaced by another. So is a worker that is lost; but the request may have caused the loss.
//! Such a suspect is retried once, alone ([`super::pool`]), and fails when that worker is lost too. No
//! request ends more than two workers, and no request that ran beside a suspect fails.
//!
//! After the first byte, a worker's death is reported in the stream. Without a worker, the request waits for
//! one for a limited time (`hold_timeout`). A client that disconnects drops the response, which resets the
//! worker's stream, which stops the engine.

use super::pool::{RequestPermit, Suspect};
use super::public::{InferenceTarget, memory_full};
use super::{ANSWER_BYTES_MAX, Gateway};
use crate::memory::{Buffer, Charge, ChargedBody, REQUEST_BYTES_MIN};
use crate::metrics::Observation;
use crate::openai::{ApiError, error_event, printable};
use crate::worker::{COMPLETION_TOKENS, PROMPT_TOKENS, TENANT, event_stream};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use overlay::ResponseBody;
use protocol::TokenName;
use protocol::error_code as code;
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
    /// An answer that has begun, with its permit and observation.
    Begun(Response),
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
        &self,
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
        &self,
        admitted: Admitted,
        mut observation: Observation,
    ) -> Result<Response, (ApiError, Observation)> {
        let Admitted { wanted, body, mut charge } = admitted;
        let mut tried = Vec::new();
        let mut refusals = 0;
        let mut suspect: Option<Suspect<'_>> = None;
        let mut reason = no_worker(&wanted);
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
            let attempt = attempt(permit, &wanted, body.clone(), &mut charge, observation);
            let (error, back) = match in_quarantine(attempt, suspect.as_ref()).await {
                ForwardAttempt::Begun(response) => return Ok(response),
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
) -> ForwardAttempt {
    let link = permit.link().clone();
    observation.sent_to(&link.channel.peer());
    let request = http::Request::post(wanted.endpoint.path())
        .header(header::CONTENT_TYPE, "application/json")
        .header(TENANT, charge.key().as_str())
        .body(Body::from(body))
        .expect("a literal path, and a name of letters, digits and hyphens, are valid");
    let sent = tokio::select! {
        sent = link.channel.send(request) => sent,
        () = link.lost.cancelled() => return ForwardAttempt::Lost(observation),
    };
    let response = match sent {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(worker = link.channel.peer().short(), %error, "request failed");
            return match error {
                overlay::Error::Lost { sent: false, .. } => {
                    ForwardAttempt::Refused(worker_lost(), observation)
                }
                _ => ForwardAttempt::Lost(observation),
            };
        }
    };
    let (head, body) = response.into_parts();
    if head.status == StatusCode::SERVICE_UNAVAILABLE {
        return ForwardAttempt::Refused(refusal(body).await, observation);
    }
    let answer = WorkerAnswer { permit, body, observation };
    if wanted.is_stream && head.status == StatusCode::OK {
        answer.stream(&head.headers).await
    } else {
        answer.whole(head.status, &head.headers, charge).await
    }
}

/// A worker's answer in progress.
struct WorkerAnswer {
    permit: RequestPermit,
    body: ResponseBody,
    observation: Observation,
}

/// The next frame of an answer.
enum AnswerFrame {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Lost,
}

impl WorkerAnswer {
    async fn next(&mut self) -> AnswerFrame {
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

    async fn whole(
        mut self,
        status: StatusCode,
        headers: &HeaderMap,
        charge: &mut Charge<TokenName>,
    ) -> ForwardAttempt {
        let mut answer = Buffer::default();
        loop {
            match self.next().await {
                AnswerFrame::Data(data) => {
                    if answer.push(&data, ANSWER_BYTES_MAX, charge).await.is_err() {
                        return ForwardAttempt::Failed(memory_full(), self.observation);
                    }
                }
                AnswerFrame::Trailers(_) => {}
                AnswerFrame::Lost => return ForwardAttempt::Lost(self.observation),
                AnswerFrame::End => break,
            }
        }
        self.observation.tokens(count(headers, &PROMPT_TOKENS), count(headers, &COMPLETION_TOKENS));
        self.observation.end(status, if status.is_success() { "" } else { "refused-by-worker" });
        let mut head = Response::new(());
        *head.status_mut() = status;
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
            if let Some(value) = headers.get(&name) {
                head.headers_mut().insert(name, value.clone());
            }
        }
        ForwardAttempt::Whole(head, answer.into_bytes())
    }

    /// Waits for the first chunk: until it arrives, the request can still be retried on another worker.
    async fn stream(mut self, headers: &HeaderMap) -> ForwardAttempt {
        let first = match self.next().await {
            AnswerFrame::Data(data) => data,
            AnswerFrame::Lost => return ForwardAttempt::Lost(self.observation),
            AnswerFrame::Trailers(_) | AnswerFrame::End => {
                return ForwardAttempt::Refused(worker_lost(), self.observation);
            }
        };
        self.permit.answer_begins();
        self.observation.tokens(count(headers, &PROMPT_TOKENS), None);
        self.observation.chunk();
        let rest = stream::unfold(Some(self), |answer| async move { answer?.chunk().await });
        let first = stream::iter([Ok::<_, std::convert::Infallible>(first)]);
        let chunks = futures::StreamExt::chain(first, rest);
        let mut response = Response::new(Body::from_stream(chunks));
        event_stream(response.headers_mut());
        ForwardAttempt::Begun(response)
    }

    /// Returns the next chunk for the client, and the remainder.
    async fn chunk(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Option<Self>)> {
        loop {
            match self.next().await {
                AnswerFrame::Data(data) => {
                    self.observation.chunk();
                    return Some((Ok(data), Some(self)));
                }
                AnswerFrame::Trailers(trailers) => {
                    let generated = count(&trailers, &COMPLETION_TOKENS);
                    self.observation.tokens(count(&trailers, &PROMPT_TOKENS), generated);
                }
                AnswerFrame::End => {
                    // The engine has reported its failure in the stream, which then lacks the count of
                    // tokens.
                    let code = if self.observation.is_complete() { "" } else { "failed-in-stream" };
                    self.observation.end(StatusCode::OK, code);
                    return None;
                }
                AnswerFrame::Lost => {
                    let error = worker_lost();
                    self.observation.end(error.status, error.code.as_str());
                    return Some((Ok(error_event(&error)), None));
                }
            }
        }
    }
}

fn count(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name).map(HeaderValue::to_str)?.ok()?.parse().ok()
}

fn no_worker(wanted: &InferenceTarget) -> ApiError {
    let message = format!("no worker serves `{}` at the moment", wanted.model);
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::NO_WORKER, message).retry_after(1)
}

fn worker_lost() -> ApiError {
    let message = "the worker that served this request was lost";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_LOST, message).retry_after(1)
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

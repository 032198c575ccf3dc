//! From an admitted request to a worker and back.
//!
//! A request goes to one worker at a time. As long as the client has not been sent a byte, a worker that
//! dies, or that says it takes nothing now, is left for another; after that its death is told in the stream.
//! Where there is no worker, the request waits for one for a moment (`patience`).
//! A client that goes away drops the response, which resets the worker's stream, which stops the engine.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use overlay::ResponseBody;
use protocol::error_code as code;

use super::Gateway;
use super::pool::Place;
use super::public::Wanted;
use crate::metrics::Observation;
use crate::openai::{ApiError, error_event};
use crate::worker::{COMPLETION_TOKENS, PROMPT_TOKENS, event_stream};

/// Most workers that one request is put on. A request that kills whoever reads it must not find them all.
const ATTEMPTS_MAX: usize = 3;
/// How long a worker has for the answer after its answer's headers say that it refuses.
const REFUSAL: Duration = Duration::from_secs(5);

/// What came of putting a request on one worker.
enum Attempt {
    /// The answer, whole or begun; the observation goes with it.
    Answered(Response),
    /// Nothing has reached the client, and another worker may do better.
    Retry(ApiError, Observation),
}

impl Gateway {
    /// Finds a worker that answers.
    pub(super) async fn forward(
        &self,
        wanted: Wanted,
        body: Bytes,
        mut observation: Observation,
    ) -> Result<Response, (ApiError, Observation)> {
        let mut tried = Vec::new();
        let mut reason = no_worker(&wanted);
        let until = self.waiting_room.until();
        while tried.len() < ATTEMPTS_MAX {
            let place = match self.place_now(&wanted, &tried) {
                // Who is busy now is told so; waiting would only lengthen the queue.
                Ok(None) if reason.code != code::WORKER_OVERLOADED => {
                    self.place_soon(&wanted, body.len(), &tried, until).await
                }
                found => found,
            };
            let place = match place {
                Ok(Some(place)) => place,
                Ok(None) => break,
                Err(error) => return Err((error, observation)),
            };
            tried.push(place.link().id);
            if tried.len() > 1 {
                self.metrics.retried(wanted.model.as_str());
            }
            match self.attempt(place, &wanted, body.clone(), observation).await {
                Attempt::Answered(response) => return Ok(response),
                Attempt::Retry(error, back) => {
                    tracing::info!(model = wanted.model.as_str(), %error, "trying another worker");
                    (reason, observation) = (error, back);
                }
            }
        }
        Err((reason, observation))
    }

    async fn attempt(
        &self,
        place: Place,
        wanted: &Wanted,
        body: Bytes,
        mut observation: Observation,
    ) -> Attempt {
        let link = place.link().clone();
        observation.sent_to(&link.channel.peer());
        let request = http::Request::post(wanted.endpoint.path())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .expect("a literal path and header are valid");
        let sent = tokio::select! {
            sent = link.channel.send(request) => sent,
            () = link.lost.cancelled() => return Attempt::Retry(worker_lost(), observation),
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(worker = link.channel.peer().short(), %error, "request failed");
                return Attempt::Retry(worker_lost(), observation);
            }
        };
        let (head, body) = response.into_parts();
        if head.status == StatusCode::SERVICE_UNAVAILABLE {
            return Attempt::Retry(refusal(body).await, observation);
        }
        let answer = Answer { place, body, observation };
        if wanted.is_stream && head.status == StatusCode::OK {
            answer.stream(&head.headers).await
        } else {
            answer.whole(head.status, &head.headers).await
        }
    }
}

/// A worker's answer under way.
struct Answer {
    place: Place,
    body: ResponseBody,
    observation: Observation,
}

/// What the next frame of an answer is.
enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    Lost,
}

impl Answer {
    async fn next(&mut self) -> Next {
        let frame = tokio::select! {
            frame = self.body.frame() => frame,
            () = self.place.link().lost.cancelled() => return Next::Lost,
        };
        match frame {
            None => Next::End,
            Some(Err(error)) => {
                tracing::warn!(worker = self.place.link().channel.peer().short(), %error, "answer broke off");
                Next::Lost
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Next::Data(data),
                Err(frame) => Next::Trailers(frame.into_trailers().unwrap_or_default()),
            },
        }
    }

    async fn whole(mut self, status: StatusCode, headers: &HeaderMap) -> Attempt {
        let mut body = Vec::new();
        loop {
            match self.next().await {
                Next::Data(data) => body.extend_from_slice(&data),
                Next::Trailers(_) => {}
                Next::Lost => return Attempt::Retry(worker_lost(), self.observation),
                Next::End => break,
            }
        }
        self.observation.tokens(count(headers, &PROMPT_TOKENS), count(headers, &COMPLETION_TOKENS));
        self.observation.end(status, if status.is_success() { "" } else { "refused-by-worker" });
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
            if let Some(value) = headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Attempt::Answered(response)
    }

    /// Waits for the first piece, for until it is there another worker can still be asked.
    async fn stream(mut self, headers: &HeaderMap) -> Attempt {
        let first = match self.next().await {
            Next::Data(data) => data,
            Next::Trailers(_) | Next::End | Next::Lost => {
                return Attempt::Retry(worker_lost(), self.observation);
            }
        };
        self.observation.tokens(count(headers, &PROMPT_TOKENS), None);
        self.observation.piece();
        let rest = stream::unfold(Some(self), |answer| async move { answer?.piece().await });
        let first = stream::iter([Ok::<_, std::convert::Infallible>(first)]);
        let pieces = futures::StreamExt::chain(first, rest);
        let mut response = Response::new(Body::from_stream(pieces));
        event_stream(response.headers_mut());
        Attempt::Answered(response)
    }

    /// The next piece for the client, and what remains.
    async fn piece(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Option<Self>)> {
        loop {
            match self.next().await {
                Next::Data(data) => {
                    self.observation.piece();
                    return Some((Ok(data), Some(self)));
                }
                Next::Trailers(trailers) => {
                    let generated = count(&trailers, &COMPLETION_TOKENS);
                    self.observation.tokens(count(&trailers, &PROMPT_TOKENS), generated);
                }
                Next::End => {
                    // The engine has told its failure in the stream, which then lacks the count of tokens.
                    let code = if self.observation.is_complete() { "" } else { "failed-in-stream" };
                    self.observation.end(StatusCode::OK, code);
                    return None;
                }
                Next::Lost => {
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

fn no_worker(wanted: &Wanted) -> ApiError {
    let message = format!("no worker serves `{}` at the moment", wanted.model);
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::NO_WORKER, message).retry_after(1)
}

fn worker_lost() -> ApiError {
    let message = "the worker that served this request was lost";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_LOST, message).retry_after(1)
}

/// What a worker says when it takes nothing now. Its own words are for our log, not for clients.
async fn refusal(body: ResponseBody) -> ApiError {
    let text = tokio::time::timeout(REFUSAL, body.collect()).await;
    let text = text.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    tracing::info!(answer = %crate::openai::printable(&String::from_utf8_lossy(&text)), "worker refuses");
    let message = "every worker of this model is busy at the moment";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_OVERLOADED, message).retry_after(1)
}

//! Request handlers of the worker: OpenAI requests into the batcher, its events out as objects or server-sent
//! events.
//!
//! A stream's headers go out immediately, but its first event waits for the first text. A gateway that has
//! received no byte may therefore still retry on another worker. Token counts travel beside the answer, in
//! the headers [`PROMPT_TOKENS`] and [`COMPLETION_TOKENS`] or, for a stream, in trailers of these names.

use super::WorkerService;
use super::service::now;
use crate::batcher::{BatchError, Event, Finish, GenerateRequest};
use crate::engine::sampler::Sampling;
use crate::memory::{Charge, REQUEST_BYTES_MIN};
use crate::openai::{
    self, ApiError, DONE_EVENT, Delivery, Embed, Endpoint, Generate, InferenceRequest, Label, Usage,
    error_event,
};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use protocol::error_code as code;
use protocol::limits::INFERENCE_BODY_BYTES_MAX;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// Header with the tokens of the prompt; for the gateway's metrics, never forwarded to clients.
pub const PROMPT_TOKENS: HeaderName = HeaderName::from_static("quorate-prompt-tokens");
/// Header with the tokens generated.
pub const COMPLETION_TOKENS: HeaderName = HeaderName::from_static("quorate-completion-tokens");

/// Header with the id of a request, for answers and logs; OpenAI's clients show it.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Builds the inference API of one worker.
pub(super) fn router(service: Arc<WorkerService>) -> Router {
    Router::new()
        .route(Endpoint::Chat.path(), post(|state, request| answer(state, Endpoint::Chat, request)))
        .route(
            Endpoint::Completions.path(),
            post(|state, request| answer(state, Endpoint::Completions, request)),
        )
        .route(
            Endpoint::Embeddings.path(),
            post(|state, request| answer(state, Endpoint::Embeddings, request)),
        )
        .route_layer(from_fn_with_state(service.clone(), count_until_sent))
        .route("/worker/v1/load", get(load))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(service)
}

/// Counts an answer from the arrival of its request until its last byte has been handed to the connection.
async fn count_until_sent(
    State(service): State<Arc<WorkerService>>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    let answer = service.answers().begin();
    next.run(request).await.map(|body| answer.until_sent(body))
}

async fn load(State(service): State<Arc<WorkerService>>) -> Response {
    let body = serde_json::to_vec(&service.load()).expect("plain numbers and words");
    json(Bytes::from(body))
}

/// Answers every path that is not served.
pub(crate) async fn no_such_path(uri: http::Uri) -> ApiError {
    let message = format!("no such path: {}", openai::printable(uri.path()));
    ApiError::new(StatusCode::NOT_FOUND, code::PATH_NOT_FOUND, message)
}

/// Answers every method that a path does not support.
pub(crate) async fn no_such_method(method: http::Method, uri: http::Uri) -> ApiError {
    let message = format!("{} does not take {method}", openai::printable(uri.path()));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, message)
}

async fn answer(
    State(service): State<Arc<WorkerService>>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    // Held until the request is tokenized: its texts are as large as its body.
    let mut charge = service.memory().open(());
    charge.grow(REQUEST_BYTES_MIN).await.map_err(|_| memory_full())?;
    let body =
        crate::body::read(&head.headers, body, INFERENCE_BODY_BYTES_MAX, &mut charge, memory_full).await?;
    let request = InferenceRequest::parse(endpoint, &body)?;
    drop(body);
    if service.model().is_some_and(|only| only != request.model()) {
        return Err(ApiError::model_not_found(request.model()));
    }
    match request {
        InferenceRequest::Embed(embed) => answer_embed(&service, embed, charge).await,
        InferenceRequest::Generate(generate) => answer_generate(service, endpoint, generate, charge).await,
    }
}

/// Builds the rejection after which a gateway tries another worker.
fn memory_full() -> ApiError {
    let message = "this worker holds as many bytes of requests as it may";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_OVERLOADED, message).retry_after(1)
}

async fn answer_embed(
    service: &WorkerService,
    embed: Embed,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let refused = |error: BatchError| ApiError::from_batch(&error, Endpoint::Embeddings.input());
    let batcher = service.batcher()?;
    let queued = batcher.embed(embed.inputs).await.map_err(refused)?;
    drop(charge);
    let embeddings = queued.computed().await.map_err(refused)?;
    service.record_first_token(started.elapsed());
    let usage = Usage::embedded(embeddings.prompt_tokens);
    let mut response = json(openai::embeddings(&embed.model, embeddings.vectors, embed.encoding, usage));
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(embeddings.prompt_tokens));
    Ok(response)
}

async fn answer_generate(
    service: Arc<WorkerService>,
    endpoint: Endpoint,
    generate: Generate,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let random = random_number();
    let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
    let label = Label {
        id: format!("{prefix}-{random:016x}"),
        created: now().0 / 1000,
        model: generate.model,
        endpoint,
    };
    let sampling = Sampling {
        temperature: generate.temperature,
        top_p: generate.top_p,
        seed: generate.seed.unwrap_or(random),
    };
    let request = GenerateRequest {
        prompt: generate.prompt,
        sampling,
        tokens_max: generate.tokens_max,
        stops: generate.stops,
    };
    let generation = service
        .batcher()?
        .generate(request)
        .await
        .map_err(|error| ApiError::from_batch(&error, endpoint.input()))?;
    drop(charge);
    let prompt_tokens = generation.prompt_tokens;
    let streaming = Streaming { service, started, label, events: generation.events, is_first: true };
    let mut response = match generate.delivery {
        Delivery::Whole => streaming.whole().await?,
        Delivery::Stream { include_usage } => streaming.stream(include_usage),
    };
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(prompt_tokens));
    Ok(response)
}

/// An answer in progress. Dropping it drops the events' receiver, which stops the generation.
struct Streaming {
    service: Arc<WorkerService>,
    started: Instant,
    label: Label,
    events: UnboundedReceiver<Event>,
    is_first: bool,
}

/// Remainder of the stream to send.
enum StreamState {
    Events(Streaming),
    Trailers(HeaderMap),
    Nothing,
}

impl Streaming {
    async fn next(&mut self) -> Event {
        let stopped = || {
            Event::Failed(BatchError::Failed {
                code: code::ENGINE_FAILED,
                message: "the engine ended before the answer did".to_owned(),
            })
        };
        let event = self.events.recv().await.unwrap_or_else(stopped);
        if self.is_first {
            self.service.record_first_token(self.started.elapsed());
        }
        event
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut text = String::new();
        loop {
            let event = self.next().await;
            self.is_first = false;
            match event {
                Event::Text(more) => text.push_str(&more),
                Event::Failed(error) => {
                    return Err(ApiError::from_batch(&error, self.label.endpoint.input()));
                }
                Event::Finished(finish) => {
                    let usage = Usage::generated(finish.prompt_tokens, finish.generated_tokens);
                    let mut response = json(self.label.whole(&text, finish.reason, usage));
                    let generated = HeaderValue::from(finish.generated_tokens);
                    response.headers_mut().insert(COMPLETION_TOKENS, generated);
                    return Ok(response);
                }
            }
        }
    }

    fn stream(self, include_usage: bool) -> Response {
        let frames = futures::stream::unfold(StreamState::Events(self), move |rest| async move {
            match rest {
                StreamState::Events(streaming) => Some(streaming.step(include_usage).await),
                StreamState::Trailers(trailers) => {
                    Some((Ok(Frame::trailers(trailers)), StreamState::Nothing))
                }
                StreamState::Nothing => None,
            }
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        event_stream(response.headers_mut());
        response
    }

    async fn step(mut self, include_usage: bool) -> (Result<Frame<Bytes>, Infallible>, StreamState) {
        let event = self.next().await;
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.is_first) && self.label.endpoint == Endpoint::Chat {
            bytes.extend_from_slice(&self.label.event("", true, None, include_usage));
        }
        let rest = match event {
            Event::Text(text) => {
                bytes.extend_from_slice(&self.label.event(&text, false, None, include_usage));
                StreamState::Events(self)
            }
            Event::Finished(finish) => {
                bytes.extend_from_slice(&self.label.event("", false, Some(finish.reason), include_usage));
                if include_usage {
                    let usage = Usage::generated(finish.prompt_tokens, finish.generated_tokens);
                    bytes.extend_from_slice(&self.label.usage_event(usage));
                }
                bytes.extend_from_slice(DONE_EVENT);
                StreamState::Trailers(trailers(&finish))
            }
            Event::Failed(error) => {
                let error = ApiError::from_batch(&error, self.label.endpoint.input());
                bytes.extend_from_slice(&error_event(&error));
                StreamState::Nothing
            }
        };
        (Ok(Frame::data(Bytes::from(bytes))), rest)
    }
}

fn trailers(finish: &Finish) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(PROMPT_TOKENS, HeaderValue::from(finish.prompt_tokens));
    trailers.insert(COMPLETION_TOKENS, HeaderValue::from(finish.generated_tokens));
    trailers
}

/// Sets the headers of an event stream, so that no proxy buffers it.
pub(crate) fn event_stream(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
}

/// Builds a 200 response with a JSON body.
pub(crate) fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Generates a random request id.
pub(crate) fn request_id() -> HeaderValue {
    let name = format!("req-{:016x}", random_number());
    HeaderValue::try_from(name).expect("letters and digits are valid in a header")
}

/// Returns a random number: an answer's id, or the seed where the client gave none.
fn random_number() -> u64 {
    getrandom::u64().expect("the operating system has randomness")
}

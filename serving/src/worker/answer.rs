//! Request handlers of the worker: OpenAI requests into the batcher; [`super::streaming`] sends the answers.
//!
//! Token counts travel beside the answer, in the headers [`PROMPT_TOKENS`] and [`COMPLETION_TOKENS`] or, for
//! a stream, in trailers of these names.

use super::WorkerService;
use super::form::AnswerForm;
use super::resumed::{self, StreamBeginning};
use super::service::now;
use super::streaming::{StreamedChoice, Streaming};
use crate::batcher::{BatchError, Caller, GenerateRequest, Priority, Prompt, StopConditions, Tenant};
use crate::engine::logits::LogitRules;
use crate::engine::matryoshka::shorten;
use crate::engine::sampler::choice_seed;
use crate::memory::{Charge, ChargedBody, REQUEST_BYTES_MIN};
use crate::openai::{
    self, ApiError, Delivery, Detokenize, Embed, Endpoint, Generate, InferenceRequest, Label, Rerank,
    Tokenize, Usage,
};
use crate::resumable::{StreamOrigin, TOKEN_BYTES};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use kernels::sampling::Sampling;
use protocol::error_code as code;
use protocol::limits::INFERENCE_BODY_BYTES_MAX;
use std::sync::Arc;
use std::time::Instant;

/// Header with the tokens of the prompt; for the gateway's metrics, never forwarded to clients.
pub const PROMPT_TOKENS: HeaderName = HeaderName::from_static("quorate-prompt-tokens");
/// Header with the tokens generated.
pub const COMPLETION_TOKENS: HeaderName = HeaderName::from_static("quorate-completion-tokens");

/// Header by which a gateway names the holder of a request's API key. Requests of one holder share cached
/// prompts, also over a change of its key. The gateway writes the whole head itself, so no client sets it.
pub(crate) const TENANT: HeaderName = HeaderName::from_static("quorate-tenant");
/// Tenant of all requests to a worker on local files, which has no keys.
const LOCAL_TENANT: &str = "local";

/// Header with the id of a request, for answers and logs; OpenAI's clients show it.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Builds the inference API of one worker.
pub(super) fn router(service: Arc<WorkerService>) -> Router {
    let route = |router: Router<Arc<WorkerService>>, endpoint: Endpoint| {
        router.route(endpoint.path(), post(move |state, request| answer(state, endpoint, request)))
    };
    Endpoint::ALL
        .into_iter()
        .fold(Router::new(), route)
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
    let origin = resumed::origin(&service, &head.headers)?;
    let limit = INFERENCE_BODY_BYTES_MAX + origin.map_or(0, |(_, tokens)| tokens * TOKEN_BYTES);
    let mut body = crate::body::read(&head.headers, body, limit, &mut charge, memory_full).await?;
    let beginning = match origin {
        Some((origin, tokens)) => StreamBeginning::resumed(origin, tokens, &mut body)?,
        None => StreamBeginning::fresh(random_number(), now()),
    };
    let request = InferenceRequest::parse(endpoint, &body)?;
    drop(body);
    if service.model().is_some_and(|only| only != request.model()) {
        return Err(ApiError::model_not_found(request.model()));
    }
    match request {
        InferenceRequest::Embed(embed) => answer_embed(&service, embed, charge).await,
        InferenceRequest::Rerank(rerank) => answer_rerank(&service, rerank, charge).await,
        InferenceRequest::Tokenize(tokenize) => answer_tokenize(&service, tokenize, charge).await,
        InferenceRequest::Detokenize(detokenize) => answer_detokenize(&service, detokenize, charge).await,
        InferenceRequest::Generate(generate) => {
            let caller = caller(&service, &head.headers);
            beginning.check(&generate)?;
            answer_generate(service, endpoint, *generate, caller, (beginning, charge)).await
        }
    }
}

/// Builds the rejection after which a gateway tries another worker.
fn memory_full() -> ApiError {
    let message = "this worker holds as many bytes of requests as it may";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code::WORKER_OVERLOADED, message).retry_after(1)
}

/// Returns the origin of a request. One without a tenant shares no cached prompt.
fn caller(service: &WorkerService, headers: &HeaderMap) -> Caller {
    let tenant = match service.model() {
        Some(_) => Some(Tenant::new(LOCAL_TENANT)),
        None => headers.get(TENANT).and_then(|name| name.to_str().ok()).map(Tenant::new),
    };
    Caller { tenant, priority: Priority::default() }
}

async fn answer_embed(
    service: &WorkerService,
    embed: Embed,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let refused = |error: BatchError| ApiError::from_batch(&error, Endpoint::Embeddings.input());
    let batcher = service.batcher()?;
    if let (Some(wanted), Some(lengths)) = (embed.dimensions, batcher.frontend().lengths()) {
        lengths.check(wanted).map_err(|problem| {
            let message = format!("`dimensions` {problem}");
            ApiError::field(code::UNSUPPORTED_PARAMETER, "dimensions", message)
        })?;
    }
    let queued = batcher.embed(embed.inputs).await.map_err(refused)?;
    drop(charge);
    let mut embeddings = queued.computed().await.map_err(refused)?;
    if let Some(wanted) = embed.dimensions {
        embeddings.vectors.iter_mut().for_each(|vector| shorten(vector, wanted));
    }
    service.record_first_token(started.elapsed());
    let usage = Usage::embedded(embeddings.prompt_tokens);
    let mut response = json(openai::embeddings(&embed.model, embeddings.vectors, embed.encoding, usage));
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(embeddings.prompt_tokens));
    Ok(response)
}

async fn answer_rerank(
    service: &WorkerService,
    rerank: Rerank,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let refused = |error: BatchError| ApiError::from_batch(&error, Endpoint::Rerank.input());
    let Rerank { model, query, documents, top_n, with_documents } = rerank;
    let documents: Arc<[String]> = documents.into();
    let queued = service.batcher()?.rerank(query, documents.clone()).await.map_err(refused)?;
    // An answer that repeats the documents is as large as its request, and charged as that was.
    let kept = with_documents.then_some((documents, charge));
    let scores = queued.computed().await.map_err(refused)?;
    service.record_first_token(started.elapsed());
    let id = format!("rerank-{:016x}", random_number());
    let usage = Usage::embedded(scores.prompt_tokens);
    let repeated = kept.as_ref().map(|(documents, _)| &documents[..]);
    let body = openai::rerank((&id, &model), &scores.scores, repeated, top_n, usage);
    let mut response = json(body.clone());
    if let Some((_, charge)) = kept {
        *response.body_mut() = Body::new(ChargedBody::new(body, charge));
    }
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(scores.prompt_tokens));
    Ok(response)
}

async fn answer_tokenize(
    service: &WorkerService,
    tokenize: Tokenize,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let mut prompt = tokenize.prompt;
    let field = if let Prompt::Chat(conversation) = &mut prompt {
        conversation.at = now();
        Endpoint::Chat.input()
    } else {
        Endpoint::Tokenize.input()
    };
    let batcher = service.batcher()?;
    let encoded = batcher.encode(prompt).await.map_err(|error| ApiError::from_batch(&error, field))?;
    drop(charge);
    let frontend = batcher.frontend();
    let text = |token: &u32| String::from_utf8_lossy(&frontend.token_bytes(*token)).into_owned();
    let texts = tokenize.with_texts.then(|| encoded.tokens().iter().map(text).collect());
    let mut response = json(openai::tokens(encoded.tokens(), texts, frontend.context_tokens_max()));
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(encoded.tokens().len()));
    Ok(response)
}

async fn answer_detokenize(
    service: &WorkerService,
    detokenize: Detokenize,
    charge: Charge<()>,
) -> Result<Response, ApiError> {
    let refused = |error: BatchError| ApiError::from_batch(&error, Endpoint::Detokenize.input());
    let count = detokenize.tokens.len();
    let text = service.batcher()?.decode(detokenize.tokens).await.map_err(refused)?;
    drop(charge);
    let mut response = json(openai::text(&text));
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(count));
    Ok(response)
}

async fn answer_generate(
    service: Arc<WorkerService>,
    endpoint: Endpoint,
    generate: Generate,
    caller: Caller,
    (beginning, charge): (StreamBeginning, Charge<()>),
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let StreamOrigin { number, at } = beginning.origin();
    let label = label(endpoint, generate.model, beginning.origin());
    let seed = generate.seed.unwrap_or(number);
    let refused = |error: BatchError| ApiError::from_batch(&error, endpoint.input());
    let batcher = service.batcher()?;
    check_tokens((&generate.rules, &generate.stops), batcher.frontend().vocabulary())?;
    let form = AnswerForm::of(generate.grammar.as_ref(), generate.tools.as_ref(), batcher.frontend())?;
    let (mut choices, mut prompt_tokens, mut echoed_bytes) = (Vec::new(), 0, 0);
    let mut grammar = None;
    let is_ranked = generate.candidates > generate.choices;
    for mut prompt in generate.prompts {
        if let Prompt::Chat(conversation) = &mut prompt {
            conversation.at = at;
        }
        let text = match &prompt {
            Prompt::Text(text) if generate.echo => Some(text.clone()),
            _ => None,
        };
        let encoded = batcher.encode(prompt).await.map_err(refused)?;
        // Several prompts are texts, so none begins in another place of its reasoning.
        if grammar.is_none() {
            grammar = form.compiled(batcher, &encoded).await?;
        }
        prompt_tokens += encoded.tokens().len();
        let echo = generate.echo.then(|| text.unwrap_or_else(|| batcher.frontend().decode(encoded.tokens())));
        let echo: Option<Arc<str>> = echo.map(Arc::from);
        echoed_bytes += echo.as_ref().map_or(0, |text| text.len()) * generate.candidates;
        if echoed_bytes > INFERENCE_BODY_BYTES_MAX {
            let message = format!("`echo` repeats more than {INFERENCE_BODY_BYTES_MAX} bytes of prompts");
            return Err(ApiError::field(code::INVALID_VALUE, "echo", message));
        }
        for index in 0..generate.candidates {
            let request = GenerateRequest {
                prompt: Prompt::Encoded(encoded.clone()),
                sampling: Sampling {
                    temperature: generate.temperature,
                    top_p: generate.top_p,
                    seed: choice_seed(seed, index as u64),
                },
                rules: generate.rules.clone(),
                tokens_max: generate.tokens_max,
                stops: generate.stops.clone(),
                logprobs: generate.logprobs.or(is_ranked.then_some(0)),
                grammar: grammar.clone(),
                functions: form.functions(),
                caller: caller.clone(),
            };
            let has_logprobs = generate.logprobs.is_some();
            let sent = beginning.characters_sent(batcher.frontend(), has_logprobs);
            let events = beginning.generate(batcher, request).await.map_err(refused)?.events;
            choices.push(StreamedChoice::new(events, echo.clone(), has_logprobs).after(sent));
        }
    }
    let charge = generate.echo.then_some(charge);
    let streaming = Streaming::new(service, started, label, choices, prompt_tokens, charge);
    let mut response = match generate.delivery {
        Delivery::Whole => streaming.whole((generate.candidates, generate.choices)).await?,
        Delivery::Stream { include_usage } => streaming.stream(include_usage, beginning.is_framed()),
    };
    response.headers_mut().insert(PROMPT_TOKENS, HeaderValue::from(prompt_tokens));
    Ok(response)
}

fn label(endpoint: Endpoint, model: String, origin: StreamOrigin) -> Label {
    let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
    Label { id: format!("{prefix}-{:016x}", origin.number), created: origin.at.0 / 1000, model, endpoint }
}

/// Checks that the model has each token that a request names.
fn check_tokens((rules, stops): (&LogitRules, &StopConditions), vocabulary: usize) -> Result<(), ApiError> {
    let named = [
        ("logit_bias", rules.bias.keys().copied().collect::<Vec<u32>>()),
        ("stop_token_ids", stops.tokens.clone()),
    ];
    for (field, tokens) in named {
        if let Some(unknown) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let message = format!("`{field}`: token {unknown} is not below the vocabulary of {vocabulary}");
            return Err(ApiError::field(code::INVALID_VALUE, field, message));
        }
    }
    Ok(())
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
pub(crate) fn random_number() -> u64 {
    getrandom::u64().expect("the operating system has randomness")
}

//! Public API of the gateway: API keys, quotas, limits, validation, and then a worker.

use super::Gateway;
use super::forward::Admitted;
use super::keep_alive::kept_alive;
use super::quota::QuotaLeft;
use super::table::{Table, may_call};
use crate::memory::REQUEST_BYTES_MIN;
use crate::metrics::{self, Observation};
use crate::openai::{self, ApiError, Endpoint, InferenceRequest};
use crate::resumable::TOKENS_MAX;
use crate::worker::{REQUEST_ID, json, no_such_method, no_such_path, request_id};
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use protocol::error_code as code;
use protocol::gateway::{ApiKey, RoutedService};
use protocol::limits::INFERENCE_BODY_BYTES_MAX;
use protocol::manifest::Task;
use protocol::{ModelName, ServiceName};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

/// Builds the inference API.
pub(super) fn router(gateway: Arc<Gateway>) -> Router {
    let router = Router::new()
        .route(openai::MODELS_PATH, get(models))
        .route(openai::MODEL_PATH, get(model))
        .route(openai::OPENAPI_PATH, get(|| async { json(openai::openapi(true)) }));
    let route = |router: Router<Arc<Gateway>>, endpoint: Endpoint| {
        router.route(endpoint.path(), post(move |state, request| infer(state, endpoint, request)))
    };
    Endpoint::ALL
        .into_iter()
        .fold(router, route)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(gateway)
}

/// Builds the operator's endpoints: `/metrics`, `/livez`, `/readyz`.
pub(super) fn operations_router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/metrics", get(gateway_metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(gateway)
}

async fn gateway_metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let exchanges = gateway.key_exchanges.counts();
    let table = gateway.table.borrow().clone();
    let workers = gateway.pool.links().into_iter().filter_map(|link| {
        let model = table.model_of(&link.ticket().service)?.to_string();
        Some((model, link.in_flight(), link.load()))
    });
    metrics::text_response(gateway.metrics.text(workers, &exchanges, gateway.memory.used()))
}

/// Reports readiness once the agent has pushed a route table.
async fn readyz(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.table.borrow().version() {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "no route table yet\n").into_response(),
        version => format!("ok, route table {version}\n").into_response(),
    }
}

async fn models(State(gateway): State<Arc<Gateway>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let (table, key) = gateway.authenticate(&headers).await?;
    let contexts = gateway.contexts(&table, &key);
    let names = table.models(key.services.as_ref()).into_iter();
    Ok(json(openai::models(names.map(|name| (name, contexts.get(name).copied())))))
}

async fn model(
    State(gateway): State<Arc<Gateway>>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (table, key) = gateway.authenticate(&headers).await?;
    let Path(name) = name.map_err(|_| ApiError::model_not_found("not UTF-8"))?;
    let mut open = table.services(&name).into_iter();
    // A model of other keys' services is as unknown as one that there is not.
    let service = open.find(|service| may_call(key.services.as_ref(), &service.service));
    let Some(service) = service else { return Err(ApiError::model_not_found(&name)) };
    let context = gateway.contexts(&table, &key).get(service.model.as_str()).copied();
    Ok(json(openai::model(&name, context)))
}

async fn infer(
    State(gateway): State<Arc<Gateway>>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Response {
    let request_id = request_id();
    let observation = Observation::begin(gateway.metrics.clone(), endpoint, request_id.clone());
    let mut quota = None;
    let mut response = match gateway.try_infer(endpoint, request, observation, &mut quota).await {
        Ok(response) => response,
        Err((error, mut observation)) => {
            observation.end(error.status, error.code.as_str());
            error.into_response()
        }
    };
    response.headers_mut().insert(REQUEST_ID, request_id);
    if let Some(left) = quota {
        left.write(response.headers_mut());
    }
    response
}

impl Gateway {
    /// Returns the table in force and the client's key in it. A client without a key is rejected before any
    /// wait.
    ///
    /// # Errors
    /// 401, or 503 while there is no table yet.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<(Arc<Table>, ApiKey), ApiError> {
        let refuse = |message: &str| ApiError::new(StatusCode::UNAUTHORIZED, code::INVALID_API_KEY, message);
        let shown = headers.get(header::AUTHORIZATION).ok_or_else(|| {
            refuse("you did not provide an API key: send it as `Authorization: Bearer YOUR_KEY`")
        })?;
        let key = shown.to_str().ok().and_then(|text| text.split_once(' '));
        let key = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
        let key = key.ok_or_else(|| refuse("send the API key as `Authorization: Bearer YOUR_KEY`"))?;
        let table = self.table().await?;
        // The answer never repeats the key: it may be valid elsewhere.
        let known = table.api_key(key).cloned().ok_or_else(|| refuse("incorrect API key provided"))?;
        Ok((table, known))
    }

    /// Returns the context of each model that the key may call, in tokens: the smallest that one of its
    /// workers reported.
    fn contexts(&self, table: &Table, key: &ApiKey) -> BTreeMap<String, usize> {
        let mut contexts: BTreeMap<String, usize> = BTreeMap::new();
        let links = self.pool.links().into_iter();
        for link in links.filter(|link| may_call(key.services.as_ref(), &link.ticket().service)) {
            let model = table.model_of(&link.ticket().service).map(ToString::to_string);
            let context = link.load().and_then(|load| load.context_tokens_max);
            if let (Some(model), Some(context)) = (model, context) {
                let least = contexts.entry(model).or_insert(usize::MAX);
                *least = (*least).min(context as usize);
            }
        }
        contexts
    }

    async fn try_infer(
        self: &Arc<Self>,
        endpoint: Endpoint,
        request: axum::extract::Request,
        mut observation: Observation,
        quota: &mut Option<QuotaLeft>,
    ) -> Result<Response, (ApiError, Observation)> {
        let admitted = match self.admit(endpoint, request, &mut observation, quota).await {
            Ok(admitted) => admitted,
            Err(error) => return Err((error, observation)),
        };
        let is_stream = admitted.wanted.delivery != StreamKind::Whole;
        let gateway = self.clone();
        let forwarding = async move { gateway.forward(admitted, observation).await };
        if is_stream { kept_alive(forwarding).await } else { forwarding.await }
    }

    /// Makes every decision that precedes the choice of a worker: key, quota, body, validation.
    async fn admit(
        &self,
        endpoint: Endpoint,
        request: axum::extract::Request,
        observation: &mut Observation,
        quota: &mut Option<QuotaLeft>,
    ) -> Result<Admitted, ApiError> {
        let (head, body) = request.into_parts();
        let (table, key) = self.authenticate(&head.headers).await?;
        observation.key(&key.name);
        *quota = self.quotas.take(&key, Instant::now());
        if let Some(QuotaLeft { limit, taken: Err(wait), .. }) = *quota {
            let message = format!("rate limit of {limit} requests per minute reached for this API key");
            // Rounded up: a client that retries after this time is within its quota.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, code::RATE_LIMIT_EXCEEDED, message);
            return Err(error.retry_after(seconds));
        }
        let mut charge = self.memory.open(key.name.clone());
        charge.grow(REQUEST_BYTES_MIN).await.map_err(|_| memory_full())?;
        let limit = INFERENCE_BODY_BYTES_MAX;
        let body = crate::body::read(&head.headers, body, limit, &mut charge, memory_full).await?;
        let request = InferenceRequest::parse(endpoint, &body)?;
        let services = services(endpoint, request.model(), key.services.as_ref(), &table)?;
        let model = services[0].model.clone();
        observation.model(model.as_str());
        let (name, delivery) = (request.model().to_owned(), StreamKind::of(&request));
        let wanted = InferenceTarget { endpoint, name, model, allowed: key.services, delivery };
        Ok(Admitted { wanted, body, charge })
    }
}

/// Builds the rejection for a key that holds most of the memory and requests more, or whose request was
/// evicted.
pub(super) fn memory_full() -> ApiError {
    let message = "this API key holds its share of the gateway's memory: send fewer large requests at \
        once, and read their answers";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, code::GATEWAY_MEMORY_FULL, message).retry_after(1)
}

/// Target of an admitted request.
#[derive(Debug)]
pub(super) struct InferenceTarget {
    pub(super) endpoint: Endpoint,
    /// The model or service, as the client named it.
    name: String,
    /// Model that the name resolved to on arrival.
    pub(super) model: ModelName,
    /// Services that the client's key may call; none = every service.
    allowed: Option<BTreeSet<ServiceName>>,
    pub(super) delivery: StreamKind,
}

/// Delivery of an answer, as the gateway forwards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// As one object: a lost worker's answer is asked for again.
    Whole,
    /// As events that end with their worker.
    Bound,
    /// As events of one choice, which another worker can continue; of this many tokens at most.
    Resumable { tokens_max: usize },
}

impl StreamKind {
    fn of(request: &InferenceRequest) -> Self {
        match request {
            InferenceRequest::Generate(generate) if request.is_stream() => {
                let is_single = generate.prompts.len() == 1 && generate.choices == 1 && !generate.echo;
                let tokens_max = generate.tokens_max.map_or(TOKENS_MAX, |most| most.clamp(1, TOKENS_MAX));
                if is_single { Self::Resumable { tokens_max } } else { Self::Bound }
            }
            _ => Self::Whole,
        }
    }
}

impl InferenceTarget {
    /// Returns the services that may answer the request by this table: at least one.
    ///
    /// # Errors
    /// The model is no longer served.
    pub(super) fn services<'t>(&self, table: &'t Table) -> Result<Vec<&'t RoutedService>, ApiError> {
        services(self.endpoint, &self.name, self.allowed.as_ref(), table)
    }
}

/// Returns the services that the client's name denotes and its key may call, all of the right task: at least
/// one.
fn services<'t>(
    endpoint: Endpoint,
    model: &str,
    allowed: Option<&BTreeSet<ServiceName>>,
    table: &'t Table,
) -> Result<Vec<&'t RoutedService>, ApiError> {
    let all = table.services(model);
    if all.is_empty() {
        return Err(ApiError::model_not_found(model));
    }
    let wanted = match endpoint {
        Endpoint::Embeddings => Task::Embed,
        Endpoint::Rerank => Task::Rerank,
        Endpoint::Chat | Endpoint::Completions | Endpoint::Tokenize | Endpoint::Detokenize => Task::Generate,
    };
    let first = all[0].task;
    let fit: Vec<&RoutedService> = all.into_iter().filter(|service| service.task == wanted).collect();
    if fit.is_empty() {
        let other = match first {
            Task::Generate => "generates text: use /v1/chat/completions",
            Task::Embed => "embeds text: use /v1/embeddings",
            Task::Rerank => "scores documents: use /v1/rerank",
        };
        return Err(ApiError::field(
            code::OPERATION_UNSUPPORTED,
            "model",
            format!("the model `{model}` {other}"),
        ));
    }
    let is_open = |service: &&RoutedService| may_call(allowed, &service.service);
    let open: Vec<&RoutedService> = fit.into_iter().filter(is_open).collect();
    if open.is_empty() {
        let message = format!("this API key may not call the model `{model}`");
        return Err(ApiError::new(StatusCode::FORBIDDEN, code::API_KEY_NOT_FOR_SERVICE, message));
    }
    Ok(open)
}

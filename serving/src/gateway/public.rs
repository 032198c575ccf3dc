//! Public API of the gateway: API keys, quotas, limits, validation, and then a worker.

use super::Gateway;
use super::forward::Admitted;
use super::keep_alive::kept_alive;
use super::quota::QuotaLeft;
use super::table::{Table, may_call};
use super::target::{InferenceTarget, StreamKind, memory_full};
use crate::memory::REQUEST_BYTES_MIN;
use crate::metrics::{self, Observation};
use crate::openai::{self, ApiError, Endpoint, InferenceRequest};
use crate::worker::{REQUEST_ID, json, no_such_method, no_such_path, request_id};
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use protocol::error_code as code;
use protocol::gateway::ApiKey;
use protocol::limits::INFERENCE_BODY_BYTES_MAX;
use std::collections::BTreeMap;
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
        let wanted = InferenceTarget::resolve(endpoint, &request, key.services, &table)?;
        observation.model(wanted.model.as_str());
        Ok(Admitted { wanted, body, charge })
    }
}

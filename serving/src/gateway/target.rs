//! Target of an inference request: the services that may answer it, and the delivery of the answer.

use super::table::{Table, may_call};
use crate::openai::{ApiError, Endpoint, InferenceRequest};
use crate::resumable::TOKENS_MAX;
use http::StatusCode;
use protocol::error_code as code;
use protocol::gateway::RoutedService;
use protocol::manifest::Task;
use protocol::{ModelName, ServiceName};
use std::collections::BTreeSet;

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
    /// Resolves the target of a request by this table, for a key that may call these services.
    ///
    /// # Errors
    /// No service of the request's task serves the model to the key.
    pub(super) fn resolve(
        endpoint: Endpoint,
        request: &InferenceRequest,
        allowed: Option<BTreeSet<ServiceName>>,
        table: &Table,
    ) -> Result<Self, ApiError> {
        let services = services(endpoint, request.model(), allowed.as_ref(), table)?;
        let model = services[0].model.clone();
        let (name, delivery) = (request.model().to_owned(), StreamKind::of(request));
        Ok(Self { endpoint, name, model, allowed, delivery })
    }

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

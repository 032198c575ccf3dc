//! A worker on plain local files, for development and measurement of engines without a cluster. It answers on
//! loopback only, without keys; a process with write access to the directory can change the model.

use super::answer::{self, json};
use super::{WorkerService, inherited};
use crate::batcher::{Batcher, BatcherLimits};
use crate::engine::{Engine, EngineOptions, LoadedEngine};
use crate::gateway::REFUSALS;
use crate::metrics;
use crate::openai::{self, ApiError};
use crate::weights::ModelFiles;
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use overlay::{CancellationToken, Limits, people};
use protocol::manifest::Task;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Configuration of a local worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the model.
    pub model_dir: PathBuf,
    /// Model name in the API; `None` uses the directory's name.
    pub model_name: Option<String>,
    /// Listening address: `127.0.0.1:0` or `fd:N`.
    pub listen: String,
    /// Task that the model must support; `None` accepts any.
    pub task: Option<Task>,
    /// Configuration of the engine.
    pub engine: EngineOptions,
    pub batcher: BatcherLimits,
}

/// Loads the model, prints its listening address as one line of JSON, and serves until `shutdown`.
///
/// # Errors
/// The address is in use or not loopback, or the model cannot be loaded.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = overlay::listen::tcp(&config.listen).await?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        bail!("{address} is not loopback: a worker on local files has no keys; put a gateway before it");
    }
    let directory = config.model_dir.canonicalize();
    let directory = directory.with_context(|| format!("open {}", config.model_dir.display()))?;
    let named = directory.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = config.model_name.clone().or(named).context("give the model a name with --model-name")?;
    let service = Arc::new(WorkerService::new(Some(name.clone())));
    let loaded = tokio::task::spawn_blocking(move || load(&config)).await?;
    service.ready(loaded.with_context(|| format!("load {}", directory.display()))?);
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "listening": address, "model": name }))?;
    tracing::info!(%address, model = name, "serving local files");
    serve(listener, service, shutdown).await
}

/// Serves a worker that answers to one model's name, as [`run`] does.
///
/// # Errors
/// The listener is unusable or not loopback.
pub async fn serve(
    listener: tokio::net::TcpListener,
    service: Arc<WorkerService>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = router(service);
    // The router bounds bodies itself, with an answer in OpenAI's format.
    let limits = Limits { request_bytes_max: usize::MAX >> 1, ..inherited::serving_limits() };
    people::serve_refusing(listener, None, limits, router, Arc::default(), REFUSALS, shutdown).await?;
    Ok(())
}

fn router(service: Arc<WorkerService>) -> Router {
    Router::new()
        .route(openai::MODELS_PATH, get(models))
        .route(openai::MODEL_PATH, get(model))
        .route(openai::OPENAPI_PATH, get(|| async { json(openai::openapi(false)) }))
        .route("/metrics", get(worker_metrics))
        .with_state(service.clone())
        .merge(answer::router(service))
        .layer(map_response(name_request))
}

/// Adds a request id, as a gateway does; OpenAI's clients show it.
async fn name_request(mut response: Response) -> Response {
    response.headers_mut().insert(answer::REQUEST_ID, answer::request_id());
    response
}

fn load(config: &Config) -> anyhow::Result<Batcher> {
    let files = ModelFiles::open_directory(&config.model_dir)?;
    let engine = LoadedEngine::open(&files, &config.engine)?;
    engine.weights().check().map_err(|error| {
        let code = error.code();
        anyhow::Error::new(error).context(code)
    })?;
    if let Some(task) = config.task {
        inherited::check_task(task, engine.frontend().operation())?;
    }
    Ok(Batcher::start(Box::new(engine), config.batcher)?)
}

async fn models(State(service): State<Arc<WorkerService>>) -> Response {
    json(openai::models(service.model().map(|name| (name, service.context_tokens_max()))))
}

async fn model(
    State(service): State<Arc<WorkerService>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::model_not_found("not UTF-8"))?;
    if service.model() != Some(name.as_str()) {
        return Err(ApiError::model_not_found(&name));
    }
    Ok(json(openai::model(&name, service.context_tokens_max())))
}

async fn worker_metrics(State(service): State<Arc<WorkerService>>) -> Response {
    metrics::text_response(metrics::worker_text(service.model().unwrap_or_default(), &service.metrics()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{openapi_paths, routes_of};

    #[test]
    fn every_route_of_a_worker_on_local_files_is_documented() {
        let service = Arc::new(WorkerService::new(Some("m".to_owned())));
        let mut routes = routes_of(&router(service));
        // For gateways and for operators.
        for path in ["/worker/v1/load", "/metrics", openai::OPENAPI_PATH] {
            assert!(routes.remove(path), "{path}");
        }
        assert_eq!(routes, openapi_paths());
    }
}

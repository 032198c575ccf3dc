//! A worker inside a node's sandbox. It inherits everything it needs: a listening unix socket for its agent,
//! the weights, their progress, a pipe for metrics, its manifest. It makes its own TLS key, in memory, and
//! never dials: its agent passes it connected sockets, and it serves HTTP/2 on them.
//!
//! It runs under a filter that denies `socket`, `connect`, `bind`, `listen`, `sendmsg` and `setsockopt`, so
//! no library here may use them. A dedicated thread waits for SIGTERM.

use super::WorkerService;
use super::agent::{self, SandboxedWorker, WorkerExit};
use crate::batcher::{Batcher, BatcherLimits};
use crate::engine::{
    DeviceChoice, Engine, EngineOptions, LoadedEngine, Operation, cache_bytes_of, tokenizer_bytes_of,
};
use crate::resumable::PREFIX_BYTES_MAX;
use crate::weights::{FileRange, ModelFiles, STALL_LIMIT, SharedLayout, Weights, WeightsError};
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use overlay::{Identity, Limits, Peer, PublicKey};
use protocol::limits::INFERENCE_BODY_BYTES_MAX;
use protocol::manifest::Task;
use protocol::order::SignedTicket;
use protocol::worker::{
    WORKER_MANIFEST_BYTES_MAX, WORKER_MANIFEST_FD, WORKER_METRICS_FD, WORKER_PROGRESS_FD, WORKER_SOCKET_FD,
    WORKER_WEIGHTS_FD, WorkerManifest,
};
use protocol::{Digest, canonical};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval between two lines of metrics for the agent.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two checks whether a terminating worker is idle.
const IDLE_CHECK: Duration = Duration::from_millis(20);
/// Longest wait of an idle worker for its connections to close: bytes in their buffers leave in milliseconds,
/// unless a gateway is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Threads for connections; the engine has its own.
const IO_THREADS: usize = 2;

/// Returns the limits of a connection that serves inference requests: an answer may take minutes.
#[must_use]
pub fn serving_limits() -> Limits {
    Limits {
        request: Duration::from_secs(600),
        request_bytes_max: INFERENCE_BODY_BYTES_MAX + PREFIX_BYTES_MAX,
        drain: Duration::from_secs(600),
        streams_max: 1024,
        ..Limits::default()
    }
}

/// Runs a sandboxed worker until SIGTERM.
///
/// # Errors
/// A descriptor is missing or is not of the expected kind.
pub fn run() -> anyhow::Result<()> {
    let terminate = SigSet::from(Signal::SIGTERM);
    // Before any thread starts: all inherit the mask, so the signal stays pending for the thread that waits
    // for it.
    terminate.thread_block().context("block SIGTERM")?;
    let manifest = read_manifest(&File::from(take_descriptor(WORKER_MANIFEST_FD)?))?;
    let weights = take_descriptor(WORKER_WEIGHTS_FD)?;
    let progress = take_descriptor(WORKER_PROGRESS_FD)?;
    let metrics = File::from(take_descriptor(WORKER_METRICS_FD)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let identity = Identity::generate()?;
    let service = Arc::new(WorkerService::new(None));
    let (name, slot, fence) = (&manifest.service, manifest.slot, manifest.fence);
    tracing::info!(service = %name, %slot, %fence, "worker starts");

    let exit = WorkerExit::default();
    let (draining, ending) = (service.clone(), exit.clone());
    std::thread::Builder::new().name("signal".to_owned()).spawn(move || {
        terminate.wait().expect("the set holds one valid signal");
        finish(&draining, &ending);
        std::process::exit(0);
    })?;
    let loading = service.clone();
    std::thread::Builder::new().name("loader".to_owned()).spawn(move || {
        match load(&manifest, &weights, &progress) {
            Ok((batcher, weights)) => {
                if let Some(class) = numeric_class(&manifest, &batcher) {
                    loading.join_class(class);
                }
                loading.ready(batcher);
                check(&weights, &loading);
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "worker cannot serve");
                loading.failed(format!("{error:#}"));
            }
        }
    })?;
    runtime.block_on(async move {
        let listener = overlay::listen::unix(&format!("fd:{WORKER_SOCKET_FD}")).await?;
        tokio::spawn(write_metrics(metrics, service.clone()));
        agent::serve_agent(listener, SandboxedWorker::new(identity, service, exit)).await;
        Ok(())
    })
}

/// Finishes all requests, then closes the connections in order, so that the last bytes of the last answer
/// leave. Until the engine and all answers are done, gateways must be able to poll for tickets.
fn finish(service: &WorkerService, exit: &WorkerExit) {
    service.drain();
    while !service.is_idle() {
        std::thread::sleep(IDLE_CHECK);
    }
    exit.closing.cancel();
    let closing = Instant::now();
    while exit.connections.count() > 0 && closing.elapsed() < CLOSE_TIMEOUT {
        std::thread::sleep(IDLE_CHECK);
    }
}

/// Takes ownership of a descriptor that the sandbox left open.
fn take_descriptor(number: i32) -> anyhow::Result<OwnedFd> {
    // SAFETY: borrowed for this one call, which fails harmlessly when the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_GETFD).with_context(|| format!("descriptor {number} is not open"))?;
    // SAFETY: it is open, it came from the parent process so nothing else here owns it, and each number is
    // taken once, at the beginning of `run`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn read_manifest(file: &File) -> anyhow::Result<WorkerManifest> {
    let length = file.metadata().context("read the worker's manifest")?.len() as usize;
    if length > WORKER_MANIFEST_BYTES_MAX {
        bail!("the worker's manifest has {length} bytes, at most {WORKER_MANIFEST_BYTES_MAX}");
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).context("read the worker's manifest")?;
    canonical::from_bytes(&bytes, WORKER_MANIFEST_BYTES_MAX).context("read the worker's manifest")
}

fn load(
    manifest: &WorkerManifest,
    weights: &OwnedFd,
    progress: &OwnedFd,
) -> anyhow::Result<(Batcher, Arc<Weights>)> {
    let layout = SharedLayout {
        files: manifest.files.iter().map(file_range).collect(),
        segments: manifest
            .segments
            .iter()
            .map(|segment| (segment.offset, u64::from(segment.length)))
            .collect(),
    };
    let files = ModelFiles::from_shared(weights, progress, &layout, STALL_LIMIT)?;
    let options = EngineOptions {
        threads: (manifest.threads as usize).max(1),
        cache_bytes_max: cache_bytes_of(manifest.memory_bytes),
        tokenizer_bytes_max: tokenizer_bytes_of(manifest.memory_bytes),
        context_tokens_max: manifest.context_tokens_max.map(|tokens| tokens as usize),
        device_bytes_max: manifest.gpu_memory_bytes,
        // Only the GPUs of its order are visible to a worker, so it uses the first.
        device: if manifest.gpus.is_empty() { DeviceChoice::Cpu } else { DeviceChoice::Cuda(0) },
    };
    let engine = LoadedEngine::open(&files, &options)?;
    check_task(manifest.task, engine.frontend().operation())?;
    let sequences_max = (manifest.batch_sequences_max as usize).max(1);
    let limits = BatcherLimits { sequences_max, ..BatcherLimits::default() };
    let weights = Arc::clone(engine.weights());
    Ok((Batcher::start(Box::new(engine), limits)?, weights))
}

/// Returns the class of workers whose answers have the same bits. Those of a GPU depend on what it computes
/// beside them, so its workers are of none.
fn numeric_class(manifest: &WorkerManifest, batcher: &Batcher) -> Option<Digest> {
    const ENGINE: &str = concat!("cpu ", env!("CARGO_PKG_VERSION"));
    let longest = batcher.sequence_tokens_max() as u64;
    let parts = canonical::to_bytes(&(manifest.root, ENGINE, longest));
    manifest.gpus.is_empty().then(|| Digest::of_domain("quorate/numeric-class/v1", &parts))
}

/// Checks the values of all weights as they arrive, beside the first requests, which check what they use. The
/// worker of damaged weights fails.
fn check(weights: &Weights, service: &WorkerService) {
    match weights.check() {
        Ok(()) => tracing::info!("all weights are numbers"),
        Err(error @ WeightsError::NotFinite { .. }) => {
            tracing::error!(code = %error.code(), %error, "worker cannot serve");
            service.failed(format!("{}: {error}", error.code()));
        }
        // The request that needs the missing bytes reports them, and may find them later.
        Err(error) => tracing::warn!(code = %error.code(), %error, "weights were not checked"),
    }
}

fn file_range(file: &protocol::model::ModelFile) -> FileRange {
    FileRange { path: file.path.clone(), offset: file.offset, length: file.length }
}

/// Checks that the model supports the task it was deployed for.
pub(crate) fn check_task(task: Task, operation: Operation) -> anyhow::Result<()> {
    let (own, does) = match operation {
        Operation::Embed => (Task::Embed, "embeds text"),
        Operation::Generate => (Task::Generate, "generates text"),
        Operation::Rerank => (Task::Rerank, "scores documents"),
    };
    if task == own {
        return Ok(());
    }
    let name = match task {
        Task::Embed => "embed",
        Task::Generate => "generate",
        Task::Rerank => "rerank",
    };
    bail!("this model {does}; the task is `{name}`")
}

/// Writes one line each second. An absent or slow reader loses lines; it never delays the worker.
async fn write_metrics(mut pipe: File, service: Arc<WorkerService>) {
    let flags = fcntl(&pipe, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let set = flags.and_then(|flags| fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)));
    if let Err(error) = set {
        tracing::error!(%error, fd = pipe.as_raw_fd(), "the metrics pipe cannot be used");
        return;
    }
    let mut ticks = tokio::time::interval(METRICS_INTERVAL);
    loop {
        ticks.tick().await;
        let mut line = serde_json::to_vec(&service.metrics()).expect("plain numbers");
        line.push(b'\n');
        // At most PIPE_BUF bytes: the write takes the whole line or nothing.
        if let Err(error) = pipe.write(&line) {
            tracing::debug!(%error, "metrics line dropped");
        }
    }
}

/// The newest ticket for each gateway.
#[derive(Debug, Clone, Default)]
pub struct Tickets(Arc<Mutex<BTreeMap<PublicKey, SignedTicket>>>);

impl Tickets {
    /// Stores `ticket` for the gateway that it names.
    pub fn put(&self, ticket: SignedTicket) {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.insert(ticket.ticket.gateway, ticket);
    }

    /// Builds the API that a gateway polls between requests: the worker's load and a fresh ticket.
    pub fn router(&self, service: Arc<WorkerService>) -> Router {
        let tickets = Router::new().route("/worker/v1/ticket", get(ticket)).with_state(self.clone());
        tickets.merge(super::answer::router(service))
    }
}

async fn ticket(State(tickets): State<Tickets>, Extension(Peer(gateway)): Extension<Peer>) -> Response {
    let tickets = tickets.0.lock().unwrap_or_else(PoisonError::into_inner);
    match tickets.get(&gateway) {
        Some(ticket) => {
            ([(header::CONTENT_TYPE, "application/cbor")], canonical::to_bytes(ticket)).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

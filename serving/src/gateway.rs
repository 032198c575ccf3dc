//! The inference gateway: routes requests of OpenAI clients to workers; it never dials.
//!
//! Workers connect to it, prove their TLS key, and present a ticket that their node signed. The gateway's own
//! agent pushes the table of workers that may serve each model, and of API keys. The gateway validates each
//! request and sends it to the least busy worker. If that worker dies before the client has received a byte,
//! the request is retried on another; after it, a stream continues on another worker whose answers have the
//! same bits. Without a worker, the request is held for a limited time.
//!
//! The gateway does not know the contents of a model and has no access to control, storage or other machines.

mod answer;
mod connection;
mod control_socket;
mod forward;
mod hold;
mod keep_alive;
mod lifetime;
mod pool;
mod public;
mod quota;
mod stream;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod ticket;

use crate::memory::Memory;
use crate::metrics::GatewayMetrics;
use crate::openai::transport_refusal;
use lifetime::Lifetimes;
use overlay::people::{KeyExchanges, ServerCertificate};
use overlay::{
    CancellationToken, Identity, Limits, LogThrottle, PeerPolicy, RefusalForm, open_files, people,
};
use pool::WorkerPool;
use protocol::TokenName;
use quota::Quotas;
use std::sync::Arc;
use std::time::Duration;
use table::Table;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

pub use hold::HOLD_TIMEOUT;
pub use ticket::TicketError;

/// Time limit for an answer to begin, and for each pause within it: a long prompt on a slow machine. A
/// shutdown and the loss of a slot cut no answer earlier.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// Largest whole answer of a worker, in bytes: 2048 embeddings of 4096 numbers as text are about 100 MB.
const ANSWER_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Limit on bodies and buffered answers, in bytes; no more than a small machine can spare. It holds two of
/// the largest answers, or 32 of the largest bodies, or 16,000 requests that wait for a worker.
const MEMORY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Connections of workers whose node is not in the table. A new node has a few workers at the same time, and
/// they wait for the table no longer than a lease.
const UNADMITTED_WORKERS_MAX: usize = 16;
/// Open files beside the connections of listeners: the control socket, the runtime's own, and evicted
/// connections that are being closed.
const OTHER_FILES: usize = 256;

/// Form of refusals that reach no route.
pub(crate) const REFUSALS: RefusalForm =
    RefusalForm { content_type: "application/json", body: transport_refusal };

/// Open sockets that the gateway receives; it opens none itself.
#[derive(Debug)]
pub struct Listeners {
    /// Listener for OpenAI clients.
    pub public: TcpListener,
    pub workers: TcpListener,
    /// Listener for the gateway's agent.
    pub control: UnixListener,
    /// Listener for Prometheus, on loopback.
    pub metrics: Option<TcpListener>,
}

/// A gateway's state, shared by all its connections.
#[derive(Debug)]
pub(crate) struct Gateway {
    identity: Identity,
    table: watch::Sender<Arc<Table>>,
    pool: WorkerPool,
    lifetimes: Lifetimes,
    quotas: Quotas,
    memory: Memory<TokenName>,
    hold_timeout: Duration,
    metrics: Arc<GatewayMetrics>,
    key_exchanges: Arc<KeyExchanges>,
    /// Throttled, because a client with any key can provoke refusals at any rate.
    refusals: LogThrottle,
}

impl Gateway {
    /// Creates a gateway without a table and without workers.
    fn new(identity: Identity, hold_timeout: Duration, memory_bytes_max: usize) -> Self {
        Self {
            identity,
            table: watch::Sender::new(Arc::default()),
            pool: WorkerPool::default(),
            lifetimes: Lifetimes::default(),
            quotas: Quotas::default(),
            memory: Memory::new(memory_bytes_max),
            hold_timeout,
            metrics: Arc::new(GatewayMetrics::new()),
            key_exchanges: Arc::default(),
            refusals: LogThrottle::default(),
        }
    }
}

/// Serves until `shutdown`, then lets answers in progress finish. A request without a worker waits for one
/// for `hold_timeout`, usually [`HOLD_TIMEOUT`].
///
/// # Errors
/// A listener is unusable, or plain HTTP was requested beyond loopback.
pub async fn serve(
    listeners: Listeners,
    identity: Identity,
    certificate: Option<ServerCertificate>,
    hold_timeout: Duration,
    shutdown: CancellationToken,
) -> Result<(), overlay::Error> {
    let gateway = Arc::new(Gateway::new(identity, hold_timeout, MEMORY_BYTES_MAX));
    let limits = [public_limits(), worker_limits(), Limits::of_operations()];
    let [public_limits, worker_limits, metrics_limits] = open_files::fit(OTHER_FILES, limits);
    // Workers stay connected until the last answer is complete.
    let workers_shutdown = CancellationToken::new();
    // A gateway needs all its listeners: if one fails, the others stop.
    let or_stop = |outcome: Result<(), overlay::Error>| outcome.inspect_err(|_| shutdown.cancel());
    let public = async {
        let _done = workers_shutdown.clone().drop_guard();
        let router = public::router(gateway.clone());
        let exchanges = gateway.key_exchanges.clone();
        let serving = people::serve_refusing(
            listeners.public,
            certificate,
            public_limits,
            router,
            exchanges,
            REFUSALS,
            shutdown.clone(),
        );
        or_stop(serving.await)
    };
    let workers = async {
        let until = workers_shutdown.clone();
        or_stop(serve_workers(listeners.workers, worker_limits, gateway.clone(), until).await)
    };
    let metrics = async {
        let until = shutdown.clone();
        or_stop(serve_metrics(listeners.metrics, metrics_limits, gateway.clone(), until).await)
    };
    let control = control_socket::serve(listeners.control, gateway.clone(), shutdown.clone());
    let (public, workers, metrics, ()) = tokio::join!(public, workers, metrics, control);
    public.and(workers).and(metrics)
}

async fn serve_workers(
    listener: TcpListener,
    limits: Limits,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
) -> Result<(), overlay::Error> {
    // Any TLS key may connect: the ticket decides.
    let identity = gateway.identity.clone();
    let ending = shutdown.clone();
    let handle =
        move |reversed, arrival| connection::admit_worker(gateway.clone(), reversed, arrival, ending.clone());
    overlay::accept_reverse_loop(listener, &identity, &PeerPolicy::any(), limits, shutdown, handle).await
}

async fn serve_metrics(
    listener: Option<TcpListener>,
    limits: Limits,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
) -> Result<(), overlay::Error> {
    let Some(listener) = listener else { return Ok(()) };
    let router = public::operations_router(gateway);
    people::serve(listener, None, limits, router, Arc::default(), shutdown).await
}

fn worker_limits() -> Limits {
    Limits {
        request: ANSWER_TIMEOUT,
        body_idle: ANSWER_TIMEOUT,
        response_bytes_max: ANSWER_BYTES_MAX,
        streams_max: 1024,
        unadmitted_max: UNADMITTED_WORKERS_MAX,
        ..Limits::default()
    }
}

fn public_limits() -> Limits {
    Limits {
        request: ANSWER_TIMEOUT + Duration::from_secs(5),
        drain: ANSWER_TIMEOUT,
        // The router bounds bodies itself, with an answer in OpenAI's format.
        request_bytes_max: usize::MAX >> 1,
        connections_max: 4096,
        handshakes_max: 256,
        ..Limits::default()
    }
}

//! The gateway: OpenAI clients on one side, workers on the other, and nobody it could dial.
//!
//! Workers connect to it, prove their TLS key, and show a ticket that their node signed; the gateway's own
//! agent hands it the table of who may serve what and which API keys exist. A request is validated here, put
//! on the least busy worker, put on another one when that worker dies before the client has seen a byte, and
//! held for a moment when there is none.
//!
//! Not here: what a model is or does, and any way to control, storage or other machines.

mod connection;
mod control_socket;
mod forward;
mod lifetime;
mod patience;
mod pool;
mod public;
mod quota;
mod table;
#[cfg(test)]
mod tests;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use overlay::people::{Certificate, KeyExchanges};
use overlay::{CancellationToken, Identity, Limits, LogThrottle, PeerPolicy, open_files, people};
use protocol::TokenName;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::memory::Memory;
use crate::metrics::GatewayMetrics;
use lifetime::Lifetimes;
use pool::Pool;
use quota::Quotas;
use table::Table;

pub use patience::PATIENCE;
pub use ticket::TicketError;

/// How long an orderly end waits for answers under way.
const DRAIN: Duration = Duration::from_secs(30);
/// How long an answer may take to begin, and to go on: a long prompt on a slow machine.
const ANSWER: Duration = Duration::from_secs(600);
/// Largest whole answer of a worker: 2048 embeddings of 4096 numbers as text are about 100 MB.
const ANSWER_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of bodies and of buffered answers in all: two of the largest answers, or 32 of the largest bodies, or
/// 16,000 requests that wait for a worker; and no more than a small machine can spare.
const MEMORY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Connections of workers whose node the table does not name: a new node has a few workers at once, and they wait
/// for the table no longer than a lease.
const UNADMITTED_WORKERS_MAX: usize = 16;
/// Open files beside the connections of listeners: the control socket, the runtime's own, and connections that
/// were evicted and are being closed.
const OTHER_FILES: usize = 256;

/// Everything a gateway is given; it opens nothing itself.
#[derive(Debug)]
pub struct Listeners {
    /// OpenAI clients.
    pub public: TcpListener,
    /// Workers.
    pub workers: TcpListener,
    /// The gateway's agent.
    pub control: UnixListener,
    /// Prometheus, on loopback.
    pub metrics: Option<TcpListener>,
}

/// A gateway's state, shared by all its connections.
#[derive(Debug)]
pub(crate) struct Gateway {
    identity: Identity,
    table: watch::Sender<Arc<Table>>,
    pool: Pool,
    lifetimes: Lifetimes,
    quotas: Quotas,
    memory: Memory<TokenName>,
    patience: Duration,
    metrics: Arc<GatewayMetrics>,
    key_exchanges: Arc<KeyExchanges>,
    /// Any key can have its ticket refused, as often as it likes.
    refusals: LogThrottle,
}

impl Gateway {
    /// A gateway that knows no table and no worker.
    fn new(identity: Identity, patience: Duration, memory_bytes_max: usize) -> Self {
        Self {
            identity,
            table: watch::Sender::new(Arc::default()),
            pool: Pool::default(),
            lifetimes: Lifetimes::default(),
            quotas: Quotas::default(),
            memory: Memory::new(memory_bytes_max),
            patience,
            metrics: Arc::new(GatewayMetrics::new()),
            key_exchanges: Arc::default(),
            refusals: LogThrottle::default(),
        }
    }
}

/// Serves until `shutdown`, then lets answers under way end. A request that finds no worker waits for one as long
/// as `patience`, usually [`PATIENCE`].
///
/// # Errors
/// A listener is unusable, or plain HTTP was asked for beyond loopback.
pub async fn serve(
    listeners: Listeners,
    identity: Identity,
    certificate: Option<Certificate>,
    patience: Duration,
    shutdown: CancellationToken,
) -> Result<(), overlay::Error> {
    let gateway = Arc::new(Gateway::new(identity, patience, MEMORY_BYTES_MAX));
    let limits = [public_limits(), worker_limits(), Limits::of_operations()];
    let [public_limits, worker_limits, metrics_limits] = open_files::fit(OTHER_FILES, limits);
    // Workers stay connected until the last answer is out.
    let workers_shutdown = CancellationToken::new();
    // A gateway without one of its listeners is none: whichever fails ends the others.
    let or_stop = |outcome: Result<(), overlay::Error>| outcome.inspect_err(|_| shutdown.cancel());
    let public = async {
        let _done = workers_shutdown.clone().drop_guard();
        let router = public::router(gateway.clone());
        let exchanges = gateway.key_exchanges.clone();
        let serving =
            people::serve(listeners.public, certificate, public_limits, router, exchanges, shutdown.clone());
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
    // Whose key it is says nothing yet: the ticket does.
    let identity = gateway.identity.clone();
    let ending = shutdown.clone();
    let handle =
        move |reversed, arrival| connection::attend(gateway.clone(), reversed, arrival, ending.clone());
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
        request: ANSWER,
        body_idle: ANSWER,
        response_bytes_max: ANSWER_BYTES_MAX,
        streams_max: 1024,
        unadmitted_max: UNADMITTED_WORKERS_MAX,
        ..Limits::default()
    }
}

fn public_limits() -> Limits {
    Limits {
        request: ANSWER + Duration::from_secs(5),
        drain: DRAIN,
        // The router bounds bodies itself, with an answer in OpenAI's shape.
        request_bytes_max: usize::MAX >> 1,
        connections_max: 4096,
        handshakes_max: 256,
        ..Limits::default()
    }
}

//! Tests of the gateway in simulated time: its router, pool, tickets, forwarding and memory, with simulated
//! workers over in-memory HTTP/2. No test waits for real time, a socket or a thread, so every run is the
//! same.
//!
//! A request's `user` field scripts its worker's behaviour (see [`Act`]).

mod autonomy;
mod keep_alive;
mod memory;
mod parsing;
mod streams;
mod suspects;
mod tickets;

use super::connection::{admit, serve_worker};
use super::{Gateway, HOLD_TIMEOUT, public, table::Table, worker_limits};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use overlay::{CancellationToken, Channel, Identity};
use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService};
use protocol::limits::LEASE_MS;
use protocol::manifest::Task;
use protocol::order::{SignedTicket, TICKET_DOMAIN, Ticket};
use protocol::worker::{WorkerLoad, WorkerMetrics, WorkerState};
use protocol::{BootTime, Digest, Fence, NodeId, SlotIndex, canonical};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt;

/// Slots of the simulated service.
const SLOTS: u32 = 8;
/// Boot clock of the simulated node when a simulation begins.
const BOOTTIME_MS: u64 = 77_000;

/// A gateway in simulated time.
pub(super) struct Simulation {
    pub(super) gateway: Arc<Gateway>,
    router: Router,
    node: Identity,
    began: Instant,
    workers: AtomicU32,
    /// Numeric class that the next worker reports.
    class: Mutex<Option<Digest>>,
}

/// A client's answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Returns the stable code of an error, or an empty string.
    pub(super) fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Simulation {
    /// Creates a gateway with a table, and with this memory limit for requests.
    pub(super) fn new(memory_bytes_max: usize) -> Arc<Self> {
        let gateway = Arc::new(Gateway::new(Identity::from_seed(&[1; 32]), HOLD_TIMEOUT, memory_bytes_max));
        let node = Identity::from_seed(&[2; 32]);
        let simulation = Self {
            router: public::router(gateway.clone()),
            gateway,
            node,
            began: Instant::now(),
            workers: AtomicU32::new(0),
            class: Mutex::default(),
        };
        simulation.push(1, Fence::new(1, 1));
        Arc::new(simulation)
    }

    /// Pushes a table that has all slots under this fence.
    pub(super) fn push(&self, version: u64, fence: Fence) {
        let node = NodeId(self.node.public_key());
        let route = |slot| Route { slot: SlotIndex(slot), fence, node, draining: false };
        let service = RoutedService {
            service: "chat".parse().expect("a name"),
            model: "echo".parse().expect("a name"),
            task: Task::Generate,
            routes: (0..SLOTS).map(route).collect(),
        };
        let key = |name: &str, requests_per_minute| ApiKey {
            name: name.parse().expect("a name"),
            hash: Digest::of(name.as_bytes()),
            services: None,
            requests_per_minute,
        };
        let api_keys = vec![key("app", None), key("other", None), key("scarce", Some(2))];
        let table = RouteTable { version, services: vec![service], api_keys };
        self.gateway.table.send_replace(Arc::new(Table::new(table).expect("valid")));
    }

    /// Issues a ticket under a lease that begins now.
    fn ticket(&self, worker: &Identity, slot: u32) -> SignedTicket {
        let boot = BootTime(BOOTTIME_MS + self.began.elapsed().as_millis() as u64);
        let ticket = Ticket {
            service: "chat".parse().expect("a name"),
            slot: SlotIndex(slot),
            fence: Fence::new(1, 1),
            node: NodeId(self.node.public_key()),
            worker: worker.public_key(),
            gateway: self.gateway.identity.public_key(),
            expires_at: crate::worker::now().plus(LEASE_MS),
            lease_until_boottime_ms: boot.plus(LEASE_MS),
        };
        let signature = self.node.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
        SignedTicket { ticket, signature }
    }

    /// Connects a worker and waits until it receives requests.
    pub(super) async fn worker(self: &Arc<Self>) -> Arc<Worker> {
        let worker = self.connect(None).await;
        while !self
            .gateway
            .pool
            .links()
            .iter()
            .any(|link| link.channel.peer() == worker.key() && !link.is_loading())
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        worker
    }

    /// Connects a worker; `load` answers polls for its load, unless it must be ready immediately.
    pub(super) async fn connect(self: &Arc<Self>, load: Option<fn(Arc<Worker>) -> Body>) -> Arc<Worker> {
        let slot = self.workers.fetch_add(1, Ordering::Relaxed);
        let worker = Arc::new(Worker {
            identity: Identity::from_seed(&[10 + slot as u8; 32]),
            slot,
            simulation: Arc::downgrade(self),
            dead: CancellationToken::new(),
            is_renewed: true.into(),
            load,
            class: *self.class.lock().expect("whole"),
            fault: Mutex::default(),
            resumable: Mutex::default(),
            in_flight: AtomicU32::new(0),
            begun: Mutex::default(),
            received: Mutex::default(),
            at_death: AtomicU32::new(u32::MAX),
            sent: AtomicU64::new(0),
        });
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(worker.clone().serve(theirs));
        let channel = Channel::over(worker.key(), ours, worker_limits()).await.expect("HTTP/2 in memory");
        let preface = canonical::to_bytes(&self.ticket(&worker.identity, slot));
        let (signed, lapses_at) =
            admit(&self.gateway, worker.key(), &preface, |_| true).await.expect("admitted");
        let gateway = self.gateway.clone();
        tokio::spawn(async move {
            serve_worker(&gateway, channel, signed, lapses_at, CancellationToken::new()).await;
        });
        worker
    }

    /// Sends a completion that scripts its worker.
    pub(super) async fn ask(&self, key: &str, act: Act, more: &str) -> Answer {
        let body = format!(r#"{{"model": "echo", "prompt": "x", "user": "{}"{more}}}"#, act.script());
        self.send(key, Body::from(body)).await
    }

    /// Sends any completion, and reads the answer. The pool keeps its invariants at each step of the way.
    pub(super) async fn send(&self, key: &str, body: Body) -> Answer {
        let (status, headers, body) = self.begin(key, body).await;
        assert_eq!(self.gateway.pool.check_invariants(), Ok(()));
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        assert_eq!(self.gateway.pool.check_invariants(), Ok(()));
        Answer { status, headers, body }
    }

    /// Sends any completion; the answer's body is not read.
    pub(super) async fn begin(&self, key: &str, body: Body) -> (StatusCode, HeaderMap, Body) {
        let request = Request::post("/v1/completions").header("authorization", format!("Bearer {key}"));
        let request = request.body(body).expect("valid");
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (head, body) = response.into_parts();
        (head.status, head.headers, body)
    }
}

/// Scripted reaction of a worker to a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// Answers after this many milliseconds.
    Answer(u64),
    /// Streams: the first chunk after as many milliseconds, then for as many.
    Stream(u64, u64),
    /// Kills its worker after as many milliseconds.
    Kill(u64),
    /// Answers immediately with this many bytes.
    Large(usize),
    /// Streams this many tokens in frames; a worker that dies does so after as many bytes.
    Frames(usize, usize),
}

impl Act {
    fn script(self) -> String {
        match self {
            Self::Answer(after) => format!("answer {after} 0"),
            Self::Stream(after, lasts) => format!("stream {after} {lasts}"),
            Self::Kill(after) => format!("kill {after} 0"),
            Self::Large(bytes) => format!("large {bytes} 0"),
            Self::Frames(tokens, bytes) => format!("frames {tokens} {bytes}"),
        }
    }

    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).expect("the gateway has parsed it");
        let script = body["user"].as_str().unwrap_or("answer 0 0").to_owned();
        let words: Vec<&str> = script.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().expect("a number");
        match words[0] {
            "stream" => Self::Stream(number(1), number(2)),
            "kill" => Self::Kill(number(1)),
            "large" => Self::Large(number(1) as usize),
            "frames" => Self::Frames(number(1) as usize, number(2) as usize),
            _ => Self::Answer(number(1)),
        }
    }
}

/// A simulated worker.
pub(super) struct Worker {
    identity: Identity,
    slot: u32,
    simulation: std::sync::Weak<Simulation>,
    dead: CancellationToken,
    is_renewed: std::sync::atomic::AtomicBool,
    load: Option<fn(Arc<Worker>) -> Body>,
    class: Option<Digest>,
    /// Misbehaviour in streams of frames.
    fault: Mutex<Option<streams::StreamFault>>,
    /// The newest request's header that asks for frames.
    resumable: Mutex<Option<http::HeaderValue>>,
    in_flight: AtomicU32,
    /// Number of other requests in flight when each request arrived, in order.
    begun: Mutex<Vec<u32>>,
    /// The newest request's body.
    received: Mutex<Bytes>,
    /// Number of other requests in flight when the worker died.
    at_death: AtomicU32,
    /// Bytes of its load that the gateway has read.
    pub(super) sent: AtomicU64,
}

impl Worker {
    fn key(&self) -> overlay::PublicKey {
        self.identity.public_key()
    }

    /// Returns the number of other requests in flight at the worker's death, if it died.
    pub(super) fn death(&self) -> Option<u32> {
        self.dead.is_cancelled().then(|| self.at_death.load(Ordering::Relaxed))
    }

    /// Returns the requests in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns, for each request, the number of others in flight when it arrived.
    pub(super) fn others_on_arrival(&self) -> Vec<u32> {
        self.begun.lock().expect("whole").clone()
    }

    /// Returns the body of the newest request, as it arrived.
    pub(super) fn received(&self) -> Bytes {
        self.received.lock().expect("whole").clone()
    }

    /// Stops the renewal of the ticket by the node.
    pub(super) fn lapse(&self) {
        self.is_renewed.store(false, Ordering::Relaxed);
    }

    /// Kills the worker, as `kill -9` does.
    pub(super) fn kill(&self) {
        self.at_death.store(self.in_flight().saturating_sub(1), Ordering::Relaxed);
        self.dead.cancel();
    }

    async fn serve(self: Arc<Self>, stream: tokio::io::DuplexStream) {
        let router = Router::new()
            .route("/worker/v1/load", get(load))
            .route("/worker/v1/ticket", get(ticket))
            .route("/v1/completions", post(complete))
            .layer(DefaultBodyLimit::disable())
            .with_state(self.clone());
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::select! {
            _ = connection => {}
            () = self.dead.cancelled() => {}
        }
    }
}

async fn load(State(worker): State<Arc<Worker>>) -> axum::response::Response {
    if let Some(load) = worker.load {
        return axum::response::Response::new(load(worker));
    }
    let (state, metrics) = (WorkerState::Ready, WorkerMetrics::default());
    let context_tokens_max = Some(4096 + worker.slot);
    let load = WorkerLoad { state, metrics, context_tokens_max, numeric_class: worker.class };
    axum::response::IntoResponse::into_response(Json(load))
}

async fn ticket(State(worker): State<Arc<Worker>>) -> Result<Vec<u8>, StatusCode> {
    let simulation = worker.simulation.upgrade().ok_or(StatusCode::NOT_FOUND)?;
    if !worker.is_renewed.load(Ordering::Relaxed) {
        return Err(StatusCode::NOT_FOUND);
    }
    Ok(canonical::to_bytes(&simulation.ticket(&worker.identity, worker.slot)))
}

/// Counts a request while it is on its worker.
struct InFlight(Arc<Worker>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn complete(
    State(worker): State<Arc<Worker>>,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    let (begun, body) = streams::BegunStream::read(&headers, body);
    *worker.resumable.lock().expect("whole") = headers.get(crate::resumable::RESUMABLE).cloned();
    let others = worker.in_flight.fetch_add(1, Ordering::Relaxed);
    worker.begun.lock().expect("whole").push(others);
    *worker.received.lock().expect("whole") = body.clone();
    let in_flight = InFlight(worker.clone());
    let after = |milliseconds| tokio::time::sleep(Duration::from_millis(milliseconds));
    let body = match Act::read(&body) {
        Act::Answer(wait) => {
            after(wait).await;
            Body::from(r#"{"done": true}"#)
        }
        Act::Large(bytes) => Body::from(vec![b'x'; bytes]),
        Act::Frames(tokens, bytes) => return begun.answer(worker, in_flight, tokens, bytes),
        Act::Kill(wait) => {
            after(wait).await;
            worker.kill();
            std::future::pending().await
        }
        Act::Stream(wait, lasts) => {
            let chunks = futures::stream::iter([wait, lasts]).then(move |wait| {
                let _held = &in_flight;
                async move {
                    after(wait).await;
                    Ok::<_, Infallible>(Bytes::from_static(b"data: piece\n\n"))
                }
            });
            // Moved in, so that the request counts until its stream has ended.
            return axum::response::Response::new(Body::from_stream(chunks));
        }
    };
    drop(in_flight);
    axum::response::Response::new(body)
}

//! Test cluster: a gateway and its workers in one process, over real sockets, with real TLS, HTTP/2 and
//! tickets. The engines are simulated (`engine::simulated`): they repeat their input.
//!
//! The clock of gateway, workers and clients is paused, and a task of the same runtime advances it in small
//! steps ([`Ticking`]). Time therefore stands still while this process does. On a busy machine no lease
//! expires and no wait times out that would not on an idle one.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use overlay::descriptors::{FrameReceiver, FrameSender};
use overlay::{CancellationToken, Identity, reverse_serve};
use protocol::gateway::{ApiKey, Route, RouteTable, RoutedService, TableAccepted};
use protocol::limits::LEASE_MS;
use protocol::manifest::Task;
use protocol::order::{SignedTicket, TICKET_DOMAIN, Ticket};
use protocol::{BootTime, Digest, Fence, Millis, NodeId, SlotIndex, canonical};
use serving::batcher::{Batcher, BatcherLimits, BatcherSnapshot};
use serving::engine::simulated::SimulatedEngine;
use serving::gateway::{self, Listeners};
use serving::worker::{Tickets, WorkerService, serving_limits};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

pub(crate) const KEY: &str = "qk-test-key";
pub(crate) const SCARCE_KEY: &str = "qk-two-a-minute";
/// Longest wait in these tests, by the simulated clock.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Real time after which a test counts as hung.
const HUNG: Duration = Duration::from_secs(300);

/// Advance of the paused clock: a step of simulated time, then a pause of real time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticking {
    step: Duration,
    pause: Duration,
}

impl Ticking {
    /// Faster than real time, for tests that wait for this process only.
    pub(crate) const FAST: Self = Self { step: Duration::from_millis(5), pause: Duration::from_millis(1) };
    /// Five times slower than real time, for tests in which another process has to keep up.
    pub(crate) const SLOW: Self = Self { step: Duration::from_millis(1), pause: Duration::from_millis(5) };

    /// Advances the clock until the sender is dropped. The clock does not advance otherwise: a runtime with a
    /// running blocking task does not skip to its next timer.
    fn start(self) -> std::sync::mpsc::Sender<()> {
        let (sender, stopped) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            let _ = stopped.recv();
        });
        tokio::spawn(async move {
            loop {
                tokio::task::spawn_blocking(move || std::thread::sleep(self.pause)).await.expect("it sleeps");
                tokio::time::advance(self.step).await;
            }
        });
        sender
    }
}

/// A running gateway and its clients' state.
pub(crate) struct Cluster {
    pub(crate) public: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) workers: SocketAddr,
    pub(crate) gateway: Identity,
    pub(crate) node: Identity,
    agent: Mutex<(FrameSender, FrameReceiver)>,
    client: Client<HttpConnector, Full<Bytes>>,
    version: AtomicU64,
    shutdown: CancellationToken,
    _ticking: std::sync::mpsc::Sender<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Cluster {
    /// Starts a gateway without a table and without workers, which holds requests only briefly.
    pub(crate) async fn bare() -> Self {
        Self::patient(Duration::from_millis(100)).await
    }

    /// Starts a gateway without a table and without workers, whose requests wait this long for one.
    pub(crate) async fn patient(patience: Duration) -> Self {
        Self::ticking(Ticking::FAST, patience).await
    }

    async fn ticking(ticking: Ticking, patience: Duration) -> Self {
        let ticking = ticking.start();
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("gateway.sock");
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            public: bind().await.expect("a port"),
            workers: bind().await.expect("a port"),
            control: UnixListener::bind(&socket).expect("a socket"),
            metrics: Some(bind().await.expect("a port")),
        };
        let address = |listener: &TcpListener| listener.local_addr().expect("bound");
        let (public, workers) = (address(&listeners.public), address(&listeners.workers));
        let metrics = address(listeners.metrics.as_ref().expect("just made"));
        let gateway = Identity::generate().expect("randomness");
        let shutdown = CancellationToken::new();
        tokio::spawn(gateway::serve(listeners, gateway.clone(), None, patience, shutdown.clone()));
        let agent = UnixStream::connect(&socket).await.expect("the gateway listens");
        Self {
            public,
            metrics,
            workers,
            gateway,
            node: Identity::generate().expect("randomness"),
            agent: Mutex::new(overlay::descriptors::channel(agent)),
            client: Client::builder(TokioExecutor::new()).build_http(),
            version: AtomicU64::new(0),
            shutdown,
            _ticking: ticking,
            _directory: directory,
        }
    }

    /// Starts a gateway whose table has `chat` (model `echo`) and `embed` (model `counter`) with two slots
    /// each.
    pub(crate) async fn start() -> Self {
        Self::bare().await.with_table().await
    }

    /// Starts the same gateway for workers in separate processes.
    pub(crate) async fn slow() -> Self {
        Self::ticking(Ticking::SLOW, PATIENCE).await.with_table().await
    }

    async fn with_table(self) -> Self {
        let cluster = self;
        let table = cluster.table(Fence::new(1, 1));
        cluster.push(table).await;
        cluster
    }

    /// Returns the next table, with all slots on this cluster's node under `fence`.
    pub(crate) fn table(&self, fence: Fence) -> RouteTable {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let node = NodeId(self.node.public_key());
        let route = |slot| Route { slot: SlotIndex(slot), fence, node, draining: false };
        let service = |name: &str, model: &str, task| RoutedService {
            service: name.parse().expect("a name"),
            model: model.parse().expect("a name"),
            task,
            routes: vec![route(0), route(1)],
        };
        let key = |name: &str, text: &str, requests_per_minute| ApiKey {
            name: name.parse().expect("a name"),
            hash: Digest::of(text.as_bytes()),
            services: None,
            requests_per_minute,
        };
        RouteTable {
            version,
            services: vec![
                service("chat", "echo", Task::Generate),
                service("embed", "counter", Task::Embed),
                service("judge", "sharer", Task::Rerank),
            ],
            api_keys: vec![key("app", KEY, None), key("scarce", SCARCE_KEY, Some(2))],
        }
    }

    /// Pushes a table as the agent does.
    pub(crate) async fn push(&self, table: RouteTable) -> TableAccepted {
        let (sender, receiver) = &mut *self.agent.lock().await;
        sender.send(&table, &[]).await.expect("the gateway takes tables");
        receiver.receive().await.expect("an answer").expect("not the end").0
    }

    /// Returns a ticket as this cluster's node makes it for its gateway.
    pub(crate) fn ticket(&self, worker: &Identity, service: &str, slot: u32) -> Ticket {
        Ticket {
            service: service.parse().expect("a name"),
            slot: SlotIndex(slot),
            fence: Fence::new(1, 1),
            node: NodeId(self.node.public_key()),
            worker: worker.public_key(),
            gateway: self.gateway.public_key(),
            expires_at: now().plus(LEASE_MS),
            lease_until_boottime_ms: boot_time().plus(LEASE_MS),
        }
    }

    /// Connects a worker with a valid ticket, renewed while the worker is kept, and waits until the gateway
    /// knows that it is ready.
    pub(crate) async fn worker(&self, service: &str, slot: u32, engine: SimulatedEngine) -> Worker {
        let before = self.ready().await;
        let mut worker =
            self.outsider(engine, |worker| self.signed(self.ticket(worker, service, slot))).await;
        let (node, tickets) = (self.node.clone(), worker.tickets.clone());
        let ticket = self.ticket(&worker.identity, service, slot);
        worker.renewing = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(250)).await;
                tickets.put(signed_by(&node, renewed(&ticket)));
            }
        }));
        eventually("the worker is ready", async || self.ready().await > before).await;
        worker
    }

    /// Connects a worker with a ticket of the caller's making.
    pub(crate) async fn outsider(
        &self,
        engine: SimulatedEngine,
        ticket: impl Fn(&Identity) -> SignedTicket,
    ) -> Worker {
        let identity = Identity::generate().expect("randomness");
        let ticket = ticket(&identity);
        self.connect(identity, engine, ticket).await
    }

    /// Connects a worker with this key and ticket and a loaded model.
    pub(crate) async fn connect(
        &self,
        identity: Identity,
        engine: SimulatedEngine,
        ticket: SignedTicket,
    ) -> Worker {
        let worker = self.connect_loading(identity, engine, ticket).await;
        worker.load();
        worker
    }

    /// Connects a worker with this key and ticket, whose model is still loading.
    pub(crate) async fn connect_loading(
        &self,
        identity: Identity,
        engine: SimulatedEngine,
        ticket: SignedTicket,
    ) -> Worker {
        let batcher = Batcher::start(Box::new(engine), BatcherLimits::default()).expect("a thread");
        let service = Arc::new(WorkerService::new(None));
        let tickets = Tickets::default();
        tickets.put(ticket.clone());
        let tcp = TcpStream::connect(self.workers).await.expect("the gateway listens");
        tcp.set_nodelay(true).expect("tcp");
        let preface = Bytes::from(canonical::to_bytes(&ticket));
        let router = tickets.router(service.clone());
        let (own, gateway) = (identity.clone(), self.gateway.public_key());
        let connection = tokio::spawn(async move {
            let never = CancellationToken::new();
            let _ = reverse_serve(tcp, &own, gateway, preface, serving_limits(), router, never).await;
        });
        Worker { identity, service, batcher, tickets, connection, renewing: None }
    }

    /// Signs a ticket as this cluster's node.
    pub(crate) fn signed(&self, ticket: Ticket) -> SignedTicket {
        signed_by(&self.node, ticket)
    }

    /// Returns the number of workers in the pool, from the metrics.
    pub(crate) async fn connected(&self) -> u64 {
        self.count("quorate_workers").await
    }

    /// Returns the number of workers in the pool whose model is loaded, from the metrics.
    pub(crate) async fn ready(&self) -> u64 {
        self.count("quorate_workers_ready").await
    }

    async fn count(&self, gauge: &str) -> u64 {
        let models = ["echo", "counter", "sharer"].map(|model| format!("{gauge}{{model_name=\"{model}\"}}"));
        let metrics = self.metrics().await;
        models.iter().map(|name| metrics.get(name).copied().unwrap_or(0.0) as u64).sum()
    }

    /// Returns all metrics by name and labels.
    pub(crate) async fn metrics(&self) -> BTreeMap<String, f64> {
        let request = Request::get(format!("http://{}/metrics", self.metrics)).body(Full::default());
        let response = self.client.request(request.expect("valid")).await.expect("an answer");
        let text = String::from_utf8(whole(response).await.1.to_vec()).expect("text");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    /// Sends a request with the valid key.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.request(Method::POST, path, Some(KEY), body).await
    }

    /// Sends any request.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.public));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body.into())).expect("valid");
        self.client.request(request).await.expect("an answer")
    }

    /// Sends a request and reads a JSON answer.
    pub(crate) async fn json(&self, path: &str, body: &str) -> (StatusCode, serde_json::Value) {
        let (status, body) = whole(self.post(path, body.to_owned()).await).await;
        (status, serde_json::from_slice(&body).expect("JSON"))
    }
}

/// A worker that a test can end at any moment.
pub(crate) struct Worker {
    pub(crate) identity: Identity,
    pub(crate) service: Arc<WorkerService>,
    pub(crate) tickets: Tickets,
    batcher: Batcher,
    connection: JoinHandle<()>,
    renewing: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.renewing.iter().for_each(JoinHandle::abort);
    }
}

/// Signs a ticket as this node.
pub(crate) fn signed_by(node: &Identity, ticket: Ticket) -> SignedTicket {
    let signature = node.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
    SignedTicket { ticket, signature }
}

/// Returns the same ticket under a fresh lease.
pub(crate) fn renewed(ticket: &Ticket) -> Ticket {
    let (expires_at, lease_until_boottime_ms) = (now().plus(LEASE_MS), boot_time().plus(LEASE_MS));
    Ticket { expires_at, lease_until_boottime_ms, ..ticket.clone() }
}

impl Worker {
    /// Finishes the loading of the model.
    pub(crate) fn load(&self) {
        self.service.ready(self.batcher.clone());
    }

    /// Aborts the connection without a close, as `kill -9` does.
    pub(crate) fn kill(&self) {
        self.connection.abort();
    }

    /// Reports whether the gateway has closed the connection.
    pub(crate) fn is_left(&self) -> bool {
        self.connection.is_finished()
    }

    /// Returns the counters of the engine's batcher.
    pub(crate) fn snapshot(&self) -> BatcherSnapshot {
        self.batcher.snapshot()
    }
}

/// Waits until `level` holds.
pub(crate) async fn eventually(what: &str, mut level: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !level().await {
        assert!(began.elapsed() < HUNG, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads a whole answer.
pub(crate) async fn whole(response: Response<Incoming>) -> (StatusCode, Bytes) {
    let status = response.status();
    (status, response.into_body().collect().await.expect("a whole body").to_bytes())
}

/// Returns the events of a stream, as clients do: without the comments in its silences.
pub(crate) fn events_of(stream: &str) -> impl Iterator<Item = &str> {
    stream.split_terminator("\n\n").filter(|event| !event.starts_with(':'))
}

/// Reads the data of a stream's events.
pub(crate) async fn events(response: Response<Incoming>) -> Vec<String> {
    let (status, body) = whole(response).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let text = String::from_utf8(body.to_vec()).expect("text");
    events_of(&text).map(|event| event.strip_prefix("data: ").expect("an event").to_owned()).collect()
}

/// Builds a chat of one message.
pub(crate) fn chat(content: &str, more: &str) -> String {
    let content = serde_json::Value::from(content);
    format!(r#"{{"model": "echo", "messages": [{{"role": "user", "content": {content}}}]{more}}}"#)
}

/// Returns the node's boot clock: any clock at the speed of the gateway's is suitable.
fn boot_time() -> BootTime {
    static FIRST: OnceLock<tokio::time::Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(tokio::time::Instant::now);
    BootTime(77_000 + tokio::time::Instant::now().saturating_duration_since(first).as_millis() as u64)
}

pub(crate) fn now() -> Millis {
    Millis(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64)
}

/// Returns an engine that repeats indefinitely: an answer would take a week.
pub(crate) fn endless() -> SimulatedEngine {
    SimulatedEngine::decoder(1 << 30, 1 << 31).without_end().with_step_time(Duration::from_millis(1))
}

/// Returns an engine that repeats its input; each token takes `step`.
pub(crate) fn echo(step: Duration) -> SimulatedEngine {
    SimulatedEngine::decoder(256, 4096).with_step_time(step)
}

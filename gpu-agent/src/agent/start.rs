//! Startup and shutdown of an agent: its files, the sandboxes of its predecessor, and its services.

use super::access::AccessFile;
use super::actor::{AgentActor, Incarnation};
use super::chain::Chain;
use super::config::AgentConfig;
use super::control_client::AgentControlClient;
use super::core::{OrderBook, SlotKey, TrustedTime, halt_on};
use super::drain::Drain;
use super::error::AgentError;
use super::gangs::{Gangs, stream_handler};
use super::gateway::{self, GatewayStatus, StopRequests};
use super::halts::HaltFile;
use super::jobs::areas::JobAreas;
use super::jobs::lines::RankLines;
use super::jobs::slot_logs::LogStorage;
use super::jobs::trees::ArtifactTrees;
use super::jobs::{JobFile, JobSlots};
use super::last_answer::LastAnswerFile;
use super::lease::Lease;
use super::logs::LogQueue;
use super::models::Models;
use super::node::Node;
use super::orders::OrderFile;
use super::prometheus::{self, Numbers};
use super::resources::OfferedResources;
use super::{admin, slot, storage};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use host::random::random_bytes;
use host::{DirectoryLock, files};
use model_store::ShardService;
use overlay::{CancellationToken, Limits, open_files};
use protocol::NodeId;
use sandbox::Running;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

/// Open files besides the connections of listeners. These are a dozen for each worker, files and connections
/// of model loads, the stores, the admin socket and the chain.
const OTHER_FILES: usize = 1024;
/// Maximum number of an operator's orders and halts that wait for a verdict.
const INJECTED_MAX: usize = 8;

/// Runs a node's agent until `shutdown`; then it ends its slots in an orderly way, and its gateway. If a
/// drain is requested before, the streams of both finish first. Needs a multi-threaded tokio runtime.
///
/// # Errors
/// [`AgentError`], if the agent cannot start or a listener fails.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    Prepared::new(config).await?.run(shutdown).await
}

/// An agent that has read its files and found its sandboxes.
pub(super) struct Prepared {
    directory: PathBuf,
    lock: DirectoryLock,
    pub(super) node: Arc<Node>,
    actor: AgentActor,
    services: Services,
    drain: Drain,
}

impl Prepared {
    pub(super) async fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let directory = config.directory.clone();
        files::private_directory(&directory).map_err(AgentError::during("create", &directory))?;
        let lock = lock(&directory)?;
        let chain = Chain::open(directory.join("chain"), config.genesis.clone(), config.circle)?;
        let id = NodeId(config.identity.public_key());
        let (orders, book) = OrderFile::open(directory.join("orders"), &chain, id)?;
        let (job_file, job_book) = JobFile::open(directory.join("jobs"), config.circle, id)?;
        let halts = HaltFile::open(directory.join("halts"), config.circle)?;
        let access = AccessFile::open(directory.join("access"), config.circle)?;
        let (clock, replicas) = (config.clock, chain.state().control());
        let path = directory.join("last-answer");
        let (last_answer, predecessor) = LastAnswerFile::open(path, config.circle, id, &clock);
        let heard_at = predecessor.as_ref().map(|answer| answer.heard_at);
        let control = AgentControlClient::new(config.control, &config.identity, replicas, clock.clone())?;
        let (control, drain) = (Arc::new(control), Drain::new(config.drain, config.gateway.is_some()));
        let (circle, circles) = watch::channel(chain.shared_state());
        let name = config.admission.name.clone();
        let stores = config.storage.as_ref().map_or_else(BTreeMap::new, |storage| storage.stores.clone());
        let context = storage::context(&config.identity, name, stores, circles);
        let node = Arc::new(Node {
            gangs: Gangs::new(config.identity.clone(), circle.subscribe()),
            identity: config.identity,
            launcher: config.launcher,
            clock,
            device: config.device,
            serve_program: config.serve_program,
            models: Models::new(context, config.encryption, circle.subscribe()),
            resources: OfferedResources::new(config.resources),
            logs: LogQueue::default(),
            rank_lines: RankLines::default(),
            log_storage: LogStorage::default(),
            trees: ArtifactTrees::open(&directory)?,
            areas: JobAreas::new(&directory).map_err(AgentError::during("find", &directory))?,
            control: control.clone(),
            lease: watch::Sender::new(Lease::resumed(heard_at)),
            lease_ms_max: config.lease_ms_max,
            circle,
            news: Notify::new(),
        });
        let halted = |key: &SlotKey| halt_on(halts.book(), chain.state(), id, &key.service).is_some();
        let adopted = find_sandboxes(&node, &book, halted).await?;
        node.areas.clear().map_err(AgentError::during("clear the areas of jobs in", &directory))?;
        let services = Services::new(config.storage, config.gateway, config.metrics);
        let mut actor = AgentActor {
            time: TrustedTime::new(control.replica_count()),
            control,
            chain,
            orders,
            book,
            jobs: JobSlots::new(job_file, job_book),
            halts,
            access,
            admission: config.admission,
            circle: config.circle,
            last_answer,
            incarnation: Incarnation(u64::from_le_bytes(random_bytes())),
            slots: BTreeMap::new(),
            tasks: JoinSet::new(),
            routes: services.routes.clone(),
            gateway: services.gateway.is_some().then(|| services.status.clone()),
            numbers: services.numbers.clone(),
            node: node.clone(),
            state: super::actor::Volatile::after(predecessor.map(|answer| answer.desired)),
        };
        for (key, running) in adopted {
            actor.start_slot(key, Some(running));
        }
        Ok(Self { directory, lock, node, actor, services, drain })
    }

    /// Returns the tables that the gateway is handed, and the exported numbers.
    #[cfg(test)]
    pub(super) fn outputs(
        &self,
    ) -> (watch::Receiver<Option<protocol::gateway::RouteTable>>, Arc<Mutex<Numbers>>) {
        (self.services.routes.subscribe(), self.services.numbers.clone())
    }

    pub(super) async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let Self { directory, lock: _lock, node, actor, services, drain } = self;
        // The first task to end stops the others: a node without its listeners is not the node that was
        // admitted.
        let stop = shutdown.child_token();
        let _guard = stop.clone().drop_guard();
        let (injected, receive_injected) = mpsc::channel(INJECTED_MAX);
        let mut tasks = services.spawn(&node, &directory, injected, &drain, &stop)?;
        let main = async {
            actor.run(receive_injected, drain, stop.clone()).await;
            // The services outlive a drain: peers read shards, and operators the metrics.
            stop.cancel();
        };
        let (outcome, ()) = tokio::join!(first_failure(&mut tasks, &stop), main);
        outcome
    }
}

/// Waits for every service. The first that ends stops the others, and the first failure is the outcome.
async fn first_failure(
    tasks: &mut JoinSet<Result<(), AgentError>>,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|error| Err(AgentError::Configuration(error.to_string())));
        stop.cancel();
        outcome = outcome.and(ended);
    }
    outcome
}

/// Takes the lock that admits one agent per directory.
fn lock(directory: &Path) -> Result<DirectoryLock, AgentError> {
    let lock = DirectoryLock::take(directory).map_err(AgentError::during("lock", directory))?;
    lock.ok_or_else(|| AgentError::InUse { path: directory.to_path_buf() })
}

/// Returns sandboxes of a previous agent that can be adopted: their order is held, no halt covers them, and
/// their weights are complete. All others are ended, and leftovers of dead ones are removed.
async fn find_sandboxes(
    node: &Node,
    book: &OrderBook,
    halted: impl Fn(&SlotKey) -> bool,
) -> Result<Vec<(SlotKey, Arc<dyn Running>)>, AgentError> {
    let held = book.all_held().filter(|(key, held)| !held.order.released && !halted(key));
    let names: BTreeMap<String, SlotKey> = held
        .map(|(key, held)| (slot::sandbox_name(key, held.order.signed.order.fence), key.clone()))
        .collect();
    let mut adopted = Vec::new();
    for running in node.launcher.clone().list_running().await? {
        match names.get(running.name()) {
            Some(key) if running.is_complete() => adopted.push((key.clone(), running)),
            _ => {
                let name = running.name().to_string();
                tracing::info!(
                    sandbox = name,
                    "ending sandbox: order no longer held, halted, or weights incomplete"
                );
                if let Err(error) = running.remove().await {
                    tracing::error!(
                        sandbox = name,
                        error = protocol::error_chain(&error),
                        "remove a sandbox"
                    );
                }
            }
        }
    }
    node.launcher.clone().remove_stale().await?;
    Ok(adopted)
}

/// Services that run beside the main loop.
struct Services {
    storage: Option<super::config::StorageConfig>,
    gateway: Option<super::config::GatewayConfig>,
    metrics: Option<TcpListener>,
    numbers: Arc<Mutex<Numbers>>,
    routes: watch::Sender<Option<protocol::gateway::RouteTable>>,
    status: Arc<GatewayStatus>,
}

impl Services {
    /// Returns services that have published nothing yet.
    fn new(
        storage: Option<super::config::StorageConfig>,
        gateway: Option<super::config::GatewayConfig>,
        metrics: Option<TcpListener>,
    ) -> Self {
        let (numbers, status) = (Arc::default(), Arc::default());
        Self { storage, gateway, metrics, numbers, routes: watch::Sender::new(None), status }
    }

    fn spawn(
        self,
        node: &Arc<Node>,
        directory: &Path,
        injected: mpsc::Sender<admin::InjectedRequest>,
        drain: &Drain,
        stop: &CancellationToken,
    ) -> Result<JoinSet<Result<(), AgentError>>, AgentError> {
        let limits = [ShardService::limits(), Limits::of_operations()];
        let [storage_limits, metrics_limits] = open_files::fit(OTHER_FILES, limits);
        let mut tasks = JoinSet::new();
        if let Some(config) = self.storage {
            let (identity, circle) = (node.identity.clone(), node.circle.subscribe());
            let clock = node.clock.clone();
            let (serving, gangs) = ((config, storage_limits), stream_handler(node.gangs.clone()));
            tasks.spawn(storage::serve(serving, identity, circle, clock, gangs, stop.clone()));
        }
        if let Some(config) = self.gateway {
            let (program, directory) = (node.serve_program.clone(), directory.to_path_buf());
            let (routes, ending) = (self.routes.subscribe(), StopRequests::new(drain.clone(), stop.clone()));
            tasks.spawn(gateway::run(config, program, directory, routes, self.status, ending));
        }
        if let Some(listener) = self.metrics {
            let router = metrics_router(self.numbers, node.clone());
            let serving =
                overlay::people::serve(listener, None, metrics_limits, router, Arc::default(), stop.clone());
            tasks.spawn(async move { serving.await.map_err(AgentError::Listener) });
        }
        let listener =
            admin::bind(directory).map_err(AgentError::during("bind the admin socket in", directory))?;
        let serving = admin::serve(listener, injected, stop.clone());
        tasks.spawn(async move {
            serving.await;
            Ok(())
        });
        Ok(tasks)
    }
}

fn metrics_router(numbers: Arc<Mutex<Numbers>>, node: Arc<Node>) -> Router {
    let text = move || {
        let numbers = numbers.clone();
        async move { prometheus::render(&numbers.lock().unwrap_or_else(PoisonError::into_inner)) }
    };
    let ready = move || {
        let holds = node.hears_control();
        async move { if holds { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
    };
    Router::new()
        .route("/metrics", get(text))
        .route("/livez", get(|| async { StatusCode::OK }))
        .route("/readyz", get(ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(reason: &str) -> AgentError {
        AgentError::Configuration(reason.into())
    }

    /// Returns the outcome as text, and whether the other services were stopped.
    async fn outcome(mut tasks: JoinSet<Result<(), AgentError>>) -> (String, bool) {
        let stop = CancellationToken::new();
        let waits = stop.clone();
        tasks.spawn(async move {
            waits.cancelled().await;
            Ok(())
        });
        let outcome = first_failure(&mut tasks, &stop).await;
        (outcome.map_or_else(|error| error.to_string(), |()| "ended".into()), stop.is_cancelled())
    }

    #[tokio::test]
    async fn the_first_service_that_ends_stops_the_others() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Ok(()) });
        assert_eq!(outcome(tasks).await, ("ended".into(), true));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Err(broken("a listener")) });
        assert_eq!(outcome(tasks).await, ("configuration: a listener".into(), true));
    }

    #[tokio::test]
    async fn a_failure_is_not_hidden_by_services_that_end_in_order() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Ok(()) });
        tasks.spawn(async {
            tokio::task::yield_now().await;
            Err(broken("the store"))
        });
        assert_eq!(outcome(tasks).await.0, "configuration: the store");
    }

    #[tokio::test]
    async fn a_cancelled_service_is_a_failure() {
        let mut tasks: JoinSet<Result<(), AgentError>> = JoinSet::new();
        tasks.spawn(std::future::pending()).abort();
        let (text, stopped) = outcome(tasks).await;
        assert!(text.starts_with("configuration: task") && stopped, "{text}");
    }

    #[test]
    fn one_agent_works_in_a_directory() {
        let directory = tempfile::tempdir().expect("directory");
        let first = lock(directory.path()).expect("free");
        let error = lock(directory.path()).expect_err("taken");
        assert_eq!(error.code(), protocol::error_code::DIRECTORY_IN_USE);
        drop(first);
        assert!(lock(directory.path()).is_ok());
        let error = lock(&directory.path().join("none")).expect_err("no directory");
        assert_eq!(error.code(), protocol::error_code::AGENT_STATE_UNUSABLE);
    }
}

//! A control replica: the replicated cluster, the leader's planning loop, and the endpoints of agents and
//! users.
//!
//! The replica decides nothing itself: `scheduler` makes decisions, and `human-chain` verifies authority.

mod agents;
mod api;
mod auth;
mod barrier;
mod bootstrap;
mod clocks;
mod commands;
mod comments;
mod console_pages;
mod extract;
mod halts;
mod idempotency;
mod job_logs;
mod leader;
mod logs;
mod machine;
mod metrics;
mod openapi;
mod paging;
mod peers;
mod polls;
mod problem;
#[cfg(test)]
mod tests;
mod unadmitted;
mod usage_journal;

pub use bootstrap::{create_replica, load_replica};
pub use machine::ClusterMachine;
pub use openapi::document as openapi_document;

use anyhow::{Context as _, Result};
use commands::Lane;
use leader::LeaderState;
use logs::Logs;
use overlay::people::{KeyExchanges, ServerCertificate};
use overlay::{CancellationToken, Identity, Limits, PeerPolicy, open_files};
use protocol::governance::SignedGenesis;
use protocol::{ReplicaId, canonical};
use scheduler::{Action, Actor, Command, Reply};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

/// Number of open files beside the listeners' connections: the log, connections to other replicas, the
/// runtime's own files, and evicted connections that are being closed.
const OTHER_FILES: usize = 256;

/// Configuration of a replica.
pub struct ServerConfig {
    /// Number of the replica in the genesis.
    pub id: ReplicaId,
    /// State directory, created by [`create_replica`]; it contains the log and snapshots.
    pub directory: PathBuf,
    /// Key of the replica, as the genesis lists it.
    pub identity: Identity,
    /// The signed genesis of the circle.
    pub genesis: SignedGenesis,
    /// Listener for agents and other replicas.
    pub overlay: TcpListener,
    pub api: TcpListener,
    /// TLS certificate of the API; none serves plain HTTP, on loopback only.
    pub certificate: Option<ServerCertificate>,
}

/// A running replica, shared by all request handlers.
pub(crate) struct Server {
    id: ReplicaId,
    identity: Identity,
    genesis: SignedGenesis,
    handle: consensus::Handle<ClusterMachine>,
    leadership: Mutex<Option<LeaderState>>,
    logs: Mutex<Logs>,
    job_logs: Mutex<job_logs::JobLogs>,
    /// Wakes the leader's loop: a node has reported another state of a slot.
    report_news: Notify,
    /// Changes with each batch of lines of jobs.
    job_line_news: watch::Sender<()>,
    key_exchanges: Arc<KeyExchanges>,
    /// Barriers of the nodes' syncs.
    barrier: barrier::SharedBarrier<Result<(), consensus::LinearizableReadError>>,
    peers: peers::PeerHealth,
    clocks: clocks::ReplicaClocks,
    halts: halts::HaltStore,
    comments: comments::CommentLimiter,
    unadmitted: unadmitted::UnadmittedPeers,
    session_pool: commands::SessionPool,
    /// Browsers that are signed in at this replica's console.
    sign_in: Arc<console::SignIn>,
    metrics: metrics::ServerMetrics,
    /// Cancelled when the listeners end: requests that are held for news are answered then.
    ending: CancellationToken,
    usage_journal: Arc<usage_journal::UsageJournal>,
}

/// Runs a replica until `shutdown`, which stops it gracefully: it first hands leadership over, then lets
/// requests in progress finish.
///
/// # Errors
/// Returns an error if the replica cannot start: because of its log, its listeners, or its entry in the
/// genesis.
pub async fn run(config: ServerConfig, shutdown: CancellationToken) -> Result<()> {
    let replica = start_replica(&config)?;
    // The listeners outlast leadership: the next leader is elected over them.
    let ending = CancellationToken::new();
    let server = Arc::new(new_server(&config, replica.handle(), ending.clone())?);
    let gate = axum::middleware::from_fn_with_state(server.clone(), unadmitted::refuse_unadmitted);
    let overlay_router = replica
        .router()
        .merge(agents::router(server.clone()))
        .merge(peers::router(server.clone()))
        .layer(gate);
    let api_limits = Limits { request_bytes_max: protocol::limits::API_BODY_BYTES_MAX, ..Limits::default() };
    let [overlay_limits, api_limits] = open_files::fit(OTHER_FILES, [agents::limits(), api_limits]);
    let known = server.clone();
    let overlay_serving = overlay::serve(
        config.overlay,
        &config.identity,
        // Any peer may complete the handshake, but unadmitted peers share a few permits, and may only enrol.
        PeerPolicy::any().knowing(move |key| known.has_reserved_permit(key)),
        overlay_limits,
        overlay_router,
        ending.clone(),
    );
    let people_serving = overlay::people::serve(
        config.api,
        config.certificate,
        api_limits,
        api::router(server.clone()).merge(console_pages::router(server.clone())),
        server.key_exchanges.clone(),
        ending.clone(),
    );
    let leading = leader::run(server.clone(), shutdown.clone());
    let watching = peers::watch(server.clone(), shutdown.clone());
    let halting = halts::watch(server.clone(), shutdown.clone());
    let journalling = usage_journal::feed(server.clone(), shutdown.clone());
    let stopping = async {
        shutdown.cancelled().await;
        replica.stop().await;
        ending.cancel();
        // Listeners stop when their requests have finished; the drain time bounds the wait for a request that
        // hangs.
        tokio::time::sleep(Limits::default().drain).await;
    };
    tokio::select! {
        ended = async { tokio::try_join!(overlay_serving, people_serving) } => {
            ended.map(|_| ()).context("serve")
        }
        ((), (), (), (), ()) = async {
            tokio::join!(leading, watching, halting, journalling, stopping)
        } => Ok(()),
        reason = stopped(&server, &shutdown) => anyhow::bail!("the replica stopped: {reason}"),
    }
}

/// Returns the state that the routes of a replica share. `ending` is cancelled when the listeners end.
fn new_server(
    config: &ServerConfig,
    handle: consensus::Handle<ClusterMachine>,
    ending: CancellationToken,
) -> Result<Server> {
    let circle = human_chain::circle_id(&config.genesis.genesis);
    Ok(Server {
        id: config.id,
        identity: config.identity.clone(),
        peers: peers::PeerHealth::new(&config.identity, &config.genesis.genesis)?,
        clocks: clocks::ReplicaClocks::new(config.id, host::Clock::machine()),
        halts: halts::HaltStore::open(&config.directory, circle)?,
        comments: comments::CommentLimiter::default(),
        genesis: config.genesis.clone(),
        handle,
        leadership: Mutex::new(None),
        logs: Mutex::new(Logs::default()),
        job_logs: Mutex::default(),
        report_news: Notify::new(),
        job_line_news: watch::Sender::default(),
        key_exchanges: Arc::default(),
        unadmitted: unadmitted::UnadmittedPeers::default(),
        session_pool: commands::SessionPool::default(),
        sign_in: Arc::new(console::SignIn::new(host::Clock::machine())),
        metrics: metrics::ServerMetrics::new(),
        barrier: barrier::SharedBarrier::default(),
        ending,
        usage_journal: Arc::new(usage_journal::UsageJournal::open(&config.directory)?),
    })
}

/// Resolves with the reason when the replica stops unexpectedly, because of a disk failure or a broken
/// invariant.
async fn stopped(server: &Server, shutdown: &CancellationToken) -> String {
    let mut status = server.handle.watch_status();
    let reason = match status.wait_for(|status| status.stopped.is_some()).await {
        Ok(status) => status.stopped.clone().unwrap_or_default(),
        Err(_) => "its tasks ended".into(),
    };
    if shutdown.is_cancelled() {
        // The stop was requested.
        return std::future::pending().await;
    }
    reason
}

fn start_replica(config: &ServerConfig) -> Result<consensus::Replica<ClusterMachine>> {
    let mut peers = BTreeMap::new();
    for replica in &config.genesis.genesis.control {
        let address = replica.address.parse().with_context(|| format!("address `{}`", replica.address))?;
        peers.insert(replica.id, consensus::ReplicaAddress { address, key: replica.key });
    }
    // Replica numbers are the same in every circle, and keys may be: the circle's id distinguishes logs and
    // peers.
    let circle = human_chain::circle_id(&config.genesis.genesis);
    let consensus_config = consensus::Config {
        group: consensus::GroupId(circle.0.0),
        id: config.id,
        peers,
        directory: config.directory.join("log"),
        create: bootstrap::may_bootstrap(config),
        identity: Arc::new(config.identity.clone()),
        seed: u64::from(circle.0.0[0]),
        timings: consensus::Timings::default(),
        limits: consensus::Limits::default(),
    };
    let replica = consensus::Replica::start(&consensus_config, ClusterMachine::default());
    let replica = replica.context("start the replica")?;
    bootstrap::clear_bootstrap_marker(config)?;
    Ok(replica)
}

impl Server {
    /// Executes a command exactly once, and returns the reply of the state machine.
    pub(crate) async fn command(&self, actor: Actor, action: Action) -> Result<Reply, problem::Failure> {
        self.write(actor, action, None).await
    }

    /// Executes a client's write, which may be repeated under its idempotency key.
    pub(crate) async fn write(
        &self,
        actor: Actor,
        action: Action,
        idempotency: Option<scheduler::IdempotencyKey>,
    ) -> Result<Reply, problem::Failure> {
        let lane = match action {
            Action::Lead { .. } | Action::Found(_) | Action::Execute { .. } | Action::Tick => Lane::Leader,
            _ => Lane::Clients,
        };
        let command = Command { clocks: self.clocks.readings(), actor, action, idempotency };
        let answer = self.once(canonical::to_bytes(&command).into(), lane).await?;
        let reply = canonical::from_own_bytes(&answer, protocol::limits::API_BODY_BYTES_MAX);
        reply.map_err(problem::effect_unknown)
    }

    /// Waits until this replica has applied every command that was acknowledged before the call.
    pub(crate) async fn read_barrier(&self) -> Result<(), problem::Failure> {
        Ok(self.handle.read_barrier().await.map(|_| ())?)
    }

    /// Waits as [`Self::read_barrier`] does, for a barrier that other requests share.
    pub(crate) async fn shared_read_barrier(&self) -> Result<(), problem::Failure> {
        let handle = self.handle.clone();
        Ok(self.barrier.wait(|| async move { handle.read_barrier().await.map(drop) }).await?)
    }

    /// Reads the cluster as last applied on this replica.
    pub(crate) fn cluster<R>(&self, look: impl FnOnce(&scheduler::Cluster) -> R) -> R {
        self.handle.read(|machine: &ClusterMachine| look(machine.cluster()))
    }
}

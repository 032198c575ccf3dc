//! Test fixture and tests of log faults: clients get accurate errors, and no command is applied twice.

use super::circle::{self, TOKEN};
use crate::server::{
    ClusterMachine, Server, barrier, clocks, commands, comments, halts, leader, logs, metrics, peers,
    unadmitted, usage_journal,
};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use consensus::simulation::SimulatedGroup;
use consensus::{Limits, LogIndex, Timings};
use host::Clock;
use overlay::CancellationToken;
use protocol::access::{GrantedAccess, SignedGrant};
use protocol::api::{Page, Problem};
use protocol::gateway::RouteTable;
use protocol::{BootTime, PasskeyPolicy, ReplicaId, canonical};
use scheduler::{Action, Actor, Command, Observed, Reply};
use serde::Serialize;
use std::sync::{Arc, Mutex};
use tower::ServiceExt as _;

/// Replicas on simulated disks and network, in simulated time. Their leaders do nothing automatically; tests
/// call [`SimulatedServers::lead`].
pub(super) struct SimulatedServers {
    pub(super) group: SimulatedGroup<ClusterMachine>,
    pub(super) servers: Vec<Arc<Server>>,
    /// Machine clock of each replica; a test sets their wall clocks.
    pub(super) clocks: Vec<Clock>,
    /// A directory for each replica's halts, by its id.
    pub(super) directory: tempfile::TempDir,
}

impl SimulatedServers {
    pub(super) fn start(count: u64) -> Self {
        let address = |id: u64, port: u64| format!("127.0.0.1:{}", port + id);
        let addresses: Vec<_> =
            (1..=count).map(|id| (address(id, 10_000), format!("http://{}", address(id, 20_000)))).collect();
        // A passkey belongs to a name, so a page is also open at `localhost`. No vote by passkey counts here.
        let page = |(_, api): &(String, String)| api.replace("127.0.0.1", "localhost");
        let origins = addresses.iter().map(page).collect();
        let passkeys = PasskeyPolicy { rp_id: "localhost".into(), origins, routine: false };
        let genesis = circle::genesis_with(&addresses, Vec::new(), Some(passkeys));
        let group = SimulatedGroup::start(count, Timings::default(), Limits::default());
        let machine = |_| Clock::of_runtime(BootTime(0), host::wall_clock());
        let clocks: Vec<Clock> = (1..=count).map(machine).collect();
        let directory = tempfile::tempdir().unwrap();
        let circle = human_chain::circle_id(&genesis.genesis);
        let halts = |id: u64| {
            let own = directory.path().join(id.to_string());
            std::fs::create_dir(&own).unwrap();
            halts::HaltStore::open(&own, circle).unwrap()
        };
        let journal = |id: u64| {
            let own = directory.path().join(format!("{id}-usage"));
            std::fs::create_dir(&own).unwrap();
            Arc::new(usage_journal::UsageJournal::open(&own).unwrap())
        };
        let server = |(id, clock): (u64, &Clock)| {
            let identity = circle::replica(id);
            Arc::new(Server {
                id: ReplicaId(id),
                peers: peers::PeerHealth::new(&identity, &genesis.genesis).unwrap(),
                clocks: clocks::ReplicaClocks::new(ReplicaId(id), clock.clone()),
                halts: halts(id),
                comments: comments::CommentLimiter::default(),
                identity,
                genesis: genesis.clone(),
                handle: group.handle(ReplicaId(id)),
                leadership: Mutex::new(None),
                logs: Mutex::new(logs::Logs::default()),
                job_logs: Mutex::default(),
                report_news: tokio::sync::Notify::new(),
                job_line_news: tokio::sync::watch::Sender::default(),
                key_exchanges: Arc::default(),
                unadmitted: unadmitted::UnadmittedPeers::default(),
                session_pool: commands::SessionPool::default(),
                sign_in: Arc::new(console::SignIn::new(clock.clone())),
                metrics: metrics::ServerMetrics::new(),
                barrier: barrier::SharedBarrier::default(),
                ending: CancellationToken::new(),
                usage_journal: journal(id),
            })
        };
        let servers = (1..=count).zip(&clocks).map(server).collect();
        Self { group, servers, clocks, directory }
    }

    /// Lets these replicas, by index, learn each other's clocks and judge them, as every round of checks
    /// does.
    pub(super) fn check_clocks(&self, alive: &[usize]) {
        for index in alive {
            let server = &self.servers[*index];
            for other in alive.iter().filter(|other| *other != index) {
                let other = &self.servers[*other];
                server.clocks.hear(other.id, other.clocks.wall());
            }
            server.bar_wrong_clocks();
        }
    }

    /// Waits for a leader, has it announce itself, found the circle and grant the tests' token, and returns
    /// its index.
    pub(super) async fn lead(&self) -> usize {
        loop {
            let leader = self.group.leader().await;
            let index = usize::try_from(leader.0).unwrap() - 1;
            let server = &self.servers[index];
            self.check_clocks(&(0..self.servers.len()).collect::<Vec<_>>());
            leader::round(server).await;
            if !server.cluster(|cluster| cluster.genesis().is_some()) {
                continue;
            }
            // The members of a new circle issue its tokens.
            let token = circle::token_grant(&server.genesis);
            if server.cluster(|cluster| cluster.access().contains(&token.grant.id())) {
                return index;
            }
            let granting = Action::GrantAccess(Box::new(token));
            let _ = server.command(Actor::Member(circle::alice().0), granting).await;
        }
    }
}

/// Makes this replica believe that it leads, like one that was deposed a moment ago and has not noticed.
///
/// It accepts clients' requests and forwards them.
pub(super) async fn deposed_unnoticed(server: &Server) {
    server.read_barrier().await.unwrap();
    let term = server.handle.status().term;
    let (observed, routes) =
        (Observed::new(scheduler::LeaderTime(host::wall_clock())), RouteTable::default());
    *server.lock_leadership() = Some(leader::LeaderState { term, observed, routes });
}

/// Sends a request to the API and returns the response.
pub(super) async fn ask<B: Serialize>(
    server: &Arc<Server>,
    method: Method,
    path: &str,
    body: Option<&B>,
) -> (StatusCode, Vec<u8>) {
    ask_with_key(server, method, path, body, None).await
}

/// Sends a request with an idempotency key to the API and returns the response.
pub(super) async fn ask_with_key<B: Serialize>(
    server: &Arc<Server>,
    method: Method,
    path: &str,
    body: Option<&B>,
    key: Option<&str>,
) -> (StatusCode, Vec<u8>) {
    let body = body.map_or_else(Body::empty, |body| Body::from(serde_json::to_vec(body).unwrap()));
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.body(body);
    let answer = crate::server::api::router(server.clone()).oneshot(request.unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    (head.status, axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec())
}

/// Returns alice's grant of an inference key to this holder.
pub(super) fn key(server: &Server, holder: &str) -> SignedGrant {
    let access = GrantedAccess::Key { services: None, requests_per_minute: None };
    circle::granted(&server.genesis, holder, holder, access)
}

pub(super) async fn create(server: &Arc<Server>, name: &str) -> (StatusCode, Option<Problem>) {
    let (status, body) = ask(server, Method::POST, "/v1/access/grants", Some(&key(server, name))).await;
    let problem = (!status.is_success()).then(|| serde_json::from_slice(&body).unwrap());
    (status, problem)
}

pub(super) async fn keys(server: &Arc<Server>) -> Vec<String> {
    let (status, body) = ask::<()>(server, Method::GET, "/v1/access/grants", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let page: Page<SignedGrant> = serde_json::from_slice(&body).unwrap();
    let of_keys = page.items.iter().filter(|signed| signed.grant.access.kind() == "key");
    let mut holders: Vec<String> = of_keys.map(|signed| signed.grant.holder.to_string()).collect();
    holders.sort();
    holders
}

#[tokio::test(start_paused = true)]
async fn a_full_log_is_reported_and_accepts_commands_once_there_is_space() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    assert_eq!(create(server, "before").await.0, StatusCode::OK);

    world.group.disk(ReplicaId(1)).set_full(true);
    let (status, problem) = create(server, "refused").await;
    let problem = problem.unwrap();
    assert_eq!((status, problem.code.as_str()), (StatusCode::INSUFFICIENT_STORAGE, "log-disk-full"));
    assert!(problem.remedy.unwrap().contains("free space"));
    world.group.disk(ReplicaId(1)).set_full(false);

    assert_eq!(create(server, "after").await.0, StatusCode::OK);
    assert_eq!(keys(server).await, ["after", "before"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_reply_is_lost_gets_outcome_unknown_and_finds_the_command_applied() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let follows = &world.servers[(leads + 1) % 3];
    deposed_unnoticed(follows).await;
    assert_eq!(create(follows, "before").await.0, StatusCode::OK);
    world.group.network().lose_answers(follows.id, usize::MAX);
    let (status, problem) = create(follows, "unknown").await;
    let problem = problem.unwrap();
    assert_eq!((status, problem.code.as_str()), (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown"));
    assert!(problem.remedy.unwrap().contains("check whether it took effect"));
    // A client that follows the remedy and reads the keys finds the command applied.
    assert_eq!(keys(&world.servers[leads]).await, ["before", "unknown"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_reply_is_lost_is_applied_once() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let follows = (leads + 1) % 3;
    let server = &world.servers[follows];
    let asker = server.id;
    let create = |name: &str| {
        let actor = Actor::Token("tester".parse().unwrap());
        server.command(actor, Action::GrantAccess(Box::new(key(server, name))))
    };
    for (lost, name) in [(0, "first"), (1, "second"), (3, "third")] {
        world.group.network().lose_answers(asker, lost);
        assert_eq!(create(name).await.unwrap(), Reply::Done, "{lost} answers lost");
    }
    server.read_barrier().await.unwrap();
    let created = server
        .cluster(|cluster| cluster.audit().last(1000).filter(|event| event.action == "issue-key").count());
    assert_eq!(created, 3);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_session_is_renewed() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    assert_eq!(create(server, "before").await.0, StatusCode::OK);
    // More sessions than the log remembers, all younger than this server's.
    let open = (0..4_096).map(|_| server.handle.open_session());
    assert!(futures::future::join_all(open).await.iter().all(Result::is_ok));
    assert_eq!(create(server, "after").await.0, StatusCode::OK);
    assert_eq!(keys(server).await, ["after", "before"]);
}

/// An ordinary command costs one entry of the log, and thus one round.
#[tokio::test(start_paused = true)]
async fn sequential_commands_share_one_session() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let before = server.handle.read_barrier().await.unwrap();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(create(server, name).await.0, StatusCode::OK);
    }
    let clocks = server.clocks.readings();
    let refused = Command { clocks, actor: Actor::Scheduler, action: Action::Tick, idempotency: None };
    let answer = server.once(canonical::to_bytes(&refused).into(), commands::Lane::Clients).await.unwrap();
    assert!(!answer.is_empty());
    assert_eq!(server.handle.read_barrier().await.unwrap(), LogIndex(before.0 + 5));
}

//! Simulated control replicas whose replies a test scripts.

use crate::circle::TestCircle;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use overlay::{CancellationToken, Limits, Peer, PeerPolicy};
use protocol::agent::{
    ClockReading, Desired, EnrolRequest, EnrolResponse, NotLeader, SlotReport, SyncRequest, SyncResponse,
};
use protocol::job_data::{JobDataAnswer, JobDataKind, RegisterJobData};
use protocol::slot_usage::SignedSlotUsage;
use protocol::{Millis, NodeId, Refusal, canonical};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// Longest wait of a test for a condition: it only keeps a test from hanging.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Duration of leases that must not expire in a test, however busy the machine is.
pub const LONG_LEASE_MS: u64 = 60_000;

/// Raft term of whichever replica leads.
pub const TERM: u64 = 1;

/// Replies of the replicas, and the requests that they received.
pub struct ControlScript {
    pub world: TestCircle,
    pub leader: usize,
    pub admitted: bool,
    /// No replies: every request waits until the agent gives up.
    pub silent: bool,
    pub lease_ms: u64,
    pub desired: Desired,
    /// Desired state of single nodes, in place of the one above.
    pub desired_of: BTreeMap<NodeId, Desired>,
    /// Bundles sent in place of the chain's own.
    pub forged: Vec<protocol::governance::Bundle>,
    pub enrolled: Vec<EnrolRequest>,
    pub last: Option<SyncRequest>,
    /// Last request of each node.
    pub last_of: BTreeMap<NodeId, SyncRequest>,
    pub rank_lines: Vec<String>,
    /// Checkpoints and outputs that nodes asked to keep.
    pub job_data: Vec<RegisterJobData>,
    /// Logs that nodes asked to keep.
    pub job_logs: Vec<RegisterJobData>,
    /// Counts of slots that nodes stated.
    pub usage: Vec<SignedSlotUsage>,
    /// Refusal of every registration; none = each is kept.
    pub data_refusal: Option<Refusal>,
    pub lines: Vec<String>,
    /// Number of syncs that each replica was asked for.
    pub asked: Vec<u32>,
    pub released: Vec<(String, u32, u64)>,
}

#[derive(Clone)]
struct TestReplica {
    index: usize,
    script: Arc<Mutex<ControlScript>>,
    news: Arc<Notify>,
}

/// Running replicas.
pub struct Control {
    script: Arc<Mutex<ControlScript>>,
    news: Arc<Notify>,
    shutdown: CancellationToken,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Opens listeners for as many replicas, and returns their addresses.
pub async fn listeners(count: usize) -> (Vec<TcpListener>, Vec<String>) {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    (listeners, addresses)
}

impl Control {
    pub fn start(world: TestCircle, listeners: Vec<TcpListener>) -> Self {
        let count = listeners.len();
        let identities = world.control.clone();
        let script = Arc::new(Mutex::new(ControlScript {
            world,
            leader: 0,
            admitted: true,
            silent: false,
            lease_ms: LONG_LEASE_MS,
            desired: Desired { assignments: vec![], routes: None, jobs: vec![] },
            desired_of: BTreeMap::new(),
            forged: vec![],
            enrolled: vec![],
            last: None,
            last_of: BTreeMap::new(),
            rank_lines: vec![],
            job_data: vec![],
            job_logs: vec![],
            usage: vec![],
            data_refusal: None,
            lines: vec![],
            asked: vec![0; count],
            released: vec![],
        }));
        let (news, shutdown) = (Arc::new(Notify::new()), CancellationToken::new());
        for (index, listener) in listeners.into_iter().enumerate() {
            let replica = TestReplica { index, script: script.clone(), news: news.clone() };
            let router = Router::new()
                .route("/agent/v1/sync", post(sync))
                .route("/agent/v1/enrol", post(enrol))
                .route("/agent/v1/job-data", post(keep_job_data))
                .route("/agent/v1/clock", post(clock))
                .with_state(replica);
            let (identity, shutdown) = (identities[index].clone(), shutdown.clone());
            tokio::spawn(async move {
                overlay::serve(listener, &identity, PeerPolicy::any(), Limits::default(), router, shutdown)
                    .await
            });
        }
        Self { script, news, shutdown }
    }

    pub fn script(&self) -> MutexGuard<'_, ControlScript> {
        self.script.lock().unwrap()
    }

    /// Changes the replies and notifies waiting requests.
    pub fn say(&self, change: impl FnOnce(&mut ControlScript)) {
        change(&mut self.script());
        self.news.notify_waiters();
    }

    /// Waits until the received requests meet a condition.
    pub async fn until<R>(&self, what: &str, mut holds: impl FnMut(&ControlScript) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = holds(&self.script());
            if let Some(found) = found {
                return found;
            }
            if Instant::now() > deadline {
                panic!("still not: {what}; last heard: {:#?}", self.script().last);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a slot's report meets a condition.
    pub async fn until_slot(&self, what: &str, holds: impl Fn(&SlotReport) -> bool) -> SlotReport {
        self.until(what, |script| script.last.as_ref()?.slots.iter().find(|slot| holds(slot)).cloned()).await
    }
}

fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Millis(u64::try_from(since.as_millis()).unwrap())
}

async fn enrol(
    State(replica): State<TestReplica>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Response {
    let request: EnrolRequest = canonical::from_bytes(&body, body.len()).unwrap();
    assert_eq!(request.admission.id.0, key);
    let mut script = replica.script.lock().unwrap();
    script.enrolled.push(request);
    let answer = EnrolResponse { admitted: script.admitted, genesis: script.world.genesis.clone() };
    canonical::to_bytes(&answer).into_response()
}

async fn keep_job_data(
    State(replica): State<TestReplica>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Response {
    let request: RegisterJobData = canonical::from_bytes(&body, body.len()).unwrap();
    assert_eq!(request.signed.data.node.0, key);
    let mut script = replica.script.lock().unwrap();
    human_chain::check_job_data(&script.world.state, &request.signed).unwrap();
    assert_eq!(request.wraps_flaw(), None);
    match request.signed.data.kind {
        JobDataKind::Logs => script.job_logs.push(request),
        JobDataKind::Checkpoint(_) | JobDataKind::Outputs => script.job_data.push(request),
    }
    let answer = JobDataAnswer { refusal: script.data_refusal.clone() };
    canonical::to_bytes(&answer).into_response()
}

async fn clock() -> Response {
    canonical::to_bytes(&ClockReading { now: now() }).into_response()
}

async fn sync(
    State(replica): State<TestReplica>,
    Extension(Peer(key)): Extension<Peer>,
    body: Bytes,
) -> Response {
    let request: SyncRequest = canonical::from_bytes(&body, body.len()).unwrap();
    if replica.script.lock().unwrap().silent {
        std::future::pending::<()>().await;
    }
    {
        let mut script = replica.script.lock().unwrap();
        script.asked[replica.index] += 1;
        if script.leader != replica.index {
            let leader = script.world.control.get(script.leader).map(overlay::Identity::public_key);
            let answer = canonical::to_bytes(&NotLeader { leader });
            return (StatusCode::MISDIRECTED_REQUEST, answer).into_response();
        }
        if !script.admitted {
            return (StatusCode::FORBIDDEN, "{\"code\":\"node-not-admitted\"}").into_response();
        }
        script.lines.extend(request.logs.iter().map(|line| line.text.clone()));
        let released = request.slots.iter().filter(|s| s.state == protocol::agent::SlotState::Released);
        let released: Vec<_> = released.map(|s| (s.service.to_string(), s.slot.0, s.fence.count)).collect();
        script.released.extend(released);
        if request.rank_lines_term == TERM {
            script.rank_lines.extend(request.rank_lines.iter().map(|line| line.text.clone()));
        }
        script.usage.extend(request.usage.iter().cloned());
        script.last_of.insert(NodeId(key), request.clone());
        script.last = Some(request.clone());
    }
    let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms).min(100));
    loop {
        let news = replica.news.notified();
        let answer = answer(&replica.script.lock().unwrap(), NodeId(key), &request);
        if answer.desired.is_some() || !answer.governance.is_empty() {
            return canonical::to_bytes(&answer).into_response();
        }
        if tokio::time::timeout_at(deadline, news).await.is_err() {
            return canonical::to_bytes(&answer).into_response();
        }
    }
}

fn answer(script: &ControlScript, node: NodeId, request: &SyncRequest) -> SyncResponse {
    let own = script.world.bundles.iter().skip(request.governance_length as usize).cloned();
    let governance = if script.forged.is_empty() { own.collect() } else { script.forged.clone() };
    let wanted = script.desired_of.get(&node).unwrap_or(&script.desired);
    let desired = (wanted.digest() != request.desired).then(|| wanted.clone());
    let history = script.world.served();
    SyncResponse { now: now(), term: TERM, lease_ms: script.lease_ms, history, governance, desired }
}

//! Simulation of a whole agent in paused time. Orders, certificates, files and frames are real. Workers are
//! simulated, control is played by this process, and weights arrive when a test says so. Nothing needs root,
//! and an hour of the agent's life takes milliseconds.
#![allow(clippy::unwrap_used)]

mod absence;
mod autonomy;
mod crashes;
mod draining;
mod ending;
mod halts;
mod hostile;
mod idle;
mod interleaving;
mod pages;
mod starting;

use super::config::AgentConfig;
use super::control_client::{ControlCall, ControlLink};
use super::core::testing::{TestCircle, admission, claimed_by, desired, service};
use super::drain::DrainConfig;
use super::error::AgentError;
use super::models::ModelInHand;
use super::prometheus::Numbers;
use super::resources::ResourceCaps;
use super::start::Prepared;
use crate::device::Simulated;
use crate::simulated::{Behaviour, SimulatedLauncher};
use bytes::Bytes;
use host::Clock;
use http::{Response, StatusCode};
use model_store::EncryptionSecret;
use overlay::{CancellationToken, Identity};
use protocol::agent::{
    ClockReading, Desired, EnrolResponse, SlotReport, SlotState, SyncRequest, SyncResponse,
};
use protocol::gateway::RouteTable;
use protocol::governance::{Bundle, GatewayEndpoint, HistoryHead, NodeRole};
use protocol::halt::{HALTS_PAGE_MAX, HaltCursor, HaltsAnswer, HaltsRequest, SignedHalt};
use protocol::limits::LEASE_MS;
use protocol::manifest::{Isolation, ServiceManifest};
use protocol::model::{ErasureCode, ModelFile, ModelManifest, ModelNonce, Segment, StoredKind};
use protocol::order::SignedOrder;
use protocol::{BootTime, Digest, Fence, Millis, ModelRoot, NodeId, SlotIndex, canonical, error_code};
use sandbox::Start;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinHandle};

/// Seed of the node's key.
const NODE: [u8; 32] = [7; 32];
/// Wall clock at the start of a simulation.
const BEGAN: Millis = Millis(1_800_000_000_000);
/// Longest wait for a condition, in the agent's time.
const WAIT_LIMIT: Duration = Duration::from_secs(900);
/// Interval at which a condition is polled.
const LOOK: Duration = Duration::from_millis(5);
/// Segments of the model.
const SEGMENTS: u32 = 3;

/// Replies of the simulated control, and the requests that it received.
struct SimulatedControl {
    world: TestCircle,
    /// Bundles sent in place of those of the chain.
    forged: Vec<Bundle>,
    /// Head claimed in place of that of the bundles.
    claimed: Option<HistoryHead>,
    /// No replies: a call waits until the agent gives up. Halts are answered nevertheless, without a leader.
    silent: bool,
    /// Receives every request, and each answer is lost on its way.
    loses_answers: bool,
    /// Says that no certificate admits this node, and never answers a request for admission.
    denies_admission: bool,
    /// Replicas that are dead, by index: a connection to them breaks.
    dead: BTreeSet<usize>,
    /// Halts that each replica has.
    halts: Vec<Vec<SignedHalt>>,
    /// Most bundles in one reply.
    page: usize,
    desired: Desired,
    last: Option<SyncRequest>,
    /// Number of calls by path.
    asked: BTreeMap<&'static str, u32>,
    released: Vec<(u32, u64)>,
    /// Worker lines, each once, as control keeps them.
    lines: Vec<String>,
    /// Position of the newest line: the agent's boot, and the line's number.
    newest_line: (u64, u64),
    /// Number of lines that were received again.
    lines_again: u32,
    /// Reported states of slots, appended on change.
    reports: Vec<String>,
}

/// A node of a circle with its environment.
struct Stage {
    directory: tempfile::TempDir,
    clock: Clock,
    /// Clock of control, which may differ from the node's.
    control_clock: Clock,
    /// Memory that the machine has, in bytes.
    memory_bytes: u64,
    launcher: Arc<SimulatedLauncher>,
    device: Simulated,
    script: Arc<Mutex<SimulatedControl>>,
    news: Arc<Notify>,
    /// Queue of calls of each control replica.
    calls: Vec<mpsc::Sender<ControlCall>>,
    model: ModelInHand,
    bundle: Bundle,
}

/// A running agent.
struct Agent {
    task: JoinHandle<Result<(), AgentError>>,
    shutdown: CancellationToken,
    /// Requests that it drains.
    drain: CancellationToken,
    /// Tables that the gateway is handed, and the exported numbers.
    outputs: Arc<Mutex<Option<Outputs>>>,
}

/// Outputs of a running agent.
struct Outputs {
    routes: watch::Receiver<Option<RouteTable>>,
    numbers: Arc<Mutex<Numbers>>,
}

impl Agent {
    /// Ends the agent as `kill -9` would: everything in memory is lost immediately.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends the agent in an orderly way.
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Waits for the agent's own end and returns its result.
    async fn ended(self) -> Result<Result<(), AgentError>, JoinError> {
        self.task.await
    }
}

fn node_id() -> NodeId {
    NodeId(Identity::from_seed(&NODE).public_key())
}

pub(super) fn tiny() -> ModelManifest {
    let erasure = ErasureCode { data: 1, parity: 0 };
    let length = 4096_u32;
    let segment = |index: u32| Segment {
        offset: u64::from(index * length),
        length,
        digest: Digest::of(&[]),
        shards: vec![Digest::of(&[])],
    };
    let path = "weights".to_string();
    ModelManifest {
        version: 1,
        name: "tiny".parse().unwrap(),
        kind: StoredKind::Model,
        erasure,
        segments_per_object: 1,
        nonce: ModelNonce([0; 16]),
        key_commitment: Digest::of(&[]),
        files: vec![ModelFile { path, offset: 0, length: u64::from(SEGMENTS * length) }],
        segments: (0..SEGMENTS).map(segment).collect(),
        order: (0..SEGMENTS).collect(),
    }
}

impl Stage {
    /// Creates a circle that has deployed a service of two slots. Its model's bytes are present; there is no
    /// gateway.
    fn new() -> Self {
        Self::with_replicas(1)
    }

    /// Creates the same with as many control replicas. They share a state, and halts are each one's own.
    fn with_replicas(replicas: usize) -> Self {
        let stage = Self::prepared(None, replicas);
        stage.model.complete();
        stage
    }

    /// Creates the same with a changed manifest.
    fn of(change: impl FnOnce(&mut ServiceManifest)) -> Self {
        Self::of_replicas(1, change)
    }

    /// Creates the same with as many control replicas in the genesis; the queue of one is there.
    fn of_replicas(replicas: usize, change: impl FnOnce(&mut ServiceManifest)) -> Self {
        let mut stage = Self::with(None, replicas, change);
        stage.calls.truncate(1);
        stage.model.complete();
        stage
    }

    /// Creates the same with a gateway at an address, and a model without any byte present.
    fn with_gateway(gateway: Option<String>) -> Self {
        Self::prepared(gateway, 1)
    }

    fn prepared(gateway: Option<String>, replicas: usize) -> Self {
        Self::with(gateway, replicas, |_| {})
    }

    fn with(gateway: Option<String>, replicas: usize, change: impl FnOnce(&mut ServiceManifest)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let encryption = EncryptionSecret::create(&directory.path().join("encryption.key")).unwrap();
        let mut node = admission("node-1", &Identity::from_seed(&NODE), encryption.public().clone());
        node.gateway = gateway.map(|address| {
            let key = Identity::from_seed(&[17; 32]).public_key();
            GatewayEndpoint { key, address, api: "http://127.0.0.1:1".into() }
        });
        node.roles.extend(node.gateway.is_some().then_some(NodeRole::Gateway));
        let node = claimed_by(&Identity::from_seed(&NODE), node);
        let clock = Clock::of_runtime(BootTime(1_000_000), BEGAN);
        let addresses: Vec<String> = (1..=replicas).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut world = TestCircle::new(vec![node], &addresses, BEGAN);
        let mut manifest = service("chat", ModelRoot(Digest::of(b"model")), 300);
        change(&mut manifest);
        let bundle = world.deploy(&manifest);
        let script = Arc::new(Mutex::new(SimulatedControl {
            world,
            forged: vec![],
            claimed: None,
            silent: false,
            loses_answers: false,
            denies_admission: false,
            dead: BTreeSet::new(),
            halts: vec![vec![]; replicas],
            page: 3,
            desired: Desired { assignments: vec![], routes: None, jobs: vec![] },
            last: None,
            asked: BTreeMap::new(),
            released: vec![],
            lines: vec![],
            newest_line: (0, 0),
            lines_again: 0,
            reports: vec![],
        }));
        let news = Arc::new(Notify::new());
        let control_clock = Clock::of_runtime(BootTime(0), BEGAN);
        let clocks = [control_clock.clone(), clock.clone()];
        let serve = |replica| {
            let (calls, queue) = mpsc::channel(16);
            tokio::spawn(answer_all(queue, replica, script.clone(), news.clone(), clocks.clone()));
            calls
        };
        let calls = (0..replicas).map(serve).collect();
        let launcher = SimulatedLauncher::new(clock.clone(), Isolation::SameUid, |_| Behaviour::default());
        let device = "4xH100".parse().unwrap();
        let model = ModelInHand::new(tiny());
        let memory_bytes = 1 << 40;
        Self {
            directory,
            clock,
            control_clock,
            memory_bytes,
            launcher,
            device,
            script,
            news,
            calls,
            model,
            bundle,
        }
    }

    fn agent_directory(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    fn config(&self) -> AgentConfig {
        let script = self.script();
        AgentConfig {
            directory: self.agent_directory(),
            identity: Identity::from_seed(&NODE),
            encryption: EncryptionSecret::load(&self.directory.path().join("encryption.key")).unwrap(),
            genesis: script.world.genesis.clone(),
            circle: script.world.state.id(),
            admission: script.world.genesis.genesis.nodes[0].clone(),
            storage: None,
            gateway: None,
            serve_program: "/nowhere/quorate-serve".into(),
            resources: ResourceCaps::default(),
            device: Box::new(self.device.clone()),
            launcher: self.launcher.clone(),
            clock: self.clock.clone(),
            lease_ms_max: LEASE_MS,
            control: ControlLink::InProcess(self.calls.clone()),
            metrics: None,
            drain: DrainConfig::default(),
        }
    }

    /// Starts the agent of this node as its operator would.
    fn start(&self) -> Agent {
        let (config, shutdown) = (self.config(), CancellationToken::new());
        let drain = config.drain.requested.clone();
        let (model, stop) = (self.model.model.clone(), shutdown.clone());
        let root = ModelRoot(Digest::of(b"model"));
        let (outputs, memory_bytes) = (Arc::<Mutex<Option<Outputs>>>::default(), self.memory_bytes);
        let shared = outputs.clone();
        let task = tokio::spawn(async move {
            let prepared = Prepared::new(config).await?;
            prepared.node.models.hold(root, &model);
            prepared.node.resources.pretend(1_000_000, memory_bytes);
            let (routes, numbers) = prepared.outputs();
            *shared.lock().unwrap() = Some(Outputs { routes, numbers });
            prepared.run(stop).await
        });
        Agent { task, shutdown, drain, outputs }
    }

    fn script(&self) -> MutexGuard<'_, SimulatedControl> {
        self.script.lock().unwrap()
    }

    /// Changes control's replies and notifies waiting requests.
    fn say(&self, change: impl FnOnce(&mut SimulatedControl)) {
        change(&mut self.script());
        self.news.notify_waiters();
    }

    fn order(&self, slot: u32, fence: u64) -> SignedOrder {
        self.script().world.order(&self.bundle, node_id(), slot, fence)
    }

    /// Makes control request exactly these slots under these fences.
    fn want(&self, slots: &[(u32, u64)], draining: &[u32]) {
        let orders = slots.iter().map(|(slot, fence)| self.order(*slot, *fence)).collect();
        self.want_orders(orders, draining);
    }

    fn want_orders(&self, orders: Vec<SignedOrder>, draining: &[u32]) {
        let wanted = desired(&self.bundle, orders, draining);
        self.say(|script| script.desired = wanted);
    }

    /// Waits until a condition holds.
    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + WAIT_LIMIT;
        while !holds() {
            if tokio::time::Instant::now() > deadline {
                let living = self.launcher.living();
                panic!("still not: {what}; living: {living:?}; last report: {:#?}", self.script().last);
            }
            tokio::time::sleep(LOOK).await;
            // The kernel takes real time, for example for a connection: paused time waits for this thread.
            tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
        }
    }

    /// Waits until a slot is reported in this state, and returns the report.
    async fn until_slot(&self, slot: u32, fence: u64, state: SlotState) -> SlotReport {
        let version = self.bundle.certificate.proposal.subjects[0].version + 1;
        let find = || {
            let script = self.script();
            let slots = script.last.as_ref().map_or(&[][..], |request| &request.slots);
            let mut slots = slots.iter();
            slots
                .find(|r| (r.slot, r.fence, r.state) == (SlotIndex(slot), Fence::new(version, fence), state))
                .cloned()
        };
        self.until(&format!("slot {slot} under {fence} is {state:?}"), || find().is_some()).await;
        find().unwrap()
    }

    /// Waits until control has received the release of a slot.
    async fn until_released(&self, slot: u32, fence: u64) {
        let what = format!("slot {slot} under {fence} is released");
        self.until(&what, || self.script().released.contains(&(slot, fence))).await;
    }
}

/// Returns a decision function that gives every worker this behaviour.
fn always(behaviour: Behaviour) -> impl Fn(&Start) -> Behaviour + Send + Sync + 'static {
    move |_| behaviour.clone()
}

async fn answer_all(
    mut queue: mpsc::Receiver<ControlCall>,
    replica: usize,
    script: Arc<Mutex<SimulatedControl>>,
    news: Arc<Notify>,
    clocks: [Clock; 2],
) {
    while let Some(call) = queue.recv().await {
        tokio::spawn(answer(call, replica, script.clone(), news.clone(), clocks.clone()));
    }
}

/// Answers one call in the role of control.
async fn answer(
    call: ControlCall,
    replica: usize,
    script: Arc<Mutex<SimulatedControl>>,
    news: Arc<Notify>,
    [clock, node_clock]: [Clock; 2],
) {
    assert_eq!(call.node, node_id());
    *script.lock().unwrap().asked.entry(call.path).or_default() += 1;
    if script.lock().unwrap().dead.contains(&replica) {
        return;
    }
    if call.path.ends_with("halts") {
        return answer_halts(call, replica, script, news).await;
    }
    if call.path.ends_with("clock") && !script.lock().unwrap().silent {
        let answer = canonical::to_bytes(&ClockReading { now: clock.wall() });
        let _ = call.answer.send(Response::new(Bytes::from(answer)));
        return;
    }
    let denies = script.lock().unwrap().denies_admission;
    if script.lock().unwrap().silent || (denies && call.path.ends_with("enrol")) {
        return std::future::pending().await;
    }
    if denies {
        let mut response = Response::new(Bytes::from(error_code::NODE_NOT_ADMITTED.as_str()));
        *response.status_mut() = StatusCode::FORBIDDEN;
        let _ = call.answer.send(response);
        return;
    }
    if call.path.ends_with("enrol") {
        let genesis = script.lock().unwrap().world.genesis.clone();
        let answer = canonical::to_bytes(&EnrolResponse { admitted: true, genesis });
        let _ = call.answer.send(Response::new(Bytes::from(answer)));
        return;
    }
    let request: SyncRequest = canonical::from_bytes(&call.body, call.body.len()).unwrap();
    note(&mut script.lock().unwrap(), &request, &node_clock);
    if script.lock().unwrap().loses_answers {
        return;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
    loop {
        let changed = news.notified();
        let answer = {
            let script = script.lock().unwrap();
            let new = (script.desired.digest() != request.desired).then(|| script.desired.clone());
            let own = script.world.bundles.get(request.governance_length as usize..).unwrap_or_default();
            let governance = if script.forged.is_empty() { own } else { &script.forged };
            let governance = governance.iter().take(script.page).cloned().collect();
            let history = script.claimed.unwrap_or_else(|| script.world.served());
            SyncResponse { now: clock.wall(), term: 1, lease_ms: LEASE_MS, history, governance, desired: new }
        };
        let is_news = answer.desired.is_some() || !answer.governance.is_empty();
        if is_news || tokio::time::timeout_at(deadline, changed).await.is_err() {
            let mut response = Response::new(Bytes::from(canonical::to_bytes(&answer)));
            *response.status_mut() = StatusCode::OK;
            // An agent that has died since needs no answer.
            let _ = call.answer.send(response);
            return;
        }
    }
}

/// Incarnation of every simulated replica.
const REPLICA_BOOT: u64 = 7;

/// Answers a request for halts as soon as the replica has one, or when the wait is over.
async fn answer_halts(
    call: ControlCall,
    replica: usize,
    script: Arc<Mutex<SimulatedControl>>,
    news: Arc<Notify>,
) {
    let request: HaltsRequest = canonical::from_bytes(&call.body, call.body.len()).unwrap();
    let known = if request.after.boot == REPLICA_BOOT { request.after.number } else { 0 };
    let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.wait_ms));
    loop {
        let changed = news.notified();
        let halts: Vec<SignedHalt> = {
            let script = script.lock().unwrap();
            script.halts[replica].iter().skip(known as usize).take(HALTS_PAGE_MAX).cloned().collect()
        };
        if !halts.is_empty() || tokio::time::timeout_at(deadline, changed).await.is_err() {
            let last = HaltCursor { boot: REPLICA_BOOT, number: known + halts.len() as u64 };
            let answer = canonical::to_bytes(&HaltsAnswer { last, halts });
            let _ = call.answer.send(Response::new(Bytes::from(answer)));
            return;
        }
    }
}

fn note(script: &mut SimulatedControl, request: &SyncRequest, clock: &Clock) {
    let label = "simulated: workers are played by the agent; nothing computes, nothing is enforced";
    assert!(request.not_enforced.iter().any(|l| l == label), "every listing says that it is simulated");
    let gone = request.slots.iter().filter(|slot| slot.state == SlotState::Released);
    script.released.extend(gone.map(|slot| (slot.slot.0, slot.fence.count)));
    if script.newest_line.0 != request.boot {
        script.newest_line = (request.boot, 0);
    }
    for line in &request.logs {
        if line.sequence > script.newest_line.1 {
            script.newest_line.1 = line.sequence;
            script.lines.push(line.text.clone());
        } else {
            script.lines_again += 1;
        }
    }
    if script.last.as_ref().is_none_or(|last| last.slots != request.slots) {
        let slots = request.slots.iter();
        let slots =
            slots.map(|s| format!("{}.{} {:?} x{} {}", s.slot, s.fence, s.state, s.restarts, s.detail));
        let at = clock.boot();
        script.reports.push(format!("{at} {}", slots.collect::<Vec<_>>().join(", ")));
    }
    script.last = Some(request.clone());
}

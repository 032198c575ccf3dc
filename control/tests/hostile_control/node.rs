//! A node of a circle, with the real agent in paused time, and the hostile control that it asks.

use crate::circle::{TestCircle, admission, claimed_by, desired, service};
use bytes::Bytes;
use gpu_agent::agent::{
    AgentConfig, AgentError, ControlCall, ControlLink, DrainConfig, GatewayConfig, ResourceCaps,
    StorageConfig, run,
};
use gpu_agent::simulated::{Behaviour, SimulatedLauncher};
use host::Clock;
use http::Response;
use model_store::EncryptionSecret;
use overlay::{CancellationToken, Identity};
use protocol::access::{AccessAnswer, AccessRecord};
use protocol::agent::{
    ClockReading, Desired, EnrolResponse, SlotReport, SlotState, SyncRequest, SyncResponse,
};
use protocol::governance::{Bundle, GatewayEndpoint, HistoryHead, NodeAdmission, NodeRole};
use protocol::halt::{HaltCursor, HaltsAnswer, SignedHalt};
use protocol::limits::LEASE_MS;
use protocol::manifest::{Isolation, ServiceManifest};
use protocol::order::SignedOrder;
use protocol::{BootTime, Digest, Fence, Millis, ModelRoot, NodeId, SlotIndex, canonical};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Seed of the node's key.
const NODE: [u8; 32] = [7; 32];
/// Seed of the gateway's key.
const GATEWAY: [u8; 32] = [17; 32];
/// Wall clock at the start of an attack.
pub(crate) const BEGAN: Millis = Millis(1_800_000_000_000);
/// Longest wait for a condition, in the agent's time.
const WAIT_LIMIT: Duration = Duration::from_secs(600);
/// Interval at which a condition is polled.
const LOOK: Duration = Duration::from_millis(20);

/// Answers of the hostile control, and the last request that it got.
pub(crate) struct Script {
    pub(crate) world: TestCircle,
    /// Decisions that are served in place of the circle's.
    pub(crate) served: Option<Vec<Bundle>>,
    /// Bundles that come with every answer, asked for or not.
    pub(crate) forced: Option<Vec<Bundle>>,
    /// Head that is claimed in place of that of the circle's own decisions.
    pub(crate) claimed: Option<HistoryHead>,
    /// Bytes that are sent in place of an answer to a sync.
    pub(crate) raw: Option<Bytes>,
    pub(crate) desired: Desired,
    pub(crate) halts: Vec<SignedHalt>,
    /// Grants of access, real ones or not.
    pub(crate) access: Vec<AccessRecord>,
    /// True while nothing is answered.
    pub(crate) silent: bool,
    pub(crate) last: Option<SyncRequest>,
}

/// A node with its hostile control.
pub(crate) struct Scene {
    directory: tempfile::TempDir,
    pub(crate) clock: Clock,
    /// Clock of every control replica.
    pub(crate) control_clock: Clock,
    script: Arc<Mutex<Script>>,
    calls: Vec<mpsc::Sender<ControlCall>>,
    launcher: Arc<SimulatedLauncher>,
    own_admission: NodeAdmission,
}

/// A running agent.
pub(crate) struct Agent {
    task: JoinHandle<Result<(), AgentError>>,
    shutdown: CancellationToken,
}

impl Agent {
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) fn node_id() -> NodeId {
    NodeId(Identity::from_seed(&NODE).public_key())
}

/// Returns a small service with eight slots.
pub(crate) fn small(name: &str) -> ServiceManifest {
    service(name, ModelRoot(Digest::of(b"model")), 8)
}

impl Scene {
    /// Creates a circle whose genesis admits the node, with three control replicas, all hostile.
    pub(crate) fn new() -> Self {
        Self::with(true, None)
    }

    /// Creates the same with a node that the genesis does not admit.
    pub(crate) fn before_admission() -> Self {
        Self::with(false, None)
    }

    /// Creates the same with a node that runs a gateway, which workers reach at this address.
    pub(crate) fn with_gateway(address: String) -> Self {
        Self::with(true, Some(address))
    }

    fn with(admitted: bool, gateway: Option<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let encryption = EncryptionSecret::create(&directory.path().join("encryption.key")).unwrap();
        let identity = Identity::from_seed(&NODE);
        let mut node = admission("node-1", &identity, encryption.public().clone());
        node.roles.extend(gateway.is_some().then_some(NodeRole::Gateway));
        node.gateway = gateway.map(|address| {
            let key = Identity::from_seed(&GATEWAY).public_key();
            GatewayEndpoint { key, address, api: "http://127.0.0.1:1".into() }
        });
        let node = claimed_by(&identity, node);
        let addresses: Vec<String> = (1..=3).map(|port| format!("127.0.0.1:{port}")).collect();
        let world = TestCircle::new(admitted.then(|| node.clone()).into_iter().collect(), &addresses, BEGAN);
        let script = Arc::new(Mutex::new(Script {
            world,
            served: None,
            forced: None,
            claimed: None,
            raw: None,
            desired: Desired { assignments: vec![], routes: None, jobs: vec![] },
            halts: vec![],
            access: vec![],
            silent: false,
            last: None,
        }));
        let control_clock = Clock::of_runtime(BootTime(0), BEGAN);
        let serve = |_| {
            let (calls, queue) = mpsc::channel(16);
            tokio::spawn(answer_all(queue, script.clone(), control_clock.clone()));
            calls
        };
        let calls = (0..3).map(serve).collect();
        let clock = Clock::of_runtime(BootTime(1_000_000), BEGAN);
        let launcher = SimulatedLauncher::new(clock.clone(), Isolation::SameUid, |_| Behaviour::default());
        Self { directory, clock, control_clock, script, calls, launcher, own_admission: node }
    }

    pub(crate) fn agent_directory(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    pub(crate) fn admission(&self) -> NodeAdmission {
        self.own_admission.clone()
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Starts the agent as its operator would, with 1 GiB of memory and two GPUs to offer.
    pub(crate) fn start(&self) -> Agent {
        self.start_with(None, None)
    }

    pub(crate) fn start_with(&self, gateway: Option<GatewayConfig>, storage: Option<StorageConfig>) -> Agent {
        let (genesis, circle) = {
            let world = &self.script().world;
            (world.genesis.clone(), world.state.id())
        };
        let config = AgentConfig {
            directory: self.agent_directory(),
            identity: Identity::from_seed(&NODE),
            encryption: EncryptionSecret::load(&self.directory.path().join("encryption.key")).unwrap(),
            genesis,
            circle,
            admission: self.own_admission.clone(),
            storage,
            gateway,
            serve_program: "/nowhere/quorate-serve".into(),
            resources: ResourceCaps { cpu_millicores: None, memory_bytes: Some(1 << 30) },
            device: gpu_agent::device::open(Some("2xH100")).unwrap(),
            launcher: self.launcher.clone(),
            clock: self.clock.clone(),
            lease_ms_max: LEASE_MS,
            control: ControlLink::InProcess(self.calls.clone()),
            metrics: None,
            drain: DrainConfig::default(),
        };
        let shutdown = CancellationToken::new();
        Agent { task: tokio::spawn(run(config, shutdown.clone())), shutdown }
    }

    /// Returns the configuration of a gateway, whose process the test plays.
    pub(crate) async fn gateway_config(&self, workers: TcpListener) -> GatewayConfig {
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity_file = self.directory.path().join("gateway.key");
        GatewayConfig { public, workers, metrics: None, identity_file, tls: None }
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Script) -> bool) {
        let deadline = tokio::time::Instant::now() + WAIT_LIMIT;
        while !holds(&self.script()) {
            let last = self.script().last.clone();
            assert!(tokio::time::Instant::now() < deadline, "still not: {what}; the last report: {last:#?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the agent has verified this many decisions.
    pub(crate) async fn until_length(&self, length: u64) {
        let verified = |script: &Script| script.last.as_ref().is_some_and(|r| r.governance_length == length);
        self.until(&format!("{length} decisions are verified"), verified).await;
    }

    /// Makes control order these slots, and nothing else.
    pub(crate) fn order(&self, bundle: &Bundle, orders: Vec<SignedOrder>) {
        let mut script = self.script();
        script.desired = desired(bundle, orders, &[]);
        script.last = None;
    }

    /// Makes control order one slot, and returns what the agent makes of it: the code of its refusal, if it
    /// refuses. An order that it accepts begins to load its model, which no store has.
    pub(crate) async fn try_order(&self, bundle: &Bundle, order: SignedOrder) -> Result<(), String> {
        let (slot, fence) = (order.order.slot, order.order.fence);
        self.order(bundle, vec![order]);
        self.outcome(slot, fence).await
    }

    /// Waits until the agent reports why a slot does not run, and returns the code.
    pub(crate) async fn trouble(&self, slot: SlotIndex) -> String {
        let reported = |script: &Script| -> Option<String> {
            let detail =
                judged(script).find(|report| report.slot == slot)?.detail.split(':').next()?.to_string();
            (!detail.is_empty()).then_some(detail)
        };
        self.until("the agent reports why the slot does not run", |script| reported(script).is_some()).await;
        reported(&self.script()).unwrap()
    }

    /// Waits for the agent's report on an order, and returns the code of its refusal, if it is refused.
    pub(crate) async fn outcome(&self, slot: SlotIndex, fence: Fence) -> Result<(), String> {
        let reported = |script: &Script| -> Option<SlotReport> {
            judged(script).find(|report| (report.slot, report.fence) == (slot, fence)).cloned()
        };
        self.until("the agent reports on the order", |script| reported(script).is_some()).await;
        let report = reported(&self.script()).unwrap();
        if report.state != SlotState::Refused {
            return Ok(());
        }
        Err(report.detail.split(':').next().unwrap_or_default().to_string())
    }
}

/// Returns the agent's reports without those on orders that it has not judged yet. An agent whose history is
/// not complete reports an order before it accepts or refuses it.
fn judged(script: &Script) -> impl Iterator<Item = &SlotReport> {
    let slots = script.last.iter().flat_map(|request| &request.slots);
    slots.filter(|report| report.detail != "ordered, and not started yet")
}

/// Plays one control replica: each of them leads.
async fn answer_all(mut queue: mpsc::Receiver<ControlCall>, script: Arc<Mutex<Script>>, clock: Clock) {
    while let Some(call) = queue.recv().await {
        tokio::spawn(answer(call, script.clone(), clock.clone()));
    }
}

async fn answer(call: ControlCall, script: Arc<Mutex<Script>>, clock: Clock) {
    if script.lock().unwrap().silent {
        return std::future::pending().await;
    }
    let bytes = if call.path.ends_with("clock") {
        canonical::to_bytes(&ClockReading { now: clock.wall() }).into()
    } else if call.path.ends_with("halts") {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let last = HaltCursor { boot: 7, number: 1 };
        canonical::to_bytes(&HaltsAnswer { last, halts: script.lock().unwrap().halts.clone() }).into()
    } else if call.path.ends_with("access") {
        tokio::time::sleep(Duration::from_millis(200)).await;
        canonical::to_bytes(&AccessAnswer { last: 0, records: script.lock().unwrap().access.clone() }).into()
    } else if call.path.ends_with("enrol") {
        let genesis = script.lock().unwrap().world.genesis.clone();
        canonical::to_bytes(&EnrolResponse { admitted: true, genesis }).into()
    } else {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sync(&call.body, &mut script.lock().unwrap(), &clock)
    };
    // An agent that has ended since needs no answer.
    let _ = call.answer.send(Response::new(bytes));
}

fn sync(body: &Bytes, script: &mut Script, clock: &Clock) -> Bytes {
    let request: SyncRequest = canonical::from_bytes(body, body.len()).unwrap();
    let length = request.governance_length as usize;
    let desired = (script.desired.digest() != request.desired).then(|| script.desired.clone());
    script.last = Some(request);
    if let Some(raw) = &script.raw {
        return raw.clone();
    }
    let served = script.served.as_ref().unwrap_or(&script.world.bundles);
    let history = script.claimed.unwrap_or_else(|| script.world.served());
    let page = served.get(length..).unwrap_or_default().iter().take(3).cloned().collect();
    let governance = script.forced.clone().unwrap_or(page);
    let now = clock.wall();
    canonical::to_bytes(&SyncResponse { now, term: 1, lease_ms: LEASE_MS, history, governance, desired })
        .into()
}

//! Test fixture: a node of a circle with its agent, its stores, a model, and a gateway that listens.

use crate::circle::{TestCircle, admission, claimed_by, service};
use crate::control::{Control, LONG_LEASE_MS, listeners};
use crate::program::copy_program;
use gpu_agent::agent::{
    AgentConfig, AgentError, ControlLink, DrainConfig, GatewayConfig, ResourceCaps, StorageConfig, run,
};
use host::Clock;
use model_store::{
    Context, EncryptionSecret, ImportOptions, ModelKey, PlacementRule, Pool, fresh_nonce, import, open_store,
    wrap_key,
};
use overlay::{CancellationToken, Identity};
use protocol::agent::{Assignment, Desired};
use protocol::governance::{Bundle, GatewayEndpoint, NodeRole};
use protocol::manifest::ServiceManifest;
use protocol::model::{ErasureCode, ModelRecord, Recipient, SignedWrap, StoreReference};
use protocol::order::{SignedOrder, SignedTicket};
use protocol::{Digest, Millis, NodeId, SlotIndex, canonical};
use sandbox::{LauncherConfig, SandboxLauncher};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Returns the desired state with this assignment alone.
pub(crate) fn only(assignment: Assignment) -> Desired {
    Desired { assignments: vec![assignment], routes: None, jobs: vec![] }
}

/// Seed of the node's key.
const NODE: [u8; 32] = [7; 32];
/// Seed of the gateway's key.
const GATEWAY: [u8; 32] = [17; 32];

/// A circle with one node and its environment.
pub struct Bench {
    pub control: Control,
    pub directory: tempfile::TempDir,
    pub gateway: TcpListener,
    cgroup: String,
    ids_first: u32,
    encryption_file: PathBuf,
    /// Digest of the model's bytes.
    pub weights: Digest,
    pub model: ModelRecord,
    key: ModelKey,
}

/// A running agent.
pub struct Agent {
    pub task: JoinHandle<Result<(), AgentError>>,
    pub shutdown: CancellationToken,
}

impl Agent {
    /// Ends the agent as `kill -9` would: everything in memory is lost immediately.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends the agent in an orderly way.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub fn node_id() -> NodeId {
    NodeId(Identity::from_seed(&NODE).public_key())
}

pub(crate) fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Millis(u64::try_from(since.as_millis()).unwrap())
}

impl Bench {
    /// Creates a circle with `replicas` of control, this node admitted, and a model imported as 2+1.
    pub async fn new(replicas: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        copy_program(Path::new(env!("CARGO_BIN_EXE_pretend-worker")), &directory.path().join("program"));
        let encryption_file = directory.path().join("encryption.key");
        let encryption = EncryptionSecret::create(&encryption_file).unwrap();
        let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut node = admission("node-1", &Identity::from_seed(&NODE), encryption.public().clone());
        node.roles.insert(NodeRole::Gateway);
        node.gateway = Some(GatewayEndpoint {
            key: Identity::from_seed(&GATEWAY).public_key(),
            address: gateway.local_addr().unwrap().to_string(),
            api: "http://127.0.0.1:1".into(),
        });
        let node = claimed_by(&Identity::from_seed(&NODE), node);
        let (listeners, addresses) = listeners(replicas).await;
        let control = Control::start(TestCircle::new(vec![node], &addresses, now()), listeners);
        let key = ModelKey::generate().unwrap();
        let (weights, model) = import_model(directory.path(), &key).await;
        let cgroup = format!("quorate-test/agent-{}-{number}", std::process::id());
        // Each test has a separate process under nextest; under plain cargo they share one.
        let ids_first = 300_000 + (std::process::id() % 500) * 64 + number * 8;
        Self { control, directory, gateway, cgroup, ids_first, encryption_file, weights, model, key }
    }

    pub fn agent_directory(&self) -> PathBuf {
        // Longer than the limit on a socket address.
        self.directory
            .path()
            .join("a-directory-with-a-name-that-no-unix-socket-could-have".repeat(2))
            .join("agent")
    }

    fn config(&self) -> AgentConfig {
        let script = self.control.script();
        let program = self.directory.path().join("program");
        let launcher = SandboxLauncher::new(LauncherConfig {
            program: program.clone(),
            arguments: vec!["sandbox-init".into()],
            state_dir: self.agent_directory().join("sandboxes"),
            cgroup_parent: self.cgroup.clone(),
            ids_first: self.ids_first,
            id_pairs: 4,
            lease_ms_max: LONG_LEASE_MS,
        });
        AgentConfig {
            directory: self.agent_directory(),
            identity: Identity::from_seed(&NODE),
            encryption: EncryptionSecret::load(&self.encryption_file).unwrap(),
            genesis: script.world.genesis.clone(),
            circle: script.world.state.id(),
            admission: script.world.genesis.genesis.nodes[0].clone(),
            storage: None,
            gateway: None,
            serve_program: program,
            resources: ResourceCaps { cpu_millicores: Some(4000), memory_bytes: None },
            device: gpu_agent::device::open(Some("2xH100")).unwrap(),
            launcher: Arc::new(launcher.unwrap()),
            clock: Clock::machine(),
            lease_ms_max: LONG_LEASE_MS,
            control: ControlLink::Overlay,
            metrics: None,
            drain: DrainConfig::default(),
        }
    }

    pub fn start(&self) -> Agent {
        self.start_with(|_| {})
    }

    pub fn start_with(&self, change: impl FnOnce(&mut AgentConfig)) -> Agent {
        let mut config = self.config();
        change(&mut config);
        let shutdown = CancellationToken::new();
        Agent { task: tokio::spawn(run(config, shutdown.clone())), shutdown }
    }

    /// Makes the circle deploy a service of the imported model.
    pub fn deploy(&self, name: &str) -> Bundle {
        self.deploy_with(name, |_| {})
    }

    pub fn deploy_with(&self, name: &str, change: impl FnOnce(&mut ServiceManifest)) -> Bundle {
        let mut manifest = service(name, self.model.root, 4);
        change(&mut manifest);
        let mut bundle = None;
        self.control.say(|script| bundle = Some(script.world.deploy(&manifest)));
        bundle.unwrap()
    }

    pub fn order(&self, bundle: &Bundle, slot: u32, fence: u64) -> SignedOrder {
        self.control.script().world.order(bundle, node_id(), slot, fence)
    }

    /// Makes control request exactly these orders of one deployment.
    pub fn want(&self, bundle: &Bundle, orders: Vec<SignedOrder>, draining: &[u32]) {
        let assignment = self.assignment(bundle, orders, draining);
        self.control.say(|script| script.desired = only(assignment));
    }

    pub fn assignment(&self, bundle: &Bundle, orders: Vec<SignedOrder>, draining: &[u32]) -> Assignment {
        Assignment {
            certificate: bundle.certificate.digest(),
            orders,
            draining: draining.iter().map(|slot| SlotIndex(*slot)).collect(),
            model: self.model.clone(),
            wrap: Some(self.wrap_of(&self.key)),
        }
    }

    /// Returns a key, wrapped to the node as that of its model, and signed by a member.
    pub fn wrap_of(&self, key: &ModelKey) -> SignedWrap {
        let public = EncryptionSecret::load(&self.encryption_file).unwrap().public().clone();
        let wrap = wrap_key(key, &public, self.model.root, Recipient::Node(node_id())).unwrap();
        self.control.script().world.sign_wrap(wrap, &public)
    }

    /// Returns the next connection of a worker to the gateway, and its first ticket. A worker that ended
    /// before it presented one is skipped.
    pub async fn worker(&self) -> (TcpStream, SignedTicket) {
        loop {
            let (mut stream, _) = self.gateway.accept().await.unwrap();
            if let Ok(ticket) = read_ticket(&mut stream).await {
                return (stream, ticket);
            }
        }
    }

    /// Returns the names of the sandboxes that have a directory.
    pub fn sandboxes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.agent_directory().join("sandboxes")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn storage(listener: TcpListener, directory: &Path) -> StorageConfig {
    let stores = [("disk-0".to_string(), directory.join("offered"))].into();
    StorageConfig { listener, stores }
}

pub async fn gateway_config(directory: &Path) -> (GatewayConfig, std::net::SocketAddr) {
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = public.local_addr().unwrap();
    let workers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity_file = directory.join("gateway.key");
    (GatewayConfig { public, workers, metrics: None, identity_file, tls: None }, address)
}

/// Returns the next ticket that a worker presents.
pub async fn ticket(stream: &mut TcpStream) -> SignedTicket {
    read_ticket(stream).await.unwrap()
}

async fn read_ticket(stream: &mut TcpStream) -> std::io::Result<SignedTicket> {
    let length = stream.read_u32().await? as usize;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(canonical::from_bytes(&bytes, length).unwrap())
}

async fn import_model(directory: &Path, key: &ModelKey) -> (Digest, ModelRecord) {
    // More than two segments, the last of odd length.
    let bytes: Vec<u8> = (0_u32..2_500_001).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let source = directory.join("weights.bin.txt");
    fs::write(&source, &bytes).unwrap();
    let reference = |n: usize| StoreReference {
        url: format!("file://{}/store-{n}", directory.display()),
        failure_domain: n.to_string(),
    };
    let context = Context::new();
    let stores: Vec<_> = (0..3).map(|n| open_store(&reference(n), &context).unwrap()).collect();
    let options = ImportOptions {
        erasure: ErasureCode { data: 2, parity: 1 },
        placement: PlacementRule { shards_per_domain_max: 1 },
        ..ImportOptions::new("tiny".parse().unwrap(), fresh_nonce().unwrap())
    };
    let imported = import(&source, options, &stores, key, &Pool::new(2), |_| ()).await.unwrap();
    (Digest::of(&bytes), imported.record)
}

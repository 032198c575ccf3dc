//! A node's state directory and its agent.
//!
//! The directory holds the node's keys and its request for admission. This module also configures and starts
//! the agent of the `gpu-agent` crate.

mod health;
mod job_data;
mod models;
mod register;
mod sweep;

pub use health::{HealthSummary, RepairSummary, ShardFaultSummary};
pub use models::{ImportRequest, ImportSummary, ModelAccess, artifact_cache, store_reference};
pub use register::{SharedKey, SharedKeys, share_keys};
pub use sweep::SweepSummary;

use anyhow::{Context as _, Result, anyhow};
use gpu_agent::agent::{AgentConfig, ControlLink, DrainConfig, GatewayConfig, ResourceCaps, StorageConfig};
use host::{Clock, files};
use model_store::EncryptionSecret;
use overlay::{CancellationToken, Identity};
use protocol::governance::{NODE_KEYS_DOMAIN, NodeAdmission, SignedGenesis};
use protocol::limits::LEASE_MS;
use protocol::{CircleId, EncryptionKey, PublicKey, Refusal, Signature, error_code};
use sandbox::{LauncherConfig, SandboxLauncher};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Keys of a node: what its admission says of them, and the identity that claims them.
pub struct NodeKeys {
    /// The key that identifies the node.
    pub identity: Identity,
    /// The key to which the models' keys are wrapped.
    pub encryption: EncryptionKey,
    /// TLS key of its gateway, if it runs one.
    pub gateway: Option<PublicKey>,
}

/// Stands for the signature of an admission that [`NodeKeys::claim`] has yet to sign.
pub const UNSIGNED: Signature = Signature([0; 64]);

impl NodeKeys {
    /// Returns the admission with the node's signature over its keys. It is made on the node, so that no
    /// party on the way to the voters can exchange a key.
    #[must_use]
    pub fn claim(&self, mut admission: NodeAdmission) -> NodeAdmission {
        admission.proof = self.identity.sign(NODE_KEYS_DOMAIN, &admission.key_claim());
        admission
    }
}

/// Contents of `node.json`, which `quorate agent init` writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// The admission that the node asks for.
    pub admission: NodeAdmission,
}

impl NodeFile {
    fn path(directory: &Path) -> PathBuf {
        directory.join("node.json")
    }

    /// Reads `node.json` from a node's directory.
    ///
    /// # Errors
    /// Returns an error if the directory was never prepared.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = Self::path(directory);
        let text = std::fs::read_to_string(&path).with_context(|| {
            let message = format!("read `{}` (`quorate agent init` creates it)", path.display());
            Refusal::new(error_code::NODE_DIRECTORY_MISSING, message)
        })?;
        serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))
    }

    /// Writes `node.json` to a node's directory.
    ///
    /// # Errors
    /// Returns the error of the disk.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = Self::path(directory);
        let text = serde_json::to_string_pretty(self)?;
        files::write_atomically(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("write `{}`", path.display()))
    }
}

/// Creates a node's keys, or reads the existing ones.
///
/// # Errors
/// Returns an error if the directory cannot be written or a key file is damaged.
pub fn create_keys(directory: &Path, with_gateway: bool) -> Result<NodeKeys> {
    files::private_directory(directory).with_context(|| format!("create `{}`", directory.display()))?;
    let identity = Identity::load_or_create(&directory.join("identity.key"))?;
    let encryption_file = directory.join("encryption.key");
    let encryption = if encryption_file.exists() {
        EncryptionSecret::load(&encryption_file)?
    } else {
        EncryptionSecret::create(&encryption_file)?
    };
    let gateway = if with_gateway {
        Some(Identity::load_or_create(&directory.join("gateway.key"))?.public_key())
    } else {
        None
    };
    Ok(NodeKeys { identity, encryption: encryption.public().clone(), gateway })
}

/// Settings with which a node's agent is started.
pub struct NodeSettings {
    /// State directory of the node.
    pub directory: PathBuf,
    /// The signed genesis of the circle.
    pub genesis: SignedGenesis,
    /// The pinned circle.
    pub circle: CircleId,
    /// Listener on which the node offers storage.
    pub storage: Option<TcpListener>,
    /// Listener on which workers reach its gateway.
    pub gateway_workers: Option<TcpListener>,
    /// Listener on which applications reach its gateway.
    pub gateway_api: Option<TcpListener>,
    /// Listener for the Prometheus metrics of its gateway.
    pub gateway_metrics: Option<TcpListener>,
    /// Certificate and key files for applications' TLS connections.
    pub gateway_tls: Option<(PathBuf, PathBuf)>,
    /// Listener for the Prometheus metrics of its agent.
    pub metrics: Option<TcpListener>,
    /// Path of the worker's binary, if it is not beside this one.
    pub serve_program: Option<PathBuf>,
    /// Thousandths of a core to offer; none offers all.
    pub cpu_millicores: Option<u64>,
    /// Bytes of memory to offer; none offers all.
    pub memory_bytes: Option<u64>,
    /// GPUs to simulate, like `8xH100`.
    pub simulate_gpus: Option<String>,
    /// Control group under which the sandboxes are created.
    pub cgroup: Option<String>,
    /// First host user id for sandboxes.
    pub ids_first: u32,
    /// Number of id pairs for sandboxes.
    pub id_pairs: u32,
    /// Request to end once the node's streams have finished.
    pub drain: DrainConfig,
}

/// Returns the directories of a node's stores, by name.
#[must_use]
pub fn store_directories(directory: &Path, file: &NodeFile) -> BTreeMap<String, PathBuf> {
    let stores = file.admission.storage.iter().flat_map(|storage| &storage.stores);
    stores.map(|name| (name.to_string(), directory.join("stores").join(name.as_str()))).collect()
}

/// Runs the node's agent until `shutdown`, or until the drain that its settings request is over.
///
/// # Errors
/// Returns an error if the agent cannot start.
pub async fn run(settings: NodeSettings, shutdown: CancellationToken) -> Result<()> {
    let directory = settings.directory;
    let file = NodeFile::load(&directory)?;
    let program = std::env::current_exe().context("find this binary")?;
    let beside = program.with_file_name("quorate-serve");
    let serve_program = settings.serve_program.unwrap_or(beside);
    if !serve_program.is_file() {
        return Err(anyhow!("`{}` is missing; give --serve-program", serve_program.display()));
    }
    let stores = store_directories(&directory, &file);
    for store in stores.values() {
        std::fs::create_dir_all(store).with_context(|| format!("create `{}`", store.display()))?;
    }
    let gateway = match (settings.gateway_workers, settings.gateway_api) {
        (Some(workers), Some(api)) => Some(GatewayConfig {
            public: api,
            workers,
            metrics: settings.gateway_metrics,
            identity_file: directory.join("gateway.key"),
            tls: settings.gateway_tls,
        }),
        _ => None,
    };
    let launcher = LauncherConfig {
        program,
        arguments: vec!["sandbox-init".into()],
        state_dir: directory.join("sandboxes"),
        cgroup_parent: settings.cgroup.unwrap_or_else(|| format!("quorate/{}", file.admission.name)),
        ids_first: settings.ids_first,
        id_pairs: settings.id_pairs,
        lease_ms_max: LEASE_MS,
    };
    // The launcher executes this program to probe the isolation that the machine supports.
    let launcher = tokio::task::spawn_blocking(|| SandboxLauncher::new(launcher)).await??;
    let identity = Identity::load(&directory.join("identity.key"))?;
    // The operator reads this key to the members, who compare it with the key of the node that asks for
    // admission.
    tracing::info!(node = %file.admission.name, identity = %identity.public_key(), "the agent starts");
    let config = AgentConfig {
        identity,
        encryption: EncryptionSecret::load(&directory.join("encryption.key"))?,
        genesis: settings.genesis,
        circle: settings.circle,
        storage: settings.storage.map(|listener| StorageConfig { listener, stores }),
        gateway,
        serve_program,
        resources: ResourceCaps {
            cpu_millicores: settings.cpu_millicores,
            memory_bytes: settings.memory_bytes,
        },
        device: gpu_agent::device::open(settings.simulate_gpus.as_deref())?,
        launcher: Arc::new(launcher),
        clock: Clock::machine(),
        lease_ms_max: LEASE_MS,
        control: ControlLink::Overlay,
        metrics: settings.metrics,
        drain: settings.drain,
        admission: file.admission,
        directory,
    };
    gpu_agent::agent::run(config, shutdown).await.map_err(Into::into)
}

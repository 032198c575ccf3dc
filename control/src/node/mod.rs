//! A node's directory and its agent: keys, what it asked to be admitted as, and the wiring of `gpu-agent`.

mod health;
mod models;
mod register;
mod sweep;

pub use health::{Fault, HealthSummary, RepairSummary};
pub use models::{ImportRequest, ImportSummary, ModelAccess, ModelFailure, store_reference};
pub use register::{SharedKeys, wrap_models_to};
pub use sweep::SweepSummary;

use anyhow::{Context as _, Result, anyhow};
use gpu_agent::Clock;
use gpu_agent::agent::{AgentConfig, ControlLink, GatewayConfig, ResourceCaps, StorageConfig};
use gpu_agent::files;
use gpu_agent::sandbox::{LauncherConfig, SandboxLauncher};
use model_store::EncryptionSecret;
use overlay::{CancellationToken, Identity};
use protocol::governance::{NodeAdmission, SignedGenesis};
use protocol::limits::LEASE_MS;
use protocol::{CircleId, EncryptionKey, PublicKey, error_code};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;

/// A node's public keys.
pub struct NodeKeys {
    /// Who it is.
    pub identity: PublicKey,
    /// Where models' keys are wrapped to.
    pub encryption: EncryptionKey,
    /// Its gateway's TLS key.
    pub gateway: Option<PublicKey>,
}

/// What a node was prepared as.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// What it asks to be admitted as.
    pub admission: NodeAdmission,
}

impl NodeFile {
    fn path(directory: &Path) -> PathBuf {
        directory.join("node.json")
    }

    /// Reads the file of a node's directory.
    ///
    /// # Errors
    /// When the directory was never prepared.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = Self::path(directory);
        let text = std::fs::read_to_string(&path).with_context(|| {
            let code = error_code::NODE_DIRECTORY_MISSING;
            format!("{code}: read `{}` (`quorate agent init` makes it)", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("`{}`", path.display()))
    }

    /// Writes it.
    ///
    /// # Errors
    /// The disk's own.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = Self::path(directory);
        let text = serde_json::to_string_pretty(self)?;
        files::write_atomically(&path, text.as_bytes(), 0o644)
            .with_context(|| format!("write `{}`", path.display()))
    }
}

/// Makes a node's keys, or reads those it has.
///
/// # Errors
/// When the directory cannot be written or a key file is damaged.
pub fn create_keys(directory: &Path, with_gateway: bool) -> Result<NodeKeys> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("create `{}`", directory.display()))?;
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
    Ok(NodeKeys { identity: identity.public_key(), encryption: encryption.public().clone(), gateway })
}

/// What a node is told at its start.
pub struct NodeSettings {
    /// Its own directory.
    pub directory: PathBuf,
    /// How the circle begins.
    pub genesis: SignedGenesis,
    /// The pinned circle.
    pub circle: CircleId,
    /// Where it offers storage.
    pub storage: Option<TcpListener>,
    /// Where workers reach its gateway.
    pub gateway_workers: Option<TcpListener>,
    /// Where applications reach its gateway.
    pub gateway_api: Option<TcpListener>,
    /// Where Prometheus reaches its gateway.
    pub gateway_metrics: Option<TcpListener>,
    /// The operator's certificate and key for applications.
    pub gateway_tls: Option<(PathBuf, PathBuf)>,
    /// Where Prometheus reaches its agent.
    pub metrics: Option<TcpListener>,
    /// The worker's binary, if it is not beside this one.
    pub serve_program: Option<PathBuf>,
    /// Thousandths of a core to offer; none = all.
    pub cpu_millicores: Option<u64>,
    /// Memory to offer; none = all.
    pub memory_bytes: Option<u64>,
    /// GPUs to pretend.
    pub simulate_gpus: Option<String>,
    /// Control group below which sandboxes live.
    pub cgroup: Option<String>,
    /// First host user id for sandboxes.
    pub ids_first: u32,
    /// Pairs of ids.
    pub id_pairs: u32,
}

/// Directories of a node's stores, by name.
#[must_use]
pub fn store_directories(directory: &Path, file: &NodeFile) -> BTreeMap<String, PathBuf> {
    let stores = file.admission.storage.iter().flat_map(|storage| &storage.stores);
    stores.map(|name| (name.to_string(), directory.join("stores").join(name.as_str()))).collect()
}

/// Runs the node's agent until `shutdown`.
///
/// # Errors
/// When it cannot start.
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
    // It executes this program to learn what can be isolated here.
    let launcher = tokio::task::spawn_blocking(|| SandboxLauncher::new(launcher)).await??;
    let identity = Identity::load(&directory.join("identity.key"))?;
    // Its operator reads it to the members, which compare it with the one that asks to be admitted.
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
        admission: file.admission,
        directory,
    };
    gpu_agent::agent::run(config, shutdown).await.map_err(Into::into)
}

//! Nodes of a benchmark: agents of the product as processes, with real sandboxes, and agents in a process of
//! the benchmark, whose workers are simulated.
//!
//! An agent of the second kind is the product's core: its chain, its files, its links over TLS. Its launcher
//! and its GPU are simulated, and it starts no process.

use super::{ControlCluster, built, start};
use crate::process::{ChildGuard, free_ports};
use anyhow::Result;
use control::node::{NodeFile, UNSIGNED, create_keys};
use gpu_agent::agent::{AgentConfig, ControlLink, DrainConfig, ResourceCaps};
use gpu_agent::simulated::{Behaviour, SimulatedLauncher};
use host::Clock;
use model_store::EncryptionSecret;
use overlay::Identity;
use protocol::governance::{GatewayEndpoint, NodeAdmission, NodeRole, SignedGenesis, StorageEndpoint};
use protocol::limits::LEASE_MS;
use protocol::manifest::Isolation;
use protocol::{CircleId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;

/// Region of the nodes whose workers are simulated.
const REGION: &str = "simulated";
/// First host user id of the sandboxes: above those of `quorate up`.
const IDS_FIRST: u32 = 640_000;
/// User ids of a node.
const IDS: u32 = 256;

/// Prepares the directory of a worker of this name, with keys of its own, below `parent`.
pub(crate) fn prepare(parent: &Path, name: &str) -> Result<NodeAdmission> {
    prepare_with(parent, name, REGION, None)
}

/// Prepares a worker of this region that may offer storage.
fn prepare_with(
    parent: &Path,
    name: &str,
    region: &str,
    storage: Option<StorageEndpoint>,
) -> Result<NodeAdmission> {
    let storing = storage.is_some().then_some(NodeRole::Storage);
    let roles = [NodeRole::Worker].into_iter().chain(storing).collect();
    admit(parent, NodeParts { name, region, roles, storage, gateway: None })
}

/// Parts of a node that differ.
struct NodeParts<'a> {
    name: &'a str,
    region: &'a str,
    roles: BTreeSet<NodeRole>,
    storage: Option<StorageEndpoint>,
    /// Address for workers and URL for applications.
    gateway: Option<(String, String)>,
}

fn admit(parent: &Path, parts: NodeParts<'_>) -> Result<NodeAdmission> {
    let directory = parent.join(parts.name);
    let keys = create_keys(&directory, parts.gateway.is_some())?;
    let endpoint = |((address, api), key)| GatewayEndpoint { key, address, api };
    let admission = NodeAdmission {
        name: parts.name.parse().map_err(anyhow::Error::msg)?,
        id: NodeId(keys.identity.public_key()),
        encryption: keys.encryption.clone(),
        roles: parts.roles,
        region: parts.region.into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: parts.storage,
        gateway: parts.gateway.zip(keys.gateway).map(endpoint),
        proof: UNSIGNED,
    };
    let admission = keys.claim(admission);
    NodeFile { admission: admission.clone() }.save(&directory)?;
    Ok(admission)
}

/// A node before its start: `quorate agent run`, with ports of its own.
#[derive(Clone)]
pub(crate) struct PreparedNode {
    pub(crate) name: String,
    /// Listeners of the command line.
    arguments: Vec<String>,
    /// URL of the gateway's API, if the node is one.
    pub(crate) api: Option<String>,
}

/// A running node.
pub(crate) struct NodeProcess {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    agent: ChildGuard,
}

/// Prepares a worker with real sandboxes in this region, which offers these stores.
pub(crate) fn prepare_worker(
    parent: &Path,
    name: &str,
    region: &str,
    stores: &[&str],
) -> Result<(PreparedNode, NodeAdmission)> {
    let address = format!("127.0.0.1:{}", free_ports(1)?[0]);
    let stores = stores.iter().map(|store| store.parse().map_err(anyhow::Error::msg));
    let storage = StorageEndpoint { address: address.clone(), stores: stores.collect::<Result<_>>()? };
    let admission = prepare_with(parent, name, region, Some(storage))?;
    let arguments = vec!["--storage".into(), address];
    Ok((PreparedNode { name: name.into(), arguments, api: None }, admission))
}

/// Prepares a gateway.
pub(crate) fn prepare_gateway(parent: &Path, name: &str) -> Result<(PreparedNode, NodeAdmission)> {
    let ports = free_ports(2)?;
    let [workers, api] = [ports[0], ports[1]].map(|port| format!("127.0.0.1:{port}"));
    let (roles, url) = (BTreeSet::from([NodeRole::Gateway]), format!("http://{api}"));
    let gateway = Some((workers.clone(), url.clone()));
    let admission = admit(parent, NodeParts { name, region: "local", roles, storage: None, gateway })?;
    let arguments = ["--gateway", &workers, "--gateway-api", &api].map(str::to_string).to_vec();
    Ok((PreparedNode { name: name.into(), arguments, api: Some(url) }, admission))
}

impl PreparedNode {
    /// Starts the node's agent; `number` keeps the users of its sandboxes apart from those of other nodes.
    pub(crate) fn start(self, cluster: &ControlCluster, number: u32) -> Result<NodeProcess> {
        let directory = cluster.directory.join(&self.name);
        let (dir, circle) = (directory.display().to_string(), cluster.context.circle.to_string());
        let genesis = cluster.directory.join("genesis.json").display().to_string();
        let cgroup = format!("quorate-bench-{}/{}", std::process::id(), self.name);
        let ids_first = (IDS_FIRST + number * IDS).to_string();
        let arguments = ["agent", "run", "--dir", &dir, "--genesis", &genesis, "--circle", &circle];
        let sandboxes = ["--cgroup", &cgroup, "--ids-first", &ids_first, "--id-pairs", "64"];
        let own: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let log = cluster.directory.join(format!("{}.log", self.name));
        built("quorate-serve")?;
        let agent = start(&built("quorate")?, &[&arguments[..], &sandboxes, &own].concat(), &log)?;
        Ok(NodeProcess { name: self.name, directory, agent })
    }
}

impl NodeProcess {
    /// Returns the process of the agent.
    pub(crate) fn id(&self) -> u32 {
        self.agent.id()
    }
}

/// Returns the configuration of an agent in a directory that [`prepare`] made.
pub(crate) fn agent_config(
    directory: &Path,
    genesis: &SignedGenesis,
    circle: CircleId,
    metrics: Option<TcpListener>,
) -> Result<AgentConfig> {
    let clock = Clock::machine();
    Ok(AgentConfig {
        identity: Identity::load(&directory.join("identity.key"))?,
        encryption: EncryptionSecret::load(&directory.join("encryption.key"))?,
        genesis: genesis.clone(),
        circle,
        admission: NodeFile::load(directory)?.admission,
        storage: None,
        gateway: None,
        serve_program: "/nowhere/quorate-serve".into(),
        resources: ResourceCaps::default(),
        device: gpu_agent::device::open(Some("1xL4"))?,
        launcher: SimulatedLauncher::new(clock.clone(), Isolation::SameUid, |_| Behaviour::default()),
        clock,
        lease_ms_max: LEASE_MS,
        control: ControlLink::Overlay,
        metrics,
        drain: DrainConfig::default(),
        directory: directory.to_path_buf(),
    })
}

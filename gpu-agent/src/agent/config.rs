//! Configuration of an agent.

use super::control_client::ControlLink;
use super::drain::DrainConfig;
use super::resources::ResourceCaps;
use crate::device::Device;
use host::Clock;
use model_store::EncryptionSecret;
use overlay::Identity;
use protocol::CircleId;
use protocol::governance::{NodeAdmission, SignedGenesis};
use sandbox::Launcher;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Configuration of an agent. All files that the agent creates or opens on its own are below `directory`.
pub struct AgentConfig {
    /// The agent's directory: chain, orders, sandboxes, admin socket. Created with mode 0700 if missing.
    pub directory: PathBuf,
    /// The node's key: its TLS name, and the signer of tickets.
    pub identity: Identity,
    /// Secret half of the key to which model keys are wrapped.
    pub encryption: EncryptionSecret,
    /// Genesis of the circle.
    pub genesis: SignedGenesis,
    /// The circle's id, pinned.
    pub circle: CircleId,
    /// Admission that the node requests while no certificate admits it. The name in it is the node's own.
    pub admission: NodeAdmission,
    /// Storage that the node offers, if any.
    pub storage: Option<StorageConfig>,
    /// Gateway that the agent runs, if any.
    pub gateway: Option<GatewayConfig>,
    /// Path of the `quorate-serve` executable.
    pub serve_program: PathBuf,
    /// Upper bounds on the resources that the node offers.
    pub resources: ResourceCaps,
    /// GPUs of the node.
    pub device: Box<dyn Device>,
    /// Launcher of workers. Its own directory may be below the agent's.
    pub launcher: Arc<dyn Launcher>,
    /// Source of the time.
    pub clock: Clock,
    /// Length of a liveness lease, and the longest lease accepted from control:
    /// [`protocol::limits::LEASE_MS`], except in tests that may stall.
    pub lease_ms_max: u64,
    /// Link to the control replicas.
    pub control: ControlLink,
    /// Listener for Prometheus metrics, on loopback.
    pub metrics: Option<TcpListener>,
    /// Request to end once the streams of this node have finished.
    pub drain: DrainConfig,
}

/// Directories that a node offers as stores.
pub struct StorageConfig {
    /// Listener for admitted peers, at the admitted storage address.
    pub listener: TcpListener,
    /// Directories by the name of the store. Their parents must exist.
    pub stores: BTreeMap<String, PathBuf>,
}

/// A gateway process. The agent keeps the listening sockets, so that the ports outlive the process.
pub struct GatewayConfig {
    /// Listener for applications.
    pub public: TcpListener,
    /// Listener for workers, at the admitted gateway address.
    pub workers: TcpListener,
    /// Listener for the gateway's Prometheus metrics, on loopback.
    pub metrics: Option<TcpListener>,
    /// File with the gateway's own key, as admitted.
    pub identity_file: PathBuf,
    /// PEM files with the certificate chain and private key for applications; none = plain HTTP on loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
}

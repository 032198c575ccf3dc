//! What an agent is told at its start.

use super::control_client::ControlLink;
use super::resources::ResourceCaps;
use crate::clock::Clock;
use crate::device::Device;
use crate::launcher::Launcher;
use model_store::EncryptionSecret;
use overlay::Identity;
use protocol::CircleId;
use protocol::governance::{NodeAdmission, SignedGenesis};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

/// What an agent is told at its start. Everything that it opens itself lies below `directory`.
pub struct AgentConfig {
    /// Its own directory: chain, orders, sandboxes, admin socket. Made if it is not there, mode 0700.
    pub directory: PathBuf,
    /// Its key: TLS name, and signer of tickets.
    pub identity: Identity,
    /// What model keys are wrapped to.
    pub encryption: EncryptionSecret,
    /// How the circle begins.
    pub genesis: SignedGenesis,
    /// The circle's id, pinned.
    pub circle: CircleId,
    /// What it asks to be admitted as while no certificate admits it. The name in it is its own.
    pub admission: NodeAdmission,
    /// What it offers to store, if anything.
    pub storage: Option<StorageConfig>,
    /// The gateway that it runs, if any.
    pub gateway: Option<GatewayConfig>,
    /// The `quorate-serve` executable.
    pub serve_program: PathBuf,
    /// The most that it offers.
    pub resources: ResourceCaps,
    /// Its GPUs.
    pub device: Box<dyn Device>,
    /// How it starts workers. A launcher's own directory may lie below the agent's.
    pub launcher: Arc<dyn Launcher>,
    /// Where it reads the time.
    pub clock: Clock,
    /// The longest lease that it takes from control: [`protocol::limits::LEASE_MS`], but in tests that may stall.
    pub lease_ms_max: u64,
    /// How it reaches control.
    pub control: ControlLink,
    /// Where to serve Prometheus metrics; loopback.
    pub metrics: Option<TcpListener>,
}

/// Directories that a node offers as stores.
pub struct StorageConfig {
    /// Where admitted peers connect: the admitted storage address.
    pub listener: TcpListener,
    /// Directories by the name of the store. Their parents must be there.
    pub stores: BTreeMap<String, PathBuf>,
}

/// A gateway process. The agent keeps the listening sockets, so that the ports outlive the process.
pub struct GatewayConfig {
    /// Where applications connect.
    pub public: TcpListener,
    /// Where workers connect: the admitted gateway address.
    pub workers: TcpListener,
    /// Where to serve the gateway's Prometheus metrics; loopback.
    pub metrics: Option<TcpListener>,
    /// The gateway's own key, as admitted.
    pub identity_file: PathBuf,
    /// Certificate chain and private key for applications, PEM; none = plain HTTP on loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
}

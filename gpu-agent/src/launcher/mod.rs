//! How an agent starts workers and finds them again. Two implementations: real sandboxes
//! ([`SandboxLauncher`](crate::sandbox::SandboxLauncher)) and workers that this process plays
//! ([`SimulatedLauncher`]), which label themselves in every listing.
//!
//! What may surprise: nothing here blocks. A real launcher works on the runtime's blocking threads, a
//! simulated one only lets the runtime's own clock run, so an agent can be rehearsed in paused time.

mod simulated;

pub use simulated::{Behaviour, SimulatedLauncher};

use crate::sandbox::{Ended, MetricsReader, OutputPosition, SandboxError};
use futures::future::BoxFuture;
use protocol::agent::Isolation;
use protocol::sandbox::SandboxLimits;
use protocol::worker::InitReply;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;

/// Starts workers for one agent.
pub trait Launcher: Send + Sync {
    /// What this machine and user can enforce.
    fn isolation(&self) -> &IsolationReport;

    /// Starts a worker in a new sandbox. When this is ready, its program runs and its record is durable;
    /// of a failed start nothing is left. Not to be dropped before it is ready: what was begun then stands
    /// until its lease lapses.
    fn start(self: Arc<Self>, start: Start) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>>;

    /// Workers that live, whoever started them: what an agent asks first after its own restart.
    fn list_running(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<Arc<dyn Running>>, SandboxError>>;

    /// Removes what sandboxes that have ended left. Returns of how many. Not to be called while a start is
    /// under way.
    fn sweep_stale(self: Arc<Self>) -> BoxFuture<'static, Result<usize, SandboxError>>;
}

/// A sandbox that was alive when this value was made. Dropping it ends nothing: the lease does that.
pub trait Running: Send + Sync + Debug {
    /// Its name on this node.
    fn name(&self) -> &str;

    /// What is not enforced on it, each beginning with a label.
    fn not_enforced(&self) -> &[String];

    /// Lengthens its lease to this time of the boot clock. An error says that its init does not answer: it
    /// has ended, or is about to.
    fn renew(self: Arc<Self>, until_boottime_ms: u64) -> BoxFuture<'static, Result<InitReply, SandboxError>>;

    /// Asks the worker to end, and ends the sandbox after the grace.
    fn stop(self: Arc<Self>, grace_ms: u64) -> BoxFuture<'static, Result<InitReply, SandboxError>>;

    /// Waits until it has ended. Safe to drop.
    fn wait(self: Arc<Self>) -> BoxFuture<'static, io::Result<Ended>>;

    /// Ends it if it lives, and removes what is left of it. May be asked again after an error.
    fn remove(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Ended>, SandboxError>>;

    /// A new connection to the worker's socket.
    ///
    /// # Errors
    /// What the system answers.
    fn connect_worker(&self) -> io::Result<UnixStream>;

    /// The worker's metrics.
    ///
    /// # Errors
    /// What the system answers.
    fn metrics(&self) -> io::Result<MetricsReader>;

    /// What the worker has printed since a position, which moves on; a bounded number of bytes at a time.
    fn output(&self, position: &mut OutputPosition) -> Vec<u8>;

    /// The position after everything printed so far.
    fn output_end(&self) -> OutputPosition;

    /// The last bytes that the worker printed, at most this many.
    fn output_tail(&self, bytes_max: u64) -> Vec<u8>;

    /// Notes beside the sandbox that every byte of its weights is there: only then can it go on without
    /// the agent that filled them. It need not survive the machine: neither does the sandbox.
    ///
    /// # Errors
    /// What the system answers.
    fn mark_complete(&self) -> io::Result<()>;

    /// Whether that was noted.
    fn is_complete(&self) -> bool;
}

/// How well this machine and user can isolate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationReport {
    /// The level, against which manifests state their minimum.
    pub level: Isolation,
    /// What cannot be enforced here, each beginning with a label.
    pub not_enforced: Vec<String>,
}

/// One sandbox to start.
#[derive(Debug)]
pub struct Start {
    /// Its name on this node: 1 to 63 of `a-z 0-9 - . _`.
    pub name: String,
    /// The worker's executable.
    pub binary: PathBuf,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// What it may use.
    pub limits: SandboxLimits,
    /// Host files and directories that it sees, read-only, besides its libraries.
    pub read_only: Vec<PathBuf>,
    /// Device nodes that it may use.
    pub devices: Vec<PathBuf>,
    /// Becomes [`protocol::worker::WORKER_WEIGHTS_FD`].
    pub weights: OwnedFd,
    /// Becomes [`protocol::worker::WORKER_PROGRESS_FD`].
    pub progress: OwnedFd,
    /// Becomes [`protocol::worker::WORKER_MANIFEST_FD`]: a canonical `WorkerManifest`.
    pub manifest: Vec<u8>,
    /// First lease, on the boot clock.
    pub lease_until_boottime_ms: u64,
}

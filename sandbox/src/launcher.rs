//! The interface by which an agent starts workers and finds them again. There are two implementations: real
//! sandboxes ([`SandboxLauncher`]), and workers that `gpu-agent` simulates in its own process, which are
//! labelled in every listing.
//!
//! Nothing here blocks. A real launcher works on the runtime's blocking threads; a simulated one only uses
//! the runtime's clock. An agent can therefore be simulated in paused time.

mod namespaces;

pub use namespaces::{LauncherConfig, SandboxLauncher};

use crate::{CgroupUsage, Ended, MetricsReader, OutputPosition, ProcessDescriptors, SandboxError};
use futures::future::BoxFuture;
use protocol::BootTime;
use protocol::manifest::Isolation;
use protocol::sandbox::{ProcessProfile, SandboxLimits};
use protocol::worker::InitReply;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixStream;

/// Launcher of workers for one agent.
pub trait Launcher: Send + Sync {
    /// Returns the isolation that this machine and user can enforce.
    fn isolation(&self) -> &IsolationReport;

    /// Starts a worker in a new sandbox. When this completes, its program runs and its record is durable; a
    /// failed start leaves nothing behind. The future must not be dropped before it completes: a partly
    /// started sandbox then stays until its lease expires.
    fn start(self: Arc<Self>, start: Start) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>>;

    /// Starts the ranks of a process sandbox. When this completes, the program of each rank runs and the
    /// sandbox's record is durable; a failed start leaves nothing behind. The future must not be dropped
    /// before it completes.
    fn start_process(
        self: Arc<Self>,
        start: StartProcess,
    ) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>>;

    /// Returns all live workers, including those of other agents: an agent calls this first after its own
    /// restart.
    fn list_running(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<Arc<dyn Running>>, SandboxError>>;

    /// Removes the leftovers of sandboxes that have ended, and returns their number. Must not be called
    /// during a start.
    fn remove_stale(self: Arc<Self>) -> BoxFuture<'static, Result<usize, SandboxError>>;
}

/// A sandbox that was alive when this value was created. Dropping it ends nothing; only the lease does.
pub trait Running: Send + Sync + Debug {
    /// Returns its name on this node.
    fn name(&self) -> &str;

    /// Returns the limits that are not enforced on it, each beginning with a label.
    fn not_enforced(&self) -> &[String];

    /// Extends its lease to this time of the boot clock. An error means that its init does not answer: it has
    /// ended, or is about to.
    fn renew(self: Arc<Self>, until: BootTime) -> BoxFuture<'static, Result<InitReply, SandboxError>>;

    /// Asks the worker to end, and ends the sandbox after the grace period.
    fn stop(self: Arc<Self>, grace_ms: u64) -> BoxFuture<'static, Result<InitReply, SandboxError>>;

    /// Waits until it has ended. Safe to drop.
    fn wait(self: Arc<Self>) -> BoxFuture<'static, io::Result<Ended>>;

    /// Ends it if it is alive, and removes its leftovers. May be called again after an error.
    fn remove(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Ended>, SandboxError>>;

    /// Returns copies of the outputs of its ranks, and of the device of their gang; none of an engine's.
    fn descriptors(self: Arc<Self>) -> BoxFuture<'static, Result<ProcessDescriptors, SandboxError>>;

    /// Returns its resource usage so far.
    fn usage(&self) -> CgroupUsage;

    /// Opens a connection to the worker's socket.
    ///
    /// # Errors
    /// Errors of the system.
    fn connect_worker(&self) -> io::Result<UnixStream>;

    /// Opens the worker's metrics.
    ///
    /// # Errors
    /// Errors of the system.
    fn metrics(&self) -> io::Result<MetricsReader>;

    /// Returns a bounded number of bytes of the worker's output since a position, and advances the position.
    fn output(&self, position: &mut OutputPosition) -> Vec<u8>;

    /// Returns the position after all output so far.
    fn output_end(&self) -> OutputPosition;

    /// Returns the last bytes of the worker's output, at most this many.
    fn output_tail(&self, bytes_max: u64) -> Vec<u8>;

    /// Records beside the sandbox that its weights are complete: only then can it outlive the agent that
    /// filled them. The record need not survive the machine, because the sandbox does not either.
    ///
    /// # Errors
    /// Errors of the system.
    fn mark_complete(&self) -> io::Result<()>;

    /// Returns whether the weights were recorded as complete.
    fn is_complete(&self) -> bool;
}

/// Isolation that this machine and user can enforce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsolationReport {
    /// Isolation level; manifests state their minimum.
    pub level: Isolation,
    /// Limits that cannot be enforced here, each beginning with a label.
    pub not_enforced: Vec<String>,
}

/// Parameters of a new sandbox.
#[derive(Debug)]
pub struct Start {
    /// Name on this node: 1 to 63 of `a-z 0-9 - . _`.
    pub name: String,
    /// Path of the worker's executable.
    pub binary: PathBuf,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// The complete environment.
    pub environment: BTreeMap<String, String>,
    /// Resource limits.
    pub limits: SandboxLimits,
    /// Host files and directories visible read-only, besides the worker's libraries.
    pub read_only: Vec<PathBuf>,
    /// Device nodes available to the worker.
    pub devices: Vec<PathBuf>,
    /// Becomes [`protocol::worker::WORKER_WEIGHTS_FD`].
    pub weights: OwnedFd,
    /// Becomes [`protocol::worker::WORKER_PROGRESS_FD`].
    pub progress: OwnedFd,
    /// Becomes [`protocol::worker::WORKER_MANIFEST_FD`]: a canonical `WorkerManifest`.
    pub manifest: Vec<u8>,
    /// End of the first lease, on the boot clock.
    pub lease_until: BootTime,
}

/// Parameters of a new process sandbox.
#[derive(Debug)]
pub struct StartProcess {
    /// Name on this node: 1 to 63 of `a-z 0-9 - . _`.
    pub name: String,
    /// Program of the ranks, and the paths and peers that it may write and reach.
    pub profile: ProcessProfile,
    /// Resource limits of all ranks together.
    pub limits: SandboxLimits,
    /// Device nodes available to the ranks.
    pub devices: Vec<PathBuf>,
    /// End of the first lease, on the boot clock.
    pub lease_until: BootTime,
}

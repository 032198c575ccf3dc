//! Simulated workers in this process. They speak the worker's protocol over socket pairs, wait for their
//! weights and hold leases. On demand they end, hang, run out of memory or fail to start. They compute
//! nothing, and every listing marks them as simulated.
//!
//! Like real sandboxes they outlive the agent that started them, until their lease expires by the launcher's
//! own [`Clock`]; a restarted agent finds them. All of their waiting is done on the tokio runtime, so under
//! paused time a lease takes no real time to expire.

mod running;
mod worker;

use futures::FutureExt;
use futures::future::BoxFuture;
use host::Clock;
use protocol::manifest::Isolation;
use protocol::order::SignedTicket;
use protocol::sandbox::SandboxExit;
use protocol::{ServiceName, canonical};
use running::SimulatedSandbox;
use sandbox::{Ended, IsolationReport, Launcher, Running, SandboxError, Start, StartProcess};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Label in place of the list of unenforced limits: all of them.
const LABEL: &str = "simulated: workers are played by the agent; nothing computes, nothing is enforced";

/// Behaviour of a simulated worker, decided when it is started.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Duration of its start. Its record is durable halfway: an agent that dies later leaves it running.
    pub start: Duration,
    /// Reason why its start fails, if it does.
    pub start_failure: Option<String>,
    /// Whether it answers its agent; one that does not hangs.
    pub speaks: bool,
    /// Time from complete weights to readiness; none = never.
    pub ready_after: Option<Duration>,
    /// Reason why it cannot serve, reported instead of readiness.
    pub failure: Option<String>,
    /// Time from its start to its own end, and the kind of that end.
    pub ends: Option<(Duration, Ended)>,
    /// Time from a request to stop to its end; none = it has to be killed when its grace period is over.
    pub obeys_after: Option<Duration>,
    /// Running requests: while there are any it does not drain.
    pub requests_running: u32,
}

impl Default for Behaviour {
    /// Returns a healthy worker.
    fn default() -> Self {
        Self {
            start: Duration::from_millis(20),
            start_failure: None,
            speaks: true,
            ready_after: Some(Duration::from_millis(5)),
            failure: None,
            ends: None,
            obeys_after: Some(Duration::from_millis(10)),
            requests_running: 0,
        }
    }
}

type Decide = Box<dyn Fn(&Start) -> Behaviour + Send + Sync>;

/// Simulates the sandboxes of one node, for successive agents.
pub struct SimulatedLauncher {
    clock: Clock,
    isolation: IsolationReport,
    decide: Mutex<Decide>,
    world: Mutex<SimulatedNode>,
}

/// State of the node.
#[derive(Debug, Default)]
struct SimulatedNode {
    sandboxes: BTreeMap<String, Arc<SimulatedSandbox>>,
    /// Number of sandboxes ever started.
    started: u64,
}

impl std::fmt::Debug for SimulatedLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedLauncher").field("world", &self.world).finish_non_exhaustive()
    }
}

impl SimulatedLauncher {
    /// Creates a node that claims this isolation level. `decide` returns the behaviour of each worker.
    #[must_use]
    pub fn new(
        clock: Clock,
        level: Isolation,
        decide: impl Fn(&Start) -> Behaviour + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            isolation: IsolationReport { level, not_enforced: vec![LABEL.into()] },
            decide: Mutex::new(Box::new(decide)),
            world: Mutex::default(),
        })
    }

    /// Replaces the decision function, for workers that are started later.
    pub fn decide(&self, decide: impl Fn(&Start) -> Behaviour + Send + Sync + 'static) {
        *lock(&self.decide) = Box::new(decide);
    }

    /// Returns the names of the live sandboxes.
    #[must_use]
    pub fn living(&self) -> Vec<String> {
        let world = lock(&self.world);
        let living = world.sandboxes.values().filter(|sandbox| sandbox.ended().is_none());
        living.map(|sandbox| sandbox.name().to_string()).collect()
    }

    /// Returns the names of the sandboxes that are alive or have leftovers.
    #[must_use]
    pub fn present(&self) -> Vec<String> {
        lock(&self.world).sandboxes.keys().cloned().collect()
    }

    /// Returns the number of sandboxes ever started.
    #[must_use]
    pub fn started(&self) -> u64 {
        lock(&self.world).started
    }

    /// Makes the worker of this name end on its own. Returns false if none is alive.
    pub fn end(&self, name: &str, exit: SandboxExit) -> bool {
        self.with(name, |sandbox| sandbox.end(Ended { exit: Some(exit), out_of_memory: false }))
    }

    /// Makes the kernel kill the worker of this name for lack of memory. Returns false if none is alive.
    pub fn run_out_of_memory(&self, name: &str) -> bool {
        let exit = Some(SandboxExit::Signaled { signal: 9 });
        self.with(name, |sandbox| sandbox.end(Ended { exit, out_of_memory: true }))
    }

    /// Makes the worker of this name hang: it neither answers nor writes. Returns false if none is alive.
    pub fn hang(&self, name: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().hang())
    }

    /// Makes the worker of this name print a line. Returns false if none is alive.
    pub fn print(&self, name: &str, line: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().print(line))
    }

    /// Sets the number of running requests of the worker of this name. Returns false if none is alive.
    pub fn set_requests(&self, name: &str, running: u32) -> bool {
        self.with(name, |sandbox| sandbox.worker().set_requests(running))
    }

    /// Makes the worker of this name lose its connections to gateways. Returns false if none is alive.
    pub fn disconnect(&self, name: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().disconnect())
    }

    /// While set, the kernel fails to end the sandbox of this name. Returns false if none is alive.
    pub fn set_unkillable(&self, name: &str, unkillable: bool) -> bool {
        self.with(name, |sandbox| sandbox.set_unkillable(unkillable))
    }

    /// Returns the tickets of the worker of this name, oldest first.
    #[must_use]
    pub fn tickets(&self, name: &str) -> Vec<SignedTicket> {
        let mut tickets = Vec::new();
        self.with(name, |sandbox| tickets = sandbox.worker().tickets());
        tickets
    }

    fn with(&self, name: &str, act: impl FnOnce(&SimulatedSandbox)) -> bool {
        let sandbox = lock(&self.world).sandboxes.get(name).cloned();
        sandbox.filter(|sandbox| sandbox.ended().is_none()).map(|sandbox| act(&sandbox)).is_some()
    }

    async fn begin(self: Arc<Self>, start: Start) -> Result<Arc<dyn Running>, SandboxError> {
        let name = start.name.clone();
        if name.parse::<ServiceName>().is_err() {
            return Err(SandboxError::Name { name: name.escape_debug().to_string() });
        }
        if lock(&self.world).sandboxes.get(&name).is_some_and(|sandbox| sandbox.ended().is_none()) {
            return Err(SandboxError::Exists { name });
        }
        let behaviour = lock(&self.decide)(&start);
        let failed = |detail: String| SandboxError::Start {
            name: name.clone(),
            step: "start the simulated worker".into(),
            detail,
        };
        let halves = behaviour.start / 2;
        tokio::time::sleep(halves).await;
        if let Some(reason) = behaviour.start_failure {
            return Err(failed(reason));
        }
        let manifest = canonical::from_bytes(&start.manifest, start.manifest.len())
            .map_err(|error| failed(error.to_string()))?;
        let number = {
            let mut world = lock(&self.world);
            world.started += 1;
            world.started
        };
        let labels = self.isolation.not_enforced.clone();
        let (home, clock) = (Arc::downgrade(&self), self.clock.clone());
        let sandbox = SimulatedSandbox::begin(home, clock, start, &manifest, behaviour, number, labels);
        lock(&self.world).sandboxes.insert(name, sandbox.clone());
        tokio::time::sleep(halves).await;
        Ok(sandbox)
    }

    /// Removes a sandbox from the node.
    fn forget(&self, name: &str) {
        lock(&self.world).sandboxes.remove(name);
    }
}

impl Launcher for SimulatedLauncher {
    fn isolation(&self) -> &IsolationReport {
        &self.isolation
    }

    fn start(self: Arc<Self>, start: Start) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>> {
        self.begin(start).boxed()
    }

    fn start_process(
        self: Arc<Self>,
        _: StartProcess,
    ) -> BoxFuture<'static, Result<Arc<dyn Running>, SandboxError>> {
        let detail = "a simulated node runs no processes of jobs".into();
        futures::future::ready(Err(SandboxError::Profile { detail })).boxed()
    }

    fn list_running(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<Arc<dyn Running>>, SandboxError>> {
        let world = lock(&self.world);
        let living = world.sandboxes.values().filter(|sandbox| sandbox.ended().is_none());
        let running = living.map(|sandbox| sandbox.clone() as Arc<dyn Running>).collect();
        futures::future::ready(Ok(running)).boxed()
    }

    fn remove_stale(self: Arc<Self>) -> BoxFuture<'static, Result<usize, SandboxError>> {
        let mut world = lock(&self.world);
        let before = world.sandboxes.len();
        world.sandboxes.retain(|_, sandbox| sandbox.ended().is_none());
        futures::future::ready(Ok(before - world.sandboxes.len())).boxed()
    }
}

/// Values behind these locks are consistent at any moment, so a poisoned lock is still usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

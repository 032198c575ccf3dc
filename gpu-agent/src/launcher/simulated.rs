//! Workers that this process plays: they speak the worker's protocol over socket pairs, wait for their
//! weights, hold leases, end, hang, run out of memory and fail to start when told to, and compute nothing.
//! Every listing of them says that they are simulated.
//!
//! What may surprise: like real sandboxes they outlive the agent that started them, until their lease lapses
//! by the launcher's own [`Clock`]; an agent that comes back finds them. All of their waiting is done on the
//! tokio runtime, so under paused time a lease takes no time to lapse.

mod sandbox;
mod worker;

use super::{IsolationReport, Launcher, Running, Start};
use crate::clock::Clock;
use crate::sandbox::{Ended, SandboxError};
use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::agent::Isolation;
use protocol::order::SignedTicket;
use protocol::sandbox::SandboxExit;
use protocol::{ServiceName, canonical};
use sandbox::SimulatedSandbox;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Label of everything that is not enforced here: all of it.
const LABEL: &str = "simulated: workers are played by the agent; nothing computes, nothing is enforced";

/// What a simulated worker does, decided when it is started.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// How long its start takes. Its record is durable halfway: an agent that dies later has left it running.
    pub start: Duration,
    /// Why its start fails, if it does.
    pub start_failure: Option<String>,
    /// Whether it answers its agent; one that does not hangs.
    pub speaks: bool,
    /// How long after its weights are complete it is ready; none = never.
    pub ready_after: Option<Duration>,
    /// Why it cannot serve: said instead of being ready.
    pub failure: Option<String>,
    /// When and how it ends by itself, counted from its start.
    pub ends: Option<(Duration, Ended)>,
    /// How long it takes to end once it is asked to; none = it has to be killed when its grace is over.
    pub obeys_after: Option<Duration>,
    /// Requests that it is busy with: while there are some it does not drain.
    pub requests_running: u32,
}

impl Default for Behaviour {
    /// A worker that is well.
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

/// Plays the sandboxes of one node, for all agents that come and go there.
pub struct SimulatedLauncher {
    clock: Clock,
    isolation: IsolationReport,
    decide: Mutex<Decide>,
    world: Mutex<World>,
}

/// What there is on the node.
#[derive(Debug, Default)]
struct World {
    sandboxes: BTreeMap<String, Arc<SimulatedSandbox>>,
    /// Sandboxes that were ever started.
    started: u64,
}

impl std::fmt::Debug for SimulatedLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedLauncher").field("world", &self.world).finish_non_exhaustive()
    }
}

impl SimulatedLauncher {
    /// A node that pretends to isolate so well. `decide` says what each worker will do.
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

    /// Decides otherwise from now on, for workers that are still to be started.
    pub fn decide(&self, decide: impl Fn(&Start) -> Behaviour + Send + Sync + 'static) {
        *lock(&self.decide) = Box::new(decide);
    }

    /// Names of the sandboxes that live.
    #[must_use]
    pub fn living(&self) -> Vec<String> {
        let world = lock(&self.world);
        let living = world.sandboxes.values().filter(|sandbox| sandbox.ended().is_none());
        living.map(|sandbox| sandbox.name().to_string()).collect()
    }

    /// Names of the sandboxes of which something is there: a living one, or what a dead one left.
    #[must_use]
    pub fn present(&self) -> Vec<String> {
        lock(&self.world).sandboxes.keys().cloned().collect()
    }

    /// How many sandboxes were ever started.
    #[must_use]
    pub fn started(&self) -> u64 {
        lock(&self.world).started
    }

    /// The worker of this name ends by itself. False if none lives.
    pub fn end(&self, name: &str, exit: SandboxExit) -> bool {
        self.with(name, |sandbox| sandbox.end(Ended { exit: Some(exit), out_of_memory: false }))
    }

    /// The kernel kills the worker of this name for want of memory. False if none lives.
    pub fn run_out_of_memory(&self, name: &str) -> bool {
        let exit = Some(SandboxExit::Signaled { signal: 9 });
        self.with(name, |sandbox| sandbox.end(Ended { exit, out_of_memory: true }))
    }

    /// The worker of this name neither answers nor writes any more, and lives on. False if none lives.
    pub fn hang(&self, name: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().hang())
    }

    /// The worker of this name prints a line. False if none lives.
    pub fn print(&self, name: &str, line: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().print(line))
    }

    /// How many requests the worker of this name is busy with from now on. False if none lives.
    pub fn set_requests(&self, name: &str, running: u32) -> bool {
        self.with(name, |sandbox| sandbox.worker().set_requests(running))
    }

    /// The worker of this name loses its connections to gateways. False if none lives.
    pub fn disconnect(&self, name: &str) -> bool {
        self.with(name, |sandbox| sandbox.worker().disconnect())
    }

    /// While set, the kernel does not manage to end the sandbox of this name. False if none lives.
    pub fn set_unkillable(&self, name: &str, unkillable: bool) -> bool {
        self.with(name, |sandbox| sandbox.set_unkillable(unkillable))
    }

    /// The tickets that the worker of this name was given, oldest first.
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

    /// Nothing of it is left.
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

    fn list_running(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<Arc<dyn Running>>, SandboxError>> {
        let world = lock(&self.world);
        let living = world.sandboxes.values().filter(|sandbox| sandbox.ended().is_none());
        let running = living.map(|sandbox| sandbox.clone() as Arc<dyn Running>).collect();
        futures::future::ready(Ok(running)).boxed()
    }

    fn sweep_stale(self: Arc<Self>) -> BoxFuture<'static, Result<usize, SandboxError>> {
        let mut world = lock(&self.world);
        let before = world.sandboxes.len();
        world.sandboxes.retain(|_, sandbox| sandbox.ended().is_none());
        futures::future::ready(Ok(before - world.sandboxes.len())).boxed()
    }
}

/// Every value behind these locks is whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

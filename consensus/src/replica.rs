//! Replica: opens its log, starts its loops, and stops them when it is dropped.

use crate::config::Config;
use crate::core::{Core, Settings};
use crate::driver::{Driver, Event, PendingWork, Publish};
use crate::error::StartError;
use crate::executor::{Executor, SimulatedProcess};
use crate::handle::{Handle, Inner, InnerParts};
use crate::ids::LogIndex;
use crate::machine::StateMachine;
use crate::metrics::ReplicaCounters;
use crate::sessions::Sessions;
use crate::snapshot;
use crate::status::RaftStatus;
use crate::store::{LogStore, Recovered, SimulatedDisk};
use crate::transport::{OverlayTransport, Peers, SimulatedNetwork, Transport};
use crate::wal::{Owner, WriteAheadLog};
use crate::{disk, routes};
use axum::Router;
use protocol::ReplicaId;
use std::sync::{Arc, RwLock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A running replica. Dropping it stops it immediately; its data remains on disk. [`Replica::stop`] transfers
/// leadership first.
pub struct Replica<M> {
    handle: Handle<M>,
    network: Network,
    executor: Executor,
    snapshot_bytes_max: u64,
}

enum Network {
    Overlay { peers: Arc<Peers>, shutdown: CancellationToken },
    Simulated(SimulatedNetwork),
}

impl<M: StateMachine> Replica<M> {
    /// Opens the log in `config.directory`, restores `machine` from its snapshot, and joins the group over
    /// the overlay. Must be called within a tokio runtime. Peers reach the replica only if
    /// [`Replica::router`] is mounted on the listener at its address.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: &Config, machine: M) -> Result<Self, StartError> {
        config.validate()?;
        let owner = Owner { group: config.group, id: config.id, voters: config.voters() };
        let (directory, limits) = (&config.directory, &config.limits);
        let (log, recovered) = WriteAheadLog::open(directory, owner, config.create, limits.segment_bytes)?;
        let shutdown = CancellationToken::new();
        let transport = Arc::new(OverlayTransport::new(config, shutdown.clone()));
        let side = (Network::Overlay { peers: transport.peers(), shutdown }, Executor::threads());
        let replica = Self::run(config, machine, (Arc::new(log), recovered), transport.clone(), side)?;
        transport.start(replica.handle.inner.clone());
        Ok(replica)
    }

    /// Starts a replica on a simulated disk and network, which outlive it, as a process that a test pauses
    /// and kills. Must be called within a tokio runtime, under whose clock it runs.
    pub(crate) fn start_simulated(
        config: &Config,
        machine: M,
        disk: &SimulatedDisk,
        network: &SimulatedNetwork,
        process: &SimulatedProcess,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let transport = Arc::new(network.transport(config.id));
        let side = (Network::Simulated(network.clone()), Executor::Simulated(process.clone()));
        let replica = Self::run(config, machine, (Arc::new(disk.clone()), disk.open()), transport, side)?;
        network.join(config.id, replica.handle.inner.clone());
        Ok(replica)
    }

    fn run(
        config: &Config,
        mut machine: M,
        (store, recovered): (Arc<dyn LogStore>, Recovered),
        transport: Arc<dyn Transport>,
        (network, executor): (Network, Executor),
    ) -> Result<Self, StartError> {
        let sessions = restore(&mut machine, &recovered)?;
        let settings = Settings {
            id: config.id,
            voters: config.voters(),
            seed: config.seed,
            timings: config.timings,
            limits: config.limits,
        };
        let core = Core::new(settings, recovered).map_err(|error| StartError::Raft(error.to_string()))?;
        let (publish, watches) = publish(&core);
        let counters = Arc::new(ReplicaCounters::default());
        let (events, inbox) = mpsc::unbounded_channel();
        let (batches, to_disk) = mpsc::unbounded_channel();
        let (status, applied, leader) = watches;
        let (limits, timings) = (config.limits, config.timings);
        let parts = InnerParts {
            id: config.id,
            events: events.clone(),
            transport: transport.clone(),
            counters: counters.clone(),
            status,
            applied,
            leader,
            limits,
            timings,
        };
        let inner = Arc::new(Inner::new(parts));
        let machine = Arc::new(RwLock::new(machine));
        let handle = Handle { inner: inner.clone(), machine: machine.clone() };
        let disk = disk::run(store.clone(), transport.clone(), to_disk, events.clone(), counters.clone());
        executor.spawn("raft-disk", disk).map_err(StartError::Thread)?;
        let driver = Driver {
            core,
            machine,
            sessions,
            store,
            transport,
            inner,
            batches,
            events,
            executor: executor.clone(),
            publish,
            timings,
            snapshot_bytes_max: limits.snapshot_bytes_max,
            waiting: PendingWork::default(),
            counters,
        };
        executor.spawn("raft", driver.run(inbox)).map_err(StartError::Thread)?;
        Ok(Self { handle, network, executor, snapshot_bytes_max: limits.snapshot_bytes_max })
    }

    /// Returns a handle to this replica.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        self.handle.clone()
    }

    /// Returns the endpoints for peers, all under `/consensus/v1/`. They belong on an overlay listener, whose
    /// requests carry the caller's key. A simulated replica has none.
    pub fn router(&self) -> Router {
        match &self.network {
            Network::Overlay { peers, .. } => {
                routes::router(peers.clone(), self.handle.inner.clone(), self.snapshot_bytes_max)
            }
            Network::Simulated(_) => Router::new(),
        }
    }

    /// Stops the replica in order. A leader first transfers its leadership to a follower that holds
    /// everything committed, so that the group continues without an election timeout. During the transfer it
    /// accepts no proposals. It stops when another replica leads and every accepted proposal is answered, at
    /// the latest one election timeout from now. Its peers must be able to reach it until then: stop its
    /// listener afterwards.
    pub async fn stop(&self) {
        self.handle.inner.send(Event::Stop);
        self.stopped().await;
        self.leave();
    }

    /// Waits until the replica has stopped, and returns the reason. A process without its replica should
    /// exit: its supervisor restarts it from the data on disk.
    pub async fn stopped(&self) -> String {
        let mut status = self.handle.watch_status();
        let stopped = status.wait_for(|status| status.stopped.is_some()).await;
        let reason = stopped.ok().and_then(|status| status.stopped.clone());
        reason.unwrap_or_else(|| "its raft loop ended".to_string())
    }
}

impl<M> Replica<M> {
    /// Leaves the network. Streams to peers end, so that none keeps a listener from an orderly stop.
    fn leave(&self) {
        match &self.network {
            Network::Overlay { peers, shutdown } => {
                shutdown.cancel();
                peers.close();
            }
            Network::Simulated(network) => network.leave(self.handle.inner.id),
        }
    }
}

impl<M> Drop for Replica<M> {
    fn drop(&mut self) {
        self.leave();
        self.handle.inner.send(Event::Halt);
        self.executor.end();
    }
}

/// Restores a new state machine from the newest snapshot.
fn restore<M: StateMachine>(machine: &mut M, recovered: &Recovered) -> Result<Sessions, StartError> {
    let Some(found) = &recovered.snapshot else { return Ok(Sessions::default()) };
    let (sessions, state) = snapshot::unpack(&found.data)
        .ok_or_else(|| StartError::Restore("its session table is not readable".into()))?;
    machine.restore(&state).map_err(StartError::Restore)?;
    Ok(sessions)
}

type Watches = (watch::Receiver<RaftStatus>, watch::Receiver<LogIndex>, watch::Receiver<Option<ReplicaId>>);

/// Opens the channels through which handles observe the replica, with the state of a new core.
fn publish(core: &Core) -> (Publish, Watches) {
    let first = core.status();
    let (applied, watch_applied) = watch::channel(first.applied);
    let (leader, watch_leader) = watch::channel(first.leader);
    let (status, watch_status) = watch::channel(first);
    (Publish { status, applied, leader }, (watch_status, watch_applied, watch_leader))
}

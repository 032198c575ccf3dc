//! Simulated group: replicas in one process, on simulated disks and network, under the caller's clock.
//!
//! Under tokio's paused clock nothing depends on real time: elections, leases and timeouts take none, and
//! each test is reproducible. The raft loop, the disk loop, snapshots and handles are those of production.
//! Only disk, network and threads are simulated.

use crate::config::{Config, GroupId, Limits, ReplicaAddress, Timings};
use crate::executor::SimulatedProcess;
use crate::handle::Handle;
use crate::machine::StateMachine;
use crate::replica::Replica;
use crate::store::SimulatedDisk;
use crate::transport::SimulatedNetwork;
use overlay::Identity;
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Interval between two polls of [`SimulatedGroup::leader`], in simulated time, and their largest number.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const POLLS_MAX: usize = 60_000;

/// Replicas 1..=n, some of them stopped or paused. A group must be used within one tokio runtime.
pub struct SimulatedGroup<M> {
    network: SimulatedNetwork,
    disks: BTreeMap<ReplicaId, SimulatedDisk>,
    configs: BTreeMap<ReplicaId, Config>,
    running: BTreeMap<ReplicaId, RunningReplica<M>>,
}

struct RunningReplica<M> {
    replica: Replica<M>,
    process: SimulatedProcess,
}

impl<M: StateMachine + Default> SimulatedGroup<M> {
    /// Starts `count` new replicas.
    ///
    /// # Panics
    /// Panics if the timings or limits are invalid.
    #[must_use]
    pub fn start(count: u64, timings: Timings, limits: Limits) -> Self {
        let configs = configs(count, timings, limits);
        let network = SimulatedNetwork::new();
        let disks = configs.keys().map(|id| (*id, SimulatedDisk::new())).collect();
        let mut group = Self { network, disks, configs, running: BTreeMap::new() };
        (1..=count).for_each(|id| group.restart(ReplicaId(id)));
        group
    }

    /// Restarts a stopped replica from its disk.
    ///
    /// # Panics
    /// Panics if the replica is running, or its disk cannot be read.
    pub fn restart(&mut self, id: ReplicaId) {
        assert!(!self.running.contains_key(&id), "replica {id} is running already");
        let (config, disk, process) = (&self.configs[&id], &self.disks[&id], SimulatedProcess::new());
        let replica = Replica::start_simulated(config, M::default(), disk, &self.network, &process)
            .unwrap_or_else(|error| panic!("replica {id} does not start: {error}"));
        self.running.insert(id, RunningReplica { replica, process });
    }
}

impl<M: StateMachine> SimulatedGroup<M> {
    /// Returns the network between the replicas.
    #[must_use]
    pub fn network(&self) -> &SimulatedNetwork {
        &self.network
    }

    /// Returns a replica's disk.
    ///
    /// # Panics
    /// Panics if there is no such replica.
    #[must_use]
    pub fn disk(&self, id: ReplicaId) -> &SimulatedDisk {
        &self.disks[&id]
    }

    /// Returns a handle to a replica.
    ///
    /// # Panics
    /// Panics if the replica is not running.
    #[must_use]
    pub fn handle(&self, id: ReplicaId) -> Handle<M> {
        self.running[&id].replica.handle()
    }

    /// Returns the ids of the running replicas, paused or not.
    pub fn running(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.running.keys().copied()
    }

    /// Stops a replica as SIGKILL and a power failure do: unsynced data is lost.
    ///
    /// # Panics
    /// Panics if the replica is not running.
    pub fn crash(&mut self, id: ReplicaId) {
        drop(self.running.remove(&id).unwrap_or_else(|| panic!("replica {id} is not running")));
        self.disks[&id].crash();
    }

    /// Stops a replica in order; see [`Replica::stop`].
    ///
    /// # Panics
    /// Panics if the replica is not running.
    pub async fn stop(&mut self, id: ReplicaId) {
        let running = self.running.remove(&id).unwrap_or_else(|| panic!("replica {id} is not running"));
        running.replica.stop().await;
    }

    /// Pauses a replica as SIGSTOP does, or resumes it.
    ///
    /// # Panics
    /// Panics if the replica is not running.
    pub fn set_paused(&self, id: ReplicaId, paused: bool) {
        self.running[&id].process.set_paused(paused);
    }

    /// Keeps a replica's snapshots from being made, or releases them.
    ///
    /// # Panics
    /// Panics if the replica is not running.
    pub fn hold_snapshots(&self, id: ReplicaId, held: bool) {
        self.running[&id].process.hold_blocking(held);
    }

    /// Waits until a replica stops because of a failure, and returns the reason.
    ///
    /// # Panics
    /// Panics if the replica is not running.
    pub async fn stopped(&self, id: ReplicaId) -> String {
        self.running[&id].replica.stopped().await
    }

    /// Waits for a leader that a majority of the replicas follows.
    ///
    /// # Panics
    /// Panics if there is none within ten simulated minutes.
    pub async fn leader(&self) -> ReplicaId {
        for _ in 0..POLLS_MAX {
            if let Some(leader) = self.leader_now() {
                return leader;
            }
            sleep(POLL_INTERVAL).await;
        }
        panic!("no replica leads");
    }

    fn leader_now(&self) -> Option<ReplicaId> {
        let statuses: Vec<_> =
            self.running.values().map(|running| running.replica.handle().status()).collect();
        let leader = statuses.iter().find(|status| {
            let followers = statuses.iter().filter(|other| other.leader == Some(status.id)).count();
            status.is_leader() && 2 * followers > self.configs.len()
        });
        leader.map(|status| status.id)
    }
}

/// Returns the configuration of each replica. Keys and addresses are placeholders.
fn configs(count: u64, timings: Timings, limits: Limits) -> BTreeMap<ReplicaId, Config> {
    let nowhere: overlay::Address = "127.0.0.1:1".parse().expect("an address that nothing dials");
    let identity =
        |id: ReplicaId| Arc::new(Identity::from_seed(blake3::hash(&id.0.to_le_bytes()).as_bytes()));
    let peer =
        |id: ReplicaId| (id, ReplicaAddress { address: nowhere.clone(), key: identity(id).public_key() });
    let ids = || (1..=count).map(ReplicaId);
    let peers: BTreeMap<ReplicaId, ReplicaAddress> = ids().map(peer).collect();
    let config = |id: ReplicaId| Config {
        group: GroupId([7; 32]),
        id,
        peers: peers.clone(),
        directory: PathBuf::new(),
        create: true,
        identity: identity(id),
        seed: 7,
        timings,
        limits,
    };
    ids().map(|id| (id, config(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogIndex;
    use crate::machine::Frozen;
    use crate::planted::{Defect, plant};
    use bytes::Bytes;

    /// State machine that counts its commands.
    #[derive(Default)]
    struct Counter(u64);

    impl StateMachine for Counter {
        fn apply(&mut self, _index: LogIndex, _command: &[u8]) -> Vec<u8> {
            self.0 += 1;
            self.0.to_le_bytes().to_vec()
        }

        fn freeze(&self) -> Frozen {
            let count = self.0;
            Box::new(move || count.to_le_bytes().to_vec())
        }

        fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
            self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| "not a count".to_owned())?);
            Ok(())
        }
    }

    fn start() -> SimulatedGroup<Counter> {
        let limits = Limits { snapshot_entries: 5, retained_entries: 1, ..Limits::default() };
        SimulatedGroup::start(3, Timings::default(), limits)
    }

    fn after(id: ReplicaId) -> ReplicaId {
        ReplicaId(1 + id.0 % 3)
    }

    /// Proposes eight commands through a replica, each until it is acknowledged.
    async fn propose(handle: &Handle<Counter>) {
        for _ in 0..8 {
            let mut attempts = 0;
            while let Err(error) = handle.propose(Bytes::from_static(b"x"), None).await {
                attempts += 1;
                assert!(attempts < 20, "no proposal is accepted: {error}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_under_faults_keep_their_invariants() {
        let mut group = start();
        for round in 0..6 {
            let leader = group.leader().await;
            let victim = if round % 2 == 0 { leader } else { after(leader) };
            let survivor = group.handle(after(victim));
            match round % 3 {
                0 => {
                    group.crash(victim);
                    propose(&survivor).await;
                    group.restart(victim);
                }
                1 => {
                    group.network().set_isolated(victim, true);
                    propose(&survivor).await;
                    group.network().set_isolated(victim, false);
                }
                _ => {
                    group.network().set_deaf(victim, true);
                    propose(&survivor).await;
                    group.network().set_deaf(victim, false);
                }
            }
        }
        let mut counts = Vec::new();
        for handle in (1..=3).map(|id| group.handle(ReplicaId(id))) {
            handle.read_barrier().await.expect("a leader confirms");
            assert_eq!(handle.status().stopped, None);
            counts.push(handle.read(|counter| counter.0));
        }
        assert!(counts[0] >= 48 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        let installed = (1..=3).map(|id| group.handle(ReplicaId(id)).metrics().snapshots_installed);
        assert!(installed.sum::<u64>() > 0, "no replica was far enough behind for a snapshot");
    }

    #[tokio::test(start_paused = true)]
    async fn a_violated_invariant_stops_a_simulated_replica_with_its_text() {
        let group = start();
        let leader = group.leader().await;
        plant(Some(Defect::BytesLeft));
        // The outcome depends on which of the disks is the first.
        let _ = group.handle(leader).propose(Bytes::from_static(b"x"), None).await;
        let reason = group.stopped(leader).await;
        plant(None);
        assert!(reason.contains("bytes wait for the disk"), "{reason}");
    }
}

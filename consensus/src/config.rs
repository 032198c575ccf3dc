//! Replica configuration: all settings with the reasons for their values, and their validation.

use crate::error::StartError;
use overlay::{Address, Identity};
use protocol::{PublicKey, ReplicaId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest group: beyond seven voters each commit waits for more disks, without a practical gain in
/// availability.
const VOTERS_MAX: usize = 7;

/// Address of another replica, and the key that it must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaAddress {
    /// Address or name of its overlay listener.
    pub address: Address,
    /// Raw public key.
    pub key: PublicKey,
}

/// Identifier of a group of replicas: a digest that no other group has. It is opaque here. Every file of the
/// log carries it, and so does every request between replicas.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GroupId(pub [u8; 32]);

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupId({self})")
    }
}

/// Settings of a replica.
#[derive(Clone)]
pub struct Config {
    /// Group of this replica; logs and peers of any other group are rejected.
    pub group: GroupId,
    /// Id of this replica: not 0, and a key of `peers`.
    pub id: ReplicaId,
    /// All replicas of the group, this one included (its own address is not dialled).
    pub peers: BTreeMap<ReplicaId, ReplicaAddress>,
    /// Directory of the log and its snapshots; owned by this replica alone.
    pub directory: PathBuf,
    /// Whether an empty directory may become a new replica. True exactly once in a replica's life: a replica
    /// that lost its disk and rejoined under its old id could vote twice.
    pub create: bool,
    /// Key that authenticates this replica to its peers.
    pub identity: Arc<Identity>,
    /// Seed of the election timeouts; it may be the same on all replicas or not.
    pub seed: u64,
    /// Tick length and timeouts.
    pub timings: Timings,
    /// Bounds on memory, messages, snapshots and segments.
    pub limits: Limits,
}

/// Tick length and timeouts of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Length of a raft tick.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before a follower campaigns; the actual timeout is between this and twice this.
    /// It must exceed a slow `fdatasync` or a neighbour's garbage-collection pause, not just the network's
    /// delay.
    pub election_ticks: usize,
    /// Timeout of a proposal or read, leader changes included.
    pub request: Duration,
}

impl Default for Timings {
    /// Heartbeats of 100 ms and election timeouts of 1 s, as etcd ships: safe on two busy cores.
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 20,
            request: Duration::from_secs(10),
        }
    }
}

/// Resource limits of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest command in bytes: four times a certificate with 99 ballots.
    pub command_bytes_max: usize,
    /// Pending proposals, and likewise pending reads, of this replica; more are rejected as busy.
    pub proposals_pending_max: usize,
    /// Bytes of entries in one message between replicas (a single larger entry is still sent).
    pub message_bytes: u64,
    /// Bytes of uncommitted proposals; more are rejected as busy.
    pub uncommitted_bytes_max: u64,
    /// Append messages in flight to one follower.
    pub inflight_messages_max: usize,
    /// Messages queued for one peer; more are dropped, and raft retransmits them.
    pub outbox_messages_max: usize,
    /// Log entries after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Log bytes after which a snapshot is taken.
    pub snapshot_bytes: u64,
    /// Largest snapshot sent or accepted, in bytes.
    pub snapshot_bytes_max: u64,
    /// Entries kept behind a snapshot, so that a follower that lags a little needs no snapshot.
    pub retained_entries: u64,
    /// Size of one log segment on disk, in bytes.
    pub segment_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            command_bytes_max: 4 * 1024 * 1024,
            proposals_pending_max: 4096,
            message_bytes: 1024 * 1024,
            uncommitted_bytes_max: 64 * 1024 * 1024,
            inflight_messages_max: 256,
            outbox_messages_max: 4096,
            snapshot_entries: 50_000,
            snapshot_bytes: 64 * 1024 * 1024,
            snapshot_bytes_max: 1024 * 1024 * 1024,
            retained_entries: 5_000,
            segment_bytes: 8 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Checks every value and every relation between values.
    ///
    /// # Errors
    /// Returns [`StartError::Config`] with the first violation.
    pub fn validate(&self) -> Result<(), StartError> {
        let (timings, limits) = (&self.timings, &self.limits);
        let checks = [
            (self.id != ReplicaId(0), "replica id 0 is reserved"),
            (self.peers.contains_key(&self.id), "the replica's own id is not among its peers"),
            (!self.peers.contains_key(&ReplicaId(0)), "peer id 0 is reserved"),
            (self.peers.len() <= VOTERS_MAX, "more than seven replicas"),
            (
                self.peers.get(&self.id).is_none_or(|own| own.key == self.identity.public_key()),
                "the replica's own key is not the one listed for its id",
            ),
            (distinct_keys(&self.peers), "two replicas share one key"),
            (!timings.tick.is_zero(), "tick is zero"),
            (timings.heartbeat_ticks >= 1, "heartbeat_ticks is zero"),
            (
                timings.election_ticks >= 5 * timings.heartbeat_ticks,
                "election_ticks is less than five heartbeats",
            ),
            (limits.command_bytes_max >= 1, "command_bytes_max is zero"),
            (limits.command_bytes_max <= 32 * 1024 * 1024, "command_bytes_max exceeds 32 MiB"),
            (limits.message_bytes >= 1024, "message_bytes is less than 1 KiB"),
            (
                limits.uncommitted_bytes_max >= limits.message_bytes,
                "uncommitted_bytes_max is less than message_bytes",
            ),
            (limits.proposals_pending_max >= 1, "proposals_pending_max is zero"),
            (limits.inflight_messages_max >= 1, "inflight_messages_max is zero"),
            (limits.outbox_messages_max >= 16, "outbox_messages_max is less than 16"),
            (limits.snapshot_entries >= 1, "snapshot_entries is zero"),
            (limits.segment_bytes >= 64 * 1024, "segment_bytes is less than 64 KiB"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, reason)) => Err(StartError::Config((*reason).to_string())),
            None => Ok(()),
        }
    }

    /// Returns the ids of the group's voters in ascending order.
    #[must_use]
    pub fn voters(&self) -> Vec<ReplicaId> {
        self.peers.keys().copied().collect()
    }
}

fn distinct_keys(peers: &BTreeMap<ReplicaId, ReplicaAddress>) -> bool {
    let keys: std::collections::BTreeSet<_> = peers.values().map(|peer| peer.key).collect();
    keys.len() == peers.len()
}

//! Everything that can be set about a replica, with its reasons, and one place that checks it.

use crate::error::StartError;
use overlay::{Address, Identity};
use protocol::PublicKey;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest group: beyond seven voters each commit waits for more disks without surviving more in practice.
const VOTERS_MAX: usize = 7;

/// Where another replica listens, and the key it must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Where its overlay listener is dialled: an address, or a name.
    pub address: Address,
    /// Its raw public key.
    pub key: PublicKey,
}

/// The group of replicas that a log belongs to: a digest that no other group has. Opaque here; every file of
/// the log carries it, and every request between replicas.
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

/// What a replica is told at its start.
#[derive(Clone)]
pub struct Config {
    /// The group; logs and peers of any other are refused.
    pub group: GroupId,
    /// This replica's number, not 0, one of the keys of `peers`.
    pub id: u64,
    /// Every replica of the group, this one included (its own address is not dialled).
    pub peers: BTreeMap<u64, Peer>,
    /// Where log and snapshots live; owned by this replica alone.
    pub directory: PathBuf,
    /// Whether an empty directory may become a new replica. True exactly once in a replica's life: a
    /// replica that lost its disk and came back under its old number could vote twice.
    pub create: bool,
    /// The key that proves this replica to its peers.
    pub identity: Arc<Identity>,
    /// Seeds election timeouts; equal on all replicas or not, both are fine.
    pub seed: u64,
    /// Clocks.
    pub timings: Timings,
    /// Bounds.
    pub limits: Limits,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// The raft clock's step.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before a follower stands for election; the real timeout lies between this
    /// and twice this. Must exceed a slow `fdatasync` or a garbage-collected neighbour, not just the network.
    pub election_ticks: usize,
    /// How long a proposal or read may wait for its answer, leader changes included.
    pub request: Duration,
}

impl Default for Timings {
    /// 100 ms heartbeats and 1 s elections, as etcd ships: safe on two busy cores.
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 20,
            request: Duration::from_secs(10),
        }
    }
}

/// How much there may be of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest command in bytes: a certificate with 99 ballots, four times over.
    pub command_bytes_max: usize,
    /// Proposals of this replica that wait at once; more are refused as busy.
    pub proposals_pending_max: usize,
    /// Bytes of entries in one message between replicas (one larger entry still travels).
    pub message_bytes: u64,
    /// Bytes of proposals not yet committed; more are refused as busy.
    pub uncommitted_bytes_max: u64,
    /// Append messages in flight to one follower.
    pub inflight_messages_max: usize,
    /// Messages that wait for one peer; more are dropped, and raft sends again.
    pub outbox_messages_max: usize,
    /// Log entries after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Log bytes after which a snapshot is taken.
    pub snapshot_bytes: u64,
    /// Largest snapshot sent or accepted, in bytes.
    pub snapshot_bytes_max: u64,
    /// Entries kept behind a snapshot, so that a follower a little behind needs no snapshot.
    pub retained_entries: u64,
    /// Bytes of one log segment on disk.
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
    /// [`StartError::Config`] with the first thing that is wrong.
    pub fn validate(&self) -> Result<(), StartError> {
        let (timings, limits) = (&self.timings, &self.limits);
        let checks = [
            (self.id != 0, "replica id 0 is reserved"),
            (self.peers.contains_key(&self.id), "the replica's own id is not among its peers"),
            (!self.peers.contains_key(&0), "peer id 0 is reserved"),
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

    /// The group's voters in order.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        self.peers.keys().copied().collect()
    }
}

fn distinct_keys(peers: &BTreeMap<u64, Peer>) -> bool {
    let keys: std::collections::BTreeSet<_> = peers.values().map(|peer| peer.key).collect();
    keys.len() == peers.len()
}

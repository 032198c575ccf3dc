//! Counters of a replica, for export as metrics. Counting never blocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the sync-time buckets in seconds, doubling as in etcd; the last bucket has no bound.
pub const SYNC_SECONDS_BOUNDS: [f64; 14] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];

/// Counts since the replica started.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Number of times that a leader became known.
    pub leader_changes: u64,
    /// Commands appended by this replica as the leader.
    pub proposals: u64,
    /// Proposals rejected because too many bytes were pending or the disk was full or nearly full.
    pub proposals_refused: u64,
    /// Groups of batches made durable, by duration: a bucket for each of [`SYNC_SECONDS_BOUNDS`], and one
    /// above.
    pub syncs: [u64; 15],
    /// Seconds spent making groups durable.
    pub sync_seconds: f64,
    /// Snapshots of this replica's own state that were saved.
    pub snapshots: u64,
    /// Snapshots from a leader that were installed.
    pub snapshots_installed: u64,
    /// Reads that wait here for confirmation by a majority, as of the last tick.
    pub reads_waiting: u64,
    /// Number of attempts to write that found the disk full and were retried.
    pub waits_for_space: u64,
}

/// The counters behind [`Metrics`].
#[derive(Debug, Default)]
pub(crate) struct ReplicaCounters {
    pub(crate) leader_changes: AtomicU64,
    pub(crate) proposals: AtomicU64,
    pub(crate) proposals_refused: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    pub(crate) snapshots_installed: AtomicU64,
    pub(crate) reads_waiting: AtomicU64,
    pub(crate) waits_for_space: AtomicU64,
    syncs: [AtomicU64; 15],
    sync_microseconds: AtomicU64,
}

impl ReplicaCounters {
    pub(crate) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn set(gauge: &AtomicU64, level: usize) {
        gauge.store(level as u64, Ordering::Relaxed);
    }

    pub(crate) fn synced(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = SYNC_SECONDS_BOUNDS.iter().position(|bound| seconds <= *bound);
        Self::add(&self.syncs[bucket.unwrap_or(SYNC_SECONDS_BOUNDS.len())], 1);
        Self::add(&self.sync_microseconds, took.as_micros() as usize);
    }

    pub(crate) fn read(&self) -> Metrics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            leader_changes: load(&self.leader_changes),
            proposals: load(&self.proposals),
            proposals_refused: load(&self.proposals_refused),
            syncs: std::array::from_fn(|bucket| load(&self.syncs[bucket])),
            sync_seconds: load(&self.sync_microseconds) as f64 / 1e6,
            snapshots: load(&self.snapshots),
            snapshots_installed: load(&self.snapshots_installed),
            reads_waiting: load(&self.reads_waiting),
            waits_for_space: load(&self.waits_for_space),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_times_fall_into_their_buckets() {
        let counters = ReplicaCounters::default();
        for milliseconds in [0, 1, 2, 3, 9000] {
            counters.synced(Duration::from_millis(milliseconds));
        }
        let found = counters.read();
        assert_eq!((found.syncs[0], found.syncs[1], found.syncs[2], found.syncs[14]), (2, 1, 1, 1));
        assert!((found.sync_seconds - 9.006).abs() < 1e-9);
    }
}

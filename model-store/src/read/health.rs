//! What is known about each store: how fast it answers, how often it failed. Decides who is asked first.

use crate::fault::FaultKind;
use crate::store::Store;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Demerits at which a store is asked only when the better ones do not suffice. A single rotten shard
/// earns one; a missing object or a dead store several.
const DEMERITS_MAX: u32 = 4;
/// Waiting this long for an answer is normal anywhere.
const HEDGE_MIN: Duration = Duration::from_millis(20);
/// Waiting while nothing is known yet.
const HEDGE_FIRST: Duration = Duration::from_millis(200);

pub(super) struct Health {
    stores: Vec<StoreHealth>,
}

struct StoreHealth {
    local: bool,
    closed: bool,
    /// Moving average of a batch's time, in microseconds; 0 = never answered.
    latency_us: AtomicU32,
    demerits: AtomicU32,
}

impl Health {
    pub(super) fn new(stores: &[Store]) -> Self {
        let health = |store: &Store| StoreHealth {
            local: store.directory().is_some(),
            closed: store.closed().is_some(),
            latency_us: AtomicU32::new(0),
            demerits: AtomicU32::new(0),
        };
        Self { stores: stores.iter().map(health).collect() }
    }

    /// Stores that may be asked, best first: disks of this machine, then quick peers, then slow ones, then
    /// those that failed; among equals data shards come first, since they need no decoding.
    pub(super) fn preference(&self) -> Vec<usize> {
        let quickest = self.quickest();
        let class = |store: &StoreHealth| {
            let latency = store.latency_us.load(Ordering::Relaxed);
            match () {
                () if store.demerits.load(Ordering::Relaxed) >= DEMERITS_MAX => 3,
                () if store.local => 0,
                () if latency > quickest.saturating_mul(3).saturating_add(5_000) => 2,
                () => 1,
            }
        };
        let open = (0..self.stores.len()).filter(|shard| !self.stores[*shard].closed);
        let mut ranked: Vec<(u8, usize)> = open.map(|shard| (class(&self.stores[shard]), shard)).collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, shard)| shard).collect()
    }

    fn quickest(&self) -> u32 {
        let known = self.stores.iter().map(|store| store.latency_us.load(Ordering::Relaxed));
        known.filter(|latency| *latency > 0).min().unwrap_or(0)
    }

    /// How long to wait for the first answers before asking one store more.
    pub(super) fn hedge_delay(&self) -> Duration {
        match self.quickest() {
            0 => HEDGE_FIRST,
            quickest => HEDGE_MIN.max(Duration::from_micros(u64::from(quickest) * 3)),
        }
    }

    pub(super) fn answered(&self, shard: usize, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX).max(1);
        let latency = &self.stores[shard].latency_us;
        let old = latency.load(Ordering::Relaxed);
        let new = if old == 0 { sample } else { (u64::from(old) * 3 + u64::from(sample)).div_ceil(4) as u32 };
        latency.store(new, Ordering::Relaxed);
    }

    /// A store that was no longer waited for is at least as slow as the wait.
    pub(super) fn outrun(&self, shard: usize, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX);
        self.stores[shard].latency_us.fetch_max(sample, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, shard: usize, kind: FaultKind) {
        let demerits = if kind == FaultKind::Wrong { 1 } else { 2 };
        self.stores[shard].demerits.fetch_add(demerits, Ordering::Relaxed);
    }
}

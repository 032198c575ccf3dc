//! Health of each store: latency and failures. Decides which stores are asked first.

use crate::fault::FaultKind;
use crate::store::{SILENCE_MAX, Store};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Number of demerits at which a store is asked only if the better ones do not suffice. A corrupt shard earns
/// one; any other fault, such as a missing object or an unreachable store, earns two.
const DEMERITS_MAX: u32 = 4;

/// Interval between two checks for a stalled disk.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// A local disk is slow if a read takes this multiple of the fastest disk's mean, plus this much more.
/// Reconstructing a segment from another disk costs far less.
const SLOW_TIMES: u32 = 3;
const SLOW_MORE: Duration = Duration::from_millis(5);
/// Number of consecutive slow reads; a single one may have waited for a processor.
const SLOW_READS: u32 = 4;
/// Number of batches after which a slow store is tried again: once in 1 GiB.
const RETRY_AFTER: u32 = 256;

/// Timeouts after which another store is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct HedgeTimeouts {
    /// Lower bound: such a wait is normal anywhere.
    floor: Duration,
    /// Timeout while no latency is known.
    first: Duration,
    /// Upper bound, however slow the store was before.
    ceiling: Duration,
    /// Timeout if there is no other store to ask.
    last: Duration,
}

/// Timeouts for other machines.
const REMOTE: HedgeTimeouts = HedgeTimeouts {
    floor: Duration::from_millis(20),
    first: Duration::from_millis(200),
    ceiling: Duration::from_secs(2),
    last: SILENCE_MAX,
};
/// Timeouts for disks of this machine. Abandoning a disk too early costs a thread and a decode. Under load a
/// thread may wait longer for a processor than for its disk. A stalled disk costs this timeout once, not once
/// per segment.
const LOCAL: HedgeTimeouts = HedgeTimeouts {
    floor: Duration::from_millis(500),
    first: Duration::from_secs(1),
    ceiling: Duration::from_secs(5),
    last: SILENCE_MAX,
};

impl HedgeTimeouts {
    fn bound(self, latency: &Latency) -> Duration {
        debug_assert!(self.floor <= self.first && self.first <= self.ceiling, "{self:?}");
        latency.high().map_or(self.first, |high| high.clamp(self.floor, self.ceiling))
    }
}

/// Latency of answers: their mean and their deviation, estimated as round-trip times are (RFC 6298). Updates
/// may race; a lost sample does not matter.
#[derive(Debug, Default)]
struct Latency {
    /// In microseconds; 0 = no sample so far.
    mean_us: AtomicU32,
    deviation_us: AtomicU32,
}

impl Latency {
    fn note(&self, took: Duration) {
        let sample = i64::from(u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1));
        let mean = i64::from(self.mean_us.load(Ordering::Relaxed));
        let deviation = i64::from(self.deviation_us.load(Ordering::Relaxed));
        let (mean, deviation) = match mean {
            0 => (sample, sample / 2),
            _ => (mean + (sample - mean) / 4, deviation + ((sample - mean).abs() - deviation) / 4),
        };
        self.mean_us.store(u32::try_from(mean).unwrap_or(u32::MAX).max(1), Ordering::Relaxed);
        self.deviation_us.store(u32::try_from(deviation).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn mean_us(&self) -> u32 {
        self.mean_us.load(Ordering::Relaxed)
    }

    /// Returns a bound that nearly all answers stay below: the mean and four deviations. `None` without
    /// samples.
    fn high(&self) -> Option<Duration> {
        let (mean, deviation) = (self.mean_us(), self.deviation_us.load(Ordering::Relaxed));
        (mean > 0).then(|| Duration::from_micros(u64::from(mean) + 4 * u64::from(deviation)))
    }
}

pub(super) struct Health {
    stores: Vec<StoreHealth>,
    /// Latency of reads from all disks of this machine.
    disks: Latency,
    batches: AtomicU32,
    /// Stalled disks, by their shards, as set by a test. If set, nothing is measured.
    #[cfg(test)]
    pub(super) stalled: Option<Vec<usize>>,
}

struct StoreHealth {
    local: bool,
    closed: bool,
    /// Of batches; of single reads for a disk of this machine.
    latency: Latency,
    /// Number of consecutive reads that were slow for a disk of this machine. A store that was overtaken gets
    /// the full count immediately: its latency is unknown, and would look small beside that of a full link.
    slow: AtomicU32,
    demerits: AtomicU32,
}

impl Health {
    pub(super) fn new(stores: &[Store]) -> Self {
        let health = |store: &Store| StoreHealth {
            local: store.directory().is_some(),
            closed: store.closed().is_some(),
            latency: Latency::default(),
            slow: AtomicU32::new(0),
            demerits: AtomicU32::new(0),
        };
        Self {
            stores: stores.iter().map(health).collect(),
            disks: Latency::default(),
            batches: AtomicU32::new(0),
            #[cfg(test)]
            stalled: None,
        }
    }

    /// Returns the stores that may be asked, best first: fast disks of this machine, fast peers, slow stores
    /// of either kind, failed stores. Among equals data shards come first, since they need no decoding.
    pub(super) fn preference(&self) -> Vec<usize> {
        let fastest = self.fastest();
        let class = |store: &StoreHealth| {
            let latency = store.latency.mean_us();
            match () {
                () if store.demerits.load(Ordering::Relaxed) >= DEMERITS_MAX => 3,
                () if store.slow.load(Ordering::Relaxed) >= SLOW_READS => 2,
                () if store.local => 0,
                () if latency > fastest.saturating_mul(3).saturating_add(5_000) => 2,
                () => 1,
            }
        };
        let open = (0..self.stores.len()).filter(|shard| !self.stores[*shard].closed);
        let mut ranked: Vec<(u8, usize)> = open.map(|shard| (class(&self.stores[shard]), shard)).collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, shard)| shard).collect()
    }

    /// Returns the mean latency of the fastest store in microseconds; 0 while none has answered.
    fn fastest(&self) -> u32 {
        self.fastest_store().map_or(0, Latency::mean_us)
    }

    fn fastest_store(&self) -> Option<&Latency> {
        self.fastest_of(false)
    }

    fn fastest_of(&self, local: bool) -> Option<&Latency> {
        let stores = self.stores.iter().filter(|store| store.local == local);
        let known = stores.map(|store| &store.latency).filter(|latency| latency.mean_us() > 0);
        known.min_by_key(|latency| latency.mean_us())
    }

    /// Returns the wait for other machines before one more store is asked.
    pub(super) fn hedge_delay(&self) -> Duration {
        self.fastest_store().map_or(REMOTE.first, |fastest| REMOTE.bound(fastest))
    }

    /// Returns the number of ticks to wait for this local disk. `spare` is whether another store could be
    /// asked instead.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests set the stalled disks"))]
    pub(super) fn disk_ticks_max(&self, shard: usize, spare: bool) -> u32 {
        #[cfg(test)]
        if let Some(stalled) = &self.stalled {
            return if stalled.contains(&shard) { 1 } else { u32::MAX };
        }
        let timeout = if spare { LOCAL.bound(&self.disks) } else { LOCAL.last };
        timeout.as_millis().div_ceil(TICK.as_millis()) as u32
    }

    /// Records the duration of a read from a disk of this machine.
    pub(super) fn read_disk(&self, shard: usize, took: Duration) {
        #[cfg(test)]
        if self.stalled.is_some() {
            return;
        }
        self.disks.note(took);
        self.stores[shard].latency.note(took);
        let fastest = self.fastest_of(true).map_or(0, Latency::mean_us);
        let slow = SLOW_MORE + SLOW_TIMES * Duration::from_micros(fastest.into());
        match took > slow {
            true => self.stores[shard].slow.fetch_add(1, Ordering::Relaxed),
            false => self.stores[shard].slow.swap(0, Ordering::Relaxed),
        };
    }

    /// Makes slow stores eligible again now and then; they may have recovered.
    pub(super) fn retry_slow_stores(&self) {
        if self.batches.fetch_add(1, Ordering::Relaxed) % RETRY_AFTER == RETRY_AFTER - 1 {
            for store in &self.stores {
                store.slow.fetch_min(SLOW_READS - 1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn answered(&self, shard: usize, after: Duration) {
        self.stores[shard].latency.note(after);
        self.stores[shard].slow.store(0, Ordering::Relaxed);
    }

    /// Records that a store was overtaken: it is at least as slow as the wait for it.
    pub(super) fn overtaken(&self, shard: usize, after: Duration) {
        let sample = u32::try_from(after.as_micros()).unwrap_or(u32::MAX);
        self.stores[shard].latency.mean_us.fetch_max(sample, Ordering::Relaxed);
        self.stores[shard].slow.fetch_max(SLOW_READS, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, shard: usize, kind: FaultKind) {
        let demerits = if kind == FaultKind::Wrong { 1 } else { 2 };
        self.stores[shard].demerits.fetch_add(demerits, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn timeouts_follow_the_latency_between_floor_and_ceiling() {
        let latency = Latency::default();
        assert_eq!(REMOTE.bound(&latency), REMOTE.first);
        latency.note(milliseconds(50));
        assert_eq!(REMOTE.bound(&latency), milliseconds(150), "one answer may be three times as slow");
        for _ in 0..50 {
            latency.note(milliseconds(50));
        }
        let steady = REMOTE.bound(&latency);
        assert!(steady >= milliseconds(50) && steady < milliseconds(55), "{steady:?}");
        for number in 0..50 {
            latency.note(milliseconds(if number % 2 == 0 { 20 } else { 80 }));
        }
        let varied = REMOTE.bound(&latency);
        assert!(varied > milliseconds(120) && varied < milliseconds(220), "{varied:?}");
        latency.note(Duration::from_secs(3600));
        assert_eq!(REMOTE.bound(&latency), REMOTE.ceiling);
        let quick = Latency::default();
        quick.note(Duration::from_micros(10));
        assert_eq!((REMOTE.bound(&quick), LOCAL.bound(&quick)), (REMOTE.floor, LOCAL.floor));
        quick.note(Duration::ZERO);
        assert!(quick.mean_us() > 0, "known stays known");
    }

    #[test]
    fn a_slow_disk_is_no_longer_preferred_and_retried_now_and_then() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = |number: usize| {
            let url = format!("file://{}", directory.path().join(number.to_string()).display());
            let reference = protocol::model::StoreReference { url, failure_domain: "d".into() };
            crate::open_store(&reference, &crate::Context::new()).expect("a store")
        };
        let stores: Vec<Store> = (0..6).map(store).collect();
        let health = Health::new(&stores);
        let read = |times: usize, slow: u64| {
            for _ in 0..times {
                (0..6).filter(|shard| *shard != 1).for_each(|shard| health.read_disk(shard, milliseconds(1)));
                health.read_disk(1, milliseconds(slow));
            }
        };
        read(50, 1);
        read(3, 20);
        assert_eq!(health.preference(), [0, 1, 2, 3, 4, 5], "a busy machine");
        read(1, 1);
        read(4, 20);
        assert_eq!(health.preference(), [0, 2, 3, 4, 5, 1]);
        (0..RETRY_AFTER).for_each(|_| health.retry_slow_stores());
        assert_eq!(health.preference(), [0, 1, 2, 3, 4, 5], "it is tried again");
        read(1, 20);
        assert_eq!(health.preference(), [0, 2, 3, 4, 5, 1], "in vain");
        (0..RETRY_AFTER).for_each(|_| health.retry_slow_stores());
        read(1, 1);
        assert_eq!(health.preference(), [0, 1, 2, 3, 4, 5], "it is quick again");
    }
}

//! Wall clocks of the control replicas, as this one knows them: its own, and those that the others answer.
//!
//! The readings go with every command, and `scheduler` judges them. A replica whose clock is wrong by them
//! may not lead.

use super::Server;
use host::Clock;
use protocol::{BootTime, Millis, ReplicaId};
use scheduler::{ClockDeviation, ClockReadings, WallTime};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

/// Age at which a reading no longer counts: five rounds of checks among replicas, one of which is dead.
const READING_MS_MAX: u64 = 10_000;

/// The clock of this replica, and the last readings of the others'.
pub(crate) struct ReplicaClocks {
    own: ReplicaId,
    clock: Clock,
    heard: Mutex<BTreeMap<ReplicaId, HeardClock>>,
    /// Replicas that are barred from leading for their clocks.
    barred: Mutex<BTreeSet<ReplicaId>>,
}

/// A reading of another replica's wall clock, and the time of its arrival by this machine's boot clock. That
/// clock continues while the machine sleeps, so a reading from before counts no more.
#[derive(Debug, Clone, Copy)]
struct HeardClock {
    wall: Millis,
    at: BootTime,
}

impl ReplicaClocks {
    pub(crate) fn new(own: ReplicaId, clock: Clock) -> Self {
        Self { own, clock, heard: Mutex::default(), barred: Mutex::default() }
    }

    /// Returns the time of this replica's wall clock, which may have been set since the last call.
    pub(crate) fn wall(&self) -> Millis {
        self.clock.wall()
    }

    /// Records what another replica's clock shows now.
    pub(crate) fn hear(&self, replica: ReplicaId, wall: Millis) {
        self.lock().insert(replica, HeardClock { wall, at: self.clock.boot() });
    }

    /// Returns what every known clock shows now.
    pub(crate) fn readings(&self) -> ClockReadings {
        let now = self.clock.boot();
        let heard = self.lock().clone().into_iter().filter_map(|(replica, heard)| {
            let age = now.since(heard.at);
            (age <= READING_MS_MAX).then(|| (replica, WallTime(heard.wall.plus(age))))
        });
        heard.chain([(self.own, WallTime(self.wall()))]).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ReplicaId, HeardClock>> {
        self.heard.lock().expect("no holder of this lock panics")
    }
}

impl Server {
    /// Returns the replicas whose clocks are wrong, as far as this replica knows.
    pub(crate) fn wrong_clocks(&self) -> BTreeMap<ReplicaId, ClockDeviation> {
        let readings = self.clocks.readings();
        self.cluster(|cluster| cluster.wrong_clocks(&readings))
    }

    /// Bars the replicas with wrong clocks from leading, and no others.
    pub(crate) fn bar_wrong_clocks(&self) {
        let wrong = self.wrong_clocks();
        let ids: BTreeSet<ReplicaId> = wrong.keys().copied().collect();
        let mut barred = self.clocks.barred.lock().expect("no holder of this lock panics");
        if ids == *barred {
            return;
        }
        for (replica, by) in &wrong {
            tracing::warn!(%replica, %by, "the clock of a control replica is wrong; it may not lead");
        }
        if wrong.is_empty() {
            tracing::info!("the clocks of the control replicas agree again");
        }
        self.handle.bar(ids.clone());
        *barred = ids;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shown(clocks: &ReplicaClocks) -> Vec<(u64, u64)> {
        let readings = BTreeMap::from(clocks.readings());
        readings.into_iter().map(|(id, wall)| (id.0, wall.0.0)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_advances_until_it_is_too_old() {
        let clock = Clock::of_runtime(BootTime(0), Millis(1_000_000));
        let clocks = ReplicaClocks::new(ReplicaId(1), clock.clone());
        assert_eq!(shown(&clocks), [(1, 1_000_000)]);
        clocks.hear(ReplicaId(2), Millis(5));
        tokio::time::advance(Duration::from_millis(READING_MS_MAX)).await;
        assert_eq!(shown(&clocks), [(1, 1_000_000 + READING_MS_MAX), (2, 5 + READING_MS_MAX)]);
        clock.step_wall(-400);
        assert_eq!(shown(&clocks)[0], (1, 999_600 + READING_MS_MAX), "a correction takes effect at once");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(shown(&clocks).len(), 1, "the other one is no longer known");
        clocks.hear(ReplicaId(2), Millis(7));
        assert_eq!(shown(&clocks)[1], (2, 7));
    }
}

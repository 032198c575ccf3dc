//! Clocks of a node as a value, so that an agent can be simulated at any time. Certificates use the wall
//! clock, which can be set. Leases use the boot clock, which cannot.

use crate::sandbox::boottime_ms;
use protocol::Millis;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Source of a node's time.
#[derive(Debug, Clone, Default)]
pub struct Clock(ClockSource);

#[derive(Debug, Clone, Default)]
enum ClockSource {
    #[default]
    Machine,
    /// Clocks that follow the tokio runtime's, which a test may pause and advance.
    Runtime { began: Instant, boottime_ms: u64, wall_at_start_ms: Arc<AtomicU64> },
}

impl Clock {
    /// Returns the machine's clocks.
    #[must_use]
    pub fn machine() -> Self {
        Self(ClockSource::Machine)
    }

    /// Returns clocks that show these times now and follow the clock of the tokio runtime.
    #[must_use]
    pub fn of_runtime(boottime_ms: u64, wall: Millis) -> Self {
        let wall_at_start_ms = Arc::new(AtomicU64::new(wall.0));
        Self(ClockSource::Runtime { began: Instant::now(), boottime_ms, wall_at_start_ms })
    }

    /// Returns the milliseconds since the machine started, including sleep.
    #[must_use]
    pub fn boottime_ms(&self) -> u64 {
        match &self.0 {
            ClockSource::Machine => boottime_ms(),
            ClockSource::Runtime { began, boottime_ms, .. } => boottime_ms + since(*began),
        }
    }

    /// Returns the time of the wall clock.
    #[must_use]
    pub fn wall(&self) -> Millis {
        match &self.0 {
            ClockSource::Machine => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                Millis(since.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)))
            }
            ClockSource::Runtime { began, wall_at_start_ms, .. } => {
                Millis(wall_at_start_ms.load(Ordering::Relaxed)).plus(since(*began))
            }
        }
    }

    /// Steps the wall clock of [`Self::of_runtime`] forward or back, for all clones. The machine's clock is
    /// left unchanged.
    pub fn step_wall(&self, by_ms: i64) {
        if let ClockSource::Runtime { wall_at_start_ms, .. } = &self.0 {
            let step = |wall: u64| Some(wall.saturating_add_signed(by_ms));
            let _ = wall_at_start_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        }
    }
}

fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_runtimes_clocks_go_with_it_and_its_wall_clock_can_be_set() {
        let clock = Clock::of_runtime(5_000, Millis(1_000_000));
        let shared = clock.clone();
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!((clock.boottime_ms(), clock.wall()), (5_700, Millis(1_000_700)));
        shared.step_wall(-60_000);
        assert_eq!((clock.boottime_ms(), clock.wall()), (5_700, Millis(940_700)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_machines_clocks_ignore_the_runtimes() {
        let clock = Clock::machine();
        let before = clock.boottime_ms();
        tokio::time::advance(Duration::from_secs(3600)).await;
        clock.step_wall(-3_600_000);
        assert!(clock.boottime_ms() < before + 1_800_000);
        assert!(clock.wall() > Millis(1_700_000_000_000), "some time after 2023");
    }
}

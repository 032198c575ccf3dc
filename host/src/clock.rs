//! Clocks of this machine, and the same as a value, so that an agent can be simulated at any time.
//!
//! Certificates use the wall clock, which can be set. Leases use the boot clock, which cannot. Their times
//! have different types, so that neither passes for the other.

use nix::time::{ClockId, clock_gettime};
use protocol::{BootId, BootTime, Digest, Millis};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Domain of the digest that stands for the kernel's id of a start.
const BOOT_ID_DOMAIN: &str = "quorate/boot-id/v1";

/// Returns the time since the machine started, including sleep (`CLOCK_BOOTTIME`). It never jumps, and
/// every process of the machine reads the same value, sandboxed or not.
#[must_use]
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    BootTime(now.tv_sec().unsigned_abs() * 1000 + now.tv_nsec().unsigned_abs() / 1_000_000)
}

/// Returns the id of this start of the machine, which the kernel draws; none if it cannot be read.
#[must_use]
pub fn boot_id() -> Option<BootId> {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    (!text.trim_ascii().is_empty()).then(|| BootId(Digest::of_domain(BOOT_ID_DOMAIN, text.trim_ascii())))
}

/// Returns the wall clock as of the first call in this process, advanced by the monotonic clock.
///
/// The leader judges leases by this clock, and nothing else. If a clock set forward took effect, leases would
/// end here while nodes still count on them. [`Clock::wall`] shows a clock that was corrected since.
#[must_use]
pub fn wall_clock() -> Millis {
    static BEGAN: OnceLock<(std::time::Instant, Duration)> = OnceLock::new();
    let (began, wall) = BEGAN.get_or_init(|| {
        (std::time::Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    });
    Millis(u64::try_from((*wall + began.elapsed()).as_millis()).unwrap_or(u64::MAX))
}

/// Source of a node's time.
#[derive(Debug, Clone, Default)]
pub struct Clock(ClockSource);

#[derive(Debug, Clone, Default)]
enum ClockSource {
    #[default]
    Machine,
    /// Clocks that follow the tokio runtime's, which a test may pause and advance.
    Runtime {
        began: Instant,
        boot_at_start_ms: Arc<AtomicU64>,
        wall_at_start_ms: Arc<AtomicU64>,
        boot: BootId,
    },
}

impl Clock {
    /// Returns the machine's clocks.
    #[must_use]
    pub fn machine() -> Self {
        Self(ClockSource::Machine)
    }

    /// Returns clocks that show these times now and follow the clock of the tokio runtime.
    #[must_use]
    pub fn of_runtime(boot_at_start: BootTime, wall: Millis) -> Self {
        static STARTS: AtomicU64 = AtomicU64::new(0);
        let boot_at_start_ms = Arc::new(AtomicU64::new(boot_at_start.0));
        let wall_at_start_ms = Arc::new(AtomicU64::new(wall.0));
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let boot = BootId(Digest::of_domain(BOOT_ID_DOMAIN, &start.to_le_bytes()));
        Self(ClockSource::Runtime { began: Instant::now(), boot_at_start_ms, wall_at_start_ms, boot })
    }

    /// Returns the id of the machine's start to which [`Self::boot`] belongs; none if it is not known. Clones
    /// of one simulated clock are of one start.
    #[must_use]
    pub fn boot_id(&self) -> Option<BootId> {
        match &self.0 {
            ClockSource::Machine => boot_id(),
            ClockSource::Runtime { boot, .. } => Some(*boot),
        }
    }

    /// Returns the time since the machine started, including sleep.
    #[must_use]
    pub fn boot(&self) -> BootTime {
        match &self.0 {
            ClockSource::Machine => boot_time(),
            ClockSource::Runtime { began, boot_at_start_ms, .. } => {
                BootTime(boot_at_start_ms.load(Ordering::Relaxed)).plus(since(*began))
            }
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

    /// Suspends the machine of [`Self::of_runtime`] for this time: both its clocks advance, for all clones,
    /// and no timer does. The clocks of a real machine are left unchanged.
    pub fn suspend(&self, for_ms: u64) {
        if let ClockSource::Runtime { boot_at_start_ms, wall_at_start_ms, .. } = &self.0 {
            for clock in [boot_at_start_ms, wall_at_start_ms] {
                let advance = |at: u64| Some(at.saturating_add(for_ms));
                let _ = clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance);
            }
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
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let shared = clock.clone();
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!((clock.boot(), clock.wall()), (BootTime(5_700), Millis(1_000_700)));
        shared.step_wall(-60_000);
        assert_eq!((clock.boot(), clock.wall()), (BootTime(5_700), Millis(940_700)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_finds_both_clocks_advanced_and_no_timer() {
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let (shared, began) = (clock.clone(), Instant::now());
        shared.suspend(86_400_000);
        assert_eq!((clock.boot(), clock.wall()), (BootTime(86_405_000), Millis(87_400_000)));
        assert_eq!(began.elapsed(), Duration::ZERO, "the runtime's clock stood still");
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!((clock.boot(), clock.wall()), (BootTime(86_405_700), Millis(87_400_700)));
        assert_eq!(clock.boot_id(), shared.boot_id(), "the machine was not restarted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_beyond_either_end_of_time_stops_there() {
        let clock = Clock::of_runtime(BootTime(0), Millis(1_000));
        clock.step_wall(i64::MIN);
        assert_eq!(clock.wall(), Millis(0));
        clock.step_wall(i64::MAX);
        clock.step_wall(i64::MAX);
        clock.step_wall(i64::MAX);
        assert_eq!(clock.wall(), Millis(u64::MAX));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((clock.boot(), clock.wall()), (BootTime(1_000), Millis(u64::MAX)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_of_a_machine_has_one_id() {
        assert!(boot_id().is_some() && boot_id() == Clock::machine().boot_id());
        let clock = Clock::of_runtime(BootTime(0), Millis(0));
        assert_eq!(clock.boot_id(), clock.clone().boot_id());
        assert_ne!(clock.boot_id(), Clock::of_runtime(BootTime(0), Millis(0)).boot_id());
    }

    #[test]
    fn the_machines_clocks_never_fall() {
        let times = || (boot_time(), wall_clock());
        let mut before = times();
        for _ in 0..1_000 {
            let now = times();
            assert!(now.0 >= before.0 && now.1 >= before.1, "{before:?}, then {now:?}");
            before = now;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_machines_clocks_ignore_the_runtimes() {
        let clock = Clock::machine();
        let before = clock.boot();
        tokio::time::advance(Duration::from_secs(3600)).await;
        clock.step_wall(-3_600_000);
        assert!(clock.boot() < before.plus(1_800_000));
        assert!(clock.wall() > Millis(1_700_000_000_000), "some time after 2023");
    }
}

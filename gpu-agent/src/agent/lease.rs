//! The node's lease: the time until which it may act.

use host::Clock;
use protocol::{BootTime, Millis};

/// The time until which this node may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lease {
    /// End of the lease; the start of the machine before the first answer of control.
    pub(super) until: BootTime,
}

impl Lease {
    /// Returns whether the lease is valid now.
    pub(super) fn holds(self, clock: &Clock) -> bool {
        clock.boot() < self.until
    }

    /// Returns the end of the lease by the wall clock, for tickets.
    pub(super) fn expires_at(self, clock: &Clock) -> Millis {
        clock.wall().plus(self.until.since(clock.boot()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_lease_holds_until_its_end_however_the_wall_clock_is_set() {
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let lease = Lease { until: BootTime(8_000) };
        assert!(lease.holds(&clock));
        clock.step_wall(3_600_000);
        assert!(lease.holds(&clock));
        tokio::time::advance(Duration::from_millis(2_999)).await;
        assert!(lease.holds(&clock));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!lease.holds(&clock), "its end is no longer part of it");
        clock.step_wall(-7_200_000);
        assert!(!lease.holds(&clock));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_expires_with_the_lease_by_the_wall_clock_of_now() {
        let clock = Clock::of_runtime(BootTime(5_000), Millis(1_000_000));
        let lease = Lease { until: BootTime(8_000) };
        assert_eq!(lease.expires_at(&clock), Millis(1_003_000));
        clock.step_wall(-500_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(lease.expires_at(&clock), Millis(503_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(lease.expires_at(&clock), clock.wall(), "one that has ended expires at once");
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_of_control_there_is_no_lease() {
        assert!(!Lease::default().holds(&Clock::of_runtime(BootTime(0), Millis(0))));
    }
}

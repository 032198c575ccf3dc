//! The node's lease: the time until which it may act.

use crate::clock::Clock;
use protocol::Millis;

/// The time until which this node may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lease {
    /// End of the lease on the boot clock, in milliseconds; 0 before the first answer of control.
    pub(super) until_boottime_ms: u64,
}

impl Lease {
    /// Returns whether the lease is valid now.
    pub(super) fn holds(self, clock: &Clock) -> bool {
        clock.boottime_ms() < self.until_boottime_ms
    }

    /// Returns the end of the lease by the wall clock, for tickets.
    pub(super) fn expires_at(self, clock: &Clock) -> Millis {
        clock.wall().plus(self.until_boottime_ms.saturating_sub(clock.boottime_ms()))
    }
}

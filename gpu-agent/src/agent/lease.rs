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

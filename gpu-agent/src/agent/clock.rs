//! The two clocks of an agent: the wall clock, which certificates and tickets speak of, and the boot
//! clock, in which leases are counted because nobody can set it.

use crate::sandbox::boottime_ms;
use protocol::Millis;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock.
pub(super) fn wall_clock() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Millis(since.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)))
}

/// Until when this node may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lease {
    /// On the boot clock, in milliseconds; 0 before the first answer of control.
    pub(super) until_boottime_ms: u64,
}

impl Lease {
    /// Whether it holds now.
    pub(super) fn holds(self) -> bool {
        boottime_ms() < self.until_boottime_ms
    }

    /// Its end by the wall clock, for tickets.
    pub(super) fn expires_at(self) -> Millis {
        wall_clock().plus(self.until_boottime_ms.saturating_sub(boottime_ms()))
    }
}

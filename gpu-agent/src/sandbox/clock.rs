//! The boot clock, which leases use.

use nix::time::{ClockId, clock_gettime};

/// Returns the milliseconds since the machine started, including sleep (`CLOCK_BOOTTIME`). It never jumps,
/// and every process of the machine reads the same value, sandboxed or not.
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
    now.tv_sec().unsigned_abs() * 1000 + now.tv_nsec().unsigned_abs() / 1_000_000
}

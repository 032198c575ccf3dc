//! The machine that this process runs on: its wall clock and its random source. Clients and servers share it.

use protocol::Millis;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Returns the wall clock as of the first call in this process, advanced by the monotonic clock.
///
/// The leader judges leases by this clock. If a clock set forward took effect, leases would end here while
/// nodes still count on them. Therefore a machine whose clock was wrong at start and was corrected since
/// needs its processes restarted.
#[must_use]
pub fn wall_clock() -> Millis {
    static BEGAN: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (began, wall) = BEGAN
        .get_or_init(|| (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()));
    Millis(u64::try_from((*wall + began.elapsed()).as_millis()).unwrap_or(u64::MAX))
}

/// Returns bytes from the operating system's random source.
///
/// # Panics
/// Panics if the operating system has none: no key would be safe then.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// Generates an access token or API key: a readable prefix and 256 random bits.
#[must_use]
pub fn fresh_secret_text(prefix: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{prefix}-{}", hex::encode(random_bytes::<32>())))
}

//! Exponential backoff: the pause after a failure doubles each time, up to a bound.

use std::time::Duration;

/// Pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExponentialBackoff {
    /// Pause after the first failure.
    pub(super) first: Duration,
    /// Upper bound of the pause.
    pub(super) most: Duration,
}

impl ExponentialBackoff {
    /// Returns the pause after this many consecutive failures; zero if there were none.
    pub(super) fn pause(self, failures: u32) -> Duration {
        debug_assert!(self.first <= self.most, "the bound is above the first pause");
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: ExponentialBackoff =
        ExponentialBackoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };

    #[test]
    fn a_pause_doubles_up_to_its_bound() {
        let pauses: Vec<u128> = (0..=10).map(|failures| BACKOFF.pause(failures).as_millis()).collect();
        assert_eq!(pauses, [0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    }

    proptest! {
        #[test]
        fn a_pause_never_falls_and_stays_in_its_bounds(failures in 1_u32..) {
            let pause = BACKOFF.pause(failures);
            prop_assert!(pause >= BACKOFF.first && pause <= BACKOFF.most);
            prop_assert!(BACKOFF.pause(failures.saturating_add(1)) >= pause);
        }
    }
}

//! Rate limit for log lines that unauthenticated clients can cause at will.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Interval between two lines of a kind: a line in ten seconds shows that a flood continues, and fills no
/// disk.
const INTERVAL: Duration = Duration::from_secs(10);

/// Passes one line of its kind per interval, and counts the others.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<ThrottleState>);

#[derive(Debug, Default)]
struct ThrottleState {
    passed_at: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// Returns the number of lines suppressed since the last one, if a line may be written now.
    pub fn pass(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now())
    }
}

impl ThrottleState {
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.passed_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        debug_assert!(self.passed_at.is_none_or(|at| at <= now), "time does not go back");
        self.passed_at = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_in_an_interval_and_all_are_counted() {
        let (mut state, began) = (ThrottleState::default(), Instant::now());
        let mut lines = Vec::new();
        // 13,166 in 14 s, as a flood of connections once caused.
        for number in 0..13_166_u64 {
            let now = began + Duration::from_millis(number * 14_000 / 13_166);
            lines.extend(state.pass(now).map(|suppressed| (number, suppressed)));
        }
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], (0, 0), "the first line passes immediately");
        let (second, suppressed) = lines[1];
        assert_eq!(suppressed, second - 1);
        let later = began + Duration::from_secs(60);
        assert_eq!(state.pass(later), Some(13_166 - 2 - suppressed));
    }
}

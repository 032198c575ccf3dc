//! Pace of the requests to control, by the generic cell rate algorithm (ITU-T I.371): a few changes of a slot
//! are each reported at once, and a steady stream of them at a fixed rate.

use std::time::Duration;
use tokio::time::Instant;

/// Interval between two requests in the long run. An answer with news triggers the next request, and a
/// hostile replica must not set the pace.
const SYNC_GAP: Duration = Duration::from_millis(50);
/// Interval between two requests of a burst: one is for all changes that come with it.
const SYNC_GAP_MIN: Duration = Duration::from_millis(5);
/// Lead over the pace that a burst may have: the states of a short job, each as it comes.
const BURST: Duration = Duration::from_millis(200);

/// Times at which requests may begin.
pub(super) struct SyncPace {
    /// Time at which the next request would begin at the pace of the long run.
    paced: Instant,
}

impl SyncPace {
    /// Creates a pace whose first burst may begin now.
    pub(super) fn new(now: Instant) -> Self {
        Self { paced: now }
    }

    /// Returns the earliest time of the next request, after one that begins now.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        self.paced = self.paced.max(now) + SYNC_GAP;
        let earliest = self.paced.checked_sub(BURST).unwrap_or(now);
        earliest.max(now + SYNC_GAP_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_fast_and_the_long_run_keeps_the_gap() {
        let began = Instant::now();
        let (mut pace, mut now) = (SyncPace::new(began), began);
        let mut gaps = Vec::new();
        for _ in 0..100 {
            let next = pace.next(now);
            gaps.push(next - now);
            now = next;
        }
        assert_eq!(gaps[..3], [SYNC_GAP_MIN; 3]);
        assert_eq!(gaps[90..], [SYNC_GAP; 10]);
        // After a silence the next burst is as long as the first, and no longer.
        now += Duration::from_secs(60);
        let again: Vec<Duration> = (0..10)
            .map(|_| {
                let next = pace.next(now);
                let gap = next - now;
                now = next;
                gap
            })
            .collect();
        assert_eq!(again, gaps[..10]);
    }
}

//! How much of what untrusted code sends is taken in: the generic cell rate algorithm. What comes faster is not
//! dropped but left where it is, in a pipe or a socket, until its sender has to wait.

use std::time::Duration;
use tokio::time::Instant;

/// Takes units at a steady rate, and a burst of them at once.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Between two units of the steady rate.
    interval: Duration,
    /// How far ahead of the steady rate a sender may be.
    tolerance: Duration,
    /// When the next unit would come if all came at the steady rate.
    theoretical_arrival: Instant,
}

impl RateLimiter {
    /// So many units in a second, and so many at once.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, tolerance: interval * burst, theoretical_arrival: Instant::now() }
    }

    /// Waits until something may be taken. Safe to cancel.
    pub(crate) async fn ready(&self) {
        // Less than the tolerance behind now is as good as never before.
        if self.theoretical_arrival > Instant::now() + self.tolerance {
            tokio::time::sleep_until(self.theoretical_arrival - self.tolerance).await;
        }
    }

    /// Counts what was taken.
    pub(crate) fn take(&mut self, units: u32) {
        self.theoretical_arrival = self.theoretical_arrival.max(Instant::now()) + self.interval * units;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_comes_at_the_steady_rate() {
        let began = Instant::now();
        let mut limiter = RateLimiter::new(10, 50);
        let mut times = Vec::new();
        for _ in 0..72 {
            limiter.ready().await;
            limiter.take(1);
            times.push(began.elapsed().as_millis());
        }
        assert_eq!(times[50], 0, "the burst, and the one that fills it");
        assert_eq!(times[51..54], [100, 200, 300]);
        assert_eq!(times[71], 2_100);
        // After a pause there is room for a burst again, and for no more than one.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        limiter.take(51);
        let resumed = Instant::now();
        limiter.ready().await;
        assert_eq!(resumed.elapsed().as_millis(), 100);
    }
}

//! Pacer for input from untrusted code, by the generic cell rate algorithm. Excess input is not dropped
//! but left in its pipe or socket, until its sender has to wait.

use std::time::Duration;
use tokio::time::Instant;

/// Accepts units at a steady rate, with bursts.
#[derive(Debug)]
pub struct InputPacer {
    /// Interval between two units at the steady rate.
    interval: Duration,
    /// Tolerance by which a sender may be ahead of the steady rate.
    tolerance: Duration,
    /// Time at which the next unit would arrive if all came at the steady rate.
    theoretical_arrival: Instant,
}

impl InputPacer {
    /// Creates a limiter of this many units per second and this burst.
    ///
    /// # Panics
    /// Panics if the rate is zero: nothing would ever pass.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        assert!(per_second > 0, "a pacer passes something");
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, tolerance: interval * burst, theoretical_arrival: Instant::now() }
    }

    /// Waits until units may be taken. Safe to cancel.
    pub async fn ready(&self) {
        // An arrival time at most the tolerance ahead of now needs no wait.
        if self.theoretical_arrival > Instant::now() + self.tolerance {
            tokio::time::sleep_until(self.theoretical_arrival - self.tolerance).await;
        }
    }

    /// Counts units that were taken.
    pub fn take(&mut self, units: u32) {
        self.theoretical_arrival = self.theoretical_arrival.max(Instant::now()) + self.interval * units;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_comes_at_the_steady_rate() {
        let began = Instant::now();
        let mut limiter = InputPacer::new(10, 50);
        let mut times = Vec::new();
        for _ in 0..72 {
            limiter.ready().await;
            limiter.take(1);
            times.push(began.elapsed().as_millis());
        }
        assert_eq!(times[50], 0, "the burst, and the one that fills it");
        assert_eq!(times[51..54], [100, 200, 300]);
        assert_eq!(times[71], 2_100);
        // After a pause there is capacity for one burst again, and no more.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        limiter.take(51);
        let resumed = Instant::now();
        limiter.ready().await;
        assert_eq!(resumed.elapsed().as_millis(), 100);
    }
}

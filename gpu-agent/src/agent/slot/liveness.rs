//! Timeouts after which a live worker counts as hung, so that it is ended and restarted. There is no other
//! detection, since the agent renews the lease of a hung worker too.

use std::time::Duration;
use tokio::time::Instant;

/// Time to the first message. A worker answers its agent before it does anything else. Three times the limit
/// for a hello on one connection.
const HELLO: Duration = Duration::from_secs(60);
/// Time to readiness once the weights are complete. The largest engines take a minute or two to reach a GPU.
const READY: Duration = Duration::from_secs(300);
/// Time between two metrics lines. A worker writes one every second; sixty missing lines are no transient.
const SILENCE: Duration = Duration::from_secs(60);

/// Signs of life of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerLiveness {
    /// Start of the monitoring.
    pub(super) began: Instant,
    /// Time since which every byte of its weights is present.
    pub(super) complete_since: Option<Instant>,
    /// Whether it has sent its hello.
    pub(super) greeted: bool,
    /// Whether it has reported that it is ready.
    pub(super) ready: bool,
    /// Time of its last metrics line.
    pub(super) metrics_at: Option<Instant>,
}

impl WorkerLiveness {
    /// Returns the deadline at which the worker counts as hung, and the error for that case.
    pub(super) fn deadline(&self) -> Option<(Instant, String)> {
        let ends = |since: Instant, limit: Duration, lacks: &str| {
            (since + limit, format!("it hangs: {lacks} for {} s", limit.as_secs()))
        };
        if !self.greeted {
            return Some(ends(self.began, HELLO, "it has not sent its hello"));
        }
        if !self.ready {
            let since = self.complete_since?;
            return Some(ends(since, READY, "its weights are complete and it is not ready"));
        }
        self.metrics_at.map(|at| ends(at, SILENCE, "it has written no metrics"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_counts_as_hung_when_its_next_sign_of_life_is_overdue() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let signs = |complete: Option<u64>, greeted, ready, numbers: Option<u64>| WorkerLiveness {
            began,
            complete_since: complete.map(at),
            greeted,
            ready,
            metrics_at: numbers.map(at),
        };
        for (name, signs, expected) in [
            ("no hello", signs(None, false, false, None), Some(60)),
            ("no hello, with its weights complete", signs(Some(7), false, false, None), Some(60)),
            ("it waits for its weights, without a limit", signs(None, true, false, Some(3)), None),
            ("it builds its engine", signs(Some(50), true, false, Some(100)), Some(350)),
            ("it serves", signs(Some(50), true, true, Some(1_000)), Some(1_060)),
            ("it never wrote metrics", signs(Some(50), true, true, None), None),
        ] {
            assert_eq!(signs.deadline().map(|(until, _)| until), expected.map(at), "{name}");
        }
    }
}

//! Timeouts after which a live worker counts as hung, so that it is ended and restarted. There is no other
//! detection, since the agent renews the lease of a hung worker too.

use std::time::Duration;
use tokio::time::Instant;

/// Time to the first message. A worker answers its agent before it does anything else. Three times the limit
/// for a hello on one connection.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// Time to readiness once the weights are complete. The largest engines take a minute or two to reach a GPU.
const READY: Duration = Duration::from_secs(300);
/// Time between two metrics lines. A worker writes one every second; sixty missing lines are no transient.
const SILENCE: Duration = Duration::from_secs(60);

/// Signs of life of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct LifeSigns {
    /// Start of the monitoring.
    pub(super) began: Instant,
    /// Time since which every byte of its weights is present.
    pub(super) complete_since: Option<Instant>,
    /// Whether it has sent its hello.
    pub(super) spoke: bool,
    /// Whether it has reported that it is ready.
    pub(super) ready: bool,
    /// Time of its last metrics line.
    pub(super) numbers_at: Option<Instant>,
}

impl LifeSigns {
    /// Returns the deadline at which the worker counts as hung, and the error for that case.
    pub(super) fn patience(&self) -> Option<(Instant, String)> {
        let ends = |since: Instant, limit: Duration, lacks: &str| {
            (since + limit, format!("it hangs: {lacks} for {} s", limit.as_secs()))
        };
        if !self.spoke {
            return Some(ends(self.began, FIRST_WORD, "it has not said who it is"));
        }
        if !self.ready {
            let since = self.complete_since?;
            return Some(ends(since, READY, "its weights are there and it is not ready"));
        }
        self.numbers_at.map(|at| ends(at, SILENCE, "it has written no numbers"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_when_the_next_sign_is_overdue() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let signs = |complete: Option<u64>, spoke, ready, numbers: Option<u64>| LifeSigns {
            began,
            complete_since: complete.map(at),
            spoke,
            ready,
            numbers_at: numbers.map(at),
        };
        for (name, signs, expected) in [
            ("it has said nothing", signs(None, false, false, None), Some(60)),
            ("nor with its weights there", signs(Some(7), false, false, None), Some(60)),
            ("it waits for its weights, however long", signs(None, true, false, Some(3)), None),
            ("it builds its engine", signs(Some(50), true, false, Some(100)), Some(350)),
            ("it serves", signs(Some(50), true, true, Some(1_000)), Some(1_060)),
            ("it never wrote numbers", signs(Some(50), true, true, None), None),
        ] {
            assert_eq!(signs.patience().map(|(until, _)| until), expected.map(at), "{name}");
        }
    }
}

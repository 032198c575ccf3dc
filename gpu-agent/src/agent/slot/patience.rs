//! When a worker that has not ended counts as hung, so that it is ended and started again: nothing else would
//! ever notice, since its lease is renewed for it.

use std::time::Duration;
use tokio::time::Instant;

/// A worker answers its agent before it does anything else. Three times the limit of one conversation.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// An engine is built from bytes that are there; the largest take a minute or two to reach a GPU.
const READY: Duration = Duration::from_secs(300);
/// A worker writes its numbers every second; sixty lines that do not come are no hiccup.
const SILENCE: Duration = Duration::from_secs(60);

/// The signs of life that a worker has given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// When the agent began to watch it.
    pub(super) began: Instant,
    /// Since when every byte of its weights is there.
    pub(super) complete_since: Option<Instant>,
    /// Whether it has said who it is.
    pub(super) spoke: bool,
    /// Whether it has said that it is ready.
    pub(super) ready: bool,
    /// When it last wrote numbers.
    pub(super) numbers_at: Option<Instant>,
}

impl Signs {
    /// When patience with it ends, and what will be said then.
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
        let signs = |complete: Option<u64>, spoke, ready, numbers: Option<u64>| Signs {
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

//! Read barriers that requests share.
//!
//! Each barrier is a round of messages between the leader and the others, and a thousand idle nodes would
//! cost a thousand rounds a second. A request alone has its barrier at once. Those that arrive within a few
//! milliseconds after it wait for the next one, which begins after the last of them has arrived.

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Least time from the begin of one barrier to that of the next: short against the interval of syncs, and a
/// hundred rounds a second at most.
const WINDOW: Duration = Duration::from_millis(10);

/// Barrier that has not begun, for the requests that arrive before it does.
pub(super) struct SharedBarrier<T> {
    open: Mutex<Option<BarrierBatch<T>>>,
}

/// Requests that wait for one barrier.
struct BarrierBatch<T> {
    /// Earliest time of its begin.
    due: Instant,
    has_begun: Arc<AtomicBool>,
    outcome: Shared<BoxFuture<'static, T>>,
}

impl<T> Default for SharedBarrier<T> {
    fn default() -> Self {
        Self { open: Mutex::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> SharedBarrier<T> {
    /// Waits for a barrier that begins after this call, and returns its outcome.
    pub(super) async fn wait<F>(&self, barrier: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let outcome = self.join(barrier);
        outcome.await
    }

    /// Joins the batch whose barrier has not begun, or opens one.
    fn join<F>(&self, barrier: impl FnOnce() -> F + Send + 'static) -> Shared<BoxFuture<'static, T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut open = self.open.lock().expect("no holder of this lock panics");
        if let Some(batch) = open.as_ref().filter(|batch| !batch.has_begun.load(Ordering::SeqCst)) {
            return batch.outcome.clone();
        }
        let now = Instant::now();
        let due = open.as_ref().map_or(now, |last| now.max(last.due + WINDOW));
        let has_begun = Arc::new(AtomicBool::new(false));
        let begins = has_begun.clone();
        // A batch whose requests were all given up begins with the next one that joins it.
        let run = async move {
            tokio::time::sleep_until(due).await;
            begins.store(true, Ordering::SeqCst);
            barrier().await
        };
        let outcome = run.boxed().shared();
        *open = Some(BarrierBatch { due, has_begun, outcome: outcome.clone() });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;
    use std::sync::atomic::AtomicU32;

    /// Barriers that take 3 ms each.
    #[derive(Default)]
    struct Rounds {
        shared: SharedBarrier<Instant>,
        begun: Arc<AtomicU32>,
    }

    impl Rounds {
        /// Waits as a request that arrives at this time; returns the time of its arrival, and that at which
        /// its barrier began.
        async fn request(&self, after: Duration) -> (Instant, Instant) {
            tokio::time::sleep(after).await;
            let (arrived, begun) = (Instant::now(), self.begun.clone());
            let barrier = move || async move {
                begun.fetch_add(1, Ordering::SeqCst);
                let began = Instant::now();
                tokio::time::sleep(Duration::from_millis(3)).await;
                began
            };
            (arrived, self.shared.wait(barrier).await)
        }

        fn begun(&self) -> u32 {
            self.begun.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_requests_share_a_hundred_barriers_that_begin_after_them() {
        let rounds = Rounds::default();
        let requests = (0..1_000).map(|number| rounds.request(Duration::from_millis(number)));
        for (arrived, began) in join_all(requests).await {
            assert!(arrived <= began, "a barrier from before the request proves nothing");
            assert!(began.duration_since(arrived) <= WINDOW);
        }
        assert!((80..=101).contains(&rounds.begun()), "{}", rounds.begun());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_given_up_keeps_no_other_waiting() {
        let rounds = Rounds::default();
        let (arrived, began) = rounds.request(Duration::ZERO).await;
        assert_eq!(arrived, began, "a request alone waits for no other");
        let given_up = tokio::time::timeout(WINDOW / 4, rounds.request(Duration::ZERO)).await;
        assert!(given_up.is_err());
        // Nothing drives the batch that it left; the next request does, whose barrier begins after it.
        let (arrived, began) = rounds.request(Duration::from_secs(60)).await;
        assert!(arrived <= began && rounds.begun() == 2);
        rounds.request(Duration::ZERO).await;
        let (one, two) = tokio::join!(
            tokio::time::timeout(WINDOW / 4, rounds.request(Duration::ZERO)),
            rounds.request(Duration::ZERO),
        );
        assert!(one.is_err() && two.0 <= two.1, "the barrier outlasts the request that began it");
        assert_eq!(rounds.begun(), 4);
    }
}

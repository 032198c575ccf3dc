//! One try at a batch, on a thread of the pool, and how to leave it when a disk hangs under it.
//!
//! A thread in a disk cannot be called back, but it can be left: whoever waits marks the try as left, exactly
//! while it reads, and makes another with other stores. When the disk lets the thread go, it sees the mark
//! before it touches anything. So the try that was left writes nothing and says nothing any more.

use super::OnSegment;
use super::segment::BatchReport;
use crate::destination::Destination;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The state of a try that was left.
const LEFT: u64 = u64::MAX;

/// Where the bytes of a try go. A try that was left keeps nothing of it.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) destination: Arc<dyn Destination>,
    pub(super) on_segment: OnSegment,
}

/// One try.
pub(super) struct Attempt {
    /// Counts beginnings and ends of reads, so it is odd while a disk is asked; or [`LEFT`].
    state: AtomicU64,
    /// Whose disk is asked.
    shard: AtomicUsize,
    target: Mutex<Option<Target>>,
    done: Mutex<BatchReport>,
}

impl Attempt {
    pub(super) fn new(target: Target) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU64::new(0),
            shard: AtomicUsize::new(0),
            target: Mutex::new(Some(target)),
            done: Mutex::default(),
        })
    }

    /// Before the disk of `shard` is asked.
    pub(super) fn begin_read(&self, shard: usize) {
        self.shard.store(shard, Ordering::SeqCst);
        let before = self.state.fetch_add(1, Ordering::SeqCst);
        debug_assert!(before.is_multiple_of(2), "one read at a time");
    }

    /// After the disk has answered. False when the try was left meanwhile.
    pub(super) fn end_read(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state != LEFT
            && self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Waits until one read outlasts as many ticks as its disk may take, then leaves the try. Says whose disk it
    /// was.
    pub(super) async fn hung<T: Future<Output = ()>>(
        &self,
        tick: impl Fn() -> T,
        patience: impl Fn(usize) -> u32,
    ) -> usize {
        let (mut seen, mut lasted) = (self.state.load(Ordering::SeqCst), 0);
        loop {
            tick().await;
            let state = self.state.load(Ordering::SeqCst);
            if state != seen || state.is_multiple_of(2) {
                (seen, lasted) = (state, 0);
                continue;
            }
            lasted += 1;
            let shard = self.shard.load(Ordering::SeqCst);
            let same = || self.state.compare_exchange(seen, LEFT, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if lasted >= patience(shard) && same() {
                self.target.lock().unwrap_or_else(PoisonError::into_inner).take();
                return shard;
            }
        }
    }

    /// Where the bytes go; none when the try was left.
    pub(super) fn target(&self) -> Option<Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a segment that is in place.
    pub(super) fn note(&self, segment: BatchReport) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = done.plus(segment);
    }

    /// The segments that are in place.
    pub(super) fn done(&self) -> BatchReport {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDestination;
    use futures::FutureExt;
    use std::pin::pin;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn only_a_read_that_outlasts_patience_is_left() {
        let memory = Arc::new(MemoryDestination::new(0, 1));
        let target = Target { destination: memory.clone(), on_segment: Arc::new(|_| ()) };
        let attempt = Attempt::new(target);
        let clock = Semaphore::new(0);
        let patience = |shard| if shard == 3 { 5 } else { 1 };
        let tick = || async { clock.acquire().await.expect("open").forget() };
        let mut hung = pin!(attempt.hung(tick, patience));
        let mut time_passes = |times: usize| {
            clock.add_permits(times);
            hung.as_mut().now_or_never()
        };
        assert_eq!(time_passes(5), None, "nothing is read");
        for _ in 0..5 {
            attempt.begin_read(1);
            assert_eq!(time_passes(1), None, "it began after patience did");
            assert!(attempt.end_read());
            attempt.begin_read(0);
            assert_eq!(time_passes(1), None, "another one");
            assert!(attempt.end_read());
            assert_eq!(time_passes(1), None);
        }
        attempt.begin_read(3);
        assert_eq!(time_passes(5), None, "this disk may take longer");
        assert!(attempt.end_read());
        assert_eq!(time_passes(1), None);
        attempt.begin_read(2);
        assert_eq!(time_passes(1), None);
        assert_eq!(time_passes(1), Some(2));
        assert!(!attempt.end_read(), "the thread learns of it");
        assert!(attempt.target().is_none() && Arc::into_inner(memory).is_some(), "and holds nothing");
    }
}

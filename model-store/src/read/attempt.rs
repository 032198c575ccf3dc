//! One attempt at a batch on a pool thread, and its abandonment when a disk stalls.
//!
//! A thread that waits for a disk cannot be interrupted, but its attempt can be abandoned. The waiting task
//! marks the attempt as abandoned, only while it reads, and starts another with other stores. When the disk
//! releases the thread, the thread sees the mark before it touches anything. An abandoned attempt therefore
//! writes and reports nothing more.

use super::batch::BatchReport;
use crate::destination::Destination;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// State of an abandoned attempt.
const ABANDONED: u64 = u64::MAX;

/// Callback that receives the index of each segment once its bytes are verified and in place, from any
/// thread.
pub type OnSegment = Arc<dyn Fn(u32) + Send + Sync>;

/// Destination of an attempt's bytes. An abandoned attempt no longer holds it.
#[derive(Clone)]
pub(super) struct FillTarget {
    pub(super) destination: Arc<dyn Destination>,
    pub(super) on_segment: OnSegment,
}

/// One attempt at a batch.
pub(super) struct Attempt {
    /// Counts starts and ends of reads, so it is odd during a read; or [`ABANDONED`].
    state: AtomicU64,
    /// Shard whose disk is read.
    shard: AtomicUsize,
    target: Mutex<Option<FillTarget>>,
    done: Mutex<BatchReport>,
}

impl Attempt {
    pub(super) fn new(target: FillTarget) -> Arc<Self> {
        Arc::new(Self {
            state: AtomicU64::new(0),
            shard: AtomicUsize::new(0),
            target: Mutex::new(Some(target)),
            done: Mutex::default(),
        })
    }

    /// Marks the start of a read from the disk of `shard`.
    pub(super) fn begin_read(&self, shard: usize) {
        self.shard.store(shard, Ordering::SeqCst);
        let before = self.state.fetch_add(1, Ordering::SeqCst);
        debug_assert!(before.is_multiple_of(2), "one read at a time");
    }

    /// Marks the end of a read. Returns false if the attempt was abandoned during the read.
    pub(super) fn end_read(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        state != ABANDONED
            && self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Waits until one read outlasts the ticks that its disk may take, then abandons the attempt. Returns the
    /// shard of that disk.
    pub(super) async fn stalled<T: Future<Output = ()>>(
        &self,
        tick: impl Fn() -> T,
        ticks_max: impl Fn(usize) -> u32,
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
            let same =
                || self.state.compare_exchange(seen, ABANDONED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if lasted >= ticks_max(shard) && same() {
                self.target.lock().unwrap_or_else(PoisonError::into_inner).take();
                return shard;
            }
        }
    }

    /// Returns the destination; `None` if the attempt was abandoned.
    pub(super) fn target(&self) -> Option<FillTarget> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a segment that is in place.
    pub(super) fn note(&self, segment: BatchReport) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = done.plus(segment);
    }

    /// Returns the totals of the segments that are in place.
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
    async fn only_a_read_that_outlasts_its_ticks_is_abandoned() {
        let memory = Arc::new(MemoryDestination::new(0, 1));
        let target = FillTarget { destination: memory.clone(), on_segment: Arc::new(|_| ()) };
        let attempt = Attempt::new(target);
        let clock = Semaphore::new(0);
        let ticks_max = |shard| if shard == 3 { 5 } else { 1 };
        let tick = || async { clock.acquire().await.expect("open").forget() };
        let mut stalled = pin!(attempt.stalled(tick, ticks_max));
        let mut time_passes = |times: usize| {
            clock.add_permits(times);
            stalled.as_mut().now_or_never()
        };
        assert_eq!(time_passes(5), None, "nothing is read");
        for _ in 0..5 {
            attempt.begin_read(1);
            assert_eq!(time_passes(1), None, "the read began after the tick did");
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

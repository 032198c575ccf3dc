//! The disk behind a directory: a bound on how much may wait for it. A disk can hang for minutes without
//! failing, and a thread that waits for one cannot be called back. So everything that may block in a disk
//! takes one of a few places, and keeps it until the disk has answered, however long ago its caller left.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use tokio::sync::Semaphore;

/// Requests in one disk at once. Quick disks need a few; sixteen hung ones of this process still leave half
/// of tokio's 512 blocking threads to others.
const PLACES: usize = 16;
/// Reads stuck in a disk at which threads that read by position no longer try it: one, to see it come back.
const STUCK_MAX: isize = 2;

/// One disk, shared by everything in this process that opened its directory through one context.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    places: Arc<Semaphore>,
    /// Reads by position that nobody waits for any more and that the disk has not answered.
    stuck: Arc<AtomicIsize>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(PLACES)), stuck: Arc::default() }
    }
}

impl Disk {
    /// Waits for a place and does `work` there. Whoever stops waiting leaves it running, in its place. None
    /// when the work panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let apart = tokio::spawn(async move {
            let result = work.await;
            drop(place);
            result
        });
        apart.await.ok()
    }

    /// As [`Disk::run`], for work that blocks its thread.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.run(async move { tokio::task::spawn_blocking(work).await.ok() }).await.flatten()
    }

    /// Whether so much is stuck in it that no thread should try it.
    pub(crate) fn hangs(&self) -> bool {
        self.stuck.load(Ordering::SeqCst) >= STUCK_MAX
    }

    /// Notes that a read is stuck.
    pub(crate) fn stuck(&self) {
        self.stuck.fetch_add(1, Ordering::SeqCst);
    }

    /// Notes that a stuck read came back.
    pub(crate) fn came_back(&self) {
        self.stuck.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many more requests it would take now.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_hung_disk_holds_its_places_and_no_more_threads() {
        let disk = Disk::default();
        let answers = Arc::new(Semaphore::new(0));
        for _ in 0..3 * PLACES {
            let answers = answers.clone();
            let work = disk.run(async move { answers.acquire_owned().await.map(drop).is_ok() });
            assert_eq!(work.now_or_never(), None, "it hangs, and its caller leaves");
        }
        assert_eq!(disk.free(), 0, "every place is taken, though nobody waits any more");
        answers.add_permits(1);
        assert_eq!(disk.run(async { 7 }).await, Some(7), "the disk answers again");
        answers.add_permits(PLACES);
        while disk.free() < PLACES {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_that_blocks_runs_on_a_thread_of_its_own_and_a_panic_is_none() {
        let disk = Disk::default();
        let (answer, wait) = mpsc::channel();
        let blocked = disk.run_blocking(move || wait.recv().unwrap_or(0));
        let both = futures::future::join(blocked, async move { answer.send(5).is_ok() });
        assert_eq!(both.await, (Some(5), true));
        assert_eq!(disk.run_blocking(|| panic!("meant to")).await, None::<()>);
        assert_eq!(disk.free(), PLACES);
    }
}

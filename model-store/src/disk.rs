//! Bound on the requests that wait for one disk.
//!
//! A disk can stall for minutes without failing, and a thread that waits for it cannot be interrupted. Every
//! operation that may block on a disk therefore takes one of a few permits. It keeps the permit until the
//! disk answers, even if its caller has given up long before.

use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use tokio::sync::Semaphore;

/// Number of permits per disk. Fast disks need few. Even sixteen stalled disks leave half of tokio's 512
/// blocking threads free.
const PERMITS: usize = 16;
/// Number of stalled reads at which threads that read by position skip the disk. With one stalled read they
/// still try it, to notice its recovery.
const STALLED_MAX: isize = 2;

/// One disk, shared by everything in this process that opened its directory through one context.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    permits: Arc<Semaphore>,
    /// Reads by position that were abandoned and that the disk has not answered yet.
    stalled: Arc<AtomicIsize>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(PERMITS)), stalled: Arc::default() }
    }
}

impl Disk {
    /// Waits for a permit and runs `work` with it. If the caller stops waiting, the work keeps running with
    /// its permit. Returns `None` if the work panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let task = tokio::spawn(async move {
            let result = work.await;
            drop(permit);
            result
        });
        task.await.ok()
    }

    /// Runs work that blocks its thread, as [`Disk::run`] does.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.run(async move { tokio::task::spawn_blocking(work).await.ok() }).await.flatten()
    }

    /// Returns whether so many reads are stalled that no thread should try the disk.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst) >= STALLED_MAX
    }

    /// Records that a read is stalled.
    pub(crate) fn read_stalled(&self) {
        self.stalled.fetch_add(1, Ordering::SeqCst);
    }

    /// Records that a stalled read returned.
    pub(crate) fn read_returned(&self) {
        self.stalled.fetch_sub(1, Ordering::SeqCst);
    }

    /// Returns the number of free permits.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.permits.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_stalled_disk_holds_its_permits_and_no_more_threads() {
        let disk = Disk::default();
        let answers = Arc::new(Semaphore::new(0));
        for _ in 0..3 * PERMITS {
            let answers = answers.clone();
            let work = disk.run(async move { answers.acquire_owned().await.map(drop).is_ok() });
            assert_eq!(work.now_or_never(), None, "the disk stalls, and its caller leaves");
        }
        assert_eq!(disk.free(), 0, "every permit is held, although no caller waits any more");
        answers.add_permits(1);
        assert_eq!(disk.run(async { 7 }).await, Some(7), "the disk answers again");
        answers.add_permits(PERMITS);
        while disk.free() < PERMITS {
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
        assert_eq!(disk.run_blocking(|| panic!("deliberate")).await, None::<()>);
        assert_eq!(disk.free(), PERMITS);
    }
}

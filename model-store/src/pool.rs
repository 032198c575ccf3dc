//! Thread pool for work on bytes: reading local shards, encryption, erasure coding, hashing.
//!
//! Tokio's own threads stay free to answer heartbeats while a model loads. A thread that stalls on a disk
//! cannot be interrupted: another thread replaces it, and it ends when the disk answers.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::oneshot;

type PoolJob = Box<dyn FnOnce() + Send>;

thread_local! {
    /// Whether another thread has replaced this one.
    static REPLACED: Cell<bool> = const { Cell::new(false) };
}

/// Marks the current thread of a pool as replaced: it ends after its current job.
pub(crate) fn replaced() {
    REPLACED.set(true);
}

/// A fixed number of threads that run jobs in the order of their arrival. They end when the last handle is
/// dropped and the queued jobs are done.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<PoolJob>,
    queue: Arc<Mutex<mpsc::Receiver<PoolJob>>>,
    threads: usize,
    /// Number of running threads, including stalled ones and their replacements.
    running: Arc<AtomicUsize>,
    /// Whether jobs run on tokio's blocking threads, so that simulated time waits for them.
    #[cfg(test)]
    simulated: bool,
}

impl Pool {
    /// Starts a pool of `threads` threads, at least one.
    ///
    /// # Panics
    /// Panics if the operating system cannot start a thread: the process cannot do its work.
    #[must_use]
    pub fn new(threads: usize) -> Arc<Self> {
        let threads = threads.max(1);
        let (jobs, queue) = mpsc::channel::<PoolJob>();
        let queue = Arc::new(Mutex::new(queue));
        let pool = Self {
            jobs,
            queue,
            threads,
            running: Arc::default(),
            #[cfg(test)]
            simulated: false,
        };
        for _ in 0..threads {
            pool.start().expect("start a thread of the model store's pool");
        }
        Arc::new(pool)
    }

    fn start(&self) -> std::io::Result<()> {
        let (queue, running) = (self.queue.clone(), self.running.clone());
        let number = running.fetch_add(1, Ordering::SeqCst);
        let builder = std::thread::Builder::new().name(format!("model-store-{number}"));
        let started = builder.spawn(move || {
            work(&queue);
            running.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            self.running.fetch_sub(1, Ordering::SeqCst);
        }
        started.map(drop)
    }

    /// Starts a replacement for a stalled thread, which must call [`replaced`] when it returns.
    pub(crate) fn replace(&self) {
        if let Err(error) = self.start() {
            tracing::error!(%error, "cannot replace a thread stalled on a disk; loading is slower");
        }
    }

    /// Returns the number of running threads.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Returns a pool that reports `threads` threads, for tests in simulated time, which stands still while a
    /// job runs.
    #[cfg(test)]
    pub(crate) fn simulated(threads: usize) -> Arc<Self> {
        let (jobs, queue) = mpsc::channel::<PoolJob>();
        let queue = Arc::new(Mutex::new(queue));
        Arc::new(Self { jobs, queue, threads, running: Arc::default(), simulated: true })
    }

    /// Starts a pool of one thread per core that this process may use.
    #[must_use]
    pub fn per_core() -> Arc<Self> {
        Self::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }

    /// Returns the configured number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job` on one of the threads. Returns `None` if it panicked; its captures are dropped before this
    /// returns.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        #[cfg(test)]
        if self.simulated {
            return tokio::task::spawn_blocking(job).await.ok();
        }
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            // The caller may have stopped waiting; then the result is not needed.
            let _ = done.send(result);
        });
        self.jobs.send(job).ok()?;
        result.await.ok()
    }
}

fn work(queue: &Mutex<mpsc::Receiver<PoolJob>>) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        // A panic is a broken invariant of one job. Its caller learns of it, and the thread serves the other
        // jobs.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job of the model store panicked");
        }
        if REPLACED.get() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_and_a_panic_ends_only_its_own() {
        let pool = Pool::new(2);
        assert_eq!(pool.run(|| panic!("deliberate")).await, None::<()>);
        assert_eq!(pool.run(|| 6 * 7).await, Some(42));
        assert_eq!(pool.threads(), 2);
    }

    #[tokio::test]
    async fn a_stalled_thread_is_replaced_and_ends_when_its_disk_answers() {
        let pool = Pool::new(1);
        let (release, stalled) = mpsc::channel::<()>();
        let blocked = pool.run(move || {
            let _ = stalled.recv();
            replaced();
        });
        let others = async {
            pool.replace();
            assert_eq!(pool.run(|| 1).await, Some(1), "another thread runs other jobs");
            assert_eq!(pool.running(), 2);
            drop(release);
        };
        futures::future::join(blocked, others).await;
        while pool.running() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.run(|| 2).await, Some(2));
    }
}

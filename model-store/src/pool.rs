//! Threads for work on bytes: reading local shards, encryption, erasure coding, hashing. Tokio's own threads
//! stay free to answer heartbeats while a model loads.

use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that take jobs in the order of their arrival. They end when the last handle is
/// dropped and the jobs already given are done.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<Job>,
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Panics
    /// When the operating system gives no thread: the process cannot do its work.
    #[must_use]
    pub fn new(threads: usize) -> Arc<Self> {
        let threads = threads.max(1);
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = queue.clone();
            let builder = std::thread::Builder::new().name(format!("model-store-{number}"));
            builder.spawn(move || work(&queue)).expect("start a thread of the model store's pool");
        }
        Arc::new(Self { jobs, threads })
    }

    /// A pool of one thread per core that this process may use.
    #[must_use]
    pub fn per_core() -> Arc<Self> {
        Self::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get))
    }

    /// How many threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job` on one of the threads. None when it panicked; its captures are dropped before this ends.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            // Whoever waited may have gone; then nobody needs the result.
            let _ = done.send(result);
        });
        self.jobs.send(job).ok()?;
        result.await.ok()
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        // A panic is a broken invariant of one job; its waiter learns of it, the thread serves the others.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job of the model store panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_and_a_panic_ends_only_its_own() {
        let pool = Pool::new(2);
        assert_eq!(pool.run(|| panic!("meant to")).await, None::<()>);
        assert_eq!(pool.run(|| 6 * 7).await, Some(42));
        assert_eq!(pool.threads(), 2);
    }
}

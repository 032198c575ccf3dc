//! Executor of a replica's loops: threads in production, tasks in a simulation.
//!
//! A production loop has its own thread, with a single-threaded runtime that provides nothing but timers. In
//! a simulation all loops are tasks of the caller's runtime, under its clock. If that clock is paused, time
//! advances only when all tasks are idle. The loops are the same code.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Runs a replica's loops and their background jobs. Clones refer to the same replica.
#[derive(Clone)]
pub(crate) enum Executor {
    Threads(Arc<Mutex<Vec<JoinHandle<()>>>>),
    Simulated(SimulatedProcess),
}

impl Executor {
    pub(crate) fn threads() -> Self {
        Self::Threads(Arc::default())
    }

    /// Returns whether the replica is simulated, so that costly checks slow nothing down.
    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self, Self::Simulated(_))
    }

    /// Spawns a loop.
    pub(crate) fn spawn(
        &self,
        name: &str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        match self {
            Self::Threads(_) => self.spawn_blocking(name, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let runtime = runtime.expect("a runtime without sockets asks nothing of the system");
                runtime.block_on(work);
            }),
            Self::Simulated(process) => {
                process.spawn(work);
                Ok(())
            }
        }
    }

    /// Runs a job that may take long, outside the loops.
    pub(crate) fn spawn_blocking(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match self {
            Self::Threads(threads) => {
                let mut threads = threads.lock().unwrap_or_else(PoisonError::into_inner);
                threads.retain(|thread| !thread.is_finished());
                threads.push(std::thread::Builder::new().name(name.into()).spawn(work)?);
                Ok(())
            }
            Self::Simulated(process) => {
                let mut held = process.held.subscribe();
                process.spawn(async move {
                    // The sender lives as long as the process, and without one nothing is held.
                    let _ = held.wait_for(|held| !held).await;
                    work();
                });
                Ok(())
            }
        }
    }

    /// Kills a simulated process, or waits until every thread has ended. A snapshot that is being written is
    /// waited for too, because until then the log's directory is in use.
    pub(crate) fn end(&self) {
        match self {
            Self::Threads(threads) => {
                let next = || threads.lock().unwrap_or_else(PoisonError::into_inner).pop();
                while let Some(thread) = next() {
                    // A panic is printed where it happened; nothing remains to be done here.
                    let _ = thread.join();
                }
            }
            Self::Simulated(process) => process.kill(),
        }
    }
}

/// State of a simulated process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Killed,
}

/// Lifecycle of one simulated replica: paused as by SIGSTOP, ended as by SIGKILL. Clones are the same
/// process.
#[derive(Clone)]
pub(crate) struct SimulatedProcess {
    phase: Arc<watch::Sender<Phase>>,
    /// True while background jobs are kept from starting.
    held: Arc<watch::Sender<bool>>,
}

impl SimulatedProcess {
    pub(crate) fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)), held: Arc::default() }
    }

    /// Pauses or resumes the process. Its peers notice only silence.
    pub(crate) fn set_paused(&self, paused: bool) {
        let next = if paused { Phase::Paused } else { Phase::Running };
        self.phase
            .send_if_modified(|phase| *phase != Phase::Killed && std::mem::replace(phase, next) != next);
    }

    /// Kills the process immediately: none of its tasks runs again.
    pub(crate) fn kill(&self) {
        self.phase.send_replace(Phase::Killed);
    }

    /// Keeps background jobs, such as snapshots, from starting, or releases them.
    pub(crate) fn hold_blocking(&self, held: bool) {
        self.held.send_replace(held);
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut phase = self.phase.subscribe();
        tokio::spawn(async move {
            let mut work = pin!(work);
            loop {
                let now = *phase.borrow_and_update();
                tokio::select! {
                    biased;
                    changed = phase.changed(), if now != Phase::Killed => if changed.is_err() { return },
                    () = &mut work, if now == Phase::Running => return,
                    else => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// Spawns a task that counts seconds until its process ends.
    fn counting(process: &SimulatedProcess) -> Arc<AtomicU64> {
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        process.spawn(async move {
            loop {
                sleep(Duration::from_secs(1)).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        count
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_resumes_and_a_killed_one_never_does() {
        let process = SimulatedProcess::new();
        let count = counting(&process);
        let counted = || count.load(Ordering::Relaxed);
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(counted(), 2);
        process.set_paused(true);
        sleep(Duration::from_secs(100)).await;
        assert_eq!(counted(), 2);
        process.set_paused(false);
        sleep(Duration::from_millis(2500)).await;
        // A tick that was due during the pause runs once, late.
        assert_eq!(counted(), 5);
        process.kill();
        process.set_paused(false);
        sleep(Duration::from_secs(100)).await;
        assert_eq!(counted(), 5);
        assert_eq!(Arc::strong_count(&count), 1, "what a killed process held is let go");
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_background_job_starts_when_it_is_released() {
        let process = SimulatedProcess::new();
        let executor = Executor::Simulated(process.clone());
        let (done, ended) = tokio::sync::oneshot::channel();
        process.hold_blocking(true);
        let begin = Instant::now();
        executor.spawn_blocking("work", move || done.send(()).expect("awaited")).expect("a task");
        sleep(Duration::from_secs(5)).await;
        process.hold_blocking(false);
        ended.await.expect("done");
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
    }
}

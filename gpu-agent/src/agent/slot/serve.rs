//! While a worker runs: its lease is renewed, its words are heard, its numbers and lines are read, and its
//! end is noticed.

use super::launch::mark_complete;
use super::{Attempt, Command, Slot};
use crate::agent::clock::wall_clock;
use crate::agent::core::Refusal;
use crate::agent::logs::LogTail;
use crate::agent::models::{Fill, Model};
use crate::agent::worker_link::{About, Said, talk};
use crate::sandbox::{Ended, MetricsReader, Running};
use protocol::Millis;
use protocol::agent::SlotState;
use protocol::error_code;
use protocol::sandbox::SandboxExit;
use protocol::worker::{WorkerMetrics, WorkerState};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// How often a worker's log files are looked at.
const LOG_INTERVAL: Duration = Duration::from_millis(500);
/// How long after its grace a sandbox may take to be gone before it is killed from outside.
const STOP_SLACK: Duration = Duration::from_secs(1);
/// How long a drained worker may take to end when it is told to: nothing runs on it.
const DRAINED_GRACE_MS: u64 = 1_000;
/// How much of a dead worker's last words goes into the report.
const LAST_WORDS_BYTES: u64 = 400;

/// A worker that is being watched over.
struct Watch<'a> {
    slot: &'a Slot,
    running: &'a Arc<Running>,
    said: Option<Said>,
    fill: Option<watch::Receiver<Fill>>,
    drain: watch::Sender<bool>,
    /// Set once it was told to end: when it is killed.
    kill_at: Option<Instant>,
}

impl Slot {
    /// Watches over a worker until it has ended and nothing of its sandbox is left.
    pub(super) async fn serve(&mut self, running: Running, model: Option<Arc<Model>>) -> Attempt {
        let adopted = model.is_none();
        {
            let mut status = self.status.lock();
            status.not_enforced = running.not_enforced().to_vec();
            status.model.clone_from(&model);
            status.metrics = None;
        }
        let running = Arc::new(running);
        let attempt = self.watch(&running, model.as_deref(), adopted).await;
        let Some(running) = Arc::into_inner(running) else {
            unreachable!("whoever else had it was waited for");
        };
        let name = running.name().to_string();
        match tokio::task::spawn_blocking(move || running.remove()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                // Still there, perhaps: nothing may start in its place. The next start clears it or fails.
                tracing::error!(
                    sandbox = name,
                    error = super::super::error::chain_of(&error),
                    "remove a sandbox"
                );
            }
            Err(error) => tracing::error!(sandbox = name, %error, "remove a sandbox"),
        }
        self.status.lock().model = None;
        attempt
    }

    async fn watch(&self, running: &Arc<Running>, model: Option<&Model>, adopted: bool) -> Attempt {
        let (said_sender, mut said) = watch::channel(None);
        let (drain, drain_receiver) = watch::channel(false);
        let about = About { node: &self.node, key: &self.key, fence: self.order.fence };
        let mut talking = std::pin::pin!(talk(about, running, &said_sender, drain_receiver));
        let mut ended = std::pin::pin!(running.wait());
        let mut metrics = running.metrics().ok();
        let mut lines = LogTail::new(running.log_files(), adopted);
        let mut ticks = tokio::time::interval(LOG_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut leases = self.node.lease.subscribe();
        let mut command = self.command.clone();
        let fill = model.map(Model::fill);
        let mut fills = fill.clone();
        let mut watch = Watch { slot: self, running, said: None, fill, drain, kill_at: None };
        watch.note_fill();
        let told = *command.borrow_and_update();
        watch.obey(told).await;
        loop {
            watch.show();
            let kill_at = watch.kill_at;
            tokio::select! {
                ended = &mut ended => {
                    self.node.logs.push(&self.key, lines.read());
                    return watch.judge_end(ended);
                }
                () = &mut talking => {}
                Ok(()) = said.changed() => {
                    watch.said = said.borrow_and_update().clone();
                    if let Some(failure) = watch.worker_failure() {
                        self.node.logs.push(&self.key, lines.read());
                        return Attempt::Failed(failure);
                    }
                }
                Ok(()) = leases.changed() => {
                    let until_ms = leases.borrow_and_update().until_boottime_ms;
                    watch.renew(until_ms).await;
                }
                changed = command.changed() => {
                    // The handle is gone only when the agent is.
                    let told = if changed.is_ok() { *command.borrow_and_update() } else { Command::End { grace_ms: 0 } };
                    watch.obey(told).await;
                }
                newest = next_metrics(&mut metrics) => watch.hear_metrics(newest).await,
                () = fill_changes(&mut fills) => watch.note_fill(),
                () = until(kill_at) => return Attempt::Told,
                _ = ticks.tick() => self.node.logs.push(&self.key, lines.read()),
            }
        }
    }
}

impl Watch<'_> {
    /// Says how the slot is.
    fn show(&self) {
        let draining = *self.drain.borrow() || self.kill_at.is_some();
        let fill = self.fill.as_ref().map(|fill| fill.borrow().clone());
        let (state, detail) = match (&self.said, fill) {
            _ if draining => (SlotState::Draining, String::new()),
            (Some(Said { state: WorkerState::Ready, .. }), _) => (SlotState::Ready, String::new()),
            (Some(Said { state: WorkerState::Draining, .. }), _) => (SlotState::Draining, String::new()),
            (_, Some(Fill::Running(trouble))) => (SlotState::Loading, trouble.unwrap_or_default()),
            (_, Some(Fill::Complete) | None) => (SlotState::Starting, String::new()),
        };
        self.slot.enter(state, detail);
    }

    fn note_fill(&self) {
        if self.fill.as_ref().is_some_and(|fill| *fill.borrow() == Fill::Complete) {
            mark_complete(self.running);
        }
    }

    async fn renew(&self, until_boottime_ms: u64) {
        let running = self.running.clone();
        let renewed = tokio::task::spawn_blocking(move || running.renew(until_boottime_ms)).await;
        if let Ok(Err(error)) = renewed {
            // It has ended or is about to, which is noticed by itself.
            tracing::debug!(slot = %self.slot.key, %error, "renew the lease");
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Serve => {}
            Command::Drain => {
                self.slot.begin_draining(wall_clock());
                self.drain.send_replace(true);
                if !matches!(self.said, Some(Said { state: WorkerState::Ready | WorkerState::Draining, .. }))
                {
                    // An adopted worker has not spoken yet; any other is not ready and finishes nothing.
                    if self.fill.is_some() {
                        self.stop(DRAINED_GRACE_MS).await;
                    }
                }
            }
            Command::End { grace_ms } => self.stop(grace_ms).await,
        }
    }

    async fn stop(&mut self, grace_ms: u64) {
        if self.kill_at.is_some() {
            return;
        }
        self.slot.begin_draining(wall_clock());
        self.kill_at = Some(Instant::now() + Duration::from_millis(grace_ms) + STOP_SLACK);
        let running = self.running.clone();
        let stopped = tokio::task::spawn_blocking(move || running.stop(grace_ms)).await;
        if let Ok(Err(error)) = stopped {
            tracing::debug!(slot = %self.slot.key, %error, "stop the worker");
        }
    }

    async fn hear_metrics(&mut self, newest: WorkerMetrics) {
        let since = self.slot.status.lock().draining_since;
        let idle = is_idle_since(&newest, since);
        self.slot.status.lock().metrics = Some(newest);
        if idle && *self.drain.borrow() {
            self.stop(DRAINED_GRACE_MS).await;
        }
    }

    fn worker_failure(&self) -> Option<Refusal> {
        let said = self.said.as_ref().filter(|said| said.state == WorkerState::Failed)?;
        // The greeting comes without the reason, which follows at once.
        let reason = if said.detail.is_empty() { "the worker cannot serve" } else { &said.detail };
        Some(Refusal::new(error_code::WORKER_FAILED, reason))
    }

    fn judge_end(&self, ended: io::Result<Ended>) -> Attempt {
        let told = self.kill_at.is_some() || *self.drain.borrow();
        match ended {
            _ if told => Attempt::Told,
            Ok(Ended { exit: Some(SandboxExit::LeaseLapsed), .. }) => Attempt::Lapsed,
            Ok(ended) => {
                let words = self.running.log_tail(LAST_WORDS_BYTES).unwrap_or_default();
                let words = String::from_utf8_lossy(&words).trim().replace('\n', " | ");
                let message =
                    if words.is_empty() { ended.to_string() } else { format!("{ended}; it said: {words}") };
                Attempt::Failed(Refusal::new(error_code::WORKER_FAILED, message))
            }
            Err(error) => Attempt::Failed(Refusal::new(error_code::SANDBOX_FAILED, error.to_string())),
        }
    }
}

/// Whether a worker has had nothing to do at a time after it was told to take nothing new.
fn is_idle_since(metrics: &WorkerMetrics, since: Option<Millis>) -> bool {
    let idle = metrics.requests_running == 0 && metrics.requests_waiting == 0;
    idle && since.is_some_and(|since| metrics.at > since)
}

/// The newest metrics; never returns once the pipe is of no use.
async fn next_metrics(reader: &mut Option<MetricsReader>) -> WorkerMetrics {
    if let Some(pipe) = reader
        && let Ok(Some(metrics)) = pipe.next().await
    {
        return metrics;
    }
    *reader = None;
    std::future::pending().await
}

async fn fill_changes(fill: &mut Option<watch::Receiver<Fill>>) {
    if let Some(changes) = fill
        && changes.changed().await.is_ok()
    {
        return;
    }
    // Complete, or never to be known.
    *fill = None;
    std::future::pending().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

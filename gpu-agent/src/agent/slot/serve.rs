//! While a worker runs: its lease is renewed, its words are heard, its numbers and lines are read, and its
//! end is noticed.

use super::patience::Signs;
use super::{AGAIN, Attempt, Command, Slot};
use crate::agent::core::Refusal;
use crate::agent::error::chain_of;
use crate::agent::logs::LogTail;
use crate::agent::models::{Fill, Model};
use crate::agent::worker_link::{About, Said, talk};
use crate::launcher::Running;
use crate::sandbox::{Ended, MetricsReader};
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
    running: &'a Arc<dyn Running>,
    said: Option<Said>,
    fill: Option<watch::Receiver<Fill>>,
    drain: watch::Sender<bool>,
    /// Set once it was told to end: when it is killed.
    kill_at: Option<Instant>,
    signs: Signs,
    /// How often it has written numbers since it was told to take nothing new.
    numbers_since_drain: u32,
}

impl Slot {
    /// Watches over a worker until it has ended and nothing of its sandbox is left.
    pub(super) async fn serve(&mut self, running: Arc<dyn Running>, model: Option<Arc<Model>>) -> Attempt {
        let adopted = model.is_none();
        {
            let mut status = self.status.lock();
            status.not_enforced = running.not_enforced().to_vec();
            status.model.clone_from(&model);
            status.metrics = None;
        }
        let attempt = self.watch(&running, model.as_deref(), adopted).await;
        self.remove(running).await;
        self.status.lock().model = None;
        attempt
    }

    /// Returns when nothing of a sandbox is left. Until then the slot is not free, and nothing may start in
    /// its place, so it is tried for as long as it takes.
    async fn remove(&self, running: Arc<dyn Running>) {
        let mut failures = 0;
        while let Err(error) = running.clone().remove().await {
            let (sandbox, error) = (running.name(), chain_of(&error));
            tracing::error!(slot = %self.key, sandbox, error, "remove a sandbox");
            self.enter(SlotState::Draining, format!("{}: {error}", error_code::SANDBOX_FAILED));
            failures += 1;
            tokio::time::sleep(AGAIN.pause(failures)).await;
        }
    }

    async fn watch(&self, running: &Arc<dyn Running>, model: Option<&Model>, adopted: bool) -> Attempt {
        let (said_sender, mut said) = watch::channel(None);
        let (drain, drain_receiver) = watch::channel(false);
        let about = About { node: &self.node, key: &self.key, fence: self.order.fence };
        let mut talking = std::pin::pin!(talk(about, &**running, &said_sender, drain_receiver));
        let mut ended = running.clone().wait();
        let mut metrics = running.metrics().ok();
        let mut lines = LogTail::new(running.clone(), adopted);
        let mut ticks = tokio::time::interval(LOG_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut leases = self.node.lease.subscribe();
        // The lease it was started with is as old as its start took.
        leases.mark_changed();
        let mut command = self.command.clone();
        let fill = model.map(Model::fill);
        let mut fills = fill.clone();
        let mut watch = Watch::new(self, running, fill, drain);
        let told = *command.borrow_and_update();
        watch.obey(told).await;
        loop {
            watch.show();
            let (kill_at, hung_at) = (watch.kill_at, watch.hung_at());
            // In this order, so that a rehearsal repeats, and a worker that never stops talking delays nothing.
            tokio::select! {
                biased;
                ended = &mut ended => {
                    self.print(lines.read());
                    return watch.judge_end(ended);
                }
                changed = command.changed() => {
                    // The handle is gone only when the agent is.
                    let told = if changed.is_ok() { *command.borrow_and_update() } else { Command::End { grace_ms: 0 } };
                    watch.obey(told).await;
                }
                Ok(()) = leases.changed() => {
                    let until_ms = leases.borrow_and_update().until_boottime_ms;
                    watch.renew(until_ms).await;
                }
                () = until(kill_at) => return Attempt::Told,
                () = fill_changes(&mut fills) => watch.note_fill(),
                _ = ticks.tick() => self.print(lines.read()),
                Ok(()) = said.changed() => {
                    let heard = said.borrow_and_update().clone();
                    if let Some(failure) = watch.hear(heard) {
                        self.print(lines.read());
                        return Attempt::Failed(failure);
                    }
                }
                newest = next_metrics(&mut metrics) => watch.hear_metrics(newest).await,
                () = until(hung_at) => {
                    self.print(lines.read());
                    return watch.judge_silence();
                }
                () = &mut talking => {}
            }
        }
    }
}

impl<'a> Watch<'a> {
    fn new(
        slot: &'a Slot,
        running: &'a Arc<dyn Running>,
        fill: Option<watch::Receiver<Fill>>,
        drain: watch::Sender<bool>,
    ) -> Self {
        let began = Instant::now();
        // An adopted worker's weights are complete: otherwise it would not have been adopted.
        let complete_since = fill.is_none().then_some(began);
        let signs = Signs { began, complete_since, spoke: false, ready: false, numbers_at: None };
        let numbers_since_drain = 0;
        let mut watch =
            Self { slot, running, said: None, fill, drain, kill_at: None, signs, numbers_since_drain };
        watch.note_fill();
        watch
    }

    /// When this worker will count as hung. One that is to leave has a deadline already.
    fn hung_at(&self) -> Option<Instant> {
        let leaves = self.kill_at.is_some() || *self.drain.borrow();
        if leaves { None } else { self.signs.patience().map(|(until, _)| until) }
    }

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

    fn note_fill(&mut self) {
        if self.fill.as_ref().is_none_or(|fill| *fill.borrow() != Fill::Complete) {
            return;
        }
        self.signs.complete_since.get_or_insert_with(Instant::now);
        if let Err(error) = self.running.mark_complete() {
            let sandbox = self.running.name();
            tracing::warn!(sandbox, %error, "an agent's restart will restart this worker");
        }
    }

    async fn renew(&self, until_boottime_ms: u64) {
        if let Err(error) = self.running.clone().renew(until_boottime_ms).await {
            // It has ended or is about to, which is noticed by itself.
            tracing::debug!(slot = %self.slot.key, %error, "renew the lease");
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Serve => {}
            Command::Drain => {
                self.slot.begin_draining();
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
        self.slot.begin_draining();
        self.kill_at = Some(Instant::now() + Duration::from_millis(grace_ms) + STOP_SLACK);
        if let Err(error) = self.running.clone().stop(grace_ms).await {
            tracing::debug!(slot = %self.slot.key, %error, "stop the worker");
        }
    }

    async fn hear_metrics(&mut self, newest: WorkerMetrics) {
        self.signs.numbers_at = Some(Instant::now());
        let drains = *self.drain.borrow();
        self.numbers_since_drain += u32::from(drains);
        let since = self.slot.status.lock().draining_since;
        let idle = is_idle_since(&newest, since, self.numbers_since_drain);
        self.slot.status.lock().metrics = Some(newest);
        if idle && drains {
            self.stop(DRAINED_GRACE_MS).await;
        }
    }

    /// Takes in what the worker said of itself; some if it says that it cannot serve.
    fn hear(&mut self, said: Option<Said>) -> Option<Refusal> {
        self.said = said;
        self.signs.spoke = true;
        self.signs.ready |= self.said.as_ref().is_some_and(|said| said.state == WorkerState::Ready);
        let said = self.said.as_ref().filter(|said| said.state == WorkerState::Failed)?;
        // The greeting comes without the reason, which follows at once.
        let reason = if said.detail.is_empty() { "the worker cannot serve" } else { &said.detail };
        Some(Refusal::new(error_code::WORKER_FAILED, reason))
    }

    fn judge_silence(&self) -> Attempt {
        let why = self.signs.patience().map(|(_, why)| why).unwrap_or_default();
        Attempt::Failed(Refusal::new(error_code::WORKER_FAILED, self.with_last_words(why)))
    }

    fn with_last_words(&self, message: String) -> String {
        let words = self.running.output_tail(LAST_WORDS_BYTES);
        let words = String::from_utf8_lossy(&words).trim().replace('\n', " | ");
        if words.is_empty() { message } else { format!("{message}; it said: {words}") }
    }

    fn judge_end(&self, ended: io::Result<Ended>) -> Attempt {
        let told = self.kill_at.is_some() || *self.drain.borrow();
        match ended {
            _ if told => Attempt::Told,
            Ok(Ended { exit: Some(SandboxExit::LeaseLapsed), .. }) => Attempt::Lapsed,
            Ok(ended) => {
                let message = self.with_last_words(ended.to_string());
                Attempt::Failed(Refusal::new(error_code::WORKER_FAILED, message))
            }
            Err(error) => Attempt::Failed(Refusal::new(error_code::SANDBOX_FAILED, error.to_string())),
        }
    }
}

/// Whether a worker has had nothing to do at a time after it was told to take nothing new. Only its first numbers
/// since then may be older; if somebody has set the clock back, the second are believed all the same.
fn is_idle_since(metrics: &WorkerMetrics, since: Option<Millis>, numbers_since: u32) -> bool {
    let idle = metrics.requests_running == 0 && metrics.requests_waiting == 0;
    idle && since.is_some_and(|since| metrics.at > since || numbers_since > 1)
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

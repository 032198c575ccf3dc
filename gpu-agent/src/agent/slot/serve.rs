//! Monitoring of a running worker: renews its lease, receives its messages, reads its metrics and log lines,
//! and detects its end.

use super::liveness::WorkerLiveness;
use super::{AGAIN, ServingOutcome, SlotCommand, SlotTask};
use crate::agent::core::Refusal;
use crate::agent::logs::LogTail;
use crate::agent::models::{Fill, LoadedModel};
use crate::agent::worker_link::{About, WorkerStatus, talk};
use protocol::agent::SlotState;
use protocol::error_code;
use protocol::sandbox::SandboxExit;
use protocol::usage::UsageCounts;
use protocol::worker::{WorkerMetrics, WorkerState};
use protocol::{BootTime, Millis};
use sandbox::Running;
use sandbox::{Ended, MetricsReader};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// Interval between two reads of a worker's log files.
const LOG_INTERVAL: Duration = Duration::from_millis(500);
/// Time after the grace period before a sandbox is killed from outside.
const STOP_SLACK: Duration = Duration::from_secs(1);
/// Grace period of a drained worker, in milliseconds: no request runs on it.
const DRAINED_GRACE_MS: u64 = 1_000;
/// Bytes of a dead worker's last output that go into the report.
const LAST_WORDS_BYTES: u64 = 400;

/// A worker that is being monitored.
struct Watch<'a> {
    slot: &'a SlotTask,
    running: &'a Arc<dyn Running>,
    reported: Option<WorkerStatus>,
    fill: Option<watch::Receiver<Fill>>,
    drain: watch::Sender<bool>,
    /// Time at which it is killed, once it was asked to end.
    kill_at: Option<Instant>,
    liveness: WorkerLiveness,
    /// Number of metrics lines since it was asked to drain.
    metrics_since_drain: u32,
}

impl SlotTask {
    /// Monitors a worker until it has ended and nothing of its sandbox is left.
    pub(super) async fn serve(
        &mut self,
        running: Arc<dyn Running>,
        model: Option<Arc<LoadedModel>>,
    ) -> ServingOutcome {
        let adopted = model.is_none();
        {
            let mut status = self.status.lock();
            status.not_enforced = running.not_enforced().to_vec();
            status.model.clone_from(&model);
            status.metrics = None;
            status.counter.begin_worker();
        }
        let attempt = self.watch(&running, model.as_deref(), adopted).await;
        self.remove(running).await;
        self.status.lock().model = None;
        attempt
    }

    /// Returns when nothing of a sandbox is left. Until then the slot is not free and nothing may start in
    /// it, so removal is retried indefinitely.
    async fn remove(&self, running: Arc<dyn Running>) {
        let mut failures = 0;
        while let Err(error) = running.clone().remove().await {
            let (sandbox, error) = (running.name(), protocol::error_chain(&error));
            tracing::error!(slot = %self.key, sandbox, error, "remove a sandbox");
            self.enter(SlotState::Draining, format!("{}: {error}", error_code::SANDBOX_FAILED));
            failures += 1;
            tokio::time::sleep(AGAIN.pause(failures)).await;
        }
    }

    async fn watch(
        &self,
        running: &Arc<dyn Running>,
        model: Option<&LoadedModel>,
        adopted: bool,
    ) -> ServingOutcome {
        let (status_sender, mut reported) = watch::channel(None);
        let (drain, drain_receiver) = watch::channel(false);
        let service = &self.grant.get().service;
        let about = About { node: &self.node, key: &self.key, fence: self.order.fence, service };
        let mut talking = std::pin::pin!(talk(about, &**running, &status_sender, drain_receiver));
        let mut ended = running.clone().wait();
        let mut metrics = running.metrics().ok();
        let mut lines = LogTail::new(running.clone(), adopted);
        let mut ticks = tokio::time::interval(LOG_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut leases = self.node.lease.subscribe();
        // The lease it was started with is as old as its start took.
        leases.mark_changed();
        let mut command = self.command.clone();
        let fill = model.map(LoadedModel::fill);
        let mut fills = fill.clone();
        let mut watch = Watch::new(self, running, fill, drain);
        let requested = *command.borrow_and_update();
        watch.obey(requested).await;
        loop {
            watch.show();
            let (kill_at, hung_at) = (watch.kill_at, watch.hung_at());
            // The order is fixed so that a simulation is reproducible, and so that a worker that never stops
            // sending delays nothing.
            tokio::select! {
                biased;
                ended = &mut ended => {
                    self.print(lines.read());
                    return watch.outcome_of_end(ended);
                }
                changed = command.changed() => {
                    // The handle is gone only if the agent is.
                    let requested = if changed.is_ok() {
                        *command.borrow_and_update()
                    } else {
                        SlotCommand::End { grace_ms: 0 }
                    };
                    watch.obey(requested).await;
                }
                Ok(()) = leases.changed() => {
                    let until = leases.borrow_and_update().until(service);
                    watch.renew(until).await;
                }
                () = until(kill_at) => return ServingOutcome::Stopped,
                () = fill_changes(&mut fills) => watch.note_fill(),
                _ = ticks.tick() => self.print(lines.read()),
                Ok(()) = reported.changed() => {
                    let newest = reported.borrow_and_update().clone();
                    if let Some(failure) = watch.observe(newest) {
                        self.print(lines.read());
                        return ServingOutcome::Failed(failure);
                    }
                }
                newest = next_metrics(&mut metrics) => watch.observe_metrics(newest).await,
                () = until(hung_at) => {
                    self.print(lines.read());
                    return watch.outcome_of_silence();
                }
                () = &mut talking => {}
            }
        }
    }
}

impl<'a> Watch<'a> {
    fn new(
        slot: &'a SlotTask,
        running: &'a Arc<dyn Running>,
        fill: Option<watch::Receiver<Fill>>,
        drain: watch::Sender<bool>,
    ) -> Self {
        let began = Instant::now();
        // An adopted worker's weights are complete: otherwise it would not have been adopted.
        let complete_since = fill.is_none().then_some(began);
        let liveness =
            WorkerLiveness { began, complete_since, greeted: false, ready: false, metrics_at: None };
        let metrics_since_drain = 0;
        let mut watch =
            Self { slot, running, reported: None, fill, drain, kill_at: None, liveness, metrics_since_drain };
        watch.note_fill();
        watch
    }

    /// Returns the time at which this worker counts as hung. One that is asked to end or drain has a deadline
    /// already.
    fn hung_at(&self) -> Option<Instant> {
        let leaves = self.kill_at.is_some() || *self.drain.borrow();
        if leaves { None } else { self.liveness.deadline().map(|(until, _)| until) }
    }

    /// Updates the slot's status.
    fn show(&self) {
        let draining = *self.drain.borrow() || self.kill_at.is_some();
        let fill = self.fill.as_ref().map(|fill| fill.borrow().clone());
        let (state, detail) = match (&self.reported, fill) {
            _ if draining => (SlotState::Draining, String::new()),
            (Some(WorkerStatus { state: WorkerState::Ready, .. }), _) => (SlotState::Ready, String::new()),
            (Some(WorkerStatus { state: WorkerState::Draining, .. }), _) => {
                (SlotState::Draining, String::new())
            }
            (_, Some(Fill::Running(trouble))) => (SlotState::Loading, trouble.unwrap_or_default()),
            (_, Some(Fill::Complete) | None) => (SlotState::Starting, String::new()),
        };
        self.slot.enter(state, detail);
    }

    fn note_fill(&mut self) {
        if self.fill.as_ref().is_none_or(|fill| *fill.borrow() != Fill::Complete) {
            return;
        }
        self.liveness.complete_since.get_or_insert_with(Instant::now);
        if let Err(error) = self.running.mark_complete() {
            let sandbox = self.running.name();
            tracing::warn!(sandbox, %error, "this worker will be restarted when the agent restarts");
        }
    }

    async fn renew(&self, until: BootTime) {
        if let Err(error) = self.running.clone().renew(until).await {
            // The worker has ended or is about to, which is detected separately.
            tracing::debug!(slot = %self.slot.key, %error, "renew the lease");
        }
    }

    async fn obey(&mut self, command: SlotCommand) {
        match command {
            SlotCommand::Serve => {}
            SlotCommand::Drain => {
                self.slot.begin_draining();
                self.drain.send_replace(true);
                if !matches!(
                    self.reported,
                    Some(WorkerStatus { state: WorkerState::Ready | WorkerState::Draining, .. })
                ) {
                    // An adopted worker has not reported yet; any other is not ready and has nothing to
                    // drain.
                    if self.fill.is_some() {
                        self.stop(DRAINED_GRACE_MS).await;
                    }
                }
            }
            SlotCommand::End { grace_ms } => self.stop(grace_ms).await,
            SlotCommand::Kill => {
                self.slot.begin_draining();
                self.kill_at = Some(Instant::now());
            }
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

    async fn observe_metrics(&mut self, newest: WorkerMetrics) {
        self.liveness.metrics_at = Some(Instant::now());
        let drains = *self.drain.borrow();
        self.metrics_since_drain += u32::from(drains);
        let since = self.slot.status.lock().draining_since.map(|(wall, _)| wall);
        let idle = is_idle_since(&newest, since, self.metrics_since_drain);
        let counts = UsageCounts {
            cpu_used_microseconds: self.running.usage().cpu_us.unwrap_or(0),
            prompt_tokens: newest.prompt_tokens_total,
            generated_tokens: newest.generation_tokens_total,
        };
        {
            let mut status = self.slot.status.lock();
            status.counter.observe(counts);
            status.metrics = Some(newest);
        }
        if idle && drains {
            self.stop(DRAINED_GRACE_MS).await;
        }
    }

    /// Applies the state that the worker reported. Returns the refusal if it cannot serve.
    fn observe(&mut self, reported: Option<WorkerStatus>) -> Option<Refusal> {
        self.reported = reported;
        self.liveness.greeted = true;
        self.liveness.ready |=
            self.reported.as_ref().is_some_and(|reported| reported.state == WorkerState::Ready);
        let reported = self.reported.as_ref().filter(|reported| reported.state == WorkerState::Failed)?;
        // The hello comes without the reason, which follows immediately.
        let reason = if reported.detail.is_empty() { "the worker cannot serve" } else { &reported.detail };
        Some(Refusal::new(error_code::WORKER_FAILED, reason))
    }

    fn outcome_of_silence(&self) -> ServingOutcome {
        let why = self.liveness.deadline().map(|(_, why)| why).unwrap_or_default();
        ServingOutcome::Failed(Refusal::new(error_code::WORKER_FAILED, self.with_last_words(why)))
    }

    fn with_last_words(&self, message: String) -> String {
        let output = self.running.output_tail(LAST_WORDS_BYTES);
        let output = String::from_utf8_lossy(&output).trim().replace('\n', " | ");
        if output.is_empty() { message } else { format!("{message}; it said: {output}") }
    }

    fn outcome_of_end(&self, ended: io::Result<Ended>) -> ServingOutcome {
        let stopping = self.kill_at.is_some() || *self.drain.borrow();
        match ended {
            _ if stopping => ServingOutcome::Stopped,
            Ok(Ended { exit: Some(SandboxExit::LeaseLapsed), .. }) => ServingOutcome::Lapsed,
            Ok(ended) => {
                let message = self.with_last_words(ended.to_string());
                ServingOutcome::Failed(Refusal::new(error_code::WORKER_FAILED, message))
            }
            Err(error) => ServingOutcome::Failed(Refusal::new(error_code::SANDBOX_FAILED, error.to_string())),
        }
    }
}

/// Returns whether a worker has been idle since it was asked to drain. Only the first metrics since then may
/// be older; if the clock was set back, the second are trusted all the same.
fn is_idle_since(metrics: &WorkerMetrics, since: Option<Millis>, numbers_since: u32) -> bool {
    let idle = metrics.requests_running == 0 && metrics.requests_waiting == 0;
    idle && since.is_some_and(|since| metrics.at > since || numbers_since > 1)
}

/// Returns the newest metrics; never returns once the pipe is unusable.
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
    // The fill is complete, or its state can never be known.
    *fill = None;
    std::future::pending().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_idle_once_metrics_since_its_drain_say_so() {
        let since = Some(Millis(1_000));
        for (name, at, running, waiting, since, lines, expected) in [
            ("it drains no requests", 1_001, 0, 0, since, 1, true),
            ("metrics of the moment of the command", 1_000, 0, 0, since, 1, false),
            ("metrics from before", 999, 0, 0, since, 1, false),
            ("the clock was set back, second line", 5, 0, 0, since, 2, true),
            ("a request runs", 1_001, 1, 0, since, 9, false),
            ("a request waits", 1_001, 0, 1, since, 9, false),
            ("it does not drain", 1_001, 0, 0, None, 9, false),
        ] {
            let metrics = WorkerMetrics {
                at: Millis(at),
                requests_running: running,
                requests_waiting: waiting,
                ..WorkerMetrics::default()
            };
            assert_eq!(is_idle_since(&metrics, since, lines), expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_is_none_never_comes() {
        let began = Instant::now();
        until(Some(began + Duration::from_secs(5))).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, until(None)).await.is_err());
        assert!(tokio::time::timeout(hour, next_metrics(&mut None)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fill_changes_until_it_is_over_and_never_again() {
        let (progress, fill) = watch::channel(Fill::Running(None));
        let mut fills = Some(fill);
        progress.send_replace(Fill::Complete);
        fill_changes(&mut fills).await;
        drop(progress);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, fill_changes(&mut fills)).await.is_err());
        assert!(fills.is_none(), "it is not polled again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_without_a_worker_is_read_no_more() {
        let (reader, writer) = tokio::io::duplex(64);
        let mut metrics = Some(MetricsReader::of(reader));
        drop(writer);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, next_metrics(&mut metrics)).await.is_err());
        assert!(metrics.is_none());
    }
}

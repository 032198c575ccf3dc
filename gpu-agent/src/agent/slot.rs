//! Task of one slot that this node holds. It loads the model, starts the worker, monitors it, restarts it
//! after a failure, and ends it on command.
//!
//! A slot can only be created from an [`Approved`] grant: nothing starts without it. The task is
//! level-triggered (by the command and the lease), so a lost or repeated message changes nothing.

mod launch;
mod liveness;
mod serve;

pub(super) use launch::sandbox_name;

use super::backoff::ExponentialBackoff;
use super::core::{Refusal, SlotKey};
use super::models::ModelSource;
use super::node::Node;
use super::status::SharedStatus;
use human_chain::{Approved, SlotGrant};
use protocol::Fence;
use protocol::agent::SlotState;
use protocol::error_code;
use protocol::order::SlotOrder;
use sandbox::Running;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Backoff before a failed worker is restarted.
const AGAIN: ExponentialBackoff =
    ExponentialBackoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };
/// Serving time after which a worker counts as healthy: its next failure is again a first one.
const HEALTHY_UPTIME: Duration = Duration::from_secs(60);

/// Command to a slot. It only ever rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SlotCommand {
    Serve,
    /// Finish running requests, then end.
    Drain,
    /// End, after a grace period for the worker.
    End {
        /// In milliseconds.
        grace_ms: u64,
    },
    /// End now, without any grace: a member has halted the slot.
    Kill,
}

/// The agent's handle of a slot.
#[derive(Debug)]
pub(super) struct SlotHandle {
    pub(super) fence: Fence,
    pub(super) status: SharedStatus,
    /// True once the slot drains because control no longer names its order.
    pub(super) gives_way: bool,
    command: watch::Sender<SlotCommand>,
    source: watch::Sender<Option<ModelSource>>,
}

impl SlotHandle {
    /// Sends a command. Returns true if it is higher than the current one.
    pub(super) fn command(&self, command: SlotCommand) -> bool {
        self.command.send_if_modified(|current| {
            let rises =
                std::mem::discriminant(current) != std::mem::discriminant(&command) && command > *current;
            if rises {
                *current = command;
            }
            rises
        })
    }

    /// Passes the current location of the model and its key.
    pub(super) fn set_source(&self, source: ModelSource) {
        self.source.send_if_modified(|current| {
            let differs = current.as_ref() != Some(&source);
            if differs {
                *current = Some(source);
            }
            differs
        });
    }
}

/// A slot's task has ended and nothing of the slot runs any more.
#[derive(Debug)]
pub(super) struct SlotEnded {
    pub(super) key: SlotKey,
    pub(super) fence: Fence,
}

/// State of a slot's task.
pub(super) struct SlotTask {
    node: Arc<Node>,
    key: SlotKey,
    order: SlotOrder,
    grant: Arc<Approved<SlotGrant>>,
    command: watch::Receiver<SlotCommand>,
    source: watch::Receiver<Option<ModelSource>>,
    status: SharedStatus,
}

/// Result of an attempt to serve. Nothing of the sandbox is left then.
enum ServingOutcome {
    /// The worker ended as commanded.
    Stopped,
    /// Its lease ended: control was silent for longer than the order's autonomy, or the agent did not renew.
    Lapsed,
    /// The worker did not start, or died.
    Failed(Refusal),
}

/// Starts a slot's task. `adopted` is its sandbox, if one still runs from a previous agent.
pub(super) fn spawn(
    tasks: &mut JoinSet<SlotEnded>,
    node: Arc<Node>,
    grant: Arc<Approved<SlotGrant>>,
    order: SlotOrder,
    source: Option<ModelSource>,
    adopted: Option<Arc<dyn Running>>,
) -> SlotHandle {
    let (command, command_receiver) = watch::channel(SlotCommand::Serve);
    let (source, source_receiver) = watch::channel(source);
    let status = SharedStatus::default();
    let (fence, gives_way) = (order.fence, false);
    let handle = SlotHandle { fence, status: status.clone(), gives_way, command, source };
    let key = SlotKey::of(&order);
    let slot =
        SlotTask { node, key, order, grant, command: command_receiver, source: source_receiver, status };
    tasks.spawn(slot.run(adopted));
    handle
}

impl SlotTask {
    async fn run(mut self, mut adopted: Option<Arc<dyn Running>>) -> SlotEnded {
        let mut failures: u32 = 0;
        loop {
            self.status.lock().ready_since = None;
            match self.attempt(adopted.take()).await {
                ServingOutcome::Stopped => break,
                ServingOutcome::Lapsed => {
                    let why = "control was silent for longer than the autonomy of its order";
                    let detail = format!("{}: {why}", error_code::LEASE_LAPSED);
                    self.enter(SlotState::Failed, detail);
                }
                ServingOutcome::Failed(refusal) => {
                    let (slot, code, error) = (&self.key, refusal.code, &refusal.message);
                    tracing::warn!(%slot, %code, error, "slot failed");
                    failures = if self.was_healthy() { 1 } else { failures.saturating_add(1) };
                    self.status.lock().restarts += 1;
                    self.enter(SlotState::Failed, refusal.to_string());
                    tokio::select! {
                        biased;
                        () = self.stop_requested() => {}
                        () = tokio::time::sleep(AGAIN.pause(failures)) => {}
                    }
                }
            }
            if *self.command.borrow() > SlotCommand::Serve {
                // There is nothing running to drain.
                break;
            }
        }
        tracing::info!(slot = %self.key, fence = %self.order.fence, "slot ended");
        SlotEnded { key: self.key, fence: self.order.fence }
    }

    /// Serves once, with the adopted sandbox or a new one.
    async fn attempt(&mut self, adopted: Option<Arc<dyn Running>>) -> ServingOutcome {
        if let Some(running) = adopted {
            tracing::info!(slot = %self.key, sandbox = running.name(), "attached to a running sandbox");
            return self.serve(running, None).await;
        }
        let mut waiting = self.clone_for_waiting();
        let prepared = tokio::select! {
            biased;
            () = self.stop_requested() => return ServingOutcome::Stopped,
            prepared = waiting.prepare() => prepared,
        };
        let model = match prepared {
            Ok(model) => model,
            Err(refusal) => return ServingOutcome::Failed(refusal),
        };
        // A start must not be interrupted: if abandoned, it would leave an unknown sandbox.
        match self.launch(&model).await {
            Ok(running) => self.serve(running, Some(model)).await,
            Err(refusal) => ServingOutcome::Failed(refusal),
        }
    }

    /// Returns whether the worker served long enough before it failed.
    fn was_healthy(&self) -> bool {
        self.status.lock().ready_since.is_some_and(|since| since.elapsed() > HEALTHY_UPTIME)
    }

    fn clone_for_waiting(&self) -> launch::PendingLaunch {
        launch::PendingLaunch {
            node: self.node.clone(),
            service: self.grant.get().service.clone(),
            leases: self.node.lease.subscribe(),
            source: self.source.clone(),
        }
    }

    /// Returns when the slot must no longer serve.
    async fn stop_requested(&self) {
        let mut command = self.command.clone();
        // If the handle is gone, so is the agent, and with it the reason to serve.
        let _ = command.wait_for(|command| *command > SlotCommand::Serve).await;
    }

    /// Sets the slot's state; a change is reported to control soon.
    fn enter(&self, state: SlotState, detail: impl Into<String>) {
        if self.status.set(state, detail) {
            self.node.news.notify_one();
        }
    }

    fn begin_draining(&self) {
        let clock = &self.node.clock;
        self.status.lock().draining_since.get_or_insert((clock.wall(), clock.boot()));
    }

    /// Queues worker output for control.
    fn print(&self, lines: Vec<String>) {
        self.node.logs.push(&self.key, self.node.clock.wall(), lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::testing::record;
    use protocol::{Digest, ModelRoot};

    fn handle() -> SlotHandle {
        SlotHandle {
            fence: Fence::new(1, 1),
            status: SharedStatus::default(),
            gives_way: false,
            command: watch::Sender::new(SlotCommand::Serve),
            source: watch::Sender::new(None),
        }
    }

    #[test]
    fn a_command_only_rises() {
        let (soon, at_once) = (SlotCommand::End { grace_ms: 3_000 }, SlotCommand::End { grace_ms: 0 });
        for (before, command, rises) in [
            (SlotCommand::Serve, SlotCommand::Serve, false),
            (SlotCommand::Serve, SlotCommand::Drain, true),
            (SlotCommand::Serve, soon, true),
            (SlotCommand::Drain, SlotCommand::Serve, false),
            (SlotCommand::Drain, SlotCommand::Drain, false),
            (SlotCommand::Drain, at_once, true),
            (soon, SlotCommand::Drain, false),
            (soon, at_once, false),
            (at_once, soon, false),
            (SlotCommand::Serve, SlotCommand::Kill, true),
            (soon, SlotCommand::Kill, true),
            (at_once, SlotCommand::Kill, true),
            (SlotCommand::Kill, soon, false),
            (SlotCommand::Kill, SlotCommand::Kill, false),
        ] {
            let slot = handle();
            slot.command.send_replace(before);
            let changes = slot.command.subscribe();
            assert_eq!(slot.command(command), rises, "{before:?}, then {command:?}");
            assert_eq!(*changes.borrow(), if rises { command } else { before });
            assert_eq!(changes.has_changed().expect("the sender lives"), rises);
        }
    }

    #[test]
    fn a_source_wakes_the_slot_only_if_it_differs() {
        let slot = handle();
        let mut changes = slot.source.subscribe();
        let source = |name: &[u8]| ModelSource { record: record(ModelRoot(Digest::of(name))), wrap: None };
        for (name, differs) in [(b"a", true), (b"a", false), (b"b", true), (b"b", false)] {
            slot.set_source(source(name));
            assert_eq!(changes.has_changed().expect("the sender lives"), differs);
            assert_eq!(*changes.borrow_and_update(), Some(source(name)));
        }
    }
}

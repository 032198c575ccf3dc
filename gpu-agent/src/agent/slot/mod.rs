//! One slot that this node holds: a task that loads its model, starts its worker, watches over it, starts it
//! again when it dies, and ends it when told to.
//!
//! It takes an [`Approved`] grant to make one: nothing starts without it. What the task does is decided by
//! levels (the command, the lease), so a message lost or doubled changes nothing.

mod launch;
mod patience;
mod serve;

pub(super) use launch::sandbox_name;

use super::backoff::Backoff;
use super::core::{Refusal, SlotKey};
use super::models::Supplies;
use super::node::Node;
use super::status::SharedStatus;
use crate::launcher::Running;
use human_chain::{Approved, SlotGrant};
use protocol::Fence;
use protocol::agent::SlotState;
use protocol::error_code;
use protocol::order::SlotOrder;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Waiting before a worker that failed is started again; it doubles up to the most.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(250), most: Duration::from_secs(30) };
/// A worker that served this long was good: its next failure is a first one.
const GOOD_LIFE: Duration = Duration::from_secs(60);

/// What a slot shall do. It only ever rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Command {
    /// Serve.
    Serve,
    /// Finish what runs, then end.
    Drain,
    /// End: the worker gets this long to finish by itself.
    End {
        /// In milliseconds.
        grace_ms: u64,
    },
}

/// The agent's end of a slot.
#[derive(Debug)]
pub(super) struct SlotHandle {
    pub(super) fence: Fence,
    pub(super) status: SharedStatus,
    command: watch::Sender<Command>,
    supplies: watch::Sender<Option<Supplies>>,
}

impl SlotHandle {
    /// Tells the slot what to do; true if it is more than it was told before.
    pub(super) fn command(&self, command: Command) -> bool {
        self.command.send_if_modified(|current| {
            let rises =
                std::mem::discriminant(current) != std::mem::discriminant(&command) && command > *current;
            if rises {
                *current = command;
            }
            rises
        })
    }

    /// Where the model lies and its key, as control says now.
    pub(super) fn supply(&self, supplies: Supplies) {
        self.supplies.send_if_modified(|current| {
            let differs = current.as_ref() != Some(&supplies);
            if differs {
                *current = Some(supplies);
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

/// The task's end of a slot.
pub(super) struct Slot {
    node: Arc<Node>,
    key: SlotKey,
    order: SlotOrder,
    grant: Arc<Approved<SlotGrant>>,
    command: watch::Receiver<Command>,
    supplies: watch::Receiver<Option<Supplies>>,
    status: SharedStatus,
}

/// How an attempt to serve ended. Nothing of the sandbox is left then.
enum Attempt {
    /// As it was told to.
    Told,
    /// Control did not renew the lease.
    Lapsed,
    /// It did not start, or died.
    Failed(Refusal),
}

/// Starts a slot's task. `adopted` is its sandbox, if one runs from an agent before this one.
pub(super) fn spawn(
    tasks: &mut JoinSet<SlotEnded>,
    node: Arc<Node>,
    grant: Arc<Approved<SlotGrant>>,
    order: SlotOrder,
    supplies: Option<Supplies>,
    adopted: Option<Arc<dyn Running>>,
) -> SlotHandle {
    let (command, command_receiver) = watch::channel(Command::Serve);
    let (supplies, supplies_receiver) = watch::channel(supplies);
    let status = SharedStatus::default();
    let handle = SlotHandle { fence: order.fence, status: status.clone(), command, supplies };
    let key = SlotKey::of(&order);
    let slot =
        Slot { node, key, order, grant, command: command_receiver, supplies: supplies_receiver, status };
    tasks.spawn(slot.run(adopted));
    handle
}

impl Slot {
    async fn run(mut self, mut adopted: Option<Arc<dyn Running>>) -> SlotEnded {
        let mut failures: u32 = 0;
        loop {
            self.status.lock().ready_since = None;
            match self.attempt(adopted.take()).await {
                Attempt::Told => break,
                Attempt::Lapsed => {
                    let detail = format!("{}: control did not renew the lease", error_code::LEASE_LAPSED);
                    self.enter(SlotState::Failed, detail);
                }
                Attempt::Failed(refusal) => {
                    tracing::warn!(slot = %self.key, code = %refusal.code, error = refusal.message, "slot failed");
                    failures = if self.was_good() { 1 } else { failures.saturating_add(1) };
                    self.status.lock().restarts += 1;
                    self.enter(SlotState::Failed, refusal.to_string());
                    tokio::select! {
                        biased;
                        () = self.told_to_leave() => {}
                        () = tokio::time::sleep(AGAIN.pause(failures)) => {}
                    }
                }
            }
            if *self.command.borrow() > Command::Serve {
                // Nothing runs that could finish.
                break;
            }
        }
        tracing::info!(slot = %self.key, fence = %self.order.fence, "slot ended");
        SlotEnded { key: self.key, fence: self.order.fence }
    }

    /// Serves once, with the sandbox that is there or a new one.
    async fn attempt(&mut self, adopted: Option<Arc<dyn Running>>) -> Attempt {
        if let Some(running) = adopted {
            tracing::info!(slot = %self.key, sandbox = running.name(), "attached to a running sandbox");
            return self.serve(running, None).await;
        }
        let mut waiting = self.clone_for_waiting();
        let prepared = tokio::select! {
            biased;
            () = self.told_to_leave() => return Attempt::Told,
            prepared = waiting.prepare() => prepared,
        };
        let model = match prepared {
            Ok(model) => model,
            Err(refusal) => return Attempt::Failed(refusal),
        };
        // Not to be interrupted: a start that nobody waits for would leave a sandbox that nobody knows.
        match self.launch(&model).await {
            Ok(running) => self.serve(running, Some(model)).await,
            Err(refusal) => Attempt::Failed(refusal),
        }
    }

    /// Whether the worker served long before it failed.
    fn was_good(&self) -> bool {
        self.status.lock().ready_since.is_some_and(|since| since.elapsed() > GOOD_LIFE)
    }

    fn clone_for_waiting(&self) -> launch::Waiting {
        launch::Waiting {
            node: self.node.clone(),
            root: self.grant.get().service.model.root,
            leases: self.node.lease.subscribe(),
            supplies: self.supplies.clone(),
        }
    }

    /// Returns when the slot shall no longer serve.
    async fn told_to_leave(&self) {
        let mut command = self.command.clone();
        // Without its handle the agent is gone, and so is the reason to serve.
        let _ = command.wait_for(|command| *command > Command::Serve).await;
    }

    /// Notes how it is; control hears of it soon if it is news.
    fn enter(&self, state: SlotState, detail: impl Into<String>) {
        if self.status.set(state, detail) {
            self.node.news.notify_one();
        }
    }

    fn begin_draining(&self) {
        let now = self.node.clock.wall();
        self.status.lock().draining_since.get_or_insert(now);
    }

    /// Sends what the worker printed on its way.
    fn print(&self, lines: Vec<String>) {
        self.node.logs.push(&self.key, self.node.clock.wall(), lines);
    }
}

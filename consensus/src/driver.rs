//! Raft loop: collects events, asks the core for effects, and performs them. The core makes all decisions.
//!
//! The loop has its own thread; in a simulation it is an ordinary task under the test's clock.

use crate::command::LogCommand;
use crate::config::Timings;
use crate::core::{Core, Effects, NotProposed, NumberedBatch};
use crate::error::{LogError, ProposeError};
use crate::executor::Executor;
use crate::handle::Inner;
use crate::ids::{BatchNumber, LogIndex, ReadId, Term};
use crate::machine::StateMachine;
use crate::metrics::ReplicaCounters;
use crate::sessions::{SessionLookup, Sessions};
use crate::snapshot::{self, Snapshot};
use crate::status::{RaftStatus, Role};
use crate::store::{LogEntry, LogStore};
use crate::transport::{RequestError, Transport};
use bytes::Bytes;
use protocol::ReplicaId;
use raft::eraftpb::Message;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

/// Limit on events per turn. It bounds a turn to milliseconds, so that ticks are on time.
const EVENTS_PER_TURN: usize = 1024;

/// Pause between two attempts to transfer leadership, in election timeouts. It keeps leadership from
/// circulating when every disk is full or slow.
const TRANSFER_PAUSE: u32 = 10;

const STOP_REQUESTED: &str = "a stop was requested";

pub(crate) type ReplySender<T> = oneshot::Sender<Result<T, RequestError>>;

/// Events handled by the raft loop.
pub(crate) enum Event {
    Propose {
        entry: Bytes,
        reply: ReplySender<Bytes>,
    },
    Read(ReplySender<LogIndex>),
    Message(Box<Message>),
    Persisted(BatchNumber),
    /// The disk loop waits for space and retries.
    NoSpace,
    LogFailed(LogError),
    SnapshotSaved(Snapshot),
    /// A snapshot found no space; a later attempt may succeed.
    SnapshotPostponed(LogError),
    /// Serializing the state panicked: a bug that every retry would meet again.
    SnapshotPanicked,
    SnapshotSent {
        peer: ReplicaId,
        arrived: bool,
    },
    Unreachable(ReplicaId),
    /// The replicas that may not lead.
    Bar(BTreeSet<ReplicaId>),
    /// Orderly stop: a leader transfers its leadership first.
    Stop,
    /// Immediate stop.
    Halt,
}

/// State and connections of the driver loop.
pub(crate) struct Driver<M> {
    pub(crate) core: Core,
    pub(crate) machine: Arc<RwLock<M>>,
    pub(crate) sessions: Sessions,
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) batches: UnboundedSender<NumberedBatch>,
    pub(crate) events: UnboundedSender<Event>,
    pub(crate) executor: Executor,
    pub(crate) publish: Publish,
    pub(crate) timings: Timings,
    pub(crate) snapshot_bytes_max: u64,
    pub(crate) waiting: PendingWork,
    pub(crate) counters: Arc<ReplicaCounters>,
}

/// Channels through which handles observe the replica.
pub(crate) struct Publish {
    pub(crate) status: watch::Sender<RaftStatus>,
    pub(crate) applied: watch::Sender<LogIndex>,
    pub(crate) leader: watch::Sender<Option<ReplicaId>>,
}

/// Pending requests, batches and deadlines.
#[derive(Default)]
pub(crate) struct PendingWork {
    /// Pending proposals: index (ascending), term at the time of the append, reply.
    proposals: VecDeque<(LogIndex, Term, ReplySender<Bytes>)>,
    reads: BTreeMap<ReadId, ReplySender<LogIndex>>,
    last_read: ReadId,
    /// Batches handed to the disk, each with its time.
    batches: VecDeque<(BatchNumber, Instant)>,
    /// True while the disk loop waits for space.
    no_space: bool,
    saving_snapshot: bool,
    /// Earliest time of the next snapshot, set when the last one found no space.
    snapshot_after: Option<Instant>,
    /// Time of the last attempt to transfer leadership because of the disk, or because it is barred.
    transferred: Option<Instant>,
    /// Deadline of an orderly stop. While it is set, the replica leads only to transfer its leadership.
    stop_by: Option<Instant>,
}

impl<M: StateMachine> Driver<M> {
    /// Runs until the replica is stopped or the log fails.
    pub(crate) async fn run(mut self, mut inbox: UnboundedReceiver<Event>) {
        let mut next_tick = Instant::now() + self.timings.tick;
        let mut clock = pin!(sleep_until(next_tick));
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let reason = loop {
            tokio::select! {
                biased;
                _ = inbox.recv_many(&mut events, EVENTS_PER_TURN) => {}
                () = &mut clock => {}
            }
            if let Some(reason) = self.handle(events.drain(..)) {
                break reason;
            }
            let now = Instant::now();
            if now >= next_tick {
                self.tick(now);
                // Missed ticks are dropped, not made up for. After a pause, queued messages are handled
                // first, so a suspended process does not campaign when it resumes.
                next_tick = now + self.timings.tick;
                clock.as_mut().reset(next_tick);
            }
            if let Err(reason) = self.perform_all() {
                break reason;
            }
            if self.may_stop(now) {
                break STOP_REQUESTED.to_string();
            }
        };
        self.stop(&reason, inbox);
    }

    /// Passes events to the core. Proposals that arrive together are appended together.
    fn handle(&mut self, events: impl Iterator<Item = Event>) -> Option<String> {
        let (mut entries, mut replies, mut messages) = (Vec::new(), Vec::new(), 0);
        let mut stop = None;
        for event in events {
            match event {
                Event::Propose { entry, reply } => {
                    entries.push(entry);
                    replies.push(reply);
                }
                Event::Read(reply) => {
                    let id = self.waiting.last_read.next();
                    self.waiting.last_read = id;
                    self.waiting.reads.insert(id, reply);
                    self.core.read(id);
                }
                Event::Message(message) => {
                    messages += 1;
                    if let Err(error) = self.core.step(*message) {
                        tracing::warn!(%error, "rejected a message");
                    }
                }
                Event::Persisted(number) => self.persisted(number),
                Event::NoSpace => self.no_space(),
                Event::SnapshotSaved(saved) => {
                    ReplicaCounters::add(&self.counters.snapshots, 1);
                    self.waiting.saving_snapshot = false;
                    self.core.snapshot_saved(saved);
                }
                Event::SnapshotPostponed(error) => {
                    tracing::warn!(%error, "no space for a snapshot; retrying later");
                    self.waiting.saving_snapshot = false;
                    self.waiting.snapshot_after = Some(Instant::now() + self.election_timeout());
                }
                Event::SnapshotPanicked => stop = Some("making a snapshot panicked".to_string()),
                Event::SnapshotSent { peer, arrived } => self.core.snapshot_sent(peer, arrived),
                Event::Unreachable(peer) => self.core.unreachable(peer),
                Event::Bar(replicas) => self.core.bar(replicas),
                Event::LogFailed(error) => stop = Some(describe(&error)),
                Event::Stop => self.begin_stop(),
                Event::Halt => stop = Some(STOP_REQUESTED.to_string()),
            }
        }
        self.inner.dequeued(messages);
        if !entries.is_empty() {
            self.propose(entries, replies);
        }
        stop
    }

    fn propose(&mut self, entries: Vec<Bytes>, replies: Vec<ReplySender<Bytes>>) {
        let count = replies.len();
        let refusal = if self.waiting.stop_by.is_some() {
            // The next leader accepts them.
            RequestError::NotLeader
        } else if self.disk_full() {
            RequestError::Propose(ProposeError::DiskFull)
        } else {
            match self.core.propose(entries) {
                Ok((term, first)) => {
                    ReplicaCounters::add(&self.counters.proposals, count);
                    return self.waiting.appended(term, first, replies);
                }
                Err(NotProposed::NotLeader) => RequestError::NotLeader,
                Err(NotProposed::Busy) => RequestError::Propose(ProposeError::Busy),
            }
        };
        if refusal != RequestError::NotLeader {
            ReplicaCounters::add(&self.counters.proposals_refused, count);
        }
        for reply in replies {
            // A client that gave up has dropped its receiver.
            let _ = reply.send(Err(refusal.clone()));
        }
    }

    fn persisted(&mut self, number: BatchNumber) {
        while self.waiting.batches.front().is_some_and(|(first, _)| *first <= number) {
            self.waiting.batches.pop_front();
        }
        if std::mem::take(&mut self.waiting.no_space) {
            tracing::info!("the disk has space again");
        }
        self.core.persisted(number);
    }

    fn no_space(&mut self) {
        ReplicaCounters::add(&self.counters.waits_for_space, 1);
        if !std::mem::replace(&mut self.waiting.no_space, true) {
            tracing::warn!("the disk is full; nothing is acknowledged until there is space");
        }
    }

    fn disk_full(&self) -> bool {
        self.waiting.no_space || self.store.nearly_full()
    }

    fn election_timeout(&self) -> Duration {
        self.timings.tick * self.timings.election_ticks as u32
    }

    /// Starts an orderly stop. A leader transfers its leadership first, so that the group need not wait for
    /// an election.
    fn begin_stop(&mut self) {
        let latest = Instant::now() + self.election_timeout();
        if self.waiting.stop_by.is_none() && self.core.status().is_leader() {
            tracing::info!("stopping; transferring leadership first");
            self.core.transfer_leadership();
            self.waiting.stop_by = Some(latest);
        }
        // A replica that is not the leader has no leadership to transfer.
        self.waiting.stop_by.get_or_insert(Instant::now());
    }

    /// Returns whether an orderly stop is complete: another replica leads, and every accepted proposal is
    /// answered. If no follower can take over, the stop completes one election timeout after it began.
    fn may_stop(&self, now: Instant) -> bool {
        let Some(latest) = self.waiting.stop_by else { return false };
        let status = self.core.status();
        let transferred = status.role == Role::Follower && self.waiting.proposals.is_empty();
        transferred || now >= latest || self.core.is_alone()
    }

    /// Drops reads that clients abandoned: a leader that cannot commit would accumulate them.
    fn drop_abandoned_reads(&mut self) {
        let reads = &mut self.waiting.reads;
        let before = reads.len();
        reads.retain(|_, reply| !reply.is_closed());
        if reads.len() < before {
            self.core.retain_reads(|id| reads.contains_key(&id));
        }
        ReplicaCounters::set(&self.counters.reads_waiting, reads.len());
    }

    fn tick(&mut self, now: Instant) {
        self.core.tick();
        self.drop_abandoned_reads();
        if self.waiting.stop_by.is_some() {
            // Raft aborted the transfer, or no follower was eligible; one may be eligible now.
            self.core.transfer_leadership();
        }
        let limit = self.election_timeout();
        let stalled = self.waiting.batches.front().is_some_and(|(_, since)| now - *since > limit);
        let disk_full = self.disk_full();
        let lately = self.waiting.transferred.is_some_and(|then| now - then < limit * TRANSFER_PAUSE);
        let barred = self.core.is_barred();
        if (stalled || disk_full || barred) && !lately && self.core.status().is_leader() {
            tracing::warn!(
                stalled,
                disk_full,
                barred,
                "this replica should not lead; transferring leadership"
            );
            self.waiting.transferred = Some(now);
            self.core.transfer_leadership();
        }
        self.publish
            .status
            .send_if_modified(|status| std::mem::replace(&mut status.disk_full, disk_full) != disk_full);
    }

    fn perform_all(&mut self) -> Result<(), String> {
        while let Some(effects) = self.core.ready() {
            self.perform(effects)?;
        }
        if self.executor.is_simulated() {
            self.core.check_invariants()?;
            self.sessions.check_invariants()?;
        }
        self.publish_status();
        let waiting = &self.waiting;
        if self.core.snapshot_due()
            && !waiting.saving_snapshot
            && waiting.snapshot_after.is_none_or(|after| Instant::now() >= after)
        {
            self.save_snapshot()?;
        }
        Ok(())
    }

    fn perform(&mut self, effects: Effects) -> Result<(), String> {
        if !effects.messages.is_empty() {
            self.transport.send(effects.messages);
        }
        if let Some(batch) = effects.batch {
            self.waiting.batches.push_back((batch.number, Instant::now()));
            self.batches.send(batch).map_err(|_| "its disk loop ended".to_string())?;
        }
        if let Some(snapshot) = effects.restore {
            self.restore(&snapshot)?;
        }
        self.apply(effects.committed)?;
        for id in effects.rejected_reads {
            self.waiting.answer_read(id, Err(RequestError::NotLeader));
        }
        for read in effects.reads {
            // The index may be ahead of what is applied here; the reader waits for it.
            self.waiting.answer_read(read.id, Ok(read.index));
        }
        Ok(())
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let (sessions, state) =
            snapshot::unpack(&snapshot.data).ok_or("the leader's snapshot is not readable")?;
        let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        machine.restore(&state)?;
        drop(machine);
        self.sessions = sessions;
        ReplicaCounters::add(&self.counters.snapshots_installed, 1);
        self.waiting.skipped_to(snapshot.index);
        self.core.applied(snapshot.index);
        self.publish.applied.send_replace(snapshot.index);
        tracing::info!(index = snapshot.index.0, "restored a snapshot from the leader");
        Ok(())
    }

    fn apply(&mut self, entries: Vec<LogEntry>) -> Result<(), String> {
        let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
        let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let answer = apply_one(&mut *machine, &mut self.sessions, &entry)?;
            self.waiting.applied(entry.index, entry.term, answer);
        }
        drop(machine);
        self.core.applied(last);
        self.publish.applied.send_replace(last);
        Ok(())
    }

    /// Freezes the current state. A background job serializes and writes it.
    fn save_snapshot(&mut self) -> Result<(), String> {
        let state = self.machine.read().unwrap_or_else(PoisonError::into_inner).freeze();
        let (sessions, here) = (self.sessions.clone(), self.core.snapshot_here(Bytes::new()));
        let (store, limit) = (self.store.clone(), self.snapshot_bytes_max);
        let save = move || {
            let snapshot = Snapshot { data: snapshot::pack(&sessions, &state()), ..here };
            let bytes = snapshot.data.len() as u64;
            if bytes > limit {
                tracing::error!(
                    bytes,
                    limit,
                    "the snapshot exceeds the limit: a replica far behind cannot catch up"
                );
            }
            match store.save_snapshot(&snapshot).and_then(|()| store.truncate(snapshot.index)) {
                Ok(()) => Event::SnapshotSaved(snapshot),
                Err(error) if error.is_disk_full() => Event::SnapshotPostponed(error),
                Err(error) => Event::LogFailed(error),
            }
        };
        let events = self.events.clone();
        let save = move || {
            // A panic must be reported here, or no further snapshot would be attempted.
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(save));
            // The replica may have stopped in the meantime; then the result is not needed.
            let _ = events.send(outcome.unwrap_or(Event::SnapshotPanicked));
        };
        self.waiting.saving_snapshot = true;
        let begun = self.executor.spawn_blocking("raft-snapshot", save);
        begun.map_err(|error| format!("starting a thread failed: {error}"))
    }

    fn publish_status(&self) {
        let current = self.core.status();
        let (role, leader, term) = (current.role, current.leader, current.term);
        let changed = self.publish.leader.send_if_modified(|old| std::mem::replace(old, leader) != leader);
        if changed && leader.is_some() {
            ReplicaCounters::add(&self.counters.leader_changes, 1);
        }
        self.publish.status.send_if_modified(|status| {
            let changed = (status.role, status.leader, status.term) != (role, leader, term);
            if changed {
                tracing::info!(?role, leader = leader.map(|id| id.0), term = term.0, "role changed");
            }
            let (disk_full, stopped) = (status.disk_full, status.stopped.take());
            *status = RaftStatus { disk_full, stopped, ..current };
            changed
        });
    }

    fn stop(self, reason: &str, mut inbox: UnboundedReceiver<Event>) {
        tracing::info!(reason, "the replica stopped");
        self.publish.leader.send_replace(None);
        self.publish.status.send_modify(|status| {
            status.stopped = Some(reason.to_string());
            status.leader = None;
            status.role = Role::Candidate;
        });
        // Events left in the queue had no effect: their clients may retry elsewhere.
        while let Ok(event) = inbox.try_recv() {
            match event {
                Event::Propose { reply, .. } => drop(reply.send(Err(RequestError::NotLeader))),
                Event::Read(reply) => drop(reply.send(Err(RequestError::NotLeader))),
                _ => {}
            }
        }
        // Proposals may already be on other disks: their outcome is unknown.
        self.waiting
            .proposals
            .into_iter()
            .for_each(|(_, _, reply)| drop(reply.send(Err(RequestError::Lost))));
        self.waiting.reads.into_values().for_each(|reply| drop(reply.send(Err(RequestError::NotLeader))));
    }
}

fn apply_one<M: StateMachine>(
    machine: &mut M,
    sessions: &mut Sessions,
    entry: &LogEntry,
) -> Result<Result<Bytes, ProposeError>, String> {
    if entry.data.is_empty() {
        return Ok(Ok(Bytes::new()));
    }
    let index = entry.index;
    let command = LogCommand::decode(&entry.data);
    match command.ok_or_else(|| format!("entry {index} was written by a newer version"))? {
        LogCommand::Plain(command) => Ok(Ok(Bytes::from(machine.apply(index, &command)))),
        LogCommand::OpenSession => {
            let id = sessions.open(index);
            Ok(Ok(Bytes::copy_from_slice(&id.0.to_le_bytes())))
        }
        LogCommand::InSession { session, sequence, command } => Ok(match sessions.admit(session, sequence) {
            SessionLookup::Unknown => Err(ProposeError::SessionExpired),
            SessionLookup::Passed => Err(ProposeError::SequencePassed),
            SessionLookup::Repeated(response) => Ok(response),
            SessionLookup::New => {
                let response = Bytes::from(machine.apply(index, &command));
                sessions.record(session, sequence, index, response.clone());
                Ok(response)
            }
        }),
    }
}

impl PendingWork {
    fn appended(&mut self, term: Term, first: LogIndex, replies: Vec<ReplySender<Bytes>>) {
        // Proposals of an earlier leadership at these indices were overwritten: they are not applied.
        while self.proposals.back().is_some_and(|(index, _, _)| *index >= first) {
            let (_, _, reply) = self.proposals.pop_back().expect("just looked at");
            let _ = reply.send(Err(RequestError::NotLeader));
        }
        self.proposals.extend((0..).zip(replies).map(|(offset, reply)| (first.plus(offset), term, reply)));
    }

    /// Answers the client that waits for `index`, if the entry applied there is the one that it proposed.
    fn applied(&mut self, index: LogIndex, term: Term, answer: Result<Bytes, ProposeError>) {
        let due = self.proposals.front().is_some_and(|(waiting, _, _)| *waiting <= index);
        if !due {
            return;
        }
        let (waiting, proposed, reply) = self.proposals.pop_front().expect("just looked at");
        assert_eq!(waiting, index, "entries are applied without a gap");
        // A client that gave up has dropped its receiver.
        let _ = reply.send(if proposed == term {
            answer.map_err(RequestError::from)
        } else {
            Err(RequestError::NotLeader)
        });
    }

    /// Answers the proposals whose entries a snapshot replaced: their outcome is unknown.
    fn skipped_to(&mut self, index: LogIndex) {
        while self.proposals.front().is_some_and(|(waiting, _, _)| *waiting <= index) {
            let (_, _, reply) = self.proposals.pop_front().expect("just looked at");
            let _ = reply.send(Err(RequestError::Lost));
        }
    }

    fn answer_read(&mut self, id: ReadId, answer: Result<LogIndex, RequestError>) {
        if let Some(reply) = self.reads.remove(&id) {
            let _ = reply.send(answer);
        }
    }
}

/// Formats an error with its causes on one line, and logs it.
fn describe(error: &LogError) -> String {
    let text = protocol::error_chain(error);
    tracing::error!(code = %error.code(), error = text, "the log failed; the replica stops");
    text
}

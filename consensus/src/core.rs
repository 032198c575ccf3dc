//! The pure core: the `raft` crate, driven so that its traps stay shut. No clock, thread, file, socket or
//! randomness: time comes as [`Core::tick`], messages as [`Core::step`], and what must happen goes out as
//! [`Effects`].
//!
//! The traps, and where each is shut:
//! - unsafe defaults (no pre-vote, no check-quorum, no bounds): set and asserted in `raft_config`;
//! - thread-local randomness: `Core::call` overwrites the election timeout after every call;
//! - a read token used twice lets a deposed leader answer from the past: `read.rs` makes each token once,
//!   on the leader only, and [`Core::step`] refuses `MsgReadIndex` from the wire;
//! - a read silently dropped before the leader committed in its own term: held back in `read.rs`;
//! - heartbeats behind a slow disk: their answers do not wait for it, see `Core::split_messages`.

use crate::config::{Limits, Timings};
use crate::election;
use crate::log::{self, Log};
use crate::read::Reads;
use crate::snapshot::Snapshot;
use crate::store::{Batch, HardState, LogEntry, Recovered};
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use std::collections::VecDeque;

/// What a core is built from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This replica.
    pub id: u64,
    /// Every voter of the group, this replica included.
    pub voters: Vec<u64>,
    /// Seeds election timeouts.
    pub seed: u64,
    /// Heartbeat and election timeouts; durations are the shell's business.
    pub timings: Timings,
    /// Bounds.
    pub limits: Limits,
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether it leads.
    pub leading: bool,
    /// Whom it takes for the leader; 0 for nobody.
    pub leader: u64,
    /// The current term.
    pub term: u64,
    /// The highest index known to be committed.
    pub commit: u64,
    /// The highest index that the shell has applied.
    pub applied: u64,
    /// The last index of the log, on disk or not yet.
    pub last: u64,
}

/// What the shell must do, in this order: send `messages`, hand `batch` to the disk (and send its
/// `messages` when it is durable), install `restore`, apply `committed`, then release `reads`.
#[derive(Debug, Default)]
pub struct Effects {
    /// Send now, the disk notwithstanding.
    pub messages: Vec<Message>,
    /// Make durable, then call [`Core::persisted`] with its number.
    pub batch: Option<NumberedBatch>,
    /// Replace the state machine's state by this snapshot.
    pub restore: Option<Snapshot>,
    /// Apply in order, then call [`Core::applied`].
    pub committed: Vec<LogEntry>,
    /// Reads proven current: each may be answered once its index is applied.
    pub reads: Vec<ConfirmedRead>,
    /// Reads that this replica can no longer confirm, because it does not lead.
    pub refused_reads: Vec<u64>,
}

/// A batch for the disk, and what may be said once it is durable.
#[derive(Debug)]
pub struct NumberedBatch {
    /// For [`Core::persisted`].
    pub number: u64,
    /// What to write.
    pub batch: Batch,
    /// What to send once it is durable.
    pub messages: Vec<Message>,
}

/// A read that a majority confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedRead {
    /// The caller's name for it.
    pub id: u64,
    /// Everything committed when the read began is at or below this index.
    pub index: u64,
}

/// Why a message from a peer was not given to raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Not from a voter, or not for this replica.
    #[error("the message is not from a peer to this replica")]
    Misaddressed,
    /// A kind that must never cross the wire.
    #[error("the message is of a kind that never crosses the wire")]
    Forbidden,
}

/// The proposals were not taken: this replica does not lead, or too much is uncommitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotProposed {
    /// This replica does not lead.
    #[error("this replica does not lead")]
    NotLeader,
    /// Too many bytes wait to be committed.
    #[error("too many bytes wait to be committed")]
    Busy,
}

/// A batch that the disk has not confirmed.
struct Outstanding {
    number: u64,
    /// The term that its hard state carries.
    term: Option<u64>,
    /// Bytes of its entries.
    bytes: u64,
}

/// One replica's consensus.
pub struct Core {
    raw: RawNode<Log>,
    settings: Settings,
    campaigns: u64,
    applied: u64,
    /// Batches given out and not yet durable.
    outstanding: VecDeque<Outstanding>,
    /// Bytes of entries that wait for the disk.
    unwritten_bytes: u64,
    /// The newest term that is durable: only in it may heartbeats be answered ahead of the disk.
    durable_term: u64,
    /// A hard state of which only the commit index changed, for the next batch.
    deferred: Option<HardState>,
    /// Set by the clock: an idle replica writes what is deferred, which also marks its last entry as durable.
    flush_deferred: bool,
    ticks_unfounded: usize,
    reads: Reads,
}

impl Core {
    /// Builds a replica from what its store found.
    ///
    /// # Errors
    /// When raft refuses the settings.
    pub fn new(settings: Settings, recovered: Recovered) -> Result<Self, raft::Error> {
        let applied = recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let durable_term = recovered.hard_state.term;
        let reads = Reads::new(settings.id, recovered.boots);
        let config = raft_config(&settings, applied);
        let log = Log::new(recovered, settings.voters.clone());
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger)?;
        let outstanding = VecDeque::new();
        let mut core = Self {
            raw,
            settings,
            campaigns: 0,
            applied,
            outstanding,
            unwritten_bytes: 0,
            durable_term,
            deferred: None,
            flush_deferred: false,
            ticks_unfounded: 0,
            reads,
        };
        core.call(|_| ());
        Ok(core)
    }

    /// Every call into raft goes through here: whatever it drew from its own randomness is overwritten.
    fn call<T>(&mut self, operate: impl FnOnce(&mut RawNode<Log>) -> T) -> T {
        let result = operate(&mut self.raw);
        let Settings { seed, id, timings, .. } = &self.settings;
        let term = self.raw.raft.term;
        let timeout = election::timeout(*seed, *id, term, self.campaigns, timings.election_ticks);
        self.raw.raft.set_randomized_election_timeout(timeout);
        result
    }

    /// One step of the clock.
    pub fn tick(&mut self) {
        self.flush_deferred = true;
        // Raft looks for entries that the snapshot has replaced when it campaigns before hearing that the
        // snapshot is durable, and panics. Waiting is right: this replica is the one furthest behind.
        if self.installing() {
            return;
        }
        self.found();
        let before = self.raw.raft.election_elapsed;
        let leading = self.leads();
        self.call(|raw| raw.tick());
        // The only way for a follower's or candidate's count to fall in a tick is a campaign.
        if !leading && self.raw.raft.election_elapsed < before {
            self.campaigns += 1;
            self.call(|_| ());
        }
    }

    /// In a group that never had a leader nobody can be disturbed: replicas stand for election soon, in
    /// turns, instead of waiting for a timeout. As always, pre-vote and majority decide.
    fn found(&mut self) {
        if self.raw.raft.term > 0 || self.raw.raft.leader_id != 0 {
            return;
        }
        self.ticks_unfounded += 1;
        let voters = &self.settings.voters;
        let turn = voters.iter().position(|voter| *voter == self.settings.id).unwrap_or(0);
        if self.ticks_unfounded % (2 * voters.len()) == 2 * turn + 1 {
            self.campaigns += 1;
            // Refused only while a configuration change is unapplied, and there are none.
            let _ = self.call(RawNode::campaign);
        }
    }

    /// Whether the disk is so far behind that nothing more should gather in memory.
    fn swamped(&self) -> bool {
        self.unwritten_bytes > self.settings.limits.uncommitted_bytes_max
    }

    /// Whether a snapshot from the leader is installed in memory and not yet durable.
    fn installing(&self) -> bool {
        self.applied > self.raw.raft.raft_log.applied
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// When it was not given to raft. Messages that raft itself ignores are not errors.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let known = self.settings.voters.contains(&message.from) && message.from != self.settings.id;
        if !known || message.to != self.settings.id {
            return Err(StepError::Misaddressed);
        }
        let kind = message.get_msg_type();
        if !may_cross_the_wire(kind) {
            return Err(StepError::Forbidden);
        }
        if self.installing() && is_about_elections(kind) {
            return Ok(());
        }
        // Taken as lost: the leader sends it again. Otherwise a follower whose disk is full or stuck would
        // gather in memory whatever the others commit meanwhile.
        if kind == MessageType::MsgAppend && self.swamped() {
            return Ok(());
        }
        // Raft's own complaints are about stale messages: dropping them is the right answer.
        let _ = self.call(|raw| raw.step(message));
        Ok(())
    }

    /// Appends commands if this replica leads. Returns the term and the index of the first.
    ///
    /// # Errors
    /// None of them was appended.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<(u64, u64), NotProposed> {
        assert!(!commands.is_empty(), "proposing nothing");
        // One that hands over appends nothing more: raft would drop it.
        if !self.leads() || self.raw.raft.lead_transferee.is_some() {
            return Err(NotProposed::NotLeader);
        }
        if self.swamped() {
            return Err(NotProposed::Busy);
        }
        let first = self.raw.raft.raft_log.last_index() + 1;
        let mut message = Message { from: self.settings.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        let entries: Vec<Entry> =
            commands.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        message.set_entries(entries.into());
        self.call(|raw| raw.raft.step(message)).map_err(|_| NotProposed::Busy)?;
        Ok((self.raw.raft.term, first))
    }

    /// Asks that the read named `id` be confirmed. Its answer comes in [`Effects`].
    pub fn read(&mut self, id: u64) {
        self.reads.ask(id);
    }

    /// Forgets the reads that wait and are not `wanted` any more.
    pub fn retain_reads(&mut self, wanted: impl Fn(u64) -> bool) {
        self.reads.retain(wanted);
    }

    /// Says that a batch, and every one before it, is durable.
    pub fn persisted(&mut self, number: u64) {
        while let Some(written) = self.outstanding.pop_front_if(|first| first.number <= number) {
            self.durable_term = self.durable_term.max(written.term.unwrap_or(0));
            self.unwritten_bytes -= written.bytes;
        }
        self.call(|raw| raw.on_persist_ready(number));
        self.advance_applied();
    }

    /// Says that every entry up to `index` is applied.
    pub fn applied(&mut self, index: u64) {
        assert!(index >= self.applied, "applied entries were taken back");
        self.applied = index;
        self.advance_applied();
    }

    /// Raft wants to hear of applied entries only once they are durable. Committed entries always are; a
    /// snapshot from the leader is applied a little before.
    fn advance_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        if self.applied > log.applied && self.applied <= log.persisted.min(log.committed) {
            let index = self.applied;
            self.call(|raw| raw.advance_apply_to(index));
        }
    }

    /// Says that a peer could not be reached: it is probed instead of being sent everything.
    pub fn unreachable(&mut self, peer: u64) {
        self.call(|raw| raw.report_unreachable(peer));
    }

    /// Says how the sending of a snapshot ended.
    pub fn snapshot_sent(&mut self, peer: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.call(|raw| raw.report_snapshot(peer, status));
    }

    /// Tries to hand leadership to the follower that is furthest: this replica stops, or its disk no longer
    /// keeps up. One that lacks committed entries is passed over, and so is one that is being sent a snapshot:
    /// it could not lead before it has them, and until then nobody could propose.
    pub fn hand_over(&mut self) {
        // One at a time: two followers told to stand for election would split the votes.
        if self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let (own, committed) = (self.settings.id, self.raw.raft.raft_log.committed);
        let others = self.raw.raft.prs().iter().filter(|(id, peer)| {
            let up_to_date = peer.state != ProgressState::Snapshot && peer.matched >= committed;
            **id != own && peer.recent_active && up_to_date
        });
        // The lower id wins a tie, so that the choice is a function of the state.
        let best = others.max_by_key(|(id, peer)| (peer.matched, u64::MAX - **id)).map(|(id, _)| *id);
        if let Some(best) = best.filter(|_| self.leads()) {
            self.call(|raw| raw.transfer_leader(best));
        }
    }

    /// Whether no other replica is in the group.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.settings.voters == [self.settings.id]
    }

    /// Whether enough has been applied since the last snapshot to take another.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        let (entries, bytes) = self.raw.store().since_snapshot(self.applied);
        let limits = &self.settings.limits;
        entries >= limits.snapshot_entries || (entries > 0 && bytes >= limits.snapshot_bytes)
    }

    /// Names the snapshot of the state as it is applied now: index and term, and the voters.
    ///
    /// # Panics
    /// When nothing has been applied yet.
    #[must_use]
    pub fn snapshot_here(&self, data: Bytes) -> Snapshot {
        let term = self.raw.raft.raft_log.term(self.applied).expect("the last applied entry is kept");
        let voters = self.raw.store().voters().to_vec();
        Snapshot { index: self.applied, term, voters, data }
    }

    /// Says that a snapshot of this replica's own state is durable; older entries are let go. Returns the
    /// index through which the log on disk may be truncated.
    pub fn snapshot_saved(&mut self, snapshot: Snapshot) -> u64 {
        let retained = self.settings.limits.retained_entries;
        self.call(|raw| raw.mut_store().compact(snapshot, retained));
        self.raw.store().snapshot_index()
    }

    /// Where this replica stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            leading: self.leads(),
            leader: raft.leader_id,
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.applied,
            last: raft.raft_log.last_index(),
        }
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// What there is to do, or `None`. Call again until it is `None`.
    pub fn ready(&mut self) -> Option<Effects> {
        let refused_reads = self.issue_reads();
        if !self.raw.has_ready() {
            let batch = self.take_deferred();
            let idle = refused_reads.is_empty() && batch.is_none();
            return (!idle).then(|| Effects { refused_reads, batch, ..Effects::default() });
        }
        let mut ready = self.call(RawNode::ready);
        let number = ready.number();
        let mut effects = Effects { refused_reads, messages: ready.take_messages(), ..Effects::default() };
        let later = self.split_messages(ready.take_persisted_messages(), &mut effects.messages);
        effects.reads = self.reads.confirm(ready.take_read_states());
        effects.committed = ready.take_committed_entries().iter().map(checked).collect();
        if !ready.snapshot().is_empty() {
            effects.restore = Some(log::snapshot_from_raft(ready.snapshot()));
        }
        let batch = self.keep(&mut ready, effects.restore.clone());
        self.call(|raw| raw.advance_append_async(ready));
        effects.batch = self.number(number, batch, later);
        Some(effects)
    }

    /// Puts what raft gave into the log in memory, where raft must find it at once, and into a batch.
    fn keep(&mut self, ready: &mut raft::Ready, snapshot: Option<Snapshot>) -> Batch {
        let (hard_state, entries) = (ready.hs().map(log::hard_from_raft), ready.take_entries());
        let sync = ready.must_sync();
        let store = self.raw.mut_store();
        if let Some(snapshot) = &snapshot {
            store.install(snapshot.clone());
        }
        store.append(&entries);
        if let Some(hard_state) = hard_state {
            store.set_hard_state(hard_state);
        }
        Batch { snapshot, hard_state, entries: entries.iter().map(log::from_raft).collect(), sync }
    }

    /// Gives a batch its number, unless nobody waits for it. A commit index that only rose waits for the
    /// next batch: it is found again from the leader, and a snapshot carries its own.
    fn number(&mut self, number: u64, mut batch: Batch, messages: Vec<Message>) -> Option<NumberedBatch> {
        let commit_only = !batch.sync && batch.entries.is_empty() && batch.snapshot.is_none();
        batch.hard_state = batch.hard_state.or(self.deferred.take());
        if commit_only && messages.is_empty() {
            self.deferred = batch.hard_state;
            if self.outstanding.is_empty() {
                self.call(|raw| raw.on_persist_ready(number));
            }
            return None;
        }
        let term = batch.hard_state.map(|state| state.term);
        let bytes: u64 = batch.entries.iter().map(|entry| entry.data.len() as u64).sum();
        self.unwritten_bytes += bytes;
        self.outstanding.push_back(Outstanding { number, term, bytes });
        Some(NumberedBatch { number, batch, messages })
    }

    /// The deferred hard state as a batch that nobody waits for. Number 0 is before every number of raft's.
    fn take_deferred(&mut self) -> Option<NumberedBatch> {
        if !std::mem::take(&mut self.flush_deferred) || !self.outstanding.is_empty() {
            return None;
        }
        let hard_state = Some(self.deferred.take()?);
        let batch = Batch { hard_state, ..Batch::default() };
        Some(NumberedBatch { number: 0, batch, messages: Vec::new() })
    }

    /// A follower speaks only of what is durable, so its messages wait for the disk. Answers to heartbeats
    /// alone do not: they say nothing of the log, only that this replica knows the leader of a term, and
    /// they go at once when that term is durable. So a slow disk cannot depose a healthy leader.
    fn split_messages(&self, later: Vec<Message>, now: &mut Vec<Message>) -> Vec<Message> {
        let (heartbeats, rest): (Vec<_>, Vec<_>) = later.into_iter().partition(|message| {
            message.get_msg_type() == MessageType::MsgHeartbeatResponse && message.term <= self.durable_term
        });
        now.extend(heartbeats);
        rest
    }

    /// Gives waiting reads to raft under a fresh token, or refuses them when this replica does not lead.
    fn issue_reads(&mut self) -> Vec<u64> {
        if !self.leads() {
            return self.reads.refuse();
        }
        // Before the first commit of its own term a leader does not know what is committed, and raft
        // drops the read without a word.
        if !self.raw.raft.commit_to_current_term() {
            return Vec::new();
        }
        if let Some(token) = self.reads.issue() {
            self.call(|raw| raw.read_index(token));
        }
        Vec::new()
    }
}

/// Raft's settings, with none of its defaults trusted.
fn raft_config(settings: &Settings, applied: u64) -> raft::Config {
    let (timings, limits) = (&settings.timings, &settings.limits);
    let config = raft::Config {
        id: settings.id,
        election_tick: timings.election_ticks,
        heartbeat_tick: timings.heartbeat_ticks,
        applied,
        max_size_per_msg: limits.message_bytes,
        max_inflight_msgs: limits.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        // Followers learn of commits with the next append or heartbeat: half the messages at one client.
        skip_bcast_commit: true,
        max_uncommitted_size: limits.uncommitted_bytes_max,
        max_committed_size_per_ready: limits.message_bytes,
        ..raft::Config::default()
    };
    assert!(config.pre_vote && config.check_quorum, "a partitioned replica must not disturb the others");
    assert!(config.max_size_per_msg > 0 && config.max_size_per_msg < raft::NO_LIMIT, "unbounded messages");
    assert!(config.max_uncommitted_size < raft::NO_LIMIT, "unbounded proposals");
    assert!(config.max_committed_size_per_ready < raft::NO_LIMIT, "unbounded apply batches");
    assert!(config.read_only_option == raft::ReadOnlyOption::Safe, "lease reads trust clocks");
    config
}

/// The kinds of message that replicas exchange. Proposals and reads are forwarded by the application, so
/// that a read's token is always made by the leader that confirms it.
fn may_cross_the_wire(kind: MessageType) -> bool {
    use MessageType as Kind;
    matches!(
        kind,
        Kind::MsgAppend
            | Kind::MsgAppendResponse
            | Kind::MsgRequestVote
            | Kind::MsgRequestVoteResponse
            | Kind::MsgRequestPreVote
            | Kind::MsgRequestPreVoteResponse
            | Kind::MsgHeartbeat
            | Kind::MsgHeartbeatResponse
            | Kind::MsgSnapshot
            | Kind::MsgTimeoutNow
    )
}

/// Messages upon which raft looks through unapplied entries, as in [`Core::tick`].
fn is_about_elections(kind: MessageType) -> bool {
    use MessageType as Kind;
    matches!(kind, Kind::MsgTimeoutNow | Kind::MsgRequestVote | Kind::MsgRequestPreVote)
}

fn checked(entry: &Entry) -> LogEntry {
    assert!(
        entry.get_entry_type() == EntryType::EntryNormal,
        "entry {} changes the membership, which this version cannot do: it was written by a newer one",
        entry.index
    );
    log::from_raft(entry)
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! Pure Raft core: drives the `raft` crate without a clock, thread, file, socket or randomness.
//!
//! Time arrives as [`Core::tick`] and messages as [`Core::step`]; the required work is returned as
//! [`Effects`].
//!
//! Known hazards of the `raft` crate, and the code that prevents each:
//! - unsafe defaults (no pre-vote, no check-quorum, no bounds): set and asserted in `raft_config`;
//! - thread-local randomness: `Core::call` overwrites the election timeout after every call;
//! - reuse of a read token, which lets a deposed leader return stale reads: `read.rs` makes each token once,
//!   on the leader only, and [`Core::step`] rejects `MsgReadIndex` from the wire;
//! - reads silently dropped before the leader has committed in its own term: held back in `read.rs`;
//! - heartbeats delayed by a slow disk: their responses do not wait for the disk, see `Core::split_messages`.

mod invariants;

use crate::config::{Limits, Timings};
use crate::election::{self, Candidacy};
use crate::ids::{self, BatchNumber, LogIndex, ReadId, Term};
use crate::log::{self, Log};
use crate::planted::{Defect, planted};
pub use crate::read::ConfirmedRead;
use crate::read::Reads;
use crate::snapshot::Snapshot;
use crate::status::{RaftStatus, Role};
use crate::store::{Batch, HardState, LogEntry, Recovered};
use bytes::Bytes;
use invariants::Milestones;
use protocol::ReplicaId;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use std::collections::{BTreeSet, VecDeque};

/// Election timeouts without a leader after which a barred replica campaigns. The others have tried by then.
const BARRED_TIMEOUTS: usize = 3;

/// Parameters of a [`Core`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Id of this replica.
    pub id: ReplicaId,
    /// All voters of the group, this replica included.
    pub voters: Vec<ReplicaId>,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// Heartbeat and election timeouts in ticks; the durations are used by the shell.
    pub timings: Timings,
    /// Bounds on memory, messages and snapshots.
    pub limits: Limits,
}

/// Work for the shell, in this order. Send `messages`. Hand `batch` to the disk, and send its `messages` once
/// it is durable. Install `restore`, apply `committed`, then release `reads`.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages to send immediately, without waiting for the disk.
    pub messages: Vec<Message>,
    /// Batch to make durable; then call [`Core::persisted`] with its number.
    pub batch: Option<NumberedBatch>,
    /// Snapshot that replaces the state machine's state.
    pub restore: Option<Snapshot>,
    /// Entries to apply in order; then call [`Core::applied`].
    pub committed: Vec<LogEntry>,
    /// Reads confirmed by a majority: each may be answered once its index is applied.
    pub reads: Vec<ConfirmedRead>,
    /// Ids of reads that this replica can no longer confirm, because it is not the leader.
    pub rejected_reads: Vec<ReadId>,
}

/// A batch for the disk, with the messages that depend on it.
#[derive(Debug)]
pub struct NumberedBatch {
    /// Number to pass to [`Core::persisted`] once the batch is durable.
    pub number: BatchNumber,
    /// Snapshot, hard state and entries to write.
    pub batch: Batch,
    /// Messages to send once the batch is durable.
    pub messages: Vec<Message>,
}

/// Reasons to reject a peer's message before it reaches raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The sender is not another voter, or the recipient is not this replica.
    #[error("the message is not from another replica to this one")]
    Misaddressed,
    /// The message type is one that replicas never exchange.
    #[error("replicas never exchange messages of this type")]
    Forbidden,
}

/// Reasons to reject proposals. None of the proposals was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotProposed {
    /// This replica is not the leader, or is transferring its leadership.
    #[error("this replica does not lead")]
    NotLeader,
    /// Too many bytes are uncommitted or wait for the disk.
    #[error("too many bytes wait to be committed")]
    Busy,
}

/// A batch that is not durable yet.
struct Outstanding {
    number: BatchNumber,
    /// Term of its hard state, if it contains one.
    term: Option<Term>,
    /// Size of its entries, in bytes.
    bytes: u64,
}

/// Raft consensus of one replica.
pub struct Core {
    raw: RawNode<Log>,
    settings: Settings,
    campaigns: u64,
    applied: LogIndex,
    /// Batches handed to the shell and not yet durable, oldest first.
    outstanding: VecDeque<Outstanding>,
    /// Size of the entries in `outstanding`, in bytes.
    unwritten_bytes: u64,
    /// The last batch handed to the shell.
    last_batch: BatchNumber,
    /// Newest durable term. Heartbeats of later terms are not answered ahead of the disk.
    durable_term: Term,
    /// Hard state in which only the commit index changed; written with the next batch.
    deferred: Option<HardState>,
    /// Set by each tick: an idle replica then writes `deferred`, which also marks its last entry as durable.
    flush_deferred: bool,
    /// Ticks in a group that has never had a leader.
    ticks_without_term: usize,
    /// Replicas that the shell bars from leading.
    barred: BTreeSet<ReplicaId>,
    /// Ticks for which a barred replica has left a campaign to the others.
    withheld_ticks: usize,
    reads: Reads,
    /// Milestones as of the last check of the invariants.
    checked: Milestones,
}

impl Core {
    /// Builds a core from the state that the store recovered.
    ///
    /// # Errors
    /// Fails if raft rejects the settings.
    pub fn new(settings: Settings, recovered: Recovered) -> Result<Self, raft::Error> {
        assert!(settings.voters.contains(&settings.id), "replica {} is no voter of its group", settings.id);
        debug_assert_eq!(recovered.check_invariants(), Ok(()), "the store recovered an impossible state");
        assert!(settings.voters.is_sorted(), "the voters are not in ascending order");
        let applied = recovered.snapshot.as_ref().map_or(LogIndex(0), |snapshot| snapshot.index);
        let durable_term = recovered.hard_state.term;
        let reads = Reads::new(settings.id, recovered.incarnation);
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
            last_batch: BatchNumber(0),
            durable_term,
            deferred: None,
            flush_deferred: false,
            ticks_without_term: 0,
            barred: BTreeSet::new(),
            withheld_ticks: 0,
            reads,
            checked: Milestones::default(),
        };
        core.call(|_| ());
        core.checked = core.progress();
        Ok(core)
    }

    /// Calls into raft. Every call goes through this function, because it overwrites the election timeout
    /// that raft drew from its own randomness.
    fn call<T>(&mut self, operate: impl FnOnce(&mut RawNode<Log>) -> T) -> T {
        let result = operate(&mut self.raw);
        let Settings { seed, id, timings, .. } = &self.settings;
        let term = Term(self.raw.raft.term);
        let candidacy = Candidacy { seed: *seed, id: *id, term, campaigns: self.campaigns };
        let timeout = match self.barred.contains(id) {
            // The longest one, so that the replica is free to vote before its own campaign is due.
            true => 2 * timings.election_ticks - 1,
            false => election::timeout(candidacy, timings.election_ticks),
        };
        self.raw.raft.set_randomized_election_timeout(timeout);
        result
    }

    /// Advances the logical clock by one tick.
    pub fn tick(&mut self) {
        self.flush_deferred = true;
        // Raft panics if it campaigns before an installed snapshot is reported durable: it looks up entries
        // that the snapshot has replaced. Skipping ticks is safe, because this replica is the one furthest
        // behind.
        if self.installing() {
            return;
        }
        self.bootstrap();
        if self.leaves_campaign_to_others() {
            return;
        }
        let before = self.raw.raft.election_elapsed;
        let leading = self.leads();
        self.call(|raw| raw.tick());
        // The count of a follower or candidate falls in a tick only when it campaigns.
        if !leading && self.raw.raft.election_elapsed < before {
            self.campaigns += 1;
            self.call(|_| ());
        }
    }

    /// Returns whether the next tick would begin a campaign that a barred replica leaves to the others.
    ///
    /// If no replica leads for [`BARRED_TIMEOUTS`] election timeouts, it campaigns: it may be the only one
    /// that holds everything committed. It then hands leadership over as soon as another replica holds that
    /// too.
    fn leaves_campaign_to_others(&mut self) -> bool {
        let raft = &self.raw.raft;
        let due = !self.leads() && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if !due || !self.is_barred() {
            self.withheld_ticks = 0;
            return false;
        }
        self.withheld_ticks += 1;
        // Replicas that are all barred take turns: at the same tick they would split the votes of each term.
        let turn = self.settings.voters.iter().position(|voter| *voter == self.settings.id).unwrap_or(0);
        self.withheld_ticks <= (BARRED_TIMEOUTS + turn) * self.settings.timings.election_ticks
    }

    /// Bars these replicas from leading, and no others. A barred replica does not campaign while another may
    /// lead, and gets no leadership transferred while another can take it. A barred leader leads on: the
    /// shell has it transfer its leadership.
    pub fn bar(&mut self, replicas: BTreeSet<ReplicaId>) {
        self.barred = replicas;
        self.call(|_| ());
    }

    /// Returns whether this replica is barred from leading.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        self.barred.contains(&self.settings.id)
    }

    /// Campaigns early in a group that has never had a leader: there is no leader to disrupt. The replicas
    /// take turns instead of waiting for a timeout. As always, pre-vote and the majority decide.
    fn bootstrap(&mut self) {
        if self.raw.raft.term > 0 || self.raw.raft.leader_id != 0 || self.is_barred() {
            return;
        }
        self.ticks_without_term += 1;
        let voters = &self.settings.voters;
        let turn = voters.iter().position(|voter| *voter == self.settings.id).unwrap_or(0);
        if self.ticks_without_term % (2 * voters.len()) == 2 * turn + 1 {
            self.campaigns += 1;
            // Raft rejects a campaign only while a configuration change is unapplied, and there are none.
            let _ = self.call(RawNode::campaign);
        }
    }

    /// Returns whether so many bytes wait for the disk that no more may accumulate in memory.
    fn is_overloaded(&self) -> bool {
        self.unwritten_bytes > self.settings.limits.uncommitted_bytes_max
    }

    /// Returns whether a snapshot from the leader is installed in memory and not yet durable.
    fn installing(&self) -> bool {
        self.applied.0 > self.raw.raft.raft_log.applied
    }

    /// Handles a message from a peer.
    ///
    /// # Errors
    /// Fails if the message was not passed to raft. Messages that raft itself ignores are not errors.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let from = ReplicaId(message.from);
        let known = self.settings.voters.contains(&from) && from != self.settings.id;
        if !known || ReplicaId(message.to) != self.settings.id {
            return Err(StepError::Misaddressed);
        }
        let kind = message.get_msg_type();
        if !is_exchanged(kind) {
            return Err(StepError::Forbidden);
        }
        if self.installing() && is_about_elections(kind) {
            return Ok(());
        }
        // Dropped as if lost; the leader retransmits it. Otherwise a follower with a full or stuck disk would
        // accumulate in memory everything that the others commit.
        if kind == MessageType::MsgAppend && self.is_overloaded() {
            return Ok(());
        }
        // Raft returns errors for stale messages only, and dropping those is correct.
        let _ = self.call(|raw| raw.step(message));
        Ok(())
    }

    /// Appends commands if this replica is the leader, and returns the term and the index of the first one.
    ///
    /// # Errors
    /// On error none of the commands was appended.
    ///
    /// # Panics
    /// Panics if there is no command.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<(Term, LogIndex), NotProposed> {
        assert!(!commands.is_empty(), "a proposal without a command");
        // During a leadership transfer raft would drop the proposal.
        if !self.leads() || self.raw.raft.lead_transferee.is_some() {
            return Err(NotProposed::NotLeader);
        }
        if self.is_overloaded() {
            return Err(NotProposed::Busy);
        }
        let first = LogIndex(self.raw.raft.raft_log.last_index()).next();
        let mut message = Message { from: self.settings.id.0, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        let entries: Vec<Entry> =
            commands.into_iter().map(|data| Entry { data, ..Entry::default() }).collect();
        message.set_entries(entries.into());
        let count = message.entries.len();
        self.call(|raw| raw.raft.step(message)).map_err(|_| NotProposed::Busy)?;
        let last = LogIndex(self.raw.raft.raft_log.last_index());
        assert_eq!(last.next(), first.plus(count), "raft appended other entries than proposed");
        Ok((Term(self.raw.raft.term), first))
    }

    /// Requests confirmation of the read `id`. The result is returned in [`Effects`].
    pub fn read(&mut self, id: ReadId) {
        self.reads.enqueue(id);
    }

    /// Discards waiting reads that are no longer `wanted`.
    pub fn retain_reads(&mut self, wanted: impl Fn(ReadId) -> bool) {
        self.reads.retain(wanted);
    }

    /// Records that the batch `number` and all earlier ones are durable.
    ///
    /// # Panics
    /// Panics if a batch is reported durable before it was handed out.
    pub fn persisted(&mut self, number: BatchNumber) {
        assert!(number <= self.last_batch, "batch {number} is durable, but {} is the last", self.last_batch);
        while let Some(written) = self.outstanding.pop_front_if(|first| first.number <= number) {
            self.durable_term = self.durable_term.max(written.term.unwrap_or_default());
            self.unwritten_bytes -= if planted(Defect::BytesLeft) { 0 } else { written.bytes };
        }
        self.call(|raw| raw.on_persist_ready(number.0));
        self.advance_applied();
    }

    /// Records that every entry up to `index` is applied.
    ///
    /// # Panics
    /// Panics if the entry was applied before or is not committed.
    pub fn applied(&mut self, index: LogIndex) {
        assert!(index >= self.applied, "entry {index} is applied after entry {}", self.applied);
        let committed = LogIndex(self.raw.raft.raft_log.committed);
        assert!(index <= committed, "entry {index} is applied, but only {committed} is committed");
        self.applied = index;
        self.advance_applied();
    }

    /// Reports applied entries to raft once they are durable, as raft requires. Committed entries always are;
    /// a snapshot from the leader is applied shortly before it is durable.
    fn advance_applied(&mut self) {
        let log = &self.raw.raft.raft_log;
        let index = self.applied.0;
        if index > log.applied && index <= log.persisted.min(log.committed) {
            self.call(|raw| raw.advance_apply_to(index));
        }
    }

    /// Reports a peer as unreachable: raft then probes it instead of streaming entries to it.
    pub fn unreachable(&mut self, peer: ReplicaId) {
        self.call(|raw| raw.report_unreachable(peer.0));
    }

    /// Reports whether a snapshot arrived at the peer.
    pub fn snapshot_sent(&mut self, peer: ReplicaId, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.call(|raw| raw.report_snapshot(peer.0, status));
    }

    /// Transfers leadership to the most up-to-date active follower, because this replica stops or its disk
    /// cannot keep up. Followers that lack committed entries or are receiving a snapshot are skipped. Such a
    /// follower could not lead yet, and until then no proposal would be accepted. Barred ones come last.
    pub fn transfer_leadership(&mut self) {
        // One transfer at a time: two followers that campaign would split the votes.
        if self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let (own, committed) = (self.settings.id.0, self.raw.raft.raft_log.committed);
        let others = self.raw.raft.prs().iter().filter(|(id, peer)| {
            let up_to_date = peer.state != ProgressState::Snapshot && peer.matched >= committed;
            **id != own && peer.recent_active && up_to_date
        });
        // The lower id wins a tie, so that the choice is a function of the state.
        let free = |id: u64| !self.barred.contains(&ReplicaId(id));
        let best = others.max_by_key(|(id, peer)| (free(**id), peer.matched, u64::MAX - **id));
        let best = best.map(|(id, _)| *id);
        // A barred leader gains nothing by another.
        let useful = |best: &u64| self.leads() && (free(*best) || !self.is_barred());
        if let Some(best) = best.filter(useful) {
            self.call(|raw| raw.transfer_leader(best));
        }
    }

    /// Returns whether this replica is the only voter of its group.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.settings.voters == [self.settings.id]
    }

    /// Returns whether enough has been applied since the last snapshot to take another.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        let (entries, bytes) = self.raw.store().since_snapshot(self.applied);
        let limits = &self.settings.limits;
        entries >= limits.snapshot_entries || (entries > 0 && bytes >= limits.snapshot_bytes)
    }

    /// Returns a snapshot with `data` at the last applied index, including its term and the voters.
    ///
    /// # Panics
    /// Panics if nothing has been applied yet.
    #[must_use]
    pub fn snapshot_here(&self, data: Bytes) -> Snapshot {
        assert!(self.applied > LogIndex(0), "a snapshot before anything was applied");
        let term = self.raw.raft.raft_log.term(self.applied.0).expect("the last applied entry is kept");
        let voters = self.raw.store().voters().to_vec();
        Snapshot { index: self.applied, term: Term(term), voters, data }
    }

    /// Records that a snapshot of this replica's own state is durable, and drops older entries from memory.
    ///
    /// # Panics
    /// Panics if the snapshot is ahead of the applied entries.
    pub fn snapshot_saved(&mut self, snapshot: Snapshot) {
        assert!(
            snapshot.index <= self.applied,
            "a snapshot of entry {}, which is not applied",
            snapshot.index
        );
        let retained = self.settings.limits.retained_entries;
        self.call(|raw| raw.mut_store().compact(snapshot, retained));
    }

    /// Returns the status of this replica. The core knows neither a full disk nor a stop.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let raft = &self.raw.raft;
        let leader = ids::replica(raft.leader_id);
        let role = match (self.leads(), leader) {
            (true, _) => Role::Leader,
            (false, Some(_)) => Role::Follower,
            (false, None) => Role::Candidate,
        };
        RaftStatus {
            id: self.settings.id,
            role,
            leader,
            term: Term(raft.term),
            commit: LogIndex(raft.raft_log.committed),
            applied: self.applied,
            last: LogIndex(raft.raft_log.last_index()),
            disk_full: false,
            stopped: None,
        }
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Returns the pending effects, if any. Callers repeat the call until it returns `None`.
    pub fn ready(&mut self) -> Option<Effects> {
        let rejected_reads = self.issue_reads();
        if !self.raw.has_ready() {
            let batch = self.take_deferred();
            let idle = rejected_reads.is_empty() && batch.is_none();
            return (!idle).then(|| Effects { rejected_reads, batch, ..Effects::default() });
        }
        let mut ready = self.call(RawNode::ready);
        let number = BatchNumber(ready.number());
        let mut effects = Effects { rejected_reads, messages: ready.take_messages(), ..Effects::default() };
        let later = self.split_messages(ready.take_persisted_messages(), &mut effects.messages);
        effects.reads = self.reads.confirm(ready.take_read_states());
        effects.committed = ready.take_committed_entries().iter().map(normal_entry).collect();
        let first = effects.committed.first().map_or(self.applied.next(), |entry| entry.index);
        assert_eq!(first, self.applied.next(), "raft committed entries with a gap");
        if !ready.snapshot().is_empty() {
            effects.restore = Some(log::snapshot_from_raft(ready.snapshot()));
        }
        let batch = self.keep(&mut ready, effects.restore.clone());
        self.call(|raw| raw.advance_append_async(ready));
        effects.batch = self.number(number, batch, later);
        Some(effects)
    }

    /// Stores raft's output in the in-memory log, where raft must find it immediately, and in a batch.
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

    /// Numbers a batch, or defers it if no message depends on it and only the commit index rose. A deferred
    /// commit index is safe: the leader sends it again, and a snapshot carries its own.
    fn number(
        &mut self,
        number: BatchNumber,
        mut batch: Batch,
        messages: Vec<Message>,
    ) -> Option<NumberedBatch> {
        let commit_only = !batch.sync && batch.entries.is_empty() && batch.snapshot.is_none();
        batch.hard_state = batch.hard_state.or(self.deferred.take());
        if commit_only && messages.is_empty() {
            self.deferred = batch.hard_state;
            if self.outstanding.is_empty() {
                self.call(|raw| raw.on_persist_ready(number.0));
            }
            return None;
        }
        let term = batch.hard_state.map(|state| state.term);
        let bytes: u64 = batch.entries.iter().map(|entry| entry.data.len() as u64).sum();
        assert!(number > self.last_batch, "batch {number} follows batch {}", self.last_batch);
        self.last_batch = number;
        self.unwritten_bytes += bytes;
        self.outstanding.push_back(Outstanding { number, term, bytes });
        Some(NumberedBatch { number, batch, messages })
    }

    /// Returns the deferred hard state as a batch on which no message depends. Its number 0 precedes all of
    /// raft's.
    fn take_deferred(&mut self) -> Option<NumberedBatch> {
        if !std::mem::take(&mut self.flush_deferred) || !self.outstanding.is_empty() {
            return None;
        }
        let hard_state = Some(self.deferred.take()?);
        let batch = Batch { hard_state, ..Batch::default() };
        Some(NumberedBatch { number: BatchNumber(0), batch, messages: Vec::new() })
    }

    /// Splits off the messages that need not wait for the disk. In general a follower reports only durable
    /// state. Responses to heartbeats are the exception: they do not refer to the log, only to the leader of
    /// a term. They are sent immediately if that term is durable, so a slow disk cannot depose a healthy
    /// leader.
    fn split_messages(&self, later: Vec<Message>, now: &mut Vec<Message>) -> Vec<Message> {
        let (heartbeats, rest): (Vec<_>, Vec<_>) = later.into_iter().partition(|message| {
            message.get_msg_type() == MessageType::MsgHeartbeatResponse && message.term <= self.durable_term.0
        });
        now.extend(heartbeats);
        rest
    }

    /// Passes waiting reads to raft under a new token, or rejects them when this replica is not the leader.
    fn issue_reads(&mut self) -> Vec<ReadId> {
        if !self.leads() {
            return self.reads.reject_all();
        }
        // Before its first commit in its own term a leader does not know the commit index, and raft silently
        // drops the read.
        if !self.raw.raft.commit_to_current_term() {
            return Vec::new();
        }
        if let Some(token) = self.reads.issue() {
            self.call(|raw| raw.read_index(token));
        }
        Vec::new()
    }
}

/// Builds raft's configuration, with none of its unsafe defaults.
fn raft_config(settings: &Settings, applied: LogIndex) -> raft::Config {
    let (timings, limits) = (&settings.timings, &settings.limits);
    let config = raft::Config {
        id: settings.id.0,
        election_tick: timings.election_ticks,
        heartbeat_tick: timings.heartbeat_ticks,
        applied: applied.0,
        max_size_per_msg: limits.message_bytes,
        max_inflight_msgs: limits.inflight_messages_max,
        check_quorum: true,
        pre_vote: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        // Followers learn of commits with the next append or heartbeat: half the messages with one client.
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

/// Returns whether replicas exchange this message type. Proposals and reads are forwarded by the application,
/// so that the leader that confirms a read also made its token.
fn is_exchanged(kind: MessageType) -> bool {
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

/// Returns whether this message makes raft scan unapplied entries, as in [`Core::tick`].
fn is_about_elections(kind: MessageType) -> bool {
    use MessageType as Kind;
    matches!(kind, Kind::MsgTimeoutNow | Kind::MsgRequestVote | Kind::MsgRequestPreVote)
}

fn normal_entry(entry: &Entry) -> LogEntry {
    assert!(
        entry.get_entry_type() == EntryType::EntryNormal,
        "entry {} changes the membership, which this version cannot do: it was written by a newer one",
        entry.index
    );
    log::from_raft(entry)
}

#[cfg(test)]
mod tests;

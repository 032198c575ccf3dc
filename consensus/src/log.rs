//! In-memory part of the log, as the storage of the raft library. It is not durable: the shell also hands
//! every change to a [`crate::store::LogStore`]. Raft learns of a change only once it is on disk.

use crate::ids::{self, LogIndex, Term};
use crate::invariant::require;
use crate::snapshot::Snapshot;
use crate::store::{HardState, LogEntry, Recovered};
use protocol::ReplicaId;
use raft::eraftpb::{self, ConfState, Entry};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Entries after the compacted part, and the newest snapshot.
pub(crate) struct Log {
    hard_state: HardState,
    voters: Vec<ReplicaId>,
    snapshot: Option<Snapshot>,
    /// Index and term of the entry before the first one kept.
    before: (LogIndex, Term),
    entries: VecDeque<Entry>,
    /// Bytes of entry data written since the newest snapshot.
    bytes_since_snapshot: u64,
}

impl Log {
    pub(crate) fn new(recovered: Recovered, voters: Vec<ReplicaId>) -> Self {
        let before =
            recovered.snapshot.as_ref().map_or_else(Default::default, |found| (found.index, found.term));
        let bytes_since_snapshot = recovered.entries.iter().map(|entry| entry.data.len() as u64).sum();
        let entries: VecDeque<Entry> = recovered.entries.into_iter().map(to_raft).collect();
        let snapshot = recovered.snapshot;
        Self { hard_state: recovered.hard_state, voters, snapshot, before, entries, bytes_since_snapshot }
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        let (before, after) = (self.hard_state.term, hard_state.term);
        assert!(before <= after, "the term of the hard state falls from {before} to {after}");
        self.hard_state = hard_state;
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|entry| LogIndex(entry.index)) else { return };
        assert!(first > self.before.0, "raft overwrites compacted entry {first}");
        assert!(first <= self.last().next(), "raft leaves a gap before entry {first}");
        self.entries.truncate((first.since(self.before.0) - 1) as usize);
        self.bytes_since_snapshot += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
        let last = entries.last().map_or(first, |entry| LogIndex(entry.index));
        assert_eq!(self.last(), last, "raft appends entries that are not contiguous");
    }

    /// Replaces the whole log by a snapshot from the leader.
    pub(crate) fn install(&mut self, snapshot: Snapshot) {
        assert!(snapshot.index >= self.before.0, "raft installs an older snapshot");
        self.entries.clear();
        self.before = (snapshot.index, snapshot.term);
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index);
        self.bytes_since_snapshot = 0;
        self.snapshot = Some(snapshot);
    }

    /// Stores a snapshot of this replica's own state, and keeps only `retained` entries before its end.
    pub(crate) fn compact(&mut self, snapshot: Snapshot, retained: u64) {
        if snapshot.index <= self.snapshot_index() {
            return;
        }
        let through = snapshot.index.minus(retained);
        while self.before.0 < through {
            let Some(entry) = self.entries.pop_front() else { break };
            self.before = (LogIndex(entry.index), Term(entry.term));
        }
        assert!(
            snapshot.index <= self.last(),
            "a snapshot of entry {}, behind the log's end",
            snapshot.index
        );
        self.bytes_since_snapshot = self.bytes_behind(snapshot.index);
        self.snapshot = Some(snapshot);
    }

    /// Returns the entries up to `applied`, and the bytes, since the newest snapshot.
    pub(crate) fn since_snapshot(&self, applied: LogIndex) -> (u64, u64) {
        (applied.since(self.snapshot_index()), self.bytes_since_snapshot)
    }

    pub(crate) fn voters(&self) -> &[ReplicaId] {
        &self.voters
    }

    /// Returns the last index in the newest snapshot, or 0 if there is none.
    pub(crate) fn snapshot_index(&self) -> LogIndex {
        self.snapshot.as_ref().map_or(LogIndex(0), |found| found.index)
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Returns the term of the last entry, or of the snapshot if no entry follows it.
    pub(crate) fn last_term(&self) -> Term {
        self.entries.back().map_or(self.before.1, |entry| Term(entry.term))
    }

    /// Checks that the entries are contiguous, that their terms do not fall, and that snapshot and hard state
    /// are within the log.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let (mut index, mut term) = self.before;
        for entry in &self.entries {
            let (next, found) = (index.next(), Term(entry.term));
            require(LogIndex(entry.index) == next, || format!("entry {} instead of {next}", entry.index))?;
            require(found >= term, || format!("entry {next} of term {found} follows one of term {term}"))?;
            (index, term) = (next, found);
        }
        let (begin, snapshot, commit) = (self.before.0, self.snapshot_index(), self.hard_state.commit);
        require(begin <= snapshot, || {
            format!("entry {begin} was dropped, but the snapshot ends at {snapshot}")
        })?;
        require(snapshot <= index, || {
            format!("the snapshot ends at {snapshot}, behind the log's end {index}")
        })?;
        require(commit <= index, || format!("entry {commit} is committed, but the log ends at {index}"))?;
        let behind = self.bytes_behind(snapshot);
        let counted = self.bytes_since_snapshot;
        require(counted >= behind, || format!("{behind} bytes since the snapshot, counted as {counted}"))
    }

    /// Returns the bytes of the entries after `index`.
    fn bytes_behind(&self, index: LogIndex) -> u64 {
        let behind = self.entries.iter().rev().take_while(|entry| entry.index > index.0);
        behind.map(|entry| entry.data.len() as u64).sum()
    }

    fn last(&self) -> LogIndex {
        self.before.0.plus(self.entries.len())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState { voters: raft_ids(&self.voters), ..ConfState::default() };
        Ok(RaftState { hard_state: hard_to_raft(self.hard_state), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        debug_assert!(low <= high, "raft reads entries {low} to {high}");
        if low <= self.before.0.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last().next().0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let budget = max_size.into().unwrap_or(u64::MAX);
        let mut taken: u64 = 0;
        let (from, count) = ((low - self.before.0.0 - 1) as usize, (high - low) as usize);
        let wanted = self.entries.iter().skip(from).take(count).enumerate();
        // At least one entry, however large: otherwise an entry above the budget would never be sent.
        let fitting = wanted.take_while(|(ordinal, entry)| {
            taken += entry_bytes(entry);
            *ordinal == 0 || taken <= budget
        });
        Ok(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let (before, term) = self.before;
        if index == before.0 {
            return Ok(term.0);
        }
        if index < before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let found = self.entries.get((index - before.0 - 1) as usize);
        found.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0.next().0)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        match &self.snapshot {
            Some(found) if found.index.0 >= request_index => Ok(snapshot_to_raft(found)),
            _ => Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable)),
        }
    }
}

/// Returns the approximate size of an entry in a message: its data and a few small fields.
fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + 24
}

pub(crate) fn to_raft(entry: LogEntry) -> Entry {
    Entry { index: entry.index.0, term: entry.term.0, data: entry.data, ..Entry::default() }
}

pub(crate) fn from_raft(entry: &Entry) -> LogEntry {
    LogEntry { index: LogIndex(entry.index), term: Term(entry.term), data: entry.data.clone() }
}

fn hard_to_raft(state: HardState) -> eraftpb::HardState {
    let HardState { term, vote, commit } = state;
    let vote = ids::raft_id(vote);
    eraftpb::HardState { term: term.0, vote, commit: commit.0, ..eraftpb::HardState::default() }
}

pub(crate) fn hard_from_raft(state: &eraftpb::HardState) -> HardState {
    HardState { term: Term(state.term), vote: ids::replica(state.vote), commit: LogIndex(state.commit) }
}

fn snapshot_to_raft(snapshot: &Snapshot) -> eraftpb::Snapshot {
    let mut built = eraftpb::Snapshot { data: snapshot.data.clone(), ..eraftpb::Snapshot::default() };
    let metadata = built.mut_metadata();
    metadata.index = snapshot.index.0;
    metadata.term = snapshot.term.0;
    metadata.mut_conf_state().voters = raft_ids(&snapshot.voters);
    built
}

pub(crate) fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: LogIndex(metadata.index),
        term: Term(metadata.term),
        voters: metadata.get_conf_state().voters.iter().copied().map(ReplicaId).collect(),
        data: snapshot.data.clone(),
    }
}

fn raft_ids(replicas: &[ReplicaId]) -> Vec<u64> {
    replicas.iter().map(|id| id.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(index: u64, term: u64) -> Entry {
        to_raft(LogEntry { index: LogIndex(index), term: Term(term), data: Bytes::from(vec![0; 100]) })
    }

    fn log_of(count: u64) -> Log {
        let mut log = Log::new(Recovered::default(), [1, 2, 3].map(ReplicaId).to_vec());
        log.append(&(1..=count).map(|index| entry(index, 1)).collect::<Vec<_>>());
        log
    }

    fn snapshot(index: u64) -> Snapshot {
        Snapshot {
            index: LogIndex(index),
            term: Term(1),
            voters: [1, 2, 3].map(ReplicaId).to_vec(),
            data: Bytes::new(),
        }
    }

    fn indices(log: &Log, low: u64, high: u64, budget: u64) -> Vec<u64> {
        let found = log.entries(low, high, Some(budget), GetEntriesContext::empty(false));
        found.expect("within the log").iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_byte_budget_bounds_a_read_but_always_admits_one_entry() {
        let log = log_of(5);
        assert_eq!(indices(&log, 1, 6, u64::MAX), [1, 2, 3, 4, 5]);
        assert_eq!(indices(&log, 2, 6, 250), [2, 3]);
        assert_eq!(indices(&log, 2, 6, 0), [2]);
    }

    #[test]
    fn compaction_retains_entries_for_lagging_followers() {
        let mut log = log_of(10);
        log.compact(snapshot(8), 3);
        assert_eq!((log.first_index(), log.last_index()), (Ok(6), Ok(10)));
        assert_eq!((log.term(5), log.term(4)), (Ok(1), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(log.since_snapshot(LogIndex(10)), (2, 200));
        log.compact(snapshot(7), 0);
        assert_eq!(log.snapshot_index(), LogIndex(8), "an older snapshot changes nothing");
    }

    #[test]
    fn each_planted_violation_is_found() {
        type Plant = fn(&mut Log);
        let planted: [(Plant, &str); 7] = [
            (|_| (), "sound"),
            (|log| drop(log.entries.remove(2)), "entry 9 instead of 8"),
            (|log| log.entries[1].term = 0, "entry 7 of term 0 follows one of term 1"),
            (|log| log.snapshot = Some(snapshot(4)), "entry 5 was dropped, but the snapshot ends at 4"),
            (|log| log.snapshot = Some(snapshot(11)), "the snapshot ends at 11, behind the log's end 10"),
            (|log| log.hard_state.commit = LogIndex(11), "entry 11 is committed, but the log ends at 10"),
            (|log| log.bytes_since_snapshot = 199, "200 bytes since the snapshot, counted as 199"),
        ];
        for (plant, expected) in planted {
            let mut log = log_of(10);
            log.compact(snapshot(8), 3);
            plant(&mut log);
            assert_eq!(log.check_invariants().err().unwrap_or("sound".to_owned()), expected);
        }
    }

    #[test]
    fn an_overwritten_suffix_is_truncated() {
        let mut log = log_of(5);
        log.append(&[entry(3, 2)]);
        assert_eq!((log.last_index(), log.term(3)), (Ok(3), Ok(2)));
    }

    #[test]
    fn an_installed_snapshot_replaces_everything() {
        let mut log = log_of(5);
        log.install(snapshot(9));
        assert_eq!((log.first_index(), log.last_index(), log.term(9)), (Ok(10), Ok(9), Ok(1)));
        assert!(log.snapshot(9, 2).is_ok());
        assert!(log.snapshot(10, 2).is_err());
    }
}

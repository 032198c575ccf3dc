//! In-memory part of the log, as the storage of the raft library. It is not durable: the shell also hands
//! every change to a [`crate::store::LogStore`]. Raft learns of a change only once it is on disk.

use crate::snapshot::Snapshot;
use crate::store::{HardState, LogEntry, Recovered};
use raft::eraftpb::{self, ConfState, Entry};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::collections::VecDeque;

/// Entries after the compacted part, and the newest snapshot.
pub(crate) struct Log {
    hard_state: HardState,
    voters: Vec<u64>,
    snapshot: Option<Snapshot>,
    /// Index and term of the entry before the first one kept.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    /// Bytes of entry data written since the newest snapshot.
    bytes_since_snapshot: u64,
}

impl Log {
    pub(crate) fn new(recovered: Recovered, voters: Vec<u64>) -> Self {
        let before = recovered.snapshot.as_ref().map_or((0, 0), |found| (found.index, found.term));
        let bytes_since_snapshot = recovered.entries.iter().map(|entry| entry.data.len() as u64).sum();
        let entries: VecDeque<Entry> = recovered.entries.into_iter().map(to_raft).collect();
        let snapshot = recovered.snapshot;
        Self { hard_state: recovered.hard_state, voters, snapshot, before, entries, bytes_since_snapshot }
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.before.0, "raft overwrites compacted entry {}", first.index);
        assert!(first.index <= self.last() + 1, "raft leaves a gap before entry {}", first.index);
        self.entries.truncate((first.index - self.before.0 - 1) as usize);
        self.bytes_since_snapshot += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
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
        let newest = self.snapshot.as_ref().map_or(0, |found| found.index);
        if snapshot.index <= newest {
            return;
        }
        let through = snapshot.index.saturating_sub(retained);
        while self.before.0 < through {
            let Some(entry) = self.entries.pop_front() else { break };
            self.before = (entry.index, entry.term);
        }
        let behind = self.entries.iter().rev().take_while(|entry| entry.index > snapshot.index);
        self.bytes_since_snapshot = behind.map(|entry| entry.data.len() as u64).sum();
        self.snapshot = Some(snapshot);
    }

    /// Returns the entries up to `applied`, and the bytes, since the newest snapshot.
    pub(crate) fn since_snapshot(&self, applied: u64) -> (u64, u64) {
        let newest = self.snapshot.as_ref().map_or(0, |found| found.index);
        (applied.saturating_sub(newest), self.bytes_since_snapshot)
    }

    pub(crate) fn voters(&self) -> &[u64] {
        &self.voters
    }

    pub(crate) fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |found| found.index)
    }

    fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let conf_state = ConfState { voters: self.voters.clone(), ..ConfState::default() };
        Ok(RaftState { hard_state: hard_to_raft(self.hard_state), conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let budget = max_size.into().unwrap_or(u64::MAX);
        let mut taken: u64 = 0;
        let (from, count) = ((low - self.before.0 - 1) as usize, (high - low) as usize);
        let wanted = self.entries.iter().skip(from).take(count).enumerate();
        // At least one entry, however large: otherwise an entry above the budget would never be sent.
        let fitting = wanted.take_while(|(place, entry)| {
            taken += entry_bytes(entry);
            *place == 0 || taken <= budget
        });
        Ok(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let found = self.entries.get((index - self.before.0 - 1) as usize);
        found.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<eraftpb::Snapshot> {
        match &self.snapshot {
            Some(found) if found.index >= request_index => Ok(snapshot_to_raft(found)),
            _ => Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable)),
        }
    }
}

/// Returns the approximate size of an entry in a message: its data and a few small fields.
fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + 24
}

pub(crate) fn to_raft(entry: LogEntry) -> Entry {
    Entry { index: entry.index, term: entry.term, data: entry.data, ..Entry::default() }
}

pub(crate) fn from_raft(entry: &Entry) -> LogEntry {
    LogEntry { index: entry.index, term: entry.term, data: entry.data.clone() }
}

fn hard_to_raft(state: HardState) -> eraftpb::HardState {
    let HardState { term, vote, commit } = state;
    eraftpb::HardState { term, vote, commit, ..eraftpb::HardState::default() }
}

pub(crate) fn hard_from_raft(state: &eraftpb::HardState) -> HardState {
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}

fn snapshot_to_raft(snapshot: &Snapshot) -> eraftpb::Snapshot {
    let mut built = eraftpb::Snapshot { data: snapshot.data.clone(), ..eraftpb::Snapshot::default() };
    let metadata = built.mut_metadata();
    metadata.index = snapshot.index;
    metadata.term = snapshot.term;
    metadata.mut_conf_state().voters.clone_from(&snapshot.voters);
    built
}

pub(crate) fn snapshot_from_raft(snapshot: &eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: metadata.index,
        term: metadata.term,
        voters: metadata.get_conf_state().voters.clone(),
        data: snapshot.data.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn entry(index: u64, term: u64) -> Entry {
        to_raft(LogEntry { index, term, data: Bytes::from(vec![0; 100]) })
    }

    fn log_of(count: u64) -> Log {
        let mut log = Log::new(Recovered::default(), vec![1, 2, 3]);
        log.append(&(1..=count).map(|index| entry(index, 1)).collect::<Vec<_>>());
        log
    }

    fn snapshot(index: u64) -> Snapshot {
        Snapshot { index, term: 1, voters: vec![1, 2, 3], data: Bytes::new() }
    }

    fn indices(log: &Log, low: u64, high: u64, budget: u64) -> Vec<u64> {
        let found = log.entries(low, high, Some(budget), GetEntriesContext::empty(false));
        found.expect("within the log").iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_budget_bounds_what_is_read_but_one_entry_always_comes() {
        let log = log_of(5);
        assert_eq!(indices(&log, 1, 6, u64::MAX), [1, 2, 3, 4, 5]);
        assert_eq!(indices(&log, 2, 6, 250), [2, 3]);
        assert_eq!(indices(&log, 2, 6, 0), [2]);
    }

    #[test]
    fn compaction_keeps_what_followers_may_still_need() {
        let mut log = log_of(10);
        log.compact(snapshot(8), 3);
        assert_eq!((log.first_index(), log.last_index()), (Ok(6), Ok(10)));
        assert_eq!((log.term(5), log.term(4)), (Ok(1), Err(Error::Store(StorageError::Compacted))));
        assert_eq!(log.since_snapshot(10), (2, 200));
        log.compact(snapshot(7), 0);
        assert_eq!(log.snapshot_index(), 8, "an older snapshot changes nothing");
    }

    #[test]
    fn an_overwritten_suffix_is_gone() {
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

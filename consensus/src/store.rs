//! Storage interface of the core: durable writes, and the state that is recovered at a start.
//!
//! Two implementations: [`crate::wal::WriteAheadLog`], and [`SimulatedDisk`], the same log on in-memory files
//! that tear, fill up and fail on command.

use crate::error::LogError;
use crate::ids::{Incarnation, LogIndex, Term};
use crate::invariant::require;
use crate::planted::{Defect, planted};
pub use crate::simulated_disk::SimulatedDisk;
pub use crate::snapshot::Snapshot;
use bytes::Bytes;
use protocol::ReplicaId;

/// Raft state, beside the entries, that must survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Candidate that got this replica's vote in that term, if any did.
    pub vote: Option<ReplicaId>,
    /// The highest index known to be committed.
    pub commit: LogIndex,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    pub index: LogIndex,
    /// Term of the leader that created it.
    pub term: Term,
    /// Command, or empty for the entry with which a leader begins its term.
    pub data: Bytes,
}

/// Changes that must reach the disk together, in this order: snapshot, hard state, entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// A snapshot from the leader, which replaces the whole log.
    pub snapshot: Option<Snapshot>,
    /// New hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Entries to append; existing entries from the first one's index on are truncated.
    pub entries: Vec<LogEntry>,
    /// Whether the batch must be durable before anything depends on it. A batch that only raises the commit
    /// index need not be: the leader sends that index again.
    pub sync: bool,
}

/// State recovered when a store was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The newest snapshot.
    pub snapshot: Option<Snapshot>,
    /// The last hard state.
    pub hard_state: HardState,
    /// Entries after the snapshot, without a gap.
    pub entries: Vec<LogEntry>,
    /// Number of times that this log has been opened, this time included.
    pub incarnation: Incarnation,
}

/// Durable storage of one replica's log. All methods block. All errors but a full disk are fatal for the
/// replica.
pub trait LogStore: Send + Sync + 'static {
    /// Writes batches in order, then makes them durable with one sync if any of them requires it.
    ///
    /// # Errors
    /// After [`LogError::DiskFull`] nothing of the batches was written, and the same call may be retried.
    /// After any other error nothing more may be written: the state of the disk is unknown until it is read
    /// again.
    fn write(&self, batches: &[Batch]) -> Result<(), LogError>;

    /// Makes a snapshot of this replica's own state durable. May run concurrently with [`LogStore::write`].
    ///
    /// # Errors
    /// After [`LogError::DiskFull`] the previous snapshot is intact. Any other error is fatal.
    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), LogError>;

    /// Frees log space whose entries are all at or below `through`, which a durable snapshot contains.
    ///
    /// # Errors
    /// As for [`LogStore::write`].
    fn truncate(&self, through: LogIndex) -> Result<(), LogError>;

    /// Returns whether the next segment of the log could not be prepared because the disk is full.
    fn nearly_full(&self) -> bool;
}

impl Recovered {
    /// Replays one batch on top of the state recovered so far. Returns the reason if it does not fit.
    ///
    /// The log may begin at any index, because its front is truncated behind a snapshot. A new leader may
    /// have replaced entries from an index in the truncated part. The batch then replaces every entry
    /// recovered so far. It never replaces a committed entry, and never leaves a gap.
    pub(crate) fn replay(&mut self, batch: Batch) -> Result<(), String> {
        let mut committed = self.hard_state.commit;
        if let Some(snapshot) = batch.snapshot {
            self.entries.clear();
            self.snapshot = Some(snapshot);
        }
        if let Some(snapshot) = &self.snapshot {
            committed = committed.max(snapshot.index);
        }
        // The batch's own commit index may cover its own entries, so it takes effect from the next batch on.
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
        let Some(first) = batch.entries.first().map(|entry| entry.index) else { return Ok(()) };
        check_run(&batch.entries)?;
        if first <= committed {
            return Err(format!("entry {first} follows, but entry {committed} was committed before"));
        }
        let known = self.entries.first().map(|entry| entry.index);
        let begin = known.or(self.snapshot.as_ref().map(|snapshot| snapshot.index.next()));
        if let Some(begin) = begin {
            let next = begin.plus(self.entries.len());
            if first > next || (first < begin && planted(Defect::FrontRefused)) {
                return Err(format!("entry {first} follows entries {begin} to {}", next.minus(1)));
            }
            self.entries.truncate(first.since(begin) as usize);
        }
        self.entries.extend(batch.entries);
        Ok(())
    }

    /// Checks that the entries continue the snapshot without a gap, that no term falls, and that the log
    /// reaches its commit index.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let snapshot = self.snapshot.as_ref();
        let (begin, mut term) = snapshot.map_or_else(Default::default, |found| (found.index, found.term));
        let mut last: LogIndex = begin;
        for entry in &self.entries {
            let (next, found) = (last.next(), entry.term);
            require(entry.index == next, || format!("entry {} instead of {next}", entry.index))?;
            require(found >= term, || format!("entry {next} of term {found} follows one of term {term}"))?;
            (last, term) = (next, found);
        }
        let commit = self.hard_state.commit;
        require(begin <= commit, || format!("the snapshot ends at {begin}, but only {commit} is committed"))?;
        require(commit <= last, || format!("entry {commit} is committed, but the log ends at {last}"))
    }

    /// Reconciles log and snapshot after the last batch. Entries within the snapshot are dropped, and so are
    /// entries that do not continue it. The latter are left by a crash between a snapshot from the leader and
    /// its mark in the log. The snapshot is then called detached: its mark must be written before anything
    /// that follows it. Otherwise the next start would find a log that does not continue.
    pub(crate) fn settle(&mut self) -> Result<Fit, String> {
        let (index, term) =
            self.snapshot.as_ref().map_or_else(Default::default, |found| (found.index, found.term));
        if index == LogIndex(u64::MAX) {
            return Err(format!("no log ever reaches entry {index}"));
        }
        let begin = self.entries.first().map_or(index.next(), |entry| entry.index);
        if begin > index.next() {
            return Err(format!("entries {} to {} are missing", index.next(), begin.minus(1)));
        }
        let within = index.next().since(begin) as usize;
        let continues = within == 0 || self.entries.get(within - 1).is_some_and(|last| last.term == term);
        let fit = if continues {
            self.entries.drain(..within);
            Fit::Continued
        } else {
            self.entries.clear();
            Fit::Detached
        };
        self.hard_state.commit = self.hard_state.commit.max(index);
        self.hard_state.term = self.hard_state.term.max(term);
        let last = index.plus(self.entries.len());
        let next = self.entries.first().map_or(index.next(), |entry| entry.index);
        debug_assert_eq!(next, index.next(), "the entries do not continue the snapshot");
        if self.hard_state.commit > last {
            return Err(format!("entry {} is committed, but the log ends at {last}", self.hard_state.commit));
        }
        Ok(fit)
    }
}

/// Relation of a log to the snapshot beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The entries continue the snapshot, or there are none.
    Continued,
    /// The snapshot replaced the entries, and no mark in the log records that.
    Detached,
}

/// Checks that the entries of one batch are contiguous, and below the largest possible index.
fn check_run(entries: &[LogEntry]) -> Result<(), String> {
    if let Some(last) = entries.last().filter(|last| last.index == LogIndex(u64::MAX)) {
        return Err(format!("no log ever reaches entry {}", last.index));
    }
    let gap = entries.windows(2).find(|pair| pair[0].index.next() != pair[1].index);
    gap.map_or(Ok(()), |pair| Err(format!("entry {} follows entry {}", pair[1].index, pair[0].index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> LogEntry {
        LogEntry { index: LogIndex(index), term: Term(term), data: Bytes::from_static(b"x") }
    }

    fn entries(list: &[(u64, u64)]) -> Batch {
        let entries = list.iter().map(|(index, term)| entry(*index, *term)).collect();
        Batch { entries, sync: true, ..Batch::default() }
    }

    fn snapshot(index: u64, term: u64) -> Snapshot {
        Snapshot { index: LogIndex(index), term: Term(term), voters: vec![ReplicaId(1)], data: Bytes::new() }
    }

    /// Replays the batches, reconciles them with this snapshot file, and compares the outcome as text.
    fn check(snapshot: Option<Snapshot>, commit: u64, batches: Vec<Batch>, expected: &str) {
        let mut found = Recovered::default();
        let replayed = batches.into_iter().try_for_each(|batch| found.replay(batch));
        found.hard_state.commit = found.hard_state.commit.max(LogIndex(commit));
        found.snapshot = snapshot.or(found.snapshot);
        let shown = match replayed.and_then(|()| found.settle()) {
            Ok(fit) => {
                assert_eq!(found.check_invariants(), Ok(()));
                let list = found.entries.iter().map(|entry| format!("{}@{}", entry.index, entry.term));
                let (list, commit) = (list.collect::<Vec<_>>().join(" "), found.hard_state.commit);
                let detached = if fit == Fit::Detached { ", detached" } else { "" };
                format!("[{list}] commit {commit}{detached}")
            }
            Err(reason) => reason,
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_log_and_its_snapshot_are_reconciled() {
        check(None, 0, vec![], "[] commit 0");
        check(None, 2, vec![entries(&[(1, 1), (2, 1)]), entries(&[(3, 1)])], "[1@1 2@1 3@1] commit 2");
        check(None, 0, vec![entries(&[(1, 1), (2, 1)]), entries(&[(2, 2)])], "[1@1 2@2] commit 0");
        check(None, 0, vec![entries(&[(1, 1)]), entries(&[(3, 1)])], "entry 3 follows entries 1 to 1");
        check(None, 0, vec![entries(&[(2, 1)])], "entries 1 to 1 are missing");
        check(None, 0, vec![entries(&[(1, 1), (3, 1)])], "entry 3 follows entry 1");
        let end = u64::MAX;
        check(None, 0, vec![entries(&[(end, 1)])], &format!("no log ever reaches entry {end}"));
        check(Some(snapshot(end, 1)), 0, vec![], &format!("no log ever reaches entry {end}"));
        check(None, 2, vec![entries(&[(1, 1)])], "entry 2 is committed, but the log ends at 1");
        let four: Vec<_> = (1..=4).map(|index| entries(&[(index, 1)])).collect();
        check(Some(snapshot(2, 1)), 3, four.clone(), "[3@1 4@1] commit 3");
        check(Some(snapshot(4, 1)), 3, four.clone(), "[] commit 4");
        check(Some(snapshot(9, 3)), 3, four.clone(), "[] commit 9, detached");
        check(Some(snapshot(3, 2)), 3, four.clone(), "[] commit 3, detached");
        check(Some(snapshot(2, 1)), 3, four[2..].to_vec(), "[3@1 4@1] commit 3");
        check(Some(snapshot(1, 1)), 3, four[2..].to_vec(), "entries 2 to 2 are missing");
    }

    #[test]
    fn each_planted_violation_is_found() {
        type Plant = fn(&mut Recovered);
        let planted: [(Plant, &str); 6] = [
            (|_| (), "sound"),
            (|found| drop(found.entries.remove(0)), "entry 4 instead of 3"),
            (|found| found.entries[1].term = Term(1), "entry 4 of term 1 follows one of term 2"),
            (|found| found.entries[0].term = Term(0), "entry 3 of term 0 follows one of term 1"),
            (
                |found| found.hard_state.commit = LogIndex(1),
                "the snapshot ends at 2, but only 1 is committed",
            ),
            (|found| found.hard_state.commit = LogIndex(5), "entry 5 is committed, but the log ends at 4"),
        ];
        for (plant, expected) in planted {
            let hard_state = HardState { term: Term(2), vote: None, commit: LogIndex(3) };
            let entries = vec![entry(3, 2), entry(4, 2)];
            let snapshot = Some(snapshot(2, 1));
            let mut found = Recovered { snapshot, hard_state, entries, incarnation: Incarnation(1) };
            plant(&mut found);
            assert_eq!(found.check_invariants().err().unwrap_or("sound".to_owned()), expected);
        }
    }

    #[test]
    fn a_snapshot_from_the_leader_is_continued_where_it_ends() {
        let installed = |batch| Batch { snapshot: Some(snapshot(9, 4)), ..batch };
        let before = entries(&[(1, 1)]);
        check(None, 1, vec![before.clone(), installed(entries(&[(10, 4)]))], "[10@4] commit 9");
        let then = |batch| vec![before.clone(), installed(Batch::default()), batch];
        check(None, 1, then(entries(&[(10, 4)])), "[10@4] commit 9");
        check(None, 1, then(entries(&[(11, 4)])), "entry 11 follows entries 10 to 9");
        check(None, 1, then(entries(&[(9, 4)])), "entry 9 follows, but entry 9 was committed before");
    }

    #[test]
    fn a_suffix_is_replaced_even_if_it_begins_in_the_truncated_part() {
        let run = |range: std::ops::RangeInclusive<u64>, term| {
            entries(&range.map(|index| (index, term)).collect::<Vec<_>>())
        };
        let commit = |commit| Batch {
            hard_state: Some(HardState { term: Term(1), vote: None, commit: LogIndex(commit) }),
            sync: true,
            ..Batch::default()
        };
        // The front of the log ended at entry 59 or before and was truncated behind a snapshot of entry 58.
        let replaced = vec![commit(54), run(60..=80, 1), run(55..=57, 2), run(58..=60, 2)];
        check(Some(snapshot(58, 2)), 58, replaced.clone(), "[59@2 60@2] commit 58");
        check(Some(snapshot(53, 1)), 58, replaced, "entries 54 to 54 are missing");
        let committed = vec![commit(55), run(60..=80, 1), run(55..=57, 2)];
        let refused = "entry 55 follows, but entry 55 was committed before";
        check(Some(snapshot(58, 2)), 58, committed, refused);
        let gap = vec![run(60..=80, 1), run(55..=57, 2), run(59..=60, 2)];
        check(Some(snapshot(58, 2)), 58, gap, "entry 59 follows entries 55 to 57");
    }
}

//! Output of ranks on its way to control: queued within bounds until an answer acknowledges it.

use protocol::JobId;
use protocol::job_report::{RANK_LINES_MAX, RankLine};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A rank of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) struct RankKey {
    pub(super) id: JobId,
    pub(super) attempt: u32,
    pub(super) rank: u32,
}

impl RankKey {
    fn of(line: &RankLine) -> Self {
        Self { id: line.id, attempt: line.attempt, rank: line.rank }
    }
}

/// Queue of lines of all ranks on this node, oldest first.
#[derive(Debug, Default)]
pub(in crate::agent) struct RankLines {
    queue: Mutex<RankQueue>,
}

#[derive(Debug, Default)]
struct RankQueue {
    lines: VecDeque<RankLine>,
    /// Number of dropped lines that no line of the rank names yet.
    dropped: BTreeMap<RankKey, u64>,
}

impl RankLines {
    /// Appends lines of a rank, numbered by `sequence`. When the queue is full, the oldest line of the rank
    /// with the most is dropped.
    pub(super) fn push(&self, key: RankKey, sequence: &AtomicU64, lines: Vec<String>) {
        let mut queue = self.lock();
        for text in lines {
            let sequence = sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let dropped = queue.dropped.remove(&key).unwrap_or(0);
            let RankKey { id, attempt, rank } = key;
            queue.lines.push_back(RankLine { id, attempt, rank, sequence, text, dropped });
            queue.bound();
        }
    }

    /// Takes all lines.
    pub(in crate::agent) fn take(&self) -> Vec<RankLine> {
        self.lock().lines.drain(..).collect()
    }

    /// Puts back lines that may not have arrived, before those queued since.
    pub(in crate::agent) fn put_back(&self, lines: Vec<RankLine>) {
        let mut queue = self.lock();
        for line in lines.into_iter().rev() {
            queue.lines.push_front(line);
        }
        queue.bound();
    }

    /// Forgets the counts of an attempt whose slot has ended on this node.
    pub(super) fn forget(&self, id: JobId, attempt: u32) {
        self.lock().dropped.retain(|key, _| (key.id, key.attempt) != (id, attempt));
    }

    fn lock(&self) -> MutexGuard<'_, RankQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RankQueue {
    /// Drops lines until the rest fits into one request. A rank that prints without end displaces its own
    /// lines before those of others.
    fn bound(&mut self) {
        while self.lines.len() > RANK_LINES_MAX {
            let mut counts: BTreeMap<RankKey, usize> = BTreeMap::new();
            for line in &self.lines {
                *counts.entry(RankKey::of(line)).or_default() += 1;
            }
            let Some(loudest) = counts.iter().max_by_key(|(_, count)| **count).map(|(key, _)| *key) else {
                return;
            };
            let oldest = self.lines.iter().position(|line| RankKey::of(line) == loudest);
            let Some(line) = oldest.and_then(|at| self.lines.remove(at)) else { return };
            let gone = line.dropped.saturating_add(1);
            match self.lines.iter_mut().find(|line| RankKey::of(line) == loudest) {
                Some(next) => next.dropped = next.dropped.saturating_add(gone),
                None => {
                    let dropped = self.dropped.entry(loudest).or_default();
                    *dropped = dropped.saturating_add(gone);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    fn key(rank: u32) -> RankKey {
        RankKey { id: JobId(Digest::of(b"job")), attempt: 1, rank }
    }

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[test]
    fn a_full_queue_drops_the_lines_of_the_loudest_rank_and_counts_them() {
        let (queue, quiet, loud) = (RankLines::default(), AtomicU64::new(0), AtomicU64::new(0));
        queue.push(key(0), &quiet, texts(3));
        queue.push(key(1), &loud, texts(RANK_LINES_MAX + 7));
        let lines = queue.take();
        assert_eq!(lines.len(), RANK_LINES_MAX);
        let of = |rank: u32| lines.iter().filter(|line| line.rank == rank).collect::<Vec<_>>();
        assert_eq!(
            of(0).iter().map(|line| (line.sequence, line.dropped)).collect::<Vec<_>>(),
            [(1, 0), (2, 0), (3, 0)]
        );
        assert_eq!((of(1)[0].sequence, of(1)[0].dropped), (11, 10), "3 + 7 lines had no room");
        assert!(of(1)[1..].iter().all(|line| line.dropped == 0));
        let kept: u64 = lines.iter().map(|line| line.dropped + 1).sum();
        assert_eq!(kept, RANK_LINES_MAX as u64 + 10, "each line was sent or counted");
    }

    #[test]
    fn lines_that_did_not_arrive_are_sent_again_under_their_numbers() {
        let (queue, sequence) = (RankLines::default(), AtomicU64::new(0));
        queue.push(key(0), &sequence, texts(2));
        let sent = queue.take();
        queue.push(key(0), &sequence, texts(1));
        queue.put_back(sent.clone());
        let again = queue.take();
        assert_eq!(again[..2], sent[..]);
        assert_eq!(again.iter().map(|line| line.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_count_without_a_line_waits_for_the_next_one() {
        let queue = RankLines::default();
        let ranks = u32::try_from(RANK_LINES_MAX).expect("small") + 1;
        let sequences: Vec<AtomicU64> = (0..ranks).map(|_| AtomicU64::new(0)).collect();
        for (rank, sequence) in (0..ranks).zip(&sequences) {
            queue.push(key(rank), sequence, texts(1));
        }
        let sent = queue.take();
        let missing = (0..ranks).find(|rank| sent.iter().all(|line| line.rank != *rank)).expect("one");
        queue.push(key(missing), &sequences[missing as usize], texts(1));
        assert_eq!(queue.take()[0].dropped, 1);
        queue.forget(key(0).id, 1);
        assert!(queue.lock().dropped.is_empty());
    }
}

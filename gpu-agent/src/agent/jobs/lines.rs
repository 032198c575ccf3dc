//! Output of ranks on its way to control: kept within bounds, also after an answer has acknowledged it and
//! after the ranks have ended, because a leader keeps lines in its memory alone. The leader of another term
//! gets them again.

use protocol::JobId;
use protocol::job_report::{RANK_LINES_KEPT_MAX, RANK_LINES_MAX, RankLine};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bound of the texts of all lines that are kept, in bytes.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Interval between two requests that carry lines, unless there are enough to fill one.
const LINES_GAP: Duration = Duration::from_millis(200);
/// Most ranks whose slot has ended and whose lines are kept; the first to end is forgotten first.
const ENDED_RANKS_MAX: usize = 256;

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

/// Lines of all ranks on this node.
#[derive(Debug, Default)]
pub(in crate::agent) struct RankLines {
    kept: Mutex<KeptLines>,
}

#[derive(Debug, Default)]
struct KeptLines {
    ranks: BTreeMap<RankKey, LineRing>,
    bytes: usize,
    /// Raft term of the leader that acknowledged lines; 0 before the first answer.
    term: u64,
    /// Number of requests so far: each begins with another rank.
    requests: usize,
    /// Time of the last request that carried lines.
    sent_at: Option<Instant>,
    /// Ranks whose slot has ended on this node, in the order of their ends.
    ended: VecDeque<RankKey>,
}

/// Latest lines of one rank.
#[derive(Debug, Default)]
struct LineRing {
    lines: VecDeque<RankLine>,
    bytes: usize,
    /// Number of the last line that the leader of this term has; 0 if it has none.
    acknowledged: u64,
    /// Number of dropped lines that no line names yet.
    dropped: u64,
}

impl RankLines {
    /// Appends lines of a rank, numbered from `sequence` on. Beyond the bounds the oldest are dropped: those
    /// of the rank itself, or of the one that has most. Returns whether a request may carry them now.
    pub(super) fn push(&self, key: RankKey, sequence: &AtomicU64, lines: Vec<String>, now: Instant) -> bool {
        let mut kept = self.lock();
        for text in lines {
            let sequence = sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let RankKey { id, attempt, rank } = key;
            let ring = kept.ranks.entry(key).or_default();
            let dropped = std::mem::take(&mut ring.dropped);
            ring.bytes += text.len();
            kept.bytes += text.len();
            let ring = kept.ranks.entry(key).or_default();
            ring.lines.push_back(RankLine { id, attempt, rank, sequence, text, dropped });
            if ring.lines.len() > RANK_LINES_KEPT_MAX {
                let bytes = ring.drop_oldest();
                kept.bytes -= bytes;
            }
            kept.bound();
        }
        kept.is_due(now)
    }

    /// Returns the Raft term whose leader has the acknowledged lines, and those that it lacks: as many as one
    /// request has, each rank in turn, in the order of their numbers. A leader answers such a request at
    /// once, so ranks that print without a pause get one each [`LINES_GAP`]. Lines that fill a request go at
    /// once.
    pub(in crate::agent) fn unacknowledged(&self, now: Instant) -> (u64, Vec<RankLine>) {
        let mut kept = self.lock();
        if !kept.is_due(now) && kept.missing() < RANK_LINES_MAX {
            return (kept.term, Vec::new());
        }
        kept.requests = kept.requests.wrapping_add(1);
        let lines = kept.next_lines();
        kept.sent_at = if lines.is_empty() { kept.sent_at } else { Some(now) };
        (kept.term, lines)
    }

    /// Takes the answer of the leader of a term to a request with these lines. A leader takes the lines of a
    /// request that names its term; one of another term has none.
    pub(in crate::agent) fn answered(&self, term: u64, sent: &[RankLine]) {
        let mut kept = self.lock();
        if kept.term != term {
            (kept.term, kept.sent_at) = (term, None);
            kept.ranks.values_mut().for_each(|ring| ring.acknowledged = 0);
            return;
        }
        for line in sent {
            if let Some(ring) = kept.ranks.get_mut(&RankKey::of(line)) {
                ring.acknowledged = ring.acknowledged.max(line.sequence);
            }
        }
    }

    /// Takes back the lines of a request that was given up: the next one carries them.
    pub(in crate::agent) fn put_back(&self, sent: &[RankLine]) {
        let mut kept = self.lock();
        kept.sent_at = if sent.is_empty() { kept.sent_at } else { None };
    }

    /// Notes that a slot of an attempt has ended on this node: the report of its end carries its last lines,
    /// which then make room for those of later ones.
    pub(super) fn end(&self, id: JobId, attempt: u32) {
        let mut kept = self.lock();
        kept.sent_at = None;
        let of_attempt = |key: &&RankKey| (key.id, key.attempt) == (id, attempt);
        let ended: Vec<RankKey> = kept.ranks.keys().filter(of_attempt).copied().collect();
        kept.ended.extend(ended);
        while kept.ended.len() > ENDED_RANKS_MAX {
            let Some(ring) = kept.ended.pop_front().and_then(|oldest| kept.ranks.remove(&oldest)) else {
                continue;
            };
            kept.bytes -= ring.bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, KeptLines> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptLines {
    fn is_due(&self, now: Instant) -> bool {
        self.sent_at.is_none_or(|sent_at| now.duration_since(sent_at) >= LINES_GAP)
    }

    /// Returns the lines that the next request carries.
    fn next_lines(&self) -> Vec<RankLine> {
        let missing =
            |ring: &LineRing| ring.lines.back().is_some_and(|last| last.sequence > ring.acknowledged);
        let waiting = self.ranks.values().filter(|ring| missing(ring));
        let mut waiting: Vec<_> = waiting.map(LineRing::unacknowledged).collect();
        let first = self.requests.checked_rem(waiting.len()).unwrap_or(0);
        waiting.rotate_left(first);
        let mut lines = Vec::new();
        while lines.len() < RANK_LINES_MAX {
            let before = lines.len();
            lines.extend(waiting.iter_mut().filter_map(Iterator::next).cloned());
            if lines.len() == before {
                break;
            }
        }
        lines.truncate(RANK_LINES_MAX);
        lines
    }

    /// Returns the number of lines that the leader lacks.
    fn missing(&self) -> usize {
        self.ranks.values().map(|ring| ring.unacknowledged().len()).sum()
    }

    /// Drops the oldest lines of the ranks that have most, until the rest is within its bound.
    fn bound(&mut self) {
        while self.bytes > BYTES_MAX {
            let largest = self.ranks.values_mut().max_by_key(|ring| ring.bytes);
            let Some(bytes) = largest.map(LineRing::drop_oldest).filter(|bytes| *bytes > 0) else { return };
            self.bytes -= bytes;
        }
    }
}

impl LineRing {
    fn unacknowledged(&self) -> impl ExactSizeIterator<Item = &RankLine> + use<'_> {
        let first = self.lines.partition_point(|line| line.sequence <= self.acknowledged);
        self.lines.range(first..)
    }

    /// Drops the oldest line, whose loss the next one names; returns the size of its text in bytes.
    fn drop_oldest(&mut self) -> usize {
        let Some(line) = self.lines.pop_front() else { return 0 };
        self.bytes -= line.text.len();
        let named = self.lines.front_mut().map_or(&mut self.dropped, |next| &mut next.dropped);
        *named = named.saturating_add(line.dropped).saturating_add(1);
        line.text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    /// Number of lines beyond what a rank keeps.
    const SURPLUS: u64 = 7;

    fn key(rank: u32) -> RankKey {
        RankKey { id: JobId(Digest::of(b"job")), attempt: 1, rank }
    }

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    /// Returns the next request, as if the last one that carried lines were long ago.
    fn due(lines: &RankLines) -> (u64, Vec<RankLine>) {
        lines.lock().sent_at = None;
        lines.unacknowledged(Instant::now())
    }

    /// Sends all lines to the leader of a term; returns them.
    fn send_all(lines: &RankLines, term: u64) -> Vec<RankLine> {
        let mut all = Vec::new();
        loop {
            let (addressed, sent) = due(lines);
            lines.answered(term, &sent);
            if addressed == term {
                if sent.is_empty() {
                    return all;
                }
                all.extend(sent);
            }
        }
    }

    fn numbers(lines: &[RankLine], rank: u32) -> Vec<u64> {
        lines.iter().filter(|line| line.rank == rank).map(|line| line.sequence).collect()
    }

    #[test]
    fn a_rank_that_prints_without_end_loses_its_own_lines_and_their_number_is_known() {
        let (lines, quiet, loud) = (RankLines::default(), AtomicU64::new(0), AtomicU64::new(0));
        lines.push(key(0), &quiet, texts(3), Instant::now());
        lines.push(key(1), &loud, texts(RANK_LINES_KEPT_MAX + SURPLUS as usize), Instant::now());
        let (_, request) = due(&lines);
        assert_eq!((request.len(), numbers(&request, 0)), (RANK_LINES_MAX, vec![1, 2, 3]));
        let sent = send_all(&lines, 1);
        assert_eq!(numbers(&sent, 0), [1, 2, 3]);
        assert_eq!(
            numbers(&sent, 1),
            (SURPLUS + 1..=RANK_LINES_KEPT_MAX as u64 + SURPLUS).collect::<Vec<_>>()
        );
        let dropped: u64 = sent.iter().map(|line| line.dropped).sum();
        assert_eq!(dropped, SURPLUS, "each line was sent or counted");
    }

    #[test]
    fn the_first_line_is_sent_at_once_and_a_rank_that_prints_on_waits_until_a_request_is_due_or_full() {
        let (lines, sequence, began) = (RankLines::default(), AtomicU64::new(0), Instant::now());
        let after = |ms| began + Duration::from_millis(ms);
        assert!(lines.push(key(0), &sequence, texts(1), began), "nothing was sent before");
        assert_eq!(lines.unacknowledged(began).1.len(), 1);
        assert!(!lines.push(key(0), &sequence, texts(1), after(199)));
        assert_eq!(lines.unacknowledged(after(199)).1.len(), 0);
        assert!(lines.push(key(0), &sequence, texts(1), after(200)));
        assert_eq!(lines.unacknowledged(after(200)).1.len(), 3);
        lines.push(key(0), &sequence, texts(RANK_LINES_MAX), after(201));
        let (_, full) = lines.unacknowledged(after(201));
        assert_eq!(full.len(), RANK_LINES_MAX, "a full request");
        let rest = due(&lines).1;
        lines.answered(0, &rest);
        lines.lock().sent_at = Some(after(201));
        assert_eq!(lines.unacknowledged(after(202)).1.len(), 0);
        lines.end(key(0).id, key(0).attempt);
        assert_eq!(lines.unacknowledged(after(202)).1.len(), 3, "the last lines come with the end");
    }

    /// News may break off a request right after it has begun, and be the last for a while.
    #[test]
    fn lines_of_a_request_that_was_given_up_go_with_the_next_one() {
        let (lines, now) = (RankLines::default(), Instant::now());
        lines.push(key(0), &AtomicU64::new(0), texts(1), now);
        let (_, sent) = lines.unacknowledged(now);
        assert_eq!(lines.unacknowledged(now).1, [], "they may arrive");
        lines.put_back(&[]);
        assert_eq!(lines.unacknowledged(now).1, [], "another request was given up");
        lines.put_back(&sent);
        assert_eq!(lines.unacknowledged(now).1, sent);
    }

    #[test]
    fn lines_that_no_answer_acknowledged_are_sent_again_under_their_numbers() {
        let (lines, sequence) = (RankLines::default(), AtomicU64::new(0));
        lines.answered(1, &[]);
        lines.push(key(0), &sequence, texts(2), Instant::now());
        let (_, lost) = due(&lines);
        lines.push(key(0), &sequence, texts(1), Instant::now());
        let (term, again) = due(&lines);
        assert_eq!((again[..2].to_vec(), term), (lost, 1));
        lines.answered(1, &again[..2]);
        assert_eq!(numbers(&due(&lines).1, 0), [3]);
    }

    #[test]
    fn the_leader_of_another_term_gets_every_kept_line() {
        let (lines, sequence) = (RankLines::default(), AtomicU64::new(0));
        lines.push(key(0), &sequence, texts(300), Instant::now());
        assert_eq!(send_all(&lines, 1).len(), 300);
        lines.push(key(0), &sequence, texts(1), Instant::now());
        let (term, sent) = due(&lines);
        assert_eq!((term, numbers(&sent, 0)), (1, vec![301]));
        lines.answered(2, &sent);
        assert_eq!(numbers(&send_all(&lines, 2), 0), (1..=301).collect::<Vec<_>>());
    }

    #[test]
    fn lines_of_slots_that_have_ended_stay_until_later_ends_need_their_room() {
        let lines = RankLines::default();
        let ranks = u32::try_from(ENDED_RANKS_MAX).expect("small") + 1;
        for rank in 0..ranks {
            let key = RankKey { attempt: rank + 1, ..key(rank) };
            lines.push(key, &AtomicU64::new(0), texts(2), Instant::now());
            lines.end(key.id, key.attempt);
        }
        let sent = send_all(&lines, 1);
        assert_eq!((numbers(&sent, 0), numbers(&sent, ranks - 1)), (vec![], vec![1, 2]));
        assert_eq!(lines.lock().ranks.len(), ENDED_RANKS_MAX);
        assert_eq!(lines.lock().bytes, ENDED_RANKS_MAX * 2, "the texts have one byte each");
        assert_eq!(send_all(&lines, 2).len(), ENDED_RANKS_MAX * 2, "the next leader gets them too");
    }

    #[test]
    fn the_longest_texts_go_first_where_all_lines_together_have_no_room() {
        let (lines, quiet) = (RankLines::default(), AtomicU64::new(0));
        lines.push(key(0), &quiet, texts(1), Instant::now());
        let long = "x".repeat(protocol::job_report::RANK_LINE_BYTES_MAX);
        let ranks = u32::try_from(BYTES_MAX / long.len() / RANK_LINES_KEPT_MAX).expect("small") + 2;
        for rank in 1..=ranks {
            lines.push(
                key(rank),
                &AtomicU64::new(0),
                vec![long.clone(); RANK_LINES_KEPT_MAX],
                Instant::now(),
            );
        }
        assert!(lines.lock().bytes <= BYTES_MAX, "{}", lines.lock().bytes);
        assert_eq!(numbers(&send_all(&lines, 1), 0), [1]);
    }
}

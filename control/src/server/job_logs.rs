//! Recent lines of the ranks of jobs.
//!
//! The lines are in the leader's memory alone, bounded for each rank. After a change of leader the nodes
//! send those of the present and of the last attempt again, as far as they keep them. The next leader numbers
//! them from the beginning: therefore a page names its epoch.

use protocol::job::SlotRanks;
use protocol::job_api::{JobLogLine, JobLogPage};
use protocol::job_report::{RANK_LINE_BYTES_MAX, RANK_LINES_KEPT_MAX, RANK_LINES_MAX, RankLine};
use protocol::{JobId, NodeId, NodeName};
use scheduler::{JobBook, JobSlotName};
use std::collections::{BTreeMap, VecDeque};

/// Maximum number of bytes of all kept lines; the job with the oldest first line loses its lines first.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// The latest lines of every job.
#[derive(Debug, Default)]
pub(super) struct JobLogs {
    /// Raft term in which the lines were received.
    epoch: u64,
    bytes: usize,
    /// Number of jobs that ever had a line, which orders them.
    begun: u64,
    jobs: BTreeMap<JobId, JobLines>,
}

#[derive(Debug, Default)]
struct JobLines {
    /// Place of the job in the order of first lines.
    number: u64,
    next: u64,
    bytes: usize,
    lines: VecDeque<JobLogLine>,
    /// Number of the newest line, and of kept ones, by attempt and rank. A node whose request was
    /// interrupted sends its lines again.
    ranks: BTreeMap<(u32, u32), (Option<u64>, usize)>,
}

/// Returns the lines that a node may send: those of ranks that it holds in the present attempt, whose slot it
/// is ending, or that it held in the last attempt that ended. No other node may report lines of a job.
pub(super) fn of_holder(jobs: &JobBook, node: NodeId, lines: &[RankLine]) -> Vec<RankLine> {
    let held: Vec<_> = jobs.held().filter(|(_, held)| held.node == node).collect();
    let holds = |line: &&RankLine| {
        let is_within = |ranks: SlotRanks| line.rank >= ranks.first && line.rank - ranks.first < ranks.count;
        let holds_now = held.iter().any(|(_, held): &(JobSlotName, _)| {
            held.id == line.id && held.attempt == line.attempt && is_within(held.ranks)
        });
        let end = jobs.jobs().get(&line.id).and_then(|job| job.last_end.as_ref());
        let held_last = end.filter(|end| end.attempt == line.attempt).is_some_and(|end| {
            end.holders.iter().any(|holder| holder.node == node && is_within(holder.ranks))
        });
        holds_now || held_last
    };
    lines.iter().take(RANK_LINES_MAX).filter(holds).cloned().collect()
}

impl JobLogs {
    /// Discards the lines of an earlier leadership, because the lines sent between the two were not received.
    fn start_epoch(&mut self, epoch: u64) {
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
    }

    /// Keeps the lines that a node sent to the leader of this term, each once.
    pub(super) fn append(&mut self, epoch: u64, node: &NodeName, lines: Vec<RankLine>) {
        self.start_epoch(epoch);
        for mut line in lines {
            if !self.jobs.contains_key(&line.id) {
                self.begun += 1;
                self.jobs.insert(line.id, JobLines { number: self.begun, ..JobLines::default() });
            }
            let Some(job) = self.jobs.get_mut(&line.id) else { continue };
            let place = (line.attempt, line.rank);
            let (newest, kept) = job.ranks.entry(place).or_default();
            if newest.is_some_and(|newest| line.sequence <= newest) {
                continue;
            }
            *newest = Some(line.sequence);
            *kept += 1;
            let is_surplus = *kept > RANK_LINES_KEPT_MAX;
            truncate(&mut line.text);
            job.next += 1;
            job.bytes += line.text.len();
            self.bytes += line.text.len();
            job.lines.push_back(JobLogLine {
                sequence: job.next,
                attempt: line.attempt,
                rank: line.rank,
                number: line.sequence,
                node: node.clone(),
                dropped: line.dropped,
                text: line.text,
            });
            if is_surplus {
                self.bytes = self.bytes.saturating_sub(job.drop_oldest_of(place));
            }
        }
        self.drop_oldest_jobs();
    }

    fn drop_oldest_jobs(&mut self) {
        while self.bytes > BYTES_MAX {
            let oldest = self.jobs.iter().min_by_key(|(_, job)| job.number).map(|(id, _)| *id);
            let Some(job) = oldest.and_then(|id| self.jobs.remove(&id)) else { return };
            self.bytes = self.bytes.saturating_sub(job.bytes);
        }
    }

    /// Returns lines of a job after a sequence number, oldest first, at most `limit`; those of one rank if
    /// one is named.
    pub(super) fn page(
        &mut self,
        epoch: u64,
        id: JobId,
        rank: Option<u32>,
        after: u64,
        limit: usize,
    ) -> JobLogPage {
        self.start_epoch(epoch);
        let lines = self.jobs.get(&id).map(|job| &job.lines);
        let wanted = |line: &&JobLogLine| line.sequence > after && rank.is_none_or(|rank| rank == line.rank);
        let lines = lines.into_iter().flatten().filter(wanted);
        JobLogPage { epoch, items: lines.take(limit).cloned().collect() }
    }
}

impl JobLines {
    /// Drops the oldest line of a rank; returns its size in bytes.
    fn drop_oldest_of(&mut self, (attempt, rank): (u32, u32)) -> usize {
        let is_of = |line: &JobLogLine| line.attempt == attempt && line.rank == rank;
        let Some(at) = self.lines.iter().position(is_of) else { return 0 };
        let bytes = self.lines.remove(at).map_or(0, |line| line.text.len());
        if let Some((_, kept)) = self.ranks.get_mut(&(attempt, rank)) {
            *kept = kept.saturating_sub(1);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        bytes
    }
}

/// Truncates a line to its limit, between characters.
fn truncate(text: &mut String) {
    let mut end = RANK_LINE_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Digest;

    const ID: JobId = JobId(Digest([1; 32]));

    fn line(attempt: u32, rank: u32, sequence: u64) -> RankLine {
        RankLine { id: ID, attempt, rank, sequence, text: format!("{attempt}.{rank}.{sequence}"), dropped: 0 }
    }

    fn texts(page: JobLogPage) -> Vec<String> {
        page.items.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_line_is_kept_once_and_pages_go_on_after_a_number() {
        let (mut logs, node) = (JobLogs::default(), "node-1".parse().expect("a name"));
        logs.append(1, &node, vec![line(1, 0, 0), line(1, 1, 0)]);
        logs.append(1, &node, vec![line(1, 0, 0), line(1, 0, 1), line(2, 0, 0)]);
        assert_eq!(texts(logs.page(1, ID, None, 0, 10)), ["1.0.0", "1.1.0", "1.0.1", "2.0.0"]);
        assert_eq!(texts(logs.page(1, ID, Some(1), 0, 10)), ["1.1.0"]);
        assert_eq!(texts(logs.page(1, ID, None, 2, 1)), ["1.0.1"]);
        assert!(logs.page(2, ID, None, 0, 10).items.is_empty(), "another leader has no lines yet");
    }

    /// The attack is a rank that writes without end: the lines of the other rank stay.
    #[test]
    fn a_rank_that_writes_without_end_loses_its_own_lines() {
        let (mut logs, node) = (JobLogs::default(), "node-1".parse().expect("a name"));
        logs.append(1, &node, vec![line(1, 1, 0)]);
        let flood = RANK_LINES_KEPT_MAX as u64 + 100;
        logs.append(1, &node, (0..flood).map(|sequence| line(1, 0, sequence)).collect());
        let kept = texts(logs.page(1, ID, None, 0, usize::MAX));
        assert_eq!(kept.len(), RANK_LINES_KEPT_MAX + 1);
        assert_eq!((kept[0].as_str(), kept[1].as_str()), ("1.1.0", "1.0.100"));
    }

    #[test]
    fn a_line_is_truncated_between_characters() {
        let mut text = "x".repeat(RANK_LINE_BYTES_MAX - 1) + "\u{e9}";
        truncate(&mut text);
        assert_eq!(text.len(), RANK_LINE_BYTES_MAX - 1);
    }
}

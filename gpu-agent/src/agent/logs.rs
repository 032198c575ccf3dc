//! Worker output on its way to control. It is read from log files, cut into lines and queued, within bounds,
//! until an answer acknowledges it.

use super::core::SlotKey;
use protocol::Millis;
use protocol::agent::{LOG_LINES_MAX, WorkerLine};
use sandbox::OutputPosition;
use sandbox::Running;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Queue of lines of all workers, oldest first.
#[derive(Debug, Default)]
pub(super) struct LogQueue {
    lines: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<WorkerLine>,
    /// Sequence number of the newest line.
    sequence: u64,
    dropped: BTreeMap<SlotKey, DroppedLines>,
}

/// Lines of a slot dropped since the queue was last taken.
#[derive(Debug, Default)]
struct DroppedLines {
    lines: u64,
    /// Sequence number and time of the newest dropped line. The notice takes its position.
    last: Option<(u64, Millis)>,
}

impl LogQueue {
    /// Appends lines. When the queue is full, the oldest lines of the slot with the most are dropped.
    pub(super) fn push(&self, key: &SlotKey, at: Millis, lines: Vec<String>) {
        let mut queue = self.lock();
        for text in lines {
            queue.sequence += 1;
            let sequence = queue.sequence;
            let (service, slot) = (key.service.clone(), key.slot);
            queue.lines.push_back(WorkerLine { service, slot, sequence, at, text });
        }
        queue.bound();
    }

    /// Takes all lines. Dropped lines are reported by one notice per slot.
    pub(super) fn take(&self) -> Vec<WorkerLine> {
        let mut queue = self.lock();
        let dropped = std::mem::take(&mut queue.dropped).into_iter();
        let notices = dropped.filter_map(|(key, DroppedLines { lines, last })| {
            let (sequence, at) = last?;
            let text = format!("[{lines} lines were dropped here]");
            Some(WorkerLine { service: key.service, slot: key.slot, sequence, at, text })
        });
        let notices: Vec<WorkerLine> = notices.collect();
        let mut lines: Vec<WorkerLine> = queue.lines.drain(..).chain(notices).collect();
        lines.sort_by_key(|line| line.sequence);
        lines.truncate(LOG_LINES_MAX);
        lines
    }

    /// Puts back lines that may not have arrived, before those queued since.
    pub(super) fn put_back(&self, lines: Vec<WorkerLine>) {
        let mut queue = self.lock();
        for line in lines.into_iter().rev() {
            queue.lines.push_front(line);
        }
        queue.bound();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Drops lines until they and the notices fit into one request. A worker that prints without end
    /// displaces its own lines before those of others.
    fn bound(&mut self) {
        let mut counts: BTreeMap<SlotKey, usize> = BTreeMap::new();
        for line in &self.lines {
            *counts.entry(key_of(line)).or_default() += 1;
        }
        let mut excess: BTreeMap<SlotKey, usize> = BTreeMap::new();
        let mut notices: BTreeSet<SlotKey> = self.dropped.keys().cloned().collect();
        let mut total = self.lines.len();
        while total > 0 && total + notices.len() > LOG_LINES_MAX {
            let Some((key, count)) = counts.iter_mut().max_by_key(|(_, count)| **count) else { break };
            *count -= 1;
            total -= 1;
            *excess.entry(key.clone()).or_default() += 1;
            notices.insert(key.clone());
        }
        let dropped = &mut self.dropped;
        self.lines.retain(|line| {
            let key = key_of(line);
            let Some(left) = excess.get_mut(&key).filter(|left| **left > 0) else { return true };
            *left -= 1;
            let dropped = dropped.entry(key).or_default();
            dropped.lines += 1;
            dropped.last = Some((line.sequence, line.at));
            false
        });
    }
}

fn key_of(line: &WorkerLine) -> SlotKey {
    SlotKey { service: line.service.clone(), slot: line.slot }
}

/// Output of one worker, line by line.
#[derive(Debug)]
pub(super) struct LogTail {
    running: Arc<dyn Running>,
    position: OutputPosition,
    rest: Vec<u8>,
}

impl LogTail {
    /// Starts reading at the beginning, or at the current end.
    pub(super) fn new(running: Arc<dyn Running>, from_now: bool) -> Self {
        let position = if from_now { running.output_end() } else { OutputPosition::default() };
        Self { running, position, rest: Vec::new() }
    }

    /// Returns the lines printed since the last call, from a bounded number of bytes at a time.
    pub(super) fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let bytes = self.running.output(&mut self.position);
        cut(&mut self.rest, &bytes, &mut lines);
        lines
    }
}

/// Cuts bytes into lines. An unfinished last line stays in `rest`. Long lines are broken.
pub(super) fn cut(rest: &mut Vec<u8>, bytes: &[u8], lines: &mut Vec<String>) {
    for byte in bytes {
        if *byte != b'\n' {
            rest.push(*byte);
        }
        if *byte == b'\n' || rest.len() >= LINE_BYTES_MAX {
            let text = String::from_utf8_lossy(rest).into_owned();
            rest.clear();
            if !text.is_empty() {
                // A replaced byte takes three bytes, so the text may exceed the limit and is cut.
                let end = (0..=text.len().min(LINE_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
                lines.push(text[..end.unwrap_or(0)].to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protocol::SlotIndex;

    fn key() -> SlotKey {
        SlotKey { service: "chat".parse().expect("a name"), slot: SlotIndex(0) }
    }

    fn texts(lines: &[WorkerLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_are_cut_wherever_reads_end() {
        let text = b"one\n\ntwo\nthree";
        for step in 1..=text.len() {
            let (mut rest, mut lines) = (Vec::new(), Vec::new());
            text.chunks(step).for_each(|piece| cut(&mut rest, piece, &mut lines));
            assert_eq!(lines, ["one", "two"], "step {step}");
            assert_eq!(rest, b"three");
        }
    }

    #[test]
    fn a_line_is_never_longer_than_allowed() {
        for byte in [b'x', 0xff] {
            let (mut rest, mut lines) = (Vec::new(), Vec::new());
            cut(&mut rest, &vec![byte; 3 * LINE_BYTES_MAX], &mut lines);
            assert_eq!(lines.len(), 3);
            assert!(lines.iter().all(|line| line.len() <= LINE_BYTES_MAX && line.len() > LINE_BYTES_MAX - 3));
        }
    }

    fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|number| number.to_string()).collect()
    }

    #[test]
    fn the_queue_is_bounded_and_says_what_it_dropped() {
        let queue = LogQueue::default();
        queue.push(&key(), Millis(7), numbers(0..LOG_LINES_MAX + 9));
        let lines = queue.take();
        assert_eq!(lines.len(), LOG_LINES_MAX);
        assert_eq!(lines[0].text, "[10 lines were dropped here]");
        assert_eq!(lines[1].text, "10");
        assert!(lines.is_sorted_by(|a, b| a.sequence < b.sequence), "numbers only rise");
        assert!(queue.take().is_empty());
    }

    /// Measured from outside: the slot with one line keeps it, however much its neighbour prints.
    #[test]
    fn a_flood_displaces_no_line_of_another_slot() {
        let queue = LogQueue::default();
        let quiet = SlotKey { slot: SlotIndex(1), ..key() };
        queue.push(&quiet, Millis(7), vec!["the only one".into()]);
        for _ in 0..5 {
            queue.push(&key(), Millis(7), numbers(0..3 * LOG_LINES_MAX));
        }
        let lines = queue.take();
        assert_eq!(lines.len(), LOG_LINES_MAX);
        assert_eq!(texts(&lines)[..2], ["the only one", "[1794 lines were dropped here]"]);
        assert_eq!(lines[LOG_LINES_MAX - 1].text, (3 * LOG_LINES_MAX - 1).to_string());
    }

    /// An operation on the queue.
    #[derive(Debug, Clone)]
    enum Step {
        /// As many lines of a slot.
        Push(u32, usize),
        /// A request that arrives, or does not.
        Send { arrives: bool },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (0_u32..3, 0_usize..2 * LOG_LINES_MAX).prop_map(|(slot, lines)| Step::Push(slot, lines));
        let send = any::<bool>().prop_map(|arrives| Step::Send { arrives });
        prop::collection::vec(prop_oneof![push, send], 1..20)
    }

    /// Returns the number of lines that a line stands for: one, or those that a notice says were dropped.
    fn stands_for(line: &WorkerLine) -> u64 {
        let notice = line.text.strip_prefix('[').and_then(|text| text.split(' ').next());
        notice.map_or(1, |count| count.parse().expect("a notice begins with a number"))
    }

    proptest! {
        #[test]
        fn no_line_is_lost_without_a_notice_and_numbers_only_rise(steps in steps()) {
            let queue = LogQueue::default();
            let all_arrive = !steps.iter().any(|step| matches!(step, Step::Send { arrives: false }));
            let (mut pushed, mut arrived, mut last) = (0, 0, 0);
            for step in steps.into_iter().chain([Step::Send { arrives: true }]) {
                match step {
                    Step::Push(slot, lines) => {
                        let key = SlotKey { slot: SlotIndex(slot), ..key() };
                        queue.push(&key, Millis(7), numbers(0..lines));
                        pushed += lines as u64;
                    }
                    Step::Send { arrives } => {
                        let lines = queue.take();
                        prop_assert!(lines.len() <= LOG_LINES_MAX);
                        prop_assert!(lines.is_sorted_by(|a, b| a.sequence < b.sequence));
                        prop_assert!(lines.first().is_none_or(|line| line.sequence > last));
                        if !arrives {
                            queue.put_back(lines);
                            continue;
                        }
                        last = lines.last().map_or(last, |line| line.sequence);
                        arrived += lines.iter().map(stands_for).sum::<u64>();
                    }
                }
            }
            // A notice that was put back and dropped in its turn counts as one line.
            prop_assert!(arrived == pushed || !all_arrive && arrived < pushed, "{arrived} of {pushed}");
        }
    }

    #[test]
    fn lines_that_did_not_arrive_come_first_again_under_the_same_numbers() {
        let queue = LogQueue::default();
        queue.push(&key(), Millis(7), vec!["a".to_string(), "b".to_string()]);
        let taken = queue.take();
        let before: Vec<u64> = taken.iter().map(|line| line.sequence).collect();
        queue.push(&key(), Millis(7), vec!["c".to_string()]);
        queue.put_back(taken);
        let again = queue.take();
        assert_eq!(texts(&again), ["a", "b", "c"]);
        assert_eq!(again[..2].iter().map(|line| line.sequence).collect::<Vec<_>>(), before);
        queue.put_back(again);
        queue.push(&key(), Millis(7), numbers(0..LOG_LINES_MAX));
        let lines = queue.take();
        assert_eq!(lines[0].text, "[4 lines were dropped here]", "also of those put back");
        assert!(lines.is_sorted_by(|a, b| a.sequence < b.sequence));
    }
}

//! What workers print, on its way to control: read from their log files, cut into lines, kept in a bounded
//! queue until an answer says that they arrived.

use super::core::SlotKey;
use crate::launcher::Running;
use crate::sandbox::OutputPosition;
use protocol::Millis;
use protocol::agent::{LOG_LINES_MAX, WorkerLine};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Lines of all workers, oldest first.
#[derive(Debug, Default)]
pub(super) struct LogQueue {
    lines: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<WorkerLine>,
    dropped: u64,
}

impl LogQueue {
    /// Adds lines; the oldest give way when there are too many.
    pub(super) fn push(&self, key: &SlotKey, at: Millis, lines: impl IntoIterator<Item = String>) {
        let mut queue = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for text in lines {
            if queue.lines.len() >= LOG_LINES_MAX - 1 {
                queue.lines.pop_front();
                queue.dropped += 1;
            }
            queue.lines.push_back(WorkerLine { service: key.service.clone(), slot: key.slot, at, text });
        }
    }

    /// Takes all lines; what was dropped is said in a line of its own.
    pub(super) fn take(&self) -> Vec<WorkerLine> {
        let mut queue = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = std::mem::take(&mut queue.dropped);
        let mut lines: Vec<WorkerLine> = queue.lines.drain(..).collect();
        if let (Some(first), true) = (lines.first().cloned(), dropped > 0) {
            lines.insert(0, WorkerLine { text: format!("[{dropped} lines were dropped here]"), ..first });
        }
        lines
    }

    /// Puts lines back that did not arrive, before those that came since.
    pub(super) fn put_back(&self, lines: Vec<WorkerLine>) {
        let mut queue = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.into_iter().rev() {
            if queue.lines.len() >= LOG_LINES_MAX - 1 {
                queue.dropped += 1;
            } else {
                queue.lines.push_front(line);
            }
        }
    }
}

/// What one worker prints, line by line.
#[derive(Debug)]
pub(super) struct LogTail {
    running: Arc<dyn Running>,
    position: OutputPosition,
    rest: Vec<u8>,
}

impl LogTail {
    /// Reads from the beginning, or only what comes from now on.
    pub(super) fn new(running: Arc<dyn Running>, from_now: bool) -> Self {
        let position = if from_now { running.output_end() } else { OutputPosition::default() };
        Self { running, position, rest: Vec::new() }
    }

    /// The lines that were printed since the last call; a bounded number of bytes at a time.
    pub(super) fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let bytes = self.running.output(&mut self.position);
        cut(&mut self.rest, &bytes, &mut lines);
        lines
    }
}

/// Cuts bytes into lines, the last of which may be unfinished and stays. Long lines are broken.
fn cut(rest: &mut Vec<u8>, bytes: &[u8], lines: &mut Vec<String>) {
    for byte in bytes {
        if *byte != b'\n' {
            rest.push(*byte);
        }
        if *byte == b'\n' || rest.len() >= LINE_BYTES_MAX {
            let text = String::from_utf8_lossy(rest).into_owned();
            rest.clear();
            if !text.is_empty() {
                // Replaced bytes are three bytes long each: what broke the limit so is cut.
                let end = (0..=text.len().min(LINE_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end));
                lines.push(text[..end.unwrap_or(0)].to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn the_queue_is_bounded_and_says_what_it_dropped() {
        let queue = LogQueue::default();
        queue.push(&key(), Millis(7), (0..LOG_LINES_MAX + 9).map(|n| n.to_string()));
        let lines = queue.take();
        assert_eq!(lines.len(), LOG_LINES_MAX);
        assert_eq!(lines[0].text, "[10 lines were dropped here]");
        assert_eq!(lines[1].text, "10");
        assert!(queue.take().is_empty());
    }

    #[test]
    fn lines_that_did_not_arrive_come_first_again() {
        let queue = LogQueue::default();
        queue.push(&key(), Millis(7), ["a".to_string(), "b".to_string()]);
        let taken = queue.take();
        queue.push(&key(), Millis(7), ["c".to_string()]);
        queue.put_back(taken);
        assert_eq!(texts(&queue.take()), ["a", "b", "c"]);
    }
}

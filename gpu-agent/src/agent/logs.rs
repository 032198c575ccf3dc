//! What workers print, on its way to control: read from their log files, cut into lines, kept in a bounded
//! queue until an answer says that they arrived.

use super::clock::wall_clock;
use super::core::SlotKey;
use protocol::agent::{LOG_LINES_MAX, WorkerLine};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;
/// Read from a file at a time.
const CHUNK_BYTES: u64 = 64 * 1024;

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
    pub(super) fn push(&self, key: &SlotKey, lines: impl IntoIterator<Item = String>) {
        let at = wall_clock();
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

/// One of a worker's two log files and how far it was read.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    offset: u64,
}

/// The log files of one worker.
#[derive(Debug)]
pub(super) struct LogTail {
    files: [Tail; 2],
    rest: Vec<u8>,
}

impl LogTail {
    /// Reads from the beginning, or only what comes from now on.
    pub(super) fn new(paths: [PathBuf; 2], from_now: bool) -> Self {
        let tail = |path: PathBuf| {
            let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            Tail { path, offset: if from_now { length } else { 0 } }
        };
        Self { files: paths.map(tail), rest: Vec::new() }
    }

    /// The lines that were written since the last call; a bounded number of bytes at a time.
    pub(super) fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for file in &mut self.files {
            if let Ok(bytes) = file.read() {
                cut(&mut self.rest, &bytes, &mut lines);
            }
        }
        lines
    }
}

impl Tail {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() < self.offset {
            // The two files take turns: this one was emptied and begins anew.
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
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
    use std::io::Write;

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
    fn files_that_take_turns_are_followed() {
        let directory = tempfile::tempdir().expect("directory");
        let paths = ["log.0", "log.1"].map(|name| directory.path().join(name));
        std::fs::write(&paths[0], "before\n").expect("write");
        std::fs::write(&paths[1], "").expect("write");
        let mut tail = LogTail::new(paths.clone(), true);
        assert!(tail.read().is_empty(), "what was there is known already");
        let append = |path: &PathBuf, text: &str| {
            let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("open");
            file.write_all(text.as_bytes()).expect("write");
        };
        append(&paths[0], "a\n");
        append(&paths[1], "b\n");
        assert_eq!(tail.read(), ["a", "b"]);
        std::fs::write(&paths[0], "c\n").expect("emptied and written to again");
        assert_eq!(tail.read(), ["c"]);
        std::fs::remove_file(&paths[0]).expect("remove");
        assert!(tail.read().is_empty(), "a file that went is no error");
    }

    #[test]
    fn the_queue_is_bounded_and_says_what_it_dropped() {
        let queue = LogQueue::default();
        queue.push(&key(), (0..LOG_LINES_MAX + 9).map(|n| n.to_string()));
        let lines = queue.take();
        assert_eq!(lines.len(), LOG_LINES_MAX);
        assert_eq!(lines[0].text, "[10 lines were dropped here]");
        assert_eq!(lines[1].text, "10");
        assert!(queue.take().is_empty());
    }

    #[test]
    fn lines_that_did_not_arrive_come_first_again() {
        let queue = LogQueue::default();
        queue.push(&key(), ["a".to_string(), "b".to_string()]);
        let taken = queue.take();
        queue.push(&key(), ["c".to_string()]);
        queue.put_back(taken);
        assert_eq!(texts(&queue.take()), ["a", "b", "c"]);
    }
}

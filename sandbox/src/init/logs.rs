//! A worker's output, kept in two rotating files. It is bounded in size and rate, and a dead agent never
//! makes the worker wait.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use protocol::BootTime;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Size of a file at which the other is truncated and written to: the last 4 to 8 MiB are kept.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Rate limit of a worker's output in bytes; the excess waits for the next second.
const BYTES_PER_SECOND: usize = 1024 * 1024;
/// Capacity of a pipe.
const CHUNK_BYTES: usize = 64 * 1024;

/// Copies the worker's output to its log files.
pub(super) struct LogWriter {
    output: Option<File>,
    files: [File; 2],
    current: usize,
    written: u64,
    second: u64,
    spent: usize,
}

impl LogWriter {
    pub(super) fn new(output: OwnedFd, files: [File; 2]) -> io::Result<Self> {
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { output: Some(File::from(output)), ..Self::unused(files) })
    }

    /// Returns a writer without an input, for ranks: their agent reads their output itself.
    pub(super) fn unused(files: [File; 2]) -> Self {
        Self { output: None, files, current: 0, written: 0, second: 0, spent: 0 }
    }

    /// Returns whether there is output to wait for, now or in a later second.
    pub(super) fn is_open(&self) -> bool {
        self.output.is_some()
    }

    /// Returns the descriptor to poll; none while this second's limit is used up, or when every writer is
    /// gone.
    pub(super) fn wanted(&mut self, now: BootTime) -> Option<BorrowedFd<'_>> {
        if now.0 / 1000 != self.second {
            (self.second, self.spent) = (now.0 / 1000, 0);
        }
        let output = self.output.as_ref()?;
        (self.spent < BYTES_PER_SECOND).then(|| output.as_fd())
    }

    /// Copies the available output; true if there was any. A disk that accepts no writes loses log lines, but
    /// never stops the worker.
    pub(super) fn copy(&mut self) -> bool {
        let Some(output) = &mut self.output else { return false };
        let mut chunk = [0; CHUNK_BYTES];
        let length = match output.read(&mut chunk) {
            Ok(length) if length > 0 => length,
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => return false,
            // Every writer is gone, or the pipe is broken: no more output will come.
            _ => {
                self.output = None;
                return false;
            }
        };
        self.spent += length;
        if self.written + length as u64 > FILE_BYTES_MAX {
            self.current = 1 - self.current;
            self.written = 0;
            let file = &mut self.files[self.current];
            let _ = file.set_len(0).and_then(|()| file.rewind());
        }
        self.written += length as u64;
        let _ = self.files[self.current].write_all(&chunk[..length]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_megabytes_are_kept_and_no_more() {
        let files = [(); 2].map(|()| tempfile::tempfile().expect("file"));
        let handles = files.each_ref().map(|file| file.try_clone().expect("clone"));
        let (reader, mut writer) = io::pipe().expect("pipe");
        let mut logs = LogWriter::new(reader.into(), handles).expect("logs");
        for round in 0..300u64 {
            writer.write_all(&[b'x'; CHUNK_BYTES]).expect("the pipe is empty");
            assert!(logs.wanted(BootTime(round * 1000)).is_some() && logs.copy());
        }
        let lengths = files.map(|file| file.metadata().expect("metadata").len());
        assert!(lengths.iter().all(|length| *length <= FILE_BYTES_MAX), "{lengths:?}");
        assert!(lengths.iter().sum::<u64>() >= FILE_BYTES_MAX, "{lengths:?}");
        assert!(!logs.copy() && logs.wanted(BootTime(0)).is_some(), "nothing there, more may come");
        drop(writer);
        assert!(!logs.copy() && logs.wanted(BootTime(0)).is_none(), "nothing there, nothing will come");
    }

    #[test]
    fn a_flood_waits_for_the_next_second() {
        let files = [(); 2].map(|()| tempfile::tempfile().expect("file"));
        let (reader, mut writer) = io::pipe().expect("pipe");
        let mut logs = LogWriter::new(reader.into(), files).expect("logs");
        let mut moved = 0;
        while logs.wanted(BootTime(5_000)).is_some() {
            writer.write_all(&[b'x'; CHUNK_BYTES]).expect("the pipe is empty");
            assert!(logs.copy());
            moved += CHUNK_BYTES;
        }
        assert_eq!(moved, BYTES_PER_SECOND);
        assert!(logs.wanted(BootTime(6_000)).is_some());
    }
}

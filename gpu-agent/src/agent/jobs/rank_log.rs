//! Output of one rank: numbered lines on their way to control, and the same lines in a file, until it is
//! stored.
//!
//! The file has a bound, because a rank may print for a month. It keeps the first lines, which say how a run
//! began, and the latest, which say how it ended; a line between them has the number of those left out:
//!
//! ```text
//! rank-0.log          first lines, and at the end of the rank all of the file
//! rank-0.earlier      one part of the latest lines, which makes room for
//! rank-0.latest       the next
//! ```

use super::lines::RankKey;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

/// Bound of the files of all ranks of a slot, in bytes.
pub(super) const LOG_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bounds of one part of a rank's file, in bytes; a file has three.
const PART_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;

/// Output of one rank.
#[derive(Debug)]
pub(super) struct RankLog {
    pub(super) key: RankKey,
    /// Number of the last line.
    pub(super) sequence: AtomicU64,
    file: Mutex<LogFile>,
}

/// File of the lines of a rank.
#[derive(Debug)]
struct LogFile {
    directory: PathBuf,
    rank: u32,
    part_bytes: u64,
    /// Part that is written, once there is a line.
    part: Option<LogPart>,
    /// Number of lines in the part before the one that is written, unless that is the first one.
    earlier: u64,
    /// Number of lines that are in no part.
    left_out: u64,
}

#[derive(Debug)]
struct LogPart {
    file: File,
    is_first: bool,
    bytes: u64,
    lines: u64,
}

impl RankLog {
    /// Returns the output of a rank that has printed nothing yet; its files will be in this directory.
    /// `ranks` is the number of ranks of the slot.
    pub(super) fn new(key: RankKey, directory: &Path, ranks: u32) -> Self {
        let part_bytes = LOG_BYTES_MAX / 3 / u64::from(ranks.max(1));
        let file = LogFile {
            directory: directory.to_path_buf(),
            rank: key.rank,
            part_bytes: part_bytes.clamp(*PART_BYTES.start(), *PART_BYTES.end()),
            part: None,
            earlier: 0,
            left_out: 0,
        };
        Self { key, sequence: AtomicU64::new(0), file: Mutex::new(file) }
    }

    /// Writes lines to the file. Those that a full or broken disk does not take are left out, and counted.
    pub(super) fn write(&self, lines: &[String]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write(lines) {
            file.left_out += lines.len() as u64;
            tracing::warn!(rank = self.key.rank, %error, "lines of a rank are not in its file");
        }
    }

    /// Makes the parts one file, once the rank prints no more.
    ///
    /// # Errors
    /// Errors of the system.
    pub(super) fn finish(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.finish()
    }
}

impl LogFile {
    fn path(&self, end: &str) -> PathBuf {
        self.directory.join(format!("rank-{}.{end}", self.rank))
    }

    fn write(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = lines.join("\n");
        text.push('\n');
        let length = text.len() as u64;
        if self.part.as_ref().is_none_or(|part| part.bytes > 0 && part.bytes + length > self.part_bytes) {
            self.begin_part()?;
        }
        let Some(part) = &mut self.part else { return Ok(()) };
        part.file.write_all(text.as_bytes())?;
        part.bytes += length;
        part.lines += lines.len() as u64;
        Ok(())
    }

    /// Begins the first part, or the next part of the latest lines in place of the one before the last.
    fn begin_part(&mut self) -> io::Result<()> {
        let is_first = self.part.is_none();
        if let Some(full) = self.part.as_ref().filter(|part| !part.is_first) {
            let lines = full.lines;
            fs::rename(self.path("latest"), self.path("earlier"))?;
            self.left_out += std::mem::replace(&mut self.earlier, lines);
        }
        let path = self.path(if is_first { "log" } else { "latest" });
        let file = File::options().write(true).create_new(true).open(path)?;
        self.part = Some(LogPart { file, is_first, bytes: 0, lines: 0 });
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.part.take().is_none() {
            return Ok(());
        }
        let mut whole = File::options().append(true).open(self.path("log"))?;
        if self.left_out > 0 {
            let lines = protocol::display::counted(self.left_out, "line");
            writeln!(whole, "quorate: {lines} left out here, beyond the bound of a stored log")?;
        }
        for end in ["earlier", "latest"] {
            let path = self.path(end);
            match File::open(&path) {
                Ok(mut part) => io::copy(&mut part, &mut whole)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use protocol::{Digest, JobId};

    fn log(directory: &Path) -> RankLog {
        let key = RankKey { id: JobId(Digest::of(b"job")), attempt: 1, rank: 3 };
        let log = RankLog::new(key, directory, 1);
        log.file.lock().unwrap().part_bytes = 100;
        log
    }

    fn text(directory: &Path) -> String {
        fs::read_to_string(directory.join("rank-3.log")).unwrap()
    }

    #[test]
    fn a_rank_that_prints_little_has_all_of_its_lines_and_one_that_prints_nothing_no_file() {
        let directory = tempfile::tempdir().unwrap();
        log(directory.path()).finish().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let log = log(directory.path());
        for number in 0..15 {
            log.write(&[format!("line {number}"), "next".into()]);
        }
        log.finish().unwrap();
        let expected: String = (0..15).map(|number| format!("line {number}\nnext\n")).collect();
        assert_eq!(text(directory.path()), expected, "over all three parts");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// The attack is a rank that prints without end: its file has a bound, and each line is there or counted.
    #[test]
    fn the_first_and_the_latest_lines_are_kept_and_the_others_counted() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path());
        for number in 0..1000 {
            log.write(&[format!("line {number:03}")]);
        }
        log.finish().unwrap();
        let text = text(directory.path());
        assert!(text.len() < 400, "{} bytes", text.len());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[lines.len() - 1]), ("line 000", "line 999"));
        let at = lines.iter().position(|line| line.starts_with("quorate: ")).unwrap();
        let left_out: usize = lines[at].split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(lines.len() - 1 + left_out, 1000);
        assert_eq!(lines[at + 1], format!("line {:03}", at + left_out));
    }

    #[test]
    fn a_line_that_is_longer_than_a_part_has_one_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path());
        let long = "x".repeat(300);
        log.write(std::slice::from_ref(&long));
        log.write(&["short".into()]);
        log.finish().unwrap();
        assert_eq!(text(directory.path()), format!("{long}\nshort\n"));
    }

    #[test]
    fn lines_that_the_disk_does_not_take_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path());
        log.write(&["first".into()]);
        let elsewhere = directory.path().join("gone");
        let kept = std::mem::replace(&mut log.file.lock().unwrap().directory, elsewhere);
        log.write(&["y".repeat(100), "z".into()]);
        log.file.lock().unwrap().directory = kept;
        log.write(&["last".into()]);
        log.finish().unwrap();
        let text = text(directory.path());
        assert!(text.starts_with("first\nlast\nquorate: 2 lines left out"), "{text}");
    }

    #[test]
    fn ranks_of_one_slot_share_its_bound() {
        let key = RankKey { id: JobId(Digest::of(b"job")), attempt: 1, rank: 0 };
        let part = |ranks| RankLog::new(key, Path::new("/"), ranks).file.into_inner().unwrap().part_bytes;
        assert_eq!((part(1), part(8)), (*PART_BYTES.end(), LOG_BYTES_MAX / 24));
        assert_eq!(part(u32::MAX), *PART_BYTES.start());
    }
}

//! Journal of usage: each replica keeps the entries of closed intervals in files of its own, beside the
//! state.
//!
//! The state holds the latest entries; after each applied command they are copied, in order, behind the
//! last one kept here. The copy is idempotent, so replay, a restart and a snapshot change nothing. An entry
//! is one line of JSON, as an export has it. Segments have the number of their first entry as their name; a
//! torn last line is cut off at the start. The oldest segment goes when there are too many.
//!
//! Caveat: a replica that missed more entries than the state holds has a gap, which begins a new segment.
//! Another replica has them.

use super::Server;
use host::files;
use overlay::CancellationToken;
use protocol::usage::UsageEntry;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Size in bytes from which on a new segment begins: a page is read from one within milliseconds.
const SEGMENT_BYTES_MAX: u64 = 1024 * 1024;
/// Most segments: 4 GiB, some ten million entries.
const SEGMENTS_MAX: usize = 4096;
/// Ending of a segment's name.
const SUFFIX: &str = ".jsonl";

/// Entries of this replica, on its disk.
#[derive(Debug)]
pub(crate) struct UsageJournal {
    directory: PathBuf,
    kept: Mutex<KeptSegments>,
}

/// Segments by the number of their first entry.
#[derive(Debug, Default)]
struct KeptSegments {
    segments: BTreeMap<u64, JournalFile>,
}

#[derive(Debug, Clone, Copy)]
struct JournalFile {
    /// Number of its last entry.
    last: u64,
    bytes: u64,
}

impl KeptSegments {
    fn last(&self) -> u64 {
        self.segments.values().next_back().map_or(0, |segment| segment.last)
    }
}

impl UsageJournal {
    /// Opens the journal of a replica, and cuts off what a crash left half written.
    ///
    /// # Errors
    /// Errors of the system.
    pub(crate) fn open(replica: &Path) -> io::Result<Self> {
        let directory = replica.join("usage");
        files::private_directory(&directory)?;
        let mut firsts = Vec::new();
        for file in std::fs::read_dir(&directory)? {
            let name = file?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok());
            firsts.extend(number);
        }
        firsts.sort_unstable();
        let mut kept = KeptSegments::default();
        for first in firsts {
            let segment = recover(&path_of(&directory, first), first)?;
            match segment.filter(|_| first > kept.last()) {
                Some(segment) => drop(kept.segments.insert(first, segment)),
                None => std::fs::remove_file(path_of(&directory, first))?,
            }
        }
        Ok(Self { directory, kept: Mutex::new(kept) })
    }

    /// Returns the number of the last entry kept; 0 if there is none.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last()
    }

    /// Keeps the entries behind the last one kept. The others are known.
    ///
    /// # Errors
    /// Errors of the system. Entries that were written stay, and are not written again.
    pub(crate) fn append(&self, entries: &[UsageEntry]) -> io::Result<()> {
        let mut kept = self.lock();
        let mut open: Option<File> = None;
        for entry in entries {
            let last = kept.last();
            if entry.sequence <= last {
                continue;
            }
            let current = kept.segments.last_key_value().map(|(first, segment)| (*first, *segment));
            let goes_on = |(_, segment): &(u64, JournalFile)| {
                entry.sequence == last + 1 && segment.bytes < SEGMENT_BYTES_MAX
            };
            let (first, mut segment) = match current.filter(goes_on) {
                Some(current) => current,
                None => {
                    if let Some(full) = open.take() {
                        full.sync_data()?;
                    }
                    (entry.sequence, JournalFile { last, bytes: 0 })
                }
            };
            let mut file = match open.take() {
                Some(file) => file,
                None => self.open_segment(first, segment.bytes)?,
            };
            let mut line = serde_json::to_vec(entry)?;
            line.push(b'\n');
            file.write_all(&line)?;
            (segment.last, segment.bytes) = (entry.sequence, segment.bytes + line.len() as u64);
            kept.segments.insert(first, segment);
            open = Some(file);
        }
        if let Some(file) = open {
            file.sync_data()?;
            self.drop_oldest(&mut kept)?;
        }
        Ok(())
    }

    /// Opens a segment at its end. The rest of a failed write behind it is cut off.
    fn open_segment(&self, first: u64, bytes: u64) -> io::Result<File> {
        let path = path_of(&self.directory, first);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        file.set_len(bytes)?;
        if bytes == 0 {
            files::sync_directory(&self.directory)?;
        }
        Ok(file)
    }

    fn drop_oldest(&self, kept: &mut KeptSegments) -> io::Result<()> {
        while kept.segments.len() > SEGMENTS_MAX {
            let Some((first, _)) = kept.segments.pop_first() else { return Ok(()) };
            std::fs::remove_file(path_of(&self.directory, first))?;
        }
        Ok(())
    }

    /// Returns entries behind this number, at most so many, all of one segment. The file is read without a
    /// lock: lines are only added behind those that are known.
    ///
    /// # Errors
    /// Errors of the system; `InvalidData` for a line that is no entry.
    pub(crate) fn page(&self, after: u64, count: usize) -> io::Result<Vec<UsageEntry>> {
        let kept = self.lock();
        let found = kept.segments.iter().find(|(_, segment)| segment.last > after);
        let Some((first, segment)) = found.map(|(first, segment)| (*first, *segment)) else {
            return Ok(Vec::new());
        };
        drop(kept);
        let file = BufReader::new(File::open(path_of(&self.directory, first))?);
        let known = usize::try_from(segment.last - first + 1).unwrap_or(usize::MAX);
        let skipped = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let lines = file.split(b'\n').take(known).skip(skipped).take(count);
        lines.map(|line| Ok(serde_json::from_slice(&line?)?)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, KeptSegments> {
        self.kept.lock().expect("no holder of this lock panics")
    }
}

fn path_of(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}{SUFFIX}"))
}

/// Returns what a segment holds, and cuts off its last line if that is not whole; none if nothing is left.
fn recover(path: &Path, first: u64) -> io::Result<Option<JournalFile>> {
    let bytes = std::fs::read(path)?;
    let (mut next, mut end) = (first, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let entry: Option<UsageEntry> =
            line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
        if entry.is_none_or(|entry| entry.sequence != next) {
            break;
        }
        (next, end) = (next + 1, end + line.len());
    }
    if end < bytes.len() {
        OpenOptions::new().write(true).open(path)?.set_len(end as u64)?;
    }
    Ok((next > first).then_some(JournalFile { last: next - 1, bytes: end as u64 }))
}

/// Copies fresh entries of the state into the journal, until `shutdown`.
pub(crate) async fn feed(server: Arc<Server>, shutdown: CancellationToken) {
    let mut applied = server.handle.watch_applied();
    loop {
        server.journal_usage().await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

impl Server {
    /// Copies the entries that the journal lacks. A failure is reported; the next command tries again.
    pub(super) async fn journal_usage(&self) {
        let last = self.usage_journal.last();
        let fresh: Vec<UsageEntry> = self.cluster(|cluster| {
            let recent = cluster.usage().recent();
            match cluster.usage().recorded() > last {
                true => recent.filter(|entry| entry.sequence > last).cloned().collect(),
                false => Vec::new(),
            }
        });
        let Some(first) = fresh.first() else { return };
        if first.sequence > last + 1 {
            let (from, to) = (last + 1, first.sequence - 1);
            tracing::warn!(from, to, "entries of usage are missing here; another replica has them");
        }
        let journal = self.usage_journal.clone();
        match tokio::task::spawn_blocking(move || journal.append(&fresh)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "could not keep entries of usage; trying again"),
            Err(error) => tracing::warn!(%error, "could not keep entries of usage; trying again"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::testing::usage_entry;

    fn numbers(entries: &[UsageEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.sequence).collect()
    }

    fn entries(numbers: impl Iterator<Item = u64>) -> Vec<UsageEntry> {
        numbers.map(usage_entry).collect()
    }

    #[test]
    fn entries_are_kept_once_in_whatever_portions_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let journal = UsageJournal::open(directory.path()).unwrap();
        assert_eq!((journal.last(), journal.page(0, 9).unwrap().len()), (0, 0));
        for portion in [1..=3, 2..=3, 1..=5, 4..=4, 6..=6] {
            journal.append(&entries(portion)).unwrap();
        }
        assert_eq!(numbers(&journal.page(0, 100).unwrap()), [1, 2, 3, 4, 5, 6]);
        assert_eq!(numbers(&journal.page(2, 3).unwrap()), [3, 4, 5]);
        assert_eq!(numbers(&journal.page(6, 3).unwrap()), [0; 0]);
        drop(journal);
        let journal = UsageJournal::open(directory.path()).unwrap();
        assert_eq!(journal.last(), 6);
        journal.append(&entries(1..=7)).unwrap();
        assert_eq!(journal.page(0, 100).unwrap(), entries(1..=7), "a restart loses and doubles nothing");
    }

    /// A crash tears the last line; the entry is written again, whole.
    #[test]
    fn a_torn_line_is_cut_off_and_written_again() {
        let directory = tempfile::tempdir().unwrap();
        UsageJournal::open(directory.path()).unwrap().append(&entries(1..=3)).unwrap();
        let path = path_of(&directory.path().join("usage"), 1);
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 40, whole.len() / 3] {
            OpenOptions::new().write(true).open(&path).unwrap().set_len((whole.len() - cut) as u64).unwrap();
            let journal = UsageJournal::open(directory.path()).unwrap();
            assert_eq!(journal.last(), 2, "{cut} bytes are missing");
            journal.append(&entries(1..=3)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
        let journal = UsageJournal::open(directory.path()).unwrap();
        assert_eq!((journal.last(), path.exists()), (0, false), "nothing whole is left");
    }

    #[test]
    fn a_gap_begins_a_segment_and_pages_go_on_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let journal = UsageJournal::open(directory.path()).unwrap();
        journal.append(&entries(1..=2)).unwrap();
        journal.append(&entries(9..=10)).unwrap();
        assert_eq!(numbers(&journal.page(0, 100).unwrap()), [1, 2]);
        assert_eq!(numbers(&journal.page(2, 100).unwrap()), [9, 10]);
        let journal = UsageJournal::open(directory.path()).unwrap();
        assert_eq!((journal.last(), numbers(&journal.page(9, 100).unwrap())), (10, vec![10]));
    }

    #[test]
    fn segments_are_bounded_and_pages_continue_over_them() {
        let directory = tempfile::tempdir().unwrap();
        let journal = UsageJournal::open(directory.path()).unwrap();
        journal.append(&entries(1..=4_000)).unwrap();
        let files = std::fs::read_dir(directory.path().join("usage")).unwrap().count();
        assert!(files > 1, "{files} segments");
        let mut read = Vec::new();
        loop {
            let page = journal.page(read.len() as u64, 500).unwrap();
            assert!(page.len() <= 500);
            match page.is_empty() {
                true => break,
                false => read.extend(numbers(&page)),
            }
        }
        assert!(read.into_iter().eq(1..=4_000));
    }
}

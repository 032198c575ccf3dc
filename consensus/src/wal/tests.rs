//! Tests of the write-ahead log: recovery, refusal and truncation.

mod formats;
mod model;
mod owners;
mod two_snapshots;

use super::files::SimulatedFiles;
use super::*;
use crate::config::GroupId;
use crate::ids::Term;
use crate::store::LogEntry;
use bytes::Bytes;
use protocol::ReplicaId;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const SEGMENT_BYTES: u64 = 64 * 1024;

fn owner(id: u64) -> Owner {
    Owner { group: GroupId([7; 32]), id: ReplicaId(id), voters: [1, 2, 3].map(ReplicaId).to_vec() }
}

/// Returns the path of a segment.
fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(segment::name(SegmentNumber(number)))
}

fn real(directory: &Path) -> RealDirectory {
    RealDirectory::open(directory).expect("a directory")
}

fn open(directory: &Path) -> Result<(WriteAheadLog, Recovered), StartError> {
    WriteAheadLog::open(directory, owner(1), true, SEGMENT_BYTES)
}

fn entries(range: std::ops::RangeInclusive<u64>, size: usize) -> Batch {
    let entry = |index| LogEntry {
        index: LogIndex(index),
        term: Term(1),
        data: Bytes::from(vec![index as u8; size]),
    };
    Batch { entries: range.map(entry).collect(), sync: true, ..Batch::default() }
}

fn entries_of(term: u64, range: std::ops::RangeInclusive<u64>, size: usize) -> Batch {
    let mut batch = entries(range, size);
    batch.entries.iter_mut().for_each(|entry| entry.term = Term(term));
    batch
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: Some(ReplicaId(2)), commit: LogIndex(commit) }
}

fn hard_state(term: u64, commit: u64) -> Batch {
    Batch { hard_state: Some(state(term, commit)), sync: true, ..Batch::default() }
}

fn snapshot(index: u64) -> Snapshot {
    let voters = [1, 2, 3].map(ReplicaId).to_vec();
    Snapshot { index: LogIndex(index), term: Term(1), voters, data: Bytes::from(vec![9; 1000]) }
}

fn refusal(outcome: Result<(WriteAheadLog, Recovered), StartError>) -> LogError {
    match outcome {
        Err(StartError::Log(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the log was accepted"),
    }
}

/// Creates a log of three durable batches and closes it; returns the path of its only segment.
fn small_log(directory: &Path) -> PathBuf {
    let (log, _) = open(directory).expect("a new log");
    log.write(&[hard_state(1, 0)]).expect("space");
    log.write(&[entries(1..=3, 100)]).expect("space");
    log.write(&[Batch { sync: true, ..hard_state(1, 2) }]).expect("space");
    segment_path(directory, 0)
}

#[test]
fn durable_state_is_recovered() {
    let directory = TempDir::new().expect("temporary directory");
    small_log(directory.path());
    let (log, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries, entries(1..=3, 100).entries);
    assert_eq!(found.hard_state, state(1, 2));
    assert_eq!(found.incarnation, Incarnation(2));
    log.write(&[entries(3..=5, 50)]).expect("space");
    drop(log);
    let (_, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries[2..], entries(3..=5, 50).entries);
    assert_eq!(found.incarnation, Incarnation(3));
}

#[test]
fn many_segments_are_one_log_and_are_removed_behind_a_snapshot() {
    let directory = TempDir::new().expect("temporary directory");
    let segments = || {
        fs::read_dir(directory.path())
            .expect("list")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("segment-"))
            .count()
    };
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[hard_state(4, 0)]).expect("space");
    for index in 1..=300 {
        log.write(&[entries(index..=index, 1000)]).expect("space");
    }
    assert_eq!(segments(), 6);
    drop(log);
    let (log, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries.len(), 300);
    assert_eq!(found.hard_state.term, Term(4));
    log.save_snapshot(&snapshot(245)).expect("space");
    log.truncate(LogIndex(245)).expect("removal");
    assert_eq!(segments(), 6, "one snapshot alone is not trusted with what the log holds");
    log.save_snapshot(&snapshot(250)).expect("space");
    log.truncate(LogIndex(250)).expect("removal");
    assert!(segments() <= 2, "{} segments are left", segments());
    drop(log);
    let (_, found) = open(directory.path()).expect("a truncated log");
    assert_eq!(found.entries.first().map(|entry| entry.index), Some(LogIndex(251)));
    assert_eq!(found.snapshot, Some(snapshot(250)));
    assert_eq!(found.hard_state, state(4, 250));
    assert_eq!(found.incarnation, Incarnation(3), "it survives the removal of the segments that recorded it");
}

#[test]
fn a_suffix_overwritten_across_a_segment_survives_truncation() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[hard_state(1, 0)]).expect("space");
    // Writes until the second segment has begun, and well into it.
    let mut last = 0;
    while log.lock().segment.number == SegmentNumber(0) || last % 20 != 0 {
        last += 1;
        log.write(&[entries(last..=last, 1000)]).expect("space");
    }
    let boundary = log.lock().older[0].1.0;
    // A new leader replaces uncommitted entries, from an index in the first segment.
    let from = boundary - 5;
    log.write(&[hard_state(2, from - 1), entries_of(2, from..=last + 10, 100)]).expect("space");
    log.write(&[hard_state(2, last)]).expect("space");
    log.save_snapshot(&Snapshot { term: Term(2), ..snapshot(boundary) }).expect("space");
    let taken = Snapshot { term: Term(2), ..snapshot(boundary + 1) };
    log.save_snapshot(&taken).expect("space");
    log.truncate(taken.index).expect("removal");
    assert!(!segment_path(directory.path(), 0).exists(), "the first segment is removed");
    drop(log);
    let (_, found) = open(directory.path()).expect("a healthy log");
    assert_eq!(found.snapshot, Some(taken));
    assert_eq!(found.entries, entries_of(2, boundary + 2..=last + 10, 100).entries);
    assert_eq!(found.hard_state, state(2, last));
}

#[test]
fn entries_after_a_snapshot_survive_the_loss_of_its_mark() {
    // The log ends before the snapshot, or reaches beyond it with entries of a deposed leader.
    for reached in [50, 120] {
        let directory = TempDir::new().expect("temporary directory");
        let (log, _) = open(directory.path()).expect("a new log");
        log.write(&[entries(1..=reached, 10), hard_state(1, 40)]).expect("space");
        let sent = Snapshot { term: Term(3), ..snapshot(90) };
        // The state of an installation that was killed: the snapshot's file exists, its mark does not.
        log.save_snapshot(&sent).expect("space");
        drop(log);
        let (log, found) = open(directory.path()).expect("an existing log");
        assert_eq!((found.snapshot.as_ref(), found.entries.len()), (Some(&sent), 0));
        let follows = entries_of(3, 91..=93, 10);
        let hard_state = hard_state(3, 92).hard_state;
        log.write(&[Batch { hard_state, ..follows.clone() }]).expect("space");
        drop(log);
        for _ in 0..2 {
            let (_, found) = open(directory.path()).expect("a healthy log");
            assert_eq!(found.entries, follows.entries, "acknowledged, and lost");
            assert_eq!(found.hard_state.commit, LogIndex(92));
        }
    }
}

#[test]
fn a_second_snapshot_whose_mark_was_lost_continues_the_first() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[Batch { snapshot: Some(snapshot(90)), sync: true, ..hard_state(1, 90) }]).expect("space");
    log.save_snapshot(&snapshot(120)).expect("space");
    drop(log);
    let (log, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.snapshot, Some(snapshot(120)));
    log.write(&[entries(121..=122, 10)]).expect("space");
    drop(log);
    let (_, found) = open(directory.path()).expect("a healthy log");
    assert_eq!(found.entries, entries(121..=122, 10).entries);
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_size() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[entries(1..=1, 5 * SEGMENT_BYTES as usize)]).expect("space");
    log.write(&[entries(2..=2, 10)]).expect("space");
    drop(log);
    let (_, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries.len(), 2);
}

#[test]
fn a_snapshot_from_the_leader_replaces_the_log() {
    let directory = TempDir::new().expect("temporary directory");
    small_log(directory.path());
    let (log, _) = open(directory.path()).expect("an existing log");
    let install = Batch { snapshot: Some(snapshot(90)), sync: true, ..hard_state(2, 90) };
    log.write(&[install, entries(91..=92, 10)]).expect("space");
    drop(log);
    let (_, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.snapshot, Some(snapshot(90)));
    assert_eq!(found.entries, entries(91..=92, 10).entries);
}

/// A closed log of three durable batches and a last record with entries of a given size.
struct Ended {
    directory: TempDir,
    segment: PathBuf,
    whole: Vec<u8>,
    record: std::ops::Range<usize>,
    /// The mark as it is, and as it was before the last record.
    marks: (Vec<u8>, Vec<u8>),
}

impl Ended {
    fn new(size: usize) -> Self {
        // Thousands of starts: on an in-memory file system, if there is one.
        let place = Path::new("/dev/shm");
        let place = if place.is_dir() { place.to_path_buf() } else { std::env::temp_dir() };
        let directory = TempDir::new_in(place).expect("temporary directory");
        let segment = small_log(directory.path());
        let mark = directory.path().join("durable.mark");
        let (log, _) = open(directory.path()).expect("an existing log");
        let begin = log.lock().segment.free_bytes();
        let before = fs::read(&mark).expect("read");
        log.write(&[entries(4..=6, size)]).expect("space");
        let capacity = log.lock().segment.free_bytes();
        drop(log);
        let whole = fs::read(&segment).expect("read");
        let begin = whole.len() - begin as usize;
        let found = record::read(&whole[begin..]).expect("the last record");
        let end = begin + 64 + found.payload.len();
        assert!(end.next_multiple_of(8) == whole.len() - capacity as usize);
        let marks = (fs::read(&mark).expect("read"), before);
        Self { directory, segment, whole, record: begin..end, marks }
    }

    /// Starts with these bytes of the segment and of the mark; returns the number of recovered entries, or
    /// the refusal.
    fn start(&self, segment: &[u8], mark: &[u8]) -> Result<usize, String> {
        fs::write(&self.segment, segment).expect("write");
        fs::write(self.directory.path().join("durable.mark"), mark).expect("write");
        match recovery::recover(&real(self.directory.path()), &owner(1), false, SEGMENT_BYTES) {
            Ok(found) => Ok(found.recovered.entries.len()),
            Err(error) => {
                assert_eq!(error.code().as_str(), "log-damaged", "{error}");
                Err(error.to_string())
            }
        }
    }

    /// Returns the segment after a modification.
    fn with(&self, alter: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut segment = self.whole.clone();
        alter(&mut segment);
        segment
    }
}

#[test]
fn damage_to_any_byte_of_an_acknowledged_last_record_is_detected() {
    for size in [10, 700] {
        let log = Ended::new(size);
        let mark = &log.marks.0;
        assert_eq!(log.start(&log.whole, mark), Ok(6));
        for at in log.record.clone() {
            let flipped = log.with(|segment| segment[at] ^= 0x10);
            assert!(log.start(&flipped, mark).is_err(), "byte {at} flipped");
            let zeroed = log.with(|segment| segment[at] = 0);
            assert!(zeroed == log.whole || log.start(&zeroed, mark).is_err(), "byte {at} zeroed");
            let blank = log.with(|segment| segment[at..].fill(0));
            assert!(blank == log.whole || log.start(&blank, mark).is_err(), "zeros from byte {at}");
            let cut = log.with(|segment| segment.truncate(at));
            assert!(log.start(&cut, mark).is_err(), "cut at byte {at}");
        }
    }
}

#[test]
fn a_torn_write_is_truncated_and_a_damaged_one_is_not() {
    for size in [10, 700] {
        let log = Ended::new(size);
        // The machine failed before the mark of the last record reached the disk.
        let mark = &log.marks.1;
        assert_eq!(log.start(&log.whole, mark), Ok(6), "not acknowledged, and intact");
        let last_sector = log.record.start.max((log.record.end - 1) / 512 * 512);
        for at in log.record.clone() {
            let flipped = log.with(|segment| segment[at] ^= 0x10);
            assert!(log.start(&flipped, mark).is_err(), "byte {at} flipped");
            let blank = log.with(|segment| segment[at..].fill(0));
            let outcome = log.start(&blank, mark);
            if at % 512 == 0 || at == log.record.start {
                assert_eq!(outcome, Ok(3), "the sectors from {at} never came");
            } else if blank[last_sector..].iter().any(|byte| *byte != 0) && blank != log.whole {
                assert!(outcome.is_err(), "no disk tears inside a sector, as at byte {at}");
            }
        }
        let sectors = log.record.start / 512..log.record.end.div_ceil(512);
        for missing in sectors {
            let from = log.record.start.max(missing * 512);
            let to = log.record.end.min((missing + 1) * 512);
            let torn = log.with(|segment| segment[from..to].fill(0));
            assert_eq!(log.start(&torn, mark), Ok(3), "sector {missing} never came");
        }
    }
}

#[test]
fn the_mark_survives_damage_and_never_rejects_a_healthy_log() {
    let log = Ended::new(100);
    let mark = &log.marks.0;
    for at in (0..128).chain(4096..4224) {
        let mut damaged = mark.clone();
        damaged[at] ^= 0x10;
        assert_eq!(log.start(&log.whole, &damaged), Ok(6), "byte {at}");
    }
    let mut both = mark.clone();
    (both[20], both[4116]) = (!both[20], !both[4116]);
    for unreadable in [&both[..], &[]] {
        let refused = log.start(&log.whole, unreadable).expect_err("no slot of the mark is readable");
        assert!(refused.contains("neither of its two slots"), "{refused}");
    }
}

#[test]
fn a_log_that_differs_from_the_marked_one_is_rejected() {
    let log = Ended::new(100);
    let earlier = log.with(|segment| segment[log.record.start..].fill(0));
    let refused = log.start(&earlier, &log.marks.0).expect_err("a copy of an earlier state");
    assert!(refused.contains("was durable and does not read back"), "{refused}");
    let other = Ended::new(101);
    let refused = log.start(&other.whole, &log.marks.0).expect_err("another record of the same number");
    assert!(refused.contains("is not the one that was durable"), "{refused}");
    fs::remove_file(log.directory.path().join("durable.mark")).expect("remove");
    let error = refusal(open(log.directory.path()));
    assert!(error.to_string().contains("the mark beside it is missing"), "{error}");
    fs::write(log.directory.path().join("durable.mark"), &log.marks.0).expect("write");
    fs::remove_file(&log.segment).expect("remove");
    let error = refusal(open(log.directory.path()));
    assert!(error.to_string().contains("no segment is left"), "{error}");
}

#[test]
fn every_damaged_byte_is_detected() {
    let directory = TempDir::new().expect("temporary directory");
    let path = small_log(directory.path());
    let whole = fs::read(&path).expect("read");
    let records: Vec<(usize, usize)> = (0..whole.len())
        .step_by(8)
        .filter_map(|at| record::read(&whole[at..]).map(|found| (at, at + 64 + found.payload.len())))
        .collect();
    let end = records.last().expect("records were written").1;
    for at in (0..end).filter(|at| whole[*at] != 0 || at % 16 == 0) {
        let padding = at >= segment::HEADER_BYTES as usize
            && !records.iter().any(|(begin, end)| (*begin..*end).contains(&at));
        if padding {
            continue;
        }
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("write");
        let error = refusal(open(directory.path()));
        assert!(matches!(error, LogError::Corrupt { .. } | LogError::Foreign { .. }), "byte {at}: {error}");
    }
}

/// Opens a log on simulated files, as a process of its own.
fn open_simulated(files: &SimulatedFiles, making: Making) -> (WriteAheadLog, Recovered) {
    files.kill();
    let opened = WriteAheadLog::open_in(files.directory(), owner(1), true, SEGMENT_BYTES, making);
    let (log, found, _) = opened.expect("the log is whole");
    (log, found)
}

#[test]
fn a_write_to_a_full_disk_writes_nothing_and_may_be_retried() {
    for making in [Making::Ahead, Making::Inline] {
        let files = SimulatedFiles::new(1);
        let (log, _) = open_simulated(&files, making);
        // Three batches that are written together or not at all, although only the last one does not fit.
        let group = |from: u64| {
            [
                entries(from..=from, 9000),
                entries(from + 1..=from + 1, 9000),
                entries(from + 2..=from + 2, 9000),
            ]
        };
        files.set_full(true);
        let mut next = 1;
        while let Ok(()) = log.write(&group(next)) {
            next += 3;
        }
        let refused = log.write(&group(next)).expect_err("still full");
        assert_eq!(refused.code().as_str(), "log-disk-full");
        assert!(log.nearly_full());
        let (log, found) = {
            files.crash();
            drop(log);
            // A start needs a little space, and there is some left in the segment.
            open_simulated(&files, making)
        };
        assert_eq!(found.entries.len() as u64, next - 1, "exactly what was acknowledged");
        files.set_full(false);
        for _ in 0..3 {
            log.write(&group(next)).expect("there is space again");
            next += 3;
        }
        drop(log);
        let (_log, found) = open_simulated(&files, making);
        assert_eq!(found.entries.len() as u64, next - 1);
    }
}

#[test]
fn a_missing_segment_and_a_missing_snapshot_are_detected() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    for index in 1..=300 {
        log.write(&[entries(index..=index, 1000)]).expect("space");
    }
    drop(log);
    let path = segment_path(directory.path(), 2);
    let kept = fs::read(&path).expect("read");
    fs::remove_file(&path).expect("remove");
    assert_eq!(refusal(open(directory.path())).code().as_str(), "log-damaged");
    fs::write(&path, kept).expect("write");
    fs::remove_file(segment_path(directory.path(), 0)).expect("remove");
    let error = refusal(open(directory.path()));
    assert!(error.to_string().contains("are missing"), "{error}");

    let other = TempDir::new().expect("temporary directory");
    let (log, _) = open(other.path()).expect("a new log");
    log.write(&[Batch { snapshot: Some(snapshot(9)), sync: true, ..Batch::default() }]).expect("space");
    drop(log);
    fs::remove_file(other.path().join("snapshot-0000000000000009.snap")).expect("remove");
    let error = refusal(open(other.path()));
    assert!(error.to_string().contains("the snapshot at entry 9 is missing"), "{error}");
}

#[test]
fn a_bootstrap_that_was_killed_before_anything_was_durable_is_retried() {
    let directory = TempDir::new().expect("temporary directory");
    drop(mark::Mark::create(&real(directory.path()), &owner(1), &first_position()).expect("space"));
    let (log, found) =
        WriteAheadLog::open(directory.path(), owner(1), false, SEGMENT_BYTES).expect("created");
    assert_eq!(found.incarnation, Incarnation(1));
    drop(log);
    // From here on something was durable: the same missing file means damage.
    fs::remove_file(segment_path(directory.path(), 0)).expect("remove");
    assert_eq!(refusal(open(directory.path())).code().as_str(), "log-damaged");
}

#[test]
fn a_log_is_created_once_and_opened_by_one_process() {
    let directory = TempDir::new().expect("temporary directory");
    let path = directory.path();
    let none = WriteAheadLog::open(path, owner(1), false, SEGMENT_BYTES);
    assert_eq!(refusal(none).code().as_str(), "log-unknown");
    let (log, _) = open(path).expect("a new log");
    assert_eq!(refusal(open(path)).code().as_str(), "directory-in-use");
    drop(log);
    assert!(WriteAheadLog::open(path, owner(1), false, SEGMENT_BYTES).is_ok());
}

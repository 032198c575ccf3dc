//! The log on a real disk: what comes back, what is refused, what is cut off.

use super::*;
use crate::store::LogEntry;
use bytes::Bytes;
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const SEGMENT_BYTES: u64 = 64 * 1024;

fn owner(id: u64) -> Owner {
    Owner { id, voters: vec![1, 2, 3] }
}

fn open(directory: &Path) -> Result<(WriteAheadLog, Recovered), StartError> {
    WriteAheadLog::open(directory, owner(1), true, SEGMENT_BYTES)
}

fn entries(range: std::ops::RangeInclusive<u64>, size: usize) -> Batch {
    let entry = |index| LogEntry { index, term: 1, data: Bytes::from(vec![index as u8; size]) };
    Batch { entries: range.map(entry).collect(), sync: true, ..Batch::default() }
}

fn hard_state(term: u64, commit: u64) -> Batch {
    Batch { hard_state: Some(HardState { term, vote: 2, commit }), sync: true, ..Batch::default() }
}

fn snapshot(index: u64) -> Snapshot {
    Snapshot { index, term: 1, voters: vec![1, 2, 3], data: Bytes::from(vec![9; 1000]) }
}

fn refusal(outcome: Result<(WriteAheadLog, Recovered), StartError>) -> LogError {
    match outcome {
        Err(StartError::Log(error)) => error,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("the log was accepted"),
    }
}

/// A log of three durable batches, closed; returns the file of its only segment.
fn small_log(directory: &Path) -> PathBuf {
    let (log, _) = open(directory).expect("a new log");
    log.write(&[hard_state(1, 0)]).expect("room");
    log.write(&[entries(1..=3, 100)]).expect("room");
    log.write(&[Batch { sync: true, ..hard_state(1, 3) }]).expect("room");
    segment::path(directory, 0)
}

#[test]
fn what_was_durable_comes_back() {
    let directory = TempDir::new().expect("temporary directory");
    small_log(directory.path());
    let (log, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries, entries(1..=3, 100).entries);
    assert_eq!(found.hard_state, HardState { term: 1, vote: 2, commit: 3 });
    assert_eq!(found.boots, 2);
    log.write(&[entries(3..=5, 50)]).expect("room");
    drop(log);
    let (_, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries[2..], entries(3..=5, 50).entries);
    assert_eq!(found.boots, 3);
}

#[test]
fn many_segments_are_read_as_one_log_and_let_go_behind_a_snapshot() {
    let directory = TempDir::new().expect("temporary directory");
    let segments = || {
        fs::read_dir(directory.path())
            .expect("list")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("segment-"))
            .count()
    };
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[hard_state(4, 0)]).expect("room");
    for index in 1..=300 {
        log.write(&[entries(index..=index, 1000)]).expect("room");
    }
    assert_eq!(segments(), 6);
    drop(log);
    let (log, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.entries.len(), 300);
    assert_eq!(found.hard_state.term, 4);
    log.save_snapshot(&snapshot(250)).expect("room");
    log.truncate(250).expect("removal");
    assert!(segments() <= 2, "{} segments are left", segments());
    drop(log);
    let (_, found) = open(directory.path()).expect("a truncated log");
    assert_eq!(found.entries.first().map(|entry| entry.index), Some(251));
    assert_eq!(found.snapshot, Some(snapshot(250)));
    assert_eq!((found.hard_state.term, found.hard_state.commit), (4, 250));
    assert_eq!(found.boots, 3, "starts are counted though the segments that counted them are gone");
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_size() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    log.write(&[entries(1..=1, 5 * SEGMENT_BYTES as usize)]).expect("room");
    log.write(&[entries(2..=2, 10)]).expect("room");
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
    log.write(&[install, entries(91..=92, 10)]).expect("room");
    drop(log);
    let (_, found) = open(directory.path()).expect("an existing log");
    assert_eq!(found.snapshot, Some(snapshot(90)));
    assert_eq!(found.entries, entries(91..=92, 10).entries);
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_tears() {
    let directory = TempDir::new().expect("temporary directory");
    let path = small_log(directory.path());
    let whole = fs::read(&path).expect("read");
    let (log, _) = open(directory.path()).expect("an existing log");
    log.write(&[entries(4..=6, 100)]).expect("room");
    drop(log);
    let longer = fs::read(&path).expect("read");
    let differ: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != longer[*at]).collect();
    let (begin, end) = (differ[0], differ[differ.len() - 1]);
    // The boot record comes first and was durable before the last batch began.
    let batch_at = (begin..end).step_by(8).filter(|at| record::read(&longer[*at..]).is_some()).nth(1);
    let batch_at = batch_at.expect("two records were written");
    for cut in (batch_at..end).step_by(7) {
        let mut torn = longer.clone();
        torn[cut..].fill(0);
        fs::write(&path, &torn).expect("write");
        let (_, found) = open(directory.path()).expect("a torn log");
        assert_eq!(found.entries.len(), 3, "torn at {cut}");
    }
}

#[test]
fn every_damaged_byte_before_the_end_is_refused() {
    let directory = TempDir::new().expect("temporary directory");
    let path = small_log(directory.path());
    let whole = fs::read(&path).expect("read");
    let records: Vec<usize> =
        (0..whole.len()).step_by(8).filter(|at| record::read(&whole[*at..]).is_some()).collect();
    let last = *records.last().expect("records were written");
    for at in (0..last).filter(|at| whole[*at] != 0 || at % 16 == 0) {
        let padding = at >= segment::HEADER_BYTES as usize
            && records.iter().all(|begin| {
                let length = record::read(&whole[*begin..]).map_or(0, |found| 64 + found.payload.len());
                !(*begin..*begin + length).contains(&at)
            });
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

#[test]
fn a_missing_segment_and_a_missing_snapshot_are_refused() {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    for index in 1..=300 {
        log.write(&[entries(index..=index, 1000)]).expect("room");
    }
    drop(log);
    let path = segment::path(directory.path(), 2);
    let kept = fs::read(&path).expect("read");
    fs::remove_file(&path).expect("remove");
    assert_eq!(refusal(open(directory.path())).code().as_str(), "log-damaged");
    fs::write(&path, kept).expect("write");
    fs::remove_file(segment::path(directory.path(), 0)).expect("remove");
    let error = refusal(open(directory.path()));
    assert!(error.to_string().contains("are missing"), "{error}");

    let other = TempDir::new().expect("temporary directory");
    let (log, _) = open(other.path()).expect("a new log");
    log.write(&[Batch { snapshot: Some(snapshot(9)), sync: true, ..Batch::default() }]).expect("room");
    drop(log);
    fs::remove_file(other.path().join("snapshot-0000000000000009.snap")).expect("remove");
    let error = refusal(open(other.path()));
    assert!(error.to_string().contains("the snapshot at entry 9 is missing"), "{error}");
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let directory = TempDir::new().expect("temporary directory");
    small_log(directory.path());
    let (log, _) = open(directory.path()).expect("an existing log");
    log.save_snapshot(&snapshot(2)).expect("room");
    drop(log);
    let path = directory.path().join("snapshot-0000000000000002.snap");
    let whole = fs::read(&path).expect("read");
    for at in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).expect("write");
        assert_eq!(refusal(open(directory.path())).code().as_str(), "log-damaged", "byte {at}");
    }
}

#[test]
fn a_directory_opens_for_its_owner_alone() {
    let directory = TempDir::new().expect("temporary directory");
    let path = directory.path();
    let none = WriteAheadLog::open(path, owner(1), false, SEGMENT_BYTES);
    assert_eq!(refusal(none).code().as_str(), "log-unknown");
    let (log, _) = open(path).expect("a new log");
    assert_eq!(refusal(open(path)).code().as_str(), "directory-in-use");
    drop(log);
    assert_eq!(
        refusal(WriteAheadLog::open(path, owner(2), true, SEGMENT_BYTES)).code().as_str(),
        "log-foreign"
    );
    let fewer = Owner { id: 1, voters: vec![1, 2] };
    assert_eq!(refusal(WriteAheadLog::open(path, fewer, true, SEGMENT_BYTES)).code().as_str(), "log-foreign");
    assert!(WriteAheadLog::open(path, owner(1), false, SEGMENT_BYTES).is_ok());
}

#[test]
fn a_file_limit_met_while_writing_is_a_full_disk_with_nothing_lost() {
    // A real full file system needs a mount; `/dev/full` gives the same answer from the kernel.
    let full = File::options().write(true).open("/dev/full").expect("linux has it");
    let source = full.write_all_at(b"x", 0).expect_err("always full");
    let error = LogError::io("write", Path::new("segment"), source);
    assert_eq!(error.code().as_str(), "log-disk-full");
    assert!(error.to_string().contains("nothing acknowledged is lost"));
}

//! Fallback tests: if the newest snapshot is damaged, a start uses the other one and the log.

use super::*;

fn name(index: u64) -> String {
    format!("snapshot-{index:016x}.snap")
}

fn flip(directory: &Path, name: &str, at: usize) {
    let path = directory.join(name);
    let mut bytes = fs::read(&path).expect("read");
    bytes[at] ^= 0x10;
    fs::write(&path, &bytes).expect("write");
}

/// Writes 300 entries in several segments, with snapshots at these entries, each followed by a truncation.
fn fill(log: &WriteAheadLog, snapshots: &[u64]) {
    for index in 1..=300 {
        log.write(&[entries(index..=index, 1000)]).expect("space");
        if snapshots.contains(&index) {
            log.write(&[hard_state(1, index)]).expect("space");
            log.save_snapshot(&snapshot(index)).expect("space");
            log.truncate(LogIndex(index)).expect("removal");
        }
    }
}

/// Creates such a log, and closes it.
fn log_with(snapshots: &[u64]) -> TempDir {
    let directory = TempDir::new().expect("temporary directory");
    let (log, _) = open(directory.path()).expect("a new log");
    fill(&log, snapshots);
    directory
}

/// Opens a log whose newest snapshot is damaged, and returns what was found.
fn fallen_back(directory: &Path) -> (WriteAheadLog, Recovered) {
    let opened =
        WriteAheadLog::open_in(Arc::new(real(directory)), owner(1), false, SEGMENT_BYTES, Making::Ahead);
    let (log, found, seen) = opened.expect("the older snapshot and the log are enough");
    assert!(seen.fell_back);
    (log, found)
}

#[test]
fn any_damaged_byte_of_the_newest_snapshot_leaves_the_older_one_and_the_log() {
    let files = SimulatedFiles::new(1);
    let (log, _) = open_simulated(&files, Making::Inline);
    fill(&log, &[100, 200]);
    drop(log);
    let length = files.directory().open(&name(200)).expect("alive").expect("there").length().expect("alive");
    for at in 0..length as usize {
        let copy = files.copy();
        assert!(copy.flip_newest_snapshot(at));
        copy.kill();
        let opened = WriteAheadLog::open_in(copy.directory(), owner(1), false, SEGMENT_BYTES, Making::Inline);
        let (_log, found, seen) = opened.expect("the older snapshot and the log are enough");
        assert!(seen.fell_back, "byte {at}");
        assert_eq!(found.snapshot, Some(snapshot(100)), "byte {at}");
        assert!(found.entries == entries(101..=300, 1000).entries, "byte {at}");
        assert_eq!(found.hard_state.commit, LogIndex(200));
    }
}

#[test]
fn a_damaged_first_snapshot_leaves_the_whole_log() {
    let log = log_with(&[100]);
    flip(log.path(), &name(100), 90);
    let (_log, found) = fallen_back(log.path());
    assert_eq!((found.snapshot, found.entries.len()), (None, 300));
}

#[test]
fn a_damaged_snapshot_is_quarantined_until_two_others_are_intact() {
    let directory = log_with(&[100, 200]);
    let aside = directory.path().join("snapshot-00000000000000c8.damaged");
    flip(directory.path(), &name(200), 90);
    let (log, _) = fallen_back(directory.path());
    assert!(aside.exists() && !directory.path().join(name(200)).exists());
    log.save_snapshot(&snapshot(300)).expect("space");
    log.truncate(LogIndex(300)).expect("removal");
    assert!(!aside.exists(), "two are whole again");
    drop(log);
    flip(directory.path(), &name(300), 90);
    let (_log, found) = fallen_back(directory.path());
    assert_eq!((found.snapshot, found.entries.len()), (Some(snapshot(100)), 200), "and again");
}

#[test]
fn a_log_that_ends_before_a_damaged_snapshot_is_rejected_and_left_unchanged() {
    let check = |directory: &Path, damaged: &str| {
        for _ in 0..2 {
            let error = refusal(open(directory));
            assert_eq!(error.code().as_str(), "log-damaged");
            let text = error.to_string();
            assert!(text.contains(damaged) && text.contains("the digest does not fit the content"), "{text}");
        }
    };
    // Both snapshots are damaged.
    let both = log_with(&[100, 200]);
    flip(both.path(), &name(100), 90);
    flip(both.path(), &name(200), 90);
    check(both.path(), &name(100));
    // The older snapshot is missing, and the log no longer begins at its first entry.
    let alone = log_with(&[100, 200]);
    fs::remove_file(alone.path().join(name(100))).expect("remove");
    flip(alone.path(), &name(200), 90);
    check(alone.path(), &name(200));
    // The newest snapshot came from the leader, and replaced entries that this log never had.
    let installed = log_with(&[100]);
    let (log, _) = open(installed.path()).expect("an existing log");
    let install = Batch { snapshot: Some(snapshot(900)), sync: true, ..hard_state(1, 900) };
    log.write(&[install, entries(901..=902, 10)]).expect("space");
    drop(log);
    flip(installed.path(), &name(900), 90);
    check(installed.path(), &name(900));
}

#[test]
fn on_a_full_disk_the_log_is_truncated_behind_the_newest_snapshot() {
    for (full, expected) in [(false, 0), (true, 3)] {
        let files = SimulatedFiles::new(1);
        let (log, _) = open_simulated(&files, Making::Inline);
        for index in 1..=300 {
            log.write(&[entries(index..=index, 1000)]).expect("space");
        }
        log.save_snapshot(&snapshot(200)).expect("space");
        files.set_full(full);
        // The spare that is ready is used up; no other can be made.
        while full && !log.nearly_full() {
            log.write(&[entries(301..=301, 30_000)]).expect("space");
        }
        log.truncate(LogIndex(200)).expect("removal");
        assert_eq!(files.seen().segments_removed, expected);
    }
}

//! Full-disk tests on a real file system: a small one in memory, in a mount namespace of a child process.
//!
//! The mount disappears with the child. If neither root nor user namespaces allow it, the test fails, unless
//! `QUORATE_SKIP_MOUNTS` is set. The simulated disk shows the same behaviour everywhere.

use crate::group::{GROUP, Group, WAIT_TIMEOUT, quick, text};
use bytes::Bytes;
use consensus::store::{Batch, LogEntry, LogStore, Snapshot};
use consensus::wal::{Owner, WriteAheadLog};
use consensus::{Limits, LogIndex, RaftStatus, StartError, Term, Timings};
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;

const SMALL: &str = "QUORATE_TEST_SMALL_DISK";
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Environment variable that lets this test pass where nothing can be mounted.
const MAY_SKIP: &str = "QUORATE_SKIP_MOUNTS";
/// Exit status of the shell if it could not mount.
const NOT_MOUNTED: i32 = 77;

#[test]
fn a_full_file_system_stops_no_replica_and_loses_nothing() {
    let mount = tempfile::tempdir().expect("temporary directory");
    let script =
        format!("mount -t tmpfs -o size=2m none \"${SMALL}\" || exit {NOT_MOUNTED}; exec \"$0\" \"$@\"");
    let mut reasons = Vec::new();
    for namespaces in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
        let child = Command::new("unshare")
            .args(namespaces)
            .args(["sh", "-c", &script])
            .arg(std::env::current_exe().expect("this binary"))
            .args(["--exact", "full_disk::on_a_small_file_system", "--nocapture"])
            .env(SMALL, mount.path())
            .output();
        let output = match child {
            Ok(output) => output,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // If `unshare` itself fails, it exits with 1 and no test ran.
        let ran = said.contains("running 1 test");
        if ran {
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        reasons.push(said.trim().to_owned());
    }
    // A skipped test must not look like one that passed.
    assert!(
        std::env::var_os(MAY_SKIP).is_some(),
        "no small file system could be mounted: {}; run as root, or where user namespaces are allowed, \
         or set {MAY_SKIP}=1 to skip this test",
        reasons.join("; ")
    );
    eprintln!("skipped, as {MAY_SKIP} is set: no small file system could be mounted: {}", reasons.join("; "));
}

/// Not a test of its own: the child of [`a_full_file_system_stops_no_replica_and_loses_nothing`].
#[test]
fn on_a_small_file_system() {
    let Some(mount) = std::env::var_os(SMALL).map(PathBuf::from) else { return };
    starting(&mount);
    rotating(&mount);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(following(&mount));
}

/// Occupies all free space until it is dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(mount: &Path) -> Self {
        let filler = Self(mount.join("filler"));
        let mut file = File::options().create(true).append(true).open(&filler.0).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("the filler");
    }
}

fn open(directory: &Path, create: bool) -> Result<(WriteAheadLog, usize), StartError> {
    let owner = Owner { group: GROUP, id: ReplicaId(1), voters: vec![ReplicaId(1)] };
    let (log, found) = WriteAheadLog::open(directory, owner, create, SEGMENT_BYTES)?;
    Ok((log, found.entries.len()))
}

fn entry(index: u64, size: usize) -> Batch {
    let data = Bytes::from(vec![index as u8; size]);
    let entries = vec![LogEntry { index: LogIndex(index), term: Term(1), data }];
    Batch { entries, sync: true, ..Batch::default() }
}

fn code<T>(outcome: Result<T, StartError>) -> String {
    outcome.err().map_or_else(|| "started".to_owned(), |error| error.code().to_string())
}

/// A start on a full disk fails with the right error code, leaves nothing in the way, and works once there is
/// space.
fn starting(mount: &Path) {
    let directory = mount.join("starting");
    fs::create_dir(&directory).expect("a directory");
    let filler = Filler::new(mount);
    assert_eq!(code(open(&directory, true)), "log-disk-full");
    drop(filler);
    let (log, found) = open(&directory, true).expect("there is room");
    assert_eq!(found, 0);
    // The first segment is filled up, until another one begins.
    let mut index = 0;
    while segments(&directory) == 1 {
        index += 1;
        log.write(&[entry(index, 700)]).expect("room");
    }
    drop(log);
    let (log, found) = open(&directory, false).expect("there is room");
    assert_eq!(found as u64, index);
    drop(log);
    let filler = Filler::new(mount);
    // The segment has free space: reading works, and so does writing, up to its end.
    let (log, _) = open(&directory, false).expect("its segment has room");
    let mut written = index;
    for size in [700, 1] {
        while let Ok(()) = log.write(&[entry(written + 1, size)]) {
            written += 1;
        }
    }
    assert!(log.nearly_full() && written > index);
    drop(log);
    // Each start writes one small record; soon not even that fits.
    let refused = loop {
        match open(&directory, false) {
            Ok((_, found)) => assert_eq!(found as u64, written, "acknowledged on a full disk"),
            refused => break code(refused),
        }
    };
    assert_eq!(refused, "log-disk-full");
    drop(filler);
    let (_, found) = open(&directory, false).expect("there is room");
    assert_eq!(found as u64, written);
    fs::remove_dir_all(&directory).expect("removal");
}

fn segments(directory: &Path) -> usize {
    let files = fs::read_dir(directory).expect("list").flatten();
    files.filter(|file| file.file_name().to_string_lossy().starts_with("segment-")).count()
}

/// A full disk found at the end of a segment and by a snapshot: nothing is written or lost. The same calls
/// succeed once there is space.
fn rotating(mount: &Path) {
    let directory = mount.join("rotating");
    let (log, _) = open(&directory, true).expect("there is room");
    log.write(&[entry(1, 100)]).expect("room");
    log.save_snapshot(&snapshot(1000)).expect("room");
    let filler = Filler::new(mount);
    let refused = log.save_snapshot(&snapshot(200_000)).expect_err("no room");
    assert_eq!(refused.code().as_str(), "log-disk-full");
    let mut written = 1;
    let refused = loop {
        match log.write(&[entry(written + 1, 900)]) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code().as_str(), "log-disk-full");
    assert_eq!(
        log.write(&[entry(written + 1, 900)]).expect_err("still full").code().as_str(),
        "log-disk-full"
    );
    drop(filler);
    log.write(&[entry(written + 1, 900)]).expect("there is room again");
    log.save_snapshot(&snapshot(200_000)).expect("there is room again");
    drop(log);
    let (_, found) = open(&directory, false).expect("whole");
    assert_eq!(found as u64, written, "all but the entry within the snapshot");
    fs::remove_dir_all(&directory).expect("removal");
}

fn snapshot(size: usize) -> Snapshot {
    let (index, term, voters) = (LogIndex(1), Term(1), vec![ReplicaId(1)]);
    Snapshot { index, term, voters, data: Bytes::from(vec![5; size]) }
}

/// A follower on a full file system acknowledges nothing, keeps running, and continues once there is space.
async fn following(mount: &Path) {
    let limits = Limits { segment_bytes: SEGMENT_BYTES, snapshot_entries: 100_000, ..Limits::default() };
    let timings = Timings { request: Duration::from_secs(2), ..quick() };
    let elsewhere = BTreeMap::from([(ReplicaId(3), mount.join("three"))]);
    let mut group = Group::start_at(limits, timings, elsewhere);
    group.leader().await;
    let small = group.handle(ReplicaId(3));
    let filler = Filler::new(mount);
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let line = "x".repeat(3000);
    let mut acknowledged = 0;
    // Until its disk loop really waits. As a leader it rejects proposals and transfers its leadership, which
    // is no failure.
    while small.metrics().waits_for_space == 0 {
        assert!(Instant::now() < deadline, "it never came to the end of its space");
        if group.handle(ReplicaId(1)).propose(text(&line), None).await.is_ok() {
            acknowledged += 1;
        }
    }
    let led_by_other = |status: &RaftStatus| status.leader.is_some_and(|leader| leader != ReplicaId(3));
    let mut watch = group.handle(ReplicaId(1)).watch_status();
    let leader = tokio::time::timeout(WAIT_TIMEOUT, watch.wait_for(led_by_other)).await;
    let leader = leader.expect("in time").expect("running").leader.expect("just checked");
    drop(watch);
    // The status changes at the next tick.
    let mut status = small.watch_status();
    let full = tokio::time::timeout(WAIT_TIMEOUT, status.wait_for(|status| status.disk_full)).await;
    full.expect("in time").expect("running");
    group.stop(ReplicaId(3 - leader.0)).await;
    // The replica without space may lead for a moment: it then reports that its disk is full.
    let alone = group.handle(leader).propose(text("waits"), None).await;
    assert!(alone.is_err(), "one disk of three acknowledged it: {alone:?}");
    drop(filler);
    while group.handle(leader).propose(text("last"), None).await.is_err() {
        assert!(Instant::now() < deadline + WAIT_TIMEOUT, "it does not go on when there is space");
    }
    assert_eq!(small.status().stopped, None, "it never needed a start");
    while small.read_barrier().await.is_err() {
        assert!(Instant::now() < deadline + 2 * WAIT_TIMEOUT, "it does not catch up");
    }
    let seen = small.read(|book| book.lines.clone());
    let kept = seen.iter().filter(|seen| *seen == line.as_bytes()).count();
    assert!(kept >= acknowledged, "{kept} of {acknowledged} acknowledged lines are left");
    assert!(seen.contains(&b"last".to_vec()));
}

//! Tests of replicas on simulated disks and network, under simulated time, with faults on command.

use crate::group::{Client, Notebook, UNSPEAKABLE, after, ids, insist, text};
use bytes::Bytes;
use consensus::simulation::SimulatedGroup;
use consensus::{Limits, LinearizableReadError, LogIndex, ProposeError, RaftStatus, Timings};
use protocol::ReplicaId;
use std::time::Duration;
use tokio::time::sleep;

pub(crate) type Simulated = SimulatedGroup<Notebook>;

pub(crate) fn start() -> Simulated {
    start_with(Limits { command_bytes_max: 1000, ..Limits::default() })
}

pub(crate) fn start_with(limits: Limits) -> Simulated {
    let group = Simulated::start(3, Timings::default(), limits);
    group.network().set_delay(Duration::from_millis(2));
    group
}

pub(crate) fn disks(group: &Simulated) -> impl Iterator<Item = &consensus::store::SimulatedDisk> {
    ids().map(|id| group.disk(id))
}

#[tokio::test(start_paused = true)]
async fn full_disks_reject_proposals_until_space_is_freed() {
    let group = start();
    let handle = group.handle(group.leader().await);
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("room");
    disks(&group).for_each(|disk| disk.set_full(true));
    assert_eq!(client.propose(&handle, "b").await, Err(ProposeError::DiskFull));
    disks(&group).for_each(|disk| disk.set_full(false));
    assert_eq!(client.propose(&handle, "c").await, Ok(text("2")));
}

#[tokio::test(start_paused = true)]
async fn a_leader_with_a_full_disk_transfers_its_leadership() {
    let group = start();
    let full = group.leader().await;
    let handle = group.handle(full);
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("room");
    group.disk(full).set_full(true);
    let other = |status: &RaftStatus| status.leader.is_some_and(|leader| leader != full);
    handle.watch_status().wait_for(other).await.expect("it runs");
    assert_eq!(client.propose(&handle, "b").await, Ok(text("2")));
    assert_eq!(handle.metrics().leader_changes, 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_disk_stops_its_replica_and_no_other() {
    let group = start();
    let leader = group.leader().await;
    group.disk(leader).set_failing(true);
    let other = group.handle(after(leader));
    let _ = group.handle(leader).propose(text("a"), None).await;
    let reason = group.stopped(leader).await;
    assert!(reason.contains("simulated failure"), "{reason}");
    let stopped = group.handle(leader);
    assert!(matches!(stopped.propose(text("b"), None).await, Err(ProposeError::Stopped(_))));
    assert!(matches!(stopped.read_barrier().await, Err(LinearizableReadError::Stopped(_))));
    // A proposal that the stopped leader had accepted has an unknown outcome; the next one does not.
    insist(&other, "c").await;
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_confirms_no_read() {
    let group = start();
    let old = group.leader().await;
    insist(&group.handle(old), "a").await;
    group.network().set_isolated(old, true);
    let (cut_off, other) = (group.handle(old), group.handle(after(old)));
    let (stale, ()) = tokio::join!(cut_off.read_barrier(), insist(&other, "b"));
    assert_eq!(stale, Err(LinearizableReadError::NoLeader));
    group.network().set_isolated(old, false);
    cut_off.read_barrier().await.expect("it comes back");
    assert_eq!(cut_off.read(|book| book.lines.last().cloned()), Some(b"b".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_command_beyond_the_limit_is_rejected() {
    let group = start();
    let refused = group.handle(ReplicaId(1)).propose(Bytes::from(vec![0; 1001]), None).await;
    assert_eq!(refused, Err(ProposeError::TooLarge { actual: 1001, limit: 1000 }));
}

#[tokio::test(start_paused = true)]
async fn a_follower_with_a_full_disk_acknowledges_nothing_until_space_is_freed() {
    let group = start();
    let leader = group.leader().await;
    let (full, other) = (after(leader), after(after(leader)));
    let (handle, waiting) = (group.handle(leader), group.handle(full));
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("three disks");
    sleep(Duration::from_secs(1)).await;
    let durable = group.disk(full).durable_index();
    assert_eq!(durable, handle.status().last, "it follows");
    group.disk(full).set_out_of_space(true);
    client.propose(&handle, "b").await.expect("two disks of three");
    waiting.watch_status().wait_for(|status| status.disk_full).await.expect("it runs");
    // Of the two remaining replicas one has no space, and must not acknowledge anything.
    group.network().set_isolated(other, true);
    assert_eq!(handle.propose(text("c"), None).await, Err(ProposeError::OutcomeUnknown));
    assert_eq!(group.disk(full).durable_index(), durable, "nothing went to a full disk");
    assert!(waiting.metrics().waits_for_space > 0);
    group.disk(full).set_out_of_space(false);
    insist(&handle, "d").await;
    waiting.read_barrier().await.expect("a leader confirms");
    let seen = waiting.read(|book| book.lines.clone());
    let kept = [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
    assert!(seen.starts_with(&kept), "what waited was kept: {seen:?}");
    assert_eq!(waiting.status().stopped, None, "it never needed a start");
    assert!(group.disk(full).durable_index() > durable);
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_space_can_be_stopped() {
    let mut group = start();
    let leader = group.leader().await;
    let full = after(leader);
    group.disk(full).set_out_of_space(true);
    group.handle(leader).propose(text("a"), None).await.expect("two disks of three");
    group.stop(full).await;
    group.handle(leader).propose(text("b"), None).await.expect("two disks of three");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_on_a_full_disk_is_retried_until_there_is_space() {
    let group = start_with(Limits { snapshot_entries: 5, ..Limits::default() });
    let handle = group.handle(group.leader().await);
    // The log finds space and snapshots do not, as if a snapshot were larger than the remaining space.
    disks(&group).for_each(|disk| disk.set_snapshots_fail(true));
    let mut client = Client::new(&handle).await;
    for _ in 0..12 {
        client.propose(&handle, "x").await.expect("the log has room");
    }
    sleep(Duration::from_secs(10)).await;
    assert_eq!(handle.metrics().snapshots, 0);
    assert_eq!(handle.status().stopped, None, "the replica goes on without a snapshot");
    disks(&group).for_each(|disk| disk.set_snapshots_fail(false));
    // The next attempt follows an election timeout after the last one, even if nothing is proposed any more.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(handle.metrics().snapshots, 1);
}

#[tokio::test(start_paused = true)]
async fn commands_continue_during_a_snapshot_and_are_not_part_of_it() {
    let mut group = start_with(Limits { snapshot_entries: 20, ..Limits::default() });
    let leader = group.leader().await;
    let handle = group.handle(leader);
    group.hold_snapshots(leader, true);
    let mut client = Client::new(&handle).await;
    for _ in 0..30 {
        // A snapshot in progress delays nothing.
        client.propose(&handle, "x").await.expect("committed");
    }
    sleep(Duration::from_secs(60)).await;
    assert_eq!((handle.metrics().snapshots, handle.status().applied), (0, LogIndex(32)));
    group.hold_snapshots(leader, false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.metrics().snapshots, 1);
    group.crash(leader);
    group.restart(leader);
    // The first entry is the leader's own, the second opened the session.
    assert_eq!(group.handle(leader).read(|book| book.restored.0), 18, "the state as it was at entry 20");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_cannot_make_its_snapshot_stops_with_the_reason() {
    let group = start_with(Limits { snapshot_entries: 2, ..Limits::default() });
    let leader = group.leader().await;
    group.handle(leader).propose(text(UNSPEAKABLE), None).await.expect("committed");
    assert_eq!(group.stopped(leader).await, "making a snapshot panicked");
}

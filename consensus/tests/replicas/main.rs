//! Tests of whole replicas: threads, a log on disk, and TLS between them on loopback.
//!
//! These few wait for conditions, and show that the parts fit together. The same loops on simulated disks and
//! network, under simulated time, show everything else.

mod foreign;
mod full_disk;
mod group;
mod histories;
#[path = "../kills/history.rs"]
mod history;
mod leaders;
mod simulated;
mod stops;

use bytes::Bytes;
use consensus::{Limits, ProposeError, Replica, Role};
use group::{Client, Group, Notebook, WAIT_TIMEOUT, ids, lines, text};
use overlay::{CancellationToken, Identity, PeerPolicy};
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn commands_through_any_replica_are_seen_on_every_replica() {
    let group = Group::start(Limits::default());
    let mut client = Client::new(&group.handle(ReplicaId(1))).await;
    for id in ids() {
        let answer = client.propose(&group.handle(id), format!("by {id}")).await;
        assert_eq!(answer, Ok(text(&id.to_string())));
    }
    for id in ids() {
        assert_eq!(lines(&group.handle(id)).await, ["by 1", "by 2", "by 3"], "replica {id}");
    }
    let leads = |id: ReplicaId| {
        let status = group.handle(id).status();
        assert_eq!((status.id, status.stopped), (id, None));
        (status.role, status.leader) == (Role::Leader, Some(id))
    };
    eventually("one replica leads", || ids().any(leads)).await;
}

async fn eventually(what: &str, mut level: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !level() {
        assert!(Instant::now() < deadline, "{what}: it never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_continues_exactly_once_after_the_leader_dies() {
    let mut group = Group::start(Limits::default());
    let first = group.leader().await;
    let survivor = group.handle(group.follower_of(first));
    let session = survivor.open_session().await.expect("a leader");
    let before = survivor.propose(text("one"), Some((session, 1))).await;
    assert_eq!(before, Ok(text("1")));
    group.stop(first).await;
    assert_eq!(survivor.propose(text("one"), Some((session, 1))).await, Ok(text("1")), "asked again");
    assert_eq!(survivor.propose(text("two"), Some((session, 2))).await, Ok(text("2")));
    let passed = survivor.propose(text("one"), Some((session, 1))).await;
    assert_eq!(passed, Err(ProposeError::SequencePassed));
    let unknown = survivor.propose(text("x"), Some((consensus::SessionId(999_999), 1))).await;
    assert_eq!(unknown, Err(ProposeError::SessionExpired));
    group.restart(first);
    assert_eq!(lines(&group.handle(first)).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_restarts_with_its_state() {
    let mut group = Group::start(Limits { snapshot_entries: 10, retained_entries: 2, ..Limits::default() });
    let mut client = Client::new(&group.handle(ReplicaId(1))).await;
    for number in 0..35 {
        client.propose(&group.handle(ReplicaId(1)), number.to_string()).await.expect("committed");
    }
    for id in ids() {
        group.stop(id).await;
    }
    for id in ids() {
        group.restart(id);
    }
    let expected: Vec<String> = (0..35).map(|number| number.to_string()).collect();
    for id in ids() {
        assert_eq!(lines(&group.handle(id)).await, expected, "replica {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_is_sent_a_snapshot_in_chunks() {
    let limits = Limits { snapshot_entries: 5, retained_entries: 1, ..Limits::default() };
    let mut group = Group::start(limits);
    let leader = group.leader().await;
    let follower = group.follower_of(leader);
    group.stop(follower).await;
    let mut client = Client::new(&group.handle(leader)).await;
    for _ in 0..10 {
        client.propose(&group.handle(leader), vec![b'x'; 300_000]).await.expect("two of three");
    }
    // Every snapshot that begins from now on contains the commands. The first one that is counted may have
    // begun earlier. After another one no log contains the commands any more, except perhaps one of them.
    let mut enough = BTreeMap::new();
    for id in group.running.keys().copied() {
        group.handle(id).read_barrier().await.expect("two of three");
        enough.insert(id, group.handle(id).metrics().snapshots + 2);
    }
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while enough.iter().any(|(id, enough)| group.handle(*id).metrics().snapshots < *enough) {
        assert!(Instant::now() < deadline, "no snapshots are taken");
        client.propose(&group.handle(leader), "small").await.expect("two of three");
    }
    group.restart(follower);
    let handle = group.handle(follower);
    handle.read_barrier().await.expect("a leader confirms");
    assert!(handle.metrics().snapshots_installed >= 1, "{:?}", handle.metrics());
    let (lines, bytes) = handle.read(|book| book.restored);
    assert!(lines >= 10 && bytes > 2 * 1024 * 1024, "{lines} lines in {bytes} bytes are no several chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_majority_has_no_leader_and_recovers() {
    let mut group = Group::start(Limits::default());
    let mut client = Client::new(&group.handle(ReplicaId(1))).await;
    client.propose(&group.handle(ReplicaId(1)), "a").await.expect("three of three");
    let leader = group.leader().await;
    let others: Vec<ReplicaId> = ids().filter(|id| *id != leader).collect();
    for id in &others {
        group.stop(*id).await;
    }
    let alone = group.handle(leader);
    let mut status = alone.watch_status();
    let leaderless = status.wait_for(|status| status.leader.is_none());
    let gone = tokio::time::timeout(WAIT_TIMEOUT, leaderless).await.is_ok();
    assert!(gone, "a leader without a majority steps down");
    group.restart(others[0]);
    assert_eq!(client.propose(&alone, "b").await, Ok(text("2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_replica_is_rejected_even_where_it_may_connect() {
    let group = Group::start(Limits::default());
    let outsider = Identity::generate().expect("randomness");
    // A separate listener that admits any key, as control's may: a connected peer is not necessarily a
    // replica.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (router, identity) =
        (group.running[&ReplicaId(1)].replica.router(), group.identities[&ReplicaId(1)].clone());
    let ending = CancellationToken::new();
    let end = ending.clone().drop_guard();
    tokio::spawn(async move {
        let limits = overlay::Limits::default();
        overlay::serve(listener, &identity, PeerPolicy::any(), limits, router, ending).await
    });
    let client =
        overlay::Client::new(outsider, address, group.peers[&ReplicaId(1)].key, overlay::Limits::default());
    for (method, path) in [("GET", "messages"), ("POST", "snapshot"), ("POST", "propose"), ("POST", "read")] {
        let uri = format!("/consensus/v1/{path}");
        let request = http::Request::builder().method(method).uri(uri).body(Bytes::from_static(b"\0x"));
        let response = client.request(request.expect("valid")).await.expect("an answer");
        assert_eq!(response.status(), 403, "{path}");
    }
    for path in ["snapshot", "propose"] {
        // A body that never arrives: a handler that waited for it would not answer.
        let body = overlay::Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let request = http::Request::post(format!("/consensus/v1/{path}")).body(body).expect("valid");
        let response = client.send(request).await.expect("an answer");
        assert_eq!(response.status(), 403, "{path}");
    }
    drop(end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_replica_has_released_its_directory() {
    let mut group = Group::start(Limits { snapshot_entries: 5, ..Limits::default() });
    let held = group.handle(ReplicaId(1)).read(|book| book.held.clone());
    held.store(true, Ordering::Relaxed);
    let mut client = Client::new(&group.handle(ReplicaId(2))).await;
    for _ in 0..10 {
        client.propose(&group.handle(ReplicaId(2)), "x").await.expect("two of three");
    }
    group.handle(ReplicaId(1)).read_barrier().await.expect("a leader confirms");
    // Its snapshot is being made now, and is written into the directory when it is ready.
    let opened = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        held.store(false, Ordering::Relaxed);
    };
    let stopped = async {
        group.stop(ReplicaId(1)).await;
        held.load(Ordering::Relaxed)
    };
    let (early, ()) = tokio::join!(stopped, opened);
    assert!(!early, "it ended while its snapshot was still being made");
    group.restart(ReplicaId(1));
    assert_eq!(lines(&group.handle(ReplicaId(1))).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_belongs_to_one_replica() {
    let group = Group::start(Limits::default());
    let again = Replica::start(&group.config(ReplicaId(1), false), Notebook::default());
    let Err(consensus::StartError::Log(error)) = again else { panic!("two replicas in one directory") };
    assert_eq!(error.code().as_str(), "directory-in-use");
}

//! Whole replicas: threads, log on disk, TLS between them on loopback. And the same shell on a simulated
//! disk and network, where faults come on command.

mod foreign;
mod full_disk;
mod group;
mod simulated;

use bytes::Bytes;
use consensus::{Limits, ProposeError, Replica, Role};
use group::{Client, Group, Notebook, PATIENCE, lines, text};
use overlay::{CancellationToken, Identity, PeerPolicy};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn commands_through_any_replica_are_seen_on_every_replica() {
    let group = Group::start(Limits::default()).await;
    let mut client = Client::new(&group.handle(1)).await;
    for id in 1..=3 {
        let answer = client.propose(&group.handle(id), format!("by {id}")).await;
        assert_eq!(answer, Ok(text(&id.to_string())));
    }
    for id in 1..=3 {
        assert_eq!(lines(&group.handle(id)).await, ["by 1", "by 2", "by 3"], "replica {id}");
    }
    let leads = |id: u64| {
        let status = group.handle(id).status();
        assert_eq!((status.id, status.stopped), (id, None));
        (status.role, status.leader) == (Role::Leader, Some(id))
    };
    eventually("one says that it leads", || (1..=3).any(leads)).await;
}

async fn eventually(what: &str, mut level: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !level() {
        assert!(Instant::now() < deadline, "{what}: it never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_dies_and_a_session_goes_on_exactly_once() {
    let mut group = Group::start(Limits::default()).await;
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
    let stranger = survivor.propose(text("x"), Some((consensus::SessionId(999_999), 1))).await;
    assert_eq!(stranger, Err(ProposeError::SessionExpired));
    group.restart(first).await;
    assert_eq!(lines(&group.handle(first)).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_stops_and_starts_again_with_what_it_had() {
    let mut group =
        Group::start(Limits { snapshot_entries: 10, retained_entries: 2, ..Limits::default() }).await;
    let mut client = Client::new(&group.handle(1)).await;
    for place in 0..35 {
        client.propose(&group.handle(1), place.to_string()).await.expect("committed");
    }
    for id in 1..=3 {
        group.stop(id).await;
    }
    for id in 1..=3 {
        group.restart(id).await;
    }
    let expected: Vec<String> = (0..35).map(|place| place.to_string()).collect();
    for id in 1..=3 {
        assert_eq!(lines(&group.handle(id)).await, expected, "replica {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_far_behind_is_sent_a_snapshot_in_chunks() {
    let limits = Limits { snapshot_entries: 5, retained_entries: 1, ..Limits::default() };
    let mut group = Group::start(limits).await;
    let leader = group.leader().await;
    let follower = group.follower_of(leader);
    group.stop(follower).await;
    // Snapshots are made beside the commands. Once a replica has counted one more than when a large one was on
    // its disk, that one has taken the place of its log.
    let several_chunks = Some(2 * 1024 * 1024);
    let mut counts: BTreeMap<u64, Option<u64>> = group.running.keys().map(|id| (*id, None)).collect();
    let mut client = Client::new(&group.handle(leader)).await;
    let (mut proposed, deadline) = (0, Instant::now() + PATIENCE);
    loop {
        for (id, count) in &mut counts {
            let large = largest_snapshot(&group.path(*id)) > several_chunks;
            *count = count.or_else(|| large.then(|| group.handle(*id).metrics().snapshots));
        }
        let beyond = |(id, count): (&u64, &Option<u64>)| Some(group.handle(*id).metrics().snapshots) > *count;
        if counts.values().all(Option::is_some) && counts.iter().all(beyond) {
            break;
        }
        assert!(Instant::now() < deadline, "no large snapshot after {proposed} commands");
        client.propose(&group.handle(leader), vec![b'x'; 300_000]).await.expect("two of three");
        proposed += 1;
    }
    group.restart(follower).await;
    assert_eq!(lines(&group.handle(follower)).await.len(), proposed);
    let largest = largest_snapshot(&group.path(follower));
    assert!(largest > several_chunks, "it came as one snapshot of several chunks: {largest:?}");
}

fn largest_snapshot(directory: &Path) -> Option<u64> {
    let files = std::fs::read_dir(directory).expect("list").flatten();
    let snapshots = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "snap"));
    // One that has just made way for the next is none.
    snapshots.filter_map(|file| Some(file.metadata().ok()?.len())).max()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_majority_says_so_and_recovers() {
    let mut group = Group::start(Limits::default()).await;
    let mut client = Client::new(&group.handle(1)).await;
    client.propose(&group.handle(1), "a").await.expect("three of three");
    let leader = group.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        group.stop(*id).await;
    }
    let alone = group.handle(leader);
    let gone = tokio::time::timeout(PATIENCE, alone.watch_leader().wait_for(Option::is_none)).await.is_ok();
    assert!(gone, "a leader without a majority steps down");
    group.restart(others[0]).await;
    assert_eq!(client.propose(&alone, "b").await, Ok(text("2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_even_where_they_may_connect() {
    let group = Group::start(Limits::default()).await;
    let stranger = Identity::generate().expect("randomness");
    // A listener of its own that admits anybody, as control's may: being connected is not being a replica.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (router, identity) = (group.running[&1].replica.router(), group.identities[&1].clone());
    let ending = CancellationToken::new();
    let end = ending.clone().drop_guard();
    tokio::spawn(async move {
        let limits = overlay::Limits::default();
        overlay::serve(listener, &identity, PeerPolicy::any(), limits, router, ending).await
    });
    let client = overlay::Client::new(stranger, address, group.peers[&1].key, overlay::Limits::default());
    for (method, path) in [("GET", "messages"), ("POST", "snapshot"), ("POST", "propose"), ("POST", "read")] {
        let uri = format!("/consensus/v1/{path}");
        let request = http::Request::builder().method(method).uri(uri).body(Bytes::from_static(b"\0x"));
        let response = client.request(request.expect("valid")).await.expect("an answer");
        assert_eq!(response.status(), 403, "{path}");
    }
    for path in ["snapshot", "propose"] {
        // A body of which nothing comes: whoever waited for it would not answer.
        let body = overlay::Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let request = http::Request::post(format!("/consensus/v1/{path}")).body(body).expect("valid");
        let response = client.send(request).await.expect("an answer");
        assert_eq!(response.status(), 403, "{path}");
    }
    drop(end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_one_replicas_own() {
    let group = Group::start(Limits::default()).await;
    let again = Replica::start(&group.config(1, false), Notebook::default());
    let Err(consensus::StartError::Log(error)) = again else { panic!("two replicas in one directory") };
    assert_eq!(error.code().as_str(), "directory-in-use");
}

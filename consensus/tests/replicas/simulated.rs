//! Replicas on a simulated disk and network, where faults come on command.

use crate::group::{Client, GROUP, Notebook, PATIENCE, UNSPEAKABLE, insist, quick, text};
use bytes::Bytes;
use consensus::store::SimulatedDisk;
use consensus::transport::SimulatedNetwork;
use consensus::{Config, Limits, Peer, ProposeError, ReadError, Replica, StateMachine, Timings};
use overlay::Identity;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Replicas on simulated disks and network.
struct Simulated {
    network: SimulatedNetwork,
    disks: BTreeMap<u64, SimulatedDisk>,
    replicas: BTreeMap<u64, Replica<Notebook>>,
}

impl Simulated {
    fn start(request: Duration) -> Self {
        Self::start_with(request, Limits { command_bytes_max: 1000, ..Limits::default() })
    }

    fn start_with(request: Duration, limits: Limits) -> Self {
        let identities: BTreeMap<u64, Arc<Identity>> =
            (1..=3).map(|id| (id, Arc::new(Identity::generate().expect("randomness")))).collect();
        let address: overlay::Address = "127.0.0.1:1".parse().expect("an address nobody dials");
        let peer = |(id, identity): (&u64, &Arc<Identity>)| {
            (*id, Peer { address: address.clone(), key: identity.public_key() })
        };
        let peers: BTreeMap<u64, Peer> = identities.iter().map(peer).collect();
        let network = SimulatedNetwork::new();
        let disks: BTreeMap<u64, SimulatedDisk> = (1..=3).map(|id| (id, SimulatedDisk::new())).collect();
        let start = |id: u64| {
            let config = Config {
                group: GROUP,
                id,
                peers: peers.clone(),
                directory: PathBuf::new(),
                create: true,
                identity: identities[&id].clone(),
                seed: 7,
                timings: Timings { request, ..quick() },
                limits,
            };
            Replica::start_simulated(&config, Notebook::default(), &disks[&id], &network).expect("starts")
        };
        let replicas = (1..=3).map(|id| (id, start(id))).collect();
        Self { network, disks, replicas }
    }

    async fn leader(&self) -> u64 {
        let mut watch = self.replicas[&1].handle().watch_leader();
        let found = tokio::time::timeout(PATIENCE, watch.wait_for(Option::is_some)).await;
        found.expect("a leader in time").expect("still running").expect("just checked")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_refuse_proposals_and_freed_ones_take_them() {
    let world = Simulated::start(PATIENCE);
    let handle = world.replicas[&world.leader().await].handle();
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("room");
    world.disks.values().for_each(|disk| disk.set_full(true));
    assert_eq!(client.propose(&handle, "b").await, Err(ProposeError::DiskFull));
    world.disks.values().for_each(|disk| disk.set_full(false));
    assert_eq!(client.propose(&handle, "c").await, Ok(text("2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_full_disk_hands_over_to_one_with_room() {
    let world = Simulated::start(PATIENCE);
    let full = world.leader().await;
    let handle = world.replicas[&full].handle();
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("room");
    world.disks[&full].set_full(true);
    let other = |leader: &Option<u64>| leader.is_some_and(|leader| leader != full);
    let moved = tokio::time::timeout(PATIENCE, handle.watch_leader().wait_for(other)).await.is_ok();
    assert!(moved, "the full leader keeps leading");
    // On a busy machine it may be elected once more, and hands over once more.
    let deadline = Instant::now() + PATIENCE;
    let taken = loop {
        match client.propose(&handle, "b").await {
            Err(ProposeError::DiskFull) => assert!(Instant::now() < deadline, "it leads and takes nothing"),
            outcome => break outcome,
        }
    };
    assert_eq!(taken, Ok(text("2")));
    assert!(handle.metrics().leader_changes >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_stops_its_replica_and_no_other() {
    let world = Simulated::start(PATIENCE);
    let leader = world.leader().await;
    world.disks[&leader].set_failing(true);
    let other = world.replicas[&(1 + leader % 3)].handle();
    let _ = world.replicas[&leader].handle().propose(text("a"), None).await;
    let reason = tokio::time::timeout(PATIENCE, world.replicas[&leader].stopped()).await.expect("stops");
    assert!(reason.contains("simulated failure"), "{reason}");
    let stopped = world.replicas[&leader].handle();
    assert!(matches!(stopped.propose(text("b"), None).await, Err(ProposeError::Stopped(_))));
    assert!(matches!(stopped.read_barrier().await, Err(ReadError::Stopped(_))));
    // A proposal that the stopped leader had taken in has an unknown outcome; the next one has not.
    insist(&other, "c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_answers_no_read() {
    let world = Simulated::start(Duration::from_millis(1500));
    let old = world.leader().await;
    insist(&world.replicas[&old].handle(), "a").await;
    world.network.set_isolated(old, true);
    let (cut_off, other) = (world.replicas[&old].handle(), world.replicas[&(1 + old % 3)].handle());
    let (stale, ()) = tokio::join!(cut_off.read_barrier(), insist(&other, "b"));
    assert_eq!(stale, Err(ReadError::NoLeader));
    world.network.set_isolated(old, false);
    let deadline = Instant::now() + PATIENCE;
    while cut_off.read_barrier().await.is_err() {
        assert!(Instant::now() < deadline, "it never comes back");
    }
    assert_eq!(cut_off.read(|book| book.lines.last().cloned()), Some(b"b".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_beyond_the_limit_is_refused() {
    let world = Simulated::start(PATIENCE);
    let handle = world.replicas[&1].handle();
    let refused = handle.propose(Bytes::from(vec![0; 1001]), None).await;
    assert_eq!(refused, Err(ProposeError::TooLarge { actual: 1001, limit: 1000 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_space_says_nothing_and_goes_on_when_there_is_some() {
    let world = Simulated::start(Duration::from_millis(1500));
    let leader = world.leader().await;
    let (full, other) = (1 + leader % 3, 1 + (leader + 1) % 3);
    let (handle, waiting) = (world.replicas[&leader].handle(), world.replicas[&full].handle());
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "a").await.expect("three disks");
    let written = handle.read_barrier().await.expect("a leader");
    let deadline = Instant::now() + PATIENCE;
    while world.disks[&full].durable_index() < written {
        assert!(Instant::now() < deadline, "it does not follow");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.disks[&full].set_out_of_space(true);
    let durable = world.disks[&full].durable_index();
    client.propose(&handle, "b").await.expect("two disks of three");
    let full_now = |status: &consensus::Status| status.disk_full;
    let noticed = tokio::time::timeout(PATIENCE, waiting.watch_status().wait_for(full_now)).await.is_ok();
    assert!(noticed, "a full disk shows in the status");
    // Now the two that are left are one disk, and one that must not pretend.
    world.network.set_isolated(other, true);
    let mut kept = vec![b"a".to_vec(), b"b".to_vec()];
    match handle.propose(text("c"), None).await {
        Err(ProposeError::OutcomeUnknown) => kept.push(b"c".to_vec()),
        // A leader that hears of nobody for too long steps down, and may have done so before it was asked.
        outcome => assert_eq!(outcome, Err(ProposeError::NoLeader)),
    }
    assert_eq!(world.disks[&full].durable_index(), durable, "nothing went to a full disk");
    assert!(waiting.metrics().waits_for_space > 0);
    world.disks[&full].set_out_of_space(false);
    insist(&handle, "d").await;
    assert!(waiting.read_barrier().await.is_ok());
    let seen = waiting.read(|book| book.lines.clone());
    assert!(seen.starts_with(&kept), "what waited was kept: {seen:?}");
    assert_eq!(waiting.status().stopped, None, "it never needed a start");
    assert!(world.disks[&full].durable_index() > durable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_space_can_be_stopped() {
    let mut world = Simulated::start(PATIENCE);
    let leader = world.leader().await;
    let full = 1 + leader % 3;
    world.disks[&full].set_out_of_space(true);
    let _ = world.replicas[&leader].handle().propose(text("a"), None).await;
    let replica = world.replicas.remove(&full).expect("running");
    let stopped = tokio::task::spawn_blocking(move || drop(replica));
    tokio::time::timeout(PATIENCE, stopped).await.expect("in time").expect("without a panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_finds_no_space_is_taken_when_there_is_some() {
    let world = Simulated::start_with(PATIENCE, Limits { snapshot_entries: 5, ..Limits::default() });
    let leader = world.leader().await;
    let handle = world.replicas[&leader].handle();
    // Log space is there, snapshot space is not: what a snapshot larger than the last gap meets.
    world.disks.values().for_each(|disk| disk.set_snapshots_fail(true));
    let mut client = Client::new(&handle).await;
    for _ in 0..12 {
        client.propose(&handle, "x").await.expect("the log has room");
    }
    assert_eq!(handle.metrics().snapshots, 0);
    assert_eq!(handle.status().stopped, None, "the replica goes on without a snapshot");
    world.disks.values().for_each(|disk| disk.set_snapshots_fail(false));
    let deadline = Instant::now() + PATIENCE;
    while handle.metrics().snapshots == 0 {
        assert!(Instant::now() < deadline, "no snapshot is taken when there is space again");
        client.propose(&handle, "y").await.expect("the log has room");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_go_on_while_a_snapshot_is_made_and_are_not_in_it() {
    let world = Simulated::start_with(PATIENCE, Limits { snapshot_entries: 5, ..Limits::default() });
    let leader = world.leader().await;
    let handle = world.replicas[&leader].handle();
    let encoding = handle.read(|book| book.encoding.clone());
    let turn = encoding.lock().await;
    for _ in 0..20 {
        // A snapshot in the making holds nobody up.
        insist(&handle, "x").await;
    }
    assert_eq!(handle.metrics().snapshots, 0);
    drop(turn);
    let deadline = Instant::now() + PATIENCE;
    while handle.metrics().snapshots == 0 {
        assert!(Instant::now() < deadline, "the snapshot is taken");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let found = world.disks[&leader].open().snapshot.expect("it was saved");
    let mut book = Notebook::default();
    // An empty session table, a count of four bytes, stands before the machine's own.
    book.restore(&found.data[4..]).expect("readable");
    // Each leadership begins with an entry that is no command.
    let commands = found.index - found.term..found.index;
    assert!(commands.contains(&(book.lines.len() as u64)), "{} at {}", book.lines.len(), found.index);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_make_its_snapshot_stops_and_says_so() {
    let world = Simulated::start_with(PATIENCE, Limits { snapshot_entries: 2, ..Limits::default() });
    let handle = world.replicas[&world.leader().await].handle();
    let deadline = Instant::now() + PATIENCE;
    let reason = loop {
        if let Some(reason) = handle.status().stopped {
            break reason;
        }
        assert!(Instant::now() < deadline, "it goes on as if nothing had happened");
        let _ = handle.propose(text(UNSPEAKABLE), None).await;
    };
    assert_eq!(reason, "making a snapshot panicked");
}

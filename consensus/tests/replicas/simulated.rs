//! Replicas on a simulated disk and network, where faults come on command.

use crate::group::{Notebook, PATIENCE, UNSPEAKABLE, quick, text};
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
        let address = "127.0.0.1:1".parse().expect("an address nobody dials");
        let peer =
            |(id, identity): (&u64, &Arc<Identity>)| (*id, Peer { address, key: identity.public_key() });
        let peers: BTreeMap<u64, Peer> = identities.iter().map(peer).collect();
        let network = SimulatedNetwork::new();
        let disks: BTreeMap<u64, SimulatedDisk> = (1..=3).map(|id| (id, SimulatedDisk::new())).collect();
        let start = |id: u64| {
            let config = Config {
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
    handle.propose(text("a"), None).await.expect("room");
    world.disks.values().for_each(|disk| disk.set_full(true));
    assert_eq!(handle.propose(text("b"), None).await, Err(ProposeError::DiskFull));
    world.disks.values().for_each(|disk| disk.set_full(false));
    assert_eq!(handle.propose(text("c"), None).await, Ok(text("2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_full_disk_hands_over_to_one_with_room() {
    let world = Simulated::start(PATIENCE);
    let full = world.leader().await;
    let handle = world.replicas[&full].handle();
    handle.propose(text("a"), None).await.expect("room");
    world.disks[&full].set_full(true);
    let other = |leader: &Option<u64>| leader.is_some_and(|leader| leader != full);
    let moved = tokio::time::timeout(PATIENCE, handle.watch_leader().wait_for(other)).await.is_ok();
    assert!(moved, "the full leader keeps leading");
    assert_eq!(handle.propose(text("b"), None).await, Ok(text("2")));
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
    let deadline = Instant::now() + PATIENCE;
    while other.propose(text("c"), None).await.is_err() {
        assert!(Instant::now() < deadline, "the other two do not go on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_answers_no_read() {
    let world = Simulated::start(Duration::from_millis(1500));
    let old = world.leader().await;
    world.replicas[&old].handle().propose(text("a"), None).await.expect("committed");
    world.network.set_isolated(old, true);
    let (cut_off, other) = (world.replicas[&old].handle(), world.replicas[&(1 + old % 3)].handle());
    let (stale, _) = tokio::join!(cut_off.read_barrier(), async {
        let deadline = Instant::now() + PATIENCE;
        while other.propose(text("b"), None).await.is_err() {
            assert!(Instant::now() < deadline, "the other two elect nobody");
        }
    });
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
    let handle = world.replicas[&leader].handle();
    handle.propose(text("a"), None).await.expect("three disks");
    let waiting = world.replicas[&full].handle();
    let follows =
        world.replicas[&full].handle().watch_applied().wait_for(|applied| *applied > 0).await.is_ok();
    assert!(follows, "it is running");
    let durable = world.disks[&full].durable_index();
    world.disks[&full].set_out_of_space(true);
    handle.propose(text("b"), None).await.expect("two disks of three");
    let full_now = |status: &consensus::Status| status.disk_full;
    let noticed = tokio::time::timeout(PATIENCE, waiting.watch_status().wait_for(full_now)).await.is_ok();
    assert!(noticed, "a full disk shows in the status");
    // Now the two that are left are one disk, and one that must not pretend.
    world.network.set_isolated(other, true);
    assert_eq!(handle.propose(text("c"), None).await, Err(ProposeError::OutcomeUnknown));
    assert_eq!(world.disks[&full].durable_index(), durable, "nothing went to a full disk");
    assert!(waiting.metrics().waits_for_space > 0);
    world.disks[&full].set_out_of_space(false);
    let deadline = Instant::now() + PATIENCE;
    while handle.propose(text("d"), None).await.is_err() {
        assert!(Instant::now() < deadline, "the freed replica does not go on");
    }
    assert!(waiting.read_barrier().await.is_ok());
    let seen = waiting.read(|book| book.lines.clone());
    assert_eq!(seen[..3], [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()], "what waited was kept");
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
    for _ in 0..12 {
        handle.propose(text("x"), None).await.expect("the log has room");
    }
    assert_eq!(handle.metrics().snapshots, 0);
    assert_eq!(handle.status().stopped, None, "the replica goes on without a snapshot");
    world.disks.values().for_each(|disk| disk.set_snapshots_fail(false));
    let deadline = Instant::now() + PATIENCE;
    while handle.metrics().snapshots == 0 {
        assert!(Instant::now() < deadline, "no snapshot is taken when there is space again");
        handle.propose(text("y"), None).await.expect("the log has room");
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
        handle.propose(text("x"), None).await.expect("a snapshot in the making holds nobody up");
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
    let mut status = handle.watch_status();
    let _ = handle.propose(text(UNSPEAKABLE), None).await;
    let _ = handle.propose(text("x"), None).await;
    let stopped = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.stopped.is_some())).await;
    let reason = stopped.expect("in time").expect("said").stopped.clone();
    assert_eq!(reason.as_deref(), Some("making a snapshot panicked"));
}

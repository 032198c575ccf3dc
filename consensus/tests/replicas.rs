//! Whole replicas: threads, log on disk, TLS between them on loopback. And the same shell on a simulated
//! disk and network, where faults come on command.

use bytes::Bytes;
use consensus::store::SimulatedDisk;
use consensus::transport::SimulatedNetwork;
use consensus::{Config, Limits, Peer, ProposeError, ReadError, Replica, Role, StateMachine, Timings};
use overlay::{CancellationToken, Client, Identity, PeerPolicy};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// How long anything may take before a test gives up: generous, because machines are shared.
const PATIENCE: Duration = Duration::from_secs(30);

/// Remembers every command; answers with how many there are.
#[derive(Default)]
struct Notebook {
    lines: Vec<Vec<u8>>,
}

impl StateMachine for Notebook {
    fn apply(&mut self, _index: u64, command: &[u8]) -> Vec<u8> {
        self.lines.push(command.to_vec());
        self.lines.len().to_string().into_bytes()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in &self.lines {
            bytes.extend_from_slice(&(line.len() as u32).to_le_bytes());
            bytes.extend_from_slice(line);
        }
        bytes
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), String> {
        self.lines.clear();
        while let Some((length, rest)) = snapshot.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let line = rest.get(..length).ok_or("a line is cut off")?;
            self.lines.push(line.to_vec());
            snapshot = &rest[length..];
        }
        Ok(())
    }
}

/// Three replicas' configurations, and what each needs to come back after it was stopped.
struct Group {
    directory: TempDir,
    identities: BTreeMap<u64, Arc<Identity>>,
    peers: BTreeMap<u64, Peer>,
    limits: Limits,
    running: BTreeMap<u64, Running>,
}

struct Running {
    replica: Replica<Notebook>,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<Result<(), overlay::Error>>,
}

impl Group {
    async fn start(limits: Limits) -> Self {
        let mut identities = BTreeMap::new();
        let mut peers = BTreeMap::new();
        let mut listeners = Vec::new();
        for id in 1..=3u64 {
            let identity = Arc::new(Identity::generate().expect("randomness"));
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            let address = listener.local_addr().expect("bound");
            peers.insert(id, Peer { address, key: identity.public_key() });
            identities.insert(id, identity);
            listeners.push((id, listener));
        }
        let directory = TempDir::new().expect("temporary directory");
        let mut group = Self { directory, identities, peers, limits, running: BTreeMap::new() };
        for (id, listener) in listeners {
            group.start_on(id, listener, true);
        }
        group
    }

    fn config(&self, id: u64, create: bool) -> Config {
        Config {
            id,
            peers: self.peers.clone(),
            directory: self.path(id),
            create,
            identity: self.identities[&id].clone(),
            seed: 1,
            timings: quick(),
            limits: self.limits,
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    fn start_on(&mut self, id: u64, listener: TcpListener, create: bool) {
        let replica = Replica::start(&self.config(id, create), Notebook::default()).expect("starts");
        let keys: Vec<_> = self.peers.values().map(|peer| peer.key).collect();
        let (shutdown, identity) = (CancellationToken::new(), self.identities[&id].clone());
        let (router, ending) = (replica.router(), shutdown.clone());
        let server = tokio::spawn(async move {
            let limits = overlay::Limits { drain: Duration::ZERO, ..overlay::Limits::default() };
            overlay::serve(listener, &identity, PeerPolicy::only(keys), limits, router, ending).await
        });
        self.running.insert(id, Running { replica, shutdown, server });
    }

    async fn stop(&mut self, id: u64) {
        let Running { replica, shutdown, server } = self.running.remove(&id).expect("running");
        shutdown.cancel();
        tokio::task::spawn_blocking(move || drop(replica)).await.expect("stops");
        server.await.expect("no panic").expect("orderly end");
    }

    async fn restart(&mut self, id: u64) {
        let address = self.peers[&id].address;
        // The port was ours a moment ago; connections that are closing may hold it a little longer.
        let deadline = Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "rebind: {error}"),
            }
            tokio::task::yield_now().await;
        };
        self.start_on(id, listener, false);
    }

    fn handle(&self, id: u64) -> consensus::Handle<Notebook> {
        self.running[&id].replica.handle()
    }

    async fn leader(&self) -> u64 {
        let any = *self.running.keys().next().expect("a running replica");
        let mut watch = self.handle(any).watch_leader();
        let known = |leader: &Option<u64>| leader.is_some_and(|id| self.running.contains_key(&id));
        let found = tokio::time::timeout(PATIENCE, watch.wait_for(known)).await;
        found.expect("a leader in time").expect("still running").expect("just checked")
    }

    fn follower_of(&self, leader: u64) -> u64 {
        *self.running.keys().find(|id| **id != leader).expect("more than one")
    }
}

fn quick() -> Timings {
    Timings { tick: Duration::from_millis(20), request: PATIENCE, ..Timings::default() }
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn lines(handle: &consensus::Handle<Notebook>) -> Vec<String> {
    handle.read_barrier().await.expect("a leader confirms");
    handle.read(|book| book.lines.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_through_any_replica_are_seen_on_every_replica() {
    let group = Group::start(Limits::default()).await;
    for id in 1..=3 {
        let answer = group.handle(id).propose(text(&format!("by {id}")), None).await;
        assert_eq!(answer, Ok(text(&id.to_string())));
    }
    for id in 1..=3 {
        assert_eq!(lines(&group.handle(id)).await, ["by 1", "by 2", "by 3"], "replica {id}");
    }
    let leader = group.leader().await;
    let status = group.handle(leader).status();
    assert_eq!((status.role, status.leader, status.stopped), (Role::Leader, Some(leader), None));
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
    let leader = group.leader().await;
    for place in 0..35 {
        group.handle(leader).propose(text(&place.to_string()), None).await.expect("committed");
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
    let large = Bytes::from(vec![b'x'; 300_000]);
    for _ in 0..12 {
        group.handle(leader).propose(large.clone(), None).await.expect("two of three");
    }
    group.restart(follower).await;
    assert_eq!(lines(&group.handle(follower)).await.len(), 12);
    let snapshots = std::fs::read_dir(group.path(follower)).expect("list").flatten();
    let sizes = snapshots.filter(|entry| entry.path().extension().is_some_and(|kind| kind == "snap"));
    let largest = sizes.map(|entry| entry.metadata().expect("inspect").len()).max();
    assert!(largest > Some(2 * 1024 * 1024), "it came as one snapshot of several chunks: {largest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_majority_says_so_and_recovers() {
    let mut group = Group::start(Limits::default()).await;
    group.handle(1).propose(text("a"), None).await.expect("three of three");
    let leader = group.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in &others {
        group.stop(*id).await;
    }
    let alone = group.handle(leader);
    let gone = tokio::time::timeout(PATIENCE, alone.watch_leader().wait_for(Option::is_none)).await.is_ok();
    assert!(gone, "a leader without a majority steps down");
    group.restart(others[0]).await;
    assert_eq!(alone.propose(text("b"), None).await, Ok(text("2")));
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
    let client = Client::new(stranger, address, group.peers[&1].key, overlay::Limits::default());
    for (method, path) in [("GET", "messages"), ("POST", "snapshot"), ("POST", "propose"), ("POST", "read")] {
        let uri = format!("/consensus/v1/{path}");
        let request = http::Request::builder().method(method).uri(uri).body(Bytes::from_static(b"\0x"));
        let response = client.request(request.expect("valid")).await.expect("an answer");
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

/// Replicas on simulated disks and network.
struct Simulated {
    network: SimulatedNetwork,
    disks: BTreeMap<u64, SimulatedDisk>,
    replicas: BTreeMap<u64, Replica<Notebook>>,
}

impl Simulated {
    fn start(request: Duration) -> Self {
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
                limits: Limits { command_bytes_max: 1000, ..Limits::default() },
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

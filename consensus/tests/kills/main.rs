//! Kill test: three replica processes, killed with SIGKILL at seeded moments while clients write and read.
//!
//! Killed replicas are restarted from their data. Nothing acknowledged is lost, nothing is applied twice,
//! every read is current, and every log verifies.
//!
//! Caveat: SIGKILL leaves the operating system's cache intact, so this test cannot detect a missing sync. The
//! simulated disk can, because it forgets unsynced data.

mod history;
mod process;

use consensus::store::{LogEntry, Recovered};
use consensus::wal::{Owner, WriteAheadLog};
use consensus::{Incarnation, LogIndex, Term};
use history::{ClientObservation, Operation};
use process::{Link, Process, ReplicaResources};
use protocol::ReplicaId;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;

/// Timeout of every wait; generous, because machines are shared.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time after which no new kill begins, so that the test stays short on a slow machine.
const KILLING: Duration = Duration::from_secs(7);
/// Rounds that take place however slow the machine is: one of each kind.
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 12;
const CLIENTS: u64 = 6;
const SEED: u64 = 2026;

/// Deterministic generator (SplitMix64): the seed decides the victims and moments of the kills.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// State shared by the clients: a link to each running replica, and a clock of events.
struct World {
    links: watch::Sender<BTreeMap<u64, Link>>,
    clock: AtomicU64,
    /// Number of requests sent to replicas so far; it times the kills.
    sent: watch::Sender<u64>,
    ending: AtomicBool,
}

impl World {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Sends a request to running replicas, chosen at random, until one answers.
    async fn ask(&self, dice: &mut Dice, request: &str) -> String {
        let mut links = self.links.subscribe();
        loop {
            let running = links.wait_for(|links| !links.is_empty()).await.expect("the world lasts").clone();
            let chosen = dice.roll(running.len() as u64) as usize;
            let link = running.into_values().nth(chosen).expect("chosen among them");
            self.sent.send_modify(|sent| *sent += 1);
            match link.ask(request.to_owned()).await {
                Some(Ok(answer)) => return answer,
                Some(Err(code)) => {
                    let passing = ["no-leader", "outcome-unknown", "log-busy", "replica-stopped"];
                    assert!(passing.contains(&code.as_str()), "{request}: {code}");
                }
                // The replica was killed: the links change in a moment.
                None => tokio::task::yield_now().await,
            }
        }
    }

    /// Runs one client: appends its lines in order, reads in between, and records its observations.
    async fn client(&self, name: u64) -> Vec<Operation> {
        let mut dice = Dice(SEED ^ name);
        let session = self.ask(&mut dice, "open").await;
        let mut operations = Vec::new();
        let mut sequence = 0;
        while !self.ending.load(Ordering::Relaxed) {
            let begin = self.now();
            let seen = if dice.roll(3) == 0 {
                let answer = self.ask(&mut dice, "read").await;
                let (length, digest) = answer.split_once(' ').expect("two words");
                ClientObservation::Read {
                    length: length.parse().expect("a number"),
                    digest: digest.to_owned(),
                }
            } else {
                sequence += 1;
                let line = format!("{name}-{sequence}");
                let answer = self.ask(&mut dice, &format!("append {session} {sequence} {line}")).await;
                ClientObservation::Appended { line, position: answer.parse().expect("a number") }
            };
            operations.push(Operation { begin, end: self.now(), seen });
        }
        operations
    }
}

/// The replicas, running or stopped.
struct Group {
    resources: Vec<ReplicaResources>,
    addresses: Vec<SocketAddr>,
    running: BTreeMap<u64, Process>,
    world: Arc<World>,
    _directory: TempDir,
}

impl Group {
    fn bootstrap() -> Self {
        let directory = TempDir::new().expect("temporary directory");
        let resource = |id: u64| ReplicaResources {
            id,
            directory: directory.path().join(id.to_string()),
            listener: TcpListener::bind("127.0.0.1:0").expect("loopback"),
        };
        let resources: Vec<ReplicaResources> = (1..=3).map(resource).collect();
        let addresses =
            resources.iter().map(|resource| resource.listener.local_addr().expect("bound")).collect();
        let world = Arc::new(World {
            links: watch::channel(BTreeMap::new()).0,
            clock: AtomicU64::new(0),
            sent: watch::channel(0).0,
            ending: AtomicBool::new(false),
        });
        let mut group = Self { resources, addresses, running: BTreeMap::new(), world, _directory: directory };
        (1..=3).for_each(|id| group.start(id, true));
        group
    }

    fn start(&mut self, id: u64, create: bool) {
        let process = Process::start(&self.resources[id as usize - 1], &self.addresses, create);
        let link = process.link.clone();
        self.world.links.send_modify(|links| drop(links.insert(id, link)));
        self.running.insert(id, process);
    }

    fn kill(&mut self, id: u64) {
        self.world.links.send_modify(|links| drop(links.remove(&id)));
        self.running.remove(&id).expect("running").kill();
    }

    /// Waits until clients have sent this many more requests: a moment that is counted, not timed.
    async fn requests(&self, more: u64) {
        let mut sent = self.world.sent.subscribe();
        let goal = *sent.borrow() + more;
        let reached = tokio::time::timeout(WAIT_TIMEOUT, sent.wait_for(|sent| *sent >= goal)).await;
        assert!(reached.is_ok(), "nothing moves any more");
    }

    async fn leader(&self) -> Option<u64> {
        let (_, process) = self.running.first_key_value()?;
        process.link.ask("leader".to_owned()).await?.ok()?.parse().ok()
    }

    /// Runs one round: one or all replicas die in the middle of traffic and restart, immediately or later.
    /// Some are killed again while they read their log.
    async fn round(&mut self, round: usize, dice: &mut Dice) {
        self.requests(20 + dice.roll(150)).await;
        let any = 1 + dice.roll(3);
        let kind = if round < ROUNDS_MIN { round as u64 } else { dice.roll(ROUNDS_MIN as u64) };
        let victims = match kind {
            0 => vec![self.leader().await.unwrap_or(any)],
            1 => vec![1, 2, 3],
            _ => vec![any],
        };
        victims.iter().for_each(|id| self.kill(*id));
        if victims.len() == 1 {
            self.requests(dice.roll(60)).await;
        }
        for id in victims {
            self.start(id, false);
            if dice.roll(4) == 0 {
                // A moment between the start of the process and the end of the recovery.
                tokio::time::sleep(Duration::from_millis(dice.roll(60))).await;
                self.kill(id);
                self.start(id, false);
            }
        }
    }
}

/// Not a test of its own: the process that [`killed_replicas_lose_nothing`] starts and kills.
#[test]
fn a_replica_to_be_killed() {
    if let Some(parameters) = process::parameters() {
        process::run(&parameters);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_replicas_lose_nothing() {
    let mut group = Group::bootstrap();
    let world = group.world.clone();
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|name| {
            let world = world.clone();
            tokio::spawn(async move { world.client(name).await })
        })
        .collect();
    let (mut dice, begin) = (Dice(SEED), Instant::now());
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS_MIN && begin.elapsed() > KILLING {
            break;
        }
        group.round(round, &mut dice).await;
    }
    group.requests(50).await;
    world.ending.store(true, Ordering::Relaxed);
    let mut operations = Vec::new();
    for client in clients {
        let ended = tokio::time::timeout(WAIT_TIMEOUT, client).await.expect("an answer in time");
        operations.extend(ended.expect("a client that saw no wrong answer"));
    }
    let mut lists = Vec::new();
    let deadline = Instant::now() + WAIT_TIMEOUT;
    for id in 1..=3 {
        let lines = loop {
            match group.running[&id].link.ask("lines".to_owned()).await {
                Some(Ok(lines)) => break lines,
                Some(Err(_)) => assert!(Instant::now() < deadline, "replica {id} does not answer"),
                None => panic!("replica {id} died by itself"),
            }
        };
        lists.push(lines.split(',').map(str::to_owned).collect::<Vec<_>>());
    }
    assert!(lists.windows(2).all(|pair| pair[0] == pair[1]), "the replicas hold different lists");
    history::check(&lists[0], &operations).expect("a linearizable history");
    let acknowledged =
        operations.iter().filter(|operation| matches!(operation.seen, ClientObservation::Appended { .. }));
    assert_eq!(acknowledged.count(), lists[0].len(), "every line that stands was acknowledged in the end");
    (1..=3).for_each(|id| group.kill(id));
    check_logs(&group.resources);
}

/// Checks that every record of every log continues the chain, and that no two logs hold different entries of
/// one term at one index.
fn check_logs(resources: &[ReplicaResources]) {
    let mut seen: BTreeMap<(LogIndex, Term), LogEntry> = BTreeMap::new();
    for resource in resources {
        let voters = [1, 2, 3].map(ReplicaId).to_vec();
        let owner = Owner { group: process::GROUP, id: ReplicaId(resource.id), voters };
        let (_log, found) = WriteAheadLog::open(&resource.directory, owner, false, process::SEGMENT_BYTES)
            .expect("the log verifies");
        let Recovered { entries, hard_state, incarnation, .. } = found;
        assert!(incarnation > Incarnation(1), "replica {} was never started again", resource.id);
        assert!(hard_state.commit > LogIndex(0), "replica {} committed nothing", resource.id);
        for entry in entries {
            let known = seen.entry((entry.index, entry.term)).or_insert_with(|| entry.clone());
            assert_eq!(*known, entry, "two logs differ");
        }
    }
}

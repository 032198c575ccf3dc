//! Randomized fault histories of whole groups, in simulated time.
//!
//! Replicas crash, are paused, cut off or stopped in order, run out of space and delay snapshots. Clients
//! append and read through any of them at the same time. Nothing acknowledged is lost, nothing is applied
//! twice, and no read is stale. `kills` shows the same with real processes, with fewer kinds of faults and
//! far fewer of each.

use crate::group::{Notebook, ids};
use crate::history::{self, ClientObservation, EMPTY, Operation, digest};
use bytes::Bytes;
use consensus::simulation::SimulatedGroup;
use consensus::{Handle, Limits, SessionId, Timings};
use protocol::ReplicaId;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

const SEEDS: u64 = 24;
const CLIENTS: u64 = 4;
const TROUBLE: Duration = Duration::from_secs(40);
/// Timeout once all faults are over: far longer than anything takes then.
const CALM: Duration = Duration::from_secs(120);

/// Deterministic generator (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn pause(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most))
    }
}

/// State shared by the clients.
#[derive(Clone)]
struct World {
    handles: watch::Receiver<BTreeMap<ReplicaId, Handle<Notebook>>>,
    clock: Rc<Cell<u64>>,
    ending: Rc<Cell<bool>>,
}

impl World {
    fn now(&self) -> u64 {
        self.clock.replace(self.clock.get() + 1)
    }

    fn any(&self, dice: &mut Dice) -> Handle<Notebook> {
        self.handles.borrow()[&ReplicaId(1 + dice.roll(3))].clone()
    }

    async fn session(&self, dice: &mut Dice) -> SessionId {
        loop {
            match self.any(dice).open_session().await {
                Ok(session) => return session,
                Err(_) => sleep(dice.pause(50)).await,
            }
        }
    }

    /// Appends a line through replicas chosen at random, until one acknowledges it.
    async fn append(&self, dice: &mut Dice, command: (SessionId, u64), line: &str) -> ClientObservation {
        loop {
            let line = line.to_owned();
            match self.any(dice).propose(Bytes::from(line.clone()), Some(command)).await {
                Ok(position) => {
                    let position = String::from_utf8_lossy(&position).parse().expect("a number");
                    return ClientObservation::Appended { line, position };
                }
                Err(error) => {
                    let code = error.code();
                    let passing =
                        ["no-leader", "outcome-unknown", "log-busy", "log-disk-full", "replica-stopped"];
                    assert!(passing.contains(&code.as_str()), "{error}");
                }
            }
            sleep(dice.pause(50)).await;
        }
    }

    async fn read(&self, dice: &mut Dice) -> ClientObservation {
        loop {
            let handle = self.any(dice);
            if handle.read_barrier().await.is_ok() {
                return handle.read(|book| {
                    let lines = book.lines.iter().map(|line| String::from_utf8_lossy(line));
                    let found = lines.fold(EMPTY, |before, line| digest(&before, &line));
                    ClientObservation::Read {
                        length: book.lines.len(),
                        digest: blake3::Hash::from(found).to_hex().to_string(),
                    }
                });
            }
            sleep(dice.pause(50)).await;
        }
    }

    async fn client(self, seed: u64, name: u64) -> Vec<Operation> {
        let mut dice = Dice(seed << 8 | name);
        let session = self.session(&mut dice).await;
        let (mut operations, mut sequence) = (Vec::new(), 0);
        while !self.ending.get() {
            let begin = self.now();
            let seen = if dice.roll(3) == 0 {
                self.read(&mut dice).await
            } else {
                sequence += 1;
                self.append(&mut dice, (session, sequence), &format!("{name}-{sequence}")).await
            };
            operations.push(Operation { begin, end: self.now(), seen });
            sleep(dice.pause(60)).await;
        }
        operations
    }
}

/// The group, and the faults injected into it.
struct Trouble {
    group: SimulatedGroup<Notebook>,
    handles: watch::Sender<BTreeMap<ReplicaId, Handle<Notebook>>>,
    dice: Dice,
    counts: [u64; 8],
}

impl Trouble {
    fn start(seed: u64) -> Self {
        let limits = Limits { snapshot_entries: 30, retained_entries: 5, ..Limits::default() };
        let timings = Timings { request: Duration::from_secs(3), ..Timings::default() };
        let group = SimulatedGroup::start(3, timings, limits);
        let mut dice = Dice(seed);
        group.network().set_delay(dice.pause(20));
        let handles = ids().map(|id| (id, group.handle(id))).collect();
        Self { group, handles: watch::Sender::new(handles), dice, counts: [0; 8] }
    }

    fn restart(&mut self, id: ReplicaId) {
        self.group.restart(id);
        self.handles.send_modify(|handles| drop(handles.insert(id, self.group.handle(id))));
    }

    /// Injects one fault, and reverts it later.
    async fn strike(&mut self) {
        let (id, kind) = (ReplicaId(1 + self.dice.roll(3)), self.dice.roll(8));
        self.counts[kind as usize] += 1;
        let lasting = self.dice.pause(3000);
        match kind {
            0 => {
                self.group.crash(id);
                sleep(lasting).await;
                self.restart(id);
            }
            1 => {
                ids().for_each(|id| self.group.crash(id));
                ids().for_each(|id| self.restart(id));
            }
            2 => {
                self.group.stop(id).await;
                sleep(lasting).await;
                self.restart(id);
            }
            3 => {
                self.group.set_paused(id, true);
                sleep(lasting).await;
                self.group.set_paused(id, false);
            }
            4 => {
                self.group.network().set_isolated(id, true);
                sleep(lasting).await;
                self.group.network().set_isolated(id, false);
            }
            5 => {
                self.group.disk(id).set_out_of_space(true);
                sleep(lasting).await;
                self.group.disk(id).set_out_of_space(false);
            }
            6 => {
                self.group.hold_snapshots(id, true);
                sleep(lasting).await;
                self.group.hold_snapshots(id, false);
            }
            _ => self.group.network().lose_answers(id, 3),
        }
    }
}

async fn history(seed: u64) -> [u64; 8] {
    let mut trouble = Trouble::start(seed);
    let world = World { handles: trouble.handles.subscribe(), clock: Rc::default(), ending: Rc::default() };
    let clients: Vec<_> =
        (1..=CLIENTS).map(|name| tokio::task::spawn_local(world.clone().client(seed, name))).collect();
    let begin = Instant::now();
    while begin.elapsed() < TROUBLE {
        let calm = trouble.dice.pause(1000);
        sleep(calm).await;
        trouble.strike().await;
    }
    world.ending.set(true);
    let mut operations = Vec::new();
    for client in clients {
        let ended = timeout(CALM, client).await.unwrap_or_else(|_| panic!("seed {seed}: no answer comes"));
        operations.extend(ended.expect("a client that saw no wrong answer"));
    }
    let mut lists = Vec::new();
    for id in ids() {
        lists.push(crate::group::lines(&trouble.group.handle(id)).await);
    }
    assert!(
        lists.windows(2).all(|pair| pair[0] == pair[1]),
        "seed {seed}: the replicas hold different lists"
    );
    history::check(&lists[0], &operations).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    let acknowledged =
        operations.iter().filter(|operation| matches!(operation.seen, ClientObservation::Appended { .. }));
    assert_eq!(acknowledged.count(), lists[0].len(), "seed {seed}: a line that stands was acknowledged");
    assert!(lists[0].len() > 100, "seed {seed}: {} lines are no load", lists[0].len());
    trouble.counts
}

#[test]
fn faulty_groups_lose_nothing_and_confirm_no_stale_read() {
    let mut counts = [0; 8];
    for seed in 0..SEEDS {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let met = LocalSet::new().block_on(&runtime.expect("a runtime"), history(seed));
        counts.iter_mut().zip(met).for_each(|(count, met)| *count += met);
    }
    assert!(counts.iter().all(|count| *count >= SEEDS / 2), "some trouble is hardly met: {counts:?}");
}

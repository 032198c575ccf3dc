//! Tests of the core under a virtual clock, with an in-memory network that loses, repeats, delays and cuts.
//!
//! Every run is a function of its seed; one test runs the same history twice and compares.

mod barred;
mod history;
mod violations;

use super::*;
use crate::dice::Dice;
use crate::error::LogError;
use crate::store::{LogStore, SimulatedDisk};
use std::collections::{BTreeMap, BTreeSet};

/// Size of a segment in bytes: a few entries, so that segments fill up often.
const SEGMENT_BYTES: u64 = 1024;

struct SimulatedReplica {
    core: Core,
    disk: SimulatedDisk,
    /// Batches not yet on disk; empty if the disk is fast.
    unwritten: Vec<NumberedBatch>,
    applied: Vec<LogEntry>,
    /// Digest of everything applied, which snapshots carry; `None` after a snapshot without one.
    state: Option<[u8; 32]>,
    confirmed: Vec<ConfirmedRead>,
    rejected: Vec<ReadId>,
}

/// Replicas 1..=n, their disks, and messages in transit. Replicas are named by their raft ids, as in the
/// messages.
struct World {
    seed: u64,
    limits: Limits,
    nodes: BTreeMap<u64, SimulatedReplica>,
    disks: BTreeMap<u64, SimulatedDisk>,
    wire: Vec<Message>,
    cut: BTreeSet<u64>,
    slow_disks: BTreeSet<u64>,
    dice: Dice,
    loss_percent: u64,
    repeat_percent: u64,
    /// Type of the messages that are set aside instead of delivered.
    withheld: Option<MessageType>,
    aside: Vec<Message>,
    /// Replicas that are down after a failure.
    fallen: BTreeSet<u64>,
    /// State after each index, as computed by the first replica that reached it.
    states: BTreeMap<LogIndex, [u8; 32]>,
    installed: u64,
    /// Whether the power often fails while a snapshot from the leader is installed.
    cut_installations: bool,
    trace: blake3::Hasher,
}

impl World {
    fn new(size: u64, seed: u64) -> Self {
        Self::with_limits(size, seed, Limits { retained_entries: 2, ..Limits::default() })
    }

    fn with_limits(size: u64, seed: u64, limits: Limits) -> Self {
        let mut world = Self {
            seed,
            limits,
            nodes: BTreeMap::new(),
            disks: (1..=size).map(|id| (id, SimulatedDisk::with(8 * seed + id, SEGMENT_BYTES))).collect(),
            wire: Vec::new(),
            cut: BTreeSet::new(),
            slow_disks: BTreeSet::new(),
            dice: Dice(seed),
            loss_percent: 0,
            repeat_percent: 0,
            withheld: None,
            aside: Vec::new(),
            fallen: BTreeSet::new(),
            states: BTreeMap::new(),
            installed: 0,
            cut_installations: false,
            trace: blake3::Hasher::new(),
        };
        (1..=size).for_each(|id| world.start(id));
        world
    }

    fn start(&mut self, id: u64) {
        let recovered = self.disks[&id].open();
        self.start_from(id, recovered);
    }

    fn start_from(&mut self, id: u64, recovered: Recovered) {
        let timings = Timings { heartbeat_ticks: 2, election_ticks: 10, ..Timings::default() };
        let voters = self.disks.keys().copied().map(ReplicaId).collect();
        let settings = Settings { id: ReplicaId(id), voters, seed: self.seed, timings, limits: self.limits };
        let disk = self.disks[&id].clone();
        let (begin, state) = match &recovered.snapshot {
            Some(found) => (found.index, found.data[..].try_into().ok()),
            None => (LogIndex(0), Some([0; 32])),
        };
        let applied = placeholders(begin);
        let core = Core::new(settings, recovered).expect("valid settings");
        let (unwritten, confirmed, rejected) = (Vec::new(), Vec::new(), Vec::new());
        self.nodes
            .insert(id, SimulatedReplica { core, disk, unwritten, applied, state, confirmed, rejected });
    }

    /// Stops a replica as a power failure does: unsynced data is lost, wholly or in part.
    fn crash(&mut self, id: u64) {
        let node = self.nodes.remove(&id).expect("running");
        node.disk.crash();
    }

    fn restart(&mut self, id: u64) {
        self.crash(id);
        self.start(id);
    }

    fn node(&mut self, id: u64) -> &mut SimulatedReplica {
        self.nodes.get_mut(&id).expect("running")
    }

    /// Performs every effect of every replica.
    fn settle_effects(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            if self.settle_effects_of(id).is_err() {
                self.crash(id);
                self.fallen.insert(id);
            }
        }
    }

    /// Performs every effect of one replica, unless its disk fails.
    fn settle_effects_of(&mut self, id: u64) -> Result<(), LogError> {
        let slow = self.slow_disks.contains(&id);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        while let Some(effects) = node.core.ready() {
            self.wire.extend(effects.messages);
            node.unwritten.extend(effects.batch);
            if let Some(snapshot) = effects.restore {
                self.installed += 1;
                node.restore(&snapshot);
                if self.cut_installations && self.dice.roll(2) == 0 {
                    // Around the moment when the snapshot's file has its name, but the log has no mark yet.
                    node.disk.files().cut_power_after(5 + self.dice.roll(8));
                }
            }
            for entry in effects.committed {
                assert_eq!(entry.index, node.last_applied().next(), "replica {id} skips an entry");
                if let Some(state) = node.apply(entry) {
                    self.trace.update(&state);
                    let index = node.last_applied();
                    let known = *self.states.entry(index).or_insert(state);
                    assert_eq!(known, state, "seed {}: replica {id} differs at {index}", self.seed);
                }
            }
            node.confirmed.extend(effects.reads);
            node.rejected.extend(effects.rejected_reads);
            if !slow {
                write(node, &mut self.wire)?;
            }
        }
        if !slow {
            write(node, &mut self.wire)?;
        }
        node.check(self.seed);
        Ok(())
    }

    /// Delivers messages, and performs the resulting effects, until nothing is in transit.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.settle_effects();
            if self.wire.is_empty() {
                return;
            }
            self.deliver();
        }
        panic!("messages never come to an end");
    }

    fn deliver(&mut self) {
        for message in std::mem::take(&mut self.wire) {
            if self.withheld == Some(message.get_msg_type()) {
                self.aside.push(message);
                continue;
            }
            let cut = self.cut.contains(&message.from) || self.cut.contains(&message.to);
            if cut || self.dice.roll(100) < self.loss_percent {
                self.lose(&message);
                continue;
            }
            let copies = 1 + u64::from(self.dice.roll(100) < self.repeat_percent);
            for _ in 0..copies {
                self.deliver_one(message.clone());
            }
        }
    }

    /// Loses a message. Its sender is notified only if it is a snapshot.
    fn lose(&mut self, message: &Message) {
        if message.get_msg_type() == MessageType::MsgSnapshot
            && let Some(sender) = self.nodes.get_mut(&message.from)
        {
            sender.core.snapshot_sent(ReplicaId(message.to), false);
        }
    }

    fn deliver_one(&mut self, message: Message) {
        let (from, kind) = (message.from, message.get_msg_type());
        let to = message.to;
        if !self.nodes.contains_key(&to) {
            self.lose(&message);
        }
        if let Some(node) = self.nodes.get_mut(&to) {
            for value in [from, to, message.term, message.index, kind as u64] {
                self.trace.update(&value.to_le_bytes());
            }
            node.core.step(message).expect("peers send only messages that replicas exchange");
            node.check(self.seed);
            if kind == MessageType::MsgSnapshot
                && let Some(sender) = self.nodes.get_mut(&from)
            {
                sender.core.snapshot_sent(ReplicaId(to), true);
            }
        }
    }

    fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            node.core.tick();
            node.check(self.seed);
        }
        self.settle();
    }

    fn run(&mut self, ticks: usize) {
        (0..ticks).for_each(|_| self.tick());
    }

    fn leaders(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.core.status().is_leader()).map(|(id, _)| *id).collect()
    }

    /// Runs until there is one leader among the replicas that are not cut off.
    fn elect(&mut self) -> u64 {
        for _ in 0..400 {
            let leaders: Vec<u64> = self.leaders().into_iter().filter(|id| !self.cut.contains(id)).collect();
            if let [leader] = leaders[..] {
                return leader;
            }
            self.tick();
        }
        panic!("no leader within 400 ticks, seed {}", self.seed);
    }

    fn propose(&mut self, id: u64, text: &str) -> LogIndex {
        let (_, index) =
            self.node(id).core.propose(vec![Bytes::copy_from_slice(text.as_bytes())]).expect("leads");
        index
    }

    fn texts(&self, id: u64) -> Vec<String> {
        let entries = self.nodes[&id].applied.iter().filter(|entry| !entry.data.is_empty());
        entries.map(|entry| String::from_utf8_lossy(&entry.data).into_owned()).collect()
    }
}

impl SimulatedReplica {
    /// Applies an entry and returns the state after it, if the state is known.
    fn apply(&mut self, entry: LogEntry) -> Option<[u8; 32]> {
        let after = |state: [u8; 32]| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&state).update(&entry.index.0.to_le_bytes());
            *hasher.update(&entry.term.0.to_le_bytes()).update(&entry.data).finalize().as_bytes()
        };
        self.state = self.state.map(after);
        self.core.applied(entry.index);
        self.applied.push(entry);
        self.state
    }

    fn restore(&mut self, snapshot: &Snapshot) {
        self.applied = placeholders(snapshot.index);
        self.state = snapshot.data[..].try_into().ok();
        self.core.applied(snapshot.index);
    }

    fn check(&mut self, seed: u64) {
        let id = self.core.settings.id;
        let checked = self.core.check_invariants();
        checked.unwrap_or_else(|violation| panic!("seed {seed}: replica {id}: {violation}"));
    }

    fn last_applied(&self) -> LogIndex {
        LogIndex(0).plus(self.applied.len())
    }
}

/// Returns entries of term 0 in the place of those within a snapshot.
fn placeholders(through: LogIndex) -> Vec<LogEntry> {
    let placeholder = |index| LogEntry { index: LogIndex(index), term: Term(0), data: Bytes::new() };
    (1..=through.0).map(placeholder).collect()
}

/// Writes all pending batches of a replica as one group, and sends the messages that depend on them. On a
/// full disk they remain pending.
fn write(node: &mut SimulatedReplica, wire: &mut Vec<Message>) -> Result<(), LogError> {
    if node.unwritten.is_empty() {
        return Ok(());
    }
    let group: Vec<Batch> = node.unwritten.iter().map(|numbered| numbered.batch.clone()).collect();
    match node.disk.write(&group) {
        Err(error) if error.is_disk_full() => return Ok(()),
        outcome => outcome?,
    }
    for NumberedBatch { number, messages, .. } in node.unwritten.drain(..) {
        wire.extend(messages);
        node.core.persisted(number);
    }
    Ok(())
}

#[test]
fn a_single_replica_elects_itself_and_commits() {
    let mut world = World::new(1, 1);
    let leader = world.elect();
    world.propose(leader, "a");
    world.settle();
    assert_eq!(world.texts(1), ["a"]);
    world.restart(1);
    world.elect();
    world.settle();
    assert_eq!(world.texts(1), ["a"]);
}

#[test]
fn three_replicas_agree_and_a_restarted_one_catches_up() {
    let mut world = World::new(3, 2);
    let leader = world.elect();
    for text in ["a", "b", "c"] {
        world.propose(leader, text);
        world.settle();
    }
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.crash(follower);
    world.propose(leader, "d");
    world.settle();
    world.start(follower);
    world.run(30);
    for id in 1..=3 {
        assert_eq!(world.texts(id), ["a", "b", "c", "d"], "replica {id}");
    }
}

#[test]
fn a_dead_leader_is_replaced_and_nothing_committed_is_lost() {
    for seed in 0..40 {
        let mut world = World::new(3, seed);
        let first = world.elect();
        world.propose(first, "kept");
        world.settle();
        world.crash(first);
        let second = world.elect();
        assert_ne!(first, second);
        world.propose(second, "after");
        world.settle();
        world.start(first);
        world.run(30);
        assert_eq!(world.texts(first), ["kept", "after"], "seed {seed}");
    }
}

#[test]
fn nothing_is_committed_before_a_majority_holds_it_on_disk() {
    let mut world = World::new(3, 3);
    let leader = world.elect();
    world.slow_disks = (1..=3).collect();
    world.propose(leader, "a");
    world.settle();
    assert!(world.texts(leader).is_empty(), "committed without any disk");
    world.slow_disks.remove(&leader);
    world.settle();
    assert!(world.texts(leader).is_empty(), "committed by one disk of three");
    world.slow_disks.clear();
    world.settle();
    assert_eq!(world.texts(leader), ["a"]);
}

#[test]
fn a_follower_with_a_stuck_disk_still_answers_heartbeats() {
    let mut world = World::new(3, 4);
    let leader = world.elect();
    world.settle();
    let term = world.nodes[&leader].core.status().term;
    world.slow_disks = (1..=3).filter(|id| *id != leader).collect();
    world.propose(leader, "waits");
    world.run(100);
    assert_eq!(world.leaders(), [leader], "slow disks deposed a healthy leader");
    assert_eq!(world.nodes[&leader].core.status().term, term);
    world.slow_disks.clear();
    world.run(5);
    assert_eq!(world.texts(leader), ["waits"]);
}

#[test]
fn a_leader_with_a_stuck_disk_transfers_its_leadership() {
    let mut world = World::new(3, 5);
    let leader = world.elect();
    world.run(5);
    world.slow_disks.insert(leader);
    world.node(leader).core.transfer_leadership();
    world.settle();
    world.slow_disks.clear();
    let next = world.elect();
    assert_ne!(next, leader);
}

#[test]
fn leadership_is_not_transferred_to_a_follower_that_waits_for_a_snapshot() {
    let mut world = World::new(3, 17);
    let leader = world.elect();
    let (behind, other) = (1 + leader % 3, 1 + (leader + 1) % 3);
    world.crash(behind);
    for number in 0..20 {
        world.propose(leader, &number.to_string());
        world.settle();
    }
    let snapshot = world.node(leader).core.snapshot_here(Bytes::new());
    world.node(leader).core.snapshot_saved(snapshot);
    world.start(behind);
    world.withheld = Some(MessageType::MsgSnapshot);
    world.cut.insert(other);
    world.run(25);
    assert!(!world.aside.is_empty() && world.nodes[&leader].core.status().is_leader());
    let transferee = |world: &World| world.nodes[&leader].core.raw.raft.lead_transferee;
    world.node(leader).core.transfer_leadership();
    assert_eq!(transferee(&world), None, "no proposal would be accepted until the snapshot has arrived");
    world.cut.clear();
    world.run(3);
    world.node(leader).core.transfer_leadership();
    assert_eq!(transferee(&world), Some(other));
}

#[test]
fn a_replica_with_a_stuck_disk_buffers_no_more_than_its_limit() {
    let limits = Limits { message_bytes: 1024, uncommitted_bytes_max: 8192, ..Limits::default() };
    let mut world = World::with_limits(3, 16, limits);
    let leader = world.elect();
    world.settle();
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.slow_disks.insert(follower);
    for _ in 0..100 {
        world.node(leader).core.propose(vec![Bytes::from(vec![7; 1000])]).expect("leads");
        world.run(2);
    }
    assert_eq!(world.texts(leader).len(), 100, "two of three commit");
    let gathered = world.nodes[&follower].core.unwritten_bytes;
    assert!((1000..=8192 + 2048).contains(&gathered), "{gathered} bytes wait for a stuck disk");
    world.slow_disks.clear();
    world.run(30);
    assert_eq!(world.texts(follower).len(), 100, "it catches up when its disk does");
    // The same bound holds for a leader, although the others commit its proposals.
    world.slow_disks.insert(leader);
    let mut taken = 0;
    while world.node(leader).core.propose(vec![Bytes::from(vec![7; 1000])]).is_ok() {
        world.settle();
        taken += 1;
        assert!(taken < 100, "no bound");
    }
    assert!(world.texts(leader).len() < 100 + taken, "its own disk is behind");
    world.slow_disks.clear();
    world.run(30);
    assert_eq!(world.texts(follower).len(), 100 + taken);
}

#[test]
fn a_replica_that_was_cut_off_does_not_disturb_the_others() {
    let mut world = World::new(3, 6);
    let leader = world.elect();
    world.settle();
    let term = world.nodes[&leader].core.status().term;
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.cut.insert(follower);
    world.run(200);
    world.cut.clear();
    world.run(20);
    assert_eq!((world.leaders(), world.nodes[&leader].core.status().term), (vec![leader], term));
}

#[test]
fn a_leader_cut_off_from_the_majority_steps_down() {
    let mut world = World::new(3, 7);
    let old = world.elect();
    world.cut.insert(old);
    world.run(25);
    assert!(!world.leaders().contains(&old), "check-quorum is off");
}

#[test]
fn a_follower_far_behind_gets_a_snapshot() {
    let mut world = World::new(3, 8);
    let leader = world.elect();
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.crash(follower);
    for number in 0..20 {
        world.propose(leader, &number.to_string());
        world.settle();
    }
    let core = &mut world.node(leader).core;
    let snapshot = core.snapshot_here(Bytes::from_static(b"state"));
    let index = snapshot.index;
    world.disks[&leader].save_snapshot(&snapshot).expect("healthy disk");
    world.node(leader).core.snapshot_saved(snapshot);
    world.start(follower);
    world.run(40);
    assert!(world.nodes[&follower].last_applied() >= index);
    assert_eq!(world.nodes[&follower].applied[0].term, Term(0), "it came as a snapshot");
    world.propose(leader, "later");
    world.run(5);
    assert_eq!(world.texts(follower).last().map(String::as_str), Some("later"));
    world.restart(follower);
    world.run(40);
    assert_eq!(world.texts(follower).last().map(String::as_str), Some("later"));
}

#[test]
fn a_follower_with_a_snapshot_not_yet_durable_does_not_campaign() {
    let mut world = World::new(3, 14);
    let leader = world.elect();
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.crash(follower);
    for number in 0..20 {
        world.propose(leader, &number.to_string());
        world.settle();
    }
    let snapshot = world.node(leader).core.snapshot_here(Bytes::new());
    world.node(leader).core.snapshot_saved(snapshot);
    world.start(follower);
    world.withheld = Some(MessageType::MsgSnapshot);
    world.run(5);
    world.withheld = None;
    world.slow_disks.insert(follower);
    let snapshot = world.aside.pop().expect("the leader sent a snapshot");
    world.deliver_one(snapshot);
    world.settle();
    assert!(world.nodes[&follower].core.installing(), "the snapshot is in memory, and not on disk");
    world.cut.insert(follower);
    world.run(100);
    let mut timeout_now = Message { from: leader, to: follower, ..Message::default() };
    timeout_now.term = world.nodes[&leader].core.status().term.0;
    timeout_now.set_msg_type(MessageType::MsgTimeoutNow);
    world.deliver_one(timeout_now);
    world.cut.clear();
    world.slow_disks.clear();
    world.run(40);
    world.propose(leader, "later");
    world.run(5);
    assert_eq!(world.texts(follower).last().map(String::as_str), Some("later"));
}

#[test]
fn an_idle_replica_writes_its_commit_index() {
    let mut world = World::new(3, 15);
    let leader = world.elect();
    let index = world.propose(leader, "a");
    world.run(10);
    for (id, disk) in &world.disks {
        assert_eq!(disk.open().hard_state.commit, index, "replica {id}");
    }
}

#[test]
fn a_new_group_elects_its_first_leader_within_a_few_ticks() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        world.run(4);
        assert_eq!(world.leaders().len(), 1, "seed {seed}");
    }
}

#[test]
fn reads_are_confirmed_at_an_index_that_covers_earlier_commits() {
    let mut world = World::new(3, 9);
    let leader = world.elect();
    let index = world.propose(leader, "a");
    world.settle();
    world.node(leader).core.read(ReadId(1));
    world.node(leader).core.read(ReadId(2));
    world.settle();
    let expected = [1, 2].map(|id| ConfirmedRead { id: ReadId(id), index });
    assert_eq!(world.node(leader).confirmed, expected);
    let follower = (1..=3).find(|id| *id != leader).expect("three replicas");
    world.node(follower).core.read(ReadId(3));
    world.settle();
    assert_eq!(world.node(follower).rejected, [ReadId(3)]);
}

#[test]
fn a_read_before_the_first_commit_of_a_term_is_confirmed_and_not_dropped() {
    let mut world = World::new(3, 10);
    let leader = world.elect();
    world.crash(leader);
    // Stop just as a new leader appears, before its first entry can be committed.
    world.withheld = Some(MessageType::MsgAppendResponse);
    let next = world.elect();
    world.node(next).core.read(ReadId(1));
    world.settle();
    assert_eq!((world.node(next).confirmed.len(), world.node(next).rejected.len()), (0, 0));
    world.withheld = None;
    world.aside.clear();
    world.run(10);
    assert_eq!(world.node(next).confirmed.len(), 1);
}

/// The schedule with which the raft library returns stale data if a read token is used twice. Responses to
/// the first use are late, the leader is deposed without noticing, and the late responses arrive.
#[test]
fn late_answers_to_an_earlier_read_never_confirm_a_later_one() {
    let mut world = World::new(3, 11);
    let old = world.elect();
    world.propose(old, "one");
    world.settle();
    // The first read is sent; the followers' responses are held back.
    world.withheld = Some(MessageType::MsgHeartbeatResponse);
    world.node(old).core.read(ReadId(1));
    world.settle();
    let late: Vec<Message> = std::mem::take(&mut world.aside);
    assert_eq!(late.len(), 2);
    world.withheld = None;
    // The leader is cut off; the others elect another one and commit.
    world.cut.insert(old);
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    for _ in 0..100 {
        others.iter().for_each(|id| world.node(*id).core.tick());
        world.settle();
    }
    let new = world.leaders().into_iter().find(|id| *id != old).expect("a new leader");
    let newer = world.propose(new, "two");
    world.settle();
    // On the old one, which has not noticed, a read begins that must see "two" or wait.
    assert!(world.nodes[&old].core.status().is_leader(), "the clock of the old leader stood still");
    world.node(old).core.read(ReadId(2));
    world.settle();
    for message in late.iter().chain(&late) {
        world.deliver_one(message.clone());
    }
    world.settle();
    let stale: Vec<_> = world
        .node(old)
        .confirmed
        .iter()
        .filter(|read| read.id == ReadId(2) && read.index < newer)
        .copied()
        .collect();
    assert_eq!(stale, [], "a deposed leader confirmed a stale read");
}

/// The same schedule against the bare library, with one token used twice. If this test fails, the library was
/// fixed, and fresh tokens are no longer needed.
#[test]
fn the_library_still_confirms_a_stale_read_when_a_token_is_used_twice() {
    let mut world = World::new(3, 11);
    let old = world.elect();
    world.propose(old, "one");
    world.settle();
    let token = b"used twice".to_vec();
    let read = |world: &mut World| world.node(old).core.raw.read_index(token.clone());
    world.withheld = Some(MessageType::MsgHeartbeatResponse);
    read(&mut world);
    world.settle();
    let late: Vec<Message> = std::mem::take(&mut world.aside);
    // One response completes the first read; the other one is still in transit.
    world.deliver_one(late[0].clone());
    world.node(old).core.call(|raw| raw.raft.read_states.clear());
    world.withheld = None;
    world.cut.insert(old);
    read(&mut world);
    world.deliver_one(late[1].clone());
    let states = world.node(old).core.call(|raw| std::mem::take(&mut raw.raft.read_states));
    assert_eq!(states.len(), 1, "answered although it is cut off from everyone");
}

#[test]
fn messages_that_replicas_never_exchange_are_rejected() {
    let mut world = World::new(3, 12);
    let mut check = |from: u64, to: u64, kind: MessageType, expected: StepError| {
        let mut message = Message { from, to, ..Message::default() };
        message.set_msg_type(kind);
        assert_eq!(world.node(1).core.step(message), Err(expected), "{kind:?}");
    };
    for kind in [
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
        MessageType::MsgPropose,
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgTransferLeader,
        MessageType::MsgCheckQuorum,
    ] {
        check(2, 1, kind, StepError::Forbidden);
    }
    check(9, 1, MessageType::MsgHeartbeat, StepError::Misaddressed);
    check(1, 1, MessageType::MsgHeartbeat, StepError::Misaddressed);
    check(2, 3, MessageType::MsgHeartbeat, StepError::Misaddressed);
}

#[test]
fn proposals_beyond_the_uncommitted_bytes_are_rejected_until_some_commit() {
    let limits = Limits { message_bytes: 1024, uncommitted_bytes_max: 4096, ..Limits::default() };
    let mut world = World::with_limits(3, 13, limits);
    let leader = world.elect();
    world.cut = (1..=3).filter(|id| *id != leader).collect();
    let mut taken = 0;
    let refusal = loop {
        match world.node(leader).core.propose(vec![Bytes::from(vec![0; 1000])]) {
            Ok(_) => taken += 1,
            Err(refusal) => break refusal,
        }
        assert!(taken < 100, "no bound");
    };
    assert_eq!((refusal, taken), (NotProposed::Busy, 4));
    world.cut.clear();
    world.run(10);
    assert!(world.node(leader).core.propose(vec![Bytes::from_static(b"x")]).is_ok());
}

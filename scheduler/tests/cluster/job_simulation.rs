//! Simulation of jobs: agents, inits, nodes, links and leaders fail in every state of a job, under a thousand
//! seeds. An attempt starts whole or not at all, ends once, and every job succeeds in the end.
//!
//! The agents are models that keep to their protocol: fences only rise, what an agent lost it reports as
//! lost, and a node that gets no answer runs on.

use crate::common::*;
use crate::jobs::{job, listening_node, report_of, submit};
use protocol::job_report::{JobSlotReport, JobSlotState, RankEnd, RankOutcome};
use protocol::{Fence, JobId, SlotIndex};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// Jobs of each simulation; two ranks each need two nodes, and all nodes have room for two jobs.
const JOBS: usize = 3;
/// Seeds of each test, and faults of each seed.
const SEEDS: u64 = 250;
const FAULTS: usize = 4;
/// Seconds in which all jobs end, with back-off after each fault.
const LIMIT_S: u64 = 1_200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// The agent is killed, and its sandboxes with it.
    Agent,
    /// The init of one sandbox is killed.
    Init,
    /// The node is killed, and returns after a while.
    Node,
    /// The node gets no answer for a while, and runs on.
    Link,
    /// Another replica leads.
    Leader,
}

/// State of a job at which a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Queued,
    Preparing,
    Ready,
    Running,
    Ending,
    BackingOff,
}

const KINDS: [Fault; 5] = [Fault::Agent, Fault::Init, Fault::Node, Fault::Link, Fault::Leader];
const MOMENTS: [Moment; 6] =
    [Moment::Queued, Moment::Preparing, Moment::Ready, Moment::Running, Moment::Ending, Moment::BackingOff];

/// Source of choices: SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Slot as a node runs it.
struct HeldSlot {
    report: JobSlotReport,
    /// Seconds until its next state.
    left_s: u64,
}

impl HeldSlot {
    fn runs(&self) -> bool {
        self.report.state == JobSlotState::Running
    }

    /// Ends every rank that has not ended.
    fn end(&mut self, outcome: RankOutcome) {
        if self.report.state != JobSlotState::Ended {
            let ranks = self.report.ranks.first..self.report.ranks.first + self.report.ranks.count;
            self.report.ends = ranks.map(|rank| RankEnd { rank, outcome }).collect();
            self.report.state = JobSlotState::Ended;
        }
    }
}

/// A node with its agent's book.
#[derive(Default)]
struct Machine {
    slots: BTreeMap<SlotIndex, HeldSlot>,
    fences: BTreeMap<SlotIndex, Fence>,
    /// Second until which it is down, and until which it gets no answer.
    down_until: u64,
    deaf_until: u64,
}

impl Machine {
    /// Lets a second pass on the node.
    fn advance(&mut self, dice: &mut Dice) {
        for held in self.slots.values_mut() {
            held.left_s = held.left_s.saturating_sub(1);
            if held.left_s > 0 {
                continue;
            }
            match held.report.state {
                JobSlotState::Preparing => held.report.state = JobSlotState::Ready,
                JobSlotState::Running => held.end(RankOutcome::Exited { code: 0 }),
                JobSlotState::Ready | JobSlotState::Ended => {}
            }
            held.left_s = 3 + dice.below(10);
        }
    }
}

struct JobSimulation {
    world: World,
    machines: BTreeMap<&'static str, Machine>,
    dice: Dice,
    second: u64,
    jobs: Vec<JobId>,
    /// Slots that were ready in each attempt.
    ready: BTreeSet<(JobId, u32, SlotIndex)>,
    leader: u64,
}

impl JobSimulation {
    fn new(seed: u64) -> Self {
        let mut world =
            World::new(&[listening_node(), node("node-2", 4000, 4096), node("node-3", 4000, 4096)]);
        world.approve(job(2, 1500, "slots = 8\nretries = 20"));
        let jobs = (0..JOBS).map(|number| submit(&mut world, &format!("job-{number}"))).collect();
        let machines = NODES.map(|name| (name, Machine::default())).into();
        Self { world, machines, dice: Dice(seed), second: 0, jobs, ready: BTreeSet::new(), leader: 1 }
    }

    fn job(&self, id: JobId) -> &Job {
        &self.world.cluster.jobs().jobs()[&id]
    }

    /// Lets a second pass everywhere.
    fn pass(&mut self) {
        self.second += 1;
        self.world.wait(1_000);
        for name in NODES {
            let machine = self.machines.get_mut(name).unwrap();
            if machine.down_until > self.second {
                continue;
            }
            machine.advance(&mut self.dice);
            let ready = machine.slots.values().filter(|held| held.report.state == JobSlotState::Ready);
            self.ready.extend(ready.map(|held| (held.report.id, held.report.attempt, held.report.slot)));
            if machine.deaf_until <= self.second {
                let reports = machine.slots.values().map(|held| held.report.clone()).collect();
                self.world.job_reports.insert(node_id(name), reports);
                if self.world.heartbeat(name) {
                    self.obey(name);
                }
            }
        }
        self.world.execute();
        self.check();
    }

    /// Takes the desired state of a node: what is missing in it ends, and what is new in it is prepared.
    fn obey(&mut self, name: &str) {
        let parts = desired_jobs(&self.world.cluster, node_id(name));
        let machine = self.machines.get_mut(name).unwrap();
        let names = |slot: &SlotIndex, held: &HeldSlot| {
            parts.iter().any(|part| part.order.slot == *slot && part.order.fence == held.report.fence)
        };
        machine.slots.retain(|slot, held| names(slot, held));
        for part in parts {
            let (slot, fence) = (part.order.slot, part.order.fence);
            let gang = part.peers.len() + 1;
            match machine.slots.get_mut(&slot) {
                Some(held) if part.start && held.report.state == JobSlotState::Ready => {
                    let (id, attempt) = (held.report.id, held.report.attempt);
                    let ready = self.ready.iter().filter(|(of, at, _)| (*of, *at) == (id, attempt));
                    assert_eq!(ready.count(), gang, "{name} starts a part of a gang");
                    held.report.state = JobSlotState::Running;
                }
                Some(_) => {}
                None if machine.fences.get(&slot).is_none_or(|highest| fence > *highest) => {
                    machine.fences.insert(slot, fence);
                    let report = report_of(part, JobSlotState::Preparing, None);
                    machine.slots.insert(slot, HeldSlot { report, left_s: 1 + self.dice.below(4) });
                }
                // An order that the node held before: it has nothing to report about it.
                None => {}
            }
        }
    }

    /// Checks that no rank runs twice on nodes that reach control.
    fn check(&self) {
        let mut running = BTreeSet::new();
        for (name, machine) in &self.machines {
            let is_linked = machine.down_until <= self.second && machine.deaf_until <= self.second;
            for held in machine.slots.values().filter(|held| is_linked && held.runs()) {
                let report = &held.report;
                let is_fresh = running.insert((report.id, report.ranks.first));
                assert!(is_fresh, "rank {} of {} runs on {name} too", report.ranks.first, report.id);
            }
        }
    }

    /// Returns a job in this state, with a node on which it has a slot.
    fn at(&mut self, moment: Moment) -> Option<&'static str> {
        let state_of = |machine: &Machine, id: JobId| {
            machine.slots.values().filter(|held| held.report.id == id).map(|held| held.report.state).max()
        };
        let jobs: Vec<JobId> =
            self.jobs.iter().copied().filter(|id| self.moment_of(*id) == Some(moment)).collect();
        let id = *jobs.first()?;
        let holders: Vec<&'static str> =
            NODES.into_iter().filter(|name| state_of(&self.machines[name], id).is_some()).collect();
        let among = if holders.is_empty() { NODES.to_vec() } else { holders };
        Some(among[self.dice.below(among.len() as u64) as usize])
    }

    fn moment_of(&self, id: JobId) -> Option<Moment> {
        let slots = || self.machines.values().flat_map(|machine| machine.slots.values());
        let of_job = || slots().filter(|held| held.report.id == id).map(|held| held.report.state);
        match self.job(id).state {
            JobState::Queued => Some(Moment::Queued),
            JobState::BackingOff { .. } => Some(Moment::BackingOff),
            JobState::Starting if of_job().any(|state| state == JobSlotState::Ready) => Some(Moment::Ready),
            JobState::Starting => Some(Moment::Preparing),
            JobState::Running if of_job().any(|state| state == JobSlotState::Ended) => Some(Moment::Ending),
            JobState::Running => Some(Moment::Running),
            _ => None,
        }
    }

    fn strike(&mut self, fault: Fault, name: &'static str) {
        let while_s = 1 + self.dice.below(40);
        let machine = self.machines.get_mut(name).unwrap();
        match fault {
            Fault::Agent => machine.slots.values_mut().for_each(|held| held.end(RankOutcome::Lost)),
            Fault::Init => {
                if let Some(held) = machine.slots.values_mut().next() {
                    held.end(RankOutcome::Signalled { signal: 9 });
                }
            }
            Fault::Node => {
                machine.slots.values_mut().for_each(|held| held.end(RankOutcome::Lost));
                machine.down_until = self.second + while_s;
            }
            Fault::Link => machine.deaf_until = self.second + while_s,
            Fault::Leader => {
                self.leader = self.leader % 3 + 1;
                self.world.lead(self.leader);
            }
        }
    }

    /// Returns whether every job has succeeded, and every slot is free.
    fn is_over(&self) -> bool {
        let jobs = self.world.cluster.jobs();
        self.jobs.iter().all(|id| self.job(*id).state == JobState::Succeeded) && jobs.held().count() == 0
    }
}

/// Simulates the jobs under one seed; returns the faults that struck.
fn simulate(seed: u64) -> Vec<(Fault, Moment)> {
    let mut simulation = JobSimulation::new(seed);
    let (kinds, moments) = (KINDS.len() as u64, MOMENTS.len() as u64);
    let mut planned = (KINDS[(seed % kinds) as usize], MOMENTS[(seed / kinds % moments) as usize]);
    let mut struck = Vec::new();
    while !simulation.is_over() {
        simulation.pass();
        let victim = if struck.len() < FAULTS { simulation.at(planned.1) } else { None };
        if let Some(victim) = victim {
            simulation.strike(planned.0, victim);
            struck.push(planned);
            let pick = |dice: &mut Dice, count: u64| dice.below(count) as usize;
            let kind = KINDS[pick(&mut simulation.dice, kinds)];
            planned = (kind, MOMENTS[pick(&mut simulation.dice, moments)]);
        }
        let states = || simulation.jobs.iter().map(|id| simulation.job(*id).clone()).collect::<Vec<_>>();
        assert!(simulation.second < LIMIT_S, "seed {seed}: stuck after {struck:?}: {:?}", states());
    }
    for id in &simulation.jobs {
        let events = job_events(&simulation.world.cluster, *id, 0, usize::MAX).unwrap();
        let ends = events.iter().filter(|event| event.detail.ends_with(&EndCause::Succeeded.to_string()));
        assert_eq!(ends.count(), 1, "seed {seed}: a job succeeds once: {events:?}");
    }
    struck
}

/// Simulates a block of seeds, in which each fault strikes at each moment.
fn simulate_block(block: u64) {
    let seeds = block * SEEDS..(block + 1) * SEEDS;
    let struck: BTreeSet<(Fault, Moment)> = seeds.flat_map(simulate).collect();
    let all = KINDS.len() * MOMENTS.len();
    assert_eq!(struck.len(), all, "each fault strikes at each moment: {struck:?}");
}

#[test]
fn jobs_outlive_each_fault_at_each_moment_in_seeds_0_to_249() {
    simulate_block(0);
}

#[test]
fn jobs_outlive_each_fault_at_each_moment_in_seeds_250_to_499() {
    simulate_block(1);
}

#[test]
fn jobs_outlive_each_fault_at_each_moment_in_seeds_500_to_749() {
    simulate_block(2);
}

#[test]
fn jobs_outlive_each_fault_at_each_moment_in_seeds_750_to_999() {
    simulate_block(3);
}

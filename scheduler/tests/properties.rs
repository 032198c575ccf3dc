//! Whatever happens, in whatever order: no slot is live twice, no envelope and no node is exceeded, and
//! every replica and every restored snapshot tells the same story.
//!
//! Agents here behave as real ones do: they act on the last answer until their lease, counted from when
//! they asked, is over; answers get lost; leaders change while plans are under way; nodes die and return.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use proptest::prelude::*;
use protocol::agent::SlotState;
use protocol::governance::Change;
use protocol::limits::LEASE_MS;
use protocol::order::SlotOrder;
use protocol::{Fence, Millis, NodeName, ServiceName, SlotIndex};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

const NODES: usize = 4;

#[derive(Debug, Clone)]
enum Event {
    /// Time passes.
    Wait(u64),
    /// A node asks; its answer may get lost.
    Sync {
        node: usize,
        lost: bool,
    },
    /// The leader plans and carries it out.
    Plan,
    /// The leader plans and proposes; the command arrives later, or never.
    Propose,
    /// What was proposed arrives.
    Arrive,
    /// Another leader.
    Lead,
    /// The agent and all that it runs die.
    Crash(usize),
    /// A worker fails to start, or its order is refused.
    Fail {
        node: usize,
        refused: bool,
    },
    Scale(u32),
    /// A command that another replica stamped, whose clock is ahead.
    Ahead(u64),
    Deploy {
        max: u32,
        memory: u64,
    },
    Retire,
    Remove(usize),
    Admit(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop_oneof![Just(1), Just(200), Just(500), Just(LEASE_MS - 1), Just(LEASE_MS), Just(40_000)].prop_map(Event::Wait),
        8 => (0..NODES, prop::bool::weighted(0.2)).prop_map(|(node, lost)| Event::Sync { node, lost }),
        6 => Just(Event::Plan),
        2 => Just(Event::Propose),
        2 => Just(Event::Arrive),
        1 => Just(Event::Lead),
        1 => (0..NODES).prop_map(Event::Crash),
        1 => (0..NODES, any::<bool>()).prop_map(|(node, refused)| Event::Fail { node, refused }),
        2 => (0..5u32).prop_map(Event::Scale),
        1 => prop_oneof![Just(2_000), Just(20_000)].prop_map(Event::Ahead),
        1 => (1..5u32, 100..400u64).prop_map(|(max, memory)| Event::Deploy { max, memory }),
        1 => Just(Event::Retire),
        1 => (0..NODES).prop_map(Event::Remove),
        1 => (0..NODES).prop_map(Event::Admit),
    ]
}

type Place = (ServiceName, SlotIndex);

/// An agent and its workers.
#[derive(Default, Clone)]
struct Agent {
    runs: BTreeMap<Place, (SlotOrder, SlotState)>,
    lease_until: Millis,
    accepted: BTreeMap<Place, Fence>,
}

struct Sim {
    world: World,
    agents: Vec<Agent>,
    under_way: Vec<Command>,
    snapshot: Option<(usize, Vec<u8>)>,
}

fn name_of(node: usize) -> String {
    format!("node-{node}")
}

impl Sim {
    fn new() -> Self {
        let specs: Vec<NodeSpec> =
            (0..NODES).map(|i| node(&name_of(i), 2000 + 500 * i as u64, 1024)).collect();
        let mut world = World::new(&specs);
        world.share_model("minilm", 50 << 20);
        world.approve(deploy(manifest("embed", 0, 3, 1000, 200)));
        world.approve(deploy(manifest("chat", 1, 4, 700, 100)));
        Self { world, agents: vec![Agent::default(); NODES], under_way: vec![], snapshot: None }
    }

    fn step(&mut self, event: &Event) {
        match event {
            Event::Wait(ms) => self.world.wait(*ms),
            Event::Sync { node, lost } => self.sync(*node, *lost),
            Event::Plan => self.plan(),
            Event::Propose => {
                let plan = self.world.plan();
                self.world.observed.condemn(&plan);
                self.under_way.extend(plan.command(self.world.now));
            }
            Event::Arrive => {
                if let Some(command) = self.under_way.pop() {
                    self.world.apply(command.actor, command.action);
                }
            }
            Event::Lead => self.world.lead(2),
            Event::Crash(node) => {
                self.agents[*node] =
                    Agent { accepted: self.agents[*node].accepted.clone(), ..Agent::default() }
            }
            Event::Fail { node, refused } => {
                let state = if *refused { SlotState::Refused } else { SlotState::Failed };
                if let Some((_, known)) = self.agents[*node].runs.values_mut().next() {
                    *known = state;
                }
            }
            Event::Scale(replicas) => {
                let service = service_name("embed");
                self.world.apply(Actor::Scheduler, Action::Scale { service, replicas: *replicas });
            }
            Event::Ahead(ms) => {
                let now = self.world.now;
                self.world.wait(*ms);
                self.world.must(Action::Tick);
                self.world.now = now;
            }
            Event::Deploy { max, memory } => {
                self.world.approve(deploy(manifest("embed", 0, *max, 1000, *memory)));
            }
            Event::Retire => {
                if self.world.cluster.circle_state().unwrap().service(&service_name("chat")).is_some() {
                    self.world.approve(Change::Retire { service: service_name("chat"), grace_seconds: 1 });
                } else {
                    self.world.approve(deploy(manifest("chat", 1, 4, 700, 100)));
                }
            }
            Event::Remove(node) => {
                let name: NodeName = name_of(*node).parse().unwrap();
                if self.world.cluster.circle_state().unwrap().node(&name).is_some() {
                    self.world.approve(Change::RemoveNode { node: name });
                }
            }
            Event::Admit(node) => {
                let spec = self.world.specs[&name_of(*node).parse::<NodeName>().unwrap()].clone();
                if self.world.cluster.node(&spec.admission.id).is_none() {
                    self.world.approve(Change::AdmitNode(Box::new(spec.admission)));
                    self.world.share_model("minilm", 50 << 20);
                }
            }
        }
    }

    fn plan(&mut self) {
        let plan = self.world.execute();
        self.check_plan(&plan);
    }

    /// An agent asks and acts on the answer. It refuses what is not newer than what it accepted before.
    fn sync(&mut self, node: usize, lost: bool) {
        let spec = self.world.specs[&name_of(node).parse::<NodeName>().unwrap()].clone();
        let id = spec.admission.id;
        let now = self.world.now;
        let agent = &mut self.agents[node];
        if agent.lease_until <= now {
            agent.runs.clear();
        }
        let reports = agent.runs.values().map(|(order, state)| report(order, *state, "")).collect();
        self.world.reports.insert(id, reports);
        if self.world.cluster.node(&id).is_none() || !self.world.hear(&name_of(node)) || lost {
            return;
        }
        agent.lease_until = now.plus(LEASE_MS);
        let mut desired: BTreeMap<Place, (SlotOrder, bool)> = BTreeMap::new();
        for assignment in desired_for(&self.world.cluster, id) {
            for order in assignment.orders {
                let draining = assignment.draining.contains(&order.slot);
                desired.insert((order.service.clone(), order.slot), (order, draining));
            }
        }
        agent.runs.retain(|place, (order, _)| desired.get(place).is_some_and(|(wanted, _)| wanted == order));
        for (place, (order, draining)) in desired {
            match agent.runs.get_mut(&place) {
                Some((_, state)) if draining => *state = SlotState::Released,
                Some((_, state)) if *state == SlotState::Loading => *state = SlotState::Ready,
                Some(_) => {}
                None if draining => drop(agent.runs.insert(place, (order, SlotState::Released))),
                None => {
                    let last = agent.accepted.get(&place).copied().unwrap_or_default();
                    // Its own order again after a crash: it may run it again.
                    let state = if order.fence >= last { SlotState::Loading } else { SlotState::Refused };
                    agent.accepted.insert(place.clone(), order.fence.max(last));
                    agent.runs.insert(place, (order, state));
                }
            }
        }
    }

    /// What really runs now, per slot: nodes whose lease holds and that have not released it.
    fn live(&self) -> BTreeMap<Place, Vec<usize>> {
        let mut live: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
        for (node, agent) in self.agents.iter().enumerate() {
            for (place, (_, state)) in &agent.runs {
                let ended = matches!(state, SlotState::Released | SlotState::Refused);
                if agent.lease_until > self.world.now && !ended {
                    live.entry(place.clone()).or_default().push(node);
                }
            }
        }
        live
    }

    fn check(&self) {
        for (place, nodes) in self.live() {
            assert!(nodes.len() <= 1, "{}/{} is live on {nodes:?}", place.0, place.1);
        }
        let mut used: BTreeMap<protocol::NodeId, (u64, u64)> = BTreeMap::new();
        for (name, service) in self.world.cluster.services() {
            for (slot, holding) in service.held() {
                let envelope = self.world.cluster.manifest_of(&holding.order.certificate).expect("in use");
                assert!(
                    slot.0 < envelope.replicas.max,
                    "{name}/{slot} is outside the envelope it was ordered under"
                );
                assert_eq!(holding.order.fence, service.slots[&slot].fence);
                let entry = used.entry(holding.order.node).or_default();
                entry.0 += envelope.resources.cpu_millicores;
                entry.1 += envelope.resources.memory_bytes;
            }
        }
        for spec in self.world.specs.values() {
            let (cpu, memory) = used.get(&spec.admission.id).copied().unwrap_or_default();
            assert!(cpu <= spec.resources.cpu_millicores, "CPU of {}", spec.admission.name);
            let weights = if memory > 0 { 50 << 20 } else { 0 };
            assert!(memory + weights <= spec.resources.memory_bytes, "memory of {}", spec.admission.name);
        }
    }

    fn check_plan(&self, plan: &Plan) {
        let places: BTreeSet<(&ServiceName, SlotIndex)> =
            plan.orders().map(|o| (&o.service, o.slot)).collect();
        assert_eq!(places.len(), plan.orders().count(), "a plan orders a slot once");
        assert_eq!(plan.steps.len(), plan.reasons.len(), "every step has its reason");
        for name in self.world.cluster.services().keys() {
            why(&self.world.cluster, &self.world.observed, &Question::Service(name.clone()), self.world.now)
                .unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_slot_is_live_twice_and_nothing_is_exceeded(
        events in prop::collection::vec(event(), 1..120), snapshot_at in 0usize..120,
    ) {
        let mut sim = Sim::new();
        for (i, event) in events.iter().enumerate() {
            sim.step(event);
            sim.check();
            if i == snapshot_at {
                sim.snapshot = Some((sim.world.log.len(), sim.world.cluster.to_snapshot()));
            }
        }
        // A second replica with the same log, and one that begins at a snapshot, agree to the byte.
        let mut second = Cluster::new();
        let mut restored: Option<Cluster> = None;
        for (i, command) in sim.world.log.iter().enumerate() {
            if let Some((length, bytes)) = &sim.snapshot && *length == i {
                restored = Some(Cluster::from_snapshot(bytes).unwrap());
                prop_assert_eq!(restored.as_ref(), Some(&second));
            }
            let reply = apply(&mut second, i as u64 + 1, command);
            if let Some(cluster) = &mut restored {
                prop_assert_eq!(&reply, &apply(cluster, i as u64 + 1, command));
            }
        }
        prop_assert_eq!(second.digest(), sim.world.cluster.digest());
        if let Some(cluster) = restored {
            prop_assert_eq!(cluster.digest(), second.digest());
        }
    }

    /// Once the trouble ends, the cluster comes to rest with what is wanted and what fits.
    #[test]
    fn after_any_trouble_what_is_wanted_runs(events in prop::collection::vec(event(), 1..60)) {
        let mut sim = Sim::new();
        for event in &events {
            sim.step(event);
        }
        sim.under_way.clear();
        for node in 0..NODES {
            sim.step(&Event::Admit(node));
            sim.agents[node] = Agent { accepted: sim.agents[node].accepted.clone(), ..Agent::default() };
        }
        // Two minutes: longer than every drain, lease and avoidance.
        for _ in 0..120 {
            sim.world.wait(1000);
            (0..NODES).for_each(|node| sim.sync(node, false));
            sim.plan();
            sim.check();
        }
        let (world, live) = (&sim.world, sim.live());
        prop_assert!(world.plan().is_empty(), "{:?}", world.plan());
        for (name, service) in world.cluster.services() {
            let wanted = if service.phase == ServicePhase::Active { service.desired as usize } else { 0 };
            let runs = live.keys().filter(|(service, _)| service == name).count();
            prop_assert_eq!(runs, wanted, "{}: {:?}", name, world.plan().waiting);
            let fresh = service.held().all(|(_, holding)| holding.order.certificate == service.certificate);
            prop_assert!(fresh, "every slot of {} is under the approval in force", name);
        }
    }

    /// The same state and view give the same plan, however often it is asked for.
    #[test]
    fn a_plan_is_a_function(events in prop::collection::vec(event(), 1..40)) {
        let mut sim = Sim::new();
        events.iter().for_each(|event| sim.step(event));
        let plan = sim.world.plan();
        let again = Cluster::from_snapshot(&sim.world.cluster.to_snapshot()).unwrap();
        prop_assert_eq!(&plan, &scheduler::plan(&again, &sim.world.observed, sim.world.now));
        if let Some(command) = plan.command(sim.world.now) {
            let reply = sim.world.apply(command.actor, command.action);
            prop_assert!(matches!(reply, Reply::Executed { .. }), "a fresh plan is carried out: {:?}", reply);
        }
    }

    #[test]
    fn no_bytes_make_the_state_machine_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut cluster = Cluster::new();
        let before = cluster.digest();
        let _ = apply_bytes(&mut cluster, 1, &bytes);
        prop_assert_eq!(cluster.digest(), before);
        prop_assert!(Cluster::from_snapshot(&bytes).is_err());
    }
}

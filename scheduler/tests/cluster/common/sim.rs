//! Simulation of a small cluster, with every fault between leaders, the log and agents.
//!
//! Agents behave as real ones do: they act on the last answer until the autonomy of each order, counted from
//! when they *asked*, is over; that of exclusive work is one lease. They run an order again that they
//! accepted before, and none that is older. Requests and answers are lost or arrive late; leaders' clocks
//! differ; commands arrive twice, in another order, or never. A deposed leader's plans arrive after its
//! successor's.

use super::*;
use protocol::limits::LEASE_MS;
use protocol::order::SlotOrder;
use protocol::{Fence, SlotIndex};
use std::fmt::Write;

pub(crate) const NODES: usize = 4;
/// Offset of each replica's clock from true time, in milliseconds; none of them jumps.
const SKEWS: [i64; 3] = [0, -20_000, 4_000];
/// Errors of a wall clock that jumps, in milliseconds. Leases are not counted on it.
pub(crate) const JUMPS: [i64; 4] = [30 * 86_400_000, -400 * 86_400_000, 45_000, -45_000];

/// An event of the simulation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// Time passes.
    Wait(u64),
    /// A node sends its request; unless it is lost, the leader receives and answers it.
    Ask { node: usize, lost: bool },
    /// The answer to a node's last request arrives.
    Answer(usize),
    /// A node asks and receives the answer immediately.
    Sync(usize),
    /// The leader plans and executes the plan.
    Plan,
    /// The leader plans and proposes; the command arrives later, or never.
    Propose,
    /// A deposed leader's plan, made from its last knowledge before another replica led.
    FormerPlan,
    /// One of the commands under way arrives; it may arrive again.
    Arrive { which: usize, again: bool },
    /// The commands under way are lost.
    Lose,
    /// Another replica leads; it has received no request yet.
    Lead(usize),
    /// The agent and all its workers die; it may ask again immediately, or after its lease.
    Crash(usize),
    /// A worker fails, or its order is refused.
    Fail { node: usize, refused: bool },
    /// A node drops a slot that it released or refused before the leader received the report.
    Forget(usize),
    /// A node's workers become slow to finish what they drain, or to start; or stop being slow.
    Slow(usize),
    /// The service is scaled.
    Scale(u32),
    /// A command for which a majority's clocks are ahead.
    Ahead(u64),
    /// One replica's wall clock jumps, and the others are right.
    Jump { replica: usize, by: i64 },
    /// All wall clocks are right again.
    Mend,
    /// A new approval of the service that was not exclusive at first: its work is exclusive, or not.
    Exclusive(bool),
    /// A new approval of one service.
    Deploy { max: u32, memory: u64 },
    /// The other service is retired, or approved again.
    Retire,
    /// A node is removed.
    Remove(usize),
    /// A node is admitted.
    Admit(usize),
}

type SlotKey = (ServiceName, SlotIndex);

/// An agent and its workers.
#[derive(Default, Clone)]
pub(crate) struct Agent {
    pub(crate) runs: BTreeMap<SlotKey, (SlotOrder, SlotState)>,
    /// Time at which the last answer was asked for.
    pub(crate) heard_at: Millis,
    pub(crate) accepted: BTreeMap<SlotKey, Fence>,
    /// Answer to its outstanding request: the time of the request, and the assignments.
    answer: Option<(Millis, Vec<NodeAssignment>)>,
    slow: bool,
    /// Orders that it has ended and reports as released until it is answered.
    ended: Vec<SlotOrder>,
    /// Highest fence of each slot that it has ended; it runs none of these again.
    given_up: BTreeMap<SlotKey, Fence>,
}

/// The last knowledge of a deposed leader.
#[derive(Clone)]
struct Former {
    cluster: Cluster,
    observed: Observed,
    clock: LeaderTime,
    clocks: ClockReadings,
}

pub(crate) struct Sim {
    pub(crate) world: World,
    pub(crate) agents: Vec<Agent>,
    /// True time; the world's is the leader's clock.
    time: Millis,
    leader: usize,
    /// Replica with a wrong wall clock, and its error.
    wrong: Option<(usize, i64)>,
    former: Option<Former>,
    pub(crate) under_way: Vec<Command>,
    fences: BTreeMap<SlotKey, Fence>,
    /// Time at which a replica of a service last began to move.
    moved_at: BTreeMap<ServiceName, ClusterTime>,
    pub(crate) moves: u32,
    /// Positive control: agents hold exclusive work as long as any other.
    pub(crate) exclusive_outlives_lease: bool,
    /// Positive control: agents report every slot that they run as released too.
    pub(crate) agents_lie: bool,
    /// Approvals of the service `chat` that make its work exclusive.
    exclusive: BTreeSet<Digest>,
    routes: protocol::gateway::RouteTable,
    /// Record of the events, independent of any keys.
    pub(crate) trace: String,
}

/// Autonomy in seconds of the service that is not exclusive.
pub(crate) const AUTONOMY_SECONDS: u64 = 60;

/// Returns the service that is not exclusive; the other one is.
pub(crate) fn chat() -> ServiceManifest {
    autonomous(AUTONOMY_SECONDS, manifest("chat", 1, 4, 700, 100))
}

pub(crate) fn name_of(node: usize) -> String {
    format!("node-{node}")
}

impl Sim {
    pub(crate) fn new() -> Self {
        let specs: Vec<NodeSpec> =
            (0..NODES).map(|i| node(&name_of(i), 2000 + 500 * i as u64, 1024)).collect();
        let mut world = World::new(&specs);
        world.share_model("minilm", 50 << 20);
        world.approve(deploy(manifest("embed", 0, 3, 1000, 200)));
        world.approve(deploy(chat()));
        Self {
            time: world.now,
            world,
            agents: vec![Agent::default(); NODES],
            leader: 0,
            wrong: None,
            former: None,
            under_way: vec![],
            fences: BTreeMap::new(),
            moved_at: BTreeMap::new(),
            moves: 0,
            exclusive_outlives_lease: false,
            agents_lie: false,
            exclusive: BTreeSet::new(),
            routes: Default::default(),
            trace: String::new(),
        }
    }

    pub(crate) fn step(&mut self, event: &Event) {
        writeln!(self.trace, "{event:?}").unwrap();
        match *event {
            Event::Wait(ms) => {
                self.time = self.time.plus(ms);
                self.set_clocks();
            }
            Event::Ask { node, lost } => self.ask(node, lost),
            Event::Answer(node) => self.answer(node),
            Event::Sync(node) => {
                self.ask(node, false);
                self.answer(node);
            }
            Event::Plan => self.plan(),
            Event::Propose => {
                let plan = self.world.plan();
                self.check_plan(&plan);
                self.world.observed.begin_eviction(&plan);
                self.under_way.extend(plan.command(self.world.clocks.clone()));
            }
            Event::FormerPlan => {
                if let Some(Former { cluster, observed, clock, clocks }) = &self.former {
                    let view = ClusterView { cluster, observed, now: *clock, clocks };
                    self.under_way.extend(plan(view).command(clocks.clone()));
                }
            }
            Event::Arrive { which, again } => self.arrive(which, again),
            Event::Lose => self.under_way.clear(),
            Event::Lead(replica) => self.lead(replica % SKEWS.len()),
            Event::Crash(node) => {
                let Agent { accepted, slow, given_up, .. } = self.agents[node].clone();
                self.agents[node] = Agent { accepted, slow, given_up, ..Agent::default() };
            }
            Event::Fail { node, refused } => {
                let state = if refused { SlotState::Refused } else { SlotState::Failed };
                if let Some((_, known)) = self.agents[node].runs.values_mut().next() {
                    *known = state;
                }
            }
            Event::Forget(node) => self.agents[node].runs.retain(|_, (_, state)| !is_over(*state)),
            Event::Slow(node) => self.agents[node].slow ^= true,
            Event::Ahead(ms) => {
                self.world.clocks = all_at(self.world.now.plus(ms));
                self.world.must(Action::Tick);
                self.set_clocks();
            }
            Event::Jump { replica, by } => {
                self.wrong = Some((replica % SKEWS.len(), by));
                self.set_clocks();
            }
            Event::Mend => {
                self.wrong = None;
                self.set_clocks();
            }
            _ => self.govern(event),
        }
        self.observe();
    }

    fn govern(&mut self, event: &Event) {
        match *event {
            Event::Scale(replicas) => {
                let service = service_name("embed");
                self.world.apply(Actor::Scheduler, Action::Scale { service, replicas });
            }
            Event::Exclusive(exclusive) => {
                let next = if exclusive { manifest("chat", 1, 4, 700, 100) } else { chat() };
                self.world.approve(deploy(next));
                let approval = self.world.cluster.services()[&service_name("chat")].certificate;
                self.exclusive.extend(exclusive.then_some(approval));
            }
            Event::Deploy { max, memory } => {
                self.world.approve(deploy(manifest("embed", 0, max, 1000, memory)));
            }
            Event::Retire => {
                if self.world.cluster.circle_state().unwrap().service(&service_name("chat")).is_some() {
                    self.world.approve(Change::Retire { service: service_name("chat"), grace_seconds: 1 });
                } else {
                    self.world.approve(deploy(chat()));
                }
            }
            Event::Remove(node) => {
                let name: NodeName = name_of(node).parse().unwrap();
                if self.world.cluster.circle_state().unwrap().node(&name).is_some() {
                    self.world.approve(Change::RemoveNode { node: name });
                }
            }
            Event::Admit(node) => {
                let spec = self.world.specs[&name_of(node).parse::<NodeName>().unwrap()].clone();
                if self.world.cluster.node(&spec.admission.id).is_none() {
                    self.world.approve(Change::AdmitNode(Box::new(spec.admission)));
                    self.world.share_model("minilm", 50 << 20);
                }
            }
            _ => unreachable!("{event:?} is not a decision"),
        }
    }

    fn clock_of(&self, replica: usize) -> Millis {
        Millis(self.time.0.checked_add_signed(SKEWS[replica]).unwrap())
    }

    /// Sets the leader's clock, and the wall clocks of all replicas.
    fn set_clocks(&mut self) {
        self.world.now = self.clock_of(self.leader);
        let wall = |replica| {
            let by = self.wrong.filter(|(wrong, _)| *wrong == replica).map_or(0, |(_, by)| by);
            WallTime(Millis(self.clock_of(replica).0.saturating_add_signed(by)))
        };
        let readings = (0..SKEWS.len()).map(|replica| (ReplicaId(replica as u64 + 1), wall(replica)));
        self.world.clocks = readings.collect();
    }

    fn lead(&mut self, replica: usize) {
        let clock = self.world.leader_now();
        let World { cluster, observed, clocks, .. } = self.world.clone();
        self.former = Some(Former { cluster, observed, clock, clocks });
        self.leader = replica;
        self.set_clocks();
        self.world.lead(replica as u64 + 1);
        self.routes = Default::default();
        // Answers of the former leader that are still under way do arrive.
    }

    fn arrive(&mut self, which: usize, again: bool) {
        if self.under_way.is_empty() {
            return;
        }
        let at = which % self.under_way.len();
        let command = self.under_way[at].clone();
        if !again {
            self.under_way.remove(at);
        }
        let Action::Execute { parent_generation, .. } = &command.action else { unreachable!() };
        let stale = *parent_generation != self.world.cluster.generation();
        let clocks = std::mem::replace(&mut self.world.clocks, command.clocks);
        let reply = self.world.apply(command.actor, command.action);
        self.world.clocks = clocks;
        assert_eq!(matches!(reply, Reply::Refused { .. }), stale, "executed once, in its state: {reply:?}");
        writeln!(self.trace, "  {}", code(&reply)).unwrap();
    }

    pub(crate) fn plan(&mut self) {
        let plan = self.world.execute();
        self.check_plan(&plan);
        for (step, reason) in plan.steps.iter().zip(&plan.reasons) {
            let Reason { subject, text } = reason;
            writeln!(self.trace, "  {}: {subject}: {text}", step_word(step)).unwrap();
        }
    }

    /// Sends an agent's request with all that it runs; the leader receives it unless it is lost.
    fn ask(&mut self, node: usize, lost: bool) {
        let spec = self.world.specs[&name_of(node).parse::<NodeName>().unwrap()].clone();
        let (id, time) = (spec.admission.id, self.time);
        self.end_what_is_over(node);
        let lies = self.agents_lie;
        let agent = &mut self.agents[node];
        agent.answer = None;
        let ended = agent.ended.iter().chain(agent.runs.values().map(|(order, _)| order).filter(|_| lies));
        let ended = ended.map(|order| report(order, SlotState::Released, ""));
        let runs = agent.runs.values().map(|(order, state)| report(order, *state, ""));
        let reports = ended.chain(runs).collect();
        if lost || self.world.cluster.node(&id).is_none() {
            return;
        }
        self.world.reports.insert(id, reports);
        if self.world.heartbeat(&name_of(node)) {
            self.agents[node].answer = Some((time, desired_for(&self.world.cluster, id)));
        } else {
            writeln!(self.trace, "  not answered").unwrap();
        }
    }

    /// Delivers an answer to an agent, which refuses orders older than those it accepted before.
    fn answer(&mut self, node: usize) {
        self.end_what_is_over(node);
        let agent = &mut self.agents[node];
        let Some((asked_at, assignments)) = agent.answer.take() else { return };
        if asked_at.plus(LEASE_MS) <= self.time {
            return;
        }
        agent.heard_at = asked_at;
        let mut desired: BTreeMap<SlotKey, (SlotOrder, bool)> = BTreeMap::new();
        for assignment in assignments {
            for order in assignment.orders {
                let draining = assignment.draining.contains(&order.slot);
                desired.insert((order.service.clone(), order.slot), (order, draining));
            }
        }
        // A slot that is named no more ends, or drains first if it is not exclusive.
        let (slow, chat) = (agent.slow, service_name("chat"));
        let mut ended = Vec::new();
        agent.runs.retain(|key, (order, state)| {
            let named = desired.get(key).is_some_and(|(wanted, _)| wanted == order);
            let drains = slow && key.0 == chat && !is_over(*state);
            if !named && drains {
                *state = SlotState::Draining;
            }
            // An order that was refused was never held, and is not released.
            let ends = !named && !drains && *state != SlotState::Refused;
            ended.extend(ends.then(|| order.clone()));
            named || drains
        });
        for order in &ended {
            let given_up = agent.given_up.entry((order.service.clone(), order.slot)).or_default();
            *given_up = order.fence.max(*given_up);
        }
        agent.ended = ended;
        desired.retain(|key, (order, _)| agent.runs.get(key).is_none_or(|(runs, _)| runs == order));
        for (key, (order, draining)) in desired {
            match agent.runs.get_mut(&key) {
                Some((_, state)) if is_over(*state) => {}
                Some((_, state)) if draining && !agent.slow => *state = SlotState::Released,
                Some((_, state)) if draining => *state = SlotState::Draining,
                Some((_, state)) if *state == SlotState::Loading && !agent.slow => *state = SlotState::Ready,
                Some(_) => {}
                None if draining => drop(agent.runs.insert(key, (order, SlotState::Released))),
                None => {
                    let last = agent.accepted.get(&key).copied().unwrap_or_default();
                    let is_ended = agent.given_up.get(&key).is_some_and(|last| order.fence <= *last);
                    // The agent's own order after a crash may run again, unless it was released.
                    let may_run = order.fence >= last && !is_ended;
                    let state = if may_run { SlotState::Loading } else { SlotState::Refused };
                    agent.accepted.insert(key.clone(), order.fence.max(last));
                    agent.runs.insert(key, (order, state));
                }
            }
        }
    }

    /// Ends the slots of an agent whose deadline has passed.
    fn end_what_is_over(&mut self, node: usize) {
        let mut runs = std::mem::take(&mut self.agents[node].runs);
        runs.retain(|_, (order, _)| self.holds(node, order));
        self.agents[node].runs = runs;
    }

    /// Returns whether an agent may run an order now: control answered less than its autonomy ago.
    fn holds(&self, node: usize, order: &SlotOrder) -> bool {
        let autonomy_ms = match self.is_exclusive(order) && !self.exclusive_outlives_lease {
            true => LEASE_MS,
            false => AUTONOMY_SECONDS * 1000,
        };
        self.agents[node].heard_at.plus(autonomy_ms) > self.time
    }

    fn is_exclusive(&self, order: &SlotOrder) -> bool {
        order.service != service_name("chat") || self.exclusive.contains(&order.certificate)
    }

    /// Returns the nodes that really run each slot: its deadline has not passed, and it was not released.
    pub(crate) fn live(&self) -> BTreeMap<SlotKey, Vec<usize>> {
        let orders = self.live_orders().into_iter();
        orders.map(|(key, orders)| (key, orders.into_iter().map(|(node, _)| node).collect())).collect()
    }

    /// Returns the nodes that really run each slot, with their orders.
    fn live_orders(&self) -> BTreeMap<SlotKey, Vec<(usize, &SlotOrder)>> {
        let mut live: BTreeMap<SlotKey, Vec<(usize, &SlotOrder)>> = BTreeMap::new();
        for (node, agent) in self.agents.iter().enumerate() {
            for (key, (order, state)) in &agent.runs {
                if self.holds(node, order) && !is_over(*state) {
                    live.entry(key.clone()).or_default().push((node, order));
                }
            }
        }
        live
    }

    /// Returns the exclusive slots that more than one node runs.
    pub(crate) fn exclusive_twice(&self) -> Vec<SlotKey> {
        let twice = self.live_orders().into_iter().filter(|(_, orders)| {
            orders.len() > 1 && orders.iter().any(|(_, order)| self.is_exclusive(order))
        });
        twice.map(|(key, _)| key).collect()
    }

    /// Checks the changes of the state: fences rise by one with each order, and moves are rare.
    fn observe(&mut self) {
        for (name, service) in self.world.cluster.services() {
            for (index, slot) in &service.slots {
                let key = (name.clone(), *index);
                let known = self.fences.insert(key, slot.fence).unwrap_or_default();
                assert!(
                    slot.fence >= known,
                    "the fence of {name}/{index} fell from {known} to {}",
                    slot.fence
                );
                let Some(holding) = &slot.holding else { continue };
                assert_eq!(holding.order.fence, slot.fence);
                if slot.fence > known && holding.replaces.is_some() {
                    self.moves += 1;
                    let since = self.moved_at.insert(name.clone(), self.world.cluster.now());
                    let calm =
                        since.is_none_or(|at| at.plus(limits::REBALANCE_CALM_MS) <= self.world.cluster.now());
                    assert!(calm, "{name} moves twice within its calm");
                }
            }
        }
        let next = route_table(self.world.view(), &self.routes);
        assert!(
            next == self.routes || next.version > self.routes.version,
            "a table that changed has a new version"
        );
        self.routes = next;
    }

    pub(crate) fn check(&self) {
        // One wrong clock moves the cluster's time nowhere.
        let (now, worst) = (self.world.cluster.now(), ClusterTime(self.time).plus(30_000));
        assert!(now <= worst, "the cluster's time leaps to {now:?}, and it is {:?}", self.time);
        assert_eq!(self.exclusive_twice(), [], "exclusive work is live twice");
        for (key, orders) in self.live_orders() {
            let fences: BTreeSet<Fence> = orders.iter().map(|(_, order)| order.fence).collect();
            assert_eq!(fences.len(), orders.len(), "{}/{} is live twice under one fence", key.0, key.1);
        }
        let mut used: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
        for (name, service) in self.world.cluster.services() {
            for (slot, holding) in service.held() {
                let envelope = self.world.cluster.manifest_of(&holding.order.certificate).expect("in use");
                assert!(slot.0 < envelope.replicas.max, "{name}/{slot} is outside the envelope of its order");
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
        let slots: BTreeSet<(&ServiceName, SlotIndex)> =
            plan.orders().map(|o| (&o.service, o.slot)).collect();
        assert_eq!(slots.len(), plan.orders().count(), "a plan orders a slot once");
        assert_eq!(plan.steps.len(), plan.reasons.len(), "every step has its reason");
        assert!(plan.dropped.is_empty(), "the planner is wrong: {:?}", plan.dropped);
        for order in plan.orders() {
            let alive = self.world.view().is_alive(&order.node);
            assert!(alive, "{} is given to a node that may be dead", order.slot);
        }
        for name in self.world.cluster.services().keys() {
            why(self.world.view(), &Question::Service(name.clone())).unwrap();
        }
    }

    /// Ends all faults: every node is admitted and restarts, and nothing is under way. For `ms` the leader
    /// plans and every node obeys.
    pub(crate) fn recover(&mut self, ms: u64) {
        self.under_way.clear();
        self.step(&Event::Mend);
        for node in 0..NODES {
            self.step(&Event::Admit(node));
            let Agent { accepted, given_up, .. } = self.agents[node].clone();
            self.agents[node] = Agent { accepted, given_up, ..Agent::default() };
        }
        let end = self.time.plus(ms);
        while self.time < end {
            self.step(&Event::Wait(1500));
            (0..NODES).for_each(|node| self.step(&Event::Sync(node)));
            self.step(&Event::Plan);
            self.check();
        }
    }

    /// Returns whether a service is spread evenly, so that no replica of it is about to move.
    pub(crate) fn is_even(&self, name: &ServiceName) -> bool {
        let answer = why(self.world.view(), &Question::Service(name.clone()));
        answer.unwrap().reasons.iter().all(|reason| !reason.contains("will move to"))
    }
}

fn is_over(state: SlotState) -> bool {
    matches!(state, SlotState::Released | SlotState::Refused)
}

fn step_word(step: &Step) -> &'static str {
    match step {
        Step::Lapse { .. } => "lapse",
        Step::Resume(_) => "resume",
        Step::Release(_) => "release",
        Step::ReleaseFormer { .. } => "release former",
        Step::Drain { .. } => "drain",
        Step::End(_) => "end",
        Step::FailStart { .. } => "fail start",
        Step::StartGang(_) => "start gang",
        Step::RunGang { .. } => "run gang",
        Step::EndGang { .. } => "end gang",
        Step::ReleaseGang(_) => "release gang",
        Step::CountUsage(_) => "count",
        Step::EndRollOut { .. } => "end roll-out",
        Step::Order(order) if order.replaces.is_some() => "move",
        Step::Order(_) => "order",
    }
}

/// Returns events from a seed alone (SplitMix64): the same seed gives the same events.
pub(crate) fn events_of(seed: u64, count: usize) -> Vec<Event> {
    let mut state = seed;
    let mut next = move |below: u64| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % below
    };
    (0..count).map(|_| event_of(&mut next)).collect()
}

fn event_of(next: &mut impl FnMut(u64) -> u64) -> Event {
    const WAITS: [u64; 8] = [1, 200, 500, 1500, LEASE_MS - 1, LEASE_MS, 40_000, 130_000];
    let node = next(NODES as u64) as usize;
    match next(50) {
        0..=8 => Event::Wait(WAITS[next(WAITS.len() as u64) as usize]),
        9..=20 => Event::Sync(node),
        21..=22 => Event::Ask { node, lost: next(4) == 0 },
        23..=24 => Event::Answer(node),
        25..=31 => Event::Plan,
        32..=33 => Event::Propose,
        34 => Event::FormerPlan,
        35..=36 => Event::Arrive { which: next(4) as usize, again: next(3) == 0 },
        37 => Event::Lead(next(3) as usize),
        38 => Event::Crash(node),
        39 => Event::Fail { node, refused: next(2) == 0 },
        40 => Event::Forget(node),
        41 => Event::Slow(node),
        42..=43 => Event::Scale(next(5) as u32),
        44 => match next(4) {
            0 => Event::Ahead([2_000, 20_000][next(2) as usize]),
            1 => Event::Mend,
            _ => Event::Jump { replica: next(3) as usize, by: JUMPS[next(4) as usize] },
        },
        45 => Event::Deploy { max: 1 + next(4) as u32, memory: 100 + next(300) },
        46 => Event::Retire,
        47 => Event::Remove(node),
        48 => Event::Admit(node),
        _ => Event::Lose,
    }
}

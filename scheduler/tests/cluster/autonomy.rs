//! Tests of nodes that are silent: their slots run elsewhere at once, they give way when they
//! return, and exclusive work never runs twice.

use crate::common::sim::{Event, NODES, Sim, chat};
use crate::common::*;
use protocol::agent::SlotState;
use protocol::governance::Change;
use protocol::limits::LEASE_MS;
use protocol::manifest::{OnExpiry, ServiceManifest};
use protocol::{Fence, ServiceName, SlotIndex};
use scheduler::limits::REBALANCE_CALM_MS;
use scheduler::*;

/// Time within which a silent node's slots are placed elsewhere.
const PLACED_WITHIN_MS: u64 = 4_000;
/// Interval of plans and of agents' requests in these simulations.
const ROUND_MS: u64 = 500;

pub(crate) fn slot(index: u32, count: u64) -> SlotName {
    SlotName { service: service_name("chat"), slot: SlotIndex(index), fence: Fence::new(1, count) }
}

fn phase(world: &World, index: u32) -> Option<HoldingPhase> {
    let service = &world.cluster.services()[&service_name("chat")];
    service.slots.get(&SlotIndex(index))?.holding.as_ref().map(|holding| holding.phase.clone())
}

/// Returns a cluster of these nodes that runs this service.
fn running_on(nodes: &[NodeSpec], manifest: ServiceManifest) -> World {
    let mut world = World::new(nodes);
    world.share_model("minilm", 50 << 20);
    world.approve(deploy(manifest));
    world.settle();
    world
}

pub(crate) fn two(manifest: ServiceManifest) -> World {
    running_on(&[node("node-1", 4000, 4096), node("node-2", 4000, 4096)], manifest)
}

fn one_replica() -> ServiceManifest {
    manifest("chat", 1, 2, 700, 100)
}

/// Returns the routes of a service as `slot@node fence`.
fn routes(world: &World) -> Vec<String> {
    let table = route_table(world.view(), &Default::default());
    let name = |route: &protocol::gateway::Route| {
        format!("{}@{} {}", route.slot, world.cluster.node_name(&route.node), route.fence)
    };
    table.services.iter().flat_map(|service| service.routes.iter().map(name)).collect()
}

#[test]
fn a_silent_nodes_slot_is_ordered_elsewhere_and_the_node_gives_way_when_it_returns() {
    let mut world = two(autonomous(3600, one_replica()));
    assert_eq!(routes(&world), ["0@node-1 1.1"]);
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    assert_eq!(routes(&world), ["0@node-1 1.1"], "its tickets say whether it lives");
    let plan = world.execute();
    let steps: Vec<_> =
        plan.steps.iter().map(|step| matches!(step, Step::Lapse { .. } | Step::Order(_))).collect();
    assert_eq!(steps, [true, true], "in one plan: {plan:?}");
    assert_eq!(world.placements("chat"), ["0@node-2"]);
    assert_eq!(routes(&world), ["0@node-2 1.2"], "nothing is sent to a holder that was replaced");
    // It returns: its order is named no more, so that its agent drains and ends the slot.
    world.heartbeat("node-1");
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty());
    assert!(world.plan().is_empty());
}

#[test]
fn a_node_that_returns_before_its_slot_was_placed_elsewhere_runs_on() {
    let mut world = running_on(&[node("node-1", 4000, 4096)], autonomous(3600, one_replica()));
    world.wait(LEASE_MS);
    world.execute();
    assert_eq!(phase(&world, 0), Some(HoldingPhase::Silent));
    assert!(world.plan().is_empty(), "a lapse is made once");
    assert_eq!(routes(&world), ["0@node-1 1.1"], "nobody replaces it");
    let Some(why) = why(world.view(), &Question::Service(service_name("chat"))) else {
        panic!("it is there")
    };
    assert!(why.answer.contains("1 wait"), "{}", why.answer);
    assert!(why.reasons[0].contains("is silent and may run it on"), "{:?}", why.reasons);
    // Its orders are named all the while, so nothing on it is ended by its first answer.
    let orders = |world: &World| desired_for(&world.cluster, node_id("node-1"))[0].orders.len();
    assert_eq!(orders(&world), 1);
    world.heartbeat("node-1");
    let plan = world.execute();
    assert_eq!(plan.steps, [Step::Resume(slot(0, 1))]);
    assert_eq!((phase(&world, 0), orders(&world)), (Some(HoldingPhase::Running), 1));
    assert_eq!(world.cluster.services()[&service_name("chat")].slots[&SlotIndex(0)].fence, Fence::new(1, 1));
}

/// The positive control of both tests above is exclusive work: it is freed, and routed nowhere while
/// its node is silent.
#[test]
fn an_exclusive_slot_is_freed_by_a_lapse() {
    let mut world = running_on(&[node("node-1", 4000, 4096)], one_replica());
    world.wait(LEASE_MS);
    assert_eq!(routes(&world), [""; 0]);
    world.execute();
    assert_eq!((phase(&world, 0), routes(&world).len()), (None, 0));
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty());
    world.heartbeat("node-1");
    world.execute();
    assert_eq!(world.cluster.services()[&service_name("chat")].slots[&SlotIndex(0)].fence, Fence::new(1, 2));
}

#[test]
fn a_silent_holder_is_kept_no_longer_than_its_approval_and_autonomy_allow() {
    type Happens = fn(&mut World);
    let cases: [(&str, Happens, Option<HoldingPhase>); 6] = [
        ("the positive control", |_| {}, Some(HoldingPhase::Silent)),
        ("its autonomy has run out", |world| world.wait(600_000), None),
        (
            "the service is retired",
            |world| {
                let service = service_name("chat");
                world.approve(Change::Retire { service, grace_seconds: 1 });
            },
            None,
        ),
        ("its approval ended and drains", |world| world.wait(500_000), None),
        (
            "its node is removed",
            |world| {
                world.approve(Change::RemoveNode { node: "node-1".parse().unwrap() });
            },
            None,
        ),
        (
            "a new approval keeps it",
            |world| {
                world.approve(deploy(chat()));
            },
            Some(HoldingPhase::Silent),
        ),
    ];
    for (what, happens, expected) in cases {
        let mut manifest = autonomous(600, one_replica());
        if what.contains("drains") {
            (manifest.valid_until, manifest.on_expiry) = (Some(START.plus(400_000)), OnExpiry::Drain);
        }
        let mut world = running_on(&[node("node-1", 4000, 4096)], manifest);
        world.wait(LEASE_MS);
        world.execute();
        assert_eq!(phase(&world, 0), Some(HoldingPhase::Silent), "{what}");
        happens(&mut world);
        world.execute();
        assert_eq!(phase(&world, 0), expected, "{what}");
    }
}

/// The attack: an approval turns exclusive while a node that holds a slot under the earlier one is silent.
#[test]
fn no_exclusive_order_goes_out_beside_a_silent_holder() {
    for exclusive in [true, false] {
        let mut world = two(autonomous(600, manifest("chat", 1, 1, 700, 100)));
        world.wait(LEASE_MS);
        let silent = world.plan();
        let lapse: Vec<Step> =
            silent.steps.into_iter().filter(|step| matches!(step, Step::Lapse { .. })).collect();
        let parent_generation = world.cluster.generation();
        world.must(Action::Execute { parent_generation, steps: lapse });
        let next = manifest("chat", 1, 1, 700, 100);
        world.approve(deploy(if exclusive { next } else { autonomous(600, next) }));
        world.heartbeat("node-2");
        let plan = world.execute();
        assert_eq!(plan.orders().count(), usize::from(!exclusive), "{:?}", plan.waiting);
        if exclusive {
            world.wait(600_000);
            world.heartbeat("node-2");
            assert_eq!(world.execute().orders().count(), 1, "once the autonomy of the earlier order is over");
        }
    }
}

/// Lets the nodes of these names obey and the leader plan, until both have had time to react to each other.
pub(crate) fn react(world: &mut World, names: &[&str]) {
    for _ in 0..12 {
        for name in names {
            let spec = world.specs[&name.parse().unwrap()].clone();
            world.obey_node(&spec);
        }
        world.execute();
    }
}

/// Lets the lease of `node-1` end, and the leader plan.
pub(crate) fn lapse_first(world: &mut World) {
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    world.execute();
}

/// Returns the number of slots that run under the approval in force.
pub(crate) fn under_the_approval_in_force(world: &World) -> usize {
    let service = &world.cluster.services()[&service_name("chat")];
    let runs = |holding: &Holding| {
        holding.phase == HoldingPhase::Running && holding.order.certificate == service.certificate
    };
    service.held().filter(|(_, holding)| runs(holding)).count()
}

/// The attack: an approval turns exclusive after a holder under the earlier one fell silent, and control has
/// freed its slot or ordered it elsewhere since. The silent node knows of neither. The positive control is an
/// approval that does not turn exclusive.
#[test]
fn no_exclusive_order_goes_out_beside_a_holder_that_control_gave_up() {
    type Happens = fn(&mut World, Change);
    let cases: [(&str, Happens); 4] = [
        ("it drains when its node falls silent", |world, next| {
            world.approve(next);
            world.execute();
            assert!(matches!(phase(world, 0), Some(HoldingPhase::Draining { .. })));
            lapse_first(world);
        }),
        ("its node is removed", |world, next| {
            world.approve(Change::RemoveNode { node: "node-1".parse().unwrap() });
            lapse_first(world);
            world.approve(next);
        }),
        ("its service is retired and approved again", |world, next| {
            world.approve(Change::Retire { service: service_name("chat"), grace_seconds: 0 });
            lapse_first(world);
            world.approve(next);
        }),
        ("its slot was ordered elsewhere before", |world, next| {
            lapse_first(world);
            assert_eq!(world.placements("chat"), ["0@node-2"]);
            world.approve(next);
        }),
    ];
    for (what, happens) in cases {
        for exclusive in [true, false] {
            let mut world = two(autonomous(600, manifest("chat", 1, 1, 700, 100)));
            let next = manifest("chat", 1, 1, 700, 100);
            happens(&mut world, deploy(if exclusive { next } else { autonomous(600, next) }));
            react(&mut world, &["node-2"]);
            assert_eq!(under_the_approval_in_force(&world), usize::from(!exclusive), "{what}");
            world.wait(600_000);
            react(&mut world, &["node-2"]);
            assert_eq!(under_the_approval_in_force(&world), 1, "{what}, and its autonomy is over");
        }
    }
}

/// Three small nodes with a replica each, of which the first falls silent; two replicas are wanted from then
/// on.
fn with_a_silent_surplus() -> World {
    let nodes = ["node-1", "node-2", "node-3"].map(|name| node(name, 1000, 1024));
    let mut world = running_on(&nodes, autonomous(3600, manifest("chat", 1, 3, 700, 100)));
    world.must(Action::Scale { service: service_name("chat"), replicas: 3 });
    world.settle();
    world.wait(LEASE_MS);
    assert!(["node-2", "node-3"].iter().all(|name| world.heartbeat(name)));
    world.execute();
    world.must(Action::Scale { service: service_name("chat"), replicas: 2 });
    let service = &world.cluster.services()[&service_name("chat")];
    assert_eq!(service.held().filter(|(_, held)| held.phase == HoldingPhase::Silent).count(), 1);
    world
}

#[test]
fn a_roll_out_does_not_wait_for_a_silent_node() {
    let mut world = with_a_silent_surplus();
    world.approve(deploy(autonomous(3600, manifest("chat", 1, 3, 750, 100))));
    assert_eq!(under_the_approval_in_force(&world), 0);
    react(&mut world, &["node-2", "node-3"]);
    assert_eq!(under_the_approval_in_force(&world), 2);
}

#[test]
fn a_move_does_not_wait_for_a_silent_node() {
    let nodes = [node("node-1", 1000, 4096), node("node-2", 8000, 6000)];
    let mut world = running_on(&nodes, autonomous(3600, manifest("chat", 1, 2, 700, 3000)));
    world.must(Action::Scale { service: service_name("chat"), replicas: 2 });
    world.approve(deploy(manifest("embed", 1, 3, 500, 64)));
    world.must(Action::Scale { service: service_name("embed"), replicas: 2 });
    world.settle();
    assert_eq!(world.placements("embed"), ["0@node-2", "1@node-2"]);
    let third = node("node-3", 8000, 2048);
    world.approve(Change::AdmitNode(Box::new(third.admission.clone())));
    world.specs.insert(third.admission.name.clone(), third);
    world.share_model("minilm", 50 << 20);
    for _ in 0..REBALANCE_CALM_MS / 1000 + 5 {
        world.wait(1000);
        assert!(["node-2", "node-3"].iter().all(|name| world.heartbeat(name)));
        world.execute();
    }
    let chat = &world.cluster.services()[&service_name("chat")];
    assert_eq!(chat.held().filter(|(_, held)| held.phase == HoldingPhase::Silent).count(), 1);
    assert_eq!(world.placements("embed"), ["0@node-2", "1@node-2", "2@node-3"], "it moves to the third node");
}

#[test]
fn only_a_silent_slot_is_resumed_and_only_under_its_own_fence() {
    let mut world = two(autonomous(3600, one_replica()));
    let resume = |world: &World, name| {
        let parent_generation = world.cluster.generation();
        let action = Action::Execute { parent_generation, steps: vec![Step::Resume(name)] };
        verdict(world, Actor::Scheduler, action)
    };
    assert_eq!(resume(&world, slot(0, 1)), "plan-stale", "it runs");
    assert_eq!(resume(&world, slot(1, 1)), "plan-stale", "it was never ordered");
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    let lapse = Step::Lapse { node: node_id("node-1"), silent_ms: LEASE_MS };
    let parent_generation = world.cluster.generation();
    world.must(Action::Execute { parent_generation, steps: vec![lapse] });
    assert_eq!(resume(&world, slot(0, 2)), "plan-stale", "another fence");
    assert_eq!(resume(&world, slot(0, 1)), "ok");
    world.execute();
    assert_eq!(resume(&world, slot(0, 1)), "plan-stale", "it was ordered elsewhere");
}

/// Lets time pass in rounds: every node that is not cut off asks, and the leader plans.
pub(crate) fn rounds(sim: &mut Sim, ms: u64, cut_off: &[usize]) {
    for _ in 0..ms / ROUND_MS {
        sim.step(&Event::Wait(ROUND_MS));
        for node in (0..NODES).filter(|node| !cut_off.contains(node)) {
            sim.step(&Event::Sync(node));
        }
        sim.step(&Event::Plan);
        sim.check();
    }
}

pub(crate) fn nodes_of(sim: &Sim, service: &str) -> Vec<Vec<usize>> {
    let live = sim.live().into_iter().filter(|((name, _), _)| name.as_str() == service);
    live.map(|(_, nodes)| nodes).collect()
}

/// Returns a cluster in which two replicas of each service run.
pub(crate) fn settled() -> Sim {
    let mut sim = Sim::new();
    for service in ["chat", "embed"] {
        sim.world.must(Action::Scale { service: service_name(service), replicas: 2 });
    }
    rounds(&mut sim, 10_000, &[]);
    sim
}

#[test]
fn a_partitioned_nodes_slots_run_elsewhere_within_four_seconds_and_it_gives_way() {
    let mut sim = settled();
    let lost = nodes_of(&sim, "chat")[0][0];
    let before = sim.live().values().filter(|nodes| nodes.contains(&lost)).count();
    assert!(before > 0);
    rounds(&mut sim, PLACED_WITHIN_MS, &[lost]);
    // The node still runs what is not exclusive, and another node runs each of its slots.
    for (slot, nodes) in sim.live() {
        assert!(nodes.iter().any(|node| *node != lost), "{slot:?} runs on {nodes:?}");
    }
    assert!(nodes_of(&sim, "chat").iter().any(|nodes| nodes.len() == 2 && nodes.contains(&lost)));
    assert!(nodes_of(&sim, "embed").iter().all(|nodes| nodes.len() == 1 && !nodes.contains(&lost)));
    rounds(&mut sim, 2_000, &[]);
    assert!(sim.live().values().all(|nodes| nodes.len() == 1), "it gave way: {:?}", sim.live());
    assert_eq!((nodes_of(&sim, "chat").len(), nodes_of(&sim, "embed").len()), (2, 2));
}

/// Control receives nothing from any node for ten minutes, as after a failure of its own network. The service
/// that is not exclusive has an autonomy of one minute; within it nothing of it ends, and nothing is ordered
/// again after.
#[test]
fn a_control_plane_that_is_cut_off_takes_no_slot_away() {
    let mut sim = settled();
    let before = sim.live();
    let all: Vec<usize> = (0..NODES).collect();
    rounds(&mut sim, 55_000, &all);
    let chat = |live: &std::collections::BTreeMap<_, Vec<usize>>| {
        let of_chat = |(key, nodes): (&(ServiceName, SlotIndex), &Vec<usize>)| {
            (key.0.as_str() == "chat").then(|| (key.1, nodes.clone()))
        };
        live.iter().filter_map(of_chat).collect::<Vec<_>>()
    };
    assert_eq!(chat(&sim.live()), chat(&before), "every slot is where it was");
    assert!(nodes_of(&sim, "embed").is_empty(), "exclusive work has ended");
    rounds(&mut sim, 3_000, &[]);
    assert_eq!(chat(&sim.live()), chat(&before), "and stays there when control is back");
    let fences =
        sim.world.cluster.services()[&service_name("chat")].slots.values().map(|slot| slot.fence.count);
    assert!(fences.max() == Some(1), "no slot was ordered a second time");
    rounds(&mut sim, 10_000, &[]);
    assert_eq!(nodes_of(&sim, "embed").len(), 2);
}

/// Returns the throws of dice for a seed: each is below its number of sides.
pub(crate) fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut dice = seed;
    move |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    }
}

/// Returns the random partitions of a seed: nodes are cut off and return at any time, leaders change, and
/// answers and plans are late. Returns the number of rounds in which exclusive work ran twice.
fn partitions(seed: u64, exclusive_outlives_lease: bool) -> usize {
    let mut sim = settled();
    sim.exclusive_outlives_lease = exclusive_outlives_lease;
    let mut roll = dice(seed);
    let (mut cut_off, mut twice) = ([false; NODES], 0);
    for _ in 0..80 {
        if roll(4) == 0 {
            let node = roll(NODES as u64) as usize;
            cut_off[node] = !cut_off[node];
        }
        if roll(25) == 0 {
            sim.step(&Event::Lead(roll(3) as usize));
        }
        sim.step(&Event::Wait([200, 500, 1_000, LEASE_MS - 1, LEASE_MS][roll(5) as usize]));
        for node in (0..NODES).filter(|node| !cut_off[*node]) {
            match roll(6) {
                0 => sim.step(&Event::Ask { node, lost: roll(2) == 0 }),
                1 => sim.step(&Event::Answer(node)),
                _ => sim.step(&Event::Sync(node)),
            }
        }
        sim.step(&Event::Plan);
        twice += usize::from(!sim.exclusive_twice().is_empty());
        if !exclusive_outlives_lease {
            sim.check();
        }
    }
    if !exclusive_outlives_lease {
        // Everything heals: each wanted replica runs once.
        rounds(&mut sim, 20_000, &[]);
        assert!(sim.live().values().all(|nodes| nodes.len() == 1), "seed {seed}: {:?}", sim.live());
        assert_eq!((nodes_of(&sim, "chat").len(), nodes_of(&sim, "embed").len()), (2, 2), "seed {seed}");
    }
    twice
}

#[test]
fn in_a_hundred_random_partitions_nothing_exclusive_runs_twice() {
    assert_eq!((0..100).map(|seed| partitions(seed, false)).sum::<usize>(), 0);
    // The positive control: agents that keep exclusive work as long as any other run it twice.
    assert!((0..10).map(|seed| partitions(seed, true)).sum::<usize>() > 10);
}

#[test]
fn a_nodes_report_of_a_slot_that_was_placed_elsewhere_changes_nothing() {
    let mut world = two(autonomous(3600, one_replica()));
    world.wait(LEASE_MS);
    world.heartbeat("node-2");
    world.execute();
    for state in [SlotState::Ready, SlotState::Draining, SlotState::Released] {
        let order = protocol::order::SlotOrder {
            fence: Fence::new(1, 1),
            node: node_id("node-1"),
            ..world.cluster.holdings().next().unwrap().2.order.clone()
        };
        world.reports.insert(node_id("node-1"), vec![report(&order, state, "")]);
        world.heartbeat("node-1");
        let former = Step::ReleaseFormer { node: node_id("node-1"), slot: slot(0, 1) };
        let expected = if state == SlotState::Released { vec![former] } else { vec![] };
        assert_eq!(world.plan().steps, expected, "{state:?}: no slot changes");
    }
    assert_eq!(world.placements("chat"), ["0@node-2"]);
}

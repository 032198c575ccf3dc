//! Tests of nodes that fell silent while they held a slot, and lost it: no exclusive order goes out beside
//! one that may still run the slot, and the wait ends as soon as the node reports that it released it.

use crate::autonomy::{
    dice, lapse_first, nodes_of, react, rounds, settled, slot, two, under_the_approval_in_force,
};
use crate::common::sim::{Event, NODES};
use crate::common::*;
use protocol::agent::SlotState;
use protocol::limits::LEASE_MS;
use protocol::order::SlotOrder;
use protocol::{Fence, SlotIndex};
use scheduler::*;

/// Returns a cluster that waits for `node-1` before it orders exclusive work, and the last order of this
/// node: it fell silent, its slot was ordered on `node-2`, and the next approval turned the work exclusive.
fn waiting_for_the_first() -> (World, SlotOrder) {
    let mut world = two(autonomous(600, manifest("chat", 1, 1, 700, 100)));
    let order = world.cluster.holdings().next().unwrap().2.order.clone();
    assert_eq!((order.node, order.fence), (node_id("node-1"), Fence::new(1, 1)));
    lapse_first(&mut world);
    assert_eq!(world.placements("chat"), ["0@node-2"]);
    world.approve(deploy(manifest("chat", 1, 1, 700, 100)));
    react(&mut world, &["node-2"]);
    assert_eq!(under_the_approval_in_force(&world), 0, "the first node may still run it");
    (world, order)
}

/// Delivers a node's request, with this state of the slot under this fence.
fn hear(world: &mut World, node: &str, order: &SlotOrder, reported: Option<(Fence, SlotState)>) {
    let of = |(fence, state)| report(&SlotOrder { fence, ..order.clone() }, state, "");
    world.reports.insert(node_id(node), reported.map(of).into_iter().collect());
    assert!(world.heartbeat(node));
}

/// Returns the former holders that the cluster's only slot waits for.
fn awaited(world: &World) -> Vec<FormerHolder> {
    world.cluster.services()[&service_name("chat")].slots[&SlotIndex(0)].former_holders.clone()
}

/// The attack: a report that is late, or of another order, or of another node, ends the wait, and exclusive
/// work starts beside a node that still runs the slot. The positive control is the release by the node.
#[test]
fn attack_only_the_release_of_its_order_ends_the_wait_for_a_former_holder() {
    let (world, order) = waiting_for_the_first();
    let under = |version, count, state| Some((Fence::new(version, count), state));
    for (what, node, reported, ends) in [
        ("a request from before it had the order", "node-1", None, false),
        ("it loads", "node-1", under(1, 1, SlotState::Loading), false),
        ("it runs", "node-1", under(1, 1, SlotState::Ready), false),
        ("it drains", "node-1", under(1, 1, SlotState::Draining), false),
        ("its worker failed and is started again", "node-1", under(1, 1, SlotState::Failed), false),
        ("it refused the order, and may take it later", "node-1", under(1, 1, SlotState::Refused), false),
        ("it released an earlier order", "node-1", under(1, 0, SlotState::Released), false),
        ("it refused a later order", "node-1", under(2, 1, SlotState::Refused), false),
        ("another node released it", "node-2", under(1, 1, SlotState::Released), false),
        ("it released the order", "node-1", under(1, 1, SlotState::Released), true),
        ("it released a later order", "node-1", under(1, 2, SlotState::Released), true),
    ] {
        let mut world = world.clone();
        hear(&mut world, node, &order, reported);
        react(&mut world, &["node-2"]);
        assert_eq!(under_the_approval_in_force(&world), usize::from(ends), "{what}");
        assert_eq!(awaited(&world).is_empty(), ends, "{what}");
        world.wait(600_000);
        react(&mut world, &["node-2"]);
        assert_eq!(under_the_approval_in_force(&world), 1, "{what}, and its autonomy is over");
    }
}

/// A node reports a release until one request is answered, and the next plan may come later.
#[test]
fn a_release_is_remembered_until_the_next_plan_and_by_the_leader_that_heard_it_alone() {
    let (world, order) = waiting_for_the_first();
    let step = Step::ReleaseFormer { node: order.node, slot: slot(0, 1) };
    for another_leads in [false, true] {
        let mut world = world.clone();
        hear(&mut world, "node-1", &order, Some((Fence::new(1, 1), SlotState::Released)));
        if another_leads {
            world.lead(2);
        }
        hear(&mut world, "node-1", &order, None);
        assert_eq!(world.plan().steps.contains(&step), !another_leads);
        // The report stays true: a node that repeats it is believed by any leader, however late.
        hear(&mut world, "node-1", &order, Some((Fence::new(1, 1), SlotState::Released)));
        assert!(world.plan().steps.contains(&step));
    }
}

/// The attack: a node reports so many releases that the leader's memory of others grows without limit.
#[test]
fn a_node_that_releases_without_end_pushes_out_its_own_releases_alone() {
    let (mut world, order) = waiting_for_the_first();
    let step = Step::ReleaseFormer { node: order.node, slot: slot(0, 1) };
    let flood = |world: &mut World, node: &str, count: usize| {
        let of = |number| SlotOrder { slot: SlotIndex(number), ..order.clone() };
        let slots = 1..=u32::try_from(count).unwrap();
        let reports = slots.map(|number| report(&of(number), SlotState::Released, "")).collect();
        world.reports.insert(node_id(node), reports);
        assert!(world.heartbeat(node));
    };
    hear(&mut world, "node-1", &order, Some((Fence::new(1, 1), SlotState::Released)));
    flood(&mut world, "node-2", 2 * limits::RELEASES_REMEMBERED_MAX);
    assert!(world.plan().steps.contains(&step), "another node pushes out nothing");
    flood(&mut world, "node-1", limits::RELEASES_REMEMBERED_MAX - 1);
    assert!(world.plan().steps.contains(&step));
    flood(&mut world, "node-1", limits::RELEASES_REMEMBERED_MAX);
    assert!(!world.plan().steps.contains(&step), "the oldest is forgotten, and the wait ends with its time");
}

#[test]
fn a_former_holder_is_released_once_and_under_its_own_fence() {
    let (mut world, order) = waiting_for_the_first();
    let release = |world: &World, node: &str, name| {
        let parent_generation = world.cluster.generation();
        let steps = vec![Step::ReleaseFormer { node: node_id(node), slot: name }];
        verdict(world, Actor::Scheduler, Action::Execute { parent_generation, steps })
    };
    assert_eq!(release(&world, "node-2", slot(0, 1)), "plan-stale", "it is not awaited");
    assert_eq!(release(&world, "node-1", slot(0, 2)), "plan-stale", "another order");
    assert_eq!(release(&world, "node-1", slot(1, 1)), "plan-stale", "another slot");
    assert_eq!(release(&world, "node-1", slot(0, 1)), "ok");
    hear(&mut world, "node-1", &order, Some((Fence::new(1, 1), SlotState::Released)));
    world.execute();
    assert_eq!(release(&world, "node-1", slot(0, 1)), "plan-stale", "it was released before");
}

/// A majority of the clocks is ahead for a while: the wait neither ends by that, nor lasts longer.
#[test]
fn a_wait_is_as_long_as_before_when_the_time_is_set_back() {
    let (mut world, _) = waiting_for_the_first();
    let began = world.now;
    let left = |world: &World| world.cluster.now().ms_until(awaited(world)[0].until);
    world.wait(590_000);
    world.must(Action::Tick);
    let before = left(&world);
    assert!((1..=10_000).contains(&before), "{before}");
    world.set_now(began);
    world.must(Action::Tick);
    assert!(world.cluster.now() < ClusterTime(began.plus(400_000)), "the time was set back");
    assert_eq!(left(&world), before);
}

/// Returns how often a wait ended by a release, and the number of rounds in which exclusive work ran twice,
/// while approvals turn exclusive and back. Nodes are cut off, die and return at any time, leaders change,
/// and answers are late.
fn turns(seed: u64, agents_lie: bool) -> (usize, usize) {
    let mut sim = settled();
    sim.agents_lie = agents_lie;
    let mut roll = dice(seed);
    let (mut cut_off, mut exclusive, mut twice) = ([false; NODES], false, 0);
    for _ in 0..80 {
        if roll(4) == 0 {
            let node = roll(NODES as u64) as usize;
            cut_off[node] = !cut_off[node];
        }
        if roll(10) == 0 {
            exclusive = !exclusive;
            sim.step(&Event::Exclusive(exclusive));
        }
        match roll(25) {
            0 => sim.step(&Event::Lead(roll(3) as usize)),
            1 => sim.step(&Event::Crash(roll(NODES as u64) as usize)),
            _ => {}
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
        if !agents_lie {
            sim.check();
        }
    }
    if !agents_lie {
        // Everything heals: each wanted replica runs once.
        rounds(&mut sim, 90_000, &[]);
        assert!(sim.live().values().all(|nodes| nodes.len() == 1), "seed {seed}: {:?}", sim.live());
        assert_eq!((nodes_of(&sim, "chat").len(), nodes_of(&sim, "embed").len()), (2, 2), "seed {seed}");
    }
    (sim.trace.matches("  release former: ").count(), twice)
}

/// The positive control: agents that report as released what they run let exclusive work run twice.
#[test]
fn attack_no_exclusive_slot_has_two_live_holders_however_approvals_turn() {
    let outcomes: Vec<_> = (0..30).map(|seed| turns(seed, false)).collect();
    assert_eq!(outcomes.iter().map(|(_, twice)| twice).sum::<usize>(), 0);
    assert!(outcomes.iter().map(|(released, _)| released).sum::<usize>() > 10, "{outcomes:?}");
    assert!((0..10).map(|seed| turns(seed, true).1).sum::<usize>() > 0);
}

//! Precondition tests: plans that a correct planner never makes are refused whole, and counted as faults.

use crate::common::*;
use protocol::{Fence, SlotIndex};
use scheduler::*;
use std::collections::BTreeMap;

/// A plan that is refused although nothing changed is the planner's fault; a stale one is not.
#[test]
fn a_plan_that_is_refused_in_its_generation_is_a_fault() {
    let mut world = running();
    let parent_generation = world.cluster.generation();
    let wrong = SlotName { service: service_name("embed"), slot: SlotIndex(0), fence: Fence::new(1, 9) };
    let action = Action::Execute { parent_generation, steps: vec![Step::Release(wrong)] };
    let fault = |world: &World, reply: &Reply| {
        refused_in_its_generation(&world.cluster, parent_generation, reply).map(|refusal| refusal.message)
    };
    let refused = world.apply(Actor::Scheduler, action.clone());
    assert_eq!(fault(&world, &refused).as_deref(), Some("slot embed/0 is not held under fence 1.9"));
    let executed = world.clone().must(Action::Execute { parent_generation, steps: vec![] });
    assert_eq!(fault(&world, &executed), None, "an executed plan");
    world.must(Action::Scale { service: service_name("embed"), replicas: 2 });
    let stale = world.apply(Actor::Scheduler, action);
    assert_eq!(fault(&world, &stale), None, "a stale plan");
}

/// The GPUs of an order are as many as its manifest asks for, and no other order's.
#[test]
fn orders_for_gpus_that_are_not_free_are_refused() {
    let mut spec = node("gpu", 8000, 8192);
    spec.resources.gpus = gpus(4, 80, false);
    let mut world = World::new(&[spec]);
    world.share_model("minilm", 50 << 20);
    let mut whole = manifest("whole", 0, 2, 100, 64);
    whole.resources.gpu_count = 2;
    let mut share = manifest("share", 0, 4, 100, 64);
    share.resources.gpu_share_percent = 40;
    world.approve(deploy(manifest("plain", 0, 1, 100, 64)));
    let certificates = BTreeMap::from([
        ("whole", world.approve(deploy(whole))),
        ("share", world.approve(deploy(share))),
        ("plain", world.cluster.services()[&service_name("plain")].certificate),
    ]);
    let order = |service: &str, slot, gpus: &[u32]| {
        Step::Order(OrderPlan {
            service: service_name(service),
            slot: SlotIndex(slot),
            fence: Fence::new(1, 1),
            node: node_id("gpu"),
            certificate: certificates[service],
            gpus: gpus.to_vec(),
            replaces: None,
        })
    };
    let parent_generation = world.cluster.generation();
    for (name, steps, expected) in [
        ("two whole ones", vec![order("whole", 0, &[0, 1])], "ok"),
        ("too few", vec![order("whole", 0, &[0])], "plan-stale"),
        ("too many", vec![order("whole", 0, &[0, 1, 2])], "plan-stale"),
        ("one of them twice", vec![order("whole", 0, &[1, 1])], "plan-stale"),
        ("another's", vec![order("whole", 0, &[0, 1]), order("whole", 1, &[1, 2])], "plan-stale"),
        ("two pairs", vec![order("whole", 0, &[0, 1]), order("whole", 1, &[2, 3])], "ok"),
        ("two shares of one", vec![order("share", 0, &[0]), order("share", 1, &[0])], "ok"),
        (
            "more shares than a whole",
            vec![order("share", 0, &[0]), order("share", 1, &[0]), order("share", 2, &[0])],
            "plan-stale",
        ),
        ("a share of a whole one", vec![order("whole", 0, &[0, 1]), order("share", 0, &[1])], "plan-stale"),
        (
            "a whole one that is shared",
            vec![order("share", 0, &[1]), order("whole", 0, &[0, 1])],
            "plan-stale",
        ),
        ("a share of two", vec![order("share", 0, &[0, 1])], "plan-stale"),
        ("no GPU needed", vec![order("plain", 0, &[])], "ok"),
        ("a GPU that is not needed", vec![order("plain", 0, &[0])], "plan-stale"),
    ] {
        let action = Action::Execute { parent_generation, steps };
        assert_eq!(verdict(&world, Actor::Scheduler, action), expected, "{name}");
    }
}

/// A node that reports one GPU under an index twice gets one order for it, and no other node waits for it.
#[test]
fn a_gpu_that_is_reported_twice_counts_once() {
    let mut twice = node("node-1", 8000, 8192);
    twice.resources.gpus = [gpus(1, 80, false), gpus(1, 80, false)].concat();
    let mut sound = node("node-2", 8000, 8192);
    sound.resources.gpus = gpus(2, 80, false);
    let mut world = World::new(&[twice, sound]);
    world.share_model("minilm", 50 << 20);
    let mut pair = manifest("pair", 1, 1, 100, 64);
    pair.resources.gpu_count = 2;
    world.approve(deploy(pair));
    world.settle();
    assert_eq!(world.placements("pair"), ["0@node-2"]);
}

/// A node refuses an order whose GPUs do not rise, so the planner does not take over the node's own order.
#[test]
fn an_order_names_gpus_by_rising_index_however_the_node_reports_them() {
    let mut spec = node("node-1", 8000, 8192);
    spec.resources.gpus = gpus(4, 80, false).into_iter().rev().collect();
    let mut world = World::new(&[spec]);
    world.share_model("minilm", 50 << 20);
    let mut pair = manifest("pair", 1, 1, 100, 64);
    pair.resources.gpu_count = 2;
    world.approve(deploy(pair));
    let named: Vec<Vec<u32>> = world.plan().orders().map(|order| order.gpus.clone()).collect();
    assert_eq!(named, [[0, 1]]);
}

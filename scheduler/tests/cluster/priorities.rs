//! Priorities: the order of placement, and the replicas that make room for those of a higher priority.

use crate::common::*;
use proptest::prelude::*;
use protocol::manifest::ServiceManifest;
use scheduler::*;

/// Returns a service whose replicas take a whole core each.
fn ranked(name: &str, priority: u32, min: u32, max: u32) -> ServiceManifest {
    ServiceManifest { priority, ..manifest(name, min, max, 1000, 64) }
}

/// Returns a cluster of one node for each number of cores.
fn cores(cores: &[u64]) -> World {
    let specs: Vec<_> =
        cores.iter().enumerate().map(|(at, cores)| node(&format!("node-{at}"), cores * 1000, 8192)).collect();
    let mut world = World::new(&specs);
    world.share_model("minilm", 50 << 20);
    world
}

/// Approves a service and asks for this number of replicas.
fn ask(world: &mut World, manifest: ServiceManifest, replicas: u32) {
    let service = manifest.name.clone();
    world.approve(deploy(manifest));
    world.must(Action::Scale { service, replicas });
}

fn runs(world: &World, name: &str) -> usize {
    world.placements(name).len()
}

#[test]
fn no_service_starves_by_its_name() {
    let mut world = cores(&[4]);
    ask(&mut world, ranked("aardvark", 50, 0, 4), 4);
    ask(&mut world, ranked("zebra", 50, 0, 4), 4);
    world.settle();
    assert_eq!([runs(&world, "aardvark"), runs(&world, "zebra")], [2, 2]);
    // Equal priorities take nothing from each other.
    ask(&mut world, ranked("newt", 50, 1, 1), 1);
    world.settle();
    assert_eq!(runs(&world, "newt"), 0);
}

#[test]
fn minima_come_first_and_then_priorities() {
    let mut world = cores(&[4]);
    ask(&mut world, ranked("aardvark", 50, 1, 4), 4);
    ask(&mut world, ranked("zebra", 80, 2, 4), 4);
    world.settle();
    assert_eq!([runs(&world, "aardvark"), runs(&world, "zebra")], [1, 3]);
}

#[test]
fn a_higher_priority_takes_what_exceeds_a_minimum_and_for_its_own_minimum_all() {
    let mut world = cores(&[2, 2]);
    ask(&mut world, ranked("low", 10, 1, 4), 4);
    world.settle();
    ask(&mut world, ranked("high", 90, 1, 4), 4);
    let plan = world.execute();
    let cause = "makes room for high, of priority 90 above 10";
    assert_eq!(plan.reasons.iter().filter(|reason| reason.text == cause).count(), 3, "{:?}", plan.reasons);
    assert!(world.plan().is_empty(), "what drains is waited for: {:?}", world.plan());
    let answer = why(world.view(), &Question::Service(service_name("high"))).unwrap();
    let drains = |reason: &String| reason.contains("has room once the replicas that drain there are gone");
    assert!(answer.reasons.iter().any(drains), "{answer:?}");
    world.obey();
    world.settle();
    assert_eq!([runs(&world, "low"), runs(&world, "high")], [1, 3], "the minimum of the lower one stays");
    let answer = why(world.view(), &Question::Service(service_name("low"))).unwrap();
    let first = |reason: &String| reason.contains("services of a priority above 10 go first: high (90)");
    assert!(answer.reasons.iter().any(first), "{answer:?}");
    // The minimum of a higher priority is above that of a lower one.
    ask(&mut world, ranked("top", 100, 2, 2), 2);
    world.settle();
    assert_eq!([runs(&world, "low"), runs(&world, "high"), runs(&world, "top")], [0, 2, 2]);
}

#[test]
fn a_new_leader_and_a_failed_node_preempt_nothing() {
    let mut world = cores(&[1, 1]);
    ask(&mut world, ranked("low", 10, 1, 1), 1);
    world.settle();
    ask(&mut world, ranked("high", 90, 1, 2), 2);
    world.lead(2);
    world.heartbeat("node-0");
    assert!(world.plan().is_empty(), "the other node may have room: {:?}", world.plan());
    world.heartbeat_all();
    world.settle();
    assert_eq!(
        [runs(&world, "low"), runs(&world, "high")],
        [1, 1],
        "one beyond the minimum takes no minimum"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Preemption comes to an end, and then no replica waits for room that one of a lower priority may not
    /// hold against it.
    #[test]
    fn room_goes_by_priority(
        sizes in prop::collection::vec(1..4_u64, 1..4),
        asked in prop::collection::vec((1..4_u32, 0..3_u32, 0..4_u32), 1..5),
    ) {
        let mut world = cores(&sizes);
        for (at, (priority, min, more)) in asked.iter().enumerate() {
            let max = (min + more).max(1);
            ask(&mut world, ranked(&format!("s{at}"), 10 * priority, *min, max), max);
            if at % 2 == 0 {
                world.settle();
            }
        }
        world.settle();
        let services = world.cluster.services();
        let with_runs = services.iter().map(|(name, service)| {
            let count = runs(&world, name.as_str());
            (service, count as u32)
        });
        let all: Vec<(&Service, u32)> = with_runs.collect();
        let total: u32 = all.iter().map(|(_, runs)| runs).sum();
        let wanted: u32 = all.iter().map(|(service, _)| service.desired).sum();
        prop_assert_eq!(u64::from(total), u64::from(wanted).min(sizes.iter().sum()), "no core is idle");
        for (high, high_runs) in &all {
            let below = all.iter().filter(|(low, _)| low.manifest.priority < high.manifest.priority);
            for (low, low_runs) in below {
                let short = *high_runs < high.desired;
                let within = *low_runs <= low.manifest.replicas.min;
                prop_assert!(!short || within, "{} waits beside {}", high.manifest.name, low.manifest.name);
                let starves = *high_runs < high.manifest.replicas.min;
                prop_assert!(!starves || *low_runs == 0, "{} lacks its minimum", high.manifest.name);
            }
        }
    }
}

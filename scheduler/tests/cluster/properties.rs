//! Property tests of random events: no slot is live twice, no envelope and no node is exceeded.
//!
//! Every replica and every restored snapshot reaches the same state. The simulation is in `common/sim.rs`.

use crate::common::sim::{Event, JUMPS, NODES, Sim, events_of};
use crate::common::*;
use proptest::prelude::*;
use protocol::Digest;
use protocol::limits::LEASE_MS;
use scheduler::*;

fn event() -> impl Strategy<Value = Event> {
    let waits = [1, 200, 500, 1500, LEASE_MS - 1, LEASE_MS, 40_000, 130_000];
    prop_oneof![
        4 => prop::sample::select(waits.to_vec()).prop_map(Event::Wait),
        6 => (0..NODES).prop_map(Event::Sync),
        2 => (0..NODES, prop::bool::weighted(0.2)).prop_map(|(node, lost)| Event::Ask { node, lost }),
        2 => (0..NODES).prop_map(Event::Answer),
        6 => Just(Event::Plan),
        2 => Just(Event::Propose),
        1 => Just(Event::FormerPlan),
        2 => (0..4usize, prop::bool::weighted(0.3)).prop_map(|(which, again)| Event::Arrive { which, again }),
        1 => Just(Event::Lose),
        1 => (0..3usize).prop_map(Event::Lead),
        1 => (0..NODES).prop_map(Event::Crash),
        1 => (0..NODES, any::<bool>()).prop_map(|(node, refused)| Event::Fail { node, refused }),
        1 => (0..NODES).prop_map(Event::Forget),
        1 => (0..NODES).prop_map(Event::Slow),
        2 => (0..5u32).prop_map(Event::Scale),
        1 => prop_oneof![Just(2_000), Just(20_000)].prop_map(Event::Ahead),
        1 => (0..3usize, prop::sample::select(JUMPS.to_vec()))
            .prop_map(|(replica, by)| Event::Jump { replica, by }),
        1 => Just(Event::Mend),
        1 => (1..5u32, 100..400u64).prop_map(|(max, memory)| Event::Deploy { max, memory }),
        1 => Just(Event::Retire),
        1 => (0..NODES).prop_map(Event::Remove),
        1 => (0..NODES).prop_map(Event::Admit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_slot_is_live_twice_and_nothing_is_exceeded(
        events in prop::collection::vec(event(), 1..120), snapshot_at in 0usize..120,
    ) {
        let mut sim = Sim::new();
        let mut snapshot = None;
        for (i, event) in events.iter().enumerate() {
            sim.step(event);
            sim.check();
            if i == snapshot_at {
                snapshot = Some((sim.world.log.len(), sim.world.cluster.to_snapshot()));
            }
        }
        // A second replica with the same log, and one that begins at a snapshot, agree to the byte.
        let mut second = Cluster::new();
        let mut restored: Option<Cluster> = None;
        for (i, command) in sim.world.log.iter().enumerate() {
            if let Some((length, bytes)) = &snapshot && *length == i {
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

    /// Once the faults end, the cluster settles with every wanted replica that fits.
    #[test]
    fn after_any_faults_the_desired_replicas_run(events in prop::collection::vec(event(), 1..60)) {
        let mut sim = Sim::new();
        for event in &events {
            sim.step(event);
        }
        // Longer than every drain, lease and avoidance, and than a move for each replica.
        sim.recover(200_000 + 6 * limits::REBALANCE_CALM_MS);
        let (world, live) = (&sim.world, sim.live());
        prop_assert!(world.plan().is_empty(), "{:?}", world.plan());
        for (name, service) in world.cluster.services() {
            let wanted = if service.phase == ServicePhase::Active { service.desired as usize } else { 0 };
            let runs = live.keys().filter(|(service, _)| service == name).count();
            prop_assert_eq!(runs, wanted, "{}: {:?}", name, world.plan().waiting);
            let fresh = service.held().all(|(_, holding)| holding.order.certificate == service.certificate);
            prop_assert!(fresh, "every slot of {} is under the approval in force", name);
            prop_assert!(sim.is_even(name), "{} could be spread better", name);
        }
    }

    /// The same state and view give the same plan at every call.
    #[test]
    fn a_plan_is_a_function(events in prop::collection::vec(event(), 1..40)) {
        let mut sim = Sim::new();
        events.iter().for_each(|event| sim.step(event));
        let plan = sim.world.plan();
        let again = Cluster::from_snapshot(&sim.world.cluster.to_snapshot()).unwrap();
        prop_assert_eq!(&plan, &scheduler::plan(ClusterView { cluster: &again, ..sim.world.view() }));
        if let Some(command) = plan.command(sim.world.clocks.clone()) {
            let reply = sim.world.apply(command.actor, command.action);
            prop_assert!(matches!(reply, Reply::Executed { .. }), "a fresh plan is executed: {:?}", reply);
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

    /// At rest, a plan makes the moves that are worthwhile, and then no move ever again.
    #[test]
    fn moves_come_to_an_end(placed in prop::collection::vec(0..NODES, 1..4), replicas in 1..5u32) {
        let mut sim = Sim::new();
        for node in 0..NODES {
            if !placed.contains(&node) {
                sim.step(&Event::Remove(node));
            }
        }
        sim.world.must(Action::Scale { service: service_name("chat"), replicas });
        sim.step(&Event::Plan);
        sim.recover(10 * limits::REBALANCE_CALM_MS);
        // All nodes are back. Every move leaves at least one pair of replicas fewer on one node.
        prop_assert!(sim.moves <= replicas * (replicas - 1) / 2, "{} moves", sim.moves);
        prop_assert!(sim.is_even(&service_name("chat")));
        let moves = sim.moves;
        sim.recover(5 * limits::REBALANCE_CALM_MS);
        prop_assert_eq!(sim.moves, moves, "an even service stays where it is");
    }
}

fn trace_of(seed: u64) -> Digest {
    let mut sim = Sim::new();
    for event in events_of(seed, 400) {
        sim.step(&event);
        sim.check();
    }
    Digest::of(sim.trace.as_bytes())
}

/// Members' keys and signatures differ each time, but no decision does.
#[test]
fn the_same_seed_gives_the_same_trace() {
    let traces: Vec<Digest> = (0..6).map(trace_of).collect();
    assert_eq!(traces, (0..6).map(trace_of).collect::<Vec<_>>());
    let distinct: std::collections::BTreeSet<_> = traces.iter().collect();
    assert_eq!(distinct.len(), traces.len(), "another seed gives another trace");
}

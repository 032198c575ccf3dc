//! Roll-outs: failed starts, the return to the approval before, and the disruption budget.

use crate::common::script::parse_node;
use crate::common::*;
use proptest::prelude::*;
use protocol::agent::SlotState;
use protocol::governance::Change;
use protocol::manifest::{OnFailure, ServiceManifest};
use protocol::{Digest, Fence, NodeName, SlotIndex};
use scheduler::*;

/// Returns a service of two replicas in three slots with this memory, and its treatment of failures.
fn chat(memory_mib: u64, on_failure: OnFailure) -> ServiceManifest {
    let mut chat = manifest("chat", 2, 3, 500, memory_mib);
    (chat.rollout.on_failure, chat.rollout.failure_limit) = (on_failure, 2);
    chat
}

fn service(world: &World) -> &Service {
    &world.cluster.services()[&service_name("chat")]
}

/// Returns a cluster in which the first replica of a second approval has been placed, and the certificates of
/// both.
fn rolling(on_failure: OnFailure) -> (World, [Digest; 2]) {
    let mut world = two_nodes();
    let first = world.approve(deploy(chat(100, OnFailure::Hold)));
    world.settle();
    let second = world.approve(deploy(chat(200, on_failure)));
    world.execute();
    assert_eq!(service(&world).slots[&SlotIndex(2)].holding.as_ref().unwrap().order.certificate, second);
    (world, [first, second])
}

/// Lets the newest replica fail as often as its agent restarts it.
fn fail(world: &mut World, slot: u32) {
    world.set_state("chat", slot, SlotState::Failed, "the model does not load");
    world.heartbeat_all();
}

fn has_event(world: &World, action: &str) -> bool {
    world.cluster.audit().last(20).any(|event| event.action == action)
}

fn findings(world: &World) -> String {
    let leader = LeaderView { leader: Some(protocol::ReplicaId(1)), silent: Some(vec![]) };
    status(world.view(), leader).findings.iter().map(|finding| finding.message.clone()).collect()
}

fn roll_back(world: &mut World, actor: Actor) -> &'static str {
    let action = Action::RollBack { service: service_name("chat"), reason: "empty answers".into() };
    code(&world.apply(actor, action))
}

#[test]
fn a_roll_out_that_fails_returns_to_the_approval_that_is_named() {
    let (mut world, [first, second]) = rolling(OnFailure::Return);
    fail(&mut world, 2);
    let words: Vec<Step> = world.execute().steps;
    assert!(words.iter().any(|step| matches!(step, Step::FailStart { starts: 9, available: 0, .. })));
    assert!(has_event(&world, "fail-start") && has_event(&world, "return"));
    assert_eq!((service(&world).certificate, service(&world).version), (first, 2));
    assert!(findings(&world).contains("chat has returned to the approval before: 9 starts in a row"));
    world.settle();
    let held: Vec<_> =
        service(&world).held().map(|(slot, holding)| (slot.0, holding.order.clone())).collect();
    let fences: Vec<_> = held.iter().map(|(slot, order)| (*slot, order.fence, order.certificate)).collect();
    assert_eq!(fences, [0, 1].map(|slot| (slot, Fence::new(1, 1), first)), "what ran before runs on");
    // A later order is under the certificate before, with a fence of the one in force.
    world.must(Action::Scale { service: service_name("chat"), replicas: 3 });
    world.settle();
    let order = service(&world).slots[&SlotIndex(2)].holding.as_ref().unwrap().order.clone();
    assert_eq!((order.certificate, order.fence.version), (first, 2));
    let view = service_view(world.view(), &service_name("chat")).unwrap();
    assert_eq!((view.roll_out.returned_from, view.roll_out.returns_to), (Some(second), None));
    // Only the next vote ends it.
    let third = world.approve(deploy(chat(300, OnFailure::Return)));
    world.settle();
    assert_eq!(
        (service(&world).certificate, &service(&world).roll_out.phase),
        (third, &RollOutPhase::Complete)
    );
    assert!(has_event(&world, "complete"));
}

#[test]
fn a_roll_out_that_holds_goes_on_when_its_replica_answers() {
    let (mut world, [_, second]) = rolling(OnFailure::Hold);
    fail(&mut world, 2);
    world.execute();
    assert_eq!(service(&world).certificate, second, "nothing earlier runs again without a vote");
    assert!(findings(&world).contains("the roll-out of chat waits: 9 starts in a row failed"));
    let answer = why(world.view(), &Question::Service(service_name("chat"))).unwrap();
    assert!(answer.reasons.iter().any(|reason| reason.contains("the roll-out waits")), "{answer:?}");
    world.pass(limits::AVOID_MS);
    world.settle();
    assert_eq!(service(&world).roll_out, RollOut::default());
    assert!(!findings(&world).contains("chat"), "{}", findings(&world));
}

/// The attack: a token returns a service to an approval that no certificate names. The positive control is
/// the same request where the certificate names it.
#[test]
fn a_return_by_hand_goes_to_the_approval_that_is_named_and_never_forward() {
    let (mut world, _) = rolling(OnFailure::Hold);
    assert_eq!(roll_back(&mut world, token("operator")), "rollback-not-approved");
    let (mut world, [first, second]) = rolling(OnFailure::Return);
    assert_eq!(roll_back(&mut world.clone(), token("reader")), "token-scope-missing");
    world.obey();
    world.settle();
    assert_eq!(service(&world).roll_out.phase, RollOutPhase::Complete);
    assert_eq!(roll_back(&mut world, token("operator")), "ok", "after the roll-out too");
    let phase = RollOutPhase::Returned {
        from: second,
        valid_until: None,
        cause: "token/operator: empty answers".into(),
    };
    assert_eq!((service(&world).certificate, &service(&world).roll_out.phase), (first, &phase));
    assert_eq!(roll_back(&mut world, token("operator")), "rollback-not-approved", "not forward");
    world.settle();
    assert!(service(&world).held().all(|(_, holding)| holding.order.certificate == first));
    world.approve(Change::Retire { service: service_name("chat"), grace_seconds: 1 });
    assert_eq!(roll_back(&mut world, token("operator")), "service-not-found");
}

#[test]
fn nothing_returns_by_itself_to_an_approval_that_failed() {
    let (mut world, [_, second]) = rolling(OnFailure::Return);
    fail(&mut world, 2);
    world.execute();
    world.settle();
    let third = world.approve(deploy(chat(300, OnFailure::Return)));
    world.execute();
    fail(&mut world, 2);
    world.execute();
    assert_eq!(service(&world).before, Some(ReturnTarget { certificate: second, failed: true }));
    assert_eq!(service(&world).certificate, third, "it waits");
    assert_eq!(roll_back(&mut world, token("operator")), "ok", "a person may know better");
}

#[test]
fn a_replica_that_ends_within_its_time_is_not_available() {
    let mut world = two_nodes();
    let slow = |memory| {
        let mut chat = chat(memory, OnFailure::Hold);
        chat.rollout.ready_seconds = 10;
        chat
    };
    world.approve(deploy(slow(100)));
    world.settle();
    world.pass(10_000);
    world.approve(deploy(slow(200)));
    world.execute();
    world.obey();
    for (passes, drains) in [(0, 0), (9_000, 0), (1_000, 1)] {
        world.pass(passes);
        let steps = world.plan().steps;
        let drained = steps.iter().filter(|step| matches!(step, Step::Drain { .. })).count();
        assert_eq!(drained, drains, "after {passes} ms more");
    }
    // Its worker ends and answers again: the time begins again.
    world.set_state("chat", 2, SlotState::Starting, "");
    world.heartbeat_all();
    world.obey();
    world.pass(9_000);
    assert!(world.plan().is_empty(), "{:?}", world.plan());
}

#[test]
fn a_start_without_an_answer_fails_after_its_time() {
    let (mut world, [first, _]) = rolling(OnFailure::Return);
    world.set_state("chat", 2, SlotState::Loading, "");
    for minutes in [9, 19] {
        world.pass(minutes * 60_000 - (world.now.0 - START.0));
        world.execute();
        assert_ne!(service(&world).certificate, first, "after {minutes} minutes");
    }
    world.pass(2 * 60_000);
    world.execute();
    assert_eq!(service(&world).certificate, first, "two starts failed");
}

#[test]
fn a_budget_of_zero_is_reported_where_it_stops_a_roll_out() {
    let mut world = two_nodes();
    let strict = |memory| {
        let mut chat = manifest("chat", 1, 2, 500, memory);
        chat.rollout.max_unavailable = 0;
        chat
    };
    world.approve(deploy(strict(100)));
    world.must(Action::Scale { service: service_name("chat"), replicas: 2 });
    world.settle();
    world.approve(deploy(strict(200)));
    assert!(world.plan().is_empty(), "no slot is free for a replacement: {:?}", world.plan());
    let answer = why(world.view(), &Question::Service(service_name("chat"))).unwrap();
    assert!(answer.answer.contains("planned work may take none of its replicas away"), "{answer:?}");
    world.must(Action::Scale { service: service_name("chat"), replicas: 1 });
    world.settle();
    assert_eq!(service(&world).roll_out.phase, RollOutPhase::Complete);
}

/// A disturbance that is planned: no node fails and no worker ends.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    Pass(u64),
    Obey(usize),
    Execute,
    Deploy(u64),
    /// A node is admitted with the label that the service asks for, or without.
    Label(usize, bool),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        2 => prop::sample::select(vec![500, 3_000, 31_000]).prop_map(Disturbance::Pass),
        4 => (0..NODES).prop_map(Disturbance::Obey),
        6 => Just(Disturbance::Execute),
        1 => (100..300_u64).prop_map(Disturbance::Deploy),
        // The last node always has it, so that each replica has a place.
        1 => (0..NODES - 1, any::<bool>()).prop_map(|(node, has)| Disturbance::Label(node, has)),
    ]
}

const NODES: usize = 3;

fn labelled(node: usize, has: bool) -> NodeSpec {
    let words: &[&str] = if has { &["label=disk:ssd"] } else { &[] };
    parse_node(&format!("node-{node}"), words)
}

fn disturb(world: &mut World, budgeted: &ServiceManifest, disturbance: Disturbance) {
    match disturbance {
        Disturbance::Pass(ms) => world.pass(ms),
        Disturbance::Obey(node) => {
            let name: NodeName = format!("node-{node}").parse().unwrap();
            let spec = world.specs[&name].clone();
            world.obey_node(&spec);
        }
        Disturbance::Execute => drop(world.execute()),
        Disturbance::Deploy(memory) => {
            let mut next = budgeted.clone();
            next.resources.memory_bytes = memory << 20;
            world.approve(deploy(next));
        }
        Disturbance::Label(node, has) => {
            let spec = labelled(node, has);
            world.specs.insert(spec.admission.name.clone(), spec.clone());
            world.approve(Change::AdmitNode(Box::new(spec.admission)));
        }
    }
    world.heartbeat_all();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Roll-outs, moves for spread and drains of nodes take no more replicas away than the budget.
    #[test]
    fn planned_work_keeps_within_the_budget(
        (desired, extra, budget, ready) in (1..4_u32, 0..2_u32, 0..3_u32, prop::sample::select(vec![0, 5])),
        disturbances in prop::collection::vec(disturbance(), 1..80),
    ) {
        let mut world = World::new(&(0..NODES).map(|node| labelled(node, true)).collect::<Vec<_>>());
        world.share_model("minilm", 50 << 20);
        let mut budgeted = manifest("chat", 0, desired + extra, 300, 100);
        budgeted.placement.node_selector.insert("disk".into(), "ssd".into());
        (budgeted.rollout.max_unavailable, budgeted.rollout.ready_seconds) = (budget, ready);
        world.approve(deploy(budgeted.clone()));
        world.must(Action::Scale { service: service_name("chat"), replicas: desired });
        world.settle();
        world.pass(10_000);
        for disturbance in disturbances {
            disturb(&mut world, &budgeted, disturbance);
            let view = service_view(world.view(), &service_name("chat")).unwrap();
            prop_assert!(view.ready + budget >= desired, "{:?} leaves {}", disturbance, view.ready);
        }
        // Undisturbed, every roll-out that has room beside its replicas, or may take one away, ends.
        for _ in 0..120 {
            world.execute();
            world.obey();
            world.pass(1_000);
        }
        let is_stuck = budget == 0 && extra == 0;
        prop_assert!(is_stuck || service(&world).roll_out == RollOut::default(), "{:?}", world.plan());
    }
}

//! Tests of halts in the plan and its explanations: no covered slot is ordered, and the reason is shown.

use crate::common::*;
use human_chain::{describe_halt, lift};
use protocol::Digest;
use protocol::halt::{Halt, HaltScope};
use scheduler::*;

/// Returns the signing key of a member.
fn key_of(world: &World, who: &str) -> protocol::PublicKey {
    let state = world.cluster.circle_state().unwrap();
    state.member(&member(who)).unwrap().keys.ed25519
}

/// Makes alice halt this, and the leader know it. Signatures are the nodes' and the replicas' concern.
pub(crate) fn halt(world: &mut World, scope: HaltScope) -> Halt {
    let halt = Halt {
        circle: world.cluster.circle_id().unwrap(),
        member: member("alice"),
        signer: key_of(world, "alice"),
        scope,
        reason: "smoke".into(),
        issued_at: world.now,
        nonce: Digest::of(b"nonce"),
    };
    world.observed.note_halts(vec![halt.clone()]);
    halt
}

/// Lets the nodes end what a halt covers, as their agents do.
fn released(world: &mut World) {
    for spec in world.specs.clone().into_values() {
        let id = spec.admission.id;
        let mut reports = Vec::new();
        for order in desired_for(&world.cluster, id).into_iter().flat_map(|part| part.orders) {
            let halted = world.view().halt_on(&order.service, &spec.admission).is_some();
            let state =
                if halted { protocol::agent::SlotState::Released } else { protocol::agent::SlotState::Ready };
            reports.push(report(&order, state, ""));
        }
        world.reports.insert(id, reports);
        world.heartbeat(spec.admission.name.as_str());
    }
}

fn settled(world: &mut World) {
    for _ in 0..50 {
        released(world);
        if world.execute().is_empty() {
            return;
        }
    }
    panic!("never settles: {:?}", world.plan());
}

fn answer(world: &World, subject: &str) -> protocol::api::Why {
    why(world.view(), &subject.parse().unwrap()).unwrap()
}

/// The positive control is the same cluster before the halt and after its lift.
#[test]
fn a_halted_service_is_not_ordered_and_the_reason_is_shown() {
    for scope in [HaltScope::Service(service_name("embed")), HaltScope::Circle] {
        let mut world = running();
        assert_eq!(world.placements("embed").len(), 1);
        let halted = halt(&mut world, scope);
        settled(&mut world);
        assert!(world.placements("embed").is_empty(), "its node released it");
        let plan = world.plan();
        assert!(plan.is_empty(), "nothing fights with the halt: {plan:?}");
        assert_eq!(plan.waiting[0].cause, describe_halt(&halted));
        let why = answer(&world, "embed");
        let text = format!(
            "0 of 1 replica of embed is ready; halted by alice: \"smoke\" (halt {})",
            halted.id().short()
        );
        assert_eq!(why.answer, text);
        let remedy = format!("lift the halt by a vote: quorate lift {}", halted.id().short());
        assert_eq!(why.remedy, Some(remedy.clone()));
        assert_eq!(answer(&world, "embed/0").remedy, Some(remedy));
        world.observed.note_halts(vec![]);
        world.settle();
        assert_eq!(world.placements("embed").len(), 1, "the lifted service runs again");
    }
}

#[test]
fn a_halted_node_or_region_gets_nothing_and_its_work_moves_elsewhere() {
    let mut specs = [node("node-1", 4000, 4096), node("node-2", 4000, 4096)];
    specs[1].admission.region = "oslo".into();
    let mut world = World::new(&specs);
    world.share_model("minilm", 90 << 20);
    world.approve(deploy(manifest("embed", 2, 3, 1000, 128)));
    world.settle();
    assert_eq!(world.placements("embed").len(), 2);
    for scope in [HaltScope::Node("node-2".parse().unwrap()), HaltScope::Region("oslo".into())] {
        let mut world = world.clone();
        let halted = halt(&mut world, scope);
        settled(&mut world);
        let placements = world.placements("embed");
        assert!(
            placements.len() == 2 && placements.iter().all(|slot| slot.ends_with("@node-1")),
            "{placements:?}"
        );
        let lines = answer(&world, "embed/0").reasons;
        let expected = format!("node-2: is {}", describe_halt(&halted));
        assert!(lines.iter().any(|line| line.starts_with(&expected)), "{lines:?}");
    }
}

#[test]
fn a_service_that_only_halted_nodes_could_take_waits_for_a_lift() {
    let mut world = running();
    let halted = halt(&mut world, HaltScope::Node("node-1".parse().unwrap()));
    let other = Halt { scope: HaltScope::Node("node-2".parse().unwrap()), ..halted.clone() };
    world.observed.note_halts(vec![halted.clone(), other]);
    settled(&mut world);
    assert!(world.placements("embed").is_empty() && world.plan().is_empty());
    let why = answer(&world, "embed");
    assert!(why.answer.ends_with("1 wait: 0 of 2 nodes are feasible"), "{}", why.answer);
    let remedy = why.remedy.unwrap();
    assert_eq!(remedy, format!("lift the halt of node-1: quorate lift {}", halted.id().short()));
}

#[test]
fn status_names_each_halt_that_stands() {
    let mut world = running();
    let leader = || LeaderView { leader: None, silent: None };
    let before = status(world.view(), leader()).findings.len();
    let halted = halt(&mut world, HaltScope::Region("oslo".into()));
    let found = status(world.view(), leader());
    assert_eq!(found.findings.len(), before + 1);
    assert_eq!(found.findings[0].message, format!("the region \"oslo\" is {}", describe_halt(&halted)));
    assert_eq!(found.findings[0].next, format!("quorate lift {}", halted.id().short()));
    assert!(!found.healthy, "what a member stopped is not well");
    let many = (0_u8..20).map(|nonce| Halt { nonce: Digest([nonce; 32]), ..halted.clone() }).collect();
    world.observed.note_halts(many);
    let found = status(world.view(), leader()).findings;
    assert_eq!(found[16].message, "4 more halts stand");
    world.observed.note_halts(vec![]);
    assert_eq!(status(world.view(), leader()).findings.len(), before);
}

#[test]
fn a_lift_is_decided_like_any_sensitive_change() {
    let mut world = running();
    let halted = halt(&mut world, HaltScope::Circle);
    world.approve(lift(vec![halted.clone()]));
    let state = world.cluster.circle_state().unwrap();
    assert!(state.lifted(&halted.id()).is_some());
    assert!(!human_chain::halt_stands(state, &halted.id(), &halted));
    let event = world.cluster.audit().last(20).find(|event| event.action == "propose").unwrap();
    assert!(world.cluster.audit().last(20).any(|event| event.detail == "lift 1 halt"), "{event:?}");
    assert_eq!(
        Cluster::from_snapshot(&world.cluster.to_snapshot()).unwrap().digest(),
        world.cluster.digest()
    );
}

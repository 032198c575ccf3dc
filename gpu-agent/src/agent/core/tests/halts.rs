//! Tests of halts in the decision core: what ends, what is refused, and what continues beside it.

use super::*;
use crate::agent::core::{halt_on, halted_slots};
use human_chain::{check_halt, lift};
use protocol::error_code;
use protocol::halt::{HaltScope, SignedHalt};

impl Scene {
    pub(super) fn halt(&mut self, scope: HaltScope, number: u64) -> SignedHalt {
        let signed = self.world.halt(0, scope, number);
        let verified = check_halt(&self.world.state, signed.clone()).unwrap();
        assert_eq!(self.halts.accept(verified), Ok(true));
        signed
    }

    /// Returns the slots that must end now.
    fn halted(&self) -> Vec<u32> {
        let slots = halted_slots(&self.halts, &self.world.state, self.facts.id, self.running.keys());
        assert!(slots.iter().all(|(_, refusal)| refusal.code == error_code::HALTED));
        slots.into_iter().map(|(key, _)| key.slot.0).collect()
    }
}

fn service_scope() -> HaltScope {
    HaltScope::Service("chat".parse().unwrap())
}

/// The attack: control orders what a member has halted. The positive control is the same order before the
/// halt, and after its lift.
#[test]
fn an_order_under_a_halt_is_refused() {
    for scope in [
        service_scope(),
        HaltScope::Node("node-1".parse().unwrap()),
        HaltScope::Region("here".into()),
        HaltScope::Circle,
    ] {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        let order = scene.order(&bundle, 0, 1);
        let wanted = desired(&bundle, vec![order.clone()], &[]);
        assert_eq!(scene.names(&wanted), ["accept 0@1"], "before the halt");
        let signed = scene.halt(scope.clone(), 1);
        assert_eq!(scene.names(&wanted), ["refuse 0@1 halted"], "{scope:?}");
        assert_eq!(scene.verdict(&bundle, &order), "halted", "nor by hand");
        scene.world.decide(lift(vec![signed.halt]));
        assert_eq!(scene.names(&wanted), ["accept 0@1"], "{scope:?} is lifted");
    }
}

#[test]
fn an_order_beside_a_halt_is_accepted() {
    for scope in [
        HaltScope::Service("other".parse().unwrap()),
        HaltScope::Node("other".parse().unwrap()),
        HaltScope::Region("there".into()),
    ] {
        let (mut scene, bundle) = Scene::deployed(|_| {});
        let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
        scene.halt(scope.clone(), 1);
        assert_eq!(scene.names(&wanted), ["accept 0@1"], "{scope:?}");
    }
}

#[test]
fn a_running_slot_under_a_halt_is_killed_then_released_and_never_starts_again() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1), scene.order(&bundle, 1, 1)], &[]);
    scene.settle(&wanted);
    assert_eq!(scene.halted(), [] as [u32; 0]);
    let signed = scene.halt(service_scope(), 1);
    assert_eq!(scene.halted(), [0, 1]);
    assert_eq!(scene.names(&wanted), [] as [&str; 0], "the plan leaves what is killed alone");
    // Control is gone, or names other slots: what runs is killed all the same.
    let nothing = Desired { assignments: vec![], routes: None, jobs: vec![] };
    assert_eq!(scene.names(&nothing), [] as [&str; 0]);
    scene.end(&key(0));
    scene.end(&key(1));
    assert_eq!(scene.halted(), [] as [u32; 0]);
    assert_eq!(scene.names(&wanted), [] as [&str; 0], "both are released");
    let newer = desired(&bundle, vec![scene.order(&bundle, 0, 2)], &[]);
    assert_eq!(scene.names(&newer), ["refuse 0@2 halted", "forget 1"]);
    scene.world.decide(lift(vec![signed.halt]));
    assert_eq!(scene.names(&wanted), [] as [&str; 0], "an order that was released never starts again");
    assert_eq!(scene.names(&newer), ["accept 0@2", "forget 1"], "a new one does");
}

/// A crash between the halt and the end of its slots: the order is still held, and nothing runs.
#[test]
fn a_held_order_under_a_halt_is_released_and_not_started() {
    let (mut scene, bundle) = Scene::deployed(|_| {});
    let wanted = desired(&bundle, vec![scene.order(&bundle, 0, 1)], &[]);
    let accepts = scene.plan(&wanted);
    scene.perform(accepts);
    assert_eq!(scene.names(&wanted), ["start 0"], "the positive control");
    scene.halt(HaltScope::Circle, 1);
    assert_eq!(scene.names(&wanted), ["release 0"]);
    scene.settle(&wanted);
    assert!(scene.running.is_empty());
}

#[test]
fn a_halt_binds_admitted_nodes_alone() {
    let (mut scene, _) = Scene::deployed(|_| {});
    scene.halt(HaltScope::Circle, 1);
    let chat = "chat".parse().unwrap();
    assert!(halt_on(&scene.halts, &scene.world.state, scene.facts.id, &chat).is_some());
    scene.world.decide(Change::RemoveNode { node: "node-1".parse().unwrap() });
    assert_eq!(halt_on(&scene.halts, &scene.world.state, scene.facts.id, &chat), None);
}

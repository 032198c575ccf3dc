//! Tests of orders: a node accepts only orders for its own slots of approved services.

use crate::samples::full_service;
use crate::support::{
    NOW, check, circle, deploy, enact, forget, key, name, node, order, policy, retire, sign_order,
    try_propose,
};
use human_chain::{
    Approved, ChainError, CircleState, FENCE_LEAP_MAX, SlotGrant, check_order, placement_allows,
};
use proptest::prelude::*;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{Change, NodeAdmission, NodeRole};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::manifest::{Manifest, OnFailure, ServiceManifest};
use protocol::order::{SignedOrder, SlotOrder};
use protocol::{Digest, Fence, Millis, NodeId, SlotIndex};
use std::sync::LazyLock;

fn deployed() -> CircleState {
    let mut state = circle();
    enact(&mut state, deploy(4), &["alice", "bob"]);
    state
}

fn n1() -> NodeId {
    NodeId(key("n1"))
}

/// Alters a sound order before control signs it, and checks it as n1, which accepted fence 4 before.
fn ordered(case: &str, expected: &str, alter: impl FnOnce(&mut SlotOrder)) {
    let state = deployed();
    let mut order = order(&state);
    order.fence = Fence::new(1, 5);
    alter(&mut order);
    let signed = sign_order(order, "control");
    check(case, check_order(&state, &signed, n1(), Some(Fence::new(1, 4)), NOW), expected);
}

#[test]
fn an_order_grants_one_slot() {
    let state = deployed();
    let signed = sign_order(order(&state), "control");
    let grant = check_order(&state, &signed, n1(), None, NOW).expect("sound");
    let service = state.service(&name("embed")).expect("approved");
    assert_eq!((grant.certificate_digest(), grant.proposal()), (service.certificate, service.proposal));
    let grant = grant.into_inner();
    assert_eq!((grant.slot, grant.fence, grant.node), (SlotIndex(0), Fence::new(1, 1), n1()));
    assert_eq!((grant.service, grant.certificate), (service.manifest.clone(), service.certificate));
}

#[test]
fn an_order_is_bounded_by_its_envelope() {
    ordered("sound", "approved", |_| {});
    ordered("the last slot", "approved", |o| o.slot = SlotIndex(3));
    ordered("one slot too many", "order-mismatch: no such slot", |o| o.slot = SlotIndex(4));
    ordered("another circle", "order-mismatch: another circle", |o| o.circle.0.0[0] ^= 1);
    ordered("another node", "order-mismatch: for another node", |o| o.node = NodeId(key("n2")));
    ordered("another certificate", "order-not-approved: not the one in force", |o| o.certificate.0[0] ^= 1);
    ordered("another service", "order-not-approved: no certificate approves", |o| o.service = name("other"));
    ordered("a GPU that was not asked for", "order-mismatch: its GPUs", |o| o.gpus = vec![0]);
    ordered("a higher fence", "approved", |o| o.fence = Fence::new(1, 9));
    ordered("the same fence", "order-replayed: fence 1.4, not above 1.4", |o| o.fence = Fence::new(1, 4));
    ordered("a lower fence", "order-replayed: fence 1.3, not above 1.4", |o| o.fence = Fence::new(1, 3));
}

/// Attack: one order with the highest fence of all, after which no honest order would pass.
#[test]
fn a_fence_that_leaps_blocks_no_slot() {
    let mut state = deployed();
    for (case, fence, expected) in [
        (
            "the highest of all",
            Fence::new(u64::MAX, u64::MAX),
            "order-mismatch: not of the certificate in force",
        ),
        ("a version to come", Fence::new(2, 1), "order-mismatch: not of the certificate in force"),
        ("the highest count", Fence::new(1, u64::MAX), "order-mismatch: does not go on"),
        ("one count too far", Fence::new(1, 4 + FENCE_LEAP_MAX + 2), "order-mismatch: does not go on"),
        ("as far as allowed", Fence::new(1, 4 + FENCE_LEAP_MAX + 1), "approved"),
    ] {
        ordered(case, expected, |o| o.fence = fence);
    }
    let zero = sign_order(SlotOrder { fence: Fence::new(1, 0), ..order(&state) }, "control");
    check("no count", check_order(&state, &zero, n1(), None, NOW), "order-mismatch: does not go on");
    // The first order under the next certificate is higher than any under this one.
    let farthest = Some(Fence::new(1, u64::MAX));
    let honest = sign_order(order(&state), "control");
    check("blocked", check_order(&state, &honest, n1(), farthest, NOW), "order-replayed");
    enact(&mut state, deploy(3), &["alice", "bob"]);
    let honest = sign_order(order(&state), "control");
    check("free again", check_order(&state, &honest, n1(), farthest, NOW), "approved");
}

#[test]
fn only_control_signs_orders() {
    let state = deployed();
    let sound = sign_order(order(&state), "control");
    let refused = |case: &str, signed: &SignedOrder| {
        check(case, check_order(&state, signed, n1(), None, NOW), "order-signature-invalid");
    };
    refused("an unknown key", &sign_order(order(&state), "mallory"));
    refused("the node itself", &sign_order(order(&state), "n1"));
    let mut named = sign_order(order(&state), "mallory");
    named.signer = key("control");
    refused("an unknown key in control's name", &named);
    let mut altered = sound.clone();
    altered.order.slot = SlotIndex(1);
    refused("altered", &altered);
    let mut unsigned = sound.clone();
    unsigned.signature.0 = [0; 64];
    refused("unsigned", &unsigned);
}

#[test]
fn every_bit_of_an_order_counts() {
    let state = deployed();
    let bytes = to_bytes(&sign_order(order(&state), "control"));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(signed) = from_bytes::<SignedOrder>(&flipped, 4096) else { continue };
        assert!(check_order(&state, &signed, n1(), None, NOW).is_err(), "bit {bit}");
    }
}

#[test]
fn an_order_ends_with_its_approval() {
    let mut state = deployed();
    let old = sign_order(order(&state), "control");
    enact(&mut state, deploy(2), &["alice", "bob"]);
    check(
        "superseded",
        check_order(&state, &old, n1(), None, NOW),
        "order-not-approved: not the one in force",
    );
    let new = sign_order(order(&state), "control");
    check("in force", check_order(&state, &new, n1(), None, NOW), "approved");
    enact(&mut state, retire("embed"), &["alice", "bob"]);
    check("retired", check_order(&state, &new, n1(), None, NOW), "order-not-approved: is retired");
    let members = state.members().cloned().collect();
    let rules = policy("3 of (alice, bob, carol)", "2 of (alice, bob, carol)");
    let mut state = deployed();
    let kept = sign_order(order(&state), "control");
    let change = Change::SetMembers { members, policy: rules, proofs: [].into() };
    enact(&mut state, change, &["alice", "bob"]);
    check("a new epoch leaves approvals in force", check_order(&state, &kept, n1(), None, NOW), "approved");
}

/// Returns the same deployment, which lets the service return to the approval before.
fn deploy_returning(replicas_max: u32) -> Change {
    let Change::Deploy(mut manifest) = deploy(replicas_max) else { panic!("a deployment") };
    let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
    service.rollout.on_failure = OnFailure::Return;
    Change::Deploy(manifest)
}

/// Attack: control runs an approval of the past, which the one in force replaced. The positive control is the
/// same order under a certificate that names this approval to return to.
#[test]
fn a_return_goes_to_the_approval_that_the_certificate_names_alone() {
    const OTHER: &str = "order-not-approved: not the one in force, nor the one it returns to";
    let mut state = deployed();
    let first = order(&state);
    enact(&mut state, deploy(3), &["alice", "bob"]);
    let second = order(&state);
    let returned = |state: &CircleState, to: &SlotOrder, fence: Fence| {
        let order = SlotOrder { certificate: to.certificate, fence, ..order(state) };
        check_order(state, &sign_order(order, "control"), n1(), None, NOW)
    };
    check("its certificate says hold", returned(&state, &first, Fence::new(2, 1)), OTHER);
    enact(&mut state, deploy_returning(2), &["alice", "bob"]);
    check("the approval before", returned(&state, &second, Fence::new(3, 1)), "approved");
    check("two approvals back", returned(&state, &first, Fence::new(3, 1)), OTHER);
    let old_fence = "order-mismatch: not of the certificate in force";
    check("under a fence of its own", returned(&state, &second, Fence::new(2, 9)), old_fence);
    let grant = returned(&state, &second, Fence::new(3, 1)).expect("approved").into_inner();
    assert_eq!((grant.service.replicas.max, grant.certificate), (3, second.certificate), "its envelope");
    let third = order(&state);
    let outside = SlotOrder { slot: SlotIndex(2), ..third.clone() };
    check("outside the envelope in force", returned_as(&state, outside), "order-mismatch: no such slot");
    let inside = SlotOrder { slot: SlotIndex(2), certificate: second.certificate, ..third };
    check("inside the envelope before", returned_as(&state, inside), "approved");
    // The next certificate ends the return, and names the one that it replaces.
    enact(&mut state, deploy_returning(5), &["alice", "bob"]);
    check("named no more", returned(&state, &second, Fence::new(4, 1)), OTHER);
    enact(&mut state, retire("embed"), &["alice", "bob"]);
    enact(&mut state, deploy_returning(5), &["alice", "bob"]);
    assert_eq!(state.service(&name("embed")).and_then(|known| known.before.clone()), None, "it was retired");
}

fn returned_as(state: &CircleState, order: SlotOrder) -> Result<Approved<SlotGrant>, ChainError> {
    check_order(state, &sign_order(order, "control"), n1(), None, NOW)
}

#[test]
fn a_return_ends_with_either_approval_and_keeps_its_model() {
    let until = Millis(NOW.0 + 1000);
    let with_end = |change: Change| {
        let Change::Deploy(mut manifest) = change else { panic!("a deployment") };
        let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
        service.valid_until = Some(until);
        Change::Deploy(manifest)
    };
    for (case, first, second) in [
        ("the one before ends", with_end(deploy(4)), deploy_returning(4)),
        ("the one in force ends", deploy(4), with_end(deploy_returning(4))),
    ] {
        let mut state = circle();
        enact(&mut state, first, &["alice", "bob"]);
        let earlier = order(&state).certificate;
        enact(&mut state, second, &["alice", "bob"]);
        let signed = sign_order(SlotOrder { certificate: earlier, ..order(&state) }, "control");
        let at = |now| check_order(&state, &signed, n1(), None, now);
        check(case, at(until.plus(CLOCK_GRACE_MS)), "approved");
        check(case, at(until.plus(CLOCK_GRACE_MS + 1)), "order-not-approved: the approval has ended");
    }
    let mut state = deployed();
    let mut other = deploy_returning(4);
    let Change::Deploy(manifest) = &mut other else { panic!("a deployment") };
    let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
    (service.model.name, service.model.root.0) = (name("other"), Digest::of(b"other"));
    enact(&mut state, other, &["alice", "bob"]);
    check("a model to return to", try_propose(&state, forget("minilm", 0)), "model-in-use");
}

#[test]
fn a_node_must_be_admitted_as_a_worker() {
    let mut state = deployed();
    let order_for = |who: &str, state: &CircleState| {
        let mut order = order(state);
        order.node = NodeId(key(who));
        sign_order(order, "control")
    };
    let check_node = |state: &CircleState, who: &str, expected: &str| {
        let signed = order_for(who, state);
        check(who, check_order(state, &signed, NodeId(key(who)), None, NOW), expected);
    };
    check_node(&state, "n1", "approved");
    check_node(&state, "n2", "order-mismatch: not admitted as a worker");
    check_node(&state, "n4", "node-not-admitted");
    enact(&mut state, Change::AdmitNode(Box::new(node("n4", &[NodeRole::Worker]))), &["alice", "bob"]);
    check_node(&state, "n4", "approved");
    enact(&mut state, Change::RemoveNode { node: name("n1") }, &["alice", "bob"]);
    check_node(&state, "n1", "node-not-admitted");
}

/// Deploys an altered sample service, orders its slot 0 on n1 with these GPUs at this time, and checks the
/// outcome.
fn served(case: &str, expected: &str, gpus: &[u32], now: Millis, alter: impl FnOnce(&mut ServiceManifest)) {
    let mut service = full_service();
    service.egress.clear();
    service.placement.regions.clear();
    service.placement.node_selector.clear();
    alter(&mut service);
    let mut state = circle();
    enact(&mut state, Change::Deploy(Box::new(Manifest::Service(service))), &["alice", "bob"]);
    let certificate = state.service(&name("chat")).expect("approved").certificate;
    let order = SlotOrder { service: name("chat"), certificate, gpus: gpus.to_vec(), ..order(&state) };
    check(case, check_order(&state, &sign_order(order, "control"), n1(), None, now), expected);
}

#[test]
fn an_approval_ends_when_it_says() {
    let until = Millis(NOW.0 + 1000);
    let ends = |s: &mut ServiceManifest| s.valid_until = Some(until);
    served("in time", "approved", &[0, 1], until, ends);
    served("within grace", "approved", &[0, 1], until.plus(CLOCK_GRACE_MS), ends);
    let late = until.plus(CLOCK_GRACE_MS + 1);
    served("over", "order-not-approved: the approval has ended", &[0, 1], late, ends);
    served("without end", "approved", &[0, 1], Millis(u64::MAX), |s| s.valid_until = None);
}

/// The attack: a node's clock is slow, and control orders what has expired. The control shows that the clock
/// alone would start it.
#[test]
fn an_order_issued_after_the_end_of_its_approval_grants_nothing_to_a_slow_clock() {
    let until = Millis(NOW.0 + 1000);
    let mut service = full_service();
    service.valid_until = Some(until);
    service.egress.clear();
    service.placement.regions.clear();
    service.placement.node_selector.clear();
    let mut state = circle();
    enact(&mut state, Change::Deploy(Box::new(Manifest::Service(service))), &["alice", "bob"]);
    let certificate = state.service(&name("chat")).expect("approved").certificate;
    for (issued_at, expected) in [
        (until.plus(CLOCK_GRACE_MS), "approved"),
        (until.plus(CLOCK_GRACE_MS + 1), "order-not-approved: the approval has ended"),
    ] {
        let order =
            SlotOrder { service: name("chat"), certificate, gpus: vec![0, 1], issued_at, ..order(&state) };
        let signed = sign_order(order, "control");
        check("a slow clock", check_order(&state, &signed, n1(), None, NOW), expected);
    }
}

#[test]
fn gpus_are_as_many_as_granted() {
    const GPUS: &str = "order-mismatch: its GPUs";
    let whole = |_: &mut ServiceManifest| {};
    let share = |s: &mut ServiceManifest| {
        (s.resources.gpu_count, s.resources.gpu_share_percent) = (0, 50);
    };
    served("two", "approved", &[0, 7], NOW, whole);
    served("one of two", GPUS, &[0], NOW, whole);
    served("three of two", GPUS, &[0, 1, 2], NOW, whole);
    served("one twice", GPUS, &[1, 1], NOW, whole);
    served("unsorted", GPUS, &[1, 0], NOW, whole);
    served("a share of one", "approved", &[3], NOW, share);
    served("a share of two", GPUS, &[3, 4], NOW, share);
    served("a share of none", GPUS, &[], NOW, share);
}

#[test]
fn a_node_must_be_where_the_envelope_says() {
    const ELSEWHERE: &str = "order-mismatch: excludes this node's region or labels";
    let regions = |regions: &'static [&str]| {
        move |s: &mut ServiceManifest| s.placement.regions = regions.iter().map(ToString::to_string).collect()
    };
    let label = |key: &'static str, value: &'static str| {
        move |s: &mut ServiceManifest| {
            s.placement.node_selector.insert(key.into(), value.into());
        }
    };
    served("here", "approved", &[0, 1], NOW, regions(&["oslo", "ghent"]));
    served("elsewhere", ELSEWHERE, &[0, 1], NOW, regions(&["oslo"]));
    served("label", "approved", &[0, 1], NOW, label("disk", "nvme"));
    served("other value", ELSEWHERE, &[0, 1], NOW, label("disk", "tape"));
    served("other label", ELSEWHERE, &[0, 1], NOW, label("gpu", "h200"));
}

fn labelled(region: &str, labels: &[(String, String)]) -> NodeAdmission {
    let mut node = node("n1", &[NodeRole::Worker]);
    node.region = region.into();
    node.labels = labels.iter().cloned().collect();
    node
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn labels_only_ever_admit_more(
        wanted in prop::collection::btree_map("[ab]", "[xy]", 0..3),
        has in prop::collection::vec(("[abc]".prop_map(String::from), "[xy]".prop_map(String::from)), 0..4),
    ) {
        let mut placement = full_service().placement;
        placement.regions.clear();
        placement.node_selector = wanted.clone();
        let node = labelled("ghent", &has);
        let expected = wanted.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        prop_assert_eq!(placement_allows(&placement, &node), expected);
    }

    #[test]
    fn fences_only_rise(last in prop::option::of(0u64..6), fence in 1u64..6) {
        static STATE: LazyLock<CircleState> = LazyLock::new(deployed);
        let state: &CircleState = &STATE;
        let order = SlotOrder { fence: Fence::new(1, fence), ..order(state) };
        let seen = last.map(|count| Fence::new(1, count));
        let outcome = check_order(state, &sign_order(order, "control"), n1(), seen, NOW);
        prop_assert_eq!(outcome.is_ok(), last.is_none_or(|last| fence > last));
    }
}

#[test]
fn a_digest_of_nothing_approves_nothing() {
    let state = circle();
    let mut order = order(&state);
    assert_eq!(order.certificate, Digest([0; 32]));
    let signed = sign_order(order.clone(), "control");
    check(
        "nothing runs",
        check_order(&state, &signed, n1(), None, NOW),
        "order-not-approved: no certificate",
    );
    order.service = name("n1");
    check(
        "a node's name",
        check_order(&state, &sign_order(order, "control"), n1(), None, NOW),
        "order-not-approved",
    );
}

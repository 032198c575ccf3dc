//! Tests of the evidence between nodes of a gang: a node that belongs to none of its slots lets two of its
//! nodes meet, and no order of a peer can be altered.

use crate::jobs::{BOTH, approve_job, gang_orders, n1, sign_order};
use crate::samples::full_job;
use crate::support::{HOUR, NOW, check, circle, deploy, enact, key, name, node, retire, suspend};
use human_chain::{ChainError, CircleState, FENCE_LEAP_MAX, check_gang, check_job_order, check_meeting};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{Change, NodeRole};
use protocol::job::{JobOrder, SignedJobOrder, SlotRanks};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, Fence, NodeId, SlotIndex};

fn n3() -> NodeId {
    NodeId(key("n3"))
}

/// Returns a circle with two workers and the job in force.
fn state_of_two_workers() -> CircleState {
    let mut state = circle();
    enact(&mut state, Change::AdmitNode(Box::new(node("n3", &[NodeRole::Worker]))), &BOTH);
    approve_job(&mut state, full_job());
    state
}

/// Returns the order of the dialling node, which has the last ranks, and one of the other node.
fn pair(state: &CircleState) -> (JobOrder, JobOrder) {
    let mut orders = gang_orders(state);
    (orders.pop().expect("four"), orders.swap_remove(0))
}

fn met(
    state: &CircleState,
    own: JobOrder,
    peer: JobOrder,
    signers: [&str; 2],
    from: NodeId,
) -> Result<NodeId, ChainError> {
    check_meeting(state, &sign_order(own, signers[0]), &sign_order(peer, signers[1]), from)
}

type AlterPair = fn(&mut JobOrder, &mut JobOrder);

/// Attacks of a node that dials, with the orders of a hostile control: each alters a sound pair. The first
/// four are sound.
const PAIRS: [(&str, AlterPair); 22] = [
    ("approved", |_, _| {}),
    ("approved", |own, _| own.fence = Fence::new(1, FENCE_LEAP_MAX + 9)),
    ("approved", |own, peer| {
        own.issued_at = NOW.plus(HOUR + CLOCK_GRACE_MS);
        peer.issued_at = own.issued_at;
    }),
    ("approved", |own, peer| (own.attempt, peer.attempt) = (u32::MAX, u32::MAX)),
    ("order-mismatch: not those of the dialling node", |own, _| own.node = n3()),
    ("order-mismatch: not those of the dialling node", |_, peer| peer.node = n1()),
    ("order-mismatch: not those of the dialling node", |own, peer| {
        std::mem::swap(&mut own.node, &mut peer.node);
    }),
    ("order-mismatch: another submission or attempt", |own, _| own.attempt = 2),
    ("order-mismatch: another submission or attempt", |_, peer| peer.attempt = 2),
    ("order-mismatch: another submission or attempt", |_, peer| peer.certificate.0[0] ^= 1),
    ("order-mismatch: another submission or attempt", |_, peer| {
        peer.submission.submission.idempotency = Digest::of(b"another submission of the same job");
    }),
    ("order-mismatch: to another certificate", |own, _| own.certificate.0[0] ^= 1),
    ("order-mismatch: another circle", |own, _| own.circle.0.0[0] ^= 1),
    ("order-mismatch: another circle", |_, peer| peer.circle.0.0[0] ^= 1),
    ("order-mismatch: no such slot", |own, _| own.slot = SlotIndex(6)),
    ("order-mismatch: no such slot", |_, peer| peer.slot = SlotIndex(6)),
    ("order-mismatch: its ranks are none", |_, peer| peer.ranks = SlotRanks { first: 7, count: 2 }),
    ("order-mismatch: its GPUs", |_, peer| peer.gpus.push("GPU-e".into())),
    ("order-mismatch: not admitted as a worker", |_, peer| peer.node = NodeId(key("n2"))),
    ("node-not-admitted", |_, peer| peer.node = NodeId(key("n9"))),
    ("submission-expired", |own, _| own.issued_at = NOW.plus(HOUR + CLOCK_GRACE_MS + 1)),
    ("submission-expired", |_, peer| peer.issued_at = NOW.plus(HOUR + CLOCK_GRACE_MS + 1)),
];

#[test]
fn attack_a_node_meets_only_the_peers_of_its_own_attempt() {
    let state = state_of_two_workers();
    for (number, (expected, alter)) in PAIRS.into_iter().enumerate() {
        let (mut own, mut peer) = pair(&state);
        alter(&mut own, &mut peer);
        let outcome = met(&state, own, peer, ["control"; 2], n1());
        check(&format!("pair {number}"), outcome, expected);
    }
    let (own, peer) = pair(&state);
    assert_eq!(met(&state, own, peer, ["control"; 2], n1()).ok(), Some(n3()), "the control");
}

/// Attack: a node shows the orders of others, or orders that it signed itself.
#[test]
fn attack_a_meeting_takes_the_signature_of_control_and_the_key_of_the_dialler() {
    let state = state_of_two_workers();
    let judge = |case: &str, signers: [&str; 2], from: NodeId, expected: &str| {
        let (own, peer) = pair(&state);
        check(case, met(&state, own, peer, signers, from), expected);
    };
    judge("sound", ["control"; 2], n1(), "approved");
    judge("its own by itself", ["n1", "control"], n1(), "order-signature-invalid");
    judge("the peer's by itself", ["control", "n1"], n1(), "order-signature-invalid");
    judge("a node of neither order", ["control"; 2], NodeId(key("n2")), "order-mismatch: the dialling node");
    judge("the peer", ["control"; 2], n3(), "order-mismatch: the dialling node");
    let (own, peer) = pair(&state);
    check("the other way", met(&state, peer, own, ["control"; 2], n3()), "approved");
}

/// A meeting ends with the approval of its job, and with the admission of its nodes.
#[test]
fn a_meeting_needs_the_job_and_both_nodes_in_force() {
    let sound = state_of_two_workers();
    let (own, peer) = pair(&sound);
    let judge = |case: &str, state: &CircleState, expected: &str| {
        check(case, met(state, own.clone(), peer.clone(), ["control"; 2], n1()), expected);
    };
    judge("in force", &sound, "approved");
    let mut other = sound.clone();
    enact(&mut other, deploy(4), &BOTH);
    enact(&mut other, suspend("carol"), &BOTH);
    judge("after other votes", &other, "approved");
    let mut retired = sound.clone();
    enact(&mut retired, retire("train"), &BOTH);
    judge("a retired job", &retired, "submission-mismatch: is retired");
    for (who, case) in [("n1", "the dialling node is gone"), ("n3", "the peer is gone")] {
        let mut state = sound.clone();
        enact(&mut state, Change::RemoveNode { node: name(who) }, &BOTH);
        judge(case, &state, "node-not-admitted");
    }
}

/// Attack: a bit of a peer's order is flipped on the way. The order as it was is the control.
#[test]
fn attack_no_bit_of_a_peers_order_can_be_flipped() {
    let state = state_of_two_workers();
    let (own, peer) = pair(&state);
    let (own, bytes) = (sign_order(own, "control"), to_bytes(&sign_order(peer, "control")));
    let grant = check_job_order(&state, &own, n1(), None, NOW).expect("sound").into_inner();
    let read = |bytes: &[u8]| from_bytes::<SignedJobOrder>(bytes, 1 << 16).ok();
    let sound = read(&bytes).expect("as it was");
    check("as it was", check_meeting(&state, &own, &sound, n1()), "approved");
    let others = gang_orders(&state).into_iter().skip(1).take(2).map(|order| sign_order(order, "control"));
    let others: Vec<SignedJobOrder> = others.collect();
    let gang = |peer: SignedJobOrder| check_gang(&state, &grant, &[&[peer][..], &others[..]].concat(), NOW);
    check("the gang as it was", gang(sound), "approved");
    let mut parsed = 0;
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let Some(signed) = read(&flipped) else { continue };
        parsed += 1;
        assert!(check_meeting(&state, &own, &signed, n1()).is_err(), "byte {at}");
        assert!(gang(signed).is_err(), "byte {at} in the gang");
    }
    assert!(parsed > 200, "{parsed} of {} altered orders were parsed and judged", bytes.len());
}

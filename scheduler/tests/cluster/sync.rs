//! Size of what a node is sent: its assignments name certificates, and the certificates come in pages.

use crate::common::*;
use human_chain::{CircleState, MemberSecret, propose, sign_genesis, sign_wrap, verify, vote};
use protocol::access::AccessEnvelope;
use protocol::agent::{Assignment, Desired, SyncResponse};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::*;
use protocol::keys::EncryptionKey;
use protocol::limits::{BUNDLE_BYTES_MAX, HISTORY_PAGE_BYTES_MAX, LEASE_MS, MEMBERS_MAX, SYNC_BYTES_MAX};
use protocol::model::Recipient;
use protocol::order::SignedOrder;
use protocol::{Digest, MemberId, PublicKey, Signature};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

/// Number of services that the node runs a slot of.
const SERVICES: usize = 50;

fn members() -> Vec<(MemberId, MemberSecret)> {
    let member = |number: usize| {
        let seed = [u8::try_from(number).unwrap(); 64];
        (format!("member-{number:02}").parse().unwrap(), MemberSecret::generate(&seed))
    };
    (1..=MEMBERS_MAX).map(member).collect()
}

/// Founds a circle in which every member must sign everything.
fn unanimous(members: &[(MemberId, MemberSecret)], node: &NodeSpec) -> SignedGenesis {
    let mut founding = genesis(std::slice::from_ref(node)).genesis;
    founding.access = AccessEnvelope::standard(members.iter().map(|(id, _)| id.clone()));
    founding.members =
        members.iter().map(|(id, secret)| Member { id: id.clone(), keys: secret.public() }).collect();
    let of: Vec<Quorum> = members.iter().map(|(id, _)| Quorum::Member(id.clone())).collect();
    let all = Quorum::Threshold { required: u32::try_from(of.len()).unwrap(), of };
    founding.policy.quorums =
        BTreeMap::from([(ActionClass::Routine, all.clone()), (ActionClass::Sensitive, all)]);
    let signers: Vec<(MemberId, &MemberSecret)> = members.iter().map(|(id, s)| (id.clone(), s)).collect();
    sign_genesis(founding, &signers)
}

/// Applies a command without the fixture's copy of the whole cluster before each.
fn must(world: &mut World, action: Action) {
    let command =
        Command { clocks: world.clocks.clone(), actor: Actor::Scheduler, action, idempotency: None };
    world.log.push(command);
    let index = world.log.len() as u64;
    let reply = apply(&mut world.cluster, index, &world.log[world.log.len() - 1]);
    assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
}

/// Returns a cluster in which one node holds a slot of each service, each approved by 99 members.
fn largest() -> (World, SignedGenesis) {
    let (members, node) = (members(), node("n1", 1_000_000, 1 << 20));
    let founding = unanimous(&members, &node);
    let mut world = World::empty();
    must(&mut world, Action::Found(Box::new(founding.clone())));
    world.specs.insert(node.admission.name.clone(), node.clone());
    world.lead(1);
    let (maker, secret) = &members[0];
    let circle = world.cluster.circle_id().unwrap();
    let signed = |to: Recipient, key: &EncryptionKey| {
        sign_wrap(secret, maker.clone(), circle, key, wrap("minilm", to))
    };
    let wraps = vec![
        signed(Recipient::Member(maker.clone()), &secret.public().encryption),
        signed(Recipient::Node(node.admission.id), &node.admission.encryption),
    ];
    must(&mut world, Action::RegisterModel { record: Box::new(model("minilm", 1 << 20)), wraps });
    for number in 0..SERVICES {
        let change = deploy(manifest(&format!("service-{number:02}"), 1, 1, 1000, 64));
        let nonce = Digest::of(&number.to_le_bytes());
        let state = world.cluster.circle_state().unwrap();
        let expires = START.plus(3_600_000);
        let proposal = propose(state, change, "test".into(), START, expires, nonce).unwrap();
        must(&mut world, Action::SubmitProposal(Box::new(proposal.clone())));
        for (id, secret) in &members {
            let ballot = vote(secret, id.clone(), proposal.history, &proposal, Choice::Approve, START);
            must(&mut world, Action::CastBallot(Box::new(ballot)));
        }
    }
    world.wait(LEASE_MS + 1000);
    world.heartbeat_all();
    world.execute();
    (world, founding)
}

/// Returns control's answer to a node that has this much of the history; signatures have their real size.
fn answer(world: &World, length: u64) -> SyncResponse {
    let sign = |order| SignedOrder { order, signer: PublicKey([1; 32]), signature: Signature([2; 64]) };
    let assignment = |part: NodeAssignment| Assignment {
        certificate: part.certificate,
        orders: part.orders.into_iter().map(sign).collect(),
        draining: part.draining,
        model: part.model,
        wrap: part.wrap,
    };
    let assignments = desired_for(&world.cluster, node_id("n1")).into_iter().map(assignment).collect();
    SyncResponse {
        now: world.now,
        term: 1,
        lease_ms: LEASE_MS,
        history: world.cluster.circle_state().unwrap().head(),
        governance: history_page(world.cluster.governance_chain(), length, HISTORY_PAGE_BYTES_MAX),
        desired: Some(Desired { assignments, routes: None, jobs: vec![] }),
    }
}

/// The attack is a legal circle of 99 members: with the bundles in it, the answer exceeds what a node reads,
/// and the node would never be sent anything again.
#[test]
fn a_node_of_fifty_services_under_99_ballots_each_is_reached_by_bounded_answers() {
    let (world, founding) = largest();
    let chain = world.cluster.governance_chain();
    assert_eq!(chain.len(), SERVICES);
    let named: usize = desired_for(&world.cluster, node_id("n1"))
        .iter()
        .map(|part| to_bytes(world.cluster.bundle(&part.certificate).unwrap()).len())
        .sum();
    assert!(named > SYNC_BYTES_MAX, "whole bundles are {named} bytes: the attack would succeed");

    let mut state = CircleState::found(&founding, None).unwrap();
    let mut answers = 0;
    loop {
        let bytes = to_bytes(&answer(&world, state.length()));
        assert!(bytes.len() <= SYNC_BYTES_MAX / 8, "{} bytes", bytes.len());
        let read: SyncResponse = from_bytes(&bytes, SYNC_BYTES_MAX).unwrap();
        if read.governance.is_empty() {
            let assignments = read.desired.unwrap().assignments;
            let certificates: BTreeSet<Digest> = assignments.iter().map(|part| part.certificate).collect();
            assert_eq!(certificates.len(), SERVICES);
            let in_force = |part: &Assignment| {
                let order = &part.orders[0].order;
                state.service(&order.service).unwrap().certificate == part.certificate
            };
            assert!(assignments.iter().all(in_force), "the node's own chain has every certificate");
            break;
        }
        for bundle in &read.governance {
            let approved = verify(&state, &bundle.certificate, START).unwrap();
            state.advance(approved).unwrap();
        }
        answers += 1;
        assert!(answers <= SERVICES, "every answer brings the node on");
    }
    assert_eq!(state.length(), SERVICES as u64);
}

/// Ten thousand decisions, every hundredth as large as one can be.
#[test]
fn ten_thousand_decisions_reach_a_node_in_bounded_pages() {
    let mut world = World::new(&[node("n1", 1000, 1024)]);
    world.approve(deploy(manifest("chat", 1, 1, 1000, 64)));
    let sample = world.cluster.governance_chain()[0].clone();
    let decision = |number: usize| {
        let mut bundle = sample.clone();
        bundle.certificate.proposal.nonce = Digest::of(&number.to_le_bytes());
        if number.is_multiple_of(100) {
            let space = BUNDLE_BYTES_MAX - to_bytes(&bundle).len();
            bundle.certificate.proposal.reason = "a".repeat(space);
        }
        bundle
    };
    let chain: Vec<Bundle> = (0..10_000).map(decision).collect();
    let (mut known, mut pages) = (0, 0);
    while known < chain.len() {
        let page = history_page(&chain, known as u64, HISTORY_PAGE_BYTES_MAX);
        let bytes: usize = page.iter().map(|bundle| to_bytes(bundle).len()).sum();
        assert!(bytes <= HISTORY_PAGE_BYTES_MAX, "{bytes} bytes");
        assert_eq!(page, chain[known..known + page.len()]);
        known += page.len();
        pages += 1;
        assert!(pages <= 1000, "every page brings the node on");
    }
    assert!(history_page(&chain, chain.len() as u64, HISTORY_PAGE_BYTES_MAX).is_empty());
    let whole: usize = chain.iter().map(|bundle| to_bytes(bundle).len()).sum();
    assert!(whole > SYNC_BYTES_MAX, "one answer could not hold {whole} bytes");
}

#[test]
fn a_page_holds_one_decision_however_large() {
    let mut world = World::new(&[node("n1", 1000, 1024)]);
    world.approve(deploy(manifest("chat", 1, 1, 1000, 64)));
    world.approve(deploy(manifest("other", 1, 1, 1000, 64)));
    let chain = world.cluster.governance_chain();
    assert_eq!(history_page(chain, 0, usize::MAX).len(), 2);
    assert_eq!(history_page(chain, 0, 10).len(), 1, "a reader always advances");
    assert_eq!(history_page(chain, 1, 10), chain[1..]);
    assert!(history_page(chain, 2, 10).is_empty());
    assert!(history_page(chain, u64::MAX, 10).is_empty());
}

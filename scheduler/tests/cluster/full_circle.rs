//! Circle of maximum size: its commands, its votes and its history fit into the log and into a snapshot.

use crate::common::*;
use human_chain::{MemberSecret, propose, prove_keys, sign_genesis, vote};
use protocol::access::AccessEnvelope;
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::*;
use protocol::limits::{MEMBERS_MAX, NAME_BYTES_MAX, REASON_BYTES_MAX};
use protocol::model::Recipient;
use protocol::{Digest, Fence, MemberId, ReplicaId, SlotIndex};
use scheduler::limits::*;
use scheduler::*;
use std::collections::BTreeMap;

/// Returns a member with a name of the maximum length.
fn person(number: usize) -> (MemberId, MemberSecret) {
    let name = format!("{number:0>width$}", width = NAME_BYTES_MAX);
    (member(&name), MemberSecret::generate(&[number as u8 + 1; 64]))
}

fn roster(people: &BTreeMap<MemberId, MemberSecret>) -> (Vec<Member>, Policy) {
    let of: Vec<Quorum> = people.keys().cloned().map(Quorum::Member).collect();
    let rule = Quorum::Threshold { required: of.len() as u32 / 2 + 1, of };
    let quorums = BTreeMap::from([(ActionClass::Routine, rule.clone()), (ActionClass::Sensitive, rule)]);
    let members = people.iter().map(|(id, secret)| Member { id: id.clone(), keys: secret.public() });
    (members.collect(), Policy { quorums, passkeys: None, veto_seconds: 0, proposer_counts: true })
}

/// Writes a command to the log and applies the entry of the log.
fn write(cluster: &mut Cluster, index: u64, action: Action) -> Reply {
    let (clocks, actor) = (all_at(START), Actor::Scheduler);
    let bytes = to_bytes(&Command { clocks, actor, action, idempotency: None });
    let reply = from_bytes(&apply_bytes(cluster, index, &bytes), 1 << 20).unwrap();
    assert!(!matches!(reply, Reply::Refused { .. }), "{} bytes: {reply:?}", bytes.len());
    reply
}

#[test]
fn a_full_circle_changes_its_members_through_the_log() {
    let mut people: BTreeMap<MemberId, MemberSecret> = (0..MEMBERS_MAX).map(person).collect();
    let mut signed = genesis(&[node("n1", 1000, 1024)]);
    (signed.genesis.members, signed.genesis.policy) = roster(&people);
    signed.genesis.access = AccessEnvelope::standard(people.keys().cloned());
    let founders: Vec<(MemberId, &MemberSecret)> = people.iter().map(|(id, s)| (id.clone(), s)).collect();
    let mut cluster = Cluster::new();
    write(&mut cluster, 1, Action::Found(Box::new(sign_genesis(signed.genesis, &founders))));
    write(&mut cluster, 2, Action::Lead { replica: ReplicaId(1) });

    let leaves = people.keys().next().unwrap().clone();
    let left = people.remove_entry(&leaves).unwrap();
    let (id, new) = person(MEMBERS_MAX);
    let proofs = [(id.clone(), prove_keys(&new, id.clone()).proof)].into();
    people.insert(id, new);
    let (members, policy) = roster(&people);
    let state = cluster.circle_state().unwrap();
    let change = Change::SetMembers { members, policy, proofs };
    let reason = "r".repeat(REASON_BYTES_MAX);
    let proposal = propose(state, change, reason, START, START.plus(1000), Digest::of(b"n")).unwrap();
    people.remove(&member(&format!("{MEMBERS_MAX:0>width$}", width = NAME_BYTES_MAX)));
    people.extend([left]);
    write(&mut cluster, 3, Action::SubmitProposal(Box::new(proposal.clone())));
    let majority = MEMBERS_MAX / 2 + 1;
    for (at, (id, secret)) in people.iter().skip(1).take(majority).enumerate() {
        let ballot = vote(secret, id.clone(), proposal.history, &proposal, Choice::Approve, START);
        let reply = write(&mut cluster, 4 + at as u64, Action::CastBallot(Box::new(ballot)));
        let Reply::Counted { certificate, .. } = reply else { panic!("a vote counts: {reply:?}") };
        assert_eq!(certificate.is_some(), at + 1 == majority, "vote {at}");
    }
    let state = cluster.circle_state().unwrap();
    assert_eq!((state.epoch().0, state.members().count()), (2, MEMBERS_MAX));
    assert!(state.member(&leaves).is_none());
    assert_eq!(Cluster::from_snapshot(&cluster.to_snapshot()), Ok(cluster));
}

#[test]
fn the_largest_step_and_the_largest_wrap_are_within_their_limits() {
    let service: protocol::ServiceName = "s".repeat(NAME_BYTES_MAX).parse().unwrap();
    let name = || SlotName {
        service: service.clone(),
        slot: SlotIndex(u32::MAX),
        fence: Fence::new(u64::MAX, u64::MAX),
    };
    let order = OrderPlan {
        service: service.clone(),
        slot: SlotIndex(u32::MAX),
        fence: Fence::new(u64::MAX, u64::MAX),
        node: node_id("n1"),
        certificate: Digest::of(b"c"),
        gpus: (0..64).map(|at| u32::MAX - at).collect(),
        replaces: Some(name()),
    };
    let step = to_bytes(&Step::Order(order)).len();
    assert!(step <= STEP_BYTES_MAX, "{step}");
    let long = member(&"m".repeat(NAME_BYTES_MAX));
    let mut wrap = World::empty().wrap("minilm", Recipient::Member(long.clone()));
    wrap.maker = long;
    assert!(to_bytes(&wrap).len() <= WRAP_BYTES_MAX, "{}", to_bytes(&wrap).len());
    let token = || "t".repeat(NAME_BYTES_MAX).parse().unwrap();
    let reading = |at| (ReplicaId(u64::MAX - at), WallTime(protocol::Millis(u64::MAX)));
    let clocks: ClockReadings = (0..CLOCK_READINGS_MAX as u64).map(reading).collect();
    let idempotency = Some(IdempotencyKey { token: token(), key: Digest::of(b"key") });
    let frame = Command { clocks, actor: Actor::Token(token()), action: Action::Tick, idempotency };
    let frame = to_bytes(&frame).len();
    assert!(frame <= COMMAND_FRAME_BYTES_MAX / 2, "{frame}");
}

//! Tests of the largest circle: the maximum number of members, with the longest names and the deepest rules.
//! A circle that can be founded can change its members, and the resulting certificates stay within every size
//! limit.

use crate::support::{HOUR, NOW, approve, check, genesis, member, name, secret, set_members, signed};
use human_chain::{
    CircleState, certify, propose, read_bundle, read_certificate, read_genesis, verify, verify_replay, vote,
};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{
    ActionClass, BUNDLE_VERSION, Bundle, Change, Choice, LogEvidence, Policy, Proposal, Quorum, SignedBallot,
};
use protocol::json::JsonCost;
use protocol::limits;
use protocol::{Digest, Epoch, MemberId};
use std::collections::{BTreeMap, BTreeSet};

/// Returns a name of the maximum length.
fn long_name(number: usize) -> String {
    format!("{number:0>width$}", width = limits::NAME_BYTES_MAX)
}

/// Returns a rule with each member under a threshold of its own at every permitted depth, and a majority of
/// all.
fn deepest(members: &[String]) -> Quorum {
    let alone = |part| Quorum::Threshold { required: 1, of: vec![part] };
    let wrapped = |id: &String| (1..limits::QUORUM_DEPTH_MAX).fold(Quorum::Member(name(id)), |p, _| alone(p));
    let required = members.len() as u32 / 2 + 1;
    Quorum::Threshold { required, of: members.iter().map(wrapped).collect() }
}

fn rules(members: &[String]) -> Policy {
    let rule = deepest(members);
    let quorums = BTreeMap::from([(ActionClass::Routine, rule.clone()), (ActionClass::Sensitive, rule)]);
    Policy { quorums, passkeys: None, veto_seconds: 0, proposer_counts: true }
}

fn roster(state: &CircleState, members: &[String]) -> Change {
    set_members(state, members.iter().map(|id| member(id)).collect(), rules(members))
}

fn full_circle() -> (Vec<String>, CircleState) {
    let people: Vec<String> = (0..limits::MEMBERS_MAX).map(long_name).collect();
    let mut genesis = genesis();
    genesis.members = people.iter().map(|id| member(id)).collect();
    genesis.access.grantors = genesis.members.iter().map(|member| member.id.clone()).collect();
    genesis.policy = rules(&people);
    let signed = signed(genesis);
    let bytes = to_bytes(&signed);
    assert!(
        bytes.len() <= limits::ROSTER_BYTES_MAX + limits::MEMBERS_MAX * limits::BALLOT_BYTES_MAX + 16_384
    );
    assert_eq!(read_genesis(&bytes).as_ref(), Ok(&signed));
    (people, CircleState::found(&signed, None).expect("a full circle can be founded"))
}

/// Returns a proposal with the longest reason, made of the characters that take the most bytes in JSON.
fn proposal(state: &CircleState, change: Change) -> Proposal {
    let reason = "\u{1}".repeat(limits::REASON_BYTES_MAX);
    propose(state, change, reason, NOW, NOW.plus(HOUR), Digest::of(b"nonce")).expect("may be asked for")
}

#[test]
fn a_full_circle_replaces_its_members_one_by_one() {
    let (mut people, mut state) = full_circle();
    let mut certificates = Vec::new();
    for round in 0..2 {
        let voters: Vec<String> = people.clone();
        people[round] = long_name(limits::MEMBERS_MAX + round);
        let proposal = proposal(&state, roster(&state, &people));
        let voters: Vec<&str> = voters.iter().map(String::as_str).collect();
        let certificate = approve(&proposal, &voters);
        assert_eq!(certify(&state, &proposal, &certificate.ballots), Ok(certificate.clone()));
        let approved = verify(&state, &certificate, NOW).expect("all members voted for it");
        state.advance(approved).expect("what was just verified applies");
        assert_eq!(state.check_invariants(), Ok(()));
        assert_eq!(state.epoch(), Epoch(2 + round as u64));
        assert_eq!(state.members().count(), limits::MEMBERS_MAX);
        assert!(state.member(&name::<MemberId>(&people[round])).is_some());
        certificates.push(certificate);
    }
    check("used twice", verify_replay(&state, &certificates[0]), "circle-mismatch: was made in epoch 1");
}

#[test]
fn certificates_of_a_full_circle_are_within_every_limit() {
    let (mut people, state) = full_circle();
    let voters = people.clone();
    // Every place for a proof, and every ballot that a certificate can hold.
    for (at, id) in people.iter_mut().take(limits::MEMBER_PROOFS_MAX).enumerate() {
        *id = long_name(limits::MEMBERS_MAX + at);
    }
    let proposal = proposal(&state, roster(&state, &people));
    let voters: BTreeSet<&str> = voters.iter().chain(&people).map(String::as_str).collect();
    let voters: Vec<&str> = voters.into_iter().collect();
    assert_eq!(voters.len(), limits::BALLOTS_MAX);
    let certificate = approve(&proposal, &voters);

    let Change::SetMembers { members, policy, proofs } = &proposal.change else { panic!("a roster") };
    for proof in proofs {
        let bytes = to_bytes(&proof.0).len() + to_bytes(&proof.1).len();
        assert!(bytes <= limits::MEMBER_PROOF_BYTES_MAX, "{bytes}");
    }
    for member in members {
        assert!(to_bytes(member).len() <= limits::MEMBER_BYTES_MAX, "{}", to_bytes(member).len());
    }
    for rule in policy.quorums.values() {
        let bytes = to_bytes(rule).len();
        assert!(bytes <= limits::MEMBERS_MAX * limits::QUORUM_MEMBER_BYTES_MAX, "{bytes}");
    }
    for ballot in &certificate.ballots {
        assert!(to_bytes(ballot).len() <= limits::BALLOT_BYTES_MAX, "{}", to_bytes(ballot).len());
    }
    let whole = to_bytes(&proposal).len();
    let change = to_bytes(&proposal.change).len();
    let most = limits::ROSTER_BYTES_MAX + limits::MEMBER_PROOFS_MAX * limits::MEMBER_PROOF_BYTES_MAX;
    assert!(change <= most, "{change}");
    let frame = whole - change - proposal.reason.len();
    assert!(frame <= limits::PROPOSAL_FRAME_BYTES_MAX, "{frame}");
    let json = serde_json::to_vec(&proposal).expect("a proposal can be written as JSON");
    assert!(json.len() <= limits::API_BODY_BYTES_MAX, "{}", json.len());
    let mut cost = JsonCost::default();
    assert_eq!((cost.add(&json), cost.check()), (Ok(()), Ok(())), "it is read by the control API");
    assert_eq!(from_bytes::<Proposal>(&to_bytes(&proposal), limits::PROPOSAL_BYTES_MAX), Ok(proposal));

    assert_eq!(read_certificate(&to_bytes(&certificate)).as_ref(), Ok(&certificate));
    let log_evidence = Some(LogEvidence { sequence: u64::MAX });
    let bundle = Bundle { version: BUNDLE_VERSION, certificate, log_evidence };
    assert_eq!(read_bundle(&to_bytes(&bundle)), Ok(bundle));
}

#[test]
fn a_minority_of_a_full_circle_changes_nothing() {
    let (mut people, state) = full_circle();
    let voters = people.clone();
    people[0] = long_name(limits::MEMBERS_MAX);
    let proposal = proposal(&state, roster(&state, &people));
    let cast = |id: &String| -> SignedBallot {
        vote(&secret(id), name(id), proposal.history, &proposal, Choice::Approve, NOW)
    };
    let ballots: Vec<SignedBallot> = voters[1..51].iter().map(cast).collect();
    check("49 of 99", certify(&state, &proposal, &ballots[..49]), "quorum-not-reached: 49 approvals");
    check("50 of 99", certify(&state, &proposal, &ballots), "approved");
}

#[test]
fn one_member_more_or_one_threshold_deeper_is_refused() {
    let (people, state) = full_circle();
    let ask = |change| propose(&state, change, String::new(), NOW, NOW.plus(HOUR), Digest::of(b"nonce"));
    let mut crowd = people.clone();
    crowd.push(long_name(limits::MEMBERS_MAX));
    check("100 members", ask(roster(&state, &crowd)), "governance-invalid: 100 members; accepted: 1 to 99");
    let mut deeper = roster(&state, &people);
    if let Change::SetMembers { policy, .. } = &mut deeper {
        let rule = Quorum::Threshold { required: 1, of: vec![deepest(&people)] };
        policy.quorums.insert(ActionClass::Sensitive, rule);
    }
    check("seven deep", ask(deeper), "governance-invalid: policy: is nested deeper than 6");
}

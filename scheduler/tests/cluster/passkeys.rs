//! Tests of ballots by passkey in the cluster: they wait for a hybrid one, and fall with their passkey.

#[path = "../../../human-chain/tests/chain/authenticator.rs"]
#[allow(dead_code, reason = "the tests of human-chain use all of it")]
mod authenticator;
use crate::common::*;
use authenticator::{Authenticator, Ceremony, passkey_policy};
use human_chain::{ballot_challenge, unsigned_ballot};
use protocol::api::ProposalState;
use protocol::governance::{BallotSignature, Change, Choice, Policy, Proposal, SignedBallot};
use protocol::passkey::Passkey;
use scheduler::*;

fn phone(who: &str) -> Authenticator {
    Authenticator::es256(&format!("phone of {who}"))
}

fn set(who: &str, passkeys: Vec<Passkey>) -> Change {
    Change::SetPasskeys { member: member(who), passkeys }
}

/// Returns a cluster in which alice and bob have phones that count for routine changes.
fn with_phones() -> World {
    let mut world = World::new(&[node("n1", 4000, 8192)]);
    let genesis = genesis(&[]).genesis;
    let policy = Policy { passkeys: Some(passkey_policy()), ..genesis.policy };
    world.approve(Change::SetMembers { members: genesis.members, policy, proofs: [].into() });
    for who in ["alice", "bob"] {
        alone(&mut world, who, set(who, vec![phone(who).passkey("phone")]));
    }
    world
}

/// Lets a member decide what is its own.
fn alone(world: &mut World, who: &str, change: Change) {
    let proposal = opened(world, change);
    let ballot = world.ballot(who, &proposal, Choice::Approve);
    assert_eq!(cast(world, ballot), ProposalState::Approved);
}

fn opened(world: &mut World, change: Change) -> Proposal {
    let proposal = world.proposal(change);
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    proposal
}

fn cast(world: &mut World, ballot: SignedBallot) -> ProposalState {
    match world.must(Action::CastBallot(Box::new(ballot))) {
        Reply::Counted { state, .. } => state,
        other => panic!("{other:?}"),
    }
}

fn tapped(world: &World, who: &str, proposal: &Proposal, choice: Choice, counter: u32) -> SignedBallot {
    let ballot = unsigned_ballot(member(who), proposal.history, proposal, choice, world.now);
    let assertion = phone(who).answer(&Ceremony::of(&ballot_challenge(&ballot).0, counter));
    SignedBallot { ballot, signature: BallotSignature::Passkey(assertion) }
}

fn voters(world: &World, proposal: &Proposal) -> Vec<String> {
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    view.ballots.iter().map(|signed| signed.ballot.member.to_string()).collect()
}

fn admit(name: &str) -> Change {
    Change::AdmitNode(Box::new(node(name, 1000, 1024).admission))
}

/// Attack: the passkeys of all members approve, and no member's key does.
#[test]
fn passkeys_alone_leave_a_proposal_open() {
    let mut world = with_phones();
    let wanted = opened(&mut world, admit("n2"));
    for who in ["alice", "bob"] {
        let ballot = tapped(&world, who, &wanted, Choice::Approve, 1);
        assert_eq!(cast(&mut world, ballot), ProposalState::Open, "{who}");
    }
    let again = tapped(&world, "bob", &wanted, Choice::Approve, 2);
    check(&world, vec![("twice", Action::CastBallot(Box::new(again)), "ballot-duplicate")]);
    // Positive control: the same two members decide as soon as one of them signs with its key.
    let with_key = world.ballot("bob", &wanted, Choice::Approve);
    assert_eq!(cast(&mut world, with_key), ProposalState::Approved);
    assert_eq!(voters(&world, &wanted), ["alice", "bob"]);
}

/// Attack: a stolen passkey votes in its member's name; the member's key has the last word.
#[test]
fn a_members_key_replaces_a_vote_by_passkey_and_never_the_reverse() {
    let mut world = with_phones();
    let wanted = opened(&mut world, admit("n2"));
    let stolen = tapped(&world, "alice", &wanted, Choice::Approve, 1);
    assert_eq!(cast(&mut world, stolen), ProposalState::Open);
    let mut believed = world.clone();
    let carol = world.ballot("carol", &wanted, Choice::Approve);
    // Positive control: without alice's own word, the stolen one decides.
    assert_eq!(cast(&mut believed, carol.clone()), ProposalState::Approved);
    let own = world.ballot("alice", &wanted, Choice::Reject);
    assert_eq!(cast(&mut world, own), ProposalState::Open);
    assert_eq!(cast(&mut world, carol), ProposalState::Open);
    let reverse = tapped(&world, "alice", &wanted, Choice::Approve, 2);
    check(&world, vec![("back", Action::CastBallot(Box::new(reverse)), "ballot-duplicate")]);
    let no = tapped(&world, "bob", &wanted, Choice::Reject, 1);
    assert_eq!(cast(&mut world, no), ProposalState::Rejected, "a passkey says no, too");
}

/// Attack: a passkey that its member drops after its theft has voted on what is still open.
#[test]
fn open_ballots_fall_with_their_passkey() {
    let mut world = with_phones();
    let (wanted, other) = (opened(&mut world, admit("n2")), opened(&mut world, admit("n3")));
    for (proposal, counter) in [(&wanted, 1), (&other, 2)] {
        let stolen = tapped(&world, "alice", proposal, Choice::Approve, counter);
        assert_eq!(cast(&mut world, stolen), ProposalState::Open);
    }
    let ballot = world.ballot("bob", &other, Choice::Approve);
    // Positive control: as long as the passkey stands, bob's key decides beside it.
    assert_eq!(cast(&mut world.clone(), ballot.clone()), ProposalState::Approved);
    alone(&mut world, "alice", set("alice", vec![]));
    assert!(voters(&world, &wanted).is_empty() && voters(&world, &other).is_empty());
    assert_eq!(cast(&mut world, ballot), ProposalState::Open);
    let dropped = tapped(&world, "alice", &wanted, Choice::Approve, 3);
    check(&world, vec![("dropped", Action::CastBallot(Box::new(dropped)), "passkey-unknown")]);
    let own = world.ballot("alice", &other, Choice::Approve);
    assert_eq!(cast(&mut world, own), ProposalState::Approved, "the member votes again");
}

#[test]
fn a_personal_change_waits_for_its_member_alone() {
    let mut world = with_phones();
    let wanted = opened(&mut world, set("carol", vec![phone("carol").passkey("phone")]));
    for who in ["alice", "bob"] {
        let ballot = world.ballot(who, &wanted, Choice::Approve);
        assert_eq!(cast(&mut world, ballot), ProposalState::Open, "{who}");
    }
    let answer = why(world.view(), &Question::Proposal(wanted.id())).unwrap();
    assert_eq!(answer.answer, "waits for votes: carol must approve");
    let by_passkey = tapped(&world, "carol", &wanted, Choice::Approve, 1);
    check(&world, vec![("by passkey", Action::CastBallot(Box::new(by_passkey)), "passkey-not-counted")]);
    let own = world.ballot("carol", &wanted, Choice::Approve);
    assert_eq!(cast(&mut world, own), ProposalState::Approved);
    let rosters = genesis(&[]).genesis;
    let sensitive = opened(
        &mut world,
        Change::SetMembers { members: rosters.members, policy: rosters.policy, proofs: [].into() },
    );
    let by_passkey = tapped(&world, "alice", &sensitive, Choice::Approve, 1);
    check(&world, vec![("sensitive", Action::CastBallot(Box::new(by_passkey)), "passkey-not-counted")]);
}

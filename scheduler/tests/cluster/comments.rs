//! Tests of questions on proposals: where they are kept, for how long, how many, and that they count for
//! nothing.

use crate::common::*;
use human_chain::sign_comment;
use protocol::comment::{
    COMMENTS_OF_MEMBER_MAX, COMMENTS_PER_MEMBER_MAX, COMMENTS_PER_PROPOSAL_MAX, Comment, SignedComment,
};
use protocol::governance::{ActionClass, Change, Choice, Policy, Proposal};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{CommentId, Digest, ProposalId};
use scheduler::*;

fn proposed(world: &World, service: &str) -> Proposal {
    world.proposal(deploy(manifest(service, 1, 1, 100, 64)))
}

fn put(world: &mut World, signed: &SignedComment) -> &'static str {
    let actor = Actor::Member(signed.comment.member.clone());
    code(&world.apply(actor, Action::PutComment(Box::new(signed.clone()))))
}

/// Returns a question of this number: each is another one.
fn numbered(name: &str, proposal: &Proposal, number: usize) -> SignedComment {
    let comment = comment_of(name, proposal, None).comment;
    sign_comment(&secrets()[&member(name)], Comment { text: format!("question {number}"), ..comment })
}

fn thread(world: &World, proposal: &Proposal) -> usize {
    proposal_view(&world.cluster, &proposal.id()).map_or(0, |view| view.comments.len())
}

#[test]
fn questions_are_kept_beside_a_draft_and_the_proposal_that_it_becomes() {
    let mut world = two_nodes();
    let proposal = proposed(&world, "embed");
    let question = comment_of("bob", &proposal, None);
    assert_eq!(put(&mut world, &question), "proposal-not-found");
    assert_eq!(
        code(&world.apply(token("operator"), Action::SubmitProposal(Box::new(proposal.clone())))),
        "ok"
    );
    assert_eq!(put(&mut world, &question), "ok");
    assert_eq!(put(&mut world, &question), "ok", "sent twice, it is kept once");
    assert_eq!(thread(&world, &proposal), 1);
    let unknown = comment_of("carol", &proposal, Some(CommentId(Digest::of(b"none"))));
    assert_eq!(put(&mut world, &unknown), "question-not-found");
    let answer = comment_of("carol", &proposal, Some(question.comment.id()));
    assert_eq!(put(&mut world, &answer), "ok");
    let deeper = comment_of("alice", &proposal, Some(answer.comment.id()));
    assert_eq!(put(&mut world, &deeper), "question-not-found", "an answer is no question");
    world.open_by("alice", &proposal);
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    assert_eq!(view.comments, [question.clone(), answer], "they stay when the draft is opened");
    assert_eq!((view.approved.len(), view.rejected.len()), (1, 0), "they count for nothing");
    let restored = Cluster::from_snapshot(&world.cluster.to_snapshot()).unwrap();
    assert_eq!(restored, world.cluster);
    let asked: Vec<_> = world.cluster.audit().last(64).map(|event| event.action.clone()).collect();
    assert!(asked.iter().any(|action| action == "ask") && asked.iter().any(|action| action == "answer"));
    // They end with the vote.
    let ballot = world.ballot("bob", &proposal, Choice::Approve);
    world.must(Action::CastBallot(Box::new(ballot)));
    assert_eq!(thread(&world, &proposal), 0);
    assert_eq!(put(&mut world, &question), "proposal-not-found");
}

/// Attack: comments that their members did not sign, or that are of another time or proposal.
#[test]
fn only_what_a_member_signed_is_kept() {
    let mut world = two_nodes();
    let proposal = proposed(&world, "embed");
    world.open_by("alice", &proposal);
    let sound = comment_of("bob", &proposal, None);
    let mut forged = sound.clone();
    forged.comment.member = member("carol");
    assert_eq!(put(&mut world, &forged), "signature-invalid");
    let mut elsewhere = sound.clone();
    elsewhere.comment.proposal = ProposalId(Digest::of(b"none"));
    assert_eq!(put(&mut world, &elsewhere), "proposal-not-found");
    for (ahead_ms, expected) in [(CLOCK_GRACE_MS + 1, "governance-invalid"), (CLOCK_GRACE_MS, "ok")] {
        let issued_at = world.cluster.now().0.plus(ahead_ms);
        let comment = Comment { issued_at, ..sound.comment.clone() };
        let signed = sign_comment(&secrets()[&member("bob")], comment);
        assert_eq!(put(&mut world, &signed), expected, "{ahead_ms}");
    }
    let unread = Action::PutComment(Box::new(sound.clone()));
    assert_eq!(code(&world.apply(token("reader"), unread)), "token-scope-missing");
    assert_eq!(put(&mut world, &sound), "ok", "the positive control");
    assert_eq!(thread(&world, &proposal), 2);
}

/// Attack: a member, or a stolen key, fills threads, and every snapshot with them.
#[test]
fn the_comments_of_a_member_are_bounded() {
    let mut world = two_nodes();
    let proposals: Vec<Proposal> =
        (0..6).map(|number| proposed(&world, &format!("service-{number}"))).collect();
    proposals.iter().for_each(|proposal| drop(world.open_by("alice", proposal)));
    let (first, mut taken) = (&proposals[0], 0);
    for number in 0..COMMENTS_PER_MEMBER_MAX {
        assert_eq!(put(&mut world, &numbered("bob", first, number)), "ok", "{number}");
        taken += 1;
    }
    assert_eq!(put(&mut world, &numbered("bob", first, 99)), "limit-reached");
    // Positive control: another member still asks there.
    assert_eq!(put(&mut world, &numbered("carol", first, 1)), "ok");
    let others = proposals[1..].iter().flat_map(|one| (0..COMMENTS_PER_MEMBER_MAX).map(move |n| (one, n)));
    for (proposal, number) in others {
        let outcome = put(&mut world, &numbered("bob", proposal, number));
        assert_eq!(outcome, if taken < COMMENTS_OF_MEMBER_MAX { "ok" } else { "limit-reached" }, "{taken}");
        taken += usize::from(outcome == "ok");
    }
    assert_eq!(taken, COMMENTS_OF_MEMBER_MAX);
    world.cluster.check_invariants().unwrap();
    // A decision makes room.
    let ballot = world.ballot("bob", first, Choice::Approve);
    world.must(Action::CastBallot(Box::new(ballot)));
    assert_eq!(put(&mut world, &numbered("bob", &proposals[5], 98)), "ok");
    const { assert!(3 * COMMENTS_PER_MEMBER_MAX < COMMENTS_PER_PROPOSAL_MAX + 1, "three members fit") };
}

/// Attack: a stolen key leaves texts behind that members read after its suspension.
#[test]
fn the_comments_of_a_suspended_member_go_with_its_keys() {
    let mut world = two_nodes();
    // Two of the three members decide everything, so that one can be suspended.
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, quorum(2)));
    let policy = Policy { quorums: quorums.into(), passkeys: None, veto_seconds: 0, proposer_counts: true };
    let members = world.cluster.circle_state().unwrap().members().cloned().collect();
    world.approve(Change::SetMembers { members, policy, proofs: [].into() });
    let proposal = proposed(&world, "embed");
    world.open_by("alice", &proposal);
    assert_eq!(put(&mut world, &numbered("carol", &proposal, 1)), "ok");
    assert_eq!(put(&mut world, &numbered("bob", &proposal, 1)), "ok");
    world.approve(Change::SuspendMember { member: member("carol"), halts: [].into() });
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    let authors: Vec<_> = view.comments.iter().map(|kept| kept.comment.member.clone()).collect();
    assert_eq!(authors, [member("bob")]);
    assert_eq!(put(&mut world, &numbered("carol", &proposal, 2)), "member-suspended");
    world.cluster.check_invariants().unwrap();
}

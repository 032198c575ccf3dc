//! Tests of proposals: drafts, openings and withdrawals, their bounds, and their return.

use crate::common::samples::drafted;
use crate::common::*;
use human_chain::{MemberSecret, propose, unsigned_ballot, vote};
use protocol::Digest;
use protocol::api::ProposalState;
use protocol::governance::{ActionClass, BallotSignature, Change, Choice, Policy, Proposal, SignedBallot};
use protocol::limits::{CLOCK_GRACE_MS, PROPOSALS_OPEN_MAX};
use scheduler::limits::*;
use scheduler::*;

/// Returns a proposal of this number, made this long after the world's time, which lives as long as it says.
fn numbered(world: &World, number: usize, ahead_ms: u64, lifetime_ms: u64) -> Proposal {
    let (created, nonce) = (world.now.plus(ahead_ms), Digest::of(&number.to_le_bytes()));
    let change = deploy(manifest("embed", 1, 1, 500, 64));
    let state = world.cluster.circle_state().unwrap();
    propose(state, change, String::new(), created, created.plus(lifetime_ms), nonce).unwrap()
}

fn submit(world: &mut World, actor: &Actor, proposal: &Proposal) -> &'static str {
    code(&world.apply(actor.clone(), Action::SubmitProposal(Box::new(proposal.clone()))))
}

/// Lets a member open a proposal, and returns the code of the outcome.
fn open(world: &mut World, name: &str, proposal: &Proposal) -> &'static str {
    let opening = world.opening(name, proposal);
    code(&world.apply(Actor::Member(member(name)), opening))
}

fn cast(world: &mut World, name: &str, proposal: &Proposal, choice: Choice) -> Reply {
    let ballot = world.ballot(name, proposal, choice);
    world.apply(Actor::Member(member(name)), Action::CastBallot(Box::new(ballot)))
}

fn state(world: &World, proposal: &Proposal) -> Option<ProposalState> {
    proposal_view(&world.cluster, &proposal.id()).map(|view| view.state)
}

fn opens(proposal: &Proposal, ballot: SignedBallot) -> Action {
    Action::OpenProposal { proposal: Box::new(proposal.clone()), ballot: Box::new(ballot) }
}

#[test]
fn a_proposal_from_the_future_is_refused() {
    let mut world = two_nodes();
    let operator = token("operator");
    for (ahead_ms, expected) in [
        (CLOCK_GRACE_MS, "ok"),
        (CLOCK_GRACE_MS + 1, "governance-invalid"),
        (73 * 365 * 86_400_000, "governance-invalid"),
    ] {
        let proposal = numbered(&world, 1, ahead_ms, 3_600_000);
        assert_eq!(submit(&mut world, &operator, &proposal), expected, "{ahead_ms}");
    }
    let late = numbered(&world, 2, 86_400_000, 3_600_000);
    let reply = world.apply(operator, Action::SubmitProposal(Box::new(late.clone())));
    let Reply::Refused { message, .. } = reply else { panic!("{reply:?}") };
    assert!(message.contains("is ahead of the cluster's time"), "{message}");
    // The control: the same proposal is accepted when its time has come.
    world.wait(86_400_000);
    assert_eq!(submit(&mut world, &token("operator"), &late), "ok");
}

#[test]
fn the_first_member_that_approves_a_draft_is_its_proposer() {
    let mut world = two_nodes();
    let proposal = numbered(&world, 1, 0, 3_600_000);
    assert_eq!(submit(&mut world, &token("operator"), &proposal), "ok");
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    assert_eq!((view.state, view.proposer, view.missing.len()), (ProposalState::Draft, None, 3));
    assert_eq!(view.drafted_by.as_deref(), Some("token/operator"));
    let answer = why(world.view(), &Question::Proposal(proposal.id())).unwrap().answer;
    let expected =
        "2 of (alice, bob, carol) must approve; a draft of token/operator, which no member has signed";
    assert_eq!(answer, format!("waits for votes: {expected}"));
    let found = status(world.view(), LeaderView { leader: None, silent: None }).findings;
    let found = found.iter().find(|finding| finding.message.contains("draft")).unwrap();
    assert_eq!(found.message, "a draft of token/operator waits for a member to propose it: deploy embed");
    assert_eq!(found.next, format!("quorate review {}", proposal.id().short()));
    assert!(matches!(
        cast(&mut world, "bob", &proposal, Choice::Approve),
        Reply::Counted { state: ProposalState::Open, .. }
    ));
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    assert_eq!((view.proposer, view.drafted_by), (Some(member("bob")), None));
    assert_eq!((view.approved, world.cluster.drafts().len()), (vec![member("bob")], 0));
    let findings = status(world.view(), LeaderView { leader: None, silent: None }).findings;
    let waiting: Vec<&str> = findings.iter().map(|found| found.message.as_str()).collect();
    let waiting =
        waiting.iter().find_map(|text| text.strip_prefix("a proposal waits for votes: deploy embed "));
    let without_count = waiting.is_some_and(|text| text.split_whitespace().count() == 3);
    assert!(without_count && waiting.is_some_and(|text| text.ends_with(" min left)")), "{findings:?}");
    cast(&mut world, "alice", &proposal, Choice::Approve);
    assert_eq!(state(&world, &proposal), Some(ProposalState::Approved));
    assert_eq!(submit(&mut world, &token("operator"), &proposal), "proposal-not-found", "it is decided");
}

#[test]
fn a_member_proposes_without_a_draft_and_repeats_itself_without_harm() {
    let mut world = two_nodes();
    let proposal = numbered(&world, 1, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &proposal), "ok");
    assert_eq!(open(&mut world, "alice", &proposal), "ballot-duplicate");
    assert_eq!(submit(&mut world, &token("operator"), &proposal), "ok", "it is known, and no draft");
    assert!(world.cluster.drafts().is_empty());
    assert_eq!(open(&mut world, "bob", &proposal), "ok", "a second proposer approves");
    assert_eq!(state(&world, &proposal), Some(ProposalState::Approved));
    let view = proposal_view(&world.cluster, &proposal.id()).unwrap();
    assert_eq!(view.proposer, Some(member("alice")));
}

/// The cluster makes the proposal for a client that knows no circle; a retry under its key makes no second.
#[test]
fn a_manifest_alone_becomes_a_draft() {
    let mut world = two_nodes();
    let action = || drafted(manifest("embed", 1, 2, 500, 64));
    let Reply::Submitted { proposal: id } = world.apply_once("deploy", action()) else { panic!("a draft") };
    assert_eq!(world.apply_once("deploy", action()), Reply::Submitted { proposal: id });
    world.wait(1000);
    let Reply::Submitted { proposal: other } = world.apply_once("again", action()) else { panic!("a draft") };
    assert_ne!(id, other, "the same manifest may be drafted twice");
    let draft = world.cluster.drafts()[&id].clone();
    assert_eq!(
        (draft.proposal.id(), draft.proposal.change.clone()),
        (id, deploy(manifest("embed", 1, 2, 500, 64)))
    );
    assert_eq!(draft.proposal.expires_at, draft.proposal.created_at.plus(DRAFT_LIFETIME_MS));
    for name in ["alice", "bob"] {
        cast(&mut world, name, &draft.proposal, Choice::Approve);
    }
    assert!(world.cluster.services().contains_key(&service_name("embed")));
    assert!(!world.cluster.drafts().contains_key(&other), "the other is stale");
    let broken = drafted(manifest("embed", 3, 1, 500, 64));
    assert_eq!(code(&world.apply(token("operator"), broken)), "governance-invalid");
    let reader = world.apply(token("reader"), action());
    assert_eq!(code(&reader), "token-scope-missing");
}

/// Attack: a leaked access token fills every list that it can reach.
#[test]
fn attack_a_leaked_token_takes_no_place_of_a_proposal() {
    let mut world = two_nodes();
    let leaked = token("operator");
    let mut kept = 0;
    for number in 0..PROPOSALS_OPEN_MAX {
        let proposal = numbered(&world, number, 0, 3_600_000);
        match submit(&mut world, &leaked, &proposal) {
            "ok" => kept += 1,
            refused => assert_eq!(refused, "limit-reached"),
        }
    }
    assert_eq!((kept, world.cluster.open_proposals().len()), (DRAFTS_PER_TOKEN_MAX, 0));
    // The members propose beside the full list, also with the token that leaked.
    let mine = numbered(&world, 1000, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &mine), "ok");
    // Control: proposals that a member signs do take the places, up to the member's share.
    for number in 0..PROPOSALS_PER_MEMBER_MAX - 1 {
        let proposal = numbered(&world, 2000 + number, 0, 3_600_000);
        assert_eq!(open(&mut world, "alice", &proposal), "ok", "{number}");
    }
    let beyond = numbered(&world, 3000, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &beyond), "limit-reached");
    let first = numbered(&world, 0, 0, 3_600_000);
    assert_eq!(code(&cast(&mut world, "alice", &first, Choice::Approve)), "limit-reached", "nor by a draft");
    assert_eq!(state(&world, &first), Some(ProposalState::Draft), "the draft is left");
    assert_eq!(open(&mut world, "bob", &beyond), "ok", "each member has places of its own");
    // A withdrawal makes room, by the holder of the token or by any member.
    let withdrawal = Action::Withdraw { proposal: first.id(), withdrawal: None };
    assert_eq!(code(&world.apply(leaked.clone(), withdrawal)), "ok");
    let next = numbered(&world, 1001, 0, 3_600_000);
    assert_eq!(submit(&mut world, &leaked, &next), "ok");
    assert_eq!(submit(&mut world, &leaked, &first), "limit-reached");
    world.must(withdrawn("carol", &next, true));
    assert_eq!(submit(&mut world, &leaked, &first), "ok", "a draft has no ballots that could return");
    // A decision makes room for its proposer.
    for name in ["bob", "carol"] {
        cast(&mut world, name, &mine, Choice::Reject);
    }
    let next = numbered(&world, 1002, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &next), "ok");
}

/// Attacks on the ballot that opens a proposal. None leaves a trace.
#[test]
fn attack_a_proposal_without_the_approval_of_a_member() {
    let mut world = two_of_three(true);
    world.approve(Change::SuspendMember { member: member("carol"), halts: [].into() });
    let (wanted, other) = (numbered(&world, 1, 0, 3_600_000), numbered(&world, 2, 0, 3_600_000));
    let mut outsider = world.ballot("alice", &wanted, Choice::Approve);
    outsider.ballot.member = member("mallory");
    let mut forged = world.ballot("alice", &wanted, Choice::Approve);
    forged.signature = world.ballot("bob", &wanted, Choice::Approve).signature;
    let mut named_only = world.ballot("alice", &other, Choice::Approve);
    named_only.ballot.proposal = wanted.id();
    let by_thief = MemberSecret::generate(&[99; 64]);
    let thief = vote(&by_thief, member("alice"), wanted.history, &wanted, Choice::Approve, world.now);
    let unsigned = SignedBallot {
        ballot: unsigned_ballot(member("alice"), wanted.history, &wanted, Choice::Approve, world.now),
        signature: BallotSignature::Hybrid(by_thief.sign("quorate/other/v1", b"")),
    };
    check(
        &world,
        vec![
            ("an outsider", opens(&wanted, outsider), "not-a-member"),
            ("a suspended member", world.opening("carol", &wanted), "member-suspended"),
            ("another member's signature", opens(&wanted, forged), "signature-invalid"),
            ("other keys", opens(&wanted, thief), "signature-invalid"),
            ("no signature of a ballot", opens(&wanted, unsigned), "signature-invalid"),
            (
                "for another proposal",
                opens(&wanted, world.ballot("alice", &other, Choice::Approve)),
                "ballot-mismatch",
            ),
            ("renamed", opens(&wanted, named_only), "ballot-mismatch"),
            (
                "a rejection",
                opens(&wanted, world.ballot("alice", &wanted, Choice::Reject)),
                "proposal-unsigned",
            ),
            // The control: an approval by keys in force.
            ("its own", world.opening("alice", &wanted), "ok"),
        ],
    );
    assert_eq!(submit(&mut world, &token("operator"), &wanted), "ok");
    check(
        &world,
        vec![
            (
                "a draft rejected",
                Action::CastBallot(Box::new(world.ballot("alice", &wanted, Choice::Reject))),
                "proposal-unsigned",
            ),
            (
                "a draft by another's ballot",
                Action::CastBallot(Box::new(world.ballot("alice", &other, Choice::Approve))),
                "proposal-not-found",
            ),
            (
                "a draft approved",
                Action::CastBallot(Box::new(world.ballot("alice", &wanted, Choice::Approve))),
                "ok",
            ),
        ],
    );
    // A ballot for an open proposal opens no other.
    assert_eq!(open(&mut world, "alice", &other), "ok");
    let carried = opens(&numbered(&world, 3, 0, 3_600_000), world.ballot("bob", &other, Choice::Approve));
    assert_eq!(verdict(&world, Actor::Scheduler, carried), "ballot-mismatch");
}

/// Attacks on withdrawals: another member's, the token's, one that is sent again.
#[test]
fn attack_a_withdrawal_that_its_proposer_did_not_sign() {
    let mut world = two_nodes();
    let operator = token("operator");
    let mine = numbered(&world, 1, 0, 3_600_000);
    assert_eq!(submit(&mut world, &operator, &mine), "ok");
    assert_eq!(open(&mut world, "alice", &mine), "ok");
    let unsigned = || Action::Withdraw { proposal: mine.id(), withdrawal: None };
    let Action::Withdraw { withdrawal: Some(signed), .. } = withdrawn("bob", &mine, false) else { panic!() };
    let mut in_her_name = signed.clone();
    in_her_name.withdrawal.member = member("alice");
    let forged = Action::Withdraw { proposal: mine.id(), withdrawal: Some(in_her_name) };
    let other = numbered(&world, 2, 0, 3_600_000);
    let Action::Withdraw { withdrawal, .. } = withdrawn("alice", &other, false) else { panic!() };
    let elsewhere = Action::Withdraw { proposal: mine.id(), withdrawal };
    check(
        &world,
        vec![
            ("another member", withdrawn("bob", &mine, false), "withdrawal-refused"),
            ("in her name", forged, "signature-invalid"),
            ("of another proposal", elsewhere, "withdrawal-refused"),
            ("as a draft", withdrawn("alice", &mine, true), "withdrawal-refused"),
            ("an unknown one", withdrawn("alice", &other, false), "proposal-not-found"),
            ("its proposer", withdrawn("alice", &mine, false), "ok"),
        ],
    );
    assert_eq!(
        verdict(&world, operator.clone(), unsigned()),
        "withdrawal-refused",
        "the token that drafted it"
    );
    world.must(withdrawn("alice", &mine, false));
    assert_eq!(state(&world, &mine), Some(ProposalState::Withdrawn));
    assert_eq!(code(&cast(&mut world, "bob", &mine, Choice::Approve)), "proposal-not-found");
    // Its approval is public. It does not return under another proposer.
    assert_eq!(open(&mut world, "bob", &mine), "proposal-not-found");
    assert_eq!(submit(&mut world, &operator, &mine), "proposal-not-found");
    // Sent again: the first one has no other effect, and the next proposal is another one.
    let next = numbered(&world, 3, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &next), "ok");
    assert_eq!(verdict(&world, operator.clone(), withdrawn("alice", &mine, false)), "proposal-not-found");
    assert_eq!(state(&world, &next), Some(ProposalState::Open));
}

/// Attack: the withdrawal of a draft is sent again once a member has proposed it.
#[test]
fn attack_the_withdrawal_of_a_draft_is_sent_again() {
    let mut world = two_nodes();
    let operator = token("operator");
    let draft = numbered(&world, 1, 0, 3_600_000);
    assert_eq!(submit(&mut world, &operator, &draft), "ok");
    let recorded = withdrawn("alice", &draft, true);
    check(
        &world,
        vec![
            ("as a proposal", withdrawn("alice", &draft, false), "withdrawal-refused"),
            ("by any member", recorded.clone(), "ok"),
        ],
    );
    let foreign = Action::Withdraw { proposal: draft.id(), withdrawal: None };
    assert_eq!(verdict(&world, Actor::Scheduler, foreign), "withdrawal-refused", "of another's token");
    world.must(recorded.clone());
    assert_eq!(state(&world, &draft), None);
    assert_eq!(submit(&mut world, &operator, &draft), "ok");
    // Control: on the draft, the recorded withdrawal has its effect again.
    assert_eq!(verdict(&world, operator.clone(), recorded.clone()), "ok");
    assert_eq!(code(&cast(&mut world, "alice", &draft, Choice::Approve)), "ok");
    assert_eq!(verdict(&world, operator, recorded), "withdrawal-refused");
    assert_eq!(state(&world, &draft), Some(ProposalState::Open));
}

/// Attack: a rejected proposal returns with its public approvals after the list of closed ones was flushed.
#[test]
fn attack_a_rejected_proposal_returns_before_it_expires() {
    let mut world = two_nodes();
    let (operator, month) = (token("operator"), 20 * 86_400_000);
    let rejected = numbered(&world, 0, 0, month);
    assert_eq!(open(&mut world, "carol", &rejected), "ok");
    for name in ["alice", "bob"] {
        cast(&mut world, name, &rejected, Choice::Reject);
    }
    assert_eq!(state(&world, &rejected), Some(ProposalState::Rejected));
    for number in 1..=CLOSED_PROPOSALS_MAX {
        let short = numbered(&world, number, 0, month);
        assert_eq!(open(&mut world, "alice", &short), "ok");
        world.must(withdrawn("alice", &short, false));
    }
    let known = |world: &World| world.cluster.closed_proposals().iter().any(|c| c.proposal == rejected);
    assert!(!known(&world), "the control: the list of closed proposals has forgotten it");
    let again =
        |world: &mut World| (submit(world, &token("operator"), &rejected), open(world, "bob", &rejected));
    assert_eq!(again(&mut world), ("proposal-not-found", "proposal-not-found"));
    let snapshot = world.cluster.to_snapshot();
    world.cluster = Cluster::from_snapshot(&snapshot).unwrap();
    assert_eq!(again(&mut world), ("proposal-not-found", "proposal-not-found"));
    assert_eq!(code(&cast(&mut world, "carol", &rejected, Choice::Approve)), "proposal-not-found");
    world.wait(month);
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-not-found");
    // The next withdrawal forgets what has expired, and that is refused for its time.
    world.wait(CLOCK_GRACE_MS + 1);
    let other = numbered(&world, 500, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &other), "ok");
    world.must(withdrawn("alice", &other, false));
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-expired");
    // In a new epoch no proposal of an earlier one can be brought, so none is remembered.
    let burned = other;
    let members = world.cluster.circle_state().unwrap().members().cloned().collect();
    let policy = world.cluster.circle_state().unwrap().policy().clone();
    world.approve(Change::SetMembers { members, policy, proofs: [].into() });
    let flushed = |world: &mut World, number: usize| {
        let short = numbered(world, number, 0, 3_600_000);
        world.open_by("alice", &short);
        world.must(withdrawn("alice", &short, false));
    };
    (1000..1000 + CLOSED_PROPOSALS_MAX).for_each(|number| flushed(&mut world, number));
    assert_eq!(submit(&mut world, &operator, &burned), "circle-mismatch");
}

/// Attack: a member fills the memory of burned proposals, so that another's rejection is forgotten.
#[test]
fn attack_one_member_burns_proposals_without_end() {
    let mut world = two_nodes();
    let rejected = numbered(&world, 0, 0, 20 * 86_400_000);
    assert_eq!(open(&mut world, "carol", &rejected), "ok");
    for name in ["alice", "bob"] {
        cast(&mut world, name, &rejected, Choice::Reject);
    }
    let mut burned = 0;
    for number in 1..=BURNED_PER_MEMBER_MAX + 1 {
        let proposal = numbered(&world, number, 0, 3_600_000);
        match open(&mut world, "alice", &proposal) {
            "ok" => burned += 1,
            refused => assert_eq!(refused, "limit-reached"),
        }
        let _ = world.apply(Actor::Scheduler, withdrawn("alice", &proposal, false));
    }
    assert_eq!(burned, BURNED_PER_MEMBER_MAX);
    assert_eq!(open(&mut world, "bob", &rejected), "proposal-not-found", "no rejection is forgotten");
    // Control: once the member's own have expired, it proposes again.
    world.wait(3_600_000 + CLOCK_GRACE_MS + 1);
    let next = numbered(&world, 5000, 0, 3_600_000);
    assert_eq!(open(&mut world, "alice", &next), "ok");
    assert_eq!(open(&mut world, "bob", &rejected), "proposal-not-found");
}

/// Returns a cluster whose circle decides everything by two of its three members.
fn two_of_three(proposer_counts: bool) -> World {
    let mut world = two_nodes();
    let circle = world.cluster.circle_state().unwrap();
    let members: Vec<_> = circle.members().cloned().collect();
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, quorum(2))).into();
    let policy = Policy { quorums, proposer_counts, ..circle.policy().clone() };
    world.approve(Change::SetMembers { members, policy, proofs: [].into() });
    world
}

/// A circle may decide that a proposer's own ballot does not count.
#[test]
fn a_proposal_needs_one_more_member_where_the_proposer_does_not_count() {
    for (proposer_counts, after_two) in [(true, ProposalState::Approved), (false, ProposalState::Open)] {
        let mut world = two_of_three(proposer_counts);
        let wanted = numbered(&world, 1, 0, 3_600_000);
        assert_eq!(open(&mut world, "alice", &wanted), "ok");
        cast(&mut world, "bob", &wanted, Choice::Approve);
        assert_eq!(state(&world, &wanted), Some(after_two), "counts: {proposer_counts}");
        if !proposer_counts {
            let answer = why(world.view(), &Question::Proposal(wanted.id())).unwrap().answer;
            assert_eq!(answer, "waits for votes: 2 of (alice, bob, carol) besides the proposer must approve");
            cast(&mut world, "carol", &wanted, Choice::Approve);
            assert_eq!(state(&world, &wanted), Some(ProposalState::Approved));
            let refused = numbered_change(&world);
            assert_eq!(open(&mut world, "alice", &refused), "ok");
            cast(&mut world, "bob", &refused, Choice::Reject);
            assert_eq!(state(&world, &refused), Some(ProposalState::Rejected), "two are too few now");
        }
    }
}

fn numbered_change(world: &World) -> Proposal {
    world.proposal(deploy(manifest("other", 1, 1, 500, 64)))
}

//! Changes of members and suspensions in the cluster: waiting time, vetoes, and ballots that become void.
//! Each attack has a control in which it succeeds without its guard.

use crate::common::*;
use human_chain::{MemberSecret, prove_keys, takes_effect_at, verify, vote};
use protocol::Millis;
use protocol::api::ProposalState;
use protocol::governance::*;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::model::Recipient;
use scheduler::*;
use std::collections::BTreeMap;

/// Waiting time of these circles in seconds: a day.
const DAY: u32 = 24 * 3600;
const DAY_MS: u64 = DAY as u64 * 1000;

/// Returns a policy in which two of the three members decide everything.
fn two_of_three(veto_seconds: u32) -> Policy {
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, quorum(2)));
    Policy { quorums: quorums.into(), passkeys: None, veto_seconds, proposer_counts: true }
}

fn members(world: &World) -> Vec<Member> {
    world.cluster.circle_state().unwrap().members().cloned().collect()
}

/// Returns the change that keeps the members and sets this waiting time.
fn waiting_time(world: &World, veto_seconds: u32) -> Change {
    Change::SetMembers { members: members(world), policy: two_of_three(veto_seconds), proofs: [].into() }
}

/// Returns a cluster whose changes of members wait a day.
fn waiting_world() -> World {
    let mut world = two_nodes();
    let change = waiting_time(&world, DAY);
    world.approve(change);
    world
}

fn submit(world: &mut World, change: Change) -> Proposal {
    let proposal = world.proposal(change);
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    proposal
}

fn cast(world: &mut World, who: &str, proposal: &Proposal, choice: Choice) -> Reply {
    let ballot = world.ballot(who, proposal, choice);
    world.apply(Actor::Member(member(who)), Action::CastBallot(Box::new(ballot)))
}

fn state(reply: &Reply) -> ProposalState {
    let Reply::Counted { state, .. } = reply else { panic!("{reply:?}") };
    *state
}

fn view(world: &World, proposal: &Proposal) -> protocol::api::ProposalView {
    proposal_view(&world.cluster, &proposal.id()).unwrap()
}

/// Submits a change and lets alice and bob approve it; it waits then.
fn waits(world: &mut World, change: Change) -> Proposal {
    let proposal = submit(world, change);
    assert_eq!(state(&cast(world, "alice", &proposal, Choice::Approve)), ProposalState::Open);
    assert_eq!(state(&cast(world, "bob", &proposal, Choice::Approve)), ProposalState::Waiting);
    proposal
}

fn epoch(world: &World) -> u64 {
    world.cluster.circle_state().unwrap().epoch().0
}

#[test]
fn a_change_of_members_takes_effect_when_its_waiting_time_is_over() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let proposal = waits(&mut world, change);
    let end = world.now.plus(DAY_MS);
    let shown = view(&world, &proposal);
    assert_eq!((shown.state, shown.takes_effect_at), (ProposalState::Waiting, Some(end)));
    assert_eq!((shown.approved.len(), shown.missing.len()), (2, 0));
    let findings = status(world.view(), LeaderView { leader: None, silent: None }).findings;
    assert!(
        findings.iter().any(|finding| finding.message.starts_with("approved, and waits for a veto: set 3"))
    );
    let answer = why(world.view(), &Question::Proposal(proposal.id())).unwrap();
    assert!(answer.answer.starts_with("approved; takes effect at "), "{answer:?}");
    // It outlives the deadline for votes, and no approval prolongs it.
    world.set_now(Millis(end.0 - 1));
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    let late = cast(&mut world, "carol", &proposal, Choice::Approve);
    assert_eq!(code(&late), "change-waits");
    world.must(Action::Tick);
    assert_eq!((view(&world, &proposal).state, epoch(&world)), (ProposalState::Waiting, 2));
    world.set_now(end);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    let shown = view(&world, &proposal);
    assert_eq!((shown.state, shown.takes_effect_at, epoch(&world)), (ProposalState::Approved, None, 3));
    assert!(shown.certificate.is_some() && !tick_is_due(&world.cluster, &world.clocks));
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()), Ok(world.cluster));
}

/// Attack: the holders of a quorum of stolen keys antedate their ballots by more than the waiting time.
#[test]
fn attack_antedated_ballots_shorten_no_waiting_time() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let long_ago = world.now;
    world.wait(2 * DAY_MS);
    let mut proposal = world.proposal(change);
    proposal.created_at = long_ago;
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    let mut reply = Reply::Done;
    let mut ballots = Vec::new();
    for name in ["alice", "bob"] {
        let id = member(name);
        let ballot =
            vote(&secrets()[&id], id.clone(), proposal.history, &proposal, Choice::Approve, long_ago);
        ballots.push(ballot.clone());
        reply = world.must(Action::CastBallot(Box::new(ballot)));
    }
    assert_eq!(state(&reply), ProposalState::Waiting);
    assert_eq!(view(&world, &proposal).takes_effect_at, Some(world.now.plus(DAY_MS)));
    // Control: by the times that they signed, the waiting time was over when they cast the ballots.
    let circle = world.cluster.circle_state().unwrap();
    let certificate = Certificate { proposal: proposal.clone(), ballots };
    assert!(
        takes_effect_at(circle, &certificate) < world.now && verify(circle, &certificate, world.now).is_ok()
    );
    world.must(Action::Tick);
    assert_eq!(view(&world, &proposal).state, ProposalState::Waiting);
}

/// Attack: the holders of two stolen keys change the members, and the third member sees it in time.
#[test]
fn attack_a_vetoed_change_never_takes_effect() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let proposal = waits(&mut world, change);
    let mut unopposed = world.clone();
    world.wait(DAY_MS - 1);
    assert_eq!(state(&cast(&mut world, "carol", &proposal, Choice::Reject)), ProposalState::Rejected);
    // Control: without the veto it takes effect.
    for (world, expected) in [(&mut world, 2), (&mut unopposed, 3)] {
        world.wait(2 * DAY_MS);
        world.must(Action::Tick);
        assert_eq!(epoch(world), expected);
    }
    let again = world.apply(Actor::Scheduler, Action::SubmitProposal(Box::new(proposal.clone())));
    assert_eq!(code(&again), "proposal-not-found", "a vetoed proposal does not come back");
}

/// Attack: a thief approves with the stolen key of a member. The member has the same key, and vetoes.
#[test]
fn a_member_vetoes_what_its_stolen_key_approved() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let proposal = waits(&mut world, change);
    assert_eq!(state(&cast(&mut world, "alice", &proposal, Choice::Reject)), ProposalState::Rejected);
    let shown = view(&world, &proposal);
    assert_eq!((shown.approved.len(), shown.rejected), (1, vec![member("alice")]));
    // Other changes have no veto: a vote stands there.
    let other = submit(&mut world, deploy(manifest("embed", 1, 1, 500, 64)));
    cast(&mut world, "alice", &other, Choice::Approve);
    assert_eq!(code(&cast(&mut world, "alice", &other, Choice::Reject)), "ballot-duplicate");
}

#[test]
fn a_veto_before_the_quorum_ends_the_proposal_too() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let proposal = submit(&mut world, change.clone());
    assert_eq!(state(&cast(&mut world, "alice", &proposal, Choice::Approve)), ProposalState::Open);
    assert_eq!(state(&cast(&mut world, "carol", &proposal, Choice::Reject)), ProposalState::Rejected);
    // Without a waiting time a rejection is a vote like any other.
    let mut hasty = two_nodes();
    let Change::SetMembers { members, proofs, .. } = change else { panic!("members") };
    hasty.approve(Change::SetMembers { members, proofs, policy: two_of_three(0) });
    let change = waiting_time(&hasty, DAY);
    let proposal = submit(&mut hasty, change);
    cast(&mut hasty, "alice", &proposal, Choice::Approve);
    assert_eq!(state(&cast(&mut hasty, "carol", &proposal, Choice::Reject)), ProposalState::Open);
    assert_eq!(state(&cast(&mut hasty, "bob", &proposal, Choice::Approve)), ProposalState::Approved);
}

#[test]
fn the_first_of_two_waiting_changes_ends_the_other() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let first = waits(&mut world, change);
    world.wait(1000);
    let change = waiting_time(&world, 2 * DAY);
    let second = waits(&mut world, change);
    world.wait(DAY_MS);
    world.must(Action::Tick);
    assert_eq!(view(&world, &first).state, ProposalState::Approved);
    assert_eq!(view(&world, &second).state, ProposalState::Stale);
    assert_eq!(epoch(&world), 3);
}

/// Returns the change that adds this member, after which three of the four decide.
fn joins(world: &World, claim: ProvenMember) -> Change {
    let proofs = [(claim.member.id.clone(), claim.proof)].into();
    let members = [members(world), vec![claim.member]].concat();
    let of = members.iter().map(|member| Quorum::Member(member.id.clone())).collect();
    let rule = Quorum::Threshold { required: 3, of };
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, rule.clone()));
    let policy = Policy { quorums: quorums.into(), passkeys: None, veto_seconds: DAY, proposer_counts: true };
    Change::SetMembers { members, policy, proofs }
}

/// Attack: a person who is to join delays the change, by a rejection that is no veto.
#[test]
fn attack_a_rejection_that_is_no_veto_prolongs_no_waiting_time() {
    let mut world = waiting_world();
    let dave = MemberSecret::generate(&[44; 64]);
    let change = joins(&world, prove_keys(&dave, member("dave")));
    let proposal = submit(&mut world, change);
    for (name, expected) in
        [("alice", ProposalState::Open), ("bob", ProposalState::Open), ("carol", ProposalState::Waiting)]
    {
        assert_eq!(state(&cast(&mut world, name, &proposal, Choice::Approve)), expected);
    }
    let end = view(&world, &proposal).takes_effect_at;
    assert_eq!(end, Some(world.now.plus(DAY_MS)));
    world.wait(DAY_MS / 2);
    let later = world.now.plus(CLOCK_GRACE_MS);
    let ballot = vote(&dave, member("dave"), proposal.history, &proposal, Choice::Reject, later);
    let reply = world.must(Action::CastBallot(Box::new(ballot)));
    assert_eq!((state(&reply), view(&world, &proposal).takes_effect_at), (ProposalState::Waiting, end));
    // The positive control: the rejection of a member in force ends it.
    let mut vetoed = world.clone();
    assert_eq!(state(&cast(&mut vetoed, "alice", &proposal, Choice::Reject)), ProposalState::Rejected);
    world.wait(DAY_MS / 2);
    world.must(Action::Tick);
    assert_eq!(view(&world, &proposal).state, ProposalState::Approved);
}

/// A change that became inadmissible while it waited is closed, and the cluster continues.
#[test]
fn a_change_that_no_longer_applies_is_closed_at_its_end() {
    let mut world = waiting_world();
    let dave = MemberSecret::generate(&[44; 64]);
    let mut claim = prove_keys(&dave, member("dave"));
    // A key that a node has by the time the change takes effect.
    let node = node("late", 1000, 1000).admission;
    claim.member.keys.encryption = node.encryption.clone();
    claim.proof = dave.sign(MEMBER_KEYS_DOMAIN, &claim.member.key_claim());
    let change = joins(&world, claim);
    let proposal = submit(&mut world, change);
    for name in ["alice", "bob"] {
        assert_eq!(state(&cast(&mut world, name, &proposal, Choice::Approve)), ProposalState::Open, "3 of 4");
    }
    assert_eq!(state(&cast(&mut world, "carol", &proposal, Choice::Approve)), ProposalState::Waiting);
    world.approve(Change::AdmitNode(Box::new(node)));
    world.wait(DAY_MS);
    world.must(Action::Tick);
    assert_eq!((view(&world, &proposal).state, epoch(&world)), (ProposalState::Stale, 2));
    assert!(!tick_is_due(&world.cluster, &world.clocks));
}

fn suspend(who: &str) -> Change {
    Change::SuspendMember { member: member(who), halts: [].into() }
}

/// Attack: the ballots that a thief cast with a stolen key, before and after the suspension.
#[test]
fn attack_the_open_ballots_of_a_suspended_member() {
    let mut world = waiting_world();
    let service = submit(&mut world, deploy(manifest("embed", 1, 1, 500, 64)));
    cast(&mut world, "alice", &service, Choice::Approve);
    cast(&mut world, "carol", &service, Choice::Reject);
    let change = waiting_time(&world, 0);
    let change = submit(&mut world, change);
    cast(&mut world, "alice", &change, Choice::Approve);
    assert_eq!(state(&cast(&mut world, "carol", &change, Choice::Approve)), ProposalState::Waiting);
    let mut unsuspended = world.clone();
    world.approve(suspend("carol"));
    let shown = view(&world, &service);
    assert_eq!((shown.state, shown.approved), (ProposalState::Open, vec![member("alice")]));
    assert_eq!((shown.rejected, shown.missing), (vec![], vec![member("bob")]));
    let shown = view(&world, &change);
    assert_eq!((shown.state, shown.takes_effect_at), (ProposalState::Open, None), "one approval is left");
    assert_eq!(shown.approved, [member("alice")]);
    for (proposal, choice) in [(&service, Choice::Approve), (&change, Choice::Reject)] {
        assert_eq!(code(&cast(&mut world, "carol", proposal, choice)), "member-suspended", "no veto either");
    }
    // Control: without the suspension both ballots count.
    assert_eq!(view(&unsuspended, &service).rejected, [member("carol")]);
    for (world, expected) in [(&mut unsuspended, 3), (&mut world, 2)] {
        world.wait(DAY_MS);
        world.must(Action::Tick);
        assert_eq!(epoch(world), expected);
    }
}

/// The attack: the thief of a key opens proposals, and another member approves one of them. They would wait
/// for the last vote after the suspension. The control: without it, that vote carries the change.
#[test]
fn attack_the_open_proposals_of_a_suspended_member() {
    let mut world = waiting_world();
    let service = submit(&mut world, deploy(manifest("embed", 1, 1, 500, 64)));
    cast(&mut world, "carol", &service, Choice::Approve);
    let change = waiting_time(&world, 0);
    let change = submit(&mut world, change);
    cast(&mut world, "carol", &change, Choice::Approve);
    assert_eq!(state(&cast(&mut world, "bob", &change, Choice::Approve)), ProposalState::Waiting);
    let draft = submit(&mut world, deploy(manifest("chat", 1, 1, 500, 64)));
    let mut unsuspended = world.clone();
    world.approve(suspend("carol"));
    for proposal in [&service, &change] {
        assert_eq!(view(&world, proposal).state, ProposalState::Void);
        let late = cast(&mut world, "alice", proposal, Choice::Approve);
        assert_eq!(code(&late), "proposal-not-found");
        let again = Action::SubmitProposal(Box::new(proposal.clone()));
        assert_eq!(verdict(&world, Actor::Scheduler, again), "proposal-not-found", "it does not return");
    }
    // A draft that no suspended member proposed stays.
    assert_eq!(view(&world, &draft).state, ProposalState::Draft);
    world.wait(DAY_MS);
    world.must(Action::Tick);
    assert_eq!(epoch(&world), 2, "the waiting change has not taken effect");
    let answer = why(world.view(), &Question::Proposal(service.id())).unwrap().answer;
    assert_eq!(answer, "void: its proposer was suspended");
    assert_eq!(state(&cast(&mut unsuspended, "alice", &service, Choice::Approve)), ProposalState::Approved);
    unsuspended.wait(DAY_MS);
    unsuspended.must(Action::Tick);
    assert_eq!(epoch(&unsuspended), 3);
}

#[test]
fn a_suspension_closes_what_can_no_longer_pass_and_drops_wraps() {
    let mut world = waiting_world();
    world.must(Action::PutWraps(vec![world.wrap("minilm", Recipient::Member(member("carol")))]));
    let held =
        |world: &World| world.cluster.wrap_of(&root("minilm"), &Recipient::Member(member("carol"))).is_some();
    assert!(held(&world));
    let service = submit(&mut world, deploy(manifest("embed", 1, 1, 500, 64)));
    cast(&mut world, "alice", &service, Choice::Approve);
    assert_eq!(state(&cast(&mut world, "bob", &service, Choice::Reject)), ProposalState::Open);
    // The accused votes for its own suspension, against bob: the ballot still counts there.
    let suspension = submit(&mut world, suspend("carol"));
    cast(&mut world, "alice", &suspension, Choice::Approve);
    cast(&mut world, "bob", &suspension, Choice::Reject);
    assert_eq!(state(&cast(&mut world, "carol", &suspension, Choice::Approve)), ProposalState::Approved);
    assert_eq!(view(&world, &service).state, ProposalState::Rejected, "alice alone is no quorum");
    assert_eq!(view(&world, &suspension).state, ProposalState::Approved);
    assert!(!held(&world), "the thief gets no model's key");
    let again = Action::PutWraps(vec![world.wrap("minilm", Recipient::Member(member("carol")))]);
    assert_eq!(verdict(&world, Actor::Scheduler, again), "member-suspended");
}

/// The procedure for a stolen key: a suspension, then new keys, with which the member votes again.
#[test]
fn a_stolen_key_is_suspended_and_replaced() {
    let mut world = waiting_world();
    world.approve(suspend("carol"));
    let fresh = MemberSecret::generate(&[66; 64]);
    let claim = prove_keys(&fresh, member("carol"));
    let mut people = members(&world);
    *people.iter_mut().find(|person| person.id == member("carol")).unwrap() = claim.member;
    let policy = two_of_three(DAY);
    let change =
        Change::SetMembers { members: people, policy, proofs: [(member("carol"), claim.proof)].into() };
    let proposal = waits(&mut world, change);
    // The thief's veto does not count, and neither does a rejection by the new keys.
    assert_eq!(code(&cast(&mut world, "carol", &proposal, Choice::Reject)), "member-suspended");
    world.wait(DAY_MS);
    world.must(Action::Tick);
    assert_eq!(view(&world, &proposal).state, ProposalState::Approved);
    assert!(world.cluster.circle_state().unwrap().suspended().is_empty());
    let service = submit(&mut world, deploy(manifest("embed", 1, 1, 500, 64)));
    assert_eq!(code(&cast(&mut world, "carol", &service, Choice::Approve)), "signature-invalid");
    let ballot = vote(&fresh, member("carol"), service.history, &service, Choice::Approve, world.now);
    world.must(Action::CastBallot(Box::new(ballot)));
    assert_eq!(state(&cast(&mut world, "bob", &service, Choice::Approve)), ProposalState::Approved);
}

/// A member that rotates casts a ballot with each set of keys, in either order, and each once.
#[test]
fn a_rotating_member_votes_with_both_sets_of_keys() {
    let fresh = MemberSecret::generate(&[55; 64]);
    for new_first in [false, true] {
        let mut world = two_nodes();
        let claim = prove_keys(&fresh, member("alice"));
        let mut people = members(&world);
        *people.iter_mut().find(|person| person.id == member("alice")).unwrap() = claim.member;
        let policy = world.cluster.circle_state().unwrap().policy().clone();
        let proofs = BTreeMap::from([(member("alice"), claim.proof)]);
        let proposal = submit(&mut world, Change::SetMembers { members: people, policy, proofs });
        let by_new = vote(&fresh, member("alice"), proposal.history, &proposal, Choice::Approve, world.now);
        let new = Action::CastBallot(Box::new(by_new));
        // Keys that the circle has not approved propose nothing.
        assert_eq!(code(&world.apply(Actor::Scheduler, new.clone())), "proposal-unsigned");
        cast(&mut world, "bob", &proposal, Choice::Approve);
        let mut order = [new_first, !new_first];
        for by_new in &mut order {
            let reply = match by_new {
                true => world.must(new.clone()),
                false => cast(&mut world, "alice", &proposal, Choice::Approve),
            };
            assert_eq!(state(&reply), ProposalState::Open);
        }
        assert_eq!(code(&world.apply(Actor::Scheduler, new)), "ballot-duplicate");
        assert_eq!(code(&cast(&mut world, "alice", &proposal, Choice::Approve)), "ballot-duplicate");
        assert_eq!(view(&world, &proposal).approved, [member("alice"), member("bob")]);
        assert_eq!(state(&cast(&mut world, "carol", &proposal, Choice::Approve)), ProposalState::Approved);
        assert_eq!(view(&world, &proposal).ballots.len(), 4);
    }
}

#[test]
fn a_waiting_change_survives_a_clock_that_is_set_back() {
    let mut world = waiting_world();
    let change = waiting_time(&world, 0);
    let start = world.now;
    world.set_now(start.plus(10 * CLOCK_GRACE_MS));
    let proposal = waits(&mut world, change);
    world.set_now(start);
    world.must(Action::Tick);
    let end = view(&world, &proposal).takes_effect_at.unwrap();
    assert!(end >= start.plus(DAY_MS), "the waiting time is never shorter");
    world.set_now(end);
    world.must(Action::Tick);
    assert_eq!(view(&world, &proposal).state, ProposalState::Approved);
}

//! Tests of the bounds of proposals: their time, their number for each actor, and their return.

use crate::common::*;
use human_chain::propose;
use protocol::Digest;
use protocol::governance::{Choice, Proposal};
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

/// A leaked access token fills its own share, and leaves the rest to others.
#[test]
fn one_actor_opens_no_more_than_its_share() {
    let mut world = two_nodes();
    let leaked = token("operator");
    let mut opened = 0;
    for number in 0..PROPOSALS_OPEN_MAX {
        let proposal = numbered(&world, number, 0, 3_600_000);
        match submit(&mut world, &leaked, &proposal) {
            "ok" => opened += 1,
            refused => assert_eq!(refused, "limit-reached"),
        }
    }
    assert_eq!(opened, PROPOSALS_PER_ACTOR_MAX);
    let mine = numbered(&world, 1000, 0, 3_600_000);
    assert_eq!(submit(&mut world, &Actor::Member(member("alice")), &mine), "ok");
    // A decision makes room.
    let first = numbered(&world, 0, 0, 3_600_000);
    for name in ["alice", "bob"] {
        let ballot = world.ballot(name, &first, Choice::Reject);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    let next = numbered(&world, 1001, 0, 3_600_000);
    assert_eq!(submit(&mut world, &leaked, &next), "ok");
}

/// Proposals of a second flush the list of closed ones. A rejected one returns with its public approvals only
/// if nothing else remembers it.
#[test]
fn a_rejected_proposal_does_not_return_before_it_expires() {
    let mut world = two_nodes();
    let (operator, month) = (token("operator"), 20 * 86_400_000);
    let rejected = numbered(&world, 0, 0, month);
    assert_eq!(submit(&mut world, &operator, &rejected), "ok");
    for name in ["alice", "bob"] {
        let ballot = world.ballot(name, &rejected, Choice::Reject);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    for number in 1..=CLOSED_PROPOSALS_MAX {
        let short = numbered(&world, number, 0, 1000);
        assert_eq!(submit(&mut world, &operator, &short), "ok");
        if number % PROPOSALS_PER_ACTOR_MAX == 0 || number == CLOSED_PROPOSALS_MAX {
            world.wait(1000 + CLOCK_GRACE_MS + 1);
            world.must(Action::Tick);
        }
    }
    let known = |world: &World| world.cluster.closed_proposals().iter().any(|c| c.proposal == rejected);
    assert!(!known(&world), "the control: the list of closed proposals has forgotten it");
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-not-found");
    let snapshot = world.cluster.to_snapshot();
    world.cluster = Cluster::from_snapshot(&snapshot).unwrap();
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-not-found");
    let vote = world.ballot("carol", &rejected, Choice::Approve);
    let reply = world.apply(Actor::Scheduler, Action::CastBallot(Box::new(vote)));
    assert_eq!(code(&reply), "proposal-not-found");
    world.wait(month);
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-not-found");
    // The next rejection forgets what has expired, and that is refused for its time.
    let other = numbered(&world, 500, 0, 3_600_000);
    assert_eq!(submit(&mut world, &operator, &other), "ok");
    for name in ["alice", "bob"] {
        let ballot = world.ballot(name, &other, Choice::Reject);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    assert_eq!(submit(&mut world, &operator, &rejected), "proposal-expired");
}

//! Tests of the waiting time of a change of members: its ends, its veto, and the deadlines that it extends.

use crate::support::{
    HOUR, NOW, approve, check, deploy, genesis, member, name, policy, proposal, secret, set_members, signed,
};
use human_chain::{
    CircleState, check_ballot, check_waited, is_vetoable, propose, takes_effect_at, tally, verify,
    verify_replay, vote, waiting_ms,
};
use protocol::governance::{Certificate, Change, Choice, Policy, Proposal, SignedBallot};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, Millis};

/// Waiting time of the circle in seconds: a day.
const DAY: u32 = 24 * 3600;
const DAY_MS: u64 = DAY as u64 * 1000;

fn rules() -> Policy {
    let rule = "2 of (alice, bob, carol)";
    Policy { veto_seconds: DAY, ..policy(rule, rule) }
}

fn waiting_circle() -> CircleState {
    let mut founding = genesis();
    founding.policy = rules();
    CircleState::found(&signed(founding), None).expect("sound")
}

/// Returns a change that gives the circle another waiting time.
fn another_wait(state: &CircleState, veto_seconds: u32) -> Change {
    set_members(state, genesis().members, Policy { veto_seconds, ..rules() })
}

fn cast(who: &str, proposal: &Proposal, choice: Choice, issued_at: Millis) -> SignedBallot {
    vote(&secret(who), name(who), proposal.history, proposal, choice, issued_at)
}

#[test]
fn only_changes_of_members_wait_and_by_the_policy_in_force() {
    let state = waiting_circle();
    let change = another_wait(&state, 0);
    assert_eq!(
        (waiting_ms(&state, &change), is_vetoable(&state, &change)),
        (DAY_MS, true),
        "in force, not proposed"
    );
    for change in [deploy(4), crate::support::suspend("bob")] {
        assert_eq!((waiting_ms(&state, &change), is_vetoable(&state, &change)), (0, false));
    }
    let hasty = crate::support::circle();
    assert_eq!(waiting_ms(&hasty, &another_wait(&hasty, DAY)), 0);
}

/// Attack: a change of members is put into force at once, before the other members know of it.
#[test]
fn attack_a_change_of_members_before_its_waiting_time_is_over() {
    let state = waiting_circle();
    let wanted = proposal(&state, another_wait(&state, 0));
    let later = NOW.plus(HOUR / 2);
    let ballots =
        vec![cast("alice", &wanted, Choice::Approve, NOW), cast("bob", &wanted, Choice::Approve, later)];
    let certificate = Certificate { proposal: wanted, ballots };
    let end = takes_effect_at(&state, &certificate);
    assert_eq!(end, later.plus(DAY_MS), "from the last approval");
    // Control: the certificate itself is sound, and only the clock is against it.
    check("sound", verify(&state, &certificate, later), "approved");
    let sooner = |ms: u64| Millis(end.0 - CLOCK_GRACE_MS - ms);
    for (case, now, expected) in [
        ("at once", later, "change-waits: the change takes effect at 2026-11-22"),
        ("a moment too soon", sooner(1), "change-waits"),
        ("at its end, by a slow clock", sooner(0), "approved"),
        ("at its end", end, "approved"),
        ("long after", end.plus(400 * DAY_MS), "approved"),
    ] {
        check(case, check_waited(&state, &certificate, now), expected);
    }
    check("a replay asks no clock", verify_replay(&state, &certificate), "approved");
    let routine = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    check("other changes", check_waited(&state, &routine, Millis(0)), "approved");
    assert_eq!(takes_effect_at(&state, &routine), NOW);
}

#[test]
fn the_waiting_time_extends_the_time_of_admission() {
    let state = waiting_circle();
    let certificate = approve(&proposal(&state, another_wait(&state, 0)), &["alice", "bob"]);
    // A day more, so that an outage of control at the end of the waiting time does not undo the vote.
    let end = NOW.plus(HOUR + 2 * DAY_MS + CLOCK_GRACE_MS);
    check("the last moment", verify(&state, &certificate, end), "approved");
    check("after it", verify(&state, &certificate, end.plus(1)), "proposal-expired");
    let routine = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    check("other changes", verify(&state, &routine, NOW.plus(HOUR + CLOCK_GRACE_MS + 1)), "proposal-expired");
}

/// Attack: the holders of two stolen keys change the members against the word of the third.
#[test]
fn attack_a_change_of_members_that_a_member_vetoed() {
    let state = waiting_circle();
    let wanted = proposal(&state, another_wait(&state, 0));
    let mut ballots = approve(&wanted, &["alice", "bob"]).ballots;
    // Control: without the veto the quorum is reached.
    assert!(tally(&state, &wanted, &ballots).reached);
    ballots.push(cast("carol", &wanted, Choice::Reject, NOW));
    let counted = tally(&state, &wanted, &ballots);
    assert!(!counted.reached, "one veto suffices");
    assert_eq!((counted.approved.len(), counted.rejected.len()), (2, 1));
    // A rejection by an outsider, or by a person that the change would make a member, is no veto.
    let dave = set_members(
        &state,
        [genesis().members, vec![member("dave")]].concat(),
        policy("3 of (alice, bob, carol, dave)", "3 of (alice, bob, carol, dave)"),
    );
    let wanted = proposal(&state, dave);
    let mut ballots = approve(&wanted, &["alice", "bob", "carol"]).ballots;
    ballots.push(cast("dave", &wanted, Choice::Reject, NOW));
    ballots.push(cast("mallory", &wanted, Choice::Reject, NOW));
    let counted = tally(&state, &wanted, &ballots);
    assert!(counted.reached && counted.rejected.is_empty() && counted.joining.is_empty());
    assert_eq!(counted.refused.len(), 1, "mallory is an outsider");
    // Without a waiting time there is no veto.
    let hasty = crate::support::circle();
    let wanted = proposal(&hasty, another_wait(&hasty, DAY));
    let mut ballots = approve(&wanted, &["alice", "bob"]).ballots;
    ballots.push(cast("carol", &wanted, Choice::Reject, NOW));
    assert!(tally(&hasty, &wanted, &ballots).reached);
}

#[test]
fn a_veto_may_be_cast_until_the_change_takes_effect() {
    let state = waiting_circle();
    let wanted = proposal(&state, another_wait(&state, 0));
    let expiry = NOW.plus(HOUR);
    let last = expiry.plus(2 * DAY_MS + CLOCK_GRACE_MS);
    for (case, choice, at, expected) in [
        ("an approval in time", Choice::Approve, expiry, "approved"),
        ("a late approval", Choice::Approve, expiry.plus(CLOCK_GRACE_MS + 1), "proposal-expired"),
        ("a veto after the deadline for votes", Choice::Reject, expiry.plus(HOUR), "approved"),
        ("the last veto", Choice::Reject, last, "approved"),
        ("too late", Choice::Reject, last.plus(1), "proposal-expired"),
    ] {
        check(case, check_ballot(&state, &wanted, &cast("carol", &wanted, choice, at), at), expected);
    }
    let routine =
        propose(&state, deploy(4), String::new(), NOW, expiry, Digest::of(b"n")).expect("admissible");
    let at = expiry.plus(HOUR);
    let late = cast("carol", &routine, Choice::Reject, at);
    check("other changes", check_ballot(&state, &routine, &late, at), "proposal-expired");
}

//! Tests of ballots: valid and invalid ones, and their tally.

use crate::support::{
    NOW, approve, check, circle, deploy, enact, genesis, member, name, policy, proposal, secret, sign_again,
    signed,
};
use human_chain::{CircleState, certify, check_ballot, sign_ballot, tally, verify, vote};
use protocol::governance::{Ballot, Change, Choice, Proposal, SignedBallot};
use protocol::limits::{BALLOT_REASON_BYTES_MAX, CLOCK_GRACE_MS};
use protocol::{Epoch, Millis};

fn names<'a>(ids: impl IntoIterator<Item = &'a protocol::MemberId>) -> Vec<&'a str> {
    ids.into_iter().map(protocol::MemberId::as_str).collect()
}

fn ballot(who: &str, proposal: &Proposal, choice: Choice) -> SignedBallot {
    vote(&secret(who), name(who), proposal.history, proposal, choice, NOW)
}

/// Alters alice's ballot, signs it again with her keys, and checks the outcome.
fn altered(case: &str, expected: &str, alter: impl FnOnce(&mut SignedBallot)) {
    let state = circle();
    let proposal = proposal(&state, deploy(4));
    let mut signed = ballot("alice", &proposal, Choice::Approve);
    alter(&mut signed);
    sign_again(&mut signed, "alice");
    check(case, check_ballot(&state, &proposal, &signed, NOW), expected);
}

#[test]
fn a_ballot_is_for_exactly_what_was_read() {
    altered("unaltered", "approved", |_| {});
    altered("a no is a vote", "approved", |s| s.ballot.choice = Choice::Reject);
    altered("another proposal", "ballot-mismatch: another proposal", |s| s.ballot.proposal.0.0[31] ^= 1);
    altered("another text", "ballot-mismatch: another rendering", |s| s.ballot.rendering.0[0] ^= 1);
    altered("another renderer", "ballot-mismatch: another rendering", |s| s.ballot.renderer_version += 1);
    altered("another epoch", "ballot-mismatch: another epoch", |s| s.ballot.epoch = Epoch(2));
    altered("a non-member", "not-a-member: `mallory`", |s| s.ballot.member = name("mallory"));
    altered("a reason", "approved", |s| s.ballot.reason = "x".repeat(BALLOT_REASON_BYTES_MAX));
    altered("a page of a reason", "governance-invalid: its reason is 257 bytes", |s| {
        s.ballot.reason = "x".repeat(BALLOT_REASON_BYTES_MAX + 1);
    });
    altered("in another's name", "signature-invalid: `bob`", |s| s.ballot.member = name("bob"));
}

/// The attack: control puts other words into a member's mouth, or takes them away.
#[test]
fn the_reason_of_a_vote_is_signed() {
    let state = circle();
    let proposal = proposal(&state, deploy(4));
    let because = |reason: &str| {
        let ballot = Ballot { reason: reason.into(), ..ballot("alice", &proposal, Choice::Reject).ballot };
        sign_ballot(&secret("alice"), &proposal, ballot)
    };
    let honest = because("it is too large");
    check("positive control", check_ballot(&state, &proposal, &honest, NOW), "approved");
    for reason in ["", "it is too small"] {
        let ballot = Ballot { reason: reason.into(), ..honest.ballot.clone() };
        let altered = SignedBallot { ballot, ..honest.clone() };
        check(reason, check_ballot(&state, &proposal, &altered, NOW), "signature-invalid: `alice`");
        check(reason, check_ballot(&state, &proposal, &because(reason), NOW), "approved");
    }
}

#[test]
fn a_ballot_has_its_time() {
    let grace = CLOCK_GRACE_MS;
    for (case, issued_at, expected) in [
        ("at once", NOW.0, "approved"),
        ("by a slow clock", NOW.0 - grace, "approved"),
        ("before there was a proposal", NOW.0 - grace - 1, "ballot-mismatch: older than its proposal"),
        ("by a fast clock", NOW.0 + grace, "approved"),
        ("from the future", NOW.0 + grace + 1, "ballot-mismatch: from the future"),
    ] {
        altered(case, expected, |s| s.ballot.issued_at = Millis(issued_at));
    }
    let state = circle();
    let proposal = proposal(&state, deploy(4));
    let end = proposal.expires_at.0;
    for (case, issued_at, now, expected) in [
        ("in the last moment", end, end, "approved"),
        ("within grace", end + grace, end + grace, "approved"),
        ("handed in too late", end, end + grace + 1, "proposal-expired: expired at"),
        ("signed too late", end + grace + 1, end + grace, "proposal-expired: voted after"),
    ] {
        let signed = vote(
            &secret("bob"),
            name("bob"),
            proposal.history,
            &proposal,
            Choice::Approve,
            Millis(issued_at),
        );
        check(case, check_ballot(&state, &proposal, &signed, Millis(now)), expected);
    }
}

#[test]
fn a_ballot_on_a_stale_proposal_is_refused() {
    let mut state = circle();
    let old = proposal(&state, deploy(4));
    let signed = ballot("alice", &old, Choice::Approve);
    enact(&mut state, deploy(2), &["alice", "bob"]);
    check("stale", check_ballot(&state, &old, &signed, NOW), "proposal-stale: service/embed");
}

#[test]
fn only_ballots_that_hold_are_counted() {
    let state = circle();
    let wanted = proposal(&state, deploy(4));
    let other = proposal(&state, deploy(5));
    let mut forged = ballot("mallory", &wanted, Choice::Approve);
    forged.ballot.member = name("carol");
    let ballots = [
        ballot("alice", &wanted, Choice::Approve),
        ballot("alice", &wanted, Choice::Reject),
        ballot("mallory", &wanted, Choice::Approve),
        ballot("bob", &other, Choice::Approve),
        forged,
    ];
    let result = tally(&state, &wanted, &ballots);
    assert_eq!(names(&result.approved), ["alice"]);
    assert_eq!(names(&result.rejected), Vec::<&str>::new());
    assert_eq!(names(&result.missing), ["bob", "carol"]);
    assert!(!result.reached);
    let codes: Vec<_> = result.refused.iter().map(|(_, error)| error.code().as_str()).collect();
    assert_eq!(codes, ["ballot-duplicate", "not-a-member", "ballot-mismatch", "signature-invalid"]);
    assert_eq!(result.counted, [0], "alice's first ballot alone speaks for her");
    check(
        "too few",
        certify(&state, &wanted, &ballots),
        "quorum-not-reached: 1 approval does not reach the Routine quorum: 2 of (alice, bob, carol)",
    );
}

#[test]
fn a_no_is_recorded_and_counts_for_nothing() {
    let state = circle();
    let wanted = proposal(&state, deploy(4));
    let no = ballot("bob", &wanted, Choice::Reject);
    let result = tally(&state, &wanted, &[ballot("alice", &wanted, Choice::Approve), no.clone()]);
    assert_eq!((names(&result.approved), names(&result.rejected)), (vec!["alice"], vec!["bob"]));
    assert!(!result.reached);
    let all = [no, ballot("carol", &wanted, Choice::Approve), ballot("alice", &wanted, Choice::Approve)];
    assert!(tally(&state, &wanted, &all).reached);
    let certificate = certify(&state, &wanted, &all).expect("two approve");
    let voters: Vec<_> = certificate.ballots.iter().map(|signed| signed.ballot.member.as_str()).collect();
    assert_eq!(voters, ["alice", "carol"], "approvals only, sorted");
    check("verifies", verify(&state, &certificate, NOW), "approved");
}

#[test]
fn a_no_is_not_taken_back() {
    let state = circle();
    let wanted = proposal(&state, deploy(4));
    let ballots = [Choice::Reject, Choice::Approve].map(|choice| ballot("bob", &wanted, choice));
    let result = tally(&state, &wanted, &ballots);
    assert_eq!((result.approved.len(), names(&result.rejected)), (0, vec!["bob"]));
    check::<()>("second", Err(result.refused[0].1.clone()), "ballot-duplicate: `bob`");
}

#[test]
fn ballots_of_two_epochs_are_not_added_up() {
    let mut state = circle();
    let old = proposal(&state, deploy(4));
    let then = ballot("alice", &old, Choice::Approve);
    let members = state.members().cloned().collect();
    let rules = policy("3 of (alice, bob, carol)", "2 of (alice, bob, carol)");
    let change = Change::SetMembers { members, policy: rules, proofs: [].into() };
    enact(&mut state, change, &["alice", "bob"]);
    let mut now = ballot("bob", &old, Choice::Approve);
    now.ballot.epoch = state.epoch();
    sign_again(&mut now, "bob");
    for (case, signed) in [("then", then), ("relabelled", now)] {
        let result = tally(&state, &old, &[signed]);
        assert_eq!((result.approved.len(), result.refused.len()), (0, 1), "{case}");
    }
}

#[test]
fn a_certificate_keeps_the_first_ballot_of_a_member() {
    let state = circle();
    let wanted = proposal(&state, deploy(4));
    let ballots = [&["alice"][..], &["bob"], &["alice"]].map(|who| approve(&wanted, who).ballots.remove(0));
    let certificate = certify(&state, &wanted, &ballots).expect("two members approve");
    assert_eq!(certificate.ballots, ballots[..2]);
}

#[test]
fn nested_quorums_ask_each_group() {
    let mut founding = genesis();
    founding.members.extend(["dave", "erin"].map(member));
    let rule = "2 of (2 of (alice, bob, carol), 1 of (dave, erin))";
    founding.policy = policy(rule, "3 of (alice, bob, carol, dave, erin)");
    let state = CircleState::found(&signed(founding), None).expect("sound");
    let wanted = proposal(&state, deploy(4));
    for (who, reached) in [
        (&["alice", "bob", "dave"][..], true),
        (&["bob", "carol", "erin"], true),
        (&["alice", "bob", "carol"], false),
        (&["alice", "dave", "erin"], false),
        (&["dave", "erin"], false),
        (&["alice", "bob", "carol", "dave", "erin"], true),
        (&[], false),
    ] {
        let certificate = approve(&wanted, who);
        assert_eq!(tally(&state, &wanted, &certificate.ballots).reached, reached, "{who:?}");
        assert_eq!(verify(&state, &certificate, NOW).is_ok(), reached, "{who:?}");
    }
}

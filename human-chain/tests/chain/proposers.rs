//! Tests of proposers: whether their ballots count, and withdrawals.

use crate::support::*;
use human_chain::{
    CircleState, approvals_to_carry, carries, check_withdrawal, describe_rule, sign_withdrawal, tally, verify,
};
use protocol::MemberId;
use protocol::canonical::to_bytes;
use protocol::governance::{BALLOT_DOMAIN, Policy, Withdrawal};
use std::collections::BTreeSet;

const TWO: &str = "2 of (alice, bob, carol)";

/// Returns a policy under which the ballot of a proposer does not count.
fn strict(routine: &str, sensitive: &str) -> Policy {
    Policy { proposer_counts: false, ..policy(routine, sensitive) }
}

fn strict_circle() -> CircleState {
    let mut founding = genesis();
    founding.policy = strict(TWO, TWO);
    CircleState::found(&signed(founding), None).expect("sound")
}

fn people(names: &[&str]) -> BTreeSet<MemberId> {
    names.iter().map(|who| name(who)).collect()
}

/// Attack: a proposer and one accomplice carry a change for which two others should sign.
#[test]
fn attack_the_ballot_of_a_proposer_counts_where_it_should_not() {
    let (counting, state) = (circle(), strict_circle());
    for who in [&["alice", "bob"][..], &["bob", "carol"]] {
        let sound = approve(&proposal(&counting, deploy(4)), who);
        let short = approve(&proposal(&state, deploy(4)), who);
        // Control: where the proposer's ballot counts, two are enough.
        check("two where it counts", verify(&counting, &sound, NOW), "approved");
        let expected = "quorum-not-reached: 2 of (alice, bob, carol) besides the proposer";
        check("two where it does not", verify(&state, &short, NOW), expected);
    }
    let all = proposal(&state, deploy(4));
    check("all three", verify(&state, &approve(&all, &["alice", "bob", "carol"]), NOW), "approved");
    let ballots = approve(&all, &["alice", "bob"]).ballots;
    assert!(!tally(&state, &all, &ballots).reached, "a tally says the same");
}

#[test]
fn a_rule_that_needs_every_member_counts_the_proposer() {
    let all = "3 of (alice, bob, carol)";
    let founding = |policy| {
        let mut founding = genesis();
        founding.policy = policy;
        CircleState::found(&signed(founding), None).map(drop)
    };
    let refused = "governance-invalid: needs every member, and the ballot of the proposer does not count";
    check("every member", founding(strict(all, TWO)), refused);
    check("every member for the other class", founding(strict(TWO, all)), refused);
    check("where it counts", founding(policy(all, all)), "approved");
    check("all but one", founding(strict(TWO, TWO)), "approved");
    let state = strict_circle();
    let expected = "governance-invalid: the routine quorum 2 of (alice, bob, carol) besides the proposer";
    check("a suspension leaves two", try_propose(&state, suspend("carol")), expected);
}

/// Attack: a member is removed in the change that lets proposers count again.
#[test]
fn attack_a_removal_travels_with_a_rule_that_counts_proposers() {
    let mut founding = genesis();
    founding.members.push(member("dave"));
    let rule = "2 of (alice, bob, carol, dave)".replace("2 of", "3 of");
    founding.policy = strict(&rule, &rule);
    let state = CircleState::found(&signed(founding), None).expect("sound");
    let three = ["alice", "bob", "carol"].map(member).to_vec();
    let kept = "3 of (alice, bob, carol)";
    let both = set_members(&state, three, policy(kept, kept));
    check("together", try_propose(&state, both), "policy-lowered: besides the proposer` to `3 of");
    let four = ["alice", "bob", "carol", "dave"].map(member).to_vec();
    let alone = set_members(&state, four, policy(&rule, &rule));
    check("the rule alone", try_propose(&state, alone), "approved");
}

#[test]
fn the_approvals_that_a_change_lacks_are_counted_beside_its_proposer() {
    let two = quorum(TWO);
    for (approved, open, counts, lacking) in [
        (&[][..], &["alice", "bob", "carol"][..], true, Some(2)),
        (&[], &["alice", "bob", "carol"], false, Some(3)),
        (&["alice"], &["bob", "carol"], false, Some(2)),
        (&["alice", "bob"], &["carol"], true, Some(0)),
        (&["alice", "bob"], &["carol"], false, Some(1)),
        (&["alice", "bob", "carol"], &[], false, Some(0)),
        (&["alice"], &["bob"], false, None),
        (&["dave", "alice"], &["bob"], false, Some(1)),
        (&[], &[], false, None),
    ] {
        let (approved, open) = (people(approved), people(open));
        let found = approvals_to_carry(&two, counts, &approved, &open);
        assert_eq!(found, lacking, "{approved:?} and {open:?}, counts: {counts}");
        assert_eq!(carries(&two, counts, &approved), lacking == Some(0), "{approved:?}");
    }
    assert_eq!(describe_rule(&two, true), TWO);
}

/// Attack: a withdrawal that its member did not sign, and a ballot's signature over a withdrawal.
#[test]
fn attack_a_withdrawal_by_other_keys() {
    let mut state = circle();
    let id = proposal(&state, deploy(4)).id();
    let withdrawal = |who: &str| Withdrawal { proposal: id, draft: false, member: name(who) };
    let sound = sign_withdrawal(&secret("alice"), withdrawal("alice"));
    check("by its member", check_withdrawal(&state, &sound), "approved");
    let by_bob = sign_withdrawal(&secret("bob"), withdrawal("alice"));
    check("by another", check_withdrawal(&state, &by_bob), "signature-invalid: `alice`");
    let mut as_draft = sound.clone();
    as_draft.withdrawal.draft = true;
    check("of a draft instead", check_withdrawal(&state, &as_draft), "signature-invalid: `alice`");
    let mut as_ballot = sound.clone();
    as_ballot.signature = secret("alice").sign(BALLOT_DOMAIN, &to_bytes(&as_ballot.withdrawal));
    check("in another domain", check_withdrawal(&state, &as_ballot), "signature-invalid: `alice`");
    let outsider = sign_withdrawal(&secret("mallory"), withdrawal("mallory"));
    check("by an outsider", check_withdrawal(&state, &outsider), "not-a-member: `mallory`");
    enact(&mut state, suspend("alice"), &["bob", "carol"]);
    check("by a suspended member", check_withdrawal(&state, &sound), "member-suspended: `alice`");
}

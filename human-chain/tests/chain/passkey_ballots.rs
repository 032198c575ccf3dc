//! Attacks on ballots by passkey and on the passkeys of a circle, each beside the honest act that passes.

use crate::authenticator::{Authenticator, Ceremony, ORIGIN, passkey_policy};
use crate::support::{
    HOUR, NOW, approve, check, deploy, enact, forget, founded, genesis, key, member, name, node, policy,
    proposal, prove, retire, secret, set_members, sign_again, signed, try_propose,
};
use human_chain::{
    ChainError, CircleState, Electorate, ballot_challenge, certify, check_ballot, describe, render, tally,
    unsigned_ballot, verify, verify_replay, verify_superseded,
};
use protocol::governance::{
    ActionClass, Ballot, BallotSignature, Certificate, Change, Choice, NodeRole, Policy, Proposal, Quorum,
    SignedBallot,
};
use protocol::keys::ByteString;
use protocol::limits::{PASSKEY_ORIGINS_MAX, PASSKEYS_MAX};
use protocol::{Millis, Passkey, PasskeyKey};

const TWO: &str = "2 of (alice, bob, carol)";

/// Returns the rules of the sample circle, with passkeys that count for routine changes, or do not.
fn rules(routine: bool) -> Policy {
    let mut passkeys = passkey_policy();
    passkeys.routine = routine;
    Policy { passkeys: Some(passkeys), ..policy(TWO, TWO) }
}

pub(crate) fn set(who: &str, passkeys: Vec<Passkey>) -> Change {
    Change::SetPasskeys { member: name(who), passkeys }
}

pub(crate) fn phone(who: &str) -> Authenticator {
    Authenticator::es256(&format!("phone of {who}"))
}

/// Returns a circle in which alice and bob have a phone each.
pub(crate) fn with_phones(routine: bool) -> CircleState {
    let mut founding = genesis();
    founding.policy = rules(routine);
    let mut state = CircleState::found(&signed(founding), None).expect("sound");
    for who in ["alice", "bob"] {
        enact(&mut state, set(who, vec![phone(who).passkey("phone")]), &[who]);
    }
    state
}

/// Returns a ballot that this authenticator signs in a member's name.
fn by(
    authenticator: &Authenticator,
    who: &str,
    proposal: &Proposal,
    choice: Choice,
    counter: u32,
    at: Millis,
) -> SignedBallot {
    let ballot = unsigned_ballot(name(who), proposal.history, proposal, choice, at);
    signed_by(authenticator, ballot, counter)
}

fn signed_by(authenticator: &Authenticator, ballot: Ballot, counter: u32) -> SignedBallot {
    let assertion = authenticator.answer(&Ceremony::of(&ballot_challenge(&ballot).0, counter));
    SignedBallot { ballot, signature: BallotSignature::Passkey(assertion) }
}

pub(crate) fn tapped(who: &str, proposal: &Proposal, counter: u32) -> SignedBallot {
    by(&phone(who), who, proposal, Choice::Approve, counter, NOW)
}

fn typed(who: &str, proposal: &Proposal) -> SignedBallot {
    approve(proposal, &[who]).ballots.remove(0)
}

fn certificate(proposal: &Proposal, ballots: Vec<SignedBallot>) -> Certificate {
    Certificate { proposal: proposal.clone(), ballots }
}

#[test]
fn a_passkey_beside_a_key_decides_a_routine_change() {
    let mut state = with_phones(true);
    let wanted = proposal(&state, deploy(4));
    assert!(wanted.passkeys_count && render(&wanted).text.contains("Votes by passkey count here"));
    let ballots = [tapped("alice", &wanted, 1), typed("bob", &wanted)];
    ballots.iter().for_each(|ballot| check("each", check_ballot(&state, &wanted, ballot, NOW), "approved"));
    let counted = tally(&state, &wanted, &ballots);
    assert!(counted.reached && !counted.only_passkeys && counted.refused.is_empty());
    let certificate = certify(&state, &wanted, &ballots).expect("a quorum");
    let approved = verify(&state, &certificate, NOW).expect("sound");
    let replayed = verify_replay(&state, &certificate).expect("for ever");
    assert_eq!(approved, replayed);
    state.advance(approved).expect("applies");
    assert_eq!(state.check_invariants(), Ok(()));
    check("also later", verify_superseded(&state, &certificate), "approved");
    let no = by(&phone("bob"), "bob", &proposal(&state, deploy(2)), Choice::Reject, 1, NOW);
    let counted = tally(&state, &proposal(&state, deploy(2)), &[no]);
    assert_eq!(counted.rejected.len(), 1, "a passkey also says no");
}

/// A member drops a passkey after its ballot was verified, and before the decision is applied.
#[test]
fn the_use_of_a_passkey_that_was_dropped_since_leaves_no_counter() {
    let mut state = with_phones(true);
    let wanted = proposal(&state, deploy(4));
    let ballots = vec![tapped("alice", &wanted, 7), typed("bob", &wanted)];
    let approved = verify(&state, &certificate(&wanted, ballots), NOW).expect("sound");
    enact(&mut state, set("alice", vec![]), &["alice"]);
    state.advance(approved).expect("nothing that it depends on has changed");
    assert_eq!(state.check_invariants(), Ok(()));
}

/// Attack: passkeys of all members, without one signature by a member's keys.
#[test]
fn passkeys_alone_decide_nothing() {
    let state = with_phones(true);
    let wanted = proposal(&state, deploy(4));
    let alone = vec![tapped("alice", &wanted, 1), tapped("bob", &wanted, 1)];
    let refused = verify(&state, &certificate(&wanted, alone.clone()), NOW);
    check("verified", refused, "passkeys-alone: all 2 approvals are by passkey");
    check("certified", certify(&state, &wanted, &alone), "passkeys-alone");
    check("superseded", verify_superseded(&state, &certificate(&wanted, alone.clone())), "passkeys-alone");
    let counted = tally(&state, &wanted, &alone);
    assert!(!counted.reached && counted.only_passkeys, "the tally says what is missing");
    // Positive control: each ballot is sound, and beside carol's key they decide.
    let beside = [alone, vec![typed("carol", &wanted)]].concat();
    check("beside a key", verify(&state, &certificate(&wanted, beside), NOW), "approved");
    let one = vec![tapped("alice", &wanted, 1)];
    check("too few", verify(&state, &certificate(&wanted, one), NOW), "quorum-not-reached");
}

/// Attack: a ballot by passkey in a circle that did not vote for them, or on a change that is not routine.
#[test]
fn passkeys_count_only_where_the_circle_says_so() {
    let (state, without) = (with_phones(true), with_phones(false));
    let members: Vec<_> = state.members().cloned().collect();
    let rosters = set_members(&state, members, rules(true));
    for (case, state, change, expected) in [
        ("routine", &state, deploy(4), "approved"),
        ("retire", &state, Change::RemoveNode { node: name("n3") }, "approved"),
        ("members", &state, rosters, "passkey-not-counted: this sensitive change"),
        ("a model", &state, forget("spare", 60), "passkey-not-counted: this sensitive change"),
        ("no passkeys in votes", &without, deploy(4), "passkey-not-counted: `alice` voted by passkey"),
    ] {
        let wanted = proposal(state, change);
        assert_eq!(wanted.passkeys_count, expected == "approved", "{case}: the proposal says so");
        let text = render(&wanted).text;
        assert_eq!(text.contains("Votes by passkey count here"), wanted.passkeys_count, "{case}");
        check(case, check_ballot(state, &wanted, &tapped("alice", &wanted, 1), NOW), expected);
        let mixed = vec![tapped("alice", &wanted, 1), typed("bob", &wanted)];
        check(case, verify(state, &certificate(&wanted, mixed), NOW), expected);
        // Positive control: the same members by their keys.
        check(case, verify(state, &approve(&wanted, &["alice", "bob"]), NOW), "approved");
    }
    for state in [&state, &without] {
        let mut lies = proposal(state, deploy(4));
        lies.passkeys_count = !lies.passkeys_count;
        check(
            "a lie",
            check_ballot(state, &lies, &typed("bob", &lies), NOW),
            "governance-invalid: passkeys_count",
        );
    }
}

/// Attack: an assertion for one ballot is handed in under another.
#[test]
fn an_assertion_is_for_its_ballot_alone() {
    let state = with_phones(true);
    let (wanted, other) = (proposal(&state, deploy(4)), proposal(&state, deploy(9)));
    let honest = tapped("alice", &wanted, 1);
    check("its own", check_ballot(&state, &wanted, &honest, NOW), "approved");
    let no = by(&phone("alice"), "alice", &wanted, Choice::Reject, 1, NOW);
    for (case, proposal, ballot, expected) in [
        ("another proposal", &other, tapped("alice", &other, 1).ballot, "passkey-challenge"),
        ("the other choice", &wanted, no.ballot, "passkey-challenge"),
        ("another member", &wanted, tapped("bob", &wanted, 1).ballot, "passkey-unknown: none of `bob`'s"),
        ("a member without any", &wanted, typed("carol", &wanted).ballot, "passkey-unknown"),
        (
            "another time",
            &wanted,
            Ballot { issued_at: NOW.plus(1), ..honest.ballot.clone() },
            "passkey-challenge",
        ),
    ] {
        let replayed = SignedBallot { ballot, signature: honest.signature.clone() };
        check(case, check_ballot(&state, proposal, &replayed, NOW), expected);
        // Positive control: the passkey of that member, over that very ballot, is accepted.
        let who = replayed.ballot.member.as_str().to_string();
        if who != "carol" {
            check(
                case,
                check_ballot(&state, proposal, &signed_by(&phone(&who), replayed.ballot, 1), NOW),
                "approved",
            );
        }
    }
    // Signed for the right proposal over the text of another one: a dishonest screen.
    let mut elsewhere = honest.ballot;
    elsewhere.rendering = render(&other).digest;
    let elsewhere = signed_by(&phone("alice"), elsewhere, 1);
    check("text", check_ballot(&state, &wanted, &elsewhere, NOW), "ballot-mismatch: another rendering");
}

/// Attack: a passkey in the name of a member is approved by another member, or by a passkey.
#[test]
fn only_the_members_own_key_sets_its_passkeys() {
    let mut state = with_phones(true);
    let thief = Authenticator::es256("thief").passkey("laptop");
    let wanted = proposal(&state, set("alice", vec![thief.clone()]));
    let personal = "quorum-not-reached: not reach the Personal quorum: alice";
    check("by bob", verify(&state, &approve(&wanted, &["bob"]), NOW), personal);
    check("by all others", verify(&state, &approve(&wanted, &["bob", "carol"]), NOW), personal);
    let tapped = tapped("alice", &wanted, 1);
    let expected = "passkey-not-counted: this personal change";
    check("by her passkey", check_ballot(&state, &wanted, &tapped, NOW), expected);
    check("by her passkey", verify(&state, &certificate(&wanted, vec![tapped]), NOW), expected);
    let mut forged = typed("bob", &wanted);
    forged.ballot.member = name("alice");
    sign_again(&mut forged, "bob");
    check(
        "in her name",
        verify(&state, &certificate(&wanted, vec![forged]), NOW),
        "signature-invalid: `alice`",
    );
    assert_eq!(describe(&state.quorum_of(&wanted.change)), "alice");
    // Positive control: by her own key the same change passes, and the passkey votes from then on.
    enact(&mut state, wanted.change, &["alice"]);
    assert_eq!(state.passkeys(&name("alice")), [thief]);
    let next = proposal(&state, deploy(4));
    let vote = by(&Authenticator::es256("thief"), "alice", &next, Choice::Approve, 1, NOW);
    check("afterwards", check_ballot(&state, &next, &vote, NOW), "approved");
}

/// Attack: a key that was given up comes back in the other role: as another member's passkey, or as a
/// member's own keys.
#[test]
fn attack_a_key_that_was_given_up_returns_in_another_role() {
    let mut state = with_phones(true);
    // A passkey by the key with which this member signs.
    let own_key = |who: &str| Passkey {
        key: PasskeyKey::EdDsa(secret(who).public().ed25519),
        ..Authenticator::eddsa(who).passkey(who)
    };
    let (synced, alices) = (own_key("synced"), own_key("alice"));
    let try_set = |state: &CircleState, who: &str, passkey: &Passkey| {
        try_propose(state, set(who, vec![passkey.clone()])).map(drop)
    };
    let rotate = |state: &CircleState, at: usize, whose: &str| {
        let mut members: Vec<_> = state.members().cloned().collect();
        members[at].keys = member(whose).keys;
        let proofs = [(members[at].id.clone(), prove(whose, &members[at]))].into();
        Change::SetMembers { members, policy: rules(true), proofs }
    };
    // Positive controls: a passkey of no party is accepted, and so are keys of no party.
    check("a new passkey", try_set(&state, "carol", &synced), "approved");
    check("new keys", try_propose(&state, rotate(&state, 1, "synced")), "approved");
    check("keys in force", try_set(&state, "bob", &alices), "governance-invalid: in use elsewhere");

    enact(&mut state, set("carol", vec![synced.clone()]), &["carol"]);
    enact(&mut state, set("carol", vec![]), &["carol"]);
    check("her own passkey", try_set(&state, "carol", &synced), "approved");
    check("another's passkey", try_set(&state, "bob", &synced), "governance-invalid: in use elsewhere");
    check("a member's keys", try_propose(&state, rotate(&state, 1, "synced")), "member-key-returns");

    let change = rotate(&state, 0, "dave");
    enact(&mut state, change, &["bob", "carol"]);
    check("former keys", try_set(&state, "bob", &alices), "governance-invalid: in use elsewhere");
    check("her own former keys", try_set(&state, "alice", &alices), "governance-invalid: in use elsewhere");
    assert_eq!(state.check_invariants(), Ok(()));
}

/// Attack: a passkey that its member dropped, or that left with its member or with the key behind it.
#[test]
fn a_passkey_that_was_dropped_is_refused() {
    let state = with_phones(true);
    let vote = |state: &CircleState| {
        let wanted = proposal(state, deploy(4));
        let ballot = tapped("alice", &wanted, 1);
        (check_ballot(state, &wanted, &ballot, NOW), state.ballot_stands(&ballot))
    };
    assert_eq!(vote(&state), (Ok(Electorate::InForce), true), "as long as it is hers");
    let unknown = (Err(ChainError::PasskeyUnknown(name("alice"))), false);
    let mut dropped = state.clone();
    enact(&mut dropped, set("alice", vec![]), &["alice"]);
    assert_eq!(vote(&dropped), unknown);
    let mut replaced = state.clone();
    enact(&mut replaced, set("alice", vec![Authenticator::eddsa("new").passkey("phone")]), &["alice"]);
    assert_eq!(vote(&replaced), unknown);
    let mut rotated = state.clone();
    let mut members: Vec<_> = rotated.members().cloned().collect();
    members[0].keys = member("dave").keys;
    let proofs = [(name("alice"), prove("dave", &members[0]))].into();
    enact(&mut rotated, Change::SetMembers { members, policy: rules(true), proofs }, &["bob", "carol"]);
    assert_eq!((vote(&rotated), rotated.passkeys(&name("bob")).len()), (unknown, 1), "bob keeps his");
    let mut left = state.clone();
    let members = ["bob", "carol"].map(member).to_vec();
    let two = "2 of (bob, carol)";
    let policy = Policy { passkeys: Some(passkey_policy()), ..policy(two, two) };
    let change = set_members(&left, members, policy);
    enact(&mut left, change, &["bob", "carol"]);
    assert_eq!(vote(&left).0, Err(ChainError::NotAMember(name("alice"))));
    for mut state in [dropped, rotated] {
        assert!(state.passkeys(&name("alice")).is_empty());
        if state.epoch() == protocol::Epoch(1) {
            enact(&mut state, set("alice", vec![phone("alice").passkey("phone")]), &["alice"]);
            assert_eq!(vote(&state), (Ok(Electorate::InForce), true), "registered again");
        }
        assert_eq!(state.check_invariants(), Ok(()));
    }
    assert_eq!((left.passkeys(&name("alice")).len(), left.check_invariants()), (0, Ok(())));
}

/// Attack: one passkey for two members, or one key for a passkey and a machine, would be one person twice.
#[test]
fn a_passkey_is_of_one_party() {
    let state = with_phones(true);
    let free = |label: &str| Authenticator::eddsa("spare").passkey(label);
    let machine = Passkey { key: PasskeyKey::EdDsa(key("n1")), ..free("machine") };
    let own = Passkey { key: PasskeyKey::EdDsa(secret("carol").public().ed25519), ..free("own") };
    let renamed = Passkey { credential: ByteString(vec![1; 16]), ..phone("alice").passkey("renamed") };
    let same_id = Passkey { credential: phone("alice").passkey("").credential, ..free("same id") };
    let taken = "governance-invalid: is in use elsewhere";
    for (case, passkeys, expected) in [
        ("one of her own", vec![free("spare")], "approved"),
        ("alice's", vec![phone("alice").passkey("phone")], taken),
        ("alice's key under another id", vec![renamed], taken),
        ("alice's id with another key", vec![same_id], taken),
        ("a node's key", vec![machine], taken),
        ("carol's own key", vec![own], taken),
        ("twice", vec![free("a"), free("b")], "governance-invalid: stands in the list twice"),
        (
            "one label",
            vec![free("a"), Authenticator::es256("other").passkey("a")],
            "governance-invalid: two have the label `a`",
        ),
        ("no label", vec![free("")], "governance-invalid: has no label"),
        (
            "a long label",
            vec![free(&"x".repeat(64))],
            "governance-invalid: is 64 bytes; accepted: at most 63",
        ),
        ("a hidden label", vec![free("a\u{7}")], "governance-invalid: control character"),
    ] {
        let outcome = try_propose(&state, set("carol", passkeys));
        check(case, outcome, expected);
    }
    let many = |count| {
        let one = |at| Authenticator::eddsa(&format!("key {at}")).passkey(&format!("key {at}"));
        set("carol", (0..count).map(one).collect())
    };
    check("as many as may be", try_propose(&state, many(PASSKEYS_MAX)), "approved");
    check(
        "one more",
        try_propose(&state, many(PASSKEYS_MAX + 1)),
        "governance-invalid: 9 passkeys; accepted: at most 8",
    );
    let exchanged = Passkey { key: free("").key, ..phone("alice").passkey("phone") };
    let outcome = try_propose(&state, set("alice", vec![exchanged]));
    check("another key under her id", outcome, "governance-invalid: has another key than before");
    check("of a stranger", try_propose(&state, set("mallory", vec![])), "not-a-member: `mallory`");
    // The reverse: a machine with the key of a passkey. Two changes verified side by side exclude each other.
    let mut with_key = state.clone();
    let of_machine = Passkey { key: PasskeyKey::EdDsa(key("n9")), ..free("machine") };
    let admission = Change::AdmitNode(Box::new(node("n9", &[NodeRole::Worker])));
    let admitted = proposal(&state, admission.clone());
    enact(&mut with_key, set("carol", vec![of_machine]), &["carol"]);
    check("admission", try_propose(&with_key, admission), "governance-invalid: uses a key in use");
    check(
        "side by side",
        verify(&with_key, &approve(&admitted, &["alice", "bob"]), NOW),
        "governance-invalid",
    );
    check("without it", verify(&state, &approve(&admitted, &["alice", "bob"]), NOW), "approved");
}

#[test]
fn a_circle_without_a_policy_for_passkeys_has_none() {
    let state = crate::support::circle();
    let passkeys = vec![phone("alice").passkey("phone")];
    check("set", try_propose(&state, set("alice", passkeys)), "governance-invalid: propose a policy");
    check("none", try_propose(&state, set("alice", vec![])), "approved");
    let mut state = with_phones(true);
    let members = state.members().cloned().collect();
    let change = set_members(&state, members, policy(TWO, TWO));
    enact(&mut state, change, &["alice", "bob"]);
    let wanted = proposal(&state, deploy(4));
    check("kept", check_ballot(&state, &wanted, &tapped("alice", &wanted, 1), NOW), "passkey-not-counted");
    assert_eq!(state.passkeys(&name("alice")).len(), 1, "it is hers still, and counts for nothing");
    enact(&mut state, set("alice", vec![]), &["alice"]);
    assert_eq!(state.check_invariants(), Ok(()));
}

/// Approves a change by alice's passkey and bob's key, with this counter and time of signing.
fn used(state: &CircleState, change: Change, counter: u32, at: Millis) -> Certificate {
    let wanted = proposal(state, change);
    let ballots =
        vec![by(&phone("alice"), "alice", &wanted, Choice::Approve, counter, at), typed("bob", &wanted)];
    certificate(&wanted, ballots)
}

fn decide(state: &mut CircleState, certificate: &Certificate) {
    let approved = verify(state, certificate, NOW.plus(HOUR)).expect("sound");
    state.advance(approved).expect("applies");
    assert_eq!(state.check_invariants(), Ok(()));
}

/// Attack: a copy of alice's authenticator, behind the original, votes after it.
#[test]
fn a_copied_authenticator_is_found_by_its_counter() {
    let at = |minutes: u64| NOW.plus(minutes * 60_000);
    let fresh = with_phones(true);
    let mut state = fresh.clone();
    let first = used(&state, deploy(4), 7, at(5));
    decide(&mut state, &first);
    for (counter, minutes, expected) in [
        (6, 6, "passkey-counter: counts 6, and counted 7 before"),
        (7, 6, "passkey-counter"),
        (0, 6, "passkey-counter"),
        (8, 6, "approved"),
        // Signed before, decided later: proposals run side by side.
        (6, 4, "approved"),
    ] {
        let next = used(&state, retire("embed"), counter, at(minutes));
        check("a later use", verify(&state, &next, NOW), expected);
        let stands = state.ballot_stands(&next.ballots[0]);
        assert_eq!(stands, expected == "approved", "{counter} at {minutes}");
        // Positive control: without the count of the first use, any counter passes.
        let unused = used(&fresh, deploy(4), counter, at(minutes));
        check("a first use", verify(&fresh, &unused, NOW), "approved");
    }
    check("its own use, again", verify_superseded(&state, &first), "approved");
}

#[test]
fn counts_follow_the_passkey_and_not_the_order_of_decisions() {
    let at = |minutes: u64| NOW.plus(minutes * 60_000);
    let mut state = with_phones(true);
    let admit = |who: &str| Change::AdmitNode(Box::new(node(who, &[NodeRole::Worker])));
    let [early, late] = [("n7", 3, 1), ("n8", 4, 2)]
        .map(|(who, counter, minutes)| used(&state, admit(who), counter, at(minutes)));
    decide(&mut state, &late);
    decide(&mut state, &early);
    check("behind both", verify(&state, &used(&state, deploy(1), 4, at(3)), NOW), "passkey-counter");
    check("ahead of both", verify(&state, &used(&state, deploy(1), 5, at(3)), NOW), "approved");
    let other = Authenticator::eddsa("synced");
    let both = vec![phone("alice").passkey("phone"), other.passkey("synced")];
    enact(&mut state, set("alice", both), &["alice"]);
    check(
        "kept with a second one",
        verify(&state, &used(&state, deploy(1), 4, at(3)), NOW),
        "passkey-counter",
    );
    for round in 0..3 {
        let wanted = proposal(&state, deploy(1 + round));
        let vote = by(&other, "alice", &wanted, Choice::Approve, 0, at(10 + u64::from(round)));
        decide(&mut state, &certificate(&wanted, vec![vote, typed("bob", &wanted)]));
    }
    enact(&mut state, set("alice", vec![]), &["alice"]);
    enact(&mut state, set("alice", vec![phone("alice").passkey("phone")]), &["alice"]);
    check("registered anew", verify(&state, &used(&state, deploy(9), 1, at(20)), NOW), "approved");
}

/// Attack: one bit of an assertion in a certificate. Every tenth is tried; `passkeys.rs` tries every one.
#[test]
fn an_altered_assertion_spoils_its_certificate() {
    let state = with_phones(true);
    let sound = used(&state, deploy(4), 1, NOW);
    check("sound", verify(&state, &sound, NOW), "approved");
    let length = |certificate: &mut Certificate, part: usize| assertion(certificate, part).len();
    for part in 0..4 {
        for bit in (0..length(&mut sound.clone(), part) * 8).step_by(10) {
            let mut altered = sound.clone();
            assertion(&mut altered, part)[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&state, &altered, NOW).is_err(), "part {part}, bit {bit}");
        }
    }
}

fn assertion(certificate: &mut Certificate, part: usize) -> &mut Vec<u8> {
    let BallotSignature::Passkey(assertion) = &mut certificate.ballots[0].signature else {
        panic!("by passkey")
    };
    let parts = [
        &mut assertion.credential,
        &mut assertion.authenticator_data,
        &mut assertion.client_data,
        &mut assertion.signature,
    ];
    &mut parts.into_iter().nth(part).expect("one of four").0
}

fn policed(case: &str, expected: &str, alter: impl Fn(&mut protocol::PasskeyPolicy)) {
    founded(case, expected, |genesis| {
        let mut passkeys = passkey_policy();
        alter(&mut passkeys);
        genesis.policy = Policy { passkeys: Some(passkeys), ..policy(TWO, TWO) };
    });
}

#[test]
fn a_policy_names_one_domain_and_the_pages_below_it() {
    policed("sound", "approved", |_| {});
    for domain in [
        "Example.org",
        "example",
        "",
        "example.org.",
        ".example.org",
        "127.0.0.1",
        "exa mple.org",
        "-a.org",
        "https://example.org",
        "[::1]",
        "example..org",
    ] {
        policed(domain, "governance-invalid: neither a domain", |p| p.rp_id = domain.into());
    }
    for origin in [
        "https://example.org",
        "https://example.org:8443",
        "https://a.b.example.org",
        "https://xn--bcher-kva.example.org",
    ] {
        policed(origin, "approved", |p| {
            p.origins.insert(origin.into());
        });
    }
    for origin in [
        "http://example.org",
        "http://localhost:8080",
        "https://example.org/",
        "https://example.org:443",
        "https://example.org:0",
        "https://example.org:08443",
        "https://example.org:+8443",
        "https://example.org:99999",
        "https://example.org:",
        "https://notexample.org",
        "https://example.org.evil.example",
        "https://evil.example",
        "https://.example.org",
        "https://EXAMPLE.org",
        "https://user@example.org",
        "https://example.org:8443:1",
        "https://10.0.0.1",
        "example.org",
        "",
        "null",
    ] {
        policed(origin, "governance-invalid: is no origin at or below", |p| {
            p.origins.insert(origin.into());
        });
    }
}

#[test]
fn a_policy_for_a_members_own_machine_names_localhost() {
    for (origin, expected) in [
        ("http://localhost:8080", "approved"),
        ("http://localhost", "approved"),
        ("https://localhost:8443", "approved"),
        ("http://a.localhost:8080", "governance-invalid: or http://localhost:PORT"),
        ("http://127.0.0.1:8080", "governance-invalid"),
        ("http://localhost:80", "governance-invalid"),
        ("https://example.org", "governance-invalid"),
    ] {
        policed(origin, expected, |p| {
            p.rp_id = "localhost".into();
            p.origins = [origin.to_string()].into();
        });
    }
    policed("none", "governance-invalid: 0 origins; accepted: 1 to 16", |p| p.origins.clear());
    policed("too many", "governance-invalid: 17 origins", |p| {
        p.origins = (0..=PASSKEY_ORIGINS_MAX).map(|at| format!("{ORIGIN}:{}", 8000 + at)).collect();
    });
    founded("a quorum", "governance-invalid: has a quorum for personal changes", |genesis| {
        genesis.policy.quorums.insert(ActionClass::Personal, Quorum::Member(name("alice")));
    });
}

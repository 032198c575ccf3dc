//! Bad input that people or machines send for real: each has a code and leaves an honest state. The inputs
//! that other files test are listed in SPECIFICATION.md beside these.

use crate::support::{NOW, approve, check, circle, deploy, enact, name, proposal, quorum, secret, signed};
use crate::{samples, support};
use human_chain::{
    CircleState, certify, class_of, read_bundle, read_certificate, read_genesis, render, tally, verify, vote,
};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{ActionClass, Certificate, Change, Choice, Member, Policy, SignedBallot};
use protocol::keys::ByteString;
use protocol::limits;
use std::collections::BTreeMap;

/// A certificate as large as its sender wishes.
const MEGABYTES_100: usize = 100 * 1024 * 1024;

/// Returns the fields of a text, in order.
fn fields(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("| ")).collect()
}

/// Returns a change of so many members that a person would give up reading. No circle takes it; the text is
/// what a member would see before any other check.
fn crowd(members: usize) -> Change {
    let template = support::member("alice");
    let of = |number: usize| {
        let mut keys = template.keys.clone();
        keys.ed25519.0[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Member { id: name(&format!("member-{number:05}")), keys }
    };
    let members: Vec<Member> = (0..members).map(of).collect();
    Change::SetMembers { members, policy: circle().policy().clone(), proofs: BTreeMap::new() }
}

#[test]
fn a_rendering_of_ten_thousand_fields_is_never_cut() {
    let state = circle();
    let small = fields(&render(&samples_of(crowd(1))).text).len();
    let each = fields(&render(&samples_of(crowd(2))).text).len() - small;
    assert!(each > 0, "each member has fields of its own");
    let members = 10_000_usize.div_ceil(each);
    let large = samples_of(crowd(members));
    let shown = render(&large);
    let lines = fields(&shown.text);
    assert!(lines.len() >= 10_000, "{}", lines.len());
    assert_eq!(lines.len(), small + (members - 1) * each, "every field of every member");
    assert!((0..members).all(|number| shown.text.contains(&format!("member-{number:05}"))), "each by name");
    // The last field counts as much as the first: in the text, in its digest and in its words.
    let mut altered = large.clone();
    let Change::SetMembers { members, .. } = &mut altered.change else { panic!("a change of members") };
    members.last_mut().expect("a member").keys.ed25519.0[31] ^= 1;
    let other = render(&altered);
    assert_ne!(other.digest, shown.digest);
    assert_ne!(other.words, shown.words);
    // Positive control: to a reader that cuts the text, the two proposals differ in their ids alone.
    let cut = |text: &str| -> Vec<String> {
        let named = fields(text).into_iter().filter(|line| !line.starts_with("| proposal "));
        named.take(9_000).map(String::from).collect()
    };
    assert_eq!(cut(&shown.text), cut(&other.text));
    // No circle takes it: the refusal names the limit.
    let refused = human_chain::propose(
        &state,
        large.change.clone(),
        String::new(),
        NOW,
        NOW.plus(support::HOUR),
        large.nonce,
    );
    check("ten thousand fields", refused, "governance-invalid: ");
}

/// Returns a proposal of a change that no check has seen.
fn samples_of(change: Change) -> protocol::governance::Proposal {
    let (_, sample) = samples::proposals().swap_remove(0);
    protocol::governance::Proposal { change, ..sample }
}

/// The largest proposals that a circle takes show each of their parts, and reading them costs little.
#[test]
fn the_largest_lift_shows_every_halt() {
    let Change::Lift { halts } = samples::lift_all() else { panic!("a lift") };
    let shown = render(&samples_of(Change::Lift { halts: halts.clone() }));
    for halt in &halts {
        assert!(shown.text.contains(&halt.id().to_string()), "{}", halt.id());
    }
}

/// Attack: a member signs both a yes and a no, and each party gets the one that suits its sender.
#[test]
fn a_member_that_signs_both_ways_votes_once_and_is_named() {
    let state = circle();
    let wanted = proposal(&state, deploy(4));
    let ballot = |who: &str, choice| vote(&secret(who), name(who), wanted.history, &wanted, choice, NOW);
    let (yes, no) = (ballot("bob", Choice::Approve), ballot("bob", Choice::Reject));
    for (ballots, approves) in [([yes.clone(), no.clone()], true), ([no.clone(), yes.clone()], false)] {
        let counted = tally(&state, &wanted, &ballots);
        assert_eq!((counted.approved.len(), counted.rejected.len()), if approves { (1, 0) } else { (0, 1) });
        check::<()>("the second", Err(counted.refused[0].1.clone()), "ballot-duplicate: `bob`");
    }
    // A certificate that has both is refused by every node, whichever of them comes first.
    let sound =
        certify(&state, &wanted, &[ballot("alice", Choice::Approve), yes.clone()]).expect("two approve");
    check("control", verify(&state, &sound, NOW), "approved");
    let with = |more: SignedBallot, at: usize| {
        let mut both = sound.clone();
        both.ballots.insert(at, more);
        both
    };
    check("a yes, then a no", verify(&state, &with(no.clone(), 2), NOW), "ballot-duplicate: `bob`");
    check("a no, then a yes", verify(&state, &with(no.clone(), 1), NOW), "governance-invalid: ");
    check("two of one kind", verify(&state, &with(yes, 2), NOW), "ballot-duplicate: `bob`");
    // Positive control: a certificate says that bob approved, and his signed no, which a proposal may have
    // had first, alters nothing in it: who has only the certificate cannot know of the no.
    assert!(sound.ballots.iter().all(|signed| *signed != no));
}

/// Attack: a certificate of 100 MB. It is refused by its length, before a byte of it is read.
#[test]
fn a_certificate_of_100_megabytes_is_refused_by_its_length() {
    let huge = vec![0x9b; MEGABYTES_100];
    check("a certificate", read_certificate(&huge), "governance-invalid: exceed the limit");
    check("a bundle", read_bundle(&huge), "governance-invalid: exceed the limit");
    check("a genesis", read_genesis(&huge), "governance-invalid: exceed the limit");
    // A sender that is asked for less states a length that it does not send.
    let claims = |kind: u8| [&[kind][..], &(MEGABYTES_100 as u64).to_be_bytes()].concat();
    for kind in [0x5b, 0x7b, 0x9b, 0xbb] {
        check("a length without its bytes", read_certificate(&claims(kind)), "governance-invalid: ");
    }
    // In memory, a certificate of that size is refused before any signature is checked.
    let state = circle();
    let mut padded = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    let protocol::governance::BallotSignature::Hybrid(signature) = &mut padded.ballots[1].signature else {
        panic!("a signature by keys")
    };
    signature.ml_dsa = ByteString(huge);
    check("in memory", verify(&state, &padded, NOW), "governance-invalid: 2 ballots");
    // Positive control: the decoder itself takes a certificate of any size that its caller allows.
    let bytes = to_bytes(&padded);
    assert!(bytes.len() > MEGABYTES_100);
    let read: Certificate = from_bytes(&bytes, bytes.len()).expect("sound in form");
    assert_eq!(read.ballots.len(), 2);
}

/// Returns the sample circle with another policy.
fn ruled_by(policy: Policy) -> CircleState {
    let mut genesis = support::genesis();
    genesis.policy = policy;
    CircleState::found(&signed(genesis), None).expect("sound")
}

/// A class that the policy lacks falls back to the sensitive one; a class that this release does not know is
/// refused where it is read.
#[test]
fn an_unknown_class_is_refused_and_a_class_without_a_rule_is_sensitive() {
    let all = quorum("3 of (alice, bob, carol)");
    let strict = || Policy {
        quorums: BTreeMap::from([(ActionClass::Sensitive, all.clone())]),
        passkeys: None,
        veto_seconds: 0,
        proposer_counts: true,
    };
    let mut state = ruled_by(strict());
    assert_eq!(class_of(&deploy(4)), ActionClass::Routine);
    let wanted = proposal(&state, deploy(4));
    let two = approve(&wanted, &["alice", "bob"]);
    check("two of three", verify(&state, &two, NOW), "quorum-not-reached: 2 approvals do not reach");
    enact(&mut state, deploy(4), &["alice", "bob", "carol"]);
    // Positive control: a rule of its own for routine changes takes the same two approvals.
    let mut lenient = strict();
    lenient.quorums.insert(ActionClass::Routine, quorum("2 of (alice, bob, carol)"));
    let state = ruled_by(lenient);
    let two = approve(&proposal(&state, deploy(4)), &["alice", "bob"]);
    check("control", verify(&state, &two, NOW), "approved");
    // Without the sensitive class there is nothing to fall back to.
    support::founded("no sensitive class", "governance-invalid: ", |genesis| {
        genesis.policy.quorums.remove(&ActionClass::Sensitive);
    });
    // A class of a later release is no class here, in either format.
    let json = serde_json::to_string(&strict()).expect("JSON");
    let later = json.replace("sensitive", "urgent");
    assert_ne!(json, later);
    serde_json::from_str::<Policy>(&json).expect("control");
    let error = serde_json::from_str::<Policy>(&later).expect_err("unknown").to_string();
    assert!(error.contains("unknown variant `urgent`"), "{error}");
    let bytes = to_bytes(&strict());
    let at = bytes.windows(9).position(|part| part == b"sensitive").expect("its name");
    let mut later = bytes.clone();
    later[at..at + 9].copy_from_slice(b"sensitivf");
    assert!(from_bytes::<Policy>(&bytes, limits::PROPOSAL_BYTES_MAX).is_ok());
    assert!(from_bytes::<Policy>(&later, limits::PROPOSAL_BYTES_MAX).is_err());
}

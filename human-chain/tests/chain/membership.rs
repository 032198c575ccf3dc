//! Attacks on a change of members and on a suspension, each with a control that shows what its guard stops.

use crate::support::{
    HOUR, NOW, approve, check, circle, claimed_by, deploy, enact, genesis, member, name, node, policy,
    proposal, prove, secret, set_members, signed, suspend, try_propose,
};
use human_chain::{
    CircleState, certify, check_ballot, check_proven, check_wrap, check_wrap_request, prove_keys,
    recipient_key, recipients, satisfied, sign_wrap, sign_wrap_request, tally, verify, verify_superseded,
    vote,
};
use protocol::governance::{
    ActionClass, Certificate, Change, Choice, Member, NodeRole, Proposal, SignedBallot,
};
use protocol::keys::{ByteString, EncryptionKey};
use protocol::model::{KeyWrap, Recipient, WrapRequest};
use protocol::{Digest, MemberId, ModelRoot, PublicKey};
use std::collections::{BTreeMap, BTreeSet};

const TWO: &str = "2 of (alice, bob, carol)";

/// Returns a change to these members, of whom any two decide.
fn two_of(state: &CircleState, who: &[&str]) -> Change {
    let rule = format!("2 of ({})", who.join(", "));
    set_members(state, who.iter().map(|who| member(who)).collect(), policy(&rule, &rule))
}

/// Returns a member whose keys are those of another name.
fn with_keys_of(id: &str, whose: &str) -> Member {
    Member { id: name(id), keys: member(whose).keys }
}

/// Returns a change in which this member has these keys, proven by their secret, beside the other members of
/// the genesis.
fn rekeyed(id: &str, whose: &str) -> Change {
    let mut members = genesis().members;
    let new = with_keys_of(id, whose);
    let proof = prove(whose, &new);
    match members.iter_mut().find(|member| member.id == new.id) {
        Some(member) => *member = new,
        None => members.push(new),
    }
    let rule = format!("{} of ({})", members.len() / 2 + 1, ids(&members).join(", "));
    Change::SetMembers { members, policy: policy(&rule, &rule), proofs: [(name(id), proof)].into() }
}

fn ids(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| member.id.as_str()).collect()
}

fn group(who: &[&str]) -> BTreeSet<MemberId> {
    who.iter().map(|who| name(who)).collect()
}

/// Returns the approval of a member by the secret of this name.
fn approval(id: &str, whose: &str, proposal: &Proposal) -> SignedBallot {
    vote(&secret(whose), name(id), proposal.history, proposal, Choice::Approve, NOW)
}

fn certificate(proposal: &Proposal, ballots: &[(&str, &str)]) -> Certificate {
    let ballots = ballots.iter().map(|(id, whose)| approval(id, whose, proposal)).collect();
    Certificate { proposal: proposal.clone(), ballots }
}

#[test]
fn attack_a_thief_of_one_key_changes_the_members() {
    let state = circle();
    let wanted = proposal(&state, two_of(&state, &["alice", "mallory", "malory"]));
    let alone = approve(&wanted, &["alice", "mallory", "malory"]);
    check(
        "alone",
        verify(&state, &alone, NOW),
        "quorum-not-reached: 1 approval does not reach the Sensitive",
    );
    // Control: of the new members alone, the thief has the whole quorum.
    let Change::SetMembers { policy, .. } = &wanted.change else { panic!("members") };
    assert!(satisfied(&policy.quorums[&ActionClass::Sensitive], &group(&["alice", "mallory"])));
    check(
        "with a second key",
        verify(&state, &approve(&wanted, &["alice", "bob", "mallory"]), NOW),
        "approved",
    );
}

#[test]
fn attack_the_old_quorum_alone_installs_members_that_did_not_agree() {
    let state = circle();
    let wanted = proposal(&state, two_of(&state, &["carol", "dave", "erin"]));
    let old = approve(&wanted, &["alice", "bob"]);
    // Control: by the rule in force alone, they suffice.
    assert!(satisfied(state.quorum(ActionClass::Sensitive), &group(&["alice", "bob"])));
    let expected = "quorum-not-reached: 0 approvals do not reach the quorum of the proposed members";
    check("verified", verify(&state, &old, NOW), expected);
    check("certified", certify(&state, &wanted, &old.ballots), expected);
    assert!(!tally(&state, &wanted, &old.ballots).reached);
    let both = approve(&wanted, &["alice", "bob", "carol", "dave"]);
    check("with two of the new members", verify(&state, &both, NOW), "approved");
    let counted = tally(&state, &wanted, &both.ballots);
    assert_eq!((counted.approved, counted.joining), (group(&["alice", "bob", "carol"]), group(&["dave"])));
    assert!(counted.reached);
}

#[test]
fn attack_the_new_quorum_alone_takes_the_circle_over() {
    let state = circle();
    let wanted = proposal(&state, two_of(&state, &["carol", "dave", "erin"]));
    let new = approve(&wanted, &["carol", "dave", "erin"]);
    let expected = "quorum-not-reached: 1 approval does not reach the Sensitive quorum";
    check("verified", verify(&state, &new, NOW), expected);
    // Control: by the proposed rule alone, they suffice.
    let Change::SetMembers { policy, .. } = &wanted.change else { panic!("members") };
    assert!(satisfied(&policy.quorums[&ActionClass::Sensitive], &group(&["carol", "dave", "erin"])));
    let routine = proposal(&state, deploy(4));
    check(
        "before they are members",
        verify(&state, &approve(&routine, &["bob", "dave"]), NOW),
        "not-a-member: `dave`",
    );
}

#[test]
fn attack_keys_that_their_holder_did_not_claim() {
    let state = circle();
    let sound = rekeyed("dave", "dave");
    check("claimed", try_propose(&state, sound.clone()), "approved");
    let altered = |alter: &dyn Fn(&mut Member, &mut BTreeMap<MemberId, protocol::keys::HybridSignature>)| {
        let mut change = sound.clone();
        let Change::SetMembers { members, proofs, .. } = &mut change else { panic!("members") };
        alter(&mut members[3], proofs);
        change
    };
    const UNPROVEN: &str = "member-keys-unproven: `dave` has not signed";
    for (case, change, expected) in [
        ("no proof", altered(&|_, proofs| proofs.clear()), UNPROVEN),
        (
            "an outsider's proof",
            altered(&|member, proofs| {
                proofs.insert(member.id.clone(), prove("mallory", member));
            }),
            UNPROVEN,
        ),
        (
            "another member's claim",
            altered(&|member, proofs| {
                proofs.insert(member.id.clone(), prove("dave", &with_keys_of("erin", "dave")));
            }),
            UNPROVEN,
        ),
        (
            "another encryption key",
            altered(&|member, _| {
                member.keys.encryption.x25519 = crate::support::member("mallory").keys.encryption.x25519;
            }),
            UNPROVEN,
        ),
        (
            "half a proof",
            altered(&|member, proofs| {
                let proof = proofs.get_mut(&member.id).expect("its proof");
                proof.ed25519 = prove("mallory", member).ed25519;
            }),
            UNPROVEN,
        ),
        (
            "the other half",
            altered(&|member, proofs| {
                let proof = proofs.get_mut(&member.id).expect("its proof");
                proof.ml_dsa = prove("mallory", member).ml_dsa;
            }),
            UNPROVEN,
        ),
        (
            "a proof too many",
            altered(&|_, proofs| {
                proofs.insert(name("alice"), prove("alice", &member("alice")));
            }),
            "governance-invalid: there is a proof for `alice`",
        ),
    ] {
        check(case, try_propose(&state, change), expected);
    }
}

#[test]
fn an_entry_that_the_product_makes_is_a_proof() {
    let state = circle();
    let claim = prove_keys(&secret("dave"), name("dave"));
    check("the entry of a new member", check_proven(&claim), "approved");
    let mut renamed = claim.clone();
    renamed.member.id = name("erin");
    check("under another id", check_proven(&renamed), "member-keys-unproven: `erin`");
    let proofs = BTreeMap::from([(name("dave"), claim.proof)]);
    let members = [genesis().members, vec![claim.member]].concat();
    let rule = "3 of (alice, bob, carol, dave)";
    let change = Change::SetMembers { members, policy: policy(rule, rule), proofs };
    check("as the product claims", try_propose(&state, change), "approved");
}

#[test]
fn attack_a_former_members_key_returns_under_another_id() {
    let mut state = circle();
    check("an outsider's keys", try_propose(&state, rekeyed("robert", "robert")), "approved");
    const RETURNS: &str = "member-key-returns: `robert` uses a key";
    let without_bob = two_of(&state, &["alice", "carol", "dave"]);
    enact(&mut state, without_bob, &["alice", "carol"]);
    let robert = |whose: &str, alter: fn(&mut Member)| {
        let mut robert = with_keys_of("robert", whose);
        alter(&mut robert);
        let proof = prove(whose, &robert);
        let members = [["alice", "carol", "dave"].map(member).to_vec(), vec![robert]].concat();
        let rule = "3 of (alice, carol, dave, robert)";
        Change::SetMembers { members, policy: policy(rule, rule), proofs: [(name("robert"), proof)].into() }
    };
    // Control: by id alone robert is new, and the same change with keys of his own passes.
    check("his own keys", try_propose(&state, robert("robert", |_| ())), "approved");
    check("bob's keys", try_propose(&state, robert("bob", |_| ())), RETURNS);
    check(
        "bob's encryption key alone",
        try_propose(
            &state,
            robert("robert", |robert| {
                robert.keys.encryption.ml_kem = member("bob").keys.encryption.ml_kem;
            }),
        ),
        RETURNS,
    );
    check(
        "keys of a member in force",
        try_propose(&state, robert("dave", |_| ())),
        "governance-invalid: key in use",
    );
    let mut as_node = node("n7", &[NodeRole::Worker]);
    as_node.encryption = member("bob").keys.encryption;
    let as_node = claimed_by("n7", as_node);
    check(
        "bob's encryption key for a node",
        try_propose(&state, Change::AdmitNode(Box::new(as_node))),
        "governance-invalid: `n7` uses a key in use",
    );
}

#[test]
fn attack_keys_are_replaced_in_part_or_exchanged() {
    let state = circle();
    let mut members = genesis().members;
    members[1].keys.encryption = member("mallory").keys.encryption;
    let proofs = [(name("bob"), prove("bob", &members[1]))].into();
    let partly = Change::SetMembers { members, policy: policy(TWO, TWO), proofs };
    check("the signing keys stay", try_propose(&state, partly), "member-key-returns: `bob`");
    let members = vec![with_keys_of("alice", "bob"), with_keys_of("bob", "alice"), member("carol")];
    let proofs = [("alice", "bob", 0), ("bob", "alice", 1)]
        .map(|(id, whose, at): (&str, &str, usize)| (name(id), prove(whose, &members[at])));
    let exchanged =
        Change::SetMembers { members: members.clone(), policy: policy(TWO, TWO), proofs: proofs.into() };
    check("exchanged", try_propose(&state, exchanged), "member-key-returns: `alice`");
    // Control: all keys of a member, replaced by new ones and proven in the same way, pass.
    check("all of them", try_propose(&state, rekeyed("bob", "bob-anew")), "approved");
}

#[test]
fn attack_a_removal_and_a_lower_rule_travel_together() {
    let mut founding = genesis();
    founding.members.push(member("dave"));
    founding.policy = policy("3 of (alice, bob, carol, dave)", "3 of (alice, bob, carol, dave)");
    let state = CircleState::found(&signed(founding), None).expect("sound");
    let to = |who: &[&str], rule: &str| {
        let members = who.iter().map(|who| member(who)).collect();
        try_propose(&state, set_members(&state, members, policy(rule, rule)))
    };
    let (all, three) = (["alice", "bob", "carol", "dave"], ["alice", "bob", "carol"]);
    check("together", to(&three, "2 of (alice, bob, carol)"), "policy-lowered: while `dave` leaves");
    // Control: each of the two changes passes alone.
    check("the removal alone", to(&three, "3 of (alice, bob, carol)"), "approved");
    check("another rule alone", to(&all, "3 of (2 of (alice, bob), carol, dave)"), "approved");
    check("a lower rule alone", to(&all, "2 of (alice, bob, carol)"), "approved");
    // A rotation takes a vote from the old keys, as a removal does.
    let mut members = all.map(member).to_vec();
    members[3] = with_keys_of("dave", "dave-anew");
    let proofs: BTreeMap<_, _> = [(name("dave"), prove("dave-anew", &members[3]))].into();
    for (rule, expected) in [
        ("3 of (alice, bob, carol, dave)", "approved"),
        ("2 of (alice, bob, carol)", "policy-lowered: while `dave` leaves or changes keys"),
    ] {
        let policy = policy(rule, "3 of (alice, bob, carol, dave)");
        let change = Change::SetMembers { members: members.clone(), policy, proofs: proofs.clone() };
        check(rule, try_propose(&state, change), expected);
    }
    // Outsiders in place of those who leave make no rule lower for those who stay, but need fewer signatures.
    let outsiders = "2 of (alice, erin, frank)";
    check("two of three for three of four", to(&["alice", "erin", "frank"], outsiders), "policy-lowered");
}

#[test]
fn more_new_keys_than_fit_in_a_change_are_refused() {
    let state = circle();
    let new: Vec<String> = (0..17).map(|at| format!("new{at:02}")).collect();
    let ask = |count: usize| {
        let who: Vec<&str> =
            ["alice", "bob", "carol"].into_iter().chain(new.iter().map(String::as_str)).collect();
        let who = &who[..3 + count];
        let rule = format!("{} of ({})", who.len() / 2 + 1, who.join(", "));
        try_propose(
            &state,
            set_members(&state, who.iter().map(|who| member(who)).collect(), policy(&rule, &rule)),
        )
    };
    check("sixteen", ask(16), "approved");
    check("seventeen", ask(17), "governance-invalid: 17 members have new keys; accepted: at most 16");
}

/// A member whose keys are replaced votes as the member in force with the old ones. With the new ones it
/// votes as the member to be.
#[test]
fn a_member_that_rotates_votes_with_both_sets_of_keys() {
    let mut founding = genesis();
    founding.policy = policy(TWO, "3 of (alice, bob, carol)");
    let state = CircleState::found(&signed(founding), None).expect("sound");
    let members = vec![with_keys_of("alice", "alice-anew"), member("bob"), member("carol")];
    let proofs = [(name("alice"), prove("alice-anew", &members[0]))].into();
    let change = Change::SetMembers { members, policy: policy(TWO, "3 of (alice, bob, carol)"), proofs };
    let wanted = proposal(&state, change);
    let (old, new) = (("alice", "alice"), ("alice", "alice-anew"));
    let (bob, carol) = (("bob", "bob"), ("carol", "carol"));
    for (case, ballots, expected) in [
        ("both", &[old, new, bob, carol][..], "approved"),
        ("the old alone", &[old, bob, carol], "quorum-not-reached: of the proposed members"),
        ("the new alone", &[new, bob, carol], "quorum-not-reached: Sensitive"),
        ("the new first", &[new, old, bob, carol], "ballot-duplicate: `alice`"),
        ("the old twice", &[old, old, bob, carol], "ballot-duplicate: `alice`"),
        ("the new twice", &[old, new, new, bob], "ballot-duplicate: `alice`"),
        ("bob twice", &[old, new, bob, bob, carol], "ballot-duplicate: `bob`"),
        ("an outsider's keys", &[old, ("alice", "mallory"), bob, carol], "signature-invalid: `alice`"),
    ] {
        check(case, verify(&state, &certificate(&wanted, ballots), NOW), expected);
    }
    let shuffled = certificate(&wanted, &[carol, new, bob, old]).ballots;
    let certified = certify(&state, &wanted, &shuffled).expect("each has voted with both");
    check("as certified", verify(&state, &certified, NOW), "approved");
}

#[test]
fn attack_a_suspended_members_ballots() {
    let mut state = circle();
    let wanted = proposal(&state, deploy(4));
    let before = approve(&wanted, &["alice", "carol"]);
    // Control: before the suspension the same bytes are a certificate.
    check("before", verify(&state, &before, NOW), "approved");
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    assert!(state.is_suspended(&name("carol")));
    assert_eq!(state.suspended().keys().collect::<Vec<_>>(), [&name::<MemberId>("carol")]);
    const VOID: &str = "member-suspended: `carol` is suspended";
    check("a ballot cast before", verify(&state, &before, NOW), VOID);
    check("on the open proposal", check_ballot(&state, &wanted, &before.ballots[1], NOW), VOID);
    let counted = tally(&state, &wanted, &before.ballots);
    assert_eq!((counted.approved, counted.missing), (group(&["alice"]), group(&["bob"])));
    assert_eq!(counted.refused[0].1.code().as_str(), "member-suspended");
    let later = proposal(&state, deploy(5));
    check("a later ballot", verify(&state, &approve(&later, &["alice", "carol"]), NOW), VOID);
    check("the others decide", verify(&state, &approve(&later, &["alice", "bob"]), NOW), "approved");
}

#[test]
fn a_decision_outlives_the_suspension_of_its_signer() {
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "carol"]);
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    assert!(state.service(&name("embed")).is_some());
    enact(&mut state, deploy(2), &["alice", "bob"]);
    check("superseded", verify_superseded(&state, &first), "approved");
}

fn key_wrap(recipient: Recipient) -> KeyWrap {
    KeyWrap {
        root: ModelRoot(Digest::of(b"minilm")),
        recipient,
        ephemeral: PublicKey([9; 32]),
        encapsulated: ByteString(vec![1; 1088]),
        sealed: ByteString(vec![2; 48]),
    }
}

#[test]
fn attack_a_suspended_members_key_makes_and_gets_wraps() {
    let mut state = circle();
    let to: EncryptionKey = member("bob").keys.encryption;
    let wrap =
        sign_wrap(&secret("carol"), name("carol"), state.id(), &to, key_wrap(Recipient::Member(name("bob"))));
    let request = WrapRequest { circle: state.id(), member: name("carol") };
    let request = sign_wrap_request(&secret("carol"), request);
    let carol = Recipient::Member(name("carol"));
    // Control: all three pass while carol is not suspended.
    check("a wrap", check_wrap(&state, &wrap), "approved");
    check("a request", check_wrap_request(&state, &request), "approved");
    check("a recipient", recipient_key(&state, &carol), "approved");
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    check("a wrap", check_wrap(&state, &wrap), "member-suspended: `carol`");
    check("a request", check_wrap_request(&state, &request), "member-suspended: `carol`");
    check("a recipient", recipient_key(&state, &carol), "member-suspended: `carol`");
    assert!(recipients(&state).all(|(recipient, _)| recipient != carol));
}

#[test]
fn a_suspension_leaves_a_quorum_and_names_a_member_once() {
    let mut state = circle();
    check("an outsider", try_propose(&state, suspend("mallory")), "not-a-member: `mallory`");
    let halts = (0..257_u32).map(|at| Digest::of(&at.to_be_bytes())).collect();
    let crowded = Change::SuspendMember { member: name("carol"), halts };
    check("257 halts", try_propose(&state, crowded), "governance-invalid: 257 halts; accepted: at most 256");
    let alone = approve(&proposal(&state, suspend("carol")), &["alice"]);
    check("by one member", verify(&state, &alone, NOW), "quorum-not-reached: Sensitive");
    let halts = BTreeSet::from([Digest::of(b"halt")]);
    let standing = Change::SuspendMember { member: name("carol"), halts: halts.clone() };
    enact(&mut state, standing, &["alice", "carol"]);
    assert_eq!(state.suspended()[&name::<MemberId>("carol")], halts, "the accused may agree");
    assert_eq!((state.epoch().0, state.subject("member/carol").version), (1, 1));
    check("again", try_propose(&state, suspend("carol")), "member-suspended: `carol`");
    let reason = "governance-invalid: suspension: without the suspended members, the routine quorum";
    check("one too many", try_propose(&state, suspend("bob")), reason);
    let unchanged = set_members(&state, genesis().members, policy("3 of (alice, bob, carol)", TWO));
    check("a rule that needs her", try_propose(&state, unchanged), reason);
}

#[test]
fn new_keys_end_a_suspension_and_the_old_ones_stay_void() {
    let mut state = circle();
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    let unchanged = set_members(&state, genesis().members, policy(TWO, TWO));
    enact(&mut state, unchanged, &["alice", "bob"]);
    assert!(state.is_suspended(&name("carol")), "another policy lifts no suspension");
    enact(&mut state, rekeyed("carol", "carol-anew"), &["alice", "bob"]);
    assert!(!state.is_suspended(&name("carol")) && state.suspended().is_empty());
    assert_eq!((state.subject("member/carol").version, state.subject("member/carol").value), (1, None));
    let wanted = proposal(&state, deploy(4));
    let by = |whose| certificate(&wanted, &[("alice", "alice"), ("carol", whose)]);
    check("the stolen keys", verify(&state, &by("carol"), NOW), "signature-invalid: `carol`");
    check("the new keys", verify(&state, &by("carol-anew"), NOW), "approved");
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    assert_eq!(state.subject("member/carol").version, 2, "versions never restart");
}

#[test]
fn attack_a_thief_recovers_another_member() {
    let mut state = circle();
    // The thief has alice's key, and proposes keys of its own as those that bob made after a loss.
    let wanted = proposal(&state, rekeyed("bob", "mallory"));
    let thief = [("alice", "alice"), ("bob", "mallory")];
    let alone = certificate(&wanted, &thief);
    check(
        "alone",
        verify(&state, &alone, NOW),
        "quorum-not-reached: 1 approval does not reach the Sensitive",
    );
    // Control: were a ballot by proposed keys counted for the rule in force, the two names would suffice.
    assert!(satisfied(state.quorum(ActionClass::Sensitive), &group(&["alice", "bob"])));
    let fooled = certificate(&wanted, &[("alice", "alice"), ("bob", "mallory"), ("carol", "carol")]);
    check("with a member that it fooled", verify(&state, &fooled, NOW), "approved");
    enact(&mut state, suspend("alice"), &["bob", "carol"]);
    check("after the suspension", verify(&state, &fooled, NOW), "member-suspended: `alice`");
    let again = proposal(&state, rekeyed("bob", "mallory"));
    let alone = certificate(&again, &[("bob", "mallory"), ("carol", "carol")]);
    check("with new words", verify(&state, &alone, NOW), "quorum-not-reached: Sensitive");
}

#[test]
fn a_lost_key_is_recovered_by_the_other_members() {
    let mut state = circle();
    enact(&mut state, rekeyed("alice", "alice-anew"), &["bob", "carol"]);
    let wanted = proposal(&state, deploy(4));
    let recovered = certificate(&wanted, &[("alice", "alice-anew"), ("bob", "bob")]);
    check("by the new keys", verify(&state, &recovered, NOW), "approved");
    let late = human_chain::propose(&state, deploy(4), String::new(), NOW, NOW.plus(HOUR), Digest::of(b"2"));
    let stolen = certificate(&late.expect("admissible"), &[("alice", "alice"), ("bob", "bob")]);
    check("by the lost ones", verify(&state, &stolen, NOW), "signature-invalid: `alice`");
}

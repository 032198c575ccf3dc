//! Tests of histories: replays, rollbacks, races and changes of members.

use crate::support::{
    NOW, approve, check, circle, claimed_by, deploy, enact, forget, genesis, hybrid, key, member, name, node,
    policy, proposal, prove, retire, secret, set_members, signed, try_propose,
};
use human_chain::{CircleState, certify, verify, verify_replay, verify_superseded};
use proptest::prelude::*;
use protocol::Epoch;
use protocol::governance::{Certificate, Change, NodeRole};
use protocol::manifest::Manifest;
use std::collections::BTreeSet;

fn members(who: &[&str], routine: &str, sensitive: &str) -> Change {
    let members = who.iter().map(|who| member(who)).collect();
    set_members(&circle(), members, policy(routine, sensitive))
}

/// Returns the change that replaces bob by dave.
fn dave_for_bob() -> Change {
    members(&["alice", "carol", "dave"], "2 of (alice, carol, dave)", "2 of (alice, carol, dave)")
}

#[test]
fn a_certificate_works_once() {
    let mut state = circle();
    let certificate = enact(&mut state, deploy(4), &["alice", "bob"]);
    check("replayed", verify(&state, &certificate, NOW), "proposal-stale: it saw version 0, now is 1");
    check("replayed later", verify_replay(&state, &certificate), "proposal-stale");
}

#[test]
fn an_earlier_deployment_does_not_come_back() {
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "bob"]);
    let second = enact(&mut state, deploy(2), &["alice", "bob"]);
    check("rollback", verify(&state, &first, NOW), "proposal-stale: it saw version 0, now is 2");
    enact(&mut state, retire("embed"), &["alice", "bob"]);
    assert_eq!(state.subject("service/embed").value, None);
    check("after retirement", verify(&state, &first, NOW), "proposal-stale: it saw version 0, now is 3");
    check("after retirement", verify(&state, &second, NOW), "proposal-stale: it saw version 1, now is 3");
}

#[test]
fn what_was_altered_in_a_superseded_certificate_is_found_without_the_history() {
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "bob"]);
    enact(&mut state, deploy(2), &["alice", "bob"]);
    let altered = |alter: fn(&mut Certificate)| {
        let mut certificate = first.clone();
        alter(&mut certificate);
        certificate
    };
    check("as it was", verify_superseded(&state, &first), "approved");
    check("which brings nothing back", verify(&state, &first, NOW), "proposal-stale");
    for (case, alter, expected) in [
        ("another reason", (|c| c.proposal.reason.push('!')) as fn(&mut Certificate), "ballot-mismatch"),
        ("one bit of a signature", |c| hybrid(&mut c.ballots[0]).ed25519.0[0] ^= 1, "signature-invalid"),
        ("too few ballots", |c| drop(c.ballots.pop()), "quorum-not-reached"),
        ("one ballot twice", |c| c.ballots.insert(0, c.ballots[0].clone()), "ballot-duplicate"),
        ("another circle", |c| c.proposal.circle.0.0[0] ^= 1, "circle-mismatch"),
        ("another epoch", |c| c.proposal.epoch = Epoch(9), "circle-mismatch"),
        ("an endless one", |c| c.proposal.expires_at = protocol::Millis(u64::MAX), "governance-invalid"),
    ] {
        check(case, verify_superseded(&state, &altered(alter)), expected);
    }
}

#[test]
fn of_two_competing_proposals_the_second_is_stale() {
    let mut state = circle();
    let rivals = [4, 5].map(|max| approve(&proposal(&state, deploy(max)), &["alice", "bob"]));
    let [first, second] =
        rivals.map(|certificate| verify(&state, &certificate, NOW).expect("each alone holds"));
    check("first", state.advance(first), "approved");
    assert_eq!(state.check_invariants(), Ok(()));
    let before = state.clone();
    check("second, verified before", state.advance(second), "proposal-stale: it saw version 0, now is 1");
    assert_eq!(state, before, "a refused change leaves no trace");
}

#[test]
fn changes_of_different_things_do_not_disturb_each_other() {
    let mut state = circle();
    let admit = Change::AdmitNode(Box::new(node("n4", &[NodeRole::Worker])));
    let certificates = [deploy(4), admit].map(|change| approve(&proposal(&state, change), &["alice", "bob"]));
    for certificate in certificates {
        let approved = verify(&state, &certificate, NOW).expect("still stands");
        state.advance(approved).expect("applies");
        assert_eq!(state.check_invariants(), Ok(()));
    }
    assert_eq!((state.length(), state.nodes().count(), state.services().count()), (2, 4, 1));
}

#[test]
fn services_come_change_and_end() {
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "bob"]);
    let service = state.service(&name("embed")).expect("approved");
    assert_eq!((service.certificate, service.version), (first.digest(), 1));
    assert_eq!((service.proposal, service.manifest.replicas.max), (first.proposal.id(), 4));
    let second = enact(&mut state, deploy(2), &["bob", "carol"]);
    let running = state.service(&name("embed")).expect("approved").clone();
    assert_eq!(
        (running.certificate, running.version, running.manifest.replicas.max),
        (second.digest(), 2, 2)
    );
    let end = enact(&mut state, retire("embed"), &["alice", "carol"]);
    assert_eq!(state.service(&name("embed")), None);
    let retired = state.retired_service(&name("embed")).expect("retired").clone();
    assert_eq!(
        (retired.last, retired.certificate, retired.grace_seconds, retired.version),
        (running, end.digest(), 30, 3)
    );
    assert_eq!(state.retired().count(), 1);
    enact(&mut state, deploy(3), &["alice", "bob"]);
    assert_eq!(state.service(&name("embed")).expect("again").version, 4);
    assert_eq!((state.retired().count(), state.services().count(), state.length()), (0, 1, 4));
}

#[test]
fn nodes_come_change_and_go() {
    let mut state = circle();
    let before = state.node(&name("n1")).expect("of genesis").clone();
    let wiped = claimed_by("n1 with a new disk", before.clone());
    enact(&mut state, Change::AdmitNode(Box::new(wiped.clone())), &["alice", "bob"]);
    assert_eq!(state.node(&name("n1")), Some(&wiped));
    assert_eq!((state.node_by_id(before.id), state.nodes().count()), (None, 3));
    assert_eq!(state.subject("node/n1").version, 2);
    enact(&mut state, Change::RemoveNode { node: name("n1") }, &["alice", "bob"]);
    assert_eq!((state.node(&name("n1")), state.node_by_id(wiped.id)), (None, None));
    assert_eq!((state.subject("node/n1").version, state.subject("node/n1").value), (3, None));
}

#[test]
fn a_key_admits_one_machine() {
    let state = circle();
    let all = [NodeRole::Worker, NodeRole::Gateway];
    let gateway_is = |who: &str| {
        let mut node = node("n4", &all);
        node.gateway.as_mut().expect("it has the role").key = key(who);
        claimed_by("n4", node)
    };
    let is = |who: &str| claimed_by(who, node("n4", &all));
    const TAKEN: &str = "governance-invalid: `n4` uses a key in use";
    for (case, node, expected) in [
        ("new keys", node("n4", &all), "approved"),
        ("another node's", is("n1"), TAKEN),
        ("another gateway's", is("n3 gateway"), TAKEN),
        ("a control replica's", is("control"), TAKEN),
        ("its own gateway's", is("n4 gateway"), TAKEN),
        ("gateway: another node's", gateway_is("n1"), TAKEN),
        ("gateway: another gateway's", gateway_is("n3 gateway"), TAKEN),
        ("gateway: control's", gateway_is("control"), TAKEN),
    ] {
        check(case, try_propose(&state, Change::AdmitNode(Box::new(node))), expected);
    }
    let roleless = node("n4", &[]);
    check(
        "no role",
        try_propose(&state, Change::AdmitNode(Box::new(roleless))),
        "governance-invalid: has no role",
    );
    let again = node("n1", &[NodeRole::Worker]);
    check("its own, again", try_propose(&state, Change::AdmitNode(Box::new(again))), "approved");
}

#[test]
fn new_members_decide_from_the_next_epoch_on() {
    let mut state = circle();
    let pending = proposal(&state, deploy(4));
    let held =
        verify(&state, &approve(&pending, &["alice", "bob"]), NOW).expect("holds until members change");
    enact(&mut state, dave_for_bob(), &["alice", "carol"]);
    assert_eq!((state.epoch(), state.subject("circle").version), (Epoch(2), 2));
    assert_eq!(
        state.members().map(|member| member.id.as_str()).collect::<Vec<_>>(),
        ["alice", "carol", "dave"]
    );
    let mismatch = "circle-mismatch: was made in epoch 1; the circle is in epoch 2";
    check("pending", verify(&state, &approve(&pending, &["alice", "carol"]), NOW), mismatch);
    check("verified before", state.advance(held), mismatch);
    let fresh = proposal(&state, deploy(4));
    check("by the new member", verify(&state, &approve(&fresh, &["alice", "dave"]), NOW), "approved");
    check(
        "by the one who left",
        verify(&state, &approve(&fresh, &["alice", "bob"]), NOW),
        "not-a-member: `bob`",
    );
}

#[test]
fn a_change_of_members_is_checked_like_a_genesis() {
    let mut state = circle();
    let all = ["alice", "bob", "carol"];
    let two = "2 of (alice, bob, carol)";
    for (case, change, expected) in [
        ("another rule", members(&all, "3 of (alice, bob, carol)", two), "approved"),
        ("no members", members(&[], two, two), "governance-invalid: 0 members"),
        ("one decides", members(&all, "alice", two), "governance-invalid: lets one member decide"),
        ("one decides on members", members(&all, two, "alice"), "governance-invalid: lets one member decide"),
        ("a rule that names a non-member", members(&all[..2], two, two), "governance-invalid: names `carol`"),
    ] {
        check(case, try_propose(&state, change), expected);
    }
    enact(&mut state, dave_for_bob(), &all);
    let back = members(
        &["alice", "bob", "carol", "dave"],
        "3 of (alice, bob, carol, dave)",
        "3 of (alice, bob, carol, dave)",
    );
    check(
        "a name that was another's",
        try_propose(&state, back),
        "governance-invalid: belonged to a member who left",
    );
}

#[test]
fn a_member_may_rotate_keys_and_the_old_ones_fail() {
    let mut state = circle();
    let mut rotated = genesis();
    rotated.members[1].keys = member("bob-rekeyed").keys;
    let proofs = [(name("bob"), prove("bob-rekeyed", &rotated.members[1]))].into();
    let change = Change::SetMembers { members: rotated.members, policy: rotated.policy, proofs };
    enact(&mut state, change, &["alice", "carol"]);
    let fresh = proposal(&state, deploy(4));
    check("old keys", verify(&state, &approve(&fresh, &["alice", "bob"]), NOW), "signature-invalid: `bob`");
    let mut certificate = approve(&fresh, &["alice"]);
    let choice = protocol::governance::Choice::Approve;
    certificate.ballots.push(human_chain::vote(
        &secret("bob-rekeyed"),
        name("bob"),
        fresh.history,
        &fresh,
        choice,
        NOW,
    ));
    check("new keys", verify(&state, &certificate, NOW), "approved");
}

// The three attacks on gittuf's thresholds and policies, transferred to this crate.

#[test]
fn gittuf_44544_an_older_policy_cannot_be_put_back() {
    let mut state = circle();
    let all = ["alice", "bob", "carol"];
    let lax =
        enact(&mut state, members(&all, "2 of (alice, bob, carol)", "2 of (alice, bob, carol)"), &all[..2]);
    enact(&mut state, members(&all, "3 of (alice, bob, carol)", "3 of (alice, bob, carol)"), &all);
    check("older policy", verify(&state, &lax, NOW), "circle-mismatch: was made in epoch 1");
    check("older policy", verify_replay(&state, &lax), "circle-mismatch: was made in epoch 1");
    let mut relabelled = lax.clone();
    relabelled.proposal.epoch = state.epoch();
    check("relabelled", verify(&state, &relabelled, NOW), "proposal-stale: `circle`");
    relabelled.proposal.subjects = vec![state.subject("circle")];
    check("relabelled whole", verify(&state, &relabelled, NOW), "ballot-mismatch: another proposal");
}

#[test]
fn gittuf_128037_only_those_whom_the_rule_names_are_counted() {
    let mut founding = genesis();
    founding.policy = policy("2 of (alice, bob, carol)", "2 of (alice, bob)");
    let state = CircleState::found(&signed(founding), None).expect("sound");
    let sensitive = proposal(&state, members(&["alice", "bob"], "2 of (alice, bob)", "2 of (alice, bob)"));
    for (who, expected) in [
        (&["alice", "bob"][..], "approved"),
        (&["alice", "bob", "carol"], "approved"),
        (
            &["alice", "carol"],
            "quorum-not-reached: 2 approvals do not reach the Sensitive quorum: 2 of (alice, bob)",
        ),
        (&["carol"], "quorum-not-reached"),
    ] {
        let certificate = approve(&sensitive, who);
        check("sensitive", verify(&state, &certificate, NOW), expected);
        check("certify", certify(&state, &sensitive, &certificate.ballots), expected);
    }
    let routine = proposal(&state, deploy(4));
    check("routine", verify(&state, &approve(&routine, &["alice", "carol"]), NOW), "approved");
}

#[test]
fn gittuf_128036_every_step_of_a_history_is_verified() {
    let genesis = signed(genesis());
    let mut state = circle();
    let first = enact(&mut state, deploy(4), &["alice", "bob"]);
    // Carol alone appoints herself and a friend; the friend's later certificate is sound on its own.
    let coup = members(&["carol", "mallory"], "2 of (carol, mallory)", "2 of (carol, mallory)");
    let middle = approve(&proposal(&state, coup.clone()), &["carol"]);
    let mut usurped = state.clone();
    enact(&mut usurped, coup, &["alice", "carol", "mallory"]);
    let last = approve(&proposal(&usurped, deploy(9)), &["carol", "mallory"]);
    check("last step alone", verify(&usurped, &last, NOW), "approved");

    let replay = |steps: &[&Certificate]| CircleState::replay(&genesis, None, steps.iter().copied());
    check("whole", replay(&[&first, &middle, &last]), "quorum-not-reached: Sensitive");
    check("without the middle", replay(&[&first, &last]), "history-shorter: 2 are known to exist");
    check("sound part", replay(&[&first]), "approved");
}

#[test]
fn a_replayed_history_is_the_same_state() {
    let genesis = signed(genesis());
    let mut state = circle();
    let mut new_node = node("n4", &[NodeRole::Worker, NodeRole::Storage]);
    new_node.region = "oslo".into();
    let history = [
        enact(&mut state, deploy(4), &["alice", "bob"]),
        enact(&mut state, Change::AdmitNode(Box::new(new_node)), &["bob", "carol"]),
        enact(&mut state, dave_for_bob(), &["alice", "carol"]),
        enact(&mut state, deploy(2), &["alice", "dave"]),
        enact(&mut state, Change::RemoveNode { node: name("n2") }, &["carol", "dave"]),
        enact(&mut state, retire("embed"), &["alice", "carol"]),
    ];
    assert_eq!(CircleState::replay(&genesis, Some(state.id()), &history), Ok(state.clone()));
    assert_eq!(state.length(), 6);

    let mut swapped = history.clone();
    swapped.swap(0, 3);
    check("reordered", CircleState::replay(&genesis, None, &swapped), "history-shorter");
    check("first lost", CircleState::replay(&genesis, None, &history[1..]), "history-shorter");
    let doubled = [&history[..1], &history].concat();
    check("doubled", CircleState::replay(&genesis, None, &doubled), "proposal-stale");
    check(
        "other pin",
        CircleState::replay(&genesis, Some(protocol::CircleId(protocol::Digest([0; 32]))), &history),
        "circle-mismatch: belongs",
    );
}

/// Step of a random history: a change that may or may not be admissible where it is asked for.
fn any_change() -> impl Strategy<Value = Change> {
    const PEOPLE: [&str; 4] = ["alice", "bob", "carol", "dave"];
    let service = || prop::sample::select(vec!["embed", "chat"]);
    let machine = || prop::sample::select(vec!["n1", "n4", "n5"]);
    let roles = prop::sample::select(vec![NodeRole::Worker, NodeRole::Storage, NodeRole::Gateway]);
    prop_oneof![
        (service(), 0..4_u32).prop_map(|(service, max)| {
            let Change::Deploy(mut manifest) = deploy(4) else { unreachable!("a deployment") };
            if let Manifest::Service(manifest) = manifest.as_mut() {
                (manifest.name, manifest.replicas.max) = (name(service), max);
            }
            Change::Deploy(manifest)
        }),
        service().prop_map(retire),
        (machine(), roles).prop_map(|(who, role)| Change::AdmitNode(Box::new(node(who, &[role])))),
        machine().prop_map(|who| Change::RemoveNode { node: name(who) }),
        (prop::sample::select(vec!["minilm", "spare"]), 0..2_u32)
            .prop_map(|(model, grace)| forget(model, grace)),
        prop::sample::subsequence(PEOPLE.to_vec(), 2..=4).prop_map(|people| {
            let rule = format!("{} of ({})", people.len(), people.join(", "));
            members(&people, &rule, &rule)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// The invariants hold after every step of any history, admissible or not, and a replay ends in the same
    /// state.
    #[test]
    fn any_history_keeps_the_invariants(changes in prop::collection::vec(any_change(), 0..12)) {
        let (mut state, mut history) = (circle(), Vec::new());
        for change in changes {
            let before = state.clone();
            let (mut people, change) = match change {
                Change::SetMembers { members, policy, .. } => {
                    let people = members.iter().map(|member| member.id.to_string()).collect();
                    (people, set_members(&state, members, policy))
                }
                other => (BTreeSet::new(), other),
            };
            let Ok(proposal) = try_propose(&state, change) else { continue };
            people.extend(state.members().map(|member| member.id.to_string()));
            let voters: Vec<&str> = people.iter().map(String::as_str).collect();
            let certificate = approve(&proposal, &voters);
            let approved = verify(&state, &certificate, NOW).expect("all members approve");
            prop_assert_eq!(state.advance(approved), Ok(()));
            prop_assert_eq!(state.check_invariants(), Ok(()));
            prop_assert_eq!(state.length(), before.length() + 1);
            prop_assert!(verify(&state, &certificate, NOW).is_err(), "a certificate works once");
            history.push(certificate);
        }
        prop_assert_eq!(CircleState::replay(&signed(genesis()), None, &history), Ok(state));
    }
}

#[test]
fn a_models_name_stands_for_one_root_for_ever() {
    let planted = |state: &CircleState| {
        let mut change = deploy(4);
        let Change::Deploy(manifest) = &mut change else { panic!("a deployment") };
        let Manifest::Service(service) = manifest.as_mut() else { panic!("a service") };
        service.model.root.0.0[0] ^= 1;
        service.name = name("other");
        try_propose(state, change)
    };
    let mut state = circle();
    assert!(planted(&state).is_ok(), "a name that nobody approved stands for nothing yet");
    let aside = approve(&planted(&state).expect("it may be asked"), &["alice", "bob"]);
    let aside = verify(&state, &aside, NOW).expect("sound alone");
    enact(&mut state, deploy(4), &["alice", "bob"]);
    let expected = "model-name-taken: the name `minilm` stands for model ";
    check("proposed", planted(&state), expected);
    check("verified before the name was bound", state.advance(aside), expected);
    enact(&mut state, retire("embed"), &["alice", "bob"]);
    check("after retirement", planted(&state), expected);
    let bound = state.model_root(&name("minilm")).map(|root| root.0);
    assert_eq!(bound, Some(protocol::Digest::of(b"minilm")), "importers and clients ask the chain");
}

//! Tests of the register of models and keys: nothing without a key, no duplicates, no replacements.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use protocol::governance::*;
use protocol::model::Recipient;
use scheduler::limits::*;
use scheduler::*;

#[test]
fn models_and_wraps_are_checked() {
    let world = two_nodes();
    let record = |change: &dyn Fn(&mut protocol::model::ModelRecord)| {
        let mut record = model("other", 1);
        change(&mut record);
        register(record, &[])
    };
    let keyed = |wraps: Vec<protocol::model::KeyWrap>| Action::RegisterModel {
        record: Box::new(model("other", 1)),
        wraps,
    };
    let for_node = || wrap("other", Recipient::Node(node_id("node-1")));
    let for_member = || wrap("other", Recipient::Member(member("bob")));
    let put = |change: &dyn Fn(&mut protocol::model::KeyWrap)| {
        let mut wrap = wrap("minilm", Recipient::Node(node_id("node-1")));
        change(&mut wrap);
        Action::PutWraps(vec![wrap])
    };
    let many = vec![wrap("minilm", Recipient::Node(node_id("node-1"))); WRAPS_PER_COMMAND_MAX + 1];
    let mut short = for_member();
    short.sealed.0.truncate(47);
    check(
        &world,
        vec![
            ("a model", record(&|_| {}), "ok"),
            ("too few stores", record(&|record| record.stores.truncate(5)), "command-invalid"),
            ("no store", record(&|record| record.stores.clear()), "command-invalid"),
            ("a long url", record(&|record| record.stores[0].url = "x".repeat(2000)), "command-invalid"),
            ("without a key", keyed(vec![]), "command-invalid"),
            ("no member has the key", keyed(vec![for_node()]), "command-invalid"),
            ("a member has the key", keyed(vec![for_member(), for_node()]), "ok"),
            ("another model's key", keyed(vec![wrap("minilm", for_member().recipient)]), "command-invalid"),
            ("a short key", keyed(vec![short]), "command-invalid"),
            (
                "a stranger's key",
                keyed(vec![wrap("other", Recipient::Member(member("x")))]),
                "node-not-admitted",
            ),
            ("a wrap", put(&|_| {}), "ok"),
            ("for a member", put(&|wrap| wrap.recipient = Recipient::Member(member("bob"))), "ok"),
            ("no model", put(&|wrap| wrap.root = root("unknown")), "model-not-found"),
            ("short", put(&|wrap| wrap.sealed.0.truncate(47)), "command-invalid"),
            ("stranger", put(&|wrap| wrap.recipient = Recipient::Node(node_id("x"))), "node-not-admitted"),
            ("no member", put(&|wrap| wrap.recipient = Recipient::Member(member("x"))), "node-not-admitted"),
            ("none", Action::PutWraps(vec![]), "command-invalid"),
            ("too many", Action::PutWraps(many), "command-invalid"),
        ],
    );
}

/// After any command, refused or not, a registered model has a member who can open it.
#[test]
fn a_model_is_registered_with_its_key_or_not_at_all() {
    let mut world = two_nodes();
    let all =
        [Recipient::Member(member("bob")), Recipient::Node(node_id("node-1")), Recipient::Node(node_id("x"))];
    for subset in 0..8_u8 {
        let name = format!("model-{subset}");
        let chosen = all.iter().enumerate().filter(|(i, _)| subset & (1 << i) != 0).map(|(_, to)| to);
        let wraps: Vec<_> = chosen.map(|to| wrap(&name, to.clone())).collect();
        let reply =
            world.apply(Actor::Scheduler, Action::RegisterModel { record: Box::new(model(&name, 1)), wraps });
        assert_eq!(code(&reply) == "ok", matches!(subset, 1 | 3), "{subset:b}: {reply:?}");
        let known = world.cluster.models().contains_key(&root(&name));
        let opened = world.cluster.wraps(&root(&name));
        let by_member = opened.iter().any(|wrap| matches!(wrap.recipient, Recipient::Member(_)));
        assert_eq!((known, by_member), (code(&reply) == "ok", known), "{subset:b}");
    }
}

#[test]
fn a_registered_model_is_not_replaced() {
    let mut world = two_nodes();
    let again = register(model("minilm", 90 << 20), &[node_id("node-1"), node_id("node-2")]);
    let before = world.cluster.clone();
    world.must(again);
    assert_eq!(world.cluster, before, "the same again changes nothing");
    let other_root = {
        let mut record = model("minilm", 90 << 20);
        record.root = root("other bytes");
        register(record, &[])
    };
    let elsewhere = {
        let mut record = model("minilm", 90 << 20);
        record.stores[0].url = "file:///elsewhere".into();
        register(record, &[])
    };
    let mut renamed = model("minilm", 90 << 20);
    renamed.name = "mine".parse().unwrap();
    let forged = |recipient: Recipient| {
        let mut wrap = wrap("minilm", recipient);
        wrap.sealed.0[0] ^= 1;
        wrap
    };
    let to_node = || Recipient::Node(node_id("node-1"));
    let to_alice = || Recipient::Member(member("alice"));
    let with_key = Action::RegisterModel {
        record: Box::new(model("minilm", 90 << 20)),
        wraps: vec![forged(to_alice())],
    };
    let twins =
        vec![wrap("minilm", Recipient::Member(member("bob"))), forged(Recipient::Member(member("bob")))];
    check(
        &world,
        vec![
            ("its name for other bytes", other_root, "name-taken"),
            ("other stores", elsewhere, "model-record-differs"),
            ("another name", register(renamed, &[]), "model-record-differs"),
            ("another wrap for a node", Action::PutWraps(vec![forged(to_node())]), "wrap-held"),
            ("another wrap for a member", Action::PutWraps(vec![forged(to_alice())]), "wrap-held"),
            ("another wrap with the record", with_key, "wrap-held"),
            ("two wraps for one", Action::PutWraps(twins), "wrap-held"),
            ("the same wrap", Action::PutWraps(vec![wrap("minilm", to_node())]), "ok"),
            ("one that is new", Action::PutWraps(vec![forged(Recipient::Member(member("bob")))]), "ok"),
        ],
    );
}

/// A wrap to a replaced key is dropped, wherever the key was replaced, and frees capacity for another.
#[test]
fn a_replaced_key_allows_another_wrap() {
    let mut world = two_nodes();
    let mut late = node("late", 1000, 1000).admission;
    world.must(Action::Enrol(Box::new(late.clone())));
    let wraps_of = |world: &World, to: &Recipient| {
        world.cluster.wraps(&root("minilm")).iter().filter(|wrap| wrap.recipient == *to).count()
    };
    let (to_late, to_alice) = (Recipient::Node(late.id), Recipient::Member(member("alice")));
    world.must(Action::PutWraps(vec![wrap("minilm", to_late.clone())]));
    world.wait(PENDING_REFRESH_MS);
    world.must(Action::Enrol(Box::new(late.clone())));
    assert_eq!(wraps_of(&world, &to_late), 1, "it asks again as it was");
    late.encryption.x25519.0[0] ^= 1;
    world.must(Action::Enrol(Box::new(late.clone())));
    assert_eq!((wraps_of(&world, &to_late), wraps_of(&world, &to_alice)), (0, 1));

    let state = world.cluster.circle_state().unwrap();
    let mut members: Vec<Member> = state.members().cloned().collect();
    let policy = state.policy().clone();
    let alice = members.iter_mut().find(|member| member.id.as_str() == "alice").unwrap();
    alice.keys.encryption.x25519.0[0] ^= 1;
    world.approve(Change::SetMembers { members, policy });
    assert_eq!(wraps_of(&world, &to_alice), 0, "alice's key was replaced");
    assert!(world.cluster.wrap_for(&root("minilm"), node_id("node-1")).is_some(), "others keep theirs");
}

/// Before, one token ended a model. Now no command of a token does: the circle decides, and the key is
/// deleted when the grace period is over.
#[test]
fn a_model_that_no_service_names_is_forgotten_by_decision_after_its_grace() {
    let mut world = running();
    world.must(register(model("unused", 1), &[node_id("node-1")]));
    let submit = |world: &World, change| Action::SubmitProposal(Box::new(world.proposal(change)));
    let mut misnamed = forget("unused", 60);
    if let Change::ForgetModel { model, .. } = &mut misnamed {
        model.name = "harmless".parse().unwrap();
    }
    let changes = [submit(&world, misnamed), submit(&world, forget("unused", 60))];
    let [misnamed, sound] = changes;
    check(&world, vec![("another name", misnamed, "model-record-differs"), ("unused", sound, "ok")]);

    let proposal = world.proposal(forget("unused", 60));
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    world.must(Action::Tick);
    assert!(!world.cluster.wraps(&root("unused")).is_empty(), "a token proposes, and nothing is forgotten");
    for name in ["alice", "bob", "carol"] {
        let ballot = world.ballot(name, &proposal, Choice::Approve);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    assert!(!tick_is_due(&world.cluster, world.wall_now()), "the grace period runs");
    assert!(!world.cluster.wraps(&root("unused")).is_empty(), "its key is kept until then");
    let again = register(model("unused", 1), &[]);
    assert_eq!(verdict(&world, Actor::Scheduler, again.clone()), "model-forgotten");
    world.wait(60_000);
    assert!(tick_is_due(&world.cluster, world.wall_now()));
    world.must(Action::Tick);
    assert!(world.cluster.wraps(&root("unused")).is_empty(), "its key is gone with it");
    assert!(!world.cluster.models().contains_key(&root("unused")));
    let last = world.cluster.audit().last(1).next().unwrap().clone();
    assert_eq!((last.action.as_str(), last.subject.as_str()), ("forget", "model/unused"));
    let mut other_bytes = model("unused", 1);
    other_bytes.root = root("other bytes");
    check(
        &world,
        vec![
            ("the same model", again, "model-forgotten"),
            ("its name for other bytes", register(other_bytes, &[]), "model-name-taken"),
        ],
    );
}

#[test]
fn a_model_is_kept_while_slots_run_on_it() {
    let mut world = running();
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    let submit = Action::SubmitProposal(Box::new(world.proposal(forget("minilm", 0))));
    assert_eq!(verdict(&world, Actor::Scheduler, submit), "model-in-use", "slots run on it still");
    world.settle();
    world.approve(forget("minilm", 0));
    world.must(Action::Tick);
    assert!(!world.cluster.models().contains_key(&root("minilm")));
}

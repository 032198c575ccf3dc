//! Tests of the register of models and keys: nothing without a key, no duplicates, no replacements, and wraps
//! by members for recipients alone.

use crate::common::*;
use human_chain::{MemberSecret, prove_keys, sign_wrap, vote};
use protocol::governance::*;
use protocol::keys::ByteString;
use protocol::model::{KeyWrap, Recipient, SignedComplaint, SignedWrap, WrapComplaint};
use protocol::{CircleId, Digest};
use scheduler::limits::*;
use scheduler::*;

#[test]
fn models_and_wraps_are_checked() {
    let world = two_nodes();
    let record = |change: &dyn Fn(&mut protocol::model::ModelRecord)| {
        let mut record = model("other", 1);
        change(&mut record);
        world.register(record, &[])
    };
    let keyed = |wraps: Vec<SignedWrap>| Action::RegisterModel { record: Box::new(model("other", 1)), wraps };
    let for_node = || world.wrap_to("other", "node-1");
    let for_member = || world.wrap("other", Recipient::Member(member("bob")));
    let put = |change: &dyn Fn(&mut KeyWrap)| {
        let mut wrap = wrap("minilm", Recipient::Node(node_id("node-1")));
        change(&mut wrap);
        Action::PutWraps(vec![world.signed(wrap)])
    };
    let many = vec![world.wrap_to("minilm", "node-1"); WRAPS_PER_COMMAND_MAX + 1];
    let mut short = for_member();
    short.wrap.sealed.0.truncate(47);
    let stranger = || Recipient::Member(member("x"));
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
            (
                "another model's key",
                keyed(vec![world.wrap("minilm", for_member().wrap.recipient)]),
                "command-invalid",
            ),
            ("a short key", keyed(vec![short]), "command-invalid"),
            ("a stranger's key", keyed(vec![world.wrap("other", stranger())]), "not-a-member"),
            ("a wrap", put(&|_| {}), "ok"),
            ("for a member", put(&|wrap| wrap.recipient = Recipient::Member(member("bob"))), "ok"),
            ("no model", put(&|wrap| wrap.root = root("unknown")), "model-not-found"),
            ("short", put(&|wrap| wrap.sealed.0.truncate(47)), "command-invalid"),
            ("stranger", put(&|wrap| wrap.recipient = Recipient::Node(node_id("x"))), "node-not-admitted"),
            ("no member", put(&|wrap| wrap.recipient = stranger()), "not-a-member"),
            ("none", Action::PutWraps(vec![]), "command-invalid"),
            ("too many", Action::PutWraps(many), "command-invalid"),
        ],
    );
}

/// Signatures decide which wraps are kept: an access token alone plants none.
#[test]
fn a_wrap_without_a_members_signature_for_its_recipients_key_is_refused() {
    let mut world = two_nodes();
    world.approve(Change::AdmitNode(Box::new(node("node-3", 4000, 4096).admission)));
    let circle = world.cluster.circle_state().unwrap().id();
    let (to, own) = (encryption("node-3"), wrap("minilm", Recipient::Node(node_id("node-3"))));
    let sound = signed_for(circle, &to, own.clone());
    let altered = |change: &dyn Fn(&mut SignedWrap)| {
        let mut signed = sound.clone();
        change(&mut signed);
        Action::PutWraps(vec![signed])
    };
    let by = |secret: &MemberSecret, maker: &str| {
        Action::PutWraps(vec![sign_wrap(secret, member(maker), circle, &to, own.clone())])
    };
    let mallory = MemberSecret::generate(&[66; 64]);
    let (bob, other_circle) = (&secrets()[&member("bob")], CircleId(Digest::of(b"another")));
    let twin = signed_for(circle, &to, KeyWrap { sealed: ByteString(vec![7; 48]), ..own.clone() });
    check(
        &world,
        vec![
            ("as it was signed", Action::PutWraps(vec![sound.clone()]), "ok"),
            ("by another member", by(bob, "bob"), "ok"),
            ("by no member", by(&mallory, "mallory"), "not-a-member"),
            ("in a member's name", by(&mallory, "alice"), "signature-invalid"),
            ("another maker named", altered(&|signed| signed.maker = member("bob")), "signature-invalid"),
            ("other bytes", altered(&|signed| signed.wrap.sealed.0[0] ^= 1), "signature-invalid"),
            (
                "classical half alone",
                altered(&|signed| signed.signature.ml_dsa.0.clear()),
                "signature-invalid",
            ),
            (
                "post-quantum half alone",
                altered(&|signed| signed.signature.ed25519.0 = [0; 64]),
                "signature-invalid",
            ),
            (
                "another's signature",
                altered(&|signed| signed.signature = twin.signature.clone()),
                "signature-invalid",
            ),
            (
                "for another key",
                Action::PutWraps(vec![signed_for(circle, &encryption("mallory"), own.clone())]),
                "signature-invalid",
            ),
            (
                "of another circle",
                Action::PutWraps(vec![signed_for(other_circle, &to, own.clone())]),
                "signature-invalid",
            ),
        ],
    );
    let put = || Action::PutWraps(vec![sound.clone()]);
    assert_eq!(verdict(&world, token("reader"), put()), "token-scope-missing");
}

/// Attack: control, or a token's holder, has a model's key wrapped to a machine that the circle never
/// admitted. The control case shows that the vote is all that is missing.
#[test]
fn a_wrap_for_a_node_that_was_never_admitted_is_refused() {
    let mut world = two_nodes();
    let late = node("late", 1000, 1000).admission;
    let wrap = || {
        Action::PutWraps(vec![signed_for(
            world_id(&two_nodes()),
            &late.encryption,
            wrap("minilm", Recipient::Node(late.id)),
        )])
    };
    assert_eq!(verdict(&world, Actor::Scheduler, wrap()), "node-not-admitted", "unknown");
    world.must(Action::Enrol(Box::new(late.clone())));
    assert_eq!(verdict(&world, Actor::Scheduler, wrap()), "node-not-admitted", "it asks");
    let proposal = world.proposal(Change::AdmitNode(Box::new(late.clone())));
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    assert_eq!(verdict(&world, Actor::Scheduler, wrap()), "node-not-admitted", "it is proposed");
    for name in ["alice", "bob"] {
        let ballot = world.ballot(name, &proposal, Choice::Approve);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    assert_eq!(verdict(&world, Actor::Scheduler, wrap()), "ok", "the circle has voted");
}

fn world_id(world: &World) -> CircleId {
    world.cluster.circle_state().unwrap().id()
}

/// A gateway and a store open no model.
#[test]
fn only_workers_are_recipients() {
    let mut world = two_nodes();
    let mut store = node("store", 1000, 1000).admission;
    store.roles = [NodeRole::Storage].into();
    store.storage =
        Some(StorageEndpoint { address: "127.0.0.1:1".into(), stores: ["disk-0".parse().unwrap()].into() });
    world.approve(Change::AdmitNode(Box::new(claimed_by("store", store))));
    let put = Action::PutWraps(vec![signed_for(
        world_id(&world),
        &encryption("store"),
        wrap("minilm", Recipient::Node(node_id("store"))),
    )]);
    assert_eq!(verdict(&world, Actor::Scheduler, put), "wrap-recipient-invalid");
    let answer = member_wraps(&world.cluster, &member("alice"), 99);
    let lacking: Vec<Recipient> = answer.lacking.into_iter().flat_map(|model| model.recipients).collect();
    let members = ["bob", "carol"].map(|name| Recipient::Member(member(name)));
    assert_eq!(lacking, members, "the store lacks nothing");
}

/// Attack: a member plants garbage first, so that the recipient never gets the key. The control case is the
/// second wrap before the complaint: it is refused.
#[test]
fn a_garbage_wrap_that_was_planted_first_is_dropped_by_its_recipient_and_replaced() {
    let mut world = two_nodes();
    world.approve(Change::AdmitNode(Box::new(node("node-3", 4000, 4096).admission)));
    let to_node = || Recipient::Node(node_id("node-3"));
    let garbage = KeyWrap { sealed: ByteString(vec![0; 48]), ..wrap("minilm", to_node()) };
    let bob = member("bob");
    let garbage = sign_wrap(&secrets()[&bob], bob, world_id(&world), &encryption("node-3"), garbage);
    world.must(Action::PutWraps(vec![garbage.clone()]));
    let sound = Action::PutWraps(vec![world.wrap("minilm", to_node())]);
    assert_eq!(verdict(&world, Actor::Scheduler, sound.clone()), "wrap-held", "garbage is in the way");

    let statement = || samples::about(&world, "minilm", to_node());
    let elsewhere = WrapComplaint { circle: CircleId(Digest::of(b"another")), ..statement() };
    let mut in_its_name = complaint("node-3", statement());
    in_its_name.signature = complaint("node-1", statement()).signature;
    let of_member = WrapComplaint {
        recipient: Recipient::Member(member("alice")),
        wrap: world.cluster.wrap_of(&root("minilm"), &Recipient::Member(member("alice"))).unwrap().digest(),
        ..statement()
    };
    let drop = |signed: SignedComplaint| Action::DropWrap(Box::new(signed));
    let other_wrap = WrapComplaint { wrap: Digest::of(b"another"), ..statement() };
    check(
        &world,
        vec![
            ("by another node", drop(in_its_name), "signature-invalid"),
            ("by a node for a member", drop(complaint("node-1", of_member)), "signature-invalid"),
            ("of another circle", drop(complaint("node-3", elsewhere)), "circle-mismatch"),
            ("about another wrap", drop(complaint("node-3", other_wrap)), "wrap-not-held"),
        ],
    );
    let complaint = drop(complaint("node-3", statement()));
    world.must(complaint.clone());
    assert_eq!(world.cluster.wrap_of(&root("minilm"), &to_node()), None);
    let last = world.cluster.audit().last(1).next().unwrap().clone();
    assert_eq!((last.actor.as_str(), last.action.as_str()), ("node/node-3", "drop-wrap"));
    assert!(last.detail.contains("member/bob"), "{}", last.detail);
    world.must(sound);
    assert_eq!(verdict(&world, Actor::Scheduler, complaint), "wrap-not-held", "the new wrap is another one");
    assert!(world.cluster.wrap_for(&root("minilm"), node_id("node-1")).is_some(), "others keep theirs");
}

/// A member's client learns the wraps to make, and people read of them until it has made them.
#[test]
fn parties_that_lack_a_key_are_listed_until_a_member_has_shared_it() {
    let mut world = two_nodes();
    world.must(Action::PutWraps(
        ["bob", "carol"].map(|name| world.wrap("minilm", Recipient::Member(member(name)))).into(),
    ));
    let shown = |world: &World| {
        let nodes = node_views(world.view());
        let lacks = |node: &protocol::api::NodeView| {
            node.keys_lacking.iter().map(|model| format!("{} {model}", node.name)).collect::<Vec<_>>()
        };
        let leader = LeaderView { leader: None, silent: None };
        let told = status(world.view(), leader).findings.into_iter();
        let told: Vec<String> =
            told.filter(|found| found.message.contains("lacks the key")).map(|found| found.message).collect();
        (nodes.iter().flat_map(lacks).collect::<Vec<_>>(), told)
    };
    assert_eq!(shown(&world), (vec![], vec![]));
    world.approve(Change::AdmitNode(Box::new(node("node-3", 4000, 4096).admission)));
    let expected =
        (vec!["node-3 minilm".to_string()], vec!["node node-3 lacks the key of minilm".to_string()]);
    assert_eq!(shown(&world), expected);
    let asked = |world: &World, name: &str, most| member_wraps(&world.cluster, &member(name), most);
    for name in ["alice", "bob"] {
        let answer = asked(&world, name, 99);
        let own = Recipient::Member(member(name));
        assert_eq!(answer.lacking.len(), 1, "{name}");
        assert_eq!(answer.lacking[0].wrap.wrap.recipient, own, "each gets its own wrap alone");
        assert_eq!(answer.lacking[0].recipients, [Recipient::Node(node_id("node-3"))]);
    }
    assert!(asked(&world, "mallory", 99).lacking.is_empty(), "a stranger holds no key to share");
    assert!(asked(&world, "alice", 0).lacking.is_empty(), "the answer is bounded");
    world.must(Action::PutWraps(vec![world.wrap_to("minilm", "node-3")]));
    assert_eq!((shown(&world), asked(&world, "alice", 99).lacking), ((vec![], vec![]), vec![]));
    // A model whose key no member holds can be shared by none of them.
    for name in ["alice", "bob", "carol"] {
        let signed = human_chain::sign_complaint(
            &secrets()[&member(name)],
            samples::about(&world, "minilm", Recipient::Member(member(name))),
        );
        world.must(Action::DropWrap(Box::new(signed)));
    }
    let answer = asked(&world, "alice", 99);
    let keyless: Vec<&str> = answer.keyless.iter().map(|name| name.as_str()).collect();
    assert_eq!((answer.lacking.len(), keyless), (0, vec!["minilm"]));
    assert_eq!(shown(&world), (vec![], vec![]), "nothing can be done about it by sharing");
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
        let wraps: Vec<_> = chosen.map(|to| world.wrap(&name, to.clone())).collect();
        let reply =
            world.apply(Actor::Scheduler, Action::RegisterModel { record: Box::new(model(&name, 1)), wraps });
        assert_eq!(code(&reply) == "ok", matches!(subset, 1 | 3), "{subset:b}: {reply:?}");
        let known = world.cluster.models().contains_key(&root(&name));
        let by_member = world.cluster.wrap_of(&root(&name), &all[0]).is_some();
        assert_eq!((known, by_member), (code(&reply) == "ok", known), "{subset:b}");
    }
}

#[test]
fn a_registered_model_is_not_replaced() {
    let mut world = two_nodes();
    let again = world.register(model("minilm", 90 << 20), &[node_id("node-1"), node_id("node-2")]);
    let before = world.cluster.clone();
    world.must(again);
    assert_eq!(world.cluster, before, "the same again changes nothing");
    let other_root = {
        let mut record = model("minilm", 90 << 20);
        record.root = root("other bytes");
        world.register(record, &[])
    };
    let elsewhere = {
        let mut record = model("minilm", 90 << 20);
        record.stores[0].url = "file:///elsewhere".into();
        world.register(record, &[])
    };
    let mut renamed = model("minilm", 90 << 20);
    renamed.name = "mine".parse().unwrap();
    let forged = |recipient: Recipient| {
        let mut wrap = wrap("minilm", recipient);
        wrap.sealed.0[0] ^= 1;
        world.signed(wrap)
    };
    let to_node = || Recipient::Node(node_id("node-1"));
    let to_alice = || Recipient::Member(member("alice"));
    let to_bob = || Recipient::Member(member("bob"));
    let with_key = Action::RegisterModel {
        record: Box::new(model("minilm", 90 << 20)),
        wraps: vec![forged(to_alice())],
    };
    let twins = vec![world.wrap("minilm", to_bob()), forged(to_bob())];
    check(
        &world,
        vec![
            ("its name for other bytes", other_root, "name-taken"),
            ("other stores", elsewhere, "model-record-differs"),
            ("another name", world.register(renamed, &[]), "model-record-differs"),
            ("another wrap for a node", Action::PutWraps(vec![forged(to_node())]), "wrap-held"),
            ("another wrap for a member", Action::PutWraps(vec![forged(to_alice())]), "wrap-held"),
            ("another wrap with the record", with_key, "wrap-held"),
            ("two wraps for one", Action::PutWraps(twins), "wrap-held"),
            ("the same wrap", Action::PutWraps(vec![world.wrap("minilm", to_node())]), "ok"),
            ("one that is new", Action::PutWraps(vec![forged(to_bob())]), "ok"),
        ],
    );
}

/// A wrap to a replaced key is dropped, wherever the key was replaced, and frees capacity for another.
#[test]
fn a_replaced_key_allows_another_wrap() {
    let mut world = two_nodes();
    let late = node("late", 1000, 1000).admission;
    let held = |world: &World, to: &Recipient| world.cluster.wrap_of(&root("minilm"), to).is_some();
    let (to_late, to_alice) = (Recipient::Node(late.id), Recipient::Member(member("alice")));
    world.approve(Change::AdmitNode(Box::new(late.clone())));
    world.must(Action::PutWraps(vec![world.wrap("minilm", to_late.clone())]));
    world.approve(Change::AdmitNode(Box::new(late.clone())));
    assert!(held(&world, &to_late), "it is admitted again as it was");
    let anew = NodeAdmission { encryption: encryption("late anew"), ..late };
    world.approve(Change::AdmitNode(Box::new(claimed_by("late", anew))));
    assert_eq!((held(&world, &to_late), held(&world, &to_alice)), (false, true));

    let state = world.cluster.circle_state().unwrap();
    let mut members: Vec<Member> = state.members().cloned().collect();
    let policy = state.policy().clone();
    let alice = members.iter_mut().find(|member| member.id.as_str() == "alice").unwrap();
    let fresh = MemberSecret::generate(&[77; 64]);
    let claim = prove_keys(&fresh, member("alice"));
    *alice = claim.member;
    let proofs = [(member("alice"), claim.proof)].into();
    let proposal = world.proposal(Change::SetMembers { members, policy, proofs });
    world.must(Action::SubmitProposal(Box::new(proposal.clone())));
    let by_new = vote(&fresh, member("alice"), proposal.history, &proposal, Choice::Approve, world.now);
    world.open_by("alice", &proposal);
    world.must(Action::CastBallot(Box::new(by_new)));
    for name in ["bob", "carol"] {
        world.must(Action::CastBallot(Box::new(world.ballot(name, &proposal, Choice::Approve))));
    }
    assert!(!held(&world, &to_alice), "alice's key was replaced");
    assert!(world.cluster.wrap_for(&root("minilm"), node_id("node-1")).is_some(), "others keep theirs");
}

/// A node that was removed holds no wrap, is sent none, and cannot be given one.
#[test]
fn a_removed_node_keeps_no_wrap() {
    let mut world = running();
    let to = Recipient::Node(node_id("node-1"));
    let kept = world.cluster.wrap_of(&root("minilm"), &to).cloned().unwrap();
    world.approve(Change::RemoveNode { node: "node-1".parse().unwrap() });
    assert_eq!(world.cluster.wrap_of(&root("minilm"), &to), None);
    assert!(desired_for(&world.cluster, node_id("node-1")).is_empty(), "it is sent nothing");
    let again = Action::PutWraps(vec![kept]);
    assert_eq!(verdict(&world, Actor::Scheduler, again), "node-not-admitted");
}

/// A node whose keys another party exchanged does not get on the list of those that ask.
#[test]
fn a_request_for_admission_is_signed_by_its_node() {
    let world = two_nodes();
    let sound = node("late", 1000, 1000).admission;
    let swapped = NodeAdmission { encryption: encryption("mallory"), ..sound.clone() };
    let signed_by_it = claimed_by("late", swapped.clone());
    let enrol = |admission: NodeAdmission| Action::Enrol(Box::new(admission));
    check(
        &world,
        vec![
            ("as it was signed", enrol(sound), "ok"),
            ("another encryption key", enrol(swapped), "node-keys-unproven"),
            ("the same, signed by the node", enrol(signed_by_it), "ok"),
        ],
    );
}

/// Before, one token ended a model. Now no command of a token does: the circle decides, and the key is
/// deleted when the grace period is over.
#[test]
fn a_model_that_no_service_names_is_forgotten_by_decision_after_its_grace() {
    let mut world = running();
    let to_alice = Recipient::Member(member("alice"));
    world.must(world.register(model("unused", 1), &[node_id("node-1")]));
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
    assert!(
        world.cluster.wrap_of(&root("unused"), &to_alice).is_some(),
        "a token proposes, and nothing is forgotten"
    );
    for name in ["alice", "bob", "carol"] {
        let ballot = world.ballot(name, &proposal, Choice::Approve);
        world.must(Action::CastBallot(Box::new(ballot)));
    }
    assert!(!tick_is_due(&world.cluster, &world.clocks), "the grace period runs");
    assert!(world.cluster.wrap_of(&root("unused"), &to_alice).is_some(), "its key is kept until then");
    let again = world.register(model("unused", 1), &[]);
    assert_eq!(verdict(&world, Actor::Scheduler, again.clone()), "model-forgotten");
    world.wait(60_000);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    assert!(world.cluster.wrap_of(&root("unused"), &to_alice).is_none(), "its key is gone with it");
    assert!(!world.cluster.models().contains_key(&root("unused")));
    let last = world.cluster.audit().last(1).next().unwrap().clone();
    assert_eq!((last.action.as_str(), last.subject.as_str()), ("forget", "model/unused"));
    let mut other_bytes = model("unused", 1);
    other_bytes.root = root("other bytes");
    check(
        &world,
        vec![
            ("the same model", again, "model-forgotten"),
            ("its name for other bytes", world.register(other_bytes, &[]), "model-name-taken"),
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

#[test]
fn a_dry_run_refuses_the_built_in_engine_over_a_model_for_foreign_engines() {
    let mut world = two_nodes();
    let mut record = model("qwen9", 1);
    record.architecture = protocol::checkpoint::foreign_architecture("qwen9");
    world.must(world.register(record, &[node_id("node-1")]));
    let of = |name: &str, runtime| {
        let mut service = manifest("chat", 1, 3, 1000, 128);
        service.model = protocol::manifest::ModelChoice { name: name.parse().unwrap(), root: root(name) };
        service.runtime = runtime;
        dry_run(world.view(), &protocol::manifest::Manifest::Service(service))
    };
    let refused = of("qwen9", protocol::manifest::Runtime::Candle).unwrap_err();
    assert_eq!(refused.code.as_str(), "model-architecture-unknown");
    assert!(refused.message.contains("serves qwen9 (foreign/qwen9)"), "{refused}");
    let foreign = of("qwen9", protocol::manifest::Runtime::Process);
    assert_ne!(foreign.err().map(|refusal| refusal.code.as_str()), Some("model-architecture-unknown"));
    assert!(of("minilm", protocol::manifest::Runtime::Candle).is_ok(), "the control: a model of an engine");
}

#[test]
fn a_dry_run_refuses_a_task_that_is_not_the_models() {
    use protocol::manifest::Task;
    let mut world = two_nodes();
    let mut record = model("judge", 1);
    record.architecture = "bert-reranker".into();
    world.must(world.register(record, &[node_id("node-1")]));
    let of = |name: &str, task| {
        let mut service = manifest("chat", 1, 3, 1000, 128);
        service.model = protocol::manifest::ModelChoice { name: name.parse().unwrap(), root: root(name) };
        service.task = task;
        dry_run(world.view(), &protocol::manifest::Manifest::Service(service))
    };
    for (name, task, expected) in [
        ("judge", Task::Embed, "`rerank`, not `embed`"),
        ("judge", Task::Generate, "`rerank`, not `generate`"),
        ("minilm", Task::Rerank, "`embed`, not `rerank`"),
    ] {
        let refused = of(name, task).unwrap_err();
        assert_eq!(refused.code.as_str(), "operation-unsupported");
        assert!(refused.message.contains(expected), "{refused}");
    }
    let control = of("judge", Task::Rerank).err().map(|refused| refused.code.as_str());
    assert_ne!(control, Some("operation-unsupported"));
    assert!(of("minilm", Task::Embed).is_ok(), "the control");
}

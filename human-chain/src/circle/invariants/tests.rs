//! Tests of the invariants: they hold after every step of a history, and each planted violation is found.

use super::*;
use crate::circle::ApprovedService;
use crate::history::HistoryTree;
use crate::{ChainError, MemberSecret, certify, propose, sign_genesis, verify, vote};
use protocol::governance::{
    ActionClass, Change, Choice, ControlReplica, Genesis, NodeAdmission, NodeRole, Policy, Quorum,
};
use protocol::keys::{ByteString, EncryptionKey, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::{Epoch, Millis, NodeId, PublicKey, ReplicaId};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::LazyLock;

const NOW: Millis = Millis(1_795_264_910_000);

fn name<T: FromStr<Err = String>>(text: &str) -> T {
    text.parse().expect("a name")
}

fn secret(who: &str) -> MemberSecret {
    let mut seed = [0; 64];
    seed[..32].copy_from_slice(&Digest::of(who.as_bytes()).0);
    MemberSecret::generate(&seed)
}

fn member(who: &str) -> Member {
    Member { id: name(who), keys: secret(who).public() }
}

fn key(text: &str) -> PublicKey {
    PublicKey(Digest::of(text.as_bytes()).0)
}

fn node(text: &str) -> NodeAdmission {
    let ml_kem = ByteString(vec![1; ML_KEM_768_PUBLIC_KEY_LENGTH]);
    NodeAdmission {
        name: name(text),
        id: NodeId(key(text)),
        encryption: EncryptionKey { x25519: key(text), ml_kem },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: String::new(),
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
    }
}

/// Returns a policy in which all of these members decide together.
fn all_of(people: &[&str]) -> Policy {
    let of: Vec<Quorum> = people.iter().map(|who| Quorum::Member(name(who))).collect();
    let rule = Quorum::Threshold { required: of.len() as u32, of };
    Policy {
        quorums: [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, rule.clone())).into(),
    }
}

fn deploy(service: &str, replicas_max: u32) -> Change {
    let text = format!(
        "kind = 'service'\nname = '{service}'\ntask = 'embed'\nmodel = {{ name = 'm', root = '{}' }}\n\
         replicas = {{ min = 1, max = {replicas_max} }}\n\
         resources = {{ cpu_millicores = 500, memory = '256 MiB' }}\n",
        Digest::of(b"m")
    );
    Change::Deploy(Box::new(Manifest::from_toml(&text).expect("a sound manifest")))
}

fn founded() -> CircleState {
    let control = ControlReplica {
        id: ReplicaId(1),
        key: key("control"),
        address: "127.0.0.1:7001".into(),
        api: "http://127.0.0.1:7000".into(),
    };
    let genesis = Genesis {
        name: "test".into(),
        founded_at: NOW,
        members: ["alice", "bob"].map(member).to_vec(),
        policy: all_of(&["alice", "bob"]),
        control: vec![control],
        nodes: ["n1", "n2"].map(node).to_vec(),
        tokens: vec![],
    };
    let secrets = ["alice", "bob"].map(|who| (name(who), secret(who)));
    let founders: Vec<_> = secrets.iter().map(|(id, secret)| (MemberId::clone(id), secret)).collect();
    CircleState::found(&sign_genesis(genesis, &founders), None).expect("a sound genesis")
}

/// Returns a change that all members have approved, verified against this state.
fn approved(state: &CircleState, change: Change) -> crate::Approved<Change> {
    let nonce = Digest::of(&state.length().to_be_bytes());
    let proposal = propose(state, change, String::new(), NOW, NOW.plus(1000), nonce).expect("admissible");
    let cast = |member: &Member| {
        vote(
            &secret(member.id.as_str()),
            member.id.clone(),
            proposal.history,
            &proposal,
            Choice::Approve,
            NOW,
        )
    };
    let ballots: Vec<_> = state.members().map(cast).collect();
    let certificate = certify(state, &proposal, &ballots).expect("all members approve");
    verify(state, &certificate, NOW).expect("a sound certificate")
}

fn history() -> Vec<Change> {
    vec![
        deploy("chat", 2),
        deploy("embed", 4),
        deploy("chat", 3),
        Change::AdmitNode(Box::new(node("n3"))),
        Change::Retire { service: name("chat"), grace_seconds: 30 },
        Change::RemoveNode { node: name("n1") },
        Change::SetMembers {
            members: ["alice", "carol"].map(member).to_vec(),
            policy: all_of(&["alice", "carol"]),
        },
        deploy("chat", 1),
        Change::Retire { service: name("chat"), grace_seconds: 0 },
        Change::AdmitNode(Box::new(node("n1"))),
        Change::RemoveNode { node: name("n2") },
    ]
}

/// Returns a state with a service in force, a retired one, a removed node and a former member.
static SOUND: LazyLock<CircleState> = LazyLock::new(|| {
    let mut state = founded();
    for change in history() {
        let approved = approved(&state, change);
        state.advance(approved).expect("just verified");
        assert_eq!(state.check_invariants(), Ok(()));
    }
    state
});

#[test]
fn invariants_hold_after_every_step_of_a_history() {
    let state: &CircleState = &SOUND;
    assert_eq!((state.length(), state.epoch()), (history().len() as u64, Epoch(2)));
    assert_eq!((state.services().count(), state.retired().count(), state.nodes().count()), (1, 1, 2));
    assert_eq!(state.check_invariants(), Ok(()));
}

type Damage = fn(&mut CircleState);

fn embed(state: &mut CircleState) -> &mut ApprovedService {
    state.services.get_mut(&name("embed")).expect("in force")
}

fn retired_chat(state: &mut CircleState) -> &mut crate::RetiredService {
    state.retired.get_mut(&name("chat")).expect("retired")
}

fn all_found(planted: &[(&str, Damage)]) {
    for (expected, damage) in planted {
        let mut state = SOUND.clone();
        damage(&mut state);
        let found = state.check_invariants().expect_err(expected);
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
    }
}

#[test]
fn damage_to_members_is_found() {
    all_found(&[
        ("0 members", |s| s.members.clear()),
        ("names `carol`, who is not a member", |s| drop(s.members.remove(&name("carol")))),
        ("former member `alice` is a member", |s| {
            s.former_members.insert(name("alice"));
        }),
        ("member `alice` is kept as `zoe`", |s| {
            let alice = s.members[&name("alice")].clone();
            s.members.insert(name("zoe"), alice);
            s.members.remove(&name("alice"));
            s.policy = all_of(&["alice", "carol"]);
        }),
        ("`carol` uses a key in use", |s| {
            let keys = s.members[&name("alice")].keys.clone();
            s.members.get_mut(&name("carol")).expect("a member").keys = keys;
        }),
        ("has no quorum for", |s| s.policy.quorums.clear()),
        ("lets one member decide alone", |s| {
            s.policy.quorums.insert(ActionClass::Routine, Quorum::Member(name("alice")));
        }),
        ("`circle` has version 2", |s| s.epoch = Epoch(1)),
        ("`circle` has version 2", |s| s.epoch = Epoch(3)),
        ("epoch 0 is before the first", |s| s.epoch = Epoch(0)),
        ("`circle` has version 0", |s| {
            s.subjects.remove(CIRCLE_SUBJECT);
        }),
        ("`circle` has version 2", |s| {
            s.members.get_mut(&name("carol")).expect("a member").keys = secret("dave").public();
        }),
        ("0 replicas", |s| s.control.clear()),
        ("a token without scopes", |s| {
            let hash = Digest::of(b"token");
            s.tokens =
                vec![protocol::governance::AccessToken { name: name("cli"), scopes: BTreeSet::new(), hash }];
        }),
    ]);
}

#[test]
fn damage_to_nodes_is_found() {
    all_found(&[
        ("node `n3` is kept as `n9`", |s| {
            let node = s.nodes.remove(&name("n3")).expect("admitted");
            s.nodes.insert(name("n9"), node);
        }),
        ("has no role", |s| s.nodes.get_mut(&name("n3")).expect("admitted").roles.clear()),
        ("node `n3` shares a key", |s| {
            s.nodes.get_mut(&name("n3")).expect("admitted").id = NodeId(key("n1"));
        }),
        ("node `n3` shares a key", |s| {
            s.nodes.get_mut(&name("n3")).expect("admitted").id = NodeId(key("control"));
        }),
        ("`node/n3` has version 1", |s| {
            s.nodes.get_mut(&name("n3")).expect("admitted").region = "elsewhere".into();
        }),
        ("`node/n3` has version 0", |s| {
            s.subjects.remove("node/n3");
        }),
        ("`node/n3` has a value, but is not in force", |s| drop(s.nodes.remove(&name("n3")))),
        ("`node/n9` has version 0", |s| drop(s.nodes.insert(name("n9"), node("n9")))),
    ]);
}

#[test]
fn damage_to_services_is_found() {
    all_found(&[
        ("service `embed` is kept as `other`", |s| {
            let service = s.services.remove(&name("embed")).expect("in force");
            s.services.insert(name("other"), service);
        }),
        ("`service/embed` has version 1", |s| embed(s).version = 2),
        ("`service/embed` has version 1", |s| embed(s).manifest.replicas.max = 9),
        ("replicas.max is 0", |s| embed(s).manifest.replicas.max = 0),
        ("asks for egress", |s| embed(s).manifest.egress.push("example.org".into())),
        ("service `embed` is in force and retired", |s| {
            let retired = retired_chat(s).clone();
            s.retired.insert(name("embed"), retired);
        }),
        ("service `chat` is in force and retired", |s| {
            let last = retired_chat(s).last.clone();
            s.services.insert(name("chat"), last);
        }),
        ("`service/chat` has version 5", |s| {
            let last = s.retired.remove(&name("chat")).expect("retired").last;
            s.services.insert(name("chat"), last);
        }),
        ("`service/embed` has a value, but is not in force", |s| drop(s.services.remove(&name("embed")))),
        ("`service/chat` is neither in force nor retired", |s| drop(s.retired.remove(&name("chat")))),
        ("retired service `chat` is kept as `other`", |s| {
            let retired = s.retired.remove(&name("chat")).expect("retired");
            s.retired.insert(name("other"), retired);
        }),
        ("was retired at version 6, but ran at 4", |s| retired_chat(s).version = 6),
        ("was retired at version 5, but ran at 5", |s| retired_chat(s).last.version = 5),
        ("has 604801 s of grace", |s| retired_chat(s).grace_seconds = 604_801),
        ("approves two things", |s| embed(s).certificate = retired_chat(s).certificate),
        ("approves two things", |s| retired_chat(s).certificate = retired_chat(s).last.certificate),
    ]);
}

/// Returns the tree of that many certificates.
fn of_size(size: u64) -> HistoryTree {
    let mut tree = HistoryTree::empty();
    (0..size).for_each(|number| tree.append(&Digest::of(&number.to_be_bytes())));
    tree
}

#[test]
fn damage_to_versions_is_found() {
    all_found(&[
        ("`planet/mars` is neither in force nor retired", |s| {
            s.subjects.insert("planet/mars".into(), (1, None));
        }),
        ("`service/ghost` is neither in force nor retired", |s| {
            s.subjects.insert("service/ghost".into(), (1, None));
        }),
        ("`node/ghost` has a value, but is not in force", |s| {
            s.subjects.insert("node/ghost".into(), (1, Some(Digest::of(b"ghost"))));
        }),
        ("`node/ghost` has version 0", |s| {
            s.subjects.insert("node/ghost".into(), (0, None));
        }),
        ("after 3 certificates", |s| s.history = of_size(3)),
        ("after 14 certificates", |s| s.history = of_size(14)),
        ("after 11 certificates", |s| {
            s.subjects.get_mut("node/n2").expect("removed").0 += 9;
        }),
    ]);
}

/// Two admissions under one key are each sound when they are verified, but only the first is admissible.
#[test]
fn of_two_changes_that_exclude_each_other_the_second_is_refused() {
    let mut state = SOUND.clone();
    let twin = |text: &str| NodeAdmission { name: name(text), ..node("twin") };
    let [first, second] = ["n7", "n8"].map(|text| approved(&SOUND, Change::AdmitNode(Box::new(twin(text)))));
    assert_eq!(state.advance(first), Ok(()));
    let before = state.clone();
    let refused = state.advance(second);
    assert!(matches!(&refused, Err(ChainError::Invalid { what: "node", .. })), "{refused:?}");
    assert_eq!(state, before, "a refused change leaves no trace");
    assert_eq!(state.check_invariants(), Ok(()));
}

/// A change whose preconditions no longer hold is refused before any of it is applied.
#[test]
fn a_refused_change_leaves_every_invariant_as_it_was() {
    let rivals = |subject: &str| match subject {
        "service" => [deploy("embed", 7), Change::Retire { service: name("embed"), grace_seconds: 1 }],
        "node" => [Change::RemoveNode { node: name("n3") }, Change::AdmitNode(Box::new(node("n3")))],
        _ => [["alice", "dave"], ["alice", "erin"]].map(|people| Change::SetMembers {
            members: people.map(member).to_vec(),
            policy: all_of(&people),
        }),
    };
    for subject in ["service", "node", "circle"] {
        for order in [[0, 1], [1, 0]] {
            let mut state = SOUND.clone();
            let changes = rivals(subject);
            let [first, second] = order.map(|at| approved(&SOUND, changes[at].clone()));
            assert_eq!(state.advance(first), Ok(()), "{subject}");
            let before = state.clone();
            assert!(state.advance(second).is_err(), "{subject}");
            assert_eq!((state.check_invariants(), &state), (Ok(()), &before), "{subject}");
        }
    }
}

/// A key identifies one machine, so another name gets it only after the first one is removed.
#[test]
fn a_key_moves_to_another_name_only_after_a_removal() {
    let mut state = SOUND.clone();
    let renamed = NodeAdmission { name: name("n8"), ..node("n3") };
    let again = Change::AdmitNode(Box::new(renamed.clone()));
    assert!(crate::change::check_change(&state, &again).is_err());
    for change in [Change::RemoveNode { node: name("n3") }, again] {
        let approved = approved(&state, change);
        assert_eq!(state.advance(approved), Ok(()));
    }
    assert_eq!((state.node_by_id(renamed.id), state.check_invariants()), (Some(&renamed), Ok(())));
}

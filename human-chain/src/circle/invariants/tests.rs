//! Tests of the invariants: they hold after every step of a history, and each planted violation is found.

use super::*;
use crate::circle::passkeys::MemberPasskeys;
use crate::history::{HistoryEntry, HistoryTree};
use crate::passkey::PasskeyCount;
use crate::testing::{claimed_by, encryption, node};
use crate::{ChainError, MemberSecret, certify, propose, sign_genesis, verify, vote};
use protocol::access::AccessEnvelope;
use protocol::governance::{
    ActionClass, Change, Choice, ControlReplica, Genesis, MEMBER_KEYS_DOMAIN, NodeAdmission, Policy, Quorum,
};
use protocol::halt::{Halt, HaltScope};
use protocol::keys::ByteString;
use protocol::manifest::ModelChoice;
use protocol::{
    CircleId, Epoch, HaltId, Millis, ModelRoot, Passkey, PasskeyKey, PasskeyPolicy, ProposalId, PublicKey,
    ReplicaId,
};
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
    let mut keys = secret(who).public();
    // The one key that no seed makes: a fixed value keeps the member the same each time.
    keys.encryption.ml_kem = encryption(who).ml_kem;
    Member { id: name(who), keys }
}

fn key(text: &str) -> PublicKey {
    PublicKey(Digest::of(text.as_bytes()).0)
}

/// Returns a policy in which all of these members decide together.
fn all_of(people: &[&str]) -> Policy {
    let of: Vec<Quorum> = people.iter().map(|who| Quorum::Member(name(who))).collect();
    let rule = Quorum::Threshold { required: of.len() as u32, of };
    let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, rule.clone())).into();
    let origins = ["http://localhost:8080".to_string()].into();
    let passkeys = Some(PasskeyPolicy { rp_id: "localhost".into(), origins, routine: true });
    Policy { quorums, passkeys, veto_seconds: 0, proposer_counts: true }
}

/// Returns the change after which the first of these people and a new second one are the members.
fn set_members(people: [&str; 2]) -> Change {
    let members = people.map(member);
    let proof = secret(people[1]).sign(MEMBER_KEYS_DOMAIN, &members[1].key_claim());
    let proofs = [(name(people[1]), proof)].into();
    Change::SetMembers { members: members.to_vec(), policy: all_of(&people), proofs }
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

/// The circle before any decision. Part of a member's keys comes from no seed, so it is founded once.
static FOUNDED: LazyLock<CircleState> = LazyLock::new(found);

fn found() -> CircleState {
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
        access: AccessEnvelope::standard([name("alice")]),
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
    let joining = match &proposal.change {
        Change::SetMembers { members, .. } => members.as_slice(),
        _ => &[],
    };
    let ballots: Vec<_> = state.members().chain(joining).map(cast).collect();
    let certificate = certify(state, &proposal, &ballots).expect("all members approve");
    verify(state, &certificate, NOW).expect("a sound certificate")
}

fn spare() -> ModelChoice {
    ModelChoice { name: name("spare"), root: ModelRoot(Digest::of(b"spare")) }
}

fn halt(nonce: &[u8]) -> Halt {
    Halt {
        circle: FOUNDED.id(),
        member: name("alice"),
        signer: FOUNDED.member(&name("alice")).expect("a founder").keys.ed25519,
        scope: HaltScope::Circle,
        reason: String::new(),
        issued_at: NOW,
        nonce: Digest::of(nonce),
    }
}

fn history() -> Vec<Change> {
    vec![
        deploy("chat", 2),
        deploy("embed", 4),
        deploy("chat", 3),
        Change::AdmitNode(Box::new(node("n3"))),
        Change::Retire { service: name("chat"), grace_seconds: 30 },
        Change::RemoveNode { node: name("n1") },
        set_members(["alice", "carol"]),
        deploy("chat", 1),
        Change::Retire { service: name("chat"), grace_seconds: 0 },
        Change::AdmitNode(Box::new(node("n1"))),
        Change::RemoveNode { node: name("n2") },
        Change::ForgetModel { model: spare(), grace_seconds: 60 },
        crate::lift(vec![halt(b"1"), halt(b"2")]),
        crate::lift(vec![halt(b"3")]),
        Change::SetPasskeys { member: name("alice"), passkeys: vec![passkey("phone")] },
    ]
}

fn passkey(label: &str) -> Passkey {
    let key = PasskeyKey::EdDsa(secret(label).public().ed25519);
    Passkey { credential: ByteString(label.as_bytes().to_vec()), key, label: label.into() }
}

/// Returns a state with a service in force, a retired one, a removed node and a former member.
static SOUND: LazyLock<CircleState> = LazyLock::new(|| {
    let mut state = FOUNDED.clone();
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

fn earlier(service: &ApprovedService) -> crate::EarlierApproval {
    crate::EarlierApproval {
        manifest: service.manifest.clone(),
        certificate: Digest::of(b"earlier"),
        proposal: service.proposal,
    }
}

/// Lets the service return to this approval by its manifest, with the subject's value that follows.
fn damaged_to_return(state: &mut CircleState, before: crate::EarlierApproval) {
    embed(state).manifest.rollout.on_failure = protocol::manifest::OnFailure::Return;
    embed(state).before = Some(before);
    let value = manifest_value(&Manifest::Service(embed(state).manifest.clone()));
    state.subjects.get_mut("service/embed").expect("in force").1 = Some(value);
}

fn forgotten_spare(state: &mut CircleState) -> &mut crate::ForgottenModel {
    state.forgotten.get_mut(&spare().root).expect("forgotten")
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
        ("2592001 s for a veto", |s| s.policy.veto_seconds = 2_592_001),
        ("`zoe` is suspended, but no member", |s| {
            s.suspended.insert(name("zoe"), BTreeSet::new());
        }),
        ("`member/carol` has version 0", |s| {
            s.suspended.insert(name("carol"), BTreeSet::new());
        }),
        ("member `carol` has a key that was given up", |s| {
            let key = crate::member::former_key(&s.members[&name("carol")].keys.ed25519.0);
            s.former_keys.insert(key);
        }),
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
        ("names no member that may grant access", |s| s.access.envelope.grantors.clear()),
        ("lets no token read and propose", |s| s.access.envelope.scopes.clear()),
        ("grants under the access envelope in force do not count", |s| s.access.counted.clear()),
        ("2 access envelopes count", |s| {
            s.access.counted.insert(Digest::of(b"another"));
        }),
        ("`access` has version 1 and value", |s| s.access.envelope.keys_max = 1),
        ("prices without a vote", |s| s.prices.gpu_hour_micro_units = 1),
        ("millionths for the price", |s| s.prices.cpu_hour_micro_units = u64::MAX),
        ("projects without a vote", |s| s.projects.own_weight = 1),
    ]);
}

/// Changes the admission of `n3` without its certificate.
fn change_n3(state: &mut CircleState, change: impl FnOnce(&mut NodeAdmission)) {
    let mut node = state.nodes.get(&name("n3")).expect("admitted").clone();
    state.nodes.remove(&name("n3"));
    change(&mut node);
    state.nodes.plant(name("n3"), node);
}

#[test]
fn damage_to_nodes_is_found() {
    all_found(&[
        ("node `n3` is kept as `n9`", |s| {
            let node = s.nodes.get(&name("n3")).expect("admitted").clone();
            s.nodes.remove(&name("n3"));
            s.nodes.plant(name("n9"), node);
        }),
        ("has no role", |s| change_n3(s, |node| node.roles.clear())),
        ("node `n3` shares a key", |s| change_n3(s, |node| *node = claimed_by("n1", node.clone()))),
        ("node `n3` shares a key", |s| {
            s.control[0].key = node("n3").id.0;
        }),
        ("member `alice` shares a key", |s| {
            s.control[0].key = s.members[&name("alice")].keys.ed25519;
        }),
        ("`node/n3` has version 1", |s| change_n3(s, |node| node.region = "elsewhere".into())),
        ("`node/n3` has version 0", |s| {
            s.subjects.remove("node/n3");
        }),
        ("`node/n3` has a value, but is not in force", |s| s.nodes.remove(&name("n3"))),
        ("`node/n9` has version 0", |s| s.nodes.insert(node("n9"))),
        ("a key of node `n3` does not lead to it", |s| s.nodes.unlist(&node("n3").id.0.0)),
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
        ("returns, and its manifest says hold", |s| {
            let before = earlier(embed(s));
            embed(s).before = Some(before);
        }),
        ("returns to an approval of another", |s| {
            let before = crate::EarlierApproval {
                manifest: retired_chat(s).last.manifest.clone(),
                ..earlier(embed(s))
            };
            damaged_to_return(s, before);
        }),
        ("approves two things", |s| retired_chat(s).certificate = retired_chat(s).last.certificate),
    ]);
}

/// Returns the approval of a job.
fn deploy_job(job: &str) -> Change {
    let text = format!(
        "kind = 'job'\nname = '{job}'\nartifact = {{ name = 'trainer', root = '{root}' }}\n\
         command = ['/bin/train']\nranks = 2\nrun_seconds_max = 60\nsubmit = {{ members = true }}\n\
         resources = {{ cpu_millicores = 500, memory = '256 MiB' }}\n\
         models = [{{ name = 'm', root = '{root}' }}]\n",
        root = Digest::of(b"m")
    );
    Change::Deploy(Box::new(Manifest::from_toml(&text).expect("a sound manifest")))
}

/// Returns the sound state with a job in force, and a retired one.
static WITH_JOBS: LazyLock<CircleState> = LazyLock::new(|| {
    let mut state = SOUND.clone();
    let retire = Change::Retire { service: name("old"), grace_seconds: 30 };
    for change in [deploy_job("train"), deploy_job("old"), retire] {
        let approved = approved(&state, change);
        state.advance(approved).expect("just verified");
        assert_eq!(state.check_invariants(), Ok(()));
    }
    state
});

fn train(state: &mut CircleState) -> &mut crate::ApprovedJob {
    state.jobs.get_mut(&name("train")).expect("in force")
}

fn retired_old(state: &mut CircleState) -> &mut crate::RetiredJob {
    state.retired_jobs.get_mut(&name("old")).expect("retired")
}

#[test]
fn damage_to_jobs_is_found() {
    let planted: [(&str, Damage); 14] = [
        ("job `train` is kept as `other`", |s| {
            let job = s.jobs.remove(&name("train")).expect("in force");
            s.jobs.insert(name("other"), job);
        }),
        ("job `train` is in force, and its name stands for something else", |s| {
            let retired = retired_old(s).clone();
            s.retired_jobs.insert(name("train"), retired);
        }),
        ("job `old` is in force, and its name stands for something else", |s| {
            let last = retired_old(s).last.clone();
            s.jobs.insert(name("old"), last);
        }),
        ("`service/train` has version 1", |s| train(s).version = 2),
        ("`service/train` has version 1", |s| train(s).manifest.slots = 9),
        ("slots is 0", |s| train(s).manifest.slots = 0),
        ("asks for egress", |s| train(s).manifest.egress.push("example.org".into())),
        ("reads a root that its name does not stand for", |s| {
            train(s).manifest.models[0].root = ModelRoot(Digest::of(b"other"));
        }),
        ("`service/train` has a value, but is not in force", |s| drop(s.jobs.remove(&name("train")))),
        ("`service/old` is neither in force nor retired", |s| drop(s.retired_jobs.remove(&name("old")))),
        ("retired job `old` is kept as `other`", |s| {
            let retired = s.retired_jobs.remove(&name("old")).expect("retired");
            s.retired_jobs.insert(name("other"), retired);
        }),
        ("job `old` was retired at version 5", |s| retired_old(s).version = 5),
        ("job `old` has too much grace", |s| retired_old(s).grace_seconds = 604_801),
        ("approves two things", |s| train(s).certificate = retired_old(s).certificate),
    ];
    for (expected, damage) in planted {
        let mut state = WITH_JOBS.clone();
        damage(&mut state);
        let found = state.check_invariants().expect_err(expected);
        assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
    }
}

#[test]
fn damage_to_forgotten_models_is_found() {
    all_found(&[
        ("forgotten model `spare` is kept as", |s| {
            let spare = s.forgotten.remove(&spare().root).expect("forgotten");
            s.forgotten.insert(ModelRoot(Digest::of(b"other")), spare);
        }),
        ("has 2592001 s of grace", |s| forgotten_spare(s).grace_seconds = 2_592_001),
        ("stands for another root", |s| {
            s.models.remove(&name("spare"));
        }),
        ("a service in force names it", |s| {
            let model = embed(s).manifest.model.clone();
            let spare = forgotten_spare(s).clone();
            s.forgotten.insert(model.root, crate::ForgottenModel { model, ..spare });
        }),
        ("`model/spare` has version 1", |s| {
            s.subjects.insert("model/spare".into(), (1, Some(Digest::of(b"other"))));
        }),
        ("`model/spare` has a value, but is not in force", |s| s.forgotten.clear()),
        ("approves two things", |s| forgotten_spare(s).certificate = retired_chat(s).certificate),
    ]);
}

#[test]
fn damage_to_lifted_halts_is_found() {
    assert_eq!(SOUND.lifted.len(), 3);
    all_found(&[
        ("is kept as", |s| {
            let (_, first) = s.lifted.pop_first().expect("lifted");
            s.lifted.insert(HaltId(Digest::of(b"other")), first);
        }),
        ("is of another circle", |s| {
            let (_, mut first) = s.lifted.pop_first().expect("lifted");
            first.halt.circle = CircleId(Digest::of(b"other"));
            s.lifted.insert(first.halt.id(), first);
        }),
        ("`halts` has version 2", |s| drop(s.lifted.pop_first())),
        ("`halts` has a value, but is not in force", |s| s.lifted.clear()),
        ("approves two things", |s| {
            let certificate = retired_chat(s).certificate;
            s.lifted.values_mut().for_each(|lifted| lifted.certificate = certificate);
        }),
    ]);
}

fn of_alice(state: &mut CircleState) -> &mut MemberPasskeys {
    state.passkeys.get_mut(&name("alice")).expect("she has one")
}

#[test]
fn damage_to_passkeys_is_found() {
    all_found(&[
        ("`dave` has passkeys and is no member", |s| {
            s.passkeys.insert(name("dave"), MemberPasskeys::default());
        }),
        ("`again` stands in the list twice", |s| {
            let again = Passkey { label: "again".into(), ..passkey("phone") };
            of_alice(s).passkeys.push(again);
        }),
        ("has no label", |s| of_alice(s).passkeys[0].label.clear()),
        ("a counter of `alice` is of no passkey", |s| {
            let count = PasskeyCount { counter: 1, signed_at: NOW };
            of_alice(s).counters.insert(ByteString(vec![1]), count);
        }),
        ("`carol` shares a credential", |s| {
            let stolen = Passkey { credential: passkey("phone").credential, ..passkey("laptop") };
            s.passkeys.entry(name("carol")).or_default().passkeys.push(stolen);
        }),
        ("`passkeys/carol` has version 0", |s| {
            s.passkeys.entry(name("carol")).or_default().passkeys.push(passkey("laptop"));
        }),
        ("`passkeys/alice` has version 1", |s| of_alice(s).passkeys[0].label = "renamed".into()),
        ("a passkey shares its key", |s| s.control[0].key = secret("phone").public().ed25519),
        ("a passkey has a key that was given up", |s| {
            let key = crate::member::former_key(&secret("phone").public().ed25519.0);
            s.former_passkeys.insert(key, name("alice"));
        }),
        ("`passkeys/alice` has a value, but is not in force", |s| s.passkeys.clear()),
    ]);
}

/// Returns the tree of that many certificates.
fn of_size(size: u64) -> HistoryTree {
    let mut tree = HistoryTree::empty();
    let entry = |number: u64| HistoryEntry {
        proposal: ProposalId(Digest::of(&number.to_le_bytes())),
        certificate: Digest::of(&number.to_be_bytes()),
    };
    (0..size).for_each(|number| tree.append(entry(number)));
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
        ("after 18 certificates", |s| s.history = of_size(18)),
        ("after 15 certificates", |s| {
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
        _ => [["alice", "dave"], ["alice", "erin"]].map(set_members),
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

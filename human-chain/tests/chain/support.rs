//! Test fixtures: a small circle of three members, one control replica, three nodes and one deployment.

use ed25519_dalek::{Signer, SigningKey};
use human_chain::{ChainError, CircleState, MemberSecret, certify, propose, sign_genesis, verify, vote};
use protocol::access::AccessEnvelope;
use protocol::canonical::to_bytes;
use protocol::governance::{
    ActionClass, BALLOT_DOMAIN, BallotSignature, Certificate, Change, Choice, ControlReplica,
    GatewayEndpoint, Genesis, MEMBER_KEYS_DOMAIN, Member, NODE_KEYS_DOMAIN, NodeAdmission, NodeRole, Policy,
    Proposal, Quorum, SignedBallot, SignedGenesis, StorageEndpoint,
};
use protocol::halt::{Halt, HaltScope};
use protocol::keys::{ByteString, EncryptionKey, HybridSignature, signing_input};
use protocol::manifest::{Manifest, ModelChoice};
use protocol::model::{WRAP_COMPLAINT_DOMAIN, WrapComplaint};
use protocol::order::{ORDER_DOMAIN, SignedOrder, SlotOrder};
use protocol::{
    Digest, Fence, MemberId, Millis, ModelRoot, NodeId, PublicKey, ReplicaId, Signature, SlotIndex,
};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Time of all events: 2026-11-21 12:41:50 UTC.
pub(crate) const NOW: Millis = Millis(1_795_264_910_000);
/// Lifetime of a proposal in milliseconds: one hour.
pub(crate) const HOUR: u64 = 3_600_000;

/// Parses a name of any type.
pub(crate) fn name<T: FromStr<Err = String>>(text: &str) -> T {
    text.parse().expect("a test's name is a name")
}

/// Returns the secret keys of a person: the same name always has the same signing keys.
pub(crate) fn secret(who: &str) -> MemberSecret {
    let mut seed = [0; 64];
    seed[..32].copy_from_slice(&Digest::of(who.as_bytes()).0);
    MemberSecret::generate(&seed)
}

/// Returns an ML-KEM key: its coefficients of three bits are below the modulus, and no secret belongs to it.
fn ml_kem(who: &str) -> ByteString {
    ByteString(Digest::of(who.as_bytes()).0.map(|byte| byte & 7).repeat(37))
}

/// Returns a member. Its ML-KEM key is made from the name, since nothing is wrapped to it; golden files stay
/// stable.
pub(crate) fn member(who: &str) -> Member {
    let mut keys = secret(who).public();
    keys.encryption.ml_kem = ml_kem(who);
    Member { id: name(who), keys }
}

/// Parses a rule in its text form: `2 of (alice, bob, 1 of (carol, dave))`.
pub(crate) fn quorum(text: &str) -> Quorum {
    let text = text.trim();
    let Some((required, rest)) = text.split_once(" of (") else {
        return Quorum::Member(name(text));
    };
    let inner = rest.strip_suffix(')').expect("a closing bracket");
    let (mut depth, mut start, mut of) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                of.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    let of = of.into_iter().filter(|part| !part.trim().is_empty()).map(quorum).collect();
    Quorum::Threshold { required: required.parse().expect("a number"), of }
}

pub(crate) fn policy(routine: &str, sensitive: &str) -> Policy {
    let quorums = [(ActionClass::Routine, quorum(routine)), (ActionClass::Sensitive, quorum(sensitive))];
    Policy { quorums: BTreeMap::from(quorums), passkeys: None, veto_seconds: 0, proposer_counts: true }
}

/// Returns the proof that a member holds its keys, by the secret of this name.
pub(crate) fn prove(whose: &str, member: &Member) -> HybridSignature {
    secret(whose).sign(MEMBER_KEYS_DOMAIN, &member.key_claim())
}

/// Returns a change of members in which each new member proves its keys.
pub(crate) fn set_members(state: &CircleState, members: Vec<Member>, policy: Policy) -> Change {
    let new = members.iter().filter(|member| state.member(&member.id) != Some(*member));
    let proofs = new.map(|member| (member.id.clone(), prove(member.id.as_str(), member))).collect();
    Change::SetMembers { members, policy, proofs }
}

pub(crate) fn suspend(who: &str) -> Change {
    Change::SuspendMember { member: name(who), halts: BTreeSet::new() }
}

pub(crate) fn signing_key(who: &str) -> SigningKey {
    SigningKey::from_bytes(&Digest::of(who.as_bytes()).0)
}

/// Returns the public key of a machine.
pub(crate) fn key(who: &str) -> PublicKey {
    PublicKey(signing_key(who).verifying_key().to_bytes())
}

/// Gives a node the keys of this machine as its identity, and lets the machine claim all keys of the node.
pub(crate) fn claimed_by(who: &str, mut node: NodeAdmission) -> NodeAdmission {
    node.id = NodeId(key(who));
    let claim = signing_input(NODE_KEYS_DOMAIN, &node.key_claim());
    node.proof = Signature(signing_key(who).sign(&claim).to_bytes());
    node
}

/// Returns a node with these roles and matching addresses.
pub(crate) fn node(who: &str, roles: &[NodeRole]) -> NodeAdmission {
    let mut x25519 = key(&format!("{who} x25519"));
    x25519.0[31] &= 0x3f;
    let node = NodeAdmission {
        name: name(who),
        id: NodeId(key(who)),
        encryption: EncryptionKey { x25519, ml_kem: ml_kem(&format!("{who} node")) },
        roles: roles.iter().copied().collect(),
        region: "ghent".into(),
        owner: None,
        labels: BTreeMap::from([("disk".into(), "nvme".into())]),
        storage: roles.contains(&NodeRole::Storage).then(|| StorageEndpoint {
            address: format!("{who}.example:7443"),
            stores: ["disk-0", "disk-1"].map(name).into(),
        }),
        gateway: roles.contains(&NodeRole::Gateway).then(|| GatewayEndpoint {
            key: key(&format!("{who} gateway")),
            address: format!("{who}.example:7444"),
            api: format!("https://{who}.example:8443"),
        }),
        proof: Signature([0; 64]),
    };
    claimed_by(who, node)
}

pub(crate) fn genesis() -> Genesis {
    Genesis {
        name: "harbour".into(),
        founded_at: NOW,
        members: ["alice", "bob", "carol"].map(member).to_vec(),
        policy: policy("2 of (alice, bob, carol)", "2 of (alice, bob, carol)"),
        control: vec![ControlReplica {
            id: ReplicaId(1),
            key: key("control"),
            address: "[::1]:7001".into(),
            api: "http://127.0.0.1:7000".into(),
        }],
        nodes: vec![
            node("n1", &[NodeRole::Worker, NodeRole::Storage]),
            node("n2", &[NodeRole::Storage]),
            node("n3", &[NodeRole::Gateway]),
        ],
        access: AccessEnvelope {
            tokens_max: 2,
            keys_max: 2,
            seconds_max: 90 * 24 * 3600,
            ..AccessEnvelope::standard([name("alice")])
        },
    }
}

/// Returns the genesis with the signatures of all its members.
pub(crate) fn signed(genesis: Genesis) -> SignedGenesis {
    let secrets: Vec<(MemberId, MemberSecret)> =
        genesis.members.iter().map(|member| (member.id.clone(), secret(member.id.as_str()))).collect();
    let founders: Vec<_> = secrets.iter().map(|(id, secret)| (id.clone(), secret)).collect();
    sign_genesis(genesis, &founders)
}

/// Alters the sound genesis, lets every member sign it, and checks the outcome.
pub(crate) fn founded(case: &str, expected: &str, alter: impl FnOnce(&mut Genesis)) {
    let mut altered = genesis();
    alter(&mut altered);
    check(case, CircleState::found(&signed(altered), None), expected);
}

/// Signs a node's complaint about a wrap.
pub(crate) fn sign_complaint_of_node(who: &str, complaint: &WrapComplaint) -> Signature {
    let input = signing_input(WRAP_COMPLAINT_DOMAIN, &to_bytes(complaint));
    Signature(signing_key(who).sign(&input).to_bytes())
}

pub(crate) fn circle() -> CircleState {
    CircleState::found(&signed(genesis()), None).expect("the sample genesis is sound")
}

/// Returns a deployment of service `embed` with at most this many replicas.
pub(crate) fn deploy(replicas_max: u32) -> Change {
    Change::Deploy(Box::new(manifest(&format!(
        "kind = \"service\"\nname = \"embed\"\ntask = \"embed\"\n\
         model = {{ name = \"minilm\", root = \"{}\" }}\n\
         replicas = {{ min = 1, max = {replicas_max} }}\n\
         resources = {{ cpu_millicores = 500, memory = \"256 MiB\" }}\n",
        Digest::of(b"minilm")
    ))))
}

pub(crate) fn manifest(toml: &str) -> Manifest {
    Manifest::from_toml(toml).expect("the sample manifest is sound")
}

pub(crate) fn retire(service: &str) -> Change {
    Change::Retire { service: name(service), grace_seconds: 30 }
}

/// Returns the decision to forget the model of this name whose root is the digest of its name.
pub(crate) fn forget(model: &str, grace_seconds: u32) -> Change {
    let root = ModelRoot(Digest::of(model.as_bytes()));
    Change::ForgetModel { model: ModelChoice { name: name(model), root }, grace_seconds }
}

/// Returns a halt of this member, made at [`NOW`].
pub(crate) fn halt(state: &CircleState, who: &str, scope: HaltScope, nonce: &str) -> Halt {
    Halt {
        circle: state.id(),
        member: name(who),
        signer: secret(who).public().ed25519,
        scope,
        reason: "because".into(),
        issued_at: NOW,
        nonce: Digest::of(nonce.as_bytes()),
    }
}

/// Returns a proposal that is made at [`NOW`] and expires after an hour.
pub(crate) fn proposal(state: &CircleState, change: Change) -> Proposal {
    try_propose(state, change).expect("the sample change can be asked for")
}

pub(crate) fn try_propose(state: &CircleState, change: Change) -> Result<Proposal, ChainError> {
    propose(state, change, "because".into(), NOW, NOW.plus(HOUR), Digest::of(b"nonce"))
}

/// Returns a certificate with these members' approvals, sorted, whether they reach a quorum or not.
pub(crate) fn approve(proposal: &Proposal, who: &[&str]) -> Certificate {
    let mut ballots: Vec<_> = who
        .iter()
        .map(|who| vote(&secret(who), name(who), proposal.history, proposal, Choice::Approve, NOW))
        .collect();
    ballots.sort_by(|a, b| a.ballot.member.cmp(&b.ballot.member));
    Certificate { proposal: proposal.clone(), ballots }
}

/// Returns the hybrid signature of a ballot.
pub(crate) fn hybrid(signed: &mut SignedBallot) -> &mut HybridSignature {
    match &mut signed.signature {
        BallotSignature::Hybrid(signature) => signature,
        BallotSignature::Passkey(_) => panic!("a ballot by passkey"),
    }
}

/// Signs a ballot, as it is now, with the keys of this person.
pub(crate) fn sign_again(signed: &mut SignedBallot, who: &str) {
    let signature = secret(who).sign(BALLOT_DOMAIN, &to_bytes(&signed.ballot));
    signed.signature = BallotSignature::Hybrid(signature);
}

/// Proposes, lets these members approve, certifies, verifies and applies; returns the certificate.
pub(crate) fn enact(state: &mut CircleState, change: Change, who: &[&str]) -> Certificate {
    let proposal = proposal(state, change);
    let ballots = approve(&proposal, who).ballots;
    let certificate = certify(state, &proposal, &ballots).expect("these members suffice");
    let approved = verify(state, &certificate, NOW).expect("what was certified verifies");
    state.advance(approved).expect("what was just verified applies");
    assert_eq!(state.check_invariants(), Ok(()));
    certificate
}

/// Returns an order for slot 0 of `embed` on `n1` with the first fence.
pub(crate) fn order(state: &CircleState) -> SlotOrder {
    let version = state.service(&name("embed")).map_or(1, |service| service.version);
    SlotOrder {
        circle: state.id(),
        service: name("embed"),
        certificate: state.service(&name("embed")).map_or(Digest([0; 32]), |service| service.certificate),
        slot: SlotIndex(0),
        fence: Fence::new(version, 1),
        node: NodeId(key("n1")),
        gpus: Vec::new(),
        issued_at: NOW,
    }
}

pub(crate) fn sign_order(order: SlotOrder, who: &str) -> SignedOrder {
    let signature = signing_key(who).sign(&signing_input(ORDER_DOMAIN, &to_bytes(&order)));
    SignedOrder { order, signer: key(who), signature: Signature(signature.to_bytes()) }
}

/// Compares an outcome with the expected one: `approved`, or `code: part of the message`.
pub(crate) fn check<T>(case: &str, outcome: Result<T, ChainError>, expected: &str) {
    let found = match &outcome {
        Ok(_) => "approved".to_string(),
        Err(error) => format!("{}: {error}", error.code()),
    };
    let (code, message) = expected.split_once(": ").unwrap_or((expected, ""));
    let held = found.starts_with(code) && found.contains(message);
    assert!(held, "{case}\n  expected {expected}\n  found    {found}");
}

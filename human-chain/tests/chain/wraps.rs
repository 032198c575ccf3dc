//! Tests of keys and wraps: keys that are none or that another party has, keys that a node did not claim, and
//! wraps, complaints and requests by the wrong party.

use crate::support::{
    check, circle, claimed_by, deploy, enact, founded, member, name, node, policy, secret, set_members,
    suspend, try_propose,
};
use aws_lc_rs::agreement;
use human_chain::{
    CircleState, check_complaint, check_wrap, check_wrap_request, recipient_key, recipients,
    recipients_touched, sign_complaint, sign_wrap, sign_wrap_request,
};
use protocol::governance::{Change, NodeAdmission, NodeRole};
use protocol::keys::{ByteString, EncryptionKey};
use protocol::model::{
    KeyWrap, Recipient, RecipientSignature, SignedComplaint, SignedWrap, WrapComplaint, WrapRequest,
};
use protocol::{CircleId, Digest, ModelRoot, PublicKey, Signature};
use std::collections::BTreeMap;

const WORKER: [NodeRole; 1] = [NodeRole::Worker];

fn admit(node: NodeAdmission) -> Change {
    Change::AdmitNode(Box::new(node))
}

fn proposed(case: &str, node: NodeAdmission, expected: &str) {
    check(case, try_propose(&circle(), admit(node)), expected);
}

/// Attack: control exchanges a key of a node that asks for admission. The control case is the same admission,
/// signed by the node: the signature alone refuses it.
#[test]
fn keys_that_a_node_did_not_claim_are_refused() {
    const UNPROVEN: &str = "node-keys-unproven: node `n4` has not signed these keys";
    let sound = || node("n4", &[NodeRole::Worker, NodeRole::Gateway]);
    proposed("as it was signed", sound(), "approved");
    let other = node("mallory", &[NodeRole::Worker, NodeRole::Gateway]);
    type Swap<'a> = (&'a str, &'a dyn Fn(&mut NodeAdmission));
    let swaps: [Swap; 5] = [
        ("both halves of the key", &|node| node.encryption = other.encryption.clone()),
        ("the classical half", &|node| node.encryption.x25519 = other.encryption.x25519),
        ("the post-quantum half", &|node| node.encryption.ml_kem = other.encryption.ml_kem.clone()),
        ("the gateway's key", &|node| {
            node.gateway.as_mut().unwrap().key = other.gateway.as_ref().unwrap().key
        }),
        ("the identity", &|node| node.id = other.id),
    ];
    for (case, swap) in swaps {
        let mut swapped = sound();
        swap(&mut swapped);
        let signer = if case == "the identity" { "mallory" } else { "n4" };
        proposed(case, swapped.clone(), UNPROVEN);
        proposed(&format!("{case}, signed"), claimed_by(signer, swapped), "approved");
    }
    let mut unsigned = sound();
    unsigned.proof = Signature([0; 64]);
    proposed("no signature", unsigned, UNPROVEN);
    let mut borrowed = sound();
    borrowed.proof = other.proof;
    proposed("another node's signature", borrowed, UNPROVEN);
    founded("at the founding", UNPROVEN.replace("n4", "n1").as_str(), |genesis| {
        genesis.nodes[0].encryption = other.encryption.clone();
    });
    // The rest of an admission is the circle's to judge, and no claim of the node.
    let mut moved = sound();
    moved.region = "oslo".into();
    proposed("another region", moved, "approved");
}

/// Returns the case's encryption key, and the expected refusal.
fn no_keys() -> Vec<(&'static str, EncryptionKey, &'static str)> {
    const X25519: &str = "an X25519 key is none";
    const ML_KEM: &str = "an ML-KEM-768 key is none";
    let sound = node("n4", &WORKER).encryption;
    let x25519 = |bytes: [u8; 32]| EncryptionKey { x25519: PublicKey(bytes), ..sound.clone() };
    let ml_kem = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut key = sound.clone();
        change(&mut key.ml_kem.0);
        key
    };
    let prime = |less: u8| {
        std::array::from_fn(|at| [0xed - less, 0xff, 0x7f][usize::from(at > 0) + usize::from(at == 31)])
    };
    let small = |value: u8| std::array::from_fn(|at| if at == 0 { value } else { 0 });
    let mut disguised = sound.x25519.0;
    disguised[31] |= 0x80;
    let order_8 = |text: &str| -> [u8; 32] { hex(text).try_into().expect("32 bytes") };
    vec![
        ("zero", x25519([0; 32]), X25519),
        ("one", x25519(small(1)), X25519),
        ("minus one", x25519(prime(1)), X25519),
        (
            "order 8",
            x25519(order_8("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")),
            X25519,
        ),
        (
            "order 8, again",
            x25519(order_8("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157")),
            X25519,
        ),
        ("the prime", x25519(prime(0)), X25519),
        ("all ones", x25519([0xff; 32]), X25519),
        ("a key with a bit that is ignored", x25519(disguised), X25519),
        (
            "coefficients of all ones",
            EncryptionKey { ml_kem: ByteString(vec![0xff; 1184]), ..sound.clone() },
            ML_KEM,
        ),
        ("first coefficient is q", ml_kem(&|key| (key[0], key[1]) = (0x01, key[1] & 0xf0 | 0x0d)), ML_KEM),
        (
            "last coefficient is q",
            ml_kem(&|key| (key[1150], key[1151]) = (key[1150] & 0x0f | 0x10, 0xd0)),
            ML_KEM,
        ),
        ("short", ml_kem(&|key| key.truncate(1183)), "an ML-KEM-768 key has 1183 bytes"),
    ]
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits"))
        .collect()
}

#[test]
fn keys_that_are_none_are_refused_for_nodes_and_members() {
    for (case, encryption, expected) in no_keys() {
        let bad = claimed_by("n4", NodeAdmission { encryption: encryption.clone(), ..node("n4", &WORKER) });
        proposed(case, bad, &format!("governance-invalid: node: {expected}"));
        founded(case, &format!("governance-invalid: members: {expected}"), |genesis| {
            genesis.members[0].keys.encryption = encryption;
        });
    }
    for (case, byte) in [("one below q", 0x00), ("q", 0x01)] {
        let mut edge = node("n4", &WORKER);
        edge.encryption.ml_kem.0[..2].copy_from_slice(&[byte, 0x0d]);
        let expected = if byte == 0 { "approved" } else { "governance-invalid: an ML-KEM-768 key is none" };
        proposed(case, claimed_by("n4", edge), expected);
    }
    let weak = PublicKey(std::array::from_fn(|at| u8::from(at == 0)));
    let mut node_weak = node("n4", &WORKER);
    node_weak.id.0 = weak;
    proposed("weak identity", node_weak, "governance-invalid: `n4` has an Ed25519 key that is none");
    let mut gateway_weak = node("n4", &[NodeRole::Gateway]);
    gateway_weak.gateway.as_mut().unwrap().key = weak;
    proposed(
        "weak gateway",
        claimed_by("n4", gateway_weak),
        "governance-invalid: an Ed25519 key that is none",
    );
}

/// The list of low-order points is that of the library: each gives no shared secret, and a sound key does.
#[test]
fn every_x25519_key_that_is_refused_as_low_order_gives_no_secret() {
    let private = agreement::PrivateKey::from_private_key(&agreement::X25519, &[8; 32]).unwrap();
    let secret_with = |key: &PublicKey| {
        let public = agreement::UnparsedPublicKey::new(&agreement::X25519, key.0);
        let agreed =
            agreement::agree(&private, public, (), |secret| Ok(secret.iter().any(|byte| *byte != 0)));
        agreed.unwrap_or(false)
    };
    for (case, key, _) in no_keys().into_iter().take(5) {
        assert!(!secret_with(&key.x25519), "{case}");
    }
    assert!(secret_with(&node("n4", &WORKER).encryption.x25519));
}

#[test]
fn no_two_parties_share_a_key() {
    const TAKEN: &str = "governance-invalid: `n4` uses a key in use";
    let (other, alice) = (node("n1", &WORKER), member("alice"));
    let with = |change: &dyn Fn(&mut NodeAdmission)| {
        let mut taken = node("n4", &WORKER);
        change(&mut taken);
        claimed_by("n4", taken)
    };
    for (case, taken) in [
        ("another node's", with(&|node| node.encryption = other.encryption.clone())),
        ("half of another node's", with(&|node| node.encryption.ml_kem = other.encryption.ml_kem.clone())),
        ("a member's", with(&|node| node.encryption = alice.keys.encryption.clone())),
        ("half of a member's", with(&|node| node.encryption.x25519 = alice.keys.encryption.x25519)),
        ("a member's signing key", claimed_by_member(node("n4", &WORKER))),
    ] {
        proposed(case, taken.clone(), TAKEN);
        founded(case, "governance-invalid: genesis.nodes: `n4` uses a key in use", |genesis| {
            genesis.nodes.push(taken);
        });
    }
    founded(
        "a member with control's key",
        "governance-invalid: genesis.members: `alice` uses a key",
        |genesis| {
            genesis.control[0].key = genesis.members[0].keys.ed25519;
        },
    );
    let rule = "2 of (alice, bob, carol)";
    let mut members = ["alice", "bob", "carol"].map(member).to_vec();
    members[2].keys.encryption = other.encryption.clone();
    let change = Change::SetMembers { members, policy: policy(rule, rule), proofs: [].into() };
    check(
        "a member with a node's",
        try_propose(&circle(), change),
        "governance-invalid: `carol` uses a key in use",
    );
}

/// Gives a node alice's signing key as its identity, and her signature.
fn claimed_by_member(mut node: NodeAdmission) -> NodeAdmission {
    node.id.0 = member("alice").keys.ed25519;
    let claim = node.key_claim();
    node.proof = secret("alice").sign(protocol::governance::NODE_KEYS_DOMAIN, &claim).ed25519;
    node
}

fn wrap(recipient: Recipient) -> KeyWrap {
    KeyWrap {
        root: ModelRoot(Digest::of(b"minilm")),
        recipient,
        ephemeral: PublicKey([9; 32]),
        encapsulated: ByteString(vec![1; 1088]),
        sealed: ByteString(vec![2; 48]),
    }
}

fn to(who: &str) -> Recipient {
    Recipient::Node(node(who, &WORKER).id)
}

#[test]
fn members_and_workers_are_recipients_and_no_other_party() {
    let state = circle();
    let all: Vec<Recipient> = recipients(&state).map(|(recipient, _)| recipient).collect();
    let people = ["alice", "bob", "carol"].map(|who| Recipient::Member(name(who)));
    assert_eq!(all, [&people[..], &[to("n1")]].concat(), "members first; n2 stores, n3 is a gateway");
    for (case, recipient, expected) in [
        ("a worker", to("n1"), "approved"),
        ("a member", people[0].clone(), "approved"),
        ("a store", to("n2"), "wrap-recipient-invalid: node `n2` is not admitted as a worker"),
        ("a gateway", to("n3"), "wrap-recipient-invalid: node `n3`"),
        ("never admitted", to("n4"), "node-not-admitted"),
        ("no member", Recipient::Member(name("mallory")), "not-a-member: `mallory`"),
    ] {
        check(case, recipient_key(&state, &recipient), expected);
        assert_eq!(recipient_key(&state, &recipient).is_ok(), all.contains(&recipient), "{case}");
    }
    let mut grown = circle();
    let both = node("n4", &[NodeRole::Worker, NodeRole::Gateway]);
    enact(&mut grown, admit(both), &["alice", "bob"]);
    check("a worker that is a gateway too", recipient_key(&grown, &to("n4")), "approved");
}

/// Returns the wrap as this member signs it, for the key that its recipient has in this state.
fn signed(state: &CircleState, who: &str, wrap: KeyWrap) -> SignedWrap {
    let to = recipient_key(state, &wrap.recipient).expect("a recipient").clone();
    sign_wrap(&secret(who), name(who), state.id(), &to, wrap)
}

#[test]
fn a_wrap_holds_for_its_circle_its_recipients_key_and_its_maker() {
    let mut state = circle();
    let sound = signed(&state, "alice", wrap(to("n1")));
    check("sound", check_wrap(&state, &sound), "approved");
    check(
        "for a member",
        check_wrap(&state, &signed(&state, "bob", wrap(Recipient::Member(name("carol"))))),
        "approved",
    );
    type Edit = fn(&mut SignedWrap);
    let edits: [(&str, Edit, &str); 8] = [
        ("another maker", |w| w.maker = name("bob"), "signature-invalid: `bob`"),
        ("no member", |w| w.maker = name("mallory"), "not-a-member: `mallory`"),
        ("another model", |w| w.wrap.root = ModelRoot(Digest::of(b"x")), "signature-invalid"),
        ("another recipient", |w| w.wrap.recipient = Recipient::Member(name("bob")), "signature-invalid"),
        ("other bytes", |w| w.wrap.sealed.0[0] ^= 1, "signature-invalid"),
        ("another ephemeral key", |w| w.wrap.ephemeral.0[0] ^= 1, "signature-invalid"),
        ("no post-quantum half", |w| w.signature.ml_dsa.0.clear(), "signature-invalid"),
        ("no classical half", |w| w.signature.ed25519 = Signature([0; 64]), "signature-invalid"),
    ];
    for (case, edit, expected) in edits {
        let mut altered = sound.clone();
        edit(&mut altered);
        check(case, check_wrap(&state, &altered), expected);
        assert_ne!(altered.digest(), sound.digest(), "{case}");
    }
    let key = recipient_key(&state, &to("n1")).expect("a worker").clone();
    let elsewhere =
        sign_wrap(&secret("alice"), name("alice"), CircleId(Digest::of(b"x")), &key, wrap(to("n1")));
    check("another circle", check_wrap(&state, &elsewhere), "signature-invalid");
    let other_key = node("n4", &WORKER).encryption;
    let for_other = sign_wrap(&secret("alice"), name("alice"), state.id(), &other_key, wrap(to("n1")));
    check("for another key", check_wrap(&state, &for_other), "signature-invalid");

    // A key that is replaced, and a node that is removed, end the wraps that were made for them.
    let anew = NodeAdmission { encryption: other_key, ..node("n1", &WORKER) };
    enact(&mut state, admit(claimed_by("n1", anew)), &["alice", "bob"]);
    check("its key was replaced", check_wrap(&state, &sound), "signature-invalid");
    let renewed = signed(&state, "alice", wrap(to("n1")));
    // Positive control: until the removal, the same bytes are a wrap for the key in force.
    check("made for its new key", check_wrap(&state, &renewed), "approved");
    enact(&mut state, Change::RemoveNode { node: name("n1") }, &["alice", "bob"]);
    check("it was removed", check_wrap(&state, &renewed), "node-not-admitted");
}

#[test]
fn a_complaint_is_its_recipients_own() {
    let state = circle();
    let about = |recipient: Recipient| WrapComplaint {
        circle: state.id(),
        root: ModelRoot(Digest::of(b"minilm")),
        recipient,
        wrap: Digest::of(b"a wrap"),
    };
    let by_member = |who: &str, of: &str| sign_complaint(&secret(who), about(Recipient::Member(name(of))));
    check("a member", check_complaint(&state, &by_member("alice", "alice")), "approved");
    check("for another", check_complaint(&state, &by_member("alice", "bob")), "signature-invalid: `bob`");
    check("a stranger", check_complaint(&state, &by_member("mallory", "mallory")), "not-a-member: `mallory`");
    let by_node = |who: &str, of: &str| {
        let signature = crate::support::sign_complaint_of_node(who, &about(to(of)));
        SignedComplaint { complaint: about(to(of)), signature: RecipientSignature::Node(signature) }
    };
    check("a node", check_complaint(&state, &by_node("n1", "n1")), "approved");
    check("for another node", check_complaint(&state, &by_node("n2", "n1")), "signature-invalid");
    check("never admitted", check_complaint(&state, &by_node("n4", "n4")), "node-not-admitted");
    let mut crossed = by_node("n1", "n1");
    crossed.signature = by_member("alice", "alice").signature;
    check("a member for a node", check_complaint(&state, &crossed), "signature-invalid");
    let mut crossed = by_member("alice", "alice");
    crossed.signature = by_node("n1", "n1").signature;
    check("a node for a member", check_complaint(&state, &crossed), "signature-invalid");
    let mut elsewhere = by_node("n1", "n1");
    elsewhere.complaint.circle = CircleId(Digest::of(b"x"));
    check("another circle", check_complaint(&state, &elsewhere), "circle-mismatch");
    let mut other_wrap = by_node("n1", "n1");
    other_wrap.complaint.wrap = Digest::of(b"another wrap");
    check("another wrap", check_complaint(&state, &other_wrap), "signature-invalid");
}

#[test]
fn a_request_for_wraps_is_its_members_own() {
    let state = circle();
    let request = |who: &str, of: &str| {
        sign_wrap_request(&secret(who), WrapRequest { circle: state.id(), member: name(of) })
    };
    check("a member", check_wrap_request(&state, &request("alice", "alice")), "approved");
    check("for another", check_wrap_request(&state, &request("alice", "bob")), "signature-invalid: `bob`");
    check("a stranger", check_wrap_request(&state, &request("mallory", "mallory")), "not-a-member");
    let mut elsewhere = request("alice", "alice");
    elsewhere.request.circle = CircleId(Digest::of(b"x"));
    check("another circle", check_wrap_request(&state, &elsewhere), "circle-mismatch");
}

/// Makes a decision, and checks that each recipient whose key differs afterwards was touched by it.
fn touch(state: &mut CircleState, change: Change, who: &[&str], expected: usize) {
    let keys = |state: &CircleState| -> BTreeMap<Recipient, EncryptionKey> {
        recipients(state).map(|(recipient, key)| (recipient, key.clone())).collect()
    };
    let (named, before) = (recipients_touched(state, &change), keys(state));
    let text = format!("{change:?}");
    assert_eq!(named.len(), expected, "{text}");
    enact(state, change, who);
    let after = keys(state);
    for (recipient, key) in before.iter().filter(|(recipient, _)| !named.contains(*recipient)) {
        assert_eq!(after.get(recipient), Some(key), "{recipient:?} after {text}");
    }
}

/// A wrap to a recipient that a change is said not to touch is not looked at: its key must be the same.
#[test]
fn a_change_replaces_no_key_of_a_recipient_that_it_does_not_touch() {
    let both = ["alice", "bob"];
    let mut state = circle();
    touch(&mut state, deploy(4), &both, 0);
    touch(&mut state, admit(node("n4", &WORKER)), &both, 1);
    let other = NodeAdmission { name: name("n4"), ..node("other", &WORKER) };
    touch(&mut state, admit(other), &both, 2);
    touch(&mut state, Change::RemoveNode { node: name("n4") }, &both, 1);
    let rule = "2 of (alice, bob, dave)";
    let members = ["alice", "bob", "dave"].map(member).to_vec();
    let change = set_members(&state, members, policy(rule, rule));
    touch(&mut state, change, &["alice", "bob", "dave"], 3);
    touch(&mut state, suspend("dave"), &both, 1);
}

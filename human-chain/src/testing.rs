//! Test fixtures of the unit tests: a worker with keys from its name, claimed by its own signature, and rules
//! over six people.

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use protocol::governance::{NODE_KEYS_DOMAIN, NodeAdmission, NodeRole, Quorum};
use protocol::keys::{ByteString, EncryptionKey, signing_input};
use protocol::{Digest, MemberId, NodeId, PublicKey, Signature};
use std::collections::{BTreeMap, BTreeSet};

/// Returns an encryption key of this name. It has the form of one; no secret belongs to it.
pub(crate) fn encryption(text: &str) -> EncryptionKey {
    let mut x25519 = Digest::of_domain("test/x25519", text.as_bytes()).0;
    x25519[31] &= 0x3f;
    // Coefficients of three bits are below the modulus.
    let ml_kem = Digest::of(text.as_bytes()).0.map(|byte| byte & 7).repeat(37);
    EncryptionKey { x25519: PublicKey(x25519), ml_kem: ByteString(ml_kem) }
}

/// Returns a worker of this name.
pub(crate) fn node(text: &str) -> NodeAdmission {
    let node = NodeAdmission {
        name: text.parse().expect("a name"),
        id: NodeId(PublicKey([0; 32])),
        encryption: encryption(text),
        roles: BTreeSet::from([NodeRole::Worker]),
        region: String::new(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: Signature([0; 64]),
    };
    claimed_by(text, node)
}

/// Gives a node the identity of this name, and lets it claim all keys of the node.
pub(crate) fn claimed_by(text: &str, mut node: NodeAdmission) -> NodeAdmission {
    let signing = SigningKey::from_bytes(&Digest::of(text.as_bytes()).0);
    node.id = NodeId(PublicKey(signing.verifying_key().to_bytes()));
    node.proof = Signature(signing.sign(&signing_input(NODE_KEYS_DOMAIN, &node.key_claim())).to_bytes());
    node
}

/// Names of the people that rules are made over.
pub(crate) const PEOPLE: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Returns the id of a member of this name.
pub(crate) fn member_id(name: &str) -> MemberId {
    name.parse().expect("a name")
}

/// Returns every set of the six people.
pub(crate) fn groups() -> impl Iterator<Item = BTreeSet<MemberId>> {
    (0..1usize << PEOPLE.len()).map(|bits| {
        let chosen = PEOPLE.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
        chosen.map(|(_, name)| member_id(name)).collect()
    })
}

/// Generates rules over some of six people, each named once: the people are distributed to nested thresholds.
pub(crate) fn any_rule() -> impl Strategy<Value = Quorum> {
    let people: Vec<&str> = PEOPLE.to_vec();
    (prop::sample::subsequence(people, 1..=6), prop::collection::vec((1usize..4, any::<u32>()), 1..6))
        .prop_map(|(people, steps)| {
            let mut parts: Vec<Quorum> =
                people.into_iter().map(|name| Quorum::Member(member_id(name))).collect();
            for (take, required) in steps {
                let rest = parts.split_off(take.min(parts.len()));
                let required = required % parts.len() as u32 + 1;
                let joined = Quorum::Threshold { required, of: parts };
                parts = rest;
                parts.push(joined);
            }
            let required = parts.len().div_ceil(2) as u32;
            Quorum::Threshold { required, of: parts }
        })
}

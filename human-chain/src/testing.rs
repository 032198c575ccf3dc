//! Test fixture of the unit tests: a worker with keys from its name, claimed by its own signature.

use ed25519_dalek::{Signer, SigningKey};
use protocol::governance::{NODE_KEYS_DOMAIN, NodeAdmission, NodeRole};
use protocol::keys::{ByteString, EncryptionKey, signing_input};
use protocol::{Digest, NodeId, PublicKey, Signature};
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

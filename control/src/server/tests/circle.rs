//! Test fixture: a circle of one member, with keys from seeds.

use crate::policy::simple_policy;
use human_chain::MemberSecret;
use overlay::Identity;
use protocol::governance::*;
use protocol::keys::{ByteString, EncryptionKey, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::{Digest, MemberId, Millis, NodeId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// The access token of [`genesis`], with every scope.
pub(super) const TOKEN: &str = "quorate-token-of-a-test";

/// Returns the key of a replica.
pub(super) fn replica(id: u64) -> Identity {
    Identity::from_seed(&[u8::try_from(id).unwrap(); 32])
}

/// Returns the key of a node or of an unadmitted peer.
pub(super) fn other(number: u16) -> Identity {
    let mut seed = [200; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    Identity::from_seed(&seed)
}

/// Returns the admission that a node asks for.
pub(super) fn admission(name: &str, identity: &Identity) -> NodeAdmission {
    let id = NodeId(identity.public_key());
    NodeAdmission {
        name: name.parse().unwrap(),
        id,
        encryption: EncryptionKey { x25519: id.0, ml_kem: ByteString(vec![7; ML_KEM_768_PUBLIC_KEY_LENGTH]) },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "local".into(),
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
    }
}

/// Returns the circle's only member.
///
/// The key is generated once: part of it does not come from the seed, and the circle's id covers it.
pub(super) fn alice() -> (MemberId, &'static MemberSecret) {
    static ALICE: OnceLock<MemberSecret> = OnceLock::new();
    ("alice".parse().unwrap(), ALICE.get_or_init(|| MemberSecret::generate(&[9; 64])))
}

/// Builds a genesis with replicas at these addresses, numbered from 1, and with these first nodes.
pub(super) fn genesis(replicas: &[(String, String)], nodes: Vec<NodeAdmission>) -> SignedGenesis {
    let (id, secret) = alice();
    let member = Member { id, keys: secret.public() };
    let members = vec![member.clone()];
    let control = (1..).zip(replicas).map(|(id, (overlay, api))| ControlReplica {
        id: ReplicaId(id),
        key: replica(id).public_key(),
        address: overlay.clone(),
        api: api.clone(),
    });
    let genesis = Genesis {
        name: "test".into(),
        founded_at: Millis(1_800_000_000_000),
        policy: simple_policy(&members, 1),
        members,
        control: control.collect(),
        nodes,
        tokens: vec![AccessToken {
            name: "tester".parse().unwrap(),
            scopes: BTreeSet::from([TokenScope::Read, TokenScope::Propose, TokenScope::Submit]),
            hash: Digest::of(TOKEN.as_bytes()),
        }],
    };
    human_chain::sign_genesis(genesis, &[(member.id, secret)])
}

//! Test fixture: a circle of one member, with keys from seeds.

use crate::grant::{GrantTerms, unsigned_grant};
use crate::policy::simple_policy;
use human_chain::{MemberSecret, sign_grant};
use overlay::Identity;
use protocol::access::{AccessEnvelope, GRANT_SECONDS_MAX, GrantedAccess, SignedGrant};
use protocol::agent::{NodeResources, SyncRequest};
use protocol::governance::*;
use protocol::keys::{ByteString, EncryptionKey};
use protocol::manifest::Isolation;
use protocol::{Digest, GrantId, MemberId, Millis, NodeId, PasskeyPolicy, PublicKey, ReplicaId, Signature};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

/// The access token that [`token_grant`] grants, with every scope.
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

/// Returns the sync of a node that runs nothing, knows nothing, and does not wait.
pub(super) fn sync_request() -> SyncRequest {
    SyncRequest {
        boot: 1,
        version: "test".into(),
        resources: NodeResources { cpu_millicores: 64_000, memory_bytes: 1 << 40, gpus: vec![] },
        isolation: Isolation::Full,
        not_enforced: vec![],
        slots: vec![],
        governance_length: 0,
        routes_version: None,
        wait_ms: 0,
        desired: Digest([0; 32]),
        logs: vec![],
        complaints: vec![],
        jobs: vec![],
        usage: vec![],
        rank_lines_term: 0,
        rank_lines: vec![],
    }
}

/// Returns the admission that a node asks for.
pub(super) fn admission(name: &str, identity: &Identity) -> NodeAdmission {
    let id = NodeId(identity.public_key());
    // Keys in form only: no secret belongs to them. Coefficients of three bits are below ML-KEM's modulus.
    let mut x25519 = Digest::of(id.0.as_bytes()).0;
    x25519[31] &= 0x3f;
    let ml_kem = ByteString(Digest::of(&x25519).0.map(|byte| byte & 7).repeat(37));
    let admission = NodeAdmission {
        name: name.parse().unwrap(),
        id,
        encryption: EncryptionKey { x25519: PublicKey(x25519), ml_kem },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "local".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: Signature([0; 64]),
    };
    claimed_by(identity, admission)
}

/// Lets a node claim the keys of its admission.
pub(super) fn claimed_by(identity: &Identity, mut admission: NodeAdmission) -> NodeAdmission {
    admission.proof = identity.sign(NODE_KEYS_DOMAIN, &admission.key_claim());
    admission
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
    genesis_with(replicas, nodes, None)
}

/// Builds a genesis as [`genesis`] does, with this policy for passkeys.
pub(super) fn genesis_with(
    replicas: &[(String, String)],
    nodes: Vec<NodeAdmission>,
    passkeys: Option<PasskeyPolicy>,
) -> SignedGenesis {
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
        policy: Policy { passkeys, ..simple_policy(&members, 1) },
        access: AccessEnvelope::standard([member.id.clone()]),
        members,
        control: control.collect(),
        nodes,
    };
    human_chain::sign_genesis(genesis, &[(member.id, secret)])
}

/// Returns alice's grant of every scope to the holder of [`TOKEN`].
pub(super) fn token_grant(genesis: &SignedGenesis) -> SignedGrant {
    let scopes = BTreeSet::from([TokenScope::Read, TokenScope::Propose, TokenScope::Submit]);
    granted(genesis, "tester", TOKEN, GrantedAccess::Token { scopes })
}

/// Returns alice's grant of a secret with this text, made a month ago. ML-DSA signatures differ each time, so
/// the first one is kept.
pub(super) fn granted(
    genesis: &SignedGenesis,
    holder: &str,
    text: &str,
    access: GrantedAccess,
) -> SignedGrant {
    static SIGNED: Mutex<BTreeMap<GrantId, SignedGrant>> = Mutex::new(BTreeMap::new());
    static ISSUED_AT: OnceLock<Millis> = OnceLock::new();
    let month_ago = || Millis(host::wall_clock().0 - 30 * 24 * 3_600_000);
    let circle = human_chain::circle_id(&genesis.genesis);
    let (holder, valid_seconds) = (holder.parse().unwrap(), GRANT_SECONDS_MAX);
    let terms = GrantTerms { circle, envelope: circle.0, holder, access, valid_seconds };
    let (issuer, secret) = alice();
    let grant = unsigned_grant(terms, &issuer, secret, text, *ISSUED_AT.get_or_init(month_ago));
    let id = grant.id();
    SIGNED.lock().unwrap().entry(id).or_insert_with(|| sign_grant(secret, grant)).clone()
}

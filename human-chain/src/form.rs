//! Rules of form for the parts of a circle: members, policy, nodes, control replicas, tokens, manifests.
//!
//! The rules apply wherever such a value enters: at genesis, when proposing, and when verifying.

use crate::{ChainError, quorum};
use protocol::governance::{
    AccessToken, ActionClass, ControlReplica, Genesis, Member, NodeAdmission, NodeRole, Policy,
};
use protocol::keys::{EncryptionKey, ML_DSA_65_PUBLIC_KEY_LENGTH, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::manifest::{Manifest, Runtime, ServiceManifest};
use protocol::{MemberId, PublicKey, limits};
use std::collections::BTreeSet;

/// Maximum number of control replicas: with more votes, Raft is slower and no safer.
const CONTROL_REPLICAS_MAX: usize = 7;
/// Maximum number of access tokens at genesis.
const TOKENS_MAX: usize = 256;
/// Maximum length of a `host:port` or API address in bytes: a DNS name has at most 253.
const ADDRESS_BYTES_MAX: usize = 300;

const _: () = assert!(CONTROL_REPLICAS_MAX % 2 == 1, "an even number of votes survives no more losses");
const _: () = assert!(ADDRESS_BYTES_MAX >= 253 + ":65535".len(), "a DNS name and a port");

/// Checks every rule of form of a genesis except its signatures.
pub(crate) fn check_genesis(genesis: &Genesis) -> Result<(), ChainError> {
    check_label("genesis.name", &genesis.name)?;
    if genesis.name.is_empty() {
        return Err(ChainError::invalid("genesis.name", "is empty"));
    }
    check_members(&genesis.members, &genesis.policy)?;
    check_control(&genesis.control)?;
    check_tokens(&genesis.tokens)?;
    let mut names = BTreeSet::new();
    let mut keys: BTreeSet<PublicKey> = genesis.control.iter().map(|replica| replica.key).collect();
    for node in &genesis.nodes {
        check_node(node)?;
        if !names.insert(&node.name) {
            return Err(ChainError::invalid("genesis.nodes", format!("name `{}` twice", node.name)));
        }
        if !node_keys(node).all(|key| keys.insert(key)) {
            return Err(ChainError::invalid("genesis.nodes", format!("`{}` uses a key in use", node.name)));
        }
    }
    Ok(())
}

/// Checks members and policy together, since each refers to the other.
pub(crate) fn check_members(members: &[Member], policy: &Policy) -> Result<(), ChainError> {
    if members.is_empty() || members.len() > limits::MEMBERS_MAX {
        let reason = format!("{} members; accepted: 1 to {}", members.len(), limits::MEMBERS_MAX);
        return Err(ChainError::invalid("members", reason));
    }
    let ids: BTreeSet<&MemberId> = members.iter().map(|member| &member.id).collect();
    if ids.len() != members.len() {
        return Err(ChainError::invalid("members", "two members have the same id"));
    }
    // A person with two ids would vote twice, so no two members may share a key.
    let mut keys: BTreeSet<&[u8]> = BTreeSet::new();
    for member in members {
        check_member(member)?;
        let own = &member.keys;
        let all = [&own.ed25519.0[..], &own.ml_dsa.0, &own.encryption.x25519.0, &own.encryption.ml_kem.0];
        if !all.into_iter().all(|key| keys.insert(key)) {
            return Err(ChainError::invalid("members", format!("`{}` uses a key in use", member.id)));
        }
    }
    if !policy.quorums.contains_key(&ActionClass::Sensitive) {
        let reason = format!("has no quorum for {} changes", ActionClass::Sensitive);
        return Err(ChainError::invalid("policy", reason));
    }
    policy.quorums.values().try_for_each(|rule| quorum::check(rule, &ids))
}

fn check_member(member: &Member) -> Result<(), ChainError> {
    let refuse = |reason: &str| Err(ChainError::invalid("members", format!("`{}` {reason}", member.id)));
    match ed25519_dalek::VerifyingKey::from_bytes(&member.keys.ed25519.0) {
        Ok(key) if !key.is_weak() => {}
        _ => return refuse("has an Ed25519 key that is none"),
    }
    if member.keys.ml_dsa.0.len() != ML_DSA_65_PUBLIC_KEY_LENGTH {
        let (length, wanted) = (member.keys.ml_dsa.0.len(), ML_DSA_65_PUBLIC_KEY_LENGTH);
        return refuse(&format!("has an ML-DSA-65 key of {length} bytes; it has {wanted}"));
    }
    check_encryption("members", &member.keys.encryption)
}

fn check_encryption(what: &'static str, key: &EncryptionKey) -> Result<(), ChainError> {
    if key.ml_kem.0.len() != ML_KEM_768_PUBLIC_KEY_LENGTH {
        let (length, wanted) = (key.ml_kem.0.len(), ML_KEM_768_PUBLIC_KEY_LENGTH);
        return Err(ChainError::invalid(what, format!("an ML-KEM-768 key has {length} bytes, not {wanted}")));
    }
    if key.x25519.0 == [0; 32] {
        return Err(ChainError::invalid(what, "an X25519 key is all zeros"));
    }
    Ok(())
}

/// Checks the number, ids, keys and addresses of the control replicas.
pub(crate) fn check_control(control: &[ControlReplica]) -> Result<(), ChainError> {
    let refuse = |reason: String| Err(ChainError::invalid("genesis.control", reason));
    if control.is_empty() || control.len() > CONTROL_REPLICAS_MAX {
        return refuse(format!("{} replicas; accepted: 1 to {CONTROL_REPLICAS_MAX}", control.len()));
    }
    let ids: BTreeSet<_> = control.iter().map(|replica| replica.id).collect();
    let keys: BTreeSet<_> = control.iter().map(|replica| replica.key).collect();
    if ids.len() != control.len() || keys.len() != control.len() {
        return refuse("two replicas share an id or a key".into());
    }
    for replica in control {
        if replica.id.0 == 0 {
            return refuse("replica id 0 means no replica".into());
        }
        check_address("genesis.control.address", &replica.address)?;
        check_api("genesis.control.api", &replica.api)?;
    }
    Ok(())
}

/// Checks the number, names, hashes and scopes of the access tokens.
pub(crate) fn check_tokens(tokens: &[AccessToken]) -> Result<(), ChainError> {
    let refuse = |reason: &str| Err(ChainError::invalid("genesis.tokens", reason));
    let names: BTreeSet<_> = tokens.iter().map(|token| &token.name).collect();
    let hashes: BTreeSet<_> = tokens.iter().map(|token| token.hash).collect();
    if tokens.len() > TOKENS_MAX {
        return refuse(&format!("{} tokens; accepted: at most {TOKENS_MAX}", tokens.len()));
    }
    if names.len() != tokens.len() || hashes.len() != tokens.len() {
        return refuse("two tokens share a name or a hash");
    }
    if tokens.iter().any(|token| token.scopes.is_empty()) {
        return refuse("a token without scopes can do nothing");
    }
    Ok(())
}

/// Checks the form of one node: its roles must agree with its addresses.
pub(crate) fn check_node(node: &NodeAdmission) -> Result<(), ChainError> {
    let refuse = |reason: &str| Err(ChainError::invalid("node", format!("`{}` {reason}", node.name)));
    if node.roles.is_empty() {
        return refuse("has no role");
    }
    if node.roles.contains(&NodeRole::Storage) != node.storage.is_some() {
        return refuse("must name its storage exactly when it has the storage role");
    }
    if node.roles.contains(&NodeRole::Gateway) != node.gateway.is_some() {
        return refuse("must name a gateway exactly when it has the gateway role");
    }
    if node.labels.len() > limits::LABELS_MAX {
        let (count, most) = (node.labels.len(), limits::LABELS_MAX);
        return refuse(&format!("has {count} labels; accepted: at most {most}"));
    }
    check_encryption("node", &node.encryption)?;
    check_label("node.region", &node.region)?;
    for (key, value) in &node.labels {
        check_label("node.labels", key)?;
        check_label("node.labels", value)?;
    }
    if let Some(storage) = &node.storage {
        check_address("node.storage.address", &storage.address)?;
        let (count, most) = (storage.stores.len(), limits::NODE_STORES_MAX);
        if count == 0 || count > most {
            return refuse(&format!("has the storage role and {count} stores; accepted: 1 to {most}"));
        }
    }
    if let Some(gateway) = &node.gateway {
        check_address("node.gateway.address", &gateway.address)?;
        check_api("node.gateway.api", &gateway.api)?;
    }
    Ok(())
}

/// Returns the keys that identify a node on the network.
pub(crate) fn node_keys(node: &NodeAdmission) -> impl Iterator<Item = PublicKey> {
    [Some(node.id.0), node.gateway.as_ref().map(|gateway| gateway.key)].into_iter().flatten()
}

/// Checks that this release can run a manifest, and that the manifest is within its bounds.
pub(crate) fn check_manifest(manifest: &Manifest) -> Result<&ServiceManifest, ChainError> {
    let service = match manifest {
        Manifest::Service(service) => service,
        Manifest::Job(_) => return Err(ChainError::KindNotBuilt("a job")),
        Manifest::Edge(_) => return Err(ChainError::KindNotBuilt("an edge rollout")),
    };
    if service.runtime == Runtime::Process {
        return Err(ChainError::KindNotBuilt("the process runtime"));
    }
    if !service.egress.is_empty() {
        return Err(ChainError::EgressNotBuilt(service.name.clone()));
    }
    let named = |error| ChainError::invalid("manifest", format!("`{}`: {error}", service.name));
    service.check_bounds().map_err(named)?;
    Ok(service)
}

fn check_label(what: &'static str, text: &str) -> Result<(), ChainError> {
    protocol::manifest::check_label(text).map_err(|reason| ChainError::invalid(what, reason))
}

/// Checks for `host:port`, where the host is a DNS name, an IPv4 address or an IPv6 address in brackets.
fn check_address(what: &'static str, text: &str) -> Result<(), ChainError> {
    let host_allowed = |host: &str| {
        !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._:[]".contains(&c))
    };
    match text.rsplit_once(':') {
        Some((host, port))
            if text.len() <= ADDRESS_BYTES_MAX
                && host_allowed(host)
                && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(())
        }
        _ => Err(ChainError::invalid(what, format!("`{}` is not host:port", text.escape_debug()))),
    }
}

fn check_api(what: &'static str, text: &str) -> Result<(), ChainError> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(address) => check_address(what, address),
        None => {
            Err(ChainError::invalid(what, format!("`{}` is not http(s)://host:port", text.escape_debug())))
        }
    }
}

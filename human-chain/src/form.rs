//! Rules of form for the parts of a circle: members, policy, nodes, control replicas, manifests.
//!
//! The rules apply wherever such a value enters: at genesis, when proposing, and when verifying.

use crate::access::check_envelope;
use crate::{ChainError, quorum};
use protocol::governance::{
    ActionClass, ControlReplica, Genesis, Member, NodeAdmission, NodeRole, Policy, Quorum,
};
use protocol::keys::{EncryptionKey, ML_DSA_65_PUBLIC_KEY_LENGTH, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::manifest::{Manifest, Runtime};
use protocol::{MemberId, PasskeyPolicy, PublicKey, limits};
use std::collections::BTreeSet;

/// Maximum waiting time in seconds: thirty days, as long as a proposal may be open.
pub const VETO_SECONDS_MAX: u32 = 30 * 24 * 3600;
/// Maximum number of control replicas: with more votes, Raft is slower and no safer.
const CONTROL_REPLICAS_MAX: usize = 7;
/// Maximum length of a `host:port` or API address in bytes: a DNS name has at most 253.
const ADDRESS_BYTES_MAX: usize = 300;

/// Relying party of pages that a member's own machine serves.
const LOCALHOST: &str = "localhost";

/// Modulus q of ML-KEM's coefficients (FIPS 203, section 2.4).
const ML_KEM_MODULUS: u16 = 3329;
/// Length of the coefficients in an ML-KEM-768 key: 3 * 256 of 12 bits each. A seed of 32 bytes follows.
const ML_KEM_768_COEFFICIENTS_LENGTH: usize = 1152;
/// X25519 keys of low order in their canonical form: the shared secret with any of them is zero (RFC 7748,
/// section 6.1). Every other form of these is refused because it is not canonical.
const X25519_LOW_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    little_endian(1),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    curve25519_prime_less(1),
];

/// Returns a small number as 32 bytes, least significant first.
const fn little_endian(number: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = number;
    bytes
}

/// Returns 2^255 - 19, less this small number, as 32 bytes, least significant first.
const fn curve25519_prime_less(number: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xed - number;
    bytes[31] = 0x7f;
    bytes
}

const _: () = assert!(
    ML_KEM_768_COEFFICIENTS_LENGTH + 32 == ML_KEM_768_PUBLIC_KEY_LENGTH
        && ML_KEM_768_COEFFICIENTS_LENGTH * 8 == 3 * 256 * 12,
    "coefficients and seed are a whole ML-KEM-768 key"
);
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
    check_envelope(&genesis.access, &genesis.members.iter().map(|member| &member.id).collect())?;
    let mut names = BTreeSet::new();
    let mut keys: BTreeSet<&[u8]> = control_keys(&genesis.control).collect();
    for member in &genesis.members {
        if !member_keys(member).into_iter().all(|key| keys.insert(key)) {
            return Err(ChainError::invalid("genesis.members", format!("`{}` uses a key in use", member.id)));
        }
    }
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
        if !member_keys(member).into_iter().all(|key| keys.insert(key)) {
            return Err(ChainError::invalid("members", format!("`{}` uses a key in use", member.id)));
        }
    }
    if policy.veto_seconds > VETO_SECONDS_MAX {
        let reason = format!(
            "{} s for a veto; accepted: at most {VETO_SECONDS_MAX} (thirty days)",
            policy.veto_seconds
        );
        return Err(ChainError::invalid("policy", reason));
    }
    if !policy.quorums.contains_key(&ActionClass::Sensitive) {
        let reason = format!("has no quorum for {} changes", ActionClass::Sensitive);
        return Err(ChainError::invalid("policy", reason));
    }
    if policy.quorums.contains_key(&ActionClass::Personal) {
        let reason =
            format!("has a quorum for {} changes, which their member decides", ActionClass::Personal);
        return Err(ChainError::invalid("policy", reason));
    }
    policy.passkeys.as_ref().map_or(Ok(()), check_passkey_policy)?;
    policy.quorums.values().try_for_each(|rule| quorum::check(rule, &ids))?;
    check_proposer_rule(members, policy)
}

/// Checks that the members reach each quorum without the ballot of a proposer, if that does not count.
fn check_proposer_rule(members: &[Member], policy: &Policy) -> Result<(), ChainError> {
    let all: BTreeSet<MemberId> = members.iter().map(|member| member.id.clone()).collect();
    let carried = |rule: &&Quorum| quorum::carries(rule, policy.proposer_counts, &all);
    let Some(rule) = policy.quorums.values().find(|rule| !carried(rule)) else { return Ok(()) };
    let reason = format!(
        "the quorum {} needs every member, and the ballot of the proposer does not count",
        quorum::describe(rule)
    );
    Err(ChainError::invalid("policy", reason))
}

/// Checks relying party and origins of a policy for passkeys, in the forms in which browsers compare them.
fn check_passkey_policy(policy: &PasskeyPolicy) -> Result<(), ChainError> {
    let PasskeyPolicy { rp_id, origins, routine: _ } = policy;
    let refuse = |reason: String| Err(ChainError::invalid("policy.passkeys", reason));
    if rp_id != LOCALHOST && !(is_domain(rp_id) && rp_id.contains('.')) {
        let rp_id = rp_id.escape_debug();
        return refuse(format!("`{rp_id}` is neither a domain in lower case nor `{LOCALHOST}`"));
    }
    let (count, most) = (origins.len(), limits::PASSKEY_ORIGINS_MAX);
    if count == 0 || count > most {
        return refuse(format!("{count} origins; accepted: 1 to {most}"));
    }
    match origins.iter().find(|origin| !is_origin_below(rp_id, origin)) {
        Some(origin) => refuse(format!(
            "`{}` is no origin at or below `{rp_id}`: https://HOST or https://HOST:PORT, without a path{}",
            origin.escape_debug(),
            if rp_id == LOCALHOST { ", or http://localhost:PORT" } else { "" }
        )),
        None => Ok(()),
    }
}

/// Checks that an origin is `https`, at or below this domain, and as browsers write it: without the port that
/// `https` has anyway. A page on the member's own machine may be at `http://localhost`.
fn is_origin_below(rp_id: &str, origin: &str) -> bool {
    let (rest, default_port) = match origin.strip_prefix("https://") {
        Some(rest) => (rest, 443),
        None => match origin.strip_prefix("http://").filter(|_| rp_id == LOCALHOST) {
            Some(rest) => (rest, 80),
            None => return false,
        },
    };
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let port_fits = port.is_none_or(|port| {
        port.parse::<u16>()
            .is_ok_and(|number| number > 0 && number != default_port && number.to_string() == port)
    });
    let below = || host.strip_suffix(rp_id).is_some_and(|above| above.ends_with('.'));
    let is_local = !origin.starts_with("http://") || host == LOCALHOST;
    port_fits && is_local && is_domain(host) && (host == rp_id || below())
}

/// Checks for a DNS name in lower case (RFC 1123, section 2.1) that is no IP address.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_name = |text: &str| {
        text.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    text.len() <= 253 && text.split('.').all(is_label) && last_is_name(text)
}

fn check_member(member: &Member) -> Result<(), ChainError> {
    let refuse = |reason: &str| Err(ChainError::invalid("members", format!("`{}` {reason}", member.id)));
    if !is_signing_key(&member.keys.ed25519) {
        return refuse("has an Ed25519 key that is none");
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
    if !has_reduced_coefficients(&key.ml_kem.0) {
        return Err(ChainError::invalid(
            what,
            "an ML-KEM-768 key is none: a coefficient exceeds the modulus",
        ));
    }
    if !is_canonical_x25519(&key.x25519) || X25519_LOW_ORDER.contains(&key.x25519.0) {
        return Err(ChainError::invalid(
            what,
            "an X25519 key is none: of low order, or not in canonical form",
        ));
    }
    Ok(())
}

/// Checks that an Ed25519 key is a point that is not of low order.
fn is_signing_key(key: &PublicKey) -> bool {
    ed25519_dalek::VerifyingKey::from_bytes(&key.0).is_ok_and(|key| !key.is_weak())
}

/// Checks the modulus of an ML-KEM-768 key (FIPS 203, section 7.2): three bytes hold two coefficients.
fn has_reduced_coefficients(key: &[u8]) -> bool {
    let (coefficients, _) = key.split_at(key.len().min(ML_KEM_768_COEFFICIENTS_LENGTH));
    let (parts, _) = coefficients.as_chunks::<3>();
    parts.iter().all(|part| {
        let [low, middle, high] = part.map(u16::from);
        let (first, second) = (low | ((middle & 0x0f) << 8), (middle >> 4) | (high << 4));
        first < ML_KEM_MODULUS && second < ML_KEM_MODULUS
    })
}

/// Checks that an X25519 key is a number below 2^255 - 19. Any other form is the same key in disguise, and
/// would pass for another one.
fn is_canonical_x25519(key: &PublicKey) -> bool {
    let prime = curve25519_prime_less(0);
    key.0.iter().rev().lt(prime.iter().rev())
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

/// Checks the form of one node: its roles must agree with its addresses, its keys must be keys, and the node
/// must have signed them.
///
/// # Errors
/// Returns the first rule that the admission breaks.
pub fn check_node(node: &NodeAdmission) -> Result<(), ChainError> {
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
    check_node_keys(node)?;
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

/// Checks that the keys of a node are keys, and that the node itself claimed them. The parties that hand an
/// admission on could otherwise exchange the encryption key, and read what is wrapped to it.
fn check_node_keys(node: &NodeAdmission) -> Result<(), ChainError> {
    let gateway = node.gateway.as_ref().map(|gateway| &gateway.key);
    if !std::iter::once(&node.id.0).chain(gateway).all(is_signing_key) {
        return Err(ChainError::invalid("node", format!("`{}` has an Ed25519 key that is none", node.name)));
    }
    check_encryption("node", &node.encryption)?;
    if node.is_proven() { Ok(()) } else { Err(ChainError::NodeKeysUnproven(node.name.clone())) }
}

/// Returns every public key of a member. No other party of the circle may have any of them.
pub(crate) fn member_keys(member: &Member) -> [&[u8]; 4] {
    let own = &member.keys;
    [&own.ed25519.0, &own.ml_dsa.0, &own.encryption.x25519.0, &own.encryption.ml_kem.0]
}

/// Returns every public key of a node and its gateway. No other party of the circle may have any of them.
pub(crate) fn node_keys(node: &NodeAdmission) -> impl Iterator<Item = &[u8]> {
    let own: [&[u8]; 3] = [&node.id.0.0, &node.encryption.x25519.0, &node.encryption.ml_kem.0];
    own.into_iter().chain(node.gateway.as_ref().map(|gateway| &gateway.key.0[..]))
}

/// Returns the key of every control replica.
pub(crate) fn control_keys(control: &[ControlReplica]) -> impl Iterator<Item = &[u8]> {
    control.iter().map(|replica| &replica.key.0[..])
}

/// Checks that this release can approve a manifest, and that the manifest is within its bounds.
pub(crate) fn check_manifest(manifest: &Manifest) -> Result<(), ChainError> {
    let egress = match manifest {
        Manifest::Service(service) if service.runtime == Runtime::Process => {
            return Err(ChainError::KindNotBuilt("the process runtime"));
        }
        Manifest::Service(service) => &service.egress,
        Manifest::Job(job) => &job.egress,
        Manifest::Edge(_) => return Err(ChainError::KindNotBuilt("an edge rollout")),
    };
    if !egress.is_empty() {
        return Err(ChainError::EgressNotBuilt(manifest.name().clone()));
    }
    let named = |reason: String| ChainError::invalid("manifest", format!("`{}`: {reason}", manifest.name()));
    manifest.check_bounds().map_err(|error| named(error.to_string()))?;
    let Manifest::Job(job) = manifest else { return Ok(()) };
    match job.submit.signers.iter().find(|(_, key)| !is_signing_key(&key.ed25519)) {
        Some((signer, _)) => Err(named(format!("submit key `{signer}` has an Ed25519 key that is none"))),
        None => Ok(()),
    }
}

pub(crate) fn check_label(what: &'static str, text: &str) -> Result<(), ChainError> {
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

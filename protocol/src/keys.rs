//! Public keys and signatures. Private keys live where they are used, never here.
//!
//! Nodes, replicas, gateways and workers have one Ed25519 key, which is also their TLS name. Members
//! sign with Ed25519 *and* ML-DSA-65 (FIPS 204): an approval must outlive the first quantum computer.

use crate::digest::Digest;
use crate::fixed_bytes::fixed_bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::fixed_bytes::ByteString;

fixed_bytes!(
    /// An Ed25519 public key: the name of whoever holds the private half.
    PublicKey,
    32
);
fixed_bytes!(
    /// An Ed25519 signature.
    Signature,
    64
);

/// Length of an ML-DSA-65 public key in bytes (FIPS 204, table 2).
pub const ML_DSA_65_PUBLIC_KEY_LENGTH: usize = 1952;
/// Length of an ML-DSA-65 signature in bytes (FIPS 204, table 2).
pub const ML_DSA_65_SIGNATURE_LENGTH: usize = 3309;
/// Length of an ML-KEM-768 encapsulation key in bytes (FIPS 203, table 3).
pub const ML_KEM_768_PUBLIC_KEY_LENGTH: usize = 1184;

impl PublicKey {
    /// Whether `signature` is this key's over the digest of `bytes` in `domain`. Strict verification:
    /// weak keys and malleable signatures are refused.
    #[must_use]
    pub fn verifies(&self, domain: &str, bytes: &[u8], signature: &Signature) -> bool {
        let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&signing_input(domain, bytes), &signature).is_ok()
    }
}

/// What is really signed: the domain-separated digest of the bytes.
#[must_use]
pub fn signing_input(domain: &str, bytes: &[u8]) -> [u8; 32] {
    Digest::of_domain(domain, bytes).0
}

/// The two public encryption keys of a node or a member; a secret is wrapped to both at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptionKey {
    /// X25519 public key.
    pub x25519: PublicKey,
    /// ML-KEM-768 encapsulation key, 1,184 bytes.
    pub ml_kem: ByteString,
}

/// A member's public keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberKeys {
    /// Classical signing key.
    pub ed25519: PublicKey,
    /// ML-DSA-65 public key, 1,952 bytes.
    pub ml_dsa: ByteString,
    /// Where secrets for this member are wrapped to.
    pub encryption: EncryptionKey,
}

/// A signature by both of a member's keys; it holds only when both hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HybridSignature {
    /// The classical half.
    pub ed25519: Signature,
    /// The post-quantum half, 3,309 bytes.
    pub ml_dsa: ByteString,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::Signer;

    fn signed(domain: &str, bytes: &[u8]) -> (PublicKey, Signature) {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let signature = key.sign(&signing_input(domain, bytes));
        (PublicKey(key.verifying_key().to_bytes()), Signature(signature.to_bytes()))
    }

    #[test]
    fn a_signature_holds_for_its_own_domain_and_bytes_only() {
        let (key, signature) = signed("quorate/test/v1", b"text");
        assert!(key.verifies("quorate/test/v1", b"text", &signature));
        assert!(!key.verifies("quorate/test/v2", b"text", &signature));
        assert!(!key.verifies("quorate/test/v1", b"texu", &signature));
    }

    #[test]
    fn every_single_bit_of_a_signature_counts() {
        let (key, signature) = signed("d", b"x");
        for bit in 0..512 {
            let mut altered = signature;
            altered.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.verifies("d", b"x", &altered), "bit {bit}");
        }
    }

    #[test]
    fn a_weak_key_verifies_nothing() {
        // The identity point: with a lax verifier it accepts the all-zero scalar for any message.
        let mut weak = [0; 32];
        weak[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!PublicKey(weak).verifies("d", b"x", &Signature(signature)));
    }
}

//! Public keys and signatures. Private keys exist only in the components that use them.
//!
//! Nodes, replicas, gateways and workers have one Ed25519 key, which is also their TLS name. Members sign
//! with Ed25519 *and* ML-DSA-65 (FIPS 204): an approval must stay valid after quantum computers break
//! Ed25519.

use crate::digest::Digest;
use crate::fixed_bytes::fixed_bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::fixed_bytes::ByteString;

fixed_bytes!(
    /// Ed25519 public key: the identity of the holder of the private key.
    PublicKey,
    32
);
fixed_bytes!(
    /// Ed25519 signature.
    Signature,
    64
);

/// Length of an ML-DSA-65 public key in bytes (FIPS 204, table 2).
pub const ML_DSA_65_PUBLIC_KEY_LENGTH: usize = 1952;
/// Length of an ML-DSA-65 signature in bytes (FIPS 204, table 2).
pub const ML_DSA_65_SIGNATURE_LENGTH: usize = 3309;
/// Length of an ML-KEM-768 encapsulation key in bytes (FIPS 203, table 3).
pub const ML_KEM_768_PUBLIC_KEY_LENGTH: usize = 1184;

const _: () = assert!(
    ML_DSA_65_SIGNATURE_LENGTH + Signature::LENGTH + 512 <= crate::limits::BALLOT_BYTES_MAX,
    "a ballot holds a hybrid signature"
);
const _: () = assert!(
    ML_DSA_65_PUBLIC_KEY_LENGTH + ML_KEM_768_PUBLIC_KEY_LENGTH + 2 * PublicKey::LENGTH
        <= crate::limits::MEMBER_BYTES_MAX - crate::limits::NAME_BYTES_MAX,
    "a member holds its keys"
);

impl PublicKey {
    /// Checks that `signature` is by this key over the digest of `bytes` in `domain`. Verification is strict:
    /// weak keys and malleable signatures are rejected.
    #[must_use]
    pub fn verifies(&self, domain: &str, bytes: &[u8], signature: &Signature) -> bool {
        let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&signing_input(domain, bytes), &signature).is_ok()
    }
}

/// Returns the bytes to sign: the domain-separated digest of `bytes`.
#[must_use]
pub fn signing_input(domain: &str, bytes: &[u8]) -> [u8; 32] {
    Digest::of_domain(domain, bytes).0
}

/// Public encryption keys of a node or a member. A secret is wrapped to both keys; opening it needs both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptionKey {
    /// X25519 public key.
    pub x25519: PublicKey,
    /// ML-KEM-768 encapsulation key, 1,184 bytes.
    pub ml_kem: ByteString,
}

/// Public keys of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberKeys {
    /// Ed25519 signing key: the classical half.
    pub ed25519: PublicKey,
    /// ML-DSA-65 signing key, 1,952 bytes: the post-quantum half.
    pub ml_dsa: ByteString,
    /// Encryption keys that secrets for this member are wrapped to.
    pub encryption: EncryptionKey,
}

/// Signature by both of a member's signing keys; valid only if both halves verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HybridSignature {
    /// Ed25519 signature: the classical half.
    pub ed25519: Signature,
    /// ML-DSA-65 signature, 3,309 bytes: the post-quantum half.
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
        // The key is the identity point: a lax verifier accepts the all-zero scalar for any message under it.
        let mut weak = [0; 32];
        weak[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!PublicKey(weak).verifies("d", b"x", &Signature(signature)));
    }
}

//! Secret keys of a member, and verification of a member's signature.
//!
//! One seed yields the Ed25519, ML-DSA-65 and X25519 keys. The ML-KEM-768 key is stored as its own bytes,
//! because the cryptographic library generates it only from its own randomness, not from a seed. The library
//! also adds randomness to each ML-DSA-65 signature. No decision depends on either. `model-store` opens
//! secrets wrapped to a member; it takes the two decryption keys from here.

use crate::{ChainError, MemberSigner, Statement};
use aws_lc_rs::agreement;
use aws_lc_rs::digest::SHA3_256;
use aws_lc_rs::kem::{DecapsulationKey, ML_KEM_768};
use aws_lc_rs::signature::{KeyPair, ML_DSA_65, ML_DSA_65_SIGNING, PqdsaKeyPair, UnparsedPublicKey};
use ed25519_dalek::{Signer, SigningKey};
use protocol::governance::{MEMBER_KEYS_DOMAIN, Member, ProvenMember};
use protocol::keys::{
    ByteString, EncryptionKey, HybridSignature, ML_DSA_65_PUBLIC_KEY_LENGTH, ML_DSA_65_SIGNATURE_LENGTH,
    ML_KEM_768_PUBLIC_KEY_LENGTH, MemberKeys, signing_input,
};
use protocol::{Digest, MemberId, PublicKey, Signature};
use zeroize::Zeroizing;

/// Length of an ML-KEM-768 decapsulation key in bytes (FIPS 203, table 3).
const ML_KEM_768_SECRET_LENGTH: usize = 2400;
/// Offset of the encapsulation key within the decapsulation key: after 384 * 3 bytes of secret vector (FIPS
/// 203, algorithm 16). A 32-byte SHA3-256 digest of it follows.
const ML_KEM_768_PUBLIC_OFFSET: usize = 1152;
/// First bytes of a stored secret: file type and format version.
const MAGIC: &[u8; 16] = b"quorate-member-1";
/// Length of the seed in bytes.
const SEED_LENGTH: usize = 64;
/// Digest domain of a key that a member once had.
const FORMER_KEY_DOMAIN: &str = "quorate/former-member-key/v1";

const _: () = assert!(
    ML_KEM_768_PUBLIC_OFFSET + ML_KEM_768_PUBLIC_KEY_LENGTH + 2 * 32 == ML_KEM_768_SECRET_LENGTH,
    "a digest and a rejection value follow the encapsulation key"
);

/// Secret keys of a member, erased from memory on drop.
pub struct MemberSecret {
    seed: Zeroizing<[u8; SEED_LENGTH]>,
    ed25519: SigningKey,
    ml_dsa: PqdsaKeyPair,
    x25519: Zeroizing<[u8; 32]>,
    ml_kem: Zeroizing<Vec<u8>>,
    public: MemberKeys,
}

impl std::fmt::Debug for MemberSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemberSecret({})", self.public.ed25519.short())
    }
}

impl MemberSecret {
    /// Generates a member's keys from 64 random bytes. The ML-KEM-768 key comes from the cryptographic
    /// library.
    ///
    /// # Panics
    /// Panics when that library has no randomness or no memory left.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the library makes this one key from no seed; the decision page says more"
    )]
    pub fn generate(seed: &[u8; SEED_LENGTH]) -> Self {
        let key = DecapsulationKey::generate(&ML_KEM_768).expect("a system without randomness cannot go on");
        let bytes = key.key_bytes().expect("a key made a line above has bytes");
        Self::assemble(seed, bytes.as_ref()).expect("a key made by the library is well formed")
    }

    /// Reads the encoding that [`MemberSecret::to_bytes`] writes.
    ///
    /// # Errors
    /// Returns an error when the bytes are not a member secret or are corrupt.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChainError> {
        let refuse = || ChainError::invalid("member secret", "is not a member secret of this release");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(refuse)?;
        let (seed, ml_kem) = rest.split_first_chunk::<SEED_LENGTH>().ok_or_else(refuse)?;
        Self::assemble(seed, ml_kem)
    }

    /// Returns the encoding to store: 2,480 bytes, all secret.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAGIC.len() + SEED_LENGTH + self.ml_kem.len()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.seed.as_slice());
        bytes.extend_from_slice(&self.ml_kem);
        debug_assert_eq!(bytes.len(), MAGIC.len() + SEED_LENGTH + ML_KEM_768_SECRET_LENGTH);
        bytes
    }

    fn assemble(seed: &[u8; SEED_LENGTH], ml_kem: &[u8]) -> Result<Self, ChainError> {
        let derive = |domain: &str| Zeroizing::new(Digest::of_domain(domain, seed).0);
        let ed25519 = SigningKey::from_bytes(&derive("quorate/member-secret/ed25519/v1"));
        let ml_dsa = derive("quorate/member-secret/ml-dsa-65/v1");
        let ml_dsa = PqdsaKeyPair::from_seed(&ML_DSA_65_SIGNING, ml_dsa.as_slice())
            .expect("32 bytes are an ML-DSA seed");
        let x25519 = derive("quorate/member-secret/x25519/v1");
        let public = MemberKeys {
            ed25519: PublicKey(ed25519.verifying_key().to_bytes()),
            ml_dsa: ByteString(ml_dsa.public_key().as_ref().to_vec()),
            encryption: EncryptionKey {
                x25519: x25519_public(&x25519),
                ml_kem: ByteString(ml_kem_public(ml_kem)?.to_vec()),
            },
        };
        debug_assert_eq!(public.ml_dsa.0.len(), ML_DSA_65_PUBLIC_KEY_LENGTH);
        debug_assert_eq!(public.encryption.ml_kem.0.len(), ML_KEM_768_PUBLIC_KEY_LENGTH);
        let ml_kem = Zeroizing::new(ml_kem.to_vec());
        Ok(Self { seed: Zeroizing::new(*seed), ed25519, ml_dsa, x25519, ml_kem, public })
    }

    /// Returns the public keys.
    #[must_use]
    pub fn public(&self) -> MemberKeys {
        self.public.clone()
    }

    /// Signs the domain-separated digest of `bytes` with both signing keys.
    ///
    /// # Panics
    /// Panics when the cryptographic library cannot allocate or has no randomness.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the library hedges each ML-DSA signature; the decision page says more"
    )]
    pub fn sign(&self, domain: &str, bytes: &[u8]) -> HybridSignature {
        let input = signing_input(domain, bytes);
        let mut ml_dsa = vec![0; ML_DSA_65_SIGNATURE_LENGTH];
        let length = self.ml_dsa.sign(&input, &mut ml_dsa).expect("signing 32 bytes needs only memory");
        assert_eq!(length, ML_DSA_65_SIGNATURE_LENGTH);
        let ed25519 = Signature(self.ed25519.sign(&input).to_bytes());
        HybridSignature { ed25519, ml_dsa: ByteString(ml_dsa) }
    }

    /// Returns the X25519 secret, for opening secrets wrapped to this member.
    #[must_use]
    pub fn x25519_secret(&self) -> &[u8; 32] {
        &self.x25519
    }

    /// Returns the ML-KEM-768 decapsulation key of 2,400 bytes (FIPS 203's expanded form), for the same
    /// purpose.
    #[must_use]
    pub fn ml_kem_secret(&self) -> &[u8] {
        debug_assert_eq!(self.ml_kem.len(), ML_KEM_768_SECRET_LENGTH, "a seed is no expanded key");
        &self.ml_kem
    }
}

/// Returns a member's entry with the proof that this signer's keys belong to it.
pub fn prove_keys<S: MemberSigner>(signer: &S, id: MemberId) -> S::Signed<ProvenMember> {
    let member = Member { id, keys: signer.public_keys() };
    let summary = format!("These keys are those of the member {}.", member.id);
    let statement = Statement::new(MEMBER_KEYS_DOMAIN, member.key_claim(), summary);
    signer.sign_statement(&statement, |proof| ProvenMember { member, proof })
}

/// Checks that a person holds the keys of an entry.
///
/// # Errors
/// Returns an error when the proof does not hold for the id and the keys.
pub fn check_proven(proven: &ProvenMember) -> Result<(), ChainError> {
    let ProvenMember { member, proof } = proven;
    if signature_holds(&member.keys, MEMBER_KEYS_DOMAIN, &member.key_claim(), proof) {
        Ok(())
    } else {
        Err(ChainError::MemberKeysUnproven(member.id.clone()))
    }
}

/// Checks that both halves of `signature` are by `keys` over the digest of `bytes` in `domain`. One half
/// never suffices, and both are verified strictly.
#[must_use]
pub fn signature_holds(keys: &MemberKeys, domain: &str, bytes: &[u8], signature: &HybridSignature) -> bool {
    both_hold(&keys.ed25519, &keys.ml_dsa, domain, bytes, signature)
}

/// Checks that both halves of `signature` are by these two keys.
pub(crate) fn both_hold(
    ed25519: &PublicKey,
    ml_dsa: &ByteString,
    domain: &str,
    bytes: &[u8],
    signature: &HybridSignature,
) -> bool {
    let post_quantum = UnparsedPublicKey::new(&ML_DSA_65, &ml_dsa.0);
    ed25519.verifies(domain, bytes, &signature.ed25519)
        && post_quantum.verify(&signing_input(domain, bytes), &signature.ml_dsa.0).is_ok()
}

/// Returns the digest under which a former key of a member is kept.
pub(crate) fn former_key(key: &[u8]) -> Digest {
    Digest::of_domain(FORMER_KEY_DOMAIN, key)
}

fn x25519_public(secret: &[u8; 32]) -> PublicKey {
    let secret = agreement::PrivateKey::from_private_key(&agreement::X25519, secret)
        .expect("any 32 bytes are an X25519 secret");
    let public = secret.compute_public_key().expect("every X25519 secret has a public key");
    PublicKey(public.as_ref().try_into().expect("an X25519 public key has 32 bytes"))
}

/// Returns the encapsulation key within a decapsulation key, after the hash check that FIPS 203 prescribes.
fn ml_kem_public(secret: &[u8]) -> Result<&[u8], ChainError> {
    let damaged = || ChainError::invalid("member secret", "its ML-KEM-768 key is damaged");
    if secret.len() != ML_KEM_768_SECRET_LENGTH {
        return Err(damaged());
    }
    let (public, rest) = secret[ML_KEM_768_PUBLIC_OFFSET..].split_at(ML_KEM_768_PUBLIC_KEY_LENGTH);
    let digest = aws_lc_rs::digest::digest(&SHA3_256, public);
    if digest.as_ref() == &rest[..32] { Ok(public) } else { Err(damaged()) }
}

//! A member's secret, sealed with a passphrase: Argon2id (RFC 9106) derives the key of AES-256-GCM.
//!
//! The file names the cost of the derivation, so that later files can ask for more. A planted file could ask
//! for all memory of the machine; a cost outside the limits is refused before anything is derived.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use protocol::canonical::to_bytes;
use protocol::{Refusal, error_code};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Domain of the data that the sealing authenticates.
const SEALING_DOMAIN: &str = "quorate/member-key-sealing/v1";
/// Maximum memory of a derivation in KiB: 256 MiB, which any machine of a member has.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Minimum memory of a derivation in KiB: what the algorithm needs for the maximum number of lanes.
const MEMORY_KIB_MIN: u32 = 8 * LANES_MAX;
/// Maximum number of passes over the memory.
const PASSES_MAX: u32 = 10;
/// Maximum number of lanes.
const LANES_MAX: u32 = 8;
/// Maximum length of a sealed secret in hex digits: twice what a member's secret needs.
const SEALED_DIGITS_MAX: usize = 12 * 1024;
/// Length of the salt in bytes (RFC 9106, section 3.1).
pub(super) const SALT_LENGTH: usize = 16;
/// Length of the nonce of AES-256-GCM in bytes.
pub(super) const NONCE_LENGTH: usize = 12;

const _: () = assert!(MEMORY_KIB_MIN <= MEMORY_KIB_MAX && PASSES_MAX > 0, "some cost is accepted");

/// Cost of the derivation of a key from a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SealingCost {
    /// Memory in KiB.
    pub(super) memory_kib: u32,
    /// Passes over the memory.
    pub(super) passes: u32,
    /// Lanes.
    pub(super) lanes: u32,
}

impl SealingCost {
    /// Second recommended choice of RFC 9106, section 4: 64 MiB, three passes, four lanes.
    pub(super) const DEFAULT: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };

    /// Checks that the derivation exhausts neither memory nor time.
    fn check(self) -> Result<(), String> {
        let ranges = [
            ("memory_kib", self.memory_kib, MEMORY_KIB_MIN, MEMORY_KIB_MAX),
            ("passes", self.passes, 1, PASSES_MAX),
            ("lanes", self.lanes, 1, LANES_MAX),
        ];
        match ranges.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value)) {
            None => Ok(()),
            Some((name, value, least, most)) => {
                Err(format!("{name} is {value}; accepted: {least} to {most}; nothing was derived"))
            }
        }
    }
}

/// A secret that only its passphrase opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedKey {
    /// Always `argon2id`.
    derivation: String,
    pub(super) cost: SealingCost,
    /// Salt of the derivation, in hex.
    salt: String,
    /// Nonce of AES-256-GCM, in hex.
    nonce: String,
    /// Sealed secret with its tag, in hex.
    sealed: String,
}

const DERIVATION: &str = "argon2id";

impl SealedKey {
    /// Seals a secret. Salt and nonce must be fresh random bytes.
    pub(super) fn seal(
        secret: &[u8],
        member: &str,
        passphrase: &str,
        cost: SealingCost,
        salt: [u8; SALT_LENGTH],
        nonce: [u8; NONCE_LENGTH],
    ) -> Result<Self, Refusal> {
        let failed = || Refusal::new(error_code::KEY_FILE_UNUSABLE, "the key could not be sealed");
        let key = derive(passphrase, cost, &salt).ok_or_else(failed)?;
        let mut sealed = Zeroizing::new(secret.to_vec());
        let aad = Aad::from(authenticated(member, cost));
        aead(&key)
            .and_then(|key| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_append_tag(nonce, aad, &mut *sealed).ok()
            })
            .ok_or_else(failed)?;
        let (salt, nonce, sealed) = (hex::encode(salt), hex::encode(nonce), hex::encode(&*sealed));
        Ok(Self { derivation: DERIVATION.into(), cost, salt, nonce, sealed })
    }

    /// Checks the parameters before anything is derived from them.
    pub(super) fn check_cost(&self) -> Result<(), String> {
        if self.derivation != DERIVATION {
            return Err(format!("derives its key by another algorithm than {DERIVATION}"));
        }
        if self.sealed.len() > SEALED_DIGITS_MAX {
            return Err("holds more than a member's secret".into());
        }
        self.cost.check()
    }

    /// Opens the secret of this member; none with another passphrase.
    pub(super) fn open(&self, member: &str, passphrase: &str) -> Option<Zeroizing<Vec<u8>>> {
        self.check_cost().ok()?;
        let salt: [u8; SALT_LENGTH] = hex::decode(&self.salt).ok()?.try_into().ok()?;
        let nonce: [u8; NONCE_LENGTH] = hex::decode(&self.nonce).ok()?.try_into().ok()?;
        let mut sealed = Zeroizing::new(hex::decode(&self.sealed).ok()?);
        let key = aead(&*derive(passphrase, self.cost, &salt)?)?;
        let aad = Aad::from(authenticated(member, self.cost));
        let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        Some(Zeroizing::new(opened.to_vec()))
    }
}

/// Returns the data beside the secret that the sealing authenticates.
fn authenticated(member: &str, cost: SealingCost) -> Vec<u8> {
    to_bytes(&(SEALING_DOMAIN, member, cost.memory_kib, cost.passes, cost.lanes))
}

/// Derives a key; none if the parameters are outside the limits.
fn derive(passphrase: &str, cost: SealingCost, salt: &[u8; SALT_LENGTH]) -> Option<Zeroizing<[u8; 32]>> {
    cost.check().ok()?;
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, &mut *key).ok()?;
    Some(key)
}

fn aead(key: &[u8; 32]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
}

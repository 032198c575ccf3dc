//! Keys: the key that encrypts a model, the secrets of its recipients, and the wraps that connect them.
//!
//! A wrap opens only with *both* halves of its recipient's secret: X25519 and ML-KEM-768. BLAKE3's key
//! derivation turns their shared secrets and the whole transcript into one AES-256-GCM key, used once.
//! Randomness comes from the operating system through aws-lc; no other file of this crate uses any.

use crate::error::KeyError;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use protocol::keys::{ByteString, EncryptionKey, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::model::{KeyWrap, Recipient};
use protocol::{Digest, ModelRoot, PublicKey};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const COMMITMENT_DOMAIN: &str = "quorate/model-key-commitment/v1";
const WRAP_DOMAIN: &str = "quorate/key-wrap/v1";
/// A secret file is this prefix, the hexadecimal of both halves and the ML-KEM public key, and a newline.
const FILE_PREFIX: &str = "quorate-encryption:";
/// Length of an ML-KEM-768 decapsulation key in bytes (FIPS 203, table 3).
const ML_KEM_768_SECRET_LENGTH: usize = 2400;
const SECRET_LENGTH: usize = 32 + ML_KEM_768_SECRET_LENGTH + ML_KEM_768_PUBLIC_KEY_LENGTH;

/// The AES-256 key of one model. It is zeroed when dropped and has no text form.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ModelKey([u8; 32]);

impl std::fmt::Debug for ModelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ModelKey({})", self.commitment().short())
    }
}

impl ModelKey {
    /// Generates a random key.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self([0; 32]);
        fill_random(&mut key.0)?;
        Ok(key)
    }

    /// Returns the key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the commitment to this key that a manifest contains.
    #[must_use]
    pub fn commitment(&self) -> Digest {
        Digest::of_domain(COMMITMENT_DOMAIN, &self.0)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), KeyError> {
    SystemRandom::new().fill(bytes).map_err(|_| KeyError::Random)
}

/// Private halves of an [`EncryptionKey`], with which a node or a member opens wraps.
pub struct EncryptionSecret {
    x25519: PrivateKey,
    ml_kem: DecapsulationKey,
    public: EncryptionKey,
}

impl std::fmt::Debug for EncryptionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncryptionSecret({})", self.public.x25519.short())
    }
}

impl EncryptionSecret {
    /// Generates a random secret, held in memory only.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let x25519 = PrivateKey::generate(&X25519).map_err(|_| KeyError::Random)?;
        let ml_kem = DecapsulationKey::generate(&ML_KEM_768).map_err(|_| KeyError::Random)?;
        let encapsulation = ml_kem.encapsulation_key().map_err(|_| KeyError::Random)?;
        let encapsulation = encapsulation.key_bytes().map_err(|_| KeyError::Random)?;
        Self::assemble(x25519, ml_kem, encapsulation.as_ref()).ok_or(KeyError::Random)
    }

    /// Assembles the secret of a member, whose halves another crate keeps. The parts are an X25519 secret of
    /// 32 bytes, an ML-KEM-768 decapsulation key of 2,400 bytes, and the public key that belongs to them.
    ///
    /// # Errors
    /// [`KeyError::Closed`] if the three do not belong together.
    pub fn from_parts(x25519: &[u8; 32], ml_kem: &[u8], public: &EncryptionKey) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LENGTH));
        bytes.extend_from_slice(x25519);
        bytes.extend_from_slice(ml_kem);
        bytes.extend_from_slice(&public.ml_kem.0);
        let secret = Self::from_bytes(&bytes).ok_or(KeyError::Closed)?;
        if secret.public == *public { Ok(secret) } else { Err(KeyError::Closed) }
    }

    fn assemble(x25519: PrivateKey, ml_kem: DecapsulationKey, encapsulation: &[u8]) -> Option<Self> {
        let public = x25519.compute_public_key().ok()?;
        let public = EncryptionKey {
            x25519: PublicKey(public.as_ref().try_into().ok()?),
            ml_kem: ByteString(encapsulation.to_vec()),
        };
        Some(Self { x25519, ml_kem, public })
    }

    /// Returns the public halves.
    #[must_use]
    pub fn public(&self) -> &EncryptionKey {
        &self.public
    }

    /// Returns the shared secrets of this secret and a wrap.
    ///
    /// # Errors
    /// [`KeyError::Closed`] if the wrap has no valid public values.
    pub fn shared_with(&self, wrap: &KeyWrap) -> Result<SharedSecrets, KeyError> {
        let copied = |bytes: &[u8]| bytes.try_into().ok().map(Zeroizing::new);
        let quantum = self.ml_kem.decapsulate(Ciphertext::from(&wrap.encapsulated.0[..])).ok();
        let ml_kem = quantum.and_then(|secret| copied(secret.as_ref()));
        let x25519 = agree(&self.x25519, &wrap.ephemeral, copied).flatten();
        x25519.zip(ml_kem).map(|(x25519, ml_kem)| SharedSecrets { x25519, ml_kem }).ok_or(KeyError::Closed)
    }

    /// Generates a secret and writes it to `path`: a new file of mode 600, durable when this returns.
    ///
    /// # Errors
    /// [`KeyError::File`], also if the file exists already.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let secret = Self::generate()?;
        let bytes = secret.to_bytes()?;
        let mut text = Zeroizing::new(String::with_capacity(FILE_PREFIX.len() + 2 * SECRET_LENGTH + 1));
        text.push_str(FILE_PREFIX);
        for byte in bytes.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(digit), 16).expect("four bits are one digit"));
            }
        }
        text.push('\n');
        host::files::create_secret(path, text.as_bytes())
            .map_err(|source| KeyError::File { path: path.into(), source })?;
        Ok(secret)
    }

    /// Reads the secret that [`EncryptionSecret::create`] wrote.
    ///
    /// # Errors
    /// [`KeyError::File`], [`KeyError::Exposed`], [`KeyError::Malformed`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into(), mode });
        }
        let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_LENGTH + 64));
        file.take(2 * SECRET_LENGTH as u64 + 64).read_to_string(&mut text).map_err(failed)?;
        let secret = text.strip_prefix(FILE_PREFIX).map(str::trim_end).and_then(from_hex);
        let secret = secret.and_then(|bytes| Self::from_bytes(&bytes));
        secret.ok_or_else(|| KeyError::Malformed { path: path.into() })
    }

    fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let seed: Curve25519SeedBin = self.x25519.as_be_bytes().map_err(|_| KeyError::Random)?;
        let ml_kem = self.ml_kem.key_bytes().map_err(|_| KeyError::Random)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LENGTH));
        bytes.extend_from_slice(seed.as_ref());
        bytes.extend_from_slice(ml_kem.as_ref());
        bytes.extend_from_slice(&self.public.ml_kem.0);
        Ok(bytes)
    }

    /// Returns the secret of these bytes, if both halves of ML-KEM belong together.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != SECRET_LENGTH {
            return None;
        }
        let (x25519, rest) = bytes.split_at(32);
        let (ml_kem, encapsulation) = rest.split_at(ML_KEM_768_SECRET_LENGTH);
        let x25519 = PrivateKey::from_private_key(&X25519, x25519).ok()?;
        let ml_kem = DecapsulationKey::new(&ML_KEM_768, ml_kem).ok()?;
        let public = EncapsulationKey::new(&ML_KEM_768, encapsulation).ok()?;
        let (ciphertext, sent) = public.encapsulate().ok()?;
        let received = ml_kem.decapsulate(ciphertext).ok()?;
        (sent.as_ref() == received.as_ref()).then_some(())?;
        Self::assemble(x25519, ml_kem, encapsulation)
    }
}

fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits = text.as_bytes();
    if digits.len() != 2 * SECRET_LENGTH {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes: Option<Vec<u8>> =
        digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect();
    bytes.map(Zeroizing::new)
}

/// Wraps a model's key so that only `recipient`, the holder of the secret of `to`, can open it. `root` and
/// `recipient` are bound in: a wrap cannot pass for another model's or another node's.
///
/// # Errors
/// [`KeyError::Recipient`] if a half of `to` is not a usable key, [`KeyError::Random`].
pub fn wrap_key(
    key: &ModelKey,
    to: &EncryptionKey,
    root: ModelRoot,
    recipient: Recipient,
) -> Result<KeyWrap, KeyError> {
    let ml_kem = EncapsulationKey::new(&ML_KEM_768, &to.ml_kem.0)
        .map_err(|_| KeyError::Recipient { half: "ml-kem-768" })?;
    let (encapsulated, quantum) =
        ml_kem.encapsulate().map_err(|_| KeyError::Recipient { half: "ml-kem-768" })?;
    let one_time = PrivateKey::generate(&X25519).map_err(|_| KeyError::Random)?;
    let ephemeral = one_time.compute_public_key().map_err(|_| KeyError::Random)?;
    let mut wrap = KeyWrap {
        root,
        recipient,
        ephemeral: PublicKey(ephemeral.as_ref().try_into().map_err(|_| KeyError::Random)?),
        encapsulated: ByteString(encapsulated.as_ref().to_vec()),
        sealed: ByteString::default(),
    };
    let wrapping =
        agree(&one_time, &to.x25519, |classical| wrapping_key(classical, quantum.as_ref(), &wrap, to))
            .ok_or(KeyError::Recipient { half: "x25519" })?;
    let mut sealed = key.0.to_vec();
    let sealing = aead(&wrapping).seal_in_place_append_tag(one_nonce(), Aad::empty(), &mut sealed);
    sealing.map_err(|_| KeyError::Random)?;
    wrap.sealed = ByteString(sealed);
    Ok(wrap)
}

/// Opens a wrap made for the public half of `secret`.
///
/// # Errors
/// [`KeyError::Closed`] if it was made for another key or was altered.
pub fn unwrap_key(wrap: &KeyWrap, secret: &EncryptionSecret) -> Result<ModelKey, KeyError> {
    open_wrap(wrap, &secret.public, &secret.shared_with(wrap)?)
}

/// Shared secrets of a wrap and its recipient, with which the wrap opens.
pub struct SharedSecrets {
    /// Of X25519, 32 bytes.
    pub x25519: Zeroizing<[u8; 32]>,
    /// Of ML-KEM-768, 32 bytes.
    pub ml_kem: Zeroizing<[u8; 32]>,
}

/// Opens a wrap made for the key `to` with the shared secrets of that key's holder.
///
/// # Errors
/// [`KeyError::Closed`] if it was made for another key or was altered, or the secrets are others.
pub fn open_wrap(wrap: &KeyWrap, to: &EncryptionKey, secrets: &SharedSecrets) -> Result<ModelKey, KeyError> {
    open(wrap, &wrapping_key(&*secrets.x25519, &*secrets.ml_kem, wrap, to)).ok_or(KeyError::Closed)
}

fn open(wrap: &KeyWrap, wrapping: &[u8; 32]) -> Option<ModelKey> {
    let mut sealed = Zeroizing::new(wrap.sealed.0.clone());
    let opened = aead(wrapping).open_in_place(one_nonce(), Aad::empty(), &mut sealed).ok()?;
    Some(ModelKey((&*opened).try_into().ok()?))
}

/// Runs X25519 and passes the shared secret to `derive`. Returns `None` for a key of low order, whose shared
/// secret is publicly known.
fn agree<T>(private: &PrivateKey, public: &PublicKey, derive: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let public = UnparsedPublicKey::new(&X25519, public.as_bytes());
    agreement::agree(private, public, (), |shared| {
        if shared.iter().all(|byte| *byte == 0) { Err(()) } else { Ok(derive(shared)) }
    })
    .ok()
}

/// Derives one key from both shared secrets, the recipient's public key, and every field of the wrap but
/// `sealed`.
fn wrapping_key(classical: &[u8], quantum: &[u8], wrap: &KeyWrap, to: &EncryptionKey) -> Zeroizing<[u8; 32]> {
    // Both secrets have 32 bytes, so their concatenation is unambiguous.
    assert_eq!((classical.len(), quantum.len()), (32, 32), "shared secrets of X25519 and ML-KEM-768");
    let transcript = (&wrap.root, &wrap.recipient, &wrap.ephemeral, &wrap.encapsulated, to);
    let transcript = protocol::canonical::to_bytes(&transcript);
    let mut hasher = blake3::Hasher::new_derive_key(WRAP_DOMAIN);
    hasher.update(classical).update(quantum).update(&transcript);
    Zeroizing::new(*hasher.finalize().as_bytes())
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes any 32 bytes"))
}

/// Returns the nonce of a key that seals exactly once.
fn one_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests;

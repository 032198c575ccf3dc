//! A member's key file, and the one function that opens it.
//!
//! The file is JSON with a version. The key in it is sealed with a passphrase, see `sealed.rs`, or it is in a
//! program that the file names, see `signer.rs`. The explicit form `unencrypted` is for tests and for the
//! demonstration, whose keys lie beside each other anyway. A checksum over the whole file distinguishes a
//! damaged file from a wrong passphrase.

pub(crate) mod passphrase;
pub(crate) mod sealed;
pub(crate) mod signer;

use anyhow::{Context as _, Result};
use host::files;
use host::random::random_bytes;
use human_chain::{MemberSecret, MemberSigner, Statement, prove_keys};
use model_store::{EncryptionSecret, ModelKey, unwrap_key};
use protocol::governance::ProvenMember;
use protocol::keys::{HybridSignature, MemberKeys};
use protocol::model::KeyWrap;
use protocol::{Digest, MemberId, Refusal, error_code};
use sealed::{SealedKey, SealingCost};
use serde::{Deserialize, Serialize};
use signer::{ExternalSigner, SignerCommand};
use std::path::Path;
use zeroize::Zeroizing;

/// Version of the file.
const FORMAT: &str = "quorate-member-key/2";
/// Maximum size of the file in bytes: a key of 2,480 bytes in hex, or public keys of 3,200 bytes in hex and a
/// command of 8 KiB; and some fields.
const FILE_BYTES_MAX: usize = 24 * 1024;
/// Digest domain of the checksum.
const CHECKSUM_DOMAIN: &str = "quorate/member-key-file/v2";

/// A member's key that was generated here, to be written to a file.
pub struct MemberKeyFile {
    /// The member that owns the key.
    pub member: MemberId,
    pub secret: MemberSecret,
}

/// A member's key, opened for use.
pub struct MemberKey {
    /// The member that owns the key.
    pub member: MemberId,
    pub signer: KeyHolder,
}

/// Holder of a member's key.
pub enum KeyHolder {
    /// The secret is in memory.
    Secret(Box<MemberSecret>),
    /// The secret is in a program.
    External(Box<ExternalSigner>),
}

/// The file as it is on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberKeyText {
    format: String,
    member: MemberId,
    key: StoredKey,
    /// Digest of the other fields.
    checksum: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StoredKey {
    /// The secret itself, in hex: readable by every program of this user.
    Unencrypted(String),
    /// The secret, sealed with a passphrase.
    Encrypted(SealedKey),
    /// A program that holds the secret, and its public keys.
    External(ExternalKey),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalKey {
    command: SignerCommand,
    keys: MemberKeys,
}

impl MemberKeyText {
    fn new(member: MemberId, key: StoredKey) -> Result<Self> {
        let checksum = Digest([0; Digest::LENGTH]);
        let mut text = Self { format: FORMAT.into(), member, key, checksum };
        text.checksum = text.digest()?;
        Ok(text)
    }

    fn digest(&self) -> Result<Digest> {
        let bytes = Zeroizing::new(serde_json::to_vec(&(&self.format, &self.member, &self.key))?);
        Ok(Digest::of_domain(CHECKSUM_DOMAIN, &bytes))
    }
}

impl MemberKeyFile {
    /// Generates a new key for a member.
    #[must_use]
    pub fn generate(member: MemberId) -> Self {
        Self { member, secret: MemberSecret::generate(&Zeroizing::new(random_bytes())) }
    }

    /// Returns the member's public entry with the proof that this key belongs to it.
    #[must_use]
    pub fn proven(&self) -> ProvenMember {
        prove_keys(&self.secret, self.member.clone())
    }

    /// Writes the key to a new file without a passphrase, for tests and for the demonstration.
    ///
    /// # Errors
    /// Fails with `key-exists` if there is a file of this name, else with the error of the disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        let encoded = hex::encode(self.secret.to_bytes().as_slice());
        self.write(path, StoredKey::Unencrypted(encoded))
    }

    /// Writes the key to a new file, sealed with a passphrase.
    ///
    /// # Errors
    /// As [`MemberKeyFile::save`].
    pub fn save_sealed(&self, path: &Path, passphrase: &str) -> Result<()> {
        self.write_sealed(path, passphrase, SealingCost::DEFAULT)
    }

    fn write_sealed(&self, path: &Path, passphrase: &str, cost: SealingCost) -> Result<()> {
        let (salt, nonce) = (random_bytes(), random_bytes());
        let sealed =
            SealedKey::seal(&self.secret.to_bytes(), self.member.as_str(), passphrase, cost, salt, nonce);
        self.write(path, StoredKey::Encrypted(sealed?))
    }

    fn write(&self, path: &Path, key: StoredKey) -> Result<()> {
        write_new(path, self.member.clone(), key)
    }
}

impl From<MemberKeyFile> for MemberKey {
    fn from(file: MemberKeyFile) -> Self {
        Self { member: file.member, signer: KeyHolder::Secret(Box::new(file.secret)) }
    }
}

impl MemberKey {
    /// Reads a key file, and asks for its passphrase if it has one. Each use of a member's key begins here.
    ///
    /// # Errors
    /// Fails with `key-file-unusable` if the file is missing, readable by others, damaged or of another form.
    /// Fails with `key-passphrase-wrong` or `key-passphrase-missing` if it cannot be opened.
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_with(path, || passphrase::present(path))
    }

    /// Reads a key file with this passphrase.
    fn load_with(path: &Path, passphrase: impl FnOnce() -> Result<Zeroizing<String>>) -> Result<Self> {
        let text = read_text(path)?;
        let bytes = match text.key {
            StoredKey::Unencrypted(encoded) => Zeroizing::new(
                hex::decode(encoded.as_bytes()).map_err(|error| unusable(path, &error.to_string()))?,
            ),
            StoredKey::Encrypted(sealed) => {
                sealed.check_cost().map_err(|reason| unusable(path, &reason))?;
                let opened = sealed.open(text.member.as_str(), &passphrase()?);
                opened.ok_or_else(|| {
                    let message = format!("the passphrase does not open the member key `{}`", path.display());
                    Refusal::new(error_code::KEY_PASSPHRASE_WRONG, message)
                })?
            }
            StoredKey::External(ExternalKey { command, keys }) => {
                command.check()?;
                return Ok(ExternalSigner { member: text.member, command, keys }.into_key());
            }
        };
        let secret = MemberSecret::from_bytes(&bytes).map_err(|error| unusable(path, &error.to_string()))?;
        Ok(MemberKeyFile { member: text.member, secret }.into())
    }
}

impl KeyHolder {
    /// Opens a wrap for this member; none if it does not open.
    ///
    /// # Errors
    /// Fails with `signer-failed` or `signer-invalid` if an external signer does not open wraps.
    pub fn open_wrap(&self, wrap: &KeyWrap) -> Result<Option<ModelKey>> {
        match self {
            Self::Secret(secret) => {
                let public = secret.public().encryption;
                let (x25519, ml_kem) = (secret.x25519_secret(), secret.ml_kem_secret());
                let secret = EncryptionSecret::from_parts(x25519, ml_kem, &public)?;
                Ok(unwrap_key(wrap, &secret).ok())
            }
            Self::External(signer) => Ok(signer.open_wrap(wrap)?),
        }
    }
}

impl MemberSigner for KeyHolder {
    type Signed<T> = Result<T, Refusal>;

    fn public_keys(&self) -> MemberKeys {
        match self {
            Self::Secret(secret) => secret.public_keys(),
            Self::External(signer) => signer.public_keys(),
        }
    }

    fn sign_statement<T>(
        &self,
        statement: &Statement,
        complete: impl FnOnce(HybridSignature) -> T,
    ) -> Self::Signed<T> {
        match self {
            Self::Secret(secret) => Ok(secret.sign_statement(statement, complete)),
            Self::External(signer) => signer.sign_statement(statement, complete),
        }
    }
}

/// Writes a new file that names an external signer in place of a secret.
///
/// # Errors
/// As [`MemberKeyFile::save`].
pub(crate) fn save_external(signer: &ExternalSigner, path: &Path) -> Result<()> {
    let key = ExternalKey { command: signer.command.clone(), keys: signer.keys.clone() };
    write_new(path, signer.member.clone(), StoredKey::External(key))
}

fn write_new(path: &Path, member: MemberId, key: StoredKey) -> Result<()> {
    let text = MemberKeyText::new(member, key)?;
    let bytes = Zeroizing::new(serde_json::to_vec(&text)?);
    debug_assert!(bytes.len() <= FILE_BYTES_MAX, "a file that is written can be read");
    create_secret(path, &bytes)
}

/// Reads the file and checks everything that needs no passphrase.
fn read_text(path: &Path) -> Result<MemberKeyText> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path).map_err(|error| unusable(path, &error.to_string()))?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 != 0 {
        let reason = format!("is readable by other users (mode {:o}); run chmod 600 on it", mode & 0o777);
        return Err(unusable(path, &reason).into());
    }
    let read = files::read(path, FILE_BYTES_MAX).map_err(|error| unusable(path, &error.to_string()))?;
    let bytes = Zeroizing::new(read.unwrap_or_default());
    let parsed: Result<MemberKeyText, _> = serde_json::from_slice(&bytes);
    // The error of the parser could repeat a part of the secret.
    let text = parsed.map_err(|_| unusable(path, "is damaged, or is no member key"))?;
    if text.format != FORMAT {
        return Err(unusable(path, &format!("has another form than {FORMAT}")).into());
    }
    if text.checksum != text.digest()? {
        return Err(unusable(path, "is damaged: its checksum does not match; take your copy of it").into());
    }
    Ok(text)
}

fn unusable(path: &Path, reason: &str) -> Refusal {
    Refusal::new(error_code::KEY_FILE_UNUSABLE, format!("the member key `{}`: {reason}", path.display()))
}

/// Writes a new secret to a new file, in a directory that is created as needed.
///
/// # Errors
/// Fails with `key-exists` if there is a file of this name: a secret that is overwritten is lost.
pub(crate) fn create_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let place = || format!("write `{}`", path.display());
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).with_context(place)?;
    }
    match files::create_secret(path, bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message = format!("`{}` exists; give another file, or move that one away", path.display());
            Err(Refusal::new(error_code::KEY_EXISTS, message).into())
        }
        outcome => outcome.with_context(place),
    }
}

#[cfg(test)]
mod tests;

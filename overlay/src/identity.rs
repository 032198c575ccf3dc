//! Ed25519 key of one process, and the file that holds it. The private half never leaves this type.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use ed25519_dalek::{Signer, SigningKey};
use protocol::error_code::{self, ErrorCode};
use protocol::keys::signing_input;
use protocol::{PublicKey, Signature};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// DER prefix of an Ed25519 `SubjectPublicKeyInfo`, followed by the key (RFC 8410, section 4).
pub(crate) const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// DER prefix of an Ed25519 PKCS #8 private key, followed by the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Prefix of a key file, followed by 64 hexadecimal digits of seed and a newline.
const FILE_PREFIX: &str = "quorate-ed25519:";

/// The key of one process: it signs, and it identifies the process in TLS. Clones share one key.
#[derive(Clone)]
pub struct Identity {
    signing: Arc<SigningKey>,
    /// The same key in the form that TLS needs.
    pub(crate) certified: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.public_key().short())
    }
}

/// The reason for which a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Reading or writing failed; an existing file is never overwritten.
    #[error("key file {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Users other than the owner may read the file, so the key is no longer a secret.
    #[error("key file {} has mode {mode:o}, expected 600", path.display())]
    Exposed {
        /// Path of the file.
        path: PathBuf,
        /// Permission bits of the file.
        mode: u32,
    },
    /// The content is not a key of this format.
    #[error("key file {} does not hold one Ed25519 key", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
    },
    /// The operating system provides no randomness.
    #[error("no randomness")]
    Random,
}

impl IdentityError {
    /// Returns the stable code for users, which has a documentation page of its own.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        error_code::KEY_FILE_UNUSABLE
    }
}

impl Identity {
    /// Generates a random key, held in memory only.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(seed.as_mut()).map_err(|_| IdentityError::Random)?;
        Ok(Self::from_seed(&seed))
    }

    /// Derives the key from `seed`.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
        pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(seed);
        let private =
            rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
                .expect("an Ed25519 key in PKCS #8 has exactly this form");
        let spki = [&SPKI_PREFIX[..], signing.verifying_key().as_bytes()].concat();
        let certified = CertifiedKey::new(vec![CertificateDer::from(spki)], private);
        Self { signing: Arc::new(signing), certified: Arc::new(certified) }
    }

    /// Generates a key and writes it to `path`: mode 600, all or nothing, durable before this returns.
    ///
    /// # Errors
    /// [`IdentityError::File`], also if the file exists already.
    pub fn create(path: &Path) -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(seed.as_mut()).map_err(|_| IdentityError::Random)?;
        let identity = Self::from_seed(&seed);
        let mut text = Zeroizing::new(String::with_capacity(FILE_PREFIX.len() + 65));
        text.push_str(FILE_PREFIX);
        for byte in seed.iter() {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte & 15));
        }
        text.push('\n');
        write_new(path, text.as_bytes(), identity.public_key())
            .map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
        Ok(identity)
    }

    /// Reads the key that [`Identity::create`] wrote.
    ///
    /// # Errors
    /// See [`IdentityError`]; a file that others may read is refused.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        // One byte more than a key file has, so that a longer one is detected.
        let length = FILE_PREFIX.len() + 65;
        let mut text = Zeroizing::new(Vec::with_capacity(length + 1));
        file.take(length as u64 + 1).read_to_end(&mut text).map_err(failed)?;
        let seed = parse(&text).ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })?;
        Ok(Self::from_seed(&seed))
    }

    /// Reads the key at `path`, or creates it if there is no such file.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match Self::load(path) {
            Err(IdentityError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path)
            }
            loaded => loaded,
        }
    }

    /// Returns the public half, by which other processes identify this one.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key().to_bytes())
    }

    /// Signs `bytes` for `domain`; [`PublicKey::verifies`] verifies the signature.
    #[must_use]
    pub fn sign(&self, domain: &str, bytes: &[u8]) -> Signature {
        Signature(self.signing.sign(&signing_input(domain, bytes)).to_bytes())
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).expect("a nibble is one hexadecimal digit")
}

fn parse(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.strip_prefix(FILE_PREFIX.as_bytes())?.strip_suffix(b"\n")?;
    if digits.len() != 64 {
        return None;
    }
    let mut seed = Zeroizing::new([0; 32]);
    for (byte, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(seed)
}

/// Writes a file that appears whole or not at all, and never replaces another. A hard link is the one
/// portable way to have both: unlike a rename it fails if the name is taken.
fn write_new(path: &Path, content: &[u8], public: PublicKey) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // The fresh key makes this name unique without another random number.
    let temporary = directory.join(format!(".key-{}", public.short()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let linked =
        file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    linked?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_created_key_loads_again_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let created = Identity::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Identity::load(&path).unwrap().public_key(), created.public_key());
        assert_eq!(Identity::load_or_create(&path).unwrap().public_key(), created.public_key());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let first = Identity::create(&path).unwrap();
        let Err(IdentityError::File { source, .. }) = Identity::create(&path) else {
            panic!("the second key must not replace the first");
        };
        assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(Identity::load(&path).unwrap().public_key(), first.public_key());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        Identity::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn anything_but_one_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let key = "ab".repeat(32);
        for content in [
            String::new(),
            key.clone(),
            format!("quorate-ed25519:{key}"),
            format!("quorate-ed25519:{key}\n\n"),
            format!("quorate-ed25519:{}\n", &key[1..]),
            format!("quorate-ed25519:{}g\n", &key[1..]),
            format!("quorate-ed25519:+{}\n", &key[1..]),
        ] {
            fs::write(&path, &content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let refused = matches!(Identity::load(&path), Err(IdentityError::Malformed { .. }));
            assert!(refused, "{content:?}");
        }
    }

    #[test]
    fn a_signature_verifies_under_the_public_key() {
        let identity = Identity::from_seed(&[9; 32]);
        let signature = identity.sign("quorate/test/v1", b"bytes");
        assert!(identity.public_key().verifies("quorate/test/v1", b"bytes", &signature));
        assert!(!identity.public_key().verifies("quorate/test/v1", b"other", &signature));
    }
}

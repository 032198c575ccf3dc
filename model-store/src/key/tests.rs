//! Tests of keys: both halves are needed, every bit of a wrap matters, and a secret survives its file.

use super::*;
use protocol::NodeId;

fn sample() -> (ModelKey, EncryptionSecret, KeyWrap) {
    let key = ModelKey::from_bytes([5; 32]);
    let secret = EncryptionSecret::generate().expect("a secret");
    let recipient = Recipient::Node(NodeId(PublicKey([7; 32])));
    let wrap = wrap_key(&key, secret.public(), ModelRoot(Digest([8; 32])), recipient).expect("a wrap");
    (key, secret, wrap)
}

fn opens(wrap: &KeyWrap, secret: &EncryptionSecret) -> bool {
    unwrap_key(wrap, secret).is_ok()
}

#[test]
fn a_wrap_opens_for_its_recipient_alone() {
    let (key, secret, wrap) = sample();
    assert_eq!(unwrap_key(&wrap, &secret).expect("opens").commitment(), key.commitment());
    assert!(!opens(&wrap, &EncryptionSecret::generate().expect("a secret")));
    assert_eq!(wrap.encapsulated.0.len(), 1088);
    assert_eq!(wrap.sealed.0.len(), 48);
}

#[test]
fn either_half_alone_opens_nothing() {
    let (_, secret, wrap) = sample();
    let bytes = secret.to_bytes().expect("bytes");
    let other = EncryptionSecret::generate().expect("a secret").to_bytes().expect("bytes");
    // The attacker has the true X25519 half and his own ML-KEM half, or the reverse.
    let classical = EncryptionSecret::from_bytes(&[&bytes[..32], &other[32..]].concat()).expect("sound");
    let quantum = EncryptionSecret::from_bytes(&[&other[..32], &bytes[32..]].concat()).expect("sound");
    for mut thief in [classical, quantum] {
        assert!(!opens(&wrap, &thief));
        // Claiming the true public key, which the transcript covers, does not help.
        thief.public = secret.public.clone();
        assert!(!opens(&wrap, &thief));
    }
}

#[test]
fn every_part_of_a_wrap_counts() {
    let (_, secret, wrap) = sample();
    let mut altered = Vec::new();
    for byte in [0, 31] {
        let mut copy = wrap.clone();
        copy.ephemeral.0[byte] ^= 1;
        altered.push(copy);
    }
    for byte in [0, 500, 1087] {
        let mut copy = wrap.clone();
        copy.encapsulated.0[byte] ^= 1;
        altered.push(copy);
    }
    for byte in 0..48 {
        let mut copy = wrap.clone();
        copy.sealed.0[byte] ^= 1;
        altered.push(copy);
    }
    altered.push(KeyWrap { root: ModelRoot(Digest([9; 32])), ..wrap.clone() });
    altered.push(KeyWrap { recipient: Recipient::Node(NodeId(PublicKey([8; 32]))), ..wrap.clone() });
    altered.push(KeyWrap { sealed: ByteString(wrap.sealed.0[..47].to_vec()), ..wrap.clone() });
    altered.push(KeyWrap { sealed: ByteString::default(), ..wrap.clone() });
    altered.push(KeyWrap { encapsulated: ByteString(vec![1; 1087]), ..wrap.clone() });
    altered.push(KeyWrap { ephemeral: PublicKey([0; 32]), ..wrap.clone() });
    for (number, wrap) in altered.iter().enumerate() {
        assert!(!opens(wrap, &secret), "case {number}");
    }
    assert!(opens(&wrap, &secret));
}

#[test]
fn unusable_public_keys_are_refused() {
    let (key, secret, wrap) = sample();
    let refuse = |to: EncryptionKey| {
        let error = wrap_key(&key, &to, wrap.root, wrap.recipient.clone()).expect_err("refused");
        assert!(matches!(error, KeyError::Recipient { .. }), "{error}");
    };
    let good = secret.public().clone();
    refuse(EncryptionKey { x25519: PublicKey([0; 32]), ..good.clone() });
    refuse(EncryptionKey { ml_kem: ByteString(vec![1; 1183]), ..good.clone() });
    refuse(EncryptionKey { ml_kem: ByteString(vec![0xff; 1184]), ..good });
}

#[test]
fn a_secret_survives_its_file_and_only_its_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("encryption.key");
    let secret = EncryptionSecret::create(&path).expect("created");
    assert!(matches!(EncryptionSecret::create(&path), Err(KeyError::File { .. })), "never overwritten");
    let loaded = EncryptionSecret::load(&path).expect("loaded");
    assert_eq!(loaded.public(), secret.public());
    let key = ModelKey::generate().expect("a key");
    let recipient = Recipient::Member("ada".parse().expect("a name"));
    let wrap = wrap_key(&key, secret.public(), ModelRoot(Digest([1; 32])), recipient).expect("a wrap");
    assert!(opens(&wrap, &loaded));
    let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = std::fs::read_to_string(&path).expect("text");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("set");
    assert!(matches!(EncryptionSecret::load(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
    // One digit of the ML-KEM half is changed: the halves no longer belong together.
    let mut other = text.clone().into_bytes();
    let at = FILE_PREFIX.len() + 64 + 2000;
    other[at] = if other[at] == b'0' { b'1' } else { b'0' };
    for bad in [&other[..], b"", b"quorate-encryption:zz\n", &text.as_bytes()[..text.len() - 3]] {
        std::fs::write(&path, bad).expect("write");
        assert!(matches!(EncryptionSecret::load(&path), Err(KeyError::Malformed { .. })));
    }
}

/// A device that holds a member's keys computes the two shared secrets, and no key of ours.
#[test]
fn a_wrap_opens_with_both_shared_secrets_of_its_recipient() {
    let (key, secret, wrap) = sample();
    let shared = |secret: &EncryptionSecret| secret.shared_with(&wrap).expect("a wrap with sound values");
    let opened = open_wrap(&wrap, secret.public(), &shared(&secret)).expect("its recipient's");
    assert_eq!(opened.commitment(), key.commitment());
    let other = EncryptionSecret::generate().expect("a secret");
    let (mine, foreign) = (shared(&secret), shared(&other));
    let classical = SharedSecrets { x25519: foreign.x25519.clone(), ml_kem: mine.ml_kem.clone() };
    let quantum = SharedSecrets { x25519: mine.x25519.clone(), ml_kem: foreign.ml_kem.clone() };
    for wrong in [classical, quantum, foreign] {
        assert!(matches!(open_wrap(&wrap, secret.public(), &wrong), Err(KeyError::Closed)));
    }
    assert!(matches!(open_wrap(&wrap, other.public(), &mine), Err(KeyError::Closed)), "for another key");
    let mut low = wrap.clone();
    low.ephemeral = PublicKey([0; 32]);
    assert!(matches!(secret.shared_with(&low), Err(KeyError::Closed)), "a key of low order");
    low.encapsulated.0.pop();
    assert!(matches!(secret.shared_with(&low), Err(KeyError::Closed)), "no ciphertext");
}

//! Tests of members' secret keys: stored in full, rejected when damaged, never printed.

use crate::support::{check, secret};
use aws_lc_rs::agreement::{self, agree};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use human_chain::{MemberSecret, signature_holds};
use protocol::Digest;
use protocol::canonical::to_bytes;

#[test]
fn a_secret_is_read_as_it_was_written() {
    let alice = secret("alice");
    let again = MemberSecret::from_bytes(&alice.to_bytes()).expect("written a line above");
    assert_eq!(again.public(), alice.public());
    assert_eq!(again.to_bytes(), alice.to_bytes());
    assert_eq!(
        (again.x25519_secret(), again.ml_kem_secret()),
        (alice.x25519_secret(), alice.ml_kem_secret())
    );
    assert_eq!(alice.to_bytes().len(), 2480);
    let signature = again.sign("quorate/test/v1", b"text");
    assert!(signature_holds(&alice.public(), "quorate/test/v1", b"text", &signature));
}

#[test]
fn a_damaged_secret_is_refused() {
    let bytes = secret("alice").to_bytes();
    let refused = |case: &str, bytes: &[u8]| {
        check(case, MemberSecret::from_bytes(bytes), "governance-invalid: member secret");
    };
    refused("empty", &[]);
    refused("another file", b"-----BEGIN PRIVATE KEY-----");
    refused("short", &bytes[..bytes.len() - 1]);
    refused("long", &[&bytes[..], &[0]].concat());
    refused("seed only", &bytes[..80]);
    let public = 16 + 64 + 1152;
    for at in [0, 15, public, public + 600, public + 1183, public + 1184, public + 1215] {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1;
        refused(&format!("byte {at}"), &damaged);
    }
}

#[test]
fn keys_follow_from_the_seed_forever() {
    // A changed derivation would lock every member out, so this test must detect it first.
    let keys = secret("alice").public();
    let signing = Digest::of(&to_bytes(&(&keys.ed25519, &keys.ml_dsa, &keys.encryption.x25519)));
    assert_eq!(signing.to_string(), "8688c1b7a82c7459d7a8c787e7fbf564e8d26f063352453ad2331958cce1a415");
    assert_ne!(keys.ed25519, secret("bob").public().ed25519);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test draws the randomness of a sender")]
fn the_published_keys_are_those_of_the_secrets() {
    let alice = secret("alice");
    let keys = alice.public().encryption;
    let mine = agreement::PrivateKey::from_private_key(&agreement::X25519, alice.x25519_secret()).unwrap();
    let bob =
        agreement::PrivateKey::from_private_key(&agreement::X25519, secret("bob").x25519_secret()).unwrap();
    let theirs = agreement::UnparsedPublicKey::new(&agreement::X25519, bob.compute_public_key().unwrap());
    let published = agreement::UnparsedPublicKey::new(&agreement::X25519, keys.x25519.0);
    let one = agree(&mine, &theirs, (), |shared| Ok(shared.to_vec())).unwrap();
    let other = agree(&bob, published, (), |shared| Ok(shared.to_vec())).unwrap();
    assert_eq!(one, other);

    let (sealed, sent) = EncapsulationKey::new(&ML_KEM_768, &keys.ml_kem.0).unwrap().encapsulate().unwrap();
    let opener = DecapsulationKey::new(&ML_KEM_768, alice.ml_kem_secret()).unwrap();
    let received = opener.decapsulate(Ciphertext::from(sealed.as_ref())).unwrap();
    assert_eq!(received.as_ref(), sent.as_ref());
}

#[test]
fn a_signature_is_for_one_domain_one_text_and_one_member() {
    let alice = secret("alice");
    let signature = alice.sign("quorate/test/v1", b"text");
    for (domain, text, who, expected) in [
        ("quorate/test/v1", "text", "alice", true),
        ("quorate/test/v2", "text", "alice", false),
        ("quorate/test/v1", "texu", "alice", false),
        ("quorate/test/v1", "text", "bob", false),
    ] {
        let holds = signature_holds(&secret(who).public(), domain, text.as_bytes(), &signature);
        assert_eq!(holds, expected, "{domain} {text} {who}");
    }
}

#[test]
fn a_secret_does_not_show_itself() {
    let alice = secret("alice");
    let shown = format!("{alice:?}");
    assert_eq!(shown, format!("MemberSecret({})", alice.public().ed25519.short()));
}

//! Authenticator in software: passkeys from fixed seeds, and assertions with any part made wrong.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use protocol::keys::ByteString;
use protocol::passkey::P256Coordinate;
use protocol::{
    Digest, Passkey, PasskeyAssertion, PasskeyKey, PasskeyPolicy, PasskeyRegistration, PublicKey,
};

/// Flags: user present, user verified.
pub(crate) const PRESENT: u8 = 0x01;
pub(crate) const VERIFIED: u8 = 0x04;
/// Origin of the sample policy.
pub(crate) const ORIGIN: &str = "https://console.example.org";
pub(crate) const RP_ID: &str = "example.org";

/// Returns a policy under which passkeys count for routine changes.
pub(crate) fn passkey_policy() -> PasskeyPolicy {
    PasskeyPolicy { rp_id: RP_ID.into(), origins: [ORIGIN.to_string()].into(), routine: true }
}

enum AuthenticatorKey {
    Es256(EcdsaKeyPair, PasskeyKey),
    EdDsa(Ed25519KeyPair, PasskeyKey),
}

pub(crate) struct Authenticator {
    credential: Vec<u8>,
    key: AuthenticatorKey,
}

/// Parts of an answer, each of which a test may make wrong before it is signed.
#[derive(Clone)]
pub(crate) struct Ceremony {
    pub(crate) client_data: String,
    pub(crate) rp_id: String,
    pub(crate) flags: u8,
    pub(crate) counter: u32,
    /// Bytes behind the counter.
    pub(crate) rest: Vec<u8>,
}

impl Ceremony {
    /// Returns a sound ceremony for a challenge.
    pub(crate) fn of(challenge: &[u8], counter: u32) -> Self {
        Self {
            client_data: client_data("webauthn.get", challenge, ORIGIN),
            rp_id: RP_ID.into(),
            flags: PRESENT | VERIFIED,
            counter,
            rest: Vec::new(),
        }
    }

    fn authenticator_data(&self) -> Vec<u8> {
        [&sha256(self.rp_id.as_bytes())[..], &[self.flags], &self.counter.to_be_bytes(), &self.rest].concat()
    }
}

/// Returns client data as Chromium writes it.
pub(crate) fn client_data(ceremony: &str, challenge: &[u8], origin: &str) -> String {
    let challenge = base64url(challenge);
    format!(
        "{{\"type\":\"{ceremony}\",\"challenge\":\"{challenge}\",\"origin\":\"{origin}\",\"crossOrigin\":false}}"
    )
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("32 bytes")
}

/// Encodes bytes bit by bit, independently of the product.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['-', '_']).collect();
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let value =
        |part: &[u8]| (0..6).fold(0, |sum, at| sum * 2 + usize::from(part.get(at).copied().unwrap_or(0)));
    bits.chunks(6).map(|part| letters[value(part)]).collect()
}

impl Authenticator {
    /// Returns the ES256 authenticator of this name.
    pub(crate) fn es256(name: &str) -> Self {
        let private = Digest::of(name.as_bytes()).0;
        let key = PrivateKey::from_private_key(&ECDH_P256, &private).expect("a scalar");
        let public = key.compute_public_key().expect("a point").as_ref().to_vec();
        let pair =
            EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_ASN1_SIGNING, &private, &public);
        let coordinate = |from: usize| P256Coordinate(public[from..from + 32].try_into().expect("32 bytes"));
        let point = PasskeyKey::Es256 { x: coordinate(1), y: coordinate(33) };
        Self { credential: credential(name), key: AuthenticatorKey::Es256(pair.expect("a key"), point) }
    }

    /// Returns the EdDSA authenticator of this name.
    pub(crate) fn eddsa(name: &str) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&Digest::of(name.as_bytes()).0).expect("a seed");
        let key = PublicKey(pair.public_key().as_ref().try_into().expect("32 bytes"));
        Self { credential: credential(name), key: AuthenticatorKey::EdDsa(pair, PasskeyKey::EdDsa(key)) }
    }

    pub(crate) fn key(&self) -> PasskeyKey {
        match &self.key {
            AuthenticatorKey::Es256(_, key) | AuthenticatorKey::EdDsa(_, key) => key.clone(),
        }
    }

    pub(crate) fn passkey(&self, label: &str) -> Passkey {
        Passkey { credential: ByteString(self.credential.clone()), key: self.key(), label: label.into() }
    }

    /// Signs a ceremony as it is, sound or not.
    pub(crate) fn answer(&self, ceremony: &Ceremony) -> PasskeyAssertion {
        let data = ceremony.authenticator_data();
        let message = [&data[..], &sha256(ceremony.client_data.as_bytes())].concat();
        let signature = match &self.key {
            AuthenticatorKey::Es256(pair, _) => {
                pair.sign(&SystemRandom::new(), &message).expect("signed").as_ref().to_vec()
            }
            AuthenticatorKey::EdDsa(pair, _) => pair.sign(&message).as_ref().to_vec(),
        };
        PasskeyAssertion {
            credential: ByteString(self.credential.clone()),
            authenticator_data: ByteString(data),
            client_data: ByteString(ceremony.client_data.clone().into_bytes()),
            signature: ByteString(signature),
        }
    }

    /// Returns what follows the counter in a registration: model, credential and COSE key.
    pub(crate) fn attested(&self) -> Vec<u8> {
        let key = match self.key() {
            PasskeyKey::Es256 { x, y } => {
                let before = hex("a5010203262001215820");
                [&before[..], &x.0, &hex("225820"), &y.0].concat()
            }
            PasskeyKey::EdDsa(key) => [&hex("a4010103272006215820")[..], &key.0].concat(),
        };
        let length = u16::try_from(self.credential.len()).expect("short").to_be_bytes();
        [&[0xaa; 16][..], &length, &self.credential, &key].concat()
    }

    /// Returns a sound registration for this challenge, with some parts made wrong.
    pub(crate) fn registration(
        &self,
        challenge: &[u8],
        alter: impl FnOnce(&mut Ceremony),
    ) -> PasskeyRegistration {
        let mut ceremony = Ceremony::of(challenge, 0);
        ceremony.client_data = client_data("webauthn.create", challenge, ORIGIN);
        ceremony.flags |= 0x40;
        ceremony.rest = self.attested();
        alter(&mut ceremony);
        PasskeyRegistration {
            authenticator_data: ByteString(ceremony.authenticator_data()),
            client_data: ByteString(ceremony.client_data.into_bytes()),
            label: "phone".into(),
        }
    }
}

fn credential(name: &str) -> Vec<u8> {
    Digest::of(format!("credential of {name}").as_bytes()).0[..20].to_vec()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

//! Passkeys (WebAuthn credentials): registered keys, assertions, a circle's policy for them, and the form of
//! the client data that a browser makes. They carry no rules; `human-chain` verifies them.
//!
//! Bytes of an authenticator and of a browser are kept as received, since their signature covers exactly
//! these bytes. Client data is JSON that browsers extend, so unknown members are allowed, but none twice.

use crate::fixed_bytes::{ByteString, fixed_bytes};
use crate::keys::PublicKey;
use crate::limits::PASSKEY_CLIENT_DATA_BYTES_MAX;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Digest domain of the challenge for a ballot: the digest of the canonical ballot in this domain.
pub const PASSKEY_BALLOT_DOMAIN: &str = "quorate/passkey-ballot/v2";
/// Digest domain of the challenge for a halt: the digest of the canonical halt in this domain.
pub const PASSKEY_HALT_DOMAIN: &str = "quorate/passkey-halt/v1";
/// Digest domain of the challenge for a comment: the digest of the canonical comment in this domain.
pub const PASSKEY_COMMENT_DOMAIN: &str = "quorate/passkey-comment/v1";
/// Digest domain of the challenge for a registration: the digest of circle and member in this domain.
pub const PASSKEY_REGISTRATION_DOMAIN: &str = "quorate/passkey-registration/v1";
/// Digest domain of a passkey, for its words.
pub const PASSKEY_DOMAIN: &str = "quorate/passkey/v1";

fixed_bytes!(
    /// Coordinate of a point on the curve P-256, most significant byte first.
    P256Coordinate,
    32
);

/// Public key of a passkey, by its algorithm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub enum PasskeyKey {
    /// ECDSA on P-256 with SHA-256 (COSE algorithm -7).
    #[serde(rename = "es256")]
    Es256 {
        /// First coordinate of the point.
        x: P256Coordinate,
        /// Second coordinate of the point.
        y: P256Coordinate,
    },
    /// Ed25519 (COSE algorithm -8).
    #[serde(rename = "eddsa")]
    EdDsa(PublicKey),
}

/// Passkey that a member registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Passkey {
    /// Id of the credential, chosen by its authenticator: 1 to
    /// [`crate::limits::PASSKEY_CREDENTIAL_BYTES_MAX`] bytes.
    pub credential: ByteString,
    /// Public key of the credential.
    pub key: PasskeyKey,
    /// Name that the member gave the passkey.
    pub label: String,
}

/// Answer of an authenticator to a challenge, in the bytes in which the browser handed it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyAssertion {
    /// Id of the credential that signed.
    pub credential: ByteString,
    /// Authenticator data: relying party, flags and counter.
    pub authenticator_data: ByteString,
    /// Client data: JSON of the browser with ceremony, challenge and origin.
    pub client_data: ByteString,
    /// Signature over authenticator data and the digest of the client data: DER for ES256, 64 bytes for
    /// EdDSA.
    pub signature: ByteString,
}

/// New credential, as a browser hands it over: the file from which a member adds a passkey.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyRegistration {
    /// Authenticator data with the credential's id and public key.
    pub authenticator_data: ByteString,
    /// Client data: JSON of the browser with ceremony, challenge and origin.
    pub client_data: ByteString,
    /// Name that the member gives the passkey.
    pub label: String,
}

/// Policy of a circle for passkeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasskeyPolicy {
    /// Relying party: a domain, or `localhost`. Authenticators bind each passkey to it.
    pub rp_id: String,
    /// Origins of the pages that may ask for a passkey, at or below the relying party's domain.
    pub origins: BTreeSet<String>,
    /// True if ballots by passkey count towards the quorum of routine changes, beside a hybrid one.
    pub routine: bool,
}

/// Client data of a WebAuthn ceremony (WebAuthn level 3, section 5.8.1), as far as a verifier reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientData {
    /// Member `type`: `webauthn.get` or `webauthn.create`.
    pub ceremony: String,
    /// Member `challenge`: base64url without padding.
    pub challenge: String,
    /// Member `origin`: origin of the page.
    pub origin: String,
    /// True if the page was framed by one of another origin.
    pub is_cross_origin: bool,
}

impl ClientData {
    /// Reads client data from the bytes of a browser.
    ///
    /// # Errors
    /// Returns a text for people when the bytes are too many, or are not the JSON of client data.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > PASSKEY_CLIENT_DATA_BYTES_MAX {
            let (length, most) = (bytes.len(), PASSKEY_CLIENT_DATA_BYTES_MAX);
            return Err(format!("client data of {length} bytes; accepted: at most {most}"));
        }
        let read = serde_json::from_slice(bytes);
        debug_assert!(read.is_err() || bytes.contains(&b'{'), "client data is an object");
        read.map_err(|error| format!("client data is malformed: {error}"))
    }
}

impl<'de> Deserialize<'de> for ClientData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClientDataVisitor)
    }
}

/// Visitor of client data. A derived one would take a list for an object, and members twice if unknown.
struct ClientDataVisitor;

impl<'de> Visitor<'de> for ClientDataVisitor {
    type Value = ClientData;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object with `type`, `challenge` and `origin`")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<ClientData, M::Error> {
        let mut seen = BTreeSet::new();
        let (mut ceremony, mut challenge, mut origin) = (None, None, None);
        let mut is_cross_origin = false;
        while let Some(member) = map.next_key::<String>()? {
            match member.as_str() {
                "type" => ceremony = Some(map.next_value()?),
                "challenge" => challenge = Some(map.next_value()?),
                "origin" => origin = Some(map.next_value()?),
                "crossOrigin" => is_cross_origin |= map.next_value::<bool>()?,
                // A browser names the top origin only if it is another one.
                "topOrigin" => {
                    map.next_value::<IgnoredAny>()?;
                    is_cross_origin = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if !seen.insert(member) {
                return Err(M::Error::custom("a member stands in it twice"));
            }
        }
        let missing = M::Error::missing_field;
        debug_assert!(seen.len() >= 3 || ceremony.is_none() || challenge.is_none() || origin.is_none());
        Ok(ClientData {
            ceremony: ceremony.ok_or_else(|| missing("type"))?,
            challenge: challenge.ok_or_else(|| missing("challenge"))?,
            origin: origin.ok_or_else(|| missing("origin"))?,
            is_cross_origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"{"type":"webauthn.get","challenge":"AAEC","origin":"https://a.example"}"#;

    fn with(member: &str) -> String {
        SOUND.replace('}', &format!(",{member}}}"))
    }

    #[test]
    fn client_data_is_read_as_browsers_write_it() {
        for (text, is_cross_origin) in [
            (SOUND.to_string(), false),
            (with(r#""crossOrigin":false"#), false),
            (
                with(r#""other_keys_can_be_added_here":"do not compare {\"a\":[1]} against a template""#),
                false,
            ),
            (with(r#""tokenBinding":{"status":"supported"}"#), false),
            (with(r#""crossOrigin":true"#), true),
            (with(&format!("\"deep\":{}{}", "[".repeat(700), "]".repeat(700))), false),
            (with(r#""topOrigin":"https://b.example""#), true),
            (with(r#""crossOrigin":false,"topOrigin":null"#), true),
        ] {
            let read = ClientData::read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((read.ceremony.as_str(), read.challenge.as_str()), ("webauthn.get", "AAEC"), "{text}");
            assert_eq!((read.origin.as_str(), read.is_cross_origin), ("https://a.example", is_cross_origin));
        }
    }

    /// Attack: a member that stands twice, of which one reader sees the first and another the last.
    #[test]
    fn a_member_that_stands_twice_is_refused() {
        for member in ["\"type\":\"webauthn.get\"", "\"origin\":\"https://b.example\"", "\"challenge\":\"x\""]
        {
            let text = with(member);
            // Positive control: a common reader takes one of the two silently.
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            let error = ClientData::read(text.as_bytes()).expect_err("a second one");
            assert!(error.contains("twice"), "{error}");
        }
        assert!(ClientData::read(with(r#""new":1,"new":1"#).as_bytes()).is_err(), "unknown members too");
        assert!(
            ClientData::read(with(r#""\u006frigin":"https://b.example""#).as_bytes()).is_err(),
            "escaped"
        );
    }

    #[test]
    fn what_is_no_client_data_is_refused() {
        let long = with(&format!("\"pad\":\"{}\"", "x".repeat(PASSKEY_CLIENT_DATA_BYTES_MAX)));
        for (text, expected) in [
            ("", "malformed"),
            ("null", "malformed"),
            ("[\"webauthn.get\",\"AAEC\",\"https://a.example\",false]", "malformed"),
            ("{}", "missing field `type`"),
            (SOUND.replace("\"type\"", "\"Type\"").as_str(), "missing field `type`"),
            (SOUND.replace("\"AAEC\"", "7").as_str(), "malformed"),
            (with("\"crossOrigin\":0").as_str(), "malformed"),
            (format!("{SOUND} {{}}").as_str(), "malformed"),
            (format!("{SOUND}\u{0}").as_str(), "malformed"),
            (format!("\u{feff}{SOUND}").as_str(), "malformed"),
            (long.as_str(), "accepted: at most"),
        ] {
            let error = ClientData::read(text.as_bytes()).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(ClientData::read(b"{\"type\":\"\xff\"}").is_err(), "no UTF-8");
    }
}

//! Messages between the command line and an external signer: one JSON document each way.

use human_chain::Statement;
use protocol::Digest;
use protocol::MemberId;
use protocol::keys::{ByteString, HybridSignature, MemberKeys};
use protocol::model::KeyWrap;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

/// Version of both messages.
const FORMAT: &str = "quorate-signer/1";
/// Maximum size of an answer in bytes: a signature has 6,746 digits, the public keys have 6,400.
pub(super) const ANSWER_BYTES_MAX: usize = 32 * 1024;

/// Request to a signer.
#[derive(Debug, Serialize)]
pub(super) struct SignerRequest<'a> {
    format: &'static str,
    /// Member whose keys are asked for.
    member: &'a MemberId,
    operation: SignerOperation<'a>,
}

impl<'a> SignerRequest<'a> {
    pub(super) fn new(member: &'a MemberId, operation: SignerOperation<'a>) -> Self {
        Self { format: FORMAT, member, operation }
    }
}

/// Request to a signer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SignerOperation<'a> {
    /// The public keys.
    Keys {},
    /// Both signatures of a statement.
    Sign {
        /// Signature domain: the kind of the statement.
        domain: &'a str,
        /// The statement for people, in a line.
        summary: &'a str,
        /// The document that the statement is about; empty if it is about none.
        text: &'a str,
        /// Canonical CBOR of the statement, in full.
        statement: ByteString,
        /// BLAKE3 digest of the statement in its domain: the 32 bytes to sign.
        digest: Digest,
    },
    /// The shared secrets of a wrapped model key.
    Unwrap {
        /// The wrap, made for the member's encryption key.
        wrap: &'a KeyWrap,
    },
}

impl<'a> SignerOperation<'a> {
    /// Returns the request to sign a statement.
    pub(super) fn of(statement: &'a Statement) -> Self {
        Self::Sign {
            domain: statement.domain,
            summary: &statement.summary,
            text: &statement.text,
            statement: ByteString(statement.bytes.clone()),
            digest: Digest(statement.digest()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignerAnswer {
    format: String,
    answer: AnswerBody,
}

/// Answer of a signer.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum AnswerBody {
    Keys(MemberKeys),
    Signature(HybridSignature),
    SharedSecrets(SharedSecretText),
    /// The signer or its person refuses, for this reason.
    Refused(String),
}

/// Shared secrets of a wrap, each 32 bytes in hex.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedSecretText {
    #[serde(deserialize_with = "secret")]
    pub(super) x25519: Zeroizing<[u8; 32]>,
    #[serde(deserialize_with = "secret")]
    pub(super) ml_kem: Zeroizing<[u8; 32]>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<[u8; 32]>, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    let mut secret = Zeroizing::new([0; 32]);
    // The error repeats no digit of the secret.
    hex::decode_to_slice(text.as_bytes(), &mut *secret)
        .map_err(|_| serde::de::Error::custom("a shared secret must be 64 hexadecimal digits"))?;
    Ok(secret)
}

/// Encodes a request.
pub(super) fn encode(request: &SignerRequest) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(request).expect("a request has string keys only");
    bytes.push(b'\n');
    bytes
}

/// Decodes an answer.
///
/// # Errors
/// Returns the reason for people if the bytes are no answer of this version.
pub(super) fn decode(bytes: &[u8]) -> Result<AnswerBody, String> {
    debug_assert!(bytes.len() <= ANSWER_BYTES_MAX, "the reader has a limit");
    // The error of the parser could repeat a part of a secret.
    let answer: SignerAnswer = serde_json::from_slice(bytes).map_err(|error| {
        format!("its answer is none of {FORMAT} (line {}, column {})", error.line(), error.column())
    })?;
    if answer.format == FORMAT { Ok(answer.answer) } else { Err(format!("its answer is none of {FORMAT}")) }
}

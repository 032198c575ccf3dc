//! Signers: what a member's key signs, as a value, and the holders of such keys.
//!
//! A signer is a secret in memory, which signs at once, or a program outside, which may fail. Each function
//! that signs takes either, and its result is the signer's: the signed value itself, or an outcome. A
//! statement carries the text that its member reads, so that a program can show it before it signs.

use crate::MemberSecret;
use protocol::keys::{HybridSignature, MemberKeys};

/// A statement that a member signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Signature domain, such as [`protocol::governance::BALLOT_DOMAIN`].
    pub domain: &'static str,
    /// Canonical bytes of what is signed, in full.
    pub bytes: Vec<u8>,
    /// The act for people, in a line.
    pub summary: String,
    /// The document that a ballot or a genesis is about, as its member reads it; empty for other statements.
    /// A ballot names the digest of its text.
    pub text: String,
}

impl Statement {
    /// Returns a statement that is about no document.
    pub(crate) fn new(domain: &'static str, bytes: Vec<u8>, summary: String) -> Self {
        debug_assert!(!bytes.is_empty(), "a statement states something");
        Self { domain, bytes, summary, text: String::new() }
    }

    /// Returns the 32 bytes that both keys sign: the digest of the statement in its domain.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        debug_assert!(self.domain.starts_with("quorate/"), "`{}` is no domain of ours", self.domain);
        protocol::keys::signing_input(self.domain, &self.bytes)
    }
}

/// Holder of a member's keys.
pub trait MemberSigner {
    /// Result of signing: the value itself, or an outcome if the signer can fail.
    type Signed<T>;

    /// Returns the public keys.
    fn public_keys(&self) -> MemberKeys;

    /// Signs a statement, and returns what `complete` makes of the signature.
    fn sign_statement<T>(
        &self,
        statement: &Statement,
        complete: impl FnOnce(HybridSignature) -> T,
    ) -> Self::Signed<T>;
}

impl MemberSigner for MemberSecret {
    type Signed<T> = T;

    fn public_keys(&self) -> MemberKeys {
        self.public()
    }

    fn sign_statement<T>(
        &self,
        statement: &Statement,
        complete: impl FnOnce(HybridSignature) -> T,
    ) -> Self::Signed<T> {
        debug_assert!(!statement.summary.is_empty(), "a person reads what is signed");
        complete(self.sign(statement.domain, &statement.bytes))
    }
}

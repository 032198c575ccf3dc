//! Grants of access as this machine makes them, before a member signs them.

use human_chain::MemberSigner;
use protocol::access::{ACCESS_VERSION, AccessGrant, GrantedAccess};
use protocol::{CircleId, Digest, MemberId, Millis, TokenName};

/// Terms of a grant.
#[derive(Debug, Clone)]
pub struct GrantTerms {
    /// Circle that the grant belongs to.
    pub circle: CircleId,
    /// Certificate of the access envelope; of that in genesis, the circle's id.
    pub envelope: Digest,
    /// Person or application that holds the secret.
    pub holder: TokenName,
    /// Access that the holder gets.
    pub access: GrantedAccess,
    /// Validity in seconds.
    pub valid_seconds: u32,
}

/// Returns the grant of a secret on these terms, from this time on, for its issuer to sign.
#[must_use]
pub fn unsigned_grant(
    terms: GrantTerms,
    issuer: &MemberId,
    signer: &impl MemberSigner,
    secret: &str,
    now: Millis,
) -> AccessGrant {
    let GrantTerms { circle, envelope, holder, access, valid_seconds } = terms;
    AccessGrant {
        version: ACCESS_VERSION,
        circle,
        envelope,
        issuer: issuer.clone(),
        signer: signer.public_keys().ed25519,
        holder,
        access,
        secret: Digest::of(secret.as_bytes()),
        issued_at: now,
        expires_at: now.plus(u64::from(valid_seconds) * 1000),
    }
}

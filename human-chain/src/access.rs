//! Access: the envelope that the circle votes, grants within it by single members, and their revocations.
//!
//! A grant is verified when a party takes it, and judged again whenever it is used. It stands while it fits
//! the envelope in force, its issuer has the keys that signed it, and neither its time nor a revocation ended
//! it. Every party asks [`check_grant_stands`], and no other function, which grants count.

mod book;
mod envelope;

pub(crate) use envelope::{check_envelope, check_services};

pub use book::{AccessBook, FoundGrant};

use crate::{ChainError, CircleState, MemberSigner, Statement, show_time, signature_holds};
use protocol::access::{
    ACCESS_RECORD_BYTES_MAX, ACCESS_VERSION, AccessEnvelope, AccessGrant, AccessRevocation, GRANT_DOMAIN,
    GrantedAccess, REVOCATION_DOMAIN, SignedGrant, SignedRevocation,
};
use protocol::canonical::to_bytes;
use protocol::governance::TokenScope;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{GrantId, MemberId, Millis, ServiceName};
use std::collections::BTreeSet;

/// Grant whose signature was verified. Only [`check_grant`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedGrant {
    id: GrantId,
    signed: SignedGrant,
}

impl VerifiedGrant {
    /// Returns the id of the grant.
    #[must_use]
    pub fn id(&self) -> GrantId {
        self.id
    }

    /// Returns the grant.
    #[must_use]
    pub fn grant(&self) -> &AccessGrant {
        &self.signed.grant
    }
}

/// Revocation whose signature was verified. Only [`check_revocation`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRevocation {
    id: GrantId,
    signed: SignedRevocation,
}

impl VerifiedRevocation {
    /// Returns the id of the grant that ends.
    #[must_use]
    pub fn id(&self) -> GrantId {
        self.id
    }

    /// Returns the revocation.
    #[must_use]
    pub fn revocation(&self) -> &AccessRevocation {
        &self.signed.revocation
    }
}

/// Signs a grant with its issuer's keys.
#[must_use]
pub fn sign_grant<S: MemberSigner>(signer: &S, grant: AccessGrant) -> S::Signed<SignedGrant> {
    let summary = format!("Grant {}.", describe_grant(&grant));
    let statement = Statement::new(GRANT_DOMAIN, to_bytes(&grant), summary);
    signer.sign_statement(&statement, |signature| SignedGrant { grant, signature })
}

/// Signs a revocation with its member's keys.
#[must_use]
pub fn sign_revocation<S: MemberSigner>(
    signer: &S,
    revocation: AccessRevocation,
) -> S::Signed<SignedRevocation> {
    let AccessRevocation { grant, member, .. } = &revocation;
    let summary = format!("Revoke {} as {member}.", describe_grant(grant));
    let statement = Statement::new(REVOCATION_DOMAIN, to_bytes(&revocation), summary);
    signer.sign_statement(&statement, |signature| SignedRevocation { revocation, signature })
}

/// Returns a grant in words: `bob the access token (read, propose) until 2026-12-01 10:00:00 UTC`.
#[must_use]
pub fn describe_grant(grant: &AccessGrant) -> String {
    let AccessGrant { holder, access, expires_at, .. } = grant;
    let access = match access {
        GrantedAccess::Token { scopes } => format!("the access token ({})", scopes_text(scopes)),
        GrantedAccess::Key { services, .. } => {
            format!("an inference key for {}", services_text(services.as_ref()))
        }
    };
    format!("{holder} {access} until {}", show_time(*expires_at))
}

/// Returns scopes as a list: `read, propose`.
pub(crate) fn scopes_text(scopes: &BTreeSet<TokenScope>) -> String {
    let names: Vec<String> = scopes.iter().map(TokenScope::to_string).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Returns services as a list: `chat, embed`, or `every service`.
pub(crate) fn services_text(services: Option<&BTreeSet<ServiceName>>) -> String {
    let Some(services) = services else { return "every service".into() };
    let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    if names.is_empty() { "no service".into() } else { names.join(", ") }
}

/// Returns whether this member may grant access: the envelope in force names it. If no member that it names
/// is active any more, every active member may, so that the circle is never locked out.
#[must_use]
pub fn may_grant(state: &CircleState, member: &MemberId) -> bool {
    let is_active = |id: &MemberId| state.active_member(id).is_ok();
    let grantors = &state.access().grantors;
    is_active(member) && (grantors.contains(member) || !grantors.iter().any(is_active))
}

/// Verifies a grant that is not known yet, at this time.
///
/// # Errors
/// Returns the first check that fails, in this order: size and form; those of [`check_grant_stands`]; a time
/// of signing in the future, which would prolong the grant; the signature by both keys of the issuer.
pub fn check_grant(
    state: &CircleState,
    signed: SignedGrant,
    now: Millis,
) -> Result<VerifiedGrant, ChainError> {
    check_size(to_bytes(&signed).len())?;
    let grant = &signed.grant;
    check_grant_stands(state, grant, now)?;
    if grant.issued_at > now.plus(CLOCK_GRACE_MS) {
        let (issued, now) = (show_time(grant.issued_at), show_time(now));
        return Err(ChainError::GrantOutsideEnvelope(format!("it is signed at {issued}, and it is {now}")));
    }
    let issuer = state.active_member(&grant.issuer)?;
    if !signature_holds(&issuer.keys, GRANT_DOMAIN, &to_bytes(grant), &signed.signature) {
        return Err(ChainError::SignatureInvalid(grant.issuer.clone()));
    }
    debug_assert!(may_grant(state, &grant.issuer), "a grant that is taken is by a member that may grant");
    Ok(VerifiedGrant { id: grant.id(), signed })
}

/// Checks that a grant stands by the circle's state at this time, but for its signature and a revocation.
///
/// # Errors
/// Returns the first check that fails, in this order: form and circle; the envelope that it names; its issuer
/// and the issuer's keys; its access and its validity within the envelope in force; its expiry.
pub fn check_grant_stands(state: &CircleState, grant: &AccessGrant, now: Millis) -> Result<(), ChainError> {
    check_form(state, grant)?;
    if !state.access_counts(&grant.envelope) {
        return Err(ChainError::GrantEnvelopeEnded(grant.envelope));
    }
    let issuer = state.active_member(&grant.issuer)?;
    if !may_grant(state, &grant.issuer) {
        return Err(ChainError::GrantorRefused(grant.issuer.clone()));
    }
    if issuer.keys.ed25519 != grant.signer {
        return Err(ChainError::SignatureInvalid(grant.issuer.clone()));
    }
    check_within(state.access(), grant).map_err(ChainError::GrantOutsideEnvelope)?;
    if grant.expires_at <= now {
        return Err(ChainError::GrantExpired { expired_at: grant.expires_at, now });
    }
    Ok(())
}

fn check_size(length: usize) -> Result<(), ChainError> {
    if length > ACCESS_RECORD_BYTES_MAX {
        let reason = format!("{length} bytes; accepted: at most {ACCESS_RECORD_BYTES_MAX}");
        return Err(ChainError::invalid("grant", reason));
    }
    Ok(())
}

/// Checks that a grant belongs to this circle and has the form of one.
fn check_form(state: &CircleState, grant: &AccessGrant) -> Result<(), ChainError> {
    let refuse = |reason: String| Err(ChainError::invalid("grant", reason));
    check_version(grant.version)?;
    if grant.circle != state.id() {
        return Err(ChainError::OtherCircle { expected: state.id(), actual: grant.circle });
    }
    match &grant.access {
        GrantedAccess::Token { scopes } if scopes.is_empty() => {
            refuse("a token without scopes can do nothing".into())
        }
        GrantedAccess::Key { requests_per_minute: Some(0), .. } => {
            refuse("a key for 0 requests per minute can do nothing".into())
        }
        GrantedAccess::Key { services, .. } => {
            check_services(services.as_ref()).map_err(|reason| ChainError::invalid("grant", reason))
        }
        GrantedAccess::Token { .. } => Ok(()),
    }
}

fn check_version(version: u32) -> Result<(), ChainError> {
    if version != ACCESS_VERSION {
        let reason = format!("is of format {version}; this release reads {ACCESS_VERSION}");
        return Err(ChainError::invalid("grant", reason));
    }
    Ok(())
}

/// Checks access and validity of a grant against an envelope; an error says what exceeds it.
fn check_within(envelope: &AccessEnvelope, grant: &AccessGrant) -> Result<(), String> {
    match &grant.access {
        GrantedAccess::Token { scopes } => {
            if let Some(scope) = scopes.difference(&envelope.scopes).next() {
                return Err(format!("the envelope allows no token with the scope `{scope}`"));
            }
        }
        GrantedAccess::Key { services, .. } => {
            let within = match (services, &envelope.services) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(asked), Some(allowed)) => asked.is_subset(allowed),
            };
            if !within {
                let (asked, allowed) =
                    (services_text(services.as_ref()), services_text(envelope.services.as_ref()));
                return Err(format!("the envelope allows keys for {allowed}, not for {asked}"));
            }
        }
    }
    let seconds = grant.expires_at.0.saturating_sub(grant.issued_at.0).div_ceil(1000);
    if grant.expires_at <= grant.issued_at || seconds > u64::from(envelope.seconds_max) {
        let most = envelope.seconds_max;
        return Err(format!("it is valid for {seconds} s; accepted: 1 to {most}"));
    }
    Ok(())
}

/// Verifies a revocation: by the issuer of the grant, or by a member that may grant access.
///
/// # Errors
/// Returns the first check that fails, in this order: size and form; the member, its suspension and its
/// right; the signature by both of its keys in force.
pub fn check_revocation(
    state: &CircleState,
    signed: SignedRevocation,
) -> Result<VerifiedRevocation, ChainError> {
    check_size(to_bytes(&signed).len())?;
    let AccessRevocation { version, grant, member, issued_at: _ } = &signed.revocation;
    check_version(*version)?;
    check_form(state, grant)?;
    let keys = &state.active_member(member)?.keys;
    if *member != grant.issuer && !may_grant(state, member) {
        return Err(ChainError::GrantorRefused(member.clone()));
    }
    if !signature_holds(keys, REVOCATION_DOMAIN, &to_bytes(&signed.revocation), &signed.signature) {
        return Err(ChainError::SignatureInvalid(member.clone()));
    }
    Ok(VerifiedRevocation { id: grant.id(), signed })
}

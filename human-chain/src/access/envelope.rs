//! The rules of form of an access envelope.

use crate::ChainError;
use protocol::access::{AccessEnvelope, GRANT_SECONDS_MAX, GRANT_SERVICES_MAX, GRANTS_MAX};
use protocol::governance::TokenScope;
use protocol::{MemberId, ServiceName};
use std::collections::BTreeSet;

/// Checks the rules of form of an envelope for these members. Each envelope lets a member grant a token that
/// reads and proposes, so that no vote locks the circle out of its own control API.
pub(crate) fn check_envelope(
    envelope: &AccessEnvelope,
    members: &BTreeSet<&MemberId>,
) -> Result<(), ChainError> {
    let AccessEnvelope { grantors, scopes, tokens_max, services, keys_max, seconds_max, ends_earlier: _ } =
        envelope;
    let refuse = |reason: String| Err(ChainError::invalid("access", reason));
    if let Some(outsider) = grantors.iter().find(|grantor| !members.contains(grantor)) {
        return refuse(format!("`{outsider}` is to grant access, and is no member"));
    }
    if grantors.is_empty() {
        return refuse("names no member that may grant access".into());
    }
    if !scopes.contains(&TokenScope::Read) || !scopes.contains(&TokenScope::Propose) {
        return refuse("lets no token read and propose, so that no other envelope could be voted".into());
    }
    let count = u64::from(*tokens_max) + u64::from(*keys_max);
    if *tokens_max == 0 || count > GRANTS_MAX as u64 {
        return refuse(format!(
            "{tokens_max} tokens and {keys_max} keys; accepted: 1 token or more, {GRANTS_MAX} of both at most"
        ));
    }
    if !(1..=GRANT_SECONDS_MAX).contains(seconds_max) {
        return refuse(format!("{seconds_max} s of validity; accepted: 1 to {GRANT_SECONDS_MAX}"));
    }
    check_services(services.as_ref()).map_err(|reason| ChainError::invalid("access", reason))
}

/// Checks the number of services that an envelope or a grant names.
pub(crate) fn check_services(services: Option<&BTreeSet<ServiceName>>) -> Result<(), String> {
    match services.map(BTreeSet::len) {
        Some(count) if count == 0 || count > GRANT_SERVICES_MAX => {
            Err(format!("{count} services; accepted: 1 to {GRANT_SERVICES_MAX}, or every service"))
        }
        Some(_) | None => Ok(()),
    }
}

//! Access to the control API and to services: granted and revoked by single members, within the envelope.
//!
//! The log orders the grants, so that their number and their holders are the same on every replica. It adds
//! no authority: agents verify each grant and each revocation themselves.

use super::known::circle;
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::command::{Actor, Refusal, Reply};
use human_chain::{ChainError, CircleState, check_grant, check_revocation};
use protocol::access::{AccessGrant, GRANTS_PER_HOLDER_MAX, GrantedAccess, SignedGrant, SignedRevocation};
use protocol::error_code::GRANT_NOT_FOUND;

/// Takes a grant. The same grant again changes nothing.
pub(super) fn grant(cluster: &mut Cluster, signed: &SignedGrant) -> Result<Reply, Refusal> {
    let grant = &signed.grant;
    let id = grant.id();
    if cluster.access.contains(&id) {
        return Ok(Reply::Done);
    }
    if cluster.access.is_revoked(&id) {
        return Err(ChainError::GrantRevoked(id).into());
    }
    let state = circle(cluster)?;
    let verified = check_grant(state, signed.clone(), cluster.now.0)?;
    check_room(cluster, state, grant)?;
    let is_new = cluster.access.accept(verified)?;
    debug_assert!(is_new, "a grant that is known was found before");
    record(cluster, &Actor::Member(grant.issuer.clone()), "issue", grant);
    Ok(Reply::Done)
}

/// Checks that the holder has at most one other grant of this kind, which this one succeeds; that no grant
/// names the same secret; and that the envelope has room for one more.
fn check_room(cluster: &Cluster, state: &CircleState, grant: &AccessGrant) -> Result<(), ChainError> {
    let kind = grant.access.kind();
    let same_kind = |other: &&AccessGrant| other.access.kind() == kind;
    let standing = cluster.access.standing(state, cluster.now.0).map(|(_, signed)| &signed.grant);
    let standing: Vec<&AccessGrant> = standing.filter(same_kind).collect();
    let (what, most) = match grant.access {
        GrantedAccess::Token { .. } => ("access tokens", state.access().tokens_max),
        GrantedAccess::Key { .. } => ("inference keys", state.access().keys_max),
    };
    let held = standing.iter().filter(|other| other.holder == grant.holder).count();
    if held >= GRANTS_PER_HOLDER_MAX || cluster.access.find(&grant.secret).is_some() {
        return Err(ChainError::GrantTaken { holder: grant.holder.clone(), what });
    }
    if standing.len() as u64 >= u64::from(most) {
        return Err(ChainError::TooManyGrants { what, most: most.into() });
    }
    Ok(())
}

/// Takes a revocation of a grant that is known. The same grant revoked again changes nothing.
pub(super) fn revoke(cluster: &mut Cluster, signed: &SignedRevocation) -> Result<Reply, Refusal> {
    let revocation = &signed.revocation;
    let id = revocation.grant.id();
    if cluster.access.is_revoked(&id) {
        return Ok(Reply::Done);
    }
    if !cluster.access.contains(&id) {
        let (kind, holder) = (revocation.grant.access.kind(), &revocation.grant.holder);
        return Err(Refusal::new(GRANT_NOT_FOUND, format!("no {kind} of `{holder}` is this grant")));
    }
    let verified = check_revocation(circle(cluster)?, signed.clone())?;
    let is_new = cluster.access.revoke(verified)?;
    debug_assert!(is_new, "a revocation that is known was found before");
    record(cluster, &Actor::Member(revocation.member.clone()), "revoke", &revocation.grant);
    Ok(Reply::Done)
}

fn record(cluster: &mut Cluster, actor: &Actor, verb: &str, grant: &AccessGrant) {
    let kind = grant.access.kind();
    let (action, subject) = (format!("{verb}-{kind}"), format!("{kind}/{}", grant.holder));
    let detail = format!("grant {}", grant.id().short());
    cluster.audit.record(cluster.now, &actor.to_string(), &action, &subject, &detail);
}

/// Forgets the grants that stand no longer, and the revocations of those that would have expired.
pub(super) fn prune(cluster: &mut Cluster) {
    let until = forgotten_until(cluster, cluster.now);
    if let Some(circle) = &cluster.circle {
        cluster.access.prune(&circle.state, until.0);
    }
}

/// Returns the time up to which expired grants are forgotten. A grant that expires does not stand, and is
/// kept until a signed decision attests a later time or room is needed: the clocks of a majority may have
/// leapt ahead, and a grant stands again once they are right.
pub(super) fn forgotten_until(cluster: &Cluster, now: ClusterTime) -> ClusterTime {
    if cluster.access.is_half_full() { now } else { cluster.signed_floor() }
}

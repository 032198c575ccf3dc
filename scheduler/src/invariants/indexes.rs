//! Rules about what is stored twice: indexes, totals and numbers.

use super::Invariant::{AuditNumbered, ChainIndex, OutcomeIndex, RecordedInPast};
use super::{InvariantResult, ensure};
use crate::cluster::Cluster;

pub(super) fn check(cluster: &Cluster) -> InvariantResult {
    if let Some(circle) = &cluster.circle {
        let certificates = circle.chain.iter().map(|bundle| bundle.certificate.digest());
        let agrees = circle.positions.len() == circle.chain.len()
            && certificates.enumerate().all(|(at, digest)| circle.positions.get(&digest) == Some(&at));
        let created = circle.chain.iter().map(|bundle| bundle.certificate.proposal.created_at);
        let agrees = agrees && created.max().unwrap_or_default() == circle.latest_created_at;
        ensure(agrees, ChainIndex, || format!("{} certificates", circle.chain.len()))?;
    }
    let audit = &cluster.audit;
    ensure(audit.is_numbered(), AuditNumbered, || format!("{} events", audit.recorded()))?;
    let outcomes = &cluster.outcomes;
    ensure(outcomes.is_consistent(), OutcomeIndex, || "recorded outcomes".to_string())?;
    let led_since = cluster.leadership.map(|leadership| leadership.since).unwrap_or_default();
    let last = led_since.max(audit.last_at()).max(outcomes.last_at());
    let last = last.max(cluster.signed_floor());
    ensure(last <= cluster.now, RecordedInPast, || format!("{last:?} is after {:?}", cluster.now))
}

//! Access: grants and revocations that single members signed.
//!
//! Neither needs an access token, since its signature is its authority: a member without a token could get
//! none otherwise. A request that signs nothing new writes nothing to the log.

use super::{ApiResult, DONE, Done};
use crate::server::Server;
use crate::server::extract::LeaderRead;
use crate::server::paging::{PageParameters, PageRequest, PagedList};
use crate::server::polls::hold;
use crate::server::problem::{Failure, accepted};
use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use human_chain::{ChainError, CircleState, check_grant, check_revocation};
use protocol::access::{ACCESS_RECORD_BYTES_MAX, AccessAnswer, AccessRequest, SignedGrant, SignedRevocation};
use protocol::api::Page;
use protocol::limits::{JSON_BYTES_PER_CANONICAL_BYTE, POLL_WAIT_MS_MAX};
use protocol::{GrantId, Refusal, error_code};
use scheduler::{Action, Actor, Cluster, ClusterTime};
use std::sync::Arc;
use std::time::Duration;

/// Maximum size of a signed grant or revocation as JSON, in bytes.
pub(super) const BODY_BYTES_MAX: usize = ACCESS_RECORD_BYTES_MAX * JSON_BYTES_PER_CANONICAL_BYTE;

/// A page of the grants that stand, by id: access tokens and inference keys, with the digests of their
/// secrets. A client verifies each signature.
#[utoipa::path(get, path = "/v1/access/grants", params(PageParameters),
    responses((status = 200, body = Page<SignedGrant>)), tag = "access")]
pub(super) async fn grants(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<SignedGrant>> {
    let page: PageRequest<GrantId> = PageRequest::of(PagedList::Grants, query)?;
    let standing: Vec<(GrantId, SignedGrant)> = server.judge_access(|cluster, circle, now| {
        let standing = cluster.access().standing(circle, now.0);
        let behind = standing.filter(|(id, _)| page.after.is_none_or(|after| **id > after));
        Ok(behind.map(|(id, signed)| (*id, signed.clone())).collect())
    })?;
    let (items, next_page_token) = page.take(standing.into_iter());
    Ok(Json(Page { items, next_page_token }))
}

/// Grants access by one member's signature, within the access envelope. The same grant may be sent again.
#[utoipa::path(post, path = "/v1/access/grants", request_body = SignedGrant,
    responses((status = 200, body = Done)), tag = "access")]
pub(super) async fn grant(
    State(server): State<Arc<Server>>,
    body: Result<Json<SignedGrant>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(signed) = body?;
    let id = signed.grant.id();
    let is_known = server.judge_access(|cluster, circle, now| {
        if cluster.access().contains(&id) {
            return Ok(true);
        }
        if cluster.access().is_revoked(&id) {
            return Err(ChainError::GrantRevoked(id));
        }
        check_grant(circle, signed.clone(), now.0).map(|_| false)
    })?;
    let issuer = signed.grant.issuer.clone();
    server.write_signed(is_known, Actor::Member(issuer), Action::GrantAccess(Box::new(signed))).await
}

/// Revokes a grant permanently, by the signature of its issuer or of a member that may grant access. The same
/// revocation may be sent again.
#[utoipa::path(post, path = "/v1/access/revocations", request_body = SignedRevocation,
    responses((status = 200, body = Done)), tag = "access")]
pub(super) async fn revoke(
    State(server): State<Arc<Server>>,
    body: Result<Json<SignedRevocation>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(signed) = body?;
    let id = signed.revocation.grant.id();
    let is_known = server.judge_access(|cluster, circle, _| match cluster.access().is_revoked(&id) {
        true => Ok(true),
        false => check_revocation(circle, signed.clone()).map(|_| false),
    })?;
    let member = signed.revocation.member.clone();
    server.write_signed(is_known, Actor::Member(member), Action::RevokeAccess(Box::new(signed))).await
}

impl Server {
    /// Judges something by the circle's state here and the present time, at a leader.
    fn judge_access<R>(
        &self,
        judge: impl FnOnce(&Cluster, &CircleState, ClusterTime) -> Result<R, ChainError>,
    ) -> Result<R, Failure> {
        if self.lock_leadership().is_none() {
            return Err(self.not_leader());
        }
        let clocks = self.clocks.readings();
        let missing = || Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet");
        self.cluster(|cluster| {
            let circle = cluster.circle_state().ok_or_else(missing)?;
            Ok(judge(cluster, circle, cluster.time(&clocks)).map_err(Refusal::from)?)
        })
    }

    /// Writes what a member signed to the log, unless it is there.
    async fn write_signed(&self, is_known: bool, actor: Actor, action: Action) -> ApiResult<Done> {
        if !is_known {
            accepted(self.command(actor, action).await?)?;
        }
        Ok(DONE)
    }

    /// Returns the grants and revocations after a request's position, as soon as there are any, or when the
    /// wait is over. Any replica answers, as far as it has applied the log.
    pub(crate) async fn access_after(&self, request: AccessRequest) -> AccessAnswer {
        let wait = Duration::from_millis(request.wait_ms.min(POLL_WAIT_MS_MAX).into());
        hold(wait, self.handle.watch_applied(), self.ending.cancelled(), || {
            let (last, records) = self.cluster(|cluster| cluster.access().after(request.after));
            let is_news = !records.is_empty();
            (AccessAnswer { last, records }, is_news)
        })
        .await
    }
}

//! Models: the registry, and the wraps of their keys.

use super::{ApiResult, Done};
use crate::server::auth::{Proposer, Submitter};
use crate::server::extract::{LeaderRead, Submission};
use crate::server::paging::{PageParameters, PageRequest, PagedList};
use crate::server::problem::Failure;
use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use protocol::api::{MemberWraps, Page, PutWraps, RegisterModel};
use protocol::model::{ModelRecord, SignedComplaint, SignedWrapRequest};
use protocol::{ModelRoot, Refusal, error_code};
use scheduler::Action;
use scheduler::limits::WRAPS_PER_COMMAND_MAX;
use std::ops::Bound;

/// A page of the registered models, by root.
#[utoipa::path(get, path = "/v1/models", params(PageParameters),
    responses((status = 200, body = Page<ModelRecord>)), tag = "models")]
pub(super) async fn models(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<ModelRecord>> {
    let page: PageRequest<ModelRoot> = PageRequest::of(PagedList::Models, query)?;
    let (items, next_page_token) = server.cluster(|cluster| {
        let after = page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let models = cluster.models().range((after, Bound::Unbounded));
        page.take(models.map(|(root, record)| (*root, record.clone())))
    });
    Ok(Json(Page { items, next_page_token }))
}

/// Registers the stores of a model, and keeps the wraps of its key.
///
/// Registration grants nothing: a service runs the model whose root its certificate names. The request is
/// idempotent, so a client without a response can repeat it.
#[utoipa::path(post, path = "/v1/models", request_body = RegisterModel,
    responses((status = 200, body = Done)), tag = "models")]
pub(super) async fn register_model(
    Submission { caller, key, server }: Submission<Submitter>,
    body: Result<Json<RegisterModel>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(RegisterModel { record, wraps }) = body?;
    server.change(caller, key, Action::RegisterModel { record: Box::new(record), wraps }).await
}

/// Adds wraps of models' keys. Each carries the signature of the member that made it, and control keeps only
/// wraps for members and admitted workers.
#[utoipa::path(put, path = "/v1/wraps", request_body = PutWraps, responses((status = 200, body = Done)),
    tag = "models")]
pub(super) async fn put_wraps(
    Submission { caller, key, server }: Submission<Proposer>,
    body: Result<Json<PutWraps>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(PutWraps { wraps }) = body?;
    server.change(caller, key, Action::PutWraps(wraps)).await
}

/// The wraps of a member that others lack, for the member's client to share.
///
/// The member's signature opens this, and no token does: a wrap leaves control only for its recipient.
#[utoipa::path(post, path = "/v1/wraps/mine", request_body = SignedWrapRequest,
    responses((status = 200, body = MemberWraps)), tag = "models")]
pub(super) async fn member_wraps(
    LeaderRead { server, .. }: LeaderRead,
    body: Result<Json<SignedWrapRequest>, JsonRejection>,
) -> ApiResult<MemberWraps> {
    let Json(signed) = body?;
    server.cluster(|cluster| {
        let missing = || Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet");
        let state = cluster.circle_state().ok_or_else(missing)?;
        human_chain::check_wrap_request(state, &signed).map_err(Refusal::from)?;
        Ok(Json(scheduler::member_wraps(cluster, &signed.request.member, WRAPS_PER_COMMAND_MAX)))
    })
}

/// Drops a wrap that its recipient cannot open, by the recipient's signature.
#[utoipa::path(post, path = "/v1/wraps/complaints", request_body = SignedComplaint,
    responses((status = 200, body = Done)), tag = "models")]
pub(super) async fn complain(
    Submission { caller, key, server }: Submission<Proposer>,
    body: Result<Json<SignedComplaint>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(complaint) = body?;
    server.change(caller, key, Action::DropWrap(Box::new(complaint))).await
}

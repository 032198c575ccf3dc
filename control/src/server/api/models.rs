//! Models: the registry, and the wraps of their keys.

use super::{ApiResult, Done};
use crate::server::auth::Submitter;
use crate::server::extract::{LeaderRead, Submission};
use crate::server::paging::{PageParameters, PageRequest, PagedList};
use crate::server::problem::Failure;
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use protocol::api::{ModelWraps, Page, PutWraps, RegisterModel};
use protocol::model::{KeyWrap, ModelRecord};
use protocol::{ModelRoot, error_code};
use scheduler::Action;
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

/// Unregisters a model that no service in force names, and deletes its key.
#[utoipa::path(delete, path = "/v1/models/{root}", params(("root" = ModelRoot, Path)),
    responses((status = 200, body = Done)), tag = "models")]
pub(super) async fn forget_model(
    Submission { caller, key, server }: Submission<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
) -> ApiResult<Done> {
    let Path(root) = root?;
    server.change(caller, key, Action::ForgetModel(root)).await
}

/// The wraps of a model's key, one per party that may open it.
#[utoipa::path(get, path = "/v1/models/{root}/wraps", params(("root" = ModelRoot, Path)),
    responses((status = 200, body = ModelWraps)), tag = "models")]
pub(super) async fn wraps(
    LeaderRead { server, .. }: LeaderRead<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
) -> ApiResult<ModelWraps> {
    let Path(root) = root?;
    Ok(Json(ModelWraps { root, wraps: server.cluster(|cluster| cluster.wraps(&root)) }))
}

/// Adds wraps of a model's key.
#[utoipa::path(put, path = "/v1/models/{root}/wraps", params(("root" = ModelRoot, Path)),
    request_body = PutWraps, responses((status = 200, body = Done)), tag = "models")]
pub(super) async fn put_wraps(
    Submission { caller, key, server }: Submission<Submitter>,
    root: Result<Path<ModelRoot>, PathRejection>,
    body: Result<Json<PutWraps>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(root), Json(PutWraps { wraps })) = (root?, body?);
    if wraps.iter().any(|wrap: &KeyWrap| wrap.root != root) {
        return Err(Failure::new(error_code::REQUEST_INVALID, "a wrap is of another model's key").at("wraps"));
    }
    server.change(caller, key, Action::PutWraps(wraps)).await
}

//! Inference keys of applications.

use super::{ApiResult, Done};
use crate::server::auth::Submitter;
use crate::server::extract::{LeaderRead, Submission};
use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use protocol::TokenName;
use protocol::api::{CreateKey, KeyView, Page};
use protocol::gateway::ApiKey;
use scheduler::Action;

/// Inference keys, without their hashes.
#[utoipa::path(get, path = "/v1/keys", responses((status = 200, body = Page<KeyView>)), tag = "keys")]
pub(super) async fn keys(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<KeyView>> {
    let view =
        |key: &ApiKey| KeyView { name: key.name.clone(), requests_per_minute: key.requests_per_minute };
    Ok(Json(Page::whole(server.cluster(|cluster| cluster.api_keys().values().map(view).collect()))))
}

/// Registers an inference key, with which its holder can call models. The server receives the hash alone.
#[utoipa::path(post, path = "/v1/keys", request_body = CreateKey,
    responses((status = 200, body = Done)), tag = "keys")]
pub(super) async fn create_key(
    Submission { caller, key, server }: Submission<Submitter>,
    body: Result<Json<CreateKey>, JsonRejection>,
) -> ApiResult<Done> {
    let Json(CreateKey { name, hash, requests_per_minute }) = body?;
    server.change(caller, key, Action::CreateApiKey(ApiKey { name, hash, requests_per_minute })).await
}

/// Revokes an inference key.
#[utoipa::path(delete, path = "/v1/keys/{name}", params(("name" = TokenName, Path)),
    responses((status = 200, body = Done)), tag = "keys")]
pub(super) async fn revoke_key(
    Submission { caller, key, server }: Submission<Submitter>,
    name: Result<Path<TokenName>, PathRejection>,
) -> ApiResult<Done> {
    let Path(name) = name?;
    server.change(caller, key, Action::RevokeApiKey(name)).await
}

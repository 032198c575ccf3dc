//! Deployments by clients that know no circle: a manifest becomes a draft, which a member proposes.

use super::ApiResult;
use super::services::refuse_unused_gpus;
use crate::server::auth::Proposer;
use crate::server::extract::Submission;
use crate::server::problem::{Failure, accepted, effect_unknown};
use axum::Json;
use axum::body::Bytes;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use protocol::api::DeploymentDraft;
use protocol::error_code;
use protocol::limits::{JSON_BYTES_PER_CANONICAL_BYTE, MANIFEST_BYTES_MAX};
use protocol::manifest::Manifest;
use scheduler::{Action, Actor, Reply};
use serde::Deserialize;

/// Query parameters of a deployment.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeploymentParameters {
    /// Reason shown to the voters; `deploy NAME` if it is left out.
    #[serde(default)]
    reason: String,
    /// True to show the placement and the signatures that are needed, and to draft nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Drafts the deployment of a manifest, TOML (`application/toml`) or JSON (`application/json`). The first
/// member that approves the draft proposes it.
#[utoipa::path(post, path = "/v1/deployments", params(DeploymentParameters),
    request_body(content((Manifest = "application/json"), (String = "application/toml"))),
    responses((status = 200, body = DeploymentDraft)), tag = "services")]
pub(super) async fn draft_deployment(
    Submission { caller: Proposer(token), key, server }: Submission<Proposer>,
    query: Result<Query<DeploymentParameters>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult<DeploymentDraft> {
    let Query(DeploymentParameters { reason, dry_run: only_tries }) = query?;
    let manifest = read_manifest(&headers, &body?)?;
    refuse_unused_gpus(&manifest)?;
    let dry_run = server.read_view(|view| scheduler::dry_run(view, &manifest))?.map_err(Failure::from)?;
    if only_tries {
        return Ok(Json(DeploymentDraft { draft: None, dry_run }));
    }
    let reason = if reason.is_empty() { format!("deploy {}", manifest.name()) } else { reason };
    let key = key.of(&token);
    let action = Action::DraftDeployment { manifest: Box::new(manifest), reason };
    let id = match accepted(server.write(Actor::Token(token), action, key).await?)? {
        Reply::Submitted { proposal } => proposal,
        _ => return Err(effect_unknown(String::from("its reply is of another kind"))),
    };
    let Json(draft) = server.committed_proposal(&id, |_| true).await?;
    Ok(Json(DeploymentDraft { draft: Some(draft), dry_run }))
}

/// Reads a manifest in the form that the content type names.
fn read_manifest(headers: &HeaderMap, body: &[u8]) -> Result<Manifest, Failure> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/json" => {
            check_size(body, MANIFEST_BYTES_MAX * JSON_BYTES_PER_CANONICAL_BYTE)?;
            serde_json::from_slice(body)
                .map_err(|error| Failure::new(error_code::MANIFEST_INVALID, error.to_string()).at("body"))
        }
        "application/toml" => {
            check_size(body, MANIFEST_BYTES_MAX)?;
            let text = std::str::from_utf8(body).map_err(|error| {
                Failure::new(error_code::MANIFEST_INVALID, format!("the manifest is no text: {error}"))
            })?;
            Manifest::from_toml(text).map_err(|error| {
                let message = format!("{}: {}", error.field, error.message);
                Failure::new(error.code, message).at(format!("body {}:{}", error.line, error.column))
            })
        }
        _ => Err(Failure::new(error_code::REQUEST_INVALID, "the body has no content type of a manifest")
            .at("header Content-Type")
            .remedy("send `application/toml` or `application/json`")),
    }
}

fn check_size(body: &[u8], limit: usize) -> Result<(), Failure> {
    if body.len() <= limit {
        return Ok(());
    }
    let message = format!("the manifest is {} bytes; accepted: at most {limit}", body.len());
    Err(Failure::new(error_code::REQUEST_TOO_LARGE, message).at("body"))
}

//! Services: placement in advance, state, number of replicas, and logs.

use super::{ApiResult, Done, PAGE_MAX, no_subject};
use crate::server::auth::Submitter;
use crate::server::extract::{LeaderRead, Submission};
use crate::server::paging::json_number;
use crate::server::problem::{Failure, unavailable};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use protocol::api::{DryRun, DryRunRequest, LogPage, Page, RollbackRequest, ScaleRequest, ServiceView};
use protocol::manifest::{Manifest, Runtime};
use protocol::{ServiceName, error_code};
use scheduler::Action;
use serde::Deserialize;

/// Placement of the slots, required signatures and maximum cost of a change. Changes nothing.
#[utoipa::path(post, path = "/v1/dry-run", request_body = DryRunRequest,
    responses((status = 200, body = DryRun)), tag = "services")]
pub(super) async fn dry_run(
    LeaderRead { server, .. }: LeaderRead,
    body: Result<Json<DryRunRequest>, JsonRejection>,
) -> ApiResult<DryRun> {
    let Json(DryRunRequest { manifest }) = body?;
    refuse_unused_gpus(&manifest)?;
    let outcome = server.read_view(|view| scheduler::dry_run(view, &manifest))?;
    Ok(Json(outcome.map_err(Failure::from)?))
}

/// All services.
#[utoipa::path(get, path = "/v1/services",
    responses((status = 200, body = Page<ServiceView>)), tag = "services")]
pub(super) async fn services(LeaderRead { server, .. }: LeaderRead) -> ApiResult<Page<ServiceView>> {
    let items = server.read_view(scheduler::service_views)?;
    Ok(Json(Page::whole(items)))
}

/// One service with its slots.
#[utoipa::path(get, path = "/v1/services/{name}", params(("name" = ServiceName, Path)),
    responses((status = 200, body = ServiceView)), tag = "services")]
pub(super) async fn service(
    LeaderRead { server, .. }: LeaderRead,
    name: Result<Path<ServiceName>, PathRejection>,
) -> ApiResult<ServiceView> {
    let Path(name) = name?;
    let view = server.read_view(|view| scheduler::service_view(view, &name))?;
    view.map(Json).ok_or_else(|| no_subject(name.as_str()))
}

/// Changes the number of replicas within the approved envelope; no vote is needed.
#[utoipa::path(post, path = "/v1/services/{name}/scale", params(("name" = ServiceName, Path)),
    request_body = ScaleRequest, responses((status = 200, body = Done)), tag = "services")]
pub(super) async fn scale(
    Submission { caller, key, server }: Submission<Submitter>,
    name: Result<Path<ServiceName>, PathRejection>,
    body: Result<Json<ScaleRequest>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(service), Json(ScaleRequest { replicas })) = (name?, body?);
    server.change(caller, key, Action::Scale { service, replicas }).await
}

/// Returns the service to the approval before, if the certificate in force names it; no vote is needed.
#[utoipa::path(post, path = "/v1/services/{name}/rollback", params(("name" = ServiceName, Path)),
    request_body = RollbackRequest, responses((status = 200, body = Done)), tag = "services")]
pub(super) async fn rollback(
    Submission { caller, key, server }: Submission<Submitter>,
    name: Result<Path<ServiceName>, PathRejection>,
    body: Result<Json<RollbackRequest>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(service), Json(RollbackRequest { reason })) = (name?, body?);
    server.change(caller, key, Action::RollBack { service, reason }).await
}

/// Query parameters of a log page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    /// Return only lines with a greater sequence number; 0 = from the oldest kept.
    #[serde(default)]
    after: u64,
}

/// The latest log lines of a service's workers.
#[utoipa::path(get, path = "/v1/services/{name}/logs", params(("name" = ServiceName, Path), After),
    responses((status = 200, body = LogPage)), tag = "services")]
pub(super) async fn logs(
    LeaderRead { server, .. }: LeaderRead,
    name: Result<Path<ServiceName>, PathRejection>,
    query: Result<Query<After>, QueryRejection>,
) -> ApiResult<LogPage> {
    let (Path(name), after) = (name?, json_number(query?.after)?);
    if server.cluster(|cluster| !cluster.services().contains_key(&name)) {
        return Err(no_subject(name.as_str()));
    }
    let term = server.lock_leadership().as_ref().map(|leadership| leadership.term.0);
    let epoch = term.ok_or_else(|| unavailable("this replica has lost leadership"))?;
    let mut logs = server.logs.lock().expect("no holder of this lock panics");
    Ok(Json(logs.page(epoch, &name, after, PAGE_MAX)))
}

/// Rejects a manifest that requests more than one GPU for the built-in engine, which computes on one. The
/// others would be reserved, paid for, and idle. The check is made here and not where certificates are
/// verified, so that earlier approvals stay valid.
pub(super) fn refuse_unused_gpus(manifest: &Manifest) -> Result<(), Failure> {
    let Manifest::Service(service) = manifest else { return Ok(()) };
    let count = service.resources.gpu_count;
    if service.runtime != Runtime::Candle || count <= 1 {
        return Ok(());
    }
    let message = format!("`{}` requests {count} GPUs; the `candle` runtime uses one", service.name);
    Err(Failure::new(error_code::KIND_NOT_BUILT, message)
        .at("resources.gpu_count")
        .remedy("request one GPU for each replica, and more replicas"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_gpus_than_the_engine_computes_on_are_refused_by_code() {
        for (count, expected) in
            [(0, None), (1, None), (2, Some("kind-not-built")), (8, Some("kind-not-built"))]
        {
            let mut manifest = crate::testing::manifest("llama");
            let Manifest::Service(service) = &mut manifest else { panic!("a service") };
            service.resources.gpu_count = count;
            let refusal = refuse_unused_gpus(&manifest).err();
            assert_eq!(refusal.as_ref().map(|refusal| refusal.problem().code.as_str()), expected, "{count}");
        }
    }
}

//! The control API for users and their programs: JSON over HTTP, described by `/openapi.json`.
//!
//! Every replica has the replicated state, but only the leader receives the nodes' reports. For uniform
//! behaviour all endpoints but the probes, `/v1/replica` and `/v1/halts` answer on the leader, after a read
//! barrier. Other replicas name the leader.

mod access;
mod circle;
mod console;
mod deployments;
mod halts;
mod jobs;
mod models;
mod projects;
mod services;
mod status;
mod usage;

use super::Server;
use super::extract::{count_values, refuse_lists};
use super::idempotency::Key;
use super::problem::{Failure, accepted, unavailable};
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::map_request;
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use host::wall_clock;
use protocol::api::Problem;
use protocol::job_api::JobLogPage;
use protocol::{JobId, TokenName, error_code};
use scheduler::{Action, Actor, ClusterView, LeaderTime};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

type ApiResult<T> = Result<Json<T>, Failure>;

/// Maximum number of audit events or log lines in one response.
const PAGE_MAX: usize = 500;

/// Builds the router of the API.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/livez", get(super::metrics::livez))
        .route("/readyz", get(super::metrics::readyz))
        .route("/metrics", get(super::metrics::metrics))
        .route("/openapi.json", get(super::openapi::serve))
        .route("/v1/history", get(circle::history))
        .route("/v1/proposals", get(circle::proposals).post(circle::submit_proposal))
        .route("/v1/proposals/{id}", get(circle::proposal))
        .route("/v1/proposals/{id}/ballots", post(circle::cast_ballot))
        .route("/v1/proposals/{id}/comments", post(circle::put_comment))
        .route("/v1/proposals/{id}/withdrawal", post(circle::withdraw))
        .route("/v1/halts", get(halts::halts).post(halts::take_halt))
        .route("/v1/dry-run", post(services::dry_run))
        .route("/v1/services", get(services::services))
        .route("/v1/services/{name}", get(services::service))
        .route("/v1/services/{name}/scale", post(services::scale))
        .route("/v1/services/{name}/rollback", post(services::rollback))
        .route("/v1/services/{name}/logs", get(services::logs))
        .route("/v1/jobs", get(jobs::jobs).post(jobs::submit))
        .route("/v1/jobs/signed", post(jobs::submit_signed))
        .route("/v1/jobs/{id}", get(jobs::job))
        .route("/v1/jobs/{id}/events", get(jobs::events))
        .route("/v1/jobs/{id}/logs", get(jobs::logs))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/retry", post(jobs::retry))
        .route("/v1/jobs/{id}/data", get(jobs::data))
        .route("/v1/jobs/{id}/outputs", get(jobs::outputs))
        .route("/v1/jobs/{id}/data/mine", post(jobs::data_of_member))
        .route("/v1/job-data", get(jobs::stored_data))
        .route("/v1/nodes", get(status::nodes))
        .route("/v1/pending-nodes", get(status::pending_nodes))
        .route("/v1/models", get(models::models).post(models::register_model))
        .route("/v1/wraps", put(models::put_wraps))
        .route("/v1/wraps/mine", post(models::member_wraps))
        .route("/v1/wraps/complaints", post(models::complain))
        .route("/v1/access/grants", get(access::grants).merge(signed(access::grant)))
        .route("/v1/access/revocations", signed(access::revoke))
        .route("/v1/events", get(status::events))
        .route("/v1/status", get(status::status))
        .route("/v1/projects", get(projects::projects))
        .route("/v1/usage", get(usage::usage))
        .route("/v1/usage/entries", get(usage::entries))
        .route("/v1/replica", get(status::replica))
        .route("/v1/console/links", post(console::create_link))
        .route("/v1/why/{*subject}", get(status::why))
        .fallback(|| async { Failure::new(error_code::PATH_NOT_FOUND, "the API has no such path") })
        .method_not_allowed_fallback(|| async {
            Failure::new(error_code::METHOD_NOT_ALLOWED, "this path does not support this method")
        })
        .layer(map_request(refuse_lists))
        // A manifest may be TOML, whose tables begin as a list does.
        .route("/v1/deployments", post(deployments::draft_deployment))
        .layer(map_request(count_values))
        .layer(DefaultBodyLimit::max(protocol::limits::API_BODY_BYTES_MAX))
        .with_state(server)
}

/// Returns the route of a grant or a revocation: small, and without an access token.
fn signed<H: Handler<T, Arc<Server>>, T: 'static>(handler: H) -> MethodRouter<Arc<Server>> {
    post(handler).layer(DefaultBodyLimit::max(access::BODY_BYTES_MAX))
}

/// Response to an accepted change that returns nothing else.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {
    /// Always true: any other outcome is a problem.
    pub done: bool,
}

const DONE: Json<Done> = Json(Done { done: true });

impl Server {
    /// Returns a failure that names the current leader.
    pub(super) fn not_leader(&self) -> Failure {
        let leader = self.handle.status().leader;
        let replicas = &self.genesis.genesis.control;
        let leader = replicas.iter().find(|replica| Some(replica.id) == leader);
        let failure = Failure::new(error_code::NOT_LEADER, "this control replica is not the leader");
        match leader {
            Some(replica) => failure.leader(&replica.api).remedy(format!("ask {}", replica.api)),
            None => failure.remedy("a leader is being elected; retry"),
        }
    }

    /// Reads the cluster as its leader sees it now.
    pub(super) fn read_view<R>(&self, read: impl FnOnce(ClusterView) -> R) -> Result<R, Failure> {
        let leadership = self.lock_leadership();
        let observed =
            &leadership.as_ref().ok_or_else(|| unavailable("this replica has lost leadership"))?.observed;
        let (now, clocks) = (LeaderTime(wall_clock()), &self.clocks.readings());
        Ok(self.cluster(|cluster| read(ClusterView { cluster, observed, now, clocks })))
    }

    /// Returns the lines of a job's ranks after a sequence number, oldest first; those of one rank if one is
    /// named.
    pub(super) fn job_lines(&self, id: JobId, rank: Option<u32>, after: u64) -> Result<JobLogPage, Failure> {
        let term = self.lock_leadership().as_ref().map(|leadership| leadership.term.0);
        let epoch = term.ok_or_else(|| unavailable("this replica has lost leadership"))?;
        let mut logs = self.job_logs.lock().expect("no holder of this lock panics");
        Ok(logs.page(epoch, id, rank, after, PAGE_MAX))
    }

    async fn change(&self, caller: impl Into<TokenName>, key: Key, action: Action) -> ApiResult<Done> {
        let token = caller.into();
        let key = key.of(&token);
        accepted(self.write(Actor::Token(token), action, key).await?)?;
        Ok(DONE)
    }
}

/// Returns the failure for a subject that is no service, slot or proposal.
fn no_subject(name: &str) -> Failure {
    Failure::new(error_code::SERVICE_NOT_FOUND, format!("no service, slot or proposal `{name}`"))
        .remedy("`quorate service list` and `quorate review` list them")
}

/// The operations and schemas of the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Quorate control API", description = "Read, propose, vote, deploy. See the README."),
    paths(
        circle::history,
        circle::proposals,
        circle::proposal,
        circle::submit_proposal,
        circle::cast_ballot,
        circle::put_comment,
        circle::withdraw,
        deployments::draft_deployment,
        halts::halts,
        halts::take_halt,
        services::dry_run,
        services::services,
        services::service,
        services::scale,
        services::rollback,
        services::logs,
        jobs::submit,
        jobs::submit_signed,
        jobs::jobs,
        jobs::job,
        jobs::events,
        jobs::logs,
        jobs::cancel,
        jobs::retry,
        jobs::data,
        jobs::outputs,
        jobs::data_of_member,
        jobs::stored_data,
        status::nodes,
        status::pending_nodes,
        models::models,
        models::register_model,
        models::put_wraps,
        models::member_wraps,
        models::complain,
        access::grants,
        access::grant,
        access::revoke,
        status::events,
        status::status,
        status::replica,
        status::why,
        projects::projects,
        usage::usage,
        usage::entries,
        console::create_link
    ),
    components(schemas(Problem))
)]
pub(crate) struct ApiDocument;

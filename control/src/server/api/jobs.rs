//! Jobs: submission, state, logs, data, cancellation and retry.

use super::{ApiResult, Done, PAGE_MAX};
use crate::server::auth::Submitter;
use crate::server::extract::{LeaderRead, Submission};
use crate::server::paging::{PageParameters, PageRequest, PagedList, json_number};
use crate::server::polls::hold;
use crate::server::problem::{Failure, accepted, effect_unknown};
use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use host::random::random_bytes;
use protocol::api::{AuditEvent, Page};
use protocol::job::{self, SignedSubmission};
use protocol::job_api::{JOB_STATES, JobLogPage, JobView, RetryJobBody, SubmitJobBody, SubmittedJob};
use protocol::job_data::{JobDataKind, JobDataView, MemberJobData};
use protocol::limits::POLL_WAIT_MS_MAX;
use protocol::model::{ModelRecord, SignedWrapRequest};
use protocol::{Digest, JobId, ModelRoot, ProjectName, Refusal, ServiceName, TokenName, error_code};
use scheduler::{Action, Actor, Cluster, JobRequest, JobSelection, Reply};
use serde::Deserialize;
use std::ops::Bound;
use std::time::Duration;

/// Runs an approved job with these parameters; no vote is needed. The same request under the same
/// idempotency key is one job, for as long as the job is known.
#[utoipa::path(post, path = "/v1/jobs", request_body = SubmitJobBody,
    responses((status = 200, body = SubmittedJob)), tag = "jobs")]
pub(super) async fn submit(
    submission: Submission<Submitter>,
    body: Result<Json<SubmitJobBody>, JsonRejection>,
) -> ApiResult<SubmittedJob> {
    let Json(SubmitJobBody { job, parameters, priority, deadline_seconds, after, array }) = body?;
    submission.server.read_view(|view| scheduler::check_fits(view, &job))?.map_err(Failure::from)?;
    let idempotency = submission.key.digest().unwrap_or_else(|| Digest(random_bytes()));
    let request = JobRequest { job, idempotency, parameters, priority, deadline_seconds, after, array };
    let array = array.map(|_| idempotency);
    send(submission, Action::RequestJob(Box::new(request)), array).await
}

/// Runs an approved job by a submission that a member or a submit key signed.
#[utoipa::path(post, path = "/v1/jobs/signed", request_body = SignedSubmission,
    responses((status = 200, body = SubmittedJob)), tag = "jobs")]
pub(super) async fn submit_signed(
    submission: Submission<Submitter>,
    body: Result<Json<SignedSubmission>, JsonRejection>,
) -> ApiResult<SubmittedJob> {
    let Json(signed) = body?;
    let job = &signed.submission.job;
    submission.server.read_view(|view| scheduler::check_fits(view, job))?.map_err(Failure::from)?;
    send(submission, Action::SubmitJob(Box::new(signed)), None).await
}

/// Sends a submission; `array` is the key of idempotency of one that makes an array.
async fn send(
    submission: Submission<Submitter>,
    action: Action,
    array: Option<Digest>,
) -> ApiResult<SubmittedJob> {
    let Submission { caller, key, server } = submission;
    let token = TokenName::from(caller);
    let key = key.of(&token);
    let of_token = |array| scheduler::array_id(&job::Submitter::Token(token.clone()), &array);
    let array = array.map(of_token);
    match accepted(server.write(Actor::Token(token), action, key).await?)? {
        Reply::JobSubmitted { job } => Ok(Json(SubmittedJob { id: job, array })),
        _ => Err(effect_unknown(String::from("its reply is of another kind"))),
    }
}

/// Query parameters of the list of jobs.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobFilter {
    /// Return only the jobs of this approval.
    job: Option<ServiceName>,
    /// Return only the jobs in this state.
    state: Option<String>,
    /// Return only the jobs of this project itself; `default` for those of none.
    project: Option<ProjectName>,
    /// Return only the tasks of this array.
    array: Option<JobId>,
    /// Return only the jobs that have ended, or that have not.
    has_ended: Option<bool>,
}

/// The jobs that are known, the latest submission first; tasks of an array by their index.
#[utoipa::path(get, path = "/v1/jobs", params(JobFilter),
    responses((status = 200, body = Page<JobView>)), tag = "jobs")]
pub(super) async fn jobs(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<JobFilter>, QueryRejection>,
) -> ApiResult<Page<JobView>> {
    let Query(JobFilter { job, state, project, array, has_ended }) = query?;
    if let Some(state) = state.as_ref().filter(|state| !JOB_STATES.contains(&state.as_str())) {
        let message = format!("`{}` is no state of a job: {}", state.escape_debug(), JOB_STATES.join(", "));
        return Err(Failure::new(error_code::REQUEST_INVALID, message).at("query state"));
    }
    let selection = JobSelection { job, state, project, array, has_ended };
    Ok(Json(Page::whole(server.read_view(|view| scheduler::job_views(view, &selection))?)))
}

/// Query parameters of one job.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobPoll {
    /// State that the client knows: the answer waits for another one.
    state: Option<String>,
    /// Longest wait in milliseconds; at most 25,000. 0 = no wait.
    #[serde(default)]
    #[param(maximum = 25_000)]
    wait_ms: u32,
}

/// One job with the slots of its present attempt, and the reason for which it waits.
///
/// With `state` and `wait_ms` this is a long poll: the answer comes once the job is in another state, or with
/// the same one when the wait is over.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = JobId, Path), JobPoll),
    responses((status = 200, body = JobView)), tag = "jobs")]
pub(super) async fn job(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
    query: Result<Query<JobPoll>, QueryRejection>,
) -> ApiResult<JobView> {
    let (Path(id), Query(JobPoll { state, wait_ms })) = (id?, query?);
    // Each command wakes every waiting request: it looks at the state alone, and the view is made once.
    hold(poll_wait(wait_ms)?, server.handle.watch_applied(), server.ending.cancelled(), || {
        let is_same = server.cluster(|cluster| {
            let job = cluster.jobs().jobs().get(&id);
            job.is_some_and(|job| Some(job.state.as_str()) == state.as_deref())
        });
        ((), !is_same || server.lock_leadership().is_none())
    })
    .await;
    server.read_view(|view| scheduler::job_view(view, id))?.map(Json).ok_or_else(|| no_job(id))
}

/// Returns the wait of a long poll; a longer one than any client gets is refused.
fn poll_wait(wait_ms: u32) -> Result<Duration, Failure> {
    if wait_ms > POLL_WAIT_MS_MAX {
        let message = format!("the wait is {wait_ms} ms; accepted: at most {POLL_WAIT_MS_MAX}");
        return Err(Failure::new(error_code::REQUEST_INVALID, message).at("query wait_ms"));
    }
    Ok(Duration::from_millis(wait_ms.into()))
}

/// Cancels a job; a job that has ended stays as it is.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", params(("id" = JobId, Path)),
    responses((status = 200, body = Done)), tag = "jobs")]
pub(super) async fn cancel(
    Submission { caller, key, server }: Submission<Submitter>,
    id: Result<Path<JobId>, PathRejection>,
) -> ApiResult<Done> {
    let Path(id) = id?;
    server.change(caller, key, Action::CancelJob { id }).await
}

/// Places a job that failed or was cancelled into the queue again. Its next attempt begins with the newest
/// checkpoint, or with the one that the body names: later ones are forgotten then.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", params(("id" = JobId, Path)),
    request_body = Option<RetryJobBody>, responses((status = 200, body = Done)), tag = "jobs")]
pub(super) async fn retry(
    Submission { caller, key, server }: Submission<Submitter>,
    id: Result<Path<JobId>, PathRejection>,
    body: Result<Option<Json<RetryJobBody>>, JsonRejection>,
) -> ApiResult<Done> {
    let (Path(id), body) = (id?, body?);
    let from = body.and_then(|Json(RetryJobBody { from })| from);
    server.change(caller, key, Action::RetryJob { id, from }).await
}

/// The checkpoints of a job, oldest first, its outputs, and its logs by attempt and slot.
#[utoipa::path(get, path = "/v1/jobs/{id}/data", params(("id" = JobId, Path)),
    responses((status = 200, body = Page<JobDataView>)), tag = "jobs")]
pub(super) async fn data(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
) -> ApiResult<Page<JobDataView>> {
    let Path(id) = id?;
    let items = server.cluster(|cluster| scheduler::job_data_views(cluster, id));
    items.map(|items| Json(Page::whole(items))).ok_or_else(|| no_job(id))
}

/// Query parameters of the outputs of a job.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputsPoll {
    /// Longest wait in milliseconds for the end of the job; at most 25,000. 0 = no wait.
    #[serde(default)]
    #[param(maximum = 25_000)]
    wait_ms: u32,
}

/// The outputs of a job: one item once it has succeeded and has left any, none otherwise.
///
/// With `wait_ms` this is a long poll: the answer comes once the job has ended, or when the wait is over.
#[utoipa::path(get, path = "/v1/jobs/{id}/outputs", params(("id" = JobId, Path), OutputsPoll),
    responses((status = 200, body = Page<JobDataView>)), tag = "jobs")]
pub(super) async fn outputs(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
    query: Result<Query<OutputsPoll>, QueryRejection>,
) -> ApiResult<Page<JobDataView>> {
    let (Path(id), Query(OutputsPoll { wait_ms })) = (id?, query?);
    let has_ended = |job: &scheduler::Job| job.state.is_finished();
    hold(poll_wait(wait_ms)?, server.handle.watch_applied(), server.ending.cancelled(), || {
        let runs =
            server.cluster(|cluster| cluster.jobs().jobs().get(&id).is_some_and(|job| !has_ended(job)));
        ((), !runs || server.lock_leadership().is_none())
    })
    .await;
    let items = server.cluster(|cluster| {
        // Those of an attempt that still runs are no result yet.
        let job = cluster.jobs().jobs().get(&id)?;
        let all = scheduler::job_data_views(cluster, id)?;
        let is_result = |view: &JobDataView| view.kind == JobDataKind::Outputs && has_ended(job);
        Some(all.into_iter().filter(is_result).collect())
    });
    items.map(|items| Json(Page::whole(items))).ok_or_else(|| no_job(id))
}

/// The checkpoints, outputs and logs of a job, with their keys for the member that asks.
///
/// The member's signature opens this, and no token does: a wrap leaves control only for its recipient.
#[utoipa::path(post, path = "/v1/jobs/{id}/data/mine", params(("id" = JobId, Path)),
    request_body = SignedWrapRequest, responses((status = 200, body = MemberJobData)), tag = "jobs")]
pub(super) async fn data_of_member(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
    body: Result<Json<SignedWrapRequest>, JsonRejection>,
) -> ApiResult<MemberJobData> {
    let (Path(id), Json(signed)) = (id?, body?);
    server.cluster(|cluster| {
        let missing = || Failure::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet");
        let state = cluster.circle_state().ok_or_else(missing)?;
        human_chain::check_wrap_request(state, &signed).map_err(Refusal::from)?;
        let data = scheduler::member_job_data(cluster, id, &signed.request.member);
        data.map(Json).ok_or_else(|| no_job(id))
    })
}

/// A page of the stored items of all data of jobs that is kept, by root. A collection of garbage keeps them.
#[utoipa::path(get, path = "/v1/job-data", params(PageParameters),
    responses((status = 200, body = Page<ModelRecord>)), tag = "jobs")]
pub(super) async fn stored_data(
    LeaderRead { server, .. }: LeaderRead,
    query: Result<Query<PageParameters>, QueryRejection>,
) -> ApiResult<Page<ModelRecord>> {
    let page: PageRequest<ModelRoot> = PageRequest::of(PagedList::JobData, query)?;
    let (items, next_page_token) = server.cluster(|cluster| {
        let after = page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let stored = scheduler::stored_job_data(cluster);
        let behind = stored.range((after, Bound::Unbounded));
        page.take(behind.map(|(root, record)| (*root, record.clone())))
    });
    Ok(Json(Page { items, next_page_token }))
}

/// Query parameters of a page of a job's lines.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobLinesAfter {
    /// Return only lines with a greater sequence number; 0 = from the oldest kept.
    #[serde(default)]
    after: u64,
    /// Return only lines of this rank.
    rank: Option<u32>,
    /// Longest wait in milliseconds for the first such line; at most 25,000. 0 = no wait.
    #[serde(default)]
    #[param(maximum = 25_000)]
    wait_ms: u32,
}

/// The latest lines of a job's ranks.
///
/// With `wait_ms` this is a long poll: the answer comes once there is a line, or once the job has ended. The
/// report of an end carries the last lines, so a page without one that follows the end is the last.
#[utoipa::path(get, path = "/v1/jobs/{id}/logs", params(("id" = JobId, Path), JobLinesAfter),
    responses((status = 200, body = JobLogPage)), tag = "jobs")]
pub(super) async fn logs(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
    query: Result<Query<JobLinesAfter>, QueryRejection>,
) -> ApiResult<JobLogPage> {
    let (Path(id), Query(JobLinesAfter { after, rank, wait_ms })) = (id?, query?);
    let after = json_number(after)?;
    if server.cluster(|cluster| !cluster.jobs().jobs().contains_key(&id)) {
        return Err(no_job(id));
    }
    let (wait, news) = (poll_wait(wait_ms)?, server.job_line_news.subscribe());
    let page = hold(wait, news, server.ending.cancelled(), || {
        let page = server.job_lines(id, rank, after);
        let is_news = !page.as_ref().is_ok_and(|page| page.items.is_empty());
        (page, is_news)
    });
    let end = hold(wait, server.handle.watch_applied(), server.ending.cancelled(), || {
        let job = |cluster: &Cluster| cluster.jobs().jobs().get(&id).map(|job| job.state.is_finished());
        ((), server.cluster(job) != Some(false))
    });
    let page = tokio::select! {
        biased;
        page = page => page,
        () = end => server.job_lines(id, rank, after),
    };
    page.map(Json)
}

/// Query parameters of a page of a job's events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct JobEventsAfter {
    /// Return only events with a greater number; 0 = from the oldest kept.
    #[serde(default)]
    after: u64,
    /// Longest wait in milliseconds for the first such event; at most 25,000. 0 = no wait.
    #[serde(default)]
    #[param(maximum = 25_000)]
    wait_ms: u32,
}

/// A page of at most 500 events of a job, oldest first. With `wait_ms` this is a long poll.
#[utoipa::path(get, path = "/v1/jobs/{id}/events", params(("id" = JobId, Path), JobEventsAfter),
    responses((status = 200, body = Page<AuditEvent>)), tag = "jobs")]
pub(super) async fn events(
    LeaderRead { server, .. }: LeaderRead,
    id: Result<Path<JobId>, PathRejection>,
    query: Result<Query<JobEventsAfter>, QueryRejection>,
) -> ApiResult<Page<AuditEvent>> {
    let (Path(id), Query(JobEventsAfter { after, wait_ms })) = (id?, query?);
    let after = json_number(after)?;
    let page = hold(poll_wait(wait_ms)?, server.handle.watch_applied(), server.ending.cancelled(), || {
        let page = server.cluster(|cluster| scheduler::job_events(cluster, id, after, PAGE_MAX));
        let is_news = !page.as_ref().is_some_and(Vec::is_empty);
        (page, is_news)
    });
    page.await.map(|items| Json(Page::whole(items))).ok_or_else(|| no_job(id))
}

fn no_job(id: JobId) -> Failure {
    Failure::new(error_code::JOB_NOT_FOUND, format!("no job {id}")).remedy("`quorate job list` lists them")
}

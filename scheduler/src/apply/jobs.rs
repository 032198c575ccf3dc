//! Commands about jobs: submission, cancellation, retry, and the effects of decisions and deadlines.
//!
//! A submission changes no generation, so that it makes no plan stale.

use super::known::circle;
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::command::{Actor, JobRequest, Refusal, Reply};
use crate::jobs::{EndCause, Job, JobHoldingPhase, JobState, key_of};
use crate::limits::{GANG_BYTES_MAX, JOBS_BYTES_MAX, JOBS_UNFINISHED_MAX};
use crate::project_fit::check_project;
use human_chain::{ChainError, check_submission};
use protocol::canonical::to_bytes;
use protocol::error_code::{
    COMMAND_INVALID, IDEMPOTENCY_KEY_REUSED, JOB_DATA_MISSING, JOB_NEVER_FITS, JOB_NOT_ENDED, JOB_NOT_FOUND,
    LIMIT_REACHED,
};
use protocol::job::{JobSubmission, SignedSubmission, Submitter};
use protocol::limits::SUBMISSION_SECONDS_MAX;
use protocol::manifest::JobManifest;
use protocol::{CheckpointName, JobId, ServiceName};

/// Makes the submission that the holder of a token asks for. The same request under the same key is one job.
pub(super) fn request(cluster: &mut Cluster, actor: &Actor, request: &JobRequest) -> Result<Reply, Refusal> {
    let Actor::Token(holder) = actor else {
        let message = "a request for a job is by an access token; a member signs a submission";
        return Err(Refusal::new(COMMAND_INVALID, message));
    };
    let submitter = Submitter::Token(holder.clone());
    if let Some(id) = cluster.jobs.keys.get(&key_of(&submitter, &request.idempotency)) {
        let known = cluster.jobs.jobs.get(id).filter(|known| is_same(request, known.submission()));
        return known.map(|_| Reply::JobSubmitted { job: *id }).ok_or_else(reused);
    }
    let (state, now) = (circle(cluster)?, cluster.now.0);
    let mismatch = || ChainError::SubmissionMismatch {
        job: request.job.clone(),
        reason: "no certificate approves the job".into(),
    };
    let approved = state.job(&request.job).ok_or_else(mismatch)?;
    let seconds = request.deadline_seconds.unwrap_or(SUBMISSION_SECONDS_MAX);
    let submission = JobSubmission {
        circle: state.id(),
        job: request.job.clone(),
        certificate: approved.certificate,
        idempotency: request.idempotency,
        parameters: request.parameters.clone(),
        artifact: None,
        command: None,
        priority: request.priority.unwrap_or(approved.manifest.priority),
        submitter,
        issued_at: now,
        deadline: now.plus(seconds.saturating_mul(1000)),
    };
    keep(cluster, actor, &SignedSubmission { submission, signature: None })
}

/// Returns whether a request asks for what this submission says. Its times are those of the first request.
fn is_same(request: &JobRequest, submission: &JobSubmission) -> bool {
    debug_assert_eq!(request.idempotency, submission.idempotency, "found by its key");
    debug_assert!(submission.issued_at <= submission.deadline, "a deadline follows the submission");
    let seconds = request.deadline_seconds.unwrap_or(SUBMISSION_SECONDS_MAX);
    let same_end = submission.deadline == submission.issued_at.plus(seconds.saturating_mul(1000));
    request.job == submission.job
        && request.parameters == submission.parameters
        && request.priority.is_none_or(|priority| priority == submission.priority)
        && same_end
}

fn reused() -> Refusal {
    Refusal::new(
        IDEMPOTENCY_KEY_REUSED,
        "the idempotency key was used for another submission; make a new key",
    )
}

/// Keeps a submission that a member or a submit key signed.
pub(super) fn submit(
    cluster: &mut Cluster,
    actor: &Actor,
    signed: &SignedSubmission,
) -> Result<Reply, Refusal> {
    let submission = &signed.submission;
    if matches!(submission.submitter, Submitter::Token(_)) {
        let message = "the cluster makes the submission of a token; request the job instead";
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let id = submission.id();
    match cluster.jobs.keys.get(&key_of(&submission.submitter, &submission.idempotency)) {
        Some(known) if *known == id => Ok(Reply::JobSubmitted { job: id }),
        Some(_) => Err(reused()),
        None => keep(cluster, actor, signed),
    }
}

/// Checks a new submission and places it into the queue.
fn keep(cluster: &mut Cluster, actor: &Actor, signed: &SignedSubmission) -> Result<Reply, Refusal> {
    let approved = check_submission(circle(cluster)?, signed, cluster.now.0)?;
    let bytes = to_bytes(signed).len() as u64;
    check_gang(&approved.manifest, bytes)?;
    check_project(cluster, &approved.manifest)?;
    check_places(cluster, bytes)?;
    let (id, now) = (signed.submission.id(), cluster.now);
    cluster.jobs.insert(id, signed.clone(), now);
    debug_assert!(cluster.jobs.jobs.contains_key(&id), "a submission is found by its id");
    let detail = format!("of {}", signed.submission.job);
    cluster.audit.record(now, &actor.to_string(), "submit-job", &subject(id), &detail);
    Ok(Reply::JobSubmitted { job: id })
}

/// Checks that the slots of the envelope hold the gang, and that a node can read the orders of all of them.
fn check_gang(manifest: &JobManifest, bytes: u64) -> Result<(), Refusal> {
    debug_assert!(manifest.ranks > 0 && manifest.ranks_per_slot > 0, "a parsed manifest has ranks");
    let slots = manifest.ranks.div_ceil(manifest.ranks_per_slot.max(1));
    if slots > manifest.slots {
        let message = format!(
            "the gang of {} ranks holds at least {slots} slots of {} ranks each, and the envelope has {}; \
             smallest change: `slots = {slots}`",
            manifest.ranks, manifest.ranks_per_slot, manifest.slots
        );
        return Err(Refusal::new(JOB_NEVER_FITS, message));
    }
    if bytes.saturating_mul(u64::from(manifest.ranks.min(manifest.slots))) > GANG_BYTES_MAX {
        let message = format!(
            "the submission has {bytes} bytes, and each of up to {} nodes reads it for every slot; accepted: \
             {GANG_BYTES_MAX} bytes together",
            manifest.ranks.min(manifest.slots)
        );
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    Ok(())
}

fn check_places(cluster: &Cluster, bytes: u64) -> Result<(), Refusal> {
    let waiting = cluster.jobs.jobs.values().filter(|job| !job.state.is_finished()).count();
    if waiting >= JOBS_UNFINISHED_MAX {
        let message = format!("{JOBS_UNFINISHED_MAX} jobs wait or run; cancel some of them, or wait");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    let kept: u64 = cluster.jobs.jobs.values().map(|job| job.bytes).sum();
    debug_assert!(kept <= JOBS_BYTES_MAX, "accepted submissions are bounded");
    if kept.saturating_add(bytes) > JOBS_BYTES_MAX {
        let message = format!("all kept submissions have {kept} bytes; accepted: {JOBS_BYTES_MAX} together");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    Ok(())
}

fn known(cluster: &Cluster, id: JobId) -> Result<&Job, Refusal> {
    let missing = || Refusal::new(JOB_NOT_FOUND, format!("no job {id}; ended jobs are forgotten in time"));
    cluster.jobs.jobs.get(&id).ok_or_else(missing)
}

/// Cancels a job; what runs is withdrawn.
pub(super) fn cancel(cluster: &mut Cluster, actor: &Actor, id: JobId) -> Result<Reply, Refusal> {
    if !known(cluster, id)?.state.is_finished() {
        let by = actor.to_string();
        end(cluster, id, EndCause::Cancelled(by.clone()));
        cluster.audit.record(cluster.now, &by, "cancel-job", &subject(id), "");
        debug_assert!(cluster.jobs.gang(id).next().is_none(), "a cancelled job holds no slot");
    }
    Ok(Reply::Done)
}

/// Places a job that failed or was cancelled into the queue again, if its submission may still run. Its next
/// attempt begins with the checkpoint `from`, or with the newest.
pub(super) fn retry(
    cluster: &mut Cluster,
    actor: &Actor,
    id: JobId,
    from: Option<&CheckpointName>,
) -> Result<Reply, Refusal> {
    let job = known(cluster, id)?;
    if !matches!(job.state, JobState::Failed | JobState::Cancelled) {
        let message = format!(
            "job {} is {}; only a failed or cancelled one is retried",
            id.short(),
            job.state.as_str()
        );
        return Err(Refusal::new(JOB_NOT_ENDED, message));
    }
    check_submission(circle(cluster)?, &job.signed, cluster.now.0)?;
    check_places(cluster, 0)?;
    let mut returned = |name| cluster.jobs.jobs.get_mut(&id).is_some_and(|job| job.return_to(name));
    if let Some(name) = from.filter(|name| !returned(name)) {
        let message = format!("job {} has no checkpoint `{name}`", id.short());
        return Err(Refusal::new(JOB_DATA_MISSING, message));
    }
    cluster.jobs.requeue(id, cluster.now);
    debug_assert!(cluster.jobs.gang(id).next().is_none(), "a job in the queue holds no slot");
    cluster.audit.record(cluster.now, &actor.to_string(), "retry-job", &subject(id), "");
    Ok(Reply::Done)
}

/// Ends a job without another attempt. The new generation makes plans stale that would continue it.
fn end(cluster: &mut Cluster, id: JobId, cause: EndCause) {
    cluster.generation += 1;
    let at = (cluster.now, cluster.generation);
    cluster.jobs.end(id, cause, Vec::new(), None, at);
}

fn unfinished<'a>(cluster: &'a Cluster, name: &'a ServiceName) -> impl Iterator<Item = (JobId, &'a Job)> {
    let jobs = cluster.jobs.jobs.iter().map(|(id, job)| (*id, job));
    jobs.filter(move |(_, job)| job.submission().job == *name && !job.state.is_finished())
}

/// Ends the jobs that wait under an approval that was replaced. Those that run continue until their attempt
/// ends.
pub(super) fn withdraw_waiting(cluster: &mut Cluster, name: &ServiceName) {
    let waiting: Vec<JobId> =
        unfinished(cluster, name).filter(|(_, job)| !job.state.is_placed()).map(|(id, _)| id).collect();
    withdraw(cluster, &waiting);
}

/// Ends all jobs under an approval that was retired.
pub(super) fn withdraw_all(cluster: &mut Cluster, name: &ServiceName) {
    let all: Vec<JobId> = unfinished(cluster, name).map(|(id, _)| id).collect();
    withdraw(cluster, &all);
    debug_assert!(unfinished(cluster, name).next().is_none(), "no job runs without an approval");
}

fn withdraw(cluster: &mut Cluster, ids: &[JobId]) {
    for id in ids {
        end(cluster, *id, EndCause::Withdrawn);
        cluster.audit.record(cluster.now, "circle", "withdraw-job", &subject(*id), "");
    }
}

/// Marks the slots of nodes that are no longer admitted, and ends what they ran. Such a node gets no lease.
pub(super) fn revoke_from_departed(cluster: &mut Cluster) {
    let Some(circle) = &cluster.circle else { return };
    let (generation, mut lost) = (cluster.generation, Vec::new());
    for slot in cluster.jobs.slots.values_mut().flat_map(|slots| slots.values_mut()) {
        let Some(holding) = &mut slot.holding else { continue };
        let is_admitted = circle.state.node_by_id(holding.node).is_some();
        match (is_admitted, holding.phase) {
            (false, JobHoldingPhase::Active) => {
                lost.push((holding.id, holding.node));
                holding.phase = JobHoldingPhase::Lapsing;
            }
            (false, _) => holding.phase = JobHoldingPhase::Lapsing,
            (true, JobHoldingPhase::Lapsing) => holding.phase = JobHoldingPhase::Ending { generation },
            (true, _) => {}
        }
    }
    for (id, node) in lost {
        let Some(job) = cluster.jobs.jobs.get(&id).filter(|job| job.state.is_placed()) else { continue };
        let approved = cluster.circle_state().and_then(|state| state.job(&job.submission().job));
        let approved = approved.filter(|job_now| job_now.certificate == job.submission().certificate);
        let retries = approved.map(|approved| approved.manifest.retries);
        let at = (cluster.now, generation);
        cluster.jobs.end(id, EndCause::NodeLost(node), Vec::new(), retries, at);
    }
}

/// Returns the jobs whose deadline has passed before an attempt began.
pub(super) fn past_deadline(cluster: &Cluster, now: ClusterTime) -> impl Iterator<Item = JobId> {
    let waits = |job: &Job| !job.state.is_finished() && !job.state.is_placed();
    let over = move |job: &Job| waits(job) && ClusterTime(job.submission().deadline) <= now;
    cluster.jobs.jobs.iter().filter(move |(_, job)| over(job)).map(|(id, _)| *id)
}

/// Ends these jobs.
pub(super) fn end_past_deadline(cluster: &mut Cluster) {
    let over: Vec<JobId> = past_deadline(cluster, cluster.now).collect();
    for id in over {
        end(cluster, id, EndCause::Deadline);
        cluster.audit.record(cluster.now, "scheduler", "expire-job", &subject(id), "its deadline passed");
    }
    debug_assert!(past_deadline(cluster, cluster.now).next().is_none(), "each has ended");
}

fn subject(id: JobId) -> String {
    format!("job/{}", id.short())
}

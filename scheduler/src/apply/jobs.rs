//! Commands about jobs: submission, cancellation, retry, and the effects of decisions and deadlines.
//!
//! A submission changes no generation, so that it makes no plan stale.

use super::known::circle;
use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::command::{Actor, JobRequest, Refusal, Reply};
use crate::jobs::{EndCause, Job, JobHoldingPhase, JobState, array_id, kept_bytes, key_of, subject_of};
use crate::limits::{GANG_BYTES_MAX, JOBS_BYTES_MAX, JOBS_UNFINISHED_MAX};
use crate::project_fit::check_project;
use human_chain::{ChainError, check_submission};
use protocol::canonical::to_bytes;
use protocol::error_code::{
    COMMAND_INVALID, IDEMPOTENCY_KEY_REUSED, JOB_DATA_MISSING, JOB_NEVER_FITS, JOB_NOT_ENDED, JOB_NOT_FOUND,
    LIMIT_REACHED,
};
use protocol::job::{ArrayTask, JobSubmission, SignedSubmission, Submitter};
use protocol::limits::{ARRAY_TASKS_MAX, SUBMISSION_SECONDS_MAX};
use protocol::manifest::JobManifest;
use protocol::{CheckpointName, Digest, JobId, ServiceName};
use std::collections::BTreeSet;

/// Makes the submission that the holder of a token asks for. The same request under the same key is one job.
pub(super) fn request(cluster: &mut Cluster, actor: &Actor, request: &JobRequest) -> Result<Reply, Refusal> {
    let Actor::Token(holder) = actor else {
        let message = "a request for a job is by an access token; a member signs a submission";
        return Err(Refusal::new(COMMAND_INVALID, message));
    };
    let submitter = Submitter::Token(holder.clone());
    if let Some((id, known)) = named_by(cluster, &submitter, request.idempotency) {
        let same = is_same(request, known.submission());
        return if same { Ok(Reply::JobSubmitted { job: id }) } else { Err(reused()) };
    }
    let tasks = tasks_of(request, &submitter)?.into_iter();
    let submissions: Result<Vec<SignedSubmission>, Refusal> =
        tasks.map(|task| submission_of(cluster, &submitter, request, task)).collect();
    keep(cluster, actor, submissions?)
}

/// Returns the job that a key of idempotency named before: of its own, or the first known task of an array.
fn named_by<'a>(cluster: &'a Cluster, submitter: &Submitter, key: Digest) -> Option<(JobId, &'a Job)> {
    let jobs = &cluster.jobs.jobs;
    if let Some(id) = cluster.jobs.keys.get(&key_of(submitter, &key)) {
        return Some((*id, jobs.get(id)?));
    }
    let tasks = cluster.jobs.tasks(array_id(submitter, &key));
    tasks.min_by_key(|(task, ..)| task.index).map(|(_, id, job)| (id, job))
}

/// Returns the tasks of a request: one for each job that it makes, none for a job of its own.
fn tasks_of(request: &JobRequest, submitter: &Submitter) -> Result<Vec<Option<ArrayTask>>, Refusal> {
    let Some(count) = request.array else { return Ok(vec![None]) };
    if !(1..=ARRAY_TASKS_MAX).contains(&count) {
        let message = format!("the array has {count} tasks; accepted: 1 to {ARRAY_TASKS_MAX}");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    let array = array_id(submitter, &request.idempotency);
    let task = |index| Some(ArrayTask { array, index, count });
    Ok((0..count).map(task).collect())
}

/// Returns the submission of one job that a request makes.
fn submission_of(
    cluster: &Cluster,
    submitter: &Submitter,
    request: &JobRequest,
    task: Option<ArrayTask>,
) -> Result<SignedSubmission, Refusal> {
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
        idempotency: task.map_or(request.idempotency, |task| task.idempotency()),
        parameters: request.parameters.clone(),
        artifact: None,
        command: None,
        priority: request.priority.unwrap_or(approved.manifest.priority),
        submitter: submitter.clone(),
        issued_at: now,
        deadline: now.plus(seconds.saturating_mul(1000)),
        after: request.after.iter().copied().collect(),
        array: task,
    };
    Ok(SignedSubmission { submission, signature: None })
}

/// Returns whether a request asks for what this submission says. Its times are those of the first request.
fn is_same(request: &JobRequest, submission: &JobSubmission) -> bool {
    debug_assert!(submission.issued_at <= submission.deadline, "a deadline follows the submission");
    let seconds = request.deadline_seconds.unwrap_or(SUBMISSION_SECONDS_MAX);
    let same_end = submission.deadline == submission.issued_at.plus(seconds.saturating_mul(1000));
    request.job == submission.job
        && request.parameters == submission.parameters
        && request.priority.is_none_or(|priority| priority == submission.priority)
        && request.after.iter().eq(&submission.after)
        && request.array == submission.array.map(|task| task.count)
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
    if submission.array.is_some() {
        let message = "the cluster makes the tasks of an array; request it by a token";
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    if matches!(submission.submitter, Submitter::Token(_)) {
        let message = "the cluster makes the submission of a token; request the job instead";
        return Err(Refusal::new(COMMAND_INVALID, message));
    }
    let id = submission.id();
    match cluster.jobs.keys.get(&key_of(&submission.submitter, &submission.idempotency)) {
        Some(known) if *known == id => Ok(Reply::JobSubmitted { job: id }),
        Some(_) => Err(reused()),
        None => keep(cluster, actor, vec![signed.clone()]),
    }
}

/// Checks new submissions and places all of them into the queue, or none. Returns the first.
fn keep(cluster: &mut Cluster, actor: &Actor, all: Vec<SignedSubmission>) -> Result<Reply, Refusal> {
    let (count, now) = (all.len(), cluster.now);
    for signed in &all {
        let approved = check_submission(circle(cluster)?, signed, now.0)?;
        check_gang(&approved.manifest, to_bytes(signed).len() as u64)?;
        check_project(cluster, &approved.manifest)?;
    }
    // All submissions of one request follow the same jobs.
    let awaits = all.first().map_or(Ok(BTreeSet::new()), |signed| awaited(cluster, &signed.submission))?;
    let bytes = all.iter().map(|signed| kept_bytes(signed, &awaits)).sum();
    check_places(cluster, count, bytes)?;
    let mut first = None;
    for signed in all {
        let (id, name) = (signed.submission.id(), signed.submission.job.clone());
        cluster.jobs.insert(id, signed, awaits.clone(), now);
        first.get_or_insert((id, name));
    }
    let nothing = || Refusal::new(COMMAND_INVALID, "a request makes at least one job");
    let (id, name) = first.ok_or_else(nothing)?;
    debug_assert!(cluster.jobs.jobs.contains_key(&id), "a submission is found by its id");
    let detail = if count == 1 { format!("of {name}") } else { format!("of {name}, the first of {count}") };
    cluster.audit.record(now, &actor.to_string(), "submit-job", &subject_of(id), &detail);
    Ok(Reply::JobSubmitted { job: id })
}

/// Returns the jobs that a submission follows and that have not succeeded: those that it names, and the tasks
/// of arrays. All of them must be known.
fn awaited(cluster: &Cluster, submission: &JobSubmission) -> Result<BTreeSet<JobId>, Refusal> {
    let mut awaits = BTreeSet::new();
    for named in &submission.after {
        let tasks: Vec<(ArrayTask, JobId, &Job)> = cluster.jobs.tasks(*named).collect();
        let Some((ArrayTask { count, .. }, ..)) = tasks.first() else {
            awaits.extend((known(cluster, *named)?.state != JobState::Succeeded).then_some(*named));
            continue;
        };
        if tasks.len() < *count as usize {
            let forgotten = *count as usize - tasks.len();
            let message = format!("{forgotten} of {count} tasks of array {} are forgotten", named.short());
            return Err(Refusal::new(JOB_NOT_FOUND, message));
        }
        let open = tasks.iter().filter(|(_, _, job)| job.state != JobState::Succeeded);
        awaits.extend(open.map(|(_, id, _)| *id));
    }
    Ok(awaits)
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

fn check_places(cluster: &Cluster, added: usize, bytes: u64) -> Result<(), Refusal> {
    let waiting = cluster.jobs.jobs.values().filter(|job| !job.state.is_finished()).count();
    if waiting.saturating_add(added) > JOBS_UNFINISHED_MAX {
        let message = format!(
            "{waiting} jobs wait or run, and {added} more pass {JOBS_UNFINISHED_MAX}; cancel some of them, \
             or wait"
        );
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
        cluster.audit.record(cluster.now, &by, "cancel-job", &subject_of(id), "");
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
    job.awaits.iter().try_for_each(|id| known(cluster, *id).map(drop))?;
    check_places(cluster, 1, 0)?;
    let mut returned = |name| cluster.jobs.jobs.get_mut(&id).is_some_and(|job| job.return_to(name));
    if let Some(name) = from.filter(|name| !returned(name)) {
        let message = format!("job {} has no checkpoint `{name}`", id.short());
        return Err(Refusal::new(JOB_DATA_MISSING, message));
    }
    cluster.jobs.requeue(id, cluster.now);
    debug_assert!(cluster.jobs.gang(id).next().is_none(), "a job in the queue holds no slot");
    cluster.audit.record(cluster.now, &actor.to_string(), "retry-job", &subject_of(id), "");
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
        cluster.audit.record(cluster.now, "circle", "withdraw-job", &subject_of(*id), "");
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
        cluster.audit.record(cluster.now, "scheduler", "expire-job", &subject_of(id), "its deadline passed");
    }
    debug_assert!(past_deadline(cluster, cluster.now).next().is_none(), "each has ended");
}

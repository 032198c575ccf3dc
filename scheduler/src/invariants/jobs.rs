//! Rules about jobs, their attempts and the slots of gangs.

use super::Invariant::{GangWhole, JobKept, ListBounded, RecordedInPast};
use super::{InvariantResult, ensure};
use crate::cluster::Cluster;
use crate::jobs::{Job, JobHolding, JobHoldingPhase, JobSlotName, JobState, key_of};
use crate::kept_data::KeptJobData;
use crate::limits::{
    JOB_DATA_BYTES_MAX, JOB_ENDS_KEPT_MAX, JOB_LOGS_MAX, JOBS_FINISHED_MAX, JOBS_UNFINISHED_MAX,
};
use protocol::JobId;
use protocol::job_data::JobDataKind;
use std::collections::BTreeSet;

pub(super) fn check(cluster: &Cluster) -> InvariantResult {
    let jobs = &cluster.jobs.jobs;
    let finished = jobs.values().filter(|job| job.state.is_finished()).count();
    let bounded = finished <= JOBS_FINISHED_MAX && jobs.len() - finished <= JOBS_UNFINISHED_MAX;
    ensure(bounded, ListBounded, || format!("{} jobs, {finished} of them finished", jobs.len()))?;
    ensure(cluster.jobs.keys.len() == jobs.len(), JobKept, || "each job has one key".to_string())?;
    ensure(cluster.jobs.data_bytes() <= JOB_DATA_BYTES_MAX, ListBounded, || "data of jobs".to_string())?;
    for (id, job) in jobs {
        check_job(cluster, *id, job)?;
    }
    for (name, held) in cluster.jobs.held() {
        check_holding(cluster, &name, held)?;
    }
    Ok(())
}

fn check_job(cluster: &Cluster, id: JobId, job: &Job) -> InvariantResult {
    let subject = || format!("job {}", id.short());
    let submission = job.submission();
    let key = key_of(&submission.submitter, &submission.idempotency);
    let kept = submission.id() == id && cluster.jobs.keys.get(&key) == Some(&id);
    ensure(kept && cluster.job_manifest(&submission.certificate).is_some(), JobKept, subject)?;
    ensure(job.submitted_at <= job.since && job.since <= cluster.now, RecordedInPast, subject)?;
    let ends = job.last_end.as_ref().map_or(0, |end| end.ends.len());
    ensure(ends <= JOB_ENDS_KEPT_MAX, ListBounded, subject)?;
    check_data(cluster, id, job)?;
    check_after(cluster, id, job)?;
    // A gang is whole: an attempt holds every rank once, and a job without one holds none.
    let mut ranks: Vec<u32> = cluster
        .jobs
        .gang(id)
        .flat_map(|(_, held)| (0..held.ranks.count).map(|rank| held.ranks.first + rank))
        .collect();
    ranks.sort_unstable();
    let wanted = cluster.job_manifest(&submission.certificate).map_or(0, |manifest| manifest.ranks);
    let wanted = if job.state.is_placed() { wanted } else { 0 };
    ensure(ranks.into_iter().eq(0..wanted), GangWhole, subject)
}

/// Checks that a job awaits only jobs that its submission names, that are known and have not succeeded.
fn check_after(cluster: &Cluster, id: JobId, job: &Job) -> InvariantResult {
    let subject = || format!("jobs that job {} follows", id.short());
    let jobs = &cluster.jobs.jobs;
    let of_array = |awaited| jobs.get(awaited).and_then(|job| job.submission().array);
    let is_named = |id: &JobId| job.submission().after.contains(id);
    let named = job.state.is_finished()
        || job.awaits.iter().all(|id| is_named(id) || of_array(id).is_some_and(|task| is_named(&task.array)));
    let open = |awaited| jobs.get(awaited).is_some_and(|job| job.state != JobState::Succeeded);
    let known = job.state.is_finished() || job.awaits.iter().all(open);
    ensure(named && known && (job.awaits.is_empty() || !job.state.is_placed()), JobKept, subject)
}

/// Checks that only as many checkpoints are kept as members approved, each once and from a known attempt.
fn check_data(cluster: &Cluster, id: JobId, job: &Job) -> InvariantResult {
    let subject = || format!("data of job {}", id.short());
    let manifest = cluster.job_manifest(&job.submission().certificate);
    let count = manifest.map_or(0, |manifest| manifest.checkpoints as usize);
    ensure(job.checkpoints.len() <= count, ListBounded, subject)?;
    let names: BTreeSet<_> = job.checkpoints.iter().map(KeptJobData::name).collect();
    let apart = names.len() == job.checkpoints.len() && !names.contains(&None);
    ensure(job.logs.len() <= JOB_LOGS_MAX, ListBounded, subject)?;
    let is_of = |kept: &KeptJobData, kind| kept.signed.data.kind == kind;
    let ordered = job.logs.is_sorted_by(|one, next| one.place() < next.place())
        && job.logs.iter().all(|kept| is_of(kept, JobDataKind::Logs));
    let outputs = job.outputs.iter().all(|kept| is_of(kept, JobDataKind::Outputs));
    ensure(apart && ordered && outputs, JobKept, subject)?;
    let known = job.data().all(|kept| {
        let data = &kept.signed.data;
        data.id == id && (1..=job.attempts).contains(&data.attempt)
    });
    ensure(known, JobKept, subject)?;
    ensure(job.data().all(|kept| kept.registered_at <= cluster.now), RecordedInPast, subject)
}

fn check_holding(cluster: &Cluster, name: &JobSlotName, held: &JobHolding) -> InvariantResult {
    let subject = || format!("{}/{}", name.job, name.slot);
    let manifest = cluster.job_manifest(&held.certificate);
    let inside = manifest.is_some_and(|manifest| manifest.name == name.job && name.slot.0 < manifest.slots);
    ensure(inside && name.fence.count > 0, GangWhole, subject)?;
    let lapses = held.phase == JobHoldingPhase::Lapsing;
    ensure(lapses != cluster.node(&held.node).is_some(), GangWhole, subject)?;
    let present = cluster.jobs.jobs.get(&held.id).is_some_and(|job| job.attempts == held.attempt);
    ensure(held.phase != JobHoldingPhase::Active || present, GangWhole, subject)
}

//! Registration of checkpoints, outputs and logs by the node that made them.
//!
//! Only what comes under the fence in force counts. A registration changes no generation: no plan depends on
//! it.

use super::known::circle;
use super::registry::{check_stores, check_wrap_lengths};
use crate::clock::{ClockReadings, ClusterTime};
use crate::cluster::Cluster;
use crate::command::{Refusal, Reply};
use crate::jobs::{AttemptEnd, EndedHolder, Job, JobHoldingPhase, JobState, subject_of};
use crate::kept_data::KeptJobData;
use crate::limits::{CHECKPOINT_INTERVAL_MS, JOB_DATA_BYTES_MAX};
use human_chain::{check_job_data, recipient_key};
use protocol::canonical::to_bytes;
use protocol::error_code::{JOB_DATA_FENCED, JOB_DATA_INVALID, JOB_NOT_FOUND, LIMIT_REACHED};
use protocol::job_data::{
    JOB_DATA_BYTES_MAX as REGISTRATION_BYTES_MAX, JobData, JobDataKind, RegisterJobData,
};
use protocol::model::{KeyWrap, Recipient};

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(JOB_DATA_INVALID, message)
}

fn fenced(data: &JobData, reason: &str) -> Refusal {
    let (job, slot, fence) = (&data.job, data.slot, data.fence);
    Refusal::new(JOB_DATA_FENCED, format!("{} of {job}/{slot} under fence {fence}: {reason}", data.kind))
}

/// Data that may be kept, with the wraps that are of use.
struct Acceptable {
    request: RegisterJobData,
    /// Number of checkpoints that the job keeps.
    count: usize,
}

/// Returns the refusal of a registration at these readings; none if it would be kept, or is. The shell calls
/// this before it proposes the command: a node must not write refused ones to the log.
#[must_use]
pub fn refused_job_data(
    cluster: &Cluster,
    request: &RegisterJobData,
    clocks: &ClockReadings,
) -> Option<Refusal> {
    judge(cluster, request, cluster.time(clocks)).err()
}

/// Keeps data of a job. The same registration again changes nothing.
pub(super) fn register(cluster: &mut Cluster, request: &RegisterJobData) -> Result<Reply, Refusal> {
    let Some(Acceptable { request, count }) = judge(cluster, request, cluster.now)? else {
        return Ok(Reply::Done);
    };
    let kept = KeptJobData::new(request, cluster.now);
    cluster.jobs.make_room(kept.bytes);
    let data = &kept.signed.data;
    let (id, actor) = (data.id, format!("node/{}", cluster.node_name(&data.node)));
    let detail = format!("{}, attempt {}, {}", data.kind, data.attempt, data.stored.root.short());
    cluster.jobs.keep_data(id, kept, count);
    debug_assert!(cluster.jobs.data_bytes() <= JOB_DATA_BYTES_MAX, "room was made");
    cluster.audit.record(cluster.now, &actor, "keep-data", &subject_of(id), &detail);
    Ok(Reply::Done)
}

/// Judges a registration; none if it is kept already.
fn judge(
    cluster: &Cluster,
    request: &RegisterJobData,
    now: ClusterTime,
) -> Result<Option<Acceptable>, Refusal> {
    let data = &request.signed.data;
    let missing = || Refusal::new(JOB_NOT_FOUND, format!("no job {} waits for data", data.id));
    let job = cluster.jobs.jobs.get(&data.id).ok_or_else(missing)?;
    if job.data().any(|kept| kept.signed == request.signed) {
        return Ok(None);
    }
    check_order(cluster, job, data)?;
    let count = check_kind(cluster, job, data)?;
    check_pace(job, data, now)?;
    check_stores(&data.stored).map_err(|refusal| invalid(refusal.message))?;
    if let Some(flaw) = request.wraps_flaw() {
        return Err(invalid(flaw));
    }
    check_unused(cluster, data)?;
    let wraps = usable(cluster, &request.wraps)?;
    // The signature is verified last, because it costs most.
    check_job_data(circle(cluster)?, &request.signed)?;
    let request = RegisterJobData { wraps, ..request.clone() };
    let bytes = to_bytes(&request).len();
    if bytes > REGISTRATION_BYTES_MAX {
        return Err(invalid(format!("it has {bytes} bytes; accepted: {REGISTRATION_BYTES_MAX}")));
    }
    if !cluster.jobs.has_room(bytes as u64) {
        let message = format!("statements about data of unfinished jobs fill {JOB_DATA_BYTES_MAX} bytes");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    Ok(Some(Acceptable { request, count }))
}

/// Checks that a job leaves checkpoints no faster than the log should hold them.
fn check_pace(job: &Job, data: &JobData, now: ClusterTime) -> Result<(), Refusal> {
    let newest = job.checkpoints.last().filter(|_| matches!(data.kind, JobDataKind::Checkpoint(_)));
    if newest.is_some_and(|newest| newest.registered_at.plus(CHECKPOINT_INTERVAL_MS) > now) {
        let message = format!("a job keeps at most one checkpoint in {CHECKPOINT_INTERVAL_MS} ms");
        return Err(Refusal::new(LIMIT_REACHED, message));
    }
    Ok(())
}

/// Checks that the order of the slot lets it leave data of this kind.
fn check_order(cluster: &Cluster, job: &Job, data: &JobData) -> Result<(), Refusal> {
    let is_logs = data.kind == JobDataKind::Logs;
    if is_logs && held_until_the_end(job, data) { Ok(()) } else { check_held(cluster, job, data) }
}

/// Returns whether the node held the slot under exactly this order when the last attempt that has ended did:
/// logs are stored once the ranks have ended, and nothing depends on them.
fn held_until_the_end(job: &Job, data: &JobData) -> bool {
    let order = EndedHolder { node: data.node, slot: data.slot, fence: data.fence, ranks: data.ranks };
    let is_of = |end: &&AttemptEnd| end.attempt == data.attempt && job.submission().job == data.job;
    job.last_end.as_ref().filter(is_of).is_some_and(|end| end.holders.contains(&order))
}

/// Checks that the node holds the slot under exactly this order, in the present attempt. A slot that ends may
/// still leave a checkpoint, which is what its grace is for; outputs are a result of ranks that run.
fn check_held(cluster: &Cluster, job: &Job, data: &JobData) -> Result<(), Refusal> {
    let slot = cluster.jobs.slots.get(&data.job).and_then(|slots| slots.get(&data.slot));
    let slot = slot.filter(|slot| slot.fence == data.fence);
    let held = slot.and_then(|slot| slot.holding.as_ref());
    let Some(held) = held else { return Err(fenced(data, "no node holds the slot under it")) };
    if (held.node, held.id, held.attempt, held.ranks) != (data.node, data.id, data.attempt, data.ranks) {
        return Err(fenced(data, "its order is another"));
    }
    if job.attempts != data.attempt || held.phase == JobHoldingPhase::Lapsing {
        return Err(fenced(data, "the attempt is over"));
    }
    let is_running = held.phase == JobHoldingPhase::Active && job.state == JobState::Running;
    debug_assert!(!is_running || !job.state.is_finished(), "a finished job runs nothing");
    match data.kind {
        JobDataKind::Outputs if !is_running => Err(fenced(data, "its ranks do not run")),
        _ => Ok(()),
    }
}

/// Checks that the job keeps data of this kind, and that the attempt has left none of this name, nor the slot
/// any logs. Returns the number of checkpoints that are kept.
fn check_kind(cluster: &Cluster, job: &Job, data: &JobData) -> Result<usize, Refusal> {
    let manifest = cluster.job_manifest(&job.submission().certificate);
    let count = manifest.map_or(0, |manifest| manifest.checkpoints) as usize;
    if matches!(data.kind, JobDataKind::Checkpoint(_)) && count == 0 {
        return Err(invalid("the job keeps no checkpoints: its manifest has `checkpoints = 0`"));
    }
    let is_same = |kept: &KeptJobData| {
        let left = &kept.signed.data;
        let of_slot = data.kind != JobDataKind::Logs || left.slot == data.slot;
        (&left.kind, left.attempt) == (&data.kind, data.attempt) && of_slot
    };
    if job.data().any(is_same) {
        return Err(invalid(format!("the attempt has left other {} before", data.kind)));
    }
    Ok(count)
}

/// Checks that no other item has this root: one root has one key, and one owner.
fn check_unused(cluster: &Cluster, data: &JobData) -> Result<(), Refusal> {
    let root = data.stored.root;
    let is_used = cluster.models.contains_key(&root)
        || cluster.jobs.all_data().any(|(_, kept)| kept.signed.data.stored.root == root);
    if is_used { Err(invalid(format!("{} is the root of another item", root.short()))) } else { Ok(()) }
}

/// Returns the wraps for parties that are recipients now. The circle may have changed since they were made.
fn usable(cluster: &Cluster, wraps: &[KeyWrap]) -> Result<Vec<KeyWrap>, Refusal> {
    let state = circle(cluster)?;
    wraps.iter().try_for_each(check_wrap_lengths).map_err(|refusal| invalid(refusal.message))?;
    let is_recipient = |wrap: &&KeyWrap| recipient_key(state, &wrap.recipient).is_ok();
    let kept: Vec<KeyWrap> = wraps.iter().filter(is_recipient).cloned().collect();
    debug_assert!(kept.len() <= wraps.len(), "none is added");
    if !kept.iter().any(|wrap| matches!(wrap.recipient, Recipient::Member(_))) {
        return Err(invalid("its key is wrapped to no member of the circle"));
    }
    Ok(kept)
}

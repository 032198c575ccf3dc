//! Jobs as people and programs see them.

use crate::cluster::Cluster;
use crate::jobs::{Job, JobState, subject_of};
use crate::plan::plan;
use crate::view::ClusterView;
use human_chain::show_time;
use protocol::api::{AuditEvent, Why};
use protocol::display::counted;
use protocol::job_api::{JobEndView, JobSlotView, JobView, JobWaitView};
use protocol::job_report::JobSlotState;
use protocol::project::ROOT_PROJECT;
use protocol::usage::UsageAmounts;
use protocol::{JobId, NodeId, ProjectName, ServiceName};
use std::collections::BTreeMap;

/// Most jobs that one explanation lists.
const JOBS_SHOWN: usize = 32;

/// Jobs that a list shows: those for which every part holds that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobSelection {
    /// Name of the approved job.
    pub job: Option<ServiceName>,
    /// Name of the state, as [`JobState::as_str`] has it.
    pub state: Option<String>,
    /// Project to which the approval belongs; [`ROOT_PROJECT`] for those of none.
    pub project: Option<ProjectName>,
    /// Array of which it is a task.
    pub array: Option<JobId>,
    /// Whether it has ended.
    pub has_ended: Option<bool>,
}

impl JobSelection {
    fn has(&self, cluster: &Cluster, job: &Job) -> bool {
        let submission = job.submission();
        let is_of_project = |project: &ProjectName| {
            let manifest = cluster.job_manifest(&submission.certificate);
            let own = manifest.and_then(|manifest| manifest.project.as_ref());
            own.map_or(ROOT_PROJECT, ProjectName::as_str) == project.as_str()
        };
        self.job.as_ref().is_none_or(|name| submission.job == *name)
            && self.state.as_ref().is_none_or(|state| job.state.as_str() == state)
            && self.project.as_ref().is_none_or(is_of_project)
            && self.array.is_none_or(|array| submission.array.map(|task| task.array) == Some(array))
            && self.has_ended.is_none_or(|has_ended| job.state.is_finished() == has_ended)
    }
}

/// Returns every selected job that is not forgotten, the latest submission first; tasks of an array by their
/// index.
#[must_use]
pub fn job_views(view: ClusterView, selection: &JobSelection) -> Vec<JobView> {
    let (waits, used) = (waits(view), view.cluster.usage().of_jobs(view.cluster_time()));
    let all = view.cluster.jobs().jobs().iter();
    let mut jobs: Vec<(&JobId, &Job)> = all.filter(|(_, job)| selection.has(view.cluster, job)).collect();
    let index = |job: &Job| job.submission().array.map(|task| (task.array, task.index));
    jobs.sort_by_key(|(id, job)| (std::cmp::Reverse(job.submitted_at), index(job), **id));
    debug_assert!(jobs.is_sorted_by_key(|(_, job)| std::cmp::Reverse(job.submitted_at)), "the latest first");
    let shown = |(id, job): (&JobId, &Job)| {
        let used = used.get(id).copied().unwrap_or_default();
        JobView { used, ..shown(view, *id, job, waits.get(id).cloned()) }
    };
    jobs.into_iter().map(shown).collect()
}

/// Returns one job; none if it is not known.
#[must_use]
pub fn job_view(view: ClusterView, id: JobId) -> Option<JobView> {
    let job = view.cluster.jobs().jobs().get(&id)?;
    let waits = if job.state == JobState::Queued { waits(view).remove(&id) } else { None };
    let used = view.cluster.usage().of_job(id, view.cluster_time());
    Some(JobView { used, ..shown(view, id, job, waits) })
}

/// Returns the kept events of a job after a number, oldest first, at most `count`; none if it is not known.
#[must_use]
pub fn job_events(cluster: &Cluster, id: JobId, after: u64, count: usize) -> Option<Vec<AuditEvent>> {
    let (job, subject) = (cluster.jobs().jobs().get(&id)?, subject_of(id));
    let events = cluster.audit().after(after, usize::MAX);
    // Another job whose id begins alike may have been forgotten.
    let of_job = events.filter(|event| event.subject == subject && event.at >= job.submitted_at.0);
    Some(of_job.take(count).cloned().collect())
}

/// Returns the reason of each job that waits for its gang.
fn waits(view: ClusterView) -> BTreeMap<JobId, JobWaitView> {
    let waiting = plan(view).waiting_jobs.into_iter();
    waiting.map(|one| (one.id, JobWaitView { reason: one.reason.into(), text: one.text })).collect()
}

/// Explains the jobs of an approved envelope that have not ended; none if no such envelope is in force.
pub(crate) fn why_jobs(view: ClusterView, name: &ServiceName) -> Option<Why> {
    view.cluster.circle_state()?.job(name)?;
    let waits = waits(view);
    let jobs = view.cluster.jobs().jobs().iter();
    let of_name = jobs.filter(|(_, job)| job.submission().job == *name && !job.state.is_finished());
    let of_name: Vec<JobView> =
        of_name.map(|(id, job)| shown(view, *id, job, waits.get(id).cloned())).collect();
    let waiting = of_name.iter().filter(|job| job.waits.is_some()).count() as u64;
    let placed = of_name.len() as u64 - waiting;
    let line = |job: &JobView| {
        let text = job.waits.as_ref().map(|waits| format!(": waits ({}): {}", waits.reason, waits.text));
        format!("job {} is {}{}", job.id.short(), job.state, text.unwrap_or_default())
    };
    Some(Why {
        subject: name.to_string(),
        answer: format!("{} of {name} placed, {} waiting", counted(placed, "job"), counted(waiting, "job")),
        reasons: of_name.iter().take(JOBS_SHOWN).map(line).collect(),
        remedy: None,
    })
}

/// Returns a job as the API shows it, without what it used.
fn shown(view: ClusterView, id: JobId, job: &Job, waits: Option<JobWaitView>) -> JobView {
    let submission = job.submission();
    let waits = match job.state {
        JobState::BackingOff { until } => {
            let text = format!("the next attempt begins at {} at the earliest", show_time(until.0));
            Some(JobWaitView { reason: "back_off".into(), text })
        }
        JobState::Queued => waits,
        _ => None,
    };
    let last_end = job.last_end.as_ref().map(|end| JobEndView {
        attempt: end.attempt,
        at: end.at.0,
        cause: end.cause.to_string(),
        ends: end.ends.clone(),
    });
    debug_assert_eq!(submission.id(), id, "a job is kept under the id of its submission");
    JobView {
        id,
        job: submission.job.clone(),
        state: job.state.as_str().into(),
        since: job.since.0,
        submitted_at: job.submitted_at.0,
        deadline: submission.deadline,
        submitter: submission.submitter.clone(),
        priority: submission.priority,
        parameters: submission.parameters.clone(),
        after: submission.after.clone(),
        array: submission.array,
        attempts: job.attempts,
        failures: job.failures,
        lost_nodes: job.lost_nodes,
        preemptions: job.preemptions,
        waits,
        slots: slots(view, id),
        last_end,
        used: UsageAmounts::default(),
    }
}

fn slots(view: ClusterView, id: JobId) -> Vec<JobSlotView> {
    let reported = |node: &NodeId| view.observed.node(node).map(|known| known.jobs.as_slice());
    let gang = view.cluster.jobs().gang(id);
    gang.map(|(name, held)| {
        let mut reports = reported(&held.node).unwrap_or_default().iter();
        let report = reports
            .find(|report| report.job == name.job && report.slot == name.slot && report.fence == name.fence);
        let state = match report.map(|report| report.state) {
            None => "ordered",
            Some(JobSlotState::Preparing) => "preparing",
            Some(JobSlotState::Ready) => "ready",
            Some(JobSlotState::Running) => "running",
            Some(JobSlotState::Ended) => "ended",
        };
        JobSlotView {
            slot: name.slot,
            fence: name.fence,
            node: view.cluster.node_name(&held.node),
            ranks: held.ranks,
            state: state.into(),
            cpu_micros: report.map_or(0, |report| report.cpu_micros),
        }
    })
    .collect()
}

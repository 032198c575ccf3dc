//! Bodies of the control API about jobs.

use crate::ids::{CheckpointName, Fence, JobId, Millis, NodeName, ParameterName, ServiceName, SlotIndex};
use crate::job::{ArrayTask, SlotRanks, Submitter};
use crate::job_report::RankEnd;
use crate::usage::UsageAmounts;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Request to run an approved job, by an access token of scope `submit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitJobBody {
    /// Name of the approved job.
    pub job: ServiceName,
    /// Value of each parameter, as text; one that is left out has its default.
    #[serde(default)]
    pub parameters: BTreeMap<ParameterName, String>,
    /// Priority, at most that of the manifest; none = that of the manifest.
    #[serde(default)]
    pub priority: Option<u32>,
    /// Time in seconds after which no attempt begins; none = 31 days.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
    /// Jobs that succeed before an attempt of this one begins; the id of an array stands for all its tasks.
    #[serde(default)]
    pub after: BTreeSet<JobId>,
    /// Number of tasks, for an array: as many jobs, whose ranks find their index in `JOB_ARRAY_INDEX`. None =
    /// one job.
    #[serde(default)]
    pub array: Option<u32>,
}

/// Answer to a submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmittedJob {
    /// Id of the job; that of the first task for an array.
    pub id: JobId,
    /// Array, if the request asked for one; `GET /v1/jobs?array=` lists its tasks.
    pub array: Option<JobId>,
}

/// Request to place a job into the queue again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryJobBody {
    /// Checkpoint with which the next attempt begins; later ones are forgotten. None = the newest.
    #[serde(default)]
    pub from: Option<CheckpointName>,
}

/// Reason for which a job waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWaitView {
    /// Name of the reason: `back_off`, `after`, `reserved`, `behind`, `no_room`, `no_network`, `halted`,
    /// `approval`, `limit`, `project`, `quota`, `fair_share`, `reclaim` or `leader`.
    pub reason: String,
    /// Explanation, as a sentence.
    pub text: String,
}

/// Slot of a job's present attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSlotView {
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of its order.
    pub fence: Fence,
    /// Node that holds it.
    pub node: String,
    /// Ranks that it runs.
    pub ranks: SlotRanks,
    /// State by the last report of the node: `ordered`, `preparing`, `ready`, `running` or `ended`.
    pub state: String,
    /// CPU time of its ranks so far, in microseconds.
    pub cpu_micros: u64,
}

/// End of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobEndView {
    /// Number of the attempt; 0 if none had begun.
    pub attempt: u32,
    /// Time of its end.
    pub at: Millis,
    /// Cause of its end, as text for people.
    pub cause: String,
    /// Ends of ranks, those that failed first.
    pub ends: Vec<RankEnd>,
}

/// States of a job, in the order of its life.
pub const JOB_STATES: [&str; 7] =
    ["queued", "starting", "running", "backing_off", "succeeded", "failed", "cancelled"];

/// Job as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobView {
    /// Id of the job.
    pub id: JobId,
    /// Name of the approved job.
    pub job: ServiceName,
    /// State: one of [`JOB_STATES`].
    pub state: String,
    /// Time of the last change of state.
    pub since: Millis,
    /// Time of submission.
    pub submitted_at: Millis,
    /// Time after which no attempt begins.
    pub deadline: Millis,
    /// Party that submitted.
    pub submitter: Submitter,
    /// Priority in the queue.
    pub priority: u32,
    /// Value of each parameter that the submission sets.
    pub parameters: BTreeMap<ParameterName, String>,
    /// Jobs and arrays that succeed before an attempt begins.
    pub after: Vec<JobId>,
    /// Task of an array that it is.
    pub array: Option<ArrayTask>,
    /// Number of attempts so far.
    pub attempts: u32,
    /// Number of attempts that failed.
    pub failures: u32,
    /// Number of attempts that lost a node.
    pub lost_nodes: u32,
    /// Number of attempts that were preempted.
    pub preemptions: u32,
    /// Reason for which it waits; none if it does not, or this replica does not lead.
    pub waits: Option<JobWaitView>,
    /// Slots of the present attempt.
    pub slots: Vec<JobSlotView>,
    /// End of the last attempt.
    pub last_end: Option<JobEndView>,
    /// Reserved amounts and spend of all its attempts so far, with what its slots hold now.
    pub used: UsageAmounts,
}

impl JobView {
    /// Returns whether the job never runs again unless a person retries it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "cancelled")
    }
}

/// Line of a rank, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobLogLine {
    /// Number of the line within the job, since this leader began; the next page begins after it.
    pub sequence: u64,
    /// Number of the attempt.
    pub attempt: u32,
    /// Rank that wrote it.
    pub rank: u32,
    /// Number of the line within its rank and attempt, which rises and is the same at every leader.
    pub number: u64,
    /// Node of the rank.
    pub node: NodeName,
    /// Number of lines of this rank that were dropped just before this one.
    pub dropped: u64,
    /// Text of the line.
    pub text: String,
}

/// Page of the lines of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobLogPage {
    /// Epoch of the leader that kept the lines; another one has numbered its lines from the beginning.
    pub epoch: u64,
    /// Lines, oldest first.
    pub items: Vec<JobLogLine>,
}

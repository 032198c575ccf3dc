//! Jobs of the replicated state: submissions, their attempts, and the slots that gangs hold.
//!
//! Slots and fences belong to the approved job; submissions come and go. Finished jobs are forgotten, oldest
//! first, and fences remain.

use crate::clock::ClusterTime;
use crate::kept_data::KeptJobData;
use crate::limits::{
    JOB_BACKOFF_MS, JOB_BACKOFF_MS_MAX, JOB_ENDS_KEPT_MAX, JOB_LOST_NODES_MAX, JOBS_FINISHED_MAX,
};
use crate::usage::MeterName;
use protocol::canonical::to_bytes;
use protocol::job::{ArrayTask, JobSubmission, SignedSubmission, SlotRanks, Submitter};
use protocol::job_report::{RankEnd, RankOutcome};
use protocol::{Digest, ErrorCode, Fence, JobId, Millis, NodeId, ServiceName, SlotIndex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Digest domain of the key under which a submission is found again.
const KEY_DOMAIN: &str = "quorate/job-key/v1";

/// Digest domain of the id of an array.
const ARRAY_DOMAIN: &str = "quorate/job-array/v1";

/// All jobs that are not forgotten, and the slots of approved jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobBook {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Job of each submitter's key of idempotency.
    pub(crate) keys: BTreeMap<Digest, JobId>,
    pub(crate) slots: BTreeMap<ServiceName, BTreeMap<SlotIndex, JobSlot>>,
}

/// A job: one submission, with all of its attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Submission, as nodes verify it.
    pub signed: SignedSubmission,
    /// Size in bytes of the submission and of the jobs that it awaits at first.
    pub bytes: u64,
    /// Time at which it was accepted.
    pub submitted_at: ClusterTime,
    /// State of its life.
    pub state: JobState,
    /// Time of the last change of state.
    pub since: ClusterTime,
    /// Number of attempts so far; the last one has this number.
    pub attempts: u32,
    /// Number of attempts that failed, of those that count towards the manifest's retries.
    pub failures: u32,
    /// Number of attempts that lost a node.
    pub lost_nodes: u32,
    /// Number of attempts that made room for work of a higher priority, or were halted.
    pub preemptions: u32,
    /// End of the last attempt that ended, or of the job before one began.
    pub last_end: Option<AttemptEnd>,
    /// Jobs that it follows and that have not succeeded yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub awaits: BTreeSet<JobId>,
    /// Checkpoints that are kept, oldest first; at most as many as the manifest says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<KeptJobData>,
    /// Outputs of the present attempt, or of one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Box<KeptJobData>>,
    /// Logs of slots that have ended, by attempt and slot; at most
    /// [`JOB_LOGS_MAX`](crate::limits::JOB_LOGS_MAX), those of the latest attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<KeptJobData>,
}

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobState {
    /// Waits for its gang to be placed.
    Queued,
    /// Every slot of its gang is ordered; not all are ready.
    Starting,
    /// Every slot was ready: the ranks run.
    Running,
    /// An attempt ended; the next is placed from a time on.
    BackingOff {
        /// Time until which no attempt begins.
        until: ClusterTime,
    },
    /// Every rank exited with code 0.
    Succeeded,
    /// No attempt is left, or none may begin.
    Failed,
    /// Cancelled by order.
    Cancelled,
}

impl JobState {
    /// Returns whether the job has ended.
    #[must_use]
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Returns whether its gang holds slots that run or are to run.
    #[must_use]
    pub fn is_placed(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }

    /// Returns the name of the state.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::BackingOff { .. } => "backing_off",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// End of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptEnd {
    /// Number of the attempt; 0 if none had begun.
    pub attempt: u32,
    /// Time of its end.
    pub at: ClusterTime,
    /// Cause of its end.
    pub cause: EndCause,
    /// Ends of ranks that its nodes had reported, those that failed first; at most
    /// [`JOB_ENDS_KEPT_MAX`](crate::limits::JOB_ENDS_KEPT_MAX).
    pub ends: Vec<RankEnd>,
    /// Slots of its gang with their nodes, which may still send its lines and leave its logs.
    pub holders: Vec<EndedHolder>,
}

/// Node that held a slot of an attempt until its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedHolder {
    /// Node that held the slot.
    pub node: NodeId,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of its order.
    pub fence: Fence,
    /// Ranks of the slot.
    pub ranks: SlotRanks,
}

/// Cause of an attempt's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EndCause {
    /// Every rank exited with code 0.
    Succeeded,
    /// A rank ended in another way.
    RankFailed(RankEnd),
    /// A node refused its order.
    Refused {
        /// Code of the refusal.
        code: ErrorCode,
        /// Cause, as text for people.
        message: String,
    },
    /// A node fell silent or forgot its slot.
    NodeLost(NodeId),
    /// Not every slot was ready in time.
    NotReady,
    /// The ranks ran for as long as the manifest allows.
    TimeLimit,
    /// The attempt made room, or a halt covers it; the cause is text for people.
    Preempted(String),
    /// The deadline of the submission passed before an attempt began.
    Deadline,
    /// The approval was replaced or retired.
    Withdrawn,
    /// A job that it follows was forgotten before it had succeeded.
    Unfollowed(JobId),
    /// An operator cancelled the job; the actor is text.
    Cancelled(String),
}

impl std::fmt::Display for EndCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Succeeded => f.write_str("every rank exited with code 0"),
            Self::RankFailed(end) => write!(f, "rank {}: {}", end.rank, end.outcome),
            Self::Refused { code, message } => write!(f, "a node refused its order: {code}: {message}"),
            Self::NodeLost(node) => write!(f, "node {} was lost", node.short()),
            Self::NotReady => f.write_str("not every slot was ready in time"),
            Self::TimeLimit => f.write_str("the run time of the manifest is over"),
            Self::Preempted(cause) => write!(f, "preempted: {cause}"),
            Self::Deadline => f.write_str("the deadline of the submission has passed"),
            Self::Withdrawn => f.write_str("the approval was replaced or retired"),
            Self::Unfollowed(id) => {
                write!(f, "job {}, which it follows, did not succeed and is forgotten", id.short())
            }
            Self::Cancelled(actor) => write!(f, "cancelled by {actor}"),
        }
    }
}

/// Numbered slot of an approved job.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSlot {
    /// Fence of its last order.
    pub fence: Fence,
    /// Current holding; none if the slot is free.
    pub holding: Option<JobHolding>,
}

/// Part of a gang that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobHolding {
    /// Job of the gang.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Certificate that approves the job.
    pub certificate: Digest,
    /// Node that holds the slot.
    pub node: NodeId,
    /// Ranks that it runs.
    pub ranks: SlotRanks,
    /// GPUs of these ranks, in their order.
    pub gpus: Vec<RankGpu>,
    /// Time of the order.
    pub issued_at: Millis,
    /// Progress from running to free.
    pub phase: JobHoldingPhase,
}

/// GPU of a rank, by both of its names on its node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankGpu {
    /// Index, by which capacity is counted.
    pub index: u32,
    /// UUID, by which the order names it.
    pub uuid: String,
}

/// Phase of a job's held slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobHoldingPhase {
    /// Part of the present attempt.
    Active,
    /// Withdrawn; its node has not confirmed the end yet.
    Ending {
        /// Generation in which it was withdrawn.
        generation: u64,
    },
    /// Its node is no longer admitted; the slot is free when the last lease ends.
    Lapsing,
}

/// A job's slot under a specific order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSlotName {
    /// Name of the approved job.
    pub job: ServiceName,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of the order.
    pub fence: Fence,
}

impl JobSlotName {
    /// Returns the name of the slot's meter.
    pub(crate) fn meter(&self) -> MeterName {
        MeterName { envelope: self.job.clone(), slot: self.slot, fence: self.fence, stored: None }
    }
}

/// Returns the subject of events about a job.
pub(crate) fn subject_of(id: JobId) -> String {
    format!("job/{}", id.short())
}

/// Returns the digest under which a submission is found again by its submitter's key.
pub(crate) fn key_of(submitter: &Submitter, idempotency: &Digest) -> Digest {
    Digest::of_domain(KEY_DOMAIN, &to_bytes(&(submitter, idempotency)))
}

/// Returns the id of the array that a submitter makes under a key of idempotency.
#[must_use]
pub fn array_id(submitter: &Submitter, idempotency: &Digest) -> JobId {
    JobId(Digest::of_domain(ARRAY_DOMAIN, &to_bytes(&(submitter, idempotency))))
}

/// Returns the size of what is kept of a submission, in bytes.
pub(crate) fn kept_bytes(signed: &SignedSubmission, awaits: &BTreeSet<JobId>) -> u64 {
    (to_bytes(signed).len() + awaits.len() * Digest::LENGTH) as u64
}

/// Returns the time in milliseconds for which a job that has failed this often waits.
pub(crate) fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    let wait = (JOB_BACKOFF_MS << doublings).min(JOB_BACKOFF_MS_MAX);
    debug_assert!(wait >= JOB_BACKOFF_MS, "each failure is followed by a wait");
    wait
}

impl Job {
    /// Returns the submission.
    #[must_use]
    pub fn submission(&self) -> &JobSubmission {
        &self.signed.submission
    }

    /// Changes the state.
    fn turn(&mut self, state: JobState, now: ClusterTime) {
        debug_assert!(self.since <= now, "a job changes in the order of time");
        (self.state, self.since) = (state, now);
    }
}

impl JobBook {
    /// Returns the jobs that are not forgotten, by id.
    #[must_use]
    pub fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }

    /// Returns the tasks of an array that are not forgotten.
    pub(crate) fn tasks(&self, array: JobId) -> impl Iterator<Item = (ArrayTask, JobId, &Job)> {
        self.jobs.iter().filter_map(move |(id, job)| {
            let task = job.submission().array.filter(|task| task.array == array)?;
            Some((task, *id, job))
        })
    }

    /// Returns the slots that are held, in any phase.
    pub fn held(&self) -> impl Iterator<Item = (JobSlotName, &JobHolding)> {
        self.slots.iter().flat_map(|(name, slots)| {
            slots.iter().filter_map(move |(index, slot)| {
                let label = JobSlotName { job: name.clone(), slot: *index, fence: slot.fence };
                Some((label, slot.holding.as_ref()?))
            })
        })
    }

    /// Returns the slots of a job's present attempt.
    pub fn gang(&self, id: JobId) -> impl Iterator<Item = (JobSlotName, &JobHolding)> {
        self.held().filter(move |(_, held)| held.id == id && held.phase == JobHoldingPhase::Active)
    }

    /// Keeps a new submission.
    pub(crate) fn insert(
        &mut self,
        id: JobId,
        signed: SignedSubmission,
        awaits: BTreeSet<JobId>,
        now: ClusterTime,
    ) {
        let key = key_of(&signed.submission.submitter, &signed.submission.idempotency);
        let before = self.keys.insert(key, id);
        debug_assert_eq!(before, None, "a key names one submission");
        let job = Job {
            bytes: kept_bytes(&signed, &awaits),
            signed,
            awaits,
            submitted_at: now,
            state: JobState::Queued,
            since: now,
            attempts: 0,
            failures: 0,
            lost_nodes: 0,
            preemptions: 0,
            last_end: None,
            checkpoints: Vec::new(),
            outputs: None,
            logs: Vec::new(),
        };
        self.jobs.insert(id, job);
    }

    /// Ends the present attempt of a job, or the job before one began. `retries` is the number of failures
    /// after which another attempt follows; none if no attempt may follow.
    pub(crate) fn end(
        &mut self,
        id: JobId,
        cause: EndCause,
        mut ends: Vec<RankEnd>,
        retries: Option<u32>,
        at: (ClusterTime, u64),
    ) {
        let (now, generation) = at;
        let holder = |(name, held): (JobSlotName, &JobHolding)| {
            let (node, ranks) = (held.node, held.ranks);
            EndedHolder { node, slot: name.slot, fence: name.fence, ranks }
        };
        let holders = self.gang(id).map(holder).collect();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        debug_assert!(!job.state.is_finished(), "a finished job does not end again");
        ends.sort_by_key(|end| (end.outcome.is_success(), end.outcome == RankOutcome::Stopped, end.rank));
        ends.truncate(JOB_ENDS_KEPT_MAX);
        let again = |until| if retries.is_some() { JobState::BackingOff { until } } else { JobState::Failed };
        let next = match &cause {
            EndCause::Succeeded => JobState::Succeeded,
            EndCause::Cancelled(_) => JobState::Cancelled,
            EndCause::TimeLimit | EndCause::Deadline | EndCause::Withdrawn | EndCause::Unfollowed(_) => {
                JobState::Failed
            }
            EndCause::RankFailed(_) | EndCause::Refused { .. } | EndCause::NotReady => {
                job.failures = job.failures.saturating_add(1);
                let left = retries.is_some_and(|retries| job.failures <= retries);
                if left { again(now.plus(backoff_ms(job.failures))) } else { JobState::Failed }
            }
            EndCause::NodeLost(_) => {
                job.lost_nodes = job.lost_nodes.saturating_add(1);
                let left = job.lost_nodes <= JOB_LOST_NODES_MAX;
                if left { again(now.plus(JOB_BACKOFF_MS)) } else { JobState::Failed }
            }
            EndCause::Preempted(_) => {
                job.preemptions = job.preemptions.saturating_add(1);
                if retries.is_some() { JobState::Queued } else { JobState::Failed }
            }
        };
        job.settle_outputs(&cause);
        job.last_end = Some(AttemptEnd { attempt: job.attempts, at: now, cause, ends, holders });
        job.turn(next, now);
        let slots = self.slots.values_mut().flat_map(BTreeMap::values_mut);
        for holding in slots.filter_map(|slot| slot.holding.as_mut()).filter(|held| held.id == id) {
            if holding.phase == JobHoldingPhase::Active {
                holding.phase = JobHoldingPhase::Ending { generation };
            }
        }
        if next == JobState::Succeeded {
            for job in self.jobs.values_mut() {
                job.awaits.remove(&id);
            }
        }
        self.forget_oldest(now);
        debug_assert!(self.gang(id).next().is_none(), "an attempt that ended holds no slot");
    }

    /// Places a finished job into the queue again; its attempts count on.
    pub(crate) fn requeue(&mut self, id: JobId, now: ClusterTime) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        debug_assert!(job.state.is_finished(), "only a finished job is retried");
        debug_assert!(job.attempts > 0 || job.last_end.is_some(), "a finished job has an end");
        (job.failures, job.lost_nodes, job.preemptions) = (0, 0, 0);
        job.turn(JobState::Queued, now);
    }

    /// Records that all slots of an attempt are ordered, or that all are ready.
    pub(crate) fn advance(&mut self, id: JobId, state: JobState, now: ClusterTime) {
        debug_assert!(state.is_placed(), "an attempt is starting or running");
        let Some(job) = self.jobs.get_mut(&id) else { return };
        debug_assert!(!job.state.is_finished(), "a finished job has no attempt");
        if state == JobState::Starting {
            job.attempts = job.attempts.saturating_add(1);
        }
        job.turn(state, now);
    }

    /// Forgets the oldest finished jobs beyond the limit. Those that follow one of them end.
    fn forget_oldest(&mut self, now: ClusterTime) {
        loop {
            let finished = || self.jobs.iter().filter(|(_, job)| job.state.is_finished());
            let surplus = finished().count().saturating_sub(JOBS_FINISHED_MAX);
            if surplus == 0 {
                break;
            }
            let mut oldest: Vec<(ClusterTime, JobId)> =
                finished().map(|(id, job)| (job.since, *id)).collect();
            oldest.sort_unstable();
            // A job that ends here is finished, and may be one too many in turn.
            oldest.into_iter().take(surplus).for_each(|(_, id)| self.forget(id, now));
        }
        debug_assert_eq!(self.keys.len(), self.jobs.len(), "each job has its key");
    }

    /// Forgets a finished job, and ends the jobs that follow it if it did not succeed.
    fn forget(&mut self, id: JobId, now: ClusterTime) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.keys.remove(&key_of(&job.submission().submitter, &job.submission().idempotency));
        let follows = |job: &&mut Job| job.awaits.contains(&id) && !job.state.is_finished();
        for follower in self.jobs.values_mut().filter(follows) {
            debug_assert!(!follower.state.is_placed(), "no attempt begins before those it follows");
            let (attempt, cause) = (follower.attempts, EndCause::Unfollowed(id));
            follower.last_end =
                Some(AttemptEnd { attempt, at: now, cause, ends: Vec::new(), holders: Vec::new() });
            follower.turn(JobState::Failed, now);
        }
    }

    /// Moves every recorded time as `moved` says.
    pub(crate) fn move_times(&mut self, moved: impl Fn(ClusterTime) -> ClusterTime) {
        for job in self.jobs.values_mut() {
            job.submitted_at = moved(job.submitted_at);
            job.since = moved(job.since);
            if let JobState::BackingOff { until } = &mut job.state {
                *until = moved(*until);
            }
            if let Some(end) = &mut job.last_end {
                end.at = moved(end.at);
            }
            job.data_mut().for_each(|kept| kept.registered_at = moved(kept.registered_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{CircleId, PublicKey};

    const NODE: NodeId = NodeId(PublicKey([1; 32]));

    fn submission(number: u64) -> SignedSubmission {
        let submission = JobSubmission {
            circle: CircleId(Digest::of(b"circle")),
            job: "train".parse().expect("a name"),
            certificate: Digest::of(b"certificate"),
            idempotency: Digest::of(&number.to_le_bytes()),
            parameters: BTreeMap::new(),
            artifact: None,
            command: None,
            priority: 1,
            submitter: Submitter::Token("ann".parse().expect("a name")),
            issued_at: Millis(1),
            deadline: Millis(1_000_000),
            after: vec![],
            array: None,
        };
        SignedSubmission { submission, signature: None }
    }

    fn book() -> (JobBook, JobId) {
        let (mut book, signed) = (JobBook::default(), submission(0));
        let id = signed.submission.id();
        book.insert(id, signed, BTreeSet::new(), ClusterTime(Millis(5)));
        (book, id)
    }

    /// Begins an attempt and ends it for this cause; returns the state that follows.
    fn fail(book: &mut JobBook, id: JobId, cause: EndCause, retries: Option<u32>) -> JobState {
        book.advance(id, JobState::Starting, book.jobs[&id].since);
        book.end(id, cause, vec![], retries, (book.jobs[&id].since, 9));
        book.jobs[&id].state
    }

    #[test]
    fn failures_lost_nodes_and_preemptions_are_counted_apart() {
        let (mut book, id) = book();
        let failure = || EndCause::RankFailed(RankEnd { rank: 0, outcome: RankOutcome::OutOfMemory });
        assert!(matches!(fail(&mut book, id, failure(), Some(1)), JobState::BackingOff { .. }));
        assert!(matches!(
            fail(&mut book, id, EndCause::NodeLost(NODE), Some(1)),
            JobState::BackingOff { .. }
        ));
        let preempted = EndCause::Preempted("a service".into());
        assert_eq!(fail(&mut book, id, preempted, Some(1)), JobState::Queued);
        let job = &book.jobs[&id];
        assert_eq!((job.attempts, job.failures, job.lost_nodes, job.preemptions), (3, 1, 1, 1));
        assert_eq!(fail(&mut book, id, failure(), Some(1)), JobState::Failed, "no retry is left");
    }

    #[test]
    fn no_attempt_follows_under_an_approval_that_has_ended() {
        for cause in [EndCause::NodeLost(NODE), EndCause::NotReady, EndCause::Preempted("x".into())] {
            let (mut book, id) = book();
            assert_eq!(fail(&mut book, id, cause, None), JobState::Failed);
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let waits: Vec<u64> = (1..=40).map(backoff_ms).collect();
        assert_eq!(waits[1], 2 * waits[0]);
        assert!(waits.is_sorted() && waits[39] == JOB_BACKOFF_MS_MAX);
    }

    #[test]
    fn the_oldest_finished_jobs_are_forgotten_with_their_keys() {
        let mut book = JobBook::default();
        for number in 0..=JOBS_FINISHED_MAX as u64 {
            let signed = submission(number);
            let (id, now) = (signed.submission.id(), ClusterTime(Millis(number)));
            book.insert(id, signed, BTreeSet::new(), now);
            book.end(id, EndCause::Deadline, vec![], None, (now, 1));
        }
        assert_eq!((book.jobs.len(), book.keys.len()), (JOBS_FINISHED_MAX, JOBS_FINISHED_MAX));
        assert!(!book.jobs.contains_key(&submission(0).submission.id()), "the oldest");
    }

    #[test]
    fn a_retried_job_starts_its_counts_anew() {
        let (mut book, id) = book();
        fail(&mut book, id, EndCause::NotReady, Some(0));
        book.requeue(id, ClusterTime(Millis(6)));
        let job = &book.jobs[&id];
        assert_eq!((job.state, job.attempts, job.failures), (JobState::Queued, 1, 0));
    }
}

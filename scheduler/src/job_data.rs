//! Checkpoints, outputs and logs of jobs that control keeps: the newest, under the fence in force.
//!
//! Control keeps statements and wraps of keys, never a key. Data that it forgets is garbage in the stores.

use crate::clock::ClusterTime;
use crate::cluster::Cluster;
use crate::jobs::{EndCause, Job, JobBook, JobHolding};
use crate::kept_data::KeptJobData;
use crate::limits::{JOB_DATA_BYTES_MAX, JOB_LOGS_MAX};
use protocol::job_data::{JobDataKind, JobDataSource, JobDataView, MemberJobData};
use protocol::model::{ModelRecord, Recipient};
use protocol::{CheckpointName, JobId, MemberId, ModelRoot};
use std::collections::BTreeMap;

impl Job {
    /// Returns the data of the job: its checkpoints, oldest first, then its outputs, then its logs by attempt
    /// and slot.
    pub fn data(&self) -> impl Iterator<Item = &KeptJobData> {
        self.checkpoints.iter().chain(self.outputs.as_deref()).chain(&self.logs)
    }

    /// Returns the same data to be changed.
    pub(crate) fn data_mut(&mut self) -> impl Iterator<Item = &mut KeptJobData> {
        self.checkpoints.iter_mut().chain(self.outputs.as_deref_mut()).chain(&mut self.logs)
    }

    /// Keeps a checkpoint, and forgets those beyond the newest `count`. One of the same name from an earlier
    /// attempt goes: a resumed run makes the same step again.
    fn keep_checkpoint(&mut self, kept: KeptJobData, count: usize) {
        self.checkpoints.retain(|other| other.name() != kept.name());
        self.checkpoints.push(kept);
        let surplus = self.checkpoints.len().saturating_sub(count);
        self.checkpoints.drain(..surplus);
        debug_assert!(self.checkpoints.len() <= count, "only the newest are kept");
    }

    /// Keeps the logs of a slot, and forgets those of the first attempts beyond the bound.
    fn keep_logs(&mut self, kept: KeptJobData) {
        let place = self.logs.partition_point(|other| other.place() < kept.place());
        self.logs.insert(place, kept);
        let surplus = self.logs.len().saturating_sub(JOB_LOGS_MAX);
        self.logs.drain(..surplus);
        debug_assert!(self.logs.is_sorted_by(|one, next| one.place() < next.place()), "one of each slot");
    }

    /// Returns the size of the data that goes first when there is no room: that on which no result depends.
    fn spare_bytes(&self) -> u64 {
        self.checkpoints.iter().chain(&self.logs).map(|kept| kept.bytes).sum()
    }

    /// Forgets the checkpoints after this one, so that the next attempt begins with it; false if there is no
    /// such checkpoint.
    pub(crate) fn return_to(&mut self, name: &CheckpointName) -> bool {
        let place = self.checkpoints.iter().position(|kept| kept.name() == Some(name));
        let Some(at) = place else { return false };
        self.checkpoints.truncate(at + 1);
        debug_assert_eq!(self.checkpoints.last().and_then(KeptJobData::name), Some(name), "the newest");
        true
    }

    /// Forgets outputs of an attempt in which a rank failed: they are no result.
    pub(crate) fn settle_outputs(&mut self, cause: &EndCause) {
        if *cause != EndCause::Succeeded {
            self.outputs = None;
        }
    }
}

impl JobBook {
    /// Returns all kept data of jobs.
    pub fn all_data(&self) -> impl Iterator<Item = (JobId, &KeptJobData)> {
        self.jobs.iter().flat_map(|(id, job)| job.data().map(move |kept| (*id, kept)))
    }

    /// Returns the total size of all kept data of jobs in bytes.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.all_data().map(|(_, kept)| kept.bytes).sum()
    }

    /// Keeps data of a job; `count` is the number of checkpoints that it keeps.
    pub(crate) fn keep_data(&mut self, id: JobId, kept: KeptJobData, count: usize) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match kept.signed.data.kind {
            JobDataKind::Outputs => job.outputs = Some(Box::new(kept)),
            JobDataKind::Checkpoint(_) => job.keep_checkpoint(kept, count),
            JobDataKind::Logs => job.keep_logs(kept),
        }
    }

    fn finished(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.jobs.iter().filter(|(_, job)| job.state.is_finished()).map(|(id, job)| (*id, job))
    }

    /// Returns whether there is room for this many bytes of data, if checkpoints and logs of finished jobs
    /// go.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let freed: u64 = self.finished().map(|(_, job)| job.spare_bytes()).sum();
        debug_assert!(freed <= self.data_bytes(), "a part of all data");
        self.data_bytes().saturating_sub(freed).saturating_add(bytes) <= JOB_DATA_BYTES_MAX
    }

    /// Makes room for this many bytes of data: checkpoints and logs of finished jobs go, those of the oldest
    /// first.
    pub(crate) fn make_room(&mut self, bytes: u64) {
        let mut held = self.data_bytes();
        let mut oldest: Vec<(ClusterTime, JobId)> =
            self.finished().map(|(id, job)| (job.since, id)).collect();
        oldest.sort_unstable();
        for (_, id) in oldest {
            if held.saturating_add(bytes) <= JOB_DATA_BYTES_MAX {
                break;
            }
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            held -= job.spare_bytes();
            job.checkpoints.clear();
            job.logs.clear();
        }
        debug_assert_eq!(held, self.data_bytes(), "what went is counted");
    }

    /// Drops the wraps of all recipients for which this holds.
    pub(crate) fn drop_data_wraps(&mut self, is_useless: impl Fn(&Recipient) -> bool) {
        for job in self.jobs.values_mut() {
            job.data_mut().for_each(|kept| kept.wraps.retain(|wrap| !is_useless(&wrap.recipient)));
        }
    }

    /// Returns the checkpoint with which an attempt begins: the newest of an earlier attempt whose node is
    /// admitted, and whose key every node of the gang has. The slots of a gang begin with the same one.
    pub(crate) fn checkpoint_for(&self, cluster: &Cluster, held: &JobHolding) -> Option<JobDataSource> {
        let job = self.jobs.get(&held.id)?;
        let is_usable = |kept: &&KeptJobData| {
            let data = &kept.signed.data;
            let is_open = self.gang(held.id).all(|(_, part)| kept.is_open_to(part.node));
            data.attempt < held.attempt && cluster.node(&data.node).is_some() && is_open
        };
        let newest = job.checkpoints.iter().rev().find(is_usable)?;
        debug_assert!(newest.name().is_some(), "outputs are kept apart");
        Some(newest.source(&Recipient::Node(held.node)))
    }
}

/// Returns the data of a job for people; none if the job is not known.
#[must_use]
pub fn job_data_views(cluster: &Cluster, id: JobId) -> Option<Vec<JobDataView>> {
    let view = |kept: &KeptJobData| {
        let data = &kept.signed.data;
        JobDataView {
            kind: data.kind.clone(),
            attempt: data.attempt,
            ranks: data.ranks,
            fence: data.fence,
            node: cluster.node_name(&data.node),
            bytes: data.stored.bytes,
            tree: data.tree(),
            root: data.stored.root,
            registered_at: kept.registered_at.0,
        }
    };
    Some(cluster.jobs().jobs().get(&id)?.data().map(view).collect())
}

/// Returns the data of a job with its keys for one member; none if the job is not known.
#[must_use]
pub fn member_job_data(cluster: &Cluster, id: JobId, member: &MemberId) -> Option<MemberJobData> {
    let job = cluster.jobs().jobs().get(&id)?;
    let recipient = Recipient::Member(member.clone());
    let items: Vec<JobDataSource> = job.data().map(|kept| kept.source(&recipient)).collect();
    debug_assert!(
        items.iter().filter_map(|item| item.wrap.as_ref()).all(|wrap| wrap.recipient == recipient),
        "a wrap leaves control for its recipient alone"
    );
    Some(MemberJobData { items })
}

/// Returns the stored items of all kept data of jobs, by root: a collection of garbage keeps these.
#[must_use]
pub fn stored_job_data(cluster: &Cluster) -> BTreeMap<ModelRoot, ModelRecord> {
    let stored = cluster.jobs().all_data().map(|(_, kept)| &kept.signed.data.stored);
    stored.map(|record| (record.root, record.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::JobState;
    use protocol::job::{JobSubmission, SignedSubmission, SlotRanks, Submitter};
    use protocol::job_data::{JobData, JobDataKind, RegisterJobData, SignedJobData};
    use protocol::model::{ErasureCode, StoredKind};
    use protocol::{ArtifactRoot, CircleId, Digest, Fence, Millis, NodeId, PublicKey, Signature, SlotIndex};
    use std::collections::BTreeSet;

    fn time(ms: u64) -> ClusterTime {
        ClusterTime(Millis(ms))
    }

    /// Returns a book with these many running jobs.
    fn book(jobs: u8) -> (JobBook, Vec<JobId>) {
        let mut book = JobBook::default();
        let submission = |number: u8| JobSubmission {
            circle: CircleId(Digest::of(b"circle")),
            job: "train".parse().expect("a name"),
            certificate: Digest::of(b"certificate"),
            idempotency: Digest::of(&[number]),
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
        let signed =
            (0..jobs).map(|number| SignedSubmission { submission: submission(number), signature: None });
        let ids = signed.map(|signed| {
            let id = signed.submission.id();
            book.insert(id, signed, BTreeSet::new(), time(1));
            book.advance(id, JobState::Starting, time(1));
            id
        });
        let ids: Vec<JobId> = ids.collect();
        (book, ids)
    }

    fn kept(id: JobId, kind: JobDataKind, bytes: u64) -> KeptJobData {
        let stored = ModelRecord {
            name: "data".parse().expect("a name"),
            kind: StoredKind::JobData { tree: ArtifactRoot(Digest::of(b"tree")) },
            root: ModelRoot(Digest::of(kind.to_string().as_bytes())),
            bytes: 1,
            segments: 1,
            erasure: ErasureCode { data: 1, parity: 1 },
            stores: Vec::new(),
            architecture: "data".into(),
        };
        let data = JobData {
            version: 1,
            circle: CircleId(Digest::of(b"circle")),
            node: NodeId(PublicKey([1; 32])),
            job: "train".parse().expect("a name"),
            id,
            attempt: 1,
            slot: SlotIndex(0),
            fence: Fence::new(1, 1),
            ranks: SlotRanks { first: 0, count: 1 },
            kind,
            stored,
            key_commitment: Digest::of(b"key"),
            wraps: Digest::of(b"wraps"),
        };
        let signed = SignedJobData { data, signature: Signature([0; 64]) };
        let request = RegisterJobData { signed, wraps: Vec::new() };
        KeptJobData { bytes, ..KeptJobData::new(request, time(2)) }
    }

    fn checkpoint(name: &str) -> JobDataKind {
        JobDataKind::Checkpoint(name.parse().expect("a name"))
    }

    /// Returns the number of checkpoints of each job.
    fn counts(book: &JobBook, ids: &[JobId]) -> Vec<usize> {
        ids.iter().map(|id| book.jobs()[id].checkpoints.len()).collect()
    }

    /// The attack is a job that leaves checkpoints without end: those of jobs that run stay.
    #[test]
    fn checkpoints_of_finished_jobs_make_room_and_those_of_others_do_not() {
        let (mut book, ids) = book(3);
        let third = JOB_DATA_BYTES_MAX / 3;
        for id in &ids {
            book.keep_data(*id, kept(*id, checkpoint("step-1"), third), 4);
        }
        assert!(book.has_room(1) && !book.has_room(2), "every job runs");
        for (at, id) in [(5, ids[1]), (4, ids[0])] {
            book.end(id, EndCause::Deadline, Vec::new(), None, (time(at), 1));
        }
        assert!(book.has_room(2 * third) && !book.has_room(3 * third));
        book.make_room(1);
        assert_eq!(counts(&book, &ids), [1, 1, 1], "what fits costs nothing");
        book.make_room(third);
        assert_eq!(counts(&book, &ids), [0, 1, 1], "the one that ended first");
        book.make_room(2 * third);
        assert_eq!(counts(&book, &ids), [0, 0, 1]);
    }

    #[test]
    fn outputs_stay_when_checkpoints_make_room() {
        let (mut book, ids) = book(1);
        let half = JOB_DATA_BYTES_MAX / 2;
        book.keep_data(ids[0], kept(ids[0], checkpoint("step-1"), half), 4);
        book.keep_data(ids[0], kept(ids[0], JobDataKind::Outputs, half), 4);
        book.end(ids[0], EndCause::Succeeded, Vec::new(), Some(0), (time(4), 1));
        assert!(book.has_room(half) && !book.has_room(half + 2));
        book.make_room(half);
        let job = &book.jobs()[&ids[0]];
        assert_eq!((job.checkpoints.len(), job.outputs.is_some()), (0, true));
        assert_eq!(book.data_bytes(), half);
    }

    #[test]
    fn a_job_keeps_the_logs_of_a_bounded_number_of_slots_those_of_its_first_attempts_go() {
        let (mut book, ids) = book(1);
        let of = |attempt: u32, slot: u32| {
            let mut kept = kept(ids[0], JobDataKind::Logs, 1);
            (kept.signed.data.attempt, kept.signed.data.slot) = (attempt, SlotIndex(slot));
            kept
        };
        let slots = u32::try_from(JOB_LOGS_MAX).expect("small") - 1;
        for slot in (0..slots).rev() {
            book.keep_data(ids[0], of(2, slot), 0);
        }
        book.keep_data(ids[0], of(1, 3), 0);
        book.keep_data(ids[0], of(3, 0), 0);
        let places: Vec<_> = book.jobs()[&ids[0]].logs.iter().map(KeptJobData::place).collect();
        assert_eq!((places.len(), places[0]), (JOB_LOGS_MAX, (2, SlotIndex(0))));
        assert_eq!(places.last(), Some(&(3, SlotIndex(0))));
        book.end(ids[0], EndCause::Succeeded, Vec::new(), Some(0), (time(4), 1));
        book.make_room(JOB_DATA_BYTES_MAX);
        assert_eq!(book.data_bytes(), 0, "they make room like checkpoints");
    }

    #[test]
    fn a_return_forgets_what_came_after() {
        let (mut book, ids) = book(1);
        for name in ["step-1", "step-2", "step-3"] {
            book.keep_data(ids[0], kept(ids[0], checkpoint(name), 1), 4);
        }
        let job = book.jobs.get_mut(&ids[0]).expect("it is known");
        assert!(!job.return_to(&"step-9".parse().expect("a name")));
        assert_eq!(job.checkpoints.len(), 3);
        assert!(job.return_to(&"step-2".parse().expect("a name")));
        let names: Vec<String> =
            job.checkpoints.iter().filter_map(KeptJobData::name).map(ToString::to_string).collect();
        assert_eq!(names, ["step-1", "step-2"]);
    }

    #[test]
    fn times_of_kept_data_move_with_the_clock() {
        let (mut book, ids) = book(1);
        book.keep_data(ids[0], kept(ids[0], checkpoint("step-1"), 1), 4);
        book.keep_data(ids[0], kept(ids[0], JobDataKind::Outputs, 1), 4);
        book.move_times(|_| time(1));
        assert!(book.all_data().all(|(_, kept)| kept.registered_at == time(1)));
    }
}

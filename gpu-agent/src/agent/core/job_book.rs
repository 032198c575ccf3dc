//! The job book: the slots of jobs that this node holds, and the highest fence of every slot it ever held.
//!
//! One slot serves all submissions of its job in turn, so the fences are bounded by the approved manifests. A
//! slot starts only under the grant in memory. The file on disk grants nothing: a restarted agent reports a
//! slot that had not ended as lost.

use super::fences::{BookError, BookHead, Fences};
use super::{GangOrders, SlotKey};
use human_chain::{Approved, JobGrant};
use protocol::agent_state::{JOB_BOOK_VERSION, JobBookRecord};
use protocol::job::{JobOrder, SlotRanks};
use protocol::job_report::{JobSlotReport, JobSlotState, RankEnd, RankOutcome};
use protocol::{CircleId, Fence, NodeId, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A slot of a job that is held.
#[derive(Debug, Clone)]
pub struct HeldJob {
    /// Slot as accepted, or as it ended.
    pub report: JobSlotReport,
    /// Verified grant; none if an earlier agent accepted the order, so nothing starts under it.
    pub grant: Option<Arc<Approved<JobGrant>>>,
    /// Verified orders of its gang; none where there is no grant. Later answers of control do not change
    /// them.
    pub gang: Option<Arc<GangOrders>>,
}

impl HeldJob {
    /// Returns whether nothing runs under its order any more, and nothing will.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.report.state == JobSlotState::Ended
    }
}

/// End of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSlotEnd {
    /// End of each rank, by rank.
    pub ends: Vec<RankEnd>,
    /// Cause for which it did not start, or the node ended it; none otherwise.
    pub refusal: Option<Refusal>,
    /// CPU time of all ranks in microseconds.
    pub cpu_micros: u64,
}

impl JobSlotEnd {
    /// Returns the end of a slot all of whose ranks ended for the same cause.
    #[must_use]
    pub fn of_all(ranks: SlotRanks, outcome: RankOutcome, refusal: Option<Refusal>) -> Self {
        let end = ranks.first.saturating_add(ranks.count);
        let ends: Vec<RankEnd> = (ranks.first..end).map(|rank| RankEnd { rank, outcome }).collect();
        debug_assert!(ends.is_sorted_by_key(|end| end.rank), "ends are listed by rank");
        Self { ends, refusal, cpu_micros: 0 }
    }
}

/// Returns the key of an order's slot. Jobs and services share one name space.
#[must_use]
pub fn job_key(order: &JobOrder) -> SlotKey {
    SlotKey { service: order.submission.submission.job.clone(), slot: order.slot }
}

/// Returns the report of a slot whose order was accepted just now.
#[must_use]
pub fn accepted_report(order: &JobOrder) -> JobSlotReport {
    JobSlotReport {
        job: order.submission.submission.job.clone(),
        id: order.submission.submission.id(),
        attempt: order.attempt,
        slot: order.slot,
        fence: order.fence,
        ranks: order.ranks,
        state: JobSlotState::Preparing,
        ends: Vec::new(),
        refusal: None,
        cpu_micros: 0,
    }
}

/// Slots of jobs of one node, and their fences.
#[derive(Debug, Clone, Default)]
pub struct JobOrderBook {
    fences: Fences,
    held: BTreeMap<SlotKey, HeldJob>,
}

impl JobOrderBook {
    /// Returns the highest fence ever accepted for a slot.
    #[must_use]
    pub fn last_fence(&self, key: &SlotKey) -> Option<Fence> {
        self.fences.highest(key)
    }

    /// Returns what is held for a slot.
    #[must_use]
    pub fn held(&self, key: &SlotKey) -> Option<&HeldJob> {
        self.held.get(key)
    }

    /// Returns all that is held, by slot.
    pub fn all_held(&self) -> impl Iterator<Item = (&SlotKey, &HeldJob)> {
        self.held.iter()
    }

    /// Returns the grants under which a slot runs or may start, by slot.
    pub fn all_granted(&self) -> impl Iterator<Item = (&SlotKey, &JobGrant)> {
        let live = self.held.iter().filter(|(_, held)| !held.is_ended());
        live.filter_map(|(key, held)| Some((key, held.grant.as_ref()?.get())))
    }

    /// Records an order as accepted; it replaces what was held for its slot.
    ///
    /// # Panics
    /// If the grant does not belong to the order, or its fence is not above the last: verification rules out
    /// both.
    pub fn accept(&mut self, order: &JobOrder, grant: Approved<JobGrant>, gang: GangOrders) {
        let (key, fence) = (job_key(order), order.fence);
        let granted = grant.get();
        assert!(granted.manifest.name == key.service && granted.slot == key.slot && granted.fence == fence);
        self.fences.raise(key.clone(), fence);
        debug_assert_eq!((gang.members.id, gang.members.attempt), (granted.id, granted.attempt));
        let (grant, gang) = (Some(Arc::new(grant)), Some(Arc::new(gang)));
        let held = HeldJob { report: accepted_report(order), grant, gang };
        self.held.insert(key, held);
    }

    /// Records the end of a slot under this fence. Control gets the report until it no longer names the
    /// order. Returns whether the slot was held under it and had not ended.
    pub fn end(&mut self, key: &SlotKey, fence: Fence, end: JobSlotEnd) -> bool {
        let Some(held) = self.held.get_mut(key).filter(|held| held.report.fence == fence) else {
            return false;
        };
        if held.is_ended() {
            return false;
        }
        let JobSlotEnd { ends, refusal, cpu_micros } = end;
        let report = &mut held.report;
        (report.state, report.ends, report.refusal) = (JobSlotState::Ended, ends, refusal);
        report.cpu_micros = cpu_micros;
        true
    }

    /// Removes a slot. Its fence stays.
    pub fn forget(&mut self, key: &SlotKey) {
        self.held.remove(key);
    }

    /// Checks that every held slot has the key and the highest fence of its slot.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub fn check_invariants(&self) -> Result<(), String> {
        for (key, held) in &self.held {
            let report = &held.report;
            if (&report.job, report.slot) != (&key.service, key.slot) {
                return Err(format!("the slot {}/{} is held as {key}", report.job, report.slot));
            }
            self.fences.check_held(key, report.fence)?;
        }
        Ok(())
    }

    /// Returns the record to persist.
    #[must_use]
    pub fn to_record(&self, circle: CircleId, node: NodeId) -> JobBookRecord {
        JobBookRecord {
            version: JOB_BOOK_VERSION,
            circle,
            node,
            fences: self.fences.to_list(),
            held: self.held.values().map(|held| held.report.clone()).collect(),
        }
    }

    /// Restores a book from the record of an earlier agent. Slots that had not ended are lost: their
    /// sandboxes ended with the lease of that agent, or end now.
    ///
    /// # Errors
    /// [`BookError`]: the whole record must be discarded.
    pub fn from_record(record: JobBookRecord, circle: CircleId, node: NodeId) -> Result<Self, BookError> {
        let head = BookHead { version: record.version, circle: record.circle, node: record.node };
        head.check(BookHead { version: JOB_BOOK_VERSION, circle, node })?;
        let mut book = Self { fences: Fences::from_list(record.fences)?, held: BTreeMap::new() };
        for report in record.held {
            let key = SlotKey { service: report.job.clone(), slot: report.slot };
            let (fence, ranks) = (report.fence, report.ranks);
            if book.last_fence(&key) != Some(fence) {
                return Err(BookError::Contradiction("a held slot's fence is not its highest"));
            }
            book.held.insert(key.clone(), HeldJob { report, grant: None, gang: None });
            book.end(&key, fence, JobSlotEnd::of_all(ranks, RankOutcome::Lost, None));
        }
        debug_assert_eq!(book.check_invariants(), Ok(()), "a record that was read");
        Ok(book)
    }
}

//! Reconciliation of the slots of jobs: verification of their orders, and the actions that follow.
//!
//! Control decides when a gang starts, after all of its slots are ready; a node does not know whether they
//! are. It verifies everything else: nothing starts without a grant, nothing that a halt covers, and a slot's
//! next order is not accepted while anything runs under its last one.

use super::halts::halt_on;
use super::job_book::{JobOrderBook, job_key};
use super::job_room::HeldByJobs;
use super::verifier::may_be_early;
use super::{GangOrders, NodeFacts, Refusal, SlotKey};
use human_chain::{Approved, CircleState, HaltBook, JobGrant, check_gang, check_job_order};
use protocol::agent::NodeResources;
use protocol::job::SignedJobOrder;
use protocol::job_report::{JOB_REPORTS_MAX, JobAssignment};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::sandbox::LOCAL_RANKS_MAX;
use protocol::{Fence, Millis, error_code};
use std::collections::BTreeMap;

/// Input of a reconciliation of job slots.
#[derive(Debug, Clone, Copy)]
pub struct JobInput<'a> {
    /// Current state of the circle.
    pub circle: &'a CircleState,
    /// Halts that the node has taken.
    pub halts: &'a HaltBook,
    /// Facts about the node, with all of its resources.
    pub facts: &'a NodeFacts,
    /// Resources that no slot of a service holds.
    pub free: &'a NodeResources,
    /// Slots accepted before.
    pub book: &'a JobOrderBook,
    /// Trusted time of the node.
    pub now: Millis,
    /// Slots of jobs that control assigns to this node.
    pub assigned: &'a [JobAssignment],
    /// Whether the chain was complete when control assigned them.
    pub chain_complete: bool,
    /// Fence under which each slot runs or is prepared.
    pub running: &'a BTreeMap<SlotKey, Fence>,
}

/// An action to carry out, in the order returned.
#[derive(Debug, PartialEq, Eq)]
pub enum JobAction {
    /// Persist the order as accepted. The next reconciliation prepares its slot.
    Accept {
        /// Order to persist.
        signed: Box<SignedJobOrder>,
        /// Proof that the order is granted.
        grant: Box<Approved<JobGrant>>,
        /// Verified orders of the whole gang.
        gang: Box<GangOrders>,
    },
    /// Fetch the artifact of the held order, and wait for the start.
    Prepare {
        /// Slot to prepare.
        key: SlotKey,
    },
    /// Let the ranks start: control reports that all slots of the attempt are ready.
    Start {
        /// Slot to start.
        key: SlotKey,
    },
    /// Ask the ranks to end, and kill them after the grace of the envelope.
    End {
        /// Slot to end.
        key: SlotKey,
        /// Explanation for logs.
        reason: String,
    },
    /// Nothing runs under the held order and nothing may: record its end.
    Close {
        /// Slot to close.
        key: SlotKey,
        /// Reason with its code.
        refusal: Refusal,
    },
    /// Control no longer names the held order and nothing runs: remove it from the book.
    Forget {
        /// Slot whose order is removed.
        key: SlotKey,
    },
    /// Report to control that the order is refused.
    Refuse {
        /// Refused order.
        signed: Box<SignedJobOrder>,
        /// Reason with its code.
        refusal: Refusal,
    },
}

/// Returns the actions that reconcile the node's job slots with those that control assigns.
#[must_use]
pub fn reconcile_jobs(input: &JobInput<'_>) -> Vec<JobAction> {
    debug_assert_eq!(input.book.check_invariants(), Ok(()), "the job book");
    let named = newest(input.assigned);
    let mut room = HeldByJobs::of(input.book.all_granted());
    let mut actions = Vec::new();
    for (key, assignment) in &named {
        let settled = settle(input, key, assignment, &room);
        if let Some(JobAction::Accept { grant, .. }) = &settled {
            room.add(key, grant.get());
        }
        actions.extend(settled);
    }
    for key in input.running.keys().filter(|key| !named.contains_key(*key)) {
        actions.push(JobAction::End { key: key.clone(), reason: "control names it no more".into() });
    }
    for (key, _) in input.book.all_held() {
        if !named.contains_key(key) && !input.running.contains_key(key) {
            actions.push(JobAction::Forget { key: key.clone() });
        }
    }
    actions
}

/// Returns the assignment with the highest fence of each slot, of as many slots as a report holds.
fn newest(assigned: &[JobAssignment]) -> BTreeMap<SlotKey, &JobAssignment> {
    let mut newest: BTreeMap<SlotKey, &JobAssignment> = BTreeMap::new();
    for assignment in assigned.iter().take(JOB_REPORTS_MAX / 2) {
        let kept = newest.entry(job_key(&assignment.order.order)).or_insert(assignment);
        if assignment.order.order.fence > kept.order.order.fence {
            *kept = assignment;
        }
    }
    debug_assert!(newest.len() <= assigned.len(), "one assignment of each slot counts");
    newest
}

/// Returns the action for a slot that control names.
fn settle(
    input: &JobInput<'_>,
    key: &SlotKey,
    assignment: &JobAssignment,
    room: &HeldByJobs,
) -> Option<JobAction> {
    let signed = &assignment.order;
    debug_assert_eq!(job_key(&signed.order), *key, "the order is of this slot");
    let is_running = input.running.contains_key(key);
    let held = input.book.held(key).filter(|held| {
        let (report, order) = (&held.report, &signed.order);
        (report.fence, report.attempt) == (order.fence, order.attempt)
            && report.id == order.submission.submission.id()
    });
    let Some(held) = held else {
        if is_running {
            return Some(JobAction::End { key: key.clone(), reason: "another order takes its place".into() });
        }
        return verify(input, key, assignment, room);
    };
    if held.is_ended() {
        return None;
    }
    let required = held.grant.as_ref().map(|grant| required_end(input, grant.get()));
    let key = key.clone();
    match required {
        None => None,
        Some(Some(refusal)) if is_running => Some(JobAction::End { key, reason: refusal.message }),
        Some(Some(refusal)) => Some(JobAction::Close { key, refusal }),
        Some(None) if !is_running => Some(JobAction::Prepare { key }),
        Some(None) => assignment.start.then_some(JobAction::Start { key }),
    }
}

/// Returns the action for an order that the node does not hold.
fn verify(
    input: &JobInput<'_>,
    key: &SlotKey,
    assignment: &JobAssignment,
    room: &HeldByJobs,
) -> Option<JobAction> {
    debug_assert!(!input.running.contains_key(key), "nothing runs in the slot");
    let signed = &assignment.order;
    let granted = grant_job(input, key, signed, room).and_then(|grant| {
        let members = check_gang(input.circle, grant.get(), &assignment.peers, input.now)?;
        Ok((grant, GangOrders { members, own: signed.clone(), peers: assignment.peers.clone() }))
    });
    match granted {
        Ok((grant, gang)) => Some(JobAction::Accept {
            signed: Box::new(signed.clone()),
            grant: Box::new(grant),
            gang: Box::new(gang),
        }),
        Err(refusal) if !input.chain_complete && may_be_early(&refusal) => None,
        Err(refusal) => Some(JobAction::Refuse { signed: Box::new(signed.clone()), refusal }),
    }
}

/// Verifies an order: the checks of `human_chain`, halts, and those that only the node itself can make.
fn grant_job(
    input: &JobInput<'_>,
    key: &SlotKey,
    signed: &SignedJobOrder,
    room: &HeldByJobs,
) -> Result<Approved<JobGrant>, Refusal> {
    let last = input.book.last_fence(key);
    let grant = check_job_order(input.circle, signed, input.facts.id, last, input.now)?;
    debug_assert!(last.is_none_or(|last| grant.get().fence > last), "a grant is above the last fence");
    if let Some(halted) = halt_on(input.halts, input.circle, input.facts.id, &key.service) {
        return Err(halted);
    }
    check_node(input.facts, grant.get())?;
    room.check(key, grant.get(), input.free)?;
    Ok(grant)
}

/// Checks the requirements of the envelope that only the node can evaluate.
fn check_node(facts: &NodeFacts, grant: &JobGrant) -> Result<(), Refusal> {
    let manifest = &grant.manifest;
    if !manifest.egress.is_empty() {
        let message = format!("job `{}` asks for egress, which is not built yet", manifest.name);
        return Err(Refusal::new(error_code::EGRESS_NOT_BUILT, message));
    }
    let (asked, given) = (manifest.placement.isolation, facts.isolation);
    if given < asked {
        let message = format!("the manifest asks for isolation {asked}, this node gives {given}");
        return Err(Refusal::new(error_code::NODE_UNFIT, message));
    }
    if grant.ranks.len() > LOCAL_RANKS_MAX {
        let message = format!("{} ranks in one slot; accepted: at most {LOCAL_RANKS_MAX}", grant.ranks.len());
        return Err(Refusal::new(error_code::NODE_UNFIT, message));
    }
    for uuid in &grant.gpus {
        let Some(gpu) = facts.resources.gpus.iter().find(|gpu| gpu.uuid == *uuid) else {
            return Err(Refusal::new(error_code::NODE_UNFIT, format!("this node has no GPU `{uuid}`")));
        };
        if !manifest.gpu_models.is_empty() && !manifest.gpu_models.contains(&gpu.name) {
            let message = format!("GPU `{uuid}` is a `{}`, which the envelope does not list", gpu.name);
            return Err(Refusal::new(error_code::NODE_UNFIT, message));
        }
    }
    Ok(())
}

/// Checks the circle's own decisions about a held slot: the node does not wait for control to relay them. A
/// version that took the place of the approved one ends nothing: the run was approved, and its time is
/// limited.
fn required_end(input: &JobInput<'_>, grant: &JobGrant) -> Option<Refusal> {
    let name = &grant.manifest.name;
    if input.circle.node_by_id(input.facts.id).is_none() {
        let message = "this node is no longer admitted";
        return Some(Refusal::new(error_code::NODE_NOT_ADMITTED, message));
    }
    if let Some(halted) = halt_on(input.halts, input.circle, input.facts.id, name) {
        return Some(halted);
    }
    if input.circle.job(name).is_none() {
        return Some(Refusal::new(error_code::ORDER_NOT_APPROVED, format!("job `{name}` is retired")));
    }
    let until = grant.manifest.valid_until?;
    (input.now > until.plus(CLOCK_GRACE_MS)).then(|| {
        let message = format!("the approval of job `{name}` has ended");
        Refusal::new(error_code::ORDER_NOT_APPROVED, message)
    })
}

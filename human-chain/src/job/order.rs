//! Verification of a job's order by the node that receives it: whether it may run these ranks.
//!
//! The order names a submission within an approved job. The checks here hold though control is hostile:
//! nothing runs beyond the manifest's program, parameters, slots, ranks, resources and submitters.

use super::rank::derive_rank;
use super::submission::check_submission;
use super::{RankCommand, rank_host};
use crate::approved::{Approved, Basis};
use crate::order::{check_count, placement_allows};
use crate::subject::service_subject;
use crate::{ApprovedJob, ChainError, CircleState};
use protocol::governance::NodeRole;
use protocol::job::{JobOrder, SignedJobOrder, SlotRanks};
use protocol::manifest::{JobManifest, Resources};
use protocol::{Digest, Fence, JobId, Millis, NodeId, SlotIndex};
use std::collections::BTreeSet;

/// Maximum length of a GPU's UUID in bytes: NVML's are 40, those of a MIG instance 80.
const GPU_UUID_BYTES_MAX: usize = 96;

/// Grant of a slot of a job to a node, derived from a verified order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobGrant {
    /// Approved manifest: the envelope.
    pub manifest: JobManifest,
    /// Job that the slot runs: the id of its submission.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of the order.
    pub fence: Fence,
    /// Node that holds the slot.
    pub node: NodeId,
    /// Places of the ranks of the slot within the gang.
    pub place: SlotRanks,
    /// Command of each rank of the slot, in order; resources are those of the manifest for each.
    pub ranks: Vec<RankCommand>,
    /// Host name of each rank of the slot, in order.
    pub hosts: Vec<String>,
    /// UUIDs of the GPUs of all these ranks.
    pub gpus: Vec<String>,
    /// Digest of the certificate that approves the job.
    pub certificate: Digest,
}

/// Verifies an order for a job's slot that this node does not hold yet.
///
/// `last_fence` is the highest fence that this node ever accepted for the slot of this job, kept on disk. One
/// slot serves all submissions in turn, so what is kept is bounded by the manifest, and finished submissions
/// are forgotten. Isolation, free resources and the models of the GPUs are checked by the node: it alone
/// knows them.
///
/// `now` is the node's trusted time. Validity is judged at that time or at the time of issue, whichever is
/// later.
///
/// # Errors
/// Returns the first check that fails, in this order: signature and signer; circle; node and its admission;
/// submission, see [`check_submission`]; fence; attempt, slot, ranks and GPUs within the manifest; role,
/// region and labels of the node.
pub fn check_job_order(
    state: &CircleState,
    signed: &SignedJobOrder,
    this_node: NodeId,
    last_fence: Option<Fence>,
    now: Millis,
) -> Result<Approved<JobGrant>, ChainError> {
    let order = &signed.order;
    if !state.is_control_key(&signed.signer) || !signed.signature_holds() {
        return Err(ChainError::OrderSignatureInvalid);
    }
    if order.circle != state.id() {
        return Err(mismatch(order, "it belongs to another circle"));
    }
    if order.node != this_node {
        return Err(mismatch(order, "it is for another node"));
    }
    let node = state.node_by_id(this_node).ok_or(ChainError::NodeNotAdmitted(this_node))?;
    if order.certificate != order.submission.submission.certificate {
        return Err(mismatch(order, "its submission is to another certificate"));
    }
    let job = check_submission(state, &order.submission, now.max(order.issued_at))?;
    if let Some(last) = last_fence.filter(|last| order.fence <= *last) {
        return Err(ChainError::OrderReplayed { slot: order.slot, fence: order.fence, last });
    }
    check_count(order.fence, job.version, last_fence).map_err(|reason| mismatch(order, reason))?;
    check_extent(order, &job.manifest)?;
    if !node.roles.contains(&NodeRole::Worker) {
        return Err(mismatch(order, "this node is not admitted as a worker"));
    }
    if !placement_allows(&job.manifest.placement, node) {
        return Err(mismatch(order, "the envelope excludes this node's region or labels"));
    }
    grant(state, order, job)
}

/// Checks that attempt, slot, ranks and GPUs are within the manifest.
fn check_extent(order: &JobOrder, manifest: &JobManifest) -> Result<(), ChainError> {
    if order.attempt == 0 {
        return Err(mismatch(order, "attempts are counted from 1"));
    }
    if order.slot.0 >= manifest.slots {
        return Err(mismatch(order, "the envelope has no such slot"));
    }
    let end = order.ranks.first.checked_add(order.ranks.count);
    let within = end.is_some_and(|end| end <= manifest.ranks);
    if !within || !(1..=manifest.ranks_per_slot).contains(&order.ranks.count) {
        return Err(mismatch(order, "its ranks are none, or not those that the envelope grants to a slot"));
    }
    if !gpus_fit(&manifest.resources, order) {
        return Err(mismatch(order, "its GPUs are not as many as the envelope grants, or no UUIDs"));
    }
    Ok(())
}

/// Returns the number of GPUs of each rank: one for a share.
fn gpus_per_rank(resources: &Resources) -> usize {
    debug_assert!(resources.gpu_share_percent == 0 || resources.gpu_count == 0, "a share or whole GPUs");
    if resources.gpu_share_percent > 0 { 1 } else { resources.gpu_count as usize }
}

/// Checks that each rank has as many GPUs as the manifest grants. Whole GPUs are of one rank each; ranks that
/// have a share may have it of the same GPU.
fn gpus_fit(resources: &Resources, order: &JobOrder) -> bool {
    let is_uuid = |uuid: &String| {
        (1..=GPU_UUID_BYTES_MAX).contains(&uuid.len())
            && uuid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let wanted = gpus_per_rank(resources).checked_mul(order.ranks.count as usize);
    let distinct: BTreeSet<&String> = order.gpus.iter().collect();
    let is_whole = resources.gpu_share_percent == 0;
    wanted == Some(order.gpus.len())
        && order.gpus.iter().all(is_uuid)
        && (!is_whole || distinct.len() == order.gpus.len())
}

#[expect(
    clippy::disallowed_methods,
    reason = "one of the functions that mint: an order was checked against a verified approval"
)]
fn grant(state: &CircleState, order: &JobOrder, job: &ApprovedJob) -> Result<Approved<JobGrant>, ChainError> {
    let (manifest, submission) = (&job.manifest, &order.submission.submission);
    debug_assert_eq!((order.circle, order.certificate), (state.id(), job.certificate));
    debug_assert!(order.slot.0 < manifest.slots, "slot {} is outside the envelope", order.slot);
    let per_rank = gpus_per_rank(&manifest.resources);
    let command = |local: u32| {
        let first = local as usize * per_rank;
        let gpus = order.gpus.get(first..first + per_rank).unwrap_or_default();
        derive_rank(manifest, submission, order.ranks, order.ranks.first + local, gpus)
    };
    let ranks = (0..order.ranks.count).map(command).collect::<Result<Vec<_>, _>>()?;
    let basis = Basis {
        circle: state.id(),
        epoch: state.epoch(),
        subjects: vec![state.subject(&service_subject(&manifest.name))],
        decided_at: order.issued_at,
        passkey_uses: Vec::new(),
    };
    let grant = JobGrant {
        manifest: manifest.clone(),
        id: submission.id(),
        attempt: order.attempt,
        slot: order.slot,
        fence: order.fence,
        node: order.node,
        place: order.ranks,
        hosts: (0..order.ranks.count).map(|local| rank_host(order.ranks.first + local)).collect(),
        ranks,
        gpus: order.gpus.clone(),
        certificate: job.certificate,
    };
    debug_assert_eq!(grant.ranks.len(), grant.hosts.len(), "each rank has its host");
    Ok(Approved::after_verification(grant, job.certificate, job.proposal, basis))
}

pub(super) fn mismatch(order: &JobOrder, reason: &'static str) -> ChainError {
    let service = order.submission.submission.job.clone();
    ChainError::OrderMismatch { service, slot: order.slot, reason }
}

//! Verification of orders by the node that receives them: whether it may run this numbered slot.
//!
//! An order grants nothing. It refers to an approved deployment; the checks here verify that its envelope
//! lets this node hold the slot under this fence.
//!
//! An order may return a slot to the approval before, if the certificate in force names that one and its
//! manifest says so. Such an order names the earlier certificate, under a fence of the one in force.

use crate::approved::{Approved, Basis};
use crate::circle::EarlierApproval;
use crate::subject::service_subject;
use crate::{ChainError, CircleState};
use protocol::governance::{NodeAdmission, NodeRole};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::manifest::{Placement, Resources, ServiceManifest};
use protocol::order::{SignedOrder, SlotOrder};
use protocol::{Digest, Fence, Millis, NodeId, ProposalId, SlotIndex};

/// Maximum number of counts that an order's fence may leave out: 2^20, more orders than a slot ever gets
/// under one certificate while a node is away.
pub const FENCE_LEAP_MAX: u64 = 1 << 20;

/// Grant of a slot to a node, derived from a verified order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotGrant {
    /// Manifest of the service: the envelope.
    pub service: ServiceManifest,
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Fence of the order.
    pub fence: Fence,
    /// Node that holds the slot.
    pub node: NodeId,
    /// Indices of the node's GPUs that the slot uses.
    pub gpus: Vec<u32>,
    /// Digest of the certificate that approves the service.
    pub certificate: Digest,
}

/// Approval under which an order runs: the one in force, or the one before, to which that returns.
#[derive(Clone, Copy)]
struct OrderedApproval<'a> {
    manifest: &'a ServiceManifest,
    certificate: Digest,
    proposal: ProposalId,
    /// Version of the certificate in force, whose fences count.
    version: u64,
}

/// Verifies an order that this node does not hold yet.
///
/// `last_fence` is the highest fence this node ever accepted for the slot, kept on disk. Control resends an
/// order that the node already holds. The caller must compare such an order for equality first; here it
/// counts as replayed. Isolation is not checked here: only the node itself knows the isolation that it can
/// enforce.
///
/// `now` is the node's trusted time. Validity is judged at that time or at the time of issue, whichever is
/// later: a slow clock starts nothing that control itself ordered after the approval had ended.
///
/// # Errors
/// Returns the first check that fails, in this order: signature and signer; circle; node and its admission;
/// fence; certificate in force, or the one that it names for a return; validity; version and count of the
/// fence; slot and GPUs within the envelope; role, region and labels of the node.
pub fn check_order(
    state: &CircleState,
    signed: &SignedOrder,
    this_node: NodeId,
    last_fence: Option<Fence>,
    now: Millis,
) -> Result<Approved<SlotGrant>, ChainError> {
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
    if let Some(last) = last_fence.filter(|last| order.fence <= *last) {
        return Err(ChainError::OrderReplayed { slot: order.slot, fence: order.fence, last });
    }
    let service = approved_service(state, order, now.max(order.issued_at))?;
    check_count(order.fence, service.version, last_fence).map_err(|reason| mismatch(order, reason))?;
    if order.slot.0 >= service.manifest.replicas.max {
        return Err(mismatch(order, "the envelope has no such slot"));
    }
    if !gpus_fit(&service.manifest.resources, &order.gpus) {
        return Err(mismatch(order, "its GPUs are not as many as the envelope grants, or not sorted"));
    }
    if !node.roles.contains(&NodeRole::Worker) {
        return Err(mismatch(order, "this node is not admitted as a worker"));
    }
    if !placement_allows(&service.manifest.placement, node) {
        return Err(mismatch(order, "the envelope excludes this node's region or labels"));
    }
    Ok(grant(state, order, service))
}

/// Checks that a fence is of the certificate in force, and counts on from the last one under it. One order
/// with a huge fence would otherwise block its slot indefinitely.
pub(crate) fn check_count(fence: Fence, version: u64, last_fence: Option<Fence>) -> Result<(), &'static str> {
    if fence.version != version {
        return Err("its fence is not of the certificate in force");
    }
    let counted = last_fence.filter(|last| last.version == version).map_or(0, |last| last.count);
    if fence.count == 0 || fence.count - 1 > counted.saturating_add(FENCE_LEAP_MAX) {
        return Err("the count of its fence does not go on from the last one");
    }
    Ok(())
}

/// Checks that an envelope's regions and labels allow a node. Isolation is checked separately, because the
/// node reports it and its admission does not state it.
#[must_use]
pub fn placement_allows(placement: &Placement, node: &NodeAdmission) -> bool {
    let region = placement.regions.is_empty() || placement.regions.contains(&node.region);
    region && placement.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
}

/// Checks that there are as many GPUs as the replica is granted (one for a share), each once, sorted.
fn gpus_fit(resources: &Resources, gpus: &[u32]) -> bool {
    debug_assert!(
        resources.gpu_share_percent == 0 || resources.gpu_count == 0,
        "an approved envelope grants a share or whole GPUs"
    );
    let granted = if resources.gpu_share_percent > 0 { 1 } else { resources.gpu_count as usize };
    gpus.len() == granted && gpus.windows(2).all(|pair| pair[0] < pair[1])
}

fn approved_service<'a>(
    state: &'a CircleState,
    order: &SlotOrder,
    now: Millis,
) -> Result<OrderedApproval<'a>, ChainError> {
    let refuse = |reason| Err(ChainError::OrderNotApproved { service: order.service.clone(), reason });
    let Some(service) = state.service(&order.service) else {
        return match state.retired_service(&order.service) {
            Some(_) => refuse("the service is retired"),
            None => refuse("no certificate approves the service"),
        };
    };
    debug_assert_eq!(service.manifest.name, order.service, "a service is approved under its own name");
    let version = service.version;
    let in_force = OrderedApproval {
        manifest: &service.manifest,
        certificate: service.certificate,
        proposal: service.proposal,
        version,
    };
    let named = if service.certificate == order.certificate {
        in_force
    } else if let Some(before) = service.returns_to(&order.certificate) {
        debug_assert!(service.manifest.may_return(), "an approval names one to return to if it says so");
        let EarlierApproval { manifest, certificate, proposal } = before;
        OrderedApproval { manifest, certificate: *certificate, proposal: *proposal, version }
    } else {
        return refuse("it names a certificate that is not the one in force, nor the one it returns to");
    };
    let is_over = |approval: OrderedApproval<'_>| {
        approval.manifest.valid_until.is_some_and(|until| now > until.plus(CLOCK_GRACE_MS))
    };
    if is_over(in_force) || is_over(named) {
        return refuse("the approval has ended");
    }
    Ok(named)
}

#[expect(
    clippy::disallowed_methods,
    reason = "one of the functions that mint: an order was checked against a verified approval"
)]
fn grant(state: &CircleState, order: &SlotOrder, service: OrderedApproval<'_>) -> Approved<SlotGrant> {
    let envelope = service.manifest;
    debug_assert_eq!((order.circle, order.certificate), (state.id(), service.certificate));
    debug_assert!(order.slot.0 < envelope.replicas.max, "slot {} is outside the envelope", order.slot);
    debug_assert!(gpus_fit(&envelope.resources, &order.gpus), "{:?} are not the granted GPUs", order.gpus);
    debug_assert!(
        state.node_by_id(order.node).is_some_and(|node| placement_allows(&envelope.placement, node))
    );
    let basis = Basis {
        circle: state.id(),
        epoch: state.epoch(),
        subjects: vec![state.subject(&service_subject(&order.service))],
        decided_at: order.issued_at,
        passkey_uses: Vec::new(),
    };
    let grant = SlotGrant {
        service: service.manifest.clone(),
        slot: order.slot,
        fence: order.fence,
        node: order.node,
        gpus: order.gpus.clone(),
        certificate: service.certificate,
    };
    Approved::after_verification(grant, service.certificate, service.proposal, basis)
}

fn mismatch(order: &SlotOrder, reason: &'static str) -> ChainError {
    ChainError::OrderMismatch { service: order.service.clone(), slot: order.slot, reason }
}

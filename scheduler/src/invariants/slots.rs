//! Rules about services, their slots and the orders in force.

use super::Invariant::{
    DesiredInsideEnvelope, ExclusiveHeldOnce, GpuAllocatedOnce, ListBounded, ManifestsInUse,
    OrderInsideEnvelope, OrderIsApproved, OrderNamesSlot, OrderOnAdmittedNode, RecordedInPast, ReturnIsNamed,
    ServicePhase as ServicePhaseRule,
};
use super::{InvariantResult, ensure};
use crate::allocation::{GPU_PERCENT_MAX, allocated_gpus};
use crate::clock::ClusterTime;
use crate::cluster::{Cluster, Holding, HoldingPhase, Service, ServicePhase, Slot};
use crate::limits::FORMER_HOLDERS_MAX;
use crate::roll_out::RollOutPhase;
use protocol::governance::Change;
use protocol::{ServiceName, SlotIndex};
use std::collections::BTreeSet;

pub(super) fn check(cluster: &Cluster) -> InvariantResult {
    for (name, service) in &cluster.services {
        check_service(cluster, name, service)?;
        for (index, slot) in &service.slots {
            check_slot(cluster, name, *index, slot)?;
        }
    }
    check_manifests(cluster)?;
    check_gpus(cluster)
}

fn check_service(cluster: &Cluster, name: &ServiceName, service: &Service) -> InvariantResult {
    let range = service.manifest.replicas;
    ensure((range.min..=range.max).contains(&service.desired), DesiredInsideEnvelope, || {
        format!("{name} wants {} of {} to {} replicas", service.desired, range.min, range.max)
    })?;
    let holds_slots = service.held().next().is_some();
    let approved = cluster.circle_state().is_some_and(|state| state.service(name).is_some());
    let agrees = match service.phase {
        ServicePhase::Active => approved,
        ServicePhase::Retiring { .. } => !approved && holds_slots,
        ServicePhase::Retired => !approved && !holds_slots,
    };
    let manifest = cluster.manifests.get(&service.certificate);
    let in_force = service.phase == ServicePhase::Retired || manifest == Some(&service.manifest);
    ensure(agrees && in_force && service.manifest.name == *name, ServicePhaseRule, || name.to_string())?;
    check_return(cluster, name, service)
}

/// Checks that a service runs under the approval in force, or under the one to which that lets it return.
fn check_return(cluster: &Cluster, name: &ServiceName, service: &Service) -> InvariantResult {
    let Some(approved) = cluster.circle_state().and_then(|state| state.service(name)) else { return Ok(()) };
    let before = approved.before.as_ref().map(|before| before.certificate);
    let certificate = match &service.roll_out.phase {
        RollOutPhase::Returned { from, .. } if *from == approved.certificate => before,
        RollOutPhase::Returned { .. } => None,
        RollOutPhase::Progressing | RollOutPhase::Complete => Some(approved.certificate),
    };
    let named = service.before.map(|target| target.certificate) == before;
    let runs = certificate == Some(service.certificate) && service.version == approved.version;
    ensure(named && runs, ReturnIsNamed, || name.to_string())
}

fn check_slot(cluster: &Cluster, name: &ServiceName, index: SlotIndex, slot: &Slot) -> InvariantResult {
    let subject = || format!("{name}/{index}");
    ensure(slot.fence.count > 0 && slot.fence.version > 0, OrderNamesSlot, subject)?;
    ensure(slot.since <= cluster.now, RecordedInPast, subject)?;
    ensure(slot.former_holders.len() <= FORMER_HOLDERS_MAX, ListBounded, subject)?;
    let held_before = slot.former_holders.iter().all(|former| former.fence <= slot.fence);
    ensure(held_before, OrderNamesSlot, subject)?;
    match &slot.holding {
        Some(holding) => check_holding(cluster, name, index, slot, holding),
        None => Ok(()),
    }
}

fn check_holding(
    cluster: &Cluster,
    name: &ServiceName,
    index: SlotIndex,
    slot: &Slot,
    holding: &Holding,
) -> InvariantResult {
    let (order, subject) = (&holding.order, || format!("{name}/{index}"));
    let names_slot = order.service == *name && order.slot == index && order.fence == slot.fence;
    ensure(names_slot && Some(order.circle) == cluster.circle_id(), OrderNamesSlot, subject)?;
    // An order keeps its time when the cluster's is set back: its node has its bytes.
    let in_order = ClusterTime(order.issued_at) <= slot.since || cluster.corrections > 0;
    ensure(in_order, RecordedInPast, subject)?;
    let certified = cluster.bundle(&order.certificate).map(|bundle| &bundle.certificate.proposal.change);
    let approves =
        matches!(certified, Some(Change::Deploy(manifest)) if manifest.name().as_str() == name.as_str());
    let manifest = cluster.manifests.get(&order.certificate);
    ensure(approves && manifest.is_some(), OrderIsApproved, subject)?;
    ensure(manifest.is_some_and(|known| index.0 < known.replicas.max), OrderInsideEnvelope, subject)?;
    let exclusive = manifest.is_none_or(|known| known.exclusive);
    ensure(holding.phase != HoldingPhase::Silent || !exclusive, ExclusiveHeldOnce, subject)?;
    let lapses = holding.phase == HoldingPhase::Lapsing;
    ensure(lapses != cluster.node(&order.node).is_some(), OrderOnAdmittedNode, subject)?;
    let ended_in = match holding.phase {
        HoldingPhase::Ending { generation } => generation,
        _ => 0,
    };
    ensure(ended_in <= cluster.generation, RecordedInPast, subject)
}

fn check_manifests(cluster: &Cluster) -> InvariantResult {
    let live = || cluster.services.values().filter(|service| service.phase != ServicePhase::Retired);
    let mut in_use: BTreeSet<_> = live().map(|service| service.certificate).collect();
    in_use.extend(live().filter_map(|service| service.before).map(|target| target.certificate));
    in_use.extend(cluster.holdings().map(|(_, _, holding)| holding.order.certificate));
    let kept: BTreeSet<_> = cluster.manifests.keys().copied().collect();
    ensure(kept == in_use, ManifestsInUse, || format!("{} kept, {} in use", kept.len(), in_use.len()))
}

fn check_gpus(cluster: &Cluster) -> InvariantResult {
    let mut allocated = allocated_gpus(&cluster.services, &cluster.manifests, |_| true);
    for (gpu, percent) in cluster.jobs.allocated_gpus(cluster) {
        *allocated.entry(gpu).or_default() += percent;
    }
    for ((node, gpu), percent) in allocated {
        ensure(percent <= GPU_PERCENT_MAX, GpuAllocatedOnce, || {
            format!("{percent} % of GPU {gpu} of {}", cluster.node_name(&node))
        })?;
    }
    Ok(())
}

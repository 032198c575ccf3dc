//! Rules about a change of the state: what rises, and what is never taken back.

use super::Invariant::{ChainGrows, CountsRise, FenceRises};
use super::{InvariantResult, ensure};
use crate::cluster::{Cluster, Slot};
use crate::jobs::JobSlot;

pub(super) fn check(before: &Cluster, next: &Cluster) -> InvariantResult {
    check_counts(before, next)?;
    check_chain(before, next)?;
    for (name, service) in &before.services {
        for (index, slot) in &service.slots {
            let later = next.services.get(name).and_then(|service| service.slots.get(index));
            ensure(later.is_some_and(|later| follows(slot, later)), FenceRises, || {
                format!("{name}/{index}")
            })?;
        }
    }
    for (name, slots) in &before.jobs.slots {
        for (index, slot) in slots {
            let later = next.jobs.slots.get(name).and_then(|slots| slots.get(index));
            ensure(later.is_some_and(|later| gang_follows(slot, later)), FenceRises, || {
                format!("{name}/{index}")
            })?;
        }
    }
    Ok(())
}

/// Returns whether a job's slot may become the later one: another gang holds it only under a higher fence.
fn gang_follows(slot: &JobSlot, later: &JobSlot) -> bool {
    if later.fence != slot.fence {
        return later.fence > slot.fence;
    }
    match (&slot.holding, &later.holding) {
        (Some(before), Some(after)) => (before.id, before.node) == (after.id, after.node),
        (None, Some(_)) => false,
        (_, None) => true,
    }
}

fn check_counts(before: &Cluster, next: &Cluster) -> InvariantResult {
    let corrected = next.corrections > before.corrections;
    ensure(next.now >= before.now || corrected, CountsRise, || "the cluster's time".to_string())?;
    ensure(next.now >= before.signed_floor(), CountsRise, || "the time of what is signed".to_string())?;
    for (count, was, is) in [
        ("corrections of the time", before.corrections, next.corrections),
        ("generation", before.generation, next.generation),
        ("audit events", before.audit.recorded(), next.audit.recorded()),
        ("outcomes", before.outcomes.recorded(), next.outcomes.recorded()),
        ("entries of usage", before.usage.recorded(), next.usage.recorded()),
    ] {
        ensure(is >= was, CountsRise, || format!("{count}: {is} after {was}"))?;
    }
    Ok(())
}

fn check_chain(before: &Cluster, next: &Cluster) -> InvariantResult {
    let same_circle = before.circle_id().is_none() || before.circle_id() == next.circle_id();
    let grows = next.governance_chain().starts_with(before.governance_chain());
    ensure(same_circle && grows, ChainGrows, || {
        format!("{} decisions before", before.governance_chain().len())
    })
}

/// Returns whether a slot may become the later one: a new order has a higher fence, and a slot that is free
/// is held again only under one.
fn follows(slot: &Slot, later: &Slot) -> bool {
    if later.fence != slot.fence {
        return later.fence > slot.fence;
    }
    match (&slot.holding, &later.holding) {
        (Some(before), Some(after)) => before.order == after.order,
        (None, Some(_)) => false,
        (_, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Holding, HoldingPhase};
    use protocol::order::SlotOrder;
    use protocol::{CircleId, Digest, Fence, Millis, NodeId, PublicKey, SlotIndex};

    /// Returns a slot under a fence; the node with this number holds it, if any.
    fn slot(fence: u64, node: Option<u8>) -> Slot {
        let order = |node| SlotOrder {
            circle: CircleId(Digest::of(b"circle")),
            service: "chat".parse().expect("a name"),
            certificate: Digest::of(b"certificate"),
            slot: SlotIndex(0),
            fence: Fence::new(1, fence),
            node: NodeId(PublicKey([node; 32])),
            gpus: vec![],
            issued_at: Millis(1),
        };
        let holding = node.map(|node| Holding {
            order: order(node),
            phase: HoldingPhase::Running,
            replaces: None,
            failed_starts: 0,
        });
        Slot { fence: Fence::new(1, fence), holding, ..Slot::default() }
    }

    #[test]
    fn a_slot_changes_hands_only_under_a_higher_fence() {
        for (name, before, after, allowed) in [
            ("nothing changes", slot(1, Some(1)), slot(1, Some(1)), true),
            ("it becomes free", slot(1, Some(1)), slot(1, None), true),
            ("it stays free", slot(1, None), slot(1, None), true),
            ("a new order", slot(1, None), slot(2, Some(2)), true),
            ("freed and ordered again", slot(1, Some(1)), slot(2, Some(2)), true),
            ("two nodes under one fence", slot(1, Some(1)), slot(1, Some(2)), false),
            ("held again under its old fence", slot(1, None), slot(1, Some(1)), false),
            ("a lower fence", slot(2, Some(1)), slot(1, Some(1)), false),
            ("free under a lower fence", slot(2, None), slot(1, None), false),
        ] {
            assert_eq!(follows(&before, &after), allowed, "{name}");
        }
    }
}

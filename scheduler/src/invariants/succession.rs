//! Rules about a change of the state: what rises, and what is never taken back.

use super::Invariant::{ChainGrows, CountsRise, FenceRises};
use super::{InvariantResult, ensure};
use crate::cluster::{Cluster, Slot};

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
    Ok(())
}

fn check_counts(before: &Cluster, next: &Cluster) -> InvariantResult {
    ensure(next.now >= before.now, CountsRise, || "the cluster's time".to_string())?;
    for (count, was, is) in [
        ("generation", before.generation, next.generation),
        ("audit events", before.audit.recorded(), next.audit.recorded()),
        ("outcomes", before.outcomes.recorded(), next.outcomes.recorded()),
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

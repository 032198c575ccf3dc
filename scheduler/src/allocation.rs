//! Allocation of GPUs by the orders in force: which orders hold a GPU, and how much of it.
//!
//! It counts in every replica alike, since it needs no report of a node. Memory and CPU are judged by the
//! planner alone, which knows what each node offers.

use crate::cluster::{Holding, Service};
use protocol::manifest::{Resources, ServiceManifest};
use protocol::{Digest, NodeId, ServiceName};
use std::collections::BTreeMap;

/// A whole GPU, in percent.
pub(crate) const GPU_PERCENT_MAX: u32 = 100;

/// Returns the number of GPUs that an order with these resources names, and the percentage of each.
pub(crate) fn gpu_demand(resources: &Resources) -> (usize, u32) {
    let (count, share) = (resources.gpu_count, resources.gpu_share_percent);
    debug_assert!(count == 0 || share == 0, "a manifest asks for whole GPUs or for a share of one");
    debug_assert!(share <= GPU_PERCENT_MAX, "a share is of one GPU");
    match (count, share) {
        (0, 0) => (0, 0),
        (0, percent) => (1, percent),
        (count, _) => (count as usize, GPU_PERCENT_MAX),
    }
}

/// Returns the allocated percentage of each GPU, by node and index.
pub(crate) fn allocated_gpus(
    services: &BTreeMap<ServiceName, Service>,
    manifests: &BTreeMap<Digest, ServiceManifest>,
    counts: impl Fn(&Holding) -> bool,
) -> BTreeMap<(NodeId, u32), u32> {
    let mut allocated: BTreeMap<(NodeId, u32), u32> = BTreeMap::new();
    for service in services.values() {
        for (_, holding) in service.held().filter(|(_, holding)| counts(holding)) {
            let order = &holding.order;
            let manifest = manifests.get(&order.certificate).unwrap_or(&service.manifest);
            let (_, percent) = gpu_demand(&manifest.resources);
            debug_assert!(order.gpus.is_empty() || percent > 0, "an order names GPUs that it takes part of");
            for gpu in &order.gpus {
                let sum = allocated.entry((order.node, *gpu)).or_default();
                *sum = sum.saturating_add(percent);
            }
        }
    }
    allocated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_gpus_shares_and_none_are_told_apart() {
        let resources = |gpu_count, gpu_share_percent| Resources {
            cpu_millicores: 1,
            memory_bytes: 1,
            gpu_count,
            gpu_share_percent,
            gpu_memory_bytes: 0,
        };
        assert_eq!(gpu_demand(&resources(0, 0)), (0, 0));
        assert_eq!(gpu_demand(&resources(0, 30)), (1, 30));
        assert_eq!(gpu_demand(&resources(8, 0)), (8, GPU_PERCENT_MAX));
    }
}

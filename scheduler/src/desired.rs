//! Desired state of a node, and the route table of gateways.
//!
//! Orders leave this module unsigned: the shell signs them with its control key when it answers.

use crate::cluster::{Cluster, HoldingPhase, ServicePhase};
use crate::view::ClusterView;
use protocol::gateway::{Route, RouteTable, RoutedService};
use protocol::model::{ModelRecord, SignedWrap};
use protocol::order::SlotOrder;
use protocol::{Digest, NodeId, SlotIndex};
use std::collections::BTreeMap;

/// Number of bits by which a generation is shifted into the version of a route table. As many tables as fit
/// may differ by liveness alone before the generation must rise, which it does with every lapse.
const ROUTES_PER_GENERATION_BITS: u32 = 20;

/// One deployment's part of a node: `protocol::agent::Assignment` before its orders are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAssignment {
    /// Certificate of the deployment.
    pub certificate: Digest,
    /// Orders for the slots that the node holds.
    pub orders: Vec<SlotOrder>,
    /// Slots of these orders that must finish their requests and be released.
    pub draining: Vec<SlotIndex>,
    /// Location of the model.
    pub model: ModelRecord,
    /// Model key, wrapped for this node alone.
    pub wrap: Option<SignedWrap>,
}

/// Returns the node's assignments, one per certificate. A slot that the node runs and that is absent here
/// must end. A node that is not admitted gets none.
#[must_use]
pub fn desired_for(cluster: &Cluster, node: NodeId) -> Vec<NodeAssignment> {
    if cluster.node(&node).is_none() {
        return Vec::new();
    }
    let mut by_certificate: BTreeMap<Digest, (Vec<SlotOrder>, Vec<SlotIndex>)> = BTreeMap::new();
    for (_, index, holding) in cluster.holdings().filter(|(_, _, holding)| holding.order.node == node) {
        let draining = match holding.phase {
            // A node that returns continues until its slot is ordered elsewhere.
            HoldingPhase::Running | HoldingPhase::Silent => false,
            HoldingPhase::Draining { .. } => true,
            HoldingPhase::Ending { .. } | HoldingPhase::Lapsing => continue,
        };
        let (orders, leaving) = by_certificate.entry(holding.order.certificate).or_default();
        orders.push(holding.order.clone());
        leaving.extend(draining.then_some(index));
    }
    let assignment = |(certificate, (orders, draining)): (Digest, (Vec<SlotOrder>, Vec<SlotIndex>))| {
        let ordered = |slot: &SlotIndex| orders.iter().any(|order| order.slot == *slot);
        debug_assert!(draining.iter().all(ordered), "a slot that drains is ordered");
        let root = cluster.manifest_of(&certificate)?.model.root;
        Some(NodeAssignment {
            certificate,
            orders,
            draining,
            model: cluster.models().get(&root)?.clone(),
            wrap: cluster.wrap_for(&root, node).cloned(),
        })
    };
    by_certificate.into_iter().filter_map(assignment).collect()
}

/// Returns the route table: services, and slots with their holders. It has no inference keys, which gateways'
/// agents take from grants that they verify themselves. A holder that is silent
/// stays in the table until its slot is ordered elsewhere, unless its work is exclusive: a worker's ticket
/// shows whether it lives. `previous` is the last table that this leader made, initially a default one. While
/// nothing has changed it is returned unmodified; its version rises with every change, across leaders too.
#[must_use]
pub fn route_table(view: ClusterView, previous: &RouteTable) -> RouteTable {
    let cluster = view.cluster;
    let services = cluster.services().values().filter(|service| service.phase != ServicePhase::Retired);
    let services = services.map(|service| {
        let serving = service.held().filter(|(_, holding)| match holding.phase {
            HoldingPhase::Silent => true,
            HoldingPhase::Running | HoldingPhase::Draining { .. } => {
                let manifest = cluster.manifest_of(&holding.order.certificate);
                let exclusive = manifest.unwrap_or(&service.manifest).exclusive;
                !exclusive || view.is_alive(&holding.order.node)
            }
            HoldingPhase::Ending { .. } | HoldingPhase::Lapsing => false,
        });
        let routes = serving.map(|(slot, holding)| Route {
            slot,
            fence: holding.order.fence,
            node: holding.order.node,
            draining: matches!(holding.phase, HoldingPhase::Draining { .. }),
        });
        RoutedService {
            service: service.manifest.name.clone(),
            model: service.manifest.model.name.clone(),
            task: service.manifest.task,
            routes: routes.collect(),
        }
    });
    let services: Vec<RoutedService> = services.collect();
    if previous.version > 0 && previous.services == services {
        return previous.clone();
    }
    let base = cluster.generation().saturating_mul(1 << ROUTES_PER_GENERATION_BITS);
    let version = base.max(previous.version.saturating_add(1));
    debug_assert!(version > previous.version || version == u64::MAX, "a changed table has a new version");
    RouteTable { version, services, api_keys: Vec::new() }
}

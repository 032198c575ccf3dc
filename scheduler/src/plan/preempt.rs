//! Preemption: a replica that no node has room for takes that of replicas of a lower priority.
//!
//! A replica that its service needs for its minimum may take any replica of a lower priority. One beyond the
//! minimum takes only what exceeds the minimum of its own service. Equal priorities take nothing from each
//! other, so replicas never displace each other in turn. A plan waits for replicas that drain already, and
//! preempts only for those that are missing beside them. Preemption is no planned work, and heeds no
//! disruption budget.

use super::{
    NodeCapacity, Planner, Unschedulable, best_placement, capacities, capacity_beside, free_slot,
    model_bytes, running,
};
use crate::cluster::{Holding, HoldingPhase, Service, ServicePhase};
use crate::draft::Draft;
use crate::limits::{DRAIN_MS, PREEMPTIONS_MAX};
use crate::observed::Liveness;
use crate::view::ClusterView;
use protocol::{NodeId, NodeName, ServiceName};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Replicas of a service for which no node has room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) service: ServiceName,
    /// Number of them that the service needs for its minimum.
    pub(super) minimum: u32,
    /// Number of further ones.
    pub(super) beyond: u32,
}

/// Returns the capacity of all nodes once the replicas that drain or end now are gone.
fn room_after_drains(view: ClusterView, services: &BTreeMap<ServiceName, Service>) -> Vec<NodeCapacity> {
    let mut later = services.clone();
    for slot in later.values_mut().flat_map(|service| service.slots.values_mut()) {
        let goes = slot.holding.as_ref().is_some_and(|holding| is_going(&holding.phase));
        slot.holding = slot.holding.take().filter(|_| !goes);
    }
    capacities(view, &later)
}

fn is_going(phase: &HoldingPhase) -> bool {
    matches!(phase, HoldingPhase::Draining { .. } | HoldingPhase::Ending { .. })
}

/// Returns the node that has room for one more replica of a service once the replicas that drain or end now
/// are gone.
pub(crate) fn waits_for_drains(view: ClusterView, service: &Service) -> Option<NodeName> {
    let room = room_after_drains(view, view.cluster.services());
    best_placement(view, &room, service).ok().map(|best| best.name)
}

/// Returns whether room would help: no node is merely being avoided after a failure there.
pub(super) fn is_short_of_room(nodes: &[(NodeName, Vec<Unschedulable>)]) -> bool {
    let is_avoided = |obstacle: &Unschedulable| matches!(obstacle, Unschedulable::Avoided { .. });
    !nodes.iter().any(|(_, obstacles)| obstacles.iter().all(is_avoided))
}

/// Replicas that could make room on one node, in the order in which they would go.
struct Candidates<'a> {
    node: NodeId,
    name: &'a NodeName,
    victims: Vec<Holding>,
}

impl Planner<'_> {
    /// Drains replicas of lower priorities for those that no node has room for. A leader that some
    /// node has not reported to yet preempts nothing: there may be room.
    pub(super) fn preempt(&mut self, mut shortages: Vec<Shortage>) {
        shortages.retain(|shortage| self.ranks_above_another(&shortage.service));
        let is_unknown = |node: NodeId| matches!(self.view.liveness(&node), Liveness::Unknown { .. });
        if shortages.is_empty() || self.view.cluster.nodes().any(|node| is_unknown(node.id)) {
            return;
        }
        let priority = |shortage: &Shortage| self.service(&shortage.service).manifest.priority;
        shortages.sort_by_key(|shortage| (Reverse(priority(shortage)), shortage.service.clone()));
        let mut room = room_after_drains(self.view, &self.draft.services);
        let (mut hosted, mut drained) = (Vec::new(), 0);
        for Shortage { service: name, minimum, beyond } in shortages {
            for replica in 0..minimum + beyond {
                if let Ok(best) = best_placement(self.view, &room, self.service(&name)) {
                    hosted.push((best.node, name.clone(), best.gpus));
                    self.host_last(&mut room, &hosted);
                    continue;
                }
                let is_minimum = replica < minimum;
                let victims = self.victims(&name, is_minimum, &room, &hosted);
                if victims.is_empty() || drained + victims.len() > PREEMPTIONS_MAX {
                    break;
                }
                drained += victims.len();
                victims.iter().for_each(|victim| self.make_room(&name, victim));
                room = room_after_drains(self.view, &self.draft.services);
                for count in 1..=hosted.len() {
                    self.host_last(&mut room, &hosted[..count]);
                }
                let Ok(best) = best_placement(self.view, &room, self.service(&name)) else { break };
                hosted.push((best.node, name.clone(), best.gpus));
                self.host_last(&mut room, &hosted);
            }
        }
        debug_assert!(drained <= PREEMPTIONS_MAX, "the next plan continues");
    }

    fn ranks_above_another(&self, name: &ServiceName) -> bool {
        let (priority, service) = (self.service(name).manifest.priority, self.service(name));
        let is_below = |other: &Service| other.manifest.priority < priority && other.held().next().is_some();
        free_slot(service, self.now()).is_some() && self.draft.services.values().any(is_below)
    }

    /// Counts the last of these replicas, as if its node hosted it.
    fn host_last(&self, room: &mut [NodeCapacity], hosted: &[(NodeId, ServiceName, Vec<u32>)]) {
        let Some((node, name, gpus)) = hosted.last() else { return };
        let manifest = &self.service(name).manifest;
        if let Some(capacity) = room.iter_mut().find(|capacity| capacity.id == *node) {
            capacity.host(manifest, gpus, model_bytes(self.view.cluster, manifest));
        }
    }

    /// Returns the replicas that make room for one of this service: those of the lowest priorities, on the
    /// node where fewest of the highest of these go. None if no node would have room.
    fn victims(
        &self,
        name: &ServiceName,
        is_minimum: bool,
        room: &[NodeCapacity],
        hosted: &[(NodeId, ServiceName, Vec<u32>)],
    ) -> Vec<Holding> {
        let on_node = room.iter().map(|capacity| Candidates {
            node: capacity.id,
            name: &capacity.name,
            victims: self.candidates(name, is_minimum, capacity.id),
        });
        let enough = on_node.filter_map(|candidates| {
            let victims = self.fewest(name, &candidates, hosted)?;
            let highest = victims.iter().map(|victim| self.priority_of(victim)).max()?;
            Some(((highest, victims.len(), candidates.name.clone()), victims))
        });
        enough.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, victims)| victims).unwrap_or_default()
    }

    fn priority_of(&self, holding: &Holding) -> u32 {
        self.service(&holding.order.service).manifest.priority
    }

    /// Returns the replicas of lower priorities on a node that may go, the lowest priority first, and of one
    /// service those that are not available, then the highest slots.
    fn candidates(&self, name: &ServiceName, is_minimum: bool, node: NodeId) -> Vec<Holding> {
        let priority = self.service(name).manifest.priority;
        let mut found = Vec::new();
        for service in self.draft.services.values() {
            if service.manifest.priority >= priority || service.phase != ServicePhase::Active {
                continue;
            }
            let (fresh, old) = running(service);
            let runs = fresh.len() + old.len();
            let kept = service.desired.min(service.manifest.replicas.min) as usize;
            let may_go = if is_minimum { runs } else { runs.saturating_sub(kept) };
            let mut here: Vec<Holding> =
                fresh.into_iter().chain(old).filter(|holding| holding.order.node == node).collect();
            here.sort_by_key(|holding| (self.is_available(holding), Reverse(holding.order.slot)));
            here.truncate(may_go);
            found.push((service.manifest.priority, here));
        }
        found.sort_by_key(|(priority, _)| *priority);
        found.into_iter().flat_map(|(_, here)| here).collect()
    }

    /// Returns the fewest of these candidates, from the first on, without which the service fits on their
    /// node. None if it does not fit without all of them.
    fn fewest(
        &self,
        name: &ServiceName,
        candidates: &Candidates<'_>,
        hosted: &[(NodeId, ServiceName, Vec<u32>)],
    ) -> Option<Vec<Holding>> {
        let fits = |gone: &[Holding]| self.fits_beside(name, candidates.node, gone, hosted);
        let all = &candidates.victims;
        if all.is_empty() || !fits(all) {
            return None;
        }
        let count = (1..=all.len()).find(|count| fits(&all[..*count]))?;
        let mut victims = all[..count].to_vec();
        // A replica of a higher priority that need not go after all stays first.
        for at in (0..victims.len()).rev() {
            let mut others = victims.clone();
            others.remove(at);
            if !others.is_empty() && fits(&others) {
                victims = others;
            }
        }
        Some(victims)
    }

    /// Returns whether a service fits on a node without these replicas, and without what drains there.
    fn fits_beside(
        &self,
        name: &ServiceName,
        node: NodeId,
        gone: &[Holding],
        hosted: &[(NodeId, ServiceName, Vec<u32>)],
    ) -> bool {
        let Some(admission) = self.view.cluster.node(&node) else { return false };
        let stays = |holding: &&Holding| {
            let leaves = gone.iter().any(|other| other.order == holding.order);
            holding.order.node == node && !is_going(&holding.phase) && !leaves
        };
        let Draft { services, .. } = &self.draft;
        let held = services.values().flat_map(Service::held).map(|(_, holding)| holding).filter(stays);
        let mut room = [capacity_beside(self.view, admission, held)];
        for count in 1..=hosted.len() {
            self.host_last(&mut room, &hosted[..count]);
        }
        best_placement(self.view, &room, self.service(name)).is_ok()
    }

    fn make_room(&mut self, name: &ServiceName, victim: &Holding) {
        let (own, other) = (self.service(name).manifest.priority, self.priority_of(victim));
        debug_assert!(own > other, "equal priorities take nothing from each other");
        let cause = format!("makes room for {name}, of priority {own} above {other}");
        self.drain(victim, self.now().plus(DRAIN_MS), cause, false);
    }
}

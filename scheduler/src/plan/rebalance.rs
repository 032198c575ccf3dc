//! Rebalancing: moves a replica so that its service is spread better, for example when a node joins or
//! returns.
//!
//! A replica moves only for spread: nodes fail as a whole, and two replicas on one node fail together. A move
//! begins only when nothing else is to be done, and only one is in progress in the whole cluster. Replicas
//! never move back and forth: each move shrinks the largest share of a service on one node, or leaves fewer
//! nodes with that share. Two moves of a service are at least [`REBALANCE_CALM_MS`] apart.
//!
//! With a free slot in the envelope, the replica first starts in its new slot, and leaves the old one when
//! the new one is available. Without one it is drained first, if the disruption budget allows; another
//! replica on its node answers, so the service stays available.

use super::{
    CandidatePlacement, NodeCapacity, Planner, best_placement, free_slot, running, slot_label, slot_name,
};
use crate::cluster::{Holding, HoldingPhase, Service, ServicePhase};
use crate::limits::{DRAIN_MS, REBALANCE_CALM_MS, REBALANCE_GAIN_MIN, REBALANCE_PATIENCE_MS, RESTARTS_MAX};
use crate::view::ClusterView;
use protocol::agent::SlotState;
use protocol::{NodeId, ServiceName};
use std::collections::BTreeMap;

/// A replica that shares its node with others of its service, and a node where it would share with fewer.
pub(crate) struct SpreadMove {
    /// Replica that would move.
    pub(crate) from: Holding,
    /// Number of the service's replicas that its node runs.
    pub(crate) replicas_on_node: u32,
    /// Destination of the move.
    pub(crate) to: CandidatePlacement,
}

/// Returns the move that would spread a service better, if there is one. It goes from the node that runs most
/// of its replicas to the best other one, if the gain is sufficient.
pub(crate) fn spread_move(
    view: ClusterView,
    capacities: &[NodeCapacity],
    service: &Service,
) -> Option<SpreadMove> {
    let (fresh, _) = running(service);
    let mut by_node: BTreeMap<NodeId, Vec<Holding>> = BTreeMap::new();
    for holding in fresh {
        by_node.entry(holding.order.node).or_default().push(holding);
    }
    // The first node by name of those that run most; a move from another of them would gain the same.
    let counts = capacities.iter().filter_map(|capacity| by_node.get(&capacity.id));
    let most = counts.rev().max_by_key(|slots| slots.len())?;
    let from = most.last()?.clone();
    let replicas_on_node = most.len() as u32;
    if replicas_on_node < REBALANCE_GAIN_MIN {
        return None;
    }
    let others: Vec<NodeCapacity> =
        capacities.iter().filter(|capacity| capacity.id != from.order.node).cloned().collect();
    let to = best_placement(view, &others, service).ok()?;
    debug_assert_ne!(to.node, from.order.node, "a move leaves its node");
    (replicas_on_node >= to.replicas + REBALANCE_GAIN_MIN).then_some(SpreadMove {
        from,
        replicas_on_node,
        to,
    })
}

/// Returns the moving replica, as the holding that it goes to and the one that it leaves. A
/// replica that fails in its new slot, or takes too long, no longer counts as moving: it is surplus.
pub(crate) fn moving(view: ClusterView, service: &Service) -> Option<(Holding, Holding)> {
    let in_force = |holding: &&Holding| {
        holding.phase == HoldingPhase::Running && holding.order.certificate == service.certificate
    };
    let hopeful = |newcomer: &&Holding| {
        let order = &newcomer.order;
        let report = view.observed.report(&order.node, &order.service, order.slot, order.fence);
        let failed = report.is_some_and(|report| match report.state {
            SlotState::Failed => report.restarts > RESTARTS_MAX,
            state => state == SlotState::Refused,
        });
        let answers = report.is_some_and(|report| report.state == SlotState::Ready);
        let ordered_at = service.slots.get(&order.slot).map(|slot| slot.since).unwrap_or_default();
        let in_time = ordered_at.plus(REBALANCE_PATIENCE_MS) > view.cluster_time();
        !failed && (in_time || answers && view.is_alive(&order.node))
    };
    let held = || service.held().map(|(_, holding)| holding).filter(in_force);
    held().filter(hopeful).find_map(|newcomer| {
        let name = newcomer.replaces.as_ref()?;
        let leaving = held().find(|holding| slot_name(holding) == *name)?;
        debug_assert_ne!(newcomer.order.node, leaving.order.node, "a replica moves to another node");
        Some((newcomer.clone(), leaving.clone()))
    })
}

impl Planner<'_> {
    /// Begins at most one move, and only if there is nothing else to do.
    pub(super) fn rebalance(&mut self) {
        if !self.plan.is_empty() || !self.plan.dropped.is_empty() || !self.all_settled() {
            return;
        }
        for name in self.service_names() {
            let service = self.service(&name);
            if !self.is_calm(service) {
                continue;
            }
            let Some(spread_move) = spread_move(self.view, &self.capacities(), service) else {
                continue;
            };
            if self.is_steady(spread_move.to.node) && self.begin_move(&name, spread_move) {
                return;
            }
        }
    }

    /// Returns whether no slot of any service drains, ends, lapses or moves.
    fn all_settled(&self) -> bool {
        self.draft.services.values().all(|service| {
            let stays = |phase: &HoldingPhase| matches!(phase, HoldingPhase::Running | HoldingPhase::Silent);
            service.held().all(|(_, holding)| stays(&holding.phase)) && moving(self.view, service).is_none()
        })
    }

    /// Returns whether a service has exactly the wanted replicas, all of them answer, and nothing has changed
    /// for a while.
    fn is_calm(&self, service: &Service) -> bool {
        let (fresh, old) = running(service);
        let changed_at = service.slots.values().map(|slot| slot.since).max().unwrap_or_default();
        service.phase == ServicePhase::Active
            && !service.is_expired(self.now())
            && old.is_empty()
            && fresh.len() == service.desired as usize
            && fresh.iter().all(|holding| self.is_available(holding))
            && changed_at.plus(REBALANCE_CALM_MS) <= self.now()
    }

    /// Returns whether a node has been alive for a while: an unstable node is no better.
    fn is_steady(&self, node: NodeId) -> bool {
        let known = self.view.observed.node(&node);
        known.is_some_and(|known| known.alive_since.plus(REBALANCE_CALM_MS) <= self.view.now)
    }

    fn begin_move(&mut self, name: &ServiceName, spread_move: SpreadMove) -> bool {
        let SpreadMove { from, replicas_on_node, to } = spread_move;
        debug_assert!(self.plan.is_empty(), "a move begins when nothing else is to be done");
        debug_assert!(replicas_on_node >= to.replicas + REBALANCE_GAIN_MIN, "a move improves the spread");
        let left = self.node_name(&from);
        if free_slot(self.service(name), self.now()).is_some() {
            let why = format!("{} moves from {left}, which runs {replicas_on_node}", slot_label(&from));
            return self.order(name, to, Some(slot_name(&from)), &why).is_ok();
        }
        if !self.may_disrupt(&from) {
            return false;
        }
        let (node, there) = (to.name, to.replicas);
        let cause = format!("moves: {left} runs {replicas_on_node} replicas of {name}, {node} runs {there}");
        self.drain(&from, self.now().plus(DRAIN_MS), cause, false)
    }
}

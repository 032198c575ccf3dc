//! The steps that take slots away: dead nodes, ended slots and drains.

use super::{Planner, moving, running, slot_label, slot_name};
use crate::clock::ClusterTime;
use crate::cluster::{Holding, HoldingPhase, ServicePhase};
use crate::command::{SlotName, Step};
use crate::draft::runs_on_alone;
use crate::limits::{DRAIN_MS, RESTARTS_MAX};
use crate::observed::Liveness;
use protocol::agent::SlotState;
use protocol::manifest::OnExpiry;
use protocol::{NodeId, ServiceName};
use std::collections::BTreeMap;

impl Planner<'_> {
    /// Takes the slots of nodes whose last possible lease has ended. A slot that such a node may continue
    /// alone can be ordered elsewhere too.
    pub(super) fn lapse_dead_nodes(&mut self) {
        for (node, releases) in self.to_lapse() {
            if let Liveness::Dead { silent_since } = self.view.liveness(&node) {
                let subject = format!("node/{}", self.view.cluster.node_name(&node));
                let text = match releases {
                    true => "its lease has expired; its slots are released".to_string(),
                    false => {
                        "its lease has expired; its slots are placed elsewhere where they fit".to_string()
                    }
                };
                let silent_ms = silent_since.ms_until(self.view.now);
                self.take(Step::Lapse { node, silent_ms }, subject, text);
            }
        }
    }

    /// Returns the nodes with slots that a lapse would change, and whether it would free one.
    fn to_lapse(&self) -> BTreeMap<NodeId, bool> {
        let mut nodes = BTreeMap::new();
        for service in self.draft.services.values() {
            for slot in service.slots.values() {
                let Some(holding) = &slot.holding else { continue };
                let runs_on = runs_on_alone(self.view.cluster, service, slot, self.now());
                if !(runs_on && holding.phase == HoldingPhase::Silent) {
                    *nodes.entry(holding.order.node).or_default() |= !runs_on;
                }
            }
        }
        nodes.extend(self.draft.jobs.held().map(|(_, held)| (held.node, true)));
        nodes
    }

    /// Lets nodes that were silent continue with the slots that were not ordered elsewhere in that time.
    pub(super) fn resume_returned(&mut self) {
        for holding in self.holdings() {
            if holding.phase == HoldingPhase::Silent && self.view.is_alive(&holding.order.node) {
                let text =
                    format!("{} is back, and the slot was not placed elsewhere", self.node_name(&holding));
                self.take(Step::Resume(slot_name(&holding)), slot_label(&holding), text);
            }
        }
    }

    /// Ends the wait for nodes that were silent when they lost a slot, and have released it since.
    pub(super) fn release_former_holders(&mut self) {
        let (observed, now) = (self.view.observed, self.now());
        let mut released = Vec::new();
        for (name, service) in &self.draft.services {
            for (index, slot) in &service.slots {
                for former in slot.former_holders.iter().filter(|former| former.until > now) {
                    let order = SlotName { service: name.clone(), slot: *index, fence: former.fence };
                    if observed.has_released(&former.node, &order) {
                        released.push((former.node, order));
                    }
                }
            }
        }
        for (node, slot) in released {
            let text =
                format!("{} has released it and is awaited no more", self.view.cluster.node_name(&node));
            let label = format!("{}/{}", slot.service, slot.slot);
            self.take(Step::ReleaseFormer { node, slot }, label, text);
        }
    }

    /// Frees slots that their nodes have ended, and ends drains that are over.
    pub(super) fn release_what_ended(&mut self) {
        for holding in self.holdings() {
            let (name, label) = (slot_name(&holding), slot_label(&holding));
            if let Some(text) = self.ended(&holding) {
                self.take(Step::Release(name), label, text);
            } else if let HoldingPhase::Draining { until, .. } = holding.phase {
                let state = self.report(&holding).map(|report| report.state);
                if until <= self.now() {
                    self.take(Step::End(name), label, "its drain deadline has passed".to_string());
                } else if matches!(state, Some(SlotState::Failed | SlotState::Refused)) {
                    self.take(
                        Step::End(name),
                        label,
                        "its worker does not run, so there is nothing to drain".to_string(),
                    );
                }
            }
        }
    }

    /// Returns the evidence that a slot is certainly no longer running.
    fn ended(&self, holding: &Holding) -> Option<String> {
        if holding.phase == HoldingPhase::Lapsing {
            return None;
        }
        let node = self.view.observed.node(&holding.order.node)?;
        let report = self.report(holding);
        if report.is_some_and(|report| report.state == SlotState::Released) {
            return Some(format!("{} released it", self.node_name(holding)));
        }
        // A node reports every order that it could start without a further answer, also from its disk. It
        // left this one out, and every later answer is from a state in which the slot has ended.
        match holding.phase {
            HoldingPhase::Ending { generation } if report.is_none() && node.generation >= generation => {
                Some(format!("{} no longer runs it", self.node_name(holding)))
            }
            _ => None,
        }
    }

    /// Drains slots that may not, or need not, run any more.
    pub(super) fn drain_what_must_go(&mut self) {
        for name in self.service_names() {
            self.drain_ended_service(&name);
            self.drain_unfit(&name);
            self.drain_failed(&name);
            self.drain_surplus(&name);
        }
    }

    fn drain_ended_service(&mut self, name: &ServiceName) {
        let service = self.service(name);
        let expired = service.is_expired(self.now()) && service.manifest.on_expiry == OnExpiry::Drain;
        let (until, cause) = match service.phase {
            ServicePhase::Retiring { until } => (until, "the service is being retired"),
            ServicePhase::Active if expired => (self.now().plus(DRAIN_MS), "its approval has expired"),
            ServicePhase::Active if self.draft.spending().drains(&service.manifest) => {
                (self.now().plus(DRAIN_MS), "the spend limit of this hour is spent")
            }
            _ => return,
        };
        let (fresh, old) = running(service);
        for holding in fresh.into_iter().chain(old) {
            self.drain(&holding, until, cause.to_string(), false);
        }
    }

    /// Drains slots outside the envelope in force, and slots on nodes that may no longer hold them, as far as
    /// the disruption budget allows. A slot that has lost its GPU does not answer, and goes at once.
    fn drain_unfit(&mut self, name: &ServiceName) {
        let capacities = self.capacities();
        let service = self.service(name);
        let (max, manifest) = (service.manifest.replicas.max, service.manifest.clone());
        let (fresh, old) = running(service);
        for holding in fresh.into_iter().chain(old) {
            let capacity = capacities.iter().find(|capacity| capacity.id == holding.order.node);
            let unfit = capacity.map(|capacity| capacity.unfit(&manifest)).unwrap_or_default();
            let outside =
                (holding.order.slot.0 >= max).then(|| format!("the envelope in force has {max} slots"));
            let unfit = unfit.first().map(|obstacle| format!("{} {obstacle}", self.node_name(&holding)));
            if let Some(cause) = outside.or(unfit) {
                if !self.waits_for_budget(name, &holding) {
                    self.drain(&holding, self.now().plus(DRAIN_MS), cause, false);
                }
            } else if let Some(gpu) = capacity.and_then(|capacity| capacity.lost_gpu(&holding.order.gpus)) {
                let cause = format!("GPU {gpu} of {} is gone or unhealthy", self.node_name(&holding));
                self.drain(&holding, self.now().plus(DRAIN_MS), cause, false);
            }
        }
    }

    /// Drains slots that their node refused or could not keep running. A failing slot moves only if another
    /// node can take it; otherwise its agent keeps retrying.
    fn drain_failed(&mut self, name: &ServiceName) {
        let (fresh, old) = running(self.service(name));
        for holding in fresh.into_iter().chain(old) {
            let Some(report) = self.report(&holding) else { continue };
            let refused = report.state == SlotState::Refused;
            let failed = report.state == SlotState::Failed && report.restarts > RESTARTS_MAX;
            let elsewhere = || self.best_node(name, Some(holding.order.node)).is_ok();
            if refused || (failed && elsewhere()) {
                let verb = if refused { "refused it" } else { "could not keep it running" };
                let cause = format!("{} {verb}: {}", self.node_name(&holding), report.detail);
                self.drain(&holding, self.now().plus(DRAIN_MS), cause, true);
            }
        }
    }

    /// Drains slots above the wanted number. While a new approval rolls out or a replica moves, one more than
    /// wanted may run. A moving replica leaves its old slot when it is available in the new one.
    fn drain_surplus(&mut self, name: &ServiceName) {
        loop {
            let service = self.service(name);
            let desired = service.desired as usize;
            let (fresh, old) = running(service);
            let rolling = !old.is_empty() && !fresh.is_empty() && desired > 0;
            let total = fresh.len() + old.len();
            let under_way = moving(self.view, service).filter(|_| total == desired + 1);
            if total <= desired + usize::from(rolling || under_way.is_some()) {
                if let Some((newcomer, leaving)) =
                    under_way.filter(|(newcomer, _)| self.is_available(newcomer))
                {
                    let (node, slot) = (self.node_name(&newcomer), slot_label(&newcomer));
                    let cause = format!("it moved to {node}, where {slot} is ready");
                    self.drain(&leaving, self.now().plus(DRAIN_MS), cause, false);
                }
                return;
            }
            debug_assert!(total > desired, "only a surplus is drained");
            let worst = self.worst_first(name, fresh.into_iter().chain(old).collect()).into_iter().next();
            let Some(worst) = worst else { return };
            let until = self.now().plus(DRAIN_MS);
            let stayed = worst.replaces.as_ref().filter(|_| !self.is_ready(&worst));
            let cause = match stayed {
                Some(slot) => {
                    format!(
                        "{desired} replicas are desired; it was to replace slot {} and is not ready",
                        slot.slot
                    )
                }
                None => format!("{desired} replicas are desired"),
            };
            if !self.drain(&worst, until, cause, false) {
                return;
            }
        }
    }

    /// Sorts slots by order of removal. First come those that are not available, then those under an earlier
    /// approval, those on nodes with most replicas, then the highest numbers.
    pub(super) fn worst_first(&self, name: &ServiceName, mut slots: Vec<Holding>) -> Vec<Holding> {
        let service = self.service(name);
        debug_assert!(slots.iter().all(|holding| holding.order.service == *name), "slots of one service");
        let on_node = |node: &NodeId| {
            service.held().filter(|(_, h)| h.order.node == *node && h.phase == HoldingPhase::Running).count()
        };
        slots.sort_by_key(|holding| {
            let fresh = holding.order.certificate == service.certificate;
            let replicas_on_node = std::cmp::Reverse(on_node(&holding.order.node));
            (self.is_available(holding), fresh, replicas_on_node, std::cmp::Reverse(holding.order.slot))
        });
        slots
    }

    /// Drains a slot that is ordered to run; returns whether it did.
    pub(super) fn drain(
        &mut self,
        holding: &Holding,
        until: ClusterTime,
        cause: String,
        failed: bool,
    ) -> bool {
        let current = &self.draft.services[&holding.order.service].slots[&holding.order.slot];
        debug_assert_eq!(current.fence, holding.order.fence, "no step orders a slot again before it drains");
        let runs = current.holding.as_ref().is_some_and(|now| now.phase == HoldingPhase::Running);
        let step = Step::Drain { slot: slot_name(holding), until, cause: cause.clone(), failed };
        runs && self.take(step, slot_label(holding), cause)
    }
}

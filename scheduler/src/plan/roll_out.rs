//! The steps of a roll-out: replacements within the disruption budget, failed starts, and its end.
//!
//! Planned work takes replicas away one by one, and only as many as the budget of the service leaves: that
//! number of available replicas may be missing below the wanted one. Faults are no planned work, nor is what
//! people ask for: a smaller number of replicas, a halt, a retirement.

use super::{Planner, fits_without, moving, running, slot_label, slot_name};
use crate::cluster::{Holding, HoldingPhase, Service, ServicePhase};
use crate::command::Step;
use crate::limits::{CAUSE_CHARACTERS_MAX, DRAIN_MS, START_PATIENCE_MS};
use crate::observed::Liveness;
use crate::returning::return_target;
use crate::view::ClusterView;
use protocol::ServiceName;
use protocol::agent::SlotState;
use protocol::display::counted;

/// Returns the number of slots of a service that drain, end or lapse. A silent holder is none of them: it may
/// be away for as long as its autonomy, and its slot can be ordered in that time.
fn leaving(service: &Service) -> usize {
    let stays = |phase: &HoldingPhase| matches!(phase, HoldingPhase::Running | HoldingPhase::Silent);
    service.held().filter(|(_, holding)| !stays(&holding.phase)).count()
}

/// Returns whether the roll-out of a service has failed: so many starts of the new approval failed in a row
/// as its manifest allows, and no further replica has become available since.
pub(crate) fn has_failed(view: ClusterView, service: &Service) -> bool {
    service.is_rolling_out()
        && service.roll_out.failed_starts >= service.manifest.rollout.failure_limit
        && available_current(view, service) <= service.roll_out.available
}

/// Returns the number of replicas that are available under the approval in force.
pub(crate) fn available_current(view: ClusterView, service: &Service) -> u32 {
    let (fresh, _) = running(service);
    fresh.iter().filter(|holding| view.is_available(holding, service.manifest.ready_ms())).count() as u32
}

impl Planner<'_> {
    /// Returns whether a slot answers requests, and has done so for as long as its service demands.
    pub(super) fn is_available(&self, holding: &Holding) -> bool {
        let ready_ms = self.service(&holding.order.service).manifest.ready_ms();
        self.view.is_available(holding, ready_ms)
    }

    /// Returns whether planned work may take a replica away: it is not available, or the budget of its
    /// service has room.
    pub(super) fn may_disrupt(&self, holding: &Holding) -> bool {
        if !self.is_available(holding) {
            return true;
        }
        let service = self.service(&holding.order.service);
        let (fresh, old) = running(service);
        let available = fresh.iter().chain(&old).filter(|holding| self.is_available(holding)).count();
        let floor = service.desired.saturating_sub(service.manifest.rollout.max_unavailable) as usize;
        available > floor
    }

    /// Returns whether a replica that must go should wait: the budget has no room now, and another replica is
    /// on its way or can be. A replica that nothing can replace goes at
    /// once, since waiting would not help.
    pub(super) fn waits_for_budget(&mut self, name: &ServiceName, holding: &Holding) -> bool {
        if self.may_disrupt(holding) {
            return false;
        }
        let service = self.service(name);
        let (fresh, old) = running(service);
        let (total, desired) = (fresh.len() + old.len(), service.desired as usize);
        let arriving = fresh.iter().any(|fresh| !self.is_available(fresh));
        if arriving || leaving(service) > 0 || moving(self.view, service).is_some() {
            return true;
        }
        let is_current = holding.order.certificate == service.certificate;
        let surge = service.manifest.rollout.max_unavailable == 0 && is_current && total == desired;
        match self.best_node(name, None) {
            Ok(best) if surge => {
                let why = format!("takes the place of {}", slot_label(holding));
                // Without a free slot it waits for one.
                drop(self.order(name, best, Some(slot_name(holding)), &why));
                true
            }
            Ok(_) => true,
            Err(_) => self.frees_enough(holding),
        }
    }

    /// Counts the failed starts of roll-outs, and ends those that are complete or have failed.
    pub(super) fn judge_roll_outs(&mut self) {
        for name in self.service_names() {
            let service = self.service(&name);
            let runs = service.phase == ServicePhase::Active && !service.is_expired(self.now());
            if runs && service.is_rolling_out() {
                self.count_failed_starts(&name);
                self.end_roll_out(&name);
            }
        }
    }

    fn count_failed_starts(&mut self, name: &ServiceName) {
        let service = self.service(name);
        // Beyond the limit, only a row that a further replica has ended is counted again.
        if has_failed(self.view, service) {
            return;
        }
        let (fresh, _) = running(service);
        let available = available_current(self.view, service);
        let pending: Vec<Holding> = fresh.into_iter().filter(|holding| !self.is_available(holding)).collect();
        for holding in &pending {
            let (starts, cause) = self.failed_starts(holding);
            if starts > holding.failed_starts {
                let step = Step::FailStart { slot: slot_name(holding), starts, available, cause };
                let text = format!("{} of the new approval failed", counted(starts.into(), "start"));
                self.take(step, slot_label(holding), text);
            }
        }
    }

    /// Returns how often a replica that is not available has failed to start, and the last cause: its node
    /// refused it, its worker ended, or it has not answered for too long.
    fn failed_starts(&self, holding: &Holding) -> (u32, String) {
        let order = &holding.order;
        let admission = self.view.cluster.node(&order.node);
        let halted = admission.is_none_or(|node| self.view.halt_on(&order.service, node).is_some());
        if halted || !self.view.is_alive(&order.node) {
            return (0, String::new());
        }
        let node = self.node_name(holding);
        let report = self.report(holding);
        let refused = report.is_some_and(|report| report.state == SlotState::Refused);
        if let Some(report) = report.filter(|report| refused || report.restarts > 0) {
            let verb = if refused { "refused it" } else { "could not keep it running" };
            let detail: String = report.detail.chars().take(CAUSE_CHARACTERS_MAX).collect();
            return (report.restarts.saturating_add(u32::from(refused)), format!("{node} {verb}: {detail}"));
        }
        if report.is_some_and(|report| report.state == SlotState::Ready) {
            return (0, String::new());
        }
        let slot = self.service(&order.service).slots.get(&order.slot);
        let waited_ms = slot.map_or(0, |slot| slot.since.ms_until(self.now()));
        let starts = u32::try_from(waited_ms / START_PATIENCE_MS).unwrap_or(u32::MAX);
        (starts, format!("{node} has not got it ready for {} minutes", waited_ms / 60_000))
    }

    fn end_roll_out(&mut self, name: &ServiceName) {
        let service = self.service(name);
        let subject = format!("service/{name}");
        if has_failed(self.view, service) {
            if self.can_return(service) {
                let starts = counted(service.roll_out.failed_starts.into(), "start");
                let cause = format!("{starts} in a row failed under the new approval");
                let text = format!("returns to the approval before: {cause}");
                self.take(Step::EndRollOut { service: name.clone(), failed: Some(cause) }, subject, text);
            }
            return;
        }
        let is_current = |holding: &Holding| holding.order.certificate == service.certificate;
        let replaced = service.held().all(|(_, holding)| is_current(holding));
        if replaced && available_current(self.view, service) >= service.desired {
            let text = "every replica is available under the new approval".to_string();
            self.take(Step::EndRollOut { service: name.clone(), failed: None }, subject, text);
        }
    }

    /// Returns whether a service can return without a person: its manifest says so, the approval before was
    /// not returned from either, and its model is there. A leader to which some node has not reported yet
    /// does not know which replicas are available.
    fn can_return(&self, service: &Service) -> bool {
        let mut nodes = self.view.cluster.nodes();
        if nodes.any(|node| matches!(self.view.liveness(&node.id), Liveness::Unknown { .. })) {
            return false;
        }
        return_target(self.view.cluster, service).is_ok_and(|(target, manifest)| {
            !target.failed && self.view.cluster.models.contains_key(&manifest.model.root)
        })
    }

    /// Replaces slots under another approval than the one that is ordered now. A new slot starts first if one
    /// is free and a node can take it. Otherwise an old slot is drained first, if that frees enough capacity.
    /// As many replacements run at once as the budget has replicas, at least one. A replacement that is not
    /// available yet counts, so an approval that does not work stops there.
    pub(super) fn roll_out(&mut self) {
        for name in self.service_names() {
            self.roll_out_service(&name);
        }
    }

    fn roll_out_service(&mut self, name: &ServiceName) {
        let service = self.service(name);
        let (fresh, old) = running(service);
        let halted = service.phase != ServicePhase::Active || service.is_expired(self.now());
        let leaving = leaving(service);
        let arriving = fresh.iter().filter(|holding| !self.is_available(holding)).count();
        let at_once = service.manifest.rollout.max_unavailable.max(1) as usize;
        if old.is_empty() || halted || leaving + arriving >= at_once {
            return;
        }
        let (total, desired) = (fresh.len() + old.len(), service.desired as usize);
        let why = if service.has_returned() {
            "returns to the approval before"
        } else {
            "rolls out the new approval"
        };
        if total == desired && self.place_replica(name, why).is_ok() {
            return;
        }
        let Some(worst) = self.worst_first(name, old).into_iter().next() else { return };
        let is_enough = total > desired || (total + leaving >= desired && self.frees_enough(&worst));
        if is_enough && self.may_disrupt(&worst) {
            let service = self.service(name);
            let is_earlier = worst.order.certificate != service.certificate;
            debug_assert!(is_earlier, "a roll-out drains no slot under the approval in force");
            let cause = match service.has_returned() {
                true => "return to the approval before",
                false => "roll-out of the new approval",
            };
            self.drain(&worst, self.now().plus(DRAIN_MS), cause.to_string(), false);
        }
    }

    /// Returns whether a replica under the approval in force fits on a node once this slot is free. If not,
    /// this slot cannot be replaced and keeps running.
    fn frees_enough(&self, holding: &Holding) -> bool {
        fits_without(self.view, &self.draft.services, holding)
    }
}

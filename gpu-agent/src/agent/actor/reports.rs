//! Reports of this node's slots: those that run, those that are free or refused, and those that may yet
//! start.
//!
//! Control frees a slot that it has ended once a report leaves the slot out. A report therefore names every
//! order that this agent, or a successor with the same disk, could start without a further answer: such an
//! answer may be lost, and the order may then run for its autonomy.

use super::super::core::SlotKey;
use super::super::last_answer::orders_of;
use super::super::status::{plain_report, refused_report};
use super::AgentActor;
use protocol::Fence;
use protocol::agent::{SlotReport, SlotState};
use std::collections::BTreeSet;

impl AgentActor {
    /// Returns a report of every slot that runs here, and of every order that is settled.
    pub(super) fn reports(&self) -> Vec<SlotReport> {
        let state = &self.state;
        let running = self.slots.iter().map(|(key, slot)| slot.status.report(key, slot.fence));
        let released =
            self.book.all_held().filter(|(key, held)| held.order.released && !self.slots.contains_key(key));
        let released = released.map(|(key, held)| (key, held.order.signed.order.fence));
        let unacknowledged_releases = state.unacknowledged_releases.iter().map(|(key, fence)| (key, *fence));
        let gone = released.chain(unacknowledged_releases);
        let gone = gone.map(|(key, fence)| plain_report(key, fence, SlotState::Released, "the slot is free"));
        let of_history = state.refused_history.iter().filter(|(key, _)| !state.refusals.contains_key(key));
        let refused = state.refusals.iter().chain(of_history);
        let refused = refused.map(|(key, (fence, refusal))| refused_report(key, *fence, refusal));
        let unwritten = state.unwritten.iter();
        let unwritten =
            unwritten.map(|(key, (fence, why))| plain_report(key, *fence, SlotState::Failed, why));
        running.chain(gone).chain(refused).chain(unwritten).collect()
    }

    /// Returns a report of every order that may yet start, beside those that are reported.
    pub(super) fn pending_reports(&self, reports: &[SlotReport]) -> Vec<SlotReport> {
        let order_of = |report: &SlotReport| {
            (SlotKey { service: report.service.clone(), slot: report.slot }, report.fence)
        };
        let known: BTreeSet<(SlotKey, Fence)> = reports.iter().map(order_of).collect();
        let pending = self.may_start().into_iter().filter(|order| !known.contains(order));
        let text = "ordered, and not started yet";
        pending.map(|(key, fence)| plain_report(&key, fence, SlotState::Loading, text)).collect()
    }

    /// Returns the orders that could start without a further answer: those of the desired state in memory,
    /// and of the one on disk, from which a successor continues.
    fn may_start(&self) -> BTreeSet<(SlotKey, Fence)> {
        let in_memory = self.state.desired.iter().chain(&self.state.predecessor_desired);
        let on_disk = self.last_answer.orders().iter().cloned();
        let named = in_memory.flat_map(orders_of).chain(on_disk);
        named.filter(|(key, fence)| self.could_start(key, *fence)).collect()
    }

    /// Returns whether this order could start here: it is held and not released, or newer than any that was
    /// held, and its autonomy is not over. An order of a service that is not known here may be covered by the
    /// part of the history that is missing.
    fn could_start(&self, key: &SlotKey, fence: Fence) -> bool {
        let held = self.book.held(key).filter(|held| held.order.signed.order.fence == fence);
        let is_new = self.book.last_fence(key).is_none_or(|last| last < fence);
        if !is_new && held.is_none_or(|held| held.order.released) {
            return false;
        }
        let approved = || self.chain.state().service(&key.service).map(|approved| &approved.manifest);
        let service = held.map(|held| &held.grant.get().service).or_else(approved);
        let (lease, now) = (*self.node.lease.borrow(), self.node.clock.boot());
        service.is_none_or(|service| now < lease.autonomy_until(service))
    }
}

//! Draft of a plan: its steps, executed on a copy of the services.
//!
//! Planning and applying use the same code, so a plan never contains a step that would be refused when
//! applied to the same state. A refused step leaves no trace in the draft.

use crate::allocation::{GPU_PERCENT_MAX, allocated_gpus, gpu_demand};
use crate::clock::ClusterTime;
use crate::cluster::{Cluster, Holding, HoldingPhase, Service, ServicePhase, Slot};
use crate::command::{OrderPlan, Refusal, SlotName, Step};
use crate::former::FormerHolder;
use crate::jobs::JobBook;
use crate::limits::AVOID_MS;
use crate::returning::return_target;
use crate::roll_out::RollOut;
use crate::usage::{MeterEnds, MeterName, Spending};
use protocol::error_code::PLAN_STALE;
use protocol::governance::{NodeAdmission, NodeRole};
use protocol::limits::LEASE_MS;
use protocol::manifest::OnExpiry;
use protocol::order::SlotOrder;
use protocol::{Fence, NodeId, ServiceName, SlotIndex};
use std::collections::{BTreeMap, BTreeSet};

/// A copy of the services of a cluster, and the time.
pub(crate) struct Draft<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) now: ClusterTime,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    pub(crate) jobs: JobBook,
    /// Ends of meters that are not the present, and what nodes reported about them.
    pub(crate) meters: MeterEnds,
    /// Effects of lapses on the jobs that lost a node.
    pub(crate) lost_attempts: Vec<Effect>,
}

/// The effect of a step, for the audit log.
pub(crate) struct Effect {
    pub(crate) action: &'static str,
    pub(crate) subject: String,
    pub(crate) detail: String,
    /// Set by an order.
    pub(crate) order: Option<SlotOrder>,
    /// Whether the audit log leaves it out: counts come without end, and have entries of their own.
    pub(crate) is_quiet: bool,
}

impl<'a> Draft<'a> {
    /// Creates a draft of this cluster at `now`.
    pub(crate) fn new(cluster: &'a Cluster, now: ClusterTime) -> Self {
        assert!(now >= cluster.now, "the cluster's time never goes back");
        let (services, jobs) = (cluster.services.clone(), cluster.jobs.clone());
        Self { cluster, now, services, jobs, meters: MeterEnds::default(), lost_attempts: Vec::new() }
    }

    /// Returns what is used and bespoken, with the orders of this draft.
    pub(crate) fn spending(&self) -> Spending<'_> {
        Spending { cluster: self.cluster, jobs: &self.jobs, now: self.now }
    }

    /// Executes one step.
    pub(crate) fn execute(&mut self, step: &Step) -> Result<Effect, Refusal> {
        match step {
            Step::Lapse { node, silent_ms } => self.lapse(*node, *silent_ms),
            Step::Resume(name) => self.resume(name),
            Step::Release(name) => self.release(name),
            Step::ReleaseFormer { node, slot } => self.release_former(node, slot),
            Step::Drain { slot, until, cause, failed } => self.drain(slot, *until, cause, *failed),
            Step::End(name) => self.end(name),
            Step::Order(order) => self.order(order),
            Step::FailStart { slot, starts, available, cause } => {
                self.fail_start(slot, *starts, *available, cause)
            }
            Step::StartGang(gang) => self.start_gang(gang),
            Step::RunGang { id, attempt } => self.run_gang(*id, *attempt),
            Step::EndGang { id, attempt, cause, ends } => self.end_gang(*id, *attempt, cause, ends),
            Step::ReleaseGang(slot) => self.release_gang(slot),
            Step::CountUsage(signed) => self.count_usage(signed),
            Step::EndRollOut { service, failed } => self.end_roll_out(service, failed.as_deref()),
        }
    }

    fn lapse(&mut self, node: NodeId, silent_ms: u64) -> Result<Effect, Refusal> {
        if silent_ms < LEASE_MS {
            return Err(stale(format!("the lease of node {} may still hold", self.cluster.node_name(&node))));
        }
        let (mut freed, mut kept) = (self.lapse_gangs(node, silent_ms), Vec::new());
        for (name, service) in &mut self.services {
            let of_node = |slot: &Slot| slot.holding.as_ref().is_some_and(|held| held.order.node == node);
            let held: Vec<(SlotIndex, bool)> = service
                .slots
                .iter()
                .filter(|(_, slot)| of_node(slot))
                .map(|(index, slot)| (*index, runs_on_alone(self.cluster, service, slot, self.now)))
                .collect();
            for (index, runs_on) in held {
                let Some(slot) = service.slots.get_mut(&index) else { continue };
                if !runs_on {
                    let until = autonomy_until(self.cluster, slot, self.now, silent_ms);
                    let meter = meter_of(name, index, slot.fence);
                    self.meters.end(meter, until, self.now);
                    keep_former(self.cluster, slot, self.now);
                    free(slot, self.now);
                    freed.push(format!("{name}/{index}"));
                } else if silence(slot, self.now) {
                    kept.push(format!("{name}/{index}"));
                }
            }
        }
        debug_assert!(!self.holds_beyond_silence(node), "a lapse leaves its node no slot but silent ones");
        let subject = format!("node/{}", self.cluster.node_name(&node));
        let mut detail = "lease expired".to_string();
        if !freed.is_empty() || kept.is_empty() {
            detail.push_str(&format!("; released: {}", freed.join(", ")));
        }
        if !kept.is_empty() {
            detail.push_str(&format!("; may run on there: {}", kept.join(", ")));
        }
        Ok(effect("lapse", subject, detail))
    }

    /// Returns whether a node holds a slot in a phase other than silence.
    fn holds_beyond_silence(&self, node: NodeId) -> bool {
        let mut held = self.services.values().flat_map(Service::held);
        held.any(|(_, held)| held.order.node == node && held.phase != HoldingPhase::Silent)
    }

    fn resume(&mut self, name: &SlotName) -> Result<Effect, Refusal> {
        let now = self.now;
        let (slot, holding) = self.held(name)?;
        if holding.phase != HoldingPhase::Silent {
            return Err(stale(format!("the node of slot {}/{} was not silent", name.service, name.slot)));
        }
        let node = holding.order.node;
        slot.holding = Some(Holding { phase: HoldingPhase::Running, ..holding });
        slot.since = now;
        Ok(effect("resume", subject_of(name), format!("on {}", self.cluster.node_name(&node))))
    }

    fn release(&mut self, name: &SlotName) -> Result<Effect, Refusal> {
        let now = self.now;
        let (slot, holding) = self.held(name)?;
        if holding.phase == HoldingPhase::Lapsing {
            return Err(stale(format!("slot {}/{} is free when its node lapses", name.service, name.slot)));
        }
        let node = holding.order.node;
        free(slot, now);
        Ok(effect("release", subject_of(name), format!("was on {}", self.cluster.node_name(&node))))
    }

    fn release_former(&mut self, node: &NodeId, name: &SlotName) -> Result<Effect, Refusal> {
        let slot = self.services.get_mut(&name.service).and_then(|service| service.slots.get_mut(&name.slot));
        let known = self.cluster.node_name(node);
        let was_listed = slot.is_some_and(|slot| slot.release_former(node, name.fence));
        if !was_listed {
            let subject = subject_of(name);
            return Err(stale(format!(
                "slot {subject} does not wait for {known} under fence {}",
                name.fence
            )));
        }
        Ok(effect("release-former", subject_of(name), format!("{known} has released it")))
    }

    fn drain(
        &mut self,
        name: &SlotName,
        until: ClusterTime,
        cause: &str,
        failed: bool,
    ) -> Result<Effect, Refusal> {
        let now = self.now;
        let (slot, holding) = self.held(name)?;
        if holding.phase != HoldingPhase::Running {
            return Err(stale(format!("slot {}/{} drains already", name.service, name.slot)));
        }
        let node = holding.order.node;
        let phase = HoldingPhase::Draining { until, cause: cause.to_string() };
        slot.holding = Some(Holding { phase, ..holding });
        slot.since = now;
        if failed && let Some(service) = self.services.get_mut(&name.service) {
            service.avoid.retain(|_, until| *until > now);
            service.avoid.insert(node, now.plus(AVOID_MS));
        }
        Ok(effect("drain", subject_of(name), cause.to_string()))
    }

    fn end(&mut self, name: &SlotName) -> Result<Effect, Refusal> {
        let (now, generation) = (self.now, self.cluster.generation + 1);
        let (slot, holding) = self.held(name)?;
        if !matches!(holding.phase, HoldingPhase::Draining { .. }) {
            return Err(stale(format!("slot {}/{} does not drain", name.service, name.slot)));
        }
        slot.holding = Some(Holding { phase: HoldingPhase::Ending { generation }, ..holding });
        slot.since = now;
        Ok(effect("end", subject_of(name), String::new()))
    }

    fn fail_start(
        &mut self,
        name: &SlotName,
        starts: u32,
        available: u32,
        cause: &str,
    ) -> Result<Effect, Refusal> {
        let rolling = self.services.get(&name.service).filter(|service| service.is_rolling_out());
        let Some(certificate) = rolling.map(|service| service.certificate) else {
            return Err(stale(format!("no approval of {} is rolled out", name.service)));
        };
        let (slot, holding) = self.held(name)?;
        let counts = holding.phase == HoldingPhase::Running && holding.order.certificate == certificate;
        if !counts || starts <= holding.failed_starts {
            let counted = holding.failed_starts;
            let message = format!("{} has {counted} failed starts, not {starts}", subject_of(name));
            return Err(stale(message));
        }
        let more = starts - holding.failed_starts;
        slot.holding = Some(Holding { failed_starts: starts, ..holding });
        let service = self.services.get_mut(&name.service).ok_or_else(|| stale("no such service"))?;
        let row = &mut service.roll_out;
        let before = if available > row.available { 0 } else { row.failed_starts };
        (row.failed_starts, row.available) = (before.saturating_add(more), available);
        Ok(effect("fail-start", subject_of(name), cause.to_string()))
    }

    fn end_roll_out(&mut self, name: &ServiceName, failed: Option<&str>) -> Result<Effect, Refusal> {
        let rolling = self.services.get(name).filter(|service| service.is_rolling_out());
        let service = rolling.ok_or_else(|| stale(format!("no approval of {name} is rolled out")))?;
        let subject = format!("service/{name}");
        let Some(cause) = failed else {
            let current = |holding: &Holding| holding.order.certificate == service.certificate;
            if !service.held().all(|(_, holding)| current(holding)) {
                return Err(stale(format!("an earlier approval of {name} still runs")));
            }
            let service = self.services.get_mut(name).ok_or_else(|| stale("no such service"))?;
            service.roll_out = RollOut::default();
            return Ok(effect("complete", subject, String::new()));
        };
        let (target, manifest) =
            return_target(self.cluster, service).map_err(|refusal| stale(refusal.message))?;
        let limit = service.manifest.rollout.failure_limit;
        if target.failed || service.roll_out.failed_starts < limit {
            return Err(stale(format!("the roll-out of {name} has not failed, or so did the one before")));
        }
        let service = self.services.get_mut(name).ok_or_else(|| stale("no such service"))?;
        service.return_to(target, manifest, cause.to_string());
        Ok(effect("return", subject, cause.to_string()))
    }

    fn order(&mut self, plan: &OrderPlan) -> Result<Effect, Refusal> {
        let order = self.permitted_order(plan)?;
        let subject = slot_text(&plan.service, plan.slot);
        let service = self.services.get_mut(&plan.service).ok_or_else(|| stale("no such service"))?;
        let slot = service.slots.entry(plan.slot).or_default();
        assert!(slot.fence < order.fence, "the fence of {subject} rises with each order");
        keep_former(self.cluster, slot, self.now);
        if slot.holding.is_some() {
            let until = autonomy_until(self.cluster, slot, self.now, 0);
            let meter = meter_of(&plan.service, plan.slot, slot.fence);
            self.meters.end(meter, until, self.now);
        }
        slot.fence = plan.fence;
        slot.since = self.now;
        if let Some(replaced) = slot.holding.take() {
            debug_assert_eq!(replaced.phase, HoldingPhase::Silent, "no other holder is replaced");
            slot.last_holder = Some(replaced.order.node);
        }
        let (phase, replaces) = (HoldingPhase::Running, plan.replaces.clone());
        slot.holding = Some(Holding { order: order.clone(), phase, replaces, failed_starts: 0 });
        let moves_from = plan.replaces.as_ref().map(|leaves| format!(", replacing {}", subject_of(leaves)));
        let node = self.cluster.node_name(&plan.node);
        let detail = format!("on {node} under fence {}{}", plan.fence, moves_from.unwrap_or_default());
        Ok(Effect { order: Some(order), ..effect("place", subject, detail) })
    }

    /// Returns the order that a plan may issue now, and writes nothing.
    fn permitted_order(&self, plan: &OrderPlan) -> Result<SlotOrder, Refusal> {
        let circle = self.cluster.circle_id().ok_or_else(|| stale("there is no circle yet"))?;
        let admission = self.cluster.node(&plan.node).ok_or_else(|| stale("the node is not admitted"))?;
        if !admission.roles.contains(&NodeRole::Worker) {
            return Err(stale(format!("node {} is not a worker", admission.name)));
        }
        let service = self.services.get(&plan.service).ok_or_else(|| stale("no such service"))?;
        self.check_approval(service, plan, admission)?;
        check_slot(service, plan, self.now)?;
        self.check_gpus(service, plan, admission)?;
        self.spending().check_replica(service).map_err(stale)?;
        Ok(SlotOrder {
            circle,
            service: plan.service.clone(),
            certificate: plan.certificate,
            slot: plan.slot,
            fence: plan.fence,
            node: plan.node,
            gpus: plan.gpus.clone(),
            issued_at: self.now.0,
        })
    }

    /// Checks that the circle approves the order, and that its node can open the model.
    fn check_approval(
        &self,
        service: &Service,
        plan: &OrderPlan,
        admission: &NodeAdmission,
    ) -> Result<(), Refusal> {
        let ends = service.phase != ServicePhase::Active || service.is_expired(self.now);
        if ends || service.certificate != plan.certificate {
            return Err(stale(format!("{} is not approved by this certificate now", plan.service)));
        }
        let root = service.manifest.model.root;
        if !self.cluster.models.contains_key(&root) || self.cluster.wrap_for(&root, plan.node).is_none() {
            let (service, node) = (&plan.service, &admission.name);
            return Err(stale(format!("the model of {service} or its key for {node} is missing")));
        }
        Ok(())
    }

    /// Checks that the order names as many GPUs as its manifest, and none that other orders hold.
    fn check_gpus(
        &self,
        service: &Service,
        plan: &OrderPlan,
        admission: &NodeAdmission,
    ) -> Result<(), Refusal> {
        let (count, percent) = gpu_demand(&service.manifest.resources);
        let distinct: BTreeSet<u32> = plan.gpus.iter().copied().collect();
        if plan.gpus.len() != count || distinct.len() != count {
            let named = plan.gpus.len();
            return Err(stale(format!(
                "{named} GPUs for {}, which needs {count} distinct ones",
                plan.service
            )));
        }
        if count == 0 {
            return Ok(());
        }
        let on_node = |holding: &Holding| holding.order.node == plan.node;
        let mut allocated = allocated_gpus(&self.services, &self.cluster.manifests, on_node);
        for (gpu, percent) in self.jobs.allocated_gpus(self.cluster) {
            let sum = allocated.entry(gpu).or_default();
            *sum = sum.saturating_add(percent);
        }
        let mut here = allocated.iter().filter(|((node, _), _)| *node == plan.node);
        let within = here.all(|(_, percent)| *percent <= GPU_PERCENT_MAX);
        debug_assert!(within, "the orders in force exceed no GPU of {}", admission.name);
        let free =
            |gpu| GPU_PERCENT_MAX.saturating_sub(allocated.get(&(plan.node, gpu)).copied().unwrap_or(0));
        match distinct.into_iter().find(|gpu| free(*gpu) < percent) {
            Some(gpu) => Err(stale(format!("GPU {gpu} of {} is allocated", admission.name))),
            None => Ok(()),
        }
    }

    /// Returns a held slot under the named order, and a copy of its holding.
    fn held(&mut self, name: &SlotName) -> Result<(&mut Slot, Holding), Refusal> {
        let slot = self.services.get_mut(&name.service).and_then(|service| service.slots.get_mut(&name.slot));
        let slot = slot.filter(|slot| slot.fence == name.fence);
        let missing =
            || stale(format!("slot {}/{} is not held under fence {}", name.service, name.slot, name.fence));
        let slot = slot.ok_or_else(missing)?;
        let holding = slot.holding.clone().ok_or_else(missing)?;
        debug_assert_eq!(holding.order.fence, slot.fence, "a slot is held under its last fence");
        let named = (&holding.order.service, holding.order.slot);
        debug_assert_eq!(named, (&name.service, name.slot), "a slot is held by an order for it");
        Ok((slot, holding))
    }
}

/// Checks that the slot can be ordered now, inside the envelope, and is ordered under its next fence.
fn check_slot(service: &Service, plan: &OrderPlan, now: ClusterTime) -> Result<(), Refusal> {
    let subject = slot_text(&plan.service, plan.slot);
    if plan.slot.0 >= service.manifest.replicas.max {
        return Err(stale(format!("slot {subject} is outside its envelope")));
    }
    let known = service.slots.get(&plan.slot).cloned().unwrap_or_default();
    if !may_be_ordered(service, &known, now) || Some(plan.fence) != next_fence(service, plan.slot) {
        let fence = known.fence;
        return Err(stale(format!("slot {subject} is held, or its fence is not one more than {fence}")));
    }
    if plan.replaces.as_ref().is_some_and(|leaves| !may_leave(service, leaves, plan)) {
        return Err(stale(format!("slot {subject} is to replace one that does not run elsewhere")));
    }
    Ok(())
}

/// Returns whether a slot can be ordered: it is free, or its node is silent. An exclusive order never goes
/// out beside one of an earlier approval that may still run, even if that slot was freed or ordered since.
pub(crate) fn may_be_ordered(service: &Service, slot: &Slot, now: ClusterTime) -> bool {
    if service.manifest.exclusive {
        return slot.holding.is_none() && slot.may_run_until(now).is_none();
    }
    slot.holding.as_ref().is_none_or(|holding| holding.phase == HoldingPhase::Silent)
}

/// Returns the time until which the node of a held slot may run it, if that is silent now or already was. It
/// knows of nothing that was decided since. None if the work is exclusive: it ended with its lease.
fn alone_until(cluster: &Cluster, slot: &Slot, now: ClusterTime) -> Option<ClusterTime> {
    let holding = slot.holding.as_ref()?;
    let manifest = cluster.manifest_of(&holding.order.certificate).filter(|manifest| !manifest.exclusive)?;
    let silent_since = if holding.phase == HoldingPhase::Silent { slot.since } else { now };
    debug_assert!(silent_since <= now, "a slot changes in the order of time");
    Some(silent_since.plus(manifest.autonomy_ms()))
}

/// Returns the time until which a slot of a silent node is billed at most: its node ends it by then. Its
/// silence is known from the time at which it was noticed, or by the leader's clock.
fn autonomy_until(cluster: &Cluster, slot: &Slot, now: ClusterTime, silent_ms: u64) -> ClusterTime {
    let Some(holding) = &slot.holding else { return now };
    let noticed = ClusterTime(protocol::Millis(now.0.0.saturating_sub(silent_ms)));
    let since = if holding.phase == HoldingPhase::Silent { slot.since } else { noticed };
    let manifest = cluster.manifest_of(&holding.order.certificate);
    since.plus(manifest.map_or(LEASE_MS, |manifest| manifest.autonomy_ms()))
}

/// Records the holder that loses a slot now, if its node may run the slot on.
fn keep_former(cluster: &Cluster, slot: &mut Slot, now: ClusterTime) {
    let (Some(until), Some(holding)) = (alone_until(cluster, slot, now), &slot.holding) else { return };
    let former = FormerHolder { node: holding.order.node, fence: holding.order.fence, until };
    slot.keep_former(former, now);
}

/// Returns whether the node of a held slot, now silent, may continue with it: its order has an autonomy
/// beyond the lease that has not run out, and its service is still approved. Otherwise a lapse frees the
/// slot.
pub(crate) fn runs_on_alone(cluster: &Cluster, service: &Service, slot: &Slot, now: ClusterTime) -> bool {
    let phase = slot.holding.as_ref().map(|holding| &holding.phase);
    let is_wanted = matches!(phase, Some(HoldingPhase::Running | HoldingPhase::Silent));
    let in_time = alone_until(cluster, slot, now).is_some_and(|until| until > now);
    let expired = service.is_expired(now) && service.manifest.on_expiry == OnExpiry::Drain;
    is_wanted && in_time && service.phase == ServicePhase::Active && !expired
}

/// Marks the holder of a slot as silent; returns whether it was not.
fn silence(slot: &mut Slot, now: ClusterTime) -> bool {
    let Some(holding) = slot.holding.as_mut().filter(|holding| holding.phase == HoldingPhase::Running) else {
        return false;
    };
    holding.phase = HoldingPhase::Silent;
    debug_assert!(slot.since <= now, "a slot changes in the order of time");
    slot.since = now;
    true
}

/// Frees a slot. Its fence remains, so that the next order's fence is higher.
fn free(slot: &mut Slot, now: ClusterTime) {
    debug_assert!(slot.holding.is_some(), "only a held slot becomes free");
    debug_assert!(slot.since <= now, "a slot changes in the order of time");
    slot.last_holder = slot.holding.take().map(|holding| holding.order.node);
    slot.since = now;
}

/// Returns whether a replica may leave this slot for the planned one: it must run there, on another node.
fn may_leave(service: &Service, leaves: &SlotName, plan: &OrderPlan) -> bool {
    let slot = service.slots.get(&leaves.slot).filter(|slot| slot.fence == leaves.fence);
    let holding = slot.and_then(|slot| slot.holding.as_ref());
    let runs_elsewhere =
        |holding: &Holding| holding.phase == HoldingPhase::Running && holding.order.node != plan.node;
    leaves.service == plan.service && holding.is_some_and(runs_elsewhere)
}

/// Returns the fence of a slot's next order.
pub(crate) fn next_fence(service: &Service, index: SlotIndex) -> Option<Fence> {
    let last = service.slots.get(&index).map(|slot| slot.fence).unwrap_or_default();
    debug_assert!(last.version <= service.version, "no order is made under a version to come");
    last.next(service.version)
}

pub(crate) fn effect(action: &'static str, subject: String, detail: String) -> Effect {
    Effect { action, subject, detail, order: None, is_quiet: false }
}

fn subject_of(name: &SlotName) -> String {
    slot_text(&name.service, name.slot)
}

/// Returns the name of the meter of a service's slot.
fn meter_of(service: &ServiceName, slot: SlotIndex, fence: Fence) -> MeterName {
    MeterName { envelope: service.clone(), slot, fence, stored: None }
}

pub(crate) fn slot_text(service: &ServiceName, slot: SlotIndex) -> String {
    format!("{service}/{slot}")
}

pub(crate) fn stale(message: impl Into<String>) -> Refusal {
    Refusal::new(PLAN_STALE, message)
}

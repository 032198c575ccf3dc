//! Planner: decides which slots lapse, end, drain and are released, which are ordered on which node, and
//! which move.
//!
//! It is a function of the replicated state, the leader's view and the time; it changes nothing. Each step is
//! executed on a draft as soon as it is found, by the code that will apply it. Later steps thus see the
//! effect of earlier ones, and the whole plan applies or is stale.
//!
//! Caveat: a step that the draft refuses is a bug in this module, but no reason to panic. The same state
//! would cause the same panic on every replica that leads; no lease would be renewed, and every slot would
//! end. The step is left out and recorded in [`Plan::dropped`]; `apply` would have refused it anyway.

mod capacity;
mod counts;
mod drain;
mod fill;
mod jobs;
mod preempt;
mod projects;
mod rebalance;
mod roll_out;
#[cfg(test)]
mod tests;

use crate::clock::{ClockReadings, ClusterTime};
use crate::cluster::{Cluster, Holding, HoldingPhase, Service};
use crate::command::{Action, Actor, Command, OrderPlan, Refusal, Reply, SlotName, Step};
use crate::draft::{Draft, may_be_ordered};
use crate::limits::PLAN_STEPS_MAX;
use crate::view::ClusterView;
use protocol::agent::{SlotReport, SlotState};
use protocol::{JobId, NodeName, ServiceName, SlotIndex};
use std::cell::RefCell;
use std::rc::Rc;

pub(crate) use capacity::{
    NodeCapacity, Unschedulable, capacities, capacities_beside, capacity_beside, has_meeting_node,
    model_bytes, ranks_of_empty_nodes,
};
pub(crate) use fill::{
    Blocked, CandidatePlacement, best_placement, blocked_text, fits_without, service_obstacles,
};
pub(crate) use jobs::LIMIT;
pub(crate) use preempt::waits_for_drains;
pub(crate) use projects::quotas_of;
pub(crate) use rebalance::{SpreadMove, moving, spread_move};
pub(crate) use roll_out::{available_current, has_failed};

/// The next steps, and the reason for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Generation for which it was made; any other generation refuses it.
    pub parent_generation: u64,
    /// Steps in order of execution.
    pub steps: Vec<Step>,
    /// Reasons for each order's choice of node, and for each other step.
    pub reasons: Vec<Reason>,
    /// Replicas that are wanted but cannot be placed now.
    pub waiting: Vec<Waiting>,
    /// Jobs whose gang cannot be placed now.
    pub waiting_jobs: Vec<WaitingJob>,
    /// Steps that planning found but applying would refuse; always empty, unless the planner is wrong.
    pub dropped: Vec<Dropped>,
}

/// A step that was left out of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Subject of the step, as in [`Reason`].
    pub subject: String,
    /// Refusal that applying it would have returned.
    pub refusal: Refusal,
}

/// The reason for a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// `service/slot`, `service/NAME` or `node/NAME`.
    pub subject: String,
    /// Explanation, as a sentence.
    pub text: String,
}

/// Waiting replicas of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Service of the replicas.
    pub service: ServiceName,
    /// Number of waiting replicas.
    pub replicas: u32,
    /// Cause, as a sentence.
    pub cause: String,
    /// Obstacles of each node, by node name.
    pub nodes: Vec<(NodeName, Vec<String>)>,
}

/// A job whose gang waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingJob {
    /// Job that waits.
    pub id: JobId,
    /// Name of the reason, for programs: `reserved`, `behind`, `no_room`, `no_network`, `halted`, `approval`,
    /// `limit`, `project`, `quota`, `fair_share`, `reclaim`, `leader`.
    pub reason: &'static str,
    /// Reason, as a sentence.
    pub text: String,
}

impl Plan {
    /// Returns whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns the action that executes the plan; none if there is nothing to do. Call
    /// [`Observed::begin_eviction`](crate::Observed::begin_eviction) before proposing it, and record no
    /// node's request in between.
    #[must_use]
    pub fn action(&self) -> Option<Action> {
        let action = Action::Execute { parent_generation: self.parent_generation, steps: self.steps.clone() };
        (!self.is_empty()).then_some(action)
    }

    /// Returns [`Self::action`] as the scheduler's command with these readings.
    #[must_use]
    pub fn command(&self, clocks: ClockReadings) -> Option<Command> {
        let command = |action| Command { clocks, actor: Actor::Scheduler, action, idempotency: None };
        self.action().map(command)
    }

    /// Returns the orders among the steps.
    pub fn orders(&self) -> impl Iterator<Item = &OrderPlan> {
        self.steps.iter().filter_map(|step| match step {
            Step::Order(order) => Some(order),
            _ => None,
        })
    }
}

/// Plans the next steps. The plan is empty before the circle is founded and before there is a leader.
#[must_use]
pub fn plan(view: ClusterView) -> Plan {
    let mut planner = Planner::new(view);
    if view.cluster.circle.is_some() && view.cluster.leadership.is_some() {
        planner.count_usage();
        planner.lapse_dead_nodes();
        planner.resume_returned();
        planner.release_former_holders();
        planner.release_what_ended();
        planner.release_gangs();
        planner.judge_roll_outs();
        planner.drain_what_must_go();
        planner.roll_out();
        planner.fill();
        planner.rebalance();
        planner.judge_jobs();
        planner.preempt_jobs();
        planner.fill_jobs();
    }
    let plan = planner.plan;
    debug_assert!(plan.steps.len() <= PLAN_STEPS_MAX, "a plan fits into a log entry");
    debug_assert_eq!(plan.steps.len(), plan.reasons.len(), "every step has its reason");
    plan
}

/// Returns the refusal of a plan in the very generation for which it was made. The planner's draft accepted
/// every step of it, so this is a fault of the planner, like [`Plan::dropped`]. Only a deadline that passed
/// in between can cause it once. None if the plan was executed, or is stale.
///
/// `cluster` is the state after the plan was applied; the generation never falls, so an equal one means that
/// nothing had changed.
#[must_use]
pub fn refused_in_its_generation(
    cluster: &Cluster,
    parent_generation: u64,
    reply: &Reply,
) -> Option<Refusal> {
    let Reply::Refused { code, message } = reply else { return None };
    debug_assert!(cluster.generation >= parent_generation, "a plan is made from a state that was applied");
    let unchanged = cluster.generation == parent_generation;
    unchanged.then(|| Refusal::new(*code, message.clone()))
}

/// A plan under construction.
pub(crate) struct Planner<'a> {
    view: ClusterView<'a>,
    draft: Draft<'a>,
    plan: Plan,
    /// Remaining capacity of the nodes in the draft; none after a step made it stale.
    capacities: RefCell<Option<Rc<Vec<NodeCapacity>>>>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(view: ClusterView<'a>) -> Self {
        let parent_generation = view.cluster.generation;
        let plan = Plan {
            parent_generation,
            steps: vec![],
            reasons: vec![],
            waiting: vec![],
            waiting_jobs: vec![],
            dropped: vec![],
        };
        Self {
            view,
            draft: Draft::new(view.cluster, view.cluster_time()),
            plan,
            capacities: RefCell::new(None),
        }
    }

    /// Returns the time by which deadlines are judged.
    fn now(&self) -> ClusterTime {
        self.view.cluster_time()
    }

    /// Returns the capacity that nodes have left after the steps taken so far.
    fn capacities(&self) -> Rc<Vec<NodeCapacity>> {
        let mut kept = self.capacities.borrow_mut();
        let make = || Rc::new(capacities_beside(self.view, &self.draft.services, &self.draft.jobs));
        Rc::clone(kept.get_or_insert_with(make))
    }

    /// Takes a step; returns whether the plan now has it. A full plan does not take the step. A step that the
    /// draft refuses is recorded as dropped.
    fn take(&mut self, step: Step, subject: String, text: String) -> bool {
        debug_assert!(!subject.is_empty(), "a step has a subject");
        if self.plan.steps.len() >= PLAN_STEPS_MAX {
            return false;
        }
        if let Err(refusal) = self.draft.execute(&step) {
            self.plan.dropped.push(Dropped { subject, refusal });
            return false;
        }
        self.update_capacities(&step);
        self.plan.steps.push(step);
        self.plan.reasons.push(Reason { subject, text });
        true
    }

    /// Updates the capacities: an order takes from one node; any other step makes all of them stale.
    fn update_capacities(&mut self, step: &Step) {
        let kept = self.capacities.get_mut();
        match (step, kept.as_mut().map(Rc::make_mut)) {
            (Step::CountUsage(_), _) => {}
            (Step::Order(order), Some(capacities)) => {
                let manifest = &self.draft.services[&order.service].manifest;
                if let Some(capacity) = capacities.iter_mut().find(|capacity| capacity.id == order.node) {
                    capacity.host(manifest, &order.gpus, model_bytes(self.view.cluster, manifest));
                }
            }
            _ => *kept = None,
        }
    }

    /// Returns the last report of a slot's holder under its present order.
    fn report(&self, holding: &Holding) -> Option<&'a SlotReport> {
        let order = &holding.order;
        self.view.observed.report(&order.node, &order.service, order.slot, order.fence)
    }

    /// Returns whether a slot answers requests.
    fn is_ready(&self, holding: &Holding) -> bool {
        self.view.is_alive(&holding.order.node)
            && self.report(holding).is_some_and(|report| report.state == SlotState::Ready)
    }

    fn node_name(&self, holding: &Holding) -> String {
        self.view.cluster.node_name(&holding.order.node)
    }

    /// Returns copies of the held slots of all services in the draft, so that steps can be taken during
    /// iteration.
    fn holdings(&self) -> Vec<Holding> {
        self.draft.services.values().flat_map(|s| s.held().map(|(_, h)| h.clone())).collect()
    }

    fn service(&self, name: &ServiceName) -> &Service {
        &self.draft.services[name]
    }

    fn service_names(&self) -> Vec<ServiceName> {
        self.draft.services.keys().cloned().collect()
    }
}

/// Returns the name of a held slot under its present order.
pub(crate) fn slot_name(holding: &Holding) -> SlotName {
    let order = &holding.order;
    SlotName { service: order.service.clone(), slot: order.slot, fence: order.fence }
}

/// Returns the slot as `service/slot`.
pub(crate) fn slot_label(holding: &Holding) -> String {
    format!("{}/{}", holding.order.service, holding.order.slot)
}

/// Returns the slots that are ordered to run: those under the certificate in force, and the others.
pub(crate) fn running(service: &Service) -> (Vec<Holding>, Vec<Holding>) {
    let runs = service.held().filter(|(_, holding)| holding.phase == HoldingPhase::Running);
    runs.map(|(_, holding)| holding.clone()).partition(|h| h.order.certificate == service.certificate)
}

/// Returns the slot of the envelope for a further replica: the lowest whose node is silent, so that the
/// higher fence ends the replica there, or else the lowest free one.
pub(crate) fn free_slot(service: &Service, now: ClusterTime) -> Option<SlotIndex> {
    let orderable = |index: &SlotIndex| {
        let known = service.slots.get(index);
        known.is_none_or(|slot| may_be_ordered(service, slot, now))
    };
    let indexes = || (0..service.manifest.replicas.max).map(SlotIndex).filter(orderable);
    let is_held = |index: &SlotIndex| service.slots.get(index).is_some_and(|slot| slot.holding.is_some());
    indexes().find(is_held).or_else(|| indexes().next())
}

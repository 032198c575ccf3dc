//! Planner steps that assign slots: the replicas that are wanted, by priority, and the node for each.

use super::preempt::{Shortage, is_short_of_room};
use super::{NodeCapacity, Planner, Unschedulable, Waiting, capacities, free_slot, model_bytes, running};
use crate::cluster::{Holding, Service, ServicePhase};
use crate::command::{OrderPlan, SlotName, Step};
use crate::draft::next_fence;
use crate::usage::Spending;
use crate::view::ClusterView;
use human_chain::describe_halt;
use protocol::halt::Halt;
use protocol::{HaltId, NodeId, NodeName, ServiceName};
use std::collections::BTreeMap;

/// The cause that keeps a wanted replica from being placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blocked {
    Expired,
    /// A halt covers the service on every node.
    Halted {
        id: HaltId,
        text: String,
    },
    /// The model is not registered.
    NoModel,
    /// Every slot of the envelope is held; some still drain.
    NoSlot,
    /// One more replica would pass the spend limit.
    Limit(String),
    /// Planned work may take none of its replicas away, and none fits beside them.
    Budget,
    /// This plan has no space for the order, or left it out.
    Later,
    /// No node can take the replica; each is listed with its obstacles.
    NoNode(Vec<(NodeName, Vec<Unschedulable>)>),
}

/// The best node for a replica, and the number of nodes that could take it.
pub(crate) struct CandidatePlacement {
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
    pub(crate) gpus: Vec<u32>,
    pub(crate) replicas: u32,
    pub(crate) count: usize,
}

/// Returns the best node for one more replica, or the obstacles of each node.
pub(crate) fn best_placement(
    view: ClusterView,
    capacities: &[NodeCapacity],
    service: &Service,
) -> Result<CandidatePlacement, Vec<(NodeName, Vec<Unschedulable>)>> {
    debug_assert!(capacities.is_sorted_by_key(|capacity| &capacity.name), "a tie goes to the lower name");
    let manifest = &service.manifest;
    let bytes = model_bytes(view.cluster, manifest);
    let replicas = |capacity: &NodeCapacity| capacity.replicas.get(&manifest.name).copied().unwrap_or(0);
    let in_region =
        |region: &str| capacities.iter().filter(|capacity| capacity.region() == region).map(replicas).sum();
    let mut best: Option<(super::capacity::Score, &NodeCapacity, Vec<u32>)> = None;
    let (mut count, mut refused) = (0, Vec::new());
    for capacity in capacities {
        let mut obstacles = service_obstacles(view, service, capacity.id);
        match capacity.fit(manifest, bytes) {
            Ok(gpus) if obstacles.is_empty() => {
                count += 1;
                let score = capacity.score(manifest, &gpus, bytes, in_region(capacity.region()));
                // Capacities are sorted by name, so a tie goes to the lower name.
                if best.as_ref().is_none_or(|(lowest, ..)| score < *lowest) {
                    best = Some((score, capacity, gpus));
                }
                continue;
            }
            Ok(_) => {}
            Err(mut found) => obstacles.append(&mut found),
        }
        refused.push((capacity.name.clone(), obstacles));
    }
    let (score, capacity, gpus) = best.ok_or(refused)?;
    Ok(CandidatePlacement {
        node: capacity.id,
        name: capacity.name.clone(),
        gpus,
        replicas: score.replicas,
        count,
    })
}

/// Replicas that a service lacks.
#[derive(Debug, Clone)]
struct Demand {
    name: ServiceName,
    priority: u32,
    placed: u32,
    wanted: u32,
}

/// Returns the service that gets the next replica: the one of the highest priority, then the one with the
/// smallest part of its wanted replicas, then the lower name.
fn next_demand(demands: &[Demand]) -> Option<usize> {
    let part = |a: &Demand, b: &Demand| {
        let share = |of: &Demand, other: &Demand| u64::from(of.placed) * u64::from(other.wanted);
        share(a, b).cmp(&share(b, a))
    };
    let open = (0..demands.len()).filter(|at| demands[*at].placed < demands[*at].wanted);
    open.min_by(|a, b| {
        let (a, b) = (&demands[*a], &demands[*b]);
        b.priority.cmp(&a.priority).then_with(|| part(a, b)).then_with(|| a.name.cmp(&b.name))
    })
}

impl Blocked {
    /// Returns the cause for a service that a halt covers on every node.
    pub(crate) fn by(halt: &Halt) -> Self {
        let text = describe_halt(halt);
        debug_assert!(text.contains(halt.member.as_str()), "people read the name of the member");
        Self::Halted { id: halt.id(), text }
    }
}

/// Returns the obstacles on a node that are the service's own: a halt, no key there, or a recent failure.
pub(crate) fn service_obstacles(view: ClusterView, service: &Service, node: NodeId) -> Vec<Unschedulable> {
    let mut obstacles = Vec::new();
    let admission = view.cluster.node(&node);
    if let Some(halt) = admission.and_then(|node| view.halt_on(&service.manifest.name, node)) {
        obstacles.push(Unschedulable::Halted { id: halt.id(), text: describe_halt(halt) });
    }
    if view.cluster.wrap_for(&service.manifest.model.root, node).is_none() {
        obstacles.push(Unschedulable::NoWrap);
    }
    if let Some(until) = service.avoid.get(&node).filter(|until| **until > view.cluster_time()) {
        obstacles.push(Unschedulable::Avoided { until: *until });
    }
    obstacles
}

/// Returns whether one more replica of a slot's service would fit on a node if that slot were free.
pub(crate) fn fits_without(
    view: ClusterView,
    services: &BTreeMap<ServiceName, Service>,
    holding: &Holding,
) -> bool {
    let mut without = services.clone();
    let Some(service) = without.get_mut(&holding.order.service) else { return false };
    let known = service.slots.get(&holding.order.slot);
    debug_assert!(known.is_some_and(|slot| slot.fence == holding.order.fence), "the slot is held");
    if let Some(slot) = service.slots.get_mut(&holding.order.slot) {
        slot.holding = None;
    }
    let capacities = capacities(view, &without);
    let service = &without[&holding.order.service];
    let spending = Spending { cluster: view.cluster, jobs: view.cluster.jobs(), now: view.cluster_time() };
    view.cluster.models.contains_key(&service.manifest.model.root)
        && spending.check_replica(service).is_ok()
        && free_slot(service, view.cluster_time()).is_some()
        && best_placement(view, &capacities, service).is_ok()
}

impl Planner<'_> {
    /// Orders every wanted replica: the minimum of each service first, then the rest. In both rounds higher
    /// priorities go first. Of services with the same one, the next replica is for that with the smallest
    /// part of its wanted replicas, so that no name starves another.
    pub(super) fn fill(&mut self) {
        let mut shortages = Vec::new();
        for minimum in [true, false] {
            let mut demands = self.demands(minimum);
            while let Some(at) = next_demand(&demands) {
                let Demand { name, placed, wanted, .. } = demands[at].clone();
                let text = format!("{placed} of {wanted} replicas run");
                let Err(blocked) = self.place_replica(&name, &text) else {
                    demands[at].placed += 1;
                    continue;
                };
                demands.remove(at);
                if !minimum {
                    self.wait(&name, wanted - placed, &blocked);
                    shortages.extend(self.shortage(&name, placed, &blocked));
                }
            }
        }
        self.preempt(shortages);
    }

    /// Returns the services that lack replicas, by name.
    fn demands(&self, minimum: bool) -> Vec<Demand> {
        let active =
            self.draft.services.iter().filter(|(_, service)| {
                service.phase == ServicePhase::Active && !service.is_expired(self.now())
            });
        let demands = active.map(|(name, service)| {
            let (fresh, old) = running(service);
            let least = service.desired.min(service.manifest.replicas.min);
            Demand {
                name: name.clone(),
                priority: service.manifest.priority,
                placed: (fresh.len() + old.len()) as u32,
                wanted: if minimum { least } else { service.desired },
            }
        });
        demands.filter(|demand| demand.placed < demand.wanted).collect()
    }

    /// Returns the replicas for which no node has room, unless something else is in the way.
    fn shortage(&self, name: &ServiceName, placed: u32, blocked: &Blocked) -> Option<Shortage> {
        let Blocked::NoNode(nodes) = blocked else { return None };
        let service = self.service(name);
        let least = service.desired.min(service.manifest.replicas.min);
        let minimum = least.saturating_sub(placed);
        let beyond = service.desired.saturating_sub(placed) - minimum;
        is_short_of_room(nodes).then(|| Shortage { service: name.clone(), minimum, beyond })
    }

    /// Orders the lowest free slot on the best node, for a missing replica.
    pub(super) fn place_replica(&mut self, name: &ServiceName, why: &str) -> Result<(), Blocked> {
        let service = self.service(name);
        if service.is_expired(self.now()) {
            return Err(Blocked::Expired);
        }
        if let Some(halt) = self.view.halt_of(name) {
            return Err(Blocked::by(halt));
        }
        if !self.view.cluster.models.contains_key(&service.manifest.model.root) {
            return Err(Blocked::NoModel);
        }
        let best = self.best_node(name, None).map_err(Blocked::NoNode)?;
        self.order(name, best, None, why)
    }

    /// Orders the lowest free slot on the given node.
    pub(super) fn order(
        &mut self,
        name: &ServiceName,
        best: CandidatePlacement,
        replaces: Option<SlotName>,
        why: &str,
    ) -> Result<(), Blocked> {
        let service = self.service(name);
        self.draft.spending().check_replica(service).map_err(Blocked::Limit)?;
        let slot = free_slot(service, self.now()).ok_or(Blocked::NoSlot)?;
        let fence = next_fence(service, slot).ok_or(Blocked::NoSlot)?;
        debug_assert!(service.phase == ServicePhase::Active, "only an approved service is ordered");
        debug_assert!(
            replaces.as_ref().is_none_or(|left| left.service == *name),
            "a replica keeps its service"
        );
        let order = OrderPlan {
            service: name.clone(),
            slot,
            fence,
            node: best.node,
            certificate: service.certificate,
            gpus: best.gpus,
            replaces,
        };
        let (node, replicas, count) = (best.name, best.replicas, best.count);
        let feasible = if count == 1 { "node" } else { "nodes" };
        let text = format!(
            "placed on {node} (runs {replicas} of its replicas, best of {count} feasible {feasible}); {why}"
        );
        let taken = self.take(Step::Order(order), format!("{name}/{slot}"), text);
        if taken { Ok(()) } else { Err(Blocked::Later) }
    }

    /// Returns the best node for one more replica, other than `except`.
    pub(super) fn best_node(
        &self,
        name: &ServiceName,
        except: Option<NodeId>,
    ) -> Result<CandidatePlacement, Vec<(NodeName, Vec<Unschedulable>)>> {
        let service = self.service(name);
        match except {
            None => best_placement(self.view, &self.capacities(), service),
            Some(except) => {
                let others: Vec<NodeCapacity> =
                    self.capacities().iter().filter(|capacity| capacity.id != except).cloned().collect();
                best_placement(self.view, &others, service)
            }
        }
    }

    fn wait(&mut self, name: &ServiceName, replicas: u32, blocked: &Blocked) {
        debug_assert!(replicas > 0, "a service without waiting replicas does not wait");
        let service = self.service(name);
        let nodes = match blocked {
            Blocked::NoNode(nodes) => {
                let texts = |o: &Vec<Unschedulable>| o.iter().map(ToString::to_string).collect();
                nodes.iter().map(|(node, obstacles)| (node.clone(), texts(obstacles))).collect()
            }
            _ => Vec::new(),
        };
        let cause = blocked_text(blocked, service);
        self.plan.waiting.push(Waiting { service: name.clone(), replicas, cause, nodes });
    }
}

/// Returns the cause for which a replica waits, as a sentence.
pub(crate) fn blocked_text(blocked: &Blocked, service: &Service) -> String {
    match blocked {
        Blocked::Expired => "its approval has expired; nothing new starts".into(),
        Blocked::Halted { text, .. } => text.clone(),
        Blocked::NoModel => {
            let model = &service.manifest.model;
            format!("no model {} ({}) is registered", model.name, model.root.short())
        }
        Blocked::NoSlot => "every slot of its envelope is held; some have not been released yet".into(),
        Blocked::Limit(text) => format!("its spend limit holds: {text}"),
        Blocked::Budget => {
            "planned work may take none of its replicas away, and none fits beside them".into()
        }
        Blocked::Later => "this plan left out its order; the next one retries".into(),
        Blocked::NoNode(nodes) if nodes.is_empty() => "no node is admitted".into(),
        Blocked::NoNode(nodes) => format!("0 of {} nodes are feasible", nodes.len()),
    }
}

//! Operator's views of services, nodes and proposals.

use crate::apply::takes_effect_at;
use crate::cluster::{Cluster, DraftProposal, Holding, HoldingPhase, OpenProposal, Service, ServicePhase};
use crate::observed::ObservedNode;
use crate::plan::{available_current, has_failed};
use crate::roll_out::RollOutPhase;
use crate::view::ClusterView;
use crate::why::slot_sentence;
use crate::wraps::keys_lacking;
use human_chain::class_of;
use protocol::agent::SlotState;
use protocol::api::{
    NodeView, ProposalState, ProposalView, RollOutProgress, RollOutView, ServiceView, SlotView,
};
use protocol::governance::{Choice, NodeAdmission, NodeRole, Proposal, SignedBallot};
use protocol::manifest::Manifest;
use protocol::model::Recipient;
use protocol::{MemberId, ModelName, NodeId, NodeName, ProposalId, ServiceName};
use std::collections::BTreeSet;

/// Names of the limits that nodes may report as not enforced. A label begins with one of them. Any other
/// beginning counts as [`OTHER_LIMIT`], so that a node cannot invent names for monitoring to keep.
const LIMITS: [&str; 7] = ["cpu", "gpu-share", "memory", "pids", "proc", "simulated", "user-ids"];
/// Name of every limit outside [`LIMITS`].
const OTHER_LIMIT: &str = "other";

/// Label of a node with a worker on a share of a GPU or of its memory. The worker can take all of it: shares
/// are only counted.
const GPU_SHARE_LABEL: &str = "gpu-share: by accounting only";

/// Returns all services except retired ones, by name.
#[must_use]
pub fn service_views(view: ClusterView) -> Vec<ServiceView> {
    let running = view.cluster.services().values().filter(|service| service.phase != ServicePhase::Retired);
    running.map(|service| view_service(view, service)).collect()
}

/// Returns one service; none if it is unknown or retired.
#[must_use]
pub fn service_view(view: ClusterView, name: &ServiceName) -> Option<ServiceView> {
    let service =
        view.cluster.services().get(name).filter(|service| service.phase != ServicePhase::Retired)?;
    Some(view_service(view, service))
}

fn view_service(view: ClusterView, service: &Service) -> ServiceView {
    let held = service.held().map(|(slot, holding)| SlotView {
        slot,
        node: view.cluster.node(&holding.order.node).map(|node| node.name.clone()),
        fence: holding.order.fence,
        report: view
            .observed
            .report(&holding.order.node, &service.manifest.name, slot, holding.order.fence)
            .cloned(),
        why: slot_sentence(view, service, slot),
    });
    ServiceView {
        name: service.manifest.name.clone(),
        manifest: Manifest::Service(service.manifest.clone()),
        certificate: service.certificate,
        roll_out: view_roll_out(view, service),
        desired: service.desired,
        ready: ready_replicas(view, service),
        ready_current: ready_holdings(view, service)
            .filter(|holding| holding.order.certificate == service.certificate)
            .count() as u32,
        retiring: service.phase != ServicePhase::Active,
        slots: held.collect(),
    }
}

fn view_roll_out(view: ClusterView, service: &Service) -> RollOutView {
    let (progress, returned) = match &service.roll_out.phase {
        RollOutPhase::Complete => (RollOutProgress::Complete, None),
        RollOutPhase::Progressing if has_failed(view, service) => (RollOutProgress::Holding, None),
        RollOutPhase::Progressing => (RollOutProgress::Progressing, None),
        RollOutPhase::Returned { from, cause, .. } => {
            (RollOutProgress::Returned, Some((*from, cause.clone())))
        }
    };
    let returns_to = service.before.filter(|_| returned.is_none()).map(|target| target.certificate);
    RollOutView {
        progress,
        available: available_current(view, service),
        failed_starts: service.roll_out.failed_starts,
        returns_to,
        returned_from: returned.as_ref().map(|(from, _)| *from),
        cause: returned.map(|(_, cause)| cause),
    }
}

/// Returns the number of slots that answer requests, under any approval.
pub(crate) fn ready_replicas(view: ClusterView, service: &Service) -> u32 {
    ready_holdings(view, service).count() as u32
}

/// Returns the running slots that answer requests, on nodes whose leases hold.
fn ready_holdings<'a>(view: ClusterView<'a>, service: &'a Service) -> impl Iterator<Item = &'a Holding> {
    let ready = service.held().filter(move |(slot, holding)| {
        let order = &holding.order;
        let report = view.observed.report(&order.node, &order.service, *slot, order.fence);
        holding.phase == HoldingPhase::Running
            && view.is_alive(&order.node)
            && report.is_some_and(|report| report.state == SlotState::Ready)
    });
    ready.map(|(_, holding)| holding)
}

/// Returns all admitted nodes, by name.
#[must_use]
pub fn node_views(view: ClusterView) -> Vec<NodeView> {
    let mut lacking = keys_lacking(view.cluster);
    let mut lacks = |id| lacking.remove(&Recipient::Node(id)).unwrap_or_default();
    view.cluster.nodes().map(|admission| view_node(view, admission, lacks(admission.id))).collect()
}

fn view_node(view: ClusterView, admission: &NodeAdmission, keys_lacking: Vec<ModelName>) -> NodeView {
    let known = view.observed.node(&admission.id);
    NodeView {
        name: admission.name.clone(),
        id: admission.id,
        admission: admission.clone(),
        alive: view.is_alive(&admission.id),
        heard_ms_ago: known.map(|node| node.heartbeat_at.ms_until(view.now)),
        cpu_millicores: known.map_or(0, |node| node.resources.cpu_millicores),
        memory_bytes: known.map_or(0, |node| node.resources.memory_bytes),
        gpus: known.map(|node| node.resources.gpus.clone()).unwrap_or_default(),
        isolation: known.map(|node| node.isolation),
        not_enforced: not_enforced(view.cluster, known, admission.id),
        slots: holdings_of(view.cluster, admission.id).count() as u32,
        keys_lacking,
    }
}

/// Returns each limit that an admitted worker's node reports as not enforced, by node. Other nodes run
/// nothing to limit.
#[must_use]
pub fn limits_not_enforced(view: ClusterView) -> Vec<(NodeName, Vec<&'static str>)> {
    let of = |node: &NodeAdmission| {
        let limits = not_enforced_of(view, node);
        (!limits.is_empty()).then(|| (node.name.clone(), limits.into_iter().collect()))
    };
    view.cluster.nodes().filter_map(of).collect()
}

pub(crate) fn not_enforced_of(view: ClusterView, node: &NodeAdmission) -> BTreeSet<&'static str> {
    if !node.roles.contains(&NodeRole::Worker) {
        return BTreeSet::new();
    }
    not_enforced(view.cluster, view.observed.node(&node.id), node.id)
        .iter()
        .map(|label| limit_of(label))
        .collect()
}

/// Returns the name of the limit in a label such as `cpu: no such control group controller`.
#[must_use]
pub fn limit_of(label: &str) -> &'static str {
    let name = label.split(':').next().unwrap_or_default();
    LIMITS.into_iter().find(|limit| *limit == name).unwrap_or(OTHER_LIMIT)
}

fn holdings_of(cluster: &Cluster, node: NodeId) -> impl Iterator<Item = &Holding> {
    let holdings = cluster.holdings().map(|(_, _, holding)| holding);
    holdings.filter(move |holding| holding.order.node == node)
}

/// Returns the limits that the node cannot enforce, and those that nothing enforces on its workers.
fn not_enforced(cluster: &Cluster, known: Option<&ObservedNode>, node: NodeId) -> Vec<String> {
    let mut labels = known.map(|node| node.not_enforced.clone()).unwrap_or_default();
    let shares = |holding: &Holding| {
        let resources = cluster.manifest_of(&holding.order.certificate).map(|manifest| &manifest.resources);
        resources.is_some_and(|resources| resources.gpu_share_percent > 0 || resources.gpu_memory_bytes > 0)
    };
    if holdings_of(cluster, node).any(shares) {
        labels.push(GPU_SHARE_LABEL.into());
    }
    labels
}

/// Returns the open proposals and drafts, then the last closed proposals, newest first.
#[must_use]
pub fn proposal_views(cluster: &Cluster) -> Vec<ProposalView> {
    let open = cluster.open_proposals().iter().map(|(id, open)| (*id, open.submitted_at));
    let drafts = cluster.drafts().iter().map(|(id, draft)| (*id, draft.submitted_at));
    let mut open: Vec<_> = open.chain(drafts).collect();
    open.sort_by_key(|(id, submitted_at)| (std::cmp::Reverse(*submitted_at), *id));
    let ids = open.into_iter().map(|(id, _)| id);
    let closed = cluster.closed_proposals().iter().rev().map(|closed| closed.proposal.id());
    ids.chain(closed).filter_map(|id| proposal_view(cluster, &id)).collect()
}

/// Returns the proposals with a larger id than `after`, by id: drafts, and those that are open or were closed
/// recently. A proposal keeps its place when it is decided, so that pages read at different times continue
/// each other.
pub fn proposals_after(cluster: &Cluster, after: Option<ProposalId>) -> impl Iterator<Item = ProposalView> {
    let closed = cluster.closed_proposals().iter().map(|closed| closed.proposal.id());
    let pending = cluster.open_proposals().keys().chain(cluster.drafts().keys()).copied();
    let ids: BTreeSet<ProposalId> = closed.chain(pending).collect();
    let next = ids.into_iter().filter(move |id| after.is_none_or(|after| *id > after));
    next.filter_map(|id| proposal_view(cluster, &id))
}

/// Returns one proposal: a draft, open or recently closed.
#[must_use]
pub fn proposal_view(cluster: &Cluster, id: &ProposalId) -> Option<ProposalView> {
    if let Some(open) = cluster.open_proposals().get(id) {
        return Some(view_open(cluster, open));
    }
    if let Some(draft) = cluster.drafts().get(id) {
        return Some(view_draft(cluster, draft));
    }
    let closed = cluster.closed_proposals().iter().rev().find(|closed| closed.proposal.id() == *id)?;
    let view = view_ballots(&closed.proposal, closed.ballots.clone(), closed.state);
    let proposer = Some(closed.proposer.clone());
    Some(ProposalView { certificate: closed.certificate, proposer, ..view })
}

fn view_draft(cluster: &Cluster, draft: &DraftProposal) -> ProposalView {
    let members = cluster.circle_state().into_iter().flat_map(|state| {
        let active = state.members().filter(|member| !state.is_suspended(&member.id));
        active.map(|member| member.id.clone())
    });
    let view = view_ballots(&draft.proposal, Vec::new(), ProposalState::Draft);
    let (drafted_by, comments) = (Some(draft.actor.to_string()), draft.comments.clone());
    ProposalView { missing: members.collect(), drafted_by, comments, ..view }
}

fn view_open(cluster: &Cluster, open: &OpenProposal) -> ProposalView {
    let state = if open.decided_at.is_some() { ProposalState::Waiting } else { ProposalState::Open };
    let ballots = open.ballots.values().chain(open.joining.values()).cloned().collect();
    let mut view = view_ballots(&open.proposal, ballots, state);
    if let Some(circle) = cluster.circle_state() {
        let may_vote = |id: &MemberId| !open.ballots.contains_key(id) && !circle.is_suspended(id);
        let members = circle.members().map(|member| member.id.clone());
        view.missing = members.filter(|id| state == ProposalState::Open && may_vote(id)).collect();
        view.takes_effect_at = takes_effect_at(circle, open);
    }
    view.proposer = Some(open.proposer.clone());
    view.comments.clone_from(&open.comments);
    view
}

fn view_ballots(proposal: &Proposal, ballots: Vec<SignedBallot>, state: ProposalState) -> ProposalView {
    // A member whose keys are replaced may have voted with both sets of keys.
    let voted = |choice| -> Vec<MemberId> {
        let matching = ballots.iter().filter(|signed| signed.ballot.choice == choice);
        let members: BTreeSet<&MemberId> = matching.map(|signed| &signed.ballot.member).collect();
        members.into_iter().cloned().collect()
    };
    ProposalView {
        id: proposal.id(),
        proposal: proposal.clone(),
        class: class_of(&proposal.change),
        state,
        approved: voted(Choice::Approve),
        rejected: voted(Choice::Reject),
        missing: Vec::new(),
        certificate: None,
        takes_effect_at: None,
        proposer: None,
        drafted_by: None,
        comments: Vec::new(),
        ballots,
    }
}

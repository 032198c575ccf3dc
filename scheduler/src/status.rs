//! Cluster status: findings about faults and pending work, each with the next command.

mod expiring;

use crate::clock::{ClusterTime, show_span};
use crate::cluster::{DraftProposal, Service, ServicePhase};
use crate::limits::CLOCK_BOUND_MS;
use crate::observed::Liveness;
use crate::plan::{Dropped, LIMIT, WaitingJob, has_failed, plan};
use crate::roll_out::RollOutPhase;
use crate::view::ClusterView;
use crate::views::{not_enforced_of, ready_replicas};
use crate::why::{Question, stuck, why};
use crate::wraps::keys_lacking;
use human_chain::{describe_halt, describe_scope};
use protocol::agent::SlotState;
use protocol::api::{Finding, Status};
use protocol::display::counted;
use protocol::halt::Halt;
use protocol::limits::CLOCK_GRACE_MS;
use protocol::manifest::Isolation;
use protocol::model::Recipient;
use protocol::{Epoch, ModelName, ProposalId, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

/// Most parties without a key that are named to people, each in a finding of its own.
const RECIPIENTS_SHOWN: usize = 16;
/// Most halts that are named to people, each in a finding of its own.
const HALTS_SHOWN: usize = 16;

/// Most drafts that are named to people, each in a finding of its own.
const DRAFTS_SHOWN: usize = 16;

/// The consensus layer's view of the replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderView {
    /// Replica that leads, if any.
    pub leader: Option<ReplicaId>,
    /// Replicas that do not answer the leader; none if unknown.
    pub silent: Option<Vec<ReplicaId>>,
}

/// Returns the status of the cluster.
#[must_use]
pub fn status(view: ClusterView, leader: LeaderView) -> Status {
    let cluster = view.cluster;
    let replicas = cluster.circle_state().map_or(0, |state| state.control().len() as u32);
    let mut findings = Vec::new();
    if cluster.circle.is_none() {
        findings.push(finding("the circle is not founded yet".into(), "quorate circle --help".into()));
    }
    findings.extend(halt_findings(view));
    findings.extend(replica_findings(&leader, replicas));
    findings.extend(clock_findings(view));
    findings.extend(node_findings(view));
    findings.extend(service_findings(view));
    let next = plan(view);
    findings.extend(next.dropped.iter().map(dropped_finding));
    let broken = findings.len();
    findings.extend(waiting_findings(view));
    findings.extend(limit_findings(view, &next.waiting_jobs));
    findings.extend(lacking_findings(view));
    findings.extend(expiring::expiring_findings(view));
    let nodes = cluster.nodes().count() as u32;
    let nodes_alive = cluster.nodes().filter(|node| view.is_alive(&node.id)).count() as u32;
    let running = cluster.services().values().filter(|service| service.phase != ServicePhase::Retired);
    let services = running.count() as u32;
    let healthy = broken == 0;
    let verdict = match (broken, findings.len()) {
        (0, 0) => "all is well".to_string(),
        (0, waits) => format!("all is well, {} for people to do", counted(waits as u64, "thing")),
        (broken, _) => format!("{} wrong", counted(broken as u64, "thing")),
    };
    let (running, admitted) = (counted(services.into(), "service"), counted(nodes.into(), "node"));
    let summary = format!("{verdict}; {running}, {nodes_alive} of {admitted} alive");
    Status {
        healthy,
        summary,
        findings,
        leader: leader.leader,
        replicas,
        replicas_silent: leader.silent.unwrap_or_default(),
        nodes,
        nodes_alive,
        services,
        epoch: cluster.circle_state().map_or(Epoch(0), human_chain::CircleState::epoch),
        simulated: simulated(view),
        not_enforced: not_enforced(view),
    }
}

fn finding(message: String, next: String) -> Finding {
    debug_assert!(!message.is_empty() && !next.is_empty(), "a finding says what to do about it");
    Finding { message, next }
}

fn replica_findings(leader: &LeaderView, replicas: u32) -> Vec<Finding> {
    let mut findings = Vec::new();
    if leader.leader.is_none() {
        let next = "start the missing control replicas: quorate control run --help".to_string();
        findings.push(finding("no control replica leads; nothing can change".into(), next));
    }
    for silent in leader.silent.iter().flatten() {
        let next = "start it again: quorate control run --help".to_string();
        findings.push(finding(
            format!("control-{silent} does not answer, one of {replicas} control replicas"),
            next,
        ));
    }
    findings
}

/// Returns the halts that stand: what they cover does not run, and only a vote lifts them.
fn halt_findings(view: ClusterView) -> Vec<Finding> {
    let halts = view.observed.halts();
    let of_halt = |halt: &Halt| {
        let message = format!("{} is {}", describe_scope(&halt.scope), describe_halt(halt));
        finding(message, format!("quorate lift {}", halt.id().short()))
    };
    let mut findings: Vec<Finding> = halts.iter().take(HALTS_SHOWN).map(of_halt).collect();
    if halts.len() > HALTS_SHOWN {
        let more = halts.len() - HALTS_SHOWN;
        let verb = if more == 1 { "stands" } else { "stand" };
        let message = format!("{} {verb}", counted(more as u64, "more halt"));
        findings.push(finding(message, "quorate halts".into()));
    }
    debug_assert_eq!(findings.is_empty(), halts.is_empty(), "no halt is hidden");
    findings
}

/// Returns findings about the clocks of the control replicas, which make the cluster's time.
fn clock_findings(view: ClusterView) -> Vec<Finding> {
    let next = || "set the clock of that machine: timedatectl set-ntp true".to_string();
    let wrong = view.cluster.wrong_clocks(view.clocks);
    let mut findings: Vec<Finding> = wrong
        .iter()
        .map(|(id, by)| {
            let message =
                format!("the clock of control-{id} is {by}, by the clocks of a majority; it may not lead");
            finding(message, next())
        })
        .collect();
    let Some(majority) = view.cluster.majority_time(view.clocks) else { return findings };
    let apart = majority.reached.ms_until(majority.limit);
    if apart > CLOCK_BOUND_MS {
        let message = format!(
            "the clocks of the control replicas differ by {}, and no majority of them agrees",
            show_span(apart)
        );
        findings.push(finding(message, next()));
    }
    let behind = majority.limit.ms_until(view.cluster.signed_floor());
    if behind > 0 {
        let message = format!(
            "the clocks of a majority of the control replicas are {} behind what members have signed",
            show_span(behind.saturating_add(CLOCK_GRACE_MS))
        );
        findings.push(finding(message, next()));
    }
    findings
}

fn node_findings(view: ClusterView) -> Vec<Finding> {
    let mut findings = Vec::new();
    for node in view.cluster.nodes() {
        if matches!(view.liveness(&node.id), Liveness::Dead { .. }) {
            let message = format!("node {} sends no heartbeat; its lease has expired", node.name);
            findings
                .push(finding(message, format!("start its agent, or: quorate node remove {}", node.name)));
        }
        let gpus =
            view.observed.node(&node.id).map(|known| known.resources.gpus.as_slice()).unwrap_or_default();
        for gpu in gpus.iter().filter(|gpu| !gpu.healthy) {
            let message = format!("GPU {} ({}) of node {} is unhealthy", gpu.index, gpu.name, node.name);
            findings.push(finding(message, format!("quorate node show {}", node.name)));
        }
    }
    findings
}

fn service_findings(view: ClusterView) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, service) in view.cluster.services() {
        if service.phase != ServicePhase::Active {
            continue;
        }
        // A halt of the whole service is a finding of its own.
        if !service.is_expired(view.cluster_time())
            && view.halt_of(name).is_none()
            && (ready_replicas(view, service) < service.desired || stuck(view, service).is_some())
            && let Some(why) = why(view, &Question::Service(name.clone()))
        {
            findings.push(finding(why.answer, why.remedy.unwrap_or_else(|| format!("quorate why {name}"))));
        }
        findings.extend(roll_out_finding(view, service));
        if service.is_expired(view.cluster_time()) {
            let message = format!("the approval of {name} has expired");
            findings
                .push(finding(message, format!("set a later valid_until, then: quorate deploy {name}.toml")));
        }
        for (slot, holding) in service.held() {
            let order = &holding.order;
            let report = view.observed.report(&order.node, name, slot, order.fence);
            if let Some(report) = report.filter(|report| report.state == SlotState::Refused) {
                let node = view.cluster.node_name(&order.node);
                let message = format!("{node} refused slot {name}/{slot}: {}", report.detail);
                findings.push(finding(message, format!("quorate why {name}/{slot}")));
            }
        }
    }
    findings
}

/// Returns the finding about a roll-out that failed: the service waits, or has returned.
fn roll_out_finding(view: ClusterView, service: &Service) -> Option<Finding> {
    let name = &service.manifest.name;
    if let RollOutPhase::Returned { cause, .. } = &service.roll_out.phase {
        let message = format!("{name} has returned to the approval before: {cause}");
        return Some(finding(message, format!("correct the manifest, then: quorate deploy {name}.toml")));
    }
    has_failed(view, service).then(|| {
        let starts = counted(service.roll_out.failed_starts.into(), "start");
        let message = format!("the roll-out of {name} waits: {starts} in a row failed");
        let next = match service.before {
            Some(_) => format!("quorate rollback {name}"),
            None => format!("quorate why {name}"),
        };
        finding(message, next)
    })
}

/// Returns the finding for a bug in this software, which operators can only report; the rest of the plan was
/// executed.
fn dropped_finding(dropped: &Dropped) -> Finding {
    let message = format!("the planner left out a step for {}: {}", dropped.subject, dropped.refusal.message);
    finding(message, "report it with the output of: quorate status -o json".to_string())
}

/// Returns a finding for each job that waits at a limit of its envelope, once per envelope.
fn limit_findings(view: ClusterView, waiting: &[WaitingJob]) -> Vec<Finding> {
    let mut named = BTreeSet::new();
    let mut findings = Vec::new();
    for one in waiting.iter().filter(|one| one.reason == LIMIT) {
        let Some(job) = view.cluster.jobs().jobs().get(&one.id) else { continue };
        let name = &job.submission().job;
        if named.insert(name.clone()) {
            let message = format!("job {} of {name} waits for its envelope: {}", one.id.short(), one.text);
            findings.push(finding(message, format!("quorate why {name}")));
        }
    }
    findings
}

/// Returns findings that are no faults, but wait for an operator or a member.
fn waiting_findings(view: ClusterView) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, open) in view.cluster.open_proposals() {
        let left = view.cluster_time().ms_until(ClusterTime(open.proposal.expires_at)) / 60_000;
        let what = crate::apply::summary(&open.proposal.change);
        let end = view.cluster.circle_state().and_then(|state| crate::apply::takes_effect_at(state, open));
        let message = match end {
            Some(end) => format!(
                "approved, and waits for a veto: {what} (takes effect at {})",
                human_chain::show_time(end)
            ),
            // Each party counts the votes from the ballots itself, so that no count is said here.
            None => format!("a proposal waits for votes: {what} ({left} min left)"),
        };
        findings.push(finding(message, format!("quorate review {}", id.short())));
    }
    findings.extend(draft_findings(view));
    let waiting_nodes = view.cluster.pending_nodes();
    for pending in waiting_nodes.values() {
        let (name, id) = (&pending.admission.name, pending.id.short());
        let namesakes = waiting_nodes.values().filter(|other| other.admission.name == *name).count();
        // The command names the identity only if several waiting nodes share the name.
        let which = if namesakes > 1 { format!(" --identity {id}") } else { String::new() };
        let message = format!("node {name} ({id}) asks to be admitted");
        findings.push(finding(message, format!("quorate node admit {name}{which}")));
    }
    findings
}

/// Returns the drafts that wait for a member to propose them.
fn draft_findings(view: ClusterView) -> Vec<Finding> {
    let drafts = view.cluster.drafts();
    let of_draft = |(id, draft): (&ProposalId, &DraftProposal)| {
        let what = crate::apply::summary(&draft.proposal.change);
        let message = format!("a draft of {} waits for a member to propose it: {what}", draft.actor);
        finding(message, format!("quorate review {}", id.short()))
    };
    let mut findings: Vec<Finding> = drafts.iter().take(DRAFTS_SHOWN).map(of_draft).collect();
    if drafts.len() > DRAFTS_SHOWN {
        let message = format!("{} more drafts wait for a member", drafts.len() - DRAFTS_SHOWN);
        findings.push(finding(message, "quorate review".into()));
    }
    findings
}

/// Returns the parties that lack models' keys. The next command of any member that holds the keys makes the
/// wraps.
fn lacking_findings(view: ClusterView) -> Vec<Finding> {
    let lacking = keys_lacking(view.cluster);
    let mut findings = Vec::new();
    for (recipient, models) in lacking.iter().take(RECIPIENTS_SHOWN) {
        let name = match recipient {
            Recipient::Member(member) => format!("member {member}"),
            Recipient::Node(node) => format!("node {}", view.cluster.node_name(node)),
        };
        let models: Vec<&str> = models.iter().map(ModelName::as_str).collect();
        let message = format!("{name} lacks the key of {}", models.join(", "));
        findings.push(finding(message, "quorate node share".into()));
    }
    if lacking.len() > RECIPIENTS_SHOWN {
        let more = lacking.len() - RECIPIENTS_SHOWN;
        let verb = if more == 1 { "lacks" } else { "lack" };
        let message = format!("{more} more {verb} keys of models");
        findings.push(finding(message, "quorate node share".into()));
    }
    findings
}

fn simulated(view: ClusterView) -> Vec<String> {
    let mut lines = Vec::new();
    for node in view.cluster.nodes() {
        let Some(known) = view.observed.node(&node.id) else { continue };
        let count = known.resources.gpus.iter().filter(|gpu| gpu.simulated).count();
        if count > 0 {
            let (verb, pronoun) = if count == 1 {
                ("is", "it schedules, but computes")
            } else {
                ("are", "they schedule, but compute")
            };
            let gpus = counted(count as u64, "GPU");
            lines.push(format!("{gpus} of node {} {verb} simulated: {pronoun} nothing", node.name));
        }
    }
    lines
}

/// Returns the limits that workers' nodes report as not enforced, one line for nodes with the same gaps.
fn not_enforced(view: ClusterView) -> Vec<String> {
    let mut nodes_of: BTreeMap<(Vec<String>, bool), Vec<&str>> = BTreeMap::new();
    for node in view.cluster.nodes() {
        let limits = not_enforced_of(view, node);
        if !limits.is_empty() {
            let known = view.observed.node(&node.id);
            let ordinary = known.is_some_and(|known| known.isolation == Isolation::SameUid);
            let limits = limits.into_iter().map(str::to_string).collect();
            nodes_of.entry((limits, ordinary)).or_default().push(node.name.as_str());
        }
    }
    let line = |((limits, ordinary), nodes): ((Vec<String>, bool), Vec<&str>)| {
        let account = if ordinary { " (the agent runs under an ordinary account)" } else { "" };
        format!("{} on {}{account}", limits.join(", "), nodes.join(", "))
    };
    nodes_of.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Refusal;
    use protocol::error_code::PLAN_STALE;

    #[test]
    fn a_step_that_was_left_out_is_reported_to_people() {
        let refusal = Refusal::new(PLAN_STALE, "slot chat/0 is held");
        let finding = dropped_finding(&Dropped { subject: "chat/0".into(), refusal });
        assert_eq!(finding.message, "the planner left out a step for chat/0: slot chat/0 is held");
        assert!(finding.next.contains("quorate status"), "{}", finding.next);
    }
}

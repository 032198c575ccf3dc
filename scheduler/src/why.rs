//! Explanations of a service, a slot or a proposal: a sentence, a reason per node or member, and the smallest
//! change that would help.

use crate::cluster::{Cluster, Holding, HoldingPhase, Service, ServicePhase};
use crate::job_views::why_jobs;
use crate::limits::REBALANCE_CALM_MS;
use crate::observed::{Liveness, Observed};
use crate::plan::{
    Blocked, NodeCapacity, SpreadMove, Unschedulable, best_placement, blocked_text, capacities, fits_without,
    free_slot, has_failed, moving, running, service_obstacles, slot_label, spread_move, waits_for_drains,
};
use crate::roll_out::RollOutPhase;
use crate::usage::Spending;
use crate::view::ClusterView;
use crate::views::{proposal_view, proposal_views, ready_replicas};
use protocol::agent::SlotState;
use protocol::api::{ProposalState, Why};
use protocol::display::counted;
use protocol::manifest::{OnExpiry, ServiceManifest, format_bytes};
use protocol::{NodeName, ProposalId, ServiceName, SlotIndex};

/// The subject of an explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A service, such as `chat`, or an approved job.
    Service(ServiceName),
    /// A slot, such as `chat/0`.
    Slot(ServiceName, SlotIndex),
    /// A proposal, by its full id.
    Proposal(ProposalId),
    /// A proposal by the first digits of its id, as in `proposal/7f3a`. A [`Question::Service`] that names no
    /// service is tried as such digits too.
    ProposalPrefix(String),
}

/// Most services of a higher priority that are named to people.
const NAMES_SHOWN: usize = 8;
/// Fewest digits that stand for a proposal: fewer match too many, and are more likely a typing error.
const PREFIX_DIGITS_MIN: usize = 4;

/// Returns whether this may be the beginning of a proposal's id.
fn is_prefix(text: &str) -> bool {
    text.len() >= PREFIX_DIGITS_MIN && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl std::str::FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse::<ProposalId>() {
            return Ok(Self::Proposal(id));
        }
        let refuse = || format!("`{}` is not a service, service/slot or proposal id", text.escape_debug());
        match text.split_once('/') {
            Some(("proposal", prefix)) if is_prefix(prefix) => Ok(Self::ProposalPrefix(prefix.to_string())),
            None => Ok(Self::Service(text.parse().map_err(|_| refuse())?)),
            Some((service, slot)) => {
                let slot = slot.parse().map_err(|_| refuse())?;
                Ok(Self::Slot(service.parse().map_err(|_| refuse())?, SlotIndex(slot)))
            }
        }
    }
}

/// Returns the explanation; none if the subject does not exist.
#[must_use]
pub fn why(view: ClusterView, question: &Question) -> Option<Why> {
    match question {
        Question::Service(name) => match view.cluster.services().get(name) {
            Some(service) => Some(why_service(view, service)),
            None => why_jobs(view, name).or_else(|| why_prefix(view.cluster, name.as_str())),
        },
        Question::Slot(name, slot) => {
            let service = view.cluster.services().get(name)?;
            let known = service.slots.contains_key(slot) || slot.0 < service.manifest.replicas.max;
            known.then(|| why_slot(view, service, *slot))
        }
        Question::Proposal(id) => why_proposal(view.cluster, id),
        Question::ProposalPrefix(prefix) => why_prefix(view.cluster, prefix),
    }
}

/// Explains the proposal whose id begins so, or lists all of them if there are several.
fn why_prefix(cluster: &Cluster, prefix: &str) -> Option<Why> {
    if !is_prefix(prefix) {
        return None;
    }
    let ids = proposal_views(cluster).into_iter().map(|view| (view.id, view.proposal.change));
    let found: Vec<_> = ids.filter(|(id, _)| id.to_string().starts_with(prefix)).collect();
    if let [(id, _)] = found.as_slice() {
        return why_proposal(cluster, id);
    }
    let line = |(id, change): &(ProposalId, _)| format!("{id}: {}", crate::apply::summary(change));
    (!found.is_empty()).then(|| Why {
        subject: format!("proposal/{prefix}"),
        answer: format!("{} proposals begin with `{prefix}`; give more digits", found.len()),
        reasons: found.iter().map(line).collect(),
        remedy: None,
    })
}

fn why_service(view: ClusterView, service: &Service) -> Why {
    let name = &service.manifest.name;
    let mut reasons: Vec<String> = service
        .held()
        .map(|(slot, _)| format!("{name}/{slot}: {}", slot_sentence(view, service, slot)))
        .collect();
    let (fresh, old) = running(service);
    let runs = (fresh.len() + old.len()) as u32;
    let ready = ready_replicas(view, service);
    reasons.extend(roll_out_line(view, service));
    reasons.extend(priority_lines(view, service, runs));
    let verb = if service.desired == 1 { "is" } else { "are" };
    let head = format!("{ready} of {} of {name} {verb} ready", counted(service.desired.into(), "replica"));
    let halted = view.halt_of(name).map(|halt| explain(view.cluster, service, &Err(Blocked::by(halt))));
    let (answer, remedy) = match service.phase {
        ServicePhase::Retired => (format!("{name} is retired"), None),
        ServicePhase::Retiring { .. } => (format!("{name} is being retired"), None),
        ServicePhase::Active if service.is_expired(view.cluster_time()) => {
            let rest = match service.manifest.on_expiry {
                OnExpiry::Hold => "running replicas continue, no new one starts",
                OnExpiry::Drain => "running replicas drain",
            };
            (format!("{head}; its approval has expired: {rest}"), Some(renew(service)))
        }
        ServicePhase::Active if halted.is_some() => {
            let (cause, _, remedy) = halted.unwrap_or_default();
            (format!("{head}; {cause}"), remedy)
        }
        ServicePhase::Active if runs < service.desired => {
            let waiting = service.desired - runs;
            let verdict = next_replica(view, service);
            let (cause, per_node, remedy) = explain(view.cluster, service, &verdict);
            reasons.extend(per_node);
            (format!("{head}; {waiting} wait: {cause}"), remedy)
        }
        ServicePhase::Active if !old.is_empty() => {
            let which = if service.has_returned() { "the approval before" } else { "the new approval" };
            let text = format!("{head}; {} of {runs} run under {which}", fresh.len());
            match stuck(view, service) {
                Some(blocked) => {
                    let (cause, per_node, remedy) = explain(view.cluster, service, &Err(blocked));
                    reasons.extend(per_node);
                    (format!("{text}; one more: {cause}"), remedy)
                }
                None => (text, None),
            }
        }
        ServicePhase::Active => {
            reasons.extend(spread_line(view, service));
            (head, None)
        }
    };
    Why { subject: name.to_string(), answer, reasons, remedy }
}

/// Returns a line about a roll-out that has failed, or about the return that followed.
fn roll_out_line(view: ClusterView, service: &Service) -> Option<String> {
    match &service.roll_out.phase {
        RollOutPhase::Returned { from, cause, .. } => Some(format!(
            "runs under the approval before, and not under that of certificate {}: {cause}",
            from.short()
        )),
        RollOutPhase::Progressing if has_failed(view, service) => {
            let starts = counted(service.roll_out.failed_starts.into(), "start");
            Some(format!("the roll-out waits: {starts} in a row failed under the new approval"))
        }
        RollOutPhase::Progressing | RollOutPhase::Complete => None,
    }
}

/// Returns lines about the services that go before a service whose replicas wait, and about the node whose
/// replicas drain for them.
fn priority_lines(view: ClusterView, service: &Service, runs: u32) -> Vec<String> {
    if service.phase != ServicePhase::Active || runs >= service.desired {
        return Vec::new();
    }
    let own = service.manifest.priority;
    let is_above = |other: &&Service| other.phase == ServicePhase::Active && other.manifest.priority > own;
    let above = view.cluster.services().values().filter(is_above);
    let names: Vec<String> = above
        .take(NAMES_SHOWN)
        .map(|other| format!("{} ({})", other.manifest.name, other.manifest.priority))
        .collect();
    let mut lines = Vec::new();
    if !names.is_empty() {
        lines.push(format!("services of a priority above {own} go first: {}", names.join(", ")));
    }
    if matches!(next_replica(view, service), Err(Blocked::NoNode(_)))
        && let Some(node) = waits_for_drains(view, service)
    {
        lines.push(format!("{node} has room once the replicas that drain there are gone"));
    }
    lines
}

/// Returns the obstacle that stops the roll-out of a new approval. No node can take a replica under it,
/// not even if a slot under the earlier one were free; or the disruption budget leaves no slot free for that.
pub(crate) fn stuck(view: ClusterView, service: &Service) -> Option<Blocked> {
    let (fresh, old) = running(service);
    let frees_enough = |holding| fits_without(view, view.cluster.services(), holding);
    let in_place = service.manifest.rollout.max_unavailable > 0;
    if old.is_empty() || (in_place && old.iter().any(frees_enough)) {
        return None;
    }
    let surplus = fresh.len() + old.len() > service.desired as usize;
    match next_replica(view, service) {
        Err(Blocked::NoNode(_) | Blocked::NoSlot) if !in_place && !surplus => Some(Blocked::Budget),
        Err(blocked @ (Blocked::NoModel | Blocked::NoNode(_))) => Some(blocked),
        Err(blocked @ Blocked::Limit(_)) if !in_place => Some(blocked),
        _ => None,
    }
}

/// Returns a line about a replica that could move for a better spread, and the condition for which it waits.
fn spread_line(view: ClusterView, service: &Service) -> Option<String> {
    if moving(view, service).is_some() {
        return None;
    }
    let capacities = capacities(view, view.cluster.services());
    let SpreadMove { from, replicas_on_node, to } = spread_move(view, &capacities, service)?;
    let in_place = service.manifest.rollout.max_unavailable > 0;
    if !in_place && free_slot(service, view.cluster_time()).is_none() {
        return None;
    }
    let (slot, node) = (slot_label(&from), view.cluster.node_name(&from.order.node));
    let minutes = REBALANCE_CALM_MS / 60_000;
    Some(format!(
        "{slot} will move to {}: {node} runs {replicas_on_node} of its replicas; \
         it moves after {minutes} minutes without other changes",
        to.name
    ))
}

fn renew(service: &Service) -> String {
    let has_end = service.manifest.valid_until.is_some() || service.has_returned();
    debug_assert!(has_end, "an approval without an end never expires");
    format!("deploy {} again with a later valid_until", service.manifest.name)
}

fn why_slot(view: ClusterView, service: &Service, slot: SlotIndex) -> Why {
    let name = &service.manifest.name;
    let subject = format!("{name}/{slot}");
    let answer = slot_sentence(view, service, slot);
    let held = service.slots.get(&slot).and_then(|slot| slot.holding.as_ref());
    if let Some(holding) = held.filter(|holding| holding.phase != HoldingPhase::Silent) {
        let reasons = other_nodes(view, service, holding);
        return Why { subject, answer, reasons, remedy: slot_remedy(view.observed, holding) };
    }
    let (fresh, old) = running(service);
    let wanted = service.desired as usize > fresh.len() + old.len();
    if service.phase != ServicePhase::Active || !wanted {
        return Why { subject, answer, reasons: Vec::new(), remedy: None };
    }
    let verdict = next_replica(view, service);
    let (cause, reasons, remedy) = explain(view.cluster, service, &verdict);
    Why { subject, answer: format!("{answer}; a replica waits: {cause}"), reasons, remedy }
}

/// Describes one slot in a sentence, with the destination of its replica if it moves.
pub(crate) fn slot_sentence(view: ClusterView, service: &Service, slot: SlotIndex) -> String {
    let sentence = state_sentence(view, service, slot);
    let Some((newcomer, leaving)) = moving(view, service) else {
        return sentence;
    };
    if newcomer.order.slot == slot {
        format!("{sentence}; replaces {} when it is ready", slot_label(&leaving))
    } else if leaving.order.slot == slot {
        let node = view.cluster.node_name(&newcomer.order.node);
        format!("{sentence}; moves to {node} as {}", slot_label(&newcomer))
    } else {
        sentence
    }
}

fn state_sentence(view: ClusterView, service: &Service, slot: SlotIndex) -> String {
    let known = service.slots.contains_key(&slot) || slot.0 < service.manifest.replicas.max;
    debug_assert!(known, "a slot is of the envelope, or was ordered once");
    let Some(known) = service.slots.get(&slot) else {
        return if service.phase == ServicePhase::Active { "free; never held" } else { "free" }.to_string();
    };
    let Some(holding) = &known.holding else {
        let last = known.last_holder.map(|node| view.cluster.node_name(&node)).unwrap_or_default();
        return format!("free; {last} held it last, under fence {}", known.fence);
    };
    let order = &holding.order;
    let node = view.cluster.node_name(&order.node);
    let held = format!("on {node} under fence {}", order.fence);
    match &holding.phase {
        HoldingPhase::Draining { cause, .. } => return format!("drains {held}: {cause}"),
        HoldingPhase::Ending { .. } => return format!("ends {held}"),
        HoldingPhase::Lapsing => {
            return format!("{held}, which was removed; free when its lease ends");
        }
        HoldingPhase::Silent => {
            return format!("{held}, which is silent and may run it on until it is placed elsewhere");
        }
        HoldingPhase::Running => {}
    }
    match view.liveness(&order.node) {
        Liveness::Dead { .. } => return format!("{held}, which sends no heartbeat; its lease has expired"),
        Liveness::Unknown { until } => {
            let seconds = view.now.ms_until(until).div_ceil(1000);
            return format!(
                "{held}, which has sent this leader no heartbeat yet; its lease may hold {seconds} s more"
            );
        }
        Liveness::Alive => {}
    }
    let Some(report) = view.observed.report(&order.node, &order.service, slot, order.fence) else {
        return format!("{held}; the node has not reported it yet");
    };
    let detail = if report.detail.is_empty() { String::new() } else { format!(": {}", report.detail) };
    match report.state {
        SlotState::Ready => format!("ready {held}"),
        SlotState::Loading => {
            let segments = counted(report.segments_total, "segment");
            format!("loads {held}: {} of {segments}", report.segments_verified)
        }
        SlotState::Starting => format!("starts {held}{detail}"),
        SlotState::Draining => format!("drains {held}{detail}"),
        SlotState::Released => format!("released {held}"),
        SlotState::Failed => {
            format!("failed {held} after {}{detail}", counted(report.restarts.into(), "restart"))
        }
        SlotState::Refused => format!("refused {held}{detail}"),
    }
}

/// Returns a line per node: the holder, and the obstacles on every other node.
fn other_nodes(view: ClusterView, service: &Service, holding: &Holding) -> Vec<String> {
    debug_assert_eq!(holding.order.service, service.manifest.name, "the slot is of this service");
    let capacities = capacities(view, view.cluster.services());
    let bytes = crate::plan::model_bytes(view.cluster, &service.manifest);
    let text = |capacity: &NodeCapacity| {
        if capacity.id == holding.order.node {
            return format!("{}: holds it{}", capacity.name, gpu_text(capacity, &holding.order.gpus));
        }
        let mut obstacles = service_obstacles(view, service, capacity.id);
        obstacles.extend(capacity.fit(&service.manifest, bytes).err().unwrap_or_default());
        if obstacles.is_empty() {
            format!("{}: is feasible too", capacity.name)
        } else {
            node_line(&capacity.name, &obstacles)
        }
    };
    capacities.iter().map(text).collect()
}

fn gpu_text(capacity: &NodeCapacity, gpus: &[u32]) -> String {
    if gpus.is_empty() {
        return String::new();
    }
    let simulated = capacity.gpus.iter().any(|gpu| gpus.contains(&gpu.index) && gpu.simulated);
    let list: Vec<String> = gpus.iter().map(ToString::to_string).collect();
    format!(", on {}GPU {}", if simulated { "simulated " } else { "" }, list.join(", "))
}

fn node_line(name: &NodeName, obstacles: &[Unschedulable]) -> String {
    debug_assert!(!obstacles.is_empty(), "a node without obstacles takes the replica");
    let texts: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
    format!("{name}: {}", texts.join("; "))
}

fn slot_remedy(observed: &Observed, holding: &Holding) -> Option<String> {
    let order = &holding.order;
    let report = observed.report(&order.node, &order.service, order.slot, order.fence)?;
    match report.state {
        SlotState::Refused => {
            let code = report.detail.split([':', ' ']).next().unwrap_or_default();
            Some(format!("quorate explain {code}"))
        }
        SlotState::Failed => Some(format!("quorate logs {}", order.service)),
        _ => None,
    }
}

/// Returns the node that the next replica of a service would get, or the cause that blocks it.
fn next_replica(view: ClusterView, service: &Service) -> Result<NodeName, Blocked> {
    debug_assert_eq!(service.phase, ServicePhase::Active, "nothing starts for a service that ends");
    if service.is_expired(view.cluster_time()) {
        return Err(Blocked::Expired);
    }
    if let Some(halt) = view.halt_of(&service.manifest.name) {
        return Err(Blocked::by(halt));
    }
    if !view.cluster.models().contains_key(&service.manifest.model.root) {
        return Err(Blocked::NoModel);
    }
    let capacities = capacities(view, view.cluster.services());
    let best = best_placement(view, &capacities, service).map_err(Blocked::NoNode)?;
    let spending = Spending { cluster: view.cluster, jobs: view.cluster.jobs(), now: view.cluster_time() };
    spending.check_replica(service).map_err(Blocked::Limit)?;
    free_slot(service, view.cluster_time()).map(|_| best.name).ok_or(Blocked::NoSlot)
}

/// Returns the cause, a line per node, and a remedy.
fn explain(
    cluster: &Cluster,
    service: &Service,
    verdict: &Result<NodeName, Blocked>,
) -> (String, Vec<String>, Option<String>) {
    let blocked = match verdict {
        Ok(node) => return (format!("{node} takes it with the next plan"), Vec::new(), None),
        Err(blocked) => blocked,
    };
    let cause = blocked_text(blocked, service);
    match blocked {
        Blocked::Expired => (cause, Vec::new(), Some(renew(service))),
        Blocked::Halted { id, .. } => {
            (cause, Vec::new(), Some(format!("lift the halt by a vote: quorate lift {}", id.short())))
        }
        Blocked::NoModel => (
            cause,
            Vec::new(),
            Some(format!(
                "import it from its directory: quorate model import DIR --name {}",
                service.manifest.model.name
            )),
        ),
        Blocked::NoSlot | Blocked::Later => (cause, Vec::new(), None),
        Blocked::Limit(_) => {
            let remedy = format!("deploy {} again with a higher spend limit", service.manifest.name);
            (cause, Vec::new(), Some(remedy))
        }
        Blocked::Budget => {
            let remedy = "make room for one more replica, or allow rollout.max_unavailable = 1 by a vote";
            (cause, Vec::new(), Some(remedy.to_string()))
        }
        Blocked::NoNode(nodes) => {
            let lines = nodes.iter().map(|(name, obstacles)| node_line(name, obstacles)).collect();
            (cause, lines, smallest_change(cluster, &service.manifest, nodes))
        }
    }
}

/// Returns the change that removes the obstacles on the node that lacks least. Nodes are compared by fewest
/// obstacles, then those easiest to remove, then the smallest relative shortfall, then the lower name.
pub(crate) fn smallest_change(
    cluster: &Cluster,
    manifest: &ServiceManifest,
    nodes: &[(NodeName, Vec<Unschedulable>)],
) -> Option<String> {
    debug_assert!(
        nodes.iter().all(|(_, obstacles)| !obstacles.is_empty()),
        "a node that fits needs no change"
    );
    let cost = |obstacles: &Vec<Unschedulable>| {
        let effort: u64 = obstacles.iter().map(effort).max().unwrap_or(0);
        (obstacles.len(), effort, obstacles.iter().map(shortfall_permille).max().unwrap_or(0))
    };
    let Some((node, obstacles)) =
        nodes.iter().min_by_key(|(name, obstacles)| (cost(obstacles), name.clone()))
    else {
        return Some("admit a node; pending ones: quorate node pending".to_string());
    };
    let steps: Vec<String> = obstacles.iter().map(|o| remedy_for(cluster, manifest, node, o)).collect();
    Some(steps.join("; and "))
}

/// Returns the effort of removing an obstacle: waiting, one command, fewer resources, another machine.
fn effort(unschedulable: &Unschedulable) -> u64 {
    match unschedulable {
        Unschedulable::Unknown { .. } | Unschedulable::Avoided { .. } => 0,
        Unschedulable::NoWrap | Unschedulable::Halted { .. } => 1,
        Unschedulable::Dead { .. } => 2,
        Unschedulable::Cpu { .. } | Unschedulable::Memory { .. } => 3,
        Unschedulable::GpuCount { .. } | Unschedulable::GpuShare { .. } | Unschedulable::GpuMemory { .. } => {
            4
        }
        Unschedulable::Region { .. }
        | Unschedulable::Label { .. }
        | Unschedulable::NotWorker
        | Unschedulable::Isolation { .. } => 5,
    }
}

fn shortfall_permille(unschedulable: &Unschedulable) -> u64 {
    let share = |needs: u64, free: u64| {
        (u128::from(needs.saturating_sub(free)) * 1000 / u128::from(needs.max(1))) as u64
    };
    match unschedulable {
        Unschedulable::Cpu { needs, free, .. } | Unschedulable::Memory { needs, free, .. } => {
            share(*needs, *free)
        }
        Unschedulable::GpuMemory { needs, largest } => share(*needs, *largest),
        Unschedulable::GpuCount { needs, free, .. } | Unschedulable::GpuShare { needs, free, .. } => {
            share(u64::from(*needs), u64::from(*free))
        }
        _ => 0,
    }
}

fn remedy_for(
    cluster: &Cluster,
    manifest: &ServiceManifest,
    node: &NodeName,
    unschedulable: &Unschedulable,
) -> String {
    match unschedulable {
        Unschedulable::Unknown { .. } => {
            format!("wait: {node} has until the end of its lease to send a heartbeat")
        }
        Unschedulable::Avoided { .. } => format!("wait: {node} is retried within a minute"),
        Unschedulable::Halted { id, .. } => format!("lift the halt of {node}: quorate lift {}", id.short()),
        Unschedulable::NoWrap => {
            format!("share the model's key with {node}: quorate node share")
        }
        Unschedulable::Dead { .. } => format!("start the agent of {node}"),
        Unschedulable::Cpu { needs, free, offers } => {
            let ask = alternative(*free, &format!("{free} millicores"));
            format!("{} {} millicores on {node}{ask}", verb(needs, offers), missing(*needs, *free))
        }
        Unschedulable::Memory { needs, free, offers } => {
            let missing = missing(*needs, *free);
            let most = manifest.resources.memory_bytes.saturating_sub(missing);
            let ask = alternative(most, &format_bytes(most));
            format!("{} {} of memory on {node}{ask}", verb(needs, offers), format_bytes(missing))
        }
        Unschedulable::GpuCount { needs, has, unhealthy, .. } if needs > has && *needs <= has + unhealthy => {
            format!("repair the unhealthy GPUs of {node}")
        }
        Unschedulable::GpuShare { has: 0, unhealthy: 1.., .. } => {
            format!("repair the unhealthy GPUs of {node}")
        }
        Unschedulable::GpuCount { needs, has, .. } if needs > has => {
            format!("admit a node with {needs} GPUs")
        }
        Unschedulable::GpuCount { needs, free, .. } => {
            let ask = alternative(u64::from(*free), &free.to_string());
            format!("free {} whole GPUs on {node}{ask}", missing(u64::from(*needs), u64::from(*free)))
        }
        Unschedulable::GpuShare { has: 0, .. } => "admit a node with a GPU".to_string(),
        Unschedulable::GpuShare { needs, free, .. } => {
            let ask = alternative(u64::from(*free), &format!("{free} %"));
            format!("free {} % of a GPU on {node}{ask}", missing(u64::from(*needs), u64::from(*free)))
        }
        Unschedulable::GpuMemory { needs, largest } => {
            let ask = alternative(*largest, &format!("{} on each GPU", format_bytes(*largest)));
            format!("admit a node with {} on each GPU{ask}", format_bytes(*needs))
        }
        Unschedulable::NotWorker => format!("admit {node} again with the worker role"),
        Unschedulable::Region { has, allowed } if has.is_empty() => {
            format!("admit {node} again with region {}", allowed.join(" or "))
        }
        Unschedulable::Region { has, .. } => format!("allow region {has} in the manifest"),
        Unschedulable::Label { key, wanted, .. } => format!("admit {node} again with label {key}={wanted}"),
        Unschedulable::Isolation { provides, .. } => {
            let hint = if cluster.nodes().count() > 1 { "" } else { " (it is the only node)" };
            format!("run the agent of {node} as root, or accept isolation {provides}{hint}")
        }
    }
}

/// Returns the amount that a replica lacks.
fn missing(needs: u64, free: u64) -> u64 {
    debug_assert!(needs > free, "an amount is an obstacle only if it does not suffice");
    needs.saturating_sub(free)
}

/// Returns the verb of a remedy: a missing amount can be freed only if the node offers that much at all.
fn verb(needs: &u64, offers: &u64) -> &'static str {
    if needs > offers { "offer another" } else { "free" }
}

/// Returns the alternative, which is to ask for less, if that leaves anything.
fn alternative(most: u64, text: &str) -> String {
    if most == 0 { String::new() } else { format!(", or ask for at most {text}") }
}

fn why_proposal(cluster: &Cluster, id: &ProposalId) -> Option<Why> {
    let view = proposal_view(cluster, id)?;
    let rule = cluster.circle_state().map(|state| state.rule_text(&view.proposal.change));
    let rule = rule.unwrap_or_default();
    let answer = match view.state {
        ProposalState::Open => format!("waits for votes: {rule} must approve"),
        ProposalState::Approved => "approved and in force".to_string(),
        ProposalState::Rejected => format!("rejected: {rule} cannot be reached any more"),
        ProposalState::Expired => "expired: undecided at its deadline".to_string(),
        ProposalState::Stale => "stale: another proposal changed its subject first".to_string(),
        ProposalState::Waiting => {
            let at = view.takes_effect_at.map(human_chain::show_time).unwrap_or_default();
            format!("approved; takes effect at {at} unless a member vetoes it")
        }
        ProposalState::Draft => {
            let maker = view.drafted_by.as_deref().unwrap_or("a client");
            format!("waits for votes: {rule} must approve; a draft of {maker}, which no member has signed")
        }
        ProposalState::Withdrawn => "withdrawn by its proposer".to_string(),
        ProposalState::Void => "void: its proposer was suspended".to_string(),
    };
    let mut reasons: Vec<String> = view.approved.iter().map(|member| format!("{member}: approved")).collect();
    reasons.extend(view.rejected.iter().map(|member| format!("{member}: rejected")));
    reasons.extend(view.missing.iter().map(|member| format!("{member}: has not voted")));
    let remedy = match view.state {
        ProposalState::Open | ProposalState::Waiting | ProposalState::Draft => {
            Some(format!("quorate review {}", id.short()))
        }
        ProposalState::Expired | ProposalState::Stale | ProposalState::Void => {
            Some("propose it again".to_string())
        }
        ProposalState::Approved | ProposalState::Rejected | ProposalState::Withdrawn => None,
    };
    Some(Why { subject: format!("proposal/{}", id.short()), answer, reasons, remedy })
}

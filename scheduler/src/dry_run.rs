//! Dry run of a deployment: the effect of its approval now.
//!
//! It reports the replicas that start immediately and their nodes, and those that could be added within the
//! envelope. It also reports replicas that wait, the signers, and a bound on the cost.

use crate::cluster::{Cluster, Service, ServicePhase};
use crate::command::Refusal;
use crate::job_fit::misfit_of;
use crate::plan::{CandidatePlacement, best_placement, capacities, free_slot, model_bytes};
use crate::roll_out::RollOut;
use crate::view::ClusterView;
use crate::why::smallest_change;
use human_chain::{propose, subject_of};
use protocol::api::{DryRun, DryRunPlacement};
use protocol::checkpoint::{is_foreign, task_of};
use protocol::display::counted;
use protocol::governance::Change;
use protocol::manifest::{JobManifest, Manifest, OnFailure, RollOutRules, Runtime, ServiceManifest, Task};
use protocol::model::ModelRecord;
use protocol::{Digest, ErrorCode, ServiceName, error_code};
use std::collections::BTreeMap;

/// Places the replicas that start immediately, then further ones up to the envelope's maximum. The deployment
/// counts as approved now, and any earlier approval of the same service as ended.
///
/// # Errors
/// The proposal would be refused; the error carries the code of that refusal.
pub fn dry_run(view: ClusterView, manifest: &Manifest) -> Result<DryRun, Refusal> {
    let cluster = view.cluster;
    let Some(state) = cluster.circle_state() else {
        return Err(Refusal::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is not founded yet"));
    };
    let change = Change::Deploy(Box::new(manifest.clone()));
    let now = view.cluster_time().0;
    propose(state, change.clone(), String::new(), now, now.plus(1), Digest::of(b"dry run"))?;
    let manifest = match manifest {
        Manifest::Service(manifest) => manifest,
        Manifest::Job(job) => return Ok(dry_run_of_job(view, job, &state.rule_text(&change))),
        Manifest::Edge(_) => {
            let code: ErrorCode = error_code::KIND_NOT_BUILT;
            return Err(Refusal::new(code, "only services and jobs run in this release"));
        }
    };
    check_served(cluster, manifest)?;
    let rule = state.rule_text(&change);
    let mut services = cluster.services().clone();
    let version = state.subject(&subject_of(&change)).version + 1;
    let mut service = approved_now(cluster, manifest, version);
    services.remove(&manifest.name);
    let mut capacities = capacities(view, &services);
    let (mut placed, mut waiting) = (Vec::new(), Vec::new());
    if let Some(text) = missing_model(cluster, manifest) {
        waiting.push(text);
    } else {
        let bytes = model_bytes(cluster, manifest);
        while let Some(slot) = free_slot(&service, view.cluster_time()) {
            match best_placement(view, &capacities, &service) {
                Ok(CandidatePlacement { node, name, gpus, .. }) => {
                    if let Some(capacity) = capacities.iter_mut().find(|capacity| capacity.id == node) {
                        capacity.host(manifest, &gpus, bytes);
                    }
                    hold(&mut service, slot, cluster, node);
                    placed.push(DryRunPlacement { slot, node: name });
                }
                Err(nodes) => {
                    waiting = wait_lines(service.desired, manifest.replicas.max, slot.0, &nodes);
                    waiting.extend(
                        smallest_change(cluster, manifest, &nodes).map(|text| format!("to help: {text}")),
                    );
                    break;
                }
            }
        }
    }
    let needs = format!("{rule} must approve");
    let spend_micro_units_per_hour = manifest.spend_micro_units_per_hour;
    let desired = service.desired;
    debug_assert!(placed.len() <= manifest.replicas.max as usize, "the envelope bounds a dry run");
    let possible = placed.split_off(placed.len().min(desired as usize));
    Ok(DryRun {
        desired,
        placements: placed,
        possible,
        waiting,
        needs,
        priority: manifest.priority,
        outranked: outranked(cluster, manifest),
        roll_out: roll_out_lines(cluster, manifest),
        spend_micro_units_per_hour,
    })
}

/// Returns the service as its approval would leave it.
fn approved_now(cluster: &Cluster, manifest: &ServiceManifest, version: u64) -> Service {
    Service {
        manifest: manifest.clone(),
        certificate: Digest::of(b"dry run"),
        version,
        desired: cluster.desired_under(manifest),
        phase: ServicePhase::Active,
        slots: BTreeMap::new(),
        avoid: BTreeMap::new(),
        before: None,
        roll_out: RollOut::default(),
    }
}

/// Returns the reason why every replica waits if the model is not registered.
fn missing_model(cluster: &Cluster, manifest: &ServiceManifest) -> Option<String> {
    let model = &manifest.model;
    let missing = || format!("all wait: no model {} ({}) is registered", model.name, model.root.short());
    (!cluster.models().contains_key(&model.root)).then(missing)
}

/// Returns the dry run of a job. Its approval starts nothing: each submission is placed when its turn comes.
fn dry_run_of_job(view: ClusterView, job: &JobManifest, rule: &str) -> DryRun {
    debug_assert!(!rule.is_empty(), "a rule is a text");
    DryRun {
        desired: 0,
        placements: Vec::new(),
        possible: Vec::new(),
        waiting: misfit_of(view, job).into_iter().collect(),
        needs: format!("{rule} must approve"),
        priority: job.priority,
        outranked: Vec::new(),
        roll_out: Vec::new(),
        spend_micro_units_per_hour: None,
    }
}

/// Refuses a service of the built-in engine over a model that was imported for foreign engines alone, or for
/// another task.
fn check_served(cluster: &Cluster, manifest: &ServiceManifest) -> Result<(), Refusal> {
    let Some(record) = cluster.models().get(&manifest.model.root) else { return Ok(()) };
    debug_assert_eq!(record.root, manifest.model.root, "a model is registered under its root");
    if manifest.runtime != Runtime::Candle {
        return Ok(());
    }
    if !is_foreign(&record.architecture) {
        return check_task(record, manifest.task);
    }
    let message = format!(
        "no built-in engine serves {} ({}): it was imported for a foreign engine",
        record.name, record.architecture
    );
    Err(Refusal::new(error_code::MODEL_ARCHITECTURE_UNKNOWN, message))
}

fn check_task(record: &ModelRecord, task: Task) -> Result<(), Refusal> {
    let Some(own) = task_of(&record.architecture).filter(|own| *own != task) else { return Ok(()) };
    let word = |task| match task {
        Task::Embed => "embed",
        Task::Generate => "generate",
        Task::Rerank => "rerank",
    };
    let message = format!(
        "the model {} ({}) is for the task `{}`, not `{}`",
        record.name,
        record.architecture,
        word(own),
        word(task)
    );
    Err(Refusal::new(error_code::OPERATION_UNSUPPORTED, message))
}

fn hold(service: &mut Service, slot: protocol::SlotIndex, cluster: &Cluster, node: protocol::NodeId) {
    use crate::cluster::{Holding, HoldingPhase, Slot};
    debug_assert!(!service.slots.contains_key(&slot), "a free slot is taken");
    let Some(circle) = cluster.circle_id() else { return };
    let order = protocol::order::SlotOrder {
        circle,
        service: service.manifest.name.clone(),
        certificate: service.certificate,
        slot,
        fence: protocol::Fence::new(1, 1),
        node,
        gpus: Vec::new(),
        issued_at: cluster.now().0,
    };
    let held = Slot {
        holding: Some(Holding { order, phase: HoldingPhase::Running, replaces: None, failed_starts: 0 }),
        ..Slot::default()
    };
    service.slots.insert(slot, held);
}

/// Returns the running services of a lower priority, by name.
fn outranked(cluster: &Cluster, manifest: &ServiceManifest) -> Vec<ServiceName> {
    let is_below = |service: &&Service| {
        service.phase == ServicePhase::Active && service.manifest.priority < manifest.priority
    };
    let below = cluster.services().values().filter(is_below);
    below.map(|service| service.manifest.name.clone()).filter(|name| *name != manifest.name).collect()
}

/// Describes the roll-out that an approval would begin; nothing if no replica runs yet.
fn roll_out_lines(cluster: &Cluster, manifest: &ServiceManifest) -> Vec<String> {
    let runs = |service: &&Service| service.held().next().is_some();
    let Some(known) = cluster.services().get(&manifest.name).filter(runs) else { return Vec::new() };
    let RollOutRules { ready_seconds, max_unavailable, failure_limit, on_failure } = manifest.rollout;
    let at_once = counted(max_unavailable.max(1).into(), "replica");
    let taken = match max_unavailable {
        0 => "none is taken away before its replacement is available".to_string(),
        count => format!("at most {count} below the wanted number are away"),
    };
    let ready =
        format!("a replica counts as available after {} of answers", counted(ready_seconds.into(), "second"));
    let starts = counted(failure_limit.into(), "failed start");
    let failure = match on_failure {
        OnFailure::Hold => format!("after {starts} in a row the roll-out waits"),
        OnFailure::Return if known.has_returned() => {
            format!("after {starts} in a row the roll-out waits: what is approved now failed before")
        }
        OnFailure::Return => {
            format!("after {starts} in a row the service returns to what is approved now, without a vote")
        }
    };
    vec![format!("the roll-out replaces {at_once} at once; {taken}"), ready, failure]
}

fn wait_lines(
    desired: u32,
    max: u32,
    placed: u32,
    nodes: &[(protocol::NodeName, Vec<crate::plan::Unschedulable>)],
) -> Vec<String> {
    debug_assert!(placed < max, "a replica waits only inside the envelope");
    let mut lines = vec![if placed < desired {
        format!("{} of {desired} would wait", desired - placed)
    } else {
        format!("{placed} of at most {max} replicas fit now")
    }];
    lines.extend(nodes.iter().map(|(name, obstacles)| {
        let texts: Vec<String> = obstacles.iter().map(ToString::to_string).collect();
        format!("{name}: {}", texts.join("; "))
    }));
    lines
}

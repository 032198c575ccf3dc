//! Plan execution: applies all steps of a plan to the replicated state, or none.

use crate::cluster::{Cluster, ServicePhase};
use crate::command::{Refusal, Reply, Step};
use crate::draft::Draft;
use crate::limits::PLAN_STEPS_MAX;
use crate::usage;
use protocol::Digest;
use protocol::error_code::{COMMAND_INVALID, PLAN_STALE};
use std::collections::BTreeSet;

/// Executes all steps or none, and only in the generation for which they were planned.
pub(super) fn execute(
    cluster: &mut Cluster,
    parent_generation: u64,
    steps: &[Step],
) -> Result<Reply, Refusal> {
    if parent_generation != cluster.generation {
        let message = format!("planned for generation {parent_generation}; it is {}", cluster.generation);
        return Err(Refusal::new(PLAN_STALE, message));
    }
    if steps.len() > PLAN_STEPS_MAX {
        return Err(Refusal::new(
            COMMAND_INVALID,
            format!("{} steps; accepted: at most {PLAN_STEPS_MAX}", steps.len()),
        ));
    }
    let mut draft = Draft::new(cluster, cluster.now);
    let effects = steps.iter().map(|step| draft.execute(step)).collect::<Result<Vec<_>, _>>()?;
    debug_assert!(draft.services.keys().eq(cluster.services.keys()), "only the circle adds services");
    let (meters, lost) = (std::mem::take(&mut draft.meters), std::mem::take(&mut draft.lost_attempts));
    (cluster.services, cluster.jobs) = (draft.services, draft.jobs);
    cluster.generation += 1;
    usage::settle(cluster, &meters);
    settle(cluster);
    let mut orders = Vec::new();
    for effect in effects.into_iter().chain(lost) {
        if !effect.is_quiet {
            cluster.audit.record(cluster.now, "scheduler", effect.action, &effect.subject, &effect.detail);
        }
        orders.extend(effect.order);
    }
    Ok(Reply::Executed { generation: cluster.generation, orders })
}

/// Marks a retiring service as retired once its last slot is free, and forgets manifests under which no slot
/// can run any more.
pub(super) fn settle(cluster: &mut Cluster) {
    let mut in_use: BTreeSet<Digest> = BTreeSet::new();
    for (name, service) in &mut cluster.services {
        in_use.extend(service.held().map(|(_, holding)| holding.order.certificate));
        if matches!(service.phase, ServicePhase::Retiring { .. }) && service.held().next().is_none() {
            service.phase = ServicePhase::Retired;
            cluster.audit.record(cluster.now, "scheduler", "retired", &format!("service/{name}"), "");
        }
        if service.phase != ServicePhase::Retired {
            in_use.insert(service.certificate);
            in_use.extend(service.before.map(|target| target.certificate));
        }
    }
    let kept = in_use.iter().all(|certificate| cluster.manifests.contains_key(certificate));
    debug_assert!(kept, "a manifest is kept as long as a slot runs under it");
    cluster.manifests.retain(|certificate, _| in_use.contains(certificate));
}

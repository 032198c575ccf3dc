//! Judgement of gangs by the quotas of their projects, from the replicated state alone.

use crate::cluster::Cluster;
use crate::command::Refusal;
use crate::draft::stale;
use crate::fair_share::{QuotaShortfall, QuotaTree};
use crate::jobs::JobBook;
use protocol::error_code::{JOB_NEVER_FITS, PROJECT_UNKNOWN};
use protocol::manifest::{JobManifest, format_bytes};
use protocol::project::ProjectTree;
use protocol::usage::UsageRate;

/// Bytes of a mebibyte, the unit in which memory is metered.
const MIB: u64 = 1024 * 1024;

/// Returns the tree of quotas with what gangs hold, in any phase of their slots, without shares.
fn quotas(cluster: &Cluster, jobs: &JobBook) -> QuotaTree {
    let none = ProjectTree::default();
    let tree = cluster.circle_state().map_or(&none, |state| state.projects());
    let mut quotas = QuotaTree::new(tree, &UsageRate::default(), |_| [0; 3]);
    take_held(&mut quotas, cluster, jobs);
    quotas
}

/// Counts what gangs hold.
pub(crate) fn take_held(quotas: &mut QuotaTree, cluster: &Cluster, jobs: &JobBook) {
    for (_, held) in jobs.held() {
        let Some(manifest) = cluster.job_manifest(&held.certificate) else { continue };
        let rate = UsageRate::of(&manifest.resources, held.ranks.count);
        quotas.take(&quotas.charge_of_held(manifest.project.as_ref(), &rate));
    }
}

/// Returns the text for a job of a project that is not in force.
pub(crate) fn unknown_project(manifest: &JobManifest) -> Option<String> {
    let project = manifest.project.as_ref()?;
    Some(format!(
        "its project `{project}` is not in force; smallest change: vote the project, or approve the job \
         without `project`"
    ))
}

/// Checks that the project of a new submission is in force, and that its quota and those above it hold the
/// gang.
pub(crate) fn check_project(cluster: &Cluster, manifest: &JobManifest) -> Result<(), Refusal> {
    if manifest.project.is_none() {
        return Ok(());
    }
    let quotas = quotas(cluster, &JobBook::default());
    let rate = UsageRate::of(&manifest.resources, manifest.ranks);
    let Some(charge) = quotas.charge(manifest.project.as_ref(), &rate) else {
        return Err(Refusal::new(PROJECT_UNKNOWN, unknown_project(manifest).unwrap_or_default()));
    };
    match quotas.permanent_shortfall(&charge) {
        Some(shortfall) => Err(Refusal::new(JOB_NEVER_FITS, never_fits(manifest, &shortfall))),
        None => Ok(()),
    }
}

/// Checks that a gang may start now: its project and those above it keep their limits.
pub(crate) fn check_quota(cluster: &Cluster, jobs: &JobBook, manifest: &JobManifest) -> Result<(), Refusal> {
    if manifest.project.is_none() {
        return Ok(());
    }
    let quotas = quotas(cluster, jobs);
    let rate = UsageRate::of(&manifest.resources, manifest.ranks);
    let charge = quotas.charge(manifest.project.as_ref(), &rate);
    let charge = charge.ok_or_else(|| stale(unknown_project(manifest).unwrap_or_default()))?;
    match quotas.shortfall(&charge) {
        Some(shortfall) => Err(stale(over_quota(&shortfall))),
        None => Ok(()),
    }
}

/// Returns why the gang of a job never fits into the quota of its project, with the smallest change; none if
/// it does.
pub(crate) fn quota_misfit(cluster: &Cluster, manifest: &JobManifest) -> Option<String> {
    check_project(cluster, manifest).err().map(|refusal| refusal.message)
}

fn never_fits(manifest: &JobManifest, shortfall: &QuotaShortfall) -> String {
    format!(
        "the gang of job {} never fits: project `{}` may hold {} in all, and the gang takes {}; smallest \
         change: {}",
        manifest.name,
        shortfall.project,
        shown(shortfall.resource, shortfall.limit),
        shown(shortfall.resource, shortfall.sum),
        change(shortfall)
    )
}

/// Returns the reason of a gang that waits for the quota of its project, with the smallest change.
pub(crate) fn over_quota(shortfall: &QuotaShortfall) -> String {
    let QuotaShortfall { project, resource, sum, nominal, limit, .. } = shortfall;
    debug_assert!(sum > limit, "it would pass the limit");
    format!(
        "project `{project}` would hold {}, and may hold {}: its quota of {}, and {} that it may borrow; \
         smallest change: {}, or wait until gangs of it end",
        shown(*resource, *sum),
        shown(*resource, *limit),
        shown(*resource, *nominal),
        shown(*resource, limit.saturating_sub(*nominal)),
        change(shortfall)
    )
}

/// Returns the limit of what a project borrows that would let a gang start.
fn change(shortfall: &QuotaShortfall) -> String {
    let QuotaShortfall { project, resource, sum, nominal, .. } = shortfall;
    let borrowed = sum.saturating_sub(*nominal);
    debug_assert!(borrowed > 0, "a gang that is kept back would borrow");
    let setting = match resource {
        0 => format!("borrow.cpu_millicores = {borrowed}"),
        1 => format!("borrow.memory = \"{}\"", format_bytes(borrowed.saturating_mul(MIB))),
        _ => format!("borrow.gpus = {}", borrowed.div_ceil(1000)),
    };
    format!("vote `{setting}` for `{project}`")
}

/// Returns an amount of a resource in its unit.
fn shown(resource: usize, amount: u64) -> String {
    debug_assert!(resource < 3, "cores, memory or GPUs");
    match resource {
        0 => format!("{amount} millicores"),
        1 => format!("{} of memory", format_bytes(amount.saturating_mul(MIB))),
        _ if amount.is_multiple_of(1000) => format!("{} GPUs", amount / 1000),
        _ => format!("{}.{:03} GPUs", amount / 1000, amount % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use protocol::project::{Project, ProjectQuota};

    /// Returns the shortfall of a gang of these amounts, in a project with this quota that borrows this much.
    fn shortfall(gang: UsageRate, quota: ProjectQuota, borrow: ProjectQuota) -> QuotaShortfall {
        let name: protocol::ProjectName = "vision".parse().expect("a name");
        let project = Project { name: name.clone(), parent: None, weight: 1, quota, borrow: Some(borrow) };
        let tree = ProjectTree { half_life_seconds: 300, own_weight: 1, projects: vec![project] };
        let quotas = QuotaTree::new(&tree, &UsageRate::default(), |_| [0; 3]);
        let charge = quotas.charge(Some(&name), &gang).expect("a project of the tree");
        quotas.shortfall(&charge).expect("it would pass the limit")
    }

    #[test]
    fn a_text_names_the_amounts_and_the_smallest_change() {
        let rate =
            |cpu_millicores, memory_mib, gpu_millis| UsageRate { gpu_millis, cpu_millicores, memory_mib };
        let quota =
            |cpu_millicores, gib: u64, gpus| ProjectQuota { cpu_millicores, memory_bytes: gib << 30, gpus };
        let cores = shortfall(rate(1500, 0, 0), quota(500, 9, 9), quota(500, 0, 0));
        let memory = shortfall(rate(0, 2048, 0), quota(9, 1, 9), quota(0, 0, 0));
        let gpus = shortfall(rate(0, 0, 4250), quota(9, 9, 0), quota(0, 0, 4));
        for (shortfall, expected) in [
            (&cores, "would hold 1500 millicores, and may hold 1000 millicores: its quota of 500 millicores"),
            (&cores, "vote `borrow.cpu_millicores = 1000` for `vision`"),
            (&memory, "would hold 2 GiB of memory, and may hold 1 GiB of memory"),
            (&memory, "vote `borrow.memory = \"1 GiB\"` for `vision`"),
            (&gpus, "would hold 4.250 GPUs, and may hold 4 GPUs"),
            (&gpus, "vote `borrow.gpus = 5` for `vision`"),
        ] {
            let text = over_quota(shortfall);
            assert!(text.contains(expected), "{text}");
        }
    }
}

//! Projects as people and programs see them.

use crate::fair_share::{QuotaTree, amounts_of_quota, rate_of};
use crate::plan::{capacities_beside, quotas_of};
use crate::view::ClusterView;
use protocol::ProjectName;
use protocol::project::{Project, ProjectList, ProjectTree, ProjectView, ROOT_PROJECT};
use protocol::usage::UsageRate;
use std::collections::BTreeMap;

/// Returns the root and the projects in force, with what each holds, borrows and held on average.
#[must_use]
pub fn project_list(view: ClusterView) -> ProjectList {
    let (cluster, none) = (view.cluster, ProjectTree::default());
    let tree = cluster.circle_state().map_or(&none, |state| state.projects());
    let nodes = capacities_beside(view, cluster.services(), cluster.jobs());
    let quotas = quotas_of(view, cluster.jobs(), &nodes);
    let counts = counts(view, tree);
    let root = std::iter::once(None).chain(tree.projects.iter().map(Some));
    let items: Vec<ProjectView> = root
        .map(|project| shown(&quotas, tree, project, counts.get(&project.map(|one| &one.name))))
        .collect();
    debug_assert_eq!(items.len(), tree.projects.len() + 1, "the root and each project");
    ProjectList {
        at: view.cluster_time().0,
        half_life_seconds: tree.half_life_seconds,
        offered: nodes.iter().fold(UsageRate::default(), |sum, node| sum.plus(node.offers())),
        items,
    }
}

/// Returns the numbers of jobs of each project itself and of those that belong to it that are placed, and
/// that wait. Jobs of a project that was dropped count to the root.
fn counts<'a>(view: ClusterView<'a>, tree: &'a ProjectTree) -> BTreeMap<Option<&'a ProjectName>, (u64, u64)> {
    let mut counts: BTreeMap<Option<&ProjectName>, (u64, u64)> = BTreeMap::new();
    for job in view.cluster.jobs().jobs().values().filter(|job| !job.state.is_finished()) {
        let manifest = view.cluster.job_manifest(&job.submission().certificate);
        let project = manifest.and_then(|manifest| manifest.project.as_ref());
        let mut above: Vec<Option<&ProjectName>> =
            project.into_iter().flat_map(|name| tree.lineage(name)).map(|one| Some(&one.name)).collect();
        if above.is_empty() {
            above.push(None);
        }
        for name in above {
            let (placed, waiting) = counts.entry(name).or_default();
            debug_assert!(!job.state.is_finished(), "a job that has not ended waits or is placed");
            *if job.state.is_placed() { placed } else { waiting } += 1;
        }
    }
    counts
}

fn shown(
    quotas: &QuotaTree,
    tree: &ProjectTree,
    project: Option<&Project>,
    counts: Option<&(u64, u64)>,
) -> ProjectView {
    let root = || ROOT_PROJECT.parse().expect("the root's name is a name");
    let (held, average, share_millionths) =
        quotas.holdings(project.map(|project| &project.name)).unwrap_or_default();
    let nominal = project.map(|project| amounts_of_quota(&project.quota)).unwrap_or_default();
    let mut borrowed = held;
    borrowed.iter_mut().zip(nominal).for_each(|(held, nominal)| *held = held.saturating_sub(nominal));
    let (placed, waiting) = counts.copied().unwrap_or_default();
    ProjectView {
        name: project.map_or_else(root, |project| project.name.clone()),
        parent: project.and_then(|project| project.parent.clone()),
        weight: project.map_or(tree.own_weight, |project| project.weight),
        quota: project.map(|project| project.quota),
        borrow: project.and_then(|project| project.borrow),
        held: rate_of(held),
        borrowed: rate_of(borrowed),
        average: rate_of(average),
        share_millionths,
        placed,
        waiting,
    }
}

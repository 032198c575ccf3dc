//! Projects: what makes a voted tree of them sound, and which jobs it covers.

use crate::ChainError;
use protocol::manifest::JobManifest;
use protocol::project::{
    HALF_LIFE_SECONDS_MAX, HALF_LIFE_SECONDS_MIN, PROJECT_DEPTH_MAX, PROJECT_GPUS_MAX,
    PROJECT_MEMORY_BYTES_MAX, PROJECT_MILLICORES_MAX, PROJECT_WEIGHT_MAX, PROJECTS_MAX, Project,
    ProjectQuota, ProjectTree, ROOT_PROJECT,
};

/// Checks that the projects are a tree within its bounds, in which the quotas of the projects that belong to
/// one do not exceed its own together.
pub(crate) fn check_projects(tree: &ProjectTree) -> Result<(), ChainError> {
    let ProjectTree { half_life_seconds, own_weight, projects } = tree;
    if !(HALF_LIFE_SECONDS_MIN..=HALF_LIFE_SECONDS_MAX).contains(half_life_seconds) {
        return invalid(format!(
            "the half-life is {half_life_seconds} s; accepted: {HALF_LIFE_SECONDS_MIN} to \
             {HALF_LIFE_SECONDS_MAX}"
        ));
    }
    check_weight("jobs of a project itself", *own_weight)?;
    if projects.len() > PROJECTS_MAX {
        return invalid(format!("{} of them; accepted: at most {PROJECTS_MAX}", projects.len()));
    }
    for pair in projects.windows(2) {
        let (before, next) = (&pair[0].name, &pair[1].name);
        if before == next {
            return invalid(format!("`{next}` is named twice"));
        }
        if before > next {
            return invalid(format!("`{next}` comes after `{before}`; accepted: sorted by name"));
        }
    }
    projects.iter().try_for_each(|project| check_project(tree, project))?;
    projects.iter().try_for_each(|project| check_children(tree, project))
}

/// Checks that the project of a job was voted.
pub(crate) fn check_known(tree: &ProjectTree, job: &JobManifest) -> Result<(), ChainError> {
    debug_assert!(tree.projects.is_sorted_by(|a, b| a.name < b.name), "projects in force are sorted");
    match &job.project {
        Some(project) if tree.project(project).is_none() => {
            Err(ChainError::ProjectUnknown { job: job.name.clone(), project: project.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

fn invalid(reason: String) -> Result<(), ChainError> {
    debug_assert!(!reason.is_empty(), "an error names its rule");
    Err(ChainError::ProjectsInvalid(reason))
}

fn check_weight(of: &str, weight: u32) -> Result<(), ChainError> {
    debug_assert!(!of.is_empty(), "a weight is of a project, or of its own jobs");
    if (1..=PROJECT_WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    invalid(format!("the weight of {of} is {weight}; accepted: 1 to {PROJECT_WEIGHT_MAX}"))
}

/// Checks one project, and that it leads to the root.
fn check_project(tree: &ProjectTree, project: &Project) -> Result<(), ChainError> {
    let Project { name, parent, weight, quota, borrow } = project;
    if name.as_str() == ROOT_PROJECT {
        return invalid(format!("`{ROOT_PROJECT}` is the root, which has no quota; choose another name"));
    }
    check_weight(&format!("`{name}`"), *weight)?;
    check_amounts(&format!("the quota of `{name}`"), quota)?;
    if let Some(borrow) = borrow {
        check_amounts(&format!("the limit of what `{name}` borrows"), borrow)?;
    }
    match parent {
        Some(parent) if parent.as_str() == ROOT_PROJECT => {
            return invalid(format!("`{name}` names the root as its parent; leave `parent` out"));
        }
        Some(parent) if tree.project(parent).is_none() => {
            return invalid(format!("the parent of `{name}` is `{parent}`, which is no project"));
        }
        Some(_) | None => {}
    }
    debug_assert!(tree.project(name).is_some(), "a sorted tree finds its own projects");
    let lineage: Vec<&Project> = tree.lineage(name).take(PROJECT_DEPTH_MAX + 1).collect();
    debug_assert!(!lineage.is_empty(), "a project is of its own lineage");
    if lineage.len() <= PROJECT_DEPTH_MAX && lineage.last().is_some_and(|top| top.parent.is_none()) {
        return Ok(());
    }
    if tree.lineage(name).skip(1).any(|above| above.name == *name) {
        return invalid(format!("`{name}` belongs to itself, by way of its parent"));
    }
    if tree.lineage(name).all(|above| above.parent.is_some()) {
        return invalid(format!("`{name}` belongs to projects that belong to each other"));
    }
    invalid(format!("`{name}` is deeper than {PROJECT_DEPTH_MAX} projects below the root"))
}

/// Returns the amounts of a quota, each with its unit and its bound.
fn amounts(quota: &ProjectQuota) -> [(&'static str, u64, u64); 3] {
    let ProjectQuota { cpu_millicores, memory_bytes, gpus } = quota;
    [
        ("millicores", *cpu_millicores, PROJECT_MILLICORES_MAX),
        ("bytes of memory", *memory_bytes, PROJECT_MEMORY_BYTES_MAX),
        ("GPUs", u64::from(*gpus), u64::from(PROJECT_GPUS_MAX)),
    ]
}

/// Checks that each amount is within its bound.
fn check_amounts(of: &str, quota: &ProjectQuota) -> Result<(), ChainError> {
    debug_assert!(!of.is_empty(), "a quota is of a project");
    match amounts(quota).into_iter().find(|(_, amount, most)| amount > most) {
        Some((unit, amount, most)) => invalid(format!("{of} is {amount} {unit}; accepted: at most {most}")),
        None => Ok(()),
    }
}

/// Checks that the quotas of the projects that belong to one fit into its own, so that all can be kept.
fn check_children(tree: &ProjectTree, parent: &Project) -> Result<(), ChainError> {
    let mut sums = [0_u64; 3];
    for child in tree.projects.iter().filter(|child| child.parent.as_ref() == Some(&parent.name)) {
        let parts = amounts(&child.quota).into_iter();
        sums.iter_mut().zip(parts).for_each(|(sum, (_, amount, _))| *sum = sum.saturating_add(amount));
    }
    debug_assert!(sums.iter().all(|sum| *sum < u64::MAX), "checked amounts add up");
    let mut own = amounts(&parent.quota).into_iter().zip(sums);
    match own.find(|((_, own, _), sum)| sum > own) {
        Some(((unit, own, _), sum)) => invalid(format!(
            "the projects of `{}` have {sum} {unit} together, and its own quota is {own}",
            parent.name
        )),
        None => Ok(()),
    }
}

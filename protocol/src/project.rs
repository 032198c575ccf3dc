//! Projects: the voted tree by which the circle divides what its nodes offer among jobs.
//!
//! Each project has a weight and a nominal quota, and belongs to another project or to the root. The root is
//! named [`ROOT_PROJECT`]: jobs without a project are its own, and it has no quota. A change replaces the
//! whole tree.

mod parse;

use crate::ids::{Millis, ProjectName};
use crate::usage::UsageRate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Name of the root of the tree, and of the project of jobs that name none.
pub const ROOT_PROJECT: &str = "default";
/// Maximum number of projects. Each plan looks at all of them for every job that it orders.
pub const PROJECTS_MAX: usize = 256;
/// Maximum depth of a project below the root: organization, group, team, person.
pub const PROJECT_DEPTH_MAX: usize = 4;
/// Maximum weight of a project beside its siblings.
pub const PROJECT_WEIGHT_MAX: u32 = 10_000;
/// Minimum half-life of usage in seconds: shares are no finer than a job's run.
pub const HALF_LIFE_SECONDS_MIN: u64 = 300;
/// Maximum half-life of usage in seconds: 90 days.
pub const HALF_LIFE_SECONDS_MAX: u64 = 90 * 86_400;
/// Maximum amount of processor time in a quota, in thousandths of a core: a million cores.
pub const PROJECT_MILLICORES_MAX: u64 = 1_000_000_000;
/// Maximum amount of memory in a quota in bytes: a pebibyte.
pub const PROJECT_MEMORY_BYTES_MAX: u64 = 1 << 50;
/// Maximum number of GPUs in a quota: eight for each of the nodes that a circle may have.
pub const PROJECT_GPUS_MAX: u32 = 80_000;

/// Amounts of the resources that projects divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectQuota {
    /// CPU in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Whole GPUs; a share of one counts as its part.
    pub gpus: u32,
}

/// Project of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// Name, unique in the circle.
    pub name: ProjectName,
    /// Project that it belongs to; none = the root.
    pub parent: Option<ProjectName>,
    /// Weight of its share beside its siblings: 1 to [`PROJECT_WEIGHT_MAX`].
    pub weight: u32,
    /// Nominal quota: what its jobs get back from borrowers when they need it. It contains the quotas of the
    /// projects that belong to it.
    pub quota: ProjectQuota,
    /// Most that its jobs hold beyond the quota, of what others leave idle; none = no limit.
    pub borrow: Option<ProjectQuota>,
}

/// Projects of the circle. Before the first vote there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectTree {
    /// Time in seconds after which usage counts half.
    pub half_life_seconds: u64,
    /// Weight of the jobs that belong to a project itself, beside the projects that belong to it; so too of
    /// the jobs without a project.
    pub own_weight: u32,
    /// Projects, sorted by name.
    pub projects: Vec<Project>,
}

/// Project as it is now: what it may hold, holds and held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectView {
    /// Name; that of the root stands for the jobs without a project.
    pub name: ProjectName,
    /// Project that it belongs to; none = the root.
    pub parent: Option<ProjectName>,
    /// Weight of its share beside its siblings.
    pub weight: u32,
    /// Nominal quota; none for the root, which has none.
    pub quota: Option<ProjectQuota>,
    /// Most that it holds beyond the quota; none = no limit.
    pub borrow: Option<ProjectQuota>,
    /// Amounts that its jobs hold now, with those of the projects that belong to it.
    pub held: UsageRate,
    /// Of these, the amounts beyond its quota.
    pub borrowed: UsageRate,
    /// Amounts that they held on average, by the half-life.
    pub average: UsageRate,
    /// Dominant share in millionths: of each resource, what is held and was held on average, as a part of
    /// what all nodes offer; the largest of these. Turns go to the lowest one by weight.
    pub share_millionths: u64,
    /// Number of its jobs that run or start.
    pub placed: u64,
    /// Number of its jobs that wait.
    pub waiting: u64,
}

/// Projects as they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectList {
    /// Cluster's time of the answer.
    pub at: Millis,
    /// Half-life of usage in seconds; 0 before projects are voted.
    pub half_life_seconds: u64,
    /// Amounts that all nodes offer.
    pub offered: UsageRate,
    /// The root, then the projects by name.
    pub items: Vec<ProjectView>,
}

impl ProjectTree {
    /// Returns the project with this name.
    #[must_use]
    pub fn project(&self, name: &ProjectName) -> Option<&Project> {
        let at = self.projects.binary_search_by(|project| project.name.cmp(name)).ok()?;
        self.projects.get(at)
    }

    /// Returns the projects from one up to a child of the root. A tree that was checked has no cycle; the
    /// iterator ends in any other too.
    pub fn lineage<'a>(&'a self, name: &ProjectName) -> impl Iterator<Item = &'a Project> + use<'a> {
        let up = |project: &&Project| self.project(project.parent.as_ref()?);
        std::iter::successors(self.project(name), up).take(self.projects.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(name: &str, parent: Option<&str>) -> Project {
        let name_of = |text: &str| text.parse().expect("a name");
        Project {
            name: name_of(name),
            parent: parent.map(name_of),
            weight: 1,
            quota: ProjectQuota::default(),
            borrow: None,
        }
    }

    fn lineage(tree: &ProjectTree, name: &str) -> Vec<String> {
        tree.lineage(&name.parse().expect("a name")).map(|project| project.name.to_string()).collect()
    }

    #[test]
    fn a_lineage_leads_from_a_project_to_a_child_of_the_root() {
        let projects = vec![project("a", None), project("b", Some("a")), project("c", Some("b"))];
        let tree = ProjectTree { projects, ..ProjectTree::default() };
        assert_eq!(lineage(&tree, "c"), ["c", "b", "a"]);
        assert_eq!(lineage(&tree, "a"), ["a"]);
        assert!(lineage(&tree, "d").is_empty(), "an unknown project has none");
    }

    #[test]
    fn a_project_is_found_by_its_name_alone() {
        let projects = vec![project("a", None), project("b", None), project("b.c", Some("b"))];
        let tree = ProjectTree { projects, ..ProjectTree::default() };
        let found = |text: &str| tree.project(&text.parse().expect("a name")).map(|one| one.name.to_string());
        for known in ["a", "b", "b.c"] {
            assert_eq!(found(known), Some(known.to_string()));
        }
        for unknown in ["0", "aa", "b.d", ROOT_PROJECT] {
            assert_eq!(found(unknown), None, "{unknown}");
        }
        assert_eq!(ProjectTree::default().project(&"a".parse().expect("a name")), None);
    }

    #[test]
    fn the_root_has_a_name_that_a_project_could_have() {
        let root: ProjectName = ROOT_PROJECT.parse().expect("the root's name is a name");
        assert_eq!(root.as_str(), ROOT_PROJECT);
    }

    /// The bounds keep each sum that is made of a tree within its type.
    #[test]
    fn the_bounds_leave_room_for_sums() {
        let projects = PROJECTS_MAX as u64;
        for most in [PROJECT_MILLICORES_MAX, PROJECT_MEMORY_BYTES_MAX, u64::from(PROJECT_GPUS_MAX) * 1000] {
            assert!(most.checked_mul(2 * projects).is_some(), "quotas and limits of all projects");
        }
        let step_ms = HALF_LIFE_SECONDS_MAX * 1000 / 256;
        for held in [PROJECT_MILLICORES_MAX, PROJECT_MEMORY_BYTES_MAX >> 20] {
            assert!(held.checked_mul(step_ms).is_some(), "amounts of a step");
        }
        const { assert!(HALF_LIFE_SECONDS_MIN < HALF_LIFE_SECONDS_MAX && PROJECT_DEPTH_MAX < PROJECTS_MAX) };
    }

    #[test]
    fn a_lineage_ends_in_a_tree_with_a_cycle() {
        let projects = vec![project("a", Some("b")), project("b", Some("a"))];
        let tree = ProjectTree { projects, ..ProjectTree::default() };
        assert_eq!(lineage(&tree, "a"), ["a", "b"]);
    }
}

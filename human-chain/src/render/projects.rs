//! The tree of projects in words: each project with its parent, weight, quota and limit.

use super::escape::{quoted, show_bytes, show_duration};
use super::fields::FieldTexts;
use protocol::display::counted;
use protocol::project::{Project, ProjectQuota, ProjectTree, ROOT_PROJECT};

/// Returns the sentence of a new tree.
pub(super) fn sentence(tree: &ProjectTree) -> String {
    if tree.projects.is_empty() {
        return "Divide what the nodes offer among no projects: jobs take it by priority and time alone, and \
                jobs of a project that was dropped wait."
            .into();
    }
    debug_assert!(!tree.projects.is_empty(), "the sentence of no project is another");
    format!(
        "Divide what the nodes offer among {}, by weight and by what each used, which counts half after {}: \
         a project gets its quota back from those that borrow it, whose gangs are then preempted, and jobs \
         of a project that was dropped wait.",
        counted(tree.projects.len() as u64, "project"),
        show_duration(tree.half_life_seconds),
    )
}

/// Returns the fields of a tree. No field's own name has a dot, so no two projects have a name in common.
pub(super) fn fields(tree: &ProjectTree) -> FieldTexts {
    let ProjectTree { half_life_seconds, own_weight, projects } = tree;
    let mut texts = vec![
        ("projects.half-life of usage".to_string(), show_duration(*half_life_seconds)),
        ("projects.weight of own jobs".into(), own_weight.to_string()),
    ];
    for Project { name, parent, weight, quota, borrow } in projects {
        let parent = parent
            .as_ref()
            .map_or_else(|| format!("{ROOT_PROJECT}, the root"), |parent| quoted(parent.as_str()));
        let unlimited = || "all that others leave idle".to_string();
        texts.push((format!("project {name}.belongs to"), parent));
        texts.push((format!("project {name}.weight"), weight.to_string()));
        texts.push((format!("project {name}.quota"), amounts(quota)));
        texts.push((
            format!("project {name}.borrows at most"),
            borrow.as_ref().map_or_else(unlimited, amounts),
        ));
    }
    debug_assert_eq!(texts.len(), 2 + 4 * projects.len(), "each field is shown");
    texts
}

fn amounts(quota: &ProjectQuota) -> String {
    let ProjectQuota { cpu_millicores, memory_bytes, gpus } = quota;
    format!(
        "{cpu_millicores} millicores, {} of memory, {}",
        show_bytes(*memory_bytes),
        counted(u64::from(*gpus), "GPU")
    )
}

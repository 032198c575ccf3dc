//! Parser of a tree of projects as people write it, in TOML. Whether it is a tree is checked where it is
//! voted.

use super::{Project, ProjectQuota, ProjectTree};
use crate::error_code::PROJECTS_INVALID;
use crate::ids::ProjectName;
use crate::limits::MANIFEST_BYTES_MAX;
use crate::manifest::parse_bytes;
use crate::refusal::Refusal;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTree {
    half_life_seconds: u64,
    own_weight: Option<u32>,
    #[serde(default)]
    projects: Vec<RawProject>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProject {
    name: ProjectName,
    parent: Option<ProjectName>,
    weight: Option<u32>,
    quota: RawQuota,
    borrow: Option<RawQuota>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawQuota {
    cpu_millicores: u64,
    memory: String,
    gpus: u32,
}

impl RawQuota {
    fn check(&self, of: &ProjectName) -> Result<ProjectQuota, Refusal> {
        let memory_bytes = parse_bytes(&self.memory).map_err(|reason| {
            invalid(format!("memory of `{of}`: `{}` {reason}", self.memory.escape_debug()))
        })?;
        Ok(ProjectQuota { cpu_millicores: self.cpu_millicores, memory_bytes, gpus: self.gpus })
    }
}

fn invalid(message: String) -> Refusal {
    debug_assert!(!message.is_empty(), "an error names its line or its project");
    Refusal::new(PROJECTS_INVALID, message)
}

impl ProjectTree {
    /// Reads a tree, and sorts its projects by name. A weight that is left out is 1.
    ///
    /// # Errors
    /// Returns the first problem of the text, with its line: the code is `projects-invalid`.
    pub fn from_toml(text: &str) -> Result<Self, Refusal> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(invalid(format!("{} bytes; accepted: at most {MANIFEST_BYTES_MAX}", text.len())));
        }
        let raw: RawTree = toml::from_str(text).map_err(|error| {
            let start = text.floor_char_boundary(error.span().map_or(0, |span| span.start));
            let line = text[..start].matches('\n').count() + 1;
            invalid(format!("line {line}: {}", error.message()))
        })?;
        let project = |raw: RawProject| {
            let RawProject { name, parent, weight, quota, borrow } = raw;
            let quota = quota.check(&name)?;
            let borrow = borrow.map(|borrow| borrow.check(&name)).transpose()?;
            Ok(Project { name, parent, weight: weight.unwrap_or(1), quota, borrow })
        };
        let mut projects =
            raw.projects.into_iter().map(project).collect::<Result<Vec<Project>, Refusal>>()?;
        projects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            half_life_seconds: raw.half_life_seconds,
            own_weight: raw.own_weight.unwrap_or(1),
            projects,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "half_life_seconds = 604800\n[[projects]]\nname = 'vision'\nparent = 'research'\n\
        quota = { cpu_millicores = 0, memory = '1 GiB', gpus = 4 }\n[[projects]]\nname = 'research'\n\
        weight = 3\nquota = { cpu_millicores = 64000, memory = '512 GiB', gpus = 16 }\n\
        borrow = { cpu_millicores = 0, memory = '0 B', gpus = 8 }\n";

    #[test]
    fn a_tree_is_read_with_its_defaults_and_sorted() {
        let tree = ProjectTree::from_toml(TREE).expect("a sound tree");
        assert_eq!((tree.half_life_seconds, tree.own_weight), (604_800, 1));
        let names: Vec<&str> = tree.projects.iter().map(|project| project.name.as_str()).collect();
        assert_eq!(names, ["research", "vision"]);
        let [research, vision] = &tree.projects[..] else { panic!("two projects") };
        assert_eq!((research.weight, research.quota.memory_bytes), (3, 512 << 30));
        assert_eq!(research.borrow.map(|borrow| borrow.gpus), Some(8));
        assert_eq!((vision.weight, vision.borrow), (1, None));
    }

    #[test]
    fn a_tree_of_no_projects_is_read_and_a_weight_of_own_jobs_too() {
        let text = "half_life_seconds = 300\nown_weight = 7\n";
        let tree = ProjectTree::from_toml(text).expect("a sound tree");
        assert_eq!((tree.half_life_seconds, tree.own_weight), (300, 7));
        assert!(tree.projects.is_empty() && tree.project(&"a".parse().expect("a name")).is_none());
    }

    #[test]
    fn an_error_names_its_line_or_its_project() {
        let long = "#".repeat(MANIFEST_BYTES_MAX + 1);
        for (text, expected) in [
            ("", "line 1: missing field `half_life_seconds`"),
            ("half_life_seconds = 1\nquotas = 2\n", "line 2: unknown field `quotas`"),
            ("half_life_seconds = 'x'\n", "line 1: invalid type"),
            (&TREE.replace("'512 GiB'", "'much'"), "memory of `research`: `much`"),
            (&TREE.replace("gpus = 4", "gpus = -4"), "line 5: invalid value"),
            (&TREE.replace("'vision'", "'../x'"), "line 3: name `../x`"),
            (&long, "65537 bytes; accepted: at most 65536"),
        ] {
            let refused = ProjectTree::from_toml(text).expect_err("no tree");
            assert_eq!(refused.code, PROJECTS_INVALID);
            assert!(refused.message.contains(expected), "{}", refused.message);
        }
    }
}

//! Named parts of the code whose figures are counted apart: pure code, and code with a floor of tests. The
//! only list of its kind.
//!
//! A path is the beginning of the paths of its files, so `consensus/src/core` covers `core.rs`, `core/` and
//! `core_tests.rs`.

use super::sources::{SourceTree, TextFile};

/// Pure crates: they decide and have no side effects.
pub(crate) const PURE_CRATES: [&str; 3] = ["protocol", "human-chain", "scheduler"];

/// A part of the code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    /// Beginnings of the paths of its files.
    pub(super) paths: &'static [&'static str],
}

/// Pure code: the pure crates, and the modules that decide for a shell around them.
pub(super) const PURE: [Unit; 6] = [
    PROTOCOL,
    HUMAN_CHAIN,
    SCHEDULER,
    CONSENSUS_CORE,
    Unit { name: "agent-core", paths: &["gpu-agent/src/agent/core"] },
    Unit { name: "batcher", paths: &["serving/src/batcher"] },
];

/// Code with at least as many lines of test as of code.
pub(super) const FLOORED: [Unit; 4] = [PROTOCOL, HUMAN_CHAIN, SCHEDULER, CONSENSUS_CORE];

/// Decisions of a Raft replica, without its disk, transport and driver.
pub(super) const CONSENSUS_CORE: Unit = Unit {
    name: "consensus-core",
    paths: &[
        "consensus/src/core",
        "consensus/src/election",
        "consensus/src/log",
        "consensus/src/read",
        "consensus/src/sessions",
        "consensus/src/snapshot",
        "consensus/src/command",
    ],
};

const PROTOCOL: Unit = Unit { name: "protocol", paths: &["protocol/"] };
const HUMAN_CHAIN: Unit = Unit { name: "human-chain", paths: &["human-chain/"] };
const SCHEDULER: Unit = Unit { name: "scheduler", paths: &["scheduler/"] };

impl Unit {
    /// Returns its text files.
    pub(super) fn files(self, sources: &SourceTree) -> impl Iterator<Item = &TextFile> {
        sources.files.iter().filter(move |file| self.paths.iter().any(|path| file.path.starts_with(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_covers_a_file_its_folder_and_its_tests() {
        let files = ["core.rs", "core/step.rs", "core/tests.rs", "sessions.rs", "driver.rs", "wal.rs"];
        let paths: Vec<String> = files.iter().map(|file| format!("consensus/src/{file}")).collect();
        let texts: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), "")).collect();
        let sources = SourceTree::of(&texts);
        let covered: Vec<&str> = CONSENSUS_CORE.files(&sources).map(|file| file.path.as_str()).collect();
        assert_eq!(covered.len(), 4, "{covered:?}");
        assert!(!covered.contains(&"consensus/src/driver.rs"), "{covered:?}");
    }

    #[test]
    fn each_pure_crate_is_a_pure_unit() {
        for name in PURE_CRATES {
            let unit = PURE.iter().find(|unit| unit.name == name).map(|unit| unit.paths);
            assert_eq!(unit, Some([format!("{name}/").as_str()].as_slice()));
        }
    }

    #[test]
    fn each_path_leads_to_files_of_this_repository() {
        let sources = SourceTree::read(&crate::process::root()).expect("the repository is readable");
        for unit in PURE.iter().chain(&FLOORED) {
            for path in unit.paths {
                let is_there = sources.files.iter().any(|file| file.path.starts_with(path));
                assert!(is_there, "{}: no file begins with `{path}`", unit.name);
            }
        }
    }
}

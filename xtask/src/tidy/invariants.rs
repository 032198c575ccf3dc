//! Invariants checked in each step: the places that define `check_invariants`, and the tests and fuzz targets
//! that call it. Calls of product code are counted too.

use super::functions::function_name;
use super::sources::{SourceTree, TextFile};

/// Name of the function that every state machine has.
const NAME: &str = "check_invariants";

/// Places with the name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct InvariantChecks {
    pub(super) definitions: Vec<String>,
    /// Calls in tests and in fuzz targets.
    pub(super) calls: Vec<String>,
    /// Calls in product code.
    pub(super) product_calls: Vec<String>,
}

/// Returns all places outside of this crate, whose tests only quote the name.
pub(super) fn places(sources: &SourceTree) -> InvariantChecks {
    let mut found = InvariantChecks::default();
    for file in sources.rust().filter(|file| !file.path.starts_with("xtask/")) {
        read(file, &mut found);
    }
    found
}

fn read(file: &TextFile, found: &mut InvariantChecks) {
    let product_end = file.product_lines().last().map_or(0, |(number, _)| number);
    let is_test_file = file.is_test() || file.path.starts_with("fuzz/");
    for (at, line) in file.text.lines().enumerate() {
        if !line.contains(&format!("{NAME}(")) || line.trim_start().starts_with("//") {
            continue;
        }
        let places = if function_name(line) == Some(NAME) {
            &mut found.definitions
        } else if is_test_file || at >= product_end {
            &mut found.calls
        } else {
            &mut found.product_calls
        };
        places.push(format!("{}:{}", file.path, at + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_and_calls_are_distinguished() {
        let queue = "impl Queue {
    pub(super) fn check_invariants(&self) {}

    fn step(&mut self) {
        self.check_invariants();
    }
}

#[cfg(test)]
mod tests {
    // check_invariants()
    fn t() { Queue.check_invariants() }
}
";
        let found = places(&SourceTree::of(&[
            ("a/src/queue.rs", queue),
            ("a/tests/t.rs", "fn t() {\n    queue.check_invariants();\n}\n"),
            ("fuzz/fuzz_targets/queue.rs", "queue.check_invariants();\n"),
        ]));
        assert_eq!(found.definitions, ["a/src/queue.rs:2"]);
        assert_eq!(found.calls, ["a/src/queue.rs:12", "a/tests/t.rs:2", "fuzz/fuzz_targets/queue.rs:1"]);
        assert_eq!(found.product_calls, ["a/src/queue.rs:5"]);
    }

    #[test]
    fn this_crate_only_quotes_the_name() {
        let sources = SourceTree::of(&[("xtask/src/a.rs", "fn check_invariants() {}\n")]);
        assert_eq!(places(&sources), InvariantChecks::default());
    }
}

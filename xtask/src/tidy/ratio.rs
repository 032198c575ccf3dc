//! Check of test ratios: pure crates have three lines of test for two of code, since testing them needs
//! nothing but a function call.
//!
//! Blank lines and lines with only a comment count on neither side. Test is the code in `tests/`, in
//! `tests.rs` and in `#[cfg(test)]` modules, inline or in files of their own, and the cases and golden
//! answers in text files under `tests/`. Fuzz targets and their seeds do not count.

use super::sources::{SourceTree, TextFile};
use super::units::{CONSENSUS_CORE, PURE_CRATES};
use std::collections::{BTreeMap, BTreeSet};

/// Required lines of test for two lines of code.
const TEST_LINES_PER_TWO: usize = 3;
/// Suffixes of files of cases.
const CASES: [&str; 2] = [".txt", ".toml"];

/// Line counts of a crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lines {
    pub(super) code: usize,
    /// Tests in Rust.
    pub(super) test: usize,
    /// Tests in text.
    cases: usize,
}

impl Lines {
    /// Returns the lines of test in Rust for a hundred lines of code.
    pub(super) fn per_hundred(self) -> usize {
        100 * self.test / self.code.max(1)
    }

    fn suffices(self) -> bool {
        2 * (self.test + self.cases) >= TEST_LINES_PER_TWO * self.code
    }
}

/// Prints each pure crate's ratio and reports those that are too low.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let mut findings = Vec::new();
    for name in PURE_CRATES {
        let lines = count_crate(sources, name);
        let Lines { code, test, cases } = lines;
        let ratio = (test + cases) as f64 / code.max(1) as f64;
        println!("tidy: {name}: {code} lines of code, {test} of test and {cases} of cases: {ratio:.2}");
        if !lines.suffices() {
            let missing = (TEST_LINES_PER_TWO * code).div_ceil(2) - test - cases;
            findings.push(format!(
                "{name}: {ratio:.2} lines of test for one of code; at least 1.5: {missing} more"
            ));
        }
    }
    findings
}

/// Returns the lines of test in Rust for a hundred lines of code, for every crate that has code and for the
/// core of consensus. Text cases do not count here.
pub(super) fn per_hundred(sources: &SourceTree) -> BTreeMap<String, usize> {
    let folders = sources.rust().filter(|file| file.path.contains("/src/"));
    let names: BTreeSet<&str> = folders.filter_map(|file| file.path.split('/').next()).collect();
    let crates = names.into_iter().map(|name| (name, count_crate(sources, name)));
    let core = (CONSENSUS_CORE.name, count(sources, CONSENSUS_CORE.paths));
    let counted = crates.chain([core]).filter(|(_, lines)| lines.code > 0);
    counted.map(|(name, lines)| (name.to_string(), lines.per_hundred())).collect()
}

fn count_crate(sources: &SourceTree, name: &str) -> Lines {
    count(sources, &[&format!("{name}/")])
}

/// Counts the lines of all files whose paths begin with one of `paths`.
pub(super) fn count(sources: &SourceTree, paths: &[&str]) -> Lines {
    let mut lines = Lines::default();
    for file in sources.files.iter().filter(|file| paths.iter().any(|path| file.path.starts_with(path))) {
        if !file.path.ends_with(".rs") {
            let is_case = file.is_test() && CASES.iter().any(|ending| file.path.ends_with(ending));
            lines.cases +=
                if is_case { file.text.lines().filter(|line| counts(line, "#")).count() } else { 0 };
            continue;
        }
        let all = file.text.lines().filter(|line| counts(line, "//")).count();
        let product = product(file);
        lines.code += product;
        lines.test += all - product;
    }
    lines
}

fn product(file: &TextFile) -> usize {
    if file.is_test() { 0 } else { file.product_lines().filter(|(_, line)| counts(line, "//")).count() }
}

fn counts(line: &str, comment: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with(comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Lines {
        count_crate(&SourceTree::of(files), "scheduler")
    }

    #[test]
    fn tests_are_what_stands_in_tests_and_in_test_modules() {
        let inline = "//! Doc.\n\nfn f() {}\n// why\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n";
        assert_eq!(of(&[("scheduler/src/lib.rs", inline)]), Lines { code: 1, test: 4, cases: 0 });
        assert_eq!(of(&[("scheduler/src/a/tests.rs", "fn t() {}\n")]), Lines { code: 0, test: 1, cases: 0 });
        assert_eq!(of(&[("scheduler/tests/t.rs", "fn t() {}\n")]), Lines { code: 0, test: 1, cases: 0 });
        assert_eq!(of(&[("protocol/src/lib.rs", "fn f() {}\n")]), Lines::default(), "another crate's");
    }

    #[test]
    fn a_module_of_tests_in_another_file_hides_no_code() {
        let declared = "#[cfg(test)]\nmod tests;\nfn f() {}\nfn g() {}\n";
        assert_eq!(of(&[("scheduler/src/lib.rs", declared)]), Lines { code: 2, test: 2, cases: 0 });
    }

    #[test]
    fn cases_are_text_under_tests() {
        let text = "# a story\n> plan\n    nothing to do\n\n";
        assert_eq!(of(&[("scheduler/tests/golden/a.txt", text)]), Lines { code: 0, test: 0, cases: 2 });
        assert_eq!(of(&[("scheduler/src/ratchet.txt", text)]), Lines::default());
        assert_eq!(of(&[("scheduler/tests/seed.bin", text)]), Lines::default());
    }

    #[test]
    fn three_for_two_is_enough_and_less_is_found() {
        let code = ("scheduler/src/lib.rs", "x\nx\n");
        assert!(of(&[code, ("scheduler/tests/t.rs", "t\nt\nt\n")]).suffices());
        let short = SourceTree::of(&[code, ("scheduler/tests/t.rs", "t\nt\n")]);
        let findings = check(&short);
        assert_eq!(findings, ["scheduler: 1.00 lines of test for one of code; at least 1.5: 1 more"]);
    }
}

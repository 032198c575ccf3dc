//! Assertions in the functions of pure code: `assert!` and its relatives, in debug builds or in all. Tests,
//! fixtures for tests and constants do not count.

use super::functions::functions;
use super::sources::{SourceTree, TextFile};
use super::units::{PURE, Unit};
use std::collections::BTreeSet;

/// Macros that assert; `debug_assert!` contains the first.
const MACROS: [&str; 3] = ["assert!(", "assert_eq!(", "assert_ne!("];

/// Functions and assertions of a unit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct AssertionCount {
    pub(super) functions: usize,
    pub(super) assertions: usize,
}

impl AssertionCount {
    /// Returns the assertions for a hundred functions.
    pub(super) fn per_hundred(self) -> usize {
        100 * self.assertions / self.functions.max(1)
    }
}

/// Returns the count of every pure unit that has functions.
pub(super) fn per_unit(sources: &SourceTree) -> Vec<(&'static str, AssertionCount)> {
    let counted = PURE.iter().map(|unit| (unit.name, count(sources, *unit)));
    counted.filter(|(_, count)| count.functions > 0).collect()
}

fn count(sources: &SourceTree, unit: Unit) -> AssertionCount {
    let mut sum = AssertionCount::default();
    let is_product = |file: &&TextFile| file.path.ends_with(".rs") && !file.is_test() && !file.serves_tests();
    for file in unit.files(sources).filter(is_product) {
        let count = count_in(file);
        sum.functions += count.functions;
        sum.assertions += count.assertions;
    }
    sum
}

fn count_in(file: &TextFile) -> AssertionCount {
    let product: Vec<(usize, &str)> = file.product_lines().collect();
    let numbers: BTreeSet<usize> = product.iter().map(|(number, _)| *number).collect();
    let functions: Vec<_> =
        functions(file).into_iter().filter(|function| numbers.contains(&function.at)).collect();
    let inside: BTreeSet<usize> = functions.iter().flat_map(|function| function.range()).collect();
    let code = product
        .iter()
        .filter(|(number, line)| inside.contains(number) && !line.trim_start().starts_with("//"));
    AssertionCount { functions: functions.len(), assertions: code.map(|(_, line)| in_line(line)).sum() }
}

fn in_line(line: &str) -> usize {
    MACROS.iter().map(|name| line.matches(name).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(path: &str, text: &str) -> Vec<(&'static str, AssertionCount)> {
        per_unit(&SourceTree::of(&[(path, text)]))
    }

    fn of(functions: usize, assertions: usize) -> AssertionCount {
        AssertionCount { functions, assertions }
    }

    #[test]
    fn assertions_of_every_kind_are_counted_in_functions() {
        let text = "fn f(a: u8) {\n    assert!(a > 0);\n    debug_assert_eq!(a, 1);\n    \
                    assert_ne!(a, 2);\n}\nfn g() { debug_assert!(true) }\nfn h() {}\n";
        assert_eq!(counted("scheduler/src/lib.rs", text), [("scheduler", of(3, 4))]);
    }

    #[test]
    fn constants_comments_and_tests_do_not_count() {
        let text = "const _: () = assert!(true);\nfn f() {\n    // assert!(false);\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn t() {\n        assert!(true);\n    }\n}\n";
        assert_eq!(counted("protocol/src/lib.rs", text), [("protocol", of(1, 0))]);
        assert_eq!(counted("protocol/tests/t.rs", "fn t() { assert!(true) }\n"), []);
        assert_eq!(counted("gpu-agent/src/agent/core/testing.rs", "fn t() { assert!(true) }\n"), []);
    }

    #[test]
    fn pure_modules_count_and_their_shells_do_not() {
        let text = "fn f() { assert!(true) }\n";
        assert_eq!(counted("gpu-agent/src/agent/core/book.rs", text), [("agent-core", of(1, 1))]);
        assert_eq!(counted("serving/src/batcher.rs", text), [("batcher", of(1, 1))]);
        assert_eq!(counted("consensus/src/core.rs", text), [("consensus-core", of(1, 1))]);
        assert_eq!(counted("consensus/src/driver.rs", text), []);
    }

    #[test]
    fn the_figure_is_for_a_hundred_functions() {
        assert_eq!(of(8, 3).per_hundred(), 37);
        assert_eq!(of(0, 0).per_hundred(), 0);
    }
}

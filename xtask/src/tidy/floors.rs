//! Floor of the test ratio: code that decides alone has at least as many lines of test in Rust as of code.

use super::ratio;
use super::sources::SourceTree;
use super::units::{FLOORED, Unit};

/// Lines of test for a hundred lines of code.
const PER_HUNDRED_MIN: usize = 100;

/// Returns each unit below the floor.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let below = |unit: &Unit| {
        let lines = ratio::count(sources, unit.paths);
        let wanted = (PER_HUNDRED_MIN * lines.code).div_ceil(100);
        (lines.test < wanted).then(|| {
            format!(
                "{}: {} lines of test in Rust for a hundred of code; at least {PER_HUNDRED_MIN}: {} more",
                unit.name,
                lines.per_hundred(),
                wanted - lines.test
            )
        })
    };
    FLOORED.iter().filter_map(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&SourceTree::of(files))
    }

    #[test]
    fn a_line_of_test_for_each_line_of_code_suffices() {
        let code = ("consensus/src/core.rs", "x\nx\nx\n");
        let log = ("consensus/src/log.rs", "x\n");
        assert_eq!(found(&[code, log, ("consensus/src/log/tests.rs", "t\nt\nt\nt\n")]), [""; 0]);
        assert_eq!(
            found(&[code, log, ("consensus/src/log/tests.rs", "t\nt\nt\n")]),
            ["consensus-core: 75 lines of test in Rust for a hundred of code; at least 100: 1 more"]
        );
    }

    #[test]
    fn other_crates_and_other_files_have_no_floor() {
        let files = [("control/src/lib.rs", "x\n"), ("consensus/src/driver.rs", "x\n")];
        assert_eq!(found(&files), [""; 0]);
        assert_eq!(found(&[("protocol/src/lib.rs", "x\n")]).len(), 1);
    }

    #[test]
    fn text_cases_do_not_raise_a_unit_to_the_floor() {
        let cases = ("scheduler/tests/golden/a.txt", "case\ncase\n");
        assert_eq!(found(&[("scheduler/src/lib.rs", "x\n"), cases]).len(), 1);
    }
}

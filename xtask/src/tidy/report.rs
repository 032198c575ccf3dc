//! The figures of the codebase as a text: prose and lengths per area, then assertions and invariants, then
//! the figures of the whole workspace.

use super::areas::{Area, areas};
use super::assertions::{self, AssertionCount};
use super::invariants;
use super::ratchets::of_the_workspace;
use super::ratio;
use super::sources::SourceTree;
use std::collections::BTreeMap;

/// Returns the whole report.
pub(super) fn text(sources: &SourceTree) -> String {
    let areas = areas(sources);
    let long: Vec<String> = areas.values().flat_map(|area| area.long_functions.clone()).collect();
    let parts = [
        per_area(areas, &ratio::per_hundred(sources)),
        listed("functions over 70 lines", &long),
        per_pure_unit(sources),
        invariant_checks(sources),
        of_the_workspace(sources).iter().map(|figure| listed(&figure.name, &figure.found)).collect(),
    ];
    parts.join("\n")
}

/// One line for each area, and their sum. A unit with a test ratio of its own has a line too.
fn per_area(mut areas: BTreeMap<String, Area>, ratios: &BTreeMap<String, usize>) -> String {
    let mut text = format!(
        "{:<14} {:>9} {:>9} {:>12} {:>10} {:>9} {:>10} {:>10}\n",
        "", "sentences", "no noun", "banned/10^4", "> 110 col", "functions", "> 70 lines", "tests/code"
    );
    for name in ratios.keys() {
        areas.entry(name.clone()).or_default();
    }
    let mut sum = Area::default();
    for (name, area) in areas {
        let ratio = ratios.get(&name).map_or("-".into(), |ratio| decimal(*ratio));
        text.push_str(&row(&name, &area, &ratio));
        sum.add(area);
    }
    text.push_str(&row("all", &sum, ""));
    text
}

fn row(name: &str, area: &Area, ratio: &str) -> String {
    let rate = 10_000.0 * area.words.len() as f64 / area.size.words.max(1) as f64;
    format!(
        "{name:<14} {:>9} {:>9} {rate:>12.1} {:>10} {:>9} {:>10} {ratio:>10}\n",
        area.size.sentences,
        area.openings.len(),
        area.columns.len(),
        area.functions,
        area.long_functions.len(),
    )
}

fn per_pure_unit(sources: &SourceTree) -> String {
    let mut text =
        format!("{:<14} {:>9} {:>10} {:>12}\n", "pure code", "functions", "assertions", "per function");
    for (name, count) in assertions::per_unit(sources) {
        let AssertionCount { functions, assertions } = count;
        let share = decimal(count.per_hundred());
        text.push_str(&format!("{name:<14} {functions:>9} {assertions:>10} {share:>12}\n"));
    }
    text
}

fn invariant_checks(sources: &SourceTree) -> String {
    let found = invariants::places(sources);
    [
        listed("definitions of check_invariants", &found.definitions),
        listed("calls of check_invariants in tests and fuzz targets", &found.calls),
        listed("calls of check_invariants in product code", &found.product_calls),
    ]
    .concat()
}

/// A figure with the places that it counts.
fn listed(name: &str, found: &[String]) -> String {
    let places: String = found.iter().map(|place| format!("  {place}\n")).collect();
    format!("{name}: {}\n{places}", found.len())
}

/// `per_hundred` as a number for one.
fn decimal(per_hundred: usize) -> String {
    format!("{:.2}", per_hundred as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(files: &[(&str, &str)]) -> Vec<String> {
        let text = text(&SourceTree::of(files));
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn each_area_has_its_row_and_the_sum_the_last() {
        let lines = lines(&[
            ("README.md", "A sentence.\n"),
            ("scheduler/src/lib.rs", "//! Doc.\nfn f() { assert!(true) }\nfn g() {}\n"),
            ("scheduler/tests/t.rs", "//! Doc.\nfn t() {}\n"),
        ]);
        assert_eq!(lines[1], "pages 1 0 0.0 0 0 0 -");
        assert_eq!(lines[2], "scheduler 2 0 0.0 0 3 0 0.50");
        assert_eq!(lines[3], "all 3 0 0.0 0 3 0");
        assert!(lines.contains(&"scheduler 2 1 0.50".to_string()), "{lines:?}");
    }

    #[test]
    fn a_unit_with_a_ratio_of_its_own_has_a_row() {
        let files = [("consensus/src/log.rs", "fn f() {}\n"), ("consensus/src/log/tests.rs", "t\n")];
        let found: Vec<String> = lines(&files).into_iter().filter(|line| line.ends_with("1.00")).collect();
        assert_eq!(found, ["consensus 0 0 0.0 0 1 0 1.00", "consensus-core 0 0 0.0 0 0 0 1.00"]);
    }

    #[test]
    fn a_counted_place_is_listed_below_its_figure() {
        let queue =
            "fn check_invariants() {}\n#[cfg(test)]\nmod tests {\n    fn t() { check_invariants() }\n}\n";
        let lines = lines(&[("overlay/src/queue.rs", queue)]);
        let at = lines.iter().position(|line| line == "definitions of check_invariants: 1");
        assert_eq!(at.map(|at| lines[at + 1].as_str()), Some("overlay/src/queue.rs:1"));
        assert!(lines.contains(&"calls of check_invariants in product code: 0".to_string()), "{lines:?}");
        assert!(lines.contains(&"uncalled: 0".to_string()), "{lines:?}");
    }
}

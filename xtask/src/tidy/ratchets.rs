//! Figures that may only get better.
//!
//! - Per crate, falling: sentences that open without a noun, words that have a better one, lines that are too
//!   long.
//! - Per crate and for the core of consensus, rising: lines of test for a hundred lines of code.
//! - Per pure unit, rising: assertions for a hundred functions.
//! - For the workspace, falling: type names in use twice, files in circles of imports, public functions
//!   without a caller.
//!
//! `ratchets.txt` holds the limits, `FIGURE LIMIT` on each line; `cargo xtask tidy --tighten` moves them to
//! the current values, never back.

use super::areas::areas;
use super::sources::SourceTree;
use super::{assertions, circles, names, ratio, uncalled};
use std::collections::BTreeMap;

const RATCHETS: &str = "xtask/src/tidy/ratchets.txt";
/// Findings listed for a figure beyond its limit.
const SHOWN_MAX: usize = 40;

/// A measured figure.
#[derive(Debug)]
pub(super) struct Figure {
    /// Its name in the file, such as `words control`.
    pub(super) name: String,
    value: usize,
    /// The places that were counted.
    pub(super) found: Vec<String>,
    /// Whether more is better.
    rises: bool,
}

impl Figure {
    fn counting(name: impl Into<String>, found: Vec<String>) -> Self {
        Self { name: name.into(), value: found.len(), found, rises: false }
    }

    fn rising(name: String, value: usize) -> Self {
        Self { name, value, found: Vec::new(), rises: true }
    }

    /// Whether the value is worse than `limit`.
    fn exceeds(&self, limit: usize) -> bool {
        if self.rises { self.value < limit } else { self.value > limit }
    }

    /// The better one of the value and an earlier limit.
    fn tightened(&self, limit: Option<usize>) -> usize {
        let limit = limit.unwrap_or(self.value);
        if self.rises { limit.max(self.value) } else { limit.min(self.value) }
    }
}

/// Returns the findings of each figure that is worse than its limit.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let limits = limits(sources);
    let mut findings = Vec::new();
    for figure in figures(sources) {
        let limit = limits.get(&figure.name).copied().unwrap_or(0);
        if figure.exceeds(limit) {
            let bound = if figure.rises { "at least" } else { "at most" };
            findings.push(format!("{}: {}; {bound} {limit}", figure.name, figure.value));
            findings.extend(figure.found.iter().take(SHOWN_MAX).map(|finding| format!("  {finding}")));
        }
    }
    findings
}

/// Moves every limit to the current value where that is better.
pub(crate) fn tighten(sources: &SourceTree) -> Result<(), String> {
    let limits = limits(sources);
    let line = |figure: &Figure| {
        let limit = figure.tightened(limits.get(&figure.name).copied());
        format!("{} {limit}\n", figure.name)
    };
    let text: String = figures(sources).iter().map(line).collect();
    let file = crate::process::root().join(RATCHETS);
    std::fs::write(&file, text).map_err(|error| format!("write {}: {error}", file.display()))
}

fn limits(sources: &SourceTree) -> BTreeMap<String, usize> {
    let text = sources.get(RATCHETS).map_or("", |file| file.text.as_str());
    let pairs = text.lines().filter_map(|line| line.rsplit_once(' '));
    pairs.filter_map(|(name, limit)| Some((name.to_string(), limit.parse().ok()?))).collect()
}

fn figures(sources: &SourceTree) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (name, area) in areas(sources) {
        figures.push(Figure::counting(format!("openings {name}"), area.openings));
        figures.push(Figure::counting(format!("words {name}"), area.words));
        figures.push(Figure::counting(format!("columns {name}"), area.columns));
    }
    let ratios = ratio::per_hundred(sources).into_iter();
    figures.extend(ratios.map(|(name, value)| Figure::rising(format!("tests {name}"), value)));
    let counts = assertions::per_unit(sources).into_iter();
    figures.extend(
        counts.map(|(name, count)| Figure::rising(format!("assertions {name}"), count.per_hundred())),
    );
    figures.extend(of_the_workspace(sources));
    figures.sort_by(|a, b| a.name.cmp(&b.name));
    figures
}

/// Returns the figures without a crate.
pub(super) fn of_the_workspace(sources: &SourceTree) -> [Figure; 3] {
    let twice = names::in_use_twice(sources).into_iter();
    let twice = twice.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    let large = circles::circles(sources).into_iter().filter(|circle| circle.len() > circles::FILES_MAX);
    [
        Figure::counting("names", twice),
        Figure::counting("circles", large.flatten().collect()),
        Figure::counting("uncalled", uncalled::functions(sources)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(ratchets: &str) -> Vec<String> {
        check(&SourceTree::of(&[
            ("a/src/lib.rs", &["//", "! Who asks.\nenum Same {}\n"].concat()),
            ("a/tests/t.rs", "//! Doc.\n#[test]\n"),
            ("b/src/lib.rs", "//! Doc.\nstruct Same;\n"),
            (RATCHETS, ratchets),
        ]))
    }

    #[test]
    fn a_figure_may_stay_and_fall_and_not_rise() {
        assert_eq!(findings("openings a 1\nnames 1\n"), [""; 0]);
        assert_eq!(findings("openings a 2\nnames 1\n"), [""; 0]);
        let found = findings("openings a 0\nnames 1\n");
        assert_eq!(found[0], "openings a: 1; at most 0");
        assert!(found[1].starts_with("  a/src/lib.rs:1: "), "{found:?}");
        assert_eq!(findings("openings a 1\n")[0], "names: 1; at most 0");
    }

    #[test]
    fn lines_of_test_may_only_rise() {
        assert_eq!(findings("openings a 1\nnames 1\ntests a 100\n"), [""; 0]);
        assert_eq!(findings("openings a 1\nnames 1\ntests a 101\n"), ["tests a: 100; at least 101"]);
    }

    #[test]
    fn assertions_of_pure_code_may_only_rise() {
        let code = ("scheduler/src/lib.rs", "//! Doc.\nfn f() { assert!(true) }\nfn g() {}\n");
        let findings = |ratchets: &str| check(&SourceTree::of(&[code, (RATCHETS, ratchets)]));
        assert_eq!(findings("assertions scheduler 50\n"), [""; 0]);
        assert_eq!(findings("assertions scheduler 51\n"), ["assertions scheduler: 50; at least 51"]);
    }

    #[test]
    fn a_limit_is_moved_to_the_better_side_alone() {
        let falls = Figure::counting("names", vec![String::new(); 3]);
        assert_eq!((falls.tightened(None), falls.tightened(Some(5)), falls.tightened(Some(2))), (3, 3, 2));
        let rises = Figure::rising("tests a".into(), 80);
        assert_eq!((rises.tightened(Some(70)), rises.tightened(Some(90))), (80, 90));
    }
}

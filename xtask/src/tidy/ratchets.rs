//! Figures that may only get better. Per crate: sentences that open without a noun, words that have a better one and
//! lines that are too long, which may only fall, and lines of test for a hundred lines of code, which may only rise.
//! For the workspace: type names in use twice, files in circles of imports, and public functions without a caller.
//!
//! `ratchets.txt` holds the limits, `FIGURE LIMIT` on each line; `cargo xtask tidy --tighten` moves them to the current
//! values, never back.

use super::prose::{self, Size, StyleFinding};
use super::sources::{SourceTree, TextFile};
use super::{circles, names, ratio, uncalled, widths};
use std::collections::BTreeMap;

const RATCHETS: &str = "xtask/src/tidy/ratchets.txt";
/// Findings listed for a figure beyond its limit.
const SHOWN_MAX: usize = 40;

/// A measured figure.
#[derive(Debug)]
struct Figure {
    /// Its name in the file, such as `words control`.
    name: String,
    value: usize,
    /// The places that were counted.
    found: Vec<String>,
    /// Whether more is better.
    rises: bool,
}

impl Figure {
    fn counting(name: impl Into<String>, found: Vec<String>) -> Self {
        Self { name: name.into(), value: found.len(), found, rises: false }
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

/// Prints the figures.
pub(crate) fn report(sources: &SourceTree) {
    println!(
        "{:<14} {:>9} {:>18} {:>22} {:>15} {:>12}",
        "", "sentences", "without a noun", "banned per 10,000", "> 110 columns", "tests/code"
    );
    let mut sum = Area::default();
    let ratios = ratio::per_hundred(sources);
    for (name, area) in areas(sources) {
        let ratio = ratios.get(&name).map_or("-".into(), |ratio| format!("{:.2}", *ratio as f64 / 100.0));
        println!("{}", area.text(&name, &ratio));
        sum.add(area);
    }
    println!("{}", sum.text("all", ""));
    for figure in of_the_workspace(sources) {
        println!("{}: {}", figure.name, figure.value);
        figure.found.iter().for_each(|finding| println!("  {finding}"));
    }
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
    for (name, value) in ratio::per_hundred(sources) {
        figures.push(Figure { name: format!("tests {name}"), value, found: Vec::new(), rises: true });
    }
    figures.extend(of_the_workspace(sources));
    figures.sort_by(|a, b| a.name.cmp(&b.name));
    figures
}

fn of_the_workspace(sources: &SourceTree) -> [Figure; 3] {
    let twice = names::in_use_twice(sources).into_iter();
    let twice = twice.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    let large = circles::circles(sources).into_iter().filter(|circle| circle.len() > circles::FILES_MAX);
    [
        Figure::counting("names", twice),
        Figure::counting("circles", large.flatten().collect()),
        Figure::counting("uncalled", uncalled::functions(sources)),
    ]
}

/// The findings of a crate's folder, of `docs`, or of the pages at the root.
#[derive(Default)]
struct Area {
    size: Size,
    openings: Vec<String>,
    words: Vec<String>,
    columns: Vec<String>,
}

impl Area {
    fn read(&mut self, file: &TextFile) {
        let describe = |finding: StyleFinding| format!("{}:{}: {}", file.path, finding.line, finding.advice);
        let size = prose::size(file);
        self.size.sentences += size.sentences;
        self.size.words += size.words;
        self.openings.extend(prose::openings(file).into_iter().map(describe));
        self.words.extend(prose::banned(file).into_iter().map(describe));
        self.columns.extend(widths::wide(file).into_iter().map(describe));
    }

    fn add(&mut self, other: Self) {
        self.size.sentences += other.size.sentences;
        self.size.words += other.size.words;
        self.openings.extend(other.openings);
        self.words.extend(other.words);
        self.columns.extend(other.columns);
    }

    fn text(&self, name: &str, ratio: &str) -> String {
        let Size { sentences, words } = self.size;
        let (openings, banned) = (self.openings.len(), self.words.len());
        let share = 100.0 * openings as f64 / sentences.max(1) as f64;
        let rate = 10_000.0 * banned as f64 / words.max(1) as f64;
        let columns = self.columns.len();
        format!(
            "{name:<14} {sentences:>9} {openings:>8} = {share:>5.2} % {banned:>13} = {rate:>6.1} {columns:>15} \
             {ratio:>12}"
        )
    }
}

fn areas(sources: &SourceTree) -> BTreeMap<String, Area> {
    let mut areas: BTreeMap<String, Area> = BTreeMap::new();
    for file in sources.files.iter().filter(|file| file.path.ends_with(".rs") || file.path.ends_with(".md")) {
        let name = file.path.split_once('/').map_or("pages", |(folder, _)| folder);
        areas.entry(name.to_string()).or_default().read(file);
    }
    areas
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
    fn a_limit_is_moved_to_the_better_side_alone() {
        let falls = Figure::counting("names", vec![String::new(); 3]);
        assert_eq!((falls.tightened(None), falls.tightened(Some(5)), falls.tightened(Some(2))), (3, 3, 2));
        let rises = Figure { name: "tests a".into(), value: 80, found: Vec::new(), rises: true };
        assert_eq!((rises.tightened(Some(70)), rises.tightened(Some(90))), (80, 90));
    }
}

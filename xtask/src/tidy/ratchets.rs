//! Figures per crate that may only fall: sentences that open without a noun, words that have a better one, lines that
//! are too long; for the whole workspace, type names in use twice and files in circles. `ratchets.txt` holds what is allowed;
//! `cargo xtask tidy --tighten` lowers it to what is there.

use super::prose::{self, Finding, Size};
use super::sources::{File, Sources};
use super::{circles, names, widths};
use std::collections::BTreeMap;

/// The file of what is allowed: `area openings words columns`, one line an area, `names COUNT` and
/// `circles COUNT`.
const RATCHETS: &str = "xtask/src/tidy/ratchets.txt";
/// Findings shown of a measure that rose: the newest one is among them.
const SHOWN_MAX: usize = 40;
/// The figures of an area, in the order of the file.
const MEASURES: [&str; 3] = ["sentences without a noun", "banned words", "lines over 110 columns"];

/// An area's findings.
#[derive(Default)]
struct Area {
    size: Size,
    found: [Vec<String>; 3],
}

/// The allowed figures.
#[derive(Debug, Default, PartialEq, Eq)]
struct Allowed {
    areas: BTreeMap<String, [usize; 3]>,
    names: usize,
    /// Files in circles of more than three files.
    circles: usize,
}

impl Allowed {
    fn read(text: &str) -> Self {
        let mut allowed = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.first() {
                Some(&"names") => allowed.names = number(1),
                Some(&"circles") => allowed.circles = number(1),
                Some(area) => drop(allowed.areas.insert((*area).into(), [number(1), number(2), number(3)])),
                None => {}
            }
        }
        allowed
    }

    fn text(&self) -> String {
        let line = |(area, [a, b, c]): (&String, &[usize; 3])| format!("{area} {a} {b} {c}\n");
        let areas: String = self.areas.iter().map(line).collect();
        format!("{areas}names {}\ncircles {}\n", self.names, self.circles)
    }
}

/// Returns the findings of each measure that is higher than allowed.
pub(crate) fn check(sources: &Sources) -> Vec<String> {
    let allowed = Allowed::read(sources.get(RATCHETS).map_or("", |file| file.text.as_str()));
    let mut findings = Vec::new();
    for (name, area) in areas(sources) {
        let limits = allowed.areas.get(&name).copied().unwrap_or_default();
        for ((found, limit), measure) in area.found.iter().zip(limits).zip(MEASURES) {
            if found.len() > limit {
                findings.push(format!("{name}: {} {measure}; at most {limit}", found.len()));
                findings.extend(found.iter().take(SHOWN_MAX).map(|finding| format!("  {finding}")));
            }
        }
    }
    let twice = names::in_use_twice(sources);
    if twice.len() > allowed.names {
        findings.push(format!("{} type names in use twice; at most {}", twice.len(), allowed.names));
        findings.extend(twice.iter().map(|(name, places)| format!("  {name}: {}", places.join(", "))));
    }
    let circles = large_circles(sources);
    let files = circles.iter().map(Vec::len).sum::<usize>();
    if files > allowed.circles {
        findings.push(format!("{files} files in circles of imports; at most {}", allowed.circles));
        findings.extend(circles.iter().map(|circle| format!("  {}", circle.join(", "))));
    }
    findings
}

fn large_circles(sources: &Sources) -> Vec<Vec<String>> {
    let circles = circles::circles(sources);
    circles.into_iter().filter(|circle| circle.len() > circles::FILES_MAX).collect()
}

/// Prints the figures of every area.
pub(crate) fn report(sources: &Sources) {
    println!(
        "{:<14} {:>9} {:>18} {:>22} {:>12}",
        "", "sentences", "without a noun", "banned per 10,000", "> 110 columns"
    );
    let mut sum = (Size::default(), [0; 3]);
    for (name, area) in areas(sources) {
        let counts = area.found.each_ref().map(Vec::len);
        print_line(&name, area.size, counts);
        sum.0.sentences += area.size.sentences;
        sum.0.words += area.size.words;
        (0..3).for_each(|at| sum.1[at] += counts[at]);
    }
    print_line("all", sum.0, sum.1);
    println!("type names in use twice: {}", names::in_use_twice(sources).len());
    for circle in circles::circles(sources) {
        println!("circle of {} files: {}", circle.len(), circle.join(", "));
    }
}

fn print_line(name: &str, size: Size, [openings, words, columns]: [usize; 3]) {
    let share = 100.0 * openings as f64 / size.sentences.max(1) as f64;
    let rate = 10_000.0 * words as f64 / size.words.max(1) as f64;
    println!(
        "{name:<14} {:>9} {openings:>8} = {share:>5.2} % {words:>13} = {rate:>6.1} {columns:>13}",
        size.sentences
    );
}

/// Lowers what is allowed to what is there; it never rises.
pub(crate) fn tighten(sources: &Sources) -> Result<(), String> {
    let before = Allowed::read(sources.get(RATCHETS).map_or("", |file| file.text.as_str()));
    let is_new = before == Allowed::default();
    let lower = |now: usize, allowed: usize| if is_new { now } else { now.min(allowed) };
    let files = large_circles(sources).iter().map(Vec::len).sum();
    let mut after = Allowed {
        areas: BTreeMap::new(),
        names: lower(names::in_use_twice(sources).len(), before.names),
        circles: lower(files, before.circles),
    };
    for (name, area) in areas(sources) {
        let old = before.areas.get(&name).copied().unwrap_or_default();
        let mut now = area.found.each_ref().map(Vec::len);
        (0..3).for_each(|at| now[at] = lower(now[at], old[at]));
        after.areas.insert(name, now);
    }
    let file = crate::process::root().join(RATCHETS);
    std::fs::write(&file, after.text()).map_err(|error| format!("write {}: {error}", file.display()))
}

fn areas(sources: &Sources) -> BTreeMap<String, Area> {
    let mut areas: BTreeMap<String, Area> = BTreeMap::new();
    for file in sources.files.iter().filter(|file| file.path.ends_with(".rs") || file.path.ends_with(".md")) {
        let area = areas.entry(area_of(&file.path)).or_default();
        let size = prose::size(file);
        area.size.sentences += size.sentences;
        area.size.words += size.words;
        for (list, found) in
            area.found.iter_mut().zip([prose::openings(file), prose::banned(file), widths::wide(file)])
        {
            list.extend(found.iter().map(|finding| describe(file, finding)));
        }
    }
    areas
}

fn describe(file: &File, finding: &Finding) -> String {
    format!("{}:{}: {}", file.path, finding.line, finding.advice)
}

/// A crate's folder, `docs`, or `pages` for what stands at the root.
fn area_of(path: &str) -> String {
    path.split_once('/').map_or("pages", |(folder, _)| folder).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//! Who asks.\nenum Same {}\n";

    fn findings(ratchets: &str) -> Vec<String> {
        check(&Sources::of(&[
            ("a/src/lib.rs", TEXT),
            ("b/src/lib.rs", "struct Same;\n"),
            (RATCHETS, ratchets),
        ]))
    }

    #[test]
    fn a_figure_may_stay_and_fall_and_not_rise() {
        assert_eq!(findings("a 1 0 0\nnames 1\n"), [""; 0]);
        assert_eq!(findings("a 2 0 0\nnames 1\n"), [""; 0]);
        let found = findings("a 0 0 0\nnames 1\n");
        assert_eq!(found[0], "a: 1 sentences without a noun; at most 0");
        assert!(found[1].starts_with("  a/src/lib.rs:1: "), "{found:?}");
        assert_eq!(findings("a 1 0 0\n")[0], "1 type names in use twice; at most 0");
    }

    #[test]
    fn what_is_allowed_is_read_as_it_was_written() {
        let text = "a 1 2 3\npages 0 0 4\nnames 5\ncircles 6\n";
        assert_eq!(Allowed::read(text).text(), text);
    }
}

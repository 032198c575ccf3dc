//! Check of the walks in ARCHITECTURE.md: each step names a file, and no step climbs the arrows between the
//! crates.
//!
//! A walk is a numbered list under the heading `Walks`. A step that begins with a bold place is on another
//! process or machine: a new descent begins there.

use super::arrows::{self, Arrows};
use super::named_files::named_in;
use super::sources::SourceTree;
use std::collections::BTreeSet;

const PAGE: &str = "ARCHITECTURE.md";

/// One step of a walk.
#[derive(Debug, Default, PartialEq, Eq)]
struct WalkStep {
    line: usize,
    text: String,
}

/// Returns each step without a file, and each that climbs.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let Some(page) = sources.get(PAGE) else { return Vec::new() };
    let arrows = arrows::built(sources);
    let crates: BTreeSet<&str> = arrows.keys().map(String::as_str).collect();
    let mut findings = Vec::new();
    for walk in walks(&page.text) {
        let mut above: Option<&str> = None;
        for step in &walk {
            let named = named_in(&step.text, &crates);
            let Some(folder) = named.first().and_then(|named| named.path.split('/').next()) else {
                findings.push(format!("{PAGE}:{}: the step names no file", step.line));
                continue;
            };
            let begins = step.text.starts_with("**");
            if let Some(above) = above.filter(|above| !begins && !reaches(&arrows, above, folder)) {
                let line = step.line;
                findings.push(format!("{PAGE}:{line}: the step climbs from `{above}` to `{folder}`"));
            }
            above = Some(folder);
        }
    }
    findings
}

/// The numbered lists under the heading, with the number of each step cut off.
fn walks(page: &str) -> Vec<Vec<WalkStep>> {
    let lines = page.lines().enumerate().skip_while(|(_, line)| *line != "## Walks").skip(1);
    let (mut walks, mut walk): (Vec<Vec<WalkStep>>, Vec<WalkStep>) = (Vec::new(), Vec::new());
    for (at, line) in lines.take_while(|(_, line)| !line.starts_with("## ")) {
        if let Some(text) = numbered(line) {
            walk.push(WalkStep { line: at + 1, text: text.to_string() });
        } else if let Some(step) = walk.last_mut().filter(|_| line.starts_with("   ")) {
            step.text.push(' ');
            step.text.push_str(line.trim());
        } else if line.starts_with('#') {
            walks.push(std::mem::take(&mut walk));
        }
    }
    walks.push(walk);
    walks.into_iter().filter(|walk| !walk.is_empty()).collect()
}

fn numbered(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.strip_prefix(". ").filter(|_| rest.len() < line.len())
}

/// Whether arrows lead from a crate down to another one, or both are the same.
fn reaches(arrows: &Arrows, from: &str, to: &str) -> bool {
    from == to || arrows.get(from).is_some_and(|below| below.iter().any(|next| reaches(arrows, next, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(walk: &str) -> Vec<String> {
        let page = format!("# Map\n\n1. no walk\n\n## Walks\n\n{walk}\n## Glossary\n\n1. no walk\n");
        check(&SourceTree::of(&[
            (PAGE, &page),
            ("top/Cargo.toml", "[dependencies]\nmiddle.workspace = true\n"),
            ("middle/Cargo.toml", "[dependencies]\nbase.workspace = true\n"),
            ("base/Cargo.toml", ""),
        ]))
    }

    #[test]
    fn a_descent_passes_and_may_skip_a_crate() {
        let walk = "1. Calls: `top/src/a.rs`.\n2. Calls on,\n   further down: `top/src/b.rs`.\n\
                    3. Ends: `base/src/c.rs`.\n";
        assert_eq!(found(walk), [""; 0]);
    }

    #[test]
    fn a_climb_is_found_unless_a_place_begins_a_descent() {
        let walk = |place: &str| format!("1. `base/src/a.rs`\n2. {place}Calls `top/src/b.rs`.\n");
        assert_eq!(found(&walk("")), ["ARCHITECTURE.md:8: the step climbs from `base` to `top`"]);
        assert_eq!(found(&walk("**Node.** ")), [""; 0]);
    }

    #[test]
    fn each_heading_begins_a_walk() {
        let walk = "### One\n\n1. `base/src/a.rs`\n\n### Two\n\nText.\n\n1. `top/src/b.rs`\n";
        assert_eq!(found(walk), [""; 0]);
    }

    #[test]
    fn a_step_without_a_file_is_found() {
        assert_eq!(found("1. Calls `top`.\n"), ["ARCHITECTURE.md:7: the step names no file"]);
    }
}

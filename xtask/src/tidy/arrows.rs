//! Check of the dependencies between crates: the table under the drawing in ARCHITECTURE.md and the manifests
//! agree, in both directions. The two circuits are separate because no dependency joins them.

use super::dependencies::product_dependencies;
use super::sources::SourceTree;
use super::units::PURE_CRATES;
use std::collections::{BTreeMap, BTreeSet};

/// The crates, each with those that it stands on.
pub(super) type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Compares the drawing with the manifests.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let Some(page) = sources.get("ARCHITECTURE.md") else {
        return vec!["ARCHITECTURE.md is missing".into()];
    };
    let drawn = drawn(&page.text);
    let built = built(sources);
    let mut findings = Vec::new();
    for name in drawn.keys().chain(built.keys()).collect::<BTreeSet<_>>() {
        match (drawn.get(name), built.get(name)) {
            (Some(drawn), Some(built)) if drawn == built => {}
            (drawn, built) => findings.push(format!(
                "arrows of `{name}`: ARCHITECTURE.md draws {drawn:?}, its manifest has {built:?}"
            )),
        }
    }
    findings.extend(circuits(&built));
    findings
}

/// Reads the `| crate | stands on |` rows between the two markers.
fn drawn(page: &str) -> Arrows {
    page.lines()
        .skip_while(|line| !line.contains("<!-- arrows -->"))
        .take_while(|line| !line.contains("<!-- end of arrows -->"))
        .filter_map(|line| {
            let mut cells = line.trim().strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().trim_matches('`').to_string();
            let list = cells.next()?;
            let names = list.split(',').map(|n| n.trim().trim_matches('`').to_string());
            Some((name, names.filter(|n| !n.is_empty()).collect()))
        })
        .collect()
}

/// Reads the product dependencies among our own crates from the manifests.
pub(super) fn built(sources: &SourceTree) -> Arrows {
    let manifests: BTreeMap<String, &str> = sources
        .files
        .iter()
        .filter_map(|file| {
            let folder = file.path.strip_suffix("/Cargo.toml")?;
            (!folder.contains('/')).then(|| (folder.to_string(), file.text.as_str()))
        })
        .collect();
    let product = |name: &String| !["benchmarks", "demo", "fuzz", "xtask"].contains(&name.as_str());
    manifests
        .iter()
        .filter(|(name, _)| product(name))
        .map(|(name, text)| {
            let names = product_dependencies(text).into_iter().filter(|n| manifests.contains_key(n));
            (name.clone(), names.collect())
        })
        .collect()
}

/// Checks the permitted dependencies of the serving circuit and of pure crates, regardless of the drawing.
fn circuits(built: &Arrows) -> Vec<String> {
    let mut findings = Vec::new();
    let allowed = BTreeSet::from(["kernels", "overlay", "protocol"].map(str::to_string));
    if let Some(names) = built.get("serving").filter(|names| **names != allowed) {
        findings.push(format!(
            "`serving` may stand on kernels, overlay and protocol alone, but stands on {names:?}"
        ));
    }
    for (name, names) in built.iter().filter(|(name, _)| PURE_CRATES.contains(&name.as_str())) {
        if let Some(impure) = names.iter().find(|name| !PURE_CRATES.contains(&name.as_str())) {
            findings.push(format!("`{name}` is pure and may not stand on `{impure}`"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "<!-- arrows -->\n| crate | stands on |\n|---|---|\n| `a` | `b`, `c` |\n| `b` | |\n\
                        | `c` | |\n<!-- end of arrows -->\n";

    fn check_with(a: &str) -> usize {
        check(&SourceTree::of(&[
            ("ARCHITECTURE.md", PAGE),
            ("a/Cargo.toml", a),
            ("b/Cargo.toml", "[dependencies]\nserde.workspace = true\n"),
            ("c/Cargo.toml", "[dependencies]\n\n[dev-dependencies]\na.workspace = true\n"),
        ]))
        .len()
    }

    #[test]
    fn agreeing_arrows_pass() {
        assert_eq!(check_with("[dependencies]\nb.workspace = true\nc = { workspace = true }\n"), 0);
    }

    #[test]
    fn a_missing_and_an_undrawn_arrow_are_found() {
        assert_eq!(check_with("[dependencies]\nb.workspace = true\n"), 1);
        let page = "<!-- arrows -->\n| `a` | |\n| `b` | |\n<!-- end of arrows -->";
        let found = check(&SourceTree::of(&[
            ("ARCHITECTURE.md", page),
            ("a/Cargo.toml", "[dependencies]\nb.workspace = true\n"),
            ("b/Cargo.toml", ""),
        ]));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_pure_crate_stands_on_pure_crates_alone() {
        let page = "<!-- arrows -->\n| `scheduler` | `overlay` |\n| `overlay` | |\n<!-- end of arrows -->";
        let found = check(&SourceTree::of(&[
            ("ARCHITECTURE.md", page),
            ("scheduler/Cargo.toml", "[target.'cfg(unix)'.dependencies]\noverlay.workspace = true\n"),
            ("overlay/Cargo.toml", ""),
        ]));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn the_serving_circuit_may_not_reach_control() {
        let page = "<!-- arrows -->\n| `serving` | `control` |\n| `control` | |\n<!-- end of arrows -->";
        let found = check(&SourceTree::of(&[
            ("ARCHITECTURE.md", page),
            ("serving/Cargo.toml", "[dependencies]\ncontrol.workspace = true\n"),
            ("control/Cargo.toml", ""),
        ]));
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

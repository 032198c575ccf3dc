//! One domain noun names one type. Conventional names may repeat, since they are used through their crate or
//! module.

use super::sources::SourceTree;
use std::collections::BTreeMap;

/// Names that mean the same everywhere.
const CONVENTIONAL: [&str; 16] = [
    "Arguments",
    "Args",
    "Builder",
    "Cli",
    "Config",
    "Context",
    "Error",
    "Event",
    "Inner",
    "Item",
    "Iter",
    "Limits",
    "Metrics",
    "Options",
    "Output",
    "Result",
];

/// Returns each other type name that product code defines more than once, with the places.
pub(super) fn in_use_twice(sources: &SourceTree) -> Vec<(String, Vec<String>)> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources.rust().filter(|file| !file.is_test() && file.path.contains("/src/")) {
        for (number, line) in file.product_lines() {
            if let Some(name) = defined(line) {
                places.entry(name.into()).or_default().push(format!("{}:{number}", file.path));
            }
        }
    }
    places.into_iter().filter(|(name, at)| at.len() > 1 && !CONVENTIONAL.contains(&name.as_str())).collect()
}

/// The type that a line at the outermost level defines.
fn defined(line: &str) -> Option<&str> {
    let line =
        ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|p| line.strip_prefix(p)).unwrap_or(line);
    let rest = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| line.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_two_types_is_found_with_both_places() {
        let sources = SourceTree::of(&[
            ("a/src/lib.rs", "pub struct Worker;\nenum Error {}\n    struct Inside;\n"),
            ("b/src/x.rs", "//! Doc.\npub(crate) trait Worker<T> {}\ntype Error = ();\n"),
            ("b/src/tests.rs", "struct Inside;\nstruct Worker;\n"),
        ]);
        let places = vec!["a/src/lib.rs:1".to_string(), "b/src/x.rs:2".to_string()];
        assert_eq!(in_use_twice(&sources), [("Worker".to_string(), places)]);
    }
}

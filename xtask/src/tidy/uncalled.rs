//! Public functions that no product code calls: they serve tests alone, or nothing.
//!
//! A name that occurs once, in its own definition, counts as a function without a caller. A name that two
//! functions share is found only when neither has one.

use super::sources::{SourceTree, TextFile};
use std::collections::{BTreeMap, BTreeSet};

/// Returns every public function of the product without a caller, with its place.
pub(super) fn functions(sources: &SourceTree) -> Vec<String> {
    let (mut defined, mut used) = (BTreeMap::new(), BTreeSet::new());
    for file in sources.rust().filter(|file| is_product(file)) {
        for (number, line) in file.product_lines().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let name = public_function(line);
            if let Some(name) = name.filter(|_| !file.serves_tests()) {
                defined.entry(name).or_insert_with(Vec::new).push(format!("{}:{number}", file.path));
            }
            let defining = function(line);
            used.extend(words(line).filter(|word| Some(*word) != defining));
        }
    }
    let uncalled = defined.into_iter().filter(|(name, _)| !used.contains(name));
    uncalled
        .flat_map(|(name, places)| places.into_iter().map(move |place| format!("{place}: `{name}`")))
        .collect()
}

/// Product code and its callers: sources, examples, benchmarks and fuzz targets, but no test.
fn is_product(file: &TextFile) -> bool {
    let is_test = file.path.contains("/tests/") || file.path.ends_with("tests.rs");
    !is_test
        && (file.path.contains("/src/") || file.path.contains("/examples/") || file.path.starts_with("fuzz/"))
}

/// The name of the function that a line defines.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_definition =
        before.trim().is_empty() || before.trim_start().starts_with("pub") || before.contains("async");
    words(after).next().filter(|_| is_definition || before.contains("const") || before.contains("unsafe"))
}

fn public_function(line: &str) -> Option<&str> {
    function(line).filter(|_| line.trim_start().starts_with("pub"))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        functions(&SourceTree::of(files))
    }

    #[test]
    fn a_function_that_tests_alone_call_is_found() {
        let library = "//! Doc.\npub fn used() {}\npub(crate) const fn lonely() {}\nfn private() {}\n";
        let test = ("a/tests/t.rs", "lonely();\n");
        assert_eq!(
            found(&[("a/src/lib.rs", library), ("b/src/main.rs", "a::used();\n"), test]),
            ["a/src/lib.rs:3: `lonely`"]
        );
        assert_eq!(found(&[("a/src/lib.rs", library), ("a/examples/e.rs", "used(); lonely()\n")]), [""; 0]);
    }

    #[test]
    fn a_comment_and_a_test_module_are_no_callers() {
        let library =
            "pub fn lonely() {}\n// lonely()\n#[cfg(test)]\nmod tests {\n    fn t() { lonely() }\n}\n";
        assert_eq!(found(&[("a/src/lib.rs", library)]).len(), 1);
        assert!(found(&[("a/src/testing.rs", library)]).is_empty());
    }
}

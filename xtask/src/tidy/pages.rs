//! Check that pages match the code: an error page per code and no page without one; every promise of
//! SPECIFICATION.md names a test that exists; dashboards name only metrics that exist.

use super::codes::codes;
use super::sources::SourceTree;
use std::collections::BTreeSet;

/// Compares the pages with the code.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let mut findings = error_pages(sources);
    findings.extend(promises(sources));
    findings.extend(metrics(sources));
    findings
}

fn error_pages(sources: &SourceTree) -> Vec<String> {
    let table = sources.get("protocol/src/error_code.rs").map_or("", |file| file.text.as_str());
    let codes: BTreeSet<String> = codes(table).into_iter().map(|(_, code)| code).collect();
    let pages: BTreeSet<String> = sources
        .files
        .iter()
        .filter_map(|file| file.path.strip_prefix("docs/errors/")?.strip_suffix(".md"))
        .filter(|name| *name != "README")
        .map(str::to_string)
        .collect();
    let missing = codes.difference(&pages).map(|code| format!("docs/errors/{code}.md is missing"));
    let orphans = pages.difference(&codes).map(|page| format!("docs/errors/{page}.md has no such code"));
    missing.chain(orphans).collect()
}

/// Checks promises: each is a list item that ends with `(test: file::function)`, several separated by commas,
/// and names existing tests.
fn promises(sources: &SourceTree) -> Vec<String> {
    let Some(page) = sources.get("SPECIFICATION.md") else {
        return vec!["SPECIFICATION.md is missing".into()];
    };
    let mut findings = Vec::new();
    let text = page.text.replace("\n  ", " ");
    for promise in text.lines().filter(|line| line.starts_with("- ")) {
        let named = promise.split_once("(test: ").map_or("", |(_, rest)| rest);
        let named: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            findings.push(format!("SPECIFICATION.md: names no test: {promise}"));
        }
        let missing = named.into_iter().filter(|named| !is_test(sources, named));
        findings.extend(missing.map(|named| format!("SPECIFICATION.md: no test `{named}`")));
    }
    findings
}

/// Whether `file::function` runs as a test: a step of `cargo xtask test`, a Python function, or one with a
/// test attribute in Rust.
fn is_test(sources: &SourceTree, named: &str) -> bool {
    let (path, function) = named.split_once("::").unwrap_or((named, ""));
    let Some(file) = sources.get(path) else { return false };
    if let Some(step) = path.strip_prefix("xtask/src/").and_then(|path| path.strip_suffix(".rs")) {
        let steps = sources.get("xtask/src/test.rs").map_or("", |file| file.text.as_str());
        return steps.contains(&format!("({step}::{function})"));
    }
    if path.ends_with(".py") {
        return file.text.contains(&format!("def {function}("));
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let Some(at) = lines.iter().position(|line| line.contains(&format!("fn {function}("))) else {
        return false;
    };
    let marks = lines[..at].iter().rev().take_while(|line| line.trim().starts_with(['#', '/', ')']));
    marks.into_iter().any(|line| line.contains("#[test]") || line.contains("::test"))
}

/// Checks that every `quorate_...` name in a dashboard or rule appears in product code.
fn metrics(sources: &SourceTree) -> Vec<String> {
    let code: String = sources
        .rust()
        .filter(|file| !file.path.starts_with("xtask/"))
        .map(|file| file.text.as_str())
        .collect();
    let mut findings = BTreeSet::new();
    for file in sources.files.iter().filter(|file| file.path.starts_with("dashboards/")) {
        for name in names(&file.text) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(&name);
            if !code.contains(&format!("\"{base}\"")) && !code.contains(&format!("\"{name}\"")) {
                findings.insert(format!("{}: no metric `{name}`", file.path));
            }
        }
    }
    findings.into_iter().collect()
}

fn names(text: &str) -> Vec<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c: char| !part(c)).filter(|word| word.starts_with("quorate_")).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_needs_its_page_and_a_page_its_code() {
        let table = "codes! {\n    /// Doc.\n    A = \"a-code\";\n}\n";
        let found = error_pages(&SourceTree::of(&[
            ("protocol/src/error_code.rs", table),
            ("docs/errors/b-code.md", "text"),
        ]));
        assert_eq!(found, ["docs/errors/a-code.md is missing", "docs/errors/b-code.md has no such code"]);
    }

    #[test]
    fn a_promise_names_a_test_that_exists() {
        let page = "- Kept. (test: `a/src/lib.rs::kept`)\n- Broken. (test: `a/src/lib.rs::kept`,\n  \
                    `a/src/lib.rs::gone`)\n- No test. (test: `a/src/lib.rs::helper`)\n- Loose.\n";
        let code = "//! D\nfn helper() {}\n\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn kept() {}\n";
        let found = promises(&SourceTree::of(&[("SPECIFICATION.md", page), ("a/src/lib.rs", code)]));
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn a_dashboard_names_real_metrics_only() {
        let found = metrics(&SourceTree::of(&[
            ("dashboards/board.json", "rate(quorate_real_seconds_bucket[1m]) + quorate_gone_total"),
            ("a/src/metrics.rs", "register(\"quorate_real_seconds\")"),
        ]));
        assert_eq!(found, ["dashboards/board.json: no metric `quorate_gone_total`"]);
    }
}

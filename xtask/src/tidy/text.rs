//! Check of texts: module documentation, leftovers, banned names, paths of a developer's machine.

use super::sources::{SourceTree, TextFile};

/// Leftovers and names with their remedy. Each is split, so that this file does not match itself.
const BANNED: [(&str, &str, &str); 8] = [
    ("FIX", "ME", "mend it or file it"),
    ("to", "do!(", "finish it"),
    ("unimple", "mented!(", "finish it"),
    ("#[ig", "nore", "a test runs or does not exist"),
    ("#[should", "_panic", "assert on an error value"),
    ("/wo", "rk/", "no path of one machine"),
    ("/ro", "ot/", "no path of one machine"),
    ("std::thread::", "sleep(Duration::from_secs(", "wait for a level, with a deadline"),
];

/// Scans every text file for leftovers and every Rust file for its module documentation.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in &sources.files {
        findings.extend(leftovers(file));
    }
    for file in sources.rust() {
        if file.path.contains("/src/") && file.path.ends_with("/mod.rs") {
            findings.push(format!("{}: a module's file is `name.rs` beside `name/`", file.path));
        }
        if !file.text.starts_with("//!") && !file.text.starts_with("#!") {
            findings
                .push(format!("{}: does not begin with `//!`: what it is, and what it is not", file.path));
        }
    }
    findings
}

fn leftovers(file: &TextFile) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        for (head, tail, remedy) in BANNED {
            if line.contains(&format!("{head}{tail}")) {
                findings.push(format!("{}:{}: `{head}{tail}`: {remedy}", file.path, at + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_with_their_line() {
        let text = format!("//! Doc.\n// {}{}: later\n", "FIX", "ME");
        let found = check(&SourceTree::of(&[("a/src/lib.rs", &text)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a/src/lib.rs:2:"), "{found:?}");
    }

    #[test]
    fn a_module_file_stands_beside_its_folder() {
        assert_eq!(check(&SourceTree::of(&[("a/src/b/mod.rs", "//! Doc.\n")])).len(), 1);
        assert_eq!(check(&SourceTree::of(&[("a/src/b.rs", "//! Doc.\n")])).len(), 0);
    }

    #[test]
    fn a_file_without_module_documentation_is_found() {
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", "fn f() {}\n")])).len(), 1);
    }
}

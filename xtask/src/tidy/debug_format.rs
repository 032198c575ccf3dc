//! Check of formatting: product code prints values by `Display`, because `{:?}` shows people the names of
//! Rust's variants and fields. Assertions, panics, implementations of `Debug` and the texts of violated
//! invariants address developers and may use it.
//!
//! Clippy's `use_debug` sees neither `format!` nor the texts of error types, through which `{:?}` reaches
//! people.

use super::sources::{SourceTree, TextFile};
use std::collections::BTreeSet;

/// Beginnings of paths of programs that only developers run.
const FOR_DEVELOPERS: [&str; 4] = ["benchmarks/", "demo/", "fuzz/", "xtask/"];
/// Openings of items and expressions whose text is for developers.
const DEVELOPER_TEXTS: [&str; 5] =
    ["assert", "panic!(", "unreachable!(", "Debug for ", "fn check_invariants("];
/// Name of the modules that check invariants.
const INVARIANTS: &str = "/invariants";

/// Returns every `{:?}` in text for people.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let test_modules = test_modules(sources);
    let product = sources.rust().filter(|file| {
        let for_developers = FOR_DEVELOPERS.iter().any(|folder| file.path.starts_with(folder))
            || file.path.contains(INVARIANTS);
        let is_test = is_test(file) || test_modules.iter().any(|module| is_within(&file.path, module));
        !for_developers && !is_test && !file.path.ends_with("/build.rs")
    });
    product.flat_map(findings).collect()
}

fn is_test(file: &TextFile) -> bool {
    file.is_test() || file.path.contains("_tests/") || file.path.ends_with("_tests.rs")
}

fn findings(file: &TextFile) -> Vec<String> {
    let lines: Vec<(usize, &str)> = file.product_lines().collect();
    let is_code = |line: &str| !line.trim_start().starts_with("//");
    let debug = (0..lines.len()).filter(|at| {
        let (_, line) = lines[*at];
        is_code(line) && prints_debug(line) && !is_for_developers(&lines[..=*at])
    });
    debug
        .map(|at| format!("{}:{}: `{{:?}}` in text for people; print a `Display`", file.path, lines[at].0))
        .collect()
}

/// Returns whether a placeholder of this line asks for `Debug`: `{:?}`, `{name:?}`, `{0:#?}`.
fn prints_debug(line: &str) -> bool {
    let placeholders = line.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
    placeholders.map(|(placeholder, _)| placeholder).any(|placeholder| {
        placeholder.split_once(':').is_some_and(|(name, format)| {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            is_name && format.ends_with('?')
        })
    })
}

/// Returns whether the last line is part of an assertion, a panic or an implementation of `Debug`. Formatted
/// code indents the lines that an expression encloses.
fn is_for_developers(lines: &[(usize, &str)]) -> bool {
    let mut enclosing = usize::MAX;
    lines.iter().rev().map(|(_, line)| *line).any(|line| {
        let indent = line.len() - line.trim_start().len();
        let encloses = !line.trim().is_empty() && indent < enclosing;
        enclosing = if encloses { indent } else { enclosing };
        encloses && DEVELOPER_TEXTS.iter().any(|opening| line.contains(opening))
    })
}

/// Returns the paths, without `.rs`, of the modules that are compiled for tests alone.
fn test_modules(sources: &SourceTree) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for file in sources.rust() {
        let folder = folder_of(&file.path);
        modules.extend(names_for_tests(&file.text).into_iter().map(|name| format!("{folder}/{name}")));
    }
    modules
}

/// Returns the names of the modules that a file declares under `#[cfg(test)]`.
fn names_for_tests(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut for_tests = false;
    for line in text.lines().map(str::trim) {
        for_tests |= line == "#[cfg(test)]";
        if line.starts_with("#[") {
            continue;
        }
        let module = line.strip_suffix(';').and_then(|line| line.split_once("mod ")).map(|(_, name)| name);
        names.extend(module.filter(|_| for_tests));
        for_tests = false;
    }
    names
}

/// Returns the folder of a file's modules: `a/src` of `a/src/lib.rs`, and `a/src/b` of `a/src/b.rs`.
fn folder_of(path: &str) -> &str {
    let module = path.trim_end_matches(".rs");
    let root = ["/lib", "/main"].iter().find_map(|name| module.strip_suffix(name));
    root.unwrap_or(module)
}

/// Returns whether a file is a module or within its folder.
fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the numbers of the lines that are found in a file of this text.
    fn found_in(path: &str, text: &str) -> Vec<String> {
        let place = format!("{path}:");
        let findings = check(&SourceTree::of(&[(path, text)]));
        let number = |finding: &String| finding.strip_prefix(&place)?.split(':').next().map(str::to_string);
        findings.iter().filter_map(number).collect()
    }

    fn found(text: &str) -> Vec<String> {
        found_in("a/src/lib.rs", text)
    }

    #[test]
    fn every_form_of_a_debug_placeholder_is_found() {
        for text in
            ["{:?}", "{state:?}", "{0:?}", "{:#?}", "{limit:.1?}", "a {b} of {{c}} {d:?}", "{a:>3} {b:>8?}"]
        {
            assert_eq!(found(&format!("    let text = format!(\"{text}\", x);")), ["1"], "{text}");
        }
        assert_eq!(found("#[error(\"no quorum for {class:?}\")]"), ["1"], "an error type");
    }

    #[test]
    fn other_text_is_not_found() {
        for line in [
            "format!(\"{state}\")",
            "format!(\"{at:>3} is it?\")",
            "let f = |x: &str| { let y: T = g(x)?; y };",
            "tracing::warn!(?other, \"not announced\");",
            "// `{:?}` in a comment",
        ] {
            assert_eq!(found(line), [""; 0], "{line}");
        }
    }

    #[test]
    fn texts_for_developers_may_use_debug() {
        for text in [
            "    assert_eq!(a, b, \"{c:?}\");",
            "    debug_assert!(\n        a,\n        \"{c:?}\"\n    );",
            "    let x = y.unwrap_or_else(|| panic!(\"{z:?}\"));",
            "fn check_invariants(&self) {\n    Err(format!(\"{a:?}\"))\n}",
            "impl fmt::Debug for Settings {\n    fn fmt() {\n        write!(f, \"{:?}\", self.a)\n    }\n}",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn an_assertion_excuses_only_what_it_encloses() {
        let text = "fn f() {\n    assert!(a);\n    println!(\"{b:?}\");\n}\n";
        assert_eq!(found(text), ["3"]);
        let text = "impl Debug for A {\n    x\n}\nfn f() {\n    println!(\"{b:?}\");\n}\n";
        assert_eq!(found(text), ["5"]);
    }

    #[test]
    fn tests_and_developers_programs_are_not_read() {
        let text = "println!(\"{b:?}\");\n";
        for path in [
            "a/tests/b.rs",
            "a/src/b/tests.rs",
            "a/src/b_tests.rs",
            "a/build.rs",
            "xtask/src/b.rs",
            "a/src/b/invariants.rs",
            "a/src/invariants/b.rs",
        ] {
            assert_eq!(found_in(path, text), [""; 0], "{path}");
        }
        assert_eq!(found("x();\n#[cfg(test)]\nmod tests {\n    f(\"{b:?}\");\n}\n"), [""; 0]);
        assert_eq!(found_in("a/src/b.rs", text), ["1"]);
    }

    #[test]
    fn a_module_for_tests_alone_is_not_read_with_its_folder() {
        let agent = "#[cfg(test)]\n#[allow(clippy::unwrap_used)]\npub(crate) mod simulation;\nmod after;\n";
        let text = "println!(\"{b:?}\");\n";
        let sources = SourceTree::of(&[
            ("a/src/agent.rs", agent),
            ("a/src/agent/after.rs", text),
            ("a/src/agent/simulation.rs", text),
            ("a/src/agent/simulation/ending.rs", text),
            ("a/src/simulation.rs", text),
            ("b/src/lib.rs", "#[cfg(test)]\nmod faults;\n"),
            ("b/src/faults.rs", text),
        ]);
        let places: Vec<String> = check(&sources);
        assert_eq!(places.len(), 2, "{places:?}");
        assert!(places[0].starts_with("a/src/agent/after.rs:1:"), "{places:?}");
        assert!(places[1].starts_with("a/src/simulation.rs:1:"), "{places:?}");
    }
}

//! Check of pure crates: they use no clock, thread, file, socket, environment or random source, and iterate
//! in a fixed order wherever order can reach a decision or a byte.

use super::sources::SourceTree;
use super::units::PURE_CRATES;

/// Names that a pure crate may not use, and the alternative to each.
const BANNED: [(&str, &str); 16] = [
    ("std::time::", "take the time as an argument"),
    ("Instant::now", "take the time as an argument"),
    ("SystemTime", "take the time as an argument"),
    ("std::thread", "decide here, run in the shell"),
    ("std::fs", "take the bytes as an argument"),
    ("std::net", "take the bytes as an argument"),
    ("std::env", "take the value as an argument"),
    ("std::process", "return an error"),
    ("fs::", "take the bytes as an argument"),
    ("env::", "take the value as an argument"),
    ("std::io::", "take the bytes as an argument"),
    ("tokio", "decide here, wait in the shell"),
    ("getrandom", "take the random bytes as an argument"),
    ("thread_rng", "take the random bytes as an argument"),
    ("HashMap", "use BTreeMap: its order is part of the decision"),
    ("HashSet", "use BTreeSet: its order is part of the decision"),
];

/// Bans that every pure crate's own `clippy.toml` must contain, in addition to those of the root file, which
/// it replaces.
const CLIPPY_BANS: [&str; 4] =
    ["std::time::Instant::now", "std::time::SystemTime::now", "std::collections::HashMap", "std::env::var"];

/// Scans the product code of the pure crates.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let mut findings = Vec::new();
    for name in PURE_CRATES {
        let prefix = format!("{name}/src/");
        for file in sources.rust().filter(|f| f.path.starts_with(&prefix) && !f.is_test()) {
            for (line, text) in file.product_lines().filter(|(_, text)| !is_comment(text)) {
                for (banned, instead) in BANNED.iter().filter(|(banned, _)| text.contains(banned)) {
                    findings.push(format!("{}:{line}: `{banned}` in a pure crate: {instead}", file.path));
                }
            }
        }
        let lints = format!("{name}/clippy.toml");
        let own = banned_paths(sources, &lints);
        let common = banned_paths(sources, "clippy.toml");
        let wanted = CLIPPY_BANS.iter().map(ToString::to_string).chain(common);
        findings.extend(
            wanted.filter(|ban| !own.contains(ban)).map(|ban| format!("{lints} does not ban `{ban}`")),
        );
    }
    findings
}

/// Returns the paths that a `clippy.toml` disallows.
fn banned_paths(sources: &SourceTree, file: &str) -> Vec<String> {
    let text = sources.get(file).map_or("", |file| file.text.as_str());
    text.split("path = \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_string).collect()
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(source: &str) -> usize {
        check(&SourceTree::of(&[("scheduler/src/lib.rs", source)]))
            .iter()
            .filter(|finding| finding.contains("lib.rs"))
            .count()
    }

    #[test]
    fn a_clock_in_a_pure_crate_is_found() {
        assert_eq!(findings("fn f() { std::time::Instant::now(); }"), 2);
    }

    #[test]
    fn comments_and_tests_may_speak_of_it() {
        assert_eq!(findings("// std::fs is not for us\n#[cfg(test)]\nmod tests { use std::fs; }"), 0);
    }

    #[test]
    fn a_pure_crate_without_its_own_bans_or_the_common_ones_is_found() {
        let none = check(&SourceTree::of(&[]));
        assert_eq!(none.len(), PURE_CRATES.len() * CLIPPY_BANS.len());
        let common = ("clippy.toml", "disallowed-methods = [{ path = \"std::env::set_var\" }]");
        assert_eq!(check(&SourceTree::of(&[common])).len(), none.len() + PURE_CRATES.len());
    }
}

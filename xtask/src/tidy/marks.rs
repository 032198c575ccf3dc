//! Check of lengths: functions of at most 70 lines and files of at most 800 lines of product code. Functions
//! in the ratchet were longer when the rule was introduced; they may shrink, never grow.

use super::functions::{FUNCTION_LINES_MAX, functions};
use super::sources::SourceTree;

/// Longest file, in lines of product code.
const FILE_LINES_MAX: usize = 800;
/// File of the exceptions: `path function lines`, one a line.
const RATCHET: &str = "xtask/src/tidy/ratchet.txt";

/// Measures every Rust file.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let ratchet = sources.get(RATCHET).map_or("", |file| file.text.as_str());
    let mut findings = Vec::new();
    for file in sources.rust() {
        let lines = file.product_lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines; at most {FILE_LINES_MAX}", file.path));
        }
        for function in functions(file) {
            let allowed = allowance(ratchet, &file.path, &function.name).unwrap_or(FUNCTION_LINES_MAX);
            if function.lines > allowed {
                findings.push(format!(
                    "{}:{}: `{}` has {} lines; at most {allowed}",
                    file.path, function.at, function.name, function.lines
                ));
            }
        }
    }
    findings
}

fn allowance(ratchet: &str, path: &str, function: &str) -> Option<usize> {
    ratchet.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let same = words.next()? == path && words.next()? == function;
        same.then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(body: usize) -> String {
        format!(
            "//! Doc.\nimpl X {{\n    pub(crate) fn long<T>() {{\n{}    }}\n}}\n",
            "        x();\n".repeat(body)
        )
    }

    #[test]
    fn a_function_is_measured_from_its_first_to_its_last_line() {
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &source(68))])).len(), 0);
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &source(69))])).len(), 1);
    }

    #[test]
    fn the_ratchet_allows_what_was_and_no_more() {
        let ratchet = "a/src/lib.rs long 80\n";
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &source(78)), (RATCHET, ratchet)])).len(), 0);
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &source(79)), (RATCHET, ratchet)])).len(), 1);
    }

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(801);
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &long)])).len(), 1);
    }
}

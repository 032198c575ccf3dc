//! Check of lengths: functions of at most 70 lines, those of tests too, and files of at most 800 lines of
//! product code.

use super::functions::{FUNCTION_LINES_MAX, functions};
use super::sources::SourceTree;

/// Longest file, in lines of product code.
const FILE_LINES_MAX: usize = 800;

/// Measures every Rust file.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in sources.rust() {
        let lines = file.product_lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{}: {lines} lines; at most {FILE_LINES_MAX}", file.path));
        }
        for function in functions(file).iter().filter(|function| function.is_long()) {
            findings.push(format!(
                "{}:{}: `{}` has {} lines; at most {FUNCTION_LINES_MAX}",
                file.path, function.at, function.name, function.lines
            ));
        }
    }
    findings
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
        assert_eq!(
            check(&SourceTree::of(&[("a/tests/t.rs", &source(69))])),
            ["a/tests/t.rs:3: `long` has 71 lines; at most 70"]
        );
    }

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(801);
        assert_eq!(check(&SourceTree::of(&[("a/src/lib.rs", &long)])).len(), 1);
    }
}

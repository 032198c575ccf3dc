//! Functions of a Rust file, located by indentation: formatted code closes a function with a brace at the
//! indent of its `fn`.

use super::sources::TextFile;
use std::ops::Range;

/// Longest function, in lines.
pub(super) const FUNCTION_LINES_MAX: usize = 70;

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// Number of its first line.
    pub(super) at: usize,
    pub(super) lines: usize,
}

impl Function {
    /// Returns the numbers of its lines.
    pub(super) fn range(&self) -> Range<usize> {
        self.at..self.at + self.lines
    }

    /// Whether it exceeds the limit.
    pub(super) fn is_long(&self) -> bool {
        self.lines > FUNCTION_LINES_MAX
    }
}

/// Returns the functions of `file`, those of its tests too.
pub(super) fn functions(file: &TextFile) -> Vec<Function> {
    let lines: Vec<&str> = file.text.lines().collect();
    let with_body = |(at, line): (usize, &&str)| {
        let name = function_name(line)?;
        Some(Function { name: name.into(), at: at + 1, lines: length(&lines[at..])? })
    };
    lines.iter().enumerate().filter_map(with_body).collect()
}

/// Returns the name of the function that begins in `line`.
pub(super) fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|word| {
        ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern", "\"C\""].contains(word)
    });
    (words.next()? == "fn").then(|| words.next())??.split(['(', '<']).next()
}

/// The length of the function that begins in the first line; none for a declaration without a body.
fn length(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?;
    let indent = &first[..first.len() - first.trim_start().len()];
    if first.ends_with(';') {
        return None;
    }
    if first.ends_with('}') {
        return Some(1);
    }
    for (at, line) in lines.iter().enumerate().skip(1) {
        let Some(line) = line.strip_prefix(indent) else { continue };
        if line.starts_with(')') && line.ends_with(';') {
            return None;
        }
        if line == "}" || line.starts_with('}') && line.ends_with("};") {
            return Some(at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, usize, usize)> {
        let functions = functions(&TextFile::of("a/src/lib.rs", text));
        functions.into_iter().map(|function| (function.name, function.at, function.lines)).collect()
    }

    #[test]
    fn a_function_reaches_from_its_head_to_its_brace() {
        let text =
            "impl X {\n    pub(crate) fn long<T>(\n        a: u8,\n    ) {\n        if a { b }\n    }\n}\n";
        assert_eq!(found(text), [("long".into(), 2, 5)]);
        let text = "pub async fn f() {\n    async fn g() {\n    }\n}\n";
        assert_eq!(found(text), [("f".into(), 1, 4), ("g".into(), 2, 2)]);
    }

    #[test]
    fn a_body_may_stand_on_the_line_of_its_head() {
        assert_eq!(found("fn f() {}\nfn g() { f() }\n"), [("f".into(), 1, 1), ("g".into(), 2, 1)]);
    }

    #[test]
    fn a_declaration_and_a_comment_are_no_functions() {
        let text =
            "trait T {\n    fn f(&self);\n    fn g(\n        &self,\n    ) -> u8;\n    fn h() {\n    }\n}\n";
        assert_eq!(found(text), [("h".into(), 6, 2)]);
        assert_eq!(found("// fn f() {}\nlet fn_name = 1;\nstruct Fn;\n"), []);
    }

    #[test]
    fn a_function_of_71_lines_is_long() {
        let of = |lines| Function { name: String::new(), at: 10, lines };
        assert!(!of(70).is_long());
        assert!(of(71).is_long());
        assert_eq!(of(3).range(), 10..13);
    }
}

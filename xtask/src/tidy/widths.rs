//! Lines of at most 110 columns, in Rust and in Markdown. Rows of a Markdown table, lines of a terminal's
//! output and single words, such as the path of a test, cannot be wrapped and do not count.

use super::prose::StyleFinding;
use super::sources::TextFile;

const COLUMNS_MAX: usize = 110;

/// Returns the lines of `file` that are too long.
pub(super) fn wide(file: &TextFile) -> Vec<StyleFinding> {
    let is_markdown = file.path.ends_with(".md");
    if !is_markdown && !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let mut in_code = false;
    let mut findings = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        in_code ^= is_markdown && line.trim_start().starts_with("```");
        let is_one_word = !line.trim().trim_start_matches("(test: ").contains(' ');
        let cannot_wrap = is_one_word || is_markdown && (in_code || line.starts_with('|'));
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !cannot_wrap {
            findings.push(StyleFinding {
                line: at + 1,
                advice: format!("{columns} columns; at most {COLUMNS_MAX}"),
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_found_where_they_can_be_wrapped() {
        let long = "x y".repeat(37);
        let found = |path: &str, text: &str| {
            let file = TextFile::of(path, text);
            wide(&file).iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        assert_eq!(found("a.rs", &format!("// {}\n{long}\n{}\n", "é ".repeat(53), "x".repeat(111))), [2]);
        assert_eq!(found("a.md", &format!("{long}\n| {long} |\n```\n{long}\n```\n{long}\n")), [1, 6]);
        assert_eq!(found("a.txt", &long), [0_usize; 0]);
    }
}

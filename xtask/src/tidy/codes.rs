//! Check of error codes: product code produces every stable code, and a test names it. Codes without a test
//! are listed; the list may shrink, never grow.

use super::sources::SourceTree;

/// File that defines the codes.
const TABLE: &str = "protocol/src/error_code.rs";
/// File of the codes that no test names yet, one a line.
const UNTESTED: &str = "xtask/src/tidy/untested-codes.txt";

/// Checks each code.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let table = sources.get(TABLE).map_or("", |file| file.text.as_str());
    let listed = sources.get(UNTESTED).map_or("", |file| file.text.as_str());
    let listed = |code: &str| listed.lines().any(|line| line == code);
    let (product, tests) = texts(sources);
    let mut findings = Vec::new();
    for (name, code) in codes(table) {
        if !listed(&code) && !product.contains(&name) && !product.contains(&code) {
            findings.push(format!("{TABLE}: nothing produces `{code}`"));
        }
        // OpenAI clients see codes with underscores.
        let named = [&name, &code, &code.replace('-', "_")].iter().any(|text| tests.contains(text.as_str()));
        match (named, listed(&code)) {
            (false, false) => findings.push(format!("{TABLE}: no test names `{code}`")),
            (true, true) => findings.push(format!("{UNTESTED}: a test names `{code}`; take it off the list")),
            _ => {}
        }
    }
    findings
}

/// Returns the name and text of each code.
pub(crate) fn codes(table: &str) -> Vec<(String, String)> {
    let code = |line: &str| {
        let (name, text) = line.strip_prefix("    ")?.split_once(" = \"")?;
        let text = text.trim_end().strip_suffix("\";")?;
        (!name.contains(' ')).then(|| (name.to_string(), text.to_string()))
    };
    table.lines().filter_map(code).collect()
}

/// Returns product code without its comments, and the text of all tests.
fn texts(sources: &SourceTree) -> (String, String) {
    let (mut product, mut tests) = (String::new(), String::new());
    for file in &sources.files {
        let golden = file.path.ends_with("cases/codes.txt");
        let test = file.is_test() || file.path.contains("/tests/") || file.path.ends_with(".py");
        if file.path == TABLE || file.path.starts_with("xtask/src/tidy/") || golden {
            continue;
        }
        if test {
            tests.push_str(&file.text);
        } else if file.path.ends_with(".rs") {
            let lines: Vec<(usize, &str)> = file.product_lines().collect();
            let code = lines.iter().filter(|(_, line)| !line.trim_start().starts_with("//"));
            code.for_each(|(_, line)| {
                product.push_str(line);
                product.push('\n');
            });
            let rest = file.text.lines().skip(lines.last().map_or(0, |(number, _)| *number));
            rest.for_each(|line| tests.push_str(line));
        }
    }
    (product, tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(product: &str, test: &str, listed: &str) -> Vec<String> {
        let table = "codes! {\n    /// Doc.\n    DISK_FULL = \"disk-full\";\n}\n";
        check(&SourceTree::of(&[
            (TABLE, table),
            ("a/src/lib.rs", product),
            ("a/tests/full.rs", test),
            (UNTESTED, listed),
        ]))
    }

    #[test]
    fn a_code_is_produced_and_tested() {
        assert!(found("fn f() { fail(DISK_FULL) }", "assert_eq!(code, \"disk-full\")", "").is_empty());
        assert!(found("bail!(\"disk-full: no room\")", "assert_eq!(code, DISK_FULL)", "").is_empty());
        assert_eq!(found("// DISK_FULL", "disk_full", "").len(), 1, "a comment produces nothing");
        assert_eq!(found("fail(DISK_FULL)", "", "").len(), 1);
    }

    #[test]
    fn the_list_only_shrinks() {
        assert!(found("fail(DISK_FULL)", "", "disk-full\n").is_empty());
        assert_eq!(found("fail(DISK_FULL)", "disk-full", "disk-full\n").len(), 1);
    }
}

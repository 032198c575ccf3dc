//! Public types, functions, traits and constants of the product carry a doc comment. Fields and variants need
//! none: a comment that repeats the name is worse than its absence. (rustc's `missing_docs` does not
//! distinguish the two.)

use super::sources::{SourceTree, TextFile};

/// Kinds of items that need a comment.
const KINDS: [&str; 9] =
    ["fn", "async fn", "const fn", "unsafe fn", "struct", "enum", "trait", "const", "type"];

/// Returns every public item without a doc comment.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let product = sources.rust().filter(|file| !file.is_test() && file.path.contains("/src/"));
    product.flat_map(undocumented).collect()
}

fn undocumented(file: &TextFile) -> Vec<String> {
    let lines: Vec<(usize, &str)> = file.product_lines().collect();
    let mut findings = Vec::new();
    for (at, (number, line)) in lines.iter().enumerate() {
        let Some(item) = line.trim_start().strip_prefix("pub ") else { continue };
        let kind =
            KINDS.iter().find(|kind| item.strip_prefix(**kind).is_some_and(|rest| rest.starts_with(' ')));
        // The name in a macro's body is documented where the macro is used.
        let is_named = kind.is_some() && !item.contains('$');
        if is_named && !is_documented(&lines[..at]) {
            let item = item.split(['(', '<', '{', ':', ';', '=']).next().unwrap_or_default().trim();
            findings.push(format!("{}:{number}: `{item}` has no doc comment", file.path));
        }
    }
    findings
}

/// Whether a doc comment ends `before`, attributes aside.
fn is_documented(before: &[(usize, &str)]) -> bool {
    let mut depth = 0_i32;
    for (_, line) in before.iter().rev() {
        let line = line.trim();
        // An attribute may span lines; its brackets balance.
        depth += line.matches(']').count() as i32 - line.matches('[').count() as i32;
        if line.starts_with("///") {
            return true;
        }
        if !line.starts_with("#[") && depth <= 0 {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        check(&SourceTree::of(&[("a/src/lib.rs", text)])).len()
    }

    #[test]
    fn public_items_need_a_comment_and_fields_do_not() {
        assert_eq!(found("pub fn f() {}\n"), 1);
        assert_eq!(found("/// Says f.\npub fn f() {}\n"), 0);
        assert_eq!(found("pub(crate) fn f() {}\nfn g() {}\npub mod m;\npub use x::y;\n"), 0);
        assert_eq!(found("/// A type.\npub struct S {\n    pub name: String,\n}\n"), 0);
        assert_eq!(found("/// A type.\npub enum E {\n    Variant,\n}\n\npub const X: u8 = 1;\n"), 1);
    }

    #[test]
    fn attributes_may_stand_between() {
        assert_eq!(found("/// A type.\n#[derive(\n    Debug,\n)]\n#[must_use]\npub struct S;\n"), 0);
        assert_eq!(found("#[derive(Debug)]\npub struct S;\n"), 1);
    }

    #[test]
    fn tests_need_none() {
        assert_eq!(found("#[cfg(test)]\nmod tests {\n    pub fn f() {}\n}\n"), 0);
    }
}

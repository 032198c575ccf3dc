//! Check that the pages at the root name files, folders and functions that exist: `folder/src/file.rs`,
//! `folder/src/` or `folder/src/file.rs::function`.

use super::functions::function_name;
use super::sources::{SourceTree, TextFile};
use std::collections::BTreeSet;

/// Pages that lead a reader into the code.
const PAGES: [&str; 3] = ["ARCHITECTURE.md", "README.md", "SPECIFICATION.md"];

/// A path in a page, as its code span names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NamedFile<'a> {
    pub(super) line: usize,
    pub(super) path: &'a str,
    /// Name of a function in the file.
    pub(super) function: Option<&'a str>,
}

/// Returns every name without a file, and every function that its file does not define.
pub(crate) fn check(sources: &SourceTree) -> Vec<String> {
    let folders: BTreeSet<&str> =
        sources.files.iter().filter_map(|file| Some(file.path.split_once('/')?.0)).collect();
    let pages = PAGES.iter().filter_map(|path| sources.get(path));
    pages.flat_map(|page| missing(sources, &folders, page)).collect()
}

fn missing(sources: &SourceTree, folders: &BTreeSet<&str>, page: &TextFile) -> Vec<String> {
    let describe = |named: NamedFile<'_>| {
        let NamedFile { line, path, function } = named;
        let page = &page.path;
        if !exists(sources, path) {
            return Some(format!("{page}:{line}: there is no `{path}`"));
        }
        let function = function.filter(|name| !defines(sources, path, name))?;
        Some(format!("{page}:{line}: `{path}` has no function `{function}`"))
    };
    named_in(&page.text, folders).into_iter().filter_map(describe).collect()
}

/// Returns the paths that the code spans of a page name, in order. `folders` are those of the root; a path
/// into the sources of another folder is one too, as a crate may have moved.
pub(super) fn named_in<'a>(text: &'a str, folders: &BTreeSet<&str>) -> Vec<NamedFile<'a>> {
    let (mut found, mut line) = (Vec::new(), 1);
    // A fence of a block is three marks, so that its content is an even part, as text is.
    for (at, part) in text.split('`').enumerate() {
        let (path, function) = part.split_once("::").map_or((part, None), |(path, name)| (path, Some(name)));
        if at % 2 == 1 && is_path(path, folders) {
            found.push(NamedFile { line, path, function });
        }
        line += part.matches('\n').count();
    }
    found
}

fn is_path(span: &str, folders: &BTreeSet<&str>) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ['/', '-', '_', '.'].contains(&c);
    let Some((folder, rest)) = span.split_once('/') else { return false };
    let is_source = ["src/", "tests/"].iter().any(|start| rest.starts_with(start));
    span.chars().all(is_part) && !folder.is_empty() && (folders.contains(folder) || is_source)
}

/// Whether the path is a file, or a folder that ends with a slash.
fn exists(sources: &SourceTree, path: &str) -> bool {
    let folder = format!("{}/", path.trim_end_matches('/'));
    sources.get(path).is_some() || sources.files.iter().any(|file| file.path.starts_with(&folder))
}

fn defines(sources: &SourceTree, path: &str, name: &str) -> bool {
    let text = sources.get(path).map_or("", |file| file.text.as_str());
    let python = format!("def {name}(");
    text.lines().any(|line| function_name(line) == Some(name) || line.trim_start().starts_with(&python))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(page: &str) -> Vec<String> {
        check(&SourceTree::of(&[
            ("ARCHITECTURE.md", page),
            ("a/src/lib.rs", "//! Doc.\npub fn run<T>() {}\n"),
            ("a/tests/by_hand.py", "def main():\n    pass\n"),
            ("docs/decisions/one.md", "Text.\n"),
        ]))
    }

    #[test]
    fn files_folders_and_functions_that_exist_pass() {
        assert_eq!(found("`a/src/lib.rs`, `a/src/`, `a/src` and `docs/decisions/one.md`\n"), [""; 0]);
        assert_eq!(found("`a/src/lib.rs::run`, then `a/tests/by_hand.py::main`\n"), [""; 0]);
    }

    #[test]
    fn a_missing_file_is_found_with_its_line() {
        assert_eq!(
            found("Text `code`\nof two lines: `a/src/gone.rs`.\n"),
            ["ARCHITECTURE.md:2: there is no `a/src/gone.rs`"]
        );
        assert_eq!(found("`moved/src/lib.rs`").len(), 1, "a crate that is gone");
        assert_eq!(found("`a/src/li`").len(), 1, "a part of a name is no folder");
    }

    #[test]
    fn a_missing_function_is_found() {
        assert_eq!(found("`a/src/lib.rs::ran`"), ["ARCHITECTURE.md:1: `a/src/lib.rs` has no function `ran`"]);
    }

    #[test]
    fn other_spans_are_no_paths() {
        let page = "`service/slot`, `/agent/v1/sync`, `quorate deploy a/b.toml`, `a::b`, `docs/errors/*.md`\n\
                    ```\na/src/gone.rs\n```\na/src/gone.rs\n";
        assert_eq!(found(page), [""; 0]);
    }
}

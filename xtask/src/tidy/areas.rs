//! Prose and lengths per area: a crate's folder, `docs`, or the pages at the root.

use super::functions::functions;
use super::prose::{self, Size, StyleFinding};
use super::sources::{SourceTree, TextFile};
use super::widths;
use std::collections::BTreeMap;

/// The findings of an area, and the sizes that they are compared with.
#[derive(Default)]
pub(super) struct Area {
    pub(super) size: Size,
    pub(super) openings: Vec<String>,
    pub(super) words: Vec<String>,
    pub(super) columns: Vec<String>,
    /// Number of functions, those of tests too.
    pub(super) functions: usize,
    /// Functions that exceed the limit.
    pub(super) long_functions: Vec<String>,
}

impl Area {
    fn read(&mut self, file: &TextFile) {
        let describe = |finding: StyleFinding| format!("{}:{}: {}", file.path, finding.line, finding.advice);
        let size = prose::size(file);
        self.size.sentences += size.sentences;
        self.size.words += size.words;
        self.openings.extend(prose::openings(file).into_iter().map(describe));
        self.words.extend(prose::banned(file).into_iter().map(describe));
        self.columns.extend(widths::wide(file).into_iter().map(describe));
        if file.path.ends_with(".rs") {
            let functions = functions(file);
            self.functions += functions.len();
            let long = functions.into_iter().filter(|function| function.is_long());
            self.long_functions.extend(long.map(|function| {
                format!("{}:{}: `{}` has {} lines", file.path, function.at, function.name, function.lines)
            }));
        }
    }

    /// Adds the figures of another area.
    pub(super) fn add(&mut self, other: Self) {
        self.size.sentences += other.size.sentences;
        self.size.words += other.size.words;
        self.openings.extend(other.openings);
        self.words.extend(other.words);
        self.columns.extend(other.columns);
        self.functions += other.functions;
        self.long_functions.extend(other.long_functions);
    }
}

/// Reads every Rust and Markdown file into its area.
pub(super) fn areas(sources: &SourceTree) -> BTreeMap<String, Area> {
    let mut areas: BTreeMap<String, Area> = BTreeMap::new();
    for file in sources.files.iter().filter(|file| file.path.ends_with(".rs") || file.path.ends_with(".md")) {
        let name = file.path.split_once('/').map_or("pages", |(folder, _)| folder);
        areas.entry(name.to_string()).or_default().read(file);
    }
    areas
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> SourceTree {
        let long = format!("//! Doc.\nfn short() {{}}\nfn long() {{\n{}}}\n", "    x();\n".repeat(69));
        SourceTree::of(&[
            ("README.md", "# Title\n\nA page. It has two sentences.\n"),
            ("a/src/lib.rs", &long),
            ("a/README.md", "One sentence.\n"),
            ("a/data.txt", "No prose. Not read.\n"),
        ])
    }

    #[test]
    fn files_belong_to_their_folder_and_pages_to_the_root() {
        let areas = areas(&sources());
        assert_eq!(areas.keys().collect::<Vec<_>>(), ["a", "pages"]);
        assert_eq!(areas["a"].size.sentences, 2);
        assert_eq!(areas["pages"].size.sentences, 2);
    }

    #[test]
    fn functions_are_counted_and_long_ones_listed() {
        let areas = areas(&sources());
        assert_eq!((areas["a"].functions, areas["pages"].functions), (2, 0));
        assert_eq!(areas["a"].long_functions, ["a/src/lib.rs:3: `long` has 71 lines"]);
    }

    #[test]
    fn a_sum_has_the_figures_of_both() {
        let mut sum = Area::default();
        areas(&sources()).into_values().for_each(|area| sum.add(area));
        assert_eq!((sum.size.sentences, sum.functions, sum.long_functions.len()), (4, 2, 1));
    }
}

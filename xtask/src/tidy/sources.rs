//! The repository's text files, tracked by git or not ignored, read once.

use std::collections::BTreeSet;
use std::path::Path;

/// Parts of paths whose code is there for tests of several crates, or for fuzz targets.
const FOR_TESTS: [&str; 4] = ["/testing", "/simulat", "/fuzzing", "planted"];

/// A text file of the repository.
pub(crate) struct TextFile {
    /// Path relative to the root, `/`-separated.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Whether a `#[cfg(test)]` module declares the file, or a folder that it is in.
    is_declared_test: bool,
}

/// All text files of the repository.
pub(crate) struct SourceTree {
    pub(crate) files: Vec<TextFile>,
}

impl SourceTree {
    /// Reads the files that git tracks or does not ignore.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let list = crate::process::output(
            std::process::Command::new("git")
                .args(["ls-files", "--cached", "--others", "--exclude-standard"])
                .current_dir(root),
        )?;
        let files = list
            .lines()
            .filter_map(|path| {
                // A file that is not UTF-8 is data: a model, an image.
                let text = std::fs::read_to_string(root.join(path)).ok()?;
                Some(TextFile::of(path, &text))
            })
            .collect();
        Ok(Self::with(files))
    }

    /// Makes sources for a test.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        Self::with(files.iter().map(|(path, text)| TextFile::of(path, text)).collect())
    }

    fn with(mut files: Vec<TextFile>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let declared: BTreeSet<String> = files.iter().flat_map(TextFile::test_modules).collect();
        for file in &mut files {
            file.is_declared_test = declared.iter().any(|module| {
                file.path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            });
        }
        Self { files }
    }

    /// Returns the Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// Returns the file at `path`.
    pub(crate) fn get(&self, path: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl TextFile {
    /// Makes a file that no module declares.
    pub(crate) fn of(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), is_declared_test: false }
    }

    /// Whether the file contains only tests.
    pub(crate) fn is_test(&self) -> bool {
        self.is_declared_test
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/examples/")
    }

    /// Whether the file serves tests of several crates, or fuzz targets.
    pub(crate) fn serves_tests(&self) -> bool {
        FOR_TESTS.iter().any(|part| self.path.contains(part))
    }

    /// Returns the files, without their suffix, of the modules that it declares under `#[cfg(test)]`.
    fn test_modules(&self) -> Vec<String> {
        let lines: Vec<&str> = self.text.lines().map(str::trim).collect();
        let marks = (0..lines.len()).filter(|at| lines[*at] == "#[cfg(test)]");
        marks.filter_map(|at| self.module_file(&lines[at + 1..])).collect()
    }

    /// The file, without its suffix, of a module that the first lines declare.
    fn module_file(&self, lines: &[&str]) -> Option<String> {
        let (folder, _) = self.path.rsplit_once('/')?;
        let attribute = lines.first()?.strip_prefix("#[path = \"");
        let declaration = if attribute.is_some() { lines.get(1)? } else { lines.first()? };
        let name = declaration.split("mod ").nth(1)?.strip_suffix(';')?;
        let is_root = ["/lib.rs", "/main.rs", "/mod.rs"].iter().any(|root| self.path.ends_with(root));
        let parent = if is_root { folder } else { self.path.trim_end_matches(".rs") };
        let moved = attribute.and_then(|path| path.strip_suffix("\"]")?.strip_suffix(".rs"));
        Some(moved.map_or_else(|| format!("{parent}/{name}"), |path| format!("{folder}/{path}")))
    }

    /// Returns the lines of product code with their numbers: all lines before the first inline `#[cfg(test)]`
    /// module, except declarations of such modules in files of their own.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        // The line of the module that a mark declares. Other attributes may stand between.
        let declared = |at: usize| {
            let next = lines[at + 1..].iter().position(|line| !line.trim_start().starts_with("#["))?;
            let is_module = lines[at].trim() == "#[cfg(test)]" && lines[at + 1 + next].contains("mod ");
            is_module.then_some(at + 1 + next)
        };
        let (mut kept, mut at) = (Vec::new(), 0);
        while at < lines.len() {
            match declared(at) {
                Some(module) if lines[module].contains('{') => break,
                Some(module) => at = module,
                None => kept.push((at + 1, lines[at])),
            }
            at += 1;
        }
        kept.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests_among(files: &[(&str, &str)]) -> Vec<String> {
        let sources = SourceTree::of(files);
        sources.files.iter().filter(|file| file.is_test()).map(|file| file.path.clone()).collect()
    }

    #[test]
    fn a_module_declared_for_tests_is_a_test_with_all_below_it() {
        let root = "mod b;\n#[cfg(test)]\npub(crate) mod simulation;\n";
        let files = [("a/src/simulation.rs", ""), ("a/src/simulation/x.rs", ""), ("a/src/b.rs", "")];
        let found = tests_among(&[("a/src/lib.rs", root), files[0], files[1], files[2]]);
        assert_eq!(found, ["a/src/simulation.rs", "a/src/simulation/x.rs"]);
        let nested = [("a/src/b.rs", root), ("a/src/simulation.rs", ""), ("a/src/b/simulation.rs", "")];
        assert_eq!(tests_among(&nested), ["a/src/b/simulation.rs"]);
    }

    #[test]
    fn a_declaration_may_name_its_file() {
        let core = ("a/src/core.rs", "#[cfg(test)]\n#[path = \"core_tests.rs\"]\nmod tests;\n");
        let files = [("a/src/core_tests.rs", ""), ("a/src/core_tests/history.rs", "")];
        assert_eq!(
            tests_among(&[core, files[0], files[1]]),
            ["a/src/core_tests.rs", "a/src/core_tests/history.rs"]
        );
    }

    #[test]
    fn folders_of_tests_and_examples_need_no_declaration() {
        let found = tests_among(&[("a/tests/t.rs", ""), ("a/src/b/tests.rs", ""), ("a/examples/e.rs", "")]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(tests_among(&[("a/src/attests.rs", ""), ("a/src/lib.rs", "mod testing;\n")]).is_empty());
    }

    #[test]
    fn product_code_ends_at_the_first_inline_module_of_tests() {
        let text =
            "fn f() {}\n#[cfg(test)]\nmod far;\nfn g() {}\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n";
        let file = TextFile::of("a/src/lib.rs", text);
        let lines: Vec<usize> = file.product_lines().map(|(number, _)| number).collect();
        assert_eq!(lines, [1, 4]);
    }

    #[test]
    fn other_attributes_may_stand_between_the_mark_and_the_module() {
        let text = "fn f() {}\n#[cfg(test)]\n#[allow(lint)]\nmod far;\n#[cfg(test)]\nfn g() {}\n\
                    #[cfg(test)]\n#[allow(lint)]\npub(super) mod tests {\n    fn t() {}\n}\n";
        let file = TextFile::of("a/src/lib.rs", text);
        let lines: Vec<usize> = file.product_lines().map(|(number, _)| number).collect();
        assert_eq!(lines, [1, 5, 6]);
    }
}

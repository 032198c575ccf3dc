//! The repository's text files, tracked by git or not ignored, read once.

use std::path::Path;

/// A text file of the repository.
pub(crate) struct TextFile {
    /// Path relative to the root, `/`-separated.
    pub(crate) path: String,
    pub(crate) text: String,
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
        let mut files: Vec<TextFile> = list
            .lines()
            .filter_map(|path| {
                // A file that is not UTF-8 is data: a model, an image.
                let text = std::fs::read_to_string(root.join(path)).ok()?;
                Some(TextFile { path: path.to_string(), text })
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// Makes sources for a test.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| TextFile { path: (*path).into(), text: (*text).into() };
        Self { files: files.iter().map(file).collect() }
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
    /// Whether the file contains only tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/examples/")
    }

    /// Returns the lines of product code with their numbers: all lines before the first inline `#[cfg(test)]`
    /// module, except declarations of such modules in files of their own.
    pub(crate) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let module = |at: usize, mark: char| {
            let next = lines.get(at + 1).map(|line| line.trim()).unwrap_or_default();
            lines[at].trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.contains(mark)
        };
        let end = (0..lines.len()).find(|at| module(*at, '{')).unwrap_or(lines.len());
        // Before `end` no test module has a brace, so each remaining declaration ends with a semicolon.
        let declares = |at: usize| module(at, ';') || at > 0 && module(at - 1, ';');
        let kept: Vec<usize> = (0..end).filter(|at| !declares(*at)).collect();
        kept.into_iter().map(move |at| (at + 1, lines[at]))
    }
}

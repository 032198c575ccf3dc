//! Index of an artifact: the root file system of a program, with its entry point, environment and working
//! directory.
//!
//! An artifact is stored like a model, as one packed file: the index, and the bytes of every file in the
//! order of the index. The index has no times, owners, devices or set-id bits, so the same tree has the same
//! index whichever image or build it came from. Its digest is the artifact's root.

use crate::digest::Digest;
use crate::ids::ArtifactRoot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Digest domain of an artifact's index.
pub const ARTIFACT_DOMAIN: &str = "quorate/artifact/v1";
/// Path of the packed file in the manifest of an artifact.
pub const ARTIFACT_FILE: &str = "artifact";
/// First bytes of a packed file.
pub const ARTIFACT_MAGIC: [u8; 16] = *b"quorate-artifact";
/// Length of a packed file's header in bytes: the magic, and the length of the index as 8 bytes,
/// little-endian.
pub const ARTIFACT_HEADER_BYTES: u64 = 24;
/// Maximum number of files, directories and links: ten times a root of Python with a training framework.
pub const ARTIFACT_ENTRIES_MAX: usize = 262_144;
/// Maximum size of an index in bytes: 256 bytes per entry, with a path of 100.
pub const ARTIFACT_INDEX_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum size of all files in bytes: several times the largest published training images.
pub const ARTIFACT_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Maximum length of a path, and of a link's target, in bytes: a quarter of what Linux accepts, so that a
/// tree can be unpacked below any directory.
pub const ARTIFACT_PATH_BYTES_MAX: usize = 1024;
/// Maximum length of a file's name in bytes, as on every common file system.
pub const ARTIFACT_NAME_BYTES_MAX: usize = 255;
/// Maximum number of directories above an entry, plus one.
pub const ARTIFACT_DEPTH_MAX: usize = 64;
/// Maximum number of words of a command, and of environment variables.
pub const ARTIFACT_WORDS_MAX: usize = 256;
/// Maximum length in bytes of a command, and of an environment: half of what the kernel hands to a program
/// beside its stack's first pages.
pub const ARTIFACT_WORDS_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(
    ARTIFACT_ENTRIES_MAX * 256 <= ARTIFACT_INDEX_BYTES_MAX,
    "an index of the most entries fits, at 256 bytes each"
);

/// Start of an artifact's program, unless a job says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactStart {
    /// Entry point and its first arguments; the first word is a path in the tree, or a name that the
    /// environment's `PATH` resolves.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Absolute path in the tree.
    pub working_directory: String,
    /// Processor that the program is built for, as OCI names it: `amd64`, `arm64`.
    pub architecture: String,
}

/// Index of a packed tree: of an artifact, or of data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactIndex {
    /// Format version of the packed file: 1.
    pub version: u32,
    /// Start of the program; none for data, which is unpacked below any directory and is no root of its own.
    pub start: Option<ArtifactStart>,
    /// Entries, by the bytes of their paths. A directory precedes what is in it.
    pub entries: Vec<ArtifactEntry>,
}

/// File, directory or link of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactEntry {
    /// Path below the root, separated by `/`, without a leading one.
    pub path: String,
    /// Kind of the entry, with its content.
    pub kind: EntryKind,
}

/// Kind of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EntryKind {
    /// Directory, mode 755.
    Directory,
    /// Regular file, mode 755 or 644.
    File {
        /// Whether the file may be executed.
        executable: bool,
        /// Length in bytes.
        length: u64,
        /// BLAKE3 digest of the bytes.
        digest: Digest,
    },
    /// Symbolic link. An absolute target is read from the artifact's root.
    Link {
        /// Target as the link holds it.
        target: String,
    },
}

/// Reason why a decoded index does not describe an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ArtifactIndexError(String);

/// Returns an error with a formatted reason unless the condition holds.
macro_rules! require {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(ArtifactIndexError(format!($($reason)+)));
        }
    };
}

impl ArtifactIndex {
    /// Returns the artifact's root: the digest of the index's canonical bytes.
    #[must_use]
    pub fn root(&self) -> ArtifactRoot {
        let bytes = crate::canonical::to_bytes(self);
        debug_assert!(bytes.len() <= ARTIFACT_INDEX_BYTES_MAX, "no reader takes more");
        ArtifactRoot(Digest::of_domain(ARTIFACT_DOMAIN, &bytes))
    }

    /// Checks the invariants that the types cannot express: sizes within limits, safe and sorted paths, each
    /// entry in a directory of the index, links within the root. An unpacker of an index that passes never
    /// follows a link, and never leaves its directory.
    ///
    /// # Errors
    /// Returns the first contradiction, as text for people.
    pub fn check(&self) -> Result<(), ArtifactIndexError> {
        require!(self.version == 1, "artifact version {} is not known", self.version);
        self.start.as_ref().map_or(Ok(()), ArtifactStart::check)?;
        let count = self.entries.len();
        require!((1..=ARTIFACT_ENTRIES_MAX).contains(&count), "{count} entries");
        let mut directories = BTreeSet::new();
        let (mut before, mut bytes) = ("", 0_u64);
        for ArtifactEntry { path, kind } in &self.entries {
            let shown = path.escape_debug();
            require!(path_flaw(path).is_none(), "path `{shown}` is not allowed");
            require!(before < path.as_str(), "`{shown}` is not in order");
            let parent = path.rsplit_once('/').map(|(parent, _)| parent);
            require!(
                parent.is_none_or(|parent| directories.contains(parent)),
                "`{shown}` is in no directory"
            );
            match kind {
                EntryKind::Directory => {
                    directories.insert(path.as_str());
                }
                EntryKind::File { length, .. } => bytes = bytes.saturating_add(*length),
                EntryKind::Link { target } => {
                    let flaw = if self.start.is_some() { link_flaw } else { data_link_flaw };
                    require!(flaw(path, target).is_none(), "link `{shown}` is not allowed");
                }
            }
            before = path;
        }
        require!(bytes <= ARTIFACT_BYTES_MAX, "{bytes} bytes of files");
        debug_assert_eq!(bytes, self.file_bytes(), "no sum of lengths within the limit overflows");
        Ok(())
    }

    /// Returns the size of all files in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let lengths = self.entries.iter().map(|entry| match entry.kind {
            EntryKind::File { length, .. } => length,
            _ => 0,
        });
        lengths.fold(0, u64::saturating_add)
    }
}

impl ArtifactStart {
    /// Checks lengths and characters. The tree decides whether the entry point exists.
    ///
    /// # Errors
    /// Returns the first flaw, as text for people.
    pub fn check(&self) -> Result<(), ArtifactIndexError> {
        let words = self.command.len();
        require!((1..=ARTIFACT_WORDS_MAX).contains(&words), "a command of {words} words");
        let variables = self.environment.len();
        require!(variables <= ARTIFACT_WORDS_MAX, "{variables} environment variables");
        let command: usize = self.command.iter().map(|word| word.len() + 1).sum();
        let environment: usize =
            self.environment.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        require!(command <= ARTIFACT_WORDS_BYTES_MAX, "a command of {command} bytes");
        require!(environment <= ARTIFACT_WORDS_BYTES_MAX, "an environment of {environment} bytes");
        let values = self.environment.values();
        require!(!self.command.iter().chain(values).any(|word| word.contains('\0')), "a word holds a zero");
        require!(!self.command[0].is_empty(), "the entry point is empty");
        let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        require!(self.environment.keys().all(is_name), "an environment variable has no name");
        let directory = self.working_directory.strip_prefix('/');
        let is_path = directory.is_some_and(|path| path.is_empty() || path_flaw(path).is_none());
        require!(is_path, "working directory `{}` is not allowed", self.working_directory.escape_debug());
        let architecture = &self.architecture;
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        require!(
            (1..=crate::limits::NAME_BYTES_MAX).contains(&architecture.len())
                && architecture.chars().all(is_word),
            "architecture `{}` is not a name",
            architecture.escape_debug()
        );
        debug_assert!(!self.command.is_empty(), "a program to start");
        Ok(())
    }
}

/// Returns the flaw of an entry's path; none if the path may be unpacked.
#[must_use]
pub fn path_flaw(path: &str) -> Option<&'static str> {
    if path.len() > ARTIFACT_PATH_BYTES_MAX {
        return Some("it is longer than 1,024 bytes");
    }
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    if path.split('/').any(|part| part == "..") {
        return Some("it contains `..`");
    }
    if path.split('/').any(|part| matches!(part, "" | ".")) {
        return Some("it has an empty part");
    }
    if path.split('/').any(|part| part.len() > ARTIFACT_NAME_BYTES_MAX) {
        return Some("it has a name of more than 255 bytes");
    }
    if path.split('/').count() > ARTIFACT_DEPTH_MAX {
        return Some("it is deeper than 64 directories");
    }
    path.chars().any(char::is_control).then_some("it contains a control character")
}

/// Returns the flaw of the link at `path`; none if the link stays within the root. The rule is lexical: a
/// target leads out if its `..` climb above the root.
#[must_use]
pub fn link_flaw(path: &str, target: &str) -> Option<&'static str> {
    debug_assert!(path_flaw(path).is_none(), "an entry's path is checked first");
    if target.is_empty() || target.len() > ARTIFACT_PATH_BYTES_MAX {
        return Some("its target has 1 to 1,024 bytes");
    }
    if target.chars().any(char::is_control) {
        return Some("its target contains a control character");
    }
    let mut depth = if target.starts_with('/') { 0 } else { path.split('/').count() - 1 };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return Some("it leads out of the root"),
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    None
}

/// Returns the flaw of the link at `path` of a tree of data; none if the link stays within the tree, wherever
/// that is unpacked. An absolute target would lead out of it.
#[must_use]
pub fn data_link_flaw(path: &str, target: &str) -> Option<&'static str> {
    if target.starts_with('/') {
        return Some("it is absolute, and data has no root of its own");
    }
    link_flaw(path, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> ArtifactEntry {
        ArtifactEntry { path: path.into(), kind }
    }

    fn file(length: u64) -> EntryKind {
        EntryKind::File { executable: true, length, digest: Digest::of(b"x") }
    }

    fn link(target: &str) -> EntryKind {
        EntryKind::Link { target: target.into() }
    }

    fn sample() -> ArtifactIndex {
        ArtifactIndex {
            version: 1,
            start: Some(ArtifactStart {
                command: vec!["/bin/run".into(), "-v".into()],
                environment: BTreeMap::from([("PATH".into(), "/bin".into())]),
                working_directory: "/".into(),
                architecture: "amd64".into(),
            }),
            entries: vec![
                entry("bin", EntryKind::Directory),
                entry("bin/run", file(7)),
                entry("bin/sh", link("/bin/run")),
                entry("lib", link("bin/../bin")),
            ],
        }
    }

    type Flaw = fn(&mut ArtifactIndex);

    fn start(index: &mut ArtifactIndex) -> &mut ArtifactStart {
        index.start.as_mut().expect("an artifact has a start")
    }

    /// The attack is the output of a job with a link to a file of the machine on which a member unpacks it.
    #[test]
    fn data_has_no_start_and_no_absolute_link() {
        let mut data = sample();
        data.start = None;
        let refused = data.check().expect_err("`bin/sh` is absolute").to_string();
        assert!(refused.contains("`bin/sh`"), "{refused}");
        data.entries[2].kind = link("run");
        assert_eq!(data.check(), Ok(()));
        assert_ne!(data.root(), sample().root());
        assert!(data_link_flaw("a/b", "../../c").is_some(), "it leads out of the tree");
    }

    #[test]
    fn an_index_is_refused_for_one_flaw() {
        assert_eq!(sample().check(), Ok(()));
        assert_eq!(sample().file_bytes(), 7);
        let flaws: [(&str, Flaw); 20] = [
            ("is not known", |index| index.version = 2),
            ("0 entries", |index| index.entries.clear()),
            ("is not in order", |index| index.entries.swap(1, 2)),
            ("is not in order", |index| index.entries.insert(1, index.entries[0].clone())),
            ("is in no directory", |index| drop(index.entries.remove(0))),
            ("is in no directory", |index| index.entries.push(entry("lib/x", file(1)))),
            ("is not allowed", |index| index.entries[1].path = "bin/../run".into()),
            ("is not allowed", |index| index.entries[3].kind = link("..")),
            ("bytes of files", |index| index.entries[1].kind = file(ARTIFACT_BYTES_MAX + 1)),
            ("bytes of files", |index| {
                index.entries[1].kind = file(u64::MAX);
                index.entries[2].kind = file(u64::MAX);
            }),
            ("0 words", |index| start(index).command.clear()),
            ("257 words", |index| start(index).command = vec!["a".into(); 257]),
            ("a command of", |index| start(index).command = vec!["a".repeat(65_536)]),
            ("holds a zero", |index| start(index).command[1] = "a\0b".into()),
            ("is empty", |index| start(index).command[0].clear()),
            ("has no name", |index| drop(start(index).environment.insert("A=B".into(), "c".into()))),
            ("environment of", |index| {
                drop(start(index).environment.insert("A".into(), "c".repeat(65_536)));
            }),
            ("working directory", |index| start(index).working_directory = "srv".into()),
            ("working directory", |index| start(index).working_directory = "/../srv".into()),
            ("is not a name", |index| start(index).architecture = "a md".into()),
        ];
        for (expected, plant) in flaws {
            let mut index = sample();
            plant(&mut index);
            let error = index.check().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error} for {expected}");
        }
    }

    #[test]
    fn the_root_covers_every_field() {
        let root = sample().root();
        let changes: [Flaw; 6] = [
            |index| start(index).command.push("x".into()),
            |index| drop(start(index).environment.insert("A".into(), "b".into())),
            |index| start(index).working_directory = "/bin".into(),
            |index| index.entries[1].kind = file(8),
            |index| index.entries[2].kind = link("run"),
            |index| drop(index.entries.pop()),
        ];
        for change in changes {
            let mut other = sample();
            change(&mut other);
            assert_eq!(other.check(), Ok(()));
            assert_ne!(other.root(), root);
        }
    }

    #[test]
    fn a_path_is_plain_and_short() {
        let deep = vec!["d"; ARTIFACT_DEPTH_MAX].join("/");
        let long = "n".repeat(ARTIFACT_NAME_BYTES_MAX);
        for good in ["a", "a/b", "usr/lib/x\\x2d.slice", "ä", ".hidden", "a b", &deep, &long] {
            assert_eq!(path_flaw(good), None, "{good}");
        }
        let (deeper, longer, endless) = (format!("{deep}/d"), format!("{long}n"), "abcdefg/".repeat(129));
        let cases = [
            ("/etc", "absolute"),
            ("a/../b", "`..`"),
            ("..", "`..`"),
            ("", "empty part"),
            ("a//b", "empty part"),
            ("a/", "empty part"),
            ("./a", "empty part"),
            ("a\nb", "control character"),
            (deeper.as_str(), "deeper"),
            (longer.as_str(), "255 bytes"),
            (endless.as_str(), "1,024 bytes"),
        ];
        for (bad, expected) in cases {
            assert!(path_flaw(bad).is_some_and(|flaw| flaw.contains(expected)), "{bad}");
        }
    }

    #[test]
    fn a_link_stays_within_the_root() {
        for (path, target) in [
            ("a", "b"),
            ("a/b", "../c"),
            ("a/b", "/usr/lib"),
            ("a", "/"),
            ("a/b/c", "../../d/./e"),
            ("a", "."),
        ] {
            assert_eq!(link_flaw(path, target), None, "{path} -> {target}");
        }
        for (path, target) in [("a", ".."), ("a/b", "../.."), ("a", "/.."), ("a", "b/../../c"), ("a", "")] {
            assert!(link_flaw(path, target).is_some(), "{path} -> {target}");
        }
        assert!(link_flaw("a", &"x".repeat(ARTIFACT_PATH_BYTES_MAX + 1)).is_some());
        assert!(link_flaw("a", "b\0c").is_some());
    }
}

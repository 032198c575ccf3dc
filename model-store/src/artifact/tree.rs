//! Tree of an artifact while it is put together: names in memory, contents elsewhere. Pure.
//!
//! Layers apply in order. A whiteout removes what lower layers brought, never what its own layer brings,
//! regardless of the order of a layer's entries. A directory that a layer brings twice is one; every other
//! second entry replaces the first.

use super::{ArtifactError, ArtifactLimits};
use protocol::Digest;
use protocol::artifact::{ArtifactEntry, ArtifactStart, EntryKind, link_flaw, path_flaw};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of links on the way to a file, as in Linux.
const LINKS_MAX: usize = 40;

/// Content of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryContent {
    Directory,
    File(SpooledFile),
    /// Symbolic link to this target.
    Link(String),
}

/// A regular file, whose bytes are in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpooledFile {
    pub(super) executable: bool,
    /// Length in bytes.
    pub(super) length: u64,
    /// Digest of the bytes.
    pub(super) digest: Digest,
    /// First byte in the spool.
    pub(super) at: u64,
}

#[derive(Debug)]
struct Placed {
    /// Number of the layer that brought the entry or anything below it last.
    layer: usize,
    content: EntryContent,
}

/// A tree of names.
#[derive(Debug)]
pub(super) struct FileTree {
    entries: BTreeMap<String, Placed>,
    /// Size of all files in bytes.
    bytes: u64,
    layer: usize,
    /// Paths that this layer removed or cleared before: once is enough.
    cleared: BTreeSet<String>,
    limits: ArtifactLimits,
}

impl FileTree {
    pub(super) fn new(limits: ArtifactLimits) -> Self {
        Self { entries: BTreeMap::new(), bytes: 0, layer: 0, cleared: BTreeSet::new(), limits }
    }

    /// Returns whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Begins a layer above all earlier ones.
    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
        self.cleared.clear();
    }

    /// Adds an entry, and the directories above it that are missing.
    pub(super) fn add(&mut self, path: &str, content: EntryContent) -> Result<(), ArtifactError> {
        check_path(path)?;
        if let EntryContent::Link(target) = &content
            && let Some(reason) = link_flaw(path, target)
        {
            return Err(ArtifactError::Link { path: path.into(), target: target.clone(), reason });
        }
        self.add_parents(path)?;
        if content == EntryContent::Directory
            && let Some(Placed { layer, content: EntryContent::Directory }) = self.entries.get_mut(path)
        {
            *layer = self.layer;
            return Ok(());
        }
        self.remove(path, usize::MAX);
        self.insert(path, content)
    }

    /// Adds a copy of an earlier file.
    pub(super) fn add_hard_link(&mut self, path: &str, target: &str) -> Result<(), ArtifactError> {
        match self.entries.get(target).map(|placed| &placed.content) {
            Some(EntryContent::File(file)) => {
                let file = file.clone();
                self.add(path, EntryContent::File(file))
            }
            _ => {
                let reason = "a hard link names a regular file that precedes it";
                Err(ArtifactError::Link { path: path.into(), target: target.into(), reason })
            }
        }
    }

    /// Removes an entry that lower layers brought, with everything that they brought below it.
    pub(super) fn whiteout(&mut self, path: &str) {
        if self.cleared.insert(path.into()) {
            self.remove(path, self.layer);
        }
    }

    /// Removes everything that lower layers brought below a directory; the empty path is the root.
    pub(super) fn clear_directory(&mut self, path: &str) {
        // A directory's own whiteout, and the removal of its content, are different marks.
        if self.cleared.insert(format!("{path}/")) {
            self.remove_below(path, self.layer);
        }
    }

    /// Adds a directory, unless the path leads to one.
    pub(super) fn ensure_directory(&mut self, path: &str) -> Result<(), ArtifactError> {
        let Some(at) = self.resolve(path) else { return self.add(path, EntryContent::Directory) };
        match self.entries.get(&at) {
            Some(Placed { content: EntryContent::File(_), .. }) => {
                Err(ArtifactError::Path { path: path.into(), reason: "the working directory is a file" })
            }
            _ => Ok(()),
        }
    }

    fn add_parents(&mut self, path: &str) -> Result<(), ArtifactError> {
        for (end, _) in path.match_indices('/') {
            match self.entries.get_mut(&path[..end]) {
                Some(Placed { layer, content: EntryContent::Directory }) => *layer = self.layer,
                Some(_) => {
                    let reason = "it is below a file or a link";
                    return Err(ArtifactError::Path { path: path.into(), reason });
                }
                None => self.insert(&path[..end], EntryContent::Directory)?,
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, content: EntryContent) -> Result<(), ArtifactError> {
        if self.entries.len() >= self.limits.entries {
            let reason = format!("more than {} entries, at `{}`", self.limits.entries, path.escape_debug());
            return Err(ArtifactError::TooLarge { reason });
        }
        if let EntryContent::File(file) = &content {
            self.bytes = self.bytes.saturating_add(file.length);
            if self.bytes > self.limits.bytes {
                let reason = format!("more than {} bytes, at `{}`", self.limits.bytes, path.escape_debug());
                return Err(ArtifactError::TooLarge { reason });
            }
        }
        self.entries.insert(path.into(), Placed { layer: self.layer, content });
        Ok(())
    }

    /// Removes an entry and everything below it, as far as layers under this one brought it.
    fn remove(&mut self, path: &str, below: usize) {
        self.remove_below(path, below);
        if self.entries.get(path).is_some_and(|placed| placed.layer < below) {
            self.remove_one(path);
        }
    }

    fn remove_below(&mut self, path: &str, below: usize) {
        // `0` follows `/`, so the range holds exactly the paths that begin with the directory's.
        let range = match path {
            "" => self.entries.range::<String, _>(..),
            _ => self.entries.range::<String, _>(format!("{path}/")..format!("{path}0")),
        };
        let gone: Vec<String> =
            range.filter(|(_, placed)| placed.layer < below).map(|(path, _)| path.clone()).collect();
        gone.iter().for_each(|path| self.remove_one(path));
    }

    fn remove_one(&mut self, path: &str) {
        if let Some(Placed { content: EntryContent::File(file), .. }) = self.entries.remove(path) {
            self.bytes -= file.length;
        }
    }

    /// Returns whether the first word of the command names an executable file of the tree.
    pub(super) fn has_program(&self, start: &ArtifactStart) -> bool {
        let program = start.command.first().map_or("", String::as_str);
        if program.contains('/') {
            let directory = if program.starts_with('/') { "" } else { start.working_directory.as_str() };
            return self.is_executable(&format!("{directory}/{program}"));
        }
        let search = start.environment.get("PATH").map_or("", String::as_str);
        let mut directories = search.split(':').filter(|directory| directory.starts_with('/'));
        !program.is_empty() && directories.any(|at| self.is_executable(&format!("{at}/{program}")))
    }

    fn is_executable(&self, path: &str) -> bool {
        let found = self.resolve(path).and_then(|path| self.entries.get(&path));
        matches!(
            found,
            Some(Placed { content: EntryContent::File(SpooledFile { executable: true, .. }), .. })
        )
    }

    /// Returns the path at which a path ends after its links, as a program in the root sees it; none if
    /// there is nothing.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut waiting: Vec<String> = path.split('/').rev().map(String::from).collect();
        let (mut at, mut links) = (String::new(), 0);
        while let Some(part) = waiting.pop() {
            if matches!(part.as_str(), "" | ".") {
                continue;
            }
            if part == ".." {
                at.truncate(at.rfind('/').unwrap_or(0));
                continue;
            }
            let next = if at.is_empty() { part } else { format!("{at}/{part}") };
            let EntryContent::Link(target) = &self.entries.get(&next)?.content else {
                at = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            if target.starts_with('/') {
                at.clear();
            }
            waiting.extend(target.split('/').rev().map(String::from));
        }
        Some(at)
    }

    /// Returns the entries in the order of the index, each file with its first byte in the spool.
    pub(super) fn into_entries(self) -> impl Iterator<Item = (ArtifactEntry, u64)> {
        self.entries.into_iter().map(|(path, placed)| match placed.content {
            EntryContent::Directory => (ArtifactEntry { path, kind: EntryKind::Directory }, 0),
            EntryContent::Link(target) => (ArtifactEntry { path, kind: EntryKind::Link { target } }, 0),
            EntryContent::File(SpooledFile { executable, length, digest, at }) => {
                (ArtifactEntry { path, kind: EntryKind::File { executable, length, digest } }, at)
            }
        })
    }
}

/// Refuses a path that an artifact may not have.
pub(super) fn check_path(path: &str) -> Result<(), ArtifactError> {
    match path_flaw(path) {
        None => Ok(()),
        Some(reason) => Err(ArtifactError::Path { path: path.into(), reason }),
    }
}

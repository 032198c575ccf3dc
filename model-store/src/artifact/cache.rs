//! Cache of unpacked artifacts on a node: bounded, and compared with the root before every use.
//!
//! ```text
//! lock              one process at a time changes the cache
//! ROOT/tree/        the tree
//! ROOT/index        its index, whose digest is the root; its time is that of the last use
//! ROOT/bytes        space that it takes, as text
//! ROOT/lock         held while a program uses the tree
//! ROOT.new, .old    a tree that is being unpacked or removed; what a crash left goes at the next start
//! ```
//!
//! A tree is unpacked beside its place, made durable, and renamed. A torn one would also differ from its
//! root.

use super::ArtifactError;
use super::error::unreadable;
use super::packed::read_index;
use super::unpack::{TreeFault, compare, unpack};
use host::DirectoryLock;
use host::files::{private_directory, read, sync_directory, sync_file_system, write_atomically};
use protocol::artifact::{ARTIFACT_DOMAIN, ARTIFACT_INDEX_BYTES_MAX, ArtifactIndex, EntryKind};
use protocol::{ArtifactRoot, Digest};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

const NEW: &str = ".new";
const OLD: &str = ".old";
/// Space that an entry takes beside its bytes, and to whose multiple its bytes are rounded up: a block.
const BLOCK_BYTES: u64 = 4096;

/// Cache of unpacked artifacts.
#[derive(Debug)]
pub struct ArtifactCache {
    directory: PathBuf,
    bytes_max: u64,
    /// Locks of the trees that this process uses.
    used: Mutex<BTreeMap<ArtifactRoot, Weak<DirectoryLock>>>,
}

/// A tree that stays in the cache while this value lives.
#[derive(Debug, Clone)]
pub struct TreeInUse {
    /// Directory of the tree.
    pub path: PathBuf,
    /// Index of the tree, whose digest is the root.
    pub index: Arc<ArtifactIndex>,
    _lock: Arc<DirectoryLock>,
}

/// Answer of the cache.
#[derive(Debug)]
pub enum CachedTree {
    /// The tree is there, and every byte of it is right.
    Ready(TreeInUse),
    /// The tree is not there.
    Absent,
    /// The tree was there, and differed from its root. It was removed unless a program uses it.
    Changed(TreeFault),
}

/// One tree, as the choice of evictions sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EvictionCandidate {
    root: ArtifactRoot,
    bytes: u64,
    last_used: SystemTime,
    in_use: bool,
}

/// Returns the trees to remove so that a new one of `needed` bytes fits into `limit`: those unused for
/// longest, and no more than necessary. If it cannot fit, returns the bytes of the trees in use. Pure.
fn evictions(trees: &[EvictionCandidate], needed: u64, limit: u64) -> Result<Vec<ArtifactRoot>, u64> {
    let in_use = total(trees.iter().filter(|tree| tree.in_use));
    if in_use.saturating_add(needed) > limit {
        return Err(in_use);
    }
    let mut kept = total(trees.iter());
    let mut idle: Vec<&EvictionCandidate> = trees.iter().filter(|tree| !tree.in_use).collect();
    idle.sort_by_key(|tree| (tree.last_used, tree.root));
    let mut gone = Vec::new();
    for tree in idle {
        if kept.saturating_add(needed) <= limit {
            break;
        }
        kept = kept.saturating_sub(tree.bytes);
        gone.push(tree.root);
    }
    Ok(gone)
}

fn total<'a>(trees: impl Iterator<Item = &'a EvictionCandidate>) -> u64 {
    trees.fold(0, |sum, tree| sum.saturating_add(tree.bytes))
}

/// Returns the space that a tree takes on a disk, in bytes.
fn disk_bytes(index: &ArtifactIndex) -> u64 {
    let of_entry = |kind: &EntryKind| match kind {
        EntryKind::File { length, .. } => length.next_multiple_of(BLOCK_BYTES).saturating_add(BLOCK_BYTES),
        EntryKind::Directory | EntryKind::Link { .. } => BLOCK_BYTES,
    };
    index.entries.iter().map(|entry| of_entry(&entry.kind)).fold(0, u64::saturating_add)
}

impl ArtifactCache {
    /// Opens the cache in `directory`, which is created if there is none, and removes what a crash left.
    ///
    /// # Errors
    /// [`ArtifactError::Unreadable`].
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self, ArtifactError> {
        private_directory(directory).map_err(unreadable(directory))?;
        let cache = Self { directory: directory.to_path_buf(), bytes_max, used: Mutex::default() };
        let _lock = cache.lock()?;
        cache.remove_leftovers()?;
        Ok(cache)
    }

    /// Returns the tree of this root if it is there and right: every byte is read back. Call it before every
    /// start of a program.
    ///
    /// # Errors
    /// [`ArtifactError::InUse`] if another process uses the tree, [`ArtifactError::Unreadable`].
    pub fn lookup(&self, root: ArtifactRoot) -> Result<CachedTree, ArtifactError> {
        let _lock = self.lock()?;
        self.checked(root)
    }

    /// Unpacks an artifact into the cache, and removes trees that no program uses to make room. A tree that
    /// is there and right stays.
    ///
    /// # Errors
    /// [`ArtifactError::Invalid`] if the file is not the artifact of this root, [`ArtifactError::CacheFull`],
    /// [`ArtifactError::InUse`], [`ArtifactError::Unreadable`]. The trees in use are untouched.
    pub fn insert(&self, root: ArtifactRoot, packed: &File) -> Result<(), ArtifactError> {
        let _lock = self.lock()?;
        if let CachedTree::Ready(_) = self.checked(root)? {
            return Ok(());
        }
        let place = self.place(root);
        if place.exists() {
            return Err(ArtifactError::InUse { root });
        }
        self.remove_leftovers()?;
        let needed = disk_bytes(&read_index(packed)?.0);
        let full = |in_use| ArtifactError::CacheFull { needed, in_use, limit: self.bytes_max };
        for evicted in evictions(&self.candidates()?, needed, self.bytes_max).map_err(full)? {
            tracing::info!(artifact = %evicted.short(), "evicting an unused tree from the cache");
            self.remove(evicted)?;
        }
        let new = self.beside(root, NEW);
        fs::create_dir(&new).map_err(unreadable(&new))?;
        let index = unpack(packed, root, &new.join("tree"))?;
        write_atomically(&new.join("bytes"), needed.to_string().as_bytes(), 0o600)
            .map_err(unreadable(&new))?;
        let index = protocol::canonical::to_bytes(&index);
        write_atomically(&new.join("index"), &index, 0o600).map_err(unreadable(&new))?;
        sync_file_system(&new).map_err(unreadable(&new))?;
        fs::rename(&new, &place).map_err(unreadable(&place))?;
        sync_directory(&self.directory).map_err(unreadable(&self.directory))
    }

    /// Removes the trees that are neither in `known` nor in use, such as those of forgotten artifacts, and
    /// returns them.
    ///
    /// # Errors
    /// [`ArtifactError::Unreadable`].
    pub fn retain(&self, known: &BTreeSet<ArtifactRoot>) -> Result<Vec<ArtifactRoot>, ArtifactError> {
        let _lock = self.lock()?;
        let unknown = |tree: &EvictionCandidate| !tree.in_use && !known.contains(&tree.root);
        let gone: Vec<ArtifactRoot> =
            self.candidates()?.into_iter().filter(unknown).map(|tree| tree.root).collect();
        gone.iter().try_for_each(|root| self.remove(*root))?;
        Ok(gone)
    }

    fn lock(&self) -> Result<DirectoryLock, ArtifactError> {
        DirectoryLock::wait(&self.directory).map_err(unreadable(&self.directory))
    }

    fn place(&self, root: ArtifactRoot) -> PathBuf {
        self.directory.join(root.to_string())
    }

    fn beside(&self, root: ArtifactRoot, suffix: &str) -> PathBuf {
        self.directory.join(format!("{root}{suffix}"))
    }

    fn checked(&self, root: ArtifactRoot) -> Result<CachedTree, ArtifactError> {
        let place = self.place(root);
        if !place.exists() {
            return Ok(CachedTree::Absent);
        }
        let lock = self.lock_tree(root, &place)?;
        let compared = read_back(&place, root);
        match compared {
            Ok(index) => {
                let touched =
                    File::open(place.join("index")).and_then(|file| file.set_modified(SystemTime::now()));
                touched.map_err(unreadable(&place))?;
                let (path, index) = (place.join("tree"), Arc::new(index));
                Ok(CachedTree::Ready(TreeInUse { path, index, _lock: lock }))
            }
            Err(fault) => {
                tracing::error!(
                    artifact = %root.short(), %fault,
                    "a tree in the cache differed from its root; check the disk"
                );
                // The map keeps a weak reference, so one strong reference is this function's.
                if Arc::strong_count(&lock) == 1 {
                    self.remove(root)?;
                }
                Ok(CachedTree::Changed(fault))
            }
        }
    }

    /// Takes the lock of a tree for this process, whose users share it.
    fn lock_tree(&self, root: ArtifactRoot, place: &Path) -> Result<Arc<DirectoryLock>, ArtifactError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = used.get(&root).and_then(Weak::upgrade) {
            return Ok(lock);
        }
        let lock = DirectoryLock::take(place).map_err(unreadable(place))?;
        let lock = Arc::new(lock.ok_or(ArtifactError::InUse { root })?);
        used.insert(root, Arc::downgrade(&lock));
        Ok(lock)
    }

    fn candidates(&self) -> Result<Vec<EvictionCandidate>, ArtifactError> {
        let mut candidates = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable(&self.directory))? {
            let path = entry.map_err(unreadable(&self.directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Ok(root) = name.parse::<Digest>().map(ArtifactRoot) else { continue };
            // A tree whose records are damaged goes first, and takes no space in the sum.
            let bytes = read(&path.join("bytes"), 32).ok().flatten();
            let bytes = bytes.and_then(|text| String::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
            let used = fs::metadata(path.join("index")).and_then(|metadata| metadata.modified());
            let last_used = used.unwrap_or(SystemTime::UNIX_EPOCH);
            let in_use = match self.lock_tree(root, &path) {
                // Another strong reference is that of a user.
                Ok(lock) => Arc::strong_count(&lock) > 1,
                Err(ArtifactError::InUse { .. }) => true,
                Err(error) => return Err(error),
            };
            candidates.push(EvictionCandidate { root, bytes, last_used, in_use });
        }
        Ok(candidates)
    }

    /// Removes a tree: at once from its place, then its files.
    fn remove(&self, root: ArtifactRoot) -> Result<(), ArtifactError> {
        let old = self.beside(root, OLD);
        remove_all(&old)?;
        fs::rename(self.place(root), &old).map_err(unreadable(&old))?;
        remove_all(&old)
    }

    fn remove_leftovers(&self) -> Result<(), ArtifactError> {
        for entry in fs::read_dir(&self.directory).map_err(unreadable(&self.directory))? {
            let path = entry.map_err(unreadable(&self.directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(NEW) || name.ends_with(OLD) {
                remove_all(&path)?;
            }
        }
        Ok(())
    }
}

/// Reads a tree back, and returns its index if everything is as the root says.
fn read_back(place: &Path, root: ArtifactRoot) -> Result<ArtifactIndex, TreeFault> {
    let fault = |what| TreeFault { path: "index".into(), what };
    let bytes = read(&place.join("index"), ARTIFACT_INDEX_BYTES_MAX).ok().flatten();
    let bytes = bytes.ok_or_else(|| fault("cannot be read"))?;
    if ArtifactRoot(Digest::of_domain(ARTIFACT_DOMAIN, &bytes)) != root {
        return Err(fault("has another digest than the root"));
    }
    let index: ArtifactIndex = protocol::canonical::from_bytes(&bytes, ARTIFACT_INDEX_BYTES_MAX)
        .map_err(|_| fault("is no index"))?;
    index.check().map_err(|_| fault("contradicts itself"))?;
    compare(&place.join("tree"), &index)?;
    Ok(index)
}

fn remove_all(path: &Path) -> Result<(), ArtifactError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(unreadable(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

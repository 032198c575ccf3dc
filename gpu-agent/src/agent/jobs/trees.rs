//! Unpacked artifacts of this node: found in the cache and compared with their root, or fetched from stores.

use crate::agent::core::Refusal;
use crate::agent::models::{ModelSource, Models};
use host::files::private_directory;
use model_store::{ArtifactCache, ArtifactError, CachedTree, TreeInUse};
use protocol::artifact::ARTIFACT_BYTES_MAX;
use protocol::model::StoredKind;
use protocol::{ArtifactRoot, error_code};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of the cache in bytes: one of the largest artifacts, and half as much again for the blocks of its
/// files and for smaller ones.
const CACHE_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX / 2 * 3;

/// Trees of the artifacts of jobs.
#[derive(Debug)]
pub(in crate::agent) struct ArtifactTrees {
    cache: Arc<ArtifactCache>,
    /// Directory of packed files on their way into the cache.
    packed: PathBuf,
    /// One artifact is fetched at a time.
    fetching: tokio::sync::Mutex<()>,
    /// Trees that differed from their root.
    changed: AtomicU64,
}

impl ArtifactTrees {
    /// Opens the cache below an agent's directory. A sandbox takes its root by an absolute path.
    ///
    /// # Errors
    /// If its directories cannot be created or read.
    pub(in crate::agent) fn open(directory: &Path) -> Result<Self, ArtifactError> {
        let directory = std::path::absolute(directory)
            .map_err(|source| ArtifactError::Unreadable { path: directory.to_path_buf(), source })?;
        let cache = Arc::new(ArtifactCache::open(&directory.join("artifacts"), CACHE_BYTES_MAX)?);
        let packed = directory.join("packed");
        private_directory(&packed)
            .map_err(|source| ArtifactError::Unreadable { path: packed.clone(), source })?;
        Ok(Self { cache, packed, fetching: tokio::sync::Mutex::default(), changed: AtomicU64::new(0) })
    }

    /// Returns the number of trees that differed from their root.
    pub(in crate::agent) fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }

    /// Returns the tree of this artifact or dataset, every byte of which was compared just now. A tree that
    /// is missing or changed is fetched again.
    ///
    /// # Errors
    /// If the tree is not there and control names no location of it, or the fetched one is not of this root.
    pub(super) async fn get(
        &self,
        models: &Models,
        kind: StoredKind,
        source: Option<&ModelSource>,
    ) -> Result<TreeInUse, Refusal> {
        let root = kind.tree().ok_or_else(|| {
            let message = format!("an item of kind {} has no tree", kind.name());
            Refusal::new(error_code::MODEL_KIND_WRONG, message)
        })?;
        let _one = self.fetching.lock().await;
        if let Some(tree) = self.lookup(root).await? {
            return Ok(tree);
        }
        let source = source.ok_or_else(|| {
            let message = format!("control names no location of {} {root}", kind.name());
            Refusal::new(error_code::MODEL_NOT_FOUND, message)
        })?;
        let path = self.packed.join(root.to_string());
        let outcome = self.fetch(models, (kind, root), source, &path).await;
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "remove a packed artifact");
        }
        outcome?;
        self.lookup(root).await?.ok_or_else(|| {
            let message = format!("the tree of artifact {root} changed right after it was unpacked");
            Refusal::new(error_code::ARTIFACT_TREE_CHANGED, message)
        })
    }

    async fn fetch(
        &self,
        models: &Models,
        (kind, root): (StoredKind, ArtifactRoot),
        source: &ModelSource,
        path: &Path,
    ) -> Result<(), Refusal> {
        let unwritable = |error: io::Error| {
            let message = format!("create {}: {error}", path.display());
            Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
        };
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = opened.map_err(unwritable)?;
        models.fetch_packed(kind, source, &file).await?;
        let cache = self.cache.clone();
        blocking(move || cache.insert(root, &file)).await
    }

    async fn lookup(&self, root: ArtifactRoot) -> Result<Option<TreeInUse>, Refusal> {
        let cache = self.cache.clone();
        match blocking(move || cache.lookup(root)).await? {
            CachedTree::Ready(tree) => Ok(Some(tree)),
            CachedTree::Absent => Ok(None),
            CachedTree::Changed(fault) => {
                self.changed.fetch_add(1, Ordering::Relaxed);
                let code = error_code::ARTIFACT_TREE_CHANGED;
                tracing::error!(artifact = %root, %code, %fault, "a changed tree is fetched anew");
                Ok(None)
            }
        }
    }
}

/// Runs work of the cache on a thread meant for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| Refusal::of(error.code(), &error)),
        Err(error) => Err(Refusal::new(error_code::ARTIFACT_UNREADABLE, error.to_string())),
    }
}

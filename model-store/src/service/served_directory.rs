//! A directory that is served as a store: its disk, and facts about the imports in it.

use super::ShardServiceError;
use super::rights::{ImportFacts, ModelDecisions, Seal};
use crate::disk::Disk;
use crate::geometry::{Geometry, MANIFESTS, Name, manifest_path};
use crate::import_directory::{ImportDirectory, RecordedSeal};
use crate::read::parse_manifest;
use crate::store::{panicked, walk};
use futures::TryStreamExt;
use object_store::ObjectStore;
use protocol::ModelRoot;
use protocol::limits::MODEL_MANIFEST_BYTES_MAX;
use protocol::model::{ModelManifest, ModelNonce, StoredKind};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Number of locks that the last steps of uploads share.
const LOCKS: usize = 64;
/// Maximum number of imports that are remembered as silent.
const SILENT_MAX: usize = 4096;

/// One directory that is served as a store.
#[derive(Debug)]
pub(super) struct ServedDirectory {
    pub(super) root: PathBuf,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) disk: Disk,
    /// Imports that were found silent and have not been written since: an object of each is removed without
    /// a look at all the others.
    silent: Mutex<BTreeSet<ModelNonce>>,
    /// Imports of the manifests that were read, and whether they are of data of jobs.
    nonces: Mutex<BTreeMap<ModelRoot, (ModelNonce, bool)>>,
    /// The manifest that was read last.
    opened: tokio::sync::Mutex<Option<(ModelRoot, Arc<StoredManifest>)>>,
    finishing: Vec<tokio::sync::Mutex<()>>,
}

/// Manifest that passed its check, with its geometry.
pub(super) struct StoredManifest {
    pub(super) manifest: ModelManifest,
    pub(super) geometry: Geometry,
}

impl std::fmt::Debug for StoredManifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredManifest({})", self.manifest.name)
    }
}

impl ServedDirectory {
    pub(super) fn new(root: PathBuf, objects: Arc<dyn ObjectStore>) -> Self {
        Self {
            root,
            objects,
            disk: Disk::default(),
            silent: Mutex::default(),
            nonces: Mutex::default(),
            opened: tokio::sync::Mutex::default(),
            finishing: (0..LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
        }
    }

    /// Runs an operation on the directory with a permit of its disk.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, ShardServiceError> {
        Ok(self.disk.run(work).await.unwrap_or_else(|| Err(panicked()))?)
    }

    /// Runs work that blocks its thread, as [`ServedDirectory::run`] does.
    pub(super) async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, ShardServiceError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::NotFound => {
                object_store::Error::NotFound { path: String::new(), source: source.into() }
            }
            _ => object_store::Error::Generic { store: "directory", source: source.into() },
        };
        let done = self.disk.run_blocking(work).await.ok_or_else(panicked)?;
        Ok(done.map_err(failed)?)
    }

    pub(super) fn import(&self, nonce: ModelNonce) -> ImportDirectory {
        ImportDirectory::new(&self.root, nonce)
    }

    /// Returns the lock that the last step of an upload of this object takes, so that of two uploads of one
    /// object the second finds the first.
    pub(super) fn finishing(&self, object: &str) -> &tokio::sync::Mutex<()> {
        let sum = object.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        &self.finishing[sum % LOCKS]
    }

    /// Returns what decides about the objects of an import.
    pub(super) async fn facts(
        &self,
        nonce: ModelNonce,
        decisions: &dyn ModelDecisions,
    ) -> Result<ImportFacts, ShardServiceError> {
        let directory = self.import(nonce);
        let (writer, seal) = self.block(move || Ok((directory.writer()?, directory.seal()?))).await?;
        if writer.is_none() && seal.is_none() {
            return self.facts_without_links(nonce, decisions).await;
        }
        let seal = seal.map(|seal| sealed(seal, decisions));
        Ok(ImportFacts { writer, seal, is_empty: false, is_certain: true })
    }

    /// Returns the facts about an import that had neither writer nor seal: a new one, or one whose objects
    /// did not come through this service.
    ///
    /// Its first objects may arrive together, and one of them is claimed while the facts about another are
    /// gathered. The writer is therefore read after the objects: each object that is seen was claimed before.
    async fn facts_without_links(
        &self,
        nonce: ModelNonce,
        decisions: &dyn ModelDecisions,
    ) -> Result<ImportFacts, ShardServiceError> {
        let (found, is_certain) = self.find_manifest(nonce).await?;
        let directory = self.import(nonce);
        let reading = self.block(move || {
            if let Some((root, is_job_data)) = found {
                directory.seal_with(root, is_job_data)?;
            }
            let (seal, is_empty) = (directory.seal()?, directory.is_empty()?);
            Ok((directory.writer()?, seal, is_empty))
        });
        let (writer, seal, is_empty) = reading.await?;
        let seal = seal.map(|seal| sealed(seal, decisions));
        Ok(ImportFacts { writer, seal, is_empty: is_empty && writer.is_none(), is_certain })
    }

    /// Returns the root of a stored manifest that names this import, with whether it is of data of a job, and
    /// whether all manifests could be read.
    async fn find_manifest(
        &self,
        nonce: ModelNonce,
    ) -> Result<(Option<(ModelRoot, bool)>, bool), ShardServiceError> {
        let mut complete = true;
        let mut listing = walk(&self.root, MANIFESTS, &self.disk);
        while let Some(listed) = listing.try_next().await? {
            let Some(Name::Manifest(root)) = Name::of(&listed.name) else { continue };
            let known = held(&self.nonces).get(&root).copied();
            let (of, is_job_data) = match known {
                Some(known) => known,
                None => match self.manifest(root).await {
                    Ok(stored) => (stored.manifest.nonce, is_job_data(&stored.manifest)),
                    Err(ShardServiceError(_, code, reason)) => {
                        tracing::warn!(%root, %code, reason, "a stored manifest cannot be read");
                        complete = false;
                        continue;
                    }
                },
            };
            if of == nonce {
                return Ok((Some((root, is_job_data)), complete));
            }
        }
        Ok((None, complete))
    }

    /// Reads the stored copy of a manifest. One is read at a time, and the last one is kept.
    pub(super) async fn manifest(&self, root: ModelRoot) -> Result<Arc<StoredManifest>, ShardServiceError> {
        let mut opened = self.opened.lock().await;
        if let Some((of, stored)) = &*opened
            && *of == root
        {
            return Ok(stored.clone());
        }
        let file = self.root.join(manifest_path(root).as_ref());
        let reading = self.block(move || {
            if std::fs::metadata(&file)?.len() > MODEL_MANIFEST_BYTES_MAX as u64 {
                return Err(ErrorKind::FileTooLarge.into());
            }
            let bytes = std::fs::read(file)?;
            let invalid = |reason| io::Error::new(ErrorKind::InvalidData, reason);
            check_manifest(root, &bytes).map_err(invalid)
        });
        let manifest = reading.await?;
        held(&self.nonces).insert(root, (manifest.nonce, is_job_data(&manifest)));
        let stored = Arc::new(StoredManifest { geometry: Geometry::new(&manifest), manifest });
        *opened = Some((root, stored.clone()));
        Ok(stored)
    }

    /// Returns whether no object of an import was written for `age`.
    pub(super) async fn is_silent(
        &self,
        nonce: ModelNonce,
        now: SystemTime,
        age: std::time::Duration,
    ) -> Result<bool, ShardServiceError> {
        if held(&self.silent).contains(&nonce) {
            return Ok(true);
        }
        let directory = self.import(nonce);
        let youngest = self.block(move || directory.youngest()).await?;
        let is_old = |youngest| now.duration_since(youngest).is_ok_and(|found| found > age);
        let is_silent = youngest.is_none_or(is_old);
        if is_silent {
            let mut silent = held(&self.silent);
            if silent.len() >= SILENT_MAX {
                silent.clear();
            }
            silent.insert(nonce);
        }
        Ok(is_silent)
    }

    /// Records that a peer writes to an import.
    pub(super) fn is_written(&self, nonce: ModelNonce) {
        held(&self.silent).remove(&nonce);
    }
}

/// Returns a seal with the circle's decisions about its model.
fn sealed(seal: RecordedSeal, decisions: &dyn ModelDecisions) -> Seal {
    let RecordedSeal { root, sealed_at, is_job_data } = seal;
    let (is_named, is_forgotten) = (decisions.is_named(root), decisions.is_forgotten(root));
    Seal { root, sealed_at, is_named, is_forgotten, is_job_data }
}

/// Returns whether a manifest is of data of a job.
pub(super) fn is_job_data(manifest: &ModelManifest) -> bool {
    matches!(manifest.kind, StoredKind::JobData { .. })
}

/// Decodes a manifest and checks that it is the one of this root.
pub(super) fn check_manifest(root: ModelRoot, bytes: &[u8]) -> Result<ModelManifest, String> {
    let manifest = parse_manifest(root, bytes)?;
    manifest.check().map_err(|error| error.to_string())?;
    Ok(manifest)
}

fn held<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::rights::{WriteRule, write_rule};
    use object_store::local::LocalFileSystem;
    use protocol::PublicKey;

    const NONCE: ModelNonce = ModelNonce([1; 16]);
    const WRITER: PublicKey = PublicKey([2; 32]);
    const OTHER: PublicKey = PublicKey([3; 32]);

    /// Decisions of a circle that names and forgets no model.
    struct Undecided;

    impl ModelDecisions for Undecided {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn is_writer(&self, _peer: &PublicKey) -> bool {
            true
        }

        fn is_forgotten(&self, _root: ModelRoot) -> bool {
            false
        }

        fn is_named(&self, _root: ModelRoot) -> bool {
            false
        }
    }

    fn served(directory: &tempfile::TempDir) -> ServedDirectory {
        let objects = LocalFileSystem::new_with_prefix(directory.path()).expect("a directory");
        ServedDirectory::new(directory.path().into(), Arc::new(objects))
    }

    /// Stores the first object of an import for its writer, as an upload does.
    fn first_object(directory: &tempfile::TempDir, store: &ServedDirectory) {
        assert_eq!(store.import(NONCE).claim(WRITER).expect("claimed"), WRITER);
        let path = directory.path().join(crate::geometry::model_prefix(NONCE).as_ref()).join("00000000-00");
        std::fs::write(path, b"shard").expect("written");
    }

    #[tokio::test]
    async fn an_import_that_is_claimed_while_its_facts_are_gathered_has_its_writer() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = served(&directory);
        let new = store.facts(NONCE, &Undecided).await.expect("facts");
        assert_eq!((new.writer, new.is_empty), (None, true));
        assert_eq!(write_rule(&new, &WRITER), Some(WriteRule::First));
        // The upload beside this one ends after the links were looked for.
        first_object(&directory, &store);
        let facts = store.facts_without_links(NONCE, &Undecided).await.expect("facts");
        assert_eq!((facts.writer, facts.is_empty), (Some(WRITER), false));
        assert_eq!(write_rule(&facts, &WRITER), Some(WriteRule::Once), "the same writer goes on");
        assert_eq!(write_rule(&facts, &OTHER), None, "and no other peer");
        assert_eq!(store.facts(NONCE, &Undecided).await.expect("facts"), facts);
    }

    /// Attack: objects without a record of their writer, which did not come through the service, are claimed.
    #[tokio::test]
    async fn an_import_of_unknown_origin_is_claimed_by_no_peer() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = served(&directory);
        first_object(&directory, &store);
        let link = directory.path().join(crate::geometry::model_prefix(NONCE).as_ref()).join("writer");
        std::fs::remove_file(link).expect("removed");
        let facts = store.facts(NONCE, &Undecided).await.expect("facts");
        assert_eq!((facts.writer, facts.is_empty), (None, false));
        assert_eq!(write_rule(&facts, &OTHER), None);
        // Positive control: an import without objects is claimed by the first to write one.
        let path = directory.path().join(crate::geometry::model_prefix(NONCE).as_ref()).join("00000000-00");
        std::fs::remove_file(path).expect("removed");
        let facts = store.facts(NONCE, &Undecided).await.expect("facts");
        assert_eq!(write_rule(&facts, &OTHER), Some(WriteRule::First));
    }
}

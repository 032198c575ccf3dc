//! Data of jobs on its way between this node and the stores: packed trees, each under a key of its own.

use super::{Models, check_size, open_stores_of, read_refusal};
use crate::agent::core::{Refusal, data_places};
use model_store::{
    ImportError, ImportOptions, Imported, MapDestination, ModelKey, PlacementRule, Reader, Store, StoreError,
    fetch_manifest, fresh_nonce, let_go, unwrap_key, wrap_key,
};
use protocol::artifact::ARTIFACT_FILE;
use protocol::job_data::JobDataSource;
use protocol::keys::EncryptionKey;
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::{ModelName, error_code};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// Most storage nodes that an import tries to do without.
const NODES_WITHOUT_MAX: usize = 8;
/// Attempts at a write: after the second, the data is stored without its node.
const WRITE_ATTEMPTS: u32 = 2;

/// Data that this node stored, and may remove.
#[derive(Debug)]
pub(in crate::agent) struct StoredData {
    imported: Imported,
    key: ModelKey,
}

impl StoredData {
    pub(in crate::agent) fn record(&self) -> &ModelRecord {
        &self.imported.record
    }

    /// Returns the commitment to the key.
    pub(in crate::agent) fn key_commitment(&self) -> protocol::Digest {
        self.key.commitment()
    }

    /// Refuses data that has been in the stores for so long that they may let it go as an import that failed.
    pub(in crate::agent) fn check_fresh(&self) -> Result<(), Refusal> {
        let fresh = self.imported.check_fresh(SystemTime::now());
        fresh.map_err(|error| Refusal::of(error.code(), &error))
    }

    /// Wraps the key to these parties, sorted by recipient.
    pub(in crate::agent) fn wraps(
        &self,
        recipients: &[(Recipient, &EncryptionKey)],
    ) -> Result<Vec<KeyWrap>, Refusal> {
        let root = self.record().root;
        let wrap = |(recipient, to): &(Recipient, &EncryptionKey)| {
            wrap_key(&self.key, to, root, recipient.clone())
                .map_err(|error| Refusal::new(error.code(), error.to_string()))
        };
        let mut wraps: Vec<KeyWrap> = recipients.iter().map(wrap).collect::<Result<_, _>>()?;
        wraps.sort_by(|one, other| one.recipient.cmp(&other.recipient));
        Ok(wraps)
    }
}

impl Models {
    /// Encrypts a packed tree under a fresh key, and stores it. A storage node that does not answer or is
    /// full is done without, as long as enough others are left.
    ///
    /// # Errors
    /// If too few storage nodes take a shard. Written shards are removed as far as the stores allow.
    pub(in crate::agent) async fn store_data(
        &self,
        packed: &Path,
        name: &ModelName,
    ) -> Result<StoredData, Refusal> {
        // Nodes that failed lately are avoided at first, and the others as they fail.
        let mut avoided = self.failed_nodes.recent(Instant::now(), NODES_WITHOUT_MAX);
        let mut failed = BTreeSet::new();
        loop {
            let without = failed.union(&avoided).cloned().collect();
            let places = data_places(&self.circle.borrow().clone(), &without);
            let (key, nonce) = (ModelKey::generate(), fresh_nonce());
            let of_key = |error: model_store::KeyError| Refusal::new(error.code(), error.to_string());
            let (key, nonce) = (key.map_err(of_key)?, nonce.map_err(of_key)?);
            let options = ImportOptions {
                erasure: places.erasure,
                placement: PlacementRule { shards_per_domain_max: 1 },
                is_job_data: true,
                ..ImportOptions::new(name.clone(), nonce)
            };
            let open = |reference| {
                Store::open_or_closed(reference, &self.context).with_write_attempts(WRITE_ATTEMPTS)
            };
            let stores: Vec<Store> = places.stores.iter().map(open).collect();
            let stored = model_store::import(packed, options, &stores, &key, &self.pool, |_| ()).await;
            let error = match stored {
                Ok(imported) => return Ok(StoredData { imported, key }),
                Err(error) => error,
            };
            if matches!(error, ImportError::Placement(_)) && !avoided.is_empty() {
                avoided.clear();
                continue;
            }
            let node = failing_store(&error).and_then(|url| {
                let of_url = places.stores.iter().find(|store| store.url == url);
                of_url.map(|store| store.failure_domain.clone())
            });
            let again = node.filter(|_| failed.len() < NODES_WITHOUT_MAX).is_some_and(|node| {
                tracing::warn!(node, %error, "data of a job is stored without this node");
                self.failed_nodes.note(node.clone(), Instant::now());
                failed.insert(node)
            });
            if !again {
                return Err(Refusal::of(error.code(), &error));
            }
        }
    }

    /// Removes data that this node stored from its stores, as far as they allow.
    pub(in crate::agent) async fn let_go(&self, stored: &StoredData) {
        let stores = open_stores_of(&self.context, stored.record());
        let_go(&stored.imported, &stores).await;
    }

    /// Reads packed data of a job into an empty file. Its reader compares every byte with the root of the
    /// tree.
    ///
    /// # Errors
    /// If no store has it, this node has no key for it, or the stored item is other data.
    pub(in crate::agent) async fn fetch_data(
        &self,
        source: &JobDataSource,
        to: &File,
    ) -> Result<(), Refusal> {
        let data = &source.signed.data;
        let key = self.open_data_key(source)?;
        let stores = open_stores_of(&self.context, &data.stored);
        let manifest = fetch_manifest(data.stored.root, &stores, &self.pool).await;
        let manifest = manifest.map_err(|error| read_refusal(&error))?;
        check_size(&manifest, &data.stored)?;
        if manifest.kind != data.stored.kind || manifest.key_commitment != data.key_commitment {
            let message = format!("what is stored as the {} is other data", data.kind);
            return Err(Refusal::new(error_code::JOB_DATA_INVALID, message));
        }
        let file = manifest.file(ARTIFACT_FILE).filter(|file| file.offset == 0);
        let length = file.map(|file| file.length).ok_or_else(|| {
            Refusal::new(error_code::JOB_DATA_INVALID, format!("the {} is not one packed file", data.kind))
        })?;
        let unwritable = |error: io::Error| {
            Refusal::new(error_code::ARTIFACT_UNREADABLE, format!("write {length} bytes: {error}"))
        };
        let reader = Reader::open(manifest.clone(), &key, stores, self.pool.clone(), self.fault_sink());
        let reader = reader.map_err(|error| read_refusal(&error))?;
        let bytes = manifest.map_bytes();
        to.set_len(bytes).map_err(unwritable)?;
        let map = MapDestination::map(to, bytes).map_err(unwritable)?;
        let filled = reader.fill(Arc::new(map), Arc::new(|_| ())).await;
        filled.map_err(|error| read_refusal(&error))?;
        to.set_len(length).map_err(unwritable)
    }

    fn open_data_key(&self, source: &JobDataSource) -> Result<ModelKey, Refusal> {
        let closed = |message: &str| Refusal::new(error_code::MODEL_KEY_WRONG, message);
        let wrap = source.wrap.as_ref().ok_or_else(|| closed("no wrap of the data's key for this node"))?;
        if wrap.root != source.signed.data.stored.root {
            return Err(closed("the wrap is of another key"));
        }
        unwrap_key(wrap, &self.secret).map_err(|error| Refusal::new(error.code(), error.to_string()))
    }
}

/// Returns the URL of the store without which an import might succeed.
fn failing_store(error: &ImportError) -> Option<&str> {
    match error {
        ImportError::Store(StoreError::Unreachable { url, .. } | StoreError::Full { url }) => Some(url),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that is down or full is done without; one that refuses the import itself is not.
    #[test]
    fn an_import_goes_on_without_a_store_that_is_down_or_full() {
        let url = || "node://node-1/disk-0".to_string();
        let down = ImportError::Store(StoreError::Full { url: url() });
        assert_eq!(failing_store(&down), Some(url().as_str()));
        let down = ImportError::Store(StoreError::Unreachable { url: url(), reason: "closed".into() });
        assert_eq!(failing_store(&down), Some(url().as_str()));
        let refused = ImportError::Store(StoreError::Refused { url: url(), reason: "no import".into() });
        assert_eq!(failing_store(&refused), None);
    }
}

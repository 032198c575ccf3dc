//! Reading of a job's data with the identity of a node.

use super::ModelAccess;
use anyhow::Result;
use model_store::{MapDestination, ModelKey, Reader, Store, fetch_manifest, log_faults, unpack_data};
use protocol::artifact::ARTIFACT_FILE;
use protocol::job_data::JobData;
use protocol::{Refusal, error_code};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

impl ModelAccess {
    /// Fetches data of a job, whose statement was verified before, and unpacks it into `to`, which must not
    /// exist. `work` is an empty directory with space for the packed data.
    ///
    /// # Errors
    /// Returns an error if no store has the data, or its bytes are not those that the statement names. A part
    /// of the tree may be left in `to` then.
    pub async fn fetch_job_data(&self, data: &JobData, key: &ModelKey, work: &Path, to: &Path) -> Result<()> {
        let other = |what: &str| Refusal::new(error_code::JOB_DATA_INVALID, format!("{}: {what}", data.kind));
        let tree = data.tree().ok_or_else(|| other("the statement names no data of a job"))?;
        let stores: Vec<Store> =
            data.stored.stores.iter().map(|store| Store::open_or_closed(store, &self.context)).collect();
        let manifest = fetch_manifest(data.stored.root, &stores, &self.pool).await;
        let manifest = manifest.map_err(|error| Refusal::of(error.code(), &error))?;
        if manifest.kind != data.stored.kind || manifest.key_commitment != data.key_commitment {
            return Err(other("what is stored is other data").into());
        }
        let file = manifest.file(ARTIFACT_FILE).filter(|file| file.offset == 0);
        let length = file.map(|file| file.length).ok_or_else(|| other("it is not one packed file"))?;
        let reader = Reader::open(manifest.clone(), key, stores, self.pool.clone(), log_faults());
        let reader = reader.map_err(|error| Refusal::of(error.code(), &error))?;
        let packed = work.join("packed");
        let file = File::options().read(true).write(true).create_new(true).open(&packed)?;
        file.set_len(manifest.map_bytes())?;
        let map = MapDestination::map(&file, manifest.map_bytes())?;
        let filled = reader.fill(Arc::new(map), Arc::new(|_| ())).await;
        filled.map_err(|error| Refusal::of(error.code(), &error))?;
        file.set_len(length)?;
        let to = to.to_path_buf();
        let unpacked = tokio::task::spawn_blocking(move || unpack_data(&file, tree, &to)).await?;
        unpacked.map_err(|error| Refusal::of(error.code(), &error))?;
        Ok(())
    }
}

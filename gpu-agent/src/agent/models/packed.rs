//! Packed artifacts on their way from the stores into a file of this node.

use super::{ModelSource, Models, check_size, read_refusal};
use crate::agent::core::Refusal;
use model_store::{MapDestination, fetch_manifest};
use protocol::artifact::ARTIFACT_FILE;
use protocol::error_code;
use protocol::model::StoredKind;
use std::fs::File;
use std::io;
use std::sync::Arc;

impl Models {
    /// Reads the packed item of this kind, with its tree, into an empty file. The record of it is untrusted:
    /// the cache compares every byte with the tree's root.
    ///
    /// # Errors
    /// If no store has it, the key is missing or wrong, or the stored item is of another kind or tree.
    pub(in crate::agent) async fn fetch_packed(
        &self,
        kind: StoredKind,
        source: &ModelSource,
        to: &File,
    ) -> Result<(), Refusal> {
        let root = source.record.root;
        let key = self.open_key(root, source)?;
        let manifest = fetch_manifest(root, &self.open_stores(source), &self.pool).await;
        let manifest = manifest.map_err(|error| read_refusal(&error))?;
        check_size(&manifest, &source.record)?;
        if manifest.kind != kind {
            let message = format!("`{}` is not the {} that the job names", manifest.name, kind.name());
            return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
        }
        let invalid = || {
            let message = format!("`{}` is not one packed file", manifest.name);
            Refusal::new(error_code::ARTIFACT_INVALID, message)
        };
        let file = manifest.file(ARTIFACT_FILE).filter(|file| file.offset == 0).ok_or_else(invalid)?;
        let unwritable = |error: io::Error| {
            let message = format!("write {} bytes of the packed artifact: {error}", file.length);
            Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
        };
        let reader = self.reader(&manifest, &key, source).map_err(|error| read_refusal(&error))?;
        let bytes = manifest.map_bytes();
        to.set_len(bytes).map_err(unwritable)?;
        let map = MapDestination::map(to, bytes).map_err(unwritable)?;
        let filled = reader.fill(Arc::new(map), Arc::new(|_| ())).await;
        filled.map_err(|error| read_refusal(&error))?;
        to.set_len(file.length).map_err(unwritable)
    }
}

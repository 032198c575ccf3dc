//! Models and datasets on their way into the files that ranks read.

use super::{ModelSource, Models, check_size, read_refusal};
use crate::agent::core::Refusal;
use model_store::{MapDestination, fetch_manifest};
use protocol::model::{ModelFile, ModelManifest, StoredKind};
use protocol::{ModelRoot, error_code};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// Modes of directories and files: the ranks' user is not the owner.
const DIRECTORY: u32 = 0o755;
const PLAIN: u32 = 0o644;
/// Size of the buffer through which contents pass, in bytes.
const COPY_BYTES: usize = 1024 * 1024;

impl Models {
    /// Returns the kind of the stored item of this approved root, by its own manifest.
    ///
    /// # Errors
    /// If control names the location of another item, or no store has the manifest.
    pub(in crate::agent) async fn kind_of(
        &self,
        root: ModelRoot,
        source: &ModelSource,
    ) -> Result<StoredKind, Refusal> {
        Ok(self.manifest_of(root, source).await?.kind)
    }

    async fn manifest_of(
        &self,
        root: ModelRoot,
        source: &ModelSource,
    ) -> Result<Arc<ModelManifest>, Refusal> {
        if source.record.root != root {
            let message = "control names the location of another item than the approved one";
            return Err(Refusal::new(error_code::MODEL_RECORD_DIFFERS, message));
        }
        let manifest = fetch_manifest(root, &self.open_stores(source), &self.pool).await;
        let manifest = manifest.map_err(|error| read_refusal(&error))?;
        check_size(&manifest, &source.record)?;
        Ok(manifest)
    }

    /// Writes the files of a model below `to`, an empty directory. `work` is a file for their bytes, each of
    /// which is verified before it is copied.
    ///
    /// # Errors
    /// If no store has the model, this node has no key, or the item is no model.
    pub(in crate::agent) async fn place_model(
        &self,
        root: ModelRoot,
        source: &ModelSource,
        work: File,
        to: &Path,
    ) -> Result<(), Refusal> {
        let manifest = self.manifest_of(root, source).await?;
        if manifest.kind != StoredKind::Model {
            let message = format!("`{}` is of kind {}, not model", manifest.name, manifest.kind.name());
            return Err(Refusal::new(error_code::MODEL_KIND_WRONG, message));
        }
        let key = self.open_key(root, source)?;
        let failed = |error: io::Error| {
            let message = format!("place model `{}`: {error}", manifest.name);
            Refusal::new(error_code::ARTIFACT_UNREADABLE, message)
        };
        let reader = self.reader(&manifest, &key, source).map_err(|error| read_refusal(&error))?;
        let bytes = manifest.map_bytes();
        // An empty file cannot be mapped, but a model of empty files is valid.
        if bytes > 0 {
            work.set_len(bytes).map_err(failed)?;
            let map = MapDestination::map(&work, bytes).map_err(failed)?;
            let filled = reader.fill(Arc::new(map), Arc::new(|_| ())).await;
            filled.map_err(|error| read_refusal(&error))?;
        }
        let (files, to) = (manifest.files.clone(), to.to_path_buf());
        let copied = tokio::task::spawn_blocking(move || copy_files(&work, &files, &to)).await;
        copied.map_err(io::Error::other).and_then(|copied| copied).map_err(failed)
    }
}

/// Copies the files of a map. Their paths were checked with the manifest: they stay below the directory.
fn copy_files(map: &File, files: &[ModelFile], to: &Path) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    for ModelFile { path, offset, length } in files {
        let place = to.join(path);
        if let Some(parent) = place.parent() {
            DirBuilder::new().recursive(true).mode(DIRECTORY).create(parent)?;
        }
        let file = File::options().write(true).create_new(true).mode(PLAIN).open(place)?;
        let mut at = 0;
        while at < *length {
            let most = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
            map.read_exact_at(&mut buffer[..most], offset + at)?;
            file.write_all_at(&buffer[..most], at)?;
            at += most as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn files_are_copied_from_their_places_in_the_map() {
        let directory = tempfile::tempdir().unwrap();
        let (path, to) = (directory.path().join("map"), directory.path().join("model"));
        let mut map = File::create_new(&path).unwrap();
        map.write_all(&[vec![1; 4096], vec![2; 3000]].concat()).unwrap();
        let file = |path: &str, offset, length| ModelFile { path: path.into(), offset, length };
        let files = [file("config.json", 0, 10), file("empty", 4096, 0), file("deep/weights", 4096, 3000)];
        std::fs::create_dir(&to).unwrap();
        copy_files(&File::open(path).unwrap(), &files, &to).unwrap();
        assert_eq!(std::fs::read(to.join("config.json")).unwrap(), [1; 10]);
        assert_eq!(std::fs::read(to.join("deep/weights")).unwrap(), [2; 3000]);
        assert!(std::fs::read(to.join("empty")).unwrap().is_empty());
    }
}

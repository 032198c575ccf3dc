//! Comparison of a directory with the content of a stored model.

use crate::error::ImportError;
use crate::source::{SourceFile, inspect};
use protocol::Digest;
use protocol::model::{ModelFile, ModelManifest};
use std::path::Path;

/// Compares every byte of a directory with the digests of a stored model's segments: equal content gives the
/// root of that manifest again, under its nonce and key. Blocks on the disk.
///
/// # Errors
/// [`ImportError::ContentDiffers`] for the first file that differs, and every error of reading.
pub fn compare_content(directory: &Path, manifest: &ModelManifest) -> Result<(), ImportError> {
    let found = inspect(directory)?;
    let differs = |path: &str, reason| ImportError::ContentDiffers { path: path.into(), reason };
    let is_stored = |file: &&SourceFile| manifest.files.iter().any(|stored| stored.path == file.path);
    if let Some(file) = found.files.iter().find(|file| !is_stored(file)) {
        return Err(differs(&file.path, "it is not stored"));
    }
    for stored in &manifest.files {
        let file = found.files.iter().find(|file| file.path == stored.path);
        let file = file.ok_or_else(|| differs(&stored.path, "the directory lacks it"))?;
        if file.length != stored.length {
            return Err(differs(&stored.path, "the lengths differ"));
        }
        compare_file(file, stored, manifest)?;
    }
    Ok(())
}

fn compare_file(file: &SourceFile, stored: &ModelFile, manifest: &ModelManifest) -> Result<(), ImportError> {
    let end = stored.offset + stored.length;
    let segments = manifest.segments.iter().filter(|part| (stored.offset..end).contains(&part.offset));
    for segment in segments {
        let mut bytes = vec![0; segment.length as usize];
        file.read(segment.offset - stored.offset, &mut bytes)?;
        if Digest::of(&bytes) != segment.digest {
            let reason = "the bytes differ";
            return Err(ImportError::ContentDiffers { path: stored.path.clone(), reason });
        }
    }
    Ok(())
}

//! Quantisation of models on their way into the stores, and the comparison of a stored one with its source.

use super::Environment;
use super::models::{Fetched, bytes_bar};
use crate::node::ModelAccess;
use anyhow::{Result, anyhow};
use clap::ValueEnum;
use model_store::Quantized;
use protocol::manifest::format_bytes;
use protocol::model::ModelRecord;
use protocol::{ModelRoot, Refusal};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Weights that an import can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum QuantizeTo {
    /// Integers of 8 bits in groups of 32, each group with a scale
    Int8,
}

/// A model that was quantised into a directory, which is removed when this value is dropped.
pub(super) struct QuantizedDirectory {
    folder: Fetched,
    done: Quantized,
}

impl QuantizedDirectory {
    /// Quantises the model in a directory into one below a node's.
    pub(super) async fn make(source: &Path, node: &Path, to: QuantizeTo) -> Result<Self> {
        let QuantizeTo::Int8 = to;
        let folder = Fetched::below(node)?;
        let (from, into, bar) = (source.to_path_buf(), folder.0.clone(), bytes_bar());
        bar.set_message("quantised");
        let shown = bar.clone();
        let work = move || {
            model_store::quantize(&from, &into, |done, total| {
                shown.set_length(total);
                shown.set_position(done);
            })
        };
        let done = tokio::task::spawn_blocking(work).await.map_err(|error| anyhow!("quantise: {error}"))?;
        bar.finish_and_clear();
        let done = done.map_err(|error| Refusal::of(error.code(), &error))?;
        Ok(Self { folder, done })
    }

    pub(super) fn path(&self) -> &Path {
        &self.folder.0
    }

    /// Returns what was done, as a sentence for the importer.
    pub(super) fn note(&self) -> String {
        let Quantized { matrices, bytes_before, bytes_after, source } = self.done;
        format!(
            "{matrices} matrices have 8 bits a weight: {} became {}; digest of the source {source}",
            format_bytes(bytes_before),
            format_bytes(bytes_after)
        )
    }
}

/// Result of a comparison with a source.
#[derive(Debug, Serialize)]
struct RecomputedModel {
    /// Name of the stored model.
    name: String,
    /// Root that the source gives again.
    root: ModelRoot,
    /// Bytes that were compared.
    bytes: u64,
}

/// Quantises a directory again, and compares every byte with what is stored.
pub(super) async fn recompute(
    (access, record): (&ModelAccess, &ModelRecord),
    (source, node): (PathBuf, &Path),
    environment: &Environment,
) -> Result<()> {
    let again = QuantizedDirectory::make(&source, node, QuantizeTo::Int8).await?;
    access.compare(record, again.path()).await?;
    let (name, root) = (record.name.to_string(), record.root);
    let recomputed = RecomputedModel { name, root, bytes: record.bytes };
    environment.output().print(&recomputed, |found| {
        format!("{} is what `{}` gives: root {}", found.name, source.display(), found.root)
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::error_code;
    use std::fs;

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
    }

    fn left_below(node: &Path) -> usize {
        fs::read_dir(node.join("fetched")).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn a_quantised_directory_is_removed_with_its_value_and_says_what_was_done() {
        let node = tempfile::tempdir().unwrap();
        let quantized = QuantizedDirectory::make(&tiny(), node.path(), QuantizeTo::Int8).await.unwrap();
        assert!(quantized.path().starts_with(node.path()) && quantized.path().join("config.json").is_file());
        assert_eq!(left_below(node.path()), 1);
        let note = quantized.note();
        assert!(note.contains("matrices have 8 bits a weight") && note.contains("became"), "{note}");
        drop(quantized);
        assert_eq!(left_below(node.path()), 0);
    }

    #[tokio::test]
    async fn a_source_that_cannot_be_quantised_is_refused_by_code_and_leaves_nothing() {
        let node = tempfile::tempdir().unwrap();
        let once = QuantizedDirectory::make(&tiny(), node.path(), QuantizeTo::Int8).await.unwrap();
        let again = QuantizedDirectory::make(once.path(), node.path(), QuantizeTo::Int8).await;
        let error = again.err().expect("quantised already");
        let refusal: &Refusal = error.downcast_ref().expect("a refusal");
        assert_eq!(refusal.code, error_code::MODEL_NOT_QUANTIZABLE);
        assert_eq!(left_below(node.path()), 1, "the first alone");
        let missing = QuantizedDirectory::make(Path::new("/nowhere"), node.path(), QuantizeTo::Int8).await;
        let error = missing.err().expect("no such directory");
        assert_eq!(error.downcast_ref::<Refusal>().expect("a refusal").code, error_code::MODEL_UNREADABLE);
    }
}

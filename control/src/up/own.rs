//! Names of the user's own models.
//!
//! Each model directory has one name, which later runs find again. Another directory, or the same directory
//! with other files, is another model.

use super::cluster::LocalCluster;
use anyhow::{Context as _, Result};
use host::files;
use protocol::model::ModelRecord;
use protocol::{Digest, Refusal, error_code};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Maximum length of a name derived from a directory, in characters: a numeric suffix still fits.
const NAME_LENGTH_MAX: usize = 48;
/// Maximum number of files in a directory: one with more is not a model, and is not read to the end.
const FILES_MAX: usize = 10_000;

/// Origin of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelOrigin {
    /// Directory or file of the model.
    path: PathBuf,
    /// Digest over the names, sizes and times of its files.
    fingerprint: Digest,
}

/// Returns the name of the model at this path.
///
/// The name is recorded before the import, so that a run after a crash continues under the same name.
///
/// # Errors
/// Returns an error if the path cannot be read, or control does not answer.
pub(super) async fn name(cluster: &LocalCluster, path: &Path) -> Result<String> {
    let place = || Refusal::new(error_code::MODEL_UNREADABLE, format!("`{}`", path.display()));
    let path = path.canonicalize().with_context(place)?;
    let source = ModelOrigin { fingerprint: fingerprint(&path).with_context(place)?, path };
    let file = cluster.layout.own_models();
    let mut known: BTreeMap<String, ModelOrigin> = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("`{}`", file.display()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => return Err(error.into()),
    };
    let models: Vec<ModelRecord> = cluster.context()?.client()?.list("/v1/models").await?;
    let registered = models.iter().map(|record| record.name.to_string()).collect();
    let name = choose(&known, &registered, &source);
    known.insert(name.clone(), source);
    files::write_atomically(&file, &serde_json::to_vec_pretty(&known)?, 0o644)?;
    Ok(name)
}

/// Returns the recorded name of the source, or else a free name derived from its path.
fn choose(
    known: &BTreeMap<String, ModelOrigin>,
    registered: &BTreeSet<String>,
    source: &ModelOrigin,
) -> String {
    if let Some((name, _)) = known.iter().find(|(_, other)| *other == source) {
        return name.clone();
    }
    let stem = source.path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    let stem: String = stem.chars().map(plain).take(NAME_LENGTH_MAX).collect();
    let stem = match stem.trim_matches(['-', '.', '_']) {
        "" => "own",
        stem => stem,
    };
    let free = |name: &String| !known.contains_key(name) && !registered.contains(name);
    let numbered = (2_u32..).map(|number| format!("{stem}-{number}"));
    std::iter::once(stem.to_string()).chain(numbered).find(free).unwrap_or_else(|| stem.to_string())
}

fn fingerprint(path: &Path) -> std::io::Result<Digest> {
    let mut lines = BTreeSet::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(place) = open.pop() {
        let metadata = std::fs::metadata(&place)?;
        if metadata.is_dir() && lines.len() < FILES_MAX {
            for entry in std::fs::read_dir(&place)? {
                open.push(entry?.path());
            }
        }
        let name = place.strip_prefix(path).unwrap_or(&place).display().to_string();
        let length = if metadata.is_dir() { 0 } else { metadata.len() };
        lines.insert(format!("{name}\t{length}\t{}.{}", metadata.mtime(), metadata.mtime_nsec()));
    }
    Ok(Digest::of(lines.into_iter().collect::<Vec<_>>().join("\n").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, content: &[u8]) -> ModelOrigin {
        ModelOrigin { path: path.into(), fingerprint: Digest::of(content) }
    }

    #[test]
    fn each_directory_has_a_name_of_its_own_and_keeps_it() {
        let mut known = BTreeMap::new();
        let mut registered = BTreeSet::from(["minilm".to_string()]);
        let mut serve = |path: &str, content: &[u8]| {
            let source = source(path, content);
            let name = choose(&known, &registered, &source);
            known.insert(name.clone(), source);
            registered.insert(name.clone());
            name.parse::<protocol::ModelName>().unwrap_or_else(|error| panic!("{name}: {error}"));
            name
        };
        for (path, content, expected) in [
            ("/models/My Llama_3.2", b"a", "my-llama_3.2"),
            ("/models/My Llama_3.2", b"a", "my-llama_3.2"),
            ("/elsewhere/My Llama_3.2", b"a", "my-llama_3.2-2"),
            ("/models/My Llama_3.2", b"b", "my-llama_3.2-3"),
            ("/elsewhere/My Llama_3.2", b"a", "my-llama_3.2-2"),
            ("/models/minilm", b"a", "minilm-2"),
            ("/models/...", b"a", "own"),
            ("/", b"a", "own-2"),
        ] {
            assert_eq!(serve(path, content), expected, "{path}");
        }
        assert_eq!(serve(&format!("/{}", "x".repeat(200)), b"a").len(), NAME_LENGTH_MAX);
    }

    #[test]
    fn a_changed_file_is_another_model() {
        let folder = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(folder.path().join("part")).expect("made");
        std::fs::write(folder.path().join("part/config.json"), "{}").expect("written");
        let before = fingerprint(folder.path()).expect("readable");
        assert_eq!(fingerprint(folder.path()).expect("readable"), before);
        std::fs::write(folder.path().join("part/config.json"), "{ }").expect("written");
        assert_ne!(fingerprint(folder.path()).expect("readable"), before);
        assert!(fingerprint(&folder.path().join("nothing")).is_err());
    }
}

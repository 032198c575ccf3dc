//! Quantisation of a model's matrices: a directory of safetensors becomes another one, byte for byte the same
//! on every machine.
//!
//! The matrices of linear layers, and the table of embeddings of a decoder, are written in the panels of
//! [`kernels::int8`] under their own names, as tensors of bytes. All other tensors and files are copied.
//! `config.json` gets the recipe, which names the digest of the files from which the weights come.

mod content;
mod rules;
mod tensors;

use crate::error::ImportError;
use crate::source::{InspectedModel, SourceFile, inspect, small};
use protocol::Digest;
use protocol::checkpoint::Quantization;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use content::compare_content;
pub use rules::is_quantized;

/// Bits of a quantised weight.
const BITS: u32 = 8;
/// File with the configuration.
const CONFIG: &str = "config.json";
/// Field of the configuration that holds the recipe.
const FIELD: &str = "quantization_config";
/// File that says in which file of several each tensor is.
const INDEX: &str = "model.safetensors.index.json";
/// Bytes that are copied and hashed at a time.
const PART: usize = 1 << 20;
/// Domain of the digest of a source.
const SOURCE_DOMAIN: &str = "quorate 2026-11-25 source of quantised weights";

/// Result of a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantized {
    /// Matrices that were quantised.
    pub matrices: usize,
    /// Bytes of all files before.
    pub bytes_before: u64,
    /// Bytes of all files after.
    pub bytes_after: u64,
    /// Digest of the files from which the weights come.
    pub source: Digest,
}

/// Quantises the model in a directory into an empty one. `progress` gets the bytes of the source that are
/// done, and all of them. Blocks on the disk and on the arithmetic.
///
/// # Errors
/// Every error for which an import would refuse the source; [`ImportError::Unserved`] for a model that no
/// built-in engine serves, [`ImportError::NotQuantizable`] for one that has been quantised or has no matrix.
pub fn quantize(
    from: &Path,
    to: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Quantized, ImportError> {
    let source = inspect(from)?;
    check(&source)?;
    let digest = digest_of(&source)?;
    let recipe = Quantization { bits: BITS, source: digest };
    let (total, mut done, mut matrices) = (source.bytes(), 0, 0);
    for file in &source.files {
        let target = create(to, &file.path)?;
        match file.path.as_str() {
            CONFIG => write_all(target, &with_recipe(&small(file, "a configuration")?, recipe)?)?,
            INDEX => write_all(target, &without_sizes(&small(file, "an index")?)?)?,
            path if path.ends_with(".safetensors") => {
                matrices += tensors::rewrite(file, target, |bytes| progress(done + bytes, total))?;
            }
            _ => copy(file, target)?,
        }
        done += file.length;
        progress(done, total);
    }
    if matrices == 0 {
        let reason = "it has no matrix that a quantisation applies to";
        return Err(ImportError::NotQuantizable { reason });
    }
    let bytes_after = inspect(to)?.bytes();
    Ok(Quantized { matrices, bytes_before: total, bytes_after, source: digest })
}

fn check(source: &InspectedModel) -> Result<(), ImportError> {
    if let Some(error) = &source.unserved {
        return Err(ImportError::Unserved(error.clone()));
    }
    let Some(config) = source.files.iter().find(|file| file.path == CONFIG) else {
        return Err(ImportError::FileMissing { path: CONFIG.into() });
    };
    let config: serde_json::Value =
        serde_json::from_slice(&small(config, "a configuration")?).map_err(damaged)?;
    if config.get(FIELD).is_some() {
        return Err(ImportError::NotQuantizable { reason: "its weights are quantised" });
    }
    Ok(())
}

/// Returns the digest over paths, lengths and contents of all files, in the order of their paths.
fn digest_of(source: &InspectedModel) -> Result<Digest, ImportError> {
    let mut files: Vec<&SourceFile> = source.files.iter().collect();
    files.sort_by(|one, other| one.path.cmp(&other.path));
    let mut hasher = blake3::Hasher::new_derive_key(SOURCE_DOMAIN);
    for file in files {
        for part in
            [&(file.path.len() as u64).to_le_bytes()[..], file.path.as_bytes(), &file.length.to_le_bytes()]
        {
            hasher.update(part);
        }
        for_each_part(file, |part| {
            hasher.update(part);
            Ok(())
        })?;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

fn for_each_part(
    file: &SourceFile,
    mut take: impl FnMut(&[u8]) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let mut part = vec![0; PART.min(file.length as usize)];
    let mut at = 0;
    while at < file.length {
        let length = (file.length - at).min(PART as u64) as usize;
        file.read(at, &mut part[..length])?;
        take(&part[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Returns the configuration with the recipe as its first field. All other bytes stay as they are: no parser
/// of numbers or texts changes any.
fn with_recipe(config: &[u8], recipe: Quantization) -> Result<Vec<u8>, ImportError> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(config).map_err(damaged)?;
    let begin = config.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
    let comma = if object.is_empty() { "" } else { "," };
    let field = format!("\n  \"{FIELD}\": {}{comma}", recipe.to_json());
    Ok([&config[..begin], field.as_bytes(), &config[begin..]].concat())
}

/// Returns the index without its `metadata`, whose sizes are those of the original.
fn without_sizes(index: &[u8]) -> Result<Vec<u8>, ImportError> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let of_index =
        |error: serde_json::Error| ImportError::Damaged { path: INDEX.into(), reason: error.to_string() };
    let index: Index = serde_json::from_slice(index).map_err(of_index)?;
    serde_json::to_vec_pretty(&index).map_err(of_index)
}

fn damaged(error: serde_json::Error) -> ImportError {
    ImportError::Damaged { path: CONFIG.into(), reason: error.to_string() }
}

/// A file that is being written.
struct TargetFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl TargetFile {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.writer.write_all(bytes).map_err(|error| unwritable(&self.path, error))
    }

    fn finish(mut self) -> Result<(), ImportError> {
        self.writer.flush().map_err(|error| unwritable(&self.path, error))
    }
}

fn unwritable(path: &Path, source: io::Error) -> ImportError {
    ImportError::Unwritable { path: path.into(), source }
}

fn create(directory: &Path, path: &str) -> Result<TargetFile, ImportError> {
    let path = directory.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| unwritable(parent, error))?;
    }
    let file = File::options().write(true).create_new(true).open(&path);
    let file = file.map_err(|error| unwritable(&path, error))?;
    Ok(TargetFile { writer: BufWriter::with_capacity(PART, file), path })
}

fn write_all(mut target: TargetFile, bytes: &[u8]) -> Result<(), ImportError> {
    target.write(bytes)?;
    target.finish()
}

fn copy(file: &SourceFile, mut target: TargetFile) -> Result<(), ImportError> {
    for_each_part(file, |part| target.write(part))?;
    target.finish()
}

#[cfg(test)]
mod tests;

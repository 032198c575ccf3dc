//! Source of an import: a directory of a model, or one file. Refuses formats that can carry code, truncated
//! files, and models that an engine could not start with, before anything is written.
//!
//! Names that begin with a dot (`.git`, `.cache`, `.gitattributes`) are skipped: they belong to tools, not to
//! a model. Links that stay inside the directory are followed. Links from a snapshot in Hugging Face's cache
//! to the blobs beside it are followed too. Other links are refused. A file that is a packed artifact is
//! stored as one, under one path.

pub(crate) mod gguf;
pub(crate) mod safetensors;

use crate::artifact::{ArtifactError, is_packed, read_index};
use crate::error::ImportError;
use crate::layout::{Extent, Rank};
use protocol::artifact::ARTIFACT_FILE;
use protocol::checkpoint::{CheckpointError, CheckpointFiles, registered_architecture, servable};
use protocol::model::{FILES_MAX, StoredKind, is_safe_path};
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Maximum depth of directories: Hugging Face repositories have two levels.
const DEPTH_MAX: usize = 8;
/// Largest file in bytes that is loaded early. Configuration and tokenizer files are smaller; a larger file
/// waits until the weights are there.
const EARLY_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Extensions of files whose format can run code when loaded.
const PICKLE_ENDINGS: [&str; 8] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "dill"];

/// A model on this machine that passed inspection.
#[derive(Debug, Clone)]
pub struct InspectedModel {
    /// Files in the order of the weights map.
    pub files: Vec<SourceFile>,
    /// Kind, by the content: a packed artifact, or a model.
    pub kind: StoredKind,
    /// Architecture: `bert`, `llama`, ... from `config.json`; `gguf` or `file` without one; of an artifact,
    /// its processor.
    pub architecture: String,
    /// Reason for which no built-in engine serves the model, if its configuration says so.
    pub unserved: Option<CheckpointError>,
    /// Notes for the operator, as sentences.
    pub notes: Vec<String>,
}

/// Defect of a header.
#[derive(Debug)]
pub(crate) enum Flaw {
    /// The header cannot be read.
    Unreadable(io::Error),
    /// The header contradicts itself or its file.
    Damaged(String),
    /// The header has an unknown version, or names an unknown type.
    Unknown(String),
}

impl Flaw {
    /// Returns the error of an import for a flaw of this file, read here.
    pub(crate) fn in_file(self, path: &str, location: &Path) -> ImportError {
        match self {
            Self::Unreadable(error) => unreadable(location, error),
            Self::Damaged(reason) => ImportError::Damaged { path: path.into(), reason },
            Self::Unknown(reason) => ImportError::FormatUnknown { path: path.into(), reason },
        }
    }
}

/// One file of a model.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path inside the model.
    pub path: String,
    /// Path on this machine.
    pub location: PathBuf,
    /// Length in bytes.
    pub length: u64,
    identity: FileIdentity,
    pub(crate) extents: Vec<Extent>,
}

/// Identity of a file, which distinguishes it from a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), modified }
    }
}

impl InspectedModel {
    /// Returns the total length of all files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }
}

impl SourceFile {
    /// Reads `bytes.len()` bytes at `offset`, if the file is still the one that was inspected.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), ImportError> {
        let file = File::open(&self.location).map_err(|error| unreadable(&self.location, error))?;
        self.check(&file)?;
        file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => ImportError::Changed { path: self.path.clone() },
            _ => unreadable(&self.location, error),
        })?;
        self.check(&file)
    }

    fn check(&self, file: &File) -> Result<(), ImportError> {
        let metadata = file.metadata().map_err(|error| unreadable(&self.location, error))?;
        let same = metadata.len() == self.length && FileIdentity::of(&metadata) == self.identity;
        if same { Ok(()) } else { Err(ImportError::Changed { path: self.path.clone() }) }
    }
}

fn unreadable(path: &Path, source: io::Error) -> ImportError {
    ImportError::Unreadable { path: path.into(), source }
}

/// Architecture of packed data, which runs on no processor.
const DATA_ARCHITECTURE: &str = "data";

/// Inspects a directory or a file without writing anything. Blocks on the disk.
///
/// # Errors
/// Every error for which an import would refuse the source; see [`ImportError`]. A model that no built-in
/// engine serves is no error here: the result names the reason.
pub fn inspect(path: &Path) -> Result<InspectedModel, ImportError> {
    let root = fs::canonicalize(path).map_err(|error| unreadable(path, error))?;
    let metadata = fs::metadata(&root).map_err(|error| unreadable(path, error))?;
    if metadata.is_file() {
        return inspect_file(&root, &metadata);
    }
    let mut found = Vec::new();
    let homes: Vec<PathBuf> = std::iter::once(root.clone()).chain(blobs_of(&root)).collect();
    walk(&homes, &root, 0, &mut found)?;
    // Weights come last, so that configuration and tokenizer precede them in the map too.
    found.sort_by(|a, b| (is_weights(&a.0), &a.0).cmp(&(is_weights(&b.0), &b.0)));
    let files: Result<Vec<_>, _> = found.into_iter().map(|(path, at, meta)| look(path, at, &meta)).collect();
    let files = files?;
    let (architecture, unserved) = check_directory(&files)?;
    Ok(InspectedModel { notes: notes(&files), files, kind: StoredKind::Model, architecture, unserved })
}

/// Returns notes on the files that are stored although no built-in engine can use them.
fn notes(files: &[SourceFile]) -> Vec<String> {
    let of_gguf = files.iter().filter(|file| ending(&file.path) == "gguf");
    let note = |file: &SourceFile| {
        format!("`{}` is stored, but no built-in engine reads GGUF yet; they read safetensors", file.path)
    };
    of_gguf.map(note).collect()
}

fn inspect_file(path: &Path, metadata: &Metadata) -> Result<InspectedModel, ImportError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_string();
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    if is_packed(&file) {
        return inspect_artifact(path, metadata, &file);
    }
    let architecture = if name.ends_with(".gguf") { "gguf" } else { "file" };
    let files = vec![look(name, path.into(), metadata)?];
    let architecture = architecture.to_string();
    let kind = StoredKind::Model;
    Ok(InspectedModel { notes: notes(&files), files, kind, architecture, unserved: None })
}

fn inspect_artifact(path: &Path, metadata: &Metadata, file: &File) -> Result<InspectedModel, ImportError> {
    let damaged = |error: ArtifactError| ImportError::Damaged {
        path: ARTIFACT_FILE.into(),
        reason: protocol::error_chain(&error),
    };
    let (index, _) = read_index(file).map_err(damaged)?;
    let files = vec![look(ARTIFACT_FILE.into(), path.into(), metadata)?];
    let tree = index.root();
    // An import of a job says so itself.
    let (kind, architecture) = match index.start {
        Some(start) => (StoredKind::Artifact { tree }, start.architecture),
        None => (StoredKind::Dataset { tree }, DATA_ARCHITECTURE.into()),
    };
    Ok(InspectedModel { notes: Vec::new(), files, kind, architecture, unserved: None })
}

/// Returns the directory of the blobs of a snapshot in Hugging Face's cache. The snapshot is
/// `models--OWNER--NAME/snapshots/REVISION`, and its files are links into `models--OWNER--NAME/blobs`.
fn blobs_of(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let model = snapshots.parent()?;
    model.file_name()?.to_str()?.starts_with("models--").then(|| model.join("blobs"))
}

type Found = (String, PathBuf, Metadata);

/// Finds all files below `directory`. Links may lead into `homes`; the first is the model's directory.
fn walk(
    homes: &[PathBuf],
    directory: &Path,
    depth: usize,
    found: &mut Vec<Found>,
) -> Result<(), ImportError> {
    let root = &homes[0];
    let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(directory, error))?;
        let path = entry.path();
        let shown = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let refused = |reason| ImportError::PathRefused { path: shown.clone(), reason };
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let real = fs::canonicalize(&path).map_err(|error| unreadable(&path, error))?;
        if !homes.iter().any(|home| real.starts_with(home)) {
            return Err(refused("the link leads out of the directory; copy the file itself"));
        }
        let metadata = fs::metadata(&real).map_err(|error| unreadable(&path, error))?;
        let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if metadata.is_dir() {
            if link || depth == DEPTH_MAX {
                return Err(refused("links to directories and directories deeper than 8 are not followed"));
            }
            walk(homes, &path, depth + 1, found)?;
        } else if metadata.is_file() {
            let name = path.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default().to_string();
            found.push((name, real, metadata));
        } else {
            return Err(refused("it is neither a file nor a directory"));
        }
        if found.len() > FILES_MAX {
            return Err(ImportError::TooLarge { reason: format!("more than {FILES_MAX} files") });
        }
    }
    Ok(())
}

/// Inspects one file: whether it may be stored, whether it is complete, and where it may be cut.
fn look(path: String, location: PathBuf, metadata: &Metadata) -> Result<SourceFile, ImportError> {
    if !is_safe_path(&path) {
        let reason = "it is not UTF-8, longer than 512 bytes, or holds control characters or `\\`";
        return Err(ImportError::PathRefused { path, reason });
    }
    let length = metadata.len();
    let file = File::open(&location).map_err(|error| unreadable(&location, error))?;
    refuse_pickle(&path, &file).map_err(|error| error.unwrap_or_else(|io| unreadable(&location, io)))?;
    let whole = |rank| Ok(vec![Extent { range: 0..length, rank }]);
    let extents = match ending(&path) {
        "safetensors" => safetensors::extents(&file, length),
        "gguf" => gguf::extents(BufReader::new(&file), length),
        _ if length <= EARLY_FILE_BYTES_MAX => whole(Rank::FIRST),
        _ => whole(Rank::LAST),
    };
    let extents = extents.map_err(|flaw| flaw.in_file(&path, &location))?;
    Ok(SourceFile { path, location, length, identity: FileIdentity::of(metadata), extents })
}

/// Returns the part of a path after its last dot.
fn ending(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(_, ending)| ending)
}

fn is_weights(path: &str) -> bool {
    matches!(ending(path), "safetensors" | "gguf")
}

/// Refuses pickle by extension and, under any name, by the first bytes. `Err(Err(_))` if reading fails.
fn refuse_pickle(path: &str, file: &File) -> Result<(), Result<ImportError, io::Error>> {
    let refused = |format| Err(Ok(ImportError::FormatRefused { path: path.into(), format }));
    if PICKLE_ENDINGS.contains(&ending(path).to_ascii_lowercase().as_str()) {
        return refused("files of this ending can run code when loaded; convert the model to safetensors");
    }
    let mut head = [0; 1024];
    let read = read_up_to(file, &mut head).map_err(Err)?;
    let head = &head[..read];
    // A pickle of protocol 2 or later: the opcode PROTO and its number.
    if matches!(head, [0x80, 2..=5, ..]) {
        return refused("it is a pickle, which can run code when loaded; convert the model to safetensors");
    }
    // PyTorch's format is a zip whose first entries are named `*/data.pkl`.
    if head.starts_with(b"PK\x03\x04") && head.windows(8).any(|window| window == b"data.pkl") {
        return refused("it is a PyTorch archive, which can run code when loaded; convert it to safetensors");
    }
    Ok(())
}

fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Checks that a directory has everything that its engine needs. Returns the architecture, and the reason for
/// which no built-in engine serves it, if any.
fn check_directory(files: &[SourceFile]) -> Result<(String, Option<CheckpointError>), ImportError> {
    let find = |path: &str| files.iter().find(|file| file.path == path);
    let missing = |path: &str| ImportError::FileMissing { path: path.into() };
    let has = |wanted: &str| files.iter().any(|file| ending(&file.path) == wanted);
    if has("gguf") && !has("safetensors") {
        return Ok(("gguf".into(), None));
    }
    if !has("safetensors") {
        return Err(missing("model.safetensors"));
    }
    let config = find("config.json").ok_or_else(|| missing("config.json"))?;
    find("tokenizer.json").ok_or_else(|| missing("tokenizer.json"))?;
    check_index(files)?;
    let damaged = |reason: String| ImportError::Damaged { path: config.path.clone(), reason };
    let text = small(config, "a configuration")?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let architecture = value.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("unknown");
    let is_name = |letter: char| !letter.is_control() && letter != '/';
    if architecture.len() > 63 || !architecture.chars().all(is_name) {
        return Err(damaged("its `model_type` is not a name".into()));
    }
    let parts = files.iter().filter(|file| CheckpointFiles::includes(&file.path));
    let read = |file: &SourceFile| -> Result<(String, Vec<u8>), ImportError> {
        Ok((file.path.clone(), small(file, "a configuration")?))
    };
    let parts = parts.map(read).collect::<Result<CheckpointFiles, _>>()?;
    match servable(&parts) {
        Ok(served) => Ok((registered_architecture(architecture, &served), None)),
        Err(error) => Ok((architecture.into(), Some(error))),
    }
}

/// Reads a file that is small in every model; `what` names its kind.
pub(crate) fn small(file: &SourceFile, what: &str) -> Result<Vec<u8>, ImportError> {
    if file.length > EARLY_FILE_BYTES_MAX {
        let reason = format!("it is larger than {what} can be");
        return Err(ImportError::Damaged { path: file.path.clone(), reason });
    }
    let mut text = vec![0; file.length as usize];
    file.read(0, &mut text)?;
    Ok(text)
}

/// Checks that every file exists that an index of sharded weights names.
fn check_index(files: &[SourceFile]) -> Result<(), ImportError> {
    for index in files.iter().filter(|file| file.path.ends_with(".safetensors.index.json")) {
        let damaged = |reason: String| ImportError::Damaged { path: index.path.clone(), reason };
        let text = small(index, "an index")?;
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let map = value.get("weight_map").and_then(serde_json::Value::as_object);
        let map = map.ok_or_else(|| damaged("it has no `weight_map`".into()))?;
        let directory = index.path.rsplit_once('/').map_or(String::new(), |(parent, _)| format!("{parent}/"));
        for name in map.values().filter_map(serde_json::Value::as_str) {
            let path = format!("{directory}{name}");
            if !files.iter().any(|file| file.path == path) {
                return Err(ImportError::FileMissing { path });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

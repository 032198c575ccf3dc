//! A model's files in memory: read-only mappings, named by path, that may still be loading.
//!
//! Two sources exist: a plain directory, mapped file by file, and the shared weights file that a node's agent
//! fills while the worker already runs. Tensors are views into those maps; this module copies and converts no
//! weight. The meaning of the tensors is in `engine`. This module makes no trust decision: the agent verified
//! the bytes of the shared file before it set their progress byte.
//!
//! A read can block. [`TensorView::bytes`] returns once every segment under the tensor is present, so the
//! first layer computes while the next one loads. It fails when no segment has arrived for the stall limit.

mod tensors;

use memmap2::{Mmap, MmapOptions};
use protocol::ErrorCode;
use protocol::error_code as code;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

pub use tensors::{QuantizedView, TensorView, Weights};

/// Maximum files in a model directory: the largest published checkpoints have a few hundred shards.
const FILES_MAX: usize = 4096;
/// Longest wait of a read without a single new segment. The agent retries a shard store within seconds, so a
/// minute without progress means that the agent is gone.
pub const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Failure to read a model's files. Each variant has a stable error code for operators.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The directory, or a file in it, cannot be opened or mapped.
    #[error("open `{path}`")]
    Open {
        /// Path that was opened.
        path: String,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file that every model needs is missing.
    #[error("model has no `{path}`")]
    FileMissing {
        /// Path of the file inside the model.
        path: String,
    },
    /// There are no safetensors weights, only a format that is refused.
    #[error("weights `{path}` are {format}, which is refused: convert the model to safetensors")]
    FormatRefused {
        /// Path of the refused file.
        path: String,
        /// Human-readable name of the format.
        format: &'static str,
    },
    /// A safetensors file is truncated, too long, or has an invalid header.
    #[error("weights `{path}` are damaged: {reason}")]
    Damaged {
        /// Path of the file inside the model.
        path: String,
        /// Description of the damage.
        reason: String,
    },
    /// A tensor that the architecture needs is not in the files.
    #[error("tensor `{name}` is missing")]
    TensorMissing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor differs from what the configuration implies.
    #[error("tensor `{name}` is {found}, expected {expected}")]
    TensorUnexpected {
        /// Name of the tensor.
        name: String,
        /// Its shape or element type.
        found: String,
        /// The shape or element type that the configuration implies.
        expected: String,
    },
    /// A tensor holds a NaN or an infinity; every answer would be noise.
    #[error(
        "tensor `{name}` has a value that is no finite number, at element {element}: import the model \
         again from its publisher"
    )]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// Index of the first such element; of a quantised matrix, of the first group with such a scale.
        element: usize,
    },
    /// The layout from the agent contradicts the files it came with.
    #[error("weights layout is inconsistent: {reason}")]
    Layout {
        /// Description of the contradiction.
        reason: String,
    },
    /// No segment has arrived for the stall limit.
    #[error("weights stalled: {present} of {total} segments after {waited_ms} ms without a new one")]
    Stalled {
        /// Segments present.
        present: usize,
        /// Segments in total.
        total: usize,
        /// Time without a new segment, in milliseconds.
        waited_ms: u64,
    },
}

impl WeightsError {
    /// Returns the stable code that `quorate explain` documents.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open { .. } => code::MODEL_UNREADABLE,
            Self::FileMissing { path } if path == "tokenizer.json" => code::MODEL_TOKENIZER_MISSING,
            Self::FileMissing { .. } => code::MODEL_FILE_MISSING,
            Self::FormatRefused { .. } => code::MODEL_FORMAT_REFUSED,
            Self::Damaged { .. } => code::MODEL_WEIGHTS_DAMAGED,
            Self::TensorMissing { .. } | Self::TensorUnexpected { .. } => code::MODEL_WEIGHTS_MISMATCH,
            Self::NotFinite { .. } => code::MODEL_WEIGHTS_NOT_FINITE,
            Self::Layout { .. } => code::MODEL_MANIFEST_INVALID,
            Self::Stalled { .. } => code::WEIGHTS_STALLED,
        }
    }
}

/// Byte range of one file in the shared weights file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRange {
    /// Path inside the model, with forward slashes.
    pub path: String,
    /// Offset of the first byte in the map.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Layout of the shared weights file: its files, and the segments that the progress bytes count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedLayout {
    /// All files of the model.
    pub files: Vec<FileRange>,
    /// Segments as (offset, length) in the map, in the order of the progress bytes, sorted by offset.
    pub segments: Vec<(u64, u64)>,
}

/// The files of one model, mapped read-only.
#[derive(Debug)]
pub struct ModelFiles {
    source: FileMapping,
    stall_limit: Duration,
}

#[derive(Debug)]
enum FileMapping {
    Directory(BTreeMap<String, Mmap>),
    Shared(SharedMapping),
}

#[derive(Debug)]
struct SharedMapping {
    map: Mmap,
    progress: Mmap,
    files: BTreeMap<String, Range<usize>>,
    segments: Vec<Range<usize>>,
}

impl ModelFiles {
    /// Maps every regular file under `directory`, including one level of subdirectories
    /// (sentence-transformers keeps its pooling configuration in one). For development and measurement only:
    /// a process with write access to the directory can change a mapped file.
    ///
    /// # Errors
    /// [`WeightsError`]: the directory or a file in it cannot be opened.
    pub fn open_directory(directory: &Path) -> Result<Arc<Self>, WeightsError> {
        let mut files = BTreeMap::new();
        map_directory(directory, "", &mut files)?;
        Ok(Arc::new(Self { source: FileMapping::Directory(files), stall_limit: STALL_LIMIT }))
    }

    /// Maps the shared weights file and its progress bytes, as a sandboxed worker inherits them.
    ///
    /// # Errors
    /// [`WeightsError`]: a descriptor cannot be mapped, or the layout contradicts the maps.
    pub fn from_shared(
        weights: &OwnedFd,
        progress: &OwnedFd,
        layout: &SharedLayout,
        stall_limit: Duration,
    ) -> Result<Arc<Self>, WeightsError> {
        let map = map_descriptor(weights, "weights")?;
        let progress = map_descriptor(progress, "progress")?;
        let shared = SharedMapping::check(map, progress, layout)?;
        Ok(Arc::new(Self { source: FileMapping::Shared(shared), stall_limit }))
    }

    /// Returns the paths of all files, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<&str> {
        match &self.source {
            FileMapping::Directory(files) => files.keys().map(String::as_str).collect(),
            FileMapping::Shared(shared) => shared.files.keys().map(String::as_str).collect(),
        }
    }

    /// Reports whether the model has a file of this path, loaded or not.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        self.length(path).is_some()
    }

    /// Returns a file's length in bytes.
    #[must_use]
    pub fn length(&self, path: &str) -> Option<usize> {
        match &self.source {
            FileMapping::Directory(files) => files.get(path).map(|map| map.len()),
            FileMapping::Shared(shared) => shared.files.get(path).map(Range::len),
        }
    }

    /// Returns a whole file; blocks until all of it is present.
    ///
    /// # Errors
    /// [`WeightsError`]: the file is missing, or did not arrive in time.
    pub fn read(&self, path: &str) -> Result<&[u8], WeightsError> {
        let length = self.length(path).ok_or_else(|| WeightsError::FileMissing { path: path.to_owned() })?;
        self.range(path, 0..length)
    }

    /// Returns a range of a file; blocks until all of it is present.
    ///
    /// # Errors
    /// [`WeightsError`]: the file is missing or shorter, or did not arrive in time.
    ///
    /// # Panics
    /// If the range is not inside the file: callers derive it from checked headers.
    pub fn range(&self, path: &str, range: Range<usize>) -> Result<&[u8], WeightsError> {
        let missing = || WeightsError::FileMissing { path: path.to_owned() };
        match &self.source {
            FileMapping::Directory(files) => Ok(&files.get(path).ok_or_else(missing)?[range]),
            FileMapping::Shared(shared) => {
                let file = shared.files.get(path).ok_or_else(missing)?;
                assert!(range.start <= range.end && range.end <= file.len(), "range inside the file");
                let range = file.start + range.start..file.start + range.end;
                shared.wait(&range, self.stall_limit)?;
                Ok(&shared.map[range])
            }
        }
    }

    /// Returns the segments present and the segments in total; (1, 1) for a directory, which is always
    /// complete.
    #[must_use]
    pub fn arrived(&self) -> (usize, usize) {
        match &self.source {
            FileMapping::Directory(_) => (1, 1),
            FileMapping::Shared(shared) => (shared.present(), shared.segments.len()),
        }
    }

    /// Returns the bytes of a file without waiting for them, for header checks that need its length.
    fn bytes_without_waiting(&self, path: &str) -> Option<&[u8]> {
        match &self.source {
            FileMapping::Directory(files) => files.get(path).map(|map| &map[..]),
            FileMapping::Shared(shared) => shared.files.get(path).map(|range| &shared.map[range.clone()]),
        }
    }
}

impl SharedMapping {
    fn check(map: Mmap, progress: Mmap, layout: &SharedLayout) -> Result<Self, WeightsError> {
        let inconsistent = |reason: String| WeightsError::Layout { reason };
        let span = |offset: u64, length: u64| -> Option<Range<usize>> {
            let end = offset.checked_add(length)?;
            (end <= map.len() as u64).then_some(offset as usize..end as usize)
        };
        if layout.files.len() > FILES_MAX {
            return Err(inconsistent(format!("{} files, at most {FILES_MAX}", layout.files.len())));
        }
        let mut files = BTreeMap::new();
        for file in &layout.files {
            let range = span(file.offset, file.length)
                .ok_or_else(|| inconsistent(format!("file `{}` ends beyond the map", file.path)))?;
            files.insert(file.path.clone(), range);
        }
        let mut segments = Vec::with_capacity(layout.segments.len());
        let mut last_start = 0;
        for (offset, length) in &layout.segments {
            let range =
                span(*offset, *length).filter(|range| range.start >= last_start).ok_or_else(|| {
                    inconsistent(format!("segment at {offset} is out of order or beyond the map"))
                })?;
            last_start = range.start;
            segments.push(range);
        }
        if progress.len() < segments.len() {
            return Err(inconsistent(format!(
                "{} progress bytes for {} segments",
                progress.len(),
                segments.len()
            )));
        }
        Ok(Self { map, progress, files, segments })
    }

    fn is_present(&self, segment: usize) -> bool {
        assert!(segment < self.segments.len(), "the segment exists");
        // SAFETY: the progress map has a byte for each segment (see `check`) and lives as long as `self`;
        // AtomicU8 has the layout of u8; the only writer is the agent, which stores one byte with release
        // order.
        let byte = unsafe { &*self.progress.as_ptr().add(segment).cast::<AtomicU8>() };
        byte.load(Ordering::Acquire) == 1
    }

    fn present(&self) -> usize {
        (0..self.segments.len()).filter(|segment| self.is_present(*segment)).count()
    }

    /// Waits until all segments that overlap `range` are present. Polls with back-off: the writer is another
    /// process, and the progress bytes are the only state it shares.
    fn wait(&self, range: &Range<usize>, stall_limit: Duration) -> Result<(), WeightsError> {
        let first = self.segments.partition_point(|segment| segment.end <= range.start);
        let mut pause = Duration::from_micros(50);
        let mut seen = usize::MAX;
        let mut since = Instant::now();
        let mut next = first;
        loop {
            while next < self.segments.len() && self.segments[next].start < range.end && self.is_present(next)
            {
                next += 1;
            }
            if next >= self.segments.len() || self.segments[next].start >= range.end {
                return Ok(());
            }
            let present = self.present();
            if present != seen {
                seen = present;
                since = Instant::now();
                pause = Duration::from_micros(50);
            }
            if since.elapsed() > stall_limit {
                let waited_ms = since.elapsed().as_millis() as u64;
                return Err(WeightsError::Stalled { present, total: self.segments.len(), waited_ms });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }
}

fn map_directory(
    directory: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, Mmap>,
) -> Result<(), WeightsError> {
    let open = |path: &Path, source| WeightsError::Open { path: path.display().to_string(), source };
    for entry in std::fs::read_dir(directory).map_err(|source| open(directory, source))? {
        let path = entry.map_err(|source| open(directory, source))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let metadata = std::fs::metadata(&path).map_err(|source| open(&path, source))?;
        if metadata.is_dir() && prefix.is_empty() && !name.starts_with('.') {
            map_directory(&path, &format!("{name}/"), files)?;
        } else if metadata.is_file() && files.len() < FILES_MAX {
            let file = File::open(&path).map_err(|source| open(&path, source))?;
            // SAFETY: the map is read-only and the documentation of `open_directory` says that the directory
            // must not change; a truncation would end this process, never corrupt another.
            let map = unsafe { MmapOptions::new().map(&file) }.map_err(|source| open(&path, source))?;
            files.insert(format!("{prefix}{name}"), map);
        }
    }
    Ok(())
}

fn map_descriptor(descriptor: &OwnedFd, what: &str) -> Result<Mmap, WeightsError> {
    // SAFETY: the map is read-only; the agent writes each byte before the release store of its progress byte
    // and never after, so a reader that has seen that byte sees constant memory. The file is sealed against
    // shrinking.
    unsafe { MmapOptions::new().map(descriptor) }
        .map_err(|source| WeightsError::Open { path: format!("inherited {what} file"), source })
}

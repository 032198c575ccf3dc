//! A model's files in memory: read-only mappings, named by path, that may still be loading.
//!
//! Two sources exist: a plain directory, mapped file by file, and the shared weights file that a node's agent
//! fills while the worker already runs. Tensors are views into those maps; this module copies and converts no
//! weight. The meaning of the tensors is in `engine`. This module makes no trust decision: the agent verified
//! the bytes of the shared file before it set their progress byte.
//!
//! A read can block. [`TensorView::bytes`] returns once every segment under the tensor is present, so the
//! first layer computes while the next one loads. It fails when no segment has arrived for the stall limit.

use kernels::ElementType;
use memmap2::{Mmap, MmapOptions};
use protocol::ErrorCode;
use protocol::error_code as code;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
        /// Index of the first such element.
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

/// The tensors of a model: names, types, shapes and byte ranges, from the safetensors headers.
#[derive(Debug)]
pub struct Weights {
    files: Arc<ModelFiles>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Views that were opened, in order.
    opened: Mutex<Vec<TensorView>>,
}

#[derive(Debug, Clone)]
struct TensorEntry {
    file: String,
    element: Option<ElementType>,
    element_name: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One tensor, used in place in the map. Clones share what is known of it.
#[derive(Debug, Clone)]
pub struct TensorView {
    name: String,
    files: Arc<ModelFiles>,
    file: String,
    range: Range<usize>,
    element: ElementType,
    shape: Vec<usize>,
    /// Whether all bytes are present, and all values finite.
    is_usable: Arc<AtomicBool>,
}

impl Weights {
    /// Reads the headers of all safetensors files; waits for the headers only.
    ///
    /// # Errors
    /// [`WeightsError`]: a header is invalid, or did not arrive in time.
    pub fn open(files: Arc<ModelFiles>) -> Result<Self, WeightsError> {
        let names: Vec<String> = files
            .paths()
            .into_iter()
            .filter(|path| path.ends_with(".safetensors"))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            return Err(refused_format(&files));
        }
        let mut tensors = BTreeMap::new();
        for name in names {
            read_header(&files, &name, &mut tensors)?;
        }
        Ok(Self { files, tensors, opened: Mutex::default() })
    }

    /// Reports whether a tensor of this name exists.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the size of all tensors in bytes.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    /// Returns the tensor of this name, which must have exactly this shape. Does not wait for its bytes.
    ///
    /// # Errors
    /// [`WeightsError`]: the tensor is missing, or has another shape or type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView, WeightsError> {
        let entry =
            self.tensors.get(name).ok_or_else(|| WeightsError::TensorMissing { name: name.to_owned() })?;
        let unexpected = |found: String, expected: String| WeightsError::TensorUnexpected {
            name: name.to_owned(),
            found,
            expected,
        };
        if entry.shape != shape {
            let (found, expected) = (show_shape(&entry.shape), show_shape(shape));
            return Err(unexpected(format!("of shape {found}"), format!("shape {expected}")));
        }
        let element = entry.element.ok_or_else(|| {
            unexpected(format!("of type {}", entry.element_name), "F32, F16 or BF16".to_owned())
        })?;
        let view = TensorView {
            name: name.to_owned(),
            files: Arc::clone(&self.files),
            file: entry.file.clone(),
            range: entry.range.clone(),
            element,
            shape: shape.to_vec(),
            is_usable: Arc::default(),
        };
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(view.clone());
        Ok(view)
    }

    /// Waits for all tensors that an engine has opened, and checks their values.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    pub fn check(&self) -> Result<(), WeightsError> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        opened.iter().try_for_each(|view| view.bytes().map(|_| ()))
    }
}

impl TensorView {
    /// Returns the tensor's little-endian bytes; blocks until all are present, and checks all values once.
    /// After the first success this costs three loads.
    ///
    /// # Errors
    /// [`WeightsError`]: the bytes did not arrive in time, or a value is not finite.
    pub fn bytes(&self) -> Result<&[u8], WeightsError> {
        if self.is_usable.load(Ordering::Acquire) {
            let file = self
                .files
                .bytes_without_waiting(&self.file)
                .expect("the file was there when the header was read");
            return Ok(&file[self.range.clone()]);
        }
        let bytes = self.files.range(&self.file, self.range.clone())?;
        if let Some(element) = self.element.first_not_finite(bytes) {
            return Err(WeightsError::NotFinite { name: self.name.clone(), element });
        }
        self.is_usable.store(true, Ordering::Release);
        Ok(bytes)
    }

    /// Returns the element type as stored.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Returns the shape, outermost dimension first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns a copy converted to f32, for vectors (biases, norms) and tests.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let bytes = self.bytes()?;
        Ok(match self.element {
            ElementType::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            ElementType::F16 => {
                bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            ElementType::Bf16 => {
                bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
        })
    }
}

/// Formats that are recognised only to be refused by name. Pickle files run code when they are read.
const REFUSED: &[(&str, &str)] = &[
    (".bin", "a Python pickle"),
    (".pt", "a Python pickle"),
    (".pth", "a Python pickle"),
    (".ckpt", "a Python pickle"),
    (".pkl", "a Python pickle"),
    (".gguf", "GGUF, not served by this release"),
    (".onnx", "ONNX"),
    (".h5", "HDF5"),
];

fn refused_format(files: &ModelFiles) -> WeightsError {
    for path in files.paths() {
        for (suffix, format) in REFUSED {
            if path.ends_with(suffix) {
                return WeightsError::FormatRefused { path: path.to_owned(), format };
            }
        }
    }
    WeightsError::FileMissing { path: "model.safetensors".to_owned() }
}

fn read_header(
    files: &ModelFiles,
    path: &str,
    tensors: &mut BTreeMap<String, TensorEntry>,
) -> Result<(), WeightsError> {
    let damaged = |reason: String| WeightsError::Damaged { path: path.to_owned(), reason };
    let length = files.length(path).expect("path comes from the same listing");
    if length < 8 {
        return Err(damaged(format!("{length} bytes long, too short for a header")));
    }
    let prefix = files.range(path, 0..8)?;
    let header = u64::from_le_bytes(prefix.try_into().expect("eight bytes")) as usize;
    let data_start = header.checked_add(8).filter(|end| *end <= length);
    let data_start =
        data_start.ok_or_else(|| damaged(format!("header of {header} bytes in a file of {length}")))?;
    files.range(path, 0..data_start)?;
    let whole = files.bytes_without_waiting(path).expect("path comes from the same listing");
    let (_, metadata) = safetensors::SafeTensors::read_metadata(whole)
        .map_err(|error| damaged(format!("{error} (file of {length} bytes, truncated or overlong?)")))?;
    for (name, info) in metadata.tensors() {
        let entry = TensorEntry {
            file: path.to_owned(),
            element: match info.dtype {
                safetensors::Dtype::F32 => Some(ElementType::F32),
                safetensors::Dtype::F16 => Some(ElementType::F16),
                safetensors::Dtype::BF16 => Some(ElementType::Bf16),
                _ => None,
            },
            element_name: info.dtype.to_string(),
            shape: info.shape.clone(),
            range: data_start + info.data_offsets.0..data_start + info.data_offsets.1,
        };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(damaged(format!("tensor `{name}` is in two files")));
        }
    }
    Ok(())
}

/// Renders a shape as configuration files write one: `[80, 48]`.
fn show_shape(shape: &[usize]) -> String {
    let dimensions: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("[{}]", dimensions.join(", "))
}

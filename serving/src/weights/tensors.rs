//! Tensors of a model: names, types, shapes and byte ranges, from the safetensors headers.
//!
//! A matrix may be quantised: its tensor of bytes then has the shape of the kernels' panels
//! ([`kernels::int8`]) under the name of the matrix.

use super::{ModelFiles, WeightsError};
use kernels::ElementType;
use kernels::int8::{PANEL, QuantizedMatrix, first_not_finite};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Type of a tensor of panels, as safetensors name it.
const PANEL_TYPE: &str = "U8";

/// The tensors of a model: names, types, shapes and byte ranges, from the safetensors headers.
#[derive(Debug)]
pub struct Weights {
    files: Arc<ModelFiles>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Views that were opened, in order.
    opened: Mutex<Vec<StoredTensor>>,
}

#[derive(Debug, Clone)]
struct TensorEntry {
    file: String,
    element: Option<ElementType>,
    element_name: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Meaning of a tensor's bytes.
#[derive(Debug, Clone, Copy)]
enum Content {
    Elements(ElementType),
    /// Panels of a quantised matrix.
    Panels,
}

/// The bytes of one tensor, used in place in the map. Clones share what is known of them.
#[derive(Debug, Clone)]
struct StoredTensor {
    name: String,
    files: Arc<ModelFiles>,
    file: String,
    range: Range<usize>,
    content: Content,
    /// Whether all bytes are present, and all values finite.
    is_usable: Arc<AtomicBool>,
}

/// One tensor of numbers.
#[derive(Debug, Clone)]
pub struct TensorView {
    stored: StoredTensor,
    element: ElementType,
    shape: Vec<usize>,
}

/// One matrix of quantised weights.
#[derive(Debug, Clone)]
pub struct QuantizedView {
    stored: StoredTensor,
    outputs: usize,
    inputs: usize,
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
        let entry = self.entry(name)?;
        check_shape(name, &entry.shape, shape)?;
        let element = entry.element.ok_or_else(|| WeightsError::TensorUnexpected {
            name: name.to_owned(),
            found: format!("of type {}", entry.element_name),
            expected: "F32, F16 or BF16".to_owned(),
        })?;
        let stored = self.open_stored(name, entry, Content::Elements(element));
        Ok(TensorView { stored, element, shape: shape.to_vec() })
    }

    /// Returns the matrix of this name and size if it is quantised: its tensor is of bytes. Does not wait for
    /// them.
    ///
    /// # Errors
    /// [`WeightsError`]: the tensor is missing, or is one of bytes that are not the panels of this matrix.
    pub fn quantized(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Option<QuantizedView>, WeightsError> {
        let entry = self.entry(name)?;
        if entry.element_name != PANEL_TYPE {
            return Ok(None);
        }
        check_shape(name, &entry.shape, &QuantizedMatrix::dimensions(outputs, inputs))?;
        let stored = self.open_stored(name, entry, Content::Panels);
        Ok(Some(QuantizedView { stored, outputs, inputs }))
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::TensorMissing { name: name.to_owned() })
    }

    fn open_stored(&self, name: &str, entry: &TensorEntry, content: Content) -> StoredTensor {
        let stored = StoredTensor {
            name: name.to_owned(),
            files: Arc::clone(&self.files),
            file: entry.file.clone(),
            range: entry.range.clone(),
            content,
            is_usable: Arc::default(),
        };
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).push(stored.clone());
        stored
    }

    /// Waits for all tensors that an engine has opened, and checks their values.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    pub fn check(&self) -> Result<(), WeightsError> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        opened.iter().try_for_each(|stored| stored.bytes().map(|_| ()))
    }
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), WeightsError> {
    if found == expected {
        return Ok(());
    }
    Err(WeightsError::TensorUnexpected {
        name: name.to_owned(),
        found: format!("of shape {}", show_shape(found)),
        expected: format!("shape {}", show_shape(expected)),
    })
}

impl StoredTensor {
    /// Returns the bytes; blocks until all are present, and checks all values once. After the first success
    /// this costs three loads.
    fn bytes(&self) -> Result<&[u8], WeightsError> {
        if self.is_usable.load(Ordering::Acquire) {
            let file = self
                .files
                .bytes_without_waiting(&self.file)
                .expect("the file was there when the header was read");
            return Ok(&file[self.range.clone()]);
        }
        let bytes = self.files.range(&self.file, self.range.clone())?;
        let wrong = match self.content {
            Content::Elements(element) => element.first_not_finite(bytes),
            Content::Panels => first_not_finite(bytes),
        };
        if let Some(element) = wrong {
            return Err(WeightsError::NotFinite { name: self.name.clone(), element });
        }
        self.is_usable.store(true, Ordering::Release);
        Ok(bytes)
    }
}

impl QuantizedView {
    /// Checks that parts of so many outputs are whole panels, because an engine uses each alone.
    ///
    /// # Errors
    /// [`WeightsError::TensorUnexpected`].
    pub fn check_parts(&self, outputs: usize) -> Result<(), WeightsError> {
        if outputs.is_multiple_of(PANEL) {
            return Ok(());
        }
        Err(WeightsError::TensorUnexpected {
            name: self.stored.name.clone(),
            found: format!("quantised, in parts of {outputs} outputs"),
            expected: format!("parts of a multiple of {PANEL}"),
        })
    }

    /// Returns the matrix; blocks until it is present.
    ///
    /// # Errors
    /// [`WeightsError`]: the bytes did not arrive in time, or a scale is not finite.
    pub fn matrix(&self) -> Result<QuantizedMatrix<'_>, WeightsError> {
        Ok(QuantizedMatrix::new(self.stored.bytes()?, self.outputs, self.inputs))
    }
}

impl TensorView {
    /// Returns the tensor's little-endian bytes; blocks until all are present, and checks all values once.
    ///
    /// # Errors
    /// [`WeightsError`]: the bytes did not arrive in time, or a value is not finite.
    pub fn bytes(&self) -> Result<&[u8], WeightsError> {
        self.stored.bytes()
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

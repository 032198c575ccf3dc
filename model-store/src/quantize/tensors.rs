//! Rewriting of one safetensors file: the header first, then each tensor in the order of the source. One
//! tensor is in memory at a time.

use super::{TargetFile, is_quantized};
use crate::error::ImportError;
use crate::source::safetensors::header as source_header;
use crate::source::{Flaw, SourceFile};
use kernels::ElementType;
use kernels::int8::{QuantizedMatrix, quantize};
use kernels::matmul::Matrix;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;

/// A header ends at a multiple of this.
const ALIGNMENT: usize = 8;

/// A tensor on its way.
struct MovedTensor {
    name: String,
    source: TensorInfo,
    /// Element type, if it is quantised.
    quantized: Option<ElementType>,
}

impl MovedTensor {
    fn of(name: String, source: TensorInfo) -> Self {
        let element = match source.dtype {
            Dtype::F32 => Some(ElementType::F32),
            Dtype::F16 => Some(ElementType::F16),
            Dtype::BF16 => Some(ElementType::Bf16),
            _ => None,
        };
        let quantized = element.filter(|_| is_quantized(&name, &source.shape));
        Self { name, source, quantized }
    }

    /// Returns type, shape and length as written.
    fn target(&self) -> (Dtype, Vec<usize>, usize) {
        match (self.quantized, &self.source.shape[..]) {
            (Some(_), [outputs, inputs]) => {
                let length = QuantizedMatrix::size(*outputs, *inputs);
                (Dtype::U8, QuantizedMatrix::dimensions(*outputs, *inputs).to_vec(), length)
            }
            (_, shape) => {
                let (begin, end) = self.source.data_offsets;
                (self.source.dtype, shape.to_vec(), end - begin)
            }
        }
    }
}

/// Writes a file of tensors with its matrices quantised; returns their number. `progress` gets the bytes of
/// the source that are done.
pub(super) fn rewrite(
    file: &SourceFile,
    mut target: TargetFile,
    mut progress: impl FnMut(u64),
) -> Result<usize, ImportError> {
    let (tensors, metadata, data) = read(file)?;
    target.write(&header(&tensors, metadata, file)?)?;
    for tensor in &tensors {
        let (begin, end) = tensor.source.data_offsets;
        let mut bytes = vec![0; end - begin];
        file.read(data + begin as u64, &mut bytes)?;
        match (tensor.quantized, &tensor.source.shape[..]) {
            (Some(element), [outputs, inputs]) => {
                if let Some(at) = element.first_not_finite(&bytes) {
                    let reason = format!("tensor `{}` has no finite number at element {at}", tensor.name);
                    return Err(damaged(file, reason));
                }
                let matrix = Matrix { bytes: &bytes, element, outputs: *outputs, inputs: *inputs };
                target.write(&quantize(&matrix))?;
            }
            _ => target.write(&bytes)?,
        }
        progress(data + end as u64);
    }
    target.finish()?;
    Ok(tensors.iter().filter(|tensor| tensor.quantized.is_some()).count())
}

fn damaged(file: &SourceFile, reason: String) -> ImportError {
    ImportError::Damaged { path: file.path.clone(), reason }
}

type TensorHeader = (Vec<MovedTensor>, Option<HashMap<String, String>>, u64);

/// Reads the header, which the inspection found sound. Returns the tensors in the order of their bytes, the
/// metadata, and the offset of the first byte.
fn read(file: &SourceFile) -> Result<TensorHeader, ImportError> {
    let opened = File::open(&file.location).map_err(Flaw::Unreadable);
    let header = opened.and_then(|opened| source_header(opened, file.length));
    let (header, data) = header.map_err(|flaw| flaw.in_file(&file.path, &file.location))?;
    let tensors = header.tensors().into_iter();
    let mut tensors: Vec<_> = tensors.map(|(name, info)| MovedTensor::of(name, info.clone())).collect();
    tensors.sort_by(|one, other| {
        (one.source.data_offsets, &one.name).cmp(&(other.source.data_offsets, &other.name))
    });
    Ok((tensors, header.metadata().clone(), data))
}

/// Returns the header as written: its fields sorted by name, so that the same tensors have the same bytes.
fn header(
    tensors: &[MovedTensor],
    metadata: Option<HashMap<String, String>>,
    file: &SourceFile,
) -> Result<Vec<u8>, ImportError> {
    let of_json = |error: serde_json::Error| damaged(file, error.to_string());
    let mut fields = BTreeMap::new();
    if let Some(metadata) = metadata {
        let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
        fields.insert("__metadata__", serde_json::to_string(&metadata).map_err(of_json)?);
    }
    let mut begin = 0;
    for tensor in tensors {
        let (dtype, shape, length) = tensor.target();
        let info = TensorInfo { dtype, shape, data_offsets: (begin, begin + length) };
        fields.insert(tensor.name.as_str(), serde_json::to_string(&info).map_err(of_json)?);
        begin += length;
    }
    let field = |(name, value): (&&str, &String)| -> Result<String, ImportError> {
        Ok(format!("{}:{value}", serde_json::to_string(name).map_err(of_json)?))
    };
    let fields: Vec<String> = fields.iter().map(field).collect::<Result<_, _>>()?;
    let mut text = format!("{{{}}}", fields.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(dtype: Dtype, shape: &[usize], data_offsets: (usize, usize)) -> TensorInfo {
        TensorInfo { dtype, shape: shape.to_vec(), data_offsets }
    }

    /// Matrices of each type of floats become panels; integers and vectors keep type, shape and length.
    #[test]
    fn each_tensor_is_written_with_the_type_and_length_of_its_kind() {
        let name = "model.layers.0.mlp.up_proj.weight";
        for (dtype, bytes) in [(Dtype::F32, 4), (Dtype::F16, 2), (Dtype::BF16, 2)] {
            let tensor = MovedTensor::of(name.into(), info(dtype, &[32, 64], (0, 32 * 64 * bytes)));
            assert_eq!(tensor.target(), (Dtype::U8, vec![2, 2, 544], 4 * 544), "{dtype}");
        }
        for (dtype, shape, length) in [
            (Dtype::I8, vec![32, 64], 32 * 64),
            (Dtype::F64, vec![32, 64], 32 * 64 * 8),
            (Dtype::F32, vec![64], 256),
            (Dtype::F32, vec![32, 63], 32 * 63 * 4),
        ] {
            let tensor = MovedTensor::of(name.into(), info(dtype, &shape, (8, 8 + length)));
            assert_eq!(tensor.target(), (dtype, shape, length));
        }
        let router = info(Dtype::F32, &[32, 64], (0, 32 * 64 * 4));
        let router = MovedTensor::of("model.layers.0.mlp.gate.weight".into(), router);
        assert_eq!(router.target().0, Dtype::F32, "a router stays");
    }
}

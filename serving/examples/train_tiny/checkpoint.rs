//! Checkpoints of a training run: weights, both moments, and its place in the lessons.

use crate::optimizer::AdamW;
use anyhow::{Context as _, Result};
use candle_core::{Device, Tensor, Var};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// File of a checkpoint.
const FILE: &str = "state.safetensors";
/// Beginning of the name of a checkpoint; the number of steps follows.
const NAME: &str = "step-";

/// Place of a run: what continues, besides the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of steps that were taken.
    pub(crate) step: usize,
    /// Number of lessons that were drawn.
    pub(crate) drawn: u64,
}

/// Writes a checkpoint below `directory`. It appears under its name once it is complete.
pub(crate) fn write(
    directory: &Path,
    place: Place,
    variables: &[(String, Var)],
    optimizer: &AdamW,
) -> Result<PathBuf> {
    let name = format!("{NAME}{:06}", place.step);
    let (part, whole) = (directory.join(format!("{name}.part")), directory.join(name));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir(&part).with_context(|| format!("create {}", part.display()))?;
    let mut tensors = Vec::new();
    for ((name, variable), (first, second)) in variables.iter().zip(&optimizer.moments) {
        for (kind, tensor) in [("weight", variable.as_tensor()), ("first", first), ("second", second)] {
            let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((format!("{kind}.{name}"), tensor.dims().to_vec(), bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dimensions, bytes)| Ok((name, TensorView::new(Dtype::F32, dimensions.clone(), bytes)?)));
    let metadata =
        HashMap::from([("step".into(), place.step.to_string()), ("drawn".into(), place.drawn.to_string())]);
    safetensors::serialize_to_file(views.collect::<Result<Vec<_>>>()?, Some(metadata), &part.join(FILE))?;
    fs::File::open(part.join(FILE))?.sync_all()?;
    // A run that continued from an earlier checkpoint makes the step again, with the same bytes.
    let _ = fs::remove_dir_all(&whole);
    fs::rename(&part, &whole)?;
    Ok(whole)
}

/// Reads the newest checkpoint below `directory` into the variables and the optimiser; none if there is none.
pub(crate) fn read_newest(
    directory: &Path,
    variables: &[(String, Var)],
    optimizer: &mut AdamW,
) -> Result<Option<Place>> {
    let Some(path) = newest(directory)? else { return Ok(None) };
    let bytes = fs::read(path.join(FILE)).with_context(|| format!("read {}", path.display()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let number = |key: &str| metadata.get(key).with_context(|| format!("a checkpoint says its {key}"));
    let place = Place { step: number("step")?.parse()?, drawn: number("drawn")?.parse()? };
    let tensors = SafeTensors::deserialize(&bytes)?;
    let tensor = |kind: &str, name: &str| -> Result<Tensor> {
        let view = tensors.tensor(&format!("{kind}.{name}"))?;
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Tensor::from_vec(values, view.shape(), &Device::Cpu)?)
    };
    for ((name, variable), moments) in variables.iter().zip(&mut optimizer.moments) {
        variable.set(&tensor("weight", name)?)?;
        *moments = (tensor("first", name)?, tensor("second", name)?);
    }
    optimizer.steps = place.step;
    Ok(Some(place))
}

/// Returns the checkpoint of the latest step.
fn newest(directory: &Path) -> Result<Option<PathBuf>> {
    let mut found = None;
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix(NAME).and_then(|step| step.parse::<usize>().ok()) {
            found = found.max(Some((step, path)));
        }
    }
    Ok(found.map(|(_, path)| path))
}

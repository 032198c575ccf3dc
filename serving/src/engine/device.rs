//! Inference engines on candle tensors: for GPUs, for training, and as an independent check of the CPU
//! kernels.
//!
//! Weights become f32 tensors on the device. Results agree with the CPU engines within rounding, not bit for
//! bit: a GPU sums products in its own order.
//!
//! There is no paged cache: each sequence's keys and values are two tensors per layer that grow.

pub mod bert;
pub mod llama;

use super::config::{DecoderShape, EncoderShape};
use super::{Capacity, Decode, Encode, EngineError, EngineOptions, SequenceChunk, SequenceId};
use crate::weights::{TensorView, Weights};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device { reason: error.to_string() }
    }
}

/// Opens the CUDA device of this ordinal.
///
/// # Errors
/// [`EngineError`]: there is no such device.
#[cfg(feature = "cuda")]
pub fn cuda(ordinal: usize) -> Result<Device, EngineError> {
    Ok(Device::new_cuda(ordinal)?)
}

/// Returns the free memory of a GPU in bytes; `None` where the device is no GPU.
#[cfg(feature = "cuda")]
fn free_bytes(device: &Device) -> Result<Option<u64>, EngineError> {
    let Device::Cuda(cuda) = device else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| EngineError::Device { reason: error.to_string() };
    let (free, _) = cuda.cuda_stream().context().mem_get_info().map_err(|error| failed(&error))?;
    Ok(Some(free as u64))
}

/// Returns `None`: this build has no GPU engine.
#[cfg(not(feature = "cuda"))]
fn free_bytes(_: &Device) -> Result<Option<u64>, EngineError> {
    Ok(None)
}

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// Copies a tensor of the checkpoint to the device as f32.
fn upload(view: &TensorView, device: &Device) -> Result<Tensor, EngineError> {
    Ok(Tensor::from_vec(view.to_f32()?, view.shape(), device)?)
}

/// A BERT encoder on a device.
#[derive(Debug)]
pub struct DeviceEncoder {
    model: bert::Bert,
    device: Device,
}

impl DeviceEncoder {
    /// Waits for all weights and copies them to the device.
    ///
    /// # Errors
    /// [`EngineError`]: a tensor is missing, or has the wrong shape or type, or the device failed.
    pub fn open(shape: &EncoderShape, weights: &Weights, device: &Device) -> Result<Self, EngineError> {
        let is_bare = weights.contains("embeddings.word_embeddings.weight");
        let root = if is_bare { "" } else { "bert." };
        let mut tensors = NamedTensors::new();
        for (name, dimensions) in bert::parameters(shape) {
            let view = weights.tensor(&format!("{root}{name}"), &dimensions)?;
            tensors.insert(name, upload(&view, device)?);
        }
        Ok(Self { model: bert::Bert::new(shape, tensors), device: device.clone() })
    }
}

impl Encode for DeviceEncoder {
    fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.model.embed(texts, &self.device)?.to_vec2()?)
    }
}

/// A Llama decoder on a device.
#[derive(Debug)]
pub struct DeviceDecoder {
    model: llama::Llama,
    device: Device,
    sequences: BTreeMap<SequenceId, DeviceSequence>,
    tokens_total: usize,
    next: u64,
}

#[derive(Debug)]
struct DeviceSequence {
    reserved: usize,
    length: usize,
    /// Keys and values of each layer: heads by positions by width.
    cache: Vec<Option<(Tensor, Tensor)>>,
}

impl DeviceDecoder {
    /// Waits for all weights and copies them to the device.
    ///
    /// # Errors
    /// [`EngineError`]: a tensor is missing, or has the wrong shape or type, or the device failed.
    pub fn open(
        shape: &DecoderShape,
        weights: &Weights,
        device: &Device,
        options: &EngineOptions,
        context: usize,
    ) -> Result<Self, EngineError> {
        let mut tensors = NamedTensors::new();
        for (name, dimensions) in llama::parameters(shape) {
            tensors.insert(name.clone(), upload(&weights.tensor(&name, &dimensions)?, device)?);
        }
        let weight_bytes: usize = tensors.values().map(|tensor| tensor.elem_count() * size_of::<f32>()).sum();
        let cache_bytes = match free_bytes(device)? {
            Some(free) => super::device_cache_bytes_of(options.device_bytes_max, weight_bytes as u64, free),
            None => options.cache_bytes_max,
        };
        let position_bytes = shape.layers * shape.key_value_heads * shape.head_width * 2 * size_of::<f32>();
        Ok(Self {
            model: llama::Llama::new(shape, tensors, context, device)?,
            device: device.clone(),
            sequences: BTreeMap::new(),
            tokens_total: cache_bytes / position_bytes,
            next: 0,
        })
    }
}

impl Decode for DeviceDecoder {
    fn capacity(&self) -> Capacity {
        let tokens_reserved = self.sequences.values().map(|sequence| sequence.reserved).sum();
        Capacity { tokens_total: self.tokens_total, tokens_reserved }
    }

    fn open_sequence(&mut self, tokens_max: usize) -> Option<SequenceId> {
        if self.capacity().tokens_reserved + tokens_max > self.tokens_total {
            return None;
        }
        self.next += 1;
        let id = SequenceId(self.next);
        let cache = vec![None; self.model.layers()];
        self.sequences.insert(id, DeviceSequence { reserved: tokens_max, length: 0, cache });
        Some(id)
    }

    fn close_sequence(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn step(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens.iter().copied()).collect();
        let mut positions = Vec::with_capacity(tokens.len());
        for chunk in chunks {
            let sequence = self.sequences.get(&chunk.sequence).expect("the sequence is open");
            assert!(sequence.length + chunk.tokens.len() <= sequence.reserved, "within its reservation");
            positions.extend((sequence.length..sequence.length + chunk.tokens.len()).map(|p| p as u32));
        }
        let sequences = &mut self.sequences;
        let mut fresh: BTreeMap<(SequenceId, usize), (Tensor, Tensor)> = BTreeMap::new();
        let states = self.model.forward(&tokens, &positions, &self.device, |layer, query, key, value| {
            let mut parts = Vec::with_capacity(chunks.len());
            let mut first = 0;
            for chunk in chunks {
                let sequence = &sequences[&chunk.sequence];
                let count = chunk.tokens.len();
                let cut = |tensor: &Tensor| tensor.narrow(0, first, count)?.transpose(0, 1)?.contiguous();
                let (mut keys, mut values) = (cut(&key)?, cut(&value)?);
                if let Some((old_keys, old_values)) = &sequence.cache[layer] {
                    keys = Tensor::cat(&[old_keys, &keys], 1)?;
                    values = Tensor::cat(&[old_values, &values], 1)?;
                }
                let mixed = self.model.serve_worker(&cut(&query)?, &keys, &values, sequence.length)?;
                parts.push(mixed.transpose(0, 1)?.contiguous()?);
                fresh.insert((chunk.sequence, layer), (keys, values));
                first += count;
            }
            Tensor::cat(&parts, 0)
        })?;
        let mut last = Vec::new();
        let mut row = 0;
        for chunk in chunks {
            row += chunk.tokens.len();
            if chunk.logits {
                last.push(row as u32 - 1);
            }
        }
        let rows = match last.is_empty() {
            true => Vec::new(),
            false => {
                let last = Tensor::new(last, &self.device)?;
                self.model.logits(&states.index_select(&last, 0)?)?.to_dtype(DType::F32)?.to_vec2()?
            }
        };
        for ((id, layer), cache) in fresh {
            sequences.get_mut(&id).expect("the sequence is open").cache[layer] = Some(cache);
        }
        for chunk in chunks {
            sequences.get_mut(&chunk.sequence).expect("the sequence is open").length += chunk.tokens.len();
        }
        Ok(rows)
    }
}

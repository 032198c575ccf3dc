//! Inference engines on candle tensors: for GPUs, for training, and as an independent check of the CPU
//! kernels.
//!
//! Weights become f32 tensors on the device. Results agree with the CPU engines within rounding, not bit for
//! bit: a GPU sums products in its own order.
//!
//! A step copies each sequence's keys and values together from its blocks, two tensors per block and layer.

pub mod bert;
pub mod llama;

use super::config::{DecoderShape, EncoderShape};
use super::{BLOCK_TOKENS, BlockId, Decode, Encode, EngineError, EngineOptions, SequenceChunk};
use crate::weights::{TensorView, Weights};
use candle_core::{DType, Device, Tensor};
use kernels::ComputePool;
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
    /// [`EngineError`]: the model is no BERT that embeds, a tensor is missing, or has the wrong shape or
    /// type, or the device failed.
    pub fn open(shape: &EncoderShape, weights: &Weights, device: &Device) -> Result<Self, EngineError> {
        if let Some(property) = bert::unsupported(shape) {
            return Err(EngineError::FeatureUnsupported { feature: format!("{property} on this device") });
        }
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
    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
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
    /// Keys and values of each block and layer: heads by positions by width.
    cache: BTreeMap<(BlockId, usize), (Tensor, Tensor)>,
    blocks: usize,
    pool: ComputePool,
}

impl DeviceDecoder {
    /// Waits for all weights and copies them to the device.
    ///
    /// # Errors
    /// [`EngineError`]: the model is no Llama, a tensor is missing, or has the wrong shape or type, or the
    /// device failed.
    pub fn open(
        shape: &DecoderShape,
        weights: &Weights,
        device: &Device,
        options: &EngineOptions,
        context: usize,
    ) -> Result<Self, EngineError> {
        if let Some(property) = llama::unsupported(shape) {
            return Err(EngineError::FeatureUnsupported { feature: format!("{property} on this device") });
        }
        let mut tensors = NamedTensors::new();
        for (name, dimensions) in llama::parameters(shape) {
            tensors.insert(name.clone(), upload(&weights.tensor(&name, &dimensions)?, device)?);
        }
        let weight_bytes: usize = tensors.values().map(|tensor| tensor.elem_count() * size_of::<f32>()).sum();
        let cache_bytes = match free_bytes(device)? {
            Some(free) => super::device_cache_bytes_of(options.device_bytes_max, weight_bytes as u64, free),
            None => options.cache_bytes_max,
        };
        let heads = shape.layers.len() * shape.key_value_heads;
        let position_bytes = heads * shape.head_width * 2 * size_of::<f32>();
        Ok(Self {
            model: llama::Llama::new(shape, tensors, context, device)?,
            device: device.clone(),
            cache: BTreeMap::new(),
            blocks: cache_bytes / (position_bytes * BLOCK_TOKENS),
            pool: ComputePool::new(options.threads),
        })
    }
}

impl DeviceDecoder {
    /// Appends a chunk's keys or values (heads by new positions by width) to those of its sequence.
    fn extend(
        &self,
        chunk: &SequenceChunk<'_>,
        layer: usize,
        part: impl Fn(&(Tensor, Tensor)) -> &Tensor,
        new: Tensor,
    ) -> candle_core::Result<Tensor> {
        let mut all = Vec::with_capacity(chunk.blocks.len() + 1);
        for (index, block) in chunk.blocks[..chunk.position.div_ceil(BLOCK_TOKENS)].iter().enumerate() {
            let stored = part(&self.cache[&(*block, layer)]);
            let count = (chunk.position - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
            all.push(stored.narrow(1, 0, count)?);
        }
        all.push(new);
        Tensor::cat(&all, 1)
    }
}

/// Cuts the blocks that a chunk wrote out of its sequence's keys or values.
fn cut_blocks(chunk: &SequenceChunk<'_>, whole: &Tensor) -> candle_core::Result<Vec<(BlockId, Tensor)>> {
    let end = chunk.position + chunk.tokens.len();
    let written = chunk.position / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
    written
        .map(|index| {
            let start = index * BLOCK_TOKENS;
            // A copy: a view would keep the whole sequence in memory.
            let block = whole.narrow(1, start, (end - start).min(BLOCK_TOKENS))?.force_contiguous()?;
            Ok((chunk.blocks[index], block))
        })
        .collect()
}

impl Decode for DeviceDecoder {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn pool(&self) -> &ComputePool {
        &self.pool
    }

    fn logits(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<f32>, EngineError> {
        let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens.iter().copied()).collect();
        let mut positions = Vec::with_capacity(tokens.len());
        for chunk in chunks {
            let end = chunk.position + chunk.tokens.len();
            assert!(end <= chunk.blocks.len() * BLOCK_TOKENS, "the blocks hold the positions");
            positions.extend((chunk.position..end).map(|position| position as u32));
        }
        let mut fresh: BTreeMap<(BlockId, usize), (Tensor, Tensor)> = BTreeMap::new();
        let states = self.model.forward(&tokens, &positions, &self.device, |layer, query, key, value| {
            let mut parts = Vec::with_capacity(chunks.len());
            let mut first = 0;
            for chunk in chunks {
                let count = chunk.tokens.len();
                let cut = |tensor: &Tensor| tensor.narrow(0, first, count)?.transpose(0, 1)?.contiguous();
                let keys = self.extend(chunk, layer, |stored| &stored.0, cut(&key)?)?;
                let values = self.extend(chunk, layer, |stored| &stored.1, cut(&value)?)?;
                let mixed = self.model.serve_worker(&cut(&query)?, &keys, &values, chunk.position)?;
                parts.push(mixed.transpose(0, 1)?.contiguous()?);
                let blocks = cut_blocks(chunk, &keys)?.into_iter().zip(cut_blocks(chunk, &values)?);
                fresh.extend(blocks.map(|((block, keys), (_, values))| ((block, layer), (keys, values))));
                first += count;
            }
            Tensor::cat(&parts, 0)
        })?;
        let mut last = Vec::new();
        let mut row = 0;
        for chunk in chunks {
            row += chunk.tokens.len();
            if chunk.draw.is_some() {
                last.push(row as u32 - 1);
            }
        }
        self.cache.extend(fresh);
        if last.is_empty() {
            return Ok(Vec::new());
        }
        let last = Tensor::new(last, &self.device)?;
        let logits = self.model.logits(&states.index_select(&last, 0)?)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

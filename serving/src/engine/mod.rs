//! Engines: the mathematics of a model, from token ids to vectors or logits.
//!
//! An [`Engine`] knows nothing of requests, channels, text or time; the batcher owns one and decides what each
//! step computes. What belongs to the model but is text (tokenizer, chat template, special tokens) is in
//! [`Front`], shared with the HTTP side.
//!
//! What may surprise: on the CPU every result is bit-identical whatever else is in the batch, however a prompt
//! is cut into steps, and however many threads run: each number is one fixed chain of fused multiply-adds
//! (see [`kernels`]).

pub mod chat;
pub mod config;
pub mod decoder;
#[cfg(feature = "candle")]
pub mod device;
pub mod encoder;
pub mod front;
pub mod kernels;
mod parameters;
pub mod sampler;
pub mod simulated;
pub mod text;

use std::sync::Arc;

pub use front::Front;
use protocol::ErrorCode;
use protocol::error_code as code;

use crate::weights::{ModelFiles, WeightsError};

/// What goes wrong in an engine, with a stable code for people.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's files are missing, damaged or late.
    #[error("read model weights")]
    Weights(#[from] WeightsError),
    /// `config.json` names an architecture that is not built in.
    #[error("{name} is not known; known: {known}")]
    ArchitectureUnknown {
        /// What the configuration names.
        name: String,
        /// What is built in, comma-separated.
        known: String,
    },
    /// A configuration file is not what its format says.
    #[error("model file `{path}` is invalid: {reason}")]
    ConfigInvalid {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The architecture is known, but this checkpoint uses a part of it that is not built.
    #[error("model uses {feature}, which this engine does not support")]
    FeatureUnsupported {
        /// The unsupported part.
        feature: String,
    },
    /// The tokenizer failed on an input.
    #[error("tokenize: {reason}")]
    Tokenize {
        /// What the tokenizer says.
        reason: String,
    },
    /// The chat template is absent or refuses these messages.
    #[error("render chat template: {reason}")]
    ChatTemplate {
        /// What is wrong.
        reason: String,
    },
    /// An input, or input plus requested output, is longer than the model's context.
    #[error("{tokens} tokens exceed the model's context of {context_tokens_max}")]
    ContextExceeded {
        /// Tokens asked for.
        tokens: usize,
        /// What the model takes.
        context_tokens_max: usize,
    },
    /// A text has more bytes than any that fits; it was not tokenized.
    #[error(
        "{bytes} bytes of text, at most {bytes_max} are tokenized for the model's context of {context_tokens_max} tokens"
    )]
    TextTooLong {
        /// Bytes of the text.
        bytes: usize,
        /// What is tokenized.
        bytes_max: usize,
        /// What the model takes.
        context_tokens_max: usize,
    },
    /// An encoder was asked to generate, or a decoder to embed.
    #[error("this model does not {operation}")]
    OperationUnsupported {
        /// `embed` or `generate`.
        operation: &'static str,
    },
    /// The device (GPU) failed.
    #[error("device: {reason}")]
    Device {
        /// What it says.
        reason: String,
    },
}

impl EngineError {
    /// The stable code that `quorate explain` knows.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Weights(error) => error.code(),
            Self::ArchitectureUnknown { .. } => code::MODEL_ARCHITECTURE_UNKNOWN,
            Self::ConfigInvalid { .. } => code::MODEL_CONFIG_INVALID,
            Self::FeatureUnsupported { .. } => code::MODEL_FEATURE_UNSUPPORTED,
            Self::Tokenize { .. } => code::INVALID_VALUE,
            Self::ChatTemplate { .. } => code::CHAT_TEMPLATE_FAILED,
            Self::ContextExceeded { .. } | Self::TextTooLong { .. } => code::CONTEXT_LENGTH_EXCEEDED,
            Self::OperationUnsupported { .. } => code::OPERATION_UNSUPPORTED,
            Self::Device { .. } => code::ENGINE_FAILED,
        }
    }
}

/// What a model can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Text to vector.
    Embed,
    /// Text to more text.
    Generate,
}

/// One open sequence of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A run of new tokens for one sequence in a step: a piece of its prompt, or the token just sampled.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Which sequence they extend.
    pub sequence: SequenceId,
    /// The tokens, at the positions that follow what the sequence already holds. Not empty.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of them are wanted.
    pub logits: bool,
}

/// How full a decoder's cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// Positions the cache can hold over all sequences.
    pub tokens_total: usize,
    /// Positions reserved by open sequences.
    pub tokens_reserved: usize,
}

/// The mathematics of one loaded model. Two implementations: [`LoadedEngine`] and [`simulated::Simulated`].
pub trait Engine: Send {
    /// What belongs to the model but is text.
    fn front(&self) -> &Arc<Front>;

    /// One vector per token sequence, in order. Encoders only.
    fn embed(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// How full the cache is; zeros for an encoder.
    fn capacity(&self) -> Capacity;

    /// Reserve room for a sequence of up to `tokens_max` positions; `None` when the cache has no room now.
    fn open(&mut self, tokens_max: usize) -> Result<Option<SequenceId>, EngineError>;

    /// Compute one step over many sequences at once. Returns one row of logits (vocabulary wide) per run that
    /// wanted them, in the order of the runs. No sequence may appear twice.
    fn step(&mut self, runs: &[Run<'_>]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Forget a sequence and free its room.
    fn close(&mut self, sequence: SequenceId);
}

/// How an engine is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads that compute, at least 1.
    pub threads: usize,
    /// Most bytes for the decoder's cache of keys and values, on the CPU.
    pub cache_bytes_max: usize,
    /// Most memory that tokenizing one text may take.
    pub tokenizer_bytes_max: usize,
    /// Most bytes of its GPU's memory for weights and cache together; none = all that is free.
    pub device_bytes_max: Option<u64>,
    /// Largest context served, if smaller than the model's own.
    pub context_tokens_max: Option<usize>,
    /// Where to compute.
    pub device: DeviceChoice,
}

/// Where an engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Our own kernels, weights used in place.
    Cpu,
    /// CUDA device of this ordinal; needs the `cuda` feature.
    Cuda(usize),
}

/// What a worker takes besides its cache, in bytes: program, tokenizer, activations, queued requests. Seen: 10 MiB
/// with the shipped language model and 16 clients, 22 MiB with MiniLM and four clients of 32 long texts each.
const PROGRAM_BYTES: u64 = 64 << 20;
/// Least memory for tokenizing one text: a page of text must be read by the smallest worker.
const TOKENIZER_BYTES_MIN: usize = 20 << 20;
/// Least cache, in bytes: a worker with hardly any memory still answers one short request after another.
const CACHE_BYTES_MIN: u64 = 16 << 20;

/// How much of a worker's memory its cache of keys and values may fill, so that neither a small worker is killed
/// for want of memory nor a large one leaves it unused. Weights are charged to the node and do not count.
#[must_use]
pub fn cache_bytes_of(memory_bytes: u64) -> usize {
    // A quarter of what is left stays free: activations grow with the batch that a larger cache admits.
    let room = memory_bytes.saturating_sub(PROGRAM_BYTES) / 4 * 3;
    usize::try_from(room.max(CACHE_BYTES_MIN)).unwrap_or(usize::MAX)
}

/// How much of a worker's memory tokenizing one text may take, at the same time as a step: half of what
/// [`cache_bytes_of`] leaves free.
#[must_use]
pub fn tokenizer_bytes_of(memory_bytes: u64) -> usize {
    let room = usize::try_from(memory_bytes.saturating_sub(PROGRAM_BYTES) / 8).unwrap_or(usize::MAX);
    room.max(TOKENIZER_BYTES_MIN)
}

/// How much of a GPU's memory the cache may fill: `free` is what is left after the weights, `granted` what weights
/// and cache may have together. Half of it: a step holds the old and the new keys and values at once.
#[must_use]
pub fn device_cache_bytes_of(granted: Option<u64>, weights: u64, free: u64) -> usize {
    let room = granted.map_or(free, |granted| granted.saturating_sub(weights).min(free));
    usize::try_from(room / 2).unwrap_or(usize::MAX)
}

impl Default for EngineOptions {
    /// As many threads as this process may use, a quarter of a GiB of cache, one for the tokenizer, on the CPU.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            threads,
            cache_bytes_max: 256 * 1024 * 1024,
            tokenizer_bytes_max: 1024 * 1024 * 1024,
            device_bytes_max: None,
            context_tokens_max: None,
            device: DeviceChoice::Cpu,
        }
    }
}

/// A real model: an encoder or a decoder over its weights.
pub struct LoadedEngine {
    front: Arc<Front>,
    model: Model,
}

/// An encoder, wherever it computes.
pub trait Encode: Send {
    /// One vector per text, in order.
    fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError>;
}

/// A decoder, wherever it computes.
pub trait Decode: Send {
    /// How full the cache is.
    fn capacity(&self) -> Capacity;

    /// Reserve room; none when there is none now.
    fn open_sequence(&mut self, tokens_max: usize) -> Option<SequenceId>;

    /// Free a sequence's room.
    fn close_sequence(&mut self, sequence: SequenceId);

    /// One step; see [`Engine::step`].
    ///
    /// # Panics
    /// When a run is empty, its sequence is not open or would outgrow its reservation, or a token is unknown.
    fn step(&mut self, runs: &[Run<'_>]) -> Result<Vec<Vec<f32>>, EngineError>;
}

enum Model {
    Encoder(Box<dyn Encode>),
    Decoder(Box<dyn Decode>),
}

impl LoadedEngine {
    /// Read configuration, tokenizer and tensor headers, waiting for those files alone. On the CPU the weights
    /// themselves are waited for by the first computation, layer by layer.
    pub fn open(files: &Arc<ModelFiles>, options: &EngineOptions) -> Result<Self, EngineError> {
        let config = config::ModelConfig::read(files)?;
        let front = Arc::new(Front::read(files, &config, options)?);
        let weights = crate::weights::Weights::open(Arc::clone(files))?;
        let context = front.context_tokens_max();
        let model = match options.device {
            DeviceChoice::Cpu => on_cpu(&config.shape, &weights, options, context)?,
            DeviceChoice::Cuda(ordinal) => on_gpu(ordinal, &config.shape, &weights, options, context)?,
        };
        Ok(Self { front, model })
    }
}

/// The model on our own kernels.
fn on_cpu(
    shape: &config::Shape,
    weights: &crate::weights::Weights,
    options: &EngineOptions,
    context: usize,
) -> Result<Model, EngineError> {
    Ok(match shape {
        config::Shape::Encoder(shape) => {
            Model::Encoder(Box::new(encoder::Encoder::open(shape, weights, options.threads)?))
        }
        config::Shape::Decoder(shape) => {
            Model::Decoder(Box::new(decoder::Decoder::open(shape, weights, options, context)?))
        }
    })
}

/// The model on the CUDA device of this ordinal.
#[cfg(feature = "cuda")]
fn on_gpu(
    ordinal: usize,
    shape: &config::Shape,
    weights: &crate::weights::Weights,
    options: &EngineOptions,
    context: usize,
) -> Result<Model, EngineError> {
    let device = device::cuda(ordinal)?;
    Ok(match shape {
        config::Shape::Encoder(shape) => {
            Model::Encoder(Box::new(device::DeviceEncoder::open(shape, weights, &device)?))
        }
        config::Shape::Decoder(shape) => {
            Model::Decoder(Box::new(device::DeviceDecoder::open(shape, weights, &device, options, context)?))
        }
    })
}

/// No model: this build has no engine for GPUs.
#[cfg(not(feature = "cuda"))]
fn on_gpu(
    ordinal: usize,
    _: &config::Shape,
    _: &crate::weights::Weights,
    _: &EngineOptions,
    _: usize,
) -> Result<Model, EngineError> {
    Err(EngineError::Device {
        reason: format!(
            "GPU {ordinal} was asked for, but quorate-serve was built without the `cuda` feature"
        ),
    })
}

impl Engine for LoadedEngine {
    fn front(&self) -> &Arc<Front> {
        &self.front
    }

    fn embed(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let limit = self.front.context_tokens_max();
        if let Some(long) = sequences.iter().find(|tokens| tokens.len() > limit) {
            return Err(EngineError::ContextExceeded { tokens: long.len(), context_tokens_max: limit });
        }
        match &mut self.model {
            Model::Encoder(encoder) => encoder.embed(sequences),
            Model::Decoder(_) => Err(EngineError::OperationUnsupported { operation: "embed" }),
        }
    }

    fn capacity(&self) -> Capacity {
        match &self.model {
            Model::Decoder(decoder) => decoder.capacity(),
            Model::Encoder(_) => Capacity::default(),
        }
    }

    fn open(&mut self, tokens_max: usize) -> Result<Option<SequenceId>, EngineError> {
        let limit = self.front.context_tokens_max();
        if tokens_max > limit {
            return Err(EngineError::ContextExceeded { tokens: tokens_max, context_tokens_max: limit });
        }
        match &mut self.model {
            Model::Decoder(decoder) => Ok(decoder.open_sequence(tokens_max)),
            Model::Encoder(_) => Err(EngineError::OperationUnsupported { operation: "generate" }),
        }
    }

    fn step(&mut self, runs: &[Run<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        match &mut self.model {
            Model::Decoder(decoder) => decoder.step(runs),
            Model::Encoder(_) => Err(EngineError::OperationUnsupported { operation: "generate" }),
        }
    }

    fn close(&mut self, sequence: SequenceId) {
        match &mut self.model {
            Model::Decoder(decoder) => decoder.close_sequence(sequence),
            Model::Encoder(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_fits_into_its_workers_memory() {
        for (memory_mib, cache_mib) in
            [(0, 16), (32, 16), (64, 16), (128, 48), (256, 144), (1024, 720), (65_536, 49_104_usize)]
        {
            assert_eq!(cache_bytes_of(memory_mib << 20), cache_mib << 20, "{memory_mib} MiB");
        }
    }

    #[test]
    fn a_cache_on_a_gpu_fits_beside_the_weights_and_into_its_share() {
        for (granted, weights, free, cache) in
            [(None, 14, 64, 32), (Some(24), 14, 64, 5), (Some(24), 14, 6, 3), (Some(10), 14, 64, 0)]
        {
            assert_eq!(device_cache_bytes_of(granted, weights, free), cache, "{granted:?} {weights} {free}");
        }
    }
}

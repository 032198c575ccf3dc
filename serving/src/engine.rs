//! Inference engines: forward passes of encoders and decoders, from token ids to embedding vectors or logits.
//!
//! An [`Engine`] knows nothing of requests, channels, text or time; the batcher owns one and decides what
//! each step computes, and which blocks of the KV cache each sequence has. The text side of a model
//! (tokenizer, chat template, special tokens) is in [`TextFrontend`], shared with the HTTP side.
//!
//! On the CPU every result is bit-identical regardless of the other sequences in the batch, the number of
//! threads, and the chunking of prompts. Each number is one fixed chain of fused multiply-adds (see
//! [`kernels`]).

pub mod chat;
pub mod config;
pub mod decoder;
#[cfg(feature = "candle")]
pub mod device;
pub mod encoder;
pub mod grammar;
pub mod logits;
pub mod matryoshka;
mod parameters;
mod pooling;
pub mod reasoning;
pub mod sampler;
pub mod simulated;
pub mod special_tokens;
pub mod stop;
pub mod text;
pub mod text_frontend;
pub mod tools;

use crate::weights::{ModelFiles, Weights, WeightsError};
use kernels::ComputePool;
use kernels::sampling::Sampling;
use logits::{LogitState, TokenLogprobs};
use protocol::ErrorCode;
use protocol::error_code as code;
use std::sync::Arc;

pub use text_frontend::TextFrontend;

/// Failure of an engine, with a stable error code for operators.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's files are missing, damaged, or did not arrive in time.
    #[error("read model weights")]
    Weights(#[from] WeightsError),
    /// `config.json` names an architecture that is not built in.
    #[error("{name} is not known; known: {known}")]
    ArchitectureUnknown {
        /// Architecture named by `config.json`.
        name: String,
        /// Built-in architectures, comma-separated.
        known: String,
    },
    /// A configuration file violates its format.
    #[error("model file `{path}` is invalid: {reason}")]
    ConfigInvalid {
        /// Path of the file inside the model.
        path: String,
        /// Description of the violation.
        reason: String,
    },
    /// The architecture is built in, but this checkpoint uses a feature of it that is not.
    #[error("model uses {feature}, which this engine does not support")]
    FeatureUnsupported {
        /// The unsupported feature.
        feature: String,
    },
    /// The tokenizer failed on an input.
    #[error("tokenize: {reason}")]
    Tokenize {
        /// The tokenizer's message.
        reason: String,
    },
    /// The chat template is absent or rejects these messages.
    #[error("render chat template: {reason}")]
    ChatTemplate {
        /// Reason for the failure.
        reason: String,
    },
    /// An input, or input plus requested output, is longer than the model's context.
    #[error("{tokens} tokens exceed the model's context of {context_tokens_max}")]
    ContextExceeded {
        /// Tokens requested.
        tokens: usize,
        /// Tokens in the model's context.
        context_tokens_max: usize,
    },
    /// An input, or input plus requested output, is longer than the KV cache.
    #[error(
        "{tokens} tokens exceed the {cache_tokens} that the KV cache of this worker holds: request fewer \
         with `max_tokens`, or give the worker more memory"
    )]
    CacheExceeded {
        /// Tokens requested.
        tokens: usize,
        /// Tokens in the whole cache.
        cache_tokens: usize,
    },
    /// A text exceeds the largest size that could fit the context; it was not tokenized.
    #[error(
        "{bytes} bytes of text, at most {bytes_max} are tokenized for the model's context of \
         {context_tokens_max} tokens"
    )]
    TextTooLong {
        /// Length of the text in bytes.
        bytes: usize,
        /// Longest text that is tokenized, in bytes.
        bytes_max: usize,
        /// Tokens in the model's context.
        context_tokens_max: usize,
    },
    /// The model was asked for another operation than its own.
    #[error("this model does not {operation}")]
    OperationUnsupported {
        /// `embed`, `generate` or `rerank`.
        operation: &'static str,
    },
    /// The device (GPU) failed.
    #[error("device: {reason}")]
    Device {
        /// The device library's message.
        reason: String,
    },
}

impl EngineError {
    /// Returns the stable code that `quorate explain` documents.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Weights(error) => error.code(),
            Self::ArchitectureUnknown { .. } => code::MODEL_ARCHITECTURE_UNKNOWN,
            Self::ConfigInvalid { .. } => code::MODEL_CONFIG_INVALID,
            Self::FeatureUnsupported { .. } => code::MODEL_FEATURE_UNSUPPORTED,
            Self::Tokenize { .. } => code::INVALID_VALUE,
            Self::ChatTemplate { .. } => code::CHAT_TEMPLATE_FAILED,
            Self::ContextExceeded { .. } | Self::CacheExceeded { .. } | Self::TextTooLong { .. } => {
                code::CONTEXT_LENGTH_EXCEEDED
            }
            Self::OperationUnsupported { .. } => code::OPERATION_UNSUPPORTED,
            Self::Device { .. } => code::ENGINE_FAILED,
        }
    }
}

/// The operation that a model supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Text to an embedding vector.
    Embed,
    /// Text to a continuation.
    Generate,
    /// A query and documents to a score of each document.
    Rerank,
}

/// Tokens of a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPair {
    /// Both texts, with the tokens that the tokenizer puts around and between them.
    pub tokens: Vec<u32>,
    /// First token of the second type; the number of tokens if all are of the first.
    pub second: usize,
}

/// Positions in a block of the KV cache.
pub const BLOCK_TOKENS: usize = kernels::attention::PANEL;

/// A block of the KV cache: keys and values of [`BLOCK_TOKENS`] consecutive positions of a sequence, in all
/// layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// New tokens of one sequence in a step: a chunk of its prompt, or the token just drawn.
#[derive(Debug, Clone, Copy)]
pub struct SequenceChunk<'a> {
    /// The sequence's blocks in the order of positions, with room for all tokens up to the last of these. The
    /// step writes the positions of these tokens, in blocks that no other sequence of the step has.
    pub blocks: &'a [BlockId],
    /// Position of the first of these tokens. All positions before it are stored in the blocks.
    pub position: usize,
    /// The tokens. Not empty.
    pub tokens: &'a [u32],
    /// Parameters by which the next token is drawn; `None` draws none.
    pub draw: Option<Draw<'a>>,
}

/// Parameters by which the token after a chunk is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw<'a> {
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Rules that change the logits first, if any.
    pub rules: Option<&'a LogitState>,
    /// Alternatives to report with the token's log-probability; `None` reports none of both.
    pub logprobs: Option<usize>,
    /// Tokens of the sequence's prompt; those after it were generated.
    pub prompt: usize,
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    pub token: u32,
    /// Log-probabilities before any rule, where the draw asks for them.
    pub logprobs: Option<TokenLogprobs>,
}

impl<'a> SequenceChunk<'a> {
    /// Returns the parameters and the position of the token to draw.
    #[must_use]
    pub fn drawn(&self) -> Option<(Draw<'a>, u64)> {
        self.draw.map(|draw| (draw, (self.position + self.tokens.len()) as u64))
    }
}

/// The forward pass of one loaded model. Two implementations: [`LoadedEngine`] and
/// [`simulated::SimulatedEngine`].
pub trait Engine: Send {
    /// Returns the text side of the model.
    fn frontend(&self) -> &Arc<TextFrontend>;

    /// Computes one vector per token sequence, in order. Models that embed only.
    fn embed(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Computes one score per pair, in order. Cross-encoders only.
    fn score(&mut self, pairs: &[TokenPair]) -> Result<Vec<f32>, EngineError>;

    /// Returns the number of blocks of the KV cache, named from 0; 0 for a model that does not generate. The
    /// caller decides which sequence has which blocks.
    fn blocks(&self) -> usize;

    /// Computes one step over many sequences. Returns the token drawn for each chunk that draws one, in the
    /// order of the chunks; `None` where the logits are not numbers.
    ///
    /// # Errors
    /// [`EngineError`]: the weights are unusable, or the device failed. The contents that the step wrote are
    /// undefined.
    ///
    /// # Panics
    /// If a chunk is empty, its blocks do not hold its positions, or a token is unknown.
    fn step(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<Option<Drawn>>, EngineError>;
}

/// Configuration of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Compute threads, at least 1.
    pub threads: usize,
    /// Size limit of the decoder's KV cache on the CPU, in bytes.
    pub cache_bytes_max: usize,
    /// Memory limit for tokenizing one text, in bytes.
    pub tokenizer_bytes_max: usize,
    /// Limit on GPU memory for weights and cache together, in bytes; `None` uses all free memory.
    pub device_bytes_max: Option<u64>,
    /// Largest context served, if smaller than the model's own.
    pub context_tokens_max: Option<usize>,
    /// Device that computes.
    pub device: DeviceChoice,
}

/// Device on which an engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU, with this crate's own kernels and the weights used in place.
    Cpu,
    /// The CUDA device of this ordinal; needs the `cuda` feature.
    Cuda(usize),
}

/// Memory of a worker apart from its cache, in bytes: program, tokenizer, activations, queued requests.
/// Measured: 10 MiB with the shipped language model and 16 clients, 22 MiB with MiniLM and four clients of 32
/// long texts each.
const PROGRAM_BYTES: u64 = 64 << 20;
/// Minimum memory for tokenizing one text, in bytes: the smallest worker must accept a page of text.
const TOKENIZER_BYTES_MIN: usize = 20 << 20;
/// Minimum cache, in bytes: a worker with hardly any memory still answers short requests one after another.
const CACHE_BYTES_MIN: u64 = 16 << 20;

/// Returns the share of a worker's memory, in bytes, that its KV cache may fill. A small worker must not run
/// out of memory, and a large one must not leave it unused. Weights are charged to the node and do not count.
#[must_use]
pub fn cache_bytes_of(memory_bytes: u64) -> usize {
    // A quarter of the remainder stays free: activations grow with the batch that a larger cache admits.
    let room = memory_bytes.saturating_sub(PROGRAM_BYTES) / 4 * 3;
    usize::try_from(room.max(CACHE_BYTES_MIN)).unwrap_or(usize::MAX)
}

/// Returns the share of a worker's memory, in bytes, for tokenizing one text while a step runs: half of what
/// [`cache_bytes_of`] leaves free.
#[must_use]
pub fn tokenizer_bytes_of(memory_bytes: u64) -> usize {
    let room = usize::try_from(memory_bytes.saturating_sub(PROGRAM_BYTES) / 8).unwrap_or(usize::MAX);
    room.max(TOKENIZER_BYTES_MIN)
}

/// Returns the GPU memory, in bytes, that the cache may fill. `free` is the memory left after the weights;
/// `granted` is the limit on weights and cache together. The cache gets half: a step holds the old and the
/// new keys and values at the same time.
#[must_use]
pub fn device_cache_bytes_of(granted: Option<u64>, weights: u64, free: u64) -> usize {
    let room = granted.map_or(free, |granted| granted.saturating_sub(weights).min(free));
    usize::try_from(room / 2).unwrap_or(usize::MAX)
}

impl Default for EngineOptions {
    /// Returns one thread per available CPU, 256 MiB of cache, 1 GiB for the tokenizer, computing on the CPU.
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

/// A model loaded from its files: an encoder or a decoder over its weights.
pub struct LoadedEngine {
    frontend: Arc<TextFrontend>,
    weights: Arc<Weights>,
    model: Model,
}

/// A model on any device that embeds or scores.
pub trait Encode: Send {
    /// Computes one vector per text, in order.
    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Computes one score per pair, in order.
    fn score(&mut self, _: &[TokenPair]) -> Result<Vec<f32>, EngineError> {
        Err(EngineError::OperationUnsupported { operation: "rerank" })
    }
}

/// A decoder on any device.
pub trait Decode: Send {
    /// Returns the number of blocks of the KV cache.
    fn blocks(&self) -> usize;

    /// Returns the threads that compute; they also sample.
    fn pool(&self) -> &ComputePool;

    /// Computes one step; see [`Engine::step`]. Returns one row of logits, as wide as the vocabulary, for
    /// each chunk that draws a token, in the order of the chunks.
    ///
    /// # Errors
    /// As [`Engine::step`].
    ///
    /// # Panics
    /// As [`Engine::step`].
    fn logits(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<f32>, EngineError>;
}

enum Model {
    Encoder(Box<dyn Encode>),
    Decoder(Box<dyn Decode>),
}

impl LoadedEngine {
    /// Reads configuration, tokenizer and tensor headers, and waits for those files only. On the CPU the
    /// first computation waits for the weights themselves, layer by layer.
    ///
    /// # Errors
    /// [`EngineError`]: a file is missing, damaged or not supported, or the device failed.
    pub fn open(files: &Arc<ModelFiles>, options: &EngineOptions) -> Result<Self, EngineError> {
        let config = config::ModelConfig::read(files)?;
        let options = &fitted(&config.shape, options);
        let frontend = Arc::new(TextFrontend::read(files, &config, options)?);
        let weights = Arc::new(Weights::open(Arc::clone(files))?);
        let context = frontend.context_tokens_max();
        let model = match options.device {
            DeviceChoice::Cpu => on_cpu(&config.shape, &weights, options, context)?,
            DeviceChoice::Cuda(ordinal) => on_gpu(ordinal, &config.shape, &weights, options, context)?,
        };
        Ok(Self { frontend, weights, model })
    }

    /// Returns the weights, to check them as they arrive.
    #[must_use]
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// Computes one step; returns the logits instead of tokens, one row for each chunk that draws a token.
    ///
    /// # Errors
    /// As [`Engine::step`].
    ///
    /// # Panics
    /// As [`Engine::step`].
    pub fn logits(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<f32>, EngineError> {
        match &mut self.model {
            Model::Decoder(decoder) => decoder.logits(chunks),
            Model::Encoder(_) => Err(EngineError::OperationUnsupported { operation: "generate" }),
        }
    }
}

/// Returns the options with a context that fits the cache, where a text is computed as a whole.
fn fitted(shape: &config::Shape, options: &EngineOptions) -> EngineOptions {
    let fits = match shape {
        config::Shape::Decoder(shape) if shape.vector.is_some() => {
            decoder::embedding_tokens_max(shape, options.cache_bytes_max)
        }
        _ => usize::MAX,
    };
    let context = options.context_tokens_max.unwrap_or(usize::MAX).min(fits);
    let context_tokens_max = Some(context).filter(|context| *context < usize::MAX);
    EngineOptions { context_tokens_max, ..options.clone() }
}

/// Opens the model on this crate's CPU kernels.
fn on_cpu(
    shape: &config::Shape,
    weights: &Weights,
    options: &EngineOptions,
    context: usize,
) -> Result<Model, EngineError> {
    Ok(match shape {
        config::Shape::Encoder(shape) => {
            Model::Encoder(Box::new(encoder::Encoder::open(shape, weights, options.threads, context)?))
        }
        config::Shape::Decoder(shape) => {
            let decoder = decoder::Decoder::open(shape, weights, options, context)?;
            match shape.vector {
                Some(_) => Model::Encoder(Box::new(decoder)),
                None => Model::Decoder(Box::new(decoder)),
            }
        }
    })
}

/// Opens the model on the CUDA device of this ordinal.
#[cfg(feature = "cuda")]
fn on_gpu(
    ordinal: usize,
    shape: &config::Shape,
    weights: &Weights,
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

/// Always fails: this build has no GPU engine.
#[cfg(not(feature = "cuda"))]
fn on_gpu(
    ordinal: usize,
    _: &config::Shape,
    _: &Weights,
    _: &EngineOptions,
    _: usize,
) -> Result<Model, EngineError> {
    Err(EngineError::Device {
        reason: format!(
            "GPU {ordinal} was asked for, but quorate-serve was built without the `cuda` feature"
        ),
    })
}

/// Refuses an input that is longer than the context.
fn check_lengths(
    frontend: &TextFrontend,
    mut lengths: impl Iterator<Item = usize>,
) -> Result<(), EngineError> {
    let context_tokens_max = frontend.context_tokens_max();
    match lengths.find(|tokens| *tokens > context_tokens_max) {
        Some(tokens) => Err(EngineError::ContextExceeded { tokens, context_tokens_max }),
        None => Ok(()),
    }
}

impl Engine for LoadedEngine {
    fn frontend(&self) -> &Arc<TextFrontend> {
        &self.frontend
    }

    fn embed(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        match (&mut self.model, self.frontend.operation()) {
            (Model::Encoder(encoder), Operation::Embed) => {
                check_lengths(&self.frontend, sequences.iter().map(Vec::len))?;
                encoder.embed(sequences)
            }
            _ => Err(EngineError::OperationUnsupported { operation: "embed" }),
        }
    }

    fn score(&mut self, pairs: &[TokenPair]) -> Result<Vec<f32>, EngineError> {
        match (&mut self.model, self.frontend.operation()) {
            (Model::Encoder(encoder), Operation::Rerank) => {
                check_lengths(&self.frontend, pairs.iter().map(|pair| pair.tokens.len()))?;
                encoder.score(pairs)
            }
            _ => Err(EngineError::OperationUnsupported { operation: "rerank" }),
        }
    }

    fn blocks(&self) -> usize {
        match &self.model {
            Model::Decoder(decoder) => decoder.blocks(),
            Model::Encoder(_) => 0,
        }
    }

    fn step(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<Option<Drawn>>, EngineError> {
        let logits = self.logits(chunks)?;
        let draws: Vec<(Draw<'_>, u64)> = chunks.iter().filter_map(SequenceChunk::drawn).collect();
        let Model::Decoder(decoder) = &self.model else { unreachable!("an encoder has no logits") };
        Ok(sampler::sample_rows(decoder.pool(), &logits, &draws))
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

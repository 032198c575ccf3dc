//! Checkpoint configuration: parses `config.json` and its companion files into the parameters of the engines.
//!
//! `config.json` alone is judged by [`protocol::checkpoint`], as at an import. These formats are defined
//! elsewhere, so unknown fields are ignored, with care: every field that would change the mathematics is
//! either honoured or refused. Tensors and the tokenizer are read by other modules.

use super::EngineError;
use crate::weights::ModelFiles;
use protocol::checkpoint::{CheckpointError, EncoderSizes, Servable, ServableShape, servable};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use protocol::checkpoint::{
    DecoderShape, ExpertNames, Experts, FeedForward, Gate, LayerShape, NormStyle, ProjectionBiases, Rotary,
    RotaryScaling, RotaryStretch, Yarn,
};

/// A checkpoint's configuration.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Architecture and dimensions.
    pub shape: Shape,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// Maximum positions that the model was trained for.
    pub context_tokens_max: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
}

/// The architecture of a checkpoint, with its dimensions.
#[derive(Debug, Clone)]
pub enum Shape {
    /// BERT family.
    Encoder(EncoderShape),
    /// A decoder of any family.
    Decoder(DecoderShape),
}

/// A BERT encoder with its pooling.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderShape {
    /// Width of a position's hidden state.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token-type table.
    pub token_types: usize,
    /// Epsilon added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Reduction of all positions to one vector.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
}

/// Reduction of an encoder's positions to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all positions.
    Mean,
    /// The first position.
    First,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct RawModule {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RawPooling {
    #[serde(default)]
    pooling_mode: Option<String>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Deserialize)]
struct RawSentence {
    max_seq_length: Option<usize>,
}

impl ModelConfig {
    /// Reads `config.json` and the companion files that complete it.
    ///
    /// # Errors
    /// [`EngineError`]: a file is missing or invalid, or the checkpoint is not supported.
    pub fn read(files: &ModelFiles) -> Result<Self, EngineError> {
        let Servable { shape, end_tokens, context_tokens_max } = servable(files.read("config.json")?)?;
        match shape {
            ServableShape::Encoder(sizes) => read_encoder(files, sizes),
            ServableShape::Decoder(shape) => {
                let vocabulary = shape.vocabulary;
                let end_tokens = read_end_tokens(files, end_tokens)?;
                Ok(Self { shape: Shape::Decoder(shape), end_tokens, context_tokens_max, vocabulary })
            }
        }
    }
}

impl From<CheckpointError> for EngineError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::ArchitectureUnknown { name, known } => Self::ArchitectureUnknown { name, known },
            CheckpointError::Invalid { reason } => invalid("config.json", &reason),
            CheckpointError::FeatureUnsupported { feature } => Self::FeatureUnsupported { feature },
        }
    }
}

fn read_encoder(files: &ModelFiles, sizes: EncoderSizes) -> Result<ModelConfig, EngineError> {
    let (pooling, normalize) = read_pooling(files)?;
    let mut context_tokens_max = sizes.positions;
    if files.contains("sentence_bert_config.json") {
        let sentence: RawSentence = json(files, "sentence_bert_config.json")?;
        context_tokens_max = context_tokens_max.min(sentence.max_seq_length.unwrap_or(usize::MAX));
    }
    let vocabulary = sizes.vocabulary;
    let shape = EncoderShape {
        hidden: sizes.hidden,
        intermediate: sizes.intermediate,
        layers: sizes.layers,
        heads: sizes.heads,
        vocabulary,
        positions: sizes.positions,
        token_types: sizes.token_types,
        norm_epsilon: sizes.norm_epsilon,
        pooling,
        normalize,
    };
    Ok(ModelConfig { shape: Shape::Encoder(shape), end_tokens: Vec::new(), context_tokens_max, vocabulary })
}

/// Returns the tokens that end a generation: those of `generation_config.json` precede the others.
fn read_end_tokens(files: &ModelFiles, end_tokens: Vec<u32>) -> Result<Vec<u32>, EngineError> {
    if !files.contains("generation_config.json") {
        return Ok(end_tokens);
    }
    let generation: RawGeneration = json(files, "generation_config.json")?;
    Ok(generation.eos_token_id.map(OneOrMany::into_vec).unwrap_or(end_tokens))
}

fn read_pooling(files: &ModelFiles) -> Result<(Pooling, bool), EngineError> {
    if !files.contains("modules.json") {
        // The default of sentence-transformers for a bare encoder.
        return Ok((Pooling::Mean, false));
    }
    let modules: Vec<RawModule> = json(files, "modules.json")?;
    let mut pooling = Pooling::Mean;
    let mut normalize = false;
    for module in modules {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" => {}
            "Pooling" => pooling = read_pooling_mode(files, &format!("{}/config.json", module.path))?,
            "Normalize" => normalize = true,
            other => {
                return Err(EngineError::FeatureUnsupported { feature: format!("the module `{other}`") });
            }
        }
    }
    Ok((pooling, normalize))
}

fn read_pooling_mode(files: &ModelFiles, path: &str) -> Result<Pooling, EngineError> {
    let raw: RawPooling = json(files, path)?;
    let other = raw.pooling_mode_max_tokens
        || raw.pooling_mode_mean_sqrt_len_tokens
        || raw.pooling_mode_weightedmean_tokens
        || raw.pooling_mode_lasttoken;
    let mean = raw.pooling_mode_mean_tokens || raw.pooling_mode.as_deref() == Some("mean");
    let first = raw.pooling_mode_cls_token || raw.pooling_mode.as_deref() == Some("cls");
    match (mean, first, other) {
        (true, false, false) => Ok(Pooling::Mean),
        (false, true, false) => Ok(Pooling::First),
        _ => Err(EngineError::FeatureUnsupported { feature: format!("the pooling in `{path}`") }),
    }
}

/// Parses a JSON file of the model.
///
/// # Errors
/// [`EngineError`]: the file is missing or invalid.
pub fn json<T: DeserializeOwned>(files: &ModelFiles, path: &str) -> Result<T, EngineError> {
    serde_json::from_slice(files.read(path)?).map_err(|error| invalid(path, &error.to_string()))
}

fn invalid(path: &str, reason: &str) -> EngineError {
    EngineError::ConfigInvalid { path: path.to_owned(), reason: reason.to_owned() }
}

//! Checkpoint configuration: parses the small files of a model into the parameters of the engines.
//!
//! [`protocol::checkpoint`] judges them, as at an import. These formats are defined elsewhere, so unknown
//! fields are ignored, with care: every field that would change the mathematics is either honoured or
//! refused. Tensors and the tokenizer are read by other modules.

use super::EngineError;
use crate::weights::ModelFiles;
use protocol::checkpoint::{CheckpointError, CheckpointFiles, Servable, servable};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use protocol::checkpoint::{
    DecoderShape, EncoderLayerShape, EncoderNames, EncoderOutput, EncoderShape, ExpertNames, Experts,
    FeedForward, Gate, LayerShape, NormOrder, NormStyle, Pooling, PositionTable, ProjectionBiases, Rotary,
    RotaryScaling, RotaryStretch, ScoreActivation, ScoreHead, ScoreShape, ServableShape as Shape,
    VectorShape, Yarn,
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

impl ModelConfig {
    /// Reads `config.json` and the small files that complete it.
    ///
    /// # Errors
    /// [`EngineError`]: a file is missing or invalid, or the checkpoint is not supported.
    pub fn read(files: &ModelFiles) -> Result<Self, EngineError> {
        // A model without it is refused by this name.
        files.read("config.json")?;
        let paths = files.paths().into_iter().filter(|path| CheckpointFiles::includes(path));
        let read = |path: &str| -> Result<(String, Vec<u8>), EngineError> {
            Ok((path.to_owned(), files.read(path)?.to_vec()))
        };
        let parts = paths.map(read).collect::<Result<CheckpointFiles, _>>()?;
        let Servable { shape, end_tokens, context_tokens_max, .. } = servable(&parts)?;
        let (vocabulary, end_tokens) = match &shape {
            Shape::Encoder(shape) => (shape.vocabulary, Vec::new()),
            Shape::Decoder(shape) => (shape.vocabulary, read_end_tokens(files, end_tokens)?),
        };
        Ok(Self { shape, end_tokens, context_tokens_max, vocabulary })
    }
}

impl From<CheckpointError> for EngineError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::ArchitectureUnknown { name, known } => Self::ArchitectureUnknown { name, known },
            CheckpointError::Invalid { path, reason } => invalid(&path, &reason),
            CheckpointError::FeatureUnsupported { feature } => Self::FeatureUnsupported { feature },
        }
    }
}

/// Returns the tokens that end a generation: those of `generation_config.json` precede the others.
fn read_end_tokens(files: &ModelFiles, end_tokens: Vec<u32>) -> Result<Vec<u32>, EngineError> {
    if !files.contains("generation_config.json") {
        return Ok(end_tokens);
    }
    let generation: RawGeneration = json(files, "generation_config.json")?;
    Ok(generation.eos_token_id.map(OneOrMany::into_vec).unwrap_or(end_tokens))
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

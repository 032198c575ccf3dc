//! Checkpoint configurations: the models that the built-in engines serve, judged by `config.json` and the
//! small files of sentence-transformers beside it.
//!
//! An import and a worker call the same [`servable`], so that a model which no engine can serve is refused
//! before members vote for it. The format is defined elsewhere and unknown fields are ignored, with care:
//! every field that would change the mathematics is either honoured or refused by name.

mod decoder;
mod encoder;
mod encoder_shape;
mod fields;
mod files;
mod quantization;
mod registered;
mod rotary;
mod sentence;
mod shape;

pub use encoder_shape::{
    EncoderBiases, EncoderLayerShape, EncoderNames, EncoderOutput, EncoderShape, NormOrder, Pooling,
    PositionTable, ScoreActivation, ScoreHead, ScoreShape, VectorShape,
};
pub use fields::CheckpointError;
pub use files::CheckpointFiles;
pub use quantization::Quantization;
pub use registered::{FOREIGN_PREFIX, foreign_architecture, is_foreign, registered_architecture, task_of};
pub use shape::{
    DecoderShape, ExpertNames, Experts, FeedForward, Gate, LayerShape, NormStyle, ProjectionBiases, Rotary,
    RotaryScaling, RotaryStretch, Yarn,
};

use fields::RawCheckpoint;

/// Most end tokens of a configuration: published ones have up to five.
const END_TOKENS_MAX: usize = 64;

/// A model that a built-in engine serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Servable {
    /// Architecture and dimensions.
    pub shape: ServableShape,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// Maximum positions that the model can be served with.
    pub context_tokens_max: usize,
    /// Recipe of its matrices, if they are quantised.
    pub quantization: Option<Quantization>,
}

/// Architecture and dimensions of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum ServableShape {
    /// An encoder of any family.
    Encoder(EncoderShape),
    /// A decoder of any family.
    Decoder(DecoderShape),
}

/// Returns the built-in architectures, as `config.json` names them.
#[must_use]
pub fn architectures() -> Vec<&'static str> {
    let encoders = encoder::FAMILIES.iter().map(|(name, ..)| *name);
    let all: Vec<_> = encoders.chain(decoder::FAMILIES.iter().map(|(name, _)| *name)).collect();
    assert!(all.iter().all(|name| !name.is_empty()), "each architecture has a name");
    all
}

/// Judges a model by its small files: returns the shape by which a built-in engine serves it.
///
/// # Errors
/// [`CheckpointError`]: the architecture is unknown, a feature is not implemented, or a file is invalid.
pub fn servable(files: &CheckpointFiles) -> Result<Servable, CheckpointError> {
    let raw: Option<RawCheckpoint> = files.read("config.json")?;
    let raw = raw.ok_or_else(|| CheckpointError::invalid("there is none"))?;
    let name = raw.architectures.as_deref().and_then(<[String]>::first);
    let name = name.ok_or_else(|| CheckpointError::invalid("no `architectures`"))?;
    let quantization = raw.quantization_config.clone().map(Quantization::read).transpose()?;
    let end_tokens = raw.end_tokens();
    if end_tokens.len() > END_TOKENS_MAX {
        let reason = format!("{} end tokens, at most {END_TOKENS_MAX}", end_tokens.len());
        return Err(CheckpointError::invalid(reason));
    }
    if let Some((_, family, is_scoring)) = encoder::FAMILIES.iter().find(|(known, ..)| known == name) {
        let sentence = sentence::read(files, *is_scoring)?;
        let (shape, context) = encoder::read((*family, *is_scoring), &raw, &sentence)?;
        let context_tokens_max = sentence.context_tokens_max.map_or(context, |limit| limit.min(context));
        let shape = ServableShape::Encoder(shape);
        return Ok(Servable { shape, end_tokens, context_tokens_max, quantization });
    }
    let Some((_, family)) = decoder::FAMILIES.iter().find(|(known, _)| known == name) else {
        let known = architectures().join(", ");
        return Err(CheckpointError::ArchitectureUnknown { name: name.clone(), known });
    };
    let (mut shape, context) = decoder::read(*family, &raw)?;
    let sentence = sentence::read(files, false)?;
    shape.vector = sentence.vector;
    let context_tokens_max = sentence.context_tokens_max.map_or(context, |limit| limit.min(context));
    Ok(Servable { shape: ServableShape::Decoder(shape), end_tokens, context_tokens_max, quantization })
}

#[cfg(test)]
mod tests;

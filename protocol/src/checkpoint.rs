//! Checkpoint configurations: the models that the built-in engines serve, judged by `config.json` alone.
//!
//! An import and a worker call the same [`servable`], so that a model which no engine can serve is refused
//! before members vote for it. The format is defined elsewhere and unknown fields are ignored, with care:
//! every field that would change the mathematics is either honoured or refused by name.

mod decoder;
mod encoder;
mod fields;
mod rotary;
mod shape;

pub use encoder::EncoderSizes;
pub use fields::CheckpointError;
pub use shape::{
    DecoderShape, ExpertNames, Experts, FeedForward, Gate, LayerShape, NormStyle, ProjectionBiases, Rotary,
    RotaryScaling, RotaryStretch, Yarn,
};

use decoder::FAMILIES;
use fields::RawCheckpoint;

/// First part of the architecture of a model in the register that no built-in engine serves. The name from
/// its configuration follows.
pub const FOREIGN_PREFIX: &str = "foreign/";

/// The only encoder that is built in.
const ENCODER: &str = "BertModel";

/// Most end tokens of a configuration: published ones have up to five.
const END_TOKENS_MAX: usize = 64;

/// A configuration that a built-in engine serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Servable {
    /// Architecture and dimensions.
    pub shape: ServableShape,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// Maximum positions that the model can be served with.
    pub context_tokens_max: usize,
}

/// Architecture and dimensions of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum ServableShape {
    /// BERT family.
    Encoder(EncoderSizes),
    /// A decoder of any family.
    Decoder(DecoderShape),
}

/// Returns the built-in architectures, as `config.json` names them.
#[must_use]
pub fn architectures() -> Vec<&'static str> {
    let all: Vec<_> = std::iter::once(ENCODER).chain(FAMILIES.iter().map(|(name, _)| *name)).collect();
    assert!(all.iter().all(|name| !name.is_empty()), "each architecture has a name");
    all
}

/// Judges the text of a `config.json`: returns the shape by which a built-in engine serves the model.
///
/// # Errors
/// [`CheckpointError`]: the architecture is unknown, a feature is not implemented, or the text is invalid.
pub fn servable(config: &[u8]) -> Result<Servable, CheckpointError> {
    let raw: RawCheckpoint = serde_json::from_slice(config)
        .map_err(|error| CheckpointError::Invalid { reason: error.to_string() })?;
    let name = raw.architectures.as_deref().and_then(<[String]>::first);
    let name = name.ok_or_else(|| CheckpointError::Invalid { reason: "no `architectures`".to_owned() })?;
    if raw.quantization_config.is_some() {
        return Err(CheckpointError::unsupported("quantized weights"));
    }
    let end_tokens = raw.end_tokens();
    if end_tokens.len() > END_TOKENS_MAX {
        let reason = format!("{} end tokens, at most {END_TOKENS_MAX}", end_tokens.len());
        return Err(CheckpointError::Invalid { reason });
    }
    if name == ENCODER {
        let sizes = encoder::read(&raw)?;
        let context_tokens_max = sizes.positions;
        return Ok(Servable { shape: ServableShape::Encoder(sizes), end_tokens, context_tokens_max });
    }
    let Some((_, family)) = FAMILIES.iter().find(|(known, _)| known == name) else {
        let known = architectures().join(", ");
        return Err(CheckpointError::ArchitectureUnknown { name: name.clone(), known });
    };
    let (shape, context_tokens_max) = decoder::read(*family, &raw)?;
    Ok(Servable { shape: ServableShape::Decoder(shape), end_tokens, context_tokens_max })
}

/// Returns the architecture under which a model is registered that only a foreign engine can serve.
#[must_use]
pub fn foreign_architecture(name: &str) -> String {
    assert!(!is_foreign(name), "a name is marked once");
    format!("{FOREIGN_PREFIX}{name}")
}

/// Reports whether the architecture of a registered model says that no built-in engine serves it.
#[must_use]
pub fn is_foreign(architecture: &str) -> bool {
    architecture.starts_with(FOREIGN_PREFIX)
}

#[cfg(test)]
mod tests;

//! BERT's part of a configuration. Pooling is in other files, which the engine reads.

use super::fields::{CheckpointError, RawCheckpoint, dimension, divides, expect_feature};

/// Epsilon of layer norms where a configuration names none.
const EPSILON: f32 = 1e-12;

/// Dimensions of a BERT encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSizes {
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
}

/// Reads the dimensions of a BERT encoder.
pub(super) fn read(raw: &RawCheckpoint) -> Result<EncoderSizes, CheckpointError> {
    expect_feature("activation", raw.hidden_act.as_deref(), "gelu")?;
    expect_feature("position embedding", raw.position_embedding_type.as_deref(), "absolute")?;
    let sizes = EncoderSizes {
        hidden: dimension("hidden_size", raw.hidden_size)?,
        intermediate: dimension("intermediate_size", raw.intermediate_size)?,
        layers: dimension("num_hidden_layers", raw.num_hidden_layers)?,
        heads: dimension("num_attention_heads", raw.num_attention_heads)?,
        vocabulary: dimension("vocab_size", raw.vocab_size)?,
        positions: dimension("max_position_embeddings", raw.max_position_embeddings)?,
        token_types: dimension("type_vocab_size", raw.type_vocab_size.or(Some(2)))?,
        norm_epsilon: raw.layer_norm_eps.unwrap_or(EPSILON),
    };
    divides("num_attention_heads", sizes.heads, "hidden_size", sizes.hidden)?;
    assert!(sizes.hidden.is_multiple_of(sizes.heads), "heads are of one width");
    Ok(sizes)
}

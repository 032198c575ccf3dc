//! Shape of a decoder: dimensions, and what differs from layer to layer.

use super::encoder_shape::VectorShape;

/// A decoder of any family.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderShape {
    /// Width of a position's hidden state.
    pub hidden: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub key_value_heads: usize,
    /// Width of a head; even.
    pub head_width: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The layers, in order; at least one.
    pub layers: Vec<LayerShape>,
    /// Rotary embeddings, which layers name by their index; at least one.
    pub rotaries: Vec<Rotary>,
    /// Epsilon added to the mean square in norms.
    pub norm_epsilon: f32,
    /// Norms around attention and feed-forward part.
    pub norms: NormStyle,
    /// Whether each query and key head is normalised before its rotation.
    pub head_norms: bool,
    /// Projections with a bias.
    pub biases: ProjectionBiases,
    /// Activation of the feed-forward part's gate.
    pub gate: Gate,
    /// Factor applied to the products of queries and keys.
    pub attention_scale: f32,
    /// Limit that attention scores approach by a hyperbolic tangent, if any.
    pub attention_soft_cap: Option<f32>,
    /// Limit that logits approach by a hyperbolic tangent, if any.
    pub logit_soft_cap: Option<f32>,
    /// Factor applied to token embeddings.
    pub embedding_scale: f32,
    /// Whether the output matrix is the embedding table.
    pub tied_embeddings: bool,
    /// Vector that is made of the last states, for a model that embeds; `None` for one that generates.
    pub vector: Option<VectorShape>,
}

/// Properties of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerShape {
    /// Positions that a position sees, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// Index of the rotary embedding.
    pub rotary: usize,
    /// The feed-forward part.
    pub feed_forward: FeedForward,
}

/// Feed-forward part of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedForward {
    /// One gated network.
    Dense {
        /// Inner width.
        inner: usize,
    },
    /// A router and gated networks, of which it chooses some for each position.
    Mixture(Experts),
}

impl FeedForward {
    /// Returns the inner width of a network.
    #[must_use]
    pub fn inner(&self) -> usize {
        let inner = match self {
            Self::Dense { inner } => *inner,
            Self::Mixture(experts) => experts.inner,
        };
        assert!(inner > 0, "dimensions were checked");
        inner
    }
}

/// Experts of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// Number of experts.
    pub count: usize,
    /// Experts that compute a position; from 1 to `count`.
    pub chosen: usize,
    /// Inner width of an expert.
    pub inner: usize,
    /// Whether the weights of the chosen experts are scaled to a sum of 1.
    pub is_normalized: bool,
    /// Names of the tensors.
    pub names: ExpertNames,
}

/// Naming of the experts' tensors in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `block_sparse_moe.gate` and `block_sparse_moe.experts.N.w1`, `w3`, `w2`.
    Mixtral,
    /// `mlp.gate` and `mlp.experts.N.gate_proj`, `up_proj`, `down_proj`.
    Qwen,
}

/// Norms around attention and feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormStyle {
    /// A norm before each part, scaled by its weights.
    Before,
    /// A norm before and one after each part. All norms of the model are scaled by 1 plus their weights.
    AroundWithOffset,
}

/// Activation of a feed-forward part's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x times the logistic function of x.
    Silu,
    /// The Gaussian error linear unit, by the hyperbolic tangent.
    GeluTanh,
}

/// Projections with a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectionBiases {
    /// Query, key and value projections.
    pub query_key_value: bool,
    /// Output projection of the attention.
    pub output: bool,
    /// All projections of the feed-forward part.
    pub feed_forward: bool,
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Base of the geometric series of wavelengths; above 1.
    pub theta: f64,
    /// Scaling of the wavelengths beyond the training's context.
    pub scaling: RotaryScaling,
}

/// Scaling of the wavelengths of a rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RotaryScaling {
    /// None.
    None,
    /// All wavelengths are stretched by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's.
    Llama3(RotaryStretch),
    /// YaRN (Peng et al. 2023).
    Yarn(Yarn),
}

/// Llama 3's frequency scaling. Wavelengths above `original_context / low_frequency_factor` are stretched by
/// `factor`; those below `original_context / high_frequency_factor` are kept; between them is interpolated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryStretch {
    /// Factor by which long wavelengths are stretched.
    pub factor: f64,
    /// Divisor for the wavelength above which the full factor applies.
    pub low_frequency_factor: f64,
    /// Divisor for the wavelength below which none applies.
    pub high_frequency_factor: f64,
    /// Context length of the training before the stretch, in tokens.
    pub original_context: f64,
}

/// YaRN's scaling: pairs that turn more than `turns_fast` times within the original context are kept, those
/// that turn less than `turns_slow` times are stretched, and between them is interpolated by index.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Factor by which long wavelengths are stretched.
    pub factor: f64,
    /// Turns within the original context above which a pair is kept.
    pub turns_fast: f64,
    /// Turns within the original context below which a pair is stretched in full.
    pub turns_slow: f64,
    /// Context length of the training before the stretch, in tokens.
    pub original_context: f64,
    /// Factor applied to cosines and sines.
    pub magnitude: f64,
    /// Whether the range of the interpolation is rounded outwards to whole indices.
    pub is_truncated: bool,
}

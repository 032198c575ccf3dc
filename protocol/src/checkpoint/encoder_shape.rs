//! Shape of an encoder: dimensions, what differs from layer to layer, and what is made of the last states.

use super::shape::Rotary;

/// An encoder of any family.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderShape {
    /// Width of a position's hidden state.
    pub hidden: usize,
    /// Inner width of the feed-forward part.
    pub intermediate: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The layers, in order; at least one.
    pub layers: Vec<EncoderLayerShape>,
    /// Rotary embeddings, which layers name by their index; none where positions have a table.
    pub rotaries: Vec<Rotary>,
    /// Table of learned position embeddings, if any.
    pub positions: Option<PositionTable>,
    /// Rows of the token-type table; 0 for no table.
    pub token_types: usize,
    /// Whether the second text of a pair has the second token type.
    pub has_typed_pairs: bool,
    /// Epsilon added to the variance in layer norms.
    pub norm_epsilon: f32,
    /// Place of the norms.
    pub norms: NormOrder,
    /// Parameters with a bias.
    pub biases: EncoderBiases,
    /// Whether the feed-forward part multiplies its activated half by another half.
    pub is_gated: bool,
    /// Names of the tensors.
    pub names: EncoderNames,
    /// Result of a text or a pair.
    pub output: EncoderOutput,
}

/// Properties of one encoder layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderLayerShape {
    /// Positions that a position sees before itself, and as many after; `None` for all.
    pub reach: Option<usize>,
    /// Index of the rotary embedding, if positions are rotated.
    pub rotary: Option<usize>,
    /// Whether the attention has a norm.
    pub has_attention_norm: bool,
}

/// A table of position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionTable {
    /// Rows of the table.
    pub rows: usize,
    /// Token of padding. It has the row of its own number, and other tokens have the rows after that in
    /// order. `None` counts from row 0.
    pub padding: Option<u32>,
}

/// Place of an encoder's norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOrder {
    /// After the embeddings, and after each part's result is added to its input.
    After,
    /// After the embeddings, before each part, and after the last layer.
    Before,
}

/// Parameters of an encoder with a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderBiases {
    /// All projections of the attention.
    pub attention: bool,
    /// All projections of the feed-forward part.
    pub feed_forward: bool,
    /// Layer norms.
    pub norms: bool,
}

/// Naming of an encoder's tensors in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderNames {
    /// `encoder.layer.N.attention.self.query` and so on, below `bert.` where the model has a head.
    Bert,
    /// The same, below `roberta.` where the model has a head.
    XlmRoberta,
    /// `layers.N.attn.Wqkv` and so on, below `model.` where the model has a head.
    ModernBert,
}

/// Result that a model makes of its last states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EncoderOutput {
    /// A vector for each text.
    Vector(VectorShape),
    /// A score for each pair of a query and a document.
    Score(ScoreShape),
}

/// Reduction of the states of all positions to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorShape {
    /// Choice or combination of positions.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub is_normalized: bool,
}

/// Choice or combination of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all positions.
    Mean,
    /// The first position.
    First,
    /// The last position.
    Last,
}

/// Head that scores a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreShape {
    /// Choice or combination of positions before the head.
    pub pooling: Pooling,
    /// Layers of the head.
    pub head: ScoreHead,
    /// Function from the head's number to the score.
    pub activation: ScoreActivation,
}

/// Layers of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreHead {
    /// `bert.pooler.dense`, a hyperbolic tangent, `classifier`.
    Pooler,
    /// `classifier.dense`, a hyperbolic tangent, `classifier.out_proj`.
    Projection,
    /// `head.dense`, the Gaussian error linear unit, `head.norm`, `classifier`.
    Prediction {
        /// Whether `head.dense` has a bias.
        is_biased: bool,
    },
}

/// Function from a head's number to a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreActivation {
    /// None.
    Identity,
    /// The logistic function.
    Sigmoid,
}

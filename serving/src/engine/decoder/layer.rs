//! Weights of one decoder layer: the tensors of its shape, looked up by their published names.

use super::super::config::{DecoderShape, ExpertNames, FeedForward, LayerShape, NormStyle};
use super::super::parameters::{Dense, Vector};
use crate::weights::{Weights, WeightsError};

/// Weights of one layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) attention_norm: Vector,
    pub(super) query: Dense,
    pub(super) key: Dense,
    pub(super) value: Dense,
    pub(super) output: Dense,
    /// Norms of each query head and of each key head, if any.
    pub(super) head_norms: Option<(Vector, Vector)>,
    /// Norm of the attention's result, if any.
    pub(super) after_attention: Option<Vector>,
    pub(super) norm: Vector,
    /// Router of a mixture of experts.
    pub(super) router: Option<Dense>,
    /// The experts, or the only network.
    pub(super) networks: Vec<GatedNetwork>,
    /// Norm of the feed-forward part's result, if any.
    pub(super) after_feed_forward: Option<Vector>,
}

/// A feed-forward network with a gate.
#[derive(Debug)]
pub(super) struct GatedNetwork {
    pub(super) gate: Dense,
    pub(super) up: Dense,
    pub(super) down: Dense,
}

/// Opens the layers' tensors of one model.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerSource<'a> {
    pub(super) shape: &'a DecoderShape,
    pub(super) weights: &'a Weights,
    /// Prefix of all names but that of the output matrix.
    pub(super) root: &'static str,
}

impl LayerSource<'_> {
    /// Looks up a layer's tensors without waiting for any.
    pub(super) fn open(&self, index: usize) -> Result<LayerWeights, WeightsError> {
        let shape = self.shape;
        let (hidden, width) = (shape.hidden, shape.head_width);
        let (query, shared) = (shape.heads * width, shape.key_value_heads * width);
        let at = format!("{}layers.{index}", self.root);
        let attention = |name: &str, outputs, inputs, is_biased| {
            self.dense(&format!("{at}.self_attn.{name}"), outputs, inputs, is_biased)
        };
        let norm = |name: &str, length| self.norm(&format!("{at}.{name}.weight"), length);
        let head_norms = match shape.head_norms {
            true => Some((norm("self_attn.q_norm", width)?, norm("self_attn.k_norm", width)?)),
            false => None,
        };
        let (before, after) = match shape.norms {
            NormStyle::Before => ("post_attention_layernorm", None),
            NormStyle::AroundWithOffset => {
                let after = ("post_attention_layernorm", "post_feedforward_layernorm");
                ("pre_feedforward_layernorm", Some(after))
            }
        };
        let (router, networks) = self.feed_forward(&at, &shape.layers[index])?;
        let is_biased = shape.biases.query_key_value;
        Ok(LayerWeights {
            attention_norm: norm("input_layernorm", hidden)?,
            query: attention("q_proj", query, hidden, is_biased)?,
            key: attention("k_proj", shared, hidden, is_biased)?,
            value: attention("v_proj", shared, hidden, is_biased)?,
            output: attention("o_proj", hidden, query, shape.biases.output)?,
            head_norms,
            after_attention: after.map(|(name, _)| norm(name, hidden)).transpose()?,
            norm: norm(before, hidden)?,
            router,
            networks,
            after_feed_forward: after.map(|(_, name)| norm(name, hidden)).transpose()?,
        })
    }

    /// Opens a norm of the model's style.
    pub(super) fn norm(&self, name: &str, length: usize) -> Result<Vector, WeightsError> {
        let offset = match self.shape.norms {
            NormStyle::Before => 0.0,
            NormStyle::AroundWithOffset => 1.0,
        };
        Vector::open_offset(self.weights, name, length, offset)
    }

    fn feed_forward(
        &self,
        at: &str,
        layer: &LayerShape,
    ) -> Result<(Option<Dense>, Vec<GatedNetwork>), WeightsError> {
        let inner = layer.feed_forward.inner();
        let FeedForward::Mixture(experts) = &layer.feed_forward else {
            let only = self.network(&format!("{at}.mlp"), ["gate_proj", "up_proj", "down_proj"], inner)?;
            return Ok((None, vec![only]));
        };
        let (part, names) = match experts.names {
            ExpertNames::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            ExpertNames::Qwen => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        let router = self.dense(&format!("{at}.{part}.gate"), experts.count, self.shape.hidden, false)?;
        let network = |expert: usize| self.network(&format!("{at}.{part}.experts.{expert}"), names, inner);
        let networks = (0..experts.count).map(network).collect::<Result<_, _>>()?;
        Ok((Some(router), networks))
    }

    fn network(
        &self,
        at: &str,
        [gate, up, down]: [&str; 3],
        inner: usize,
    ) -> Result<GatedNetwork, WeightsError> {
        let (hidden, is_biased) = (self.shape.hidden, self.shape.biases.feed_forward);
        Ok(GatedNetwork {
            gate: self.dense(&format!("{at}.{gate}"), inner, hidden, is_biased)?,
            up: self.dense(&format!("{at}.{up}"), inner, hidden, is_biased)?,
            down: self.dense(&format!("{at}.{down}"), hidden, inner, is_biased)?,
        })
    }

    fn dense(
        &self,
        prefix: &str,
        outputs: usize,
        inputs: usize,
        is_biased: bool,
    ) -> Result<Dense, WeightsError> {
        match is_biased {
            true => Dense::open_biased(self.weights, prefix, outputs, inputs),
            false => Dense::open(self.weights, prefix, outputs, inputs),
        }
    }
}

//! A Llama decoder in candle tensors, written with differentiable operations, so that the same code trains a
//! model and checks the CPU kernels.

use super::super::config::{DecoderShape, FeedForward, Gate, NormStyle};
use super::super::decoder::rope;
use super::NamedTensors;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::{silu, softmax};

/// Returns names and shapes of all parameters, as checkpoints store them.
#[must_use]
pub fn parameters(shape: &DecoderShape) -> Vec<(String, Vec<usize>)> {
    let hidden = shape.hidden;
    let query = shape.heads * shape.head_width;
    let shared = shape.key_value_heads * shape.head_width;
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![shape.vocabulary, hidden])];
    for (layer, part) in shape.layers.iter().enumerate() {
        let inner = part.feed_forward.inner();
        let mut add = |name: &str, dimensions: &[usize]| {
            all.push((format!("model.layers.{layer}.{name}.weight"), dimensions.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[query, hidden]);
        add("self_attn.k_proj", &[shared, hidden]);
        add("self_attn.v_proj", &[shared, hidden]);
        add("self_attn.o_proj", &[hidden, query]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[inner, hidden]);
        add("mlp.up_proj", &[inner, hidden]);
        add("mlp.down_proj", &[hidden, inner]);
    }
    all.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !shape.tied_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![shape.vocabulary, hidden]));
    }
    all
}

/// Returns the first property of a shape that is no Llama's.
#[must_use]
pub fn unsupported(shape: &DecoderShape) -> Option<&'static str> {
    let biases = shape.biases;
    let is_dense = |part: &FeedForward| matches!(part, FeedForward::Dense { .. });
    let has_soft_cap = shape.attention_soft_cap.is_some() || shape.logit_soft_cap.is_some();
    let found = [
        ("a sliding window", shape.layers.iter().any(|layer| layer.window.is_some())),
        ("experts", !shape.layers.iter().all(|layer| is_dense(&layer.feed_forward))),
        ("biases", biases.query_key_value || biases.output || biases.feed_forward),
        ("norms of heads", shape.head_norms),
        ("norms after each part", shape.norms != NormStyle::Before),
        ("soft caps", has_soft_cap),
        ("another activation than SiLU", shape.gate != Gate::Silu),
        ("embeddings of a decoder", shape.vector.is_some()),
    ];
    found.into_iter().find(|(_, is_found)| *is_found).map(|(property, _)| property)
}

/// A Llama decoder: dimensions, parameters and rotary tables.
#[derive(Debug)]
pub struct Llama {
    shape: DecoderShape,
    tensors: NamedTensors,
    cosines: Tensor,
    sines: Tensor,
}

impl Llama {
    /// Builds the decoder over these parameters, for positions below `context`.
    ///
    /// # Errors
    /// The device failed.
    pub fn new(shape: &DecoderShape, tensors: NamedTensors, context: usize, device: &Device) -> Result<Self> {
        let (cosines, sines) = rope(&shape.rotaries[0], shape.head_width, context);
        let table = |values| Tensor::from_vec(values, (context, shape.head_width / 2), device);
        Ok(Self { cosines: table(cosines)?, sines: table(sines)?, tensors, shape: shape.clone() })
    }

    /// Returns the number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.shape.layers.len()
    }

    /// Computes the hidden states (rows by hidden, before the final norm) for `tokens` at `positions`.
    /// `attention` mixes queries, keys and values of a layer, each rows by heads by width, into rows by query
    /// heads by width.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(
        &self,
        tokens: &[u32],
        positions: &[u32],
        device: &Device,
        mut attention: impl FnMut(usize, Tensor, Tensor, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shape = &self.shape;
        let rows = tokens.len();
        let positions = Tensor::new(positions, device)?;
        let cosines = self.cosines.index_select(&positions, 0)?.unsqueeze(1)?;
        let sines = self.sines.index_select(&positions, 0)?.unsqueeze(1)?;
        let mut states = self.get("model.embed_tokens")?.index_select(&Tensor::new(tokens, device)?, 0)?;
        for layer in 0..shape.layers.len() {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            let normed = self.norm(&states, &at("input_layernorm"))?;
            let heads = |name: &str, count: usize| {
                self.product(&normed, &at(name))?.reshape((rows, count, shape.head_width))
            };
            let query = rotate(&heads("self_attn.q_proj", shape.heads)?, &cosines, &sines)?;
            let key = rotate(&heads("self_attn.k_proj", shape.key_value_heads)?, &cosines, &sines)?;
            let value = heads("self_attn.v_proj", shape.key_value_heads)?;
            let mixed = attention(layer, query, key, value)?.reshape((rows, ()))?;
            states = (states + self.product(&mixed, &at("self_attn.o_proj"))?)?;
            let normed = self.norm(&states, &at("post_attention_layernorm"))?;
            let gate = silu(&self.product(&normed, &at("mlp.gate_proj"))?)?;
            let inner = (gate * self.product(&normed, &at("mlp.up_proj"))?)?;
            states = (states + self.product(&inner, &at("mlp.down_proj"))?)?;
        }
        Ok(states)
    }

    /// Computes attention of new rows (heads by rows by width) that start at `first`, over keys and values
    /// (shared heads by positions by width). A leading batch dimension may precede all of them.
    ///
    /// # Errors
    /// The device failed.
    pub fn serve_worker(
        &self,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        first: usize,
    ) -> Result<Tensor> {
        let shape = &self.shape;
        let (rows, positions) = (query.dim(D::Minus2)?, keys.dim(D::Minus2)?);
        let (keys, values) = (self.repeat(keys)?, self.repeat(values)?);
        let scale = 1.0 / (shape.head_width as f64).sqrt();
        let scores = (query.matmul(&keys.transpose(D::Minus2, D::Minus1)?.contiguous()?)? * scale)?;
        let mask: Vec<f32> = (0..rows * positions)
            .map(|index| if index % positions <= first + index / positions { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_vec(mask, (rows, positions), query.device())?;
        softmax(&scores.broadcast_add(&mask)?, D::Minus1)?.matmul(&values)
    }

    /// Computes the logits of hidden states.
    ///
    /// # Errors
    /// The device failed.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let normed = self.norm(states, "model.norm")?;
        self.product(&normed, if self.shape.tied_embeddings { "model.embed_tokens" } else { "lm_head" })
    }

    /// Repeats each shared head once for every query head of its group.
    fn repeat(&self, shared: &Tensor) -> Result<Tensor> {
        let group = self.shape.heads / self.shape.key_value_heads;
        let mut dimensions = shared.dims().to_vec();
        let head = dimensions.len() - 3;
        let mut wide = dimensions.clone();
        wide.insert(head + 1, group);
        dimensions[head] *= group;
        shared.unsqueeze(head + 1)?.broadcast_as(wide)?.contiguous()?.reshape(dimensions)
    }

    fn get(&self, prefix: &str) -> Result<&Tensor> {
        let name = format!("{prefix}.weight");
        self.tensors.get(&name).ok_or_else(|| candle_core::Error::msg(format!("no tensor `{name}`")))
    }

    fn product(&self, input: &Tensor, prefix: &str) -> Result<Tensor> {
        input.matmul(&self.get(prefix)?.t()?)
    }

    fn norm(&self, states: &Tensor, prefix: &str) -> Result<Tensor> {
        let square = states.to_dtype(DType::F32)?.sqr()?.mean_keepdim(D::Minus1)?;
        let inverse = (square + f64::from(self.shape.norm_epsilon))?.sqrt()?.recip()?;
        states.broadcast_mul(&inverse)?.broadcast_mul(self.get(prefix)?)
    }
}

/// Rotates rows by heads by width; pairs are (i, i + half).
fn rotate(heads: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let half = heads.dim(D::Minus1)? / 2;
    let (low, high) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(cosines)? - high.broadcast_mul(sines)?)?;
    let turned_high = (high.broadcast_mul(cosines)? + low.broadcast_mul(sines)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

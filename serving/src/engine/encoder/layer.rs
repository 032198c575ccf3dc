//! Layers of an encoder: the tensors of its shape by their published names, and the computation of a layer.

use super::super::config::{EncoderNames, EncoderShape, NormOrder};
use super::super::parameters::{Dense, SharedColumns, Vector, multiply, multiply_all};
use super::{Encoder, EncoderBuffers, EncoderText};
use crate::weights::{Weights, WeightsError};
use kernels::attention::{HeadOffsets, attend_all};
use kernels::matmul::{Activation, OutputColumns, Product};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa, elementwise};

/// Weights of one layer.
#[derive(Debug)]
pub(super) struct EncoderLayer {
    /// Projections to queries, keys and values: one for each, or one for all in this order.
    projections: Vec<Dense>,
    output: Dense,
    /// Norm of the attention, if any.
    attention_norm: Option<Norm>,
    expand: Dense,
    contract: Dense,
    /// Norm of the feed-forward part.
    norm: Norm,
}

/// A layer norm.
#[derive(Debug)]
pub(super) struct Norm {
    scale: Vector,
    /// `None` for a norm without a bias.
    shift: Option<Vector>,
    /// Shift of a norm without a bias.
    zeros: Vec<f32>,
}

impl Norm {
    /// Looks up `{prefix}.weight` and, if it is biased, `{prefix}.bias`.
    pub(super) fn open(
        weights: &Weights,
        prefix: &str,
        width: usize,
        is_biased: bool,
    ) -> Result<Self, WeightsError> {
        let scale = Vector::open(weights, &format!("{prefix}.weight"), width)?;
        let (shift, zeros) = match is_biased {
            true => (Some(Vector::open(weights, &format!("{prefix}.bias"), width)?), Vec::new()),
            false => (None, vec![0.0; width]),
        };
        Ok(Self { scale, shift, zeros })
    }

    /// Normalises `rows + residual` in place; an empty residual counts as zeros.
    pub(super) fn apply(
        &self,
        isa: Isa,
        rows: &mut [f32],
        residual: &[f32],
        epsilon: f32,
    ) -> Result<(), WeightsError> {
        let shift = match &self.shift {
            Some(shift) => shift.get()?,
            None => &self.zeros,
        };
        elementwise::layer_norm(isa, rows, residual, self.scale.get()?, shift, epsilon);
        Ok(())
    }
}

/// Opens a matrix of these outputs and inputs.
pub(super) fn open_dense(
    weights: &Weights,
    prefix: &str,
    [outputs, inputs]: [usize; 2],
    is_biased: bool,
) -> Result<Dense, WeightsError> {
    match is_biased {
        true => Dense::open_biased(weights, prefix, outputs, inputs),
        false => Dense::open(weights, prefix, outputs, inputs),
    }
}

/// Opens the tensors of one encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderSource<'a> {
    shape: &'a EncoderShape,
    weights: &'a Weights,
    /// Prefix of all names but those of a head.
    root: &'static str,
}

impl<'a> EncoderSource<'a> {
    /// Finds the prefix under which a checkpoint stores the encoder: none, or that of a model with a head.
    pub(super) fn of(shape: &'a EncoderShape, weights: &'a Weights) -> Self {
        let root = match shape.names {
            EncoderNames::Bert => "bert.",
            EncoderNames::XlmRoberta => "roberta.",
            EncoderNames::ModernBert => "model.",
        };
        let source = Self { shape, weights, root: "" };
        let is_bare = weights.contains(&format!("{}.weight", source.token_name()));
        Self { root: if is_bare { "" } else { root }, ..source }
    }

    /// Returns the whole name of a tensor or a group of the encoder.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    fn is_modern(&self) -> bool {
        self.shape.names == EncoderNames::ModernBert
    }

    fn token_name(&self) -> &'static str {
        if self.is_modern() { "embeddings.tok_embeddings" } else { "embeddings.word_embeddings" }
    }

    fn table(&self, name: &str, rows: usize) -> Result<Dense, WeightsError> {
        Dense::open(self.weights, &self.name(name), rows, self.shape.hidden)
    }

    fn norm(&self, name: &str) -> Result<Norm, WeightsError> {
        Norm::open(self.weights, &self.name(name), self.shape.hidden, self.shape.biases.norms)
    }

    pub(super) fn token_embeddings(&self) -> Result<Dense, WeightsError> {
        self.table(self.token_name(), self.shape.vocabulary)
    }

    pub(super) fn positions(&self) -> Result<Option<Dense>, WeightsError> {
        let table = self.shape.positions;
        table.map(|table| self.table("embeddings.position_embeddings", table.rows)).transpose()
    }

    pub(super) fn types(&self) -> Result<Option<Dense>, WeightsError> {
        match self.shape.token_types {
            0 => Ok(None),
            rows => self.table("embeddings.token_type_embeddings", rows).map(Some),
        }
    }

    /// Opens the norm of the embeddings.
    pub(super) fn first_norm(&self) -> Result<Norm, WeightsError> {
        self.norm(if self.is_modern() { "embeddings.norm" } else { "embeddings.LayerNorm" })
    }

    /// Opens the norm after the last layer, if there is one.
    pub(super) fn final_norm(&self) -> Result<Option<Norm>, WeightsError> {
        match self.shape.norms {
            NormOrder::After => Ok(None),
            NormOrder::Before => self.norm("final_norm").map(Some),
        }
    }

    /// Opens a layer.
    pub(super) fn layer(&self, index: usize) -> Result<EncoderLayer, WeightsError> {
        let (shape, biases) = (self.shape, self.shape.biases);
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        let expanded = if shape.is_gated { 2 * inner } else { inner };
        let at = self.name(&match self.is_modern() {
            true => format!("layers.{index}"),
            false => format!("encoder.layer.{index}"),
        });
        let dense = |name: &str, outputs: usize, inputs: usize, is_biased: bool| {
            open_dense(self.weights, &format!("{at}.{name}"), [outputs, inputs], is_biased)
        };
        let norm = |name: &str| Norm::open(self.weights, &format!("{at}.{name}"), hidden, shape.biases.norms);
        let attention = |name: &str, outputs: usize| dense(name, outputs, hidden, biases.attention);
        let has_norm = shape.layers[index].has_attention_norm;
        if self.is_modern() {
            return Ok(EncoderLayer {
                projections: vec![attention("attn.Wqkv", 3 * hidden)?],
                output: attention("attn.Wo", hidden)?,
                attention_norm: has_norm.then(|| norm("attn_norm")).transpose()?,
                expand: dense("mlp.Wi", expanded, hidden, biases.feed_forward)?.in_parts(inner)?,
                contract: dense("mlp.Wo", hidden, inner, biases.feed_forward)?,
                norm: norm("mlp_norm")?,
            });
        }
        let parts = ["attention.self.query", "attention.self.key", "attention.self.value"];
        Ok(EncoderLayer {
            projections: parts.iter().map(|name| attention(name, hidden)).collect::<Result<_, _>>()?,
            output: attention("attention.output.dense", hidden)?,
            attention_norm: has_norm.then(|| norm("attention.output.LayerNorm")).transpose()?,
            expand: dense("intermediate.dense", expanded, hidden, biases.feed_forward)?,
            contract: dense("output.dense", hidden, inner, biases.feed_forward)?,
            norm: norm("output.LayerNorm")?,
        })
    }
}

impl Encoder {
    /// Computes a layer for all texts of a group.
    pub(super) fn run_layer(
        &self,
        index: usize,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        buffers: &mut EncoderBuffers,
    ) -> Result<(), WeightsError> {
        match self.shape.norms {
            NormOrder::After => self.run_before_norms(index, texts, pool, buffers),
            NormOrder::Before => self.run_after_norms(index, texts, pool, buffers),
        }
    }

    /// Computes a layer whose norms follow its parts.
    fn run_before_norms(
        &self,
        index: usize,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        buffers: &mut EncoderBuffers,
    ) -> Result<(), WeightsError> {
        let (layer, isa, epsilon) = (&self.layers[index], self.isa, self.shape.norm_epsilon);
        let EncoderBuffers { states, heads, mixed, inner, gate } = buffers;
        let length = states.len();
        self.project(layer, pool, states, heads)?;
        self.mix(index, texts, pool, heads, mixed);
        // The heads' activations are no longer needed; the projection reuses their buffer.
        let projected = &mut heads[..length];
        self.product(&layer.output, pool, mixed, Activation::None, self.rows(projected))?;
        match &layer.attention_norm {
            Some(norm) => norm.apply(isa, projected, states, epsilon)?,
            None => elementwise::add(isa, projected, states),
        }
        self.feed_forward(layer, pool, projected, (inner, gate), states)?;
        layer.norm.apply(isa, states, projected, epsilon)
    }

    /// Computes a layer whose norms precede its parts.
    fn run_after_norms(
        &self,
        index: usize,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        buffers: &mut EncoderBuffers,
    ) -> Result<(), WeightsError> {
        let (layer, isa, epsilon) = (&self.layers[index], self.isa, self.shape.norm_epsilon);
        let EncoderBuffers { states, heads, mixed, inner, gate } = buffers;
        let length = states.len();
        // Holds the input of each part until the part's result replaces it.
        mixed.copy_from_slice(states);
        if let Some(norm) = &layer.attention_norm {
            norm.apply(isa, mixed, &[], epsilon)?;
        }
        self.project(layer, pool, mixed, heads)?;
        self.mix(index, texts, pool, heads, mixed);
        let projected = &mut heads[..length];
        self.product(&layer.output, pool, mixed, Activation::None, self.rows(projected))?;
        elementwise::add(isa, states, projected);
        mixed.copy_from_slice(states);
        layer.norm.apply(isa, mixed, &[], epsilon)?;
        self.feed_forward(layer, pool, mixed, (inner, gate), projected)?;
        elementwise::add(isa, states, projected);
        Ok(())
    }

    /// Names whole rows of hidden states as a target.
    fn rows<'v>(&self, values: &'v mut [f32]) -> OutputColumns<'v> {
        OutputColumns { values, stride: self.shape.hidden, offset: 0 }
    }

    /// Computes queries, keys and values of all rows of `input`, side by side in rows of `heads`.
    fn project(
        &self,
        layer: &EncoderLayer,
        pool: &ComputePool,
        input: &[f32],
        heads: &mut [f32],
    ) -> Result<(), WeightsError> {
        let stride = 3 * self.shape.hidden;
        let part = stride / layer.projections.len();
        let values = Parts::new(heads);
        let columns = |index: usize| SharedColumns { values, stride, offset: index * part };
        let parts: Vec<_> =
            layer.projections.iter().enumerate().map(|(index, dense)| (dense, columns(index))).collect();
        multiply_all(self.isa, pool, (input, input.len() / self.shape.hidden), &parts)
    }

    /// Rotates queries and keys, where the layer does, and computes attention of every head over every text.
    fn mix(
        &self,
        index: usize,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        heads: &mut [f32],
        mixed: &mut [f32],
    ) {
        self.rotate(index, texts, heads);
        let heads = &*heads;
        let (hidden, count) = (self.shape.hidden, self.shape.heads);
        let (width, reach) = (hidden / count, self.shape.layers[index].reach);
        let mut starts = Vec::with_capacity(texts.len());
        let mut first = 0;
        for text in texts {
            starts.push(first);
            first += text.tokens.len();
        }
        let mixed = Parts::new(mixed);
        pool.each(texts.len() * count, |task| {
            let (text, head) = (task / count, task % count);
            let (start, length) = (starts[text], texts[text].tokens.len());
            let rows = &heads[start * 3 * hidden..(start + length) * 3 * hidden];
            let query = head * width;
            let offsets = HeadOffsets {
                stride: 3 * hidden,
                query,
                key: hidden + query,
                value: 2 * hidden + query,
                width,
            };
            attend_all(self.isa, rows, offsets, reach, |position, result| {
                let at = (start + position) * hidden + query;
                // SAFETY: this head's columns of this text's rows belong to this task alone.
                unsafe { mixed.part(at..at + width) }.copy_from_slice(result);
            });
        });
    }

    fn rotate(&self, index: usize, texts: &[EncoderText<'_>], heads: &mut [f32]) {
        let Some(rotary) = self.shape.layers[index].rotary else { return };
        let (cosines, sines) = &self.ropes[rotary];
        let hidden = self.shape.hidden;
        let width = hidden / self.shape.heads;
        let half = width / 2;
        let mut rows = heads.chunks_exact_mut(3 * hidden);
        for text in texts {
            for (position, row) in (0..text.tokens.len()).zip(&mut rows) {
                let angles = position * half..(position + 1) * half;
                for head in row[..2 * hidden].chunks_exact_mut(width) {
                    elementwise::rotate(self.isa, head, &cosines[angles.clone()], &sines[angles.clone()]);
                }
            }
        }
    }

    /// Computes the feed-forward part of all rows of `input` into `output`.
    fn feed_forward(
        &self,
        layer: &EncoderLayer,
        pool: &ComputePool,
        input: &[f32],
        (inner, gate): (&mut [f32], &mut [f32]),
        output: &mut [f32],
    ) -> Result<(), WeightsError> {
        let (isa, width) = (self.isa, self.shape.intermediate);
        if self.shape.is_gated {
            let (weight, bias) = (layer.expand.matrix()?, layer.expand.bias()?);
            let rows = input.len() / weight.inputs();
            for (half, values) in [&mut *inner, &mut *gate].into_iter().enumerate() {
                let part = half * width..(half + 1) * width;
                let bias = bias.map(|bias| &bias[part.clone()]);
                let (weight, activation) = (weight.rows(part), Activation::None);
                let target = OutputColumns { values, stride: width, offset: 0 };
                multiply(isa, pool, Product { input, rows, weight, bias, activation }, target);
            }
            elementwise::gelu_multiply(isa, inner, gate);
        } else {
            let target = OutputColumns { values: &mut *inner, stride: width, offset: 0 };
            self.product(&layer.expand, pool, input, Activation::Gelu, target)?;
        }
        self.product(&layer.contract, pool, inner, Activation::None, self.rows(output))
    }
}

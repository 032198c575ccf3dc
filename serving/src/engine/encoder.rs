//! BERT encoders on the CPU: token ids to one vector per text.
//!
//! Texts of any lengths are concatenated without padding. A large batch is divided into groups of texts, one
//! thread each, that never wait for one another; all threads compute a small batch together. Either way each
//! text's vector is bit-identical to that of the text alone.
//!
//! Tokenizing and limits on length are elsewhere (see `LoadedEngine`).

use super::config::{EncoderShape, Pooling};
use super::parameters::{Dense, Vector};
use super::{Encode, EngineError};
use crate::weights::{Weights, WeightsError};
use kernels::attention::{HeadOffsets, attend_all};
use kernels::matmul::{Activation, OutputColumns, Product, copy_row, matmul};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa, elementwise};
use std::sync::Mutex;

/// Tokens of a group: enough that transposing weights is 2 percent of the work. A group's activations (4 MB
/// for 256 tokens of MiniLM) must stay in a core's share of the last-level cache.
const GROUP_TOKENS: usize = 256;
/// Below this many tokens per thread, threads share each product instead of dividing the texts.
const GROUP_TOKENS_MIN: usize = 96;

/// A BERT encoder over its weights.
#[derive(Debug)]
pub struct Encoder {
    shape: EncoderShape,
    token_embeddings: Dense,
    positions: Dense,
    types: Dense,
    norm: Norm,
    layers: Vec<EncoderLayer>,
    isa: Isa,
    pool: ComputePool,
    alone: ComputePool,
    /// Buffers of finished groups, for reuse: fresh pages cost more than the small layers.
    buffers: Mutex<Vec<EncoderBuffers>>,
}

#[derive(Debug)]
struct Norm {
    scale: Vector,
    shift: Vector,
}

#[derive(Debug)]
struct EncoderLayer {
    query: Dense,
    key: Dense,
    value: Dense,
    output: Dense,
    attention_norm: Norm,
    expand: Dense,
    contract: Dense,
    norm: Norm,
}

#[derive(Debug, Default)]
struct EncoderBuffers {
    states: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
}

impl Norm {
    fn open(weights: &Weights, prefix: &str, width: usize) -> Result<Self, WeightsError> {
        let scale = Vector::open(weights, &format!("{prefix}.weight"), width)?;
        let shift = Vector::open(weights, &format!("{prefix}.bias"), width)?;
        Ok(Self { scale, shift })
    }

    fn apply(&self, isa: Isa, rows: &mut [f32], residual: &[f32], epsilon: f32) -> Result<(), WeightsError> {
        elementwise::layer_norm(isa, rows, residual, self.scale.get()?, self.shift.get()?, epsilon);
        Ok(())
    }
}

impl Encoder {
    /// Looks up the tensors without waiting for any.
    ///
    /// # Errors
    /// [`EngineError`]: a tensor is missing, or has the wrong shape or type.
    pub fn open(shape: &EncoderShape, weights: &Weights, threads: usize) -> Result<Self, EngineError> {
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        // Checkpoints with a task head carry the encoder under `bert.`.
        let is_bare = weights.contains("embeddings.word_embeddings.weight");
        let root = if is_bare { "" } else { "bert." };
        let table = |name: &str, rows: usize| {
            Dense::open(weights, &format!("{root}embeddings.{name}_embeddings"), rows, hidden)
        };
        let mut layers = Vec::with_capacity(shape.layers);
        for index in 0..shape.layers {
            let at = format!("{root}encoder.layer.{index}");
            let dense = |name: &str, outputs: usize, inputs: usize| {
                Dense::open_biased(weights, &format!("{at}.{name}"), outputs, inputs)
            };
            layers.push(EncoderLayer {
                query: dense("attention.self.query", hidden, hidden)?,
                key: dense("attention.self.key", hidden, hidden)?,
                value: dense("attention.self.value", hidden, hidden)?,
                output: dense("attention.output.dense", hidden, hidden)?,
                attention_norm: Norm::open(weights, &format!("{at}.attention.output.LayerNorm"), hidden)?,
                expand: dense("intermediate.dense", inner, hidden)?,
                contract: dense("output.dense", hidden, inner)?,
                norm: Norm::open(weights, &format!("{at}.output.LayerNorm"), hidden)?,
            });
        }
        Ok(Self {
            shape: shape.clone(),
            token_embeddings: table("word", shape.vocabulary)?,
            positions: table("position", shape.positions)?,
            types: table("token_type", shape.token_types)?,
            norm: Norm::open(weights, &format!("{root}embeddings.LayerNorm"), hidden)?,
            layers,
            isa: Isa::best(),
            pool: ComputePool::new(threads),
            alone: ComputePool::new(1),
            buffers: Mutex::default(),
        })
    }

    /// Divides the texts into consecutive groups of about equal work; one group if too few for every thread.
    fn group(&self, texts: &[Vec<u32>]) -> Vec<std::ops::Range<usize>> {
        let total: usize = texts.iter().map(Vec::len).sum();
        let threads = self.pool.count();
        let is_small = threads == 1 && total <= GROUP_TOKENS || total < threads * GROUP_TOKENS_MIN;
        let groups = if is_small { 1 } else { threads * total.div_ceil(threads * GROUP_TOKENS) };
        let wanted = total.div_ceil(groups);
        let mut groups = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for (index, text) in texts.iter().enumerate() {
            tokens += text.len();
            if tokens >= wanted || index + 1 == texts.len() {
                groups.push(start..index + 1);
                (start, tokens) = (index + 1, 0);
            }
        }
        groups
    }

    fn embed_group(
        &self,
        texts: &[Vec<u32>],
        pool: &ComputePool,
        vectors: &mut [f32],
    ) -> Result<(), WeightsError> {
        let taken = self.buffers.lock().expect("no task panics while it holds this").pop();
        let mut buffers = taken.unwrap_or_default();
        let tokens: usize = texts.iter().map(Vec::len).sum();
        buffers.resize(tokens, &self.shape);
        self.embed_tokens(texts, &mut buffers)?;
        for layer in &self.layers {
            self.run_layer(layer, texts, pool, &mut buffers)?;
        }
        let hidden = self.shape.hidden;
        let mut first = 0;
        for (text, vector) in texts.iter().zip(vectors.chunks_exact_mut(hidden)) {
            let rows = &buffers.states[first * hidden..(first + text.len()) * hidden];
            match self.shape.pooling {
                Pooling::Mean => elementwise::mean_rows(self.isa, rows, vector),
                Pooling::First => vector.copy_from_slice(&rows[..hidden]),
            }
            if self.shape.normalize {
                elementwise::normalize(self.isa, vector);
            }
            first += text.len();
        }
        self.buffers.lock().expect("no task panics while it holds this").push(buffers);
        Ok(())
    }

    fn embed_tokens(&self, texts: &[Vec<u32>], buffers: &mut EncoderBuffers) -> Result<(), WeightsError> {
        let (token_embeddings, positions) = (self.token_embeddings.matrix()?, self.positions.matrix()?);
        let hidden = self.shape.hidden;
        let mut kind = vec![0.0; hidden];
        copy_row(&self.types.matrix()?, 0, &mut kind);
        let mut position_row = vec![0.0; hidden];
        let mut rows = buffers.states.chunks_exact_mut(hidden);
        for text in texts {
            for ((position, token), row) in text.iter().enumerate().zip(&mut rows) {
                copy_row(&token_embeddings, *token as usize, row);
                copy_row(&positions, position, &mut position_row);
                elementwise::add(self.isa, row, &kind);
                elementwise::add(self.isa, row, &position_row);
            }
        }
        self.norm.apply(self.isa, &mut buffers.states, &[], self.shape.norm_epsilon)
    }

    fn run_layer(
        &self,
        layer: &EncoderLayer,
        texts: &[Vec<u32>],
        pool: &ComputePool,
        buffers: &mut EncoderBuffers,
    ) -> Result<(), WeightsError> {
        let (isa, hidden, epsilon) = (self.isa, self.shape.hidden, self.shape.norm_epsilon);
        let EncoderBuffers { states, heads, mixed, inner } = buffers;
        let tokens = states.len() / hidden;
        let dense = |dense: &Dense, input: &[f32], activation, values: &mut [f32], stride, offset| {
            let (weight, bias) = (dense.matrix()?, dense.bias()?);
            let product = Product { input, rows: tokens, weight, bias, activation };
            matmul(isa, pool, &product, OutputColumns { values, stride, offset });
            Ok::<(), WeightsError>(())
        };
        for (index, part) in [&layer.query, &layer.key, &layer.value].into_iter().enumerate() {
            dense(part, states, Activation::None, heads, 3 * hidden, index * hidden)?;
        }
        self.serve_worker(texts, heads, mixed, pool);
        // The heads' activations are no longer needed; the projection reuses their buffer.
        let projected = &mut heads[..tokens * hidden];
        dense(&layer.output, mixed, Activation::None, projected, hidden, 0)?;
        layer.attention_norm.apply(isa, projected, states, epsilon)?;
        dense(&layer.expand, projected, Activation::Gelu, inner, self.shape.intermediate, 0)?;
        dense(&layer.contract, inner, Activation::None, states, hidden, 0)?;
        layer.norm.apply(isa, states, projected, epsilon)
    }

    /// Computes attention of every head over every text.
    fn serve_worker(&self, texts: &[Vec<u32>], heads: &[f32], mixed: &mut [f32], pool: &ComputePool) {
        let (hidden, count) = (self.shape.hidden, self.shape.heads);
        let width = hidden / count;
        let mut starts = Vec::with_capacity(texts.len());
        let mut first = 0;
        for text in texts {
            starts.push(first);
            first += text.len();
        }
        let mixed = Parts::new(mixed);
        pool.each(texts.len() * count, |task| {
            let (text, head) = (task / count, task % count);
            let rows = &heads[starts[text] * 3 * hidden..(starts[text] + texts[text].len()) * 3 * hidden];
            let query = head * width;
            let offsets = HeadOffsets {
                stride: 3 * hidden,
                query,
                key: hidden + query,
                value: 2 * hidden + query,
                width,
            };
            attend_all(self.isa, rows, offsets, |position, result| {
                let at = (starts[text] + position) * hidden + query;
                // SAFETY: this head's columns of this text's rows belong to this task alone.
                unsafe { mixed.part(at..at + width) }.copy_from_slice(result);
            });
        });
    }
}

impl Encode for Encoder {
    /// Computes one vector per text; every text has 1 to `positions` tokens below the vocabulary.
    fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let hidden = self.shape.hidden;
        let mut vectors = vec![0.0; texts.len() * hidden];
        let groups = self.group(texts);
        let failure = Mutex::new(None);
        let parts = Parts::new(&mut vectors);
        self.pool.enter(|| {
            let inner = if groups.len() > 1 { &self.alone } else { &self.pool };
            self.pool.each(groups.len(), |index| {
                let group = groups[index].clone();
                // SAFETY: groups are disjoint ranges of texts, so these are disjoint ranges of vectors.
                let part = unsafe { parts.part(group.start * hidden..group.end * hidden) };
                if let Err(error) = self.embed_group(&texts[group], inner, part) {
                    *failure.lock().expect("no task panics while it holds this") = Some(error);
                }
            });
        });
        if let Some(error) = failure.into_inner().expect("no task panics while it holds this") {
            return Err(error.into());
        }
        Ok(vectors.chunks_exact(hidden).map(<[f32]>::to_vec).collect())
    }
}

impl EncoderBuffers {
    fn resize(&mut self, tokens: usize, shape: &EncoderShape) {
        self.states.resize(tokens * shape.hidden, 0.0);
        self.heads.resize(tokens * 3 * shape.hidden, 0.0);
        self.mixed.resize(tokens * shape.hidden, 0.0);
        self.inner.resize(tokens * shape.intermediate, 0.0);
    }
}

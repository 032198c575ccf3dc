//! Llama decoders on the CPU: ragged steps over many sequences, each in its blocks of the KV cache.
//!
//! One step takes, for each sequence, a chunk of new tokens of any length. All rows of all chunks go through
//! the matrix products together; attention is per sequence. A sequence's results are bit-identical
//! regardless of the rest of the step and of the chunks into which its prompt was cut.
//!
//! Sampling and scheduling are elsewhere (see `batcher`).

mod cache;

use super::config::{DecoderShape, Rotary};
use super::parameters::{Dense, Vector};
use super::{BlockId, Decode, EngineError, EngineOptions, SequenceChunk};
use crate::weights::{Weights, WeightsError};
use cache::Cache;
use kernels::attention::{self, KeysValues, Queries, serve_worker};
use kernels::matmul::{Activation, OutputColumns, Product, copy_row, matmul};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa, elementwise};

/// A Llama decoder over its weights.
#[derive(Debug)]
pub struct Decoder {
    shape: DecoderShape,
    token_embedding: Dense,
    layers: Vec<Layer>,
    norm: Vector,
    /// `None` if the embedding table is also the output matrix.
    output: Option<Dense>,
    /// Cosines, then sines, of every position: rows of half a head.
    rope: (Vec<f32>, Vec<f32>),
    cache: Cache,
    isa: Isa,
    pool: ComputePool,
    buffers: Buffers,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vector,
    query: Dense,
    key: Dense,
    value: Dense,
    output: Dense,
    norm: Vector,
    gate: Dense,
    up: Dense,
    down: Dense,
}

#[derive(Debug, Default)]
struct Buffers {
    states: Vec<f32>,
    normed: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// One chunk's rows in the step, and its sequence's position.
#[derive(Debug, Clone, Copy)]
struct ChunkRows<'a> {
    blocks: &'a [BlockId],
    /// First row in the step's activations.
    row: usize,
    rows: usize,
    /// Position of the first row in the sequence.
    position: usize,
}

impl Decoder {
    /// Looks up the tensors without waiting for any. `context` is the longest sequence that will be computed.
    ///
    /// # Errors
    /// [`EngineError`]: a tensor is missing, or has the wrong shape or type.
    pub fn open(
        shape: &DecoderShape,
        weights: &Weights,
        options: &EngineOptions,
        context: usize,
    ) -> Result<Self, EngineError> {
        let (hidden, inner) = (shape.hidden, shape.intermediate);
        let (query, shared) = (shape.heads * shape.head_width, shape.key_value_heads * shape.head_width);
        let mut layers = Vec::with_capacity(shape.layers);
        for index in 0..shape.layers {
            let at = format!("model.layers.{index}");
            let dense = |name: &str, outputs: usize, inputs: usize| {
                Dense::open(weights, &format!("{at}.{name}"), outputs, inputs)
            };
            let norm = |name: &str| Vector::open(weights, &format!("{at}.{name}.weight"), hidden);
            layers.push(Layer {
                attention_norm: norm("input_layernorm")?,
                query: dense("self_attn.q_proj", query, hidden)?,
                key: dense("self_attn.k_proj", shared, hidden)?,
                value: dense("self_attn.v_proj", shared, hidden)?,
                output: dense("self_attn.o_proj", hidden, query)?,
                norm: norm("post_attention_layernorm")?,
                gate: dense("mlp.gate_proj", inner, hidden)?,
                up: dense("mlp.up_proj", inner, hidden)?,
                down: dense("mlp.down_proj", hidden, inner)?,
            });
        }
        let output = match shape.tied_embeddings {
            true => None,
            false => Some(Dense::open(weights, "lm_head", shape.vocabulary, hidden)?),
        };
        Ok(Self {
            token_embedding: Dense::open(weights, "model.embed_tokens", shape.vocabulary, hidden)?,
            layers,
            norm: Vector::open(weights, "model.norm.weight", hidden)?,
            output,
            rope: rope(&shape.rotary, shape.head_width, context),
            cache: Cache::new(shape, options.cache_bytes_max),
            isa: Isa::best(),
            pool: ComputePool::new(options.threads),
            buffers: Buffers::default(),
            shape: shape.clone(),
        })
    }

    fn compute(
        &self,
        chunks: &[SequenceChunk<'_>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<Vec<f32>, WeightsError> {
        let mut layout = Vec::with_capacity(chunks.len());
        let mut rows = 0;
        for chunk in chunks {
            assert!(!chunk.tokens.is_empty(), "a chunk has tokens");
            cache.prepare(chunk.blocks, chunk.position, chunk.tokens.len());
            layout.push(ChunkRows {
                blocks: chunk.blocks,
                row: rows,
                rows: chunk.tokens.len(),
                position: chunk.position,
            });
            rows += chunk.tokens.len();
        }
        buffers.resize(rows, &self.shape);
        let token_embedding = self.token_embedding.matrix()?;
        let tokens = chunks.iter().flat_map(|chunk| chunk.tokens);
        for (token, row) in tokens.zip(buffers.states.chunks_exact_mut(self.shape.hidden)) {
            copy_row(&token_embedding, *token as usize, row);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.run_layer(layer, index, &layout, buffers, cache)?;
        }
        self.last_logits(chunks, &layout, buffers)
    }

    fn dense(
        &self,
        dense: &Dense,
        input: &[f32],
        rows: usize,
        target: OutputColumns<'_>,
    ) -> Result<(), WeightsError> {
        let (weight, bias) = (dense.matrix()?, dense.bias()?);
        let product = Product { input, rows, weight, bias, activation: Activation::None };
        matmul(self.isa, &self.pool, &product, target);
        Ok(())
    }

    fn run_layer(
        &self,
        layer: &Layer,
        index: usize,
        layout: &[ChunkRows<'_>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<(), WeightsError> {
        let (isa, shape) = (self.isa, &self.shape);
        let Buffers { states, normed, heads, mixed, projected, gate, up } = buffers;
        let rows = states.len() / shape.hidden;
        let query = shape.heads * shape.head_width;
        let shared = shape.key_value_heads * shape.head_width;
        let stride = query + 2 * shared;
        elementwise::rms_norm(isa, states, layer.attention_norm.get()?, shape.norm_epsilon, normed);
        self.dense(&layer.query, normed, rows, OutputColumns { values: heads, stride, offset: 0 })?;
        self.dense(&layer.key, normed, rows, OutputColumns { values: heads, stride, offset: query })?;
        self.dense(
            &layer.value,
            normed,
            rows,
            OutputColumns { values: heads, stride, offset: query + shared },
        )?;
        self.rotate_and_store(index, layout, heads, cache);
        self.serve_worker(index, layout, heads, mixed, cache);
        self.dense(
            &layer.output,
            mixed,
            rows,
            OutputColumns { values: projected, stride: shape.hidden, offset: 0 },
        )?;
        elementwise::add(isa, states, projected);
        elementwise::rms_norm(isa, states, layer.norm.get()?, shape.norm_epsilon, normed);
        let inner = shape.intermediate;
        self.dense(&layer.gate, normed, rows, OutputColumns { values: gate, stride: inner, offset: 0 })?;
        self.dense(&layer.up, normed, rows, OutputColumns { values: up, stride: inner, offset: 0 })?;
        elementwise::silu_multiply(isa, gate, up);
        self.dense(
            &layer.down,
            gate,
            rows,
            OutputColumns { values: projected, stride: shape.hidden, offset: 0 },
        )?;
        elementwise::add(isa, states, projected);
        Ok(())
    }

    /// Rotates queries and keys by their positions; stores keys and values in the cache.
    fn rotate_and_store(&self, layer: usize, layout: &[ChunkRows<'_>], heads: &mut [f32], cache: &mut Cache) {
        let shape = &self.shape;
        let (width, half) = (shape.head_width, shape.head_width / 2);
        let rotated = shape.heads + shape.key_value_heads;
        let stride = (rotated + shape.key_value_heads) * width;
        for chunk in layout {
            for offset in 0..chunk.rows {
                let position = chunk.position + offset;
                let row = &mut heads[(chunk.row + offset) * stride..][..stride];
                let cosines = &self.rope.0[position * half..][..half];
                let sines = &self.rope.1[position * half..][..half];
                let (rotate, values) = row.split_at_mut(rotated * width);
                for head in rotate.chunks_exact_mut(width) {
                    elementwise::rotate(self.isa, head, cosines, sines);
                }
                let keys = rotate[shape.heads * width..].chunks_exact(width);
                for (head, (key, value)) in keys.zip(values.chunks_exact(width)).enumerate() {
                    cache.store(chunk.blocks, layer, head, position, key, value);
                }
            }
        }
    }

    /// Computes attention of every new row over its own sequence up to itself.
    fn serve_worker(
        &self,
        layer: usize,
        layout: &[ChunkRows<'_>],
        heads: &[f32],
        mixed: &mut [f32],
        cache: &Cache,
    ) {
        let shape = &self.shape;
        let (width, shared) = (shape.head_width, shape.key_value_heads);
        let group = shape.heads / shared;
        let query = shape.heads * width;
        let stride = query + 2 * shared * width;
        let scale = 1.0 / (width as f32).sqrt();
        let mixed = Parts::new(mixed);
        let one = |task: usize| {
            let (chunk, head) = (&layout[task / shared], task % shared);
            let blocks = cache.blocks(chunk.blocks, layer, head);
            // All query heads that share these keys, for all rows of the chunk, in blocks of rows.
            let all: Vec<(usize, usize)> =
                (0..chunk.rows).flat_map(|row| (0..group).map(move |member| (row, member))).collect();
            for block in all.chunks(attention::ROWS) {
                let row_and_column =
                    |(row, member): &(usize, usize)| (chunk.row + row, (head * group + member) * width);
                let rows: Vec<&[f32]> = block
                    .iter()
                    .map(|item| {
                        let (row, column) = row_and_column(item);
                        &heads[row * stride + column..][..width]
                    })
                    .collect();
                let visible: Vec<usize> = block.iter().map(|(row, _)| chunk.position + row + 1).collect();
                let queries = Queries { rows: &rows, visible: &visible, width, scale };
                let panel = |index: usize| -> KeysValues<'_> { blocks.get(index) };
                serve_worker(self.isa, &queries, panel, |index, result| {
                    let (row, column) = row_and_column(&block[index]);
                    let at = row * query + column;
                    // SAFETY: one task has this chunk and these heads, so no other task writes these columns.
                    unsafe { mixed.part(at..at + width) }.copy_from_slice(result);
                });
            }
        };
        let work: usize = layout.iter().map(|chunk| chunk.rows * (chunk.position + chunk.rows)).sum();
        // Below this, waking a thread costs more than it computes (see `matmul::PARALLEL_MIN`).
        if work * query < 1 << 18 {
            (0..layout.len() * shared).for_each(one);
        } else {
            self.pool.each(layout.len() * shared, one);
        }
    }

    /// Computes the logits after the last row of each chunk that requests them.
    fn last_logits(
        &self,
        chunks: &[SequenceChunk<'_>],
        layout: &[ChunkRows<'_>],
        buffers: &mut Buffers,
    ) -> Result<Vec<f32>, WeightsError> {
        let (hidden, vocabulary) = (self.shape.hidden, self.shape.vocabulary);
        let mut last = Vec::new();
        for (chunk, rows) in chunks.iter().zip(layout) {
            if chunk.draw.is_some() {
                let row = rows.row + rows.rows - 1;
                last.extend_from_slice(&buffers.states[row * hidden..][..hidden]);
            }
        }
        let wanted = last.len() / hidden;
        let normed = &mut buffers.normed[..wanted * hidden];
        elementwise::rms_norm(self.isa, &last, self.norm.get()?, self.shape.norm_epsilon, normed);
        let mut logits = vec![0.0; wanted * vocabulary];
        let output = self.output.as_ref().unwrap_or(&self.token_embedding);
        self.dense(
            output,
            normed,
            wanted,
            OutputColumns { values: &mut logits, stride: vocabulary, offset: 0 },
        )?;
        Ok(logits)
    }
}

impl Decode for Decoder {
    fn blocks(&self) -> usize {
        self.cache.count()
    }

    fn pool(&self) -> &ComputePool {
        &self.pool
    }

    fn logits(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<f32>, EngineError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut cache = std::mem::take(&mut self.cache);
        let outcome = self.pool.enter(|| self.compute(chunks, &mut buffers, &mut cache));
        self.buffers = buffers;
        self.cache = cache;
        Ok(outcome?)
    }
}

impl Buffers {
    fn resize(&mut self, rows: usize, shape: &DecoderShape) {
        let query = shape.heads * shape.head_width;
        let shared = shape.key_value_heads * shape.head_width;
        self.states.resize(rows * shape.hidden, 0.0);
        self.normed.resize(rows * shape.hidden, 0.0);
        self.heads.resize(rows * (query + 2 * shared), 0.0);
        self.mixed.resize(rows * query, 0.0);
        self.projected.resize(rows * shape.hidden, 0.0);
        self.gate.resize(rows * shape.intermediate, 0.0);
        self.up.resize(rows * shape.intermediate, 0.0);
    }
}

/// Computes cosines and sines of every position's angles in double precision, rounded once.
pub(super) fn rope(rotary: &Rotary, head_width: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head_width / 2;
    let frequencies: Vec<f64> = (0..half)
        .map(|index| {
            let frequency = rotary.theta.powf(-(2.0 * index as f64) / head_width as f64);
            let Some(stretch) = rotary.stretch else { return frequency };
            let wave = 2.0 * std::f64::consts::PI / frequency;
            let turns = stretch.original_context / wave;
            let span = stretch.high_frequency_factor - stretch.low_frequency_factor;
            let kept = ((turns - stretch.low_frequency_factor) / span).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / stretch.factor)
        })
        .collect();
    let angle = |index: usize| (index / half) as f64 * frequencies[index % half];
    let cosines = (0..positions * half).map(|index| angle(index).cos() as f32).collect();
    let sines = (0..positions * half).map(|index| angle(index).sin() as f32).collect();
    (cosines, sines)
}

//! Decoders on the CPU: ragged steps over many sequences, each in its blocks of the KV cache.
//!
//! One engine serves every family: a [`DecoderShape`] says what differs, as a whole and layer by layer.
//!
//! A decoder that embeds has no output matrix, and computes whole texts to vectors ([`embedding`]).
//!
//! One step takes, for each sequence, a chunk of new tokens of any length. All rows of all chunks go through
//! the matrix products together; attention is per sequence. A sequence's results are bit-identical
//! regardless of the rest of the step and of the chunks into which its prompt was cut.
//!
//! Sampling and scheduling are elsewhere (see `batcher`).

mod cache;
mod embedding;
mod feed_forward;
mod layer;
mod rope;
mod router;

use super::config::DecoderShape;
use super::parameters::{Dense, SharedColumns, Vector, multiply_all};
use super::{BlockId, Decode, EngineError, EngineOptions, SequenceChunk};
use crate::weights::{Weights, WeightsError};
use cache::Cache;
use feed_forward::{InnerBuffers, Machine};
use kernels::attention::{self, KeysValues, Queries, serve_worker};
use kernels::matmul::OutputColumns;
use kernels::pool::Parts;
use kernels::{ComputePool, Isa, elementwise};
use layer::{LayerSource, LayerWeights};
use std::ops::Range;

pub(super) use embedding::embedding_tokens_max;
pub(super) use rope::rope;

/// A decoder over its weights.
#[derive(Debug)]
pub struct Decoder {
    shape: DecoderShape,
    token_embedding: Dense,
    layers: Vec<LayerWeights>,
    norm: Vector,
    /// `None` if the embedding table is also the output matrix, or there is no output.
    output: Option<Dense>,
    /// Of each rotary embedding of the shape, cosines, then sines, of every position: rows of half a head.
    ropes: Vec<(Vec<f32>, Vec<f32>)>,
    cache: Cache,
    isa: Isa,
    pool: ComputePool,
    buffers: Buffers,
}

#[derive(Debug, Default)]
struct Buffers {
    states: Vec<f32>,
    normed: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    projected: Vec<f32>,
    inner: InnerBuffers,
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
        // Checkpoints of models that embed may lack the prefix of those with an output matrix.
        let is_bare = shape.vector.is_some() && weights.contains("embed_tokens.weight");
        let root = if is_bare { "" } else { "model." };
        let source = LayerSource { shape, weights, root };
        let layers = (0..shape.layers.len()).map(|index| source.open(index)).collect::<Result<_, _>>()?;
        let output = match shape.tied_embeddings || shape.vector.is_some() {
            true => None,
            false => Some(Dense::open(weights, "lm_head", shape.vocabulary, shape.hidden)?),
        };
        let table = format!("{root}embed_tokens");
        let ropes = shape.rotaries.iter().map(|rotary| rope(rotary, shape.head_width, context)).collect();
        Ok(Self {
            token_embedding: Dense::open(weights, &table, shape.vocabulary, shape.hidden)?,
            layers,
            norm: source.norm(&format!("{root}norm.weight"), shape.hidden)?,
            output,
            ropes,
            cache: Cache::new(shape, options.cache_bytes_max),
            isa: Isa::best(),
            pool: ComputePool::new(options.threads),
            buffers: Buffers::default(),
            shape: shape.clone(),
        })
    }

    /// Computes one step, up to the states after the last layer. Returns the rows of each chunk.
    fn run<'c>(
        &self,
        chunks: &[SequenceChunk<'c>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<Vec<ChunkRows<'c>>, WeightsError> {
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
            token_embedding.copy_row(*token as usize, row);
        }
        if self.shape.embedding_scale != 1.0 {
            buffers.states.iter_mut().for_each(|state| *state *= self.shape.embedding_scale);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.run_layer(layer, index, &layout, buffers, cache)?;
        }
        Ok(layout)
    }

    fn compute(
        &self,
        chunks: &[SequenceChunk<'_>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<Vec<f32>, WeightsError> {
        let layout = self.run(chunks, buffers, cache)?;
        self.last_logits(chunks, &layout, buffers)
    }

    fn machine(&self) -> Machine<'_> {
        Machine { isa: self.isa, pool: &self.pool }
    }

    fn run_layer(
        &self,
        layer: &LayerWeights,
        index: usize,
        layout: &[ChunkRows<'_>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<(), WeightsError> {
        let (machine, shape) = (self.machine(), &self.shape);
        let Buffers { states, normed, heads, mixed, projected, inner } = buffers;
        let rows = states.len() / shape.hidden;
        let query = shape.heads * shape.head_width;
        let shared = shape.key_value_heads * shape.head_width;
        let stride = query + 2 * shared;
        self.normalize(&layer.attention_norm, states, normed)?;
        let values = Parts::new(heads);
        let columns = |offset: usize| SharedColumns { values, stride, offset };
        let parts = [
            (&layer.query, columns(0)),
            (&layer.key, columns(query)),
            (&layer.value, columns(query + shared)),
        ];
        multiply_all(self.isa, &self.pool, (normed, rows), &parts)?;
        self.rotate_and_store((layer, index), layout, heads, cache)?;
        self.serve_worker(index, layout, heads, mixed, cache);
        let target = OutputColumns { values: projected, stride: shape.hidden, offset: 0 };
        machine.dense(&layer.output, mixed, rows, target)?;
        self.add_part(layer.after_attention.as_ref(), states, projected, normed)?;
        self.normalize(&layer.norm, states, normed)?;
        machine.feed_forward((shape, index), layer, normed, projected, inner)?;
        self.add_part(layer.after_feed_forward.as_ref(), states, projected, normed)
    }

    /// Computes a norm of all rows.
    fn normalize(&self, norm: &Vector, rows: &[f32], out: &mut [f32]) -> Result<(), WeightsError> {
        let (scale, epsilon) = (norm.get()?, self.shape.norm_epsilon);
        self.pool.each_part(out, scale.len(), |range, out| {
            elementwise::rms_norm(self.isa, &rows[range], scale, epsilon, out);
        });
        Ok(())
    }

    /// Adds a part's result to the states, after its norm if there is one.
    fn add_part(
        &self,
        norm: Option<&Vector>,
        states: &mut [f32],
        result: &[f32],
        normed: &mut [f32],
    ) -> Result<(), WeightsError> {
        match norm {
            None => self.add(states, result),
            Some(norm) => {
                self.normalize(norm, result, normed)?;
                self.add(states, normed);
            }
        }
        Ok(())
    }

    fn add(&self, to: &mut [f32], from: &[f32]) {
        self.pool.each_part(to, 1, |range, to| elementwise::add(self.isa, to, &from[range]));
    }

    /// Normalises and rotates queries and keys by their positions; stores keys and values in the cache.
    fn rotate_and_store(
        &self,
        (layer, index): (&LayerWeights, usize),
        layout: &[ChunkRows<'_>],
        heads: &mut [f32],
        cache: &mut Cache,
    ) -> Result<(), WeightsError> {
        let shape = &self.shape;
        let (width, half) = (shape.head_width, shape.head_width / 2);
        let rotated = shape.heads + shape.key_value_heads;
        let stride = (rotated + shape.key_value_heads) * width;
        let norms = match &layer.head_norms {
            Some((query, key)) => Some((query.get()?, key.get()?)),
            None => None,
        };
        let (cosines, sines) = &self.ropes[shape.layers[index].rotary];
        let positions: Vec<usize> =
            layout.iter().flat_map(|chunk| chunk.position..chunk.position + chunk.rows).collect();
        self.pool.each_part(heads, stride, |range, rows| {
            let mut copy = vec![0.0; width];
            for (row, position) in rows.chunks_exact_mut(stride).zip(&positions[range.start / stride..]) {
                let angles = position * half..(position + 1) * half;
                let (cosines, sines) = (&cosines[angles.clone()], &sines[angles]);
                for (number, head) in row[..rotated * width].chunks_exact_mut(width).enumerate() {
                    if let Some((query, key)) = norms {
                        let scale = if number < shape.heads { query } else { key };
                        copy.copy_from_slice(head);
                        elementwise::rms_norm(self.isa, &copy, scale, shape.norm_epsilon, head);
                    }
                    elementwise::rotate(self.isa, head, cosines, sines);
                }
            }
        });
        for chunk in layout {
            for offset in 0..chunk.rows {
                let row = &heads[(chunk.row + offset) * stride..][..stride];
                let keys = row[shape.heads * width..rotated * width].chunks_exact(width);
                let values = row[rotated * width..].chunks_exact(width);
                for (head, (key, value)) in keys.zip(values).enumerate() {
                    cache.store(chunk.blocks, index, head, chunk.position + offset, key, value);
                }
            }
        }
        Ok(())
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
        let (scale, soft_cap) = (shape.attention_scale, shape.attention_soft_cap);
        let window = shape.layers[layer].window;
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
                let seen: Vec<Range<usize>> =
                    block.iter().map(|(row, _)| seen_by(chunk.position + row, window)).collect();
                let queries = Queries { rows: &rows, seen: &seen, width, scale, soft_cap };
                let panel = |index: usize| -> KeysValues<'_> { blocks.get(index) };
                serve_worker(self.isa, &queries, panel, |index, result| {
                    let (row, column) = row_and_column(&block[index]);
                    let at = row * query + column;
                    // SAFETY: one task has this chunk and these heads, so no other task writes these columns.
                    unsafe { mixed.part(at..at + width) }.copy_from_slice(result);
                });
            }
        };
        let seen = |end: usize| window.map_or(end, |window| end.min(window));
        let work: usize = layout.iter().map(|chunk| chunk.rows * seen(chunk.position + chunk.rows)).sum();
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
        self.normalize(&self.norm, &last, normed)?;
        let mut logits = vec![0.0; wanted * vocabulary];
        let output = self.output.as_ref().unwrap_or(&self.token_embedding);
        let target = OutputColumns { values: &mut logits, stride: vocabulary, offset: 0 };
        self.machine().dense(output, normed, wanted, target)?;
        if let Some(cap) = self.shape.logit_soft_cap {
            elementwise::soft_cap(self.isa, &mut logits, 1.0, cap);
        }
        Ok(logits)
    }
}

/// Returns the positions that one sees: itself and those before it, `window` of them at most.
fn seen_by(position: usize, window: Option<usize>) -> Range<usize> {
    assert!(window != Some(0), "a position sees itself");
    let end = position + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

impl Decode for Decoder {
    fn blocks(&self) -> usize {
        self.cache.count()
    }

    fn pool(&self) -> &ComputePool {
        &self.pool
    }

    fn logits(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<f32>, EngineError> {
        assert!(self.shape.vector.is_none(), "a decoder that embeds has no logits");
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
    }
}

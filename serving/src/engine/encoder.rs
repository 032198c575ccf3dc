//! Encoders on the CPU: token ids to one vector per text, or to one score per pair.
//!
//! One engine serves every family: an [`EncoderShape`] says what differs, as a whole and layer by layer.
//!
//! Texts of any lengths are concatenated without padding. A large batch is divided into groups of texts, one
//! thread each, that never wait for one another; all threads compute a small batch together. Either way each
//! text's result is bit-identical to that of the text alone.
//!
//! Tokenizing and limits on length are elsewhere (see `LoadedEngine`).

mod head;
mod layer;

use super::config::{EncoderOutput, EncoderShape, PositionTable};
use super::decoder::rope;
use super::parameters::Dense;
use super::pooling::{pool_rows, reduce};
use super::{Encode, EngineError, TokenPair};
use crate::weights::{Weights, WeightsError};
use head::ScoreLayers;
use kernels::matmul::{Activation, OutputColumns};
use kernels::pool::Parts;
use kernels::{ComputePool, Isa, elementwise};
use layer::{EncoderLayer, EncoderSource, Norm};
use std::sync::Mutex;

/// Tokens of a group: enough that transposing weights is 2 percent of the work. A group's activations (4 MB
/// for 256 tokens of MiniLM) must stay in a core's share of the last-level cache.
const GROUP_TOKENS: usize = 256;
/// Below this many tokens per thread, threads share each product instead of dividing the texts.
const GROUP_TOKENS_MIN: usize = 96;

/// An encoder over its weights.
#[derive(Debug)]
pub struct Encoder {
    shape: EncoderShape,
    token_embeddings: Dense,
    positions: Option<Dense>,
    types: Option<Dense>,
    norm: Norm,
    layers: Vec<EncoderLayer>,
    /// Norm after the last layer, where norms precede their parts.
    final_norm: Option<Norm>,
    /// Of each rotary embedding of the shape, cosines, then sines, of every position: rows of half a head.
    ropes: Vec<(Vec<f32>, Vec<f32>)>,
    head: Option<ScoreLayers>,
    isa: Isa,
    pool: ComputePool,
    alone: ComputePool,
    /// Buffers of finished groups, for reuse: fresh pages cost more than the small layers.
    buffers: Mutex<Vec<EncoderBuffers>>,
}

/// The tokens of a text, or of a pair whose second text begins at `second`.
#[derive(Debug, Clone, Copy)]
struct EncoderText<'a> {
    tokens: &'a [u32],
    second: usize,
}

#[derive(Debug, Default)]
struct EncoderBuffers {
    states: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    inner: Vec<f32>,
    /// The other half of a gated feed-forward part.
    gate: Vec<f32>,
}

impl Encoder {
    /// Looks up the tensors without waiting for any. `context` is the longest text that will be computed.
    ///
    /// # Errors
    /// [`EngineError`]: a tensor is missing, or has the wrong shape or type.
    pub fn open(
        shape: &EncoderShape,
        weights: &Weights,
        threads: usize,
        context: usize,
    ) -> Result<Self, EngineError> {
        let source = EncoderSource::of(shape, weights);
        let layers = (0..shape.layers.len()).map(|index| source.layer(index)).collect::<Result<_, _>>()?;
        let width = shape.hidden / shape.heads;
        let head = match &shape.output {
            EncoderOutput::Vector(_) => None,
            EncoderOutput::Score(score) => Some(ScoreLayers::open(shape, *score, &source, weights)?),
        };
        Ok(Self {
            token_embeddings: source.token_embeddings()?,
            positions: source.positions()?,
            types: source.types()?,
            norm: source.first_norm()?,
            layers,
            final_norm: source.final_norm()?,
            ropes: shape.rotaries.iter().map(|rotary| rope(rotary, width, context)).collect(),
            head,
            isa: Isa::best(),
            pool: ComputePool::new(threads),
            alone: ComputePool::new(1),
            buffers: Mutex::default(),
            shape: shape.clone(),
        })
    }

    /// Returns the numbers of one text's result.
    fn width(&self) -> usize {
        match self.shape.output {
            EncoderOutput::Vector(_) => self.shape.hidden,
            EncoderOutput::Score(_) => 1,
        }
    }

    /// Divides the texts into consecutive groups of about equal work; one group if too few for every thread.
    fn group(&self, texts: &[EncoderText<'_>]) -> Vec<std::ops::Range<usize>> {
        let total: usize = texts.iter().map(|text| text.tokens.len()).sum();
        let threads = self.pool.count();
        let is_small = threads == 1 && total <= GROUP_TOKENS || total < threads * GROUP_TOKENS_MIN;
        let groups = if is_small { 1 } else { threads * total.div_ceil(threads * GROUP_TOKENS) };
        let wanted = total.div_ceil(groups);
        let mut groups = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for (index, text) in texts.iter().enumerate() {
            tokens += text.tokens.len();
            if tokens >= wanted || index + 1 == texts.len() {
                groups.push(start..index + 1);
                (start, tokens) = (index + 1, 0);
            }
        }
        groups
    }

    /// Computes the results of all texts, one after another.
    fn compute(&self, texts: &[EncoderText<'_>]) -> Result<Vec<f32>, WeightsError> {
        let width = self.width();
        let mut results = vec![0.0; texts.len() * width];
        let groups = self.group(texts);
        let failure = Mutex::new(None);
        let parts = Parts::new(&mut results);
        self.pool.enter(|| {
            let inner = if groups.len() > 1 { &self.alone } else { &self.pool };
            self.pool.each(groups.len(), |index| {
                let group = groups[index].clone();
                // SAFETY: groups are disjoint ranges of texts, so these are disjoint ranges of results.
                let part = unsafe { parts.part(group.start * width..group.end * width) };
                if let Err(error) = self.compute_group(&texts[group], inner, part) {
                    *failure.lock().expect("no task panics while it holds this") = Some(error);
                }
            });
        });
        match failure.into_inner().expect("no task panics while it holds this") {
            Some(error) => Err(error),
            None => Ok(results),
        }
    }

    fn compute_group(
        &self,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        results: &mut [f32],
    ) -> Result<(), WeightsError> {
        let taken = self.buffers.lock().expect("no task panics while it holds this").pop();
        let mut buffers = taken.unwrap_or_default();
        let tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        buffers.resize(tokens, &self.shape);
        self.embed_tokens(texts, &mut buffers)?;
        for index in 0..self.layers.len() {
            self.run_layer(index, texts, pool, &mut buffers)?;
        }
        if let Some(norm) = &self.final_norm {
            norm.apply(self.isa, &mut buffers.states, &[], self.shape.norm_epsilon)?;
        }
        self.finish(texts, pool, &buffers.states, results)?;
        self.buffers.lock().expect("no task panics while it holds this").push(buffers);
        Ok(())
    }

    /// Turns the last states of texts into their results.
    fn finish(
        &self,
        texts: &[EncoderText<'_>],
        pool: &ComputePool,
        states: &[f32],
        results: &mut [f32],
    ) -> Result<(), WeightsError> {
        let hidden = self.shape.hidden;
        let each = |vectors: &mut [f32], reduce: &dyn Fn(&[f32], &mut [f32])| {
            let mut first = 0;
            for (text, vector) in texts.iter().zip(vectors.chunks_exact_mut(hidden)) {
                let last = first + text.tokens.len();
                reduce(&states[first * hidden..last * hidden], vector);
                first = last;
            }
        };
        match (&self.shape.output, &self.head) {
            (EncoderOutput::Vector(shape), _) => {
                each(results, &|rows, vector| reduce(self.isa, *shape, rows, vector));
                Ok(())
            }
            (EncoderOutput::Score(score), Some(head)) => {
                let mut pooled = vec![0.0; texts.len() * hidden];
                each(&mut pooled, &|rows, vector| pool_rows(self.isa, score.pooling, rows, vector));
                self.score_rows(head, *score, pool, &pooled, results)
            }
            (EncoderOutput::Score(_), None) => unreachable!("a cross-encoder is opened with its head"),
        }
    }

    /// Computes the states before the first layer.
    fn embed_tokens(
        &self,
        texts: &[EncoderText<'_>],
        buffers: &mut EncoderBuffers,
    ) -> Result<(), WeightsError> {
        let token_embeddings = self.token_embeddings.matrix()?;
        let positions = self.positions.as_ref().map(Dense::matrix).transpose()?;
        let kinds = self.kinds()?;
        let hidden = self.shape.hidden;
        let mut position_row = vec![0.0; hidden];
        let mut rows = buffers.states.chunks_exact_mut(hidden);
        for text in texts {
            let places = self.shape.positions.map(|table| places(&table, text.tokens)).unwrap_or_default();
            for ((index, token), row) in text.tokens.iter().enumerate().zip(&mut rows) {
                token_embeddings.copy_row(*token as usize, row);
                if let Some([first, second]) = &kinds {
                    elementwise::add(self.isa, row, if index < text.second { first } else { second });
                }
                if let Some(positions) = &positions {
                    positions.copy_row(places[index], &mut position_row);
                    elementwise::add(self.isa, row, &position_row);
                }
            }
        }
        self.norm.apply(self.isa, &mut buffers.states, &[], self.shape.norm_epsilon)
    }

    /// Returns the rows of the token types of the first and the second text of a pair.
    fn kinds(&self) -> Result<Option<[Vec<f32>; 2]>, WeightsError> {
        let Some(types) = &self.types else { return Ok(None) };
        let types = types.matrix()?;
        let row = |index: usize| {
            let mut row = vec![0.0; self.shape.hidden];
            types.copy_row(index, &mut row);
            row
        };
        let is_typed = self.shape.has_typed_pairs && self.shape.token_types > 1;
        Ok(Some([row(0), row(usize::from(is_typed))]))
    }

    /// Computes the product of the rows of `input` and a matrix, with its bias.
    fn product(
        &self,
        dense: &Dense,
        pool: &ComputePool,
        input: &[f32],
        activation: Activation,
        target: OutputColumns<'_>,
    ) -> Result<(), WeightsError> {
        let rows = input.len() / dense.matrix()?.inputs();
        dense.multiply(self.isa, pool, (input, rows), activation, target)
    }
}

/// Returns the rows of a text's tokens in the table of positions.
fn places(table: &PositionTable, tokens: &[u32]) -> Vec<usize> {
    let mut next = table.padding.map_or(0, |padding| padding as usize + 1);
    let place = |token: &u32| {
        if Some(*token) == table.padding {
            return *token as usize;
        }
        next += 1;
        next - 1
    };
    let places: Vec<usize> = tokens.iter().map(place).collect();
    assert!(places.iter().all(|place| *place < table.rows), "the context fits the table");
    places
}

impl Encode for Encoder {
    /// Computes one vector per text; every text has 1 token to the context's, all below the vocabulary.
    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        assert!(self.head.is_none(), "a cross-encoder makes no vectors");
        let texts: Vec<EncoderText<'_>> =
            texts.iter().map(|tokens| EncoderText { tokens, second: tokens.len() }).collect();
        let vectors = self.compute(&texts)?;
        Ok(vectors.chunks_exact(self.shape.hidden).map(<[f32]>::to_vec).collect())
    }

    /// Computes one score per pair; see [`Self::embed`] for the tokens.
    fn score(&mut self, pairs: &[TokenPair]) -> Result<Vec<f32>, EngineError> {
        assert!(self.head.is_some(), "an encoder without a head makes no scores");
        let texts: Vec<EncoderText<'_>> =
            pairs.iter().map(|pair| EncoderText { tokens: &pair.tokens, second: pair.second }).collect();
        Ok(self.compute(&texts)?)
    }
}

impl EncoderBuffers {
    fn resize(&mut self, tokens: usize, shape: &EncoderShape) {
        self.states.resize(tokens * shape.hidden, 0.0);
        self.heads.resize(tokens * 3 * shape.hidden, 0.0);
        self.mixed.resize(tokens * shape.hidden, 0.0);
        self.inner.resize(tokens * shape.intermediate, 0.0);
        if shape.is_gated {
            self.gate.resize(tokens * shape.intermediate, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_follow_the_padding_token_which_has_its_own_row() {
        let bert = PositionTable { rows: 4, padding: None };
        assert_eq!(places(&bert, &[7, 0, 1, 9]), [0, 1, 2, 3]);
        let roberta = PositionTable { rows: 6, padding: Some(1) };
        assert_eq!(places(&roberta, &[7, 0, 5, 9]), [2, 3, 4, 5]);
        assert_eq!(places(&roberta, &[7, 1, 5, 1, 9]), [2, 1, 3, 1, 4]);
    }
}

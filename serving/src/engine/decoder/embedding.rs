//! Embeddings of a decoder: whole texts to one vector each, by the states after its last norm.

use super::super::config::DecoderShape;
use super::super::pooling::reduce;
use super::super::{BLOCK_TOKENS, BlockId, Encode, EngineError, SequenceChunk};
use super::{Buffers, Cache, Decoder};
use crate::weights::WeightsError;

/// Tokens of texts that are computed together: enough that transposing weights is a percent of the work. A
/// longer text is computed alone.
const STEP_TOKENS: usize = 512;

/// Returns the longest text, in tokens, that a cache of this size can hold.
pub(in crate::engine) fn embedding_tokens_max(shape: &DecoderShape, cache_bytes_max: usize) -> usize {
    assert!(shape.vector.is_some(), "a decoder that embeds");
    Cache::new(shape, cache_bytes_max).count() * BLOCK_TOKENS
}

impl Encode for Decoder {
    /// Computes one vector per text; every text has 1 token to the context's, all below the vocabulary.
    fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut cache = std::mem::take(&mut self.cache);
        let outcome = self.pool.enter(|| self.vectors(texts, &mut buffers, &mut cache));
        self.buffers = buffers;
        self.cache = cache;
        Ok(outcome?)
    }
}

impl Decoder {
    fn vectors(
        &self,
        texts: &[Vec<u32>],
        buffers: &mut Buffers,
        cache: &mut Cache,
    ) -> Result<Vec<Vec<f32>>, WeightsError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let (step, later) = rest.split_at(step_length(rest, cache.count()));
            self.embed_step(step, buffers, cache, &mut vectors)?;
            rest = later;
        }
        Ok(vectors)
    }

    /// Computes texts side by side, each in blocks of its own.
    fn embed_step(
        &self,
        texts: &[Vec<u32>],
        buffers: &mut Buffers,
        cache: &mut Cache,
        vectors: &mut Vec<Vec<f32>>,
    ) -> Result<(), WeightsError> {
        let shape = self.shape.vector.expect("a decoder that embeds");
        let hidden = self.shape.hidden;
        let mut next = 0;
        let tables: Vec<Vec<BlockId>> = texts
            .iter()
            .map(|tokens| {
                let first = next;
                next += blocks_of(tokens) as u32;
                (first..next).map(BlockId).collect()
            })
            .collect();
        let chunks: Vec<SequenceChunk<'_>> = texts
            .iter()
            .zip(&tables)
            .map(|(tokens, blocks)| SequenceChunk { blocks, position: 0, tokens, draw: None })
            .collect();
        let layout = self.run(&chunks, buffers, cache)?;
        let Buffers { states, normed, .. } = buffers;
        self.normalize(&self.norm, states, normed)?;
        for rows in layout {
            let mut vector = vec![0.0; hidden];
            let rows = rows.row * hidden..(rows.row + rows.rows) * hidden;
            reduce(self.isa, shape, &normed[rows], &mut vector);
            vectors.push(vector);
        }
        Ok(())
    }
}

fn blocks_of(tokens: &[u32]) -> usize {
    tokens.len().div_ceil(BLOCK_TOKENS)
}

/// Returns how many texts are computed together: at least one.
fn step_length(texts: &[Vec<u32>], blocks_max: usize) -> usize {
    let (mut tokens, mut blocks) = (0, 0);
    let fits = |text: &&Vec<u32>| {
        tokens += text.len();
        blocks += blocks_of(text);
        tokens <= STEP_TOKENS && blocks <= blocks_max
    };
    let length = texts.iter().take_while(fits).count().max(1);
    assert!(length <= texts.len(), "there is a text");
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ends_at_its_tokens_or_blocks_and_has_a_text() {
        let texts = |lengths: &[usize]| lengths.iter().map(|length| vec![1; *length]).collect::<Vec<_>>();
        for (lengths, blocks, expected) in [
            (&[10, 20, 30][..], 8, 3),
            (&[10, 20, 33], 3, 2),
            (&[500, 12, 1], 99, 2),
            (&[513, 1], 99, 1),
            (&[40], 1, 1),
        ] {
            assert_eq!(step_length(&texts(lengths), blocks), expected, "{lengths:?} in {blocks} blocks");
        }
    }
}

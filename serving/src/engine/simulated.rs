//! A simulated engine without a model, for tests of the code around engines.
//!
//! Its text is bytes. A decoder repeats the last line of its prompt and ends; an encoder counts bytes, and a
//! cross-encoder those that query and document share. All are functions of their input alone, so tests can
//! state the expected answer. A decoder's cache holds tokens in place of keys and values: an answer shows it
//! when a sequence has another's blocks.

use super::text_frontend::Delay;
use super::{
    BLOCK_TOKENS, BlockId, Drawn, Engine, EngineError, Operation, SequenceChunk, TextFrontend, TokenPair,
};
use kernels::Isa;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The simulated engine.
#[derive(Debug)]
pub struct SimulatedEngine {
    frontend: Arc<TextFrontend>,
    cache: BTreeMap<BlockId, Vec<u32>>,
    blocks: usize,
    step_time: Duration,
    is_endless: bool,
    is_broken: bool,
}

impl SimulatedEngine {
    /// Returns a decoder that answers with the last non-empty line of the prompt, then its end token. Its
    /// cache holds the whole blocks of `tokens_total`.
    #[must_use]
    pub fn decoder(context_tokens_max: usize, tokens_total: usize) -> Self {
        Self::new(TextFrontend::bytes(context_tokens_max), tokens_total)
    }

    /// Returns an encoder: the shares of each byte value modulo `dimensions`, scaled to length 1.
    #[must_use]
    pub fn encoder(context_tokens_max: usize, dimensions: usize) -> Self {
        Self::new(TextFrontend::bytes_embedding(context_tokens_max, dimensions), 0)
    }

    /// Returns a cross-encoder: the share of a document's bytes that the query has too.
    #[must_use]
    pub fn reranker(context_tokens_max: usize) -> Self {
        Self::new(TextFrontend::bytes_reranking(context_tokens_max), 0)
    }

    /// Makes each step take at least this long, so that a test can act while a generation runs.
    #[must_use]
    pub fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    /// Repeats the line indefinitely, so that an answer ends only when its client leaves or its limit is
    /// reached.
    #[must_use]
    pub fn without_end(mut self) -> Self {
        self.is_endless = true;
        self
    }

    /// Produces NaN for inputs that contain `!`, as a model with damaged weights does.
    #[must_use]
    pub fn broken(mut self) -> Self {
        self.is_broken = true;
        self
    }

    /// Returns a decoder whose tokenizer calls `delay` with each text and blocks until it returns.
    #[must_use]
    pub fn with_tokenizer(
        context_tokens_max: usize,
        tokens_total: usize,
        delay: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self::new(TextFrontend::bytes(context_tokens_max).delayed(Delay(Box::new(delay))), tokens_total)
    }

    /// Returns a decoder with this chat template.
    #[cfg(test)]
    pub(crate) fn with_template(context_tokens_max: usize, tokens_total: usize, source: &str) -> Self {
        Self::new(TextFrontend::bytes(context_tokens_max).templated(source), tokens_total)
    }

    fn new(frontend: TextFrontend, tokens_total: usize) -> Self {
        Self {
            frontend: Arc::new(frontend),
            cache: BTreeMap::new(),
            blocks: tokens_total / BLOCK_TOKENS,
            step_time: Duration::ZERO,
            is_endless: false,
            is_broken: false,
        }
    }

    /// Stores a chunk and returns all tokens of its sequence.
    fn extend(&mut self, chunk: &SequenceChunk<'_>) -> Vec<u32> {
        let mut tokens = Vec::new();
        for (index, block) in chunk.blocks[..chunk.position.div_ceil(BLOCK_TOKENS)].iter().enumerate() {
            let count = (chunk.position - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
            tokens.extend_from_slice(&self.cache[block][..count]);
        }
        for token in chunk.tokens {
            let block = chunk.blocks[tokens.len() / BLOCK_TOKENS];
            assert!((block.0 as usize) < self.blocks, "a block of this cache");
            let stored = self.cache.entry(block).or_default();
            stored.truncate(tokens.len() % BLOCK_TOKENS);
            stored.push(*token);
            tokens.push(*token);
        }
        tokens
    }

    /// Returns the logits after these tokens: 20 for the one that follows, and 0 for all others.
    fn logits(&self, tokens: &[u32], prompt: usize) -> Vec<f32> {
        let (prompt, generated) = tokens.split_at(prompt);
        let newline = u32::from(b'\n');
        let mut lines = prompt.split(|token| *token == newline).filter(|line| !line.is_empty());
        let echo = lines.next_back().unwrap_or_default();
        // The plain chat template ends with "assistant: "; the message is the line before it.
        let echo =
            if echo == b"assistant: ".map(u32::from) { lines.next_back().unwrap_or_default() } else { echo };
        let offset = generated.len();
        let offset = if self.is_endless { offset % echo.len().max(1) } else { offset };
        let mut row = vec![0.0; self.frontend.vocabulary()];
        row[echo.get(offset).copied().unwrap_or(256) as usize] = 20.0;
        if self.is_broken && tokens.contains(&u32::from(b'!')) {
            row[7] = f32::NAN;
        }
        row
    }
}

/// Asserts that no chunk writes a block that another one of the step has.
fn assert_separate(chunks: &[SequenceChunk<'_>]) {
    let written = |chunk: &SequenceChunk<'_>| -> BTreeSet<BlockId> {
        let end = (chunk.position + chunk.tokens.len()).div_ceil(BLOCK_TOKENS);
        chunk.blocks[chunk.position / BLOCK_TOKENS..end].iter().copied().collect()
    };
    for (index, chunk) in chunks.iter().enumerate() {
        let written = written(chunk);
        for (other, reader) in chunks.iter().enumerate() {
            let shares = reader.blocks.iter().any(|block| written.contains(block));
            assert!(other == index || !shares, "a sequence writes only blocks of its own");
        }
    }
}

impl Engine for SimulatedEngine {
    fn frontend(&self) -> &Arc<TextFrontend> {
        &self.frontend
    }

    fn embed(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, EngineError> {
        let Some(dimensions) = self.frontend.dimensions() else {
            return Err(EngineError::OperationUnsupported { operation: "embed" });
        };
        std::thread::sleep(self.step_time);
        let is_broken = self.is_broken;
        let embed = |tokens: &Vec<u32>| {
            let mut vector = vec![0.0_f32; dimensions];
            for token in tokens {
                vector[*token as usize % dimensions] += 1.0;
            }
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
            let length = if is_broken && tokens.contains(&u32::from(b'!')) { f32::NAN } else { length };
            vector.iter().map(|x| x / length).collect()
        };
        Ok(sequences.iter().map(embed).collect())
    }

    fn score(&mut self, pairs: &[TokenPair]) -> Result<Vec<f32>, EngineError> {
        if self.frontend.operation() != Operation::Rerank {
            return Err(EngineError::OperationUnsupported { operation: "rerank" });
        }
        std::thread::sleep(self.step_time);
        let score = |pair: &TokenPair| {
            let (query, document) = pair.tokens.split_at(pair.second);
            let shared = document.iter().filter(|token| query.contains(token)).count();
            let is_broken = self.is_broken && document.contains(&u32::from(b'!'));
            if is_broken { f32::NAN } else { shared as f32 / document.len().max(1) as f32 }
        };
        Ok(pairs.iter().map(score).collect())
    }

    fn blocks(&self) -> usize {
        self.blocks
    }

    fn step(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<Option<Drawn>>, EngineError> {
        if self.frontend.operation() != Operation::Generate {
            return Err(EngineError::OperationUnsupported { operation: "generate" });
        }
        std::thread::sleep(self.step_time);
        assert_separate(chunks);
        let mut drawn = Vec::new();
        for chunk in chunks {
            let tokens = self.extend(chunk);
            if let Some((draw, position)) = chunk.drawn() {
                let row = self.logits(&tokens, draw.prompt);
                drawn.push(draw.choose(Isa::best(), &row, position));
            }
        }
        Ok(drawn)
    }
}

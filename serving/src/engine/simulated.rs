//! A simulated engine without a model, for tests of the code around engines.
//!
//! Its text is bytes. A decoder repeats the last line of its prompt and ends; an encoder counts bytes. Both
//! are functions of their input alone, so tests can state the expected answer.

use super::text_frontend::Delay;
use super::{Capacity, Engine, EngineError, Operation, SequenceChunk, SequenceId, TextFrontend};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The simulated engine.
#[derive(Debug)]
pub struct SimulatedEngine {
    frontend: Arc<TextFrontend>,
    sequences: BTreeMap<SequenceId, SimulatedSequence>,
    next: u64,
    tokens_total: usize,
    step_time: Duration,
    is_endless: bool,
    is_broken: bool,
}

#[derive(Debug)]
struct SimulatedSequence {
    tokens: Vec<u32>,
    prompt: usize,
    reserved: usize,
}

impl SimulatedEngine {
    /// Returns a decoder that answers with the last non-empty line of the prompt, then its end token.
    #[must_use]
    pub fn decoder(context_tokens_max: usize, tokens_total: usize) -> Self {
        Self::new(TextFrontend::bytes(context_tokens_max), tokens_total)
    }

    /// Returns an encoder: the shares of each byte value modulo `dimensions`, scaled to length 1.
    #[must_use]
    pub fn encoder(context_tokens_max: usize, dimensions: usize) -> Self {
        Self::new(TextFrontend::bytes_embedding(context_tokens_max, dimensions), 0)
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

    fn new(frontend: TextFrontend, tokens_total: usize) -> Self {
        let (frontend, sequences) = (Arc::new(frontend), BTreeMap::new());
        Self {
            frontend,
            sequences,
            next: 0,
            tokens_total,
            step_time: Duration::ZERO,
            is_endless: false,
            is_broken: false,
        }
    }

    fn reserved(&self) -> usize {
        self.sequences.values().map(|sequence| sequence.reserved).sum()
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

    fn capacity(&self) -> Capacity {
        Capacity { tokens_total: self.tokens_total, tokens_reserved: self.reserved() }
    }

    fn open(&mut self, tokens_max: usize) -> Result<Option<SequenceId>, EngineError> {
        if self.frontend.operation() != Operation::Generate {
            return Err(EngineError::OperationUnsupported { operation: "generate" });
        }
        if self.reserved() + tokens_max > self.tokens_total {
            return Ok(None);
        }
        self.next += 1;
        let id = SequenceId(self.next);
        self.sequences.insert(id, SimulatedSequence { tokens: Vec::new(), prompt: 0, reserved: tokens_max });
        Ok(Some(id))
    }

    fn step(&mut self, chunks: &[SequenceChunk<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        std::thread::sleep(self.step_time);
        let mut rows = Vec::new();
        for chunk in chunks {
            let sequence = self.sequences.get_mut(&chunk.sequence).expect("the sequence is open");
            sequence.tokens.extend_from_slice(chunk.tokens);
            assert!(sequence.tokens.len() <= sequence.reserved, "within what was reserved");
            if chunk.logits {
                if sequence.prompt == 0 {
                    sequence.prompt = sequence.tokens.len();
                }
                let mut row = vec![0.0; self.frontend.vocabulary()];
                row[sequence.next_token(self.is_endless) as usize] = 20.0;
                if self.is_broken && sequence.tokens.contains(&u32::from(b'!')) {
                    row[7] = f32::NAN;
                }
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn close(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }
}

impl SimulatedSequence {
    fn next_token(&self, is_endless: bool) -> u32 {
        let newline = u32::from(b'\n');
        let prompt = &self.tokens[..self.prompt];
        let mut lines = prompt.split(|token| *token == newline).filter(|line| !line.is_empty());
        let echo = lines.next_back().unwrap_or_default();
        // The plain chat template ends with "assistant: "; the message is the line before it.
        let echo =
            if echo == b"assistant: ".map(u32::from) { lines.next_back().unwrap_or_default() } else { echo };
        let offset = self.tokens.len() - self.prompt;
        let offset = if is_endless { offset % echo.len().max(1) } else { offset };
        echo.get(offset).copied().unwrap_or(256)
    }
}

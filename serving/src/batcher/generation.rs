//! One generation inside the batcher: from queued job to last event.

use super::BatchError;
use crate::engine::logits::{LogitState, TokenLogprobs, logprobs};
use crate::engine::sampler::{Sampling, sample};
use crate::engine::text::{Detokenizer, StopCheck, StopStrings};
use crate::engine::{SequenceId, TextFrontend};
use tokio::sync::mpsc::UnboundedSender;

/// A token as text: the bytes that it adds, which may end inside a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPiece {
    pub bytes: Vec<u8>,
}

impl TokenPiece {
    /// Returns the number of characters that begin in the token.
    #[must_use]
    pub fn characters(&self) -> usize {
        self.bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    }
}

/// A token of an answer with its log-probability, and the most likely tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerToken {
    pub piece: TokenPiece,
    /// Natural logarithm of the model's own probability, before temperature and rules.
    pub logprob: f32,
    /// In descending order of probability.
    pub top: Vec<(TokenPiece, f32)>,
}

impl AnswerToken {
    fn new(frontend: &TextFrontend, found: TokenLogprobs) -> Self {
        let piece = |token| TokenPiece { bytes: frontend.token_bytes(token) };
        let top = found.top.into_iter().map(|(token, logprob)| (piece(token), logprob)).collect();
        Self { piece: piece(found.token), logprob: found.logprob, top }
    }
}

/// Event of a running generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The next token, where log-probabilities were requested. Its text follows when it is complete.
    Token(AnswerToken),
    /// More text; never empty, always whole characters.
    Text(String),
    /// End of the generation, with its token counts.
    Finished(Finish),
    /// End of the generation by an engine failure.
    Failed(BatchError),
}

/// Outcome of a finished generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// Condition that ended it.
    pub reason: FinishReason,
    pub prompt_tokens: usize,
    /// Tokens generated, including an end token.
    pub generated_tokens: usize,
}

/// Condition that ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end token, or a stop string.
    Stop,
    /// The requested number of tokens.
    Length,
}

/// Where the text of an answer begins and ends.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AnswerOptions {
    /// Whether the text continues that of the prompt.
    pub(super) continues_prompt: bool,
    /// Whether the model's end token does not end it.
    pub(super) ignores_end: bool,
    /// Alternatives to report with the log-probability of each token; `None` reports none of both.
    pub(super) logprobs: Option<usize>,
}

/// A queued generation.
pub(super) struct QueuedGeneration {
    pub(super) prompt: Vec<u32>,
    pub(super) options: AnswerOptions,
    /// Rules that change its logits, if any.
    pub(super) logits: Option<LogitState>,
    pub(super) tokens_max: usize,
    pub(super) sampling: Sampling,
    pub(super) stops: Vec<String>,
    pub(super) sender: UnboundedSender<Event>,
}

impl QueuedGeneration {
    /// Returns the positions that the longest answer needs. The last token is never fed back, but the
    /// reservation includes it: simple, and at most one position too many.
    pub(super) fn tokens_reserved(&self) -> usize {
        self.prompt.len() + self.tokens_max
    }

    /// Reports whether the caller has dropped the request.
    pub(super) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A running generation.
pub(super) struct RunningGeneration {
    pub(super) sequence: SequenceId,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens that the engine has computed.
    computed: usize,
    tokens_max: usize,
    sampling: Sampling,
    logits: Option<LogitState>,
    detokenizer: Detokenizer,
    options: AnswerOptions,
    stops: StopStrings,
    sender: UnboundedSender<Event>,
}

impl RunningGeneration {
    pub(super) fn new(sequence: SequenceId, job: QueuedGeneration) -> Self {
        assert!(!job.prompt.is_empty() && job.tokens_max > 0, "checked when the request was queued");
        let detokenizer = if job.options.continues_prompt {
            Detokenizer::after(&job.prompt)
        } else {
            Detokenizer::default()
        };
        Self {
            sequence,
            prompt: job.prompt.len(),
            tokens: job.prompt,
            computed: 0,
            tokens_max: job.tokens_max,
            sampling: job.sampling,
            logits: job.logits,
            detokenizer,
            options: job.options,
            stops: StopStrings::new(job.stops),
            sender: job.sender,
        }
    }

    /// Reports whether the caller has dropped the request.
    pub(super) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Reports whether the whole prompt has been computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.computed >= self.prompt
    }

    /// Returns the cache positions that the longest answer needs, as reserved at the start.
    #[cfg(test)]
    pub(super) fn tokens_reserved(&self) -> usize {
        self.prompt + self.tokens_max
    }

    /// Checks the state between two steps: the engine has computed all tokens but the last, or a part of the
    /// prompt, and fewer tokens are generated than were requested.
    ///
    /// # Errors
    /// Describes the violation.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        let (length, computed) = (self.tokens.len(), self.computed);
        if length != self.prompt.max(computed + 1) {
            let sequence = self.sequence.0;
            return Err(format!("sequence {sequence} has computed {computed} of {length} tokens"));
        }
        if self.generated() >= self.tokens_max {
            let (generated, limit) = (self.generated(), self.tokens_max);
            return Err(format!("a generation of at most {limit} tokens continues after {generated}"));
        }
        Ok(())
    }

    /// Returns up to `budget` tokens not computed yet, and whether none remain after them.
    pub(super) fn next_chunk(&self, budget: usize) -> (&[u32], bool) {
        assert!(budget > 0 && self.computed < self.tokens.len(), "a chunk is not empty");
        assert!(!self.is_decoding() || self.computed + 1 == self.tokens.len(), "one token a step");
        let end = self.tokens.len().min(self.computed + budget);
        (&self.tokens[self.computed..end], end == self.tokens.len())
    }

    /// Records that the engine has computed `count` more tokens. Returns the number of prompt tokens among
    /// them.
    pub(super) fn advance(&mut self, count: usize) -> usize {
        assert!(count > 0, "a step computes tokens of every chosen generation");
        let before = self.computed.min(self.prompt);
        self.computed += count;
        assert!(self.computed <= self.tokens.len(), "only tokens that exist are computed");
        self.computed.min(self.prompt) - before
    }

    /// Samples the next token and sends the text that it completes. Returns `true` at the end of the
    /// generation.
    pub(super) fn accept(&mut self, frontend: &TextFrontend, logits: &[f32]) -> bool {
        assert_eq!(self.computed, self.tokens.len(), "logits follow the last token");
        let token = self.draw(logits);
        self.tokens.push(token);
        if frontend.is_end(token) && !self.options.ignores_end {
            let rest = self.detokenizer.finish(frontend);
            return self.end(&rest, FinishReason::Stop);
        }
        if let Some(top) = self.options.logprobs {
            let found = logprobs(logits, token, top);
            let _ = self.sender.send(Event::Token(AnswerToken::new(frontend, found)));
        }
        let mut text = self.detokenizer.push(frontend, token);
        let is_last = self.generated() >= self.tokens_max;
        if is_last {
            text.push_str(&self.detokenizer.finish(frontend));
            return self.end(&text, FinishReason::Length);
        }
        match self.stops.push(&text) {
            StopCheck::Text(text) => {
                self.send_text(text);
                false
            }
            StopCheck::Stopped(text) => {
                self.send_text(text);
                self.send_finish(FinishReason::Stop);
                true
            }
        }
    }

    /// Draws the next token by the request's rules.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let position = self.tokens.len() as u64;
        let Some(state) = &mut self.logits else { return sample(logits, &self.sampling, position) };
        let mut row = logits.to_vec();
        state.apply(&mut row);
        let token = sample(&row, &self.sampling, position);
        state.push(token);
        token
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    pub(super) fn fail(&self, error: BatchError) {
        // The caller may have dropped the receiver; the error is then discarded.
        let _ = self.sender.send(Event::Failed(error));
    }

    fn end(&mut self, text: &str, reason: FinishReason) -> bool {
        let (text, reason) = match self.stops.push(text) {
            StopCheck::Text(text) => (text + &self.stops.finish(), reason),
            StopCheck::Stopped(text) => (text, FinishReason::Stop),
        };
        self.send_text(text);
        self.send_finish(reason);
        true
    }

    fn send_text(&self, text: String) {
        if !text.is_empty() {
            let _ = self.sender.send(Event::Text(text));
        }
    }

    fn send_finish(&self, reason: FinishReason) {
        assert!((1..=self.tokens_max).contains(&self.generated()), "no more tokens than requested");
        let finish = Finish { reason, prompt_tokens: self.prompt, generated_tokens: self.generated() };
        let _ = self.sender.send(Event::Finished(finish));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    fn running(prompt: usize, tokens_max: usize) -> RunningGeneration {
        let (sender, _) = unbounded_channel();
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let queued = QueuedGeneration {
            prompt: vec![1; prompt],
            options: AnswerOptions::default(),
            logits: None,
            tokens_max,
            sampling,
            stops: Vec::new(),
            sender,
        };
        RunningGeneration::new(SequenceId(7), queued)
    }

    #[test]
    fn a_chunk_ends_at_the_budget_and_requests_logits_at_the_last_token() {
        let mut generation = running(5, 3);
        assert_eq!(generation.next_chunk(3), (&[1, 1, 1][..], false));
        assert_eq!((generation.advance(3), generation.is_decoding()), (3, false));
        assert_eq!(generation.next_chunk(3), (&[1, 1][..], true));
        assert_eq!((generation.advance(2), generation.is_decoding()), (2, true));
    }

    #[test]
    fn an_answer_without_an_end_token_has_all_tokens_requested() {
        let (sender, mut events) = unbounded_channel();
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let queued = QueuedGeneration {
            prompt: vec![1; 5],
            options: AnswerOptions::default(),
            logits: None,
            tokens_max: 2,
            sampling,
            stops: Vec::new(),
            sender,
        };
        let mut generation = RunningGeneration::new(SequenceId(7), queued);
        let frontend = TextFrontend::bytes(64);
        let mut logits = vec![0.0; frontend.vocabulary()];
        logits[usize::from(b'x')] = 1.0;
        assert_eq!(generation.advance(5), 5);
        assert!(!generation.accept(&frontend, &logits), "one of two");
        assert_eq!(generation.next_chunk(3), (&[u32::from(b'x')][..], true));
        assert_eq!(generation.advance(1), 0);
        assert!(generation.accept(&frontend, &logits), "two of two");
        let finish = Finish { reason: FinishReason::Length, prompt_tokens: 5, generated_tokens: 2 };
        for expected in [Event::Text("x".into()), Event::Text("x".into()), Event::Finished(finish)] {
            assert_eq!(events.try_recv(), Ok(expected));
        }
    }

    #[test]
    fn a_planted_violation_of_a_generation_is_reported() {
        type Plant = fn(&mut RunningGeneration);
        let cases: [(Plant, &str); 4] = [
            (|generation| generation.computed = 5, "sequence 7 has computed 5 of 5 tokens"),
            (|generation| generation.tokens.push(1), "sequence 7 has computed 0 of 6 tokens"),
            (|generation| generation.tokens.truncate(4), "sequence 7 has computed 0 of 4 tokens"),
            (
                |generation| {
                    generation.tokens.extend([2, 2, 2]);
                    generation.computed = 7;
                },
                "at most 3 tokens continues after 3",
            ),
        ];
        for (plant, expected) in cases {
            let mut generation = running(5, 3);
            assert_eq!(generation.check_invariants(), Ok(()));
            plant(&mut generation);
            let found = generation.check_invariants().expect_err(expected);
            assert!(found.contains(expected), "{found} lacks {expected}");
        }
    }
}

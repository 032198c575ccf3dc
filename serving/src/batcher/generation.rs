//! One generation's text inside the batcher: from queued job to last event.

use super::{BatchError, Caller};
use crate::engine::logits::{LogitState, TokenLogprobs};
use crate::engine::text::{Detokenizer, StopCheck, StopStrings};
use crate::engine::{Drawn, TextFrontend};
use kernels::sampling::Sampling;
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
        debug_assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1), "the most likely token is the first");
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
    pub(super) caller: Caller,
    pub(super) sender: UnboundedSender<Event>,
}

/// The text of a generation that waits or runs. Its tokens are with the scheduler.
pub(super) struct GeneratedText {
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens generated.
    generated: usize,
    tokens_max: usize,
    detokenizer: Detokenizer,
    ignores_end: bool,
    stops: StopStrings,
    sender: UnboundedSender<Event>,
}

impl GeneratedText {
    pub(super) fn new(job: &QueuedGeneration) -> Self {
        assert!(!job.prompt.is_empty() && job.tokens_max > 0, "checked when the request was queued");
        let detokenizer = if job.options.continues_prompt {
            Detokenizer::after(&job.prompt)
        } else {
            Detokenizer::default()
        };
        Self {
            prompt: job.prompt.len(),
            generated: 0,
            tokens_max: job.tokens_max,
            detokenizer,
            ignores_end: job.options.ignores_end,
            stops: StopStrings::new(job.stops.clone()),
            sender: job.sender.clone(),
        }
    }

    /// Reports whether the caller has dropped the request.
    pub(super) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns the tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt
    }

    /// Checks the state between two steps: fewer tokens are generated than were requested.
    ///
    /// # Errors
    /// Describes the violation.
    pub(super) fn check_invariants(&self) -> Result<(), String> {
        if self.generated < self.tokens_max {
            return Ok(());
        }
        let (generated, limit) = (self.generated, self.tokens_max);
        Err(format!("a generation of at most {limit} tokens continues after {generated}"))
    }

    /// Sends the text that the next token completes. Returns `true` at the end of the generation.
    pub(super) fn accept(&mut self, frontend: &TextFrontend, drawn: Drawn) -> bool {
        let token = drawn.token;
        debug_assert!(self.generated < self.tokens_max, "the last token requested ends the generation");
        self.generated += 1;
        if frontend.is_end(token) && !self.ignores_end {
            let rest = self.detokenizer.finish(frontend);
            return self.end(&rest, FinishReason::Stop);
        }
        if let Some(found) = drawn.logprobs {
            let _ = self.sender.send(Event::Token(AnswerToken::new(frontend, found)));
        }
        let mut text = self.detokenizer.push(frontend, token);
        if self.generated >= self.tokens_max {
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
        assert!((1..=self.tokens_max).contains(&self.generated), "no more tokens than requested");
        let finish = Finish { reason, prompt_tokens: self.prompt, generated_tokens: self.generated };
        let _ = self.sender.send(Event::Finished(finish));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    fn queued(prompt: usize, tokens_max: usize, sender: UnboundedSender<Event>) -> QueuedGeneration {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let (options, stops, caller) = (AnswerOptions::default(), Vec::new(), Caller::default());
        let prompt = vec![1; prompt];
        QueuedGeneration { prompt, options, logits: None, tokens_max, sampling, stops, caller, sender }
    }

    #[test]
    fn an_answer_without_an_end_token_has_all_tokens_requested() {
        let (sender, mut events) = unbounded_channel();
        let mut text = GeneratedText::new(&queued(5, 2, sender));
        let frontend = TextFrontend::bytes(64);
        let drawn = || Drawn { token: u32::from(b'x'), logprobs: None };
        assert!(!text.accept(&frontend, drawn()), "one of two");
        assert!(text.accept(&frontend, drawn()), "two of two");
        let finish = Finish { reason: FinishReason::Length, prompt_tokens: 5, generated_tokens: 2 };
        for expected in [Event::Text("x".into()), Event::Text("x".into()), Event::Finished(finish)] {
            assert_eq!(events.try_recv(), Ok(expected));
        }
    }

    #[test]
    fn a_planted_violation_of_a_generation_is_reported() {
        let (sender, _events) = unbounded_channel();
        let mut text = GeneratedText::new(&queued(5, 3, sender));
        assert_eq!(text.check_invariants(), Ok(()));
        text.generated = 3;
        let found = text.check_invariants().expect_err("it continues");
        assert_eq!(found, "a generation of at most 3 tokens continues after 3");
    }
}

//! One generation's text inside the batcher: from queued job to last event.

use super::{BatchError, Caller};
use crate::engine::logits::{LogitState, TokenLogprobs};
use crate::engine::reasoning::{ReasonedText, ReasoningParser, ReasoningStart};
use crate::engine::stop::{StopCheck, StopConditions, StopStrings};
use crate::engine::text::Detokenizer;
use crate::engine::tools::{CallDelta, CallParser};
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
    /// The next token, of a generation that reports them. Its text follows when it is complete.
    Drawn(u32),
    /// More text; never empty, always whole characters.
    Text(String),
    /// More text of a model that reasons, with a part of its reasoning.
    Reasoning(ReasonedText),
    /// Parts of calls, after more text that may be empty.
    Calls(ReasonedText, Vec<CallDelta>),
    /// End of the generation, with its token counts.
    Finished(Finish),
    /// End of the generation by an engine failure.
    Failed(BatchError),
}

/// Outcome of a finished generation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finish {
    /// Condition that ended it.
    pub reason: FinishReason,
    pub prompt_tokens: usize,
    /// Tokens generated, including an end token.
    pub generated_tokens: usize,
    /// Sum of the log-probabilities of all tokens, the last included; 0 where they were not requested.
    pub logprob_sum: f64,
}

/// Condition that ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end token, or a stop string.
    Stop,
    /// As [`Self::Stop`], of an answer that calls functions.
    ToolCalls,
    /// The requested number of tokens.
    Length,
}

/// Where the text of an answer begins and ends, and what it is.
#[derive(Debug, Default)]
pub(super) struct AnswerOptions {
    /// Whether the text continues that of the prompt.
    pub(super) continues_prompt: bool,
    /// Where it begins, of a model that reasons.
    pub(super) reasoning: Option<ReasoningStart>,
    /// Alternatives to report with the log-probability of each token; `None` reports none of both.
    pub(super) logprobs: Option<usize>,
    /// Parser of calls, of a request with functions.
    pub(super) calls: Option<CallParser>,
}

/// A queued generation.
pub(super) struct QueuedGeneration {
    pub(super) prompt: Vec<u32>,
    pub(super) options: AnswerOptions,
    /// Rules that change its logits, if any.
    pub(super) logits: Option<LogitState>,
    pub(super) tokens_max: usize,
    pub(super) sampling: Sampling,
    pub(super) stops: StopConditions,
    pub(super) caller: Caller,
    pub(super) sender: UnboundedSender<Event>,
}

/// A queued generation that continues one of another worker.
pub(super) struct ResumedGeneration {
    pub(super) job: QueuedGeneration,
    /// Tokens drawn so far; may be none.
    pub(super) drawn: Vec<u32>,
    /// The text after these tokens.
    pub(super) text: GeneratedText,
}

/// Reason for which drawn tokens cannot be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplayError {
    /// A token is not of the vocabulary.
    #[error("the drawn token {0} is not of the vocabulary")]
    Unknown(u32),
    /// Tokens follow the one that ended the answer.
    #[error("{0} drawn tokens follow the end of the answer")]
    Beyond(usize),
    /// The grammar of the answer does not allow them.
    #[error("the drawn tokens are not of the answer's grammar: {0}")]
    OutsideGrammar(String),
}

/// The text of a generation that waits or runs. Its tokens are with the scheduler.
pub(super) struct GeneratedText {
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens generated.
    generated: usize,
    tokens_max: usize,
    detokenizer: Detokenizer,
    conditions: StopConditions,
    stops: StopStrings,
    /// Separates the reasoning, of a model that reasons.
    reasoning: Option<ReasoningParser>,
    /// Separates calls from the content, of a request with functions.
    calls: Option<CallParser>,
    /// Sum of the log-probabilities of all tokens, where they were requested.
    logprob_sum: f64,
    /// Whether each token is reported by its id.
    reports_tokens: bool,
    /// Whether the caller has received the text already.
    is_replaying: bool,
    sender: UnboundedSender<Event>,
}

impl GeneratedText {
    /// Begins the text of a generation, whose parser of calls it takes.
    pub(super) fn new(job: &mut QueuedGeneration) -> Self {
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
            stops: StopStrings::new(job.stops.strings.clone(), job.stops.is_included),
            conditions: job.stops.clone(),
            reasoning: job.options.reasoning.map(ReasoningParser::new),
            calls: job.options.calls.take(),
            logprob_sum: 0.0,
            reports_tokens: false,
            is_replaying: false,
            sender: job.sender.clone(),
        }
    }

    /// Reports each token from here on by its id.
    pub(super) fn reporting_tokens(self) -> Self {
        debug_assert_eq!(self.generated, 0, "no token is reported twice, and none is left out");
        Self { reports_tokens: true, ..self }
    }

    /// Repeats tokens that another worker drew and whose text the caller has. Only the end of the generation
    /// is sent, if they reach it. Returns whether they do.
    ///
    /// # Errors
    /// [`ReplayError`]: the tokens are not those of one answer to this request.
    pub(super) fn replay(&mut self, frontend: &TextFrontend, drawn: &[u32]) -> Result<bool, ReplayError> {
        debug_assert_eq!(self.generated, 0, "tokens are repeated before any is drawn");
        self.is_replaying = true;
        let mut has_ended = false;
        for (index, token) in drawn.iter().enumerate() {
            if has_ended {
                return Err(ReplayError::Beyond(drawn.len() - index));
            }
            if *token as usize >= frontend.vocabulary() {
                return Err(ReplayError::Unknown(*token));
            }
            has_ended = self.accept(frontend, Drawn { token: *token, logprobs: None });
        }
        self.is_replaying = false;
        debug_assert_eq!(self.generated, drawn.len(), "each token counts in the answer's usage");
        debug_assert!(has_ended || self.generated < self.tokens_max, "another token may be drawn");
        Ok(has_ended)
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
        if self.reports_tokens && !self.is_replaying {
            let _ = self.sender.send(Event::Drawn(token));
        }
        self.logprob_sum += drawn.logprobs.as_ref().map_or(0.0, |found| f64::from(found.logprob));
        let is_stop = self.conditions.tokens.contains(&token);
        if (is_stop && !self.conditions.is_included)
            || (frontend.is_end(token) && !self.conditions.ignores_end)
        {
            let rest = self.detokenizer.finish(frontend);
            return self.end(&rest, FinishReason::Stop);
        }
        if let Some(found) = drawn.logprobs {
            let _ = self.sender.send(Event::Token(AnswerToken::new(frontend, found)));
        }
        let begins_calls = self.calls.as_ref().is_some_and(|calls| calls.trigger() == Some(token));
        let mark = self.calls.as_ref().and_then(|calls| calls.text_of(token));
        let mut text = match (begins_calls, mark) {
            // It adds no text, and what follows it is no continuation.
            (true, _) => self.detokenizer.finish(frontend),
            (false, Some(mark)) => self.detokenizer.finish(frontend) + mark,
            (false, None) => self.detokenizer.push(frontend, token),
        };
        if is_stop || self.generated >= self.tokens_max {
            text.push_str(&self.detokenizer.finish(frontend));
            return self.end(&text, if is_stop { FinishReason::Stop } else { FinishReason::Length });
        }
        match self.check_stops(text) {
            StopCheck::Text(mut text) => {
                if begins_calls {
                    text.push_str(&self.stops.finish());
                }
                self.send_text(&text, begins_calls);
                false
            }
            StopCheck::Stopped(text) => {
                self.send_last(&text, FinishReason::Stop);
                true
            }
        }
    }

    pub(super) fn fail(&self, error: BatchError) {
        // The caller may have dropped the receiver; the error is then discarded.
        let _ = self.sender.send(Event::Failed(error));
    }

    /// Checks text for stop strings, of which none counts before the answer has its least length.
    fn check_stops(&mut self, text: String) -> StopCheck {
        if self.generated <= self.conditions.tokens_min {
            return StopCheck::Text(text);
        }
        self.stops.push(&text)
    }

    fn end(&mut self, text: &str, reason: FinishReason) -> bool {
        let (text, reason) = match self.check_stops(text.to_owned()) {
            StopCheck::Text(text) => (text + &self.stops.finish(), reason),
            StopCheck::Stopped(text) => (text, FinishReason::Stop),
        };
        self.send_last(&text, reason);
        true
    }

    /// Sends text; `begins_calls` where the special token of calls follows it.
    fn send_text(&mut self, text: &str, begins_calls: bool) {
        let (mut text, calls) = self.separate(text, false);
        if begins_calls && let Some(parser) = &mut self.calls {
            text.content.push_str(&parser.begin_calls());
        }
        self.send_separated(text, calls);
    }

    /// Separates reasoning, content and calls.
    fn separate(&mut self, text: &str, is_last: bool) -> (ReasonedText, Vec<CallDelta>) {
        let mut text = match &mut self.reasoning {
            Some(parser) if is_last => parser.finish(text),
            Some(parser) => parser.push(text),
            None => ReasonedText { content: text.to_owned(), ..ReasonedText::default() },
        };
        let Some(parser) = &mut self.calls else { return (text, Vec::new()) };
        let found = if is_last { parser.finish(&text.content) } else { parser.push(&text.content) };
        text.content = found.content;
        (text, found.calls)
    }

    /// Sends one event at most, so that a stream is cut before or after all that a token completes.
    fn send_separated(&self, text: ReasonedText, calls: Vec<CallDelta>) {
        if self.is_replaying {
            return;
        }
        // The caller may have dropped the receiver; the event is then discarded.
        let _ = match (text.reasoning.is_empty(), text.content.is_empty()) {
            _ if !calls.is_empty() => self.sender.send(Event::Calls(text, calls)),
            (true, true) => Ok(()),
            (true, false) => self.sender.send(Event::Text(text.content)),
            (false, _) => self.sender.send(Event::Reasoning(text)),
        };
    }

    /// Sends the last text, with what was held back, and the end.
    fn send_last(&mut self, text: &str, reason: FinishReason) {
        let (text, calls) = self.separate(text, true);
        self.send_separated(text, calls);
        assert!((1..=self.tokens_max).contains(&self.generated), "no more tokens than requested");
        let has_called = self.calls.as_ref().is_some_and(CallParser::has_called);
        let reason = match reason {
            FinishReason::Stop if has_called => FinishReason::ToolCalls,
            other => other,
        };
        let (prompt_tokens, generated_tokens) = (self.prompt, self.generated);
        let finish = Finish { reason, prompt_tokens, generated_tokens, logprob_sum: self.logprob_sum };
        let _ = self.sender.send(Event::Finished(finish));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    fn queued(prompt: usize, tokens_max: usize, sender: UnboundedSender<Event>) -> QueuedGeneration {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let (options, stops, caller) =
            (AnswerOptions::default(), StopConditions::default(), Caller::default());
        let prompt = vec![1; prompt];
        QueuedGeneration { prompt, options, logits: None, tokens_max, sampling, stops, caller, sender }
    }

    #[test]
    fn an_answer_without_an_end_token_has_all_tokens_requested() {
        let (sender, mut events) = unbounded_channel();
        let mut text = GeneratedText::new(&mut queued(5, 2, sender));
        let frontend = TextFrontend::bytes(64);
        let drawn = || Drawn { token: u32::from(b'x'), logprobs: None };
        assert!(!text.accept(&frontend, drawn()), "one of two");
        assert!(text.accept(&frontend, drawn()), "two of two");
        let finish =
            Finish { reason: FinishReason::Length, prompt_tokens: 5, generated_tokens: 2, logprob_sum: 0.0 };
        for expected in [Event::Text("x".into()), Event::Text("x".into()), Event::Finished(finish)] {
            assert_eq!(events.try_recv(), Ok(expected));
        }
    }

    /// Returns the events of a generation of these tokens, of which the first `replayed` are repeated.
    fn events_after(
        tokens: &[u32],
        stops: &[&str],
        reasoning: Option<ReasoningStart>,
        replayed: usize,
    ) -> Vec<Event> {
        let (sender, mut events) = unbounded_channel();
        let mut job = queued(3, tokens.len(), sender);
        job.options.reasoning = reasoning;
        job.stops.strings = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let frontend = TextFrontend::bytes(64);
        let mut text = GeneratedText::new(&mut job).reporting_tokens();
        let mut has_ended = text.replay(&frontend, &tokens[..replayed]).expect("tokens of one answer");
        for token in &tokens[replayed..] {
            assert!(!has_ended, "the end comes with the last token");
            has_ended = text.accept(&frontend, Drawn { token: *token, logprobs: None });
        }
        assert!(has_ended);
        drop((job, text));
        std::iter::from_fn(|| events.try_recv().ok()).collect()
    }

    /// The text so far depends on more than the text that was sent: half characters and the beginning of a
    /// stop string are held back.
    #[test]
    fn a_replay_leaves_the_rest_of_the_events_at_every_cut() {
        let tokens = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
        let end = 256;
        let before = Some(ReasoningStart::Before);
        for (tokens, stops, reasoning) in [
            ([tokens("ab\u{e9}\u{1f600}c"), vec![end]].concat(), vec![], None),
            (tokens("one STAR STOP"), vec!["STOP"], None),
            ([tokens("xy ST"), vec![end]].concat(), vec!["STOP"], None),
            (tokens("sixteen letters!"), vec!["!!"], None),
            (vec![end], vec![], None),
            ([tokens("<think>a\u{e9}</i></think>b<"), vec![end]].concat(), vec![], before),
            ([tokens("<think>a</thin"), vec![end]].concat(), vec![], before),
            (tokens("<think>a STOP"), vec!["STOP"], before),
            (tokens("a</think>b"), vec![], Some(ReasoningStart::Within)),
        ] {
            let whole = events_after(&tokens, &stops, reasoning, 0);
            for cut in 0..=tokens.len() {
                // The events after the report of the token before the cut, without that token's own text.
                let after = |event: &Event| matches!(event, Event::Drawn(_));
                let mut rest = whole.as_slice();
                for _ in 0..cut {
                    let next = rest.iter().position(after).expect("each token is reported");
                    rest = &rest[next + 1..];
                }
                let is_own_text =
                    cut > 0 && matches!(rest.first(), Some(Event::Text(_) | Event::Reasoning(_)));
                let expected = &rest[usize::from(is_own_text)..];
                assert_eq!(
                    events_after(&tokens, &stops, reasoning, cut),
                    expected,
                    "{tokens:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn stop_conditions_end_an_answer_as_requested() {
        let tokens: Vec<u32> = "ab.c.d".bytes().map(u32::from).collect();
        let dot = u32::from(b'.');
        let strings = |tokens_min, is_included| StopConditions {
            strings: vec![".".into()],
            is_included,
            tokens_min,
            ..StopConditions::default()
        };
        let stops = |tokens_min, is_included| StopConditions {
            tokens: vec![dot],
            ..StopConditions { strings: Vec::new(), ..strings(tokens_min, is_included) }
        };
        for (conditions, text, generated) in [
            (strings(0, false), "ab", 3),
            (strings(0, true), "ab.", 3),
            (strings(2, true), "ab.", 3),
            (strings(3, false), "ab.c", 5),
            (strings(3, true), "ab.c.", 5),
            (stops(0, false), "ab", 3),
            (stops(0, true), "ab.", 3),
        ] {
            let (sender, mut events) = unbounded_channel();
            let mut job = queued(3, 16, sender);
            job.stops = conditions.clone();
            let (mut answer, frontend) = (GeneratedText::new(&mut job), TextFrontend::bytes(64));
            let drawn = |token: &u32| Drawn { token: *token, logprobs: None };
            let ended = tokens.iter().position(|token| answer.accept(&frontend, drawn(token)));
            assert_eq!(ended, Some(generated - 1), "{conditions:?}");
            let mut found = String::new();
            while let Ok(event) = events.try_recv() {
                match event {
                    Event::Text(more) => found.push_str(&more),
                    Event::Finished(finish) => assert_eq!(finish.reason, FinishReason::Stop),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(found, text, "{conditions:?}");
        }
    }

    /// Attack: a worker reports tokens that it did not draw.
    #[test]
    fn tokens_of_no_answer_are_not_repeated() {
        let frontend = TextFrontend::bytes(64);
        let replay = |drawn: &[u32]| {
            let (sender, _events) = unbounded_channel();
            GeneratedText::new(&mut queued(3, 4, sender)).replay(&frontend, drawn)
        };
        assert_eq!(replay(&[97, 98]), Ok(false), "the control");
        assert_eq!(replay(&[97, 98, 99, 100]), Ok(true), "the control: as many as requested");
        assert_eq!(replay(&[97, 98, 99, 100, 101, 102]), Err(ReplayError::Beyond(2)));
        assert_eq!(replay(&[97, 256, 98]), Err(ReplayError::Beyond(1)));
        assert_eq!(replay(&[97, u32::MAX]), Err(ReplayError::Unknown(u32::MAX)));
    }

    #[test]
    fn a_planted_violation_of_a_generation_is_reported() {
        let (sender, _events) = unbounded_channel();
        let mut text = GeneratedText::new(&mut queued(5, 3, sender));
        assert_eq!(text.check_invariants(), Ok(()));
        text.generated = 3;
        let found = text.check_invariants().expect_err("it continues");
        assert_eq!(found, "a generation of at most 3 tokens continues after 3");
    }
}

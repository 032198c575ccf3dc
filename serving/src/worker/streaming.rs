//! Answers in progress: the batcher's events of one request's choices, out as one object or as server-sent
//! events.
//!
//! A stream's headers go out immediately, but its first event waits for the first text. A gateway that has
//! received no byte may therefore still retry on another worker. Events of several choices are sent as they
//! come, in fair turns, each with the index of its choice.

use super::WorkerService;
use super::answer::{COMPLETION_TOKENS, PROMPT_TOKENS, event_stream, json};
use crate::batcher::{AnswerToken, BatchError, Event, FinishReason};
use crate::engine::reasoning::ReasonedText;
use crate::engine::tools::CallDelta;
use crate::memory::Charge;
use crate::openai::{
    ApiError, ChoicePiece, DONE_EVENT, Endpoint, Label, Usage, WholeCall, WholeChoice, error_event,
};
use crate::resumable::{RESUMABLE, StreamFrame};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::StreamBody;
use hyper::body::Frame;
use protocol::error_code as code;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedReceiver;

/// One choice in progress. Dropping it drops the events' receiver, which stops the generation.
pub(super) struct StreamedChoice {
    /// Events to come; `None` after the last.
    events: Option<UnboundedReceiver<Event>>,
    /// Text of the prompt, where the answer repeats it.
    echo: Option<Arc<str>>,
    has_begun: bool,
    /// Tokens whose text has not been sent, where log-probabilities were requested.
    tokens: Option<Vec<AnswerToken>>,
    /// Characters of the tokens that were sent.
    offset: usize,
    /// Tokens drawn since the last event, of a generation that reports them.
    drawn: Vec<u32>,
}

impl StreamedChoice {
    pub(super) fn new(events: UnboundedReceiver<Event>, echo: Option<Arc<str>>, has_logprobs: bool) -> Self {
        let tokens = has_logprobs.then(Vec::new);
        Self { events: Some(events), echo, has_begun: false, tokens, offset: 0, drawn: Vec::new() }
    }

    /// Continues a choice of which another worker has sent tokens with this many characters, if any.
    pub(super) fn after(self, sent: Option<usize>) -> Self {
        let Some(offset) = sent else { return self };
        Self { echo: None, has_begun: true, offset, ..self }
    }

    /// Takes the tokens to send with the next text, and the character at which they begin.
    fn take_tokens(&mut self) -> Option<(Vec<AnswerToken>, usize)> {
        let tokens = std::mem::take(self.tokens.as_mut()?);
        let start = self.offset;
        self.offset += tokens.iter().map(|token| token.piece.characters()).sum::<usize>();
        Some((tokens, start))
    }
}

/// An answer in progress.
pub(super) struct Streaming {
    service: Arc<WorkerService>,
    started: Instant,
    label: Label,
    /// At least one.
    choices: Vec<StreamedChoice>,
    /// Tokens of all prompts.
    prompt_tokens: usize,
    /// Held while the answer repeats prompts.
    _charge: Option<Charge<()>>,
    progress: StreamProgress,
}

/// Part of an answer that has been sent.
#[derive(Default)]
struct StreamProgress {
    has_begun: bool,
    /// Choice that is asked first for its next event.
    turn: usize,
    generated_tokens: usize,
}

/// Remainder of the stream to send.
enum StreamState {
    Events(Streaming),
    Trailers(HeaderMap),
    Nothing,
}

impl Streaming {
    pub(super) fn new(
        service: Arc<WorkerService>,
        started: Instant,
        label: Label,
        choices: Vec<StreamedChoice>,
        prompt_tokens: usize,
        charge: Option<Charge<()>>,
    ) -> Self {
        assert!(!choices.is_empty(), "an answer has a choice");
        let progress = StreamProgress::default();
        Self { service, started, label, choices, prompt_tokens, _charge: charge, progress }
    }

    /// Returns the next event and the index of its choice.
    async fn next(&mut self) -> (usize, Event) {
        let (choices, turn) = (&mut self.choices, self.progress.turn);
        let count = choices.len();
        let (index, event) = poll_fn(|context| {
            for index in (turn..turn + count).map(|index| index % count) {
                if let Some(events) = &mut choices[index].events
                    && let Poll::Ready(event) = events.poll_recv(context)
                {
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        })
        .await;
        self.progress.turn = index + 1;
        if !std::mem::replace(&mut self.progress.has_begun, true) {
            self.service.record_first_token(self.started.elapsed());
        }
        let event = event.unwrap_or_else(|| {
            Event::Failed(BatchError::Failed {
                code: code::ENGINE_FAILED,
                message: "the engine ended before the answer did".to_owned(),
            })
        });
        if let Event::Finished(finish) = &event {
            self.progress.generated_tokens += finish.generated_tokens;
            self.choices[index].events = None;
        }
        (index, event)
    }

    /// Reports whether all choices have ended.
    fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.events.is_none())
    }

    fn usage(&self) -> Usage {
        Usage::generated(self.prompt_tokens, self.progress.generated_tokens)
    }

    fn failed(&self, error: &BatchError) -> ApiError {
        ApiError::from_batch(error, self.label.endpoint.input())
    }

    /// Sends all choices as one object: of each prompt's `candidates`, the best `count`.
    pub(super) async fn whole(mut self, (candidates, count): (usize, usize)) -> Result<Response, ApiError> {
        let echo = |choice: &StreamedChoice| choice.echo.as_deref().unwrap_or_default().to_owned();
        // The reason is replaced by that of each choice's end.
        let begin = |choice: &StreamedChoice| WholeChoice {
            text: echo(choice),
            reasoning: String::new(),
            reason: FinishReason::Length,
            tokens: choice.tokens.clone(),
            calls: Vec::new(),
        };
        let mut scores = vec![0.0; self.choices.len()];
        let mut answers: Vec<WholeChoice> = self.choices.iter().map(begin).collect();
        while !self.is_complete() {
            match self.next().await {
                (index, Event::Text(more)) => answers[index].text.push_str(&more),
                (index, Event::Reasoning(more)) => {
                    answers[index].reasoning.push_str(&more.reasoning);
                    answers[index].text.push_str(&more.content);
                }
                (index, Event::Calls(more, calls)) => {
                    answers[index].reasoning.push_str(&more.reasoning);
                    answers[index].text.push_str(&more.content);
                    join_calls(&mut answers[index].calls, calls);
                }
                (index, Event::Token(token)) => {
                    // Where candidates are ranked, tokens come unasked.
                    if let Some(tokens) = &mut answers[index].tokens {
                        tokens.push(token);
                    }
                }
                (_, Event::Drawn(_)) => {}
                (_, Event::Failed(error)) => return Err(self.failed(&error)),
                (index, Event::Finished(finish)) => {
                    answers[index].reason = finish.reason;
                    scores[index] = finish.logprob_sum / finish.generated_tokens as f64;
                }
            }
        }
        let answers = best(answers, &scores, candidates, count);
        let mut response = json(self.label.whole(&answers, self.usage()));
        let generated = HeaderValue::from(self.progress.generated_tokens);
        response.headers_mut().insert(COMPLETION_TOKENS, generated);
        Ok(response)
    }

    /// Sends the answer as events, in frames with the tokens where a gateway asked for them.
    pub(super) fn stream(self, include_usage: bool, is_framed: bool) -> Response {
        let frames = futures::stream::unfold(StreamState::Events(self), move |rest| async move {
            match rest {
                StreamState::Events(streaming) => {
                    let (bytes, tokens, rest) = streaming.step(include_usage).await;
                    let is_last = !matches!(rest, StreamState::Events(_));
                    let bytes =
                        if is_framed { StreamFrame { tokens, data: bytes, is_last }.write() } else { bytes };
                    Some((Ok::<_, Infallible>(Frame::data(bytes)), rest))
                }
                StreamState::Trailers(trailers) => {
                    Some((Ok(Frame::trailers(trailers)), StreamState::Nothing))
                }
                StreamState::Nothing => None,
            }
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        event_stream(response.headers_mut());
        if is_framed {
            response.headers_mut().insert(RESUMABLE, HeaderValue::from_static("frames"));
        }
        response
    }

    /// Returns the bytes of the next event, the tokens that it completes, and the remainder.
    async fn step(mut self, include_usage: bool) -> (Bytes, Vec<u32>, StreamState) {
        let (index, event) = loop {
            match self.next().await {
                // It waits for its text.
                (index, Event::Token(token)) => {
                    self.choices[index].tokens.get_or_insert_default().push(token);
                }
                (index, Event::Drawn(token)) => self.choices[index].drawn.push(token),
                other => break other,
            }
        };
        let drawn = std::mem::take(&mut self.choices[index].drawn);
        let mut bytes = self.beginning(index, include_usage);
        let tokens = self.choices[index].take_tokens();
        let tokens = tokens.as_ref().map(|(tokens, start)| (tokens.as_slice(), *start));
        let rest = match event {
            Event::Token(_) | Event::Drawn(_) => unreachable!("tokens wait for their text"),
            Event::Text(text) => {
                let piece = ChoicePiece { text: &text, tokens, ..ChoicePiece::default() };
                bytes.extend_from_slice(&self.label.event(index, &piece, include_usage));
                StreamState::Events(self)
            }
            Event::Reasoning(ReasonedText { reasoning, content }) => {
                let piece =
                    ChoicePiece { text: &content, reasoning: &reasoning, tokens, ..ChoicePiece::default() };
                bytes.extend_from_slice(&self.label.event(index, &piece, include_usage));
                StreamState::Events(self)
            }
            Event::Calls(ReasonedText { reasoning, content }, calls) => {
                let (text, reasoning, calls) = (content.as_str(), reasoning.as_str(), calls.as_slice());
                let piece = ChoicePiece { text, reasoning, calls, tokens, ..ChoicePiece::default() };
                bytes.extend_from_slice(&self.label.event(index, &piece, include_usage));
                StreamState::Events(self)
            }
            Event::Finished(finish) => {
                // Tokens without a text of their own, as those of a stop string.
                let tokens = tokens.filter(|(tokens, _)| !tokens.is_empty());
                let end = ChoicePiece { reason: Some(finish.reason), tokens, ..ChoicePiece::default() };
                bytes.extend_from_slice(&self.label.event(index, &end, include_usage));
                if self.is_complete() {
                    self.end(&mut bytes, include_usage)
                } else {
                    StreamState::Events(self)
                }
            }
            Event::Failed(error) => {
                bytes.extend_from_slice(&error_event(&self.failed(&error)));
                StreamState::Nothing
            }
        };
        (Bytes::from(bytes), drawn, rest)
    }

    /// Builds the first event of a choice, if it has none yet: the role in a chat, the prompt in an echo.
    fn beginning(&mut self, index: usize, include_usage: bool) -> Vec<u8> {
        let choice = &mut self.choices[index];
        if std::mem::replace(&mut choice.has_begun, true) {
            return Vec::new();
        }
        let echo = choice.echo.take();
        let piece = match (self.label.endpoint, echo.as_deref()) {
            (Endpoint::Chat, _) => ChoicePiece { role: true, ..ChoicePiece::default() },
            (_, Some(echo)) => ChoicePiece { text: echo, ..ChoicePiece::default() },
            (_, None) => return Vec::new(),
        };
        self.label.event(index, &piece, include_usage).to_vec()
    }

    /// Writes what follows the last choice.
    fn end(self, bytes: &mut Vec<u8>, include_usage: bool) -> StreamState {
        if include_usage {
            bytes.extend_from_slice(&self.label.usage_event(self.usage()));
        }
        bytes.extend_from_slice(DONE_EVENT);
        let mut trailers = HeaderMap::new();
        trailers.insert(PROMPT_TOKENS, HeaderValue::from(self.prompt_tokens));
        trailers.insert(COMPLETION_TOKENS, HeaderValue::from(self.progress.generated_tokens));
        StreamState::Trailers(trailers)
    }
}

/// Adds parts of calls to those that are known so far.
fn join_calls(known: &mut Vec<WholeCall>, parts: Vec<CallDelta>) {
    for CallDelta { index, name, arguments } in parts {
        if let Some(name) = name {
            debug_assert_eq!(index, known.len(), "calls are numbered in order");
            known.push(WholeCall { name, arguments: String::new() });
        }
        known[index].arguments.push_str(&arguments);
    }
}

/// Returns, of each prompt's `candidates`, the `count` with the highest scores, best first; of equal scores
/// the earlier one precedes. Where all are sent, they keep their order.
fn best(answers: Vec<WholeChoice>, scores: &[f64], candidates: usize, count: usize) -> Vec<WholeChoice> {
    debug_assert_eq!(answers.len(), scores.len(), "a score for each candidate");
    if candidates == count {
        return answers;
    }
    let mut kept = Vec::new();
    let mut ranked: Vec<(f64, WholeChoice)> = scores.iter().copied().zip(answers).collect();
    for of_prompt in ranked.chunks_mut(candidates) {
        // The sort is stable.
        of_prompt.sort_by(|a, b| b.0.total_cmp(&a.0));
        kept.extend(of_prompt.iter().take(count).map(|(_, answer)| answer.clone()));
    }
    kept
}

#[cfg(test)]
mod tests;

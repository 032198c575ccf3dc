//! Response formats: OpenAI's objects and events. Their field names are stable for OpenAI's clients.

use super::error::ApiError;
use super::logprobs::ChoiceLogprobs;
use super::request::{Encoding, Endpoint};
use crate::batcher::{AnswerToken, FinishReason};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;

/// Ends every complete stream of events.
pub const DONE_EVENT: &[u8] = b"data: [DONE]\n\n";

/// Identification of an answer.
#[derive(Debug, Clone)]
pub struct Label {
    /// Unique id: `chatcmpl-` or `cmpl-` and random digits.
    pub id: String,
    /// Start of the answer, in seconds since the Unix epoch.
    pub created: u64,
    /// Name of the model as the client wrote it.
    pub model: String,
    /// Endpoint of the request: chat or completion.
    pub endpoint: Endpoint,
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    /// Tokens generated; absent for embeddings and scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<usize>,
    /// Sum of both.
    pub total_tokens: usize,
}

impl Usage {
    /// Returns the usage of a generation.
    #[must_use]
    pub fn generated(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens: Some(completion_tokens), total_tokens }
    }

    /// Returns the usage of an embedding or a reranking.
    #[must_use]
    pub fn embedded(prompt_tokens: usize) -> Self {
        Self { prompt_tokens, completion_tokens: None, total_tokens: prompt_tokens }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice<'a>>,
    /// Absent, `null` in the events before the one that reports it, or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<ChoiceLogprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    Message(Message<'a>),
    Delta(Delta<'a>),
    Text(&'a str),
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// One choice of a whole answer.
#[derive(Debug, Clone)]
pub struct WholeChoice {
    pub text: String,
    pub reason: FinishReason,
    /// Tokens of the text, where their log-probabilities were requested.
    pub tokens: Option<Vec<AnswerToken>>,
}

/// A piece of one choice, for an event.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChoicePiece<'a> {
    pub text: &'a str,
    /// Whether the event states the role: the first of a chat's choice.
    pub role: bool,
    /// Reason for which the choice ends; set in its last event.
    pub reason: Option<FinishReason>,
    /// Tokens of the piece and the character of the answer at which they begin, where their
    /// log-probabilities were requested.
    pub tokens: Option<(&'a [AnswerToken], usize)>,
}

fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

impl Label {
    fn object(&self, is_event: bool) -> &'static str {
        match (self.endpoint, is_event) {
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
            _ => "text_completion",
        }
    }

    fn answer<'a>(&'a self, is_event: bool, choices: Vec<CompletionChoice<'a>>) -> Answer<'a> {
        let Self { id, created, model, .. } = self;
        Answer { id, object: self.object(is_event), created: *created, model, choices, usage: None }
    }

    /// Builds the whole answer as one object.
    #[must_use]
    pub fn whole(&self, choices: &[WholeChoice], usage: Usage) -> Bytes {
        let choices = choices.iter().enumerate().map(|(index, choice)| {
            let WholeChoice { text, reason, tokens } = choice;
            let logprobs = tokens.as_ref().map(|tokens| self.logprobs(tokens, 0));
            let content = match self.endpoint {
                Endpoint::Chat => {
                    Content::Message(Message { role: "assistant", content: text, refusal: None })
                }
                _ => Content::Text(text),
            };
            let finish_reason = Some(reason_word(*reason));
            CompletionChoice { index, content, logprobs, finish_reason }
        });
        let choices = choices.collect();
        json(&Answer { usage: Some(Some(usage)), ..self.answer(false, choices) })
    }

    /// Writes the log-probabilities of tokens that begin at this character of the answer.
    fn logprobs<'a>(&self, tokens: &'a [AnswerToken], offset: usize) -> ChoiceLogprobs<'a> {
        match self.endpoint {
            Endpoint::Chat => ChoiceLogprobs::of_chat(tokens),
            _ => ChoiceLogprobs::of_text(tokens, offset),
        }
    }

    /// Builds one event of the choice with this index. `usage_follows` writes `"usage": null`, as OpenAI's
    /// events do when a last one will report it.
    #[must_use]
    pub fn event(&self, index: usize, piece: &ChoicePiece<'_>, usage_follows: bool) -> Bytes {
        let ChoicePiece { text, role, reason, tokens } = *piece;
        let content = match self.endpoint {
            Endpoint::Chat => Content::Delta(Delta {
                role: role.then_some("assistant"),
                content: (role || !text.is_empty()).then_some(text),
            }),
            _ => Content::Text(text),
        };
        let logprobs = tokens.map(|(tokens, offset)| self.logprobs(tokens, offset));
        let choice = CompletionChoice { index, content, logprobs, finish_reason: reason.map(reason_word) };
        event(&Answer { usage: usage_follows.then_some(None), ..self.answer(true, vec![choice]) })
    }

    /// Builds the event that reports the token counts.
    #[must_use]
    pub fn usage_event(&self, usage: Usage) -> Bytes {
        event(&Answer { usage: Some(Some(usage)), ..self.answer(true, Vec::new()) })
    }
}

/// Builds the event that reports why a stream ends early. No `[DONE]` follows it.
#[must_use]
pub fn error_event(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error.body()))
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: EncodedVector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EncodedVector {
    Float(Vec<f32>),
    Base64(String),
}

/// Builds the answer to an embedding request.
#[must_use]
pub fn embeddings(model: &str, vectors: Vec<Vec<f32>>, encoding: Encoding, usage: Usage) -> Bytes {
    let write = |vector: Vec<f32>| match encoding {
        Encoding::Float => EncodedVector::Float(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            EncodedVector::Base64(STANDARD.encode(bytes))
        }
    };
    let embedding =
        |(index, vector)| EmbeddingObject { object: "embedding", index, embedding: write(vector) };
    let data = vectors.into_iter().enumerate().map(embedding).collect();
    json(&EmbeddingList { object: "list", data, model, usage })
}

#[derive(Serialize)]
struct TokenList<'a> {
    count: usize,
    max_model_len: usize,
    tokens: &'a [u32],
    token_strs: Option<Vec<String>>,
}

/// Builds the answer to `/tokenize`: the tokens, their texts if requested, and the model's context.
#[must_use]
pub fn tokens(tokens: &[u32], token_strs: Option<Vec<String>>, max_model_len: usize) -> Bytes {
    json(&TokenList { count: tokens.len(), max_model_len, tokens, token_strs })
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelObject<'a>>,
}

#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// vLLM's field, which clients read to fit their prompts; absent while no worker has the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
}

impl<'a> ModelObject<'a> {
    /// Clients expect `created`, which has no meaning here.
    fn new((id, max_model_len): (&'a str, Option<usize>)) -> Self {
        Self { id, object: "model", created: 0, owned_by: "quorate", max_model_len }
    }
}

/// Builds the answer to `/v1/models`: names, and the context of each in tokens, if known.
#[must_use]
pub fn models<'a>(models: impl IntoIterator<Item = (&'a str, Option<usize>)>) -> Bytes {
    json(&ModelList { object: "list", data: models.into_iter().map(ModelObject::new).collect() })
}

/// Builds the answer to `/v1/models/NAME`.
#[must_use]
pub fn model(name: &str, context: Option<usize>) -> Bytes {
    json(&ModelObject::new((name, context)))
}

pub(super) fn json<T: Serialize>(value: &T) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("these types have text keys and finite numbers"))
}

fn event<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    serde_json::to_writer(&mut bytes, value).expect("these types have text keys and finite numbers");
    bytes.extend_from_slice(b"\n\n");
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(endpoint: Endpoint) -> Label {
        Label { id: "x-1".into(), created: 5, model: "m".into(), endpoint }
    }

    fn whole(text: &str, reason: FinishReason) -> WholeChoice {
        WholeChoice { text: text.to_owned(), reason, tokens: None }
    }

    fn check(bytes: &Bytes, expected: &str) {
        assert_eq!(std::str::from_utf8(bytes).expect("UTF-8"), expected);
    }

    #[test]
    fn whole_answers_have_openais_shape() {
        let usage = Usage::generated(3, 2);
        let answers = [whole("hi", FinishReason::Length), whole("ho", FinishReason::Stop)];
        check(
            &label(Endpoint::Chat).whole(&[whole("hi", FinishReason::Stop)], usage),
            concat!(
                r#"{"id":"x-1","object":"chat.completion","created":5,"model":"m","#,
                r#""choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null},"#,
                r#""logprobs":null,"finish_reason":"stop"}],"#,
                r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
            ),
        );
        check(
            &label(Endpoint::Completions).whole(&answers, usage),
            concat!(
                r#"{"id":"x-1","object":"text_completion","created":5,"model":"m","#,
                r#""choices":[{"index":0,"text":"hi","logprobs":null,"finish_reason":"length"},"#,
                r#"{"index":1,"text":"ho","logprobs":null,"finish_reason":"stop"}],"#,
                r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#,
            ),
        );
    }

    #[test]
    fn events_have_openais_shape() {
        let chat = label(Endpoint::Chat);
        let head =
            r#"data: {"id":"x-1","object":"chat.completion.chunk","created":5,"model":"m","choices":["#;
        let choice = |delta: &str, reason: &str| {
            format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}"#)
        };
        let first = choice(r#"{"role":"assistant","content":""}"#, "null");
        check(
            &chat.event(0, &ChoicePiece { role: true, ..ChoicePiece::default() }, true),
            &format!("{head}{first}],\"usage\":null}}\n\n"),
        );
        let middle = choice(r#"{"content":"a"}"#, "null");
        check(
            &chat.event(0, &ChoicePiece { text: "a", ..ChoicePiece::default() }, false),
            &format!("{head}{middle}]}}\n\n"),
        );
        let last = choice("{}", r#""stop""#);
        let end = ChoicePiece { reason: Some(FinishReason::Stop), ..ChoicePiece::default() };
        check(&chat.event(0, &end, false), &format!("{head}{last}]}}\n\n"));
        let usage = r#"{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}"#;
        check(&chat.usage_event(Usage::generated(1, 1)), &format!("{head}],\"usage\":{usage}}}\n\n"));
        check(
            &label(Endpoint::Completions).event(
                0,
                &ChoicePiece { text: "a", ..ChoicePiece::default() },
                false,
            ),
            concat!(
                r#"data: {"id":"x-1","object":"text_completion","created":5,"model":"m","#,
                r#""choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}"#,
                "\n\n",
            ),
        );
    }

    #[test]
    fn vectors_are_numbers_or_little_endian_base64() {
        let vectors = || vec![vec![1.0, -0.5]];
        check(
            &embeddings("m", vectors(), Encoding::Float, Usage::embedded(4)),
            concat!(
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0,-0.5]}],"#,
                r#""model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}"#,
            ),
        );
        check(
            &embeddings("m", vectors(), Encoding::Base64, Usage::embedded(4)),
            concat!(
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPwAAAL8="}],"#,
                r#""model":"m","usage":{"prompt_tokens":4,"total_tokens":4}}"#,
            ),
        );
    }

    #[test]
    fn models_are_listed() {
        check(
            &models([("a", None), ("b", Some(9))]),
            concat!(
                r#"{"object":"list","data":[{"id":"a","object":"model","created":0,"owned_by":"quorate"},"#,
                r#"{"id":"b","object":"model","created":0,"owned_by":"quorate","max_model_len":9}]}"#,
            ),
        );
    }
}

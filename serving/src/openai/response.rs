//! Response formats: OpenAI's objects and events. Their field names are stable for OpenAI's clients.

use super::calls::{AnsweredCall, CallChunk};
use super::error::ApiError;
use super::logprobs::{ChatLogprobs, TextLogprobs};
use super::request::{Encoding, Endpoint};
use crate::batcher::{AnswerToken, FinishReason};
use crate::engine::tools::CallDelta;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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

/// An answer of this model, or one event of it.
#[derive(Serialize, ToSchema)]
pub(super) struct Answer<'a, C> {
    id: &'a str,
    object: &'static str,
    /// Start of the answer, in seconds since the Unix epoch.
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    /// Token counts. In a stream with `include_usage`, `null` before the last event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
}

/// One answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatChoice<'a> {
    index: usize,
    message: AnswerMessage<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    /// `stop`, `tool_calls` or `length`.
    finish_reason: Option<&'static str>,
}

/// A piece of one answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    /// `stop`, `tool_calls` or `length` in the choice's last event.
    finish_reason: Option<&'static str>,
}

/// One answer to a prompt, or a piece of it.
#[derive(Serialize, ToSchema)]
pub(super) struct TextChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<TextLogprobs<'a>>,
    /// `stop` or `length`; in a stream, in the choice's last event.
    finish_reason: Option<&'static str>,
}

/// The model's message.
#[derive(Serialize, ToSchema)]
pub(super) struct AnswerMessage<'a> {
    role: &'static str,
    /// `null` where an answer ended in its reasoning, or has calls alone.
    content: Option<&'a str>,
    /// Reasoning of a model that reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    /// Calls of functions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<AnsweredCall<'a>>,
    #[schema(value_type = Option<String>)]
    refusal: Option<()>,
}

/// Addition of an event to the model's message.
#[derive(Serialize, ToSchema)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// Reasoning of a model that reasons.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    /// Parts of calls: the first of each has its id and name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<CallChunk<'a>>,
}

/// One choice of a whole answer.
#[derive(Debug, Clone)]
pub struct WholeChoice {
    pub text: String,
    /// Reasoning before the text; empty where there is none.
    pub reasoning: String,
    pub reason: FinishReason,
    /// Tokens of the text, where their log-probabilities were requested.
    pub tokens: Option<Vec<AnswerToken>>,
    /// Calls of functions.
    pub calls: Vec<WholeCall>,
}

/// One call of a whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeCall {
    pub name: String,
    /// Text of a JSON object.
    pub arguments: String,
}

/// A piece of one choice, for an event.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChoicePiece<'a> {
    pub text: &'a str,
    /// Reasoning before the text.
    pub reasoning: &'a str,
    /// Parts of calls after the text.
    pub calls: &'a [CallDelta],
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
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Length => "length",
    }
}

impl<'a> AnswerMessage<'a> {
    /// Writes a choice of the answer with this id.
    fn new(answer: &str, index: usize, choice: &'a WholeChoice) -> Self {
        let content = choice.text.as_str();
        let reasoning_content = (!choice.reasoning.is_empty()).then_some(choice.reasoning.as_str());
        let is_without = content.is_empty() && (reasoning_content.is_some() || !choice.calls.is_empty());
        let content = (!is_without).then_some(content);
        let calls = choice.calls.iter().enumerate();
        let tool_calls =
            calls.map(|(number, call)| AnsweredCall::new(answer, (index, number), call)).collect();
        Self { role: "assistant", content, reasoning_content, tool_calls, refusal: None }
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

    fn answer<C>(&self, is_event: bool, choices: Vec<C>) -> Answer<'_, C> {
        let Self { id, created, model, .. } = self;
        Answer { id, object: self.object(is_event), created: *created, model, choices, usage: None }
    }

    /// Builds the whole answer as one object.
    #[must_use]
    pub fn whole(&self, choices: &[WholeChoice], usage: Usage) -> Bytes {
        let usage = Some(Some(usage));
        let choices = choices.iter().enumerate();
        match self.endpoint {
            Endpoint::Chat => {
                let choices = choices.map(|(index, choice)| ChatChoice {
                    index,
                    message: AnswerMessage::new(&self.id, index, choice),
                    logprobs: choice.tokens.as_deref().map(ChatLogprobs::of),
                    finish_reason: Some(reason_word(choice.reason)),
                });
                json(&Answer { usage, ..self.answer(false, choices.collect()) })
            }
            _ => {
                let choices = choices.map(|(index, choice)| TextChoice {
                    index,
                    text: &choice.text,
                    logprobs: choice.tokens.as_deref().map(|tokens| TextLogprobs::of(tokens, 0)),
                    finish_reason: Some(reason_word(choice.reason)),
                });
                json(&Answer { usage, ..self.answer(false, choices.collect()) })
            }
        }
    }

    /// Builds one event of the choice with this index. `usage_follows` writes `"usage": null`, as OpenAI's
    /// events do when a last one will report it.
    #[must_use]
    pub fn event(&self, index: usize, piece: &ChoicePiece<'_>, usage_follows: bool) -> Bytes {
        let ChoicePiece { text, reasoning, calls, role, reason, tokens } = *piece;
        let (usage, finish_reason) = (usage_follows.then_some(None), reason.map(reason_word));
        match self.endpoint {
            Endpoint::Chat => {
                let delta = Delta {
                    role: role.then_some("assistant"),
                    content: (role || !text.is_empty()).then_some(text),
                    reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
                    tool_calls: calls.iter().map(|call| CallChunk::new(&self.id, index, call)).collect(),
                };
                let logprobs = tokens.map(|(tokens, _)| ChatLogprobs::of(tokens));
                let choice = ChunkChoice { index, delta, logprobs, finish_reason };
                event(&Answer { usage, ..self.answer(true, vec![choice]) })
            }
            _ => {
                let logprobs = tokens.map(|(tokens, offset)| TextLogprobs::of(tokens, offset));
                let choice = TextChoice { index, text, logprobs, finish_reason };
                event(&Answer { usage, ..self.answer(true, vec![choice]) })
            }
        }
    }

    /// Builds the event that reports the token counts.
    #[must_use]
    pub fn usage_event(&self, usage: Usage) -> Bytes {
        event(&Answer { usage: Some(Some(usage)), ..self.answer::<TextChoice<'_>>(true, Vec::new()) })
    }
}

/// Builds the event that reports why a stream ends early. No `[DONE]` follows it.
#[must_use]
pub fn error_event(error: &ApiError) -> Bytes {
    Bytes::from(format!("data: {}\n\n", error.body()))
}

/// The vectors of all inputs.
#[derive(Serialize, ToSchema)]
pub(super) struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: &'a str,
    usage: Usage,
}

/// The vector of one input.
#[derive(Serialize, ToSchema)]
pub(super) struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: EncodedVector,
}

/// A vector as numbers, or as little-endian f32 in base64.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum EncodedVector {
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

/// The tokens of a prompt.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenList<'a> {
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

/// The text of tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizedText<'a> {
    prompt: &'a str,
}

/// Builds the answer to `/detokenize`.
#[must_use]
pub fn text(prompt: &str) -> Bytes {
    json(&DetokenizedText { prompt })
}

/// The models that the client may call.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelObject<'a>>,
}

/// A model.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelObject<'a> {
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
        let (text, reasoning) = (text.to_owned(), String::new());
        WholeChoice { text, reasoning, reason, tokens: None, calls: Vec::new() }
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

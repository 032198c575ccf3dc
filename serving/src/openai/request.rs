//! Request parsing: OpenAI's embeddings, chat completions and completions, and requests to rerank, read field
//! by field.
//!
//! A field that is unknown, or known and not supported, is an error that names it; it is never ignored.
//! Fields that clients send by default are accepted with a value that has no effect.

use super::error::{ApiError, printable};
use super::json::{self, ObjectFields, invalid, is_empty, wrong_type};
use crate::batcher::{EmbedInput, Prompt, StopConditions};
use crate::engine::chat::Conversation;
use crate::engine::logits::LogitRules;
use message::messages;
use options::{LOGPROBS_MAX, chat_logprobs, rules, stop_conditions, template_arguments};
use protocol::error_code as code;
use serde_json::Value;
use structured::structured;
use tools::{tool_request, tools};

mod message;
mod options;
mod rerank;
mod structured;
mod tools;

pub use rerank::Rerank;
pub use structured::RequestedGrammar;
pub use tools::ToolRequest;

/// Longest model name, in bytes: valid names have at most 63; a longer one is not found, but repeated in the
/// error.
const MODEL_BYTES_MAX: usize = 256;
/// Longest `user`, in bytes; accepted for compatibility and never used.
const USER_BYTES_MAX: usize = 512;
/// Maximum answers of one request: of all its prompts together. OpenAI's limit on `n`.
const CHOICES_MAX: usize = 128;
/// Maximum inputs of one embedding request, as in OpenAI's API, and documents of one request to rerank.
const INPUTS_MAX: usize = 2048;
/// Above the length of every model's vectors; the model's own decides.
const DIMENSIONS_MAX: u64 = 1 << 20;
/// Default of `max_tokens` for a completion, as in OpenAI's API.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;
/// Above every context length; the model's own limit decides.
const TOKENS_MAX: u64 = 1 << 24;

/// API endpoint of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/rerank`.
    Rerank,
    /// `/tokenize`, as vLLM has it.
    Tokenize,
    /// `/detokenize`, as vLLM has it.
    Detokenize,
}

impl Endpoint {
    /// All endpoints.
    pub const ALL: [Self; 6] =
        [Self::Chat, Self::Completions, Self::Embeddings, Self::Rerank, Self::Tokenize, Self::Detokenize];

    /// Returns the path of the endpoint.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
        }
    }

    /// Returns OpenTelemetry's `gen_ai.operation.name`, which has none of its own for the last three.
    #[must_use]
    pub fn operation(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
        }
    }

    /// Returns the field that holds the input, as errors name it.
    #[must_use]
    pub fn input(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completions | Self::Tokenize => "prompt",
            Self::Embeddings => "input",
            Self::Rerank => "documents",
            Self::Detokenize => "tokens",
        }
    }
}

/// A fully parsed request.
#[derive(Debug, Clone, PartialEq)]
pub enum InferenceRequest {
    /// Text to a continuation.
    Generate(Box<Generate>),
    /// Text to embedding vectors.
    Embed(Embed),
    /// A query and documents to scores.
    Rerank(Rerank),
    /// A prompt to its tokens.
    Tokenize(Tokenize),
    /// Tokens to their text.
    Detokenize(Detokenize),
}

/// A chat completion or a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    /// Name of the model, repeated in the answer.
    pub model: String,
    /// Prompts to continue: one conversation, or 1 to 128 prompts.
    pub prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub choices: usize,
    /// Answers to generate for each prompt, of which those with the highest mean log-probability are sent; at
    /// least `choices`.
    pub candidates: usize,
    /// Whether the text of an answer begins with that of its prompt.
    pub echo: bool,
    /// Sampling temperature, 0 to 2; 1 when absent.
    pub temperature: f32,
    /// Nucleus sampling threshold, above 0 and at most 1; 1 when absent.
    pub top_p: f32,
    /// Alternatives to report with the log-probability of each token; `None` reports none of both.
    pub logprobs: Option<usize>,
    /// Rules that change the logits before a token is drawn.
    pub rules: LogitRules,
    /// Seed of the sampling; the server draws one when absent.
    pub seed: Option<u64>,
    /// Maximum tokens to generate; `None` uses the rest of the context.
    pub tokens_max: Option<usize>,
    pub stops: StopConditions,
    /// Grammar that the answer must follow, apart from calls.
    pub grammar: Option<RequestedGrammar>,
    /// Functions that the answer may call.
    pub tools: Option<ToolRequest>,
    /// Delivery of the answer.
    pub delivery: Delivery,
}

/// Delivery mode of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// One JSON object.
    Whole,
    /// Server-sent events.
    Stream {
        /// Whether a last event reports the token counts.
        include_usage: bool,
    },
}

/// An embedding request.
#[derive(Debug, Clone, PartialEq)]
pub struct Embed {
    /// Name of the model, repeated in the answer.
    pub model: String,
    /// Texts or tokens to embed.
    pub inputs: Vec<EmbedInput>,
    /// Encoding of the vectors in the answer.
    pub encoding: Encoding,
    /// Length to which the vectors are shortened; `None` keeps the model's own.
    pub dimensions: Option<usize>,
}

/// A request for the tokens of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenize {
    /// Name of the model.
    pub model: String,
    /// A text or a conversation, tokenized as a completion or a chat would be.
    pub prompt: Prompt,
    /// Whether the answer has the text of each token.
    pub with_texts: bool,
}

/// A request for the text of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Detokenize {
    /// Name of the model.
    pub model: String,
    pub tokens: Vec<u32>,
}

/// Encoding of vectors in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// An array of numbers.
    Float,
    /// Base64 of little-endian f32.
    Base64,
}

impl InferenceRequest {
    /// Parses a body sent to `endpoint`.
    ///
    /// # Errors
    /// Errors with status 400 that name the field.
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, ApiError> {
        let fields = json::parse(body)?;
        let generate = |generate| Self::Generate(Box::new(generate));
        match endpoint {
            Endpoint::Chat => parse_chat(fields).map(generate),
            Endpoint::Completions => parse_completion(fields).map(generate),
            Endpoint::Embeddings => parse_embedding(fields).map(Self::Embed),
            Endpoint::Rerank => rerank::parse(fields).map(Self::Rerank),
            Endpoint::Tokenize => parse_tokenize(fields).map(Self::Tokenize),
            Endpoint::Detokenize => parse_detokenize(fields).map(Self::Detokenize),
        }
    }

    /// Returns the requested model.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Generate(generate) => &generate.model,
            Self::Embed(embed) => &embed.model,
            Self::Rerank(rerank) => &rerank.model,
            Self::Tokenize(tokenize) => &tokenize.model,
            Self::Detokenize(detokenize) => &detokenize.model,
        }
    }

    /// Reports whether the answer is a stream of events.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        let Self::Generate(generate) = self else { return false };
        matches!(generate.delivery, Delivery::Stream { .. })
    }
}

fn parse_chat(mut fields: ObjectFields) -> Result<Generate, ApiError> {
    let model = model(&mut fields)?;
    let messages = messages(fields.require("messages")?)?;
    let arguments = template_arguments(&mut fields)?;
    let newer = fields.count("max_completion_tokens", TOKENS_MAX)?;
    let older = fields.count("max_tokens", TOKENS_MAX)?;
    if newer.is_some() && older.is_some() {
        let message = "`max_tokens` and `max_completion_tokens` are the same; give one of them".to_owned();
        return Err(ApiError::field(code::INVALID_VALUE, "max_tokens", message));
    }
    let logprobs = chat_logprobs(&mut fields)?;
    let tools = tool_request(&mut fields)?;
    fields.unsupported("functions", is_empty)?;
    fields.unsupported("function_call", |value| value == "none" || value == "auto")?;
    fields.unsupported("modalities", |value| value == &serde_json::json!(["text"]))?;
    for name in ["audio", "prediction", "reasoning_effort", "web_search_options", "verbosity"] {
        fields.unsupported(name, |_| false)?;
    }
    fields.unsupported("store", |value| value == false)?;
    fields.unsupported("metadata", is_empty)?;
    fields.unsupported("service_tier", |value| value == "auto" || value == "default")?;
    let grammar = structured(&mut fields, true)?;
    // The template does not show functions that may not be called.
    let shown = tools.as_ref().map(|request| request.tools.clone()).unwrap_or_default();
    let conversation = Conversation { messages, tools: shown, arguments, ..Conversation::default() };
    let prompts = vec![Prompt::Chat(conversation)];
    let kind = GenerateKind { prompts, echo: false, best_of: None, logprobs, grammar, tools };
    generate(fields, model, kind, newer.or(older))
}

fn parse_completion(mut fields: ObjectFields) -> Result<Generate, ApiError> {
    let model = model(&mut fields)?;
    let prompts = inputs(fields.require("prompt")?, "prompt", CHOICES_MAX)?;
    let prompts = prompts.into_iter().map(|input| match input {
        EmbedInput::Text(text) => Prompt::Text(text),
        EmbedInput::Tokens(tokens) => Prompt::Tokens(tokens),
    });
    let tokens_max = fields.count("max_tokens", TOKENS_MAX)?.unwrap_or(COMPLETION_TOKENS_DEFAULT);
    let echo = fields.flag("echo")?;
    let best_of = fields.count("best_of", CHOICES_MAX as u64)?.map(|count| count as usize);
    let logprobs = fields.whole("logprobs", 0, LOGPROBS_MAX)?.map(|count| count as usize);
    if echo && logprobs.is_some() {
        let message = "`logprobs` of a prompt that `echo` repeats are not served".to_owned();
        return Err(ApiError::field(code::UNSUPPORTED_PARAMETER, "logprobs", message));
    }
    fields.unsupported("suffix", |_| false)?;
    let (prompts, grammar) = (prompts.collect(), structured(&mut fields, false)?);
    let kind = GenerateKind { prompts, echo, best_of, logprobs, grammar, tools: None };
    generate(fields, model, kind, Some(tokens_max))
}

/// The fields of a generation that the two kinds of completion write differently.
struct GenerateKind {
    prompts: Vec<Prompt>,
    echo: bool,
    best_of: Option<usize>,
    logprobs: Option<usize>,
    grammar: Option<RequestedGrammar>,
    tools: Option<ToolRequest>,
}

/// Parses the fields that both kinds of completion share.
fn generate(
    mut fields: ObjectFields,
    model: String,
    kind: GenerateKind,
    tokens_max: Option<u64>,
) -> Result<Generate, ApiError> {
    let GenerateKind { prompts, echo, best_of, logprobs, grammar, tools } = kind;
    assert!(!prompts.is_empty(), "a request has a prompt");
    let choices = fields.count("n", CHOICES_MAX as u64)?.unwrap_or(1) as usize;
    let candidates = best_of.unwrap_or(choices);
    if candidates < choices {
        let problem = format!("is {candidates}, expected at least `n`, {choices}");
        return Err(invalid("best_of".to_owned(), problem));
    }
    if prompts.len() * candidates > CHOICES_MAX {
        let problem =
            format!("asks for {candidates} answers to {} prompts, at most {CHOICES_MAX}", prompts.len());
        let field = if best_of.is_some() { "best_of" } else { "n" };
        return Err(invalid(field.to_owned(), problem));
    }
    let delivery = delivery(&mut fields)?;
    if candidates > choices && delivery != Delivery::Whole {
        let problem = "above `n` cannot be streamed".to_owned();
        return Err(invalid("best_of".to_owned(), problem));
    }
    let rules = rules(&mut fields)?;
    ignore_user(&mut fields)?;
    // Zero probability means the most likely token, as in OpenAI's API.
    let top_p = fields.number("top_p", 0.0, 1.0)?.map_or(1.0, |p| (p as f32).max(f32::MIN_POSITIVE));
    let generate = Generate {
        model,
        prompts,
        choices,
        candidates,
        echo,
        temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0) as f32,
        top_p,
        logprobs,
        rules,
        seed: fields.integer("seed")?,
        tokens_max: tokens_max.map(|tokens| tokens as usize),
        stops: stop_conditions(&mut fields, tokens_max)?,
        grammar,
        tools,
        delivery,
    };
    fields.finish()?;
    if generate.stops.ignores_end && (generate.grammar.is_some() || generate.tools.is_some()) {
        let message = "`ignore_eos` beside a grammar or `tools` is not served: their end is the answer's";
        return Err(ApiError::field(code::UNSUPPORTED_PARAMETER, "ignore_eos", message));
    }
    Ok(generate)
}

fn parse_embedding(mut fields: ObjectFields) -> Result<Embed, ApiError> {
    let model = model(&mut fields)?;
    let inputs = inputs(fields.require("input")?, "input", INPUTS_MAX)?;
    let encoding = match fields.text("encoding_format", 16)?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            let problem = format!("is `{}`, expected `float` or `base64`", printable(other));
            return Err(invalid("encoding_format".to_owned(), problem));
        }
    };
    let dimensions = fields.count("dimensions", DIMENSIONS_MAX)?.map(|count| count as usize);
    ignore_user(&mut fields)?;
    fields.finish()?;
    Ok(Embed { model, inputs, encoding, dimensions })
}

/// Parses vLLM's request for tokens, of a prompt or of messages.
fn parse_tokenize(mut fields: ObjectFields) -> Result<Tokenize, ApiError> {
    let model = model(&mut fields)?;
    let prompt = match fields.take("messages") {
        Some(value) => {
            let messages = messages(value)?;
            let arguments = template_arguments(&mut fields)?;
            fields.unsupported("add_generation_prompt", |value| value == true)?;
            fields.unsupported("continue_final_message", |value| value == false)?;
            fields.unsupported("add_special_tokens", |value| value == false)?;
            let tools = tools(&mut fields)?;
            Prompt::Chat(Conversation { messages, tools, arguments, ..Conversation::default() })
        }
        None => {
            fields.unsupported("add_special_tokens", |value| value == true)?;
            match fields.require("prompt")? {
                Value::String(text) => Prompt::Text(text),
                other => return Err(wrong_type("prompt".to_owned(), &other, "a string")),
            }
        }
    };
    let with_texts = fields.flag("return_token_strs")?;
    fields.finish()?;
    Ok(Tokenize { model, prompt, with_texts })
}

/// Parses vLLM's request for the text of tokens.
fn parse_detokenize(mut fields: ObjectFields) -> Result<Detokenize, ApiError> {
    let model = model(&mut fields)?;
    let tokens = match fields.require("tokens")? {
        Value::Array(items) => tokens(&items, "tokens")?,
        other => return Err(wrong_type("tokens".to_owned(), &other, "an array of tokens")),
    };
    fields.finish()?;
    Ok(Detokenize { model, tokens })
}

fn model(fields: &mut ObjectFields) -> Result<String, ApiError> {
    let model = fields.text("model", MODEL_BYTES_MAX)?.filter(|model| !model.is_empty());
    model.ok_or_else(|| {
        ApiError::field(code::MISSING_PARAMETER, "model", "missing required parameter `model`")
    })
}

/// Accepts fields that clients send by default; they identify the client's own user and change no answer.
fn ignore_user(fields: &mut ObjectFields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.text(name, USER_BYTES_MAX)?;
    }
    Ok(())
}

fn delivery(fields: &mut ObjectFields) -> Result<Delivery, ApiError> {
    let stream = fields.flag("stream")?;
    let options = fields.take("stream_options");
    let Some(options) = options else {
        return Ok(if stream { Delivery::Stream { include_usage: false } } else { Delivery::Whole });
    };
    if !stream {
        let problem = "is allowed only when `stream` is true".to_owned();
        return Err(invalid("stream_options".to_owned(), problem));
    }
    let mut options = ObjectFields::of(options, "stream_options".to_owned())?;
    let include_usage = options.flag("include_usage")?;
    options.unsupported("include_obfuscation", |value| value == false)?;
    options.finish()?;
    Ok(Delivery::Stream { include_usage })
}

/// Parses one or several inputs: a text, texts, tokens, or arrays of tokens.
fn inputs(value: Value, path: &str, inputs_max: usize) -> Result<Vec<EmbedInput>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![EmbedInput::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type(path.to_owned(), &other, "a string or an array")),
    };
    if items.first().is_some_and(Value::is_number) {
        return Ok(vec![EmbedInput::Tokens(tokens(&items, path)?)]);
    }
    if items.is_empty() || items.len() > inputs_max {
        let problem = format!("has {} items, expected 1 to {inputs_max}", items.len());
        return Err(invalid(path.to_owned(), problem));
    }
    let read = |(index, item): (usize, Value)| match item {
        Value::String(text) => Ok(EmbedInput::Text(text)),
        Value::Array(items) => Ok(EmbedInput::Tokens(tokens(&items, &format!("{path}[{index}]"))?)),
        other => Err(wrong_type(format!("{path}[{index}]"), &other, "a string or an array of tokens")),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn tokens(items: &[Value], path: &str) -> Result<Vec<u32>, ApiError> {
    let read = |(index, item): (usize, &Value)| {
        let token = item.as_u64().and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| wrong_type(format!("{path}[{index}]"), item, "a token, a 32-bit integer"))
    };
    items.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests;

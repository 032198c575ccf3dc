//! Requests as the OpenAPI document describes them. The parser ([`super::request`]) reads their fields by
//! name; a test holds both to the same names.
#![expect(dead_code, reason = "these types are never values: the document is generated from them")]

use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A conversation to continue.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatRequest {
    /// Model, or service, to ask.
    model: String,
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<ChatMessageInput>,
    /// Variables of the model's chat template, as in vLLM.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// Maximum tokens of an answer; the older name of `max_completion_tokens`.
    #[schema(minimum = 1, maximum = 16_777_216)]
    max_tokens: Option<u64>,
    /// Maximum tokens of an answer; the rest of the context when absent.
    #[schema(minimum = 1, maximum = 16_777_216)]
    max_completion_tokens: Option<u64>,
    /// Whether the log-probability of each token is reported.
    logprobs: Option<bool>,
    /// Alternatives to report with each token; needs `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u64>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolInput>>,
    /// `auto` when absent.
    tool_choice: Option<ToolChoiceInput>,
    /// Not served: only an empty array is accepted.
    #[schema(max_items = 0)]
    functions: Option<Vec<Value>>,
    /// `none` or `auto`, which have no effect.
    function_call: Option<String>,
    /// Whether an answer may call several functions; true when absent. Held to where calls have a grammar.
    parallel_tool_calls: Option<bool>,
    /// Form of the answer.
    response_format: Option<ResponseFormatInput>,
    /// Not served: only `["text"]` is accepted.
    #[schema(example = json!(["text"]))]
    modalities: Option<Vec<String>>,
    /// `false`: no answer is stored.
    store: Option<bool>,
    /// Not served: only an empty object is accepted.
    metadata: Option<BTreeMap<String, String>>,
    /// `auto` or `default`, which have no effect.
    service_tier: Option<String>,
    #[serde(flatten)]
    options: GenerationOptions,
}

/// Prompts to continue.
#[derive(Serialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// Model, or service, to ask.
    model: String,
    prompt: TextInput,
    /// Maximum tokens of an answer; 16 when absent.
    #[schema(minimum = 1, maximum = 16_777_216)]
    max_tokens: Option<u64>,
    /// Whether the text of an answer begins with that of its prompt.
    echo: Option<bool>,
    /// Answers to generate for each prompt, at least `n`; those with the highest log-probability per token
    /// are sent. Above `n` not in a stream.
    #[schema(minimum = 1, maximum = 128)]
    best_of: Option<u64>,
    /// Alternatives to report with the log-probability of each token.
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<u64>,
    #[serde(flatten)]
    options: GenerationOptions,
}

/// Options of chats and completions alike. `user` and its like change no answer.
#[derive(Serialize, ToSchema)]
pub(super) struct GenerationOptions {
    /// Answers to each prompt.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u64>,
    /// Whether the answer is a stream of events.
    stream: Option<bool>,
    /// Options of a stream; needs `stream`.
    stream_options: Option<StreamOptions>,
    /// Strings before which an answer ends, at most 4.
    stop: Option<StopInput>,
    /// Tokens that end an answer, as in vLLM.
    #[schema(max_items = 128)]
    stop_token_ids: Option<Vec<u32>>,
    /// Whether the text has the string or the token that ended it, as in vLLM.
    include_stop_str_in_output: Option<bool>,
    /// Tokens before which an answer does not end, as in vLLM.
    #[schema(minimum = 0, maximum = 16_777_216)]
    min_tokens: Option<u64>,
    /// Seed of the sampling; a random one when absent.
    seed: Option<i64>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Most likely tokens to choose from, as in vLLM; -1 and 0 keep all.
    #[schema(minimum = -1, maximum = 16_777_216)]
    top_k: Option<i64>,
    /// Least share of the highest probability, as in vLLM.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Penalty on tokens of prompt and answer, as in vLLM.
    #[schema(minimum = 0.01, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// Numbers from -100 to 100 to add to the logits of tokens, at most 300.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// Whether the model's end token does not end an answer, as in vLLM.
    ignore_eos: Option<bool>,
    /// Grammar that the answer follows, as in vLLM.
    structured_outputs: Option<StructuredOptions>,
    #[schema(max_length = 512)]
    user: Option<String>,
    #[schema(max_length = 512)]
    safety_identifier: Option<String>,
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
}

/// Options of a stream.
#[derive(Serialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether a last event reports the token counts.
    include_usage: Option<bool>,
    /// `false`: events are not padded.
    include_obfuscation: Option<bool>,
}

/// Grammar of an answer; one of these fields.
#[derive(Serialize, ToSchema)]
pub(super) struct StructuredOptions {
    /// JSON schema, or its text.
    json: Option<Value>,
    /// `true`: any JSON object.
    json_object: Option<bool>,
    /// Expression that the whole text matches, in the syntax of Rust's `regex`.
    #[schema(min_length = 1, max_length = 131_072)]
    regex: Option<String>,
    /// Grammar in Lark's notation.
    #[schema(min_length = 1, max_length = 131_072)]
    grammar: Option<String>,
    /// Texts of which the answer is one.
    #[schema(min_items = 1, max_items = 1024)]
    choice: Option<Vec<String>>,
}

/// Form of the answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct ResponseFormatInput {
    /// `text`, `json_object` or `json_schema`.
    r#type: String,
    /// Schema, for `json_schema`.
    json_schema: Option<NamedSchemaInput>,
}

/// A named schema.
#[derive(Serialize, ToSchema)]
pub(super) struct NamedSchemaInput {
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    #[schema(max_length = 4096)]
    description: Option<String>,
    /// JSON schema; any object when absent.
    schema: Option<Value>,
    /// Whether a schema is refused of which a part can only be checked when the answer is whole.
    strict: Option<bool>,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
pub(super) struct ToolInput {
    /// `function`.
    r#type: Option<String>,
    function: FunctionInput,
}

/// Definition of a function.
#[derive(Serialize, ToSchema)]
pub(super) struct FunctionInput {
    #[schema(min_length = 1, max_length = 64)]
    name: String,
    #[schema(max_length = 16_384)]
    description: Option<String>,
    /// JSON schema of the arguments.
    parameters: Option<BTreeMap<String, Value>>,
    /// Whether arguments are held to the schema also where the model need not call.
    strict: Option<bool>,
}

/// `none`, `auto` or `required`, or the function to call.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ToolChoiceInput {
    Word(String),
    Named(NamedToolInput),
}

/// The function to call.
#[derive(Serialize, ToSchema)]
pub(super) struct NamedToolInput {
    /// `function`.
    r#type: Option<String>,
    function: FunctionNameInput,
}

/// Name of a function.
#[derive(Serialize, ToSchema)]
pub(super) struct FunctionNameInput {
    name: String,
}

/// One string or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum StopInput {
    One(String),
    Several(Vec<String>),
}

/// A text, tokens, or several of these.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TextInput {
    Text(String),
    Tokens(Vec<u32>),
    Several(Vec<ListedInput>),
}

/// A text, or tokens.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ListedInput {
    Text(String),
    Tokens(Vec<u32>),
}

/// A message of a conversation.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatMessageInput {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    role: String,
    /// Required, except of an assistant that calls tools.
    content: Option<MessageContent>,
    /// Name of the participant.
    #[schema(min_length = 1, max_length = 64)]
    name: Option<String>,
    /// Call that a `tool` message answers.
    #[schema(min_length = 1, max_length = 64)]
    tool_call_id: Option<String>,
    /// Reasoning of an assistant, as its answer had it.
    reasoning_content: Option<String>,
    /// Calls that an assistant made.
    #[schema(max_items = 128)]
    tool_calls: Option<Vec<ToolCallInput>>,
    /// Not served: only an empty array is accepted.
    #[schema(max_items = 0)]
    annotations: Option<Vec<Value>>,
}

/// A text, or parts that are all text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum MessageContent {
    Text(String),
    Parts(Vec<TextPart>),
}

/// A part of a message.
#[derive(Serialize, ToSchema)]
pub(super) struct TextPart {
    /// `text`.
    r#type: Option<String>,
    text: String,
}

/// A call of a function.
#[derive(Serialize, ToSchema)]
pub(super) struct ToolCallInput {
    id: String,
    /// `function`.
    r#type: Option<String>,
    function: CalledFunction,
}

/// The function of a call.
#[derive(Serialize, ToSchema)]
pub(super) struct CalledFunction {
    name: String,
    /// A JSON object as text.
    arguments: String,
}

/// Texts to embed.
#[derive(Serialize, ToSchema)]
pub(super) struct EmbeddingRequest {
    /// Model, or service, to ask.
    model: String,
    input: TextInput,
    /// `float` or `base64`.
    encoding_format: Option<String>,
    /// Length of the vectors, where the model may shorten them.
    #[schema(minimum = 1, maximum = 1_048_576)]
    dimensions: Option<u64>,
    #[schema(max_length = 512)]
    user: Option<String>,
    #[schema(max_length = 512)]
    safety_identifier: Option<String>,
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
}

/// Documents to rank by their answer to a query, as in Jina's and Cohere's API.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankRequest {
    /// Model, or service, to ask.
    model: String,
    query: String,
    #[schema(min_items = 1, max_items = 2048)]
    documents: Vec<RerankInput>,
    /// Maximum results; all documents when absent.
    #[schema(minimum = 1, maximum = 2048)]
    top_n: Option<u64>,
    /// Whether each result has its document; true when absent.
    return_documents: Option<bool>,
    #[schema(max_length = 512)]
    user: Option<String>,
    #[schema(max_length = 512)]
    safety_identifier: Option<String>,
    #[schema(max_length = 512)]
    prompt_cache_key: Option<String>,
}

/// A text, or an object with a text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum RerankInput {
    Text(String),
    Object(RerankInputObject),
}

/// A document with a text.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankInputObject {
    text: String,
}

/// A prompt to tokenize, of text or of messages, as in vLLM.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum TokenizeRequest {
    Prompt(TokenizePromptRequest),
    Chat(TokenizeChatRequest),
}

/// A text to tokenize as a completion's prompt.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizePromptRequest {
    /// Model, or service, to ask.
    model: String,
    prompt: String,
    /// `true`: the tokenizer adds its own tokens.
    add_special_tokens: Option<bool>,
    /// Whether the answer has the text of each token.
    return_token_strs: Option<bool>,
}

/// A conversation to tokenize.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizeChatRequest {
    /// Model, or service, to ask.
    model: String,
    #[schema(min_items = 1, max_items = 4096)]
    messages: Vec<ChatMessageInput>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// `true`: the answer's beginning is part of the prompt.
    add_generation_prompt: Option<bool>,
    /// `false`: the last message is whole.
    continue_final_message: Option<bool>,
    /// `false`: the template has all special tokens.
    add_special_tokens: Option<bool>,
    /// Functions that the prompt shows.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolInput>>,
    /// Whether the answer has the text of each token.
    return_token_strs: Option<bool>,
}

/// Tokens to turn into text, as in vLLM.
#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// Model, or service, to ask.
    model: String,
    tokens: Vec<u32>,
}

/// A refusal or a failure.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorAnswer {
    error: ErrorDetail,
}

/// Cause of a refusal.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    message: String,
    /// `invalid_request_error`, `requests` or `server_error`.
    r#type: String,
    /// Field of the request that is invalid.
    #[schema(required)]
    param: Option<String>,
    /// Stable code; `quorate explain` describes it.
    code: String,
}

//! The OpenAPI document of the inference API, generated from the types of its requests and answers.
//!
//! Gateways and workers on local files serve it at [`PATH`] to every client, also without a key: it is the
//! same for all circles.

use super::rerank::RerankAnswer;
use super::response::{
    Answer, ChatChoice, ChunkChoice, DetokenizedText, EmbeddingList, ModelList, ModelObject, TextChoice,
    TokenList,
};
use super::schema::{
    ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, ErrorAnswer, GenerationOptions,
    RerankRequest, TokenizeRequest,
};
use bytes::Bytes;
use std::sync::LazyLock;
use utoipa::openapi::schema::{AdditionalProperties, AllOf, Object, Schema};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder, SecurityRequirement};
use utoipa::{OpenApi as _, ToSchema};

/// Path of the document.
pub const PATH: &str = "/openapi.json";
/// Path of the list of models.
pub const MODELS_PATH: &str = "/v1/models";
/// Path of one model.
pub const MODEL_PATH: &str = "/v1/models/{name}";
/// Name of the bearer scheme in the document.
const BEARER: &str = "api_key";

/// Endings of the names of types that clients send.
const REQUEST_SUFFIXES: [&str; 6] =
    ["Request", "Options", "Input", "InputObject", "TextPart", "CalledFunction"];

/// Operations of the document.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Quorate inference API",
        description = "OpenAI's API, and what vLLM adds to it. Unknown fields are refused."
    ),
    paths(chat, completion, embeddings, rerank, tokenize, detokenize, list_models, get_model),
    components(schemas(ErrorAnswer))
)]
struct InferenceDocument;

#[utoipa::path(post, path = "/v1/chat/completions", tag = "generation",
    description = "Continues a conversation.",
    request_body(content = ChatRequest, examples(
        ("whole" = (value = json!({
            "model": "qwen3", "messages": [{ "role": "user", "content": "Name a prime." }],
        }))),
        ("stream" = (value = json!({
            "model": "qwen3", "stream": true, "stream_options": { "include_usage": true },
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": [{ "type": "text", "text": "Name a prime." }] },
            ],
            "temperature": 0.7, "top_p": 0.9, "seed": 7, "max_completion_tokens": 64, "stop": "\n",
            "chat_template_kwargs": { "enable_thinking": false },
        }))),
        ("schema" = (value = json!({
            "model": "qwen3", "messages": [{ "role": "user", "content": "Name a prime." }],
            "response_format": { "type": "json_schema", "json_schema": {
                "name": "prime", "strict": true, "schema": {
                    "type": "object", "properties": { "prime": { "type": "integer" } },
                    "required": ["prime"], "additionalProperties": false,
                },
            } },
        }))),
        ("tools" = (value = json!({
            "model": "qwen3", "messages": [{ "role": "user", "content": "Is it windy in Oslo?" }],
            "tools": [{ "type": "function", "function": {
                "name": "wind", "description": "Wind at a place, in knots.", "parameters": {
                    "type": "object", "properties": { "place": { "type": "string" } },
                    "required": ["place"],
                },
            } }],
            "tool_choice": { "type": "function", "function": { "name": "wind" } },
            "parallel_tool_calls": false,
        }))),
    )),
    responses((status = 200, description = "The answer, or its events until `[DONE]`.", content(
        (Answer<'static, ChatChoice<'static>> = "application/json"),
        (Answer<'static, ChunkChoice<'static>> = "text/event-stream"),
    ))))]
#[expect(dead_code, reason = "the document alone names it")]
fn chat() {}

#[utoipa::path(post, path = "/v1/completions", tag = "generation",
    description = "Continues prompts.",
    request_body(content = CompletionRequest, examples(
        ("text" = (value = json!({ "model": "tiny", "prompt": "The sea is", "max_tokens": 8 }))),
        ("several" = (value = json!({
            "model": "tiny", "prompt": ["One", [84, 119, 111]], "n": 2, "echo": true, "top_k": 40,
            "logit_bias": { "50": -100 }, "stop": ["\n", "."],
            "stop_token_ids": [2], "include_stop_str_in_output": true, "min_tokens": 2, "best_of": 4,
        }))),
        ("choice" = (value = json!({
            "model": "tiny", "prompt": "Is 7 a prime? ", "structured_outputs": { "choice": ["yes", "no"] },
        }))),
    )),
    responses((status = 200, description = "The answers, or their events until `[DONE]`.", content(
        (Answer<'static, TextChoice<'static>> = "application/json"),
        (Answer<'static, TextChoice<'static>> = "text/event-stream"),
    ))))]
#[expect(dead_code, reason = "the document alone names it")]
fn completion() {}

#[utoipa::path(post, path = "/v1/embeddings", tag = "embedding",
    description = "Computes a vector for each input.",
    request_body(content = EmbeddingRequest, examples(
        ("text" = (value = json!({ "model": "minilm", "input": "A harbour at dawn" }))),
        ("several" = (value = json!({
            "model": "minilm", "input": ["one", "two"], "encoding_format": "base64", "user": "u-1",
        }))),
    )),
    responses((status = 200, description = "One vector for each input.",
        body = EmbeddingList<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn embeddings() {}

#[utoipa::path(post, path = "/v1/rerank", tag = "embedding",
    description = "Ranks documents by their answer to a query.",
    request_body(content = RerankRequest, examples(
        ("texts" = (value = json!({
            "model": "reranker", "query": "When is high tide?",
            "documents": ["At noon.", { "text": "In the harbour." }], "top_n": 1,
        }))),
    )),
    responses((status = 200, description = "Documents, highest score first.",
        body = RerankAnswer<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn rerank() {}

#[utoipa::path(post, path = "/tokenize", tag = "tokens",
    description = "Returns the tokens of a prompt.",
    request_body(content = TokenizeRequest, examples(
        ("text" = (value = json!({ "model": "tiny", "prompt": "The sea", "return_token_strs": true }))),
        ("chat" = (value = json!({
            "model": "qwen3", "messages": [{ "role": "user", "content": "Name a prime." }],
        }))),
    )),
    responses((status = 200, description = "The tokens.", body = TokenList<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn tokenize() {}

#[utoipa::path(post, path = "/detokenize", tag = "tokens",
    description = "Returns the text of tokens, with that of special tokens.",
    request_body(content = DetokenizeRequest, examples(
        ("tokens" = (value = json!({ "model": "tiny", "tokens": [84, 104, 101] }))),
    )),
    responses((status = 200, description = "The text.", body = DetokenizedText<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn detokenize() {}

#[utoipa::path(get, path = "/v1/models", tag = "models",
    description = "Lists the models that the client may call.",
    responses((status = 200, description = "The models.", body = ModelList<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn list_models() {}

#[utoipa::path(get, path = "/v1/models/{name}", tag = "models",
    description = "Describes one model.",
    params(("name" = String, Path, description = "Name of the model or service.")),
    responses((status = 200, description = "The model.", body = ModelObject<'static>)))]
#[expect(dead_code, reason = "the document alone names it")]
fn get_model() {}

/// Joins the fields of a request's own part with the shared options, which have no required field.
fn with_options(parts: &AllOf, options: &Object) -> Object {
    let own = parts.items.iter().find_map(|part| match part {
        RefOr::T(Schema::Object(own)) => Some(own.clone()),
        _ => None,
    });
    let mut own = own.expect("a request has fields of its own");
    own.description = own.description.or_else(|| parts.description.clone());
    own.properties.extend(options.properties.clone());
    own
}

/// Builds the document. Each operation may answer with an error; at a gateway each needs a key.
fn document(has_keys: bool) -> OpenApi {
    let mut document = InferenceDocument::openapi();
    let components = document.components.get_or_insert_with(Default::default);
    // The options that chats and completions share become fields of both.
    let options = components.schemas.remove(&*GenerationOptions::name());
    let Some(RefOr::T(Schema::Object(options))) = options else { unreachable!("a struct of fields") };
    for (name, schema) in &mut components.schemas {
        let RefOr::T(schema) = schema else { continue };
        if let Schema::AllOf(parts) = schema
            && name.ends_with("Request")
        {
            *schema = Schema::Object(with_options(parts, &options));
        }
        // The parser refuses unknown fields; answers may get more in a later version.
        if let Schema::Object(object) = schema
            && REQUEST_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
    if has_keys {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
        document.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
    }
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            let schema = Ref::from_schema_name(ErrorAnswer::name());
            let response = ResponseBuilder::new()
                .description("Refused or failed; `quorate explain` describes each code.")
                .content("application/json", ContentBuilder::new().schema(Some(schema)).build())
                .build();
            operation.responses.responses.insert("default".into(), RefOr::T(response));
        }
    }
    document
}

/// Returns the document as JSON: that of a gateway, whose clients have keys, or of a worker on local files.
#[must_use]
pub fn openapi(has_keys: bool) -> Bytes {
    static WRITTEN: LazyLock<[Bytes; 2]> = LazyLock::new(|| {
        [false, true].map(|has_keys| document(has_keys).to_json().expect("a document is JSON").into())
    });
    WRITTEN[usize::from(has_keys)].clone()
}

#[cfg(test)]
pub(super) mod tests;

//! Tests of the document: it has every route, its requests are those of the parser, its answers are real.

use super::super::error::ApiError;
use super::super::json::TAKEN;
use super::super::request::{Endpoint, InferenceRequest};
use super::super::response::{ChoicePiece, Label, Usage, WholeCall, WholeChoice};
use super::super::{embeddings as embeddings_answer, model, models, rerank as rerank_answer, text, tokens};
use super::*;
use crate::batcher::{AnswerToken, FinishReason, TokenPiece};
use crate::engine::tools::CallDelta;
use crate::openai::Encoding;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Fields that the parser accepts as `null` alone, which need no description.
const NULL_ONLY: [&str; 14] = [
    "audio",
    "prediction",
    "reasoning_effort",
    "web_search_options",
    "verbosity",
    "suffix",
    "rank_fields",
    "max_tokens_per_doc",
    "max_chunks_per_doc",
    "truncate_prompt_tokens",
    "messages[0].refusal",
    "messages[0].audio",
    "messages[0].function_call",
    "messages",
];

fn written(has_keys: bool) -> Value {
    serde_json::from_slice(&openapi(has_keys)).expect("JSON")
}

/// Returns the paths that the document describes.
pub(crate) fn openapi_paths() -> BTreeSet<String> {
    let document = written(true);
    document["paths"].as_object().expect("paths").keys().cloned().collect()
}

/// Returns the paths of a router, which it shows in its debug output alone.
pub(crate) fn routes_of<S>(router: &axum::Router<S>) -> BTreeSet<String> {
    let shown = format!("{router:?}");
    let quoted = shown.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/'));
    // The fallback is shown as routes of its own.
    let served = quoted.filter(|path| *path != "/" && !path.contains("__private"));
    let paths: BTreeSet<String> = served.map(ToOwned::to_owned).collect();
    assert!(paths.contains("/v1/embeddings"), "the router shows its paths: {shown}");
    paths
}

/// Follows a reference within the document.
fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).expect("a schema of the document"),
        None => schema,
    }
}

/// Returns the reason for which a value does not fit a schema.
fn mismatch(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let schema = resolve(document, schema);
    for word in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[word].as_array() {
            let found = choices.iter().map(|choice| mismatch(document, choice, value));
            let problems: Vec<Option<String>> = found.collect();
            return if problems.contains(&None) { None } else { Some(format!("{value}: {problems:?}")) };
        }
    }
    if let Some(parts) = schema["allOf"].as_array() {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for part in parts.iter().map(|part| resolve(document, part)) {
            properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend(part["required"].as_array().cloned().unwrap_or_default());
        }
        let merged = json!({ "type": "object", "properties": properties, "required": required });
        return mismatch(document, &merged, value);
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let fits = kinds.iter().any(|kind| match *kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown kind {other}"),
    });
    if !fits {
        return Some(format!("{value} is none of {kinds:?}"));
    }
    match value {
        Value::Array(items) => items.iter().find_map(|item| mismatch(document, &schema["items"], item)),
        Value::Object(fields) => object_mismatch(document, schema, fields),
        _ => None,
    }
}

fn object_mismatch(document: &Value, schema: &Value, fields: &Map<String, Value>) -> Option<String> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(missing) = required.into_iter().find(|name| !fields.contains_key(*name)) {
        return Some(format!("`{missing}` is missing"));
    }
    let properties = schema["properties"].as_object()?;
    fields.iter().find_map(|(name, value)| match properties.get(name) {
        Some(schema) => mismatch(document, schema, value).map(|problem| format!("{name}: {problem}")),
        None => Some(format!("`{name}` is not described")),
    })
}

/// Returns the names of the fields of a schema of objects, of all its alternatives and parts.
fn properties(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolve(document, schema);
    let parts = ["oneOf", "anyOf", "allOf"].iter().filter_map(|word| schema[word].as_array()).flatten();
    let own = schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned();
    parts.flat_map(|part| properties(document, part)).chain(own).collect()
}

fn request_of(document: &Value, endpoint: Endpoint) -> Value {
    document["paths"][endpoint.path()]["post"]["requestBody"]["content"]["application/json"].clone()
}

/// Returns the schema of a successful answer.
fn answer_schema(document: &Value, method: &str, path: &str, kind: &str) -> Value {
    document["paths"][path][method]["responses"]["200"]["content"][kind]["schema"].clone()
}

#[test]
fn every_documented_example_is_accepted_by_the_parser() {
    let document = written(true);
    for endpoint in Endpoint::ALL {
        let request = request_of(&document, endpoint);
        let examples = request["examples"].as_object().expect("examples");
        assert!(!examples.is_empty(), "{endpoint:?}");
        for (name, example) in examples {
            let body = example["value"].to_string();
            let parsed = InferenceRequest::parse(endpoint, body.as_bytes());
            assert!(parsed.is_ok(), "{endpoint:?} {name}: {parsed:?}");
            let problem = mismatch(&document, &request["schema"], &example["value"]);
            assert_eq!(problem, None, "{endpoint:?} {name}");
        }
    }
}

#[test]
fn the_document_and_the_parser_know_the_same_fields() {
    let document = written(true);
    let call = json!({ "id": "c", "function": { "name": "f", "arguments": "{}" } });
    let message = json!({
        "role": "assistant", "content": [{ "text": "a" }], "tool_calls": [call],
    });
    let tool = json!({ "function": { "name": "f" } });
    let choice = json!({ "function": { "name": "f" } });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "s" } });
    for endpoint in Endpoint::ALL {
        TAKEN.take();
        let options = json!({ "include_usage": true });
        let base = match endpoint {
            Endpoint::Chat => json!({
                "messages": [message], "stream": true, "stream_options": options, "tools": [tool],
                "tool_choice": choice, "response_format": format,
            }),
            Endpoint::Completions => json!({ "prompt": "a" }),
            Endpoint::Embeddings => json!({ "input": "a" }),
            Endpoint::Rerank => json!({ "query": "a", "documents": [{ "text": "a" }] }),
            Endpoint::Tokenize => json!({ "messages": [message] }),
            Endpoint::Detokenize => json!({ "tokens": [1] }),
        };
        let mut bodies = vec![base];
        if endpoint == Endpoint::Tokenize {
            bodies.push(json!({ "prompt": "a" }));
        }
        if endpoint == Endpoint::Completions {
            bodies.push(json!({ "prompt": "a", "structured_outputs": { "regex": "a" } }));
        }
        for mut body in bodies {
            body["model"] = json!("m");
            let parsed = InferenceRequest::parse(endpoint, body.to_string().as_bytes());
            assert!(parsed.is_ok(), "{endpoint:?}: {parsed:?}");
        }
        let taken = TAKEN.take();
        let schema = &request_of(&document, endpoint)["schema"];
        let own = |prefix: &str| -> BTreeSet<String> {
            let names = taken.iter().filter(|name| !NULL_ONLY.contains(&name.as_str()));
            let names = names.filter_map(|name| name.strip_prefix(prefix));
            names.filter(|name| !name.contains('.')).map(ToOwned::to_owned).collect()
        };
        let mut described = properties(&document, schema);
        described.remove("messages");
        assert_eq!(own(""), described, "{endpoint:?}");
        if endpoint == Endpoint::Completions {
            let schema = &document["components"]["schemas"]["StructuredOptions"];
            assert_eq!(own("structured_outputs."), properties(&document, schema));
        }
        if endpoint == Endpoint::Chat {
            for (prefix, name) in [
                ("messages[0].", "ChatMessageInput"),
                ("messages[0].content[0].", "TextPart"),
                ("messages[0].tool_calls[0].", "ToolCallInput"),
                ("messages[0].tool_calls[0].function.", "CalledFunction"),
                ("stream_options.", "StreamOptions"),
                ("tools[0].", "ToolInput"),
                ("tools[0].function.", "FunctionInput"),
                ("tool_choice.", "NamedToolInput"),
                ("tool_choice.function.", "FunctionNameInput"),
                ("response_format.", "ResponseFormatInput"),
                ("response_format.json_schema.", "NamedSchemaInput"),
            ] {
                let schema = &document["components"]["schemas"][name];
                assert_eq!(own(prefix), properties(&document, schema), "{name}");
            }
        }
    }
}

#[test]
fn answers_are_as_described() {
    let document = written(true);
    let check = |method: &str, path: &str, kind: &str, bytes: &Bytes| {
        let text = std::str::from_utf8(bytes).expect("UTF-8").trim_start_matches("data: ");
        let value: Value = serde_json::from_str(text).expect("JSON");
        let schema = answer_schema(&document, method, path, kind);
        assert!(!schema.is_null(), "{path}");
        assert_eq!(mismatch(&document, &schema, &value), None, "{path}: {value}");
    };
    let piece = TokenPiece { bytes: b"a".to_vec() };
    let token = AnswerToken { piece: piece.clone(), logprob: -0.5, top: vec![(piece, -0.5)] };
    let usage = Usage::generated(1, 2);
    let call = WholeCall { name: "f".into(), arguments: "{}".into() };
    let part = CallDelta { index: 0, name: Some("f".into()), arguments: "{".into() };
    let more = CallDelta { index: 0, name: None, arguments: "}".into() };
    for endpoint in [Endpoint::Chat, Endpoint::Completions] {
        let label = Label { id: "x-1".into(), created: 5, model: "m".into(), endpoint };
        for tokens in [None, Some(vec![token.clone()])] {
            for (text, reasoning) in [("a", ""), ("a", "b"), ("", "b")] {
                let (text, reasoning, reason) = (text.into(), reasoning.into(), FinishReason::Stop);
                let (tokens, calls) = (tokens.clone(), vec![call.clone()]);
                let choice = WholeChoice { text, reasoning, reason, tokens, calls };
                check("post", endpoint.path(), "application/json", &label.whole(&[choice], usage));
            }
            let tokens = tokens.as_deref().map(|tokens| (tokens, 0));
            let reason = Some(FinishReason::Length);
            let calls = &[part.clone(), more.clone()];
            let piece = ChoicePiece { text: "a", reasoning: "b", calls, role: true, reason, tokens };
            let event = label.event(0, &piece, true);
            check("post", endpoint.path(), "text/event-stream", &event);
            check("post", endpoint.path(), "text/event-stream", &label.usage_event(usage));
        }
    }
    for encoding in [Encoding::Float, Encoding::Base64] {
        let bytes = embeddings_answer("m", vec![vec![1.0]], encoding, Usage::embedded(1));
        check("post", "/v1/embeddings", "application/json", &bytes);
    }
    let documents = ["a".to_owned()];
    let ranked = rerank_answer(("r", "m"), &[0.5], Some(&documents), None, Usage::embedded(1));
    check("post", "/v1/rerank", "application/json", &ranked);
    check("post", "/tokenize", "application/json", &tokens(&[1], Some(vec!["a".into()]), 9));
    check("post", "/detokenize", "application/json", &text("a"));
    check("get", MODELS_PATH, "application/json", &models([("a", None), ("b", Some(9))]));
    check("get", MODEL_PATH, "application/json", &model("a", Some(9)));
    let refusal = ApiError::model_not_found("m").body();
    let schema = &document["components"]["schemas"]["ErrorAnswer"];
    assert_eq!(mismatch(&document, schema, &refusal), None);
    // The control: the check finds what is wrong.
    let wrong = json!({ "error": { "message": "m", "type": "t", "code": 5, "param": null } });
    assert!(mismatch(&document, schema, &wrong).is_some_and(|problem| problem.contains("code")));
}

#[test]
fn unknown_fields_are_refused_by_the_document_too() {
    let document = written(false);
    for name in [
        "ChatRequest",
        "CompletionRequest",
        "ChatMessageInput",
        "StreamOptions",
        "EmbeddingRequest",
        "RerankRequest",
        "TokenizePromptRequest",
        "TokenizeChatRequest",
    ] {
        assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
    }
}

#[test]
fn keys_are_asked_for_by_gateways_alone() {
    assert_eq!(written(true)["security"], json!([{ BEARER: [] }]));
    assert_eq!(written(false)["security"], Value::Null);
}

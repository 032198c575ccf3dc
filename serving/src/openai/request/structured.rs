//! The form of an answer: OpenAI's `response_format`, and vLLM's `structured_outputs`.

use super::super::error::{ApiError, printable};
use super::super::json::{ObjectFields, invalid, wrong_type};
use super::message::checked_name;
use crate::engine::grammar::{GRAMMAR_BYTES_MAX, GrammarSource};
use protocol::error_code as code;
use serde_json::Value;

/// Maximum texts of a choice.
const CHOICE_TEXTS_MAX: usize = 1024;
/// Longest description of a schema, in bytes; it changes nothing.
const DESCRIPTION_BYTES_MAX: usize = 4096;

/// A grammar, and the field of the request that has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestedGrammar {
    pub source: GrammarSource,
    pub field: &'static str,
}

/// Takes `structured_outputs`, and `response_format` of a chat.
pub(super) fn structured(
    fields: &mut ObjectFields,
    is_chat: bool,
) -> Result<Option<RequestedGrammar>, ApiError> {
    let format = if is_chat { response_format(fields)? } else { None };
    let outputs = structured_outputs(fields)?;
    if format.is_some() && outputs.is_some() {
        let problem = "and `response_format` are both the form of the answer; give one of them".to_owned();
        return Err(invalid("structured_outputs".to_owned(), problem));
    }
    let format = format.map(|source| RequestedGrammar { source, field: "response_format" });
    Ok(format.or(outputs.map(|source| RequestedGrammar { source, field: "structured_outputs" })))
}

fn response_format(fields: &mut ObjectFields) -> Result<Option<GrammarSource>, ApiError> {
    let path = "response_format";
    let Some(value) = fields.take(path) else { return Ok(None) };
    let mut format = ObjectFields::of(value, path.to_owned())?;
    let kind = match format.require("type")? {
        Value::String(kind) => kind,
        other => return Err(wrong_type(format.path("type"), &other, "a string")),
    };
    let source = match kind.as_str() {
        "text" => None,
        "json_object" => Some(GrammarSource::JsonObject),
        "json_schema" => Some(json_schema(&mut format)?),
        other => {
            let problem =
                format!("is `{}`, expected `text`, `json_object` or `json_schema`", printable(other));
            return Err(invalid(format.path("type"), problem));
        }
    };
    format.finish()?;
    Ok(source)
}

/// Takes the named schema of `response_format`.
fn json_schema(format: &mut ObjectFields) -> Result<GrammarSource, ApiError> {
    let path = format.path("json_schema");
    let mut schema = ObjectFields::of(format.require("json_schema")?, path)?;
    let name = schema.path("name");
    match schema.require("name")? {
        Value::String(text) => checked_name(text, name)?,
        other => return Err(wrong_type(name, &other, "a string")),
    };
    schema.text("description", DESCRIPTION_BYTES_MAX)?;
    let is_strict = schema.flag("strict")?;
    let path = schema.path("schema");
    let source = match schema.take("schema") {
        None => GrammarSource::JsonObject,
        Some(value) => GrammarSource::Schema { schema: checked_schema(value, path)?, is_strict },
    };
    schema.finish()?;
    Ok(source)
}

/// Checks that a value is a schema of permitted size.
pub(super) fn checked_schema(value: Value, path: String) -> Result<Value, ApiError> {
    if !value.is_object() && !value.is_boolean() {
        return Err(wrong_type(path, &value, "a schema, an object or a boolean"));
    }
    check_bytes(value.to_string().len(), path)?;
    Ok(value)
}

/// Refuses what is larger than a grammar may be.
pub(super) fn check_bytes(bytes: usize, path: String) -> Result<(), ApiError> {
    if bytes <= GRAMMAR_BYTES_MAX {
        return Ok(());
    }
    let message = format!("`{path}` has {bytes} bytes, at most {GRAMMAR_BYTES_MAX}");
    Err(ApiError::field(code::GRAMMAR_TOO_LARGE, path, message))
}

fn structured_outputs(fields: &mut ObjectFields) -> Result<Option<GrammarSource>, ApiError> {
    let path = "structured_outputs";
    let Some(value) = fields.take(path) else { return Ok(None) };
    let mut outputs = ObjectFields::of(value, path.to_owned())?;
    let mut sources = Vec::new();
    let json = outputs.path("json");
    match outputs.take("json") {
        None => {}
        Some(Value::String(text)) => {
            check_bytes(text.len(), json.clone())?;
            let schema = serde_json::from_str(&text)
                .map_err(|error| invalid(json.clone(), format!("is not JSON: {error}")))?;
            sources.push(GrammarSource::Schema { schema: checked_schema(schema, json)?, is_strict: false });
        }
        Some(value) => {
            sources.push(GrammarSource::Schema { schema: checked_schema(value, json)?, is_strict: false });
        }
    }
    if outputs.flag("json_object")? {
        sources.push(GrammarSource::JsonObject);
    }
    sources.extend(text_of(&mut outputs, "regex")?.map(GrammarSource::Regex));
    sources.extend(text_of(&mut outputs, "grammar")?.map(GrammarSource::Lark));
    sources.extend(choice(&mut outputs)?.map(GrammarSource::Choice));
    outputs.finish()?;
    match <[GrammarSource; 1]>::try_from(sources) {
        Ok([source]) => Ok(Some(source)),
        Err(several) => {
            let names = "`json`, `json_object`, `regex`, `grammar` and `choice`";
            let problem = format!("has {} of {names}, expected one", several.len());
            Err(invalid(path.to_owned(), problem))
        }
    }
}

/// Takes a text of permitted size that is not empty.
fn text_of(outputs: &mut ObjectFields, name: &str) -> Result<Option<String>, ApiError> {
    let path = outputs.path(name);
    match outputs.take(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Err(invalid(path, "is empty".to_owned())),
        Some(Value::String(text)) => {
            check_bytes(text.len(), path)?;
            Ok(Some(text))
        }
        Some(other) => Err(wrong_type(path, &other, "a string")),
    }
}

fn choice(outputs: &mut ObjectFields) -> Result<Option<Vec<String>>, ApiError> {
    let path = outputs.path("choice");
    let items = match outputs.take("choice") {
        None => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(path, &other, "an array of strings")),
    };
    if !(1..=CHOICE_TEXTS_MAX).contains(&items.len()) {
        let problem = format!("has {} texts, expected 1 to {CHOICE_TEXTS_MAX}", items.len());
        return Err(invalid(path, problem));
    }
    let read = |(index, item): (usize, Value)| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        Value::String(_) => Err(invalid(format!("{path}[{index}]"), "is empty".to_owned())),
        other => Err(wrong_type(format!("{path}[{index}]"), &other, "a string")),
    };
    let texts: Vec<String> = items.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    check_bytes(texts.iter().map(String::len).sum(), path)?;
    Ok(Some(texts))
}

//! Messages of a conversation: who may write what, field by field.

use super::super::error::{ApiError, printable};
use super::super::json::{ObjectFields, invalid, is_empty, wrong_type};
use crate::engine::chat::{ChatMessage, ToolCall};
use serde_json::Value;

/// Maximum messages of a conversation.
const MESSAGES_MAX: usize = 4096;
/// Maximum tool calls of one message.
const TOOL_CALLS_MAX: usize = 128;
/// Longest name of a participant or function, and longest identifier of a call, in bytes; OpenAI's limit on
/// names.
const NAME_BYTES_MAX: usize = 64;
/// Maximum bytes of the arguments of all calls: their values take up to a hundred times as much memory.
const ARGUMENTS_BYTES_MAX: usize = 256 * 1024;

/// Parses the messages of a conversation.
///
/// # Errors
/// Errors with status 400 that name the field.
pub(super) fn messages(value: Value) -> Result<Vec<ChatMessage>, ApiError> {
    let path = || "messages".to_owned();
    let Value::Array(messages) = value else {
        return Err(wrong_type(path(), &value, "an array"));
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let problem = format!("has {} messages, expected 1 to {MESSAGES_MAX}", messages.len());
        return Err(invalid(path(), problem));
    }
    let mut bytes_left = ARGUMENTS_BYTES_MAX;
    let read =
        |(index, value)| message(ObjectFields::of(value, format!("messages[{index}]"))?, &mut bytes_left);
    messages.into_iter().enumerate().map(read).collect()
}

fn message(mut fields: ObjectFields, bytes_left: &mut usize) -> Result<ChatMessage, ApiError> {
    let role = match fields.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(fields.path("role"), &other, "a string")),
    };
    let role = match role.as_str() {
        "system" | "user" | "assistant" | "tool" => role,
        // OpenAI's newer name for the role that templates call system.
        "developer" => "system".to_owned(),
        other => {
            let problem =
                format!("is `{}`, expected system, developer, user, assistant or tool", printable(other));
            return Err(invalid(fields.path("role"), problem));
        }
    };
    let tool_calls = if role == "assistant" { tool_calls(&mut fields, bytes_left)? } else { Vec::new() };
    let reasoning_content = if role == "assistant" { reasoning(&mut fields)? } else { None };
    let content = match fields.take("content") {
        Some(value) => Some(text_of(value, &fields.path("content"))?),
        // An answer that ended in its reasoning has none; templates expect a text.
        None if reasoning_content.is_some() => Some(String::new()),
        // An assistant that calls tools need not say anything.
        None if !tool_calls.is_empty() => None,
        None => {
            fields.require("content")?;
            None
        }
    };
    let tool_call_id = if role == "tool" {
        let path = fields.path("tool_call_id");
        match fields.require("tool_call_id")? {
            Value::String(id) => Some(checked_name(id, path)?),
            other => return Err(wrong_type(path, &other, "a string")),
        }
    } else {
        None
    };
    let name = fields.text("name", NAME_BYTES_MAX)?;
    let name = name.map(|name| checked_name(name, fields.path("name"))).transpose()?;
    for name in ["refusal", "audio", "function_call", "tool_call_id", "reasoning_content"] {
        fields.unsupported(name, |_| false)?;
    }
    for name in ["tool_calls", "annotations"] {
        fields.unsupported(name, is_empty)?;
    }
    fields.finish()?;
    Ok(ChatMessage { role, content, reasoning_content, name, tool_call_id, tool_calls })
}

/// Takes the reasoning of an assistant, as its answer had it.
fn reasoning(fields: &mut ObjectFields) -> Result<Option<String>, ApiError> {
    match fields.take("reasoning_content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(fields.path("reasoning_content"), &other, "a string")),
    }
}

/// Takes the calls that an assistant's message made. Their arguments may take `bytes_left`.
fn tool_calls(fields: &mut ObjectFields, bytes_left: &mut usize) -> Result<Vec<ToolCall>, ApiError> {
    let path = fields.path("tool_calls");
    let calls = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(wrong_type(path, &other, "an array")),
    };
    if calls.len() > TOOL_CALLS_MAX {
        return Err(invalid(path, format!("has {} calls, at most {TOOL_CALLS_MAX}", calls.len())));
    }
    let read = |(index, call)| tool_call(ObjectFields::of(call, format!("{path}[{index}]"))?, bytes_left);
    calls.into_iter().enumerate().map(read).collect()
}

fn tool_call(mut fields: ObjectFields, bytes_left: &mut usize) -> Result<ToolCall, ApiError> {
    fields.unsupported("type", |value| value == "function")?;
    let id = required_name(&mut fields, "id")?;
    let path = fields.path("function");
    let mut function = ObjectFields::of(fields.require("function")?, path)?;
    fields.finish()?;
    let name = required_name(&mut function, "name")?;
    let path = function.path("arguments");
    let arguments = match function.require("arguments")? {
        Value::String(text) => text,
        other => return Err(wrong_type(path, &other, "a string of JSON")),
    };
    function.finish()?;
    *bytes_left = bytes_left.checked_sub(arguments.len()).ok_or_else(|| {
        let problem = format!("brings all arguments above {ARGUMENTS_BYTES_MAX} bytes");
        invalid(path.clone(), problem)
    })?;
    // Templates write the arguments in the model's own way, so they get an object.
    let arguments = match serde_json::from_str(&arguments) {
        Ok(Value::Object(arguments)) => Value::Object(arguments),
        Ok(other) => return Err(wrong_type(path, &other, "the text of a JSON object")),
        Err(error) => return Err(invalid(path, format!("is not JSON: {error}"))),
    };
    Ok(ToolCall { id, name, arguments })
}

fn required_name(fields: &mut ObjectFields, name: &str) -> Result<String, ApiError> {
    let path = fields.path(name);
    match fields.require(name)? {
        Value::String(text) => checked_name(text, path),
        other => Err(wrong_type(path, &other, "a string")),
    }
}

/// Checks a name or an identifier: letters, digits, `_`, `-`, `.` and `:`. Templates put names beside their
/// special tokens.
pub(super) fn checked_name(name: String, path: String) -> Result<String, ApiError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':');
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_allowed) {
        let problem = format!("must have 1 to {NAME_BYTES_MAX} letters, digits, `_`, `-`, `.` or `:`");
        return Err(invalid(path, problem));
    }
    Ok(name)
}

/// Returns the text of a message: a text, or parts that are all text.
fn text_of(value: Value, path: &str) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path.to_owned(), &other, "a string or an array of parts")),
    };
    let mut content = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = ObjectFields::of(part, format!("{path}[{index}]"))?;
        part.unsupported("type", |value| value == "text")?;
        match part.require("text")? {
            Value::String(text) => content.push_str(&text),
            other => return Err(wrong_type(part.path("text"), &other, "a string")),
        }
        part.finish()?;
    }
    Ok(content)
}

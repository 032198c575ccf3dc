//! Functions that a model may call: `tools`, `tool_choice` and `parallel_tool_calls`.

use super::super::error::{ApiError, printable};
use super::super::json::{ObjectFields, invalid, wrong_type};
use super::message::checked_name;
use super::structured::{check_bytes, checked_schema};
use crate::engine::tools::{ToolChoice, ToolDefinition};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Maximum functions of a request, as in OpenAI's API.
const TOOLS_MAX: usize = 128;
/// Longest description of a function, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;

/// Functions of a request, and how they may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolRequest {
    /// At least one.
    pub tools: Vec<ToolDefinition>,
    pub choice: ToolChoice,
    /// Whether an answer may call several.
    pub is_parallel: bool,
}

/// Takes the functions; `None` where there is none, or none may be called.
pub(super) fn tool_request(fields: &mut ObjectFields) -> Result<Option<ToolRequest>, ApiError> {
    let tools = tools(fields)?;
    let choice = choice(fields, &tools)?;
    let is_parallel = match fields.take("parallel_tool_calls") {
        None => true,
        Some(Value::Bool(is_parallel)) => is_parallel,
        Some(other) => return Err(wrong_type("parallel_tool_calls".to_owned(), &other, "a boolean")),
    };
    match choice {
        Some(choice) if !tools.is_empty() => Ok(Some(ToolRequest { tools, choice, is_parallel })),
        _ => Ok(None),
    }
}

/// Takes the definitions of functions.
pub(super) fn tools(fields: &mut ObjectFields) -> Result<Vec<ToolDefinition>, ApiError> {
    let path = || "tools".to_owned();
    let items = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type(path(), &other, "an array")),
    };
    if items.len() > TOOLS_MAX {
        return Err(invalid(path(), format!("has {} functions, at most {TOOLS_MAX}", items.len())));
    }
    check_bytes(items.iter().map(|item| item.to_string().len()).sum(), path())?;
    let read = |(index, item)| tool(ObjectFields::of(item, format!("tools[{index}]"))?);
    let tools: Vec<ToolDefinition> = items.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(again) = tools.iter().find(|tool| !names.insert(&tool.name)) {
        return Err(invalid(path(), format!("has two functions of the name `{}`", again.name)));
    }
    Ok(tools)
}

fn tool(mut fields: ObjectFields) -> Result<ToolDefinition, ApiError> {
    fields.unsupported("type", |value| value == "function")?;
    let path = fields.path("function");
    let mut function = ObjectFields::of(fields.require("function")?, path)?;
    fields.finish()?;
    let name = name_of(&mut function)?;
    let description = function.text("description", DESCRIPTION_BYTES_MAX)?;
    let is_strict = function.flag("strict")?;
    let path = function.path("parameters");
    let parameters = match function.take("parameters") {
        None => json!({ "type": "object", "properties": {} }),
        Some(value @ Value::Object(_)) => checked_schema(value, path)?,
        Some(other) => return Err(wrong_type(path, &other, "an object")),
    };
    function.finish()?;
    Ok(ToolDefinition { name, description, parameters, is_strict })
}

fn name_of(function: &mut ObjectFields) -> Result<String, ApiError> {
    let path = function.path("name");
    match function.require("name")? {
        Value::String(name) => checked_name(name, path),
        other => Err(wrong_type(path, &other, "a string")),
    }
}

/// Takes `tool_choice`; `None` where no function may be called.
fn choice(fields: &mut ObjectFields, tools: &[ToolDefinition]) -> Result<Option<ToolChoice>, ApiError> {
    let path = || "tool_choice".to_owned();
    let choice = match fields.take("tool_choice") {
        None => return Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(None),
            "auto" => return Ok(Some(ToolChoice::Auto)),
            "required" => ToolChoice::Required,
            other => {
                let problem =
                    format!("is `{}`, expected `none`, `auto`, `required` or a function", printable(other));
                return Err(invalid(path(), problem));
            }
        },
        Some(value @ Value::Object(_)) => {
            let mut named = ObjectFields::of(value, path())?;
            named.unsupported("type", |value| value == "function")?;
            let function_path = named.path("function");
            let mut function = ObjectFields::of(named.require("function")?, function_path)?;
            named.finish()?;
            let name = name_of(&mut function)?;
            function.finish()?;
            if !tools.iter().any(|tool| tool.name == name) {
                return Err(invalid(path(), format!("names `{name}`, which `tools` does not have")));
            }
            ToolChoice::Named(name)
        }
        Some(other) => return Err(wrong_type(path(), &other, "a string or an object")),
    };
    if tools.is_empty() {
        return Err(invalid(path(), "needs `tools`".to_owned()));
    }
    Ok(Some(choice))
}

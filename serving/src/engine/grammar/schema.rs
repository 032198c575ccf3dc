//! JSON schemas before they are compiled: what cannot be enforced is refused with its name and place.
//!
//! A grammar covers most keywords. Others are left to a check of the whole answer, where the request allows
//! that; a few are never served. The compiler does not see that a schema has no finite instance, such as an
//! object that requires itself: an answer to it would never end.

use super::error::GrammarError;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Share of a schema that its grammar covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    /// All of it.
    Whole,
    /// The part that a grammar says; the rest is checked when the answer is whole.
    Part,
}

/// Keywords that are never enforced. `x-guidance` holds switches of the compiler, which weaken a schema.
const REFUSED: [&str; 5] =
    ["unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef", "x-guidance"];
/// Keywords that no grammar says.
const CHECKED: [&str; 10] = [
    "not",
    "if",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
];
/// Keywords whose value is a schema.
const WITH_SCHEMA: [&str; 9] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
];
/// Keywords whose value is a list of schemas.
const WITH_LIST: [&str; 5] = ["anyOf", "allOf", "oneOf", "prefixItems", "items"];
/// Keywords whose value has schemas by name.
const WITH_NAMES: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];
/// Drafts in which nothing counts beside a reference.
const REFERENCE_ALONE: [&str; 3] = ["draft-04", "draft-06", "draft-07"];
/// Keywords that count beside a reference in these: they say where references lead.
const BESIDE_REFERENCE: [&str; 5] = ["$ref", "definitions", "$defs", "$schema", "$id"];
/// Rounds in which schemas that need one another are found to be finite: nested references of one schema.
const ROUNDS_MAX: usize = 1_000;
/// Whitespace around a value. A model that may write it without end sometimes does.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,64}";

/// Returns a schema as it is compiled.
///
/// # Errors
/// [`GrammarError::Unsupported`]: a keyword is not enforced, or no finite text fulfils the schema.
pub(super) fn prepared(schema: &Value, coverage: Coverage) -> Result<Value, GrammarError> {
    let refused = |reason: String| GrammarError::Unsupported(reason);
    let schema = &normalized(schema);
    let mut whole = match schema {
        Value::Object(fields) => fields.clone(),
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(refused("the schema `false` has no instance".to_owned())),
        _ => return Err(refused("a schema is an object or a boolean".to_owned())),
    };
    if let Some((keyword, place)) = unsupported(schema, "", coverage) {
        let place = if place.is_empty() { "the root" } else { &place };
        return Err(refused(format!("`{keyword}` at {place} of the schema is not supported")));
    }
    if !is_finite(schema) {
        return Err(refused("no finite text fulfils the schema: it requires itself, or is false".to_owned()));
    }
    // Lenient: what is checked at the end is left out.
    let switches = json!({ "whitespace_pattern": WHITESPACE, "lenient": coverage == Coverage::Part });
    whole.insert("x-guidance".to_owned(), switches);
    Ok(Value::Object(whole))
}

/// Returns the first keyword that is not enforced, and the place of its schema.
fn unsupported(schema: &Value, place: &str, coverage: Coverage) -> Option<(String, String)> {
    let fields = schema.as_object()?;
    let is_unsupported = |name: &&String| {
        let name = name.as_str();
        REFUSED.contains(&name) || (coverage == Coverage::Whole && CHECKED.contains(&name))
    };
    if let Some(name) = fields.keys().find(is_unsupported) {
        return Some((name.clone(), place.to_owned()));
    }
    let parts = subschemas(fields).into_iter();
    parts.into_iter().find_map(|(step, part)| unsupported(part, &format!("{place}/{step}"), coverage))
}

/// Returns a schema without what has no effect: `uniqueItems` that is false and, before 2019, what stands
/// beside a reference.
pub(super) fn normalized(schema: &Value) -> Value {
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    let is_old = REFERENCE_ALONE.iter().any(|name| draft.contains(name));
    let mut schema = schema.clone();
    normalize(&mut schema, is_old);
    schema
}

fn normalize(schema: &mut Value, is_old: bool) {
    let Value::Object(fields) = schema else { return };
    if fields.get("uniqueItems") == Some(&Value::Bool(false)) {
        fields.shift_remove("uniqueItems");
    }
    if is_old && fields.get("$ref").is_some_and(Value::is_string) {
        fields.retain(|name, _| BESIDE_REFERENCE.contains(&name.as_str()));
    }
    for (name, value) in fields {
        let name = name.as_str();
        match value {
            Value::Object(parts) if WITH_NAMES.contains(&name) => {
                parts.values_mut().for_each(|part| normalize(part, is_old));
            }
            Value::Array(parts) if WITH_LIST.contains(&name) => {
                parts.iter_mut().for_each(|part| normalize(part, is_old));
            }
            Value::Object(_) if WITH_SCHEMA.contains(&name) => normalize(value, is_old),
            _ => {}
        }
    }
}

/// Returns the schemas directly within a schema, with the path to each.
fn subschemas(fields: &Map<String, Value>) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (name, value) in fields {
        let name = name.as_str();
        match value {
            Value::Object(parts) if WITH_NAMES.contains(&name) => {
                found.extend(parts.iter().map(|(key, part)| (format!("{name}/{key}"), part)));
            }
            Value::Array(parts) if WITH_LIST.contains(&name) => {
                let parts = parts.iter().enumerate();
                found.extend(parts.map(|(index, part)| (format!("{name}/{index}"), part)));
            }
            Value::Object(_) if WITH_SCHEMA.contains(&name) => found.push((name.to_owned(), value)),
            _ => {}
        }
    }
    found
}

/// Reports whether a schema may have an instance of finite length, as far as references, required properties
/// and items state.
fn is_finite(root: &Value) -> bool {
    let mut finite: BTreeSet<String> = BTreeSet::new();
    let references = references(root);
    // A reference is finite once its schema is, by those that were found before.
    for _ in 0..ROUNDS_MAX {
        let known = finite.len();
        for reference in &references {
            // The compiler refuses one that names nothing.
            let is_found = || target(root, reference).is_none_or(|schema| has_instance(schema, &finite));
            if !finite.contains(*reference) && is_found() {
                finite.insert((*reference).to_owned());
            }
        }
        if finite.len() == known {
            break;
        }
    }
    has_instance(root, &finite)
}

fn references(schema: &Value) -> BTreeSet<&str> {
    let Some(fields) = schema.as_object() else { return BTreeSet::new() };
    let own = fields.get("$ref").and_then(Value::as_str);
    let parts = subschemas(fields).into_iter().flat_map(|(_, part)| references(part));
    parts.chain(own).collect()
}

/// Returns the schema that a reference within the document names.
pub(super) fn target<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    match reference.strip_prefix('#')? {
        "" | "/" => Some(root),
        path => root.pointer(path),
    }
}

/// Reports whether a schema may have a finite instance if these references have one.
fn has_instance(schema: &Value, finite: &BTreeSet<String>) -> bool {
    let fields = match schema {
        Value::Bool(is_any) => return *is_any,
        Value::Object(fields) => fields,
        _ => return true,
    };
    let is_fine = |part: &Value| has_instance(part, finite);
    let list = |name: &str| fields.get(name).and_then(Value::as_array);
    if fields.get("$ref").and_then(Value::as_str).is_some_and(|reference| !finite.contains(reference)) {
        return false;
    }
    if list("allOf").is_some_and(|parts| !parts.iter().all(is_fine)) {
        return false;
    }
    let is_any = |part: &Value| *part == Value::Bool(true) || part.as_object().is_some_and(Map::is_empty);
    if fields.get("not").is_some_and(is_any) {
        return false;
    }
    if ["anyOf", "oneOf"].iter().any(|name| list(name).is_some_and(|parts| !parts.iter().any(is_fine))) {
        return false;
    }
    let may_be = |kind: &str| match fields.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|other| other == kind),
        _ => true,
    };
    // The compiler refuses a type that there is not.
    let is_other = match fields.get("type") {
        Some(Value::String(only)) => !["object", "array"].contains(&only.as_str()),
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind != "object" && kind != "array"),
        _ => true,
    };
    let is_object = may_be("object") && {
        let required = list("required").into_iter().flatten().filter_map(Value::as_str);
        let property = |name: &str| fields.get("properties").and_then(|properties| properties.get(name));
        required.filter_map(property).all(is_fine)
    };
    let is_array = may_be("array") && {
        let count = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let first = list("prefixItems").or(list("items"));
        let count_first = first.map_or(0, Vec::len) as u64;
        let first = first.into_iter().flatten().take(count as usize);
        let rest = fields.get("items").filter(|items| items.is_object() || items.is_boolean());
        first.into_iter().all(is_fine) && (count <= count_first || rest.is_none_or(is_fine))
    };
    is_other || is_object || is_array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_as(coverage: Coverage, schema: Value, expected: &str) {
        let found = match prepared(&schema, coverage) {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(found.contains(expected), "{schema}: {found} lacks {expected}");
    }

    fn check(schema: Value, expected: &str) {
        check_as(Coverage::Whole, schema, expected);
    }

    #[test]
    fn keywords_that_no_grammar_says_are_left_to_the_check_of_an_answer() {
        for (name, value) in CHECKED.iter().zip([
            json!({ "type": "null" }),
            json!(true),
            json!({}),
            json!(1),
            json!(1),
            json!(true),
            json!({}),
            json!({}),
            json!({}),
            json!({}),
        ]) {
            let schema = json!({ "items": { *name: value } });
            check(schema.clone(), &format!("`{name}` at /items"));
            check_as(Coverage::Part, schema, "ok");
        }
        check_as(Coverage::Part, json!({ "unevaluatedItems": false }), "`unevaluatedItems` at the root");
        check_as(Coverage::Part, json!({ "x-guidance": { "lenient": true } }), "`x-guidance` at the root");
    }

    #[test]
    fn nothing_counts_beside_a_reference_in_old_drafts() {
        let schema = |draft: &str| {
            json!({ "$schema": draft, "properties": { "a": { "$ref": "#/definitions/x", "maximum": 1 } },
                "definitions": { "x": { "type": "integer" } } })
        };
        let old = normalized(&schema("http://json-schema.org/draft-07/schema#"));
        assert_eq!(old["properties"]["a"], json!({ "$ref": "#/definitions/x" }));
        assert_eq!(old["definitions"]["x"], json!({ "type": "integer" }));
        let new = schema("https://json-schema.org/draft/2020-12/schema");
        assert_eq!(normalized(&new), new);
    }

    #[test]
    fn a_keyword_that_is_not_enforced_is_named_with_its_place() {
        check(json!({ "not": { "type": "null" } }), "`not` at the root");
        let nested = json!({ "properties": { "a": { "items": { "uniqueItems": true } } } });
        check(nested, "`uniqueItems` at /properties/a/items");
        let listed = json!({ "$defs": { "x": { "anyOf": [true, { "if": true }] } } });
        check(listed, "`if` at /$defs/x/anyOf/1");
        check(json!({ "x-guidance": { "lenient": true } }), "`x-guidance` at the root");
    }

    #[test]
    fn names_of_properties_and_values_are_no_keywords() {
        for schema in [
            json!({ "properties": { "not": true, "if": { "type": "string" } }, "required": ["not"] }),
            json!({ "enum": [{ "not": 1 }] }),
            json!({ "default": { "contains": 1 }, "examples": [{ "if": 1 }] }),
            json!({ "uniqueItems": false, "type": "array" }),
            json!(true),
        ] {
            check(schema, "ok");
        }
    }

    #[test]
    fn a_schema_without_a_finite_instance_is_refused() {
        let required = |name: &str| {
            json!({ "type": "object", "properties": { "a": { "$ref": name } },
            "required": ["a"] })
        };
        check(required("#"), "no finite text");
        let mut pair = json!({ "$ref": "#/$defs/x", "$defs": { "y": required("#/$defs/x") } });
        pair["$defs"]["x"] = json!({ "allOf": [{ "$ref": "#/$defs/y" }] });
        check(pair.clone(), "no finite text");
        pair["$defs"]["x"] = json!({ "anyOf": [{ "$ref": "#/$defs/y" }, { "type": "null" }] });
        check(pair, "ok");
        let items = |count: u64| json!({ "type": "array", "items": { "$ref": "#" }, "minItems": count });
        check(items(0), "ok");
        check(items(1), "no finite text");
        check(json!({ "properties": { "a": { "$ref": "#" } } }), "ok");
        check(json!(false), "has no instance");
        check(json!({ "anyOf": [false, false] }), "no finite text");
        check(json!([1]), "an object or a boolean");
    }
}

//! Validation of a JSON value against a schema: all keywords that decide, apart from `format`, which the
//! specification leaves to annotations.
//!
//! It knows what no grammar says: complements (`not`), conditions, alternatives that exclude one another, and
//! counts of items. References lead within the schema.

use super::error::GrammarError;
use regex::Regex;
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::collections::BTreeMap;

/// Depth of schemas within schemas on the way to a value: references that lead in a circle are false.
const DEPTH_MAX: usize = 256;
/// Schemas that are tried for one value. Alternatives that name one another are otherwise tried without end.
const STEPS_MAX: u32 = 200_000;
/// Memory of a compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// Maximum patterns of a schema.
const PATTERNS_MAX: usize = 512;
/// Keywords with one schema.
const ONE: [&str; 11] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords with a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords with schemas by name.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"];

/// A schema to validate with.
#[derive(Debug)]
pub(super) struct Validator {
    root: Value,
    patterns: BTreeMap<String, Regex>,
}

/// Way to a schema.
#[derive(Debug, Clone, Copy)]
struct Walk<'s> {
    depth: usize,
    /// Schemas that were tried.
    steps: &'s Cell<u32>,
}

impl Walk<'_> {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }

    /// Counts a schema; returns whether it may be tried.
    fn step(self) -> bool {
        self.steps.set(self.steps.get().saturating_add(1));
        self.depth < DEPTH_MAX && self.steps.get() <= STEPS_MAX
    }
}

impl Validator {
    /// Reads a schema.
    ///
    /// # Errors
    /// [`GrammarError`]: a pattern is invalid or too large, or a value is no schema where one must be.
    pub(super) fn new(schema: &Value) -> Result<Self, GrammarError> {
        let mut validator = Self { root: schema.clone(), patterns: BTreeMap::new() };
        validator.read(schema)?;
        Ok(validator)
    }

    /// Compiles the patterns of a schema and of those within it.
    fn read(&mut self, schema: &Value) -> Result<(), GrammarError> {
        let fields = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err(GrammarError::Unsupported("a schema is an object or a boolean".to_owned())),
        };
        if let Some(pattern) = fields.get("pattern").and_then(Value::as_str) {
            self.add_pattern(pattern)?;
        }
        for pattern in fields.get("patternProperties").and_then(Value::as_object).into_iter().flatten() {
            self.add_pattern(pattern.0)?;
        }
        for (name, value) in fields {
            let name = name.as_str();
            match value {
                Value::Object(parts) if NAMED.contains(&name) => {
                    // A list within `dependencies` names properties.
                    let schemas = parts.values().filter(|part| !part.is_array());
                    schemas.into_iter().try_for_each(|part| self.read(part))?;
                }
                Value::Array(parts) if LISTS.contains(&name) => {
                    parts.iter().try_for_each(|part| self.read(part))?;
                }
                _ if ONE.contains(&name) => self.read(value)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn add_pattern(&mut self, pattern: &str) -> Result<(), GrammarError> {
        if self.patterns.contains_key(pattern) {
            return Ok(());
        }
        if self.patterns.len() == PATTERNS_MAX {
            return Err(GrammarError::TooLarge(format!("more than {PATTERNS_MAX} patterns")));
        }
        // Classes of letters and digits are those of JavaScript, as in the grammar.
        let rust = llguidance::regex_to_lark(pattern, "dw");
        let compiled = regex::RegexBuilder::new(&rust).size_limit(PATTERN_BYTES_MAX).build();
        let compiled = compiled.map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => GrammarError::TooLarge(format!("the pattern `{pattern}`")),
            _ => GrammarError::Unsupported(format!("the pattern `{pattern}` is not supported")),
        })?;
        self.patterns.insert(pattern.to_owned(), compiled);
        Ok(())
    }

    /// Reports whether a value is an instance of the schema. A value for which that takes too much work is
    /// none.
    pub(super) fn accepts(&self, value: &Value) -> bool {
        let steps = Cell::new(0);
        let is_valid = self.is_valid(&self.root, value, Walk { depth: 0, steps: &steps });
        // A schema that was not tried any more counts as false, which `not` turns around.
        is_valid && steps.get() <= STEPS_MAX
    }

    fn is_valid(&self, schema: &Value, value: &Value, walk: Walk<'_>) -> bool {
        let fields = match schema {
            Value::Bool(is_any) => return *is_any,
            Value::Object(fields) => fields,
            _ => return false,
        };
        walk.step()
            && self.is_of_reference(fields, value, walk)
            && is_of_type(fields, value)
            && self.is_of_combination(fields, value, walk)
            && match value {
                Value::Number(number) => is_of_range(fields, number),
                Value::String(text) => self.is_of_text(fields, text),
                Value::Array(items) => self.is_of_items(fields, items, walk),
                Value::Object(properties) => self.is_of_properties(fields, properties, walk),
                Value::Null | Value::Bool(_) => true,
            }
    }

    fn is_of_reference(&self, fields: &Map<String, Value>, value: &Value, walk: Walk<'_>) -> bool {
        let Some(reference) = fields.get("$ref").and_then(Value::as_str) else { return true };
        let target = super::schema::target(&self.root, reference);
        target.is_some_and(|schema| self.is_valid(schema, value, walk.deeper()))
    }

    fn is_of_combination(&self, fields: &Map<String, Value>, value: &Value, walk: Walk<'_>) -> bool {
        let fits = |schema: &Value| self.is_valid(schema, value, walk.deeper());
        let list = |name: &str| fields.get(name).and_then(Value::as_array);
        let is_conditional = |part: &str| fields.get(part).is_none_or(fits);
        list("allOf").is_none_or(|parts| parts.iter().all(fits))
            && list("anyOf").is_none_or(|parts| parts.iter().any(fits))
            && list("oneOf").is_none_or(|parts| parts.iter().filter(|part| fits(part)).count() == 1)
            && fields.get("not").is_none_or(|part| !fits(part))
            && fields.get("if").is_none_or(|part| is_conditional(if fits(part) { "then" } else { "else" }))
    }

    fn is_of_text(&self, fields: &Map<String, Value>, text: &str) -> bool {
        let length = text.chars().count() as u64;
        let pattern = fields.get("pattern").and_then(Value::as_str);
        is_counted(fields, length, "minLength", "maxLength")
            && pattern.is_none_or(|pattern| self.patterns[pattern].is_match(text))
    }

    fn is_of_items(&self, fields: &Map<String, Value>, items: &[Value], walk: Walk<'_>) -> bool {
        let fits = |schema: &Value, item: &Value| self.is_valid(schema, item, walk.deeper());
        // Before 2020, `items` could be the list, and `additionalItems` the rest.
        let (first, rest) = match fields.get("items") {
            Some(Value::Array(first)) => (Some(first), fields.get("additionalItems")),
            rest => (fields.get("prefixItems").and_then(Value::as_array), rest),
        };
        let first = first.map_or(&[][..], Vec::as_slice);
        let contained =
            || fields.get("contains").map(|part| items.iter().filter(|item| fits(part, item)).count());
        let least = fields.get("minContains").and_then(as_count).unwrap_or(1);
        let most = fields.get("maxContains").and_then(as_count).unwrap_or(u64::MAX);
        is_counted(fields, items.len() as u64, "minItems", "maxItems")
            && first.iter().zip(items).all(|(schema, item)| fits(schema, item))
            && rest.is_none_or(|rest| items.iter().skip(first.len()).all(|item| fits(rest, item)))
            && contained().is_none_or(|count| (least..=most).contains(&(count as u64)))
            && (fields.get("uniqueItems") != Some(&Value::Bool(true)) || are_unique(items))
    }

    fn is_of_properties(
        &self,
        fields: &Map<String, Value>,
        properties: &Map<String, Value>,
        walk: Walk<'_>,
    ) -> bool {
        let fits = |schema: &Value, value: &Value| self.is_valid(schema, value, walk.deeper());
        let object = |name: &str| fields.get(name).and_then(Value::as_object);
        let has_all = |names: &Value| {
            let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
            names.into_iter().all(|name| properties.contains_key(name))
        };
        let own = |name: &str| object("properties").and_then(|known| known.get(name));
        let is_known = |(name, value): (&String, &Value)| {
            let mut is_named = false;
            let patterns = object("patternProperties").into_iter().flatten();
            let matching = patterns.filter(|(pattern, _)| self.patterns[*pattern].is_match(name));
            let schemas = own(name).into_iter().chain(matching.map(|(_, schema)| schema));
            let are_valid = schemas.into_iter().all(|schema| {
                is_named = true;
                fits(schema, value)
            });
            let rest = fields.get("additionalProperties").filter(|_| !is_named);
            are_valid && rest.is_none_or(|rest| fits(rest, value))
        };
        // Either form of `dependencies`.
        let depends = |(name, then): (&String, &Value)| {
            let value = || Value::Object(properties.clone());
            !properties.contains_key(name)
                || if then.is_array() { has_all(then) } else { fits(then, &value()) }
        };
        let words = ["dependencies", "dependentRequired", "dependentSchemas"];
        is_counted(fields, properties.len() as u64, "minProperties", "maxProperties")
            && fields.get("required").is_none_or(has_all)
            && properties.iter().all(is_known)
            && fields
                .get("propertyNames")
                .is_none_or(|schema| properties.keys().all(|name| fits(schema, &Value::from(name.as_str()))))
            && words.iter().all(|word| object(word).into_iter().flatten().all(depends))
    }
}

fn as_count(value: &Value) -> Option<u64> {
    // Counts may be written as 2.0.
    value.as_u64().or_else(|| value.as_f64().filter(|count| *count >= 0.0).map(|count| count as u64))
}

fn is_counted(fields: &Map<String, Value>, count: u64, least: &str, most: &str) -> bool {
    fields.get(least).and_then(as_count).is_none_or(|least| count >= least)
        && fields.get(most).and_then(as_count).is_none_or(|most| count <= most)
}

fn is_of_type(fields: &Map<String, Value>, value: &Value) -> bool {
    let is_kind = |kind: &Value| match (kind.as_str(), value) {
        (Some("null"), Value::Null)
        | (Some("boolean"), Value::Bool(_))
        | (Some("number"), Value::Number(_))
        | (Some("string"), Value::String(_))
        | (Some("array"), Value::Array(_))
        | (Some("object"), Value::Object(_)) => true,
        (Some("integer"), Value::Number(number)) => {
            !number.is_f64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        _ => false,
    };
    let is_listed = match fields.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is_kind),
        Some(kind) => is_kind(kind),
    };
    let values = fields.get("enum").and_then(Value::as_array);
    is_listed
        && values.is_none_or(|values| values.iter().any(|other| are_equal(other, value)))
        && fields.get("const").is_none_or(|other| are_equal(other, value))
}

fn is_of_range(fields: &Map<String, Value>, number: &Number) -> bool {
    let Some(value) = number.as_f64() else { return false };
    let limit = |name: &str| fields.get(name).and_then(Value::as_f64);
    // Draft 4 has a flag in the place of a number.
    let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
    let is_multiple = |step: f64| {
        let count = value / step;
        step > 0.0 && (count - count.round()).abs() <= 1e-9 * count.abs().max(1.0)
    };
    limit("minimum").is_none_or(|least| value > least || (value == least && !flag("exclusiveMinimum")))
        && limit("maximum").is_none_or(|most| value < most || (value == most && !flag("exclusiveMaximum")))
        && limit("exclusiveMinimum").is_none_or(|least| value > least)
        && limit("exclusiveMaximum").is_none_or(|most| value < most)
        && limit("multipleOf").is_none_or(is_multiple)
}

/// Reports whether two values are equal as JSON has it: 1 is 1.0, and names have no order.
fn are_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are_equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let is_in_other = |(name, value): (&String, &Value)| {
                other.get(name).is_some_and(|other| are_equal(value, other))
            };
            one.len() == other.len() && one.iter().all(is_in_other)
        }
        _ => one == other,
    }
}

fn are_unique(items: &[Value]) -> bool {
    let is_new = |(index, item): (usize, &Value)| !items[..index].iter().any(|other| are_equal(item, other));
    items.iter().enumerate().all(is_new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(schema: Value, valid: &[Value], invalid: &[Value]) {
        let validator = Validator::new(&schema).expect("a schema");
        for value in valid {
            assert!(validator.accepts(value), "{schema} has {value}");
        }
        for value in invalid {
            assert!(!validator.accepts(value), "{schema} has not {value}");
        }
    }

    #[test]
    fn keywords_that_no_grammar_says_are_checked() {
        check(json!({ "not": { "required": ["a"] } }), &[json!({ "b": 1 })], &[json!({ "a": 1 }), json!(1)]);
        check(
            json!({ "oneOf": [{ "type": "integer" }, { "minimum": 2 }] }),
            &[json!(1), json!(2.5)],
            &[json!(3), json!(1.5)],
        );
        let required = |name: &str| json!({ "required": [name] });
        let when = json!({ "if": required("a"), "then": required("b"), "else": required("c") });
        check(when, &[json!({ "a": 1, "b": 1 }), json!({ "c": 1 })], &[json!({ "a": 1 }), json!({ "b": 1 })]);
        check(json!({ "contains": { "const": 1 } }), &[json!([0, 1.0])], &[json!([]), json!([2])]);
        let counted = json!({ "contains": { "const": 1 }, "minContains": 0, "maxContains": 1 });
        check(counted, &[json!([]), json!([1, 2])], &[json!([1, 1])]);
        check(
            json!({ "uniqueItems": true }),
            &[json!([1, "1", [1]])],
            &[json!([1, 1.0]), json!([{ "a": 1 }, { "a": 1 }])],
        );
        check(json!({ "propertyNames": { "pattern": "^\\d$" } }), &[json!({ "1": 0 })], &[json!({ "a": 0 })]);
        let depends = json!({ "dependencies": { "a": ["b"], "c": { "required": ["d"] } } });
        check(
            depends,
            &[json!({ "b": 1 }), json!({ "c": 1, "d": 1 })],
            &[json!({ "a": 1 }), json!({ "c": 1 })],
        );
    }

    #[test]
    fn other_keywords_are_checked_as_grammars_have_them() {
        let object = json!({ "properties": { "a": { "type": "integer" } },
            "patternProperties": { "^x": { "maximum": 2 } },
            "additionalProperties": false, "minProperties": 1, "maxProperties": 2 });
        check(
            object,
            &[json!({ "a": 1, "xy": 2 }), json!(5)],
            &[json!({}), json!({ "b": 1 }), json!({ "xy": 3 })],
        );
        check(json!({ "multipleOf": 0.01 }), &[json!(1.13), json!(7)], &[json!(0.005)]);
        check(json!({ "minimum": 1, "exclusiveMinimum": true }), &[json!(2)], &[json!(1)]);
        check(
            json!({ "items": [{ "const": 1 }], "additionalItems": false }),
            &[json!([1])],
            &[json!([1, 2])],
        );
        check(
            json!({ "prefixItems": [true], "items": { "type": "null" } }),
            &[json!([1, null])],
            &[json!([1, 2])],
        );
        check(
            json!({ "maxLength": 1, "pattern": "\u{e9}" }),
            &[json!("\u{e9}")],
            &[json!("e\u{301}"), json!("a")],
        );
        check(
            json!({ "enum": [1, { "b": 2, "a": 1 }] }),
            &[json!(1.0), json!({ "a": 1, "b": 2 })],
            &[json!("1")],
        );
        let node = json!({ "items": { "$ref": "#/$defs/t" }, "type": "array" });
        let tree = json!({ "$defs": { "t": node }, "$ref": "#/$defs/t" });
        check(tree, &[json!([[], [[]]])], &[json!([[1]])]);
    }

    /// Attack: references in a circle, patterns that fill the memory, schemas that are none.
    #[test]
    fn hostile_schemas_end_or_are_refused() {
        check(json!({ "allOf": [{ "$ref": "#" }] }), &[], &[json!(1)]);
        let both = json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }, { "type": "null" }] });
        check(both.clone(), &[], &[json!(1)]);
        check(json!({ "not": both }), &[], &[json!(1)]);
        let refused = |schema: Value| Validator::new(&schema).expect_err("refused").code().as_str();
        assert_eq!(refused(json!({ "not": 5 })), "grammar-unsupported");
        assert_eq!(refused(json!({ "pattern": "(?=a)" })), "grammar-unsupported");
        assert_eq!(refused(json!({ "pattern": "\\w{1000}{1000}" })), "grammar-too-large");
        let many: Map<String, Value> = (0..600).map(|index| (format!("p{index}"), json!(true))).collect();
        assert_eq!(refused(json!({ "patternProperties": many })), "grammar-too-large");
    }
}

//! Strict JSON objects: every field is taken by name, and a field that remains is rejected by name.
//!
//! A duplicate key is rejected at any depth. Most parsers keep the last one, so two of them can interpret one
//! request differently.

use super::error::{ApiError, printable};
use protocol::error_code as code;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Maximum values of a body: 2,048 inputs of 512 tokens, and the structure around them. Two bytes of a body
/// can hold a value, which takes 32 bytes of memory.
const VALUES_MAX: usize = (1 << 20) + CONTAINERS_MAX;
/// Maximum arrays and objects among them: 4,096 messages of 16 parts each. An object of seven bytes takes
/// 700.
const CONTAINERS_MAX: usize = 1 << 16;

/// Parses a request's body: UTF-8, JSON, an object, no duplicate key.
///
/// # Errors
/// 400 `invalid-json`.
pub(super) fn parse(body: &[u8]) -> Result<ObjectFields, ApiError> {
    let wrong =
        |message: String| ApiError::new(http::StatusCode::BAD_REQUEST, code::REQUEST_INVALID, message);
    let text = std::str::from_utf8(body)
        .map_err(|error| wrong(format!("the body is not UTF-8: byte {} is invalid", error.valid_up_to())))?;
    let mut read = Counts::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict(&mut read).deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    let value = value.map_err(|error| wrong(format!("the body is not valid JSON: {error}")))?;
    match value {
        Value::Object(map) => Ok(ObjectFields { map, path: String::new() }),
        other => Err(wrong(format!("the body is {}, expected an object", kind(&other)))),
    }
}

#[cfg(test)]
thread_local! {
    /// Paths of the fields that this thread's parsers have asked for.
    pub(super) static TAKEN: std::cell::RefCell<std::collections::BTreeSet<String>> =
        const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

/// The fields of one object that have not been taken yet. JSON's `null` counts as absent, as in OpenAI's API.
#[derive(Debug)]
pub(super) struct ObjectFields {
    map: Map<String, Value>,
    path: String,
}

impl ObjectFields {
    /// Returns the fields of a nested object; `path` names it in errors.
    ///
    /// # Errors
    /// 400 `invalid-value` when it is no object.
    pub(super) fn of(value: Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(wrong_type(path, &other, "an object")),
        }
    }

    /// Returns the name of a field in errors.
    pub(super) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Takes any value.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        TAKEN.with_borrow_mut(|taken| taken.insert(self.path(name)));
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a required value.
    pub(super) fn require(&mut self, name: &str) -> Result<Value, ApiError> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| {
            let message = format!("missing required parameter `{path}`");
            ApiError::field(code::MISSING_PARAMETER, path, message)
        })
    }

    /// Takes a text of at most `bytes_max` bytes.
    pub(super) fn text(&mut self, name: &str, bytes_max: usize) -> Result<Option<String>, ApiError> {
        let path = self.path(name);
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= bytes_max => Ok(Some(text)),
            Some(Value::String(_)) => Err(invalid(path, format!("is longer than {bytes_max} bytes"))),
            Some(other) => Err(wrong_type(path, &other, "a string")),
        }
    }

    /// Takes `true` or `false`; absent is false.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong_type(self.path(name), &other, "a boolean")),
        }
    }

    /// Takes a number from `least` to `most`.
    pub(super) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            Some(number) => Err(invalid(path, format!("is {number}, expected {least} to {most}"))),
            None => Err(wrong_type(path, &value, "a number")),
        }
    }

    /// Takes a whole number from 1 to `most`.
    pub(super) fn count(&mut self, name: &str, most: u64) -> Result<Option<u64>, ApiError> {
        self.whole(name, 1, most)
    }

    /// Takes a whole number from `least` to `most`.
    pub(super) fn whole(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
        let path = self.path(name);
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64() {
            Some(count) if (least..=most).contains(&count) => Ok(Some(count)),
            _ if value.is_number() => {
                Err(invalid(path, format!("is {value}, expected a whole number from {least} to {most}")))
            }
            _ => Err(wrong_type(path, &value, "a whole number")),
        }
    }

    /// Takes any 64-bit integer, by its bits.
    pub(super) fn integer(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let bits = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        bits.map(Some).ok_or_else(|| wrong_type(self.path(name), &value, "an integer"))
    }

    /// Takes a field of OpenAI's API that is not supported. It is accepted where its value has no effect:
    /// absent, `null`, or such that `is_neutral`.
    pub(super) fn unsupported(
        &mut self,
        name: &str,
        is_neutral: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !is_neutral(&value) => {
                let path = self.path(name);
                let message = format!("`{path}` is not supported by this service with this value");
                Err(ApiError::field(code::UNSUPPORTED_PARAMETER, path, message))
            }
            _ => Ok(()),
        }
    }

    /// Rejects fields that were not taken.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path = self.path(&printable(name));
                let message = format!("unknown parameter `{path}`");
                Err(ApiError::field(code::UNKNOWN_PARAMETER, path, message))
            }
        }
    }
}

/// Creates the error for a value that is out of range.
pub(super) fn invalid(path: String, problem: String) -> ApiError {
    let message = format!("`{path}` {problem}");
    ApiError::field(code::INVALID_VALUE, path, message)
}

/// Creates the error for a value of the wrong kind.
pub(super) fn wrong_type(path: String, found: &Value, expected: &str) -> ApiError {
    invalid(path, format!("is {}, expected {expected}", kind(found)))
}

/// Reports whether a value is an array or an object without content.
pub(super) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Number of values read so far.
#[derive(Debug, Default)]
struct Counts {
    values: usize,
    containers: usize,
}

impl Counts {
    fn value<E: de::Error>(&mut self) -> Result<(), E> {
        self.values += 1;
        let refused = || E::custom(format!("more than {VALUES_MAX} values"));
        if self.values > VALUES_MAX { Err(refused()) } else { Ok(()) }
    }

    fn container<E: de::Error>(&mut self) -> Result<(), E> {
        self.containers += 1;
        let refused = || E::custom(format!("more than {CONTAINERS_MAX} arrays and objects"));
        if self.containers > CONTAINERS_MAX { Err(refused()) } else { Ok(()) }
    }
}

/// Deserializes a JSON value; rejects duplicate keys and more values than the memory limit allows.
struct Strict<'c>(&'c mut Counts);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.value()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.container()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Strict(self.0))? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.0.container()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict(self.0))?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("duplicate key `{}`", printable(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &[u8], expected: &str) {
        let found = match parse(body) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.message,
        };
        assert!(found.contains(expected), "{found} lacks {expected}");
    }

    #[test]
    fn bodies_are_utf8_json_objects_without_double_keys() {
        check(br#"{"a": {"b": [1, -2, 0.5, null, true, "x"]}}"#, "accepted");
        check(b"", "not valid JSON");
        check(b"{\"a\": \xff}", "byte 6 is invalid");
        check(b"[1]", "is an array, expected an object");
        check(br#"{"a": 1, "a": 1}"#, "duplicate key `a`");
        check(br#"{"a": [{"b": 1, "b": 2}]}"#, "duplicate key `b`");
        check(br#"{"a": 1} {"#, "trailing characters");
        check(&b"[".repeat(100_000), "recursion limit");
    }

    #[test]
    fn a_body_of_many_small_values_is_refused_before_they_fill_the_memory() {
        let list = |item: &str, count: usize| format!(r#"{{"a": [{}0]}}"#, format!("{item},").repeat(count));
        check(list("1", 1 << 20).as_bytes(), "accepted");
        check(list("1", VALUES_MAX).as_bytes(), "more than 1114112 values");
        check(list("[]", 4096).as_bytes(), "accepted");
        check(list("[]", CONTAINERS_MAX).as_bytes(), "more than 65536 arrays and objects");
        check(list(r#"{"":0}"#, CONTAINERS_MAX).as_bytes(), "more than 65536 arrays and objects");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let mut fields = parse(br#"{"a": 1, "b\n": 2}"#).expect("an object");
        assert_eq!(fields.count("a", 5), Ok(Some(1)));
        let error = fields.finish().expect_err("b is left");
        assert_eq!((error.code, error.param.as_deref()), (code::UNKNOWN_PARAMETER, Some("b\\n")));
    }

    #[test]
    fn kinds_and_ranges_are_checked() {
        let fields =
            || parse(br#"{"n": 3, "s": "abc", "f": 0.5, "neg": -1, "t": true, "z": null}"#).expect("fine");
        assert_eq!(
            fields().count("n", 2).expect_err("3 > 2").message,
            "`n` is 3, expected a whole number from 1 to 2"
        );
        for (name, expected) in [
            ("f", "`f` is 0.5, expected a whole number from 1 to 2"),
            ("neg", "`neg` is -1, expected a whole number from 1 to 2"),
            ("s", "`s` is a string, expected a whole number"),
        ] {
            assert_eq!(fields().count(name, 2).expect_err("no count").message, expected);
        }
        assert_eq!(fields().text("s", 2).expect_err("long").message, "`s` is longer than 2 bytes");
        assert_eq!(fields().text("n", 2).expect_err("3").message, "`n` is a number, expected a string");
        assert_eq!(fields().number("f", 0.0, 1.0), Ok(Some(0.5)));
        assert_eq!(fields().integer("neg"), Ok(Some(u64::MAX)));
        assert_eq!(fields().flag("z"), Ok(false));
        assert!(fields().flag("s").is_err());
        assert!(fields().unsupported("t", |value| value == &Value::Bool(false)).is_err());
        assert!(fields().unsupported("z", |_| false).is_ok());
        assert_eq!(fields().require("missing").expect_err("absent").code, code::MISSING_PARAMETER);
    }
}

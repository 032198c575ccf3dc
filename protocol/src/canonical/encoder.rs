//! Encoder of canonical bytes.

use super::error::CanonicalError;
use ciborium::value::Value;
use serde::Serialize;

/// Encodes a value canonically.
///
/// # Panics
/// Panics when the type itself has no canonical form, for example because it contains a float. This is a
/// programming error that the first test of that type finds.
#[must_use]
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let value = Value::serialized(value).expect("protocol types always serialize");
    let value = normalize(value).expect("protocol types hold no float and no tag");
    write(&value)
}

fn write(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to memory cannot fail");
    bytes
}

/// Sorts every map by its encoded keys and rejects values that canonical form excludes.
fn normalize(value: Value) -> Result<Value, CanonicalError> {
    match value {
        Value::Float(_) => Err(CanonicalError::Forbidden("float")),
        Value::Tag(..) => Err(CanonicalError::Forbidden("tag")),
        Value::Array(items) => Ok(Value::Array(items.into_iter().map(normalize).collect::<Result<_, _>>()?)),
        Value::Map(entries) => normalize_map(entries),
        plain => Ok(plain),
    }
}

fn normalize_map(entries: Vec<(Value, Value)>) -> Result<Value, CanonicalError> {
    let mut sorted = entries
        .into_iter()
        .map(|(key, value)| Ok((write(&key), key, normalize(value)?)))
        .collect::<Result<Vec<_>, CanonicalError>>()?;
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    if sorted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(CanonicalError::Invalid("duplicate key".into()));
    }
    debug_assert!(sorted.is_sorted_by(|a, b| a.0 < b.0), "each key is written once, in one order");
    Ok(Value::Map(sorted.into_iter().map(|(_, key, value)| (key, value)).collect()))
}

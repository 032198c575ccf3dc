//! Deterministic CBOR (RFC 8949, section 4.2): one value, one byte string.
//!
//! Every value that is signed, hashed or sent between components is encoded here. Decoding re-encodes the
//! value and compares the bytes. This rejects any second spelling of the same value, such as unsorted keys,
//! indefinite lengths and padded integers. It also rejects duplicate keys, unknown fields, floats and tags.

use ciborium::value::Value;
use serde::{Serialize, de::DeserializeOwned};

/// Deepest nesting accepted. The deepest type (a bundle around nested quorums) needs about 20.
const DEPTH_MAX: usize = 48;

const _: () = assert!(
    3 * crate::limits::QUORUM_DEPTH_MAX + 16 < DEPTH_MAX,
    "the deepest rule is read within a bundle: a rule takes three levels for each of its own"
);

/// Reason why bytes are not the canonical form of the expected type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than the caller's limit; nothing was parsed.
    #[error("{actual} bytes exceed the limit of {limit}")]
    TooLong {
        /// Number of bytes given.
        actual: usize,
        /// Number of bytes allowed.
        limit: usize,
    },
    /// Not CBOR, or not a value of this type.
    #[error("not a valid encoding: {0}")]
    Invalid(String),
    /// Valid CBOR, but not the canonical encoding of its value.
    #[error("not the canonical encoding of its value")]
    NotCanonical,
    /// A float, tag or undefined value, which canonical form excludes.
    #[error("contains a {0}, which canonical form does not have")]
    Forbidden(&'static str),
}

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

/// Decodes canonical bytes of at most `limit` bytes and rejects every other encoding.
///
/// # Errors
/// See [`CanonicalError`].
pub fn from_bytes<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CanonicalError> {
    if bytes.len() > limit {
        return Err(CanonicalError::TooLong { actual: bytes.len(), limit });
    }
    let mut rest = bytes;
    let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX)
        .map_err(|error| CanonicalError::Invalid(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CanonicalError::Invalid("bytes follow the value".into()));
    }
    let typed: T = value.deserialized().map_err(|error| CanonicalError::Invalid(error.to_string()))?;
    // Encoding the *typed* value again also catches fields that the type does not know.
    let again = Value::serialized(&typed).map_err(|e| CanonicalError::Invalid(e.to_string()))?;
    if write(&normalize(again)?) != bytes {
        return Err(CanonicalError::NotCanonical);
    }
    Ok(typed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        zeta: u64,
        alpha: Option<String>,
        map: BTreeMap<String, i64>,
    }

    fn check(bytes: &[u8], expected: &str) {
        let found = match from_bytes::<Sample>(bytes, 1000) {
            Ok(_) => "accepted".to_string(),
            Err(CanonicalError::NotCanonical) => "not canonical".into(),
            Err(CanonicalError::Forbidden(what)) => what.into(),
            Err(CanonicalError::TooLong { .. }) => "too long".into(),
            Err(CanonicalError::Invalid(_)) => "invalid".into(),
        };
        assert_eq!(found, expected, "{}", hex::encode(bytes));
    }

    fn sample() -> Sample {
        Sample { zeta: 5, alpha: None, map: BTreeMap::from([("k".into(), -1)]) }
    }

    #[test]
    fn keys_are_sorted_by_their_encoded_bytes() {
        let bytes = to_bytes(&sample());
        // {"map": {"k": -1}, "zeta": 5, "alpha": null}: shorter keys first, as RFC 8949 4.2.1 orders.
        assert_eq!(hex::encode(&bytes), "a3636d6170a1616b20647a6574610565616c706861f6");
        check(&bytes, "accepted");
    }

    #[test]
    fn second_spellings_are_refused() {
        for (name, bytes, expected) in [
            ("unsorted keys", "a3647a657461 05636d6170a1616b20 65616c706861f6", "not canonical"),
            ("padded integer", "a3636d6170a1616b20647a657461 1805 65616c706861f6", "not canonical"),
            ("missing optional field", "a2636d6170a1616b20647a65746105", "not canonical"),
            ("unknown field", "a4636d6170a1616b20647a6574610565616c706861f6616100", "invalid"),
            ("duplicate key", "a3636d6170a2616b20616b20647a6574610565616c706861f6", "not canonical"),
            ("indefinite map", "bf636d6170a1616b20647a6574610565616c706861f6ff", "not canonical"),
            ("float", "a3636d6170a1616b f93c00 647a6574610565616c706861f6", "invalid"),
            ("trailing byte", "a3636d6170a1616b20647a6574610565616c706861f600", "invalid"),
            ("truncated", "a3636d6170a1616b20647a657461", "invalid"),
            ("empty", "", "invalid"),
        ] {
            let bytes = hex::decode(bytes.replace(' ', "")).expect(name);
            check(&bytes, expected);
        }
    }

    #[test]
    fn length_is_checked_before_parsing() {
        check(&[0xff; 1001], "too long");
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = vec![0x81; 900];
        check(&deep, "invalid");
    }

    proptest! {
        #[test]
        fn an_encoded_value_decodes_to_itself(
            zeta: u64, alpha: Option<String>,
            map in proptest::collection::btree_map(".{0,8}", any::<i64>(), 0..8),
        ) {
            let value = Sample { zeta, alpha, map };
            prop_assert_eq!(from_bytes::<Sample>(&to_bytes(&value), 10_000), Ok(value));
        }

        #[test]
        fn accepted_bytes_are_their_own_encoding(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(value) = from_bytes::<Sample>(&bytes, 64) {
                prop_assert_eq!(to_bytes(&value), bytes);
            }
        }

        #[test]
        fn a_flipped_bit_never_decodes_to_the_same_value(bit in 0usize..176) {
            let mut bytes = to_bytes(&sample());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(from_bytes::<Sample>(&bytes, 1000), Ok(sample()));
        }
    }
}

//! Deterministic CBOR (RFC 8949, section 4.2): one value, one byte string.
//!
//! Every value that is signed, hashed or sent between components is encoded here. Decoding checks the form
//! of the bytes in one pass without building anything, reads the value, and compares the bytes with the
//! value's own encoding. This rejects any second spelling of the same value, such as unsorted keys,
//! indefinite lengths and padded integers. It also rejects duplicate keys, unknown fields, floats and tags.
//!
//! Any bytes from a peer cost at most four times their number in memory. Fewer than 16 MiB may cost
//! [`MEMORY_BYTES_MIN`] more, which is also the floor. `protocol/tests/memory.rs` measures it.

mod comparison;
mod encoder;
mod error;
mod form;
mod item;
mod reader;

pub use encoder::to_bytes;
pub use error::CanonicalError;
pub use reader::MEMORY_BYTES_MIN;

use reader::MemoryBudget;
use serde::{Serialize, de::DeserializeOwned};

/// Decodes canonical bytes of at most `limit` bytes and rejects every other encoding. The bytes may be a
/// peer's: memory is bounded by their number.
///
/// # Errors
/// See [`CanonicalError`].
pub fn from_bytes<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CanonicalError> {
    read(bytes, limit, MemoryBudget::of_peer(bytes.len()))
}

/// Decodes bytes that this process or its replica group encoded, such as a log entry or a snapshot, as
/// [`from_bytes`] does, but without the bound on memory. That bound depends on the machine's word size;
/// replicas must agree on an entry, and a legal state may have many small items.
///
/// # Errors
/// See [`CanonicalError`], except [`CanonicalError::Costly`].
pub fn from_own_bytes<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    limit: usize,
) -> Result<T, CanonicalError> {
    read(bytes, limit, MemoryBudget::unbounded())
}

fn read<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    limit: usize,
    budget: MemoryBudget,
) -> Result<T, CanonicalError> {
    if bytes.len() > limit {
        return Err(CanonicalError::TooLong { actual: bytes.len(), limit });
    }
    form::check(bytes)?;
    let value: T = reader::read(bytes, budget)?;
    // The value's own encoding lacks fields that the type ignores, and has those that it adds.
    if !comparison::is_encoding_of(bytes, &value) {
        return Err(CanonicalError::NotCanonical);
    }
    Ok(value)
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
            Err(CanonicalError::Costly) => "costly".into(),
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
            ("unknown field", "a4616100636d6170a1616b20647a6574610565616c706861f6", "invalid"),
            ("duplicate key", "a3636d6170a2616b20616b20647a6574610565616c706861f6", "not canonical"),
            ("indefinite map", "bf636d6170a1616b20647a6574610565616c706861f6ff", "not canonical"),
            ("float", "a3636d6170a1616b f93c00 647a6574610565616c706861f6", "float"),
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

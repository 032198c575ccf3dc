//! Maps whose keys are structures, written as lists of sorted rows: canonical form sorts keys by their
//! bytes, and the order here is that of the values.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
    map: &BTreeMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let rows: Vec<(K, V)> = Vec::deserialize(deserializer)?;
    if !rows.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(D::Error::custom("rows that are sorted, each once"));
    }
    Ok(rows.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use protocol::canonical::{CanonicalError, from_own_bytes, to_bytes};
    use serde::{Deserialize, Serialize};
    use std::collections::BTreeMap;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct RowsOfMap {
        #[serde(with = "super")]
        rows: BTreeMap<(u8, u8), u8>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct RowsOfList {
        rows: Vec<((u8, u8), u8)>,
    }

    fn read(rows: &[((u8, u8), u8)]) -> Result<RowsOfMap, CanonicalError> {
        from_own_bytes(&to_bytes(&RowsOfList { rows: rows.to_vec() }), 1024)
    }

    #[test]
    fn a_map_is_written_as_rows_and_read_as_it_was() {
        let rows = [((0, 2), 9), ((1, 0), 7), ((1, 1), 8)];
        let map = RowsOfMap { rows: rows.into_iter().collect() };
        assert_eq!(to_bytes(&map), to_bytes(&RowsOfList { rows: rows.to_vec() }));
        assert_eq!(read(&rows), Ok(map));
        assert_eq!(read(&[]), Ok(RowsOfMap { rows: BTreeMap::new() }));
    }

    /// Attack: a snapshot names a row twice, or in another order, so that two snapshots would be one state.
    #[test]
    fn attack_rows_that_are_not_sorted_or_come_twice_are_refused() {
        assert!(read(&[((0, 1), 1), ((0, 2), 1)]).is_ok());
        assert!(read(&[((0, 2), 1), ((0, 1), 1)]).is_err(), "another order");
        assert!(read(&[((0, 1), 1), ((0, 1), 1)]).is_err(), "a row twice");
        assert!(read(&[((0, 1), 1), ((0, 1), 2)]).is_err(), "two values of one row");
    }
}

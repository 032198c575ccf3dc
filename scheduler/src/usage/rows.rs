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

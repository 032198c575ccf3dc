//! Shard faults, reported as soon as they are found. Reads continue with the other shards.

use crate::error::StoreError;
use std::sync::Arc;

/// Kind of a shard fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The object is not in the store.
    Missing,
    /// The store does not answer, or falls silent.
    Unreachable,
    /// The object ends before the end of the shard.
    Short,
    /// The store sends more bytes than the shard has.
    Long,
    /// The shard's digest differs from the one in the manifest.
    Wrong,
}

impl FaultKind {
    /// Returns the fault of a shard whose store failed with `error`.
    pub(crate) fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Missing { .. } => Self::Missing,
            StoreError::Short { .. } => Self::Short,
            StoreError::Surplus { .. } => Self::Long,
            _ => Self::Unreachable,
        }
    }
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Missing => "missing",
            Self::Unreachable => "unreachable",
            Self::Short => "short",
            Self::Long => "long",
            Self::Wrong => "wrong",
        })
    }
}

/// A fault of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFault {
    /// Address of the store.
    pub store: String,
    /// Name of the object in the store.
    pub object: String,
    /// Index of the segment in the manifest.
    pub segment: u32,
    /// Index of the shard, 0-based; data shards first.
    pub shard: u8,
    pub kind: FaultKind,
}

impl std::fmt::Display for ShardFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { store, object, segment, shard, kind } = self;
        write!(f, "shard {shard} of segment {segment} is {kind} in `{object}` of `{store}`")
    }
}

/// Callback that receives every fault, from any thread. It must return quickly.
pub type FaultSink = Arc<dyn Fn(ShardFault) + Send + Sync>;

/// Returns a sink that logs each fault as a warning.
#[must_use]
pub fn log_faults() -> FaultSink {
    Arc::new(|fault| tracing::warn!(%fault, "shard fault; reading on from the others"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: FaultKind) -> ShardFault {
        ShardFault { store: "node://n1/disk".into(), object: "ab/3".into(), segment: 7, shard: 2, kind }
    }

    #[test]
    fn a_fault_names_store_object_segment_and_shard() {
        for (kind, name) in [
            (FaultKind::Missing, "missing"),
            (FaultKind::Unreachable, "unreachable"),
            (FaultKind::Short, "short"),
            (FaultKind::Long, "long"),
            (FaultKind::Wrong, "wrong"),
        ] {
            let expected = format!("shard 2 of segment 7 is {name} in `ab/3` of `node://n1/disk`");
            assert_eq!(fault(kind).to_string(), expected);
            assert_eq!(format!("{kind:>12}"), format!("{name:>12}"), "a column of a listing is padded");
        }
    }

    #[test]
    fn a_fault_of_a_store_is_told_from_a_fault_of_a_shard() {
        let store = || "file:///a".to_string();
        let object = || "ab/3".to_string();
        let short = StoreError::Short { url: store(), object: object(), expected: 9, received: 8 };
        assert_eq!(FaultKind::of(&short), FaultKind::Short);
        let surplus = StoreError::Surplus { url: store(), expected: "9 bytes of `ab/3`".into() };
        assert_eq!(FaultKind::of(&surplus), FaultKind::Long);
        let missing = StoreError::Missing { url: store(), object: object() };
        assert_eq!(FaultKind::of(&missing), FaultKind::Missing);
        let full = StoreError::Full { url: store() };
        assert_eq!(
            FaultKind::of(&full),
            FaultKind::Unreachable,
            "any other error is no verdict on the shard"
        );
    }
}

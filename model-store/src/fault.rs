//! What was wrong with a shard, said the moment it is found. Reading goes on from the other shards.

use crate::error::StoreError;
use std::sync::Arc;

/// How a shard is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// Its object is not in the store.
    Missing,
    /// The store does not answer, or falls silent.
    Unreachable,
    /// Its object ends before it.
    Short,
    /// The store sends more bytes than it has.
    Long,
    /// Its bytes have another digest than the manifest says.
    Wrong,
}

impl FaultKind {
    /// What the failure of a store makes of the shard that it was asked for.
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

/// One shard that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardFault {
    /// The store's address.
    pub store: String,
    /// The object's name in it.
    pub object: String,
    /// Index of the segment in the manifest.
    pub segment: u32,
    /// Index of the shard, 0-based; data shards first.
    pub shard: u8,
    /// How it is wrong.
    pub kind: FaultKind,
}

impl std::fmt::Display for ShardFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { store, object, segment, shard, kind } = self;
        write!(f, "shard {shard} of segment {segment} is {kind} in `{object}` of `{store}`")
    }
}

/// Told of every fault, from whichever thread finds it. It must be quick.
pub type FaultSink = Arc<dyn Fn(ShardFault) + Send + Sync>;

/// A sink that logs each fault as a warning.
#[must_use]
pub fn log_faults() -> FaultSink {
    Arc::new(|fault| tracing::warn!(%fault, "shard fault; reading on from the others"))
}

//! Batches: neighbouring segments of one group, read from each store with one request. Pure.

use crate::geometry::Geometry;
use protocol::model::ModelManifest;
use std::ops::Range;

/// Consecutive positions in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentBatch {
    pub(super) group: u32,
    pub(super) positions: Range<usize>,
}

/// Totals of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BatchReport {
    pub(super) segments: u64,
    pub(super) bytes: u64,
    pub(super) rebuilt: u64,
    pub(super) faults: u64,
}

impl BatchReport {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            segments: self.segments + other.segments,
            bytes: self.bytes + other.bytes,
            rebuilt: self.rebuilt + other.rebuilt,
            faults: self.faults + other.faults,
        }
    }
}

/// Returns the first of the wanted segments, in their order, as one batch, with their number. The batch has
/// at most `bytes_max` plaintext bytes, unless a single segment is larger.
pub(super) fn next_batch(
    manifest: &ModelManifest,
    geometry: &Geometry,
    wanted: &[u32],
    bytes_max: u64,
) -> Option<(SegmentBatch, usize)> {
    let length = |index: u32| u64::from(manifest.segments[index as usize].length);
    debug_assert!(bytes_max > 0, "a batch without bytes");
    let first = *wanted.first()?;
    let (group, position) = geometry.position(first);
    let mut batch = SegmentBatch { group, positions: position..position + 1 };
    let mut bytes = length(first);
    for index in &wanted[1..] {
        bytes += length(*index);
        if geometry.position(*index) != (group, batch.positions.end) || bytes > bytes_max {
            break;
        }
        batch.positions.end += 1;
    }
    let count = batch.positions.len();
    debug_assert!((1..=wanted.len()).contains(&count), "a batch of {count} segments");
    Some((batch, count))
}

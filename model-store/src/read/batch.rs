//! Batches: neighbouring segments of one group, read from each store with one request. Pure.

use crate::geometry::Geometry;
use protocol::model::ModelManifest;
use std::ops::Range;

/// Consecutive positions in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentBatch {
    pub(super) group: u32,
    pub(super) places: Range<usize>,
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
    let first = *wanted.first()?;
    let (group, place) = geometry.place(first);
    let mut batch = SegmentBatch { group, places: place..place + 1 };
    let mut bytes = length(first);
    for index in &wanted[1..] {
        bytes += length(*index);
        if geometry.place(*index) != (group, batch.places.end) || bytes > bytes_max {
            break;
        }
        batch.places.end += 1;
    }
    let count = batch.places.len();
    Some((batch, count))
}

//! Work in portions: neighbouring segments of one group, read from each store with one request. Pure.

use crate::geometry::Geometry;
use protocol::model::ModelManifest;
use std::ops::Range;

/// Plaintext bytes of a batch, unless a single segment is larger: large enough that a request's overhead is
/// small beside its bytes, small enough that the first layer does not wait for the second.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// Neighbouring places of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) group: u32,
    pub(super) places: Range<usize>,
}

/// Joins wanted segments, in their order, into batches.
pub(super) fn batches(manifest: &ModelManifest, geometry: &Geometry, wanted: &[u32]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut bytes = 0;
    for index in wanted {
        let (group, place) = geometry.place(*index);
        let length = u64::from(manifest.segments[*index as usize].length);
        match batches.last_mut() {
            Some(last)
                if last.group == group && last.places.end == place && bytes + length <= BATCH_BYTES =>
            {
                last.places.end += 1;
                bytes += length;
            }
            _ => {
                batches.push(Batch { group, places: place..place + 1 });
                bytes = length;
            }
        }
    }
    batches
}

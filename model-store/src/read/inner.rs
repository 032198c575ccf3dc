//! The parts that all reads of one model share: its manifest and key, its stores and their measurements.

use super::flow::Flow;
use super::health::Health;
use crate::codec::{Cipher, Coder};
use crate::fault::{FaultKind, FaultSink};
use crate::geometry::Geometry;
use crate::pool::Pool;
use crate::store::Store;
use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use protocol::model::ModelManifest;
use std::ops::Range;
use std::sync::Arc;

/// Parts that all reads of one model share.
pub(super) struct Inner {
    pub(super) manifest: Arc<ModelManifest>,
    pub(super) geometry: Geometry,
    pub(super) cipher: Cipher,
    pub(super) coder: Coder,
    pub(super) stores: Vec<Store>,
    pub(super) health: Health,
    pub(super) flow: Arc<Flow>,
    pub(super) faults: FaultSink,
    pub(super) pool: Arc<Pool>,
}

/// Fetches a range of one shard's object from another machine.
pub(super) async fn fetch_range(
    inner: &Inner,
    shard: usize,
    path: &ObjectPath,
    range: Range<u64>,
) -> Result<Bytes, FaultKind> {
    let store = &inner.stores[shard];
    let read = store.get_range(path, range, |bytes| inner.flow.arrived(bytes)).await;
    read.map_err(|error| {
        tracing::debug!(store = store.url(), %path, %error, "range not read");
        FaultKind::of(&error)
    })
}

//! The parts that all reads of one model share: its manifest and key, its stores and their measurements.

use super::flow::Flow;
use super::health::Health;
use crate::codec::{Cipher, Coder};
use crate::fault::FaultSink;
use crate::geometry::Geometry;
use crate::pool::Pool;
use crate::store::Store;
use protocol::model::ModelManifest;
use std::sync::Arc;

/// Callback that receives the index of each segment once its bytes are verified and in place, from any
/// thread.
pub type OnSegment = Arc<dyn Fn(u32) + Send + Sync>;

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

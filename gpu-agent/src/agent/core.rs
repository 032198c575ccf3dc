//! Pure decision core of an agent: verification of orders, and reconciliation.
//!
//! Nothing here performs I/O, waits or reads the clock. The shell around it persists each decision before it
//! acts on it. The shell cannot start a slot that this module did not accept, because starting takes the
//! grant that only verification creates.

mod book;
mod data_places;
mod fences;
mod gang;
mod halts;
mod job_book;
mod job_ends;
mod job_room;
mod jobs;
mod reconcile;
mod room;
mod routes;
mod time;
mod verifier;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use book::{Held, OrderBook};
pub use data_places::{DataPlaces, data_places};
pub use fences::BookError;
pub use gang::{GangOrders, slot_address};
pub use halts::{halt_on, halted_slots};
pub use job_book::{HeldJob, JobOrderBook, JobSlotEnd, accepted_report, job_key};
pub use job_ends::{job_end, lapsed};
pub use job_room::HeldByJobs;
pub use jobs::{JobAction, JobInput, reconcile_jobs};
pub use protocol::Refusal;
pub use reconcile::{ReconcileInput, RunningSlot, SlotAction, reconcile};
pub use room::GrantedResources;
pub use routes::{RefusedRoute, check_routes};
pub use time::{TrustedTime, signed_at};
pub use verifier::OrderVerifier;

use protocol::agent::NodeResources;
use protocol::manifest::Isolation;
use protocol::order::SlotOrder;
use protocol::{ModelRoot, NodeId, ServiceName, SlotIndex};
use std::collections::BTreeMap;

/// One of a service's numbered slots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// Service that the slot belongs to.
    pub service: ServiceName,
    pub slot: SlotIndex,
}

impl SlotKey {
    /// Returns the slot of an order.
    #[must_use]
    pub fn of(order: &SlotOrder) -> Self {
        Self { service: order.service.clone(), slot: order.slot }
    }
}

impl std::fmt::Display for SlotKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.slot)
    }
}

/// Facts that only the node itself knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    pub id: NodeId,
    /// Isolation that the node can enforce.
    pub isolation: Isolation,
    /// Resources that it offers.
    pub resources: NodeResources,
    /// Size of the weights of each model in bytes: of those in memory as their manifests have it, and of the
    /// others as control reports it.
    pub weights: BTreeMap<ModelRoot, u64>,
}

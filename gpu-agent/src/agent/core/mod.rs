//! The decisions of an agent, as functions of their inputs: which orders count, and what follows from them.
//!
//! Nothing here opens, waits or asks for the time. The shell around it persists what is decided, before it
//! acts on it. May surprise: the shell cannot start a slot that this module did not accept, because
//! starting takes the grant that only verification makes.

mod book;
mod judge;
mod reconcile;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use book::{BookError, Held, OrderBook};
pub use judge::{History, Judge, Refusal};
pub use reconcile::{Action, RunningSlot, View, reconcile};

use protocol::agent::Isolation;
use protocol::order::SlotOrder;
use protocol::{NodeId, ServiceName, SlotIndex};
use std::collections::BTreeSet;

/// One of a service's numbered slots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// Which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
}

impl SlotKey {
    /// The slot that an order is for.
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

/// What only the node itself knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Who it is.
    pub id: NodeId,
    /// How well it can isolate.
    pub isolation: Isolation,
    /// Indices of its GPUs.
    pub gpus: BTreeSet<u32>,
}

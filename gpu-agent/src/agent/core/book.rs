//! The orders that this node accepted, and the highest fence of every slot it ever held.
//!
//! A fence never falls, though its order was given back long ago: that is what makes a replayed order
//! recognisable. The book in memory holds the proof beside each order; on disk only the order lies, and
//! reading it verifies it again against the chain as it was when the order was accepted.

use super::SlotKey;
use human_chain::{Approved, ChainError, CircleState, SlotGrant, check_order, verify_replay};
use protocol::agent_state::{HeldOrder, ORDER_BOOK_VERSION, OrderBookRecord, SlotFence};
use protocol::governance::{Bundle, SignedGenesis};
use protocol::order::SignedOrder;
use protocol::{CircleId, Fence, Millis, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An order that is held, and the proof that it may be.
#[derive(Debug, Clone)]
pub struct Held {
    /// What was accepted, and when.
    pub order: HeldOrder,
    /// What it entitles this node to.
    pub grant: Arc<Approved<SlotGrant>>,
}

/// Why a record is not this node's order book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// Another form than this release reads.
    #[error("has form {0}; this release reads {ORDER_BOOK_VERSION}")]
    Version(u32),
    /// Another circle's or another node's.
    #[error("belongs to another {0}")]
    Foreign(&'static str),
    /// Something this release never writes.
    #[error("contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// The orders and fences of one node.
#[derive(Debug, Clone, Default)]
pub struct OrderBook {
    fences: BTreeMap<SlotKey, Fence>,
    held: BTreeMap<SlotKey, Held>,
}

impl OrderBook {
    /// The highest fence ever accepted for a slot.
    #[must_use]
    pub fn last_fence(&self, key: &SlotKey) -> Option<Fence> {
        self.fences.get(key).copied()
    }

    /// The order held for a slot.
    #[must_use]
    pub fn held(&self, key: &SlotKey) -> Option<&Held> {
        self.held.get(key)
    }

    /// All orders held, by slot.
    pub fn all_held(&self) -> impl Iterator<Item = (&SlotKey, &Held)> {
        self.held.iter()
    }

    /// Notes an order as accepted; it replaces the one held before for its slot.
    ///
    /// # Panics
    /// When the grant is not the order's, or its fence not above the last: verification has said so.
    pub fn accept(
        &mut self,
        signed: SignedOrder,
        grant: Approved<SlotGrant>,
        governance_length: u64,
        accepted_at: Millis,
    ) {
        let (key, fence) = (SlotKey::of(&signed.order), signed.order.fence);
        let granted = grant.get();
        assert!(granted.service.name == key.service && granted.slot == key.slot && granted.fence == fence);
        assert!(self.last_fence(&key).is_none_or(|last| fence > last), "a fence never falls");
        self.fences.insert(key.clone(), fence);
        let order = HeldOrder { signed, governance_length, accepted_at, released: false };
        self.held.insert(key, Held { order, grant: Arc::new(grant) });
    }

    /// Notes that a slot has ended under its order, for good; control is told until it asks no more.
    pub fn release(&mut self, key: &SlotKey) {
        if let Some(held) = self.held.get_mut(key) {
            held.order.released = true;
        }
    }

    /// Gives an order back. Its fence stays.
    pub fn forget(&mut self, key: &SlotKey) {
        self.held.remove(key);
    }

    /// What the disk keeps.
    #[must_use]
    pub fn to_record(&self, circle: CircleId, node: NodeId) -> OrderBookRecord {
        let fence = |(key, fence): (&SlotKey, &Fence)| SlotFence {
            service: key.service.clone(),
            slot: key.slot,
            fence: *fence,
        };
        OrderBookRecord {
            version: ORDER_BOOK_VERSION,
            circle,
            node,
            fences: self.fences.iter().map(fence).collect(),
            held: self.held.values().map(|held| held.order.clone()).collect(),
        }
    }

    /// Reads a record back. Every held order is verified again, against the chain as it was when the order
    /// was accepted; those that do not verify are not held any more, and named beside the book. Their
    /// fences stay.
    ///
    /// # Errors
    /// [`BookError`]: then nothing of it is to be believed.
    pub fn from_record(
        record: OrderBookRecord,
        genesis: &SignedGenesis,
        bundles: &[Bundle],
        circle: CircleId,
        node: NodeId,
    ) -> Result<(Self, Vec<(SlotKey, ChainError)>), BookError> {
        if record.version != ORDER_BOOK_VERSION {
            return Err(BookError::Version(record.version));
        }
        if record.circle != circle {
            return Err(BookError::Foreign("circle"));
        }
        if record.node != node {
            return Err(BookError::Foreign("node"));
        }
        let mut book = Self::default();
        for SlotFence { service, slot, fence } in record.fences {
            if book.fences.insert(SlotKey { service, slot }, fence).is_some() {
                return Err(BookError::Contradiction("a slot has two fences"));
            }
        }
        for order in &record.held {
            let key = SlotKey::of(&order.signed.order);
            if book.last_fence(&key) != Some(order.signed.order.fence) {
                return Err(BookError::Contradiction("a held order's fence is not its slot's highest"));
            }
        }
        let unproven = book.prove(record.held, genesis, bundles, node);
        Ok((book, unproven))
    }

    /// Verifies orders against the chain's states at which they were accepted, in one replay.
    fn prove(
        &mut self,
        mut orders: Vec<HeldOrder>,
        genesis: &SignedGenesis,
        bundles: &[Bundle],
        node: NodeId,
    ) -> Vec<(SlotKey, ChainError)> {
        orders.sort_by_key(|order| order.governance_length);
        let mut unproven = Vec::new();
        let mut state = CircleState::found(genesis, None);
        let mut rest = bundles.iter();
        for order in orders {
            let key = SlotKey::of(&order.signed.order);
            while state.as_ref().is_ok_and(|state| state.length() < order.governance_length) {
                let Some(bundle) = rest.next() else { break };
                state = state.and_then(|mut state| {
                    let approved = verify_replay(&state, &bundle.certificate)?;
                    state.advance(approved)?;
                    Ok(state)
                });
            }
            let before = order.signed.order.fence.0.checked_sub(1).map(Fence);
            let grant = state
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|state| check_order(state, &order.signed, node, before, order.accepted_at));
            match grant {
                Ok(grant) => {
                    self.held.insert(key, Held { order, grant: Arc::new(grant) });
                }
                Err(error) => unproven.push((key, error)),
            }
        }
        unproven
    }
}

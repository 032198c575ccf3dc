//! The slots of one attempt as the orders of control give them, verified by a node that holds one of them.
//!
//! A node's own order names its own ranks alone. The orders for the other slots are the evidence of which
//! node holds which of the other ranks, so each of them passes the checks that its own node makes, but for
//! the fence, which that node alone knows. Together with the own one they have every rank once, of one
//! submission and attempt.

use super::order::{JobGrant, check_job_order, mismatch};
use crate::{ChainError, CircleState};
use protocol::job::{JobOrder, SignedJobOrder, SlotRanks};
use protocol::{Fence, JobId, Millis, NodeId, SlotIndex};
use std::collections::{BTreeMap, BTreeSet};

/// Slot of a gang, with the node that holds its ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GangSlot {
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Node of the slot.
    pub node: NodeId,
    /// Ranks of the slot.
    pub ranks: SlotRanks,
}

/// Every slot of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GangMembers {
    /// Submission that the ranks run.
    pub id: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// Slots in the order of their ranks; each rank of the gang is in one of them.
    pub slots: Vec<GangSlot>,
}

impl GangMembers {
    /// Returns the nodes of the gang other than this one.
    #[must_use]
    pub fn peers_of(&self, node: NodeId) -> BTreeSet<NodeId> {
        self.slots.iter().map(|slot| slot.node).filter(|other| *other != node).collect()
    }

    /// Returns whether every rank below `ranks` is in one slot, and no two slots have one index.
    fn is_whole(&self, ranks: u32) -> bool {
        let mut next = 0;
        let follows = |slot: &GangSlot| {
            let is_next = slot.ranks.first == next;
            next = slot.ranks.first.saturating_add(slot.ranks.count);
            is_next
        };
        let indices: BTreeSet<SlotIndex> = self.slots.iter().map(|slot| slot.slot).collect();
        self.slots.iter().all(follows) && next == ranks && indices.len() == self.slots.len()
    }
}

/// Verifies the orders for the other slots of an attempt, for the node that holds `grant`.
///
/// `now` is the node's trusted time.
///
/// # Errors
/// The first check that fails: of each peer's order the checks of [`check_job_order`], but for its last
/// fence; submission, attempt and certificate are those of the grant; each rank is in one slot, and each slot
/// is named once.
pub fn check_gang(
    state: &CircleState,
    grant: &JobGrant,
    peers: &[SignedJobOrder],
    now: Millis,
) -> Result<GangMembers, ChainError> {
    let own = GangSlot { slot: grant.slot, node: grant.node, ranks: grant.place };
    let mut slots = BTreeMap::from([(own.ranks.first, own)]);
    for signed in peers {
        let slot = check_peer_order(state, grant, signed, now)?;
        if slots.insert(slot.ranks.first, slot).is_some() {
            return Err(mismatch(&signed.order, "another order of the gang has its ranks"));
        }
    }
    let slots = slots.into_values().collect();
    let members = GangMembers { id: grant.id, attempt: grant.attempt, slots };
    if !members.is_whole(grant.manifest.ranks) {
        let (service, slot) = (grant.manifest.name.clone(), grant.slot);
        let reason = "the orders of its gang do not have each rank once, in slots of their own";
        return Err(ChainError::OrderMismatch { service, slot, reason });
    }
    debug_assert!(members.slots.contains(&own), "a node is a member of its own gang");
    Ok(members)
}

fn check_peer_order(
    state: &CircleState,
    grant: &JobGrant,
    signed: &SignedJobOrder,
    now: Millis,
) -> Result<GangSlot, ChainError> {
    let JobOrder { certificate, submission, attempt, slot, node, ranks, .. } = &signed.order;
    let is_same_run =
        (submission.submission.id(), *attempt, *certificate) == (grant.id, grant.attempt, grant.certificate);
    if !is_same_run {
        return Err(mismatch(&signed.order, "it is of another submission or attempt than the gang"));
    }
    let peer = check_job_order(state, signed, *node, Some(before(&signed.order)), now)?;
    debug_assert_eq!(peer.get().ranks.len(), ranks.count as usize, "the grant has the order's ranks");
    Ok(GangSlot { slot: *slot, node: *node, ranks: *ranks })
}

/// Verifies the evidence by which two nodes of a gang meet at a third, and returns the node that `from` is to
/// meet.
///
/// The orders are judged at their times of issue: a link may be made again after the deadline of the
/// submission, while the attempt still runs.
///
/// # Errors
/// An order that its own node would refuse, an order of `from` for another node, two orders of one node, and
/// orders of two submissions or attempts.
pub fn check_meeting(
    state: &CircleState,
    own: &SignedJobOrder,
    peer: &SignedJobOrder,
    from: NodeId,
) -> Result<NodeId, ChainError> {
    let (here, there) = (&own.order, &peer.order);
    if here.node != from || there.node == from {
        return Err(mismatch(here, "the orders are not those of the dialling node and of another one"));
    }
    let grant = check_job_order(state, own, from, Some(before(here)), here.issued_at)?;
    check_peer_order(state, grant.get(), peer, there.issued_at).map(|slot| slot.node)
}

/// Returns the fence just below that of an order: a slot's fences are counted by its own node.
fn before(order: &JobOrder) -> Fence {
    Fence::new(order.fence.version, order.fence.count.saturating_sub(1))
}

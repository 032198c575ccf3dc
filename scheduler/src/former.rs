//! Former holders of a slot: nodes that fell silent while they held it, and lost it.
//!
//! Such a node knows of nothing that was decided since, and may run the slot for the autonomy of its order.
//! No exclusive order goes out in that time. The wait ends early by the node's own report alone, that it
//! released the slot under this order or a later one. A node persists a release before it reports it, and
//! accepts no order of that fence or a lower one again. The report therefore stays true, however late it is.

use crate::clock::ClusterTime;
use crate::cluster::Slot;
use crate::limits::FORMER_HOLDERS_MAX;
use protocol::{Fence, NodeId};
use serde::{Deserialize, Serialize};

/// Node that was silent when it lost a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormerHolder {
    /// Node that may still run the slot.
    pub node: NodeId,
    /// Fence of its last order for the slot.
    pub fence: Fence,
    /// Time until which it may run the slot.
    pub until: ClusterTime,
}

impl Slot {
    /// Records a holder that loses the slot at `now`, and may run it until its time. A node that is listed
    /// already is awaited for its last order. Beyond the limit of the list, a node is awaited until its time,
    /// regardless of its reports.
    pub(crate) fn keep_former(&mut self, former: FormerHolder, now: ClusterTime) {
        debug_assert!(former.fence <= self.fence, "a slot was held under one of its fences");
        self.former_holders.retain(|known| known.until > now);
        if former.until <= now {
            return;
        }
        if let Some(known) = self.former_holders.iter_mut().find(|known| known.node == former.node) {
            known.fence = known.fence.max(former.fence);
            known.until = known.until.max(former.until);
        } else if self.former_holders.len() < FORMER_HOLDERS_MAX {
            self.former_holders.push(former);
        } else {
            self.others_may_run_until = self.others_may_run_until.max(Some(former.until));
        }
        debug_assert!(self.former_holders.len() <= FORMER_HOLDERS_MAX, "the list has its limit");
        debug_assert!(self.may_run_until(now) >= Some(former.until), "the slot waits for this node");
    }

    /// Removes a former holder that released the slot under this fence; returns whether it was listed so.
    pub(crate) fn release_former(&mut self, node: &NodeId, fence: Fence) -> bool {
        let before = self.former_holders.len();
        self.former_holders.retain(|known| known.node != *node || known.fence != fence);
        self.former_holders.len() < before
    }

    /// Returns the time until which a former holder may still run the slot; none if none may.
    pub(crate) fn may_run_until(&self, now: ClusterTime) -> Option<ClusterTime> {
        let listed = self.former_holders.iter().map(|former| former.until);
        listed.chain(self.others_may_run_until).filter(|until| *until > now).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Millis, PublicKey};

    fn at(ms: u64) -> ClusterTime {
        ClusterTime(Millis(ms))
    }

    fn former(node: u8, count: u64, until: u64) -> FormerHolder {
        FormerHolder { node: NodeId(PublicKey([node; 32])), fence: Fence::new(1, count), until: at(until) }
    }

    fn slot() -> Slot {
        Slot { fence: Fence::new(1, 99), ..Slot::default() }
    }

    #[test]
    fn a_slot_waits_for_each_former_holder_until_its_time() {
        let mut slot = slot();
        assert_eq!(slot.may_run_until(at(0)), None);
        slot.keep_former(former(1, 1, 500), at(10));
        slot.keep_former(former(2, 2, 300), at(20));
        for (now, expected) in [(20, Some(at(500))), (499, Some(at(500))), (500, None)] {
            assert_eq!(slot.may_run_until(at(now)), expected, "at {now}");
        }
        slot.keep_former(former(3, 3, 900), at(400));
        assert_eq!(
            slot.former_holders,
            [former(1, 1, 500), former(3, 3, 900)],
            "one that is over is dropped"
        );
        slot.keep_former(former(4, 4, 400), at(400));
        assert_eq!(slot.former_holders.len(), 2, "nothing to wait for");
    }

    #[test]
    fn a_former_holder_is_released_under_its_last_order_alone() {
        let mut slot = slot();
        slot.keep_former(former(1, 1, 500), at(10));
        slot.keep_former(former(1, 4, 400), at(20));
        assert_eq!(slot.former_holders, [former(1, 4, 500)], "awaited for the last order, and no shorter");
        for other in [former(1, 1, 500), former(2, 4, 500)] {
            assert!(!slot.release_former(&other.node, other.fence), "{other:?}");
        }
        assert_eq!(slot.may_run_until(at(20)), Some(at(500)));
        assert!(slot.release_former(&former(1, 4, 0).node, Fence::new(1, 4)));
        assert_eq!(slot.may_run_until(at(20)), None);
    }

    /// The attack: so many nodes fall silent that the list has no place for one of them.
    #[test]
    fn a_full_list_forgets_no_former_holder() {
        let mut slot = slot();
        let count = u8::try_from(FORMER_HOLDERS_MAX).expect("a short list");
        (0..=count).for_each(|node| slot.keep_former(former(node, 1, 500 + u64::from(node)), at(10)));
        assert_eq!(slot.former_holders.len(), FORMER_HOLDERS_MAX);
        for node in 0..=count {
            let listed = slot.release_former(&former(node, 1, 0).node, Fence::new(1, 1));
            assert_eq!(listed, node < count, "{node}");
        }
        let last = 500 + u64::from(count);
        assert_eq!(slot.may_run_until(at(10)), Some(at(last)), "the one without a place is awaited");
        assert_eq!(slot.may_run_until(at(last)), None);
    }
}

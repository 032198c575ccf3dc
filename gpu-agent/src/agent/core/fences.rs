//! The highest fence of every slot that a node ever held. Both books keep one: of services and of jobs.
//!
//! A fence never falls, even long after its order was released: this makes a replayed order recognisable.

use super::SlotKey;
use protocol::agent_state::SlotFence;
use protocol::{CircleId, Fence, NodeId};
use std::collections::BTreeMap;

/// Reason why a record is not this node's book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// The version is not the one that this release reads.
    #[error("has form {found}; this release reads {read}")]
    Version { found: u32, read: u32 },
    /// The record belongs to another circle or another node.
    #[error("belongs to another {0}")]
    Foreign(&'static str),
    /// The record contains something that this release never writes.
    #[error("contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// Format and owner of a book, with which its record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BookHead {
    pub(super) version: u32,
    pub(super) circle: CircleId,
    pub(super) node: NodeId,
}

impl BookHead {
    /// Checks that a record with this head belongs to the book with the other.
    ///
    /// # Errors
    /// [`BookError::Version`] and [`BookError::Foreign`].
    pub(super) fn check(self, own: Self) -> Result<(), BookError> {
        if self.version != own.version {
            return Err(BookError::Version { found: self.version, read: own.version });
        }
        if self.circle != own.circle {
            return Err(BookError::Foreign("circle"));
        }
        if self.node != own.node {
            return Err(BookError::Foreign("node"));
        }
        Ok(())
    }
}

/// Highest fence of each slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Fences(BTreeMap<SlotKey, Fence>);

impl Fences {
    /// Returns the highest fence ever accepted for a slot.
    pub(super) fn highest(&self, key: &SlotKey) -> Option<Fence> {
        self.0.get(key).copied()
    }

    /// Records the fence of an order that is accepted.
    ///
    /// # Panics
    /// If it is not above the last: verification rules this out.
    pub(super) fn raise(&mut self, key: SlotKey, fence: Fence) {
        assert!(self.highest(&key).is_none_or(|last| fence > last), "a fence never falls");
        self.0.insert(key, fence);
    }

    /// Checks that a slot is held at its highest fence.
    ///
    /// # Errors
    /// The text of the contradiction.
    pub(super) fn check_held(&self, key: &SlotKey, fence: Fence) -> Result<(), String> {
        if self.highest(key) == Some(fence) {
            return Ok(());
        }
        let last = self.highest(key).map_or("none".into(), |fence| fence.to_string());
        Err(format!("{key} is held at fence {fence}, its highest is {last}"))
    }

    /// Checks that these fences may follow those of `before`: none is lower or forgotten.
    ///
    /// # Errors
    /// The text of the first violated invariant.
    pub(super) fn check_follows(&self, before: &Self) -> Result<(), String> {
        let fell = before.0.iter().find(|(key, fence)| self.highest(key).is_none_or(|now| now < **fence));
        match fell {
            Some((key, fence)) => Err(format!("the fence of {key} fell below {fence}")),
            None => Ok(()),
        }
    }

    /// Returns the fences to persist, by slot.
    pub(super) fn to_list(&self) -> Vec<SlotFence> {
        let fence = |(key, fence): (&SlotKey, &Fence)| SlotFence {
            service: key.service.clone(),
            slot: key.slot,
            fence: *fence,
        };
        self.0.iter().map(fence).collect()
    }

    /// Restores the fences of a record.
    ///
    /// # Errors
    /// [`BookError::Contradiction`] if a slot has two.
    pub(super) fn from_list(list: Vec<SlotFence>) -> Result<Self, BookError> {
        let mut fences = BTreeMap::new();
        for SlotFence { service, slot, fence } in list {
            if fences.insert(SlotKey { service, slot }, fence).is_some() {
                return Err(BookError::Contradiction("a slot has two fences"));
            }
        }
        Ok(Self(fences))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use protocol::{Digest, PublicKey, SlotIndex};

    /// Returns these fences after a fault of the disk: one is set, or lost.
    pub(in super::super) fn planted(mut fences: Fences, key: &SlotKey, fence: Option<Fence>) -> Fences {
        match fence {
            Some(fence) => fences.0.insert(key.clone(), fence),
            None => fences.0.remove(key),
        };
        fences
    }

    fn key(slot: u32) -> SlotKey {
        SlotKey { service: "chat".parse().unwrap(), slot: SlotIndex(slot) }
    }

    fn fences() -> Fences {
        let mut fences = Fences::default();
        fences.raise(key(0), Fence::new(1, 5));
        fences.raise(key(1), Fence::new(1, 5));
        fences
    }

    #[test]
    fn a_fence_rises_by_version_and_then_by_count() {
        let mut fences = fences();
        fences.raise(key(0), Fence::new(1, 6));
        fences.raise(key(0), Fence::new(2, 1));
        assert_eq!(fences.highest(&key(0)), Some(Fence::new(2, 1)));
        assert_eq!(fences.highest(&key(1)), Some(Fence::new(1, 5)));
        assert_eq!(fences.highest(&key(2)), None);
        assert_eq!(fences.check_held(&key(0), Fence::new(2, 1)), Ok(()));
    }

    /// The attack is an order that was accepted before: of the same fence, or of a lower one.
    #[test]
    fn a_fence_that_was_accepted_is_not_accepted_again() {
        for replayed in [Fence::new(1, 5), Fence::new(1, 4), Fence::new(0, 9)] {
            let raised = std::panic::catch_unwind(|| fences().raise(key(0), replayed));
            assert!(raised.is_err(), "{replayed}");
        }
    }

    #[test]
    fn a_fence_that_falls_or_is_forgotten_is_found() {
        let before = fences();
        assert_eq!(before.check_follows(&before), Ok(()));
        assert_eq!(before.check_follows(&Fences::default()), Ok(()), "more slots are no fault");
        for fault in [Some(Fence::new(1, 4)), None] {
            let after = planted(before.clone(), &key(0), fault);
            assert_eq!(after.check_follows(&before), Err("the fence of chat/0 fell below 1.5".into()));
        }
    }

    #[test]
    fn fences_come_back_from_a_record_unless_it_names_a_slot_twice() {
        let mut list = fences().to_list();
        assert_eq!(Fences::from_list(list.clone()).unwrap().to_list(), list);
        list.push(SlotFence { fence: Fence::new(1, 9), ..list[0].clone() });
        let error = Fences::from_list(list).unwrap_err();
        assert_eq!(error.to_string(), "contradicts itself: a slot has two fences");
    }

    #[test]
    fn a_head_of_another_form_circle_or_node_is_refused_by_name() {
        let circle = |name: &[u8]| CircleId(Digest::of(name));
        let own = BookHead { version: 2, circle: circle(b"own"), node: NodeId(PublicKey([1; 32])) };
        assert_eq!(own.check(own), Ok(()));
        for (head, text) in [
            (BookHead { version: 3, ..own }, "has form 3; this release reads 2"),
            (BookHead { circle: circle(b"other"), ..own }, "belongs to another circle"),
            (BookHead { node: NodeId(PublicKey([2; 32])), ..own }, "belongs to another node"),
        ] {
            assert_eq!(head.check(own).unwrap_err().to_string(), text);
        }
    }
}

//! Keys by which halts were signed: a halt is judged by the keys that it names, also after its member has
//! others.
//!
//! A change of keys ends no halt. A suspension voids all halts of its member by the keys so far, except those
//! that it lists. The list stays with these keys when the member gets new ones. So a node that was away
//! during the suspension counts no voided halt, even if its own book has it.

use super::CircleState;
use protocol::governance::Member;
use protocol::halt::Halt;
use protocol::{Digest, HaltId, PublicKey};
use std::collections::{BTreeMap, BTreeSet};

/// Former signing keys of a member, each with the halts that suspensions left; none without a suspension.
pub(super) type FormerSigners = BTreeMap<PublicKey, Option<BTreeSet<Digest>>>;

impl CircleState {
    /// Records that a member gives up its keys, with the list of the suspension that ends by it, if any.
    pub(super) fn give_up_signer(&mut self, member: &Member, left: Option<&BTreeSet<Digest>>) {
        let signers = self.former_signers.entry(member.id.clone()).or_default();
        let known = signers.insert(member.keys.ed25519, None);
        debug_assert_eq!(known, None, "a key that was given up never returns");
        let Some(left) = left else { return };
        for kept in signers.values_mut() {
            *kept = Some(kept.take().map_or_else(|| left.clone(), |earlier| &earlier & left));
        }
    }

    /// Returns whether the member of a halt has, or had, the key that the halt names, and no suspension
    /// voided the halt.
    pub(crate) fn signer_counts(&self, id: &HaltId, halt: &Halt) -> bool {
        let Some(member) = self.members.get(&halt.member) else { return false };
        let is_left = self.suspended.get(&member.id).is_none_or(|left| left.contains(&id.0));
        is_left && (member.keys.ed25519 == halt.signer || self.former_signer_counts(id, halt))
    }

    fn former_signer_counts(&self, id: &HaltId, halt: &Halt) -> bool {
        let signer = self.former_signers.get(&halt.member).and_then(|signers| signers.get(&halt.signer));
        signer.is_some_and(|left| left.as_ref().is_none_or(|left| left.contains(&id.0)))
    }

    /// Returns whether a suspension named this halt of keys that are no longer in force as one that stands.
    /// The circle vouches for its id, which no signature of these keys could do any more.
    pub(crate) fn is_vouched_for(&self, id: &HaltId, halt: &Halt) -> bool {
        let signer = self.former_signers.get(&halt.member).and_then(|signers| signers.get(&halt.signer));
        signer.is_some_and(|left| left.as_ref().is_some_and(|left| left.contains(&id.0)))
    }
}

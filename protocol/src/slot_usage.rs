//! Counts that a node made of a slot, as the node states them to control: CPU time, and tokens of services.
//!
//! Time is metered by orders, which every replica knows. Counts are known to the node alone, so it signs
//! them, and each replica verifies the signature before it counts. They only rise under one order: the same
//! statement again, or an earlier one, adds nothing.

use crate::canonical;
use crate::ids::{CircleId, Fence, NodeId, ServiceName, SlotIndex};
use crate::keys::Signature;
use crate::usage::UsageCounts;
use serde::{Deserialize, Serialize};

/// Signature domain of a node's statement about the counts of a slot.
pub const SLOT_USAGE_DOMAIN: &str = "quorate/slot-usage/v1";
/// Format version of the statement that this release writes and reads.
pub const SLOT_USAGE_VERSION: u32 = 1;
/// Most statements in one request.
pub const SLOT_USAGES_MAX: usize = 256;

/// Statement of a node about one slot that it holds or held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotUsage {
    /// Format version of this statement: [`SLOT_USAGE_VERSION`].
    pub version: u32,
    /// Circle that ordered the slot.
    pub circle: CircleId,
    /// Node that held the slot, counted and signs.
    pub node: NodeId,
    /// Name of the service or job.
    pub envelope: ServiceName,
    /// Index of the slot.
    pub slot: SlotIndex,
    /// Fence of the order under which the node held the slot.
    pub fence: Fence,
    /// Counts since the order.
    pub counts: UsageCounts,
}

/// Statement with the signature of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedSlotUsage {
    /// Statement that the node signed.
    pub usage: SlotUsage,
    /// Signature by the node's identity key, domain [`SLOT_USAGE_DOMAIN`].
    pub signature: Signature,
}

impl SignedSlotUsage {
    /// Returns whether the statement is of this format and circle, and signed by the named node. The caller
    /// must check that the node held the slot under this fence.
    #[must_use]
    pub fn holds(&self, circle: CircleId) -> bool {
        let SlotUsage { version, circle: named, node, .. } = &self.usage;
        let bytes = canonical::to_bytes(&self.usage);
        debug_assert!(!bytes.is_empty(), "a statement has its fields");
        (*version, *named) == (SLOT_USAGE_VERSION, circle)
            && node.0.verifies(SLOT_USAGE_DOMAIN, &bytes, &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::keys::{PublicKey, signing_input};
    use ed25519_dalek::{Signer, SigningKey};

    const CIRCLE: CircleId = CircleId(Digest([1; 32]));

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn usage() -> SlotUsage {
        SlotUsage {
            version: SLOT_USAGE_VERSION,
            circle: CIRCLE,
            node: NodeId(PublicKey(key(7).verifying_key().to_bytes())),
            envelope: "chat".parse().expect("a name"),
            slot: SlotIndex(3),
            fence: Fence::new(1, 2),
            counts: UsageCounts { cpu_used_microseconds: 9, prompt_tokens: 12, generated_tokens: 34 },
        }
    }

    fn sign(usage: SlotUsage, seed: u8, domain: &str) -> SignedSlotUsage {
        let input = signing_input(domain, &canonical::to_bytes(&usage));
        SignedSlotUsage { usage, signature: Signature(key(seed).sign(&input).to_bytes()) }
    }

    /// Attacks of a party that has a sound statement and no key of the node.
    #[test]
    fn a_statement_holds_as_its_node_signed_it_and_in_its_circle() {
        let sound = sign(usage(), 7, SLOT_USAGE_DOMAIN);
        assert!(sound.holds(CIRCLE), "positive control");
        assert!(!sound.holds(CircleId(Digest([2; 32]))), "in another circle");
        let altered: [fn(&mut SlotUsage); 6] = [
            |usage| usage.counts.generated_tokens += 1,
            |usage| usage.counts.prompt_tokens -= 1,
            |usage| usage.fence.count += 1,
            |usage| usage.slot = SlotIndex(4),
            |usage| usage.envelope = "other".parse().expect("a name"),
            |usage| usage.node = NodeId(PublicKey(key(8).verifying_key().to_bytes())),
        ];
        for (number, alter) in altered.into_iter().enumerate() {
            let mut forged = sound.clone();
            alter(&mut forged.usage);
            assert!(!forged.holds(CIRCLE), "alteration {number}");
        }
        assert!(!sign(usage(), 8, SLOT_USAGE_DOMAIN).holds(CIRCLE), "by another key");
        assert!(!sign(usage(), 7, "quorate/ticket/v1").holds(CIRCLE), "signed for another purpose");
        let later = SlotUsage { version: SLOT_USAGE_VERSION + 1, ..usage() };
        assert!(!sign(later, 7, SLOT_USAGE_DOMAIN).holds(CIRCLE), "of another format");
    }
}

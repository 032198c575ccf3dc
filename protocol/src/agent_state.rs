//! Records that an agent keeps on disk across restarts, and requests of the operator on the same machine.
//! Nothing here crosses a network.

use crate::error_code::ErrorCode;
use crate::governance::Bundle;
use crate::ids::{CircleId, Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::order::SignedOrder;
use serde::{Deserialize, Serialize};

/// Digest domain of an agent's order book.
pub const ORDER_BOOK_DOMAIN: &str = "quorate/order-book/v1";
/// Maximum size of an order book on disk in bytes: fences of about 200,000 slots, far beyond a node's
/// lifetime.
pub const ORDER_BOOK_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Format version of the order book that this release writes and reads.
pub const ORDER_BOOK_VERSION: u32 = 1;

/// Orders that a node accepted, as stored on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderBookRecord {
    /// Format version of this record: [`ORDER_BOOK_VERSION`].
    pub version: u32,
    /// Circle that the orders belong to.
    pub circle: CircleId,
    /// Node that accepted the orders.
    pub node: NodeId,
    /// Highest fence ever accepted for each slot, sorted by slot. A slot's fence never falls.
    pub fences: Vec<SlotFence>,
    /// Orders held now, at most one per slot, sorted by slot.
    pub held: Vec<HeldOrder>,
}

/// Highest fence that a node ever accepted for a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotFence {
    /// Service that the slot belongs to.
    pub service: ServiceName,
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Highest accepted fence.
    pub fence: Fence,
}

/// Order that a node accepted and has not released. It is verified again on every read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOrder {
    /// Order as control signed it.
    pub signed: SignedOrder,
    /// Number of governance bundles that the node had verified on acceptance: the state that the order was
    /// verified against.
    pub governance_length: u64,
    /// Time of acceptance by the node's wall clock.
    pub accepted_at: Millis,
    /// True once the node has stopped the slot and reported that to control. The slot never starts under this
    /// order again.
    pub released: bool,
}

/// Request to verify an order as if control had sent it. The agent verifies the order and never executes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOrder {
    /// Governance bundle that approves the order's service.
    pub bundle: Bundle,
    /// Order to verify.
    pub order: SignedOrder,
}

/// Result of an agent's verification of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// True if the agent would execute the order.
    pub accepted: bool,
    /// Reason for a rejection; none if the order is accepted.
    pub code: Option<ErrorCode>,
    /// Result as text for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::{from_bytes, to_bytes};
    use crate::order::SlotOrder;
    use crate::{Digest, PublicKey, Signature};

    fn held() -> HeldOrder {
        let order = SlotOrder {
            circle: CircleId(Digest::of(b"circle")),
            service: "chat".parse().expect("a name"),
            certificate: Digest::of(b"certificate"),
            slot: SlotIndex(3),
            fence: Fence::new(1, 7),
            node: NodeId(PublicKey([1; 32])),
            gpus: vec![0, 2],
            issued_at: Millis(5),
        };
        let signed = SignedOrder { order, signer: PublicKey([2; 32]), signature: Signature([3; 64]) };
        HeldOrder { signed, governance_length: 2, accepted_at: Millis(6), released: false }
    }

    #[test]
    fn an_order_book_survives_its_encoding() {
        let held = held();
        let fence = SlotFence {
            service: held.signed.order.service.clone(),
            slot: SlotIndex(3),
            fence: Fence::new(1, 7),
        };
        let record = OrderBookRecord {
            version: ORDER_BOOK_VERSION,
            circle: held.signed.order.circle,
            node: held.signed.order.node,
            fences: vec![fence],
            held: vec![held],
        };
        assert_eq!(from_bytes(&to_bytes(&record), ORDER_BOOK_BYTES_MAX), Ok(record));
    }

    #[test]
    fn a_verdict_survives_its_encoding() {
        for code in [None, Some(crate::error_code::ORDER_REPLAYED)] {
            let verdict = Verdict { accepted: code.is_none(), code, message: "why".into() };
            assert_eq!(from_bytes(&to_bytes(&verdict), 1024), Ok(verdict));
        }
    }
}

//! What an agent keeps on its own disk across restarts, and what its operator may ask it on its own
//! machine. Nothing here crosses a network.

use crate::error_code::ErrorCode;
use crate::governance::Bundle;
use crate::ids::{CircleId, Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::order::SignedOrder;
use serde::{Deserialize, Serialize};

/// Digest domain of an agent's order book.
pub const ORDER_BOOK_DOMAIN: &str = "quorate/order-book/v1";
/// Largest order book on disk: about 200,000 slots' fences, far beyond a node's life.
pub const ORDER_BOOK_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The form of the order book that this release writes and reads.
pub const ORDER_BOOK_VERSION: u32 = 1;

/// The orders that a node accepted, as its disk keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderBookRecord {
    /// The form of this record; [`ORDER_BOOK_VERSION`].
    pub version: u32,
    /// In which circle.
    pub circle: CircleId,
    /// Whose orders.
    pub node: NodeId,
    /// The highest fence ever accepted for each slot, sorted by slot. It never falls.
    pub fences: Vec<SlotFence>,
    /// The orders held now, sorted by slot, one for each.
    pub held: Vec<HeldOrder>,
}

/// The highest fence that a node ever accepted for a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotFence {
    /// Which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
    /// The fence.
    pub fence: Fence,
}

/// An order that a node accepted and has not given back. It is verified again whenever it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOrder {
    /// What was accepted.
    pub signed: SignedOrder,
    /// How many governance bundles the node had verified then: what the order was judged against.
    pub governance_length: u64,
    /// When, by the node's wall clock.
    pub accepted_at: Millis,
    /// The node has ended the slot and told control so; it never starts under this order again.
    pub released: bool,
}

/// Asks an agent to judge an order as if control had sent it. It is judged, never executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOrder {
    /// The authority that comes with it.
    pub bundle: Bundle,
    /// The order.
    pub order: SignedOrder,
}

/// What an agent thinks of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Whether it would carry the order out.
    pub accepted: bool,
    /// Why not.
    pub code: Option<ErrorCode>,
    /// For people.
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
            fence: Fence(7),
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
        let fence =
            SlotFence { service: held.signed.order.service.clone(), slot: SlotIndex(3), fence: Fence(7) };
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

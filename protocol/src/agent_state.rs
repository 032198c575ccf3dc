//! Records that an agent keeps on disk across restarts, and requests of the operator on the same machine.
//! Nothing here crosses a network.

use crate::agent::Desired;
use crate::error_code::ErrorCode;
use crate::governance::Bundle;
use crate::halt::SignedHalt;
use crate::ids::{BootId, BootTime, CircleId, Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::job_report::JobSlotReport;
use crate::limits::SYNC_BYTES_MAX;
use crate::order::SignedOrder;
use serde::{Deserialize, Serialize};

/// Digest domain of an agent's order book.
pub const ORDER_BOOK_DOMAIN: &str = "quorate/order-book/v1";
/// Digest domain of an agent's book of job slots.
pub const JOB_BOOK_DOMAIN: &str = "quorate/job-book/v1";
/// Format version of the book of job slots that this release writes and reads.
pub const JOB_BOOK_VERSION: u32 = 1;
/// Digest domain of the highest head of a circle's history that an agent keeps.
pub const KEPT_HEAD_DOMAIN: &str = "quorate/kept-head/v1";
/// Digest domain of the circle's state that an agent verified and keeps.
pub const KEPT_STATE_DOMAIN: &str = "quorate/kept-state/v1";
/// Maximum size of an order book on disk in bytes: fences of about 200,000 slots, far beyond a node's
/// lifetime.
pub const ORDER_BOOK_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Format version of the order book that this release writes and reads.
pub const ORDER_BOOK_VERSION: u32 = 1;
/// Digest domain of control's last answer that an agent keeps.
pub const LAST_ANSWER_DOMAIN: &str = "quorate/last-answer/v1";
/// Format version of the last answer that this release writes and reads.
pub const LAST_ANSWER_VERSION: u32 = 1;
/// Maximum size of the last answer on disk in bytes: a desired state came in one answer of control.
pub const LAST_ANSWER_BYTES_MAX: usize = SYNC_BYTES_MAX + 1024;

/// Control's last answer to a node, as stored on its disk. A restarted agent that no control replica
/// answers continues from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastAnswerRecord {
    /// Format version of this record: [`LAST_ANSWER_VERSION`].
    pub version: u32,
    /// Circle of the control plane that answered.
    pub circle: CircleId,
    /// Node that was answered.
    pub node: NodeId,
    /// Start of the machine to whose boot clock `heard_at` belongs.
    pub boot: BootId,
    /// Boot clock at the request of an answer. Later ones may have followed.
    pub heard_at: BootTime,
    /// Desired state of the node, as answered last.
    pub desired: Desired,
}

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

/// Slots of jobs that a node accepted, as stored on its disk. Nothing starts from this record: an agent that
/// reads it reports the slots that had not ended as lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobBookRecord {
    /// Format version of this record: [`JOB_BOOK_VERSION`].
    pub version: u32,
    /// Circle that the jobs belong to.
    pub circle: CircleId,
    /// Node that accepted the orders.
    pub node: NodeId,
    /// Highest fence ever accepted for each slot of each job, sorted by slot. A slot's fence never falls.
    pub fences: Vec<SlotFence>,
    /// Slots held now, sorted by slot: as accepted, or as they ended.
    pub held: Vec<JobSlotReport>,
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

/// Request of the operator to an agent on the same machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminRequest {
    /// Verify an order; it is never executed.
    Order(Box<HandOrder>),
    /// Take a halt. Its member's signature is the authority, and not the way that it came.
    Halt(Box<SignedHalt>),
}

/// Result of an agent's verification of an order, or of a halt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// True if the agent would execute the order, or has taken the halt.
    pub accepted: bool,
    /// Reason for a rejection; none if the order or halt is accepted.
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
    fn a_last_answer_survives_its_encoding() {
        let held = held();
        let record = LastAnswerRecord {
            version: LAST_ANSWER_VERSION,
            circle: held.signed.order.circle,
            node: held.signed.order.node,
            boot: BootId(Digest::of(b"start")),
            heard_at: BootTime(7),
            desired: Desired { assignments: vec![], routes: None, jobs: vec![] },
        };
        let bytes = to_bytes(&record);
        assert_eq!(from_bytes(&bytes, LAST_ANSWER_BYTES_MAX), Ok(record.clone()));
        let other = LastAnswerRecord { boot: BootId(Digest::of(b"another start")), ..record };
        assert_ne!(to_bytes(&other), bytes, "a record names the start of its machine");
    }

    #[test]
    fn a_verdict_survives_its_encoding() {
        for code in [None, Some(crate::error_code::ORDER_REPLAYED)] {
            let verdict = Verdict { accepted: code.is_none(), code, message: "why".into() };
            assert_eq!(from_bytes(&to_bytes(&verdict), 1024), Ok(verdict));
        }
    }
}

//! Orders and tickets. An order assigns a numbered slot to a node; a ticket proves to a gateway that a worker
//! serves it.

use crate::digest::Digest;
use crate::ids::{BootTime, CircleId, Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::keys::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Signature domain of an order.
pub const ORDER_DOMAIN: &str = "quorate/order/v2";
/// Signature domain of a ticket.
pub const TICKET_DOMAIN: &str = "quorate/ticket/v2";

/// Assignment of a slot to a node by control. It grants nothing: the authority is the certificate that it
/// names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotOrder {
    /// Circle that the order belongs to.
    pub circle: CircleId,
    /// Service that the slot belongs to.
    pub service: ServiceName,
    /// Digest of the certificate that approves the service.
    pub certificate: Digest,
    /// Index of the slot, within the envelope.
    pub slot: SlotIndex,
    /// Fence of this order, above that of the slot's previous order.
    pub fence: Fence,
    /// Node that the slot is assigned to.
    pub node: NodeId,
    /// Indices of the node's GPUs that the slot uses, sorted: whole GPUs, or the one that it shares.
    pub gpus: Vec<u32>,
    /// Time of issue by control's clock.
    pub issued_at: Millis,
}

/// Order with the signature of a control replica, domain [`ORDER_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedOrder {
    /// Order that the replica signed.
    pub order: SlotOrder,
    /// Key of the control replica that signed; genesis lists these keys.
    pub signer: PublicKey,
    /// Signature over the order's canonical bytes.
    pub signature: Signature,
}

impl SignedOrder {
    /// Checks that the signature is by the named signer. The caller must check that the signer may sign
    /// orders.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = crate::canonical::to_bytes(&self.order);
        self.signer.verifies(ORDER_DOMAIN, &bytes, &self.signature)
    }
}

/// Statement of a node to a gateway that a worker key serves a slot which the node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Service that the slot belongs to.
    pub service: ServiceName,
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Fence of the order under which the node holds the slot.
    pub fence: Fence,
    /// Node that holds the slot and signs the ticket.
    pub node: NodeId,
    /// TLS key of the worker.
    pub worker: PublicKey,
    /// TLS key of the gateway that may accept the ticket.
    pub gateway: PublicKey,
    /// End of the node's lease by its wall clock. With a generous grace, it bounds how late a worker that is
    /// new to the gateway may present the ticket. The ticket's remaining validity is not computed from it.
    pub expires_at: Millis,
    /// End of the node's lease on its boot clock in milliseconds; this clock cannot be set. The gateway
    /// computes from it how much longer one ticket is valid than another. It drops the worker when its newest
    /// ticket expires.
    pub lease_until_boottime_ms: BootTime,
}

/// Ticket with the signature of its node, domain [`TICKET_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedTicket {
    /// Ticket that the node signed.
    pub ticket: Ticket,
    /// Signature by the node's identity key.
    pub signature: Signature,
}

/// Maximum size of an encoded ticket in bytes: names of 63 bytes, keys and a signature, with a margin.
pub const TICKET_BYTES_MAX: usize = 2048;

const _: () = assert!(
    TICKET_BYTES_MAX < crate::limits::FRAME_BYTES_MAX,
    "an agent hands a ticket to a worker in one frame"
);

impl SignedTicket {
    /// Checks that the signature is by the named node. The route table states whether that node holds the
    /// slot.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = crate::canonical::to_bytes(&self.ticket);
        debug_assert!(bytes.len() + Signature::LENGTH < TICKET_BYTES_MAX, "each field is short by its type");
        self.ticket.node.0.verifies(TICKET_DOMAIN, &bytes, &self.signature)
    }
}

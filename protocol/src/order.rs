//! Orders and tickets: which node holds which numbered slot, and proof of it for a gateway.

use crate::digest::Digest;
use crate::ids::{CircleId, Fence, Millis, NodeId, ServiceName, SlotIndex};
use crate::keys::{PublicKey, Signature};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Signature domain of an order.
pub const ORDER_DOMAIN: &str = "quorate/order/v1";
/// Signature domain of a ticket.
pub const TICKET_DOMAIN: &str = "quorate/ticket/v1";

/// Control's word that a node holds a slot. It grants nothing by itself: the certificate it names does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotOrder {
    /// In which circle.
    pub circle: CircleId,
    /// Which service.
    pub service: ServiceName,
    /// Digest of the certificate that approves it.
    pub certificate: Digest,
    /// Which of the envelope's numbered slots.
    pub slot: SlotIndex,
    /// One more than the slot's previous order.
    pub fence: Fence,
    /// Who holds it.
    pub node: NodeId,
    /// Indices of the node's GPUs that it uses: whole ones, or the one of which it has a share. Sorted.
    pub gpus: Vec<u32>,
    /// Control's time of issue.
    pub issued_at: Millis,
}

/// An order signed by a control replica's key, domain [`ORDER_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedOrder {
    /// What was signed.
    pub order: SlotOrder,
    /// Which control key; genesis lists them.
    pub signer: PublicKey,
    /// Over the order's canonical bytes.
    pub signature: Signature,
}

impl SignedOrder {
    /// Whether the signature is the named signer's. Whether the signer may sign is the caller's question.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = crate::canonical::to_bytes(&self.order);
        self.signer.verifies(ORDER_DOMAIN, &bytes, &self.signature)
    }
}

/// A node's word to a gateway that a worker key serves a slot which the node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
    /// Under which order.
    pub fence: Fence,
    /// The node that holds it, and signs.
    pub node: NodeId,
    /// The worker's own TLS key.
    pub worker: PublicKey,
    /// The gateway that may accept it.
    pub gateway: PublicKey,
    /// The end of the node's lease by the node's wall clock. It bounds, with a generous grace, how late a worker
    /// that the gateway has never seen may come with it; how long it is good is not counted on it.
    pub expires_at: Millis,
    /// The same on the node's boot clock, which nobody sets: what one ticket outlives another by. The gateway
    /// drops the worker when its newest ticket lapses.
    pub lease_until_boottime_ms: u64,
}

/// A ticket signed by its node, domain [`TICKET_DOMAIN`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedTicket {
    /// What was signed.
    pub ticket: Ticket,
    /// By the node's identity key.
    pub signature: Signature,
}

/// Largest encoded ticket: names of 63 bytes, keys and a signature, generously.
pub const TICKET_BYTES_MAX: usize = 2048;

impl SignedTicket {
    /// Whether the signature is the named node's. Whether the node holds the slot is the table's answer.
    #[must_use]
    pub fn signature_holds(&self) -> bool {
        let bytes = crate::canonical::to_bytes(&self.ticket);
        self.ticket.node.0.verifies(TICKET_DOMAIN, &bytes, &self.signature)
    }
}

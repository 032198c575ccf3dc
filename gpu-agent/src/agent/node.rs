//! State shared by all tasks of an agent: the node's identity, its lease, and the circle's state.

use super::lease::Lease;
use super::logs::LogQueue;
use super::models::Models;
use super::resources::OfferedResources;
use crate::device::Device;
use host::Clock;
use human_chain::CircleState;
use overlay::{Identity, PublicKey};
use protocol::model::{
    Recipient, RecipientSignature, SignedComplaint, SignedWrap, WRAP_COMPLAINT_DOMAIN, WrapComplaint,
};
use protocol::order::{SignedTicket, TICKET_DOMAIN, Ticket};
use protocol::{Fence, NodeId, canonical};
use sandbox::Launcher;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// State shared by all tasks of an agent.
pub(super) struct Node {
    pub(super) identity: Identity,
    pub(super) launcher: Arc<dyn Launcher>,
    pub(super) clock: Clock,
    pub(super) device: Box<dyn Device>,
    /// Path of the `quorate-serve` executable.
    pub(super) serve_program: PathBuf,
    pub(super) models: Models,
    pub(super) resources: OfferedResources,
    pub(super) logs: LogQueue,
    pub(super) lease: watch::Sender<Lease>,
    /// State of the circle, as verified and persisted.
    pub(super) circle: watch::Sender<Arc<CircleState>>,
    /// Notified when a change should be reported to control soon.
    pub(super) news: Notify,
}

impl Node {
    pub(super) fn id(&self) -> NodeId {
        NodeId(self.identity.public_key())
    }

    /// Returns the address at which workers reach each admitted gateway, by the gateway's key.
    pub(super) fn gateways(&self) -> BTreeMap<PublicKey, String> {
        let circle = self.circle.borrow();
        let endpoints = circle.nodes().filter_map(|node| node.gateway.as_ref());
        endpoints.map(|gateway| (gateway.key, gateway.address.clone())).collect()
    }

    /// Returns whether the node may act now.
    pub(super) fn lease_holds(&self) -> bool {
        self.lease.borrow().holds(&self.clock)
    }

    /// Signs a complaint: the wrap does not give this node the key of its model.
    pub(super) fn complaint(&self, signed: &SignedWrap) -> SignedComplaint {
        let complaint = WrapComplaint {
            circle: self.circle.borrow().id(),
            root: signed.wrap.root,
            recipient: Recipient::Node(self.id()),
            wrap: signed.digest(),
        };
        let signature = self.identity.sign(WRAP_COMPLAINT_DOMAIN, &canonical::to_bytes(&complaint));
        SignedComplaint { complaint, signature: RecipientSignature::Node(signature) }
    }

    /// Signs a ticket: this node states that `worker` serves a slot it holds. It expires with the node's
    /// lease.
    pub(super) fn ticket(
        &self,
        key: &super::core::SlotKey,
        fence: Fence,
        worker: PublicKey,
        gateway: PublicKey,
    ) -> SignedTicket {
        let lease = *self.lease.borrow();
        let ticket = Ticket {
            service: key.service.clone(),
            slot: key.slot,
            fence,
            node: self.id(),
            worker,
            gateway,
            expires_at: lease.expires_at(&self.clock),
            lease_until_boottime_ms: lease.until,
        };
        let signature = self.identity.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
        SignedTicket { ticket, signature }
    }
}

//! State shared by all tasks of an agent: the node's identity, its leases, and the circle's state.

use super::control_client::AgentControlClient;
use super::gangs::Gangs;
use super::jobs::areas::JobAreas;
use super::jobs::lines::RankLines;
use super::jobs::slot_logs::LogStorage;
use super::jobs::trees::ArtifactTrees;
use super::lease::Lease;
use super::logs::LogQueue;
use super::models::Models;
use super::resources::OfferedResources;
use crate::device::Device;
use host::Clock;
use human_chain::CircleState;
use overlay::{Identity, PublicKey};
use protocol::limits::SYNC_INTERVAL_MS;
use protocol::manifest::ServiceManifest;
use protocol::model::{
    Recipient, RecipientSignature, SignedComplaint, SignedWrap, WRAP_COMPLAINT_DOMAIN, WrapComplaint,
};
use protocol::order::{SignedTicket, TICKET_DOMAIN, Ticket};
use protocol::slot_usage::{SLOT_USAGE_DOMAIN, SLOT_USAGE_VERSION, SignedSlotUsage, SlotUsage};
use protocol::usage::UsageCounts;
use protocol::{CircleId, Fence, NodeId, ServiceName, SlotIndex, canonical};
use sandbox::Launcher;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Interval at which the main loop renews the liveness lease: six renewals in each.
pub(super) const RENEWAL_INTERVAL: Duration = Duration::from_millis(SYNC_INTERVAL_MS);

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
    /// Output of the ranks of jobs, on its way to control.
    pub(super) rank_lines: RankLines,
    /// Logs of ended slots of jobs, on their way to the stores.
    pub(super) log_storage: LogStorage,
    /// Unpacked artifacts of jobs.
    pub(super) trees: ArtifactTrees,
    /// Directories behind the writable areas of jobs.
    pub(super) areas: JobAreas,
    pub(super) control: Arc<AgentControlClient>,
    /// Gangs whose ranks are on several nodes or in several slots.
    pub(super) gangs: Arc<Gangs>,
    pub(super) lease: watch::Sender<Lease>,
    /// Length of a liveness lease, and of the longest lease accepted from control, in milliseconds.
    pub(super) lease_ms_max: u64,
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

    /// Returns whether the lease of control's last answer holds.
    pub(super) fn hears_control(&self) -> bool {
        self.clock.boot() < self.lease.borrow().granted_until()
    }

    /// Renews the liveness lease. Called by the main loop alone, so that nothing runs on if it hangs.
    pub(super) fn renew_liveness(&self) {
        self.lease.send_if_modified(|lease| lease.renew(self.clock.boot(), self.lease_ms_max));
    }

    /// Waits for `work` in the main loop, and keeps renewing the liveness lease while it waits: control may
    /// be slow to answer.
    pub(super) async fn while_renewing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut renewals = tokio::time::interval(RENEWAL_INTERVAL);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = renewals.tick() => self.renew_liveness(),
            }
        }
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

    /// Signs a statement about the counts of a slot.
    pub(super) fn slot_usage(
        &self,
        circle: CircleId,
        (envelope, slot, fence): (&ServiceName, SlotIndex, Fence),
        counts: UsageCounts,
    ) -> SignedSlotUsage {
        let (version, node, envelope) = (SLOT_USAGE_VERSION, self.id(), envelope.clone());
        let usage = SlotUsage { version, circle, node, envelope, slot, fence, counts };
        let signature = self.identity.sign(SLOT_USAGE_DOMAIN, &canonical::to_bytes(&usage));
        SignedSlotUsage { usage, signature }
    }

    /// Signs a ticket: this node states that `worker` serves a slot it holds. It expires with the slot's
    /// lease.
    pub(super) fn ticket(
        &self,
        (key, fence, service): (&super::core::SlotKey, Fence, &ServiceManifest),
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
            expires_at: lease.expires_at(service, &self.clock),
            lease_until_boottime_ms: lease.until(service),
        };
        let signature = self.identity.sign(TICKET_DOMAIN, &canonical::to_bytes(&ticket));
        SignedTicket { ticket, signature }
    }
}

//! Test fixture: circles of a few nodes, and the orders of attempts of one job.
#![allow(clippy::unwrap_used)]

use crate::agent::core::GangOrders;
use crate::agent::core::testing::{NOW, TestCircle, admission, claimed_by, job};
use human_chain::{JobGrant, MemberSecret, check_gang, check_job_order};
use overlay::Identity;
use protocol::canonical::to_bytes;
use protocol::gang::GangMeeting;
use protocol::governance::{Change, NodeRole, StorageEndpoint};
use protocol::job::{
    JOB_ORDER_DOMAIN, JobOrder, JobSubmission, SignedJobOrder, SignedSubmission, SlotRanks, Submitter,
};
use protocol::manifest::Manifest;
use protocol::{Digest, Fence, JobId, NodeId, SlotIndex};
use sandbox::GangId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A gang that no circle knows, for what depends on no orders.
pub(super) const GANG: GangId = GangId { job: JobId(Digest([5; 32])), attempt: 1 };

pub(super) fn identity(node: u8) -> Identity {
    Identity::from_seed(&[node; 32])
}

pub(super) fn node_key(node: u8) -> NodeId {
    NodeId(identity(node).public_key())
}

/// Returns a circle of these workers, some with a storage address, that has approved the job `train` of four
/// ranks.
pub(in crate::agent) fn circle_of(nodes: &[(u8, Option<&str>)]) -> TestCircle {
    let node = |(number, address): &(u8, Option<&str>)| {
        let encryption = MemberSecret::generate(&[100 + number; 64]).public().encryption;
        let mut node = admission(&format!("node-{number}"), &identity(*number), encryption);
        if let Some(address) = address {
            node.roles.insert(NodeRole::Storage);
            let (address, stores) = ((*address).to_string(), ["disk-0".parse().unwrap()].into());
            node.storage = Some(StorageEndpoint { address, stores });
        }
        claimed_by(&identity(*number), node)
    };
    let mut world = TestCircle::new(nodes.iter().map(node).collect(), &["127.0.0.1:1".into()], NOW);
    let mut manifest = job("train");
    (manifest.ranks, manifest.ranks_per_slot) = (4, 4);
    world.decide(Change::Deploy(Box::new(Manifest::Job(manifest))));
    world
}

/// An attempt of a submission to the job `train`: which node holds which ranks.
#[derive(Clone)]
pub(in crate::agent) struct Attempt {
    pub(super) control: Identity,
    pub(super) template: JobOrder,
    /// Node, first rank and number of ranks of each slot.
    pub(super) slots: Vec<(u8, u32, u32)>,
    /// Distinguishes submissions with the same parameters.
    pub(super) submission: u8,
    pub(super) number: u32,
}

impl Attempt {
    pub(super) fn of(world: &TestCircle, slots: &[(u8, u32, u32)]) -> Self {
        let approved = world.state.job(&"train".parse().unwrap()).unwrap();
        let submission = JobSubmission {
            circle: world.state.id(),
            job: "train".parse().unwrap(),
            certificate: approved.certificate,
            idempotency: Digest::of(b""),
            parameters: BTreeMap::new(),
            artifact: None,
            command: None,
            priority: 0,
            submitter: Submitter::Token("ci".parse().unwrap()),
            issued_at: NOW,
            deadline: NOW.plus(3_600_000),
            after: vec![],
            array: None,
        };
        let template = JobOrder {
            circle: world.state.id(),
            certificate: approved.certificate,
            submission: SignedSubmission { submission, signature: None },
            attempt: 1,
            slot: SlotIndex(0),
            fence: Fence::new(approved.version, 1),
            node: node_key(0),
            ranks: SlotRanks { first: 0, count: 4 },
            gpus: vec![],
            issued_at: NOW,
        };
        let control = world.control[0].clone();
        Self { control, template, slots: slots.to_vec(), submission: 1, number: 1 }
    }

    /// Returns an attempt whose first two ranks one node holds, and the others another.
    pub(in crate::agent) fn of_two(world: &TestCircle, one: u8, other: u8) -> Self {
        Self::of(world, &[(one, 0, 2), (other, 2, 2)])
    }

    pub(in crate::agent) fn of_one(world: &TestCircle, node: u8) -> Self {
        Self::of(world, &[(node, 0, 4)])
    }

    fn order(&self, slot: usize) -> SignedJobOrder {
        let (node, first, count) = self.slots[slot];
        let mut order = JobOrder {
            attempt: self.number,
            slot: SlotIndex(slot as u32),
            node: node_key(node),
            ranks: SlotRanks { first, count },
            ..self.template.clone()
        };
        order.submission.submission.idempotency = Digest::of(&[self.submission]);
        let signature = self.control.sign(JOB_ORDER_DOMAIN, &to_bytes(&order));
        SignedJobOrder { order, signer: self.control.public_key(), signature }
    }

    fn slot_of(&self, node: u8) -> usize {
        self.slots.iter().position(|slot| slot.0 == node).unwrap()
    }

    pub(super) fn gang(&self) -> GangId {
        GangId { job: self.order(0).order.submission.submission.id(), attempt: self.number }
    }

    /// Returns the evidence that a node brings to a third one.
    pub(super) fn meeting(&self, from: u8) -> GangMeeting {
        let own = self.slot_of(from);
        let peer = (0..self.slots.len()).find(|slot| *slot != own).unwrap();
        GangMeeting { own: self.order(own), peer: self.order(peer) }
    }

    /// Returns the orders as a node verified them.
    pub(in crate::agent) fn orders(&self, world: &TestCircle, node: u8) -> Arc<GangOrders> {
        self.orders_of_slot(world, self.slot_of(node))
    }

    pub(super) fn orders_of_slot(&self, world: &TestCircle, slot: usize) -> Arc<GangOrders> {
        let own = self.order(slot);
        let peers = (0..self.slots.len()).filter(|other| *other != slot).map(|other| self.order(other));
        let peers: Vec<SignedJobOrder> = peers.collect();
        let granted = check_job_order(&world.state, &own, own.order.node, None, NOW).unwrap();
        let grant: &JobGrant = granted.get();
        let members = check_gang(&world.state, grant, &peers, NOW).unwrap();
        Arc::new(GangOrders { members, own, peers })
    }
}

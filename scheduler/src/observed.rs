//! What the leader alone knows: which nodes it hears, and what they say. Not replicated, not trusted
//! after a change of leader.
//!
//! The leases rest on four rules that the shell must keep:
//! 1. A new leader answers no agent before its own [`Action::Lead`](crate::Action::Lead) of this term is
//!    applied, and makes its `Observed` with its own clock's time after that.
//! 2. It answers a request for a lease only after a read barrier that began after the request arrived. An
//!    agent counts its lease from when it *sent* the request, so no lease given by an earlier leader
//!    outlives the new leader's first [`LEASE_MS`].
//! 3. Its `now` never jumps ahead of real time: a wall clock that is set forward would end every lease here
//!    while nodes still count on theirs. Take a wall clock once and count on with a monotonic one.
//! 4. Before it proposes a plan it calls [`Observed::condemn`]; a node whose lapse is under way gets no
//!    answer until the plan is decided ([`Observed::heard`] says so). Otherwise a late renewal would
//!    cross the lapse in the log and two nodes would hold one slot.

use crate::command::Step;
use crate::plan::Plan;
use protocol::agent::{Isolation, NodeResources, SlotReport, SyncRequest};
use protocol::limits::LEASE_MS;
use protocol::{Fence, Millis, NodeId, ServiceName, SlotIndex};
use std::collections::BTreeMap;

/// What the leader knows of its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    leader_since: Millis,
    nodes: BTreeMap<NodeId, ObservedNode>,
    /// Nodes named in a lapse under way, and the generation in which it was planned.
    condemned: BTreeMap<NodeId, u64>,
}

/// What a node said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
    /// When, by the leader's clock.
    pub heard_at: Millis,
    /// Since when it has been heard without its lease ever ending.
    pub alive_since: Millis,
    /// The cluster's generation when it was heard: it was answered from that state or a later one.
    pub generation: u64,
    /// Which start of its agent.
    pub boot: u64,
    /// Its software.
    pub version: String,
    /// What it has.
    pub resources: NodeResources,
    /// How well it isolates.
    pub isolation: Isolation,
    /// What it cannot enforce.
    pub not_enforced: Vec<String>,
    /// Its slots.
    pub slots: Vec<SlotReport>,
}

/// Whether a node's lease holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It was heard within the last lease.
    Alive,
    /// Not heard by this leader; an earlier leader's lease may hold until then.
    Unknown {
        /// The end of the last possible lease.
        until: Millis,
    },
    /// Its last possible lease ended.
    Dead {
        /// The last time it could have renewed.
        silent_since: Millis,
    },
}

/// A node whose lapse is being decided gets no lease now; it asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node was silent for a lease and its slots are being taken; ask again")]
pub struct LapseUnderWay;

impl Observed {
    /// The view of a leader that has heard nobody yet. `leader_since` is its own clock's time after its
    /// [`Action::Lead`](crate::Action::Lead) was applied; every `now` given later is by the same clock.
    #[must_use]
    pub fn new(leader_since: Millis) -> Self {
        Self { leader_since, nodes: BTreeMap::new(), condemned: BTreeMap::new() }
    }

    /// When this leader began.
    #[must_use]
    pub fn leader_since(&self) -> Millis {
        self.leader_since
    }

    /// Notes a node's request, received at `now`; the node may be answered. `generation` is the cluster's
    /// when the answer is made from it.
    ///
    /// # Errors
    /// When the node's lapse is under way: it must get no answer.
    pub fn heard(
        &mut self,
        node: NodeId,
        request: &SyncRequest,
        generation: u64,
        now: Millis,
    ) -> Result<(), LapseUnderWay> {
        if self.condemned.get(&node).is_some_and(|planned| generation <= *planned) {
            return Err(LapseUnderWay);
        }
        self.condemned.remove(&node);
        // Should the clock fall behind, a lease that was given counts from the latest time seen.
        let known = self.nodes.get(&node);
        let heard_at = now.max(known.map_or(self.leader_since, |known| known.heard_at));
        let unbroken = known.filter(|known| known.heard_at.plus(LEASE_MS) > heard_at);
        let alive_since = unbroken.map_or(heard_at, |known| known.alive_since);
        self.nodes.insert(
            node,
            ObservedNode {
                heard_at,
                alive_since,
                generation,
                boot: request.boot,
                version: request.version.clone(),
                resources: request.resources.clone(),
                isolation: request.isolation,
                not_enforced: request.not_enforced.clone(),
                slots: request.slots.clone(),
            },
        );
        Ok(())
    }

    /// Notes which nodes a plan takes slots from, before the plan is proposed. They get no lease until
    /// the cluster's generation shows that the plan was carried out or is stale.
    pub fn condemn(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if let Step::Lapse { node, .. } = step {
                self.condemned.insert(*node, plan.parent_generation);
            }
        }
    }

    /// What a node said last to this leader.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<&ObservedNode> {
        self.nodes.get(node)
    }

    /// Whether a node's lease holds.
    #[must_use]
    pub fn liveness(&self, node: &NodeId, now: Millis) -> Liveness {
        let heard = self.nodes.get(node).map(|known| known.heard_at);
        let silent_since = heard.map_or(self.leader_since, |at| at.max(self.leader_since));
        let until = silent_since.plus(LEASE_MS);
        match heard {
            Some(at) if at.plus(LEASE_MS) > now => Liveness::Alive,
            _ if until > now => Liveness::Unknown { until },
            _ => Liveness::Dead { silent_since },
        }
    }

    /// Whether a node's lease surely holds, so that it can be given work.
    #[must_use]
    pub fn is_alive(&self, node: &NodeId, now: Millis) -> bool {
        self.liveness(node, now) == Liveness::Alive
    }

    /// What a node last said of a slot under this very order.
    #[must_use]
    pub fn report(
        &self,
        node: &NodeId,
        service: &ServiceName,
        slot: SlotIndex,
        fence: Fence,
    ) -> Option<&SlotReport> {
        let known = self.nodes.get(node)?;
        known.slots.iter().find(|r| r.service == *service && r.slot == slot && r.fence == fence)
    }
}

//! The replicated state: everything that every control replica must agree on, and its snapshot.
//!
//! It is changed by [`apply`](crate::apply) alone. It holds no secret: tokens and keys are hashes, model
//! keys are wraps.

use crate::audit::Audit;
use crate::command::{Actor, SlotName};
use crate::limits::{CLOSED_PROPOSALS_MAX, SNAPSHOT_BYTES_MAX};
use crate::outcomes::Outcomes;
use human_chain::{ChainError, CircleState};
use protocol::agent::PendingNode;
use protocol::api::ProposalState;
use protocol::canonical::{CanonicalError, from_bytes, to_bytes};
use protocol::gateway::ApiKey;
use protocol::governance::{
    AccessToken, Bundle, Change, NodeAdmission, Proposal, SignedBallot, SignedGenesis,
};
use protocol::manifest::ServiceManifest;
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::order::SlotOrder;
use protocol::{
    CircleId, Digest, Fence, MemberId, Millis, ModelRoot, NodeId, ProposalId, ReplicaId, ServiceName,
    SlotIndex, TokenName,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Domain of the state's digest.
const CLUSTER_DOMAIN: &str = "quorate/cluster/v1";

/// Everything that is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub(crate) now: Millis,
    pub(crate) generation: u64,
    pub(crate) leadership: Option<Leadership>,
    pub(crate) circle: Option<Circle>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    /// Manifests in force, and those under which a slot still runs, by certificate.
    pub(crate) manifests: BTreeMap<Digest, ServiceManifest>,
    pub(crate) models: BTreeMap<ModelRoot, ModelRecord>,
    pub(crate) wraps: BTreeMap<ModelRoot, BTreeMap<Recipient, KeyWrap>>,
    pub(crate) api_keys: BTreeMap<TokenName, ApiKey>,
    pub(crate) pending: BTreeMap<NodeId, PendingNode>,
    pub(crate) open: BTreeMap<ProposalId, OpenProposal>,
    pub(crate) closed: VecDeque<ClosedProposal>,
    pub(crate) audit: Audit,
    pub(crate) outcomes: Outcomes,
}

/// Who leads, and since when by the cluster's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leadership {
    /// Which replica.
    pub replica: ReplicaId,
    /// When its leadership was applied.
    pub since: Millis,
}

/// The circle: how it began and all that it decided. What follows from that is computed, never read:
/// a snapshot holds the certificates, and reading one verifies them all again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CircleRecord", into = "CircleRecord")]
pub(crate) struct Circle {
    pub(crate) genesis: SignedGenesis,
    pub(crate) chain: Vec<Bundle>,
    pub(crate) state: CircleState,
    /// Where in the chain a certificate is.
    pub(crate) positions: BTreeMap<Digest, usize>,
}

/// What of a [`Circle`] is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CircleRecord {
    genesis: SignedGenesis,
    chain: Vec<Bundle>,
}

impl From<Circle> for CircleRecord {
    fn from(circle: Circle) -> Self {
        Self { genesis: circle.genesis, chain: circle.chain }
    }
}

impl TryFrom<CircleRecord> for Circle {
    type Error = ChainError;

    fn try_from(record: CircleRecord) -> Result<Self, ChainError> {
        let certificates = record.chain.iter().map(|bundle| &bundle.certificate);
        let state = CircleState::replay(&record.genesis, None, certificates)?;
        let digests = record.chain.iter().map(|bundle| bundle.certificate.digest());
        let positions = digests.enumerate().map(|(position, digest)| (digest, position)).collect();
        Ok(Self { genesis: record.genesis, chain: record.chain, state, positions })
    }
}

/// A service, from its first approval on. It stays known after its retirement, for its slots' fences:
/// nodes refuse a fence that they have seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What the circle approved last.
    pub manifest: ServiceManifest,
    /// The certificate that approves it.
    pub certificate: Digest,
    /// Replicas wanted now, within the envelope.
    pub desired: u32,
    /// How far it is in its life.
    pub phase: ServicePhase,
    /// Slots that were ever ordered.
    pub slots: BTreeMap<SlotIndex, Slot>,
    /// Nodes where it failed, and until when it is not tried there again.
    pub avoid: BTreeMap<NodeId, Millis>,
}

/// How far a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServicePhase {
    /// Approved.
    Active,
    /// Being retired.
    Retiring {
        /// When the grace for requests under way ends.
        until: Millis,
    },
    /// Ended; every slot is free.
    Retired,
}

/// One numbered slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Of its last order; 0 = never ordered.
    pub fence: Fence,
    /// Who holds it; none = free.
    pub holding: Option<Holding>,
    /// Since when it is held or free.
    pub since: Millis,
    /// Who held it before.
    pub last_holder: Option<NodeId>,
}

/// A held slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// The order in force.
    pub order: SlotOrder,
    /// How far.
    pub phase: HoldingPhase,
    /// The slot whose place it takes once it answers, if its replica moves. Without meaning when that slot
    /// does not run under that order any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotName>,
}

/// How far a held slot is. It can be ordered again only when it is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HoldingPhase {
    /// Shall run.
    Running,
    /// Finishes what runs.
    Draining {
        /// When its time is up.
        until: Millis,
        /// Why, for people.
        cause: String,
    },
    /// Its node is told to end it, and has not yet said that it did.
    Ending {
        /// The generation in which it was told so: a report that answers a later state counts.
        generation: u64,
    },
    /// Its node is no longer admitted and gets no lease; free when its last one ends.
    Lapsing,
}

/// A proposal that waits for votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenProposal {
    /// What is voted on.
    pub proposal: Proposal,
    /// Votes so far, checked.
    pub ballots: BTreeMap<MemberId, SignedBallot>,
    /// Who brought it.
    pub actor: Actor,
    /// When it was brought.
    pub submitted_at: Millis,
}

/// A proposal that was decided, or that nobody decided in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedProposal {
    /// What was voted on.
    pub proposal: Proposal,
    /// The votes.
    pub ballots: Vec<SignedBallot>,
    /// How it ended.
    pub state: ProposalState,
    /// Its certificate, if approved.
    pub certificate: Option<Digest>,
    /// When it ended.
    pub closed_at: Millis,
}

impl Cluster {
    /// A cluster in which nothing happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The whole state as canonical bytes.
    #[must_use]
    pub fn to_snapshot(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// The state that these bytes are.
    ///
    /// # Errors
    /// When they are not what [`Cluster::to_snapshot`] wrote.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, CanonicalError> {
        from_bytes(bytes, SNAPSHOT_BYTES_MAX)
    }

    /// Replicas wanted as soon as this manifest is approved: the minimum, or the number that the service was scaled to
    /// under an earlier approval, as far as the new envelope allows.
    pub(crate) fn desired_under(&self, manifest: &ServiceManifest) -> u32 {
        let range = manifest.replicas;
        let known = self.services.get(&manifest.name);
        let running = known.filter(|service| service.phase == ServicePhase::Active);
        running.map_or(range.min, |service| service.desired.min(range.max).max(range.min))
    }

    /// Digest of the whole state: equal on replicas that applied the same log.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(CLUSTER_DOMAIN, &self.to_snapshot())
    }

    /// The latest time that any applied command carried.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The time by which deadlines are judged: `now`, or the cluster's own time if that is later. Leases are
    /// never judged by it, since any replica's clock may have set it.
    pub(crate) fn time(&self, now: Millis) -> Millis {
        now.max(self.now)
    }

    /// Rises with every change that can matter to a plan.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Who leads.
    #[must_use]
    pub fn leadership(&self) -> Option<Leadership> {
        self.leadership
    }

    /// The circle's id, once founded.
    #[must_use]
    pub fn circle_id(&self) -> Option<CircleId> {
        self.circle.as_ref().map(|circle| circle.state.id())
    }

    /// How the circle began.
    #[must_use]
    pub fn genesis(&self) -> Option<&SignedGenesis> {
        self.circle.as_ref().map(|circle| &circle.genesis)
    }

    /// Members, policy, nodes and subjects' versions as the circle's decisions made them.
    #[must_use]
    pub fn circle_state(&self) -> Option<&CircleState> {
        self.circle.as_ref().map(|circle| &circle.state)
    }

    /// All that the circle decided, in log order.
    #[must_use]
    pub fn governance_chain(&self) -> &[Bundle] {
        self.circle.as_ref().map_or(&[], |circle| &circle.chain)
    }

    /// The bundles after the first `length`, as many as stay within `bytes_max`, but at least one.
    #[must_use]
    pub fn governance_tail(&self, length: u64, bytes_max: usize) -> Vec<Bundle> {
        let skip = usize::try_from(length).unwrap_or(usize::MAX);
        let mut bytes = 0_usize;
        let mut tail = Vec::new();
        for bundle in self.governance_chain().iter().skip(skip) {
            bytes = bytes.saturating_add(to_bytes(bundle).len());
            if bytes > bytes_max && !tail.is_empty() {
                break;
            }
            tail.push(bundle.clone());
        }
        tail
    }

    /// The bundle of this certificate.
    #[must_use]
    pub fn bundle(&self, certificate: &Digest) -> Option<&Bundle> {
        let circle = self.circle.as_ref()?;
        circle.chain.get(*circle.positions.get(certificate)?)
    }

    /// Every service ever approved, by name; retired ones too.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<ServiceName, Service> {
        &self.services
    }

    /// Registered models.
    #[must_use]
    pub fn models(&self) -> &BTreeMap<ModelRoot, ModelRecord> {
        &self.models
    }

    /// A registered model by name: of several versions, the one a service uses, else the lowest root.
    #[must_use]
    pub fn model_named(&self, name: &protocol::ModelName) -> Option<&ModelRecord> {
        let in_use = |record: &&ModelRecord| {
            self.services
                .values()
                .any(|s| s.phase != ServicePhase::Retired && s.manifest.model.root == record.root)
        };
        let mut named = self.models.values().filter(|record| record.name == *name);
        named.clone().find(in_use).or_else(|| named.next())
    }

    /// All wraps of a model's key.
    #[must_use]
    pub fn wraps(&self, root: &ModelRoot) -> Vec<KeyWrap> {
        self.wraps.get(root).map(|wraps| wraps.values().cloned().collect()).unwrap_or_default()
    }

    /// A model's key for one node.
    #[must_use]
    pub fn wrap_for(&self, root: &ModelRoot, node: NodeId) -> Option<&KeyWrap> {
        self.wraps.get(root)?.get(&Recipient::Node(node))
    }

    /// Inference keys, by hash.
    #[must_use]
    pub fn api_keys(&self) -> &BTreeMap<TokenName, ApiKey> {
        &self.api_keys
    }

    /// Nodes that wait for admission.
    #[must_use]
    pub fn pending_nodes(&self) -> &BTreeMap<NodeId, PendingNode> {
        &self.pending
    }

    /// Proposals that wait for votes.
    #[must_use]
    pub fn open_proposals(&self) -> &BTreeMap<ProposalId, OpenProposal> {
        &self.open
    }

    /// The last decided proposals, oldest first.
    #[must_use]
    pub fn closed_proposals(&self) -> &VecDeque<ClosedProposal> {
        &self.closed
    }

    /// What was done, oldest first.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Admitted nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeAdmission> {
        self.circle.iter().flat_map(|circle| circle.state.nodes())
    }

    /// The admission of this identity.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&NodeAdmission> {
        self.circle.as_ref()?.state.node_by_id(*id)
    }

    /// What people call this identity: its admitted name, the name it was once admitted by, or the short
    /// form of its key.
    #[must_use]
    pub fn node_name(&self, id: &NodeId) -> String {
        let admitted = self.node(id).or_else(|| self.former_node(id));
        admitted.map_or_else(|| id.short(), |admission| admission.name.to_string())
    }

    fn former_node(&self, id: &NodeId) -> Option<&NodeAdmission> {
        let circle = self.circle.as_ref()?;
        let certified =
            circle.chain.iter().rev().filter_map(|bundle| match &bundle.certificate.proposal.change {
                Change::AdmitNode(admission) => Some(admission.as_ref()),
                _ => None,
            });
        certified.chain(&circle.genesis.genesis.nodes).find(|admission| admission.id == *id)
    }

    /// The access token with this hash. The caller compares hashes of 256-bit random texts, so an ordinary
    /// comparison tells an attacker nothing.
    #[must_use]
    pub fn token(&self, hash: &Digest) -> Option<&AccessToken> {
        self.circle_state()?.tokens().iter().find(|token| token.hash == *hash)
    }

    /// The manifest under which an order runs.
    #[must_use]
    pub fn manifest_of(&self, certificate: &Digest) -> Option<&ServiceManifest> {
        self.manifests.get(certificate)
    }

    /// Every held slot with its holding, by service and slot.
    pub fn holdings(&self) -> impl Iterator<Item = (&ServiceName, SlotIndex, &Holding)> {
        self.services.iter().flat_map(|(name, service)| {
            service.slots.iter().filter_map(move |(index, slot)| Some((name, *index, slot.holding.as_ref()?)))
        })
    }

    pub(crate) fn close_proposal(
        &mut self,
        id: ProposalId,
        state: ProposalState,
        certificate: Option<Digest>,
    ) {
        let Some(open) = self.open.remove(&id) else { return };
        self.closed.push_back(ClosedProposal {
            proposal: open.proposal,
            ballots: open.ballots.into_values().collect(),
            state,
            certificate,
            closed_at: self.now,
        });
        while self.closed.len() > CLOSED_PROPOSALS_MAX {
            self.closed.pop_front();
        }
    }
}

impl Service {
    /// Slots that are held, in whatever phase.
    pub fn held(&self) -> impl Iterator<Item = (SlotIndex, &Holding)> {
        self.slots.iter().filter_map(|(index, slot)| Some((*index, slot.holding.as_ref()?)))
    }

    /// Whether its approval has ended by itself.
    #[must_use]
    pub fn is_expired(&self, now: Millis) -> bool {
        self.manifest.valid_until.is_some_and(|until| until <= now)
    }
}

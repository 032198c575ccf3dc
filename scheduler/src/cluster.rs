//! Replicated state: everything on which all control replicas must agree, and its snapshot.
//!
//! Only [`apply`](crate::apply) changes it. It holds no secret: tokens and API keys are hashes, model keys
//! are wraps.

use crate::audit::Audit;
use crate::clock::ClusterTime;
use crate::command::{Actor, Refusal, SlotName};
use crate::fair_share::ShareBook;
use crate::former::FormerHolder;
use crate::jobs::JobBook;
use crate::limits::{CLOSED_PROPOSALS_MAX, SNAPSHOT_BYTES_MAX};
use crate::outcomes::Outcomes;
use crate::roll_out::{ReturnTarget, RollOut, RollOutPhase};
use crate::usage::UsageBook;
use human_chain::{AccessBook, ChainError, CircleState, FoundGrant, check_grant_stands};
use protocol::access::GrantedAccess;
use protocol::agent::PendingNode;
use protocol::api::ProposalState;
use protocol::canonical::{CanonicalError, from_own_bytes, to_bytes};
use protocol::comment::SignedComment;
use protocol::error_code::TOKEN_UNKNOWN;
use protocol::governance::{
    Bundle, Change, NodeAdmission, Proposal, SignedBallot, SignedGenesis, TokenScope,
};
use protocol::manifest::ServiceManifest;
use protocol::model::{ModelRecord, Recipient, SignedWrap};
use protocol::order::SlotOrder;
use protocol::{
    CircleId, Digest, Fence, MemberId, Millis, ModelRoot, NodeId, ProposalId, ReplicaId, ServiceName,
    SlotIndex, TokenName,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Domain separator of the state's digest.
const CLUSTER_DOMAIN: &str = "quorate/cluster/v10";

/// The replicated state of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub(crate) now: ClusterTime,
    /// Number of times that the cluster's time was set back.
    pub(crate) corrections: u64,
    pub(crate) generation: u64,
    pub(crate) leadership: Option<Leadership>,
    pub(crate) circle: Option<Circle>,
    pub(crate) services: BTreeMap<ServiceName, Service>,
    /// Manifests in force, those to which a service may return, and those under which a slot still runs, by
    /// certificate.
    pub(crate) manifests: BTreeMap<Digest, ServiceManifest>,
    pub(crate) models: BTreeMap<ModelRoot, ModelRecord>,
    pub(crate) wraps: BTreeMap<ModelRoot, BTreeMap<Recipient, SignedWrap>>,
    /// Access tokens and inference keys that members granted, and what was revoked of them.
    pub(crate) access: AccessBook,
    pub(crate) pending: BTreeMap<NodeId, PendingNode>,
    pub(crate) drafts: BTreeMap<ProposalId, DraftProposal>,
    pub(crate) open: BTreeMap<ProposalId, OpenProposal>,
    pub(crate) closed: VecDeque<ClosedProposal>,
    /// Proposals of this epoch that were rejected, withdrawn or void and have not expired. None of them is
    /// opened again: ballots name a proposal by its id, and its public approvals would count once more.
    pub(crate) burned: BTreeMap<ProposalId, BurnedProposal>,
    pub(crate) audit: Audit,
    pub(crate) outcomes: Outcomes,
    /// Jobs: submissions, attempts and slots of gangs.
    pub(crate) jobs: JobBook,
    /// Metered usage: open meters, totals and the latest entries.
    pub(crate) usage: UsageBook,
    /// Amounts that projects held on average.
    pub(crate) shares: ShareBook,
}

/// An access token that stands: a member granted it, and nothing has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingToken<'a> {
    /// Person that holds the token.
    pub holder: &'a TokenName,
    /// Scopes that the token has.
    pub scopes: &'a BTreeSet<TokenScope>,
}

/// The leading replica, and the start of its leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leadership {
    /// Replica that leads.
    pub replica: ReplicaId,
    /// Time at which its leadership was applied.
    pub since: ClusterTime,
}

/// The circle: its genesis and all of its decisions. The state that follows is computed, never read: a
/// snapshot holds the certificates, and loading one verifies them all again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CircleRecord", into = "CircleRecord")]
pub(crate) struct Circle {
    pub(crate) genesis: SignedGenesis,
    pub(crate) chain: Vec<Bundle>,
    pub(crate) state: CircleState,
    /// Index in the chain of each certificate.
    pub(crate) positions: BTreeMap<Digest, usize>,
    /// Latest time at which a decided proposal was created; zero before the first.
    pub(crate) latest_created_at: Millis,
}

/// Serialized form of a [`Circle`].
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
        let positions: BTreeMap<_, _> =
            digests.enumerate().map(|(position, digest)| (digest, position)).collect();
        debug_assert_eq!(positions.len(), record.chain.len(), "a second copy of a certificate is stale");
        let created = record.chain.iter().map(|bundle| bundle.certificate.proposal.created_at);
        let latest_created_at = created.max().unwrap_or_default();
        Ok(Self { genesis: record.genesis, chain: record.chain, state, positions, latest_created_at })
    }
}

/// A service, from its first approval on. It remains after its retirement for its slots' fences: nodes refuse
/// a fence that they have already seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Manifest that the circle approved last, or the one before if the service has returned to it.
    pub manifest: ServiceManifest,
    /// Certificate that approves the manifest.
    pub certificate: Digest,
    /// Number of approved changes to the service, up to the certificate in force.
    pub version: u64,
    /// Replicas wanted now, within the envelope.
    pub desired: u32,
    /// Phase of its life cycle.
    pub phase: ServicePhase,
    /// Slots that have ever been ordered.
    pub slots: BTreeMap<SlotIndex, Slot>,
    /// Nodes where it failed, with the time until which it is not retried there.
    pub avoid: BTreeMap<NodeId, ClusterTime>,
    /// Approval to which it may return; none if the certificate in force names none.
    pub before: Option<ReturnTarget>,
    /// Roll-out of the approval in force.
    pub roll_out: RollOut,
}

/// Life-cycle phase of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServicePhase {
    /// Approved.
    Active,
    /// Being retired.
    Retiring {
        /// End of the grace period for requests under way.
        until: ClusterTime,
    },
    /// Ended; every slot is free.
    Retired,
}

/// A numbered slot of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Fence of its last order; 0.0 if it was never ordered.
    pub fence: Fence,
    /// Current holding; none if the slot is free.
    pub holding: Option<Holding>,
    /// Time of its last change of state.
    pub since: ClusterTime,
    /// Node that held it before.
    pub last_holder: Option<NodeId>,
    /// Nodes that fell silent while they held it and may still run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_holders: Vec<FormerHolder>,
    /// Time until which such nodes may still run it that found no place in the list; none if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others_may_run_until: Option<ClusterTime>,
}

/// The holding of a slot by a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holding {
    /// The order in force.
    pub order: SlotOrder,
    /// Progress from running to free.
    pub phase: HoldingPhase,
    /// Slot that this one replaces once it answers, if its replica is moving. Without meaning if that slot no
    /// longer runs under that order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotName>,
    /// Failed starts of its replica that were counted in a roll-out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_starts: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Phase of a held slot. The slot can be ordered again once it is free, or while its node is silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HoldingPhase {
    /// Ordered to run.
    Running,
    /// Finishing its requests.
    Draining {
        /// Deadline of the drain.
        until: ClusterTime,
        /// Cause, as text for operators.
        cause: String,
    },
    /// Its node is ordered to end it, and has not confirmed yet.
    Ending {
        /// Generation in which the slot was ended; a report that answers it or a later one counts.
        generation: u64,
    },
    /// Its node is no longer admitted and gets no lease; the slot is free when the last lease ends.
    Lapsing,
    /// Its node fell silent, and may run the slot for as long as the autonomy of its order. The slot may be
    /// ordered elsewhere, under a higher fence. If the node returns before, it runs on. No exclusive work is
    /// in this phase.
    Silent,
}

/// A proposal that no member has signed. It takes no place of an open one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftProposal {
    /// Proposal that the first member to approve it opens.
    pub proposal: Proposal,
    /// Actor that made it.
    pub actor: Actor,
    /// Time of submission.
    pub submitted_at: ClusterTime,
    /// Verified questions and answers so far. They stay when the draft is opened.
    pub comments: Vec<SignedComment>,
}

/// A proposal that was rejected, withdrawn or void, until it can no longer be brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurnedProposal {
    /// Member that proposed it.
    pub proposer: MemberId,
    /// End of its validity.
    pub expires_at: Millis,
}

/// A proposal that is open for votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenProposal {
    /// Proposal under vote.
    pub proposal: Proposal,
    /// Verified ballots so far, by the keys in force.
    pub ballots: BTreeMap<MemberId, SignedBallot>,
    /// Verified ballots of proposed members, by keys that they do not have in force.
    pub joining: BTreeMap<MemberId, SignedBallot>,
    /// Time at which the quorum was reached, while the waiting time of the change runs.
    pub decided_at: Option<ClusterTime>,
    /// Member whose approval opened it.
    pub proposer: MemberId,
    /// Time at which it was opened.
    pub submitted_at: ClusterTime,
    /// Verified questions and answers so far; they end with the vote.
    pub comments: Vec<SignedComment>,
}

/// A proposal that is no longer open: decided, withdrawn, expired, stale or void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedProposal {
    /// Proposal that was voted on.
    pub proposal: Proposal,
    /// Verified ballots.
    pub ballots: Vec<SignedBallot>,
    /// Final state.
    pub state: ProposalState,
    /// Its certificate, if approved.
    pub certificate: Option<Digest>,
    /// Member that proposed it.
    pub proposer: MemberId,
    /// Time at which it was closed.
    pub closed_at: ClusterTime,
}

impl Cluster {
    /// Creates a cluster in which nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the whole state as canonical bytes.
    #[must_use]
    pub fn to_snapshot(&self) -> Vec<u8> {
        let bytes = to_bytes(self);
        debug_assert!(bytes.len() <= SNAPSHOT_BYTES_MAX, "a snapshot that is written can be read");
        bytes
    }

    /// Restores the state from a snapshot.
    ///
    /// # Errors
    /// The bytes are not an output of [`Cluster::to_snapshot`].
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, CanonicalError> {
        from_own_bytes(bytes, SNAPSHOT_BYTES_MAX)
    }

    /// Returns the number of replicas wanted as soon as this manifest is approved. That is the minimum, or
    /// the number to which the service was scaled before, as far as the new envelope allows.
    pub(crate) fn desired_under(&self, manifest: &ServiceManifest) -> u32 {
        let range = manifest.replicas;
        debug_assert!(range.min <= range.max, "a manifest's form is checked before");
        let known = self.services.get(&manifest.name);
        let running = known.filter(|service| service.phase == ServicePhase::Active);
        running.map_or(range.min, |service| service.desired.min(range.max).max(range.min))
    }

    /// Returns the digest of the whole state, which is equal on replicas that applied the same log.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_domain(CLUSTER_DOMAIN, &self.to_snapshot())
    }

    /// Returns the time as of the last applied command.
    #[must_use]
    pub fn now(&self) -> ClusterTime {
        self.now
    }

    /// Returns the generation, which rises with every change that can matter to a plan.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the current leadership; none before the first leader.
    #[must_use]
    pub fn leadership(&self) -> Option<Leadership> {
        self.leadership
    }

    /// Returns the circle's id, once founded.
    #[must_use]
    pub fn circle_id(&self) -> Option<CircleId> {
        self.circle.as_ref().map(|circle| circle.state.id())
    }

    /// Returns the circle's signed genesis, once founded.
    #[must_use]
    pub fn genesis(&self) -> Option<&SignedGenesis> {
        self.circle.as_ref().map(|circle| &circle.genesis)
    }

    /// Returns the members, policy, nodes and subject versions that the circle's decisions produced.
    #[must_use]
    pub fn circle_state(&self) -> Option<&CircleState> {
        self.circle.as_ref().map(|circle| &circle.state)
    }

    /// Returns all decisions of the circle, in log order.
    #[must_use]
    pub fn governance_chain(&self) -> &[Bundle] {
        self.circle.as_ref().map_or(&[], |circle| &circle.chain)
    }

    /// Returns the bundle of this certificate.
    #[must_use]
    pub fn bundle(&self, certificate: &Digest) -> Option<&Bundle> {
        let circle = self.circle.as_ref()?;
        let position = *circle.positions.get(certificate)?;
        debug_assert!(position < circle.chain.len(), "the index is of this chain");
        circle.chain.get(position)
    }

    /// Returns every service ever approved, by name, including retired ones.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<ServiceName, Service> {
        &self.services
    }

    /// Returns the metered usage.
    #[must_use]
    pub fn usage(&self) -> &UsageBook {
        &self.usage
    }

    /// Returns the amounts that projects held on average.
    #[must_use]
    pub fn shares(&self) -> &ShareBook {
        &self.shares
    }

    /// Returns the registered models.
    #[must_use]
    pub fn models(&self) -> &BTreeMap<ModelRoot, ModelRecord> {
        &self.models
    }

    /// Returns the wrap of a model's key for one recipient.
    #[must_use]
    pub fn wrap_of(&self, root: &ModelRoot, recipient: &Recipient) -> Option<&SignedWrap> {
        self.wraps.get(root)?.get(recipient)
    }

    /// Returns the wrap of a model's key for one node.
    #[must_use]
    pub fn wrap_for(&self, root: &ModelRoot, node: NodeId) -> Option<&SignedWrap> {
        self.wrap_of(root, &Recipient::Node(node))
    }

    /// Returns the grants and revocations of access; they hold digests of secrets only.
    #[must_use]
    pub fn access(&self) -> &AccessBook {
        &self.access
    }

    /// Returns the nodes that wait for admission.
    #[must_use]
    pub fn pending_nodes(&self) -> &BTreeMap<NodeId, PendingNode> {
        &self.pending
    }

    /// Returns the drafts that wait for a member to propose them.
    #[must_use]
    pub fn drafts(&self) -> &BTreeMap<ProposalId, DraftProposal> {
        &self.drafts
    }

    /// Returns the proposals that are open for votes.
    #[must_use]
    pub fn open_proposals(&self) -> &BTreeMap<ProposalId, OpenProposal> {
        &self.open
    }

    /// Returns the last closed proposals, oldest first.
    #[must_use]
    pub fn closed_proposals(&self) -> &VecDeque<ClosedProposal> {
        &self.closed
    }

    /// Returns the audit log, oldest event first.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Returns the admitted nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeAdmission> {
        self.circle.iter().flat_map(|circle| circle.state.nodes())
    }

    /// Returns the admission of this identity.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&NodeAdmission> {
        self.circle.as_ref()?.state.node_by_id(*id)
    }

    /// Returns the display name of this identity: its admitted name, the name by which it was once admitted,
    /// or the short form of its key.
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

    /// Returns the access token with this digest that stands at this time.
    ///
    /// # Errors
    /// Returns why there is none: its code is `token-unknown`, or that of what ended the token.
    pub fn token(&self, secret: &Digest, now: ClusterTime) -> Result<StandingToken<'_>, Refusal> {
        let unknown = || Refusal::new(TOKEN_UNKNOWN, "the access token is unknown");
        let state = self.circle_state().ok_or_else(unknown)?;
        let found = self.access.find(secret).ok_or_else(unknown)?;
        let GrantedAccess::Token { scopes } = &found.grant().access else { return Err(unknown()) };
        if let FoundGrant::Revoked(grant) = found {
            return Err(ChainError::GrantRevoked(grant.id()).into());
        }
        check_grant_stands(state, found.grant(), now.0)?;
        Ok(StandingToken { holder: &found.grant().holder, scopes })
    }

    /// Returns the access token of this holder that stands now.
    #[must_use]
    pub(crate) fn token_of(&self, holder: &TokenName) -> Option<StandingToken<'_>> {
        let grants = self.access.standing(self.circle_state()?, self.now.0);
        let mut tokens = grants.filter_map(|(_, signed)| match &signed.grant.access {
            GrantedAccess::Token { scopes } => Some(StandingToken { holder: &signed.grant.holder, scopes }),
            GrantedAccess::Key { .. } => None,
        });
        tokens.find(|token| token.holder == holder)
    }

    /// Returns the manifest under which an order runs.
    #[must_use]
    pub fn manifest_of(&self, certificate: &Digest) -> Option<&ServiceManifest> {
        self.manifests.get(certificate)
    }

    /// Returns every held slot with its holding, by service and slot.
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
        debug_assert_eq!(certificate.is_some(), state == ProposalState::Approved, "an approval is certified");
        debug_assert_ne!(state, ProposalState::Open, "a proposal closes in another state");
        debug_assert!(self.open.contains_key(&id), "only an open proposal closes");
        let Some(open) = self.open.remove(&id) else { return };
        self.closed.push_back(ClosedProposal {
            proposal: open.proposal,
            ballots: open.ballots.into_values().chain(open.joining.into_values()).collect(),
            state,
            certificate,
            proposer: open.proposer,
            closed_at: self.now,
        });
        while self.closed.len() > CLOSED_PROPOSALS_MAX {
            self.closed.pop_front();
        }
    }
}

impl Service {
    /// Returns the slots that are held, in any phase.
    pub fn held(&self) -> impl Iterator<Item = (SlotIndex, &Holding)> {
        self.slots.iter().filter_map(|(index, slot)| Some((*index, slot.holding.as_ref()?)))
    }

    /// Returns whether its approval has expired: the one in force, or the one before if it has returned.
    #[must_use]
    pub fn is_expired(&self, now: ClusterTime) -> bool {
        let in_force = match &self.roll_out.phase {
            RollOutPhase::Returned { valid_until, .. } => *valid_until,
            RollOutPhase::Complete | RollOutPhase::Progressing => None,
        };
        let ends = [self.manifest.valid_until, in_force];
        ends.into_iter().flatten().any(|until| ClusterTime(until) <= now)
    }
}

//! Types of the control HTTP API, as JSON. The OpenAPI document is generated from them.
//!
//! Reading needs a token with the `read` scope, proposing and voting `propose`, everything that changes
//! something inside an envelope `submit`. No token votes: ballots carry their members' signatures.

use crate::agent::{Gpu, Isolation, SlotReport};
use crate::digest::Digest;
use crate::governance::{
    AccessToken, ActionClass, Bundle, NodeAdmission, Proposal, SignedBallot, SignedGenesis,
};
use crate::ids::{
    Epoch, Fence, MemberId, Millis, ModelRoot, NodeId, NodeName, ProposalId, ReplicaId, ServiceName,
    SlotIndex, TokenName,
};
use crate::manifest::Manifest;
use crate::model::{KeyWrap, ModelRecord};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Header of a write that carries its idempotency key: sent again under the same key, it is done once and answered
/// alike. The name is that of the IETF draft.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Header of an answer `not-leader`: base URL of the replica that leads, as genesis has it.
pub const LEADER_HEADER: &str = "quorate-leader";

/// Every error of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// Stable code; `quorate explain CODE` says more.
    pub code: String,
    /// What was wrong.
    pub message: String,
    /// Where, if it is one place: a field, a line.
    pub at: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
}

/// Genesis and every governance bundle in log order: all that anyone needs to recompute the circle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// How the circle began.
    pub genesis: SignedGenesis,
    /// What it decided, in order.
    pub bundles: Vec<Bundle>,
}

/// `POST /v1/proposals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitProposal {
    /// What to vote on, made by the client.
    pub proposal: Proposal,
}

/// How far a proposal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// Waits for votes.
    Open,
    /// The quorum signed; it is in force.
    Approved,
    /// The quorum can no longer be reached.
    Rejected,
    /// Nobody decided in time.
    Expired,
    /// What it changes was changed by another proposal first.
    Stale,
}

/// A proposal as members see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProposalView {
    /// Its digest.
    pub id: ProposalId,
    /// The proposal itself; a client renders it by itself and trusts no text of ours.
    pub proposal: Proposal,
    /// Which quorum it needs.
    pub class: ActionClass,
    /// How far it is.
    pub state: ProposalState,
    /// Votes so far.
    pub ballots: Vec<SignedBallot>,
    /// Members that approved.
    pub approved: Vec<MemberId>,
    /// Members that rejected.
    pub rejected: Vec<MemberId>,
    /// Members whose approval would still count.
    pub missing: Vec<MemberId>,
    /// Digest of its certificate, once approved.
    pub certificate: Option<Digest>,
}

/// A list, always an object so that it can grow fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Page<T> {
    /// The items, in a stable order.
    pub items: Vec<T>,
}

/// `POST /v1/dry-run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRunRequest {
    /// What would be deployed.
    pub manifest: Manifest,
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// Replicas that would be wanted at once; `quorate scale` asks for more, up to the envelope's maximum.
    pub desired: u32,
    /// Which slot would start where, at once.
    pub placements: Vec<DryRunPlacement>,
    /// Which further slots of the envelope could start where, if as many were asked for.
    pub possible: Vec<DryRunPlacement>,
    /// Slots that would wait or find no room, and why.
    pub waiting: Vec<String>,
    /// Who must sign, as a sentence.
    pub needs: String,
    /// Spend limit per hour, in millionths; none = none set.
    pub spend_micro_units_per_hour: Option<u64>,
}

/// One slot of a [`DryRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRunPlacement {
    /// Which slot.
    pub slot: SlotIndex,
    /// Where.
    pub node: NodeName,
}

/// A service as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// What the circle approved.
    pub manifest: Manifest,
    /// The certificate that approves it.
    pub certificate: Digest,
    /// Replicas wanted now, within the envelope.
    pub desired: u32,
    /// Replicas that answer now, under this approval or an earlier one.
    pub ready: u32,
    /// Those of them that run what was approved last.
    pub ready_current: u32,
    /// Being retired.
    pub retiring: bool,
    /// Its slots.
    pub slots: Vec<SlotView>,
}

/// A slot as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotView {
    /// Which slot.
    pub slot: SlotIndex,
    /// Who holds it.
    pub node: Option<NodeName>,
    /// Under which order.
    pub fence: Fence,
    /// What its node last said.
    pub report: Option<SlotReport>,
    /// Why it is where it is, or waits.
    pub why: String,
}

/// `POST /v1/services/{name}/scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Replicas wanted, within the envelope.
    pub replicas: u32,
}

/// A node as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeView {
    /// What people call it.
    pub name: NodeName,
    /// Who it is.
    pub id: NodeId,
    /// What the circle admitted.
    pub admission: NodeAdmission,
    /// Its lease holds.
    pub alive: bool,
    /// Milliseconds since it was last heard; none = not since this leader leads.
    pub heard_ms_ago: Option<u64>,
    /// CPU it offers, thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory it offers.
    pub memory_bytes: u64,
    /// Its GPUs; simulated ones say so.
    pub gpus: Vec<Gpu>,
    /// How well it isolates.
    pub isolation: Option<Isolation>,
    /// What it cannot enforce.
    pub not_enforced: Vec<String>,
    /// Slots it holds.
    pub slots: u32,
}

/// `POST /v1/keys`: an inference key, made by the client, who sends its hash only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What people call it.
    pub name: TokenName,
    /// BLAKE3 of its text.
    pub hash: Digest,
    /// Requests per minute; none = unlimited.
    pub requests_per_minute: Option<u32>,
}

/// An inference key as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyView {
    /// What people call it.
    pub name: TokenName,
    /// Requests per minute; none = unlimited.
    pub requests_per_minute: Option<u32>,
}

/// `POST /v1/models`: where a model lies and who can open it, in one step. Killed at any moment, an importer
/// leaves a model whose key somebody holds, or no model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModel {
    /// Where it lies.
    pub record: ModelRecord,
    /// Its key, wrapped to at least one member: members' clients wrap it onwards.
    pub wraps: Vec<KeyWrap>,
}

/// `PUT /v1/models/{root}/wraps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutWraps {
    /// The model's key, wrapped to each recipient.
    pub wraps: Vec<KeyWrap>,
}

/// Something that was done, kept in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// Rises by one.
    pub sequence: u64,
    /// When.
    pub at: Millis,
    /// Who: `member/NAME`, `token/NAME`, `scheduler`.
    pub actor: String,
    /// What: a short verb, like `approve` or `place`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// More, for people.
    pub detail: String,
}

/// How the cluster is, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Nothing is wrong.
    pub healthy: bool,
    /// One line for people.
    pub summary: String,
    /// What is wrong or waits, each with the next command.
    pub findings: Vec<Finding>,
    /// Who leads the control replicas.
    pub leader: Option<ReplicaId>,
    /// Control replicas.
    pub replicas: u32,
    /// Those of them that do not answer the leader.
    pub replicas_silent: Vec<ReplicaId>,
    /// Nodes admitted.
    pub nodes: u32,
    /// Nodes alive.
    pub nodes_alive: u32,
    /// Services.
    pub services: u32,
    /// The epoch of members and policy.
    pub epoch: Epoch,
    /// What in this cluster is simulated.
    pub simulated: Vec<String>,
    /// Limits that nodes do not enforce, and on which nodes: no fault, and worth knowing.
    pub not_enforced: Vec<String>,
}

/// `GET /v1/replica`: the control replicas as one of them sees them. Each answers for itself, whether it leads or not
/// and without asking another, so that a client can tell which are silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaView {
    /// The replica that answers.
    pub id: ReplicaId,
    /// The replica that it takes for the leader; none while one is elected.
    pub leader: Option<ReplicaId>,
    /// The last log entry that it has applied.
    pub applied: u64,
    /// All replicas of the genesis.
    pub replicas: Vec<PeerView>,
}

/// One control replica as another sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerView {
    /// Its number.
    pub id: ReplicaId,
    /// Base URL of its API, as genesis has it.
    pub api: String,
    /// Whether it answered lately; none = not asked yet.
    pub answers: Option<bool>,
}

/// One thing that is wrong or waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// What.
    pub message: String,
    /// The command to run next.
    pub next: String,
}

/// Why something is placed, waits or was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Why {
    /// What was asked about: `service`, `service/slot` or a proposal.
    pub subject: String,
    /// The answer, a sentence.
    pub answer: String,
    /// Per node or member: the reason.
    pub reasons: Vec<String>,
    /// The smallest change that would help, if one is known.
    pub remedy: Option<String>,
}

/// What a service's workers wrote last, as this leader heard it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogPage {
    /// Changes with the leader. Sequence numbers of another epoch mean nothing in this one.
    pub epoch: u64,
    /// The lines, oldest first.
    pub items: Vec<LogLine>,
}

/// A line that a worker wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Rises by one per service; starts anew with each epoch of its [`LogPage`].
    pub sequence: u64,
    /// When its node read it.
    pub at: Millis,
    /// Which node.
    pub node: NodeName,
    /// Which slot.
    pub slot: SlotIndex,
    /// The text, at most 4 KiB.
    pub text: String,
}

/// Access tokens as people see them: no hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenView {
    /// What people call it.
    pub name: TokenName,
    /// What it may do.
    pub scopes: Vec<crate::governance::TokenScope>,
}

impl From<&AccessToken> for TokenView {
    fn from(token: &AccessToken) -> Self {
        Self { name: token.name.clone(), scopes: token.scopes.iter().copied().collect() }
    }
}

/// A model's wraps, for members' clients that wrap its key onwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelWraps {
    /// Which model.
    pub root: ModelRoot,
    /// All wraps of its key.
    pub wraps: Vec<KeyWrap>,
}

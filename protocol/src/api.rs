//! Request and response types of the control HTTP API, as JSON. The OpenAPI document is generated from them.
//!
//! Reading needs a token with the `read` scope, proposing and voting need `propose`. Every write within an
//! approved envelope needs `submit`. No token votes: ballots carry their members' signatures.

use crate::agent::{Gpu, SlotReport};
use crate::comment::SignedComment;
use crate::digest::Digest;
use crate::governance::{
    ActionClass, Bundle, HistoryHead, NodeAdmission, Proposal, SignedBallot, SignedGenesis, SignedWithdrawal,
};
use crate::ids::{
    Epoch, Fence, MemberId, Millis, ModelName, NodeId, NodeName, ProposalId, ReplicaId, ServiceName,
    SlotIndex,
};
use crate::manifest::{Isolation, Manifest};
use crate::model::{ModelRecord, Recipient, SignedWrap};
use crate::refusal::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Header of a write that carries its idempotency key. A repeated request with the same key is executed once
/// and gets the same answer. The name is that of the IETF draft.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Header of a `not-leader` answer: base URL of the leader's API, as genesis has it.
pub const LEADER_HEADER: &str = "quorate-leader";

/// Body of every error response of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// Stable error code; `quorate explain CODE` prints its page.
    pub code: String,
    /// Description of the error.
    pub message: String,
    /// Location of the error, if it has one: a field, a line.
    pub at: Option<String>,
    /// Suggested remedy, if there is one.
    pub remedy: Option<String>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code.to_string(), message: refusal.message, at: None, remedy: None }
    }
}

/// Genesis and every governance bundle in log order: all input needed to recompute the circle's state.
/// Clients assemble it from [`HistoryPage`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Genesis with every founder's signature.
    pub genesis: SignedGenesis,
    /// Governance bundles since genesis, in log order.
    pub bundles: Vec<Bundle>,
}

/// Page of the history: the first has the genesis, and the bundles follow in log order. A client that names
/// the number of decisions that it verified gets those after them, and no genesis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HistoryPage {
    /// Genesis with every founder's signature; on the first page alone.
    pub genesis: Option<SignedGenesis>,
    /// Head of the whole history as the replica has it. A client compares it with what it verified.
    pub head: HistoryHead,
    /// Governance bundles, in log order.
    pub bundles: Vec<Bundle>,
    /// Opaque `page_token` of the next page; none on the last page.
    pub next_page_token: Option<String>,
}

/// Body of `POST /v1/proposals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitProposal {
    /// Proposal to vote on, built by the client.
    pub proposal: Proposal,
    /// Approval of the member who proposes it. Without one the proposal is a draft: the first member that
    /// approves it becomes its proposer.
    pub ballot: Option<SignedBallot>,
}

/// Body of `POST /v1/proposals/{id}/withdrawal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WithdrawProposal {
    /// Withdrawal by a member. Without one the request withdraws a draft that the same access token made.
    pub withdrawal: Option<SignedWithdrawal>,
}

/// Answer to `POST /v1/deployments`: the draft, and the effect of its approval now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentDraft {
    /// Draft that waits for a member; none if the request was a dry run.
    pub draft: Option<ProposalView>,
    /// Placement of the slots if the deployment were approved now, and the signatures that it needs.
    pub dry_run: DryRun,
}

/// State of a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// Open for votes.
    Open,
    /// The quorum approved the proposal; the change is in force.
    Approved,
    /// The quorum can no longer be reached.
    Rejected,
    /// The proposal expired before a decision.
    Expired,
    /// Another approved proposal changed the same subject first.
    Stale,
    /// The quorum approved a change of members. It takes effect after the waiting time, unless a member
    /// vetoes it.
    Waiting,
    /// No member has signed it. The first member that approves it becomes its proposer.
    Draft,
    /// Its proposer withdrew it.
    Withdrawn,
    /// Its proposer was suspended. A thief of the key may have proposed it.
    Void,
}

/// Proposal with its votes, as members see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProposalView {
    /// Digest of the proposal.
    pub id: ProposalId,
    /// Proposal to vote on. A client renders it locally and trusts no rendering by the server.
    pub proposal: Proposal,
    /// Class of the change, which selects the quorum.
    pub class: ActionClass,
    /// State at the time of the answer.
    pub state: ProposalState,
    /// Ballots received so far.
    pub ballots: Vec<SignedBallot>,
    /// Questions and answers so far, in the order of their arrival; none once the vote has ended.
    pub comments: Vec<SignedComment>,
    /// Members that approved.
    pub approved: Vec<MemberId>,
    /// Members that rejected.
    pub rejected: Vec<MemberId>,
    /// Members that have not voted and whose approval would still count.
    pub missing: Vec<MemberId>,
    /// Digest of the certificate; present once the proposal is approved.
    pub certificate: Option<Digest>,
    /// End of the waiting time; present while it runs.
    pub takes_effect_at: Option<Millis>,
    /// Member whose approval opened it; none for a draft.
    pub proposer: Option<MemberId>,
    /// Maker of a draft, such as `token/NAME`; none once a member has signed it.
    pub drafted_by: Option<String>,
}

/// Page of a list, always an object so that fields can be added. Lists are read as Google's AIP-158 has it:
/// an answer may hold fewer items than asked for, so that its bytes are bounded, and the token alone says
/// whether more follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Page<T> {
    /// Items, in a stable order.
    pub items: Vec<T>,
    /// Opaque `page_token` of the next page; none on the last page.
    pub next_page_token: Option<String>,
}

impl<T> Page<T> {
    /// Returns the only page of a list.
    #[must_use]
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next_page_token: None }
    }
}

/// Body of `POST /v1/dry-run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRunRequest {
    /// Manifest of the deployment to simulate.
    pub manifest: Manifest,
}

/// Result of a simulated deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// Number of replicas wanted immediately; `quorate scale` raises it up to the envelope's maximum.
    pub desired: u32,
    /// Slots that would start immediately, each with its node.
    pub placements: Vec<DryRunPlacement>,
    /// Further slots of the envelope that could start if scaled up, each with its node.
    pub possible: Vec<DryRunPlacement>,
    /// Slots that would wait or fit on no node, each with the reason.
    pub waiting: Vec<String>,
    /// Signatures that the deployment needs, as a sentence.
    pub needs: String,
    /// Priority of the replicas.
    pub priority: u32,
    /// Running services of a lower priority, whose room the replicas may take, by name.
    pub outranked: Vec<ServiceName>,
    /// Course of the roll-out: replacements at once, the time until a replica counts, and the consequence of
    /// failed starts, as sentences.
    pub roll_out: Vec<String>,
    /// Spend limit per hour, in millionths of the circle's unit; none = no limit.
    pub spend_micro_units_per_hour: Option<u64>,
}

/// Placement of one slot in a [`DryRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRunPlacement {
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Node that the slot would run on.
    pub node: NodeName,
}

/// Service with its slots, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceView {
    /// Name of the service.
    pub name: ServiceName,
    /// Approved manifest; that of the approval before if the service has returned to it.
    pub manifest: Manifest,
    /// Digest of the certificate that approves the manifest.
    pub certificate: Digest,
    /// Roll-out of the approval in force.
    pub roll_out: RollOutView,
    /// Number of replicas wanted now, within the envelope.
    pub desired: u32,
    /// Number of replicas that serve requests now, under this approval or an earlier one.
    pub ready: u32,
    /// Number of ready replicas that run the last approved manifest.
    pub ready_current: u32,
    /// True while the service is being retired.
    pub retiring: bool,
    /// Slots of the service.
    pub slots: Vec<SlotView>,
}

/// Progress of the roll-out of an approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollOutProgress {
    /// Every wanted replica was available under the approval in force, or nothing ran before it.
    Complete,
    /// Replicas of an earlier approval are being replaced.
    Progressing,
    /// So many starts failed in a row as the manifest allows. The roll-out waits for a replica to answer.
    Holding,
    /// The service runs under the approval before, until the circle decides again.
    Returned,
}

/// Roll-out of the approval in force of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollOutView {
    /// Progress so far.
    pub progress: RollOutProgress,
    /// Number of replicas that count as available under the approval that is ordered now.
    pub available: u32,
    /// Number of failed starts in a row.
    pub failed_starts: u32,
    /// Certificate to which the service may return; none if the one in force names none.
    pub returns_to: Option<Digest>,
    /// Certificate in force, from which the service returned; none if it has not returned.
    pub returned_from: Option<Digest>,
    /// Cause of the return; none if it has not returned.
    pub cause: Option<String>,
}

/// Slot of a service, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotView {
    /// Index of the slot within the service.
    pub slot: SlotIndex,
    /// Node that holds the slot; none if unplaced.
    pub node: Option<NodeName>,
    /// Fence of the order under which the slot is held.
    pub fence: Fence,
    /// Last report from the slot's node.
    pub report: Option<SlotReport>,
    /// Reason for the slot's placement, or for its wait.
    pub why: String,
}

/// Body of `POST /v1/services/{name}/scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Number of replicas wanted, within the envelope.
    pub replicas: u32,
}

/// Body of `POST /v1/services/{name}/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Reason, for the record and for other operators.
    pub reason: String,
}

/// Admitted node, as shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeView {
    /// Name that people gave the node.
    pub name: NodeName,
    /// Identity key of the node.
    pub id: NodeId,
    /// Admission that the circle approved.
    pub admission: NodeAdmission,
    /// True while the node's lease holds.
    pub alive: bool,
    /// Milliseconds since the node's last heartbeat; none = no heartbeat since this leader was elected.
    pub heard_ms_ago: Option<u64>,
    /// CPU that the node offers, in thousandths of a core.
    pub cpu_millicores: u64,
    /// Memory that the node offers, in bytes.
    pub memory_bytes: u64,
    /// GPUs of the node; simulated ones are marked.
    pub gpus: Vec<Gpu>,
    /// Isolation that the node can enforce; none until it reports.
    pub isolation: Option<Isolation>,
    /// Limits that the node cannot enforce.
    pub not_enforced: Vec<String>,
    /// Number of slots that the node holds.
    pub slots: u32,
    /// Models whose key a member holds and this node lacks; at most [`KEYS_LACKING_SHOWN`].
    pub keys_lacking: Vec<ModelName>,
}

/// Maximum number of models that are named to people for one recipient that lacks their keys.
pub const KEYS_LACKING_SHOWN: usize = 16;

/// Body of `POST /v1/models`: registers a model's stores and its wrapped key in one step. An importer that is
/// killed at any moment leaves either no model, or a model whose key at least one member can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterModel {
    /// Stores, size and erasure code of the model.
    pub record: ModelRecord,
    /// Key of the model, wrapped to at least one member; members' clients wrap it for further recipients.
    pub wraps: Vec<SignedWrap>,
}

/// Body of `PUT /v1/wraps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutWraps {
    /// Keys of models, each wrapped to one recipient and signed by the member that wrapped it.
    pub wraps: Vec<SignedWrap>,
}

/// Entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// Position in the log; rises by one per event.
    pub sequence: u64,
    /// Time of the event.
    pub at: Millis,
    /// Actor: `member/NAME`, `token/NAME` or `scheduler`.
    pub actor: String,
    /// Action, as a short verb: `approve`, `place`.
    pub action: String,
    /// Subject of the action.
    pub subject: String,
    /// Further detail, as text for people.
    pub detail: String,
}

/// State of the cluster, with the commands that resolve its findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// True when nothing is wrong.
    pub healthy: bool,
    /// Summary in one line, as text for people.
    pub summary: String,
    /// Problems and pending work, each with the next command.
    pub findings: Vec<Finding>,
    /// Control replica that is the leader.
    pub leader: Option<ReplicaId>,
    /// Number of control replicas.
    pub replicas: u32,
    /// Control replicas that do not answer the leader.
    pub replicas_silent: Vec<ReplicaId>,
    /// Number of admitted nodes.
    pub nodes: u32,
    /// Number of nodes whose lease holds.
    pub nodes_alive: u32,
    /// Number of services.
    pub services: u32,
    /// Epoch of members and policy.
    pub epoch: Epoch,
    /// Simulated parts of this cluster.
    pub simulated: Vec<String>,
    /// Limits that nodes do not enforce, each with its nodes. These are no faults, but operators should know
    /// them.
    pub not_enforced: Vec<String>,
}

/// Answer of `GET /v1/replica`: the control replicas as one of them sees them. Each replica answers from its
/// own state, leader or not, without asking another. This lets a client find silent replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicaView {
    /// Replica that answers.
    pub id: ReplicaId,
    /// Replica that it considers the leader; none during an election.
    pub leader: Option<ReplicaId>,
    /// Index of the last log entry that it has applied.
    pub applied: u64,
    /// All replicas of the genesis.
    pub replicas: Vec<PeerView>,
}

/// Control replica as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerView {
    /// Number in the Raft group.
    pub id: ReplicaId,
    /// Base URL of its API, as genesis has it.
    pub api: String,
    /// True if it answered recently; none = not asked yet.
    pub answers: Option<bool>,
}

/// Problem or pending work, with the next command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// Description of the problem.
    pub message: String,
    /// Command to run next.
    pub next: String,
}

/// Explanation of a placement, a wait or a rejection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Why {
    /// Subject of the question: `service`, `service/slot` or a proposal.
    pub subject: String,
    /// Explanation in one sentence.
    pub answer: String,
    /// Reasons, one per node or member.
    pub reasons: Vec<String>,
    /// Smallest change that would help, if one is known.
    pub remedy: Option<String>,
}

/// Most recent log lines of a service's workers, as this leader received them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogPage {
    /// Epoch of the sequence numbers; it changes with the leader. Numbers of different epochs cannot be
    /// compared.
    pub epoch: u64,
    /// Log lines, oldest first.
    pub items: Vec<LogLine>,
}

/// Line that a worker wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Sequence number; rises by one per service and restarts with each epoch of its [`LogPage`].
    pub sequence: u64,
    /// Time at which the node read the line.
    pub at: Millis,
    /// Node that the worker runs on.
    pub node: NodeName,
    /// Index of the worker's slot.
    pub slot: SlotIndex,
    /// Text of the line, at most 4 KiB.
    pub text: String,
}

/// Answer of `POST /v1/console/links`: a link that signs one browser in at the replica's console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleLink {
    /// Address to open in a browser. The first browser that opens it is signed in with the token's scopes.
    pub url: String,
    /// Number of seconds for which the link works.
    pub expires_in_seconds: u64,
}

/// Answer to a member's signed request for its wraps: the keys that it holds and that others lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberWraps {
    /// Models whose key the member holds and a recipient lacks. The list is cut at a number of recipients;
    /// once the member has served these, it asks again.
    pub lacking: Vec<LackingKey>,
    /// Models whose key no member holds: they can only be forgotten and imported again.
    pub keyless: Vec<ModelName>,
}

/// Model whose key a member holds, and recipients that lack it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LackingKey {
    /// Name that people gave the model.
    pub model: ModelName,
    /// Key of the model, wrapped to the member that asks.
    pub wrap: SignedWrap,
    /// Members and nodes of the circle that have no wrap of the key.
    pub recipients: Vec<Recipient>,
}

//! Commands of the replicated log, and the replies to them.
//!
//! A command carries the replicas' clocks as its proposer knows them; the state machine has none of its own.
//!
//! Caveat: a plan is one command and is applied whole or not at all.

pub use protocol::Refusal;

use crate::clock::{ClockReadings, ClusterTime};
use crate::jobs::{EndCause, JobSlotName, RankGpu};
use protocol::access::{SignedGrant, SignedRevocation};
use protocol::api::ProposalState;
use protocol::comment::SignedComment;
use protocol::governance::{NodeAdmission, Proposal, SignedBallot, SignedGenesis, SignedWithdrawal};
use protocol::job::{SignedSubmission, SlotRanks};
use protocol::job_data::RegisterJobData;
use protocol::job_report::RankEnd;
use protocol::manifest::Manifest;
use protocol::model::{ModelRecord, SignedComplaint, SignedWrap};
use protocol::order::SlotOrder;
use protocol::slot_usage::SignedSlotUsage;
use protocol::{
    CheckpointName, CircleId, Digest, ErrorCode, Fence, JobId, MemberId, NodeId, ParameterName, ProposalId,
    ReplicaId, ServiceName, SlotIndex, TokenName,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The actor that requested a command. Tokens are checked again when the command is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Actor {
    /// A member, proven by a signature inside the command.
    Member(MemberId),
    /// The holder of an access token.
    Token(TokenName),
    /// The control plane itself.
    Scheduler,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Actor::Member(member) => write!(f, "member/{member}"),
            Actor::Token(token) => write!(f, "token/{token}"),
            Actor::Scheduler => f.write_str("scheduler"),
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Clocks of the replicas when it was proposed, as [`Cluster::time`](crate::Cluster::time) judges them.
    pub clocks: ClockReadings,
    /// Actor that requested the command.
    pub actor: Actor,
    /// Requested action.
    pub action: Action,
    /// Idempotency key under which the command may be retried but is executed once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<IdempotencyKey>,
}

/// A client's key for one write, unique within its access token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyKey {
    /// Token that the request carried.
    pub token: TokenName,
    /// Digest of the key's text.
    pub key: Digest,
}

/// The action of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// A replica became leader. The command must be applied before the new leader answers any agent. It makes
    /// every plan of an earlier leader stale, and starts the one lease period for which the new leader waits.
    Lead {
        /// Replica that leads.
        replica: ReplicaId,
    },
    /// Found the circle; accepted only once.
    Found(Box<SignedGenesis>),
    /// Keep a proposal as a draft, which no member has signed.
    SubmitProposal(Box<Proposal>),
    /// Draft the deployment of a manifest. The cluster makes the proposal, for clients that know no circle.
    DraftDeployment {
        /// Manifest to run.
        manifest: Box<Manifest>,
        /// Reason for the deployment, in the words of the client.
        reason: String,
    },
    /// Open a proposal for votes, by the approval of the member that proposes it.
    OpenProposal {
        /// Proposal to vote on.
        proposal: Box<Proposal>,
        /// Approval of its proposer.
        ballot: Box<SignedBallot>,
    },
    /// Cast a ballot; the last one needed puts the change into force. The first approval of a draft opens it.
    CastBallot(Box<SignedBallot>),
    /// Withdraw a proposal or a draft.
    Withdraw {
        /// Id of the proposal or draft.
        proposal: ProposalId,
        /// Withdrawal by a member; none if the maker of a draft withdraws it.
        withdrawal: Option<Box<SignedWithdrawal>>,
    },
    /// Keep a member's question or answer beside its proposal.
    PutComment(Box<SignedComment>),
    /// Record the location of a model, and keep wraps of its key. One command does both, so no model is ever
    /// registered without a holder of its key. The same command again changes nothing.
    RegisterModel {
        /// Location of the model.
        record: Box<ModelRecord>,
        /// Model key, wrapped for at least one member.
        wraps: Vec<SignedWrap>,
    },
    /// Keep more wraps of models' keys. A wrap that its recipient can open is never replaced.
    PutWraps(Vec<SignedWrap>),
    /// Drop a wrap that its recipient cannot use, by the recipient's signed complaint.
    DropWrap(Box<SignedComplaint>),
    /// Grant access to the control API or to services, by one member's signature.
    GrantAccess(Box<SignedGrant>),
    /// Revoke a grant permanently, by one member's signature.
    RevokeAccess(Box<SignedRevocation>),
    /// Change the wanted number of replicas, inside the envelope.
    Scale {
        /// Service to scale.
        service: ServiceName,
        /// Wanted number of replicas.
        replicas: u32,
    },
    /// Return a service to the approval before, which the certificate in force names.
    RollBack {
        /// Service to return.
        service: ServiceName,
        /// Reason, in the words of the operator.
        reason: String,
    },
    /// Run an approved job with these parameters. The cluster makes the submission of the token that asks.
    RequestJob(Box<JobRequest>),
    /// Run an approved job by a submission that a member or a submit key signed.
    SubmitJob(Box<SignedSubmission>),
    /// Cancel a job. A job that has ended stays as it is.
    CancelJob {
        /// Job to cancel.
        id: JobId,
    },
    /// Place a job that failed or was cancelled into the queue again.
    RetryJob {
        /// Job to retry.
        id: JobId,
        /// Checkpoint to begin with; later ones are forgotten. None = the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<CheckpointName>,
    },
    /// Keep a checkpoint or outputs of a job, by the statement of the node that made it.
    RegisterJobData(Box<RegisterJobData>),
    /// Execute a plan.
    Execute {
        /// Generation for which the plan was made.
        parent_generation: u64,
        /// Steps in order of execution.
        steps: Vec<Step>,
    },
    /// Ask for admission of an unknown node.
    Enrol(Box<NodeAdmission>),
    /// Expire proposals and pending nodes that are due, and set the cluster's time back if a majority of the
    /// clocks is behind it.
    Tick,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// A node's lease has ended: every slot that it held becomes free, or may be ordered elsewhere while the
    /// silent node runs it on.
    Lapse {
        /// Node with the ended lease.
        node: NodeId,
        /// Time for which it could not have renewed its lease, by the leader's clock: at least
        /// [`protocol::limits::LEASE_MS`].
        silent_ms: u64,
    },
    /// The node of a slot was silent and is back before the slot was ordered elsewhere: it runs on.
    Resume(SlotName),
    /// A slot becomes free: its node no longer runs it.
    Release(SlotName),
    /// A node that was silent when it lost a slot has released it: no order waits for this node any more.
    ReleaseFormer {
        /// Node that held the slot.
        node: NodeId,
        /// Slot, under the last order of this node for it.
        slot: SlotName,
    },
    /// A slot finishes its requests before it is released.
    Drain {
        /// Slot to drain.
        slot: SlotName,
        /// Deadline of the drain.
        until: ClusterTime,
        /// Cause, as text for operators.
        cause: String,
        /// Whether it failed there; the service then avoids this node for a while.
        failed: bool,
    },
    /// A draining slot's deadline has passed, or it has nothing to finish: its node ends it.
    End(SlotName),
    /// Order a node to run a free slot.
    Order(OrderPlan),
    /// A replica under a new approval failed to start.
    FailStart {
        /// Slot of the replica.
        slot: SlotName,
        /// Number of its failed starts under this order; higher than counted before.
        starts: u32,
        /// Number of replicas that are available under the new approval.
        available: u32,
        /// Cause, as text for operators.
        cause: String,
    },
    /// Order every slot of a gang: an attempt of a job begins.
    StartGang(GangPlan),
    /// Every slot of an attempt is ready: its ranks start.
    RunGang {
        /// Job of the gang.
        id: JobId,
        /// Number of the attempt.
        attempt: u32,
    },
    /// An attempt ends; the slots that it still holds are withdrawn.
    EndGang {
        /// Job of the gang.
        id: JobId,
        /// Number of the attempt.
        attempt: u32,
        /// Cause of the end.
        cause: EndCause,
        /// Ends of ranks that its nodes have reported.
        ends: Vec<RankEnd>,
    },
    /// A job's slot becomes free: its node no longer runs it.
    ReleaseGang(JobSlotName),
    /// Counts that the node of a slot stated are metered.
    CountUsage(Box<SignedSlotUsage>),
    /// The roll-out of a service's approval ends.
    EndRollOut {
        /// Service whose roll-out ends.
        service: ServiceName,
        /// Cause for which the service returns to the approval before; none if the roll-out is complete.
        failed: Option<String>,
    },
}

/// A slot under a specific order. A step for an order that is no longer in force is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotName {
    pub service: ServiceName,
    pub slot: SlotIndex,
    /// Fence of the order.
    pub fence: Fence,
}

/// An order to be issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderPlan {
    /// Service of the slot.
    pub service: ServiceName,
    pub slot: SlotIndex,
    /// The slot's last fence plus one.
    pub fence: Fence,
    /// Node that receives the order.
    pub node: NodeId,
    /// Service's current certificate.
    pub certificate: Digest,
    /// Indices of the node's GPUs.
    pub gpus: Vec<u32>,
    /// Slot that the moving replica leaves once it answers here; none for a missing replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotName>,
}

/// An attempt of a job to be started: every slot of its gang.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangPlan {
    /// Job to start.
    pub id: JobId,
    /// Number of the attempt: that of the last one plus one.
    pub attempt: u32,
    /// Slots, in the order of their ranks.
    pub slots: Vec<GangSlotPlan>,
}

/// Part of a gang on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GangSlotPlan {
    /// Index of the slot.
    pub slot: SlotIndex,
    /// The slot's last fence plus one.
    pub fence: Fence,
    /// Node that receives the order.
    pub node: NodeId,
    /// Ranks that it runs.
    pub ranks: SlotRanks,
    /// GPUs of these ranks, in their order.
    pub gpus: Vec<RankGpu>,
}

/// Submission to a job as the holder of a token asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Name of the approved job.
    pub job: ServiceName,
    /// Key of idempotency, chosen by the client.
    pub idempotency: Digest,
    /// Value of each parameter; one that is left out has its default.
    pub parameters: BTreeMap<ParameterName, String>,
    /// Priority, at most that of the manifest; none = that of the manifest.
    pub priority: Option<u32>,
    /// Time in seconds after which no attempt begins; none = the longest allowed.
    pub deadline_seconds: Option<u64>,
    /// Jobs and arrays that succeed before an attempt begins.
    pub after: BTreeSet<JobId>,
    /// Number of tasks of an array; none = one job.
    pub array: Option<u32>,
}

/// The reply to an applied command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The command was applied; it has no further result.
    Done,
    /// The circle was founded.
    Founded { circle: CircleId },
    /// The proposal is kept as a draft.
    Submitted { proposal: ProposalId },
    /// The ballot was counted.
    Counted {
        /// Proposal of the ballot.
        proposal: ProposalId,
        /// State of the proposal after this ballot.
        state: ProposalState,
        /// Its certificate, if this vote completed it.
        certificate: Option<Digest>,
    },
    /// The plan was executed.
    Executed {
        /// Generation after the plan.
        generation: u64,
        /// Orders that were issued.
        orders: Vec<SlotOrder>,
    },
    /// The job is kept, or was before.
    JobSubmitted { job: JobId },
    /// The new leadership is in force.
    Leads {
        /// Generation after the change of leader.
        generation: u64,
    },
    /// The node waits for admission, or is admitted.
    Enrolled {
        /// Whether a certificate has admitted it.
        admitted: bool,
    },
    /// The command was refused; nothing was changed.
    Refused {
        /// Stable code of the cause.
        code: ErrorCode,
        /// Cause, as text for operators.
        message: String,
    },
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Reply::Refused { code: refusal.code, message: refusal.message }
    }
}

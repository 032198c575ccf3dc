//! What is written to the replicated log, and what applying it answers.
//!
//! A command carries the time at which its proposer made it; the state machine has no clock of its own.
//! May surprise: a plan is one command and is applied whole or not at all.

use protocol::api::ProposalState;
use protocol::gateway::ApiKey;
use protocol::governance::{NodeAdmission, Proposal, SignedBallot, SignedGenesis};
use protocol::model::{KeyWrap, ModelRecord};
use protocol::order::SlotOrder;
use protocol::{
    CircleId, Digest, ErrorCode, Fence, MemberId, Millis, ModelRoot, NodeId, ProposalId, ReplicaId,
    ServiceName, SlotIndex, TokenName,
};
use serde::{Deserialize, Serialize};

/// Who asked for a command. Tokens are checked again when the command is applied.
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
    /// The proposer's wall clock. The cluster's time never goes back: an earlier time counts as its last.
    pub now: Millis,
    /// Who asked.
    pub actor: Actor,
    /// For what.
    pub action: Action,
    /// Under which key it may come again and is carried out once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<IdempotencyKey>,
}

/// A client's name for one write, within those of its access token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyKey {
    /// The token that the request carried.
    pub token: TokenName,
    /// Digest of the key's text.
    pub key: Digest,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// A replica became leader. It must be applied before the new leader answers any agent: it makes
    /// every plan of an earlier leader stale, and starts the one lease that the new leader waits.
    Lead {
        /// Which replica.
        replica: ReplicaId,
    },
    /// Begin. Once only.
    Found(Box<SignedGenesis>),
    /// Put something to the vote.
    SubmitProposal(Box<Proposal>),
    /// Count a vote; the last one needed puts the change into force.
    CastBallot(Box<SignedBallot>),
    /// Note where a model lies, and keep wraps of its key. One command, so that no model is ever known whose key
    /// nobody holds; the same again changes nothing.
    RegisterModel {
        /// Where it lies.
        record: Box<ModelRecord>,
        /// Its key, for at least one member.
        wraps: Vec<KeyWrap>,
    },
    /// Keep more wraps of a model's key. A wrap that its recipient can open is never replaced.
    PutWraps(Vec<KeyWrap>),
    /// Forget where a model lies, and the wraps of its key. No service in force may name it.
    ForgetModel(ModelRoot),
    /// Let applications in.
    CreateApiKey(ApiKey),
    /// Shut them out.
    RevokeApiKey(TokenName),
    /// Want another number of replicas, inside the envelope.
    Scale {
        /// Of which service.
        service: ServiceName,
        /// How many.
        replicas: u32,
    },
    /// Carry out a plan.
    Execute {
        /// The generation that the plan was made for.
        parent_generation: u64,
        /// What to do, in this order.
        steps: Vec<Step>,
    },
    /// An unknown node asks to be admitted.
    Enrol(Box<NodeAdmission>),
    /// Let expire what expires.
    Tick,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// A node's lease ended: every slot it held is free.
    Lapse {
        /// Which node.
        node: NodeId,
        /// The last time it could have renewed its lease. Its lease ended
        /// [`protocol::limits::LEASE_MS`] later.
        silent_since: Millis,
    },
    /// A slot is free: its node reported so.
    Release(SlotName),
    /// A slot shall finish what runs and be released.
    Drain {
        /// Which one.
        slot: SlotName,
        /// When its time is up.
        until: Millis,
        /// Why, for people.
        cause: String,
        /// It failed there: the service is not tried on this node again for a while.
        failed: bool,
    },
    /// A draining slot's time is up, or it has nothing to finish: its node ends it.
    End(SlotName),
    /// Give a free slot to a node.
    Order(OrderPlan),
}

/// A slot under a certain order. A step for an order that is no longer in force is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotName {
    /// Of which service.
    pub service: ServiceName,
    /// Which one.
    pub slot: SlotIndex,
    /// Under which order.
    pub fence: Fence,
}

/// An order to be issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderPlan {
    /// Of which service.
    pub service: ServiceName,
    /// Which slot.
    pub slot: SlotIndex,
    /// The slot's last fence plus one.
    pub fence: Fence,
    /// To which node.
    pub node: NodeId,
    /// The service's certificate now.
    pub certificate: Digest,
    /// Which of the node's GPUs.
    pub gpus: Vec<u32>,
    /// The slot that this replica leaves once it answers here: it moves. None when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotName>,
}

/// What applying a command answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// It is done; nothing more to say.
    Done,
    /// The circle exists.
    Founded {
        /// Its id.
        circle: CircleId,
    },
    /// The proposal waits for votes.
    Submitted {
        /// Its id.
        proposal: ProposalId,
    },
    /// The vote counts.
    Counted {
        /// On which proposal.
        proposal: ProposalId,
        /// How far the proposal is now.
        state: ProposalState,
        /// Its certificate, if this vote completed it.
        certificate: Option<Digest>,
    },
    /// The plan was carried out.
    Executed {
        /// The generation now.
        generation: u64,
        /// The orders that were issued.
        orders: Vec<SlotOrder>,
    },
    /// The leader leads.
    Leads {
        /// The generation now.
        generation: u64,
    },
    /// The node waits for admission, or has it.
    Enrolled {
        /// Whether a certificate has admitted it.
        admitted: bool,
    },
    /// Nothing was changed.
    Refused {
        /// Why, as a stable code.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
}

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// As a stable code.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code and text.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Reply::Refused { code: refusal.code, message: refusal.message }
    }
}

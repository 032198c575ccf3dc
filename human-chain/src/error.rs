//! Why something is not approved. Every variant has a stable code that `quorate explain` knows.

use crate::show_time;
use protocol::canonical::CanonicalError;
use protocol::error_code::{self, ErrorCode};
use protocol::governance::ActionClass;
use protocol::{CircleId, Epoch, Fence, MemberId, Millis, NodeId, ServiceName, SlotIndex};

/// Why a genesis, proposal, ballot, certificate or order is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A rule of form is broken; `what` names the thing, `reason` the rule.
    #[error("{what}: {reason}")]
    Invalid {
        /// The thing, as a path: `genesis.control`.
        what: &'static str,
        /// The broken rule.
        reason: String,
    },
    /// Bytes that are not the one canonical encoding of their value, or too many of them.
    #[error("{what}: {source}")]
    NotCanonical {
        /// What was read.
        what: &'static str,
        /// Why not.
        source: CanonicalError,
    },
    /// A circle other than the expected one.
    #[error("belongs to circle {actual}, not to {expected}")]
    OtherCircle {
        /// The circle that was pinned or is running.
        expected: CircleId,
        /// The circle that was found.
        actual: CircleId,
    },
    /// Made under other members or another policy.
    #[error("was made in epoch {proposed}; the circle is in epoch {current}")]
    OtherEpoch {
        /// The proposal's epoch.
        proposed: Epoch,
        /// The circle's epoch.
        current: Epoch,
    },
    /// What the proposal changes has changed since it was made.
    #[error(
        "`{subject}` has changed since the proposal was made: it saw version {proposed}, now is {current}"
    )]
    Stale {
        /// What it changes.
        subject: String,
        /// The version that the proposer saw.
        proposed: u64,
        /// The version now.
        current: u64,
    },
    /// The proposal's time is over.
    #[error("expired at {}; it is {}; propose it again", show_time(*.expired_at), show_time(*.now))]
    Expired {
        /// When it ended.
        expired_at: Millis,
        /// The time it was judged at.
        now: Millis,
    },
    /// A ballot that was signed after the proposal's time was over.
    #[error("member `{0}` voted after the proposal had expired")]
    LateBallot(MemberId),
    /// A workload of a kind that is read and checked, but not yet run.
    #[error("running {0} is not built yet")]
    KindNotBuilt(&'static str),
    /// A workload that asks to reach hosts outside.
    #[error("service `{0}` asks for egress, which is not built yet")]
    EgressNotBuilt(ServiceName),
    /// Somebody who is no member of the circle.
    #[error("`{0}` is not a member of the circle")]
    NotAMember(MemberId),
    /// A second ballot by the same member.
    #[error("member `{0}` has more than one ballot")]
    DuplicateBallot(MemberId),
    /// A ballot for something else.
    #[error("the ballot of `{member}` is for another {what}")]
    BallotMismatch {
        /// Whose ballot.
        member: MemberId,
        /// What differs.
        what: &'static str,
    },
    /// A signature that does not hold.
    #[error("the signature of `{0}` does not hold")]
    SignatureInvalid(MemberId),
    /// A genesis that one of its founders has not signed.
    #[error("founder `{0}` has not signed the genesis")]
    FounderSignatureMissing(MemberId),
    /// Too few approvals.
    #[error("{approvals} approvals do not reach the {class:?} quorum: {needed}")]
    QuorumNotReached {
        /// The class of the change.
        class: ActionClass,
        /// How many members approved.
        approvals: usize,
        /// The rule, in words.
        needed: String,
    },
    /// An order whose signature is missing, wrong, or not by a control key of the circle.
    #[error("the order's signature does not hold or is not by a control key of the circle")]
    OrderSignatureInvalid,
    /// An order that no approval in force covers.
    #[error("order for `{service}`: {reason}")]
    OrderNotApproved {
        /// Which service.
        service: ServiceName,
        /// Why no approval covers it.
        reason: &'static str,
    },
    /// An order for somebody else, or for something outside its envelope.
    #[error("order for `{service}` slot {slot}: {reason}")]
    OrderMismatch {
        /// Which service.
        service: ServiceName,
        /// Which slot.
        slot: SlotIndex,
        /// What does not fit.
        reason: &'static str,
    },
    /// An order that is not newer than the last one accepted.
    #[error("order for slot {slot} has fence {fence}, not above {last}")]
    OrderReplayed {
        /// Which slot.
        slot: SlotIndex,
        /// The order's fence.
        fence: Fence,
        /// The highest fence accepted before.
        last: Fence,
    },
    /// A node that no certificate admits.
    #[error("node {0} is not admitted")]
    NodeNotAdmitted(NodeId),
}

impl ChainError {
    /// A broken rule of form.
    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }

    /// The stable code that people and programs see.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } | Self::NotCanonical { .. } => error_code::GOVERNANCE_INVALID,
            Self::OtherCircle { .. } | Self::OtherEpoch { .. } => error_code::CIRCLE_MISMATCH,
            Self::Stale { .. } => error_code::PROPOSAL_STALE,
            Self::Expired { .. } | Self::LateBallot(_) => error_code::PROPOSAL_EXPIRED,
            Self::KindNotBuilt(_) => error_code::KIND_NOT_BUILT,
            Self::EgressNotBuilt(_) => error_code::EGRESS_NOT_BUILT,
            Self::NotAMember(_) => error_code::NOT_A_MEMBER,
            Self::DuplicateBallot(_) => error_code::BALLOT_DUPLICATE,
            Self::BallotMismatch { .. } => error_code::BALLOT_MISMATCH,
            Self::SignatureInvalid(_) => error_code::SIGNATURE_INVALID,
            Self::FounderSignatureMissing(_) => error_code::FOUNDER_SIGNATURE_MISSING,
            Self::QuorumNotReached { .. } => error_code::QUORUM_NOT_REACHED,
            Self::OrderSignatureInvalid => error_code::ORDER_SIGNATURE_INVALID,
            Self::OrderNotApproved { .. } => error_code::ORDER_NOT_APPROVED,
            Self::OrderMismatch { .. } => error_code::ORDER_MISMATCH,
            Self::OrderReplayed { .. } => error_code::ORDER_REPLAYED,
            Self::NodeNotAdmitted(_) => error_code::NODE_NOT_ADMITTED,
        }
    }
}

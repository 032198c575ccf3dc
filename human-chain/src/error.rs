//! Errors of approval. Every variant has a stable code that `quorate explain` knows.

use crate::show_time;
use protocol::canonical::CanonicalError;
use protocol::display::counted;
use protocol::error_code::{self, ErrorCode};
use protocol::governance::ActionClass;
use protocol::halt::HALTS_PER_MEMBER_MAX;
use protocol::{
    CircleId, Digest, Epoch, Fence, GrantId, HaltId, MemberId, Millis, ModelName, ModelRoot, NodeId,
    NodeName, ParameterName, ProjectName, Refusal, ServiceName, SlotIndex, TokenName,
};

/// Reason for the rejection of a genesis, proposal, ballot, certificate, grant or order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A rule of form is broken; `what` names the value, `reason` the rule.
    #[error("{what}: {reason}")]
    Invalid {
        /// Path of the value: `genesis.control`.
        what: &'static str,
        /// Broken rule.
        reason: String,
    },
    /// The bytes are not the canonical encoding of their value, or there are too many of them.
    #[error("{what}: {source}")]
    NotCanonical {
        /// Kind of value that was read.
        what: &'static str,
        /// Defect of the encoding.
        source: CanonicalError,
    },
    /// The value belongs to another circle than expected.
    #[error("belongs to circle {actual}, not to {expected}")]
    OtherCircle {
        /// Circle that was pinned or is running.
        expected: CircleId,
        /// Circle that the value names.
        actual: CircleId,
    },
    /// The value was made under other members or another policy.
    #[error("was made in epoch {proposed}; the circle is in epoch {current}")]
    OtherEpoch {
        /// Epoch of the proposal.
        proposed: Epoch,
        /// Epoch of the circle.
        current: Epoch,
    },
    /// A signer or this machine has seen more decisions than the history has.
    #[error("the history ends after {}; {known} are known to exist", counted(*length, "decision"))]
    HistoryShorter {
        /// Number of decisions that were seen before.
        known: u64,
        /// Number of decisions in the history.
        length: u64,
    },
    /// A signer or this machine has seen other decisions than the history has.
    #[error("the first {size} decisions of the history are not those that were seen before")]
    HistoryForked {
        /// Number of decisions that were seen before.
        size: u64,
    },
    /// The model's name is bound to another root.
    #[error(
        "the name `{name}` stands for model {}; import model {} under another name",
        bound.short(), asked.short()
    )]
    ModelNameTaken {
        /// Name of the model.
        name: ModelName,
        /// Root that the circle approved under this name first.
        bound: ModelRoot,
        /// Root that the manifest names.
        asked: ModelRoot,
    },
    /// The subject of the proposal has changed since the proposal was made.
    #[error(
        "`{subject}` has changed since the proposal was made: it saw version {proposed}, now is {current}"
    )]
    Stale {
        /// Name of the subject.
        subject: String,
        /// Version that the proposer saw.
        proposed: u64,
        /// Current version.
        current: u64,
    },
    /// The proposal has expired.
    #[error("expired at {}; it is {}; propose it again", show_time(*.expired_at), show_time(*.now))]
    Expired {
        /// Expiry of the proposal.
        expired_at: Millis,
        /// Time that the expiry was checked against.
        now: Millis,
    },
    /// The ballot was signed after the proposal had expired.
    #[error("member `{0}` voted after the proposal had expired")]
    LateBallot(MemberId),
    /// The workload is of a kind that this release checks, but cannot run.
    #[error("running {0} is not built yet")]
    KindNotBuilt(&'static str),
    /// The workload asks for egress, which this release does not allow.
    #[error("`{0}` asks for egress, which is not built yet")]
    EgressNotBuilt(ServiceName),
    /// The circle decided to forget the model.
    #[error("model `{name}` (root {}) is forgotten; import it again under another name", root.short())]
    ModelForgotten {
        /// Name of the model.
        name: ModelName,
        /// Root that was forgotten.
        root: ModelRoot,
    },
    /// An approved service names the model.
    #[error("service `{service}` is approved to run model `{name}`; retire the service first")]
    ModelInUse {
        /// Name of the model.
        name: ModelName,
        /// Service that names it.
        service: ServiceName,
    },
    /// The circle has lifted the halt.
    #[error("halt {} was lifted by the circle and stays so; halt again if it must stop", .0.short())]
    HaltLifted(HaltId),
    /// As many halts of the member stand as one member may have.
    #[error("{HALTS_PER_MEMBER_MAX} halts of `{0}` stand already; halt the circle, or lift some of them")]
    TooManyHalts(MemberId),
    /// A new set of keys lacks the proof that the member holds them.
    #[error("member `{0}` has not signed these keys: the change lacks a proof that the person holds them")]
    MemberKeysUnproven(MemberId),
    /// A new set of keys has a key that is or was a member's.
    #[error("`{0}` uses a key that is or was a member's; new keys are made by `quorate member init`")]
    MemberKeyReturns(MemberId),
    /// A rule falls in the change in which a member leaves or loses its keys.
    #[error(
        "the rule for {} changes falls from `{from}` to `{to}` while `{member}` leaves or changes keys; make \
         two changes of it",
        .class
    )]
    PolicyLowered {
        /// Class whose rule falls.
        class: ActionClass,
        /// Member that leaves, or whose keys are replaced.
        member: MemberId,
        /// Rule in force.
        from: String,
        /// Proposed rule.
        to: String,
    },
    /// The member is suspended: its keys count for nothing.
    #[error("member `{0}` is suspended; its keys count for nothing until the circle gives it new ones")]
    MemberSuspended(MemberId),
    /// The waiting time of the change is not over.
    #[error(
        "the change takes effect at {} unless a member vetoes it; it is {}",
        show_time(*.until), show_time(*.now)
    )]
    ChangeWaits {
        /// End of the waiting time.
        until: Millis,
        /// Time that it was compared with.
        now: Millis,
    },
    /// The approvals do not reach the quorum of the proposed members.
    #[error("{} the quorum of the proposed members: {needed}", fall_short(*approvals))]
    ProposedQuorumNotReached {
        /// Number of proposed members that approved.
        approvals: usize,
        /// Quorum rule, in words.
        needed: String,
    },
    /// The person is not a member of the circle.
    #[error("`{0}` is not a member of the circle")]
    NotAMember(MemberId),
    /// The member has more than one ballot.
    #[error("member `{0}` has more than one ballot")]
    DuplicateBallot(MemberId),
    /// The ballot is for another proposal, rendering or epoch, or outside the proposal's time.
    #[error("the ballot of `{member}` is for another {what}")]
    BallotMismatch {
        /// Member that the ballot names.
        member: MemberId,
        /// Part that differs.
        what: &'static str,
    },
    /// The signature does not verify.
    #[error("the signature of `{0}` does not hold")]
    SignatureInvalid(MemberId),
    /// A founder has not signed the genesis.
    #[error("founder `{0}` has not signed the genesis")]
    FounderSignatureMissing(MemberId),
    /// An assertion or registration does not have the form of one; the text says how.
    #[error("the passkey's answer {0}")]
    PasskeyInvalid(String),
    /// The passkey was used on another site than those of the policy; the text says how.
    #[error("the passkey's answer {0}")]
    PasskeyOrigin(String),
    /// The authenticator did not see or verify its user.
    #[error("the passkey was used without its user: {0}")]
    PasskeyUnverified(&'static str),
    /// The passkey signed another challenge.
    #[error("the passkey signed something else than what it is handed in for")]
    PasskeyChallenge,
    /// The signature of the passkey does not verify.
    #[error("the signature of the passkey does not hold")]
    PasskeySignatureInvalid,
    /// The counter of the passkey is not above that of an earlier use.
    #[error("the passkey counts {counter}, and counted {last} before: it may have been copied")]
    PasskeyCounter {
        /// Counter of this use.
        counter: u32,
        /// Highest counter of an earlier use.
        last: u32,
    },
    /// The member has no such passkey.
    #[error("the passkey is none of `{0}`'s: it was never registered, or was dropped")]
    PasskeyUnknown(MemberId),
    /// Ballots by passkey do not count for the change.
    #[error("`{member}` voted by passkey, which does not count for this {class} change; vote with the key")]
    PasskeyNotCounted {
        /// Member that the ballot names.
        member: MemberId,
        /// Action class of the change.
        class: ActionClass,
    },
    /// The approvals would reach the quorum, but none is by a member's keys.
    #[error("all {approvals} approvals are by passkey; one member must approve with the key")]
    PasskeysAlone {
        /// Number of members that approved.
        approvals: usize,
    },
    /// The approvals do not reach the quorum.
    #[error("{} the {} quorum: {needed}", fall_short(*approvals), title(*class))]
    QuorumNotReached {
        /// Action class of the change.
        class: ActionClass,
        /// Number of members that approved.
        approvals: usize,
        /// Quorum rule, in words.
        needed: String,
    },
    /// The order's signature is missing, wrong, or not by a control key of the circle.
    #[error("the order's signature does not hold or is not by a control key of the circle")]
    OrderSignatureInvalid,
    /// No approval in force covers the order.
    #[error("order for `{service}`: {reason}")]
    OrderNotApproved {
        /// Service that the order names.
        service: ServiceName,
        /// Reason why no approval covers the order.
        reason: &'static str,
    },
    /// The order is for another node, or outside its envelope.
    #[error("order for `{service}` slot {slot}: {reason}")]
    OrderMismatch {
        /// Service that the order names.
        service: ServiceName,
        /// Slot that the order names.
        slot: SlotIndex,
        /// Part of the order that does not fit.
        reason: &'static str,
    },
    /// The order is not newer than the last accepted one.
    #[error("order for slot {slot} has fence {fence}, not above {last}")]
    OrderReplayed {
        /// Slot that the order names.
        slot: SlotIndex,
        /// Fence of the order.
        fence: Fence,
        /// Highest fence accepted before.
        last: Fence,
    },
    /// A submission sets a parameter outside its bounds.
    #[error("parameter `{parameter}` {reason}")]
    ParameterOutOfBounds {
        /// Name of the parameter.
        parameter: ParameterName,
        /// Accepted values.
        reason: String,
    },
    /// A submission sets a parameter that the job does not have.
    #[error("the job has no parameter `{0}`")]
    ParameterUnknown(ParameterName),
    /// A submission leaves out a parameter without a default.
    #[error("parameter `{0}` is not set, and has no default")]
    ParameterMissing(ParameterName),
    /// The approved job does not let the party submit.
    #[error("the job `{job}` lets {submitter} submit nothing")]
    SubmitterRefused {
        /// Name of the job.
        job: ServiceName,
        /// Party that submits, for people.
        submitter: String,
    },
    /// The job demands a signed submission.
    #[error("a submission to `{0}` by a member or a submit key is signed; this one is not")]
    SubmissionUnsigned(ServiceName),
    /// The signature of a submit key does not verify.
    #[error("the signature of the submit key `{0}` does not hold")]
    SubmitSignatureInvalid(TokenName),
    /// The submission has passed its deadline.
    #[error("the submission ended at {}; it is {}", show_time(*.deadline), show_time(*.now))]
    SubmissionExpired {
        /// Time after which no attempt begins.
        deadline: Millis,
        /// Time that it was compared with.
        now: Millis,
    },
    /// The submission does not fit the job that it names; the text says how.
    #[error("submission to `{job}`: {reason}")]
    SubmissionMismatch {
        /// Name of the job.
        job: ServiceName,
        /// Part that does not fit.
        reason: String,
    },
    /// The projects are no tree, or a quota exceeds that of its parent; the text says where.
    #[error("projects: {0}")]
    ProjectsInvalid(String),
    /// The job belongs to a project that the circle did not vote.
    #[error(
        "job `{job}` belongs to project `{project}`, which the circle did not vote; smallest change: vote \
         the project, or leave `project` out of the manifest"
    )]
    ProjectUnknown {
        /// Name of the job.
        job: ServiceName,
        /// Project that its manifest names.
        project: ProjectName,
    },
    /// The statement about a checkpoint or outputs of a job does not hold.
    #[error("data of job `{job}`: {reason}")]
    JobDataInvalid {
        /// Name of the job.
        job: ServiceName,
        /// Check that failed.
        reason: &'static str,
    },
    /// The approval of the job has ended.
    #[error("the approval of `{job}` ended at {}; it is {}", show_time(*.until), show_time(*.now))]
    EnvelopeExpired {
        /// Name of the job.
        job: ServiceName,
        /// End of the approval.
        until: Millis,
        /// Time that it was compared with.
        now: Millis,
    },
    /// No certificate admits the node.
    #[error("node {0} is not admitted")]
    NodeNotAdmitted(NodeId),
    /// The admission lacks the node's own signature over its keys.
    #[error("node `{0}` has not signed these keys: another party may have exchanged one of them")]
    NodeKeysUnproven(NodeName),
    /// The wrap is for a node that needs no model key.
    #[error("node `{0}` is not admitted as a worker, and gets no model key")]
    NotARecipient(NodeName),
    /// The signature of a node does not verify.
    #[error("the signature of node {0} does not hold")]
    NodeSignatureInvalid(NodeId),
    /// The access envelope in force does not let the member grant or revoke.
    #[error(
        "member `{0}` may grant no access, nor revoke a grant of others: the access envelope does not name it"
    )]
    GrantorRefused(MemberId),
    /// The grant exceeds the access envelope in force; the text says how.
    #[error("the grant is outside the access envelope: {0}")]
    GrantOutsideEnvelope(String),
    /// The grant names an envelope of which no grant counts any more, or one that the circle never voted.
    #[error("the grant names the access envelope {}, whose grants do not count; issue it again", .0.short())]
    GrantEnvelopeEnded(Digest),
    /// The grant has expired.
    #[error("the grant expired at {}; it is {}", show_time(*.expired_at), show_time(*.now))]
    GrantExpired {
        /// Expiry of the grant.
        expired_at: Millis,
        /// Time that it was compared with.
        now: Millis,
    },
    /// The grant was revoked.
    #[error("the grant {} was revoked and stays so; issue another", .0.short())]
    GrantRevoked(GrantId),
    /// As many grants or revocations are kept as there may be.
    #[error("there are {most} {what} already; revoke some, wait for their expiry, or vote another envelope")]
    TooManyGrants {
        /// Kind of grant, in the plural.
        what: &'static str,
        /// Number that there may be.
        most: u64,
    },
    /// The holder has a token or key and its successor already, or another grant names the same secret.
    #[error("`{holder}` has two {what} already, or the secret is in use; revoke one first")]
    GrantTaken {
        /// Holder of the grants that stand.
        holder: TokenName,
        /// Kind of grant, in the plural.
        what: &'static str,
    },
}

/// Returns `1 approval does not reach`, `2 approvals do not reach`.
fn fall_short(approvals: usize) -> String {
    let verb = if approvals == 1 { "does" } else { "do" };
    format!("{} {verb} not reach", counted(approvals as u64, "approval"))
}

/// Returns the class as the recorded histories print it; `Display` prints it as a manifest does.
fn title(class: ActionClass) -> &'static str {
    match class {
        ActionClass::Routine => "Routine",
        ActionClass::Sensitive => "Sensitive",
        ActionClass::Personal => "Personal",
    }
}

impl ChainError {
    /// Returns the error for a broken rule of form.
    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        debug_assert!(!what.is_empty() && !reason.is_empty(), "an error names its value and its rule");
        Self::Invalid { what, reason }
    }

    /// Returns the stable error code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid { .. } | Self::NotCanonical { .. } => error_code::GOVERNANCE_INVALID,
            Self::OtherCircle { .. } | Self::OtherEpoch { .. } => error_code::CIRCLE_MISMATCH,
            Self::HistoryShorter { .. } => error_code::HISTORY_SHORTER,
            Self::HistoryForked { .. } => error_code::HISTORY_FORKED,
            Self::ModelNameTaken { .. } => error_code::MODEL_NAME_TAKEN,
            Self::Stale { .. } => error_code::PROPOSAL_STALE,
            Self::Expired { .. } | Self::LateBallot(_) => error_code::PROPOSAL_EXPIRED,
            Self::KindNotBuilt(_) => error_code::KIND_NOT_BUILT,
            Self::EgressNotBuilt(_) => error_code::EGRESS_NOT_BUILT,
            Self::ModelForgotten { .. } => error_code::MODEL_FORGOTTEN,
            Self::ModelInUse { .. } => error_code::MODEL_IN_USE,
            Self::HaltLifted(_) => error_code::HALT_LIFTED,
            Self::TooManyHalts(_) | Self::TooManyGrants { .. } => error_code::LIMIT_REACHED,
            Self::GrantTaken { .. } => error_code::NAME_TAKEN,
            Self::GrantorRefused(_) => error_code::GRANTOR_REFUSED,
            Self::GrantOutsideEnvelope(_) => error_code::GRANT_OUTSIDE_ENVELOPE,
            Self::GrantEnvelopeEnded(_) => error_code::GRANT_ENVELOPE_ENDED,
            Self::GrantExpired { .. } => error_code::GRANT_EXPIRED,
            Self::GrantRevoked(_) => error_code::GRANT_REVOKED,
            Self::NotAMember(_) => error_code::NOT_A_MEMBER,
            Self::DuplicateBallot(_) => error_code::BALLOT_DUPLICATE,
            Self::BallotMismatch { .. } => error_code::BALLOT_MISMATCH,
            Self::SignatureInvalid(_)
            | Self::NodeSignatureInvalid(_)
            | Self::SubmitSignatureInvalid(_)
            | Self::PasskeySignatureInvalid => error_code::SIGNATURE_INVALID,
            Self::ParameterOutOfBounds { .. } => error_code::PARAMETER_OUT_OF_BOUNDS,
            Self::ParameterUnknown(_) => error_code::PARAMETER_UNKNOWN,
            Self::ParameterMissing(_) => error_code::PARAMETER_MISSING,
            Self::SubmitterRefused { .. } => error_code::SUBMITTER_REFUSED,
            Self::SubmissionUnsigned(_) => error_code::SUBMISSION_UNSIGNED,
            Self::SubmissionExpired { .. } => error_code::SUBMISSION_EXPIRED,
            Self::ProjectsInvalid(_) => error_code::PROJECTS_INVALID,
            Self::ProjectUnknown { .. } => error_code::PROJECT_UNKNOWN,
            Self::SubmissionMismatch { .. } => error_code::SUBMISSION_MISMATCH,
            Self::JobDataInvalid { .. } => error_code::JOB_DATA_INVALID,
            Self::EnvelopeExpired { .. } => error_code::ENVELOPE_EXPIRED,
            Self::PasskeyInvalid(_) => error_code::PASSKEY_INVALID,
            Self::PasskeyOrigin(_) => error_code::PASSKEY_ORIGIN,
            Self::PasskeyUnverified(_) => error_code::PASSKEY_UNVERIFIED,
            Self::PasskeyChallenge => error_code::PASSKEY_CHALLENGE,
            Self::PasskeyCounter { .. } => error_code::PASSKEY_COUNTER,
            Self::PasskeyUnknown(_) => error_code::PASSKEY_UNKNOWN,
            Self::PasskeyNotCounted { .. } => error_code::PASSKEY_NOT_COUNTED,
            Self::PasskeysAlone { .. } => error_code::PASSKEYS_ALONE,
            Self::FounderSignatureMissing(_) => error_code::FOUNDER_SIGNATURE_MISSING,
            Self::QuorumNotReached { .. } | Self::ProposedQuorumNotReached { .. } => {
                error_code::QUORUM_NOT_REACHED
            }
            Self::MemberKeysUnproven(_) => error_code::MEMBER_KEYS_UNPROVEN,
            Self::MemberKeyReturns(_) => error_code::MEMBER_KEY_RETURNS,
            Self::PolicyLowered { .. } => error_code::POLICY_LOWERED,
            Self::MemberSuspended(_) => error_code::MEMBER_SUSPENDED,
            Self::ChangeWaits { .. } => error_code::CHANGE_WAITS,
            Self::OrderSignatureInvalid => error_code::ORDER_SIGNATURE_INVALID,
            Self::OrderNotApproved { .. } => error_code::ORDER_NOT_APPROVED,
            Self::OrderMismatch { .. } => error_code::ORDER_MISMATCH,
            Self::OrderReplayed { .. } => error_code::ORDER_REPLAYED,
            Self::NodeNotAdmitted(_) => error_code::NODE_NOT_ADMITTED,
            Self::NodeKeysUnproven(_) => error_code::NODE_KEYS_UNPROVEN,
            Self::NotARecipient(_) => error_code::WRAP_RECIPIENT_INVALID,
        }
    }
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_of_an_error_has_its_code_and_its_text() {
        for (error, code) in [
            (ChainError::KindNotBuilt("jobs"), error_code::KIND_NOT_BUILT),
            (ChainError::invalid("policy", "has no quorum"), error_code::GOVERNANCE_INVALID),
            (ChainError::OrderSignatureInvalid, error_code::ORDER_SIGNATURE_INVALID),
        ] {
            let message = error.to_string();
            assert!(!message.contains(code.as_str()), "the code stands beside the text: {message}");
            assert_eq!(Refusal::from(error), Refusal::new(code, message));
        }
    }
}

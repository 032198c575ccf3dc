//! Votes: making one, judging one, counting them.

use crate::propose::check_proposal;
use crate::render::{RENDERER_VERSION, render};
use crate::{ChainError, CircleState, MemberSecret, class_of, quorum, signature_holds};
use protocol::canonical::to_bytes;
use protocol::governance::{
    ActionClass, BALLOT_DOMAIN, Ballot, Certificate, Choice, Proposal, Quorum, SignedBallot,
};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, MemberId, Millis, ProposalId};
use std::collections::BTreeSet;

/// A member's signed vote on the proposal as it is rendered here. Whoever calls this must have shown
/// that rendering to the member.
#[must_use]
pub fn vote(
    secret: &MemberSecret,
    member: MemberId,
    proposal: &Proposal,
    choice: Choice,
    issued_at: Millis,
) -> SignedBallot {
    let ballot = Ballot {
        proposal: proposal.id(),
        rendering: render(proposal).digest,
        renderer_version: RENDERER_VERSION,
        choice,
        member,
        epoch: proposal.epoch,
        issued_at,
    };
    let signature = secret.sign(BALLOT_DOMAIN, &to_bytes(&ballot));
    SignedBallot { ballot, signature }
}

/// Whether this ballot may be taken in now: the proposal still stands, and the ballot is a member's own
/// on exactly this proposal as rendered.
///
/// # Errors
/// What is wrong with the proposal or the ballot.
pub fn check_ballot(
    state: &CircleState,
    proposal: &Proposal,
    signed: &SignedBallot,
    now: Millis,
) -> Result<(), ChainError> {
    check_proposal(state, proposal)?;
    if now > proposal.expires_at.plus(CLOCK_GRACE_MS) {
        return Err(ChainError::Expired { expired_at: proposal.expires_at, now });
    }
    if signed.ballot.issued_at > now.plus(CLOCK_GRACE_MS) {
        return Err(mismatch(signed, "time: it comes from the future"));
    }
    BallotBox::new(state, proposal).check(signed)
}

/// How a vote stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Who approved.
    pub approved: BTreeSet<MemberId>,
    /// Who rejected.
    pub rejected: BTreeSet<MemberId>,
    /// Members who may still vote on it.
    pub missing: BTreeSet<MemberId>,
    /// Whether the approvals reach the quorum.
    pub reached: bool,
    /// Ballots that do not count, and why.
    pub refused: Vec<(MemberId, ChainError)>,
}

/// Counts the ballots that hold; a ballot that does not hold counts for nothing, and a member's first
/// ballot is the one that counts. Whether the proposal itself still stands is not asked here.
#[must_use]
pub fn tally(state: &CircleState, proposal: &Proposal, ballots: &[SignedBallot]) -> Tally {
    let ballot_box = BallotBox::new(state, proposal);
    let (mut approved, mut rejected) = (BTreeSet::new(), BTreeSet::new());
    let mut refused = Vec::new();
    for signed in ballots {
        let member = &signed.ballot.member;
        if let Err(error) = ballot_box.check(signed) {
            refused.push((member.clone(), error));
        } else if approved.contains(member) || rejected.contains(member) {
            refused.push((member.clone(), ChainError::DuplicateBallot(member.clone())));
        } else if signed.ballot.choice == Choice::Approve {
            approved.insert(member.clone());
        } else {
            rejected.insert(member.clone());
        }
    }
    let voted = |id: &MemberId| approved.contains(id) || rejected.contains(id);
    let missing = state.members().map(|member| member.id.clone()).filter(|id| !voted(id)).collect();
    let reached = quorum::satisfied(rule(state, class_of(&proposal.change)), &approved);
    Tally { approved, rejected, missing, reached, refused }
}

/// The certificate that these ballots make. It holds approvals only, one per member, sorted.
///
/// # Errors
/// When the approvals that hold do not reach the quorum.
pub fn certify(
    state: &CircleState,
    proposal: &Proposal,
    ballots: &[SignedBallot],
) -> Result<Certificate, ChainError> {
    let tally = tally(state, proposal, ballots);
    require_quorum(state, proposal, &tally.approved)?;
    let ballot_box = BallotBox::new(state, proposal);
    let mut kept: Vec<SignedBallot> = ballots
        .iter()
        .filter(|signed| signed.ballot.choice == Choice::Approve)
        .filter(|signed| tally.approved.contains(&signed.ballot.member) && ballot_box.check(signed).is_ok())
        .cloned()
        .collect();
    // Stable: of two ballots by one member the first stays, as the tally counted.
    kept.sort_by(|a, b| a.ballot.member.cmp(&b.ballot.member));
    kept.dedup_by(|a, b| a.ballot.member == b.ballot.member);
    Ok(Certificate { proposal: proposal.clone(), ballots: kept })
}

/// Refuses when these members do not reach the quorum of the proposal's class.
pub(crate) fn require_quorum(
    state: &CircleState,
    proposal: &Proposal,
    approvals: &BTreeSet<MemberId>,
) -> Result<(), ChainError> {
    let class = class_of(&proposal.change);
    let rule = rule(state, class);
    if quorum::satisfied(rule, approvals) {
        return Ok(());
    }
    let needed = quorum::describe(rule);
    Err(ChainError::QuorumNotReached { class, approvals: approvals.len(), needed })
}

fn rule(state: &CircleState, class: ActionClass) -> &Quorum {
    state.policy().quorums.get(&class).expect("a state has a quorum for every class")
}

/// One proposal's ballots are judged against the same digests; they are computed once.
pub(crate) struct BallotBox<'a> {
    state: &'a CircleState,
    proposal: &'a Proposal,
    id: ProposalId,
    rendering: Digest,
}

impl<'a> BallotBox<'a> {
    pub(crate) fn new(state: &'a CircleState, proposal: &'a Proposal) -> Self {
        Self { state, proposal, id: proposal.id(), rendering: render(proposal).digest }
    }

    pub(crate) fn id(&self) -> ProposalId {
        self.id
    }

    /// Whether a ballot is a member's own, on this proposal as it is rendered, in its time.
    pub(crate) fn check(&self, signed: &SignedBallot) -> Result<(), ChainError> {
        let ballot = &signed.ballot;
        if ballot.proposal != self.id {
            return Err(mismatch(signed, "proposal"));
        }
        if ballot.renderer_version != RENDERER_VERSION || ballot.rendering != self.rendering {
            return Err(mismatch(signed, "rendering"));
        }
        if ballot.epoch != self.state.epoch() || ballot.epoch != self.proposal.epoch {
            return Err(mismatch(signed, "epoch"));
        }
        if ballot.issued_at.plus(CLOCK_GRACE_MS) < self.proposal.created_at {
            return Err(mismatch(signed, "time: it is older than its proposal"));
        }
        if ballot.issued_at > self.proposal.expires_at.plus(CLOCK_GRACE_MS) {
            return Err(ChainError::LateBallot(ballot.member.clone()));
        }
        let Some(member) = self.state.member(&ballot.member) else {
            return Err(ChainError::NotAMember(ballot.member.clone()));
        };
        if !signature_holds(&member.keys, BALLOT_DOMAIN, &to_bytes(ballot), &signed.signature) {
            return Err(ChainError::SignatureInvalid(ballot.member.clone()));
        }
        Ok(())
    }
}

fn mismatch(signed: &SignedBallot, what: &'static str) -> ChainError {
    ChainError::BallotMismatch { member: signed.ballot.member.clone(), what }
}

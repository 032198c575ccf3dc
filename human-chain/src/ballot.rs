//! Ballots: casting, verification and counting.

use crate::propose::check_proposal;
use crate::render::{RENDERER_VERSION, digests, render};
use crate::{ChainError, CircleState, MemberSecret, class_of, quorum, signature_holds};
use protocol::canonical::to_bytes;
use protocol::governance::{BALLOT_DOMAIN, Ballot, Certificate, Choice, HistoryHead, Proposal, SignedBallot};
use protocol::limits::CLOCK_GRACE_MS;
use protocol::{Digest, MemberId, Millis, ProposalId};
use std::collections::{BTreeMap, BTreeSet};

/// Returns a member's signed ballot on the proposal as [`render`] shows it. The caller must have shown that
/// rendering to the member. `seen` is the head of the history that the member's own machine verified.
#[must_use]
pub fn vote(
    secret: &MemberSecret,
    member: MemberId,
    seen: HistoryHead,
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
        history: seen,
        issued_at,
    };
    let signature = secret.sign(BALLOT_DOMAIN, &to_bytes(&ballot));
    SignedBallot { ballot, signature }
}

/// Checks that a ballot may be accepted now. The proposal must still be valid, and the ballot must be the
/// member's own on exactly this proposal as rendered.
///
/// # Errors
/// Returns the defect of the proposal or of the ballot.
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

/// Result of counting the ballots on a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub approved: BTreeSet<MemberId>,
    pub rejected: BTreeSet<MemberId>,
    /// Members that have not voted yet.
    pub missing: BTreeSet<MemberId>,
    /// True if the approvals reach the quorum.
    pub reached: bool,
    /// Ballots that do not count, each with the reason.
    pub refused: Vec<(MemberId, ChainError)>,
}

/// Counts the valid ballots. An invalid ballot does not count, and of several ballots by one member the first
/// valid one counts. The validity of the proposal itself is not checked.
#[must_use]
pub fn tally(state: &CircleState, proposal: &Proposal, ballots: &[SignedBallot]) -> Tally {
    let ballot_box = BallotBox::new(state, proposal);
    count(state, proposal, ballots, |signed| ballot_box.check(signed)).0
}

/// Builds a certificate from the valid approvals among these ballots: one per member, sorted by member.
///
/// # Errors
/// Returns an error when the valid approvals do not reach the quorum.
pub fn certify(
    state: &CircleState,
    proposal: &Proposal,
    ballots: &[SignedBallot],
) -> Result<Certificate, ChainError> {
    let ballot_box = BallotBox::new(state, proposal);
    let (tally, approvals) = count(state, proposal, ballots, |signed| ballot_box.check(signed));
    require_quorum(state, proposal, &tally.approved)?;
    Ok(assemble(proposal, approvals))
}

/// Builds a certificate from ballots that were checked on receipt, one per member: approvals only, sorted by
/// member. Nothing is verified here; [`verify`](crate::verify) verifies the complete certificate.
#[must_use]
pub fn assemble<'a>(proposal: &Proposal, ballots: impl IntoIterator<Item = &'a SignedBallot>) -> Certificate {
    let approvals = ballots.into_iter().filter(|signed| signed.ballot.choice == Choice::Approve);
    let mut ballots: Vec<SignedBallot> = approvals.cloned().collect();
    ballots.sort_by(|a, b| a.ballot.member.cmp(&b.ballot.member));
    let members = ballots.iter().map(|signed| &signed.ballot.member);
    debug_assert!(members.is_sorted_by(|a, b| a < b), "each member has one ballot");
    Certificate { proposal: proposal.clone(), ballots }
}

/// Returns the tally and the approvals that count. Each ballot is verified once, which costs two signature
/// checks.
fn count<'a>(
    state: &CircleState,
    proposal: &Proposal,
    ballots: &'a [SignedBallot],
    mut check: impl FnMut(&SignedBallot) -> Result<(), ChainError>,
) -> (Tally, Vec<&'a SignedBallot>) {
    let (mut approved, mut rejected) = (BTreeSet::new(), BTreeSet::new());
    let (mut approvals, mut refused) = (Vec::new(), Vec::new());
    for signed in ballots {
        let member = &signed.ballot.member;
        if let Err(error) = check(signed) {
            refused.push((member.clone(), error));
        } else if approved.contains(member) || rejected.contains(member) {
            refused.push((member.clone(), ChainError::DuplicateBallot(member.clone())));
        } else if signed.ballot.choice == Choice::Approve {
            approved.insert(member.clone());
            approvals.push(signed);
        } else {
            rejected.insert(member.clone());
        }
    }
    debug_assert_eq!(approvals.len(), approved.len(), "each member that approved has one approval");
    debug_assert!(approved.is_disjoint(&rejected), "no member both approves and rejects");
    let voted = |id: &MemberId| approved.contains(id) || rejected.contains(id);
    let missing = state.members().map(|member| member.id.clone()).filter(|id| !voted(id)).collect();
    debug_assert_eq!(
        refused.len() + approved.len() + rejected.len(),
        ballots.len(),
        "each ballot is counted"
    );
    debug_assert!(approved.union(&rejected).all(|id| state.member(id).is_some()), "only members are counted");
    let reached = quorum::satisfied(state.quorum(class_of(&proposal.change)), &approved);
    (Tally { approved, rejected, missing, reached, refused }, approvals)
}

/// Returns an error unless these members reach the quorum of the proposal's class.
pub(crate) fn require_quorum(
    state: &CircleState,
    proposal: &Proposal,
    approvals: &BTreeSet<MemberId>,
) -> Result<(), ChainError> {
    debug_assert!(approvals.iter().all(|id| state.member(id).is_some()), "only members approve");
    let class = class_of(&proposal.change);
    let rule = state.quorum(class);
    if quorum::satisfied(rule, approvals) {
        return Ok(());
    }
    let needed = quorum::describe(rule);
    Err(ChainError::QuorumNotReached { class, approvals: approvals.len(), needed })
}

/// Verifier for the ballots of one proposal. It computes the digests of the proposal and its renderings once.
pub(crate) struct BallotBox<'a> {
    state: &'a CircleState,
    proposal: &'a Proposal,
    id: ProposalId,
    renderings: BTreeMap<u32, Digest>,
}

impl<'a> BallotBox<'a> {
    pub(crate) fn new(state: &'a CircleState, proposal: &'a Proposal) -> Self {
        Self { state, proposal, id: proposal.id(), renderings: digests(proposal) }
    }

    pub(crate) fn id(&self) -> ProposalId {
        self.id
    }

    /// Checks that a ballot is a member's own, on this proposal as its version of the renderer shows it,
    /// within the proposal's time, and cast in this history.
    pub(crate) fn check(&self, signed: &SignedBallot) -> Result<(), ChainError> {
        let ballot = &signed.ballot;
        if ballot.proposal != self.id {
            return Err(mismatch(signed, "proposal"));
        }
        if self.renderings.get(&ballot.renderer_version) != Some(&ballot.rendering) {
            return Err(mismatch(signed, "rendering"));
        }
        if ballot.epoch != self.state.epoch() || ballot.epoch != self.proposal.epoch {
            return Err(mismatch(signed, "epoch"));
        }
        self.state.check_extends(&ballot.history)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;
    use crate::{propose, sign_genesis, verify};
    use protocol::PublicKey;
    use protocol::ReplicaId;
    use protocol::governance::{ActionClass, Change, ControlReplica, Genesis, Member, Policy, Quorum};
    use std::cell::Cell;

    const NOW: Millis = Millis(1_795_264_910_000);

    fn id(name: &str) -> MemberId {
        name.parse().expect("a name")
    }

    /// Returns a circle of three members with a quorum of two, and a proposal.
    fn circle() -> (Vec<(MemberId, MemberSecret)>, CircleState, Proposal) {
        let person = |(at, name): (usize, &str)| (id(name), MemberSecret::generate(&[at as u8 + 1; 64]));
        let people: Vec<(MemberId, MemberSecret)> =
            ["alice", "bob", "carol"].into_iter().enumerate().map(person).collect();
        let of: Vec<Quorum> = people.iter().map(|(id, _)| Quorum::Member(id.clone())).collect();
        let rule = Quorum::Threshold { required: 2, of };
        let quorums = [ActionClass::Routine, ActionClass::Sensitive].map(|class| (class, rule.clone()));
        let control = ControlReplica {
            id: ReplicaId(1),
            key: PublicKey([9; 32]),
            address: "127.0.0.1:7001".into(),
            api: "http://127.0.0.1:7000".into(),
        };
        let genesis = Genesis {
            name: "test".into(),
            founded_at: NOW,
            members: people.iter().map(|(id, key)| Member { id: id.clone(), keys: key.public() }).collect(),
            policy: Policy { quorums: quorums.into() },
            control: vec![control],
            nodes: vec![node("n1")],
            tokens: vec![],
        };
        let founders: Vec<(MemberId, &MemberSecret)> =
            people.iter().map(|(id, key)| (id.clone(), key)).collect();
        let state = CircleState::found(&sign_genesis(genesis, &founders), None).expect("a sound genesis");
        let change = Change::AdmitNode(Box::new(node("n2")));
        let proposal = propose(&state, change, String::new(), NOW, NOW.plus(1000), Digest::of(b"n"))
            .expect("may be asked");
        (people, state, proposal)
    }

    fn ballots(
        people: &[(MemberId, MemberSecret)],
        proposal: &Proposal,
        choices: &[(usize, Choice)],
    ) -> Vec<SignedBallot> {
        let ballot = |(at, choice): &(usize, Choice)| {
            let (id, secret) = &people[*at];
            vote(secret, id.clone(), proposal.history, proposal, *choice, NOW)
        };
        choices.iter().map(ballot).collect()
    }

    #[test]
    fn each_ballot_is_checked_once() {
        let (people, state, proposal) = circle();
        let (yes, no) = (Choice::Approve, Choice::Reject);
        for choices in [
            &[][..],
            &[(0, yes)],
            &[(0, yes), (1, yes)],
            &[(0, no), (1, yes), (2, yes)],
            &[(0, yes), (0, yes), (0, no)],
        ] {
            let cast = ballots(&people, &proposal, choices);
            let checked = Cell::new(0);
            let ballot_box = BallotBox::new(&state, &proposal);
            let (tally, approvals) = count(&state, &proposal, &cast, |signed| {
                checked.set(checked.get() + 1);
                ballot_box.check(signed)
            });
            assert_eq!(checked.get(), cast.len(), "{choices:?}");
            let kept: BTreeSet<MemberId> =
                approvals.iter().map(|signed| signed.ballot.member.clone()).collect();
            assert_eq!(kept, tally.approved, "the kept ballots are the counted ones");
            assert_eq!(kept.len(), approvals.len(), "one per member");
        }
    }

    #[test]
    fn a_ballot_that_fails_its_check_is_not_kept() {
        let (people, state, proposal) = circle();
        let cast = ballots(&people, &proposal, &[(0, Choice::Approve), (1, Choice::Approve)]);
        let refuse = |signed: &SignedBallot| Err(ChainError::NotAMember(signed.ballot.member.clone()));
        let (tally, approvals) = count(&state, &proposal, &cast, refuse);
        assert!(approvals.is_empty() && tally.approved.is_empty() && !tally.reached);
        assert_eq!(tally.refused.len(), 2);
        assert_eq!(tally.missing.len(), 3, "a member whose ballot was refused may still vote");
    }

    #[test]
    fn an_assembled_certificate_is_worth_what_verification_finds() {
        let (people, state, proposal) = circle();
        let (yes, no) = (Choice::Approve, Choice::Reject);
        let sound = ballots(&people, &proposal, &[(2, yes), (1, no), (0, yes)]);
        let certificate = assemble(&proposal, &sound);
        let voters: Vec<&str> = certificate.ballots.iter().map(|b| b.ballot.member.as_str()).collect();
        assert_eq!(voters, ["alice", "carol"], "approvals alone, sorted");
        assert!(verify(&state, &certificate, NOW).is_ok());
        assert_eq!(certify(&state, &proposal, &sound), Ok(certificate), "certifying gives the same");
        let mut forged = sound;
        forged[0].signature.ed25519.0[0] ^= 1;
        let error = verify(&state, &assemble(&proposal, &forged), NOW).expect_err("a forged ballot");
        assert_eq!(error, ChainError::SignatureInvalid(id("carol")));
    }
}

//! Ballots: casting, verification and counting.
//!
//! A change of members needs the quorum in force and that of the proposed members. A ballot counts for the
//! set of members by whose keys it is signed; if a member keeps its keys, it counts for both. A member whose
//! keys are replaced may cast one ballot with each set of keys.

use crate::propose::check_proposal;
use crate::render::{RENDERER_VERSION, digests, render};
use crate::waiting::{ballots_until, check_in_time, is_vetoable};
use crate::{
    ChainError, CircleState, MemberSigner, Statement, class_of, membership, quorum, signature_holds,
};
use protocol::canonical::to_bytes;
use protocol::foreign_text;
use protocol::governance::{
    ActionClass, BALLOT_DOMAIN, Ballot, BallotSignature, Certificate, Change, Choice, HistoryHead, Member,
    Proposal, Quorum, SignedBallot,
};
use protocol::limits::{BALLOT_REASON_BYTES_MAX, CLOCK_GRACE_MS};
use protocol::{Digest, MemberId, Millis, ProposalId};
use std::collections::{BTreeMap, BTreeSet};

/// Returns a member's signed ballot on the proposal as [`render`] shows it. The caller must have shown that
/// rendering to the member. `seen` is the head of the history that the member's own machine verified.
pub fn vote<S: MemberSigner>(
    signer: &S,
    member: MemberId,
    seen: HistoryHead,
    proposal: &Proposal,
    choice: Choice,
    issued_at: Millis,
) -> S::Signed<SignedBallot> {
    sign_ballot(signer, proposal, unsigned_ballot(member, seen, proposal, choice, issued_at))
}

/// Signs a ballot on this proposal with its member's keys.
#[must_use]
pub fn sign_ballot<S: MemberSigner>(
    signer: &S,
    proposal: &Proposal,
    ballot: Ballot,
) -> S::Signed<SignedBallot> {
    debug_assert_eq!(ballot.proposal, proposal.id(), "the signer shows the text that the ballot is about");
    let verb = match ballot.choice {
        Choice::Approve => "Approve",
        Choice::Reject => "Reject",
    };
    let because = match ballot.reason.as_str() {
        "" => String::new(),
        reason => format!(" Reason: {}", foreign_text::line(reason)),
    };
    let summary = format!("{verb} this proposal as {}.{because}", ballot.member);
    let text = render(proposal).text;
    let statement = Statement { domain: BALLOT_DOMAIN, bytes: to_bytes(&ballot), summary, text };
    signer.sign_statement(&statement, |signature| {
        let signature = BallotSignature::Hybrid(signature);
        SignedBallot { ballot, signature }
    })
}

/// Returns a member's ballot on the proposal as [`render`] shows it, without a reason, for [`sign_ballot`] or
/// for a passkey to sign.
#[must_use]
pub fn unsigned_ballot(
    member: MemberId,
    seen: HistoryHead,
    proposal: &Proposal,
    choice: Choice,
    issued_at: Millis,
) -> Ballot {
    Ballot {
        proposal: proposal.id(),
        rendering: render(proposal).digest,
        renderer_version: RENDERER_VERSION,
        choice,
        member,
        epoch: proposal.epoch,
        history: seen,
        issued_at,
        reason: String::new(),
    }
}

/// Checks the length of a vote's reason.
///
/// # Errors
/// Returns an error if it is longer than a ballot may hold.
pub fn check_reason(reason: &str) -> Result<(), ChainError> {
    let (length, most) = (reason.len(), BALLOT_REASON_BYTES_MAX);
    if length <= most {
        return Ok(());
    }
    Err(ChainError::invalid("ballot", format!("its reason is {length} bytes; accepted: at most {most}")))
}

/// Set of members by whose keys a ballot is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Electorate {
    /// Members in force.
    InForce,
    /// Members that the proposal would give these keys.
    Proposed,
}

/// Members that approve a proposal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approvals {
    /// Members that approve by their keys in force.
    pub in_force: BTreeSet<MemberId>,
    /// Proposed members that approve by keys that they do not have in force.
    pub proposed: BTreeSet<MemberId>,
    /// True if one of the approvals is hybrid. Passkeys alone approve nothing.
    pub by_key: bool,
}

impl Approvals {
    fn insert(&mut self, electorate: Electorate, member: MemberId) -> bool {
        match electorate {
            Electorate::InForce => self.in_force.insert(member),
            Electorate::Proposed => self.proposed.insert(member),
        }
    }

    fn contains(&self, electorate: Electorate, member: &MemberId) -> bool {
        match electorate {
            Electorate::InForce => self.in_force.contains(member),
            Electorate::Proposed => self.proposed.contains(member),
        }
    }

    /// Returns the proposed members that approve: those with new keys, and those that keep theirs.
    fn of_proposed(&self, state: &CircleState, members: &[Member]) -> BTreeSet<MemberId> {
        let new: BTreeSet<&MemberId> =
            membership::with_new_keys(state, members).map(|member| &member.id).collect();
        let approves = |id: &&MemberId| match new.contains(id) {
            true => self.proposed.contains(*id),
            false => self.in_force.contains(*id),
        };
        members.iter().map(|member| &member.id).filter(approves).cloned().collect()
    }
}

/// Checks that a ballot may be accepted now. The proposal must still be valid, and the ballot must be the
/// member's own on exactly this proposal as rendered. Returns the set of members that it counts for.
///
/// # Errors
/// Returns the defect of the proposal or of the ballot.
pub fn check_ballot(
    state: &CircleState,
    proposal: &Proposal,
    signed: &SignedBallot,
    now: Millis,
) -> Result<Electorate, ChainError> {
    check_proposal(state, proposal)?;
    check_in_time(state, proposal, signed.ballot.choice, now)?;
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
    /// Proposed members that approve by keys that they do not have in force.
    pub joining: BTreeSet<MemberId>,
    /// Members that have not voted yet.
    pub missing: BTreeSet<MemberId>,
    /// True if the approvals reach each quorum that the change needs, one of them is hybrid, and no member
    /// vetoes it.
    pub reached: bool,
    /// True if the approvals would reach the quorum, but all of them are by passkey.
    pub only_passkeys: bool,
    /// Ballots that do not count, each with the reason.
    pub refused: Vec<(MemberId, ChainError)>,
    /// Ballots that count, by their index among those that were counted. Only these speak for their members.
    pub counted: Vec<usize>,
}

/// Counts the valid ballots. An invalid ballot does not count, and of several ballots by one member the first
/// valid one counts. The validity of the proposal itself is not checked.
#[must_use]
pub fn tally(state: &CircleState, proposal: &Proposal, ballots: &[SignedBallot]) -> Tally {
    let ballot_box = BallotBox::new(state, proposal);
    tally_by(state, proposal, ballots, |signed| ballot_box.check(signed))
}

/// Counts the ballots that pass this check.
pub(crate) fn tally_by(
    state: &CircleState,
    proposal: &Proposal,
    ballots: &[SignedBallot],
    check: impl FnMut(&SignedBallot) -> Result<Electorate, ChainError>,
) -> Tally {
    count(state, proposal, ballots, check).tally
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
    let Counted { given, mut approvals, .. } =
        count(state, proposal, ballots, |signed| ballot_box.check(signed));
    require_quorum(state, proposal, &given)?;
    approvals.sort_by_key(|(electorate, _)| *electorate);
    Ok(assemble(proposal, approvals.into_iter().map(|(_, signed)| signed)))
}

/// Builds a certificate from ballots that were checked on receipt: approvals only, sorted by member. Of a
/// member with two, the one by the keys in force comes first. Nothing is verified here;
/// [`verify`](crate::verify) verifies the complete certificate.
#[must_use]
pub fn assemble<'a>(proposal: &Proposal, ballots: impl IntoIterator<Item = &'a SignedBallot>) -> Certificate {
    let approvals = ballots.into_iter().filter(|signed| signed.ballot.choice == Choice::Approve);
    let mut ballots: Vec<SignedBallot> = approvals.cloned().collect();
    ballots.sort_by(|a, b| a.ballot.member.cmp(&b.ballot.member));
    let members: Vec<&MemberId> = ballots.iter().map(|signed| &signed.ballot.member).collect();
    debug_assert!(members.iter().zip(members.iter().skip(2)).all(|(a, b)| a < b), "a member has two ballots");
    Certificate { proposal: proposal.clone(), ballots }
}

/// Result of one count: the tally, and the approvals that it was made from.
struct Counted<'a> {
    tally: Tally,
    given: Approvals,
    /// Ballots of the approvals, in the order of their arrival.
    approvals: Vec<(Electorate, &'a SignedBallot)>,
}

/// Counts the ballots. Each is verified once, which costs two signature checks.
fn count<'a>(
    state: &CircleState,
    proposal: &Proposal,
    ballots: &'a [SignedBallot],
    mut check: impl FnMut(&SignedBallot) -> Result<Electorate, ChainError>,
) -> Counted<'a> {
    let (mut given, mut denied) = (Approvals::default(), Approvals::default());
    let (mut approvals, mut refused, mut counted) = (Vec::new(), Vec::new(), Vec::new());
    for (index, signed) in ballots.iter().enumerate() {
        let member = &signed.ballot.member;
        let refused_before = refused.len();
        match check(signed) {
            Err(error) => refused.push((member.clone(), error)),
            Ok(keys) if given.contains(keys, member) || denied.contains(keys, member) => {
                refused.push((member.clone(), ChainError::DuplicateBallot(member.clone())));
            }
            Ok(keys) if signed.ballot.choice == Choice::Approve => {
                given.insert(keys, member.clone());
                given.by_key |= signed.is_hybrid();
                approvals.push((keys, signed));
            }
            Ok(keys) => drop(denied.insert(keys, member.clone())),
        }
        if refused.len() == refused_before {
            counted.push(index);
        }
    }
    let reached = is_approved(state, &proposal.change, &given);
    let vetoed = is_vetoable(state, &proposal.change) && !denied.in_force.is_empty();
    let with_a_key = Approvals { by_key: true, ..given.clone() };
    let only_passkeys = !given.by_key && is_approved(state, &proposal.change, &with_a_key);
    let Approvals { in_force: approved, proposed: joining, .. } = given.clone();
    let Approvals { in_force: rejected, proposed: declined, .. } = denied;
    debug_assert_eq!(approvals.len(), approved.len() + joining.len(), "each that approved has one approval");
    debug_assert!(approved.is_disjoint(&rejected), "no member both approves and rejects");
    debug_assert!(joining.is_disjoint(&declined), "no new keys both approve and reject");
    let voted = |id: &MemberId| approved.contains(id) || rejected.contains(id);
    let may_vote = |id: &MemberId| !voted(id) && !state.is_suspended(id);
    let missing = state.members().map(|member| member.id.clone()).filter(may_vote).collect();
    debug_assert_eq!(refused.len() + counted.len(), ballots.len(), "each ballot counts or is refused");
    debug_assert_eq!(
        refused.len() + approved.len() + rejected.len() + joining.len() + declined.len(),
        ballots.len(),
        "each ballot is counted"
    );
    debug_assert!(approved.union(&rejected).all(|id| state.member(id).is_some()), "only members are counted");
    let reached = reached && !vetoed;
    let tally = Tally { approved, rejected, joining, missing, reached, only_passkeys, refused, counted };
    Counted { tally, given, approvals }
}

/// Returns whether these approvals reach the quorum in force of a change's class, one of them hybrid. A
/// change of members also needs that of the proposed members under the proposed policy.
#[must_use]
pub fn is_approved(state: &CircleState, change: &Change, approvals: &Approvals) -> bool {
    require_approvals(state, change, approvals).is_ok()
}

/// Votes on a change of members by the rule of the proposed policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedVotes<'a> {
    /// Rule that the proposed members must reach.
    pub rule: &'a Quorum,
    /// False if the ballot of the proposer does not count for it.
    pub proposer_counts: bool,
    /// Proposed members that approve.
    pub approved: BTreeSet<MemberId>,
    /// Proposed members that may still approve.
    pub missing: BTreeSet<MemberId>,
}

/// Returns the votes of the proposed members, as a tally counted them; none for a change of another kind.
#[must_use]
pub fn proposed_votes<'a>(
    state: &CircleState,
    proposal: &'a Proposal,
    tally: &Tally,
) -> Option<ProposedVotes<'a>> {
    let Change::SetMembers { members, policy, .. } = &proposal.change else { return None };
    let rule = membership::rule(policy, ActionClass::Sensitive).ok()?;
    let (in_force, proposed) = (tally.approved.clone(), tally.joining.clone());
    let approved = Approvals { in_force, proposed, by_key: true }.of_proposed(state, members);
    let joins = |id: &MemberId| state.member(id) != members.iter().find(|member| member.id == *id);
    let may = |id: &&MemberId| !approved.contains(*id) && (joins(id) || tally.missing.contains(*id));
    let missing = members.iter().map(|member| &member.id).filter(may).cloned().collect();
    debug_assert!(approved.is_disjoint(&missing), "a member that approves is not missing");
    Some(ProposedVotes { rule, proposer_counts: policy.proposer_counts, approved, missing })
}

/// Returns an error unless these approvals suffice for the proposal.
pub(crate) fn require_quorum(
    state: &CircleState,
    proposal: &Proposal,
    approvals: &Approvals,
) -> Result<(), ChainError> {
    require_approvals(state, &proposal.change, approvals)
}

fn require_approvals(state: &CircleState, change: &Change, approvals: &Approvals) -> Result<(), ChainError> {
    debug_assert!(approvals.in_force.iter().all(|id| state.member(id).is_some()), "only members approve");
    let class = class_of(change);
    let (rule, proposer_counts) = (state.quorum_of(change), state.proposer_counts(change));
    if !quorum::carries(&rule, proposer_counts, &approvals.in_force) {
        let needed = quorum::describe_rule(&rule, proposer_counts);
        let approvals = approvals.in_force.len();
        return Err(ChainError::QuorumNotReached { class, approvals, needed });
    }
    if !approvals.by_key {
        return Err(ChainError::PasskeysAlone { approvals: approvals.in_force.len() });
    }
    let Change::SetMembers { members, policy, .. } = change else { return Ok(()) };
    let rule = membership::rule(policy, ActionClass::Sensitive)?;
    let of_proposed = approvals.of_proposed(state, members);
    if quorum::carries(rule, policy.proposer_counts, &of_proposed) {
        return Ok(());
    }
    let needed = quorum::describe_rule(rule, policy.proposer_counts);
    let approvals = of_proposed.len();
    Err(ChainError::ProposedQuorumNotReached { approvals, needed })
}

/// Verifier for the ballots of one proposal. It computes the digests of the proposal and its renderings once.
pub(crate) struct BallotBox<'a> {
    state: &'a CircleState,
    proposal: &'a Proposal,
    id: ProposalId,
    renderings: BTreeMap<u32, Digest>,
    /// Proposed members with keys that they do not have in force.
    joining: BTreeMap<&'a MemberId, &'a Member>,
    /// True if the members that are suspended now count as they did when they signed.
    before_suspensions: bool,
}

impl<'a> BallotBox<'a> {
    pub(crate) fn new(state: &'a CircleState, proposal: &'a Proposal) -> Self {
        let joining = membership::joining_members(state, &proposal.change);
        let joining = joining.into_iter().map(|member| (&member.id, member)).collect();
        let (id, renderings) = (proposal.id(), digests(proposal));
        Self { state, proposal, id, renderings, joining, before_suspensions: false }
    }

    /// Returns the verifier of ballots that were counted before any member in force was suspended.
    pub(crate) fn of_the_past(state: &'a CircleState, proposal: &'a Proposal) -> Self {
        Self { before_suspensions: true, ..Self::new(state, proposal) }
    }

    /// Returns whether a member has keys in force and other proposed keys, and may cast a ballot with each.
    pub(crate) fn has_two_keys(&self, member: &MemberId) -> bool {
        self.joining.contains_key(member) && self.state.member(member).is_some()
    }

    pub(crate) fn id(&self) -> ProposalId {
        self.id
    }

    /// Checks that a ballot is a member's own, on this proposal as its version of the renderer shows it,
    /// within the proposal's time, and cast in this history. Returns the set of members that it counts for.
    pub(crate) fn check(&self, signed: &SignedBallot) -> Result<Electorate, ChainError> {
        let ballot = &signed.ballot;
        if ballot.proposal != self.id {
            return Err(mismatch(signed, "proposal"));
        }
        check_reason(&ballot.reason)?;
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
        let until = ballots_until(self.state, self.proposal, ballot.choice);
        if ballot.issued_at > until.plus(CLOCK_GRACE_MS) {
            return Err(ChainError::LateBallot(ballot.member.clone()));
        }
        self.check_signature(signed)
    }

    /// Checks that a ballot is signed by keys that count, those in force first.
    fn check_signature(&self, signed: &SignedBallot) -> Result<Electorate, ChainError> {
        let id = &signed.ballot.member;
        let in_force = match self.before_suspensions {
            true => self.state.member(id).ok_or_else(|| ChainError::NotAMember(id.clone())),
            false => self.state.active_member(id),
        };
        let joining = self.joining.get(id).copied();
        if let (Err(error), None) = (&in_force, joining) {
            return Err(error.clone());
        }
        let signature = match &signed.signature {
            BallotSignature::Hybrid(signature) => signature,
            BallotSignature::Passkey(assertion) => {
                // Passkeys are those of a member in force.
                in_force?;
                self.state.check_passkey_ballot(&self.proposal.change, &signed.ballot, assertion)?;
                return Ok(Electorate::InForce);
            }
        };
        let bytes = to_bytes(&signed.ballot);
        let holds = |member: &Member| signature_holds(&member.keys, BALLOT_DOMAIN, &bytes, signature);
        if in_force.as_ref().is_ok_and(|member| holds(member)) {
            return Ok(Electorate::InForce);
        }
        if joining.is_some_and(holds) {
            return Ok(Electorate::Proposed);
        }
        match in_force {
            Err(suspended @ ChainError::MemberSuspended(_)) => Err(suspended),
            _ => Err(ChainError::SignatureInvalid(id.clone())),
        }
    }
}

fn mismatch(signed: &SignedBallot, what: &'static str) -> ChainError {
    ChainError::BallotMismatch { member: signed.ballot.member.clone(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemberSecret;
    use crate::testing::node;
    use crate::{propose, sign_genesis, verify};
    use protocol::PublicKey;
    use protocol::ReplicaId;
    use protocol::governance::{ControlReplica, Genesis, Policy};
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
            policy: Policy {
                quorums: quorums.into(),
                passkeys: None,
                veto_seconds: 0,
                proposer_counts: true,
            },
            control: vec![control],
            nodes: vec![node("n1")],
            access: protocol::access::AccessEnvelope::standard(["alice".parse().expect("a name")]),
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
            let Counted { tally, given, approvals } = count(&state, &proposal, &cast, |signed| {
                checked.set(checked.get() + 1);
                ballot_box.check(signed)
            });
            assert_eq!((&given.in_force, given.by_key), (&tally.approved, !tally.approved.is_empty()));
            assert_eq!(checked.get(), cast.len(), "{choices:?}");
            let kept: BTreeSet<MemberId> =
                approvals.iter().map(|(_, signed)| signed.ballot.member.clone()).collect();
            assert_eq!(kept, tally.approved, "the kept ballots are the counted ones");
            assert_eq!(kept.len(), approvals.len(), "one per member");
        }
    }

    #[test]
    fn a_ballot_that_fails_its_check_is_not_kept() {
        let (people, state, proposal) = circle();
        let cast = ballots(&people, &proposal, &[(0, Choice::Approve), (1, Choice::Approve)]);
        let refuse = |signed: &SignedBallot| Err(ChainError::NotAMember(signed.ballot.member.clone()));
        let Counted { tally, approvals, .. } = count(&state, &proposal, &cast, refuse);
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
        let BallotSignature::Hybrid(signature) = &mut forged[0].signature else { panic!("a hybrid one") };
        signature.ed25519.0[0] ^= 1;
        let error = verify(&state, &assemble(&proposal, &forged), NOW).expect_err("a forged ballot");
        assert_eq!(error, ChainError::SignatureInvalid(id("carol")));
    }
}

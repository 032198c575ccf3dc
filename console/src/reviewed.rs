//! A proposal as this machine sees it: its id, class and words computed here, its votes counted here.
//!
//! A server sends proposals and ballots, and its own opinion of them. The opinion is replaced before anything
//! is shown or signed. A hostile server can withhold a ballot, but show neither one that was not cast, nor
//! another proposal under the id that was asked for.

use human_chain::{CircleState, CommentThread, KnownVerdicts, Tally};
use protocol::api::{ProposalState, ProposalView};
use protocol::foreign_text::line;
use protocol::governance::{Certificate, Proposal, Quorum, SignedBallot};
use protocol::{ErrorCode, MemberId, ProposalId, Refusal, error_code};
use serde::Serialize;
use std::collections::BTreeSet;

/// A ballot that does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedBallot {
    /// Member that the ballot names.
    pub member: MemberId,
    pub code: ErrorCode,
    /// Reason for people.
    pub reason: String,
}

/// A proposal with its votes, verified on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReviewedProposal {
    /// The server's answer, with the votes as counted here. The state is what the server reports.
    #[serde(flatten)]
    pub view: ProposalView,
    /// Six words of the rendering.
    pub words: [&'static str; 6],
    /// First line of the rendering, without its margin mark.
    #[serde(skip)]
    pub sentence: String,
    /// True if the approvals reach the quorum.
    pub quorum_reached: bool,
    /// Signatures that the proposed members lack, in words; none for other changes, and once they suffice.
    pub proposed_lacking: Option<String>,
    /// True if the approvals would reach the quorum, but all are by passkey.
    pub only_passkeys: bool,
    /// Ballots that do not count.
    pub refused: Vec<RefusedBallot>,
    /// Ballots that count. The reason in any other one is not shown as its member's words.
    #[serde(skip)]
    pub counted: Vec<SignedBallot>,
    /// Questions and answers, verified here. Each speaks for the member that it names.
    #[serde(skip)]
    pub thread: CommentThread,
}

/// Parts of a review that are kept for the next one: the words, which follow from the proposal alone, and
/// verdicts on signatures, which hold for one proposal and one head of the history.
#[derive(Debug, Clone, Default)]
pub struct KnownReview {
    text: Option<KnownText>,
    pub(crate) verdicts: KnownVerdicts,
}

/// Words and sentence of a proposal.
#[derive(Debug, Clone)]
struct KnownText {
    proposal: ProposalId,
    words: [&'static str; 6],
    sentence: String,
}

impl KnownReview {
    /// Returns the number of signatures that were verified for these reviews, and not recalled.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.verdicts.verified()
    }

    /// Returns the words and the sentence of a proposal, which is rendered once.
    fn text_of(&mut self, proposal: &Proposal, id: ProposalId) -> &KnownText {
        let known = self.text.take().filter(|text| text.proposal == id);
        self.text.insert(known.unwrap_or_else(|| {
            let rendering = human_chain::render(proposal);
            let sentence = rendering.text.lines().next().unwrap_or_default();
            let sentence = sentence.trim_start_matches("| ").to_string();
            KnownText { proposal: id, words: rendering.words, sentence }
        }))
    }
}

impl ReviewedProposal {
    /// Verifies a server's answer in the state of the circle that this machine recomputed. `decision` is the
    /// certificate of the verified history that decided the proposal, if one did; that of another proposal is
    /// left out.
    ///
    /// # Errors
    /// Fails with `proposal-mismatch` if the id is not the digest of the proposal.
    pub fn with_decision(
        circle: &CircleState,
        decision: Option<&Certificate>,
        view: ProposalView,
    ) -> Result<Self, Refusal> {
        Self::with_known(circle, decision, view, &mut KnownReview::default())
    }

    /// Verifies a server's answer as [`ReviewedProposal::with_decision`] does, but no signature that was
    /// verified for the same proposal at the same head before. The votes are counted each time.
    ///
    /// # Errors
    /// As [`ReviewedProposal::with_decision`].
    pub fn with_known(
        circle: &CircleState,
        decision: Option<&Certificate>,
        view: ProposalView,
        known: &mut KnownReview,
    ) -> Result<Self, Refusal> {
        check_id(&view)?;
        let KnownText { words, sentence, .. } = known.text_of(&view.proposal, view.id).clone();
        let (quorum_reached, only_passkeys, proposed_lacking) = (false, false, None);
        let (refused, counted) = (Vec::new(), Vec::new());
        let thread = known.verdicts.thread(circle, &view.proposal, &view.comments);
        let mut reviewed = Self {
            view,
            words,
            sentence,
            quorum_reached,
            only_passkeys,
            proposed_lacking,
            refused,
            counted,
            thread,
        };
        let view = &mut reviewed.view;
        view.class = human_chain::class_of(&view.proposal.change);
        match decision.filter(|certificate| certificate.proposal == view.proposal) {
            Some(certificate) => reviewed.take_decision(certificate),
            None => {
                let tally = known.verdicts.tally(circle, &view.proposal, &view.ballots);
                reviewed.take_tally(circle, tally);
            }
        }
        reviewed.check_proposer();
        Ok(reviewed)
    }

    /// Leaves out a proposer of whom no ballot counts: the server's word alone names none.
    fn check_proposer(&mut self) {
        let view = &mut self.view;
        let counts = |member: &MemberId| view.approved.contains(member) || view.rejected.contains(member);
        view.proposer = view.proposer.take().filter(counts);
        view.drafted_by = view.drafted_by.take().map(|maker| line(&maker));
    }

    /// Describes the proposer, as far as its ballot counts here.
    #[must_use]
    pub fn proposer_text(&self) -> String {
        match (&self.view.proposer, &self.view.drafted_by) {
            (Some(proposer), _) => proposer.to_string(),
            (None, Some(maker)) => format!("none yet; drafted by {maker}, as control reports"),
            (None, None) => "none whose signature counts".into(),
        }
    }

    /// Takes the votes of a certificate that the verified history holds.
    fn take_decision(&mut self, certificate: &Certificate) {
        let voters = certificate.ballots.iter().map(|signed| signed.ballot.member.clone());
        let voters: BTreeSet<MemberId> = voters.collect();
        self.view.approved = voters.into_iter().collect();
        (self.view.rejected, self.view.missing) = (Vec::new(), Vec::new());
        self.view.certificate = Some(certificate.digest());
        self.quorum_reached = true;
        self.counted = certificate.ballots.clone();
    }

    fn take_tally(&mut self, circle: &CircleState, tally: Tally) {
        self.proposed_lacking = human_chain::proposed_votes(circle, &self.view.proposal, &tally)
            .filter(|votes| !human_chain::carries(votes.rule, votes.proposer_counts, &votes.approved))
            .map(|votes| {
                signatures_under(votes.rule, votes.proposer_counts, &votes.approved, &votes.missing)
            });
        self.view.approved = tally.approved.into_iter().collect();
        self.view.rejected = tally.rejected.into_iter().collect();
        let open = self.can_be_approved();
        self.view.missing = if open { tally.missing.into_iter().collect() } else { Vec::new() };
        (self.quorum_reached, self.only_passkeys) = (tally.reached, tally.only_passkeys);
        let refused = |(member, error): (MemberId, human_chain::ChainError)| {
            let refusal = Refusal::from(error);
            RefusedBallot { member, code: refusal.code, reason: refusal.message }
        };
        self.refused = tally.refused.into_iter().map(refused).collect();
        let counted = tally.counted.into_iter().filter_map(|index| self.view.ballots.get(index));
        self.counted = counted.cloned().collect();
    }

    /// Returns whether control reports that approvals are taken: for an open proposal, or for a draft.
    #[must_use]
    pub fn can_be_approved(&self) -> bool {
        matches!(self.view.state, ProposalState::Open | ProposalState::Draft)
    }

    /// Returns whether control takes questions about it: until the vote ends.
    #[must_use]
    pub fn takes_comments(&self) -> bool {
        self.can_be_approved() || self.view.state == ProposalState::Waiting
    }

    /// Describes the state: what control reports, and whether the votes counted here bear it out.
    #[must_use]
    pub fn state_text(&self) -> String {
        match (self.view.state, self.quorum_reached) {
            (ProposalState::Approved, true) => "quorum reached; the change is in force".into(),
            (ProposalState::Approved, false) => {
                "control reports it as approved, but the ballots that count do not reach the quorum".into()
            }
            (ProposalState::Open, true) => "quorum reached; control has not put it into force yet".into(),
            (ProposalState::Waiting, reached) => {
                let at = self.view.takes_effect_at.map(human_chain::show_time).unwrap_or_default();
                let count = if reached { "quorum reached" } else { "as control reports, approved" };
                format!("{count}; takes effect at {at} unless a member vetoes it: quorate reject ID")
            }
            (ProposalState::Draft, _) => {
                "a draft, which no member has signed: the first that approves it proposes it".into()
            }
            (state, _) => format!("{state} (as control reports)"),
        }
    }

    /// Returns whether the proposal waits for this member's vote.
    #[must_use]
    pub fn waits_for(&self, circle: &CircleState, member: Option<&MemberId>) -> bool {
        let decides = |member| human_chain::names(&circle.quorum_of(&self.view.proposal.change), member);
        let may_vote = |member| self.view.missing.contains(member) && decides(member);
        !self.quorum_reached && member.is_some_and(may_vote)
    }

    /// Describes the signatures that an open proposal lacks.
    #[must_use]
    pub fn lacking(&self, circle: &CircleState) -> String {
        let view = &self.view;
        if self.only_passkeys {
            let count = view.approved.len();
            return format!(
                "{count} approvals, all by passkey; one more is needed by `quorate approve`, with a key"
            );
        }
        let approved: BTreeSet<MemberId> = view.approved.iter().cloned().collect();
        let change = &view.proposal.change;
        let (rule, proposer_counts) = (circle.quorum_of(change), circle.proposer_counts(change));
        match &self.proposed_lacking {
            // The members in force suffice; those that the change names must agree too.
            Some(lacking) if human_chain::carries(&rule, proposer_counts, &approved) => {
                format!("of the proposed members {lacking}")
            }
            _ => {
                let missing = view.missing.iter().cloned().collect();
                signatures_under(&rule, proposer_counts, &approved, &missing)
            }
        }
    }

    /// Returns whether the rejection of this member ends a change that its quorum has approved.
    #[must_use]
    pub fn may_be_vetoed_by(&self, circle: &CircleState, member: &MemberId) -> bool {
        self.view.state == ProposalState::Waiting && circle.active_member(member).is_ok()
    }
}

/// Checks that a proposal is shown under its own id, the digest of its bytes.
///
/// # Errors
/// Fails with `proposal-mismatch` if it is shown under another.
pub fn check_id(view: &ProposalView) -> Result<(), Refusal> {
    let id = view.proposal.id();
    if id == view.id {
        return Ok(());
    }
    let message = format!("control shows the proposal {id} under the id {}", view.id);
    Err(Refusal::new(error_code::PROPOSAL_MISMATCH, message))
}

/// Describes the votes under a rule: `1 of 2 signed; 1 more signature needed; bob or carol may sign`.
fn signatures_under(
    rule: &Quorum,
    proposer_counts: bool,
    approved: &BTreeSet<MemberId>,
    missing: &BTreeSet<MemberId>,
) -> String {
    let Some(needed) = human_chain::approvals_to_carry(rule, proposer_counts, approved, missing) else {
        return format!("{} can no longer be reached", human_chain::describe_rule(rule, proposer_counts));
    };
    let may_sign = missing.iter().filter(|member| human_chain::names(rule, member));
    let names: Vec<&str> = may_sign.map(MemberId::as_str).collect();
    let joint = if names.len() == needed { "and" } else { "or" };
    let names = match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {joint} {last}", rest.join(", ")),
        _ => names.concat(),
    };
    let plural = if needed == 1 { "" } else { "s" };
    let all = approved.len() + needed;
    format!("{} of {all} signed; {needed} more signature{plural} needed; {names} may sign", approved.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a threshold rule, as `describe` renders it.
    fn rule(required: u32, of: &[Quorum]) -> Quorum {
        Quorum::Threshold { required, of: of.to_vec() }
    }

    #[test]
    fn needed_signatures_are_counted_and_not_eligible_members() {
        let [a, b, c, d] =
            ["alice", "bob", "carol", "dave"].map(|name| Quorum::Member(name.parse().expect("a name")));
        let two = rule(2, &[a.clone(), b.clone(), c.clone()]);
        let nested = rule(2, &[a, rule(2, &[b, c]), d]);
        for (rule, approved, missing, expected) in [
            (
                &two,
                "",
                "alice bob carol",
                "0 of 2 signed; 2 more signatures needed; alice, bob or carol may sign",
            ),
            (&two, "alice", "bob carol", "1 of 2 signed; 1 more signature needed; bob or carol may sign"),
            (&two, "alice", "carol", "1 of 2 signed; 1 more signature needed; carol may sign"),
            (&two, "", "bob carol", "0 of 2 signed; 2 more signatures needed; bob and carol may sign"),
            (&two, "alice", "bob dave", "1 of 2 signed; 1 more signature needed; bob may sign"),
            (&two, "", "carol", "2 of (alice, bob, carol) can no longer be reached"),
            (
                &nested,
                "bob",
                "alice carol dave",
                "1 of 3 signed; 2 more signatures needed; alice, carol or dave may sign",
            ),
        ] {
            let names = |text: &str| -> BTreeSet<MemberId> {
                text.split_whitespace().map(|name| name.parse().expect("a name")).collect()
            };
            assert_eq!(signatures_under(rule, true, &names(approved), &names(missing)), expected);
        }
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse::<MemberId>().expect("a name"));
        let beside = signatures_under(&two, false, &[alice].into(), &[bob].into());
        assert_eq!(beside, "2 of (alice, bob, carol) besides the proposer can no longer be reached");
    }
}

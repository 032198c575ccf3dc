//! A proposal as this machine sees it: its id, class and words computed here, its votes counted here.
//!
//! A server sends proposals and ballots, and its own opinion of them. The opinion is replaced before anything
//! is shown or signed: a hostile server can withhold a ballot, but show neither one that was not cast, nor
//! another proposal under the id that was asked for.

use human_chain::{CircleState, Tally};
use protocol::api::{History, ProposalState, ProposalView};
use protocol::governance::Certificate;
use protocol::{ErrorCode, MemberId, Refusal, error_code};
use serde::Serialize;

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
    /// True if the approvals reach the quorum.
    pub quorum_reached: bool,
    /// Ballots that do not count.
    pub refused: Vec<RefusedBallot>,
}

impl ReviewedProposal {
    /// Verifies a server's answer in the state of the circle that this machine recomputed.
    ///
    /// # Errors
    /// Fails with `proposal-mismatch` if the id is not the digest of the proposal.
    pub fn new(circle: &CircleState, history: &History, view: ProposalView) -> Result<Self, Refusal> {
        check_id(&view)?;
        let words = human_chain::render(&view.proposal).words;
        let mut reviewed = Self { view, words, quorum_reached: false, refused: Vec::new() };
        let view = &mut reviewed.view;
        view.class = human_chain::class_of(&view.proposal.change);
        match decision_on(history, view) {
            Some(certificate) => reviewed.take_decision(certificate),
            None => {
                let tally = human_chain::tally(circle, &view.proposal, &view.ballots);
                reviewed.take_tally(tally);
            }
        }
        Ok(reviewed)
    }

    /// Takes the votes of a certificate that the verified history holds.
    fn take_decision(&mut self, certificate: &Certificate) {
        let voters = certificate.ballots.iter().map(|signed| signed.ballot.member.clone());
        self.view.approved = voters.collect();
        (self.view.rejected, self.view.missing) = (Vec::new(), Vec::new());
        self.view.certificate = Some(certificate.digest());
        self.quorum_reached = true;
    }

    fn take_tally(&mut self, tally: Tally) {
        self.view.approved = tally.approved.into_iter().collect();
        self.view.rejected = tally.rejected.into_iter().collect();
        let open = self.view.state == ProposalState::Open;
        self.view.missing = if open { tally.missing.into_iter().collect() } else { Vec::new() };
        self.quorum_reached = tally.reached;
        let refused = |(member, error): (MemberId, human_chain::ChainError)| {
            let refusal = Refusal::from(error);
            RefusedBallot { member, code: refusal.code, reason: refusal.message }
        };
        self.refused = tally.refused.into_iter().map(refused).collect();
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
            (state, _) => format!("{state} (as control reports)"),
        }
    }
}

/// Checks that a proposal is shown under its own id, the digest of its bytes.
fn check_id(view: &ProposalView) -> Result<(), Refusal> {
    let id = view.proposal.id();
    if id == view.id {
        return Ok(());
    }
    let message = format!("control shows the proposal {id} under the id {}", view.id);
    Err(Refusal::new(error_code::PROPOSAL_MISMATCH, message))
}

/// Returns the certificate of the proposal in the verified history, if it was approved before that was
/// fetched.
fn decision_on<'a>(history: &'a History, view: &ProposalView) -> Option<&'a Certificate> {
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    certificates.rev().find(|certificate| certificate.proposal == view.proposal)
}

/// Finds the proposal whose id begins with these digits. Every id is computed here.
///
/// # Errors
/// Fails with `proposal-mismatch` if any proposal is shown under a false id, with `proposal-not-found` if
/// none matches, and if several match.
pub fn find(
    circle: &CircleState,
    history: &History,
    views: Vec<ProposalView>,
    prefix: &str,
) -> Result<ReviewedProposal, Refusal> {
    views.iter().try_for_each(check_id)?;
    let mut found = views.into_iter().filter(|view| view.id.to_string().starts_with(prefix));
    let not_found = |message: String| Refusal::new(error_code::PROPOSAL_NOT_FOUND, message);
    match (found.next(), found.next()) {
        (Some(view), None) => ReviewedProposal::new(circle, history, view),
        (Some(_), Some(_)) => {
            Err(not_found(format!("several proposals begin with `{prefix}`; give more digits")))
        }
        (None, _) => {
            Err(not_found(format!("no proposal begins with `{prefix}`; `quorate review` lists them")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SampleCircle, proposal_view};
    use protocol::governance::{Change, Choice};

    fn names(members: &[MemberId]) -> Vec<&str> {
        members.iter().map(MemberId::as_str).collect()
    }

    fn review(circle: &SampleCircle, view: ProposalView) -> Result<ReviewedProposal, Refusal> {
        ReviewedProposal::new(&circle.state, &circle.history, view)
    }

    /// Attack: another proposal under the id that was asked for.
    #[test]
    fn a_proposal_under_a_false_id_is_refused() {
        let circle = SampleCircle::founded();
        let (asked, other) = (circle.proposal("one replica"), circle.proposal("nine hundred"));
        let mut forged = proposal_view(&other, vec![]);
        forged.id = asked.id();
        let prefix = asked.id().short();
        let views = vec![forged, proposal_view(&other, vec![])];
        // Positive control: by the server's word alone, the other proposal is the one that was asked for.
        let believed = views.iter().find(|view| view.id.to_string().starts_with(&prefix)).expect("shown");
        assert_eq!(believed.proposal, other);
        let find = |views, prefix: &str| find(&circle.state, &circle.history, views, prefix);
        let refused = find(views, &prefix).expect_err("forged");
        assert_eq!(refused.code, error_code::PROPOSAL_MISMATCH);
        let honest = || vec![proposal_view(&asked, vec![]), proposal_view(&other, vec![])];
        assert_eq!(find(honest(), &prefix).expect("honest").view.proposal, asked);
        for (prefix, expected) in [("", "several proposals"), ("zz", "no proposal begins")] {
            let refused = find(honest(), prefix).expect_err("none or several");
            assert_eq!(refused.code, error_code::PROPOSAL_NOT_FOUND);
            assert!(refused.message.starts_with(expected), "{refused}");
        }
    }

    /// Attack: members are said to have voted who did not, under a lower class.
    #[test]
    fn votes_are_counted_here_and_not_believed() {
        let circle = SampleCircle::founded();
        let proposal = circle.proposal("run it");
        let other = circle.proposal("another");
        let mut forged = circle.ballot(1, &proposal, Choice::Approve);
        forged.signature = circle.ballot(0, &proposal, Choice::Approve).signature;
        let ballots = vec![
            circle.ballot(0, &proposal, Choice::Approve),
            forged,
            circle.ballot(2, &other, Choice::Approve),
        ];
        let mut view = proposal_view(&proposal, ballots);
        view.class = protocol::governance::ActionClass::Sensitive;
        // Positive control: by the server's word, all three have approved.
        assert_eq!(names(&view.approved), ["alice", "bob", "carol"]);
        let reviewed = review(&circle, view).expect("its own id");
        assert_eq!(reviewed.view.class, protocol::governance::ActionClass::Routine);
        assert_eq!((names(&reviewed.view.approved), reviewed.quorum_reached), (vec!["alice"], false));
        assert_eq!(names(&reviewed.view.missing), ["bob", "carol"]);
        let refused: Vec<_> =
            reviewed.refused.iter().map(|ballot| (ballot.member.as_str(), ballot.code)).collect();
        let expected = [("bob", error_code::SIGNATURE_INVALID), ("carol", error_code::BALLOT_MISMATCH)];
        assert_eq!(refused, expected);
    }

    #[test]
    fn an_approval_is_said_only_if_the_votes_bear_it_out() {
        let mut circle = SampleCircle::founded();
        let proposal = circle.proposal("run it");
        let ballots = |count| (0..count).map(|at| circle.ballot(at, &proposal, Choice::Approve)).collect();
        let text = |state, count| {
            let mut view = proposal_view(&proposal, ballots(count));
            view.state = state;
            review(&circle, view).expect("its own id").state_text()
        };
        assert!(text(ProposalState::Approved, 2).starts_with("quorum reached; the change is in force"));
        assert!(text(ProposalState::Approved, 1).contains("do not reach the quorum"));
        assert_eq!(text(ProposalState::Open, 1), "open (as control reports)");
        assert!(text(ProposalState::Open, 2).contains("has not put it into force"));
        let view = proposal_view(&proposal, vec![]);
        circle.decide(proposal.change.clone(), "run it now");
        let decided = circle.history.bundles[0].certificate.proposal.clone();
        let mut shown = ProposalView { state: ProposalState::Approved, ..proposal_view(&decided, vec![]) };
        shown.approved = vec!["carol".parse().expect("a name")];
        let reviewed = review(&circle, shown).expect("its own id");
        assert_eq!(names(&reviewed.view.approved), ["alice", "bob"], "as the verified history has it");
        assert!(reviewed.quorum_reached);
        let stale =
            review(&circle, ProposalView { state: ProposalState::Stale, ..view }).expect("its own id");
        assert_eq!(
            (stale.state_text().as_str(), stale.quorum_reached),
            ("stale (as control reports)", false)
        );
        assert!(matches!(decided.change, Change::Deploy(_)));
    }
}

//! Proposals as this machine verified them: found by the first digits of an id that is computed here.

pub use console::{RefusedBallot, ReviewedProposal, check_id};

use protocol::api::ProposalView;
use protocol::{Refusal, error_code};

/// Finds the proposal whose id begins with these digits. Every id is computed here.
///
/// # Errors
/// Fails with `proposal-mismatch` if any proposal is shown under a false id, with `proposal-not-found` if
/// none matches, and if several match.
pub fn find(views: Vec<ProposalView>, prefix: &str) -> Result<ProposalView, Refusal> {
    views.iter().try_for_each(check_id)?;
    let mut found = views.into_iter().filter(|view| view.id.to_string().starts_with(prefix));
    let not_found = |message: String| Refusal::new(error_code::PROPOSAL_NOT_FOUND, message);
    match (found.next(), found.next()) {
        (Some(view), None) => Ok(view),
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
    use crate::member_key::MemberKeyFile;
    use crate::testing::{SampleCircle, proposal_view};
    use protocol::MemberId;
    use protocol::api::ProposalState;
    use protocol::governance::{Change, Choice, SignedBallot};

    fn names(members: &[MemberId]) -> Vec<&str> {
        members.iter().map(MemberId::as_str).collect()
    }

    fn review(circle: &SampleCircle, view: ProposalView) -> Result<ReviewedProposal, Refusal> {
        let mut decided = circle.history.bundles.iter().map(|bundle| &bundle.certificate);
        let decision = decided.find(|certificate| certificate.proposal == view.proposal);
        ReviewedProposal::with_decision(&circle.state, decision, view)
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
        let refused = find(views, &prefix).expect_err("forged");
        assert_eq!(refused.code, error_code::PROPOSAL_MISMATCH);
        let honest = || vec![proposal_view(&asked, vec![]), proposal_view(&other, vec![])];
        assert_eq!(find(honest(), &prefix).expect("honest").proposal, asked);
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

    /// Attack: control names a proposer who did not sign, and a maker whose name moves the cursor.
    #[test]
    fn a_proposer_is_named_only_if_its_ballot_counts() {
        let circle = SampleCircle::founded();
        let proposal = circle.proposal("run it");
        let by_alice = circle.ballot(0, &proposal, Choice::Approve);
        for (named, expected) in [("alice", "alice"), ("bob", "none whose signature counts")] {
            let mut view = proposal_view(&proposal, vec![by_alice.clone()]);
            view.proposer = Some(named.parse().expect("a name"));
            // Positive control: by the server's word, each of them proposed it.
            assert_eq!(view.proposer.as_ref().map(MemberId::as_str), Some(named));
            assert_eq!(review(&circle, view).expect("its own id").proposer_text(), expected);
        }
        let mut draft = proposal_view(&proposal, vec![]);
        (draft.state, draft.drafted_by) = (ProposalState::Draft, Some("token/ci\u{1b}[2J".into()));
        let reviewed = review(&circle, draft).expect("its own id");
        assert_eq!(reviewed.proposer_text(), r"none yet; drafted by token/ci\u{1b}[2J, as control reports");
        assert_eq!(names(&reviewed.view.missing), ["alice", "bob", "carol"]);
        assert_eq!(reviewed.lacking(&circle.state).split(';').next(), Some("0 of 2 signed"));
    }

    /// Attack: control reports that a change of members waits to take effect, which a member vetoed or which
    /// too few of the proposed members approve.
    #[test]
    fn a_change_that_waits_is_counted_here_too() {
        let circle = SampleCircle::founded();
        let dave = MemberKeyFile::generate("dave".parse().expect("a name"));
        let entry = dave.proven();
        let members: Vec<_> = circle.state.members().cloned().chain([entry.member]).collect();
        let policy = crate::policy::simple_policy(&members, 3);
        let change =
            Change::SetMembers { members, policy, proofs: [(dave.member.clone(), entry.proof)].into() };
        let proposal = circle.proposal_of(change, "welcome dave");
        let by_dave = human_chain::vote(
            &dave.secret,
            dave.member.clone(),
            circle.state.head(),
            &proposal,
            Choice::Approve,
            host::wall_clock(),
        );
        let approval = |member| circle.ballot(member, &proposal, Choice::Approve);
        let veto = circle.ballot(2, &proposal, Choice::Reject);
        let two = vec![approval(0), approval(1)];
        let with = |more: SignedBallot| [two.clone(), vec![more]].concat();
        for (case, ballots, reached, lacking) in [
            ("two of three, two of four", two.clone(), false, Some("2 of 3 signed; 1 more signature needed")),
            ("three of four", with(approval(2)), true, None),
            ("the new member agrees", with(by_dave), true, None),
            ("a veto", with(veto), false, Some("2 of 3 signed")),
        ] {
            let mut view = proposal_view(&proposal, ballots);
            (view.state, view.takes_effect_at) = (ProposalState::Waiting, Some(protocol::Millis(0)));
            let reviewed = review(&circle, view).expect("its own id");
            assert_eq!(reviewed.quorum_reached, reached, "{case}");
            let found = reviewed.proposed_lacking.as_deref();
            assert_eq!(found.is_some(), lacking.is_some(), "{case}: {found:?}");
            assert!(found.unwrap_or_default().contains(lacking.unwrap_or_default()), "{case}: {found:?}");
            let text = reviewed.state_text();
            assert!(text.contains("takes effect at 1970-01-01"), "{text}");
            assert_eq!(text.starts_with("quorum reached"), reached, "{case}: {text}");
        }
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

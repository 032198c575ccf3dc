//! Tests of kept verdicts: what is known is not verified again, and holds for nothing else.

use crate::support::{
    NOW, approve, circle, deploy, enact, name, proposal, retire, secret, sign_again, suspend,
};
use human_chain::{CircleState, KnownVerdicts, Tally, sign_comment, tally};
use protocol::comment::Comment;
use protocol::governance::{Proposal, SignedBallot};
use protocol::limits::BALLOTS_MAX;

/// Counts by known verdicts, and compares with a count that knows nothing.
fn counted(known: &mut KnownVerdicts, state: &CircleState, of: &Proposal, ballots: &[SignedBallot]) -> Tally {
    let found = known.tally(state, of, ballots);
    assert_eq!(found, tally(state, of, ballots), "the verdicts change no count");
    found
}

#[test]
fn each_ballot_is_verified_once() {
    let state = circle();
    let about = proposal(&state, deploy(3));
    let ballots = approve(&about, &["alice", "bob", "carol"]).ballots;
    let mut known = KnownVerdicts::default();
    for (shown, expected) in [(1, 1), (1, 1), (2, 2), (3, 3), (3, 3), (2, 3)] {
        let found = counted(&mut known, &state, &about, &ballots[..shown]);
        assert_eq!((found.approved.len(), known.verified()), (shown, expected));
    }
    // A ballot that was not shown the last time is no longer known.
    counted(&mut known, &state, &about, &ballots);
    assert_eq!(known.verified(), 4);
    // A ballot that is shown twice costs one signature, and is a second ballot of its member all the same.
    let doubled = [ballots.clone(), ballots.clone()].concat();
    let found = counted(&mut known, &state, &about, &doubled);
    assert_eq!((found.approved.len(), found.refused.len(), known.verified()), (3, 3, 4));
}

/// Attack: control shows other bytes under a name whose ballot was verified, and a ballot of another
/// proposal.
#[test]
fn a_verdict_is_for_the_very_bytes_and_the_proposal() {
    let state = circle();
    let (about, other) = (proposal(&state, deploy(3)), proposal(&state, deploy(4)));
    let sound = approve(&about, &["alice"]).ballots.remove(0);
    let mut known = KnownVerdicts::default();
    assert_eq!(
        counted(&mut known, &state, &about, std::slice::from_ref(&sound)).approved.len(),
        1,
        "positive control"
    );
    let mut forged = sound.clone();
    forged.ballot.member = name("bob");
    assert!(counted(&mut known, &state, &about, &[forged.clone()]).approved.is_empty());
    sign_again(&mut forged, "bob");
    assert_eq!(counted(&mut known, &state, &about, &[forged]).approved.len(), 1, "positive control");
    assert_eq!(counted(&mut known, &state, &about, std::slice::from_ref(&sound)).approved.len(), 1);
    let found = counted(&mut known, &state, &other, &[sound]);
    assert!(found.approved.is_empty() && found.refused.len() == 1, "a ballot of another proposal");
}

/// Attack: a ballot and a comment that were verified count on after their member was suspended.
#[test]
fn another_head_of_the_history_voids_every_verdict() {
    let mut state = circle();
    let about = proposal(&state, deploy(3));
    let ballots = approve(&about, &["alice", "carol"]).ballots;
    let said = Comment {
        proposal: about.id(),
        member: name("carol"),
        answers: None,
        text: "why three?".into(),
        issued_at: NOW,
    };
    let said = [sign_comment(&secret("carol"), said)];
    let mut known = KnownVerdicts::default();
    let before = counted(&mut known, &state, &about, &ballots);
    let thread = known.thread(&state, &about, &said);
    assert_eq!((before.approved.len(), thread.questions.len(), known.verified()), (2, 1, 3));
    assert_eq!(known.thread(&state, &about, &said), thread);
    assert_eq!(known.verified(), 3, "positive control: at the same head, both are known");
    enact(&mut state, suspend("carol"), &["alice", "bob"]);
    let after = counted(&mut known, &state, &about, &ballots);
    assert_eq!((after.approved.len(), after.refused.len()), (1, 1));
    assert_eq!(known.thread(&state, &about, &said).refused.len(), 1);
    assert_eq!(known.verified(), 6);
}

/// Attack: control shows ballots without end.
#[test]
fn no_more_verdicts_are_kept_than_a_proposal_has_ballots() {
    let mut state = circle();
    enact(&mut state, deploy(3), &["alice", "bob"]);
    let about = proposal(&state, retire("embed"));
    let one = approve(&about, &["alice"]).ballots.remove(0);
    let numbered = |number: u64| {
        let mut ballot = one.clone();
        ballot.ballot.issued_at = NOW.plus(number);
        ballot
    };
    let flood: Vec<SignedBallot> = (0..BALLOTS_MAX as u64 + 10).map(numbered).collect();
    let mut known = KnownVerdicts::default();
    let first = known.tally(&state, &about, &flood);
    assert_eq!(known.verified(), BALLOTS_MAX as u64 + 10);
    assert_eq!(known.tally(&state, &about, &flood), first);
    assert_eq!(known.verified(), BALLOTS_MAX as u64 + 20, "ten are beyond what is kept");
}

//! The votes on a proposal, as counted from its ballots.

use crate::page::{foreign, names, time};
use crate::reviewed::ReviewedProposal;
use human_chain::CircleState;
use maud::{Markup, html};
use protocol::governance::{Choice, SignedBallot};

/// Returns the votes that count, those that do not, and the members that can still vote.
pub(crate) fn table(circle: &CircleState, reviewed: &ReviewedProposal, ballots: &[SignedBallot]) -> Markup {
    let view = &reviewed.view;
    let counted = |choice| if choice == Choice::Approve { &view.approved } else { &view.rejected };
    let valid: Vec<&SignedBallot> = ballots
        .iter()
        .filter(|signed| counted(signed.ballot.choice).contains(&signed.ballot.member))
        .collect();
    html! {
        @if valid.is_empty() && reviewed.refused.is_empty() {
            p { "No member has voted." }
        } @else {
            table.stack {
                thead {
                    tr { th scope="col" { "Member" } th scope="col" { "Vote" } th scope="col" { "Signed" } }
                }
                tbody {
                    @for signed in &valid {
                        tr {
                            th scope="row" { (signed.ballot.member) }
                            td data-label="Vote" { (vote(signed)) }
                            td data-label="Signed" { (time(signed.ballot.issued_at)) }
                        }
                    }
                    @for refused in &reviewed.refused {
                        tr.refused {
                            th scope="row" { (refused.member) }
                            td data-label="Vote" { strong { "does not count" } }
                            td data-label="Reason" {
                                (foreign(&refused.reason)) " (" code { (refused.code) } ")"
                            }
                        }
                    }
                }
            }
        }
        @if reviewed.can_be_approved() {
            p { (rule(circle, reviewed)) }
            p.quiet { "Has not voted: " (names(&view.missing, "no member")) "." }
        }
    }
}

/// Describes the votes that are still needed.
pub(crate) fn rule(circle: &CircleState, reviewed: &ReviewedProposal) -> String {
    if reviewed.quorum_reached {
        return reviewed.state_text();
    }
    reviewed.lacking(circle)
}

fn vote(signed: &SignedBallot) -> &'static str {
    match (signed.ballot.choice, signed.is_hybrid()) {
        (Choice::Approve, true) => "approves",
        (Choice::Approve, false) => "approves, by passkey",
        (Choice::Reject, true) => "rejects",
        (Choice::Reject, false) => "rejects, by passkey",
    }
}

//! The votes on a proposal, as counted from its ballots.

use crate::page::{foreign, names, table_head, time};
use crate::reviewed::ReviewedProposal;
use human_chain::CircleState;
use maud::{Markup, html};
use protocol::governance::{Choice, SignedBallot};

/// Returns the votes that count, those that do not, and the members that can still vote.
pub(crate) fn table(circle: &CircleState, reviewed: &ReviewedProposal) -> Markup {
    let view = &reviewed.view;
    let counted = &reviewed.counted;
    let reasons = counted.iter().any(|signed| !signed.ballot.reason.is_empty());
    html! {
        @if counted.is_empty() && reviewed.refused.is_empty() {
            p { "No member has voted." }
        } @else {
            table.stack {
                (table_head(&["Member", "Vote", "Signed", "Reason"][..if reasons { 4 } else { 3 }]))
                tbody {
                    @for signed in counted { (row(signed, reasons)) }
                    @for refused in &reviewed.refused {
                        tr.refused {
                            th scope="row" { (refused.member) }
                            td data-label="Vote" { strong { "does not count" } }
                            td data-label="Why" colspan=[reasons.then_some(2)] {
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

fn row(signed: &SignedBallot, reasons: bool) -> Markup {
    let ballot = &signed.ballot;
    html! {
        tr {
            th scope="row" { (ballot.member) }
            td data-label="Vote" { (vote(signed)) }
            td data-label="Signed" { (time(ballot.issued_at)) }
            @if reasons {
                td data-label="Reason" {
                    @if ballot.reason.is_empty() { span.quiet { "none given" } }
                    @else { (foreign(&ballot.reason)) }
                }
            }
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

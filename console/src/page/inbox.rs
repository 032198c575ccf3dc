//! The inbox: what waits for a vote, until when, who signed and who still can.

use crate::page::{PageFrame, counted, document, foreign, time_left, votes, words};
use crate::reviewed::ReviewedProposal;
use maud::{Markup, html};
use protocol::api::ProposalState;

/// Returns the inbox with these open proposals and drafts.
pub(crate) fn page(frame: &PageFrame, proposals: &[ReviewedProposal]) -> Markup {
    let member = frame.visitor.member();
    let mut sorted: Vec<&ReviewedProposal> = proposals.iter().collect();
    sorted.sort_by_key(|proposal| (proposal.view.proposal.expires_at, proposal.view.id));
    let (drafts, open): (Vec<_>, Vec<_>) =
        sorted.into_iter().partition(|proposal| proposal.view.state == ProposalState::Draft);
    let (own, others): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|proposal| proposal.waits_for(frame.circle, member));
    let content = html! {
        h1 { "Inbox" }
        @if let Some(member) = member {
            section {
                h2 { "Waits for you, " (member) }
                (list(frame, &own, "Nothing waits for your vote."))
            }
            @if !others.is_empty() {
                section {
                    h2 { "Waits for others" }
                    (list(frame, &others, ""))
                }
            }
        } @else {
            section {
                h2 { "Open proposals" }
                (list(frame, &others, "No proposal waits for votes."))
            }
        }
        @if !drafts.is_empty() {
            section {
                h2 { "Drafts" }
                p.quiet { "No member has signed these. The first member that approves one proposes it." }
                (list(frame, &drafts, ""))
            }
        }
    };
    document(frame, "Inbox", &content)
}

fn list(frame: &PageFrame, proposals: &[&ReviewedProposal], none: &str) -> Markup {
    html! {
        @if proposals.is_empty() {
            p { (none) }
        } @else {
            ul.cards { @for proposal in proposals { li { (card(frame, proposal)) } } }
        }
    }
}

fn card(frame: &PageFrame, proposal: &ReviewedProposal) -> Markup {
    let view = &proposal.view;
    let unanswered = proposal.thread.unanswered();
    let end = view.takes_effect_at.unwrap_or(view.proposal.expires_at);
    html! {
        h3 { a href={ "/console/proposals/" (view.id) } { bdi { (proposal.sentence) } } }
        (words(&proposal.words))
        p {
            (votes::rule(frame.circle, proposal)) ". "
            span.quiet { (time_left(frame.now, end)) }
            @if let Some(maker) = &view.drafted_by { " Drafted by " (foreign(maker)) "." }
            @if unanswered > 0 {
                " " a href={ "/console/proposals/" (view.id) "#questions" } {
                    (counted(unanswered as u64, "open question"))
                } "."
            }
        }
    }
}

//! The history: every decision since the founding, newest first, in pages, and each of them in full.

use crate::page::{PageFrame, counted, document, names, rendering, sentence, time, votes, words};
use crate::reviewed::ReviewedProposal;
use maud::{Markup, html};
use protocol::governance::{Bundle, Certificate};
use protocol::{MemberId, Millis};

/// Number of decisions on one page.
pub(crate) const DECISIONS_PER_PAGE: usize = 50;

/// Returns a page of the history: decisions with their numbers, newest first.
pub(crate) fn page(frame: &PageFrame, decisions: &[(u64, Bundle)]) -> Markup {
    let older = decisions.last().map(|(number, _)| *number).filter(|number| *number > 1);
    let newest = decisions.first().is_none_or(|(number, _)| *number >= frame.circle.length());
    let content = html! {
        h1 { "History" }
        p.lead { (counted(frame.circle.length(), "decision")) " since the founding." }
        @if decisions.is_empty() { p { "The circle has decided nothing yet." } }
        ol.decisions {
            @for (number, bundle) in decisions {
                li value=(number) { (decision(*number, &bundle.certificate)) }
            }
        }
        nav.pages aria-label="Pages of the history" {
            @if !newest { a href="/console/history" { "Newest" } }
            @if let Some(older) = older { a href={ "/console/history?before=" (older) } { "Older" } }
        }
    };
    document(frame, "History", &content)
}

fn decision(number: u64, certificate: &Certificate) -> Markup {
    html! {
        p.what { a href={ "/console/history/" (number) } { bdi { (sentence(&certificate.proposal)) } } }
        p.quiet {
            (time(decided_at(certificate))) " · signed by " (names(&signers(certificate), "no member"))
        }
    }
}

/// Returns the page of one decision.
pub(crate) fn one(
    frame: &PageFrame,
    number: u64,
    certificate: &Certificate,
    reviewed: &ReviewedProposal,
) -> Markup {
    let rendered = human_chain::render(&certificate.proposal);
    let content = html! {
        p.kicker { "Decision " (number) " of " (frame.circle.length()) }
        h1.sentence { bdi { (sentence(&certificate.proposal)) } }
        (words(&rendered.words))
        section {
            h2 { "The text that was signed" }
            (rendering(&rendered.text))
        }
        section {
            h2 { "Signatures" }
            (votes::table(frame.circle, reviewed))
            dl {
                dt { "Certificate" }
                dd { code.long { (certificate.digest()) } }
            }
        }
        nav.pages aria-label="Decisions" {
            @if number > 1 { a href={ "/console/history/" (number - 1) } { "Before" } }
            @if number < frame.circle.length() { a href={ "/console/history/" (number + 1) } { "After" } }
            a href="/console/history" { "All" }
        }
    };
    document(frame, &format!("Decision {number}"), &content)
}

fn signers(certificate: &Certificate) -> Vec<MemberId> {
    certificate.ballots.iter().map(|signed| signed.ballot.member.clone()).collect()
}

/// Returns the time of the last signature.
fn decided_at(certificate: &Certificate) -> Millis {
    let times = certificate.ballots.iter().map(|signed| signed.ballot.issued_at);
    times.max().unwrap_or(certificate.proposal.created_at)
}

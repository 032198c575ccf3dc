//! Halts: those that stand, those that the circle lifted, and the form that halts.
//!
//! The pages need no leader and no quorum: what they show of a halt follows from the halt and the circle.

use crate::backend::{HaltRecord, HaltReport};
use crate::page::proposal::SigningMeans;
use crate::page::{PageFrame, counted, document, foreign, time};
use crate::reviewed::ReviewedProposal;
use human_chain::{CircleState, describe_scope, halt_stands};
use maud::{Markup, html};
use protocol::foreign_text::line;
use protocol::governance::Change;
use protocol::halt::{HALT_REASON_BYTES_MAX, Halt, HaltScope};
use protocol::{HaltId, Refusal};
use std::collections::BTreeSet;

/// Most lifted halts on the page, and most choices of one kind in the form.
const SHOWN: usize = 200;
/// Most halts in the overview, newest first: more are on their own page.
const BANNER_SHOWN: usize = 8;

/// Returns the page of the halts.
pub(crate) fn page(frame: &PageFrame, report: &HaltReport, open: &[ReviewedProposal]) -> Markup {
    let unverified =
        |record: &&HaltRecord| !record.verified && frame.circle.lifted(&record.signed.halt.id()).is_none();
    let standing = standing(frame, report);
    let others: Vec<&HaltRecord> = report.halts.iter().filter(unverified).collect();
    let mut lifted: Vec<_> = frame.circle.lifted_halts().map(|(id, lifted)| (*id, &lifted.halt)).collect();
    lifted.sort_by_key(|(_, halt)| std::cmp::Reverse(halt.issued_at));
    let content = html! {
        h1 { "Halts" }
        p.lead { "One member stops it; only a vote lets it run again." }
        @if let Some(note) = &report.note {
            p { span.badge.warn { "not complete" } " " (foreign(note)) }
        }
        section {
            h2 { "In force" }
            @if standing.is_empty() { p { "Nothing is halted." } }
            ul.cards { @for record in standing { li { (entry(frame, record, open)) } } }
        }
        @if !others.is_empty() {
            section {
                h2 { "Do not verify here" }
                p.quiet {
                    "A replica shows them, but their signatures do not hold by the members' keys of now. "
                    "A member may have changed its keys since."
                }
                ul.cards { @for record in others { li { (entry(frame, record, open)) } } }
            }
        }
        @if !lifted.is_empty() {
            section {
                h2 { "Lifted" }
                ul.cards { @for (id, halt) in lifted.iter().take(SHOWN) { li { (past(*id, halt)) } } }
            }
        }
    };
    document(frame, "Halts", &content)
}

/// Returns the halts of a report that were verified and stand.
fn standing<'a>(frame: &PageFrame, report: &'a HaltReport) -> Vec<&'a HaltRecord> {
    let stands = |record: &&HaltRecord| {
        record.verified && halt_stands(frame.circle, &record.signed.halt.id(), &record.signed.halt)
    };
    report.halts.iter().filter(stands).collect()
}

/// Returns the part of the overview that says what is halted, by whom and since when; empty if nothing is.
pub(crate) fn banner(frame: &PageFrame, report: &HaltReport) -> Markup {
    let mut standing = standing(frame, report);
    standing.sort_by_key(|record| std::cmp::Reverse(record.signed.halt.issued_at));
    let more = standing.len().saturating_sub(BANNER_SHOWN);
    html! {
        @if !standing.is_empty() {
            section {
                h2 { "Halted" }
                ul.findings.stopped {
                    @for record in standing.iter().take(BANNER_SHOWN) {
                        li { (banner_line(&record.signed.halt)) }
                    }
                }
                p {
                    @if more > 0 { "And " (counted(more as u64, "more halt")) ". " }
                    a href="/console/halts" { "What is halted, and how it is lifted" }
                }
            }
        }
        @if let Some(note) = &report.note {
            p { span.badge.warn { "not complete" } " " (foreign(note)) }
        }
    }
}

fn banner_line(halt: &Halt) -> Markup {
    html! {
        p { strong { bdi { (describe_scope(&halt.scope)) } } }
        p.quiet {
            "halted by " (halt.member) " since " (time(halt.issued_at))
            @if !halt.reason.is_empty() { ": " (foreign(&halt.reason)) }
        }
    }
}

fn entry(frame: &PageFrame, record: &HaltRecord, open: &[ReviewedProposal]) -> Markup {
    let halt = &record.signed.halt;
    let id = halt.id();
    let means = if record.signed.is_hybrid() { "" } else { ", by passkey" };
    html! {
        h3 { bdi { (describe_scope(&halt.scope)) } }
        dl {
            dt { "Halted by" }
            dd { (halt.member) (means) ", " (time(halt.issued_at)) }
            dt { "Reason" }
            dd {
                @if halt.reason.is_empty() { span.quiet { "none given" } } @else { (foreign(&halt.reason)) }
            }
            dt { "Covers" }
            dd { (covered(frame.circle, &halt.scope)) }
            @if let Some((have, asked)) = record.replicas {
                dt { "Known to" }
                dd { (have) " of " (counted(asked as u64, "control replica")) }
            }
            dt { "Id" }
            dd { code { (id.short()) } }
        }
        @for lift in open.iter().filter(|proposal| lifts(&proposal.view.proposal.change, &id)) {
            p {
                "Proposal " a href={ "/console/proposals/" (lift.view.id) } { (lift.view.id.short()) }
                " lifts it: " (lift.lacking(frame.circle)) "."
            }
        }
        p.next { span.quiet { "to propose that it be lifted: " } code { "quorate lift " (id.short()) } }
    }
}

fn past(id: HaltId, halt: &Halt) -> Markup {
    html! {
        h3 { bdi { (describe_scope(&halt.scope)) } }
        p.quiet {
            "halted by " (halt.member) ", " (time(halt.issued_at)) " · " code { (id.short()) }
            @if !halt.reason.is_empty() { " · " (foreign(&halt.reason)) }
        }
    }
}

fn lifts(change: &Change, id: &HaltId) -> bool {
    matches!(change, Change::Lift { halts } if halts.iter().any(|halt| halt.id() == *id))
}

/// Returns the part of the circle that a scope covers now.
fn covered(circle: &CircleState, scope: &HaltScope) -> String {
    let nodes = |count: usize| counted(count as u64, "node");
    match scope {
        HaltScope::Service(name) if circle.service(name).is_none() => {
            "no service that is approved now".into()
        }
        HaltScope::Service(_) => "every slot of it, on any node".into(),
        HaltScope::Node(name) if circle.node(name).is_none() => "no node that is admitted now".into(),
        HaltScope::Node(_) => "every slot on it".into(),
        HaltScope::Region(region) => {
            format!("every slot on {}", nodes(circle.nodes().filter(|node| node.region == *region).count()))
        }
        HaltScope::Circle => format!("every slot on {}", nodes(circle.nodes().count())),
    }
}

/// All that the form shows beside the frame.
#[derive(Debug)]
pub(crate) struct HaltForm<'a> {
    pub(crate) means: SigningMeans,
    /// Scope that was chosen before, in the form's words.
    pub(crate) scope: &'a str,
    pub(crate) reason: &'a str,
    /// Reason for which the halt that was just sent was not signed or not taken.
    pub(crate) refused: Option<&'a Refusal>,
}

/// Returns the page with the form that halts.
pub(crate) fn form_page(frame: &PageFrame, shown: &HaltForm) -> Markup {
    let content = html! {
        h1 { "Halt" }
        p.lead {
            "Your signature alone stops it, within a second on every node that is reached. It stays stopped "
            "until the circle votes to lift it."
        }
        @if let Some(refused) = shown.refused {
            p.problem role="alert" { (foreign(&refused.message)) " (" code { (refused.code) } ")" }
        }
        @if frame.visitor.member().is_none() {
            p {
                "An access token halts nothing. Members halt in " code { "quorate console" } ", or by "
                code { "quorate halt circle --reason TEXT" } "."
            }
        } @else if shown.means.key || shown.means.passkey {
            (form(frame.circle, shown))
        } @else {
            p {
                "Nothing on this machine can sign for you. Run " code { "quorate console" }
                " where your key is, or " code { "quorate halt circle --reason TEXT" } "."
            }
        }
    };
    document(frame, "Halt", &content)
}

fn form(circle: &CircleState, shown: &HaltForm) -> Markup {
    let services: Vec<String> =
        circle.services().map(|service| service.manifest.name.to_string()).take(SHOWN + 1).collect();
    let nodes: Vec<String> = circle.nodes().map(|node| node.name.to_string()).take(SHOWN + 1).collect();
    let regions: BTreeSet<&str> = circle.nodes().map(|node| node.region.as_str()).collect();
    let regions: Vec<String> = regions.into_iter().map(str::to_string).take(SHOWN + 1).collect();
    let is_cut = [&services, &nodes, &regions].into_iter().any(|all| all.len() > SHOWN);
    html! {
        section.vote.stop {
            form method="post" action="/console/halt" {
                p {
                    label for="scope" { "Stop" }
                    select #scope name="scope" required {
                        option value="" selected[shown.scope.is_empty()] { "choose" }
                        option value="circle" selected[shown.scope == "circle"] { "the whole circle" }
                        (choices("Services", "service", &services, shown.scope))
                        (choices("Nodes", "node", &nodes, shown.scope))
                        (choices("Regions", "region", &regions, shown.scope))
                    }
                }
                @if is_cut {
                    p.quiet { "For one that is not in the list: " code { "quorate halt --help" } "." }
                }
                p {
                    label for="reason" { "Reason, which every member reads" }
                    input #reason name="reason" value=(shown.reason) autocomplete="off"
                        maxlength=(HALT_REASON_BYTES_MAX);
                }
                @if shown.means.passkey { p.problem role="alert" data-refusal hidden {} }
                p.acts {
                    @if shown.means.key { button { "Halt now" } }
                    @if shown.means.passkey {
                        button type="button" data-act="halt" hidden { "Halt with a passkey" }
                    }
                }
                @if shown.means.passkey { noscript { p { "A passkey needs this page's script." } } }
            }
        }
    }
}

fn choices(title: &str, kind: &str, names: &[String], chosen: &str) -> Markup {
    html! {
        @if !names.is_empty() {
            optgroup label=(title) {
                @for name in names.iter().take(SHOWN) {
                    @let value = format!("{kind}:{name}");
                    option value=(value) selected[value == chosen] { (line(name)) }
                }
            }
        }
    }
}

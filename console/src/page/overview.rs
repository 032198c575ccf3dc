//! The overview: what runs where, what is wrong, and the next command.

use crate::backend::{ClusterReport, HaltReport};
use crate::page::{PageFrame, counted, document, foreign, halts, table_head};
use maud::{Markup, html};
use protocol::agent::SlotState;
use protocol::api::{ServiceView, SlotView, Status};
use protocol::manifest::Manifest;

/// Most services on the page; browsers are slow with thousands of rows.
const SERVICES_SHOWN: usize = 100;
/// Most slots of one service on the page.
const SLOTS_SHOWN: usize = 32;

/// Returns the overview.
pub(crate) fn page(frame: &PageFrame, report: &ClusterReport, halted: &HaltReport) -> Markup {
    let content = html! {
        h1 { "Overview" }
        (state(report))
        (halts::banner(frame, halted))
        @if frame.waiting > 0 {
            p.call {
                a href="/console/inbox" { (counted(frame.waiting as u64, "proposal")) }
                @if frame.waiting == 1 { " waits for your vote." } @else { " wait for your vote." }
            }
        }
        section {
            h2 { "What is wrong" }
            (findings(report))
        }
        section {
            h2 { "What runs" }
            (services(frame, report))
        }
        @if let Some(status) = &report.status { (machines(status)) }
    };
    document(frame, "Overview", &content)
}

fn state(report: &ClusterReport) -> Markup {
    html! {
        @if let Some(status) = &report.status {
            p.lead {
                @if status.healthy { span.badge.good { "well" } }
                @else { span.badge.bad { "needs attention" } }
                " " (foreign(&status.summary))
            }
        }
        @if let Some(note) = &report.note {
            p.lead { span.badge.warn { "not complete" } " " (foreign(note)) }
        }
    }
}

fn findings(report: &ClusterReport) -> Markup {
    html! {
        @match report.status.as_ref().map(|status| &status.findings) {
            None => p { "Unknown: no leader reports the state of the cluster." },
            Some(findings) if findings.is_empty() => p { "Nothing." },
            Some(findings) => ul.findings {
                @for finding in findings {
                    li {
                        p { (foreign(&finding.message)) }
                        p.next { span.quiet { "next: " } code { (foreign(&finding.next)) } }
                    }
                }
            },
        }
    }
}

fn services(frame: &PageFrame, report: &ClusterReport) -> Markup {
    let approved: Vec<_> = frame.circle.services().map(|service| &service.manifest).collect();
    let more = report.services.len().saturating_sub(SERVICES_SHOWN);
    html! {
        @if report.services.is_empty() && approved.is_empty() {
            p { "The circle has approved no service." }
        } @else if report.services.is_empty() {
            ul.cards {
                @for manifest in approved.iter().take(SERVICES_SHOWN) {
                    li {
                        h3 { (manifest.name) }
                        p.quiet { "approved, model " (manifest.model.name) }
                    }
                }
            }
        } @else {
            ul.cards { @for view in report.services.iter().take(SERVICES_SHOWN) { li { (service(view)) } } }
            @if more > 0 {
                p { "And " (counted(more as u64, "more service")) ": " code { "quorate service list" } }
            }
        }
    }
}

fn service(view: &ServiceView) -> Markup {
    let model = match &view.manifest {
        Manifest::Service(manifest) => Some(&manifest.model.name),
        _ => None,
    };
    let class = if view.ready >= view.desired { "good" } else { "warn" };
    let more = view.slots.len().saturating_sub(SLOTS_SHOWN);
    html! {
        h3 {
            (view.name) " "
            span class={ "badge " (class) } { (view.ready) " of " (view.desired) " ready" }
            @if view.retiring { " " span.badge.warn { "retiring" } }
        }
        p.quiet {
            @if let Some(model) = model { "model " (model) ", " }
            "certificate " code { (view.certificate.short()) }
        }
        @if !view.slots.is_empty() {
            table.stack {
                (table_head(&["Slot", "Node", "State", "Reason"]))
                tbody { @for slot in view.slots.iter().take(SLOTS_SHOWN) { (slot_row(slot)) } }
            }
            @if more > 0 { p { "And " (counted(more as u64, "more slot")) "." } }
        }
    }
}

fn slot_row(slot: &SlotView) -> Markup {
    let report = slot.report.as_ref();
    let state = report.map_or("waits".to_string(), |report| report.state.to_string());
    let why =
        report.filter(|report| report.state != SlotState::Ready).map_or(&slot.why, |report| &report.detail);
    html! {
        tr {
            th scope="row" { (slot.slot) }
            td data-label="Node" { @if let Some(node) = &slot.node { (node) } @else { "none" } }
            td data-label="State" { (state) }
            td data-label="Reason" { (foreign(why)) }
        }
    }
}

fn machines(status: &Status) -> Markup {
    let silent: Vec<String> = status.replicas_silent.iter().map(ToString::to_string).collect();
    html! {
        section {
            h2 { "Machines" }
            dl {
                dt { "Control replicas" }
                dd {
                    (status.replicas)
                    @if let Some(leader) = status.leader { ", replica " (leader) " leads" }
                    @if !silent.is_empty() { ", silent: " (silent.join(", ")) }
                }
                dt { "Nodes" }
                dd { (status.nodes_alive) " of " (status.nodes) " alive" }
                @for label in &status.simulated { dt { "Simulated" } dd { (foreign(label)) } }
                @for label in &status.not_enforced { dt { "Not enforced" } dd { (foreign(label)) } }
            }
        }
    }
}

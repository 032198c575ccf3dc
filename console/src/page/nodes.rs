//! The nodes: those that ask to be admitted, and those that the circle admitted.

use crate::backend::ClusterReport;
use crate::page::{PageFrame, counted, document, foreign, table_head, time};
use maud::{Markup, html};
use protocol::agent::PendingNode;
use protocol::api::NodeView;
use protocol::governance::NodeAdmission;

/// Number of admitted nodes on one page.
pub(crate) const NODES_PER_PAGE: usize = 100;
/// Most nodes that ask on the page; control keeps few more.
const PENDING_SHOWN: usize = 100;

/// Returns the page of the nodes: the admitted ones with names above `after`.
pub(crate) fn page(
    frame: &PageFrame,
    pending: &[PendingNode],
    report: &ClusterReport,
    after: Option<&str>,
) -> Markup {
    let admitted = frame.circle.nodes().filter(|node| after.is_none_or(|after| node.name.as_str() > after));
    let admitted: Vec<&NodeAdmission> = admitted.take(NODES_PER_PAGE + 1).collect();
    let shown = admitted.get(..NODES_PER_PAGE).unwrap_or(&admitted);
    let next = shown.last().filter(|_| admitted.len() > shown.len());
    let state = |node: &NodeAdmission| report.nodes.iter().find(|view| view.id == node.id);
    let content = html! {
        h1 { "Nodes" }
        section {
            h2 { "Ask to be admitted" }
            @if pending.is_empty() { p { "No node asks." } }
            @for node in pending.iter().take(PENDING_SHOWN) { (asking(frame, node)) }
        }
        section {
            h2 { "Admitted" }
            p { (counted(frame.circle.nodes().count() as u64, "node")) "." }
            table.stack {
                (table_head(&["Node", "State", "Roles", "Region"]))
                tbody { @for node in shown { (row(node, state(node))) } }
            }
            nav.pages aria-label="Pages of the nodes" {
                @if after.is_some() { a href="/console/nodes" { "First" } }
                @if let Some(next) = next { a href={ "/console/nodes?after=" (next.name) } { "More" } }
            }
        }
    };
    document(frame, "Nodes", &content)
}

fn asking(frame: &PageFrame, node: &PendingNode) -> Markup {
    let admission = &node.admission;
    let again = frame.circle.node(&admission.name).is_some();
    html! {
        article.asks {
            h3 { (admission.name) @if again { " " span.badge.warn { "a node of this name is admitted" } } }
            dl {
                dt { "Would serve as" }
                dd { (roles(admission)) }
                dt { "Region" }
                dd { (foreign(&admission.region)) }
                dt { "Identity" }
                dd { code.long { (node.id) } p.quiet { "Compare it with the one in the node's log." } }
                dt { "Last asked" }
                dd { (time(node.last_seen)) }
            }
            p.next { span.quiet { "next: " } code { "quorate node admit " (admission.name) } }
        }
    }
}

fn row(node: &NodeAdmission, view: Option<&NodeView>) -> Markup {
    html! {
        tr {
            th scope="row" { (node.name) }
            td data-label="State" {
                @match view {
                    None => "unknown",
                    Some(view) if view.alive => {
                        span.badge.good { "alive" } " " (counted(view.slots, "slot"))
                    },
                    Some(_) => span.badge.bad { "silent" },
                }
            }
            td data-label="Roles" { (roles(node)) }
            td data-label="Region" { (foreign(&node.region)) }
        }
    }
}

fn roles(node: &NodeAdmission) -> String {
    node.roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

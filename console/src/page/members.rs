//! The members, and the rules by which they decide.

use crate::page::{PageFrame, counted, document, table_head};
use maud::{Markup, html};
use protocol::governance::ActionClass;

/// Classes of changes, with what falls into them.
const CLASSES: [(ActionClass, &str); 2] = [
    (ActionClass::Routine, "deploy and retire services, admit and remove nodes"),
    (ActionClass::Sensitive, "change members and rules, forget a model"),
];

/// Returns the page of the members.
pub(crate) fn page(frame: &PageFrame) -> Markup {
    let circle = frame.circle;
    let members: Vec<_> = circle.members().collect();
    let head = circle.head();
    let content = html! {
        h1 { "Members" }
        p.lead { (counted(members.len() as u64, "member")) ", in epoch " (circle.epoch()) "." }
        table.stack {
            (table_head(&["Member", "Ed25519 key"]))
            tbody {
                @for member in &members {
                    tr {
                        th scope="row" {
                            (member.id)
                            @if frame.visitor.member() == Some(&member.id) { " " span.badge { "you" } }
                        }
                        td data-label="Key" { code.long { (member.keys.ed25519) } }
                    }
                }
            }
        }
        @if frame.visitor.member().is_some() { p { a href="/console/passkeys" { "Your passkeys" } } }
        section {
            h2 { "Rules" }
            dl {
                @for (class, scope) in CLASSES {
                    dt { (class) }
                    dd { (human_chain::describe(circle.quorum(class))) p.quiet { (scope) } }
                }
            }
        }
        section {
            h2 { "For comparing with other members" }
            dl {
                dt { "Circle" }
                dd { code.long { (circle.id()) } }
                dt { "Head of the history" }
                dd { (head.size) ", " code.long { (head.root) } }
            }
        }
    };
    document(frame, "Members", &content)
}

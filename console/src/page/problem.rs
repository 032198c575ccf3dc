//! The page of a refusal: what was wrong, its code, and what to do.

use crate::page::{bare_document, foreign, halt_button};
use maud::{Markup, html};
use protocol::Refusal;

/// Returns the page of a refusal.
pub(crate) fn page(refusal: &Refusal) -> Markup {
    let content = html! {
        h1 { "That did not work" }
        p.lead { (foreign(&refusal.message)) }
        dl {
            dt { "Code" }
            dd { code { (refusal.code) } }
            dt { "Meaning" }
            dd { code { "quorate explain " (refusal.code) } }
        }
        p { a href="/console" { "To the overview" } }
        // A failure may be the reason to stop something.
        p { (halt_button()) }
    };
    bare_document("That did not work", &content)
}

//! The page on which a browser signs in.

use crate::backend::PageSource;
use crate::page::{bare_document, foreign};
use maud::{Markup, html};
use protocol::Refusal;

/// Returns the sign-in page. A link that is opened shows it with its code, and the button signs in. Programs
/// that look at links before people do use none up.
pub(crate) fn page(source: &PageSource, code: &str, refused: Option<&Refusal>) -> Markup {
    let content = html! {
        h1 { "Sign in" }
        @if let Some(refused) = refused {
            p.problem role="alert" { (foreign(&refused.message)) " (" code { (refused.code) } ")" }
        }
        form method="post" action="/console/enter" {
            p {
                label for="code" { "Code of a one-time link" }
                input #code name="code" value=(code) autocomplete="off" autocapitalize="none"
                    spellcheck="false" required;
            }
            p.acts { button { "Sign in" } }
        }
        @if matches!(source, PageSource::Replica(_)) { (passkey()) }
        (help(source))
    };
    bare_document("Sign in", &content)
}

/// Returns the form with which a member's passkey signs in to read.
fn passkey() -> Markup {
    html! {
        form {
            p.problem role="alert" data-refusal hidden {}
            p.acts { button.plain type="button" data-act="enter" hidden { "Sign in with a passkey" } }
        }
    }
}

fn help(source: &PageSource) -> Markup {
    html! {
        p.quiet {
            @match source {
                PageSource::OwnMachine => {
                    "The command " code { "quorate console" } " prints a link that works once, for five "
                    "minutes. Stop it and start it again for another one."
                },
                PageSource::Replica(id) => {
                    "The command " code { "quorate console link" } " prints a link that works once, for five "
                    "minutes, with the rights of your access token. This page is as honest as control "
                    "replica " (id) "; members who sign use " code { "quorate console" }
                    " on their own machine."
                },
            }
        }
    }
}

//! The passkeys of a member, and the form that adds one.

use crate::page::{PageFrame, document, foreign};
use maud::{Markup, html};
use protocol::MemberId;
use protocol::passkey::{Passkey, PasskeyPolicy};

/// All that the page shows beside the frame.
#[derive(Debug)]
pub(crate) struct PasskeyPage<'a> {
    pub(crate) member: &'a MemberId,
    pub(crate) passkeys: &'a [Passkey],
    pub(crate) policy: Option<&'a PasskeyPolicy>,
    /// True if the member's key is here, which signs the change.
    pub(crate) can_register: bool,
}

/// Returns the page of a member's passkeys.
pub(crate) fn page(frame: &PageFrame, shown: &PasskeyPage) -> Markup {
    let content = html! {
        h1 { "Passkeys of " (shown.member) }
        @if let Some(policy) = shown.policy {
            p.lead {
                "They belong to " code { (foreign(&policy.rp_id)) } ". "
                @if policy.routine {
                    "Their votes count for routine changes, beside at least one vote by a member's key."
                } @else {
                    "They sign in to read; their votes do not count in this circle."
                }
            }
        } @else {
            p.lead { "The circle's policy has no passkeys." }
        }
        @if shown.passkeys.is_empty() { p { "None yet." } }
        ul.cards { @for passkey in shown.passkeys { li { (entry(shown, passkey)) } } }
        @if shown.policy.is_some() && shown.can_register { (add()) }
        @if !shown.can_register {
            p {
                "Passkeys are added and dropped in " code { "quorate console" }
                ", where your key signs the change."
            }
        }
    };
    document(frame, "Passkeys", &content)
}

fn entry(shown: &PasskeyPage, passkey: &Passkey) -> Markup {
    let words = human_chain::passkey_words(passkey).join(" ");
    html! {
        h3 { (foreign(&passkey.label)) }
        p.quiet { "words: " code { (words) } }
        @if shown.can_register {
            form method="post" action="/console/passkeys/drop" {
                input type="hidden" name="credential" value=(hex::encode(&passkey.credential.0));
                p { button.plain { "Drop" span.unseen { " " (foreign(&passkey.label)) } } }
            }
        }
    }
}

fn add() -> Markup {
    html! {
        section.vote {
            h2 { "Add a passkey" }
            form {
                p {
                    label for="label" { "Its name, for you" }
                    input #label name="label" autocomplete="off" required;
                }
                p.problem role="alert" data-refusal hidden {}
                p.acts { button type="button" data-act="register" { "Make a passkey" } }
                noscript { p { "A passkey needs this page's script." } }
            }
            p.quiet { "Your browser makes it; then you read the change and sign it with your key." }
        }
    }
}

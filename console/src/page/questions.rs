//! The questions about a proposal with their answers, and the forms that ask and answer.

use crate::page::proposal::SigningMeans;
use crate::page::{PageFrame, counted, foreign, time};
use human_chain::{AnsweredQuestion, CommentThread, VerifiedComment};
use maud::{Markup, html};
use protocol::comment::COMMENT_TEXT_BYTES_MAX;
use protocol::{ProposalId, Refusal};

/// A question or an answer that was not taken, for its form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnsentComment<'a> {
    pub(crate) text: &'a str,
    /// Id of the question that it answers; empty for a question.
    pub(crate) answers: &'a str,
    pub(crate) refused: &'a Refusal,
}

/// All that the section shows beside the frame.
#[derive(Debug)]
pub(crate) struct Questions<'a> {
    pub(crate) proposal: ProposalId,
    pub(crate) thread: &'a CommentThread,
    /// True if the proposal takes questions: until its vote ends.
    pub(crate) open: bool,
    pub(crate) means: SigningMeans,
    pub(crate) unsent: Option<UnsentComment<'a>>,
}

/// Returns the section of the questions; empty for a proposal whose vote has ended.
pub(crate) fn section(frame: &PageFrame, shown: &Questions) -> Markup {
    let thread = shown.thread;
    let can = shown.open && frame.visitor.member().is_some() && (shown.means.key || shown.means.passkey);
    html! {
        @if shown.open || !thread.is_empty() {
            section id="questions" {
                h2 { "Questions" }
                p.quiet { "Each is signed by its member. They count for nothing, and end with the vote." }
                @if thread.questions.is_empty() { p { "No member has asked." } }
                ul.cards { @for one in &thread.questions { li { (question(shown, one, can)) } } }
                @for answer in &thread.loose {
                    p.quiet { "An answer to a question that control does not show:" }
                    (said(answer, "answers"))
                }
                @if !thread.refused.is_empty() { (refused(thread)) }
                @if thread.unread > 0 {
                    p { "Control shows " (counted(thread.unread as u64, "comment"))
                        " more than a proposal may have." }
                }
                @if let Some(unsent) = without_form(shown, can) {
                    (refusal(unsent))
                    @for row in unsent.text.lines() { p.said { (foreign(row)) } }
                }
                @if can { (form(shown, "", "Your question")) }
                @if !can && shown.open {
                    p.quiet {
                        "Members ask with " code { "quorate ask " (shown.proposal.short()) " TEXT" } "."
                    }
                }
            }
        }
    }
}

/// Returns the comment that was not taken if no form of the page is its own: the visitor cannot sign, or the
/// question is not shown.
fn without_form<'a>(shown: &Questions<'a>, can: bool) -> Option<UnsentComment<'a>> {
    let has_form = |unsent: &UnsentComment| {
        let mut asked = shown.thread.questions.iter().map(|one| one.asked.id().to_string());
        can && (unsent.answers.is_empty() || asked.any(|id| id == unsent.answers))
    };
    shown.unsent.filter(|unsent| !has_form(unsent))
}

fn refusal(unsent: UnsentComment) -> Markup {
    html! {
        p.problem role="alert" {
            (foreign(&unsent.refused.message)) " (" code { (unsent.refused.code) } ")"
        }
    }
}

fn question(shown: &Questions, one: &AnsweredQuestion, can: bool) -> Markup {
    let id = one.asked.id();
    let is_unsent = shown.unsent.is_some_and(|unsent| unsent.answers == id.to_string());
    html! {
        (said(&one.asked, "asks"))
        @for answer in &one.answers { div.answer { (said(answer, "answers")) } }
        @if can {
            details open[is_unsent] {
                summary { "Answer" span.unseen { " the question " (id.short()) } }
                (form(shown, &id.to_string(), "Your answer"))
            }
        }
    }
}

/// Returns a comment. Its text is its member's, line by line.
fn said(one: &VerifiedComment, verb: &str) -> Markup {
    let comment = one.comment();
    html! {
        p.who {
            strong { (comment.member) } " " (verb)
            span.quiet {
                " " (time(comment.issued_at))
                @if one.is_by_passkey() { ", by passkey" }
                " · " code { (one.id().short()) }
            }
        }
        @for row in comment.text.lines() { p.said { (foreign(row)) } }
    }
}

fn refused(thread: &CommentThread) -> Markup {
    html! {
        ul {
            @for (member, error) in &thread.refused {
                li.refused {
                    "A comment in the name of " (member) " does not verify: " (foreign(&error.to_string()))
                    " (" code { (error.code()) } ")"
                }
            }
        }
    }
}

/// Returns a form: for a question, or for the answer to one.
fn form(shown: &Questions, answers: &str, label: &str) -> Markup {
    let path = format!("/console/proposals/{}/comment", shown.proposal);
    let field = if answers.is_empty() { "question".to_string() } else { format!("answer-{answers}") };
    let unsent = shown.unsent.filter(|unsent| unsent.answers == answers);
    html! {
        form.comment method="post" action=(path) data-passkey=[shown.means.passkey.then_some(&path)] {
            @if let Some(unsent) = unsent { (refusal(unsent)) }
            input type="hidden" name="answers" value=(answers);
            p {
                label for=(field) { (label) }
                textarea id=(field) name="text" rows="3" maxlength=(COMMENT_TEXT_BYTES_MAX) required {
                    (unsent.map_or("", |unsent| unsent.text))
                }
            }
            @if shown.means.passkey { p.problem role="alert" data-refusal hidden {} }
            p.acts {
                @if shown.means.key { button.plain { "Sign and send" } }
                @if shown.means.passkey {
                    button.plain type="button" data-act="comment" hidden { "Send with a passkey" }
                }
            }
            @if shown.means.passkey { noscript { p { "A passkey needs this page's script." } } }
        }
    }
}

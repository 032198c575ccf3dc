//! A proposal: the text that members sign beside the difference, the votes, and the form that signs.

use crate::backend::ChangeOutlook;
use crate::page::questions::{self, Questions, UnsentComment};
use crate::page::{PageFrame, document, evidence, foreign, rendering, time, time_left, votes, words};
use crate::reviewed::ReviewedProposal;
use human_chain::{ApprovedService, CircleState};
use maud::{Markup, html};
use protocol::api::{ProposalState, ServiceView};
use protocol::governance::{Bundle, Change};
use protocol::halt::Halt;
use protocol::limits::BALLOT_REASON_BYTES_MAX;
use protocol::manifest::Manifest;
use protocol::{NodeName, Refusal, ServiceName};

/// Means by which this visitor can sign here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SigningMeans {
    /// The member's key is on the machine that serves the page.
    pub(crate) key: bool,
    /// The member has a passkey.
    pub(crate) passkey: bool,
}

/// All that the page shows beside the frame.
#[derive(Debug)]
pub(crate) struct ProposalPage<'a> {
    pub(crate) reviewed: &'a ReviewedProposal,
    pub(crate) services: &'a [ServiceView],
    pub(crate) outlook: &'a ChangeOutlook,
    /// Latest decisions about the same subject, with their numbers.
    pub(crate) earlier: &'a [(u64, Bundle)],
    pub(crate) means: SigningMeans,
    /// Means by which this visitor can sign a question here; also those that do not vote.
    pub(crate) comment_means: SigningMeans,
    /// Reason for which the vote that was just sent was not signed.
    pub(crate) refused: Option<&'a Refusal>,
    /// Question or answer that was just sent and not taken.
    pub(crate) unsent: Option<UnsentComment<'a>>,
}

/// Returns the page of a proposal.
pub(crate) fn page(frame: &PageFrame, shown: &ProposalPage) -> Markup {
    let view = &shown.reviewed.view;
    let text = human_chain::render(&view.proposal).text;
    let difference = human_chain::render_difference(frame.circle, &view.proposal);
    let content = html! {
        p.kicker { "Proposal " code { (view.id.short()) } " · " (shown.reviewed.state_text()) }
        h1.sentence { bdi { (shown.reviewed.sentence) } }
        (words(&shown.reviewed.words))
        p.quiet { "The same six words stand below the text on every other screen that shows it." }
        div.beside {
            section {
                h2 { "The text that is signed" }
                (rendering(&text))
            }
            section {
                h2 { "What it changes" }
                p.quiet { "Compared with what is in force now; not signed." }
                (difference_lines(&difference))
            }
        }
        (facts(frame, shown))
        (evidence::section(frame.circle, &view.proposal.change, shown.outlook, shown.earlier))
        (questions::section(frame, &thread_of(shown)))
        section {
            h2 { "Votes" }
            p.quiet { "Counted from the signed ballots." }
            (votes::table(frame.circle, shown.reviewed))
        }
        @if shown.reviewed.can_be_approved() || view.state == ProposalState::Waiting { (form(frame, shown)) }
    };
    document(frame, &format!("Proposal {}", view.id.short()), &content)
}

fn thread_of<'a>(shown: &ProposalPage<'a>) -> Questions<'a> {
    let reviewed = shown.reviewed;
    Questions {
        proposal: reviewed.view.id,
        thread: &reviewed.thread,
        open: reviewed.takes_comments(),
        means: shown.comment_means,
        unsent: shown.unsent,
    }
}

/// Returns the lines of a difference. The first character of each says what it is.
pub(crate) fn difference_lines(difference: &str) -> Markup {
    let class = |line: &str| match line.chars().next() {
        Some('+') => "line added",
        Some('-') => "line removed",
        Some('~') => "line changed",
        Some('!') => "line stale",
        _ => "line",
    };
    html! {
        pre.difference {
            @for line in difference.split_inclusive('\n') { span class=(class(line)) { bdi { (line) } } }
        }
    }
}

fn facts(frame: &PageFrame, shown: &ProposalPage) -> Markup {
    let view = &shown.reviewed.view;
    let rule = frame.circle.rule_text(&view.proposal.change);
    let touched = touched(frame.circle, &view.proposal.change, shown.services);
    html! {
        section {
            h2 { "About it" }
            dl {
                dt { "Class" }
                dd { (view.class) ": " (rule) " must approve" }
                dt { "Proposer" }
                dd { (foreign(&shown.reviewed.proposer_text())) }
                dt { "Made" }
                dd { (time(view.proposal.created_at)) }
                dt { "Open until" }
                dd {
                    (time(view.proposal.expires_at))
                    @if shown.reviewed.can_be_approved() {
                        " (" (time_left(frame.now, view.proposal.expires_at)) ")"
                    }
                }
                dt { "Touches" }
                dd { @if touched.is_empty() { "nothing that runs" } @else { (touched.join(", ")) } }
                dt { "If no member acts" }
                dd {
                    @if let Some(at) = view.takes_effect_at { "it takes effect at " (time(at)) }
                    @else { "it expires, and nothing changes" }
                }
                dt { "Full id" }
                dd { code.long { (view.id) } }
                @if let Some(certificate) = &view.certificate {
                    dt { "Certificate" }
                    dd { code.long { (certificate) } }
                }
            }
        }
    }
}

/// Returns the nodes and services that a change touches, as they are now.
pub(crate) fn touched(circle: &CircleState, change: &Change, services: &[ServiceView]) -> Vec<String> {
    let nodes_of = |name: &ServiceName| -> Vec<String> {
        let slots = services.iter().filter(|view| view.name == *name).flat_map(|view| &view.slots);
        let mut nodes: Vec<&NodeName> = slots.filter_map(|slot| slot.node.as_ref()).collect();
        nodes.sort();
        nodes.dedup();
        nodes.into_iter().map(|node| format!("node {node}")).collect()
    };
    let with_nodes = |name: &ServiceName| [vec![format!("service {name}")], nodes_of(name)].concat();
    match change {
        Change::Deploy(manifest) => match manifest.as_ref() {
            Manifest::Service(service) => with_nodes(&service.name),
            _ => Vec::new(),
        },
        Change::Retire { service, .. } => with_nodes(service),
        Change::AdmitNode(node) => vec![format!("node {}", node.name)],
        Change::RemoveNode { node } => {
            let holds = |view: &&ServiceView| view.slots.iter().any(|slot| slot.node.as_ref() == Some(node));
            let moved = services.iter().filter(holds).map(|view| format!("service {}", view.name));
            std::iter::once(format!("node {node}")).chain(moved).collect()
        }
        Change::ForgetModel { model, .. } => {
            let is_user =
                |service: &&ApprovedService| service.manifests().any(|used| used.model.root == model.root);
            let uses = circle.services().filter(is_user);
            let uses = uses.map(|service| format!("service {}", service.manifest.name));
            std::iter::once(format!("model {}", model.name)).chain(uses).collect()
        }
        Change::SetMembers { .. } => vec!["every member".into(), "every open proposal".into()],
        Change::SetPasskeys { member, .. } | Change::SuspendMember { member, .. } => {
            vec![format!("member {member}")]
        }
        Change::SetAccess(_) => vec!["every access token and inference key".into()],
        Change::SetPrices(_) => vec!["the spend of every service and job".into()],
        Change::SetProjects(_) => vec!["which job starts next, and which makes room".into()],
        Change::Lift { halts } => {
            let lifted = |service: &&ServiceView| halts.iter().any(|halt| may_cover(halt, service, circle));
            services.iter().filter(lifted).map(|view| format!("service {}", view.name)).collect()
        }
    }
}

/// Returns whether a halt stops any slot of a service: one that it holds, or any that it may be given.
fn may_cover(halt: &Halt, service: &ServiceView, circle: &CircleState) -> bool {
    circle.nodes().any(|node| human_chain::covers(halt, &service.name, node))
}

/// Returns the form with which this visitor votes, or the reason for which there is none.
fn form(frame: &PageFrame, shown: &ProposalPage) -> Markup {
    let view = &shown.reviewed.view;
    let Some(member) = frame.visitor.member() else {
        return html! {
            section.vote {
                h2 { "Your vote" }
                (refusal(shown))
                p {
                    "An access token reads and never votes. Members vote with "
                    code { "quorate console" } " or " code { "quorate approve " (view.id.short()) } "."
                }
            }
        };
    };
    let open = shown.reviewed.waits_for(frame.circle, Some(member));
    let can = shown.means.key || shown.means.passkey;
    let vetoes = shown.reviewed.may_be_vetoed_by(frame.circle, member);
    html! {
        section.vote {
            h2 { "Your vote, " (member) }
            (refusal(shown))
            @if vetoes {
                (veto_form(shown))
            } @else if !open {
                p { "You have voted, or your vote no longer counts here." }
            } @else if can {
                (signing_form(shown))
            } @else {
                p { "Nothing on this machine can sign for you. Run " code { "quorate console" }
                    " where your key is, or " code { "quorate approve " (view.id.short()) } "." }
            }
        }
    }
}

fn refusal(shown: &ProposalPage) -> Markup {
    html! {
        @if let Some(refused) = shown.refused {
            p.problem role="alert" { (foreign(&refused.message)) " (" code { (refused.code) } ")" }
        }
    }
}

/// Returns the form with which a member ends a change that its quorum has approved. Only a key vetoes: a vote
/// by passkey counts for no change that waits.
fn veto_form(shown: &ProposalPage) -> Markup {
    let view = &shown.reviewed.view;
    html! {
        p {
            "The quorum has approved this change. One rejection ends it, also by a member that approved."
        }
        @if shown.means.key {
            form method="post" action={ "/console/proposals/" (view.id) "/vote" } {
                p {
                    label for="words" { "First two of the six words, after reading the text" }
                    input #words name="words" autocomplete="off" autocapitalize="none" spellcheck="false"
                        required;
                }
                p.acts { button name="choice" value="reject" { "Veto" } }
            }
        } @else {
            p { "Run " code { "quorate console" } " where your key is, or "
                code { "quorate reject " (view.id.short()) } "." }
        }
    }
}

fn signing_form(shown: &ProposalPage) -> Markup {
    let view = &shown.reviewed.view;
    let base = format!("/console/proposals/{}", view.id);
    // A draft asks for no decision yet, so there is nothing to reject.
    let can_reject = view.state == ProposalState::Open;
    html! {
        form method="post" action={ (base) "/vote" } data-passkey=[shown.means.passkey.then_some(&base)] {
            p {
                label for="words" { "First two of the six words, after reading the text" }
                input #words name="words" autocomplete="off" autocapitalize="none" spellcheck="false"
                    required;
            }
            p {
                label for="reason" { "Reason, if the others are to read one" }
                input #reason name="reason" autocomplete="off" maxlength=(BALLOT_REASON_BYTES_MAX);
            }
            @if shown.means.passkey { p.problem role="alert" data-refusal hidden {} }
            p.acts {
                @if shown.means.key {
                    button name="choice" value="approve" { "Approve" }
                    @if can_reject { button.plain name="choice" value="reject" { "Reject" } }
                }
                @if shown.means.passkey {
                    button type="button" data-act="vote" data-choice="approve" hidden {
                        "Approve with a passkey"
                    }
                    @if can_reject {
                        button.plain type="button" data-act="vote" data-choice="reject" hidden {
                            "Reject with a passkey"
                        }
                    }
                }
            }
            @if shown.means.passkey {
                noscript { p { "A passkey needs this page's script." } }
            }
        }
    }
}

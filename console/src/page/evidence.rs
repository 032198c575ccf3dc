//! Evidence about a proposal, computed from the circle and the cluster of now: model, placement, history.
//! Members sign none of it; it helps them to judge what they sign.

use crate::backend::ChangeOutlook;
use crate::page::{counted, foreign, names, sentence, time};
use human_chain::{ApprovedService, CircleState, words_of};
use maud::{Markup, html};
use protocol::api::{DryRun, DryRunPlacement};
use protocol::governance::{Bundle, Change};
use protocol::manifest::{Manifest, ModelChoice, format_bytes};

/// Most nodes and waiting slots in a line of the page.
const SHOWN: usize = 16;

/// Returns the section with the evidence about a change.
pub(crate) fn section(
    circle: &CircleState,
    change: &Change,
    outlook: &ChangeOutlook,
    earlier: &[(u64, Bundle)],
) -> Markup {
    html! {
        section {
            h2 { "Evidence" }
            p.quiet { "As the circle and the cluster are now; not signed." }
            dl {
                @if let Some(model) = model_of(change) { (model_lines(circle, model, outlook)) }
                @if let Some(placement) = &outlook.placement { (placement_lines(placement)) }
                @if let Some(note) = &outlook.note {
                    dt { "Placement" }
                    dd { "not known: " (foreign(note)) }
                }
                dt { "Decided before" }
                dd {
                    @if earlier.is_empty() { "nothing about this" }
                    @for (number, bundle) in earlier { (decided(*number, bundle)) }
                }
            }
        }
    }
}

/// Returns the model that a change names, with its name.
fn model_of(change: &Change) -> Option<&ModelChoice> {
    match change {
        Change::Deploy(manifest) => match manifest.as_ref() {
            Manifest::Service(service) => Some(&service.model),
            _ => None,
        },
        Change::ForgetModel { model, .. } => Some(model),
        _ => None,
    }
}

fn model_lines(circle: &CircleState, model: &ModelChoice, outlook: &ChangeOutlook) -> Markup {
    let record = outlook.model.as_ref().filter(|record| record.root == model.root);
    let is_user = |service: &&ApprovedService| service.manifests().any(|used| used.model.root == model.root);
    let used = circle.services().filter(is_user).count();
    html! {
        dt { "Model" }
        dd {
            (model.name) ", root " code { (words_of(&model.root.0).join(" ")) }
            p.quiet {
                @match record {
                    Some(record) => {
                        (format_bytes(record.bytes)) " in " (counted(record.segments, "segment"))
                        ", architecture " (foreign(&record.architecture)) "; "
                    },
                    None => "control has registered no model of this root; ",
                }
                "used by " (counted(used as u64, "approved service"))
            }
        }
    }
}

fn placement_lines(run: &DryRun) -> Markup {
    let nodes = |placements: &[DryRunPlacement]| {
        let shown: Vec<String> = placements
            .iter()
            .take(SHOWN)
            .map(|placed| format!("slot {} on {}", placed.slot, placed.node))
            .collect();
        let more = placements.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        format!("{}{more}", shown.join(", "))
    };
    html! {
        dt { "Would start now" }
        dd {
            @if run.placements.is_empty() { "nothing" } @else { (nodes(&run.placements)) }
            p.quiet { "a simulation of the scheduler, of " (counted(run.desired, "wanted replica")) }
        }
        @if !run.possible.is_empty() {
            dt { "Could start if scaled up" }
            dd { (nodes(&run.possible)) }
        }
        @if !run.outranked.is_empty() {
            dt { "May take the room of" }
            dd {
                @for name in run.outranked.iter().take(SHOWN) { p { (name.as_str()) } }
                @if run.outranked.len() > SHOWN { p { (run.outranked.len() - SHOWN) " more" } }
            }
        }
        @if !run.roll_out.is_empty() {
            dt { "Roll-out" }
            dd { @for text in run.roll_out.iter().take(SHOWN) { p { (foreign(text)) } } }
        }
        @if !run.waiting.is_empty() {
            dt { "Would wait" }
            dd { @for reason in run.waiting.iter().take(SHOWN) { p { (foreign(reason)) } } }
        }
    }
}

fn decided(number: u64, bundle: &Bundle) -> Markup {
    let certificate = &bundle.certificate;
    let voters: Vec<_> = certificate.ballots.iter().map(|signed| signed.ballot.member.clone()).collect();
    html! {
        p {
            a href={ "/console/history/" (number) } { bdi { (sentence(&certificate.proposal)) } }
            span.quiet {
                " " (time(certificate.proposal.created_at)) ", by " (names(&voters, "no member"))
            }
        }
    }
}

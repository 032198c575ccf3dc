//! The projects: what each may hold, holds and held, and its share beside those of the others.

use crate::page::{PageFrame, counted, document, table_head, time};
use maud::{Markup, html};
use protocol::project::{ProjectList, ProjectView, ROOT_PROJECT};
use protocol::usage_text::{format_quota, format_rate};

/// Millionths of a whole.
const WHOLE: u64 = 1_000_000;

/// Returns the page of the projects; without a list, with the reason for which it is not known.
pub(crate) fn page(frame: &PageFrame, list: Option<&ProjectList>, note: Option<&str>) -> Markup {
    let content = html! {
        p.kicker { a href="/console/jobs" { "Jobs" } }
        h1 { "Projects" }
        @if let Some(note) = note {
            p.lead { span.badge.warn { "not known" } " " (crate::page::foreign(note)) }
        }
        @if let Some(list) = list { (shown(list)) }
    };
    document(frame, "Projects", &content)
}

fn shown(list: &ProjectList) -> Markup {
    let is_voted = list.half_life_seconds > 0;
    html! {
        p {
            "All nodes offer " (format_rate(&list.offered)) ". "
            @if is_voted {
                "What a project used counts half after "
                (counted(list.half_life_seconds.div_ceil(3600), "hour")) ". Turns go to the lowest share by \
                 weight; a quota is given back by those who borrowed it."
            } @else {
                "No projects were voted: jobs share what the nodes offer by their priorities."
            }
        }
        table.stack {
            (table_head(&["Project", "Weight", "Quota", "Holds", "Borrows", "Average", "Share", "Jobs"]))
            tbody { @for project in &list.items { (row(project)) } }
        }
        p.quiet { "As of " (time(list.at)) "." }
        p.next {
            span.quiet { "next: " }
            code {
                @if is_voted { "quorate project list" } @else { "quorate circle propose-projects --help" }
            }
        }
    }
}

fn row(project: &ProjectView) -> Markup {
    let parent = project.parent.as_ref().map_or(ROOT_PROJECT, |parent| parent.as_str());
    html! {
        tr {
            th scope="row" {
                (project.name) " "
                @if project.quota.is_some() { span.quiet { "of " (parent) } }
            }
            td data-label="Weight" { (project.weight) }
            td data-label="Quota" { (project.quota.as_ref().map_or_else(|| "none".into(), format_quota)) }
            td data-label="Holds" { (format_rate(&project.held)) }
            td data-label="Borrows" { (format_rate(&project.borrowed)) }
            td data-label="Average" { (format_rate(&project.average)) }
            td data-label="Share" {
                meter min="0" max=(WHOLE) value=(project.share_millionths.min(WHOLE))
                    aria-label={ "Share of " (project.name) } {}
                " " (percent(project.share_millionths))
            }
            td data-label="Jobs" { (project.placed) " placed, " (project.waiting) " waiting" }
        }
    }
}

/// Returns millionths as a percentage, rounded down to tenths.
fn percent(millionths: u64) -> String {
    format!("{}.{} %", millionths / 10_000, millionths / 1_000 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down_to_tenths() {
        assert_eq!([0, 999, 531_250, WHOLE].map(percent), ["0.0 %", "0.0 %", "53.1 %", "100.0 %"]);
    }
}

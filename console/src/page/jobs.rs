//! The jobs: all that control knows, and one with its ranks and the lines that they wrote.

use crate::page::{PageFrame, counted, document, foreign, table_head, time};
use maud::{Markup, html};
use protocol::JobId;
use protocol::api::AuditEvent;
use protocol::foreign_text::line;
use protocol::job::Submitter;
use protocol::job_api::{JobEndView, JobLogLine, JobSlotView, JobView};
use protocol::job_data::JobDataView;
use protocol::manifest::format_bytes;
use protocol::usage::UsageAmounts;
use protocol::usage_text::{format_hours, format_units};

/// Number of jobs on one page.
pub(crate) const JOBS_PER_PAGE: usize = 100;
/// Most lines on the page of a job, the latest.
pub(crate) const LINES_SHOWN: usize = 500;

/// Most events on the page of a job, the latest.
const EVENTS_SHOWN: usize = 50;

/// Lines of a job, as its page shows them.
#[derive(Debug, Default)]
pub(crate) struct ShownLines {
    /// Epoch of the leader that numbered them.
    pub(crate) epoch: u64,
    /// The latest lines, oldest first.
    pub(crate) lines: Vec<JobLogLine>,
    /// Reason for which they are not known, for people.
    pub(crate) note: Option<String>,
}

/// Returns the page of the jobs, the latest submission first: those after the first `skipped`.
pub(crate) fn page(frame: &PageFrame, jobs: &[JobView], skipped: usize, note: Option<&str>) -> Markup {
    let shown = jobs.get(skipped..).unwrap_or_default();
    let next = (shown.len() > JOBS_PER_PAGE).then_some(skipped + JOBS_PER_PAGE);
    let content = html! {
        h1 { "Jobs" }
        @if let Some(note) = note {
            p.lead { span.badge.warn { "not complete" } " " (foreign(note)) }
        } @else if jobs.is_empty() {
            p { "No job was submitted, or none is remembered." }
            p.next { span.quiet { "next: " } code { "quorate job submit NAME" } }
        } @else {
            p {
                (counted(jobs.len() as u64, "job")) ". "
                a href="/console/projects" { "Projects" } " and their shares"
            }
            table.stack {
                (table_head(&["Job", "Name", "State", "Submitted", "Attempts", "Reason"]))
                tbody { @for job in shown.iter().take(JOBS_PER_PAGE) { (row(job)) } }
            }
        }
        nav.pages aria-label="Pages of the jobs" {
            @if skipped > 0 { a href="/console/jobs" { "Latest" } }
            @if let Some(next) = next { a href={ "/console/jobs?skip=" (next) } { "Older" } }
        }
    };
    document(frame, "Jobs", &content)
}

fn row(job: &JobView) -> Markup {
    html! {
        tr {
            th scope="row" { a href={ "/console/jobs/" (job.id) } { code { (job.id.short()) } } }
            td data-label="Name" { (job.job) }
            td data-label="State" { (badge(&job.state)) }
            td data-label="Submitted" { (time(job.submitted_at)) }
            td data-label="Attempts" { (job.attempts) }
            td data-label="Reason" { (foreign(reason(job))) }
        }
    }
}

/// Returns the reason for a job's state, for people.
fn reason(job: &JobView) -> &str {
    match (&job.waits, &job.last_end) {
        (Some(waits), _) => &waits.text,
        (None, Some(end)) if job.slots.is_empty() => &end.cause,
        _ => "",
    }
}

fn badge(state: &str) -> Markup {
    let class = match state {
        "succeeded" | "running" => "badge good",
        "failed" => "badge bad",
        "queued" | "backing_off" => "badge warn",
        _ => "badge",
    };
    html! { span class=(class) { (line(&state.replace('_', " "))) } }
}

/// All that the page of one job shows.
#[derive(Debug)]
pub(crate) struct ShownJob<'a> {
    pub(crate) job: &'a JobView,
    /// Its checkpoints and outputs.
    pub(crate) data: &'a [JobDataView],
    /// Its events, oldest first.
    pub(crate) events: &'a [AuditEvent],
    pub(crate) lines: &'a ShownLines,
}

/// Returns the page of one job.
pub(crate) fn one(frame: &PageFrame, shown: &ShownJob) -> Markup {
    let ShownJob { job, data, events, lines } = *shown;
    let id = job.id.short();
    let content = html! {
        p.kicker { a href="/console/jobs" { "Jobs" } }
        h1 { (job.job) " " span.id { (id) } }
        p.lead { span #state { (badge(&job.state)) } " since " (time(job.since)) }
        @if let Some(waits) = &job.waits { p { "Waits: " (foreign(&waits.text)) } }
        (facts(job))
        @if !job.slots.is_empty() { (slots(&job.slots)) }
        @if let Some(end) = &job.last_end { (last_end(end)) }
        @if !data.is_empty() { (kept_data(data, id.as_str())) }
        (written(job, lines))
        @if !events.is_empty() { (past(events)) }
        p.next {
            span.quiet { "next: " }
            code {
                @if job.has_ended() { "quorate job retry " (id) } @else { "quorate job cancel " (id) }
            }
        }
    };
    document(frame, &format!("Job {id}"), &content)
}

fn facts(job: &JobView) -> Markup {
    let (kind, name) = match &job.submitter {
        Submitter::Token(token) => ("the access token ", token.as_str()),
        Submitter::Member(member) => ("the member ", member.as_str()),
        Submitter::Signer(signer) => ("the submit key ", signer.as_str()),
    };
    html! {
        dl {
            dt { "Submitted" }
            dd { (time(job.submitted_at)) " by " (kind) (foreign(name)) }
            @for (name, value) in &job.parameters { dt { (name) } dd { (foreign(value)) } }
            dt { "Priority" }
            dd { (job.priority) }
            @if let Some(task) = &job.array {
                dt { "Task" }
                dd { (task.index) " of an array of " (task.count) }
            }
            @if !job.after.is_empty() {
                dt { "Follows" }
                dd {
                    @for id in &job.after { a href=(format!("/console/jobs/{id}")) { (id.short()) } " " }
                }
            }
            dt { "Attempts" }
            dd {
                (job.attempts) " (" (counted(job.failures, "failure")) ", "
                (counted(job.lost_nodes, "lost node")) ", " (counted(job.preemptions, "preemption")) ")"
            }
            dt { "Used" }
            dd { (used_text(&job.used)) }
            dt { "No attempt begins after" }
            dd { (time(job.deadline)) }
        }
    }
}

/// Returns what all attempts of a job reserved, and its price.
fn used_text(used: &UsageAmounts) -> String {
    let gpu = match used.gpu_microseconds {
        0 => String::new(),
        time => format!("{} GPU-hours, ", format_hours(time)),
    };
    let (cores, spend) = (format_hours(used.cpu_microseconds), format_units(used.spend_micro_units));
    format!("{gpu}{cores} core-hours, {spend} of the circle's units")
}

/// Returns what happened to the job.
fn past(events: &[AuditEvent]) -> Markup {
    let latest = &events[events.len().saturating_sub(EVENTS_SHOWN)..];
    html! {
        section {
            h2 { "Events" }
            table.stack {
                (table_head(&["Time", "Event", "By", "Detail"]))
                tbody {
                    @for event in latest {
                        tr {
                            th scope="row" { (time(event.at)) }
                            td data-label="Event" { (foreign(&event.action)) }
                            td data-label="By" { (foreign(&event.actor)) }
                            td data-label="Detail" { (foreign(&event.detail)) }
                        }
                    }
                }
            }
        }
    }
}

fn slots(slots: &[JobSlotView]) -> Markup {
    let ranks = |slot: &JobSlotView| match slot.ranks.count {
        1 => slot.ranks.first.to_string(),
        count => format!("{} to {}", slot.ranks.first, u64::from(slot.ranks.first) + u64::from(count) - 1),
    };
    html! {
        section {
            h2 { "Ranks" }
            table.stack {
                (table_head(&["Ranks", "Node", "State", "CPU time", "Slot"]))
                tbody {
                    @for slot in slots {
                        tr {
                            th scope="row" { (ranks(slot)) }
                            td data-label="Node" { (foreign(&slot.node)) }
                            td data-label="State" { (badge(&slot.state)) }
                            td data-label="CPU time" { (seconds(slot.cpu_micros)) }
                            td data-label="Slot" { (slot.slot) " under " (slot.fence) }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the checkpoints, outputs and logs that are kept.
fn kept_data(data: &[JobDataView], id: &str) -> Markup {
    html! {
        section {
            h2 { "Checkpoints, outputs and logs" }
            table.stack {
                (table_head(&["Data", "Attempt", "Ranks", "Size", "Stored by", "Kept since"]))
                tbody {
                    @for kept in data {
                        tr {
                            th scope="row" { (foreign(&kept.kind.to_string())) }
                            td data-label="Attempt" { (kept.attempt) }
                            td data-label="Ranks" { (kept.ranks.first) " to " (last_rank(kept)) }
                            td data-label="Size" { (format_bytes(kept.bytes)) }
                            td data-label="Stored by" { (foreign(&kept.node)) }
                            td data-label="Kept since" { (time(kept.registered_at)) }
                        }
                    }
                }
            }
            p.quiet {
                "Fetched and verified by " code { "quorate job outputs " (id) " --to DIR" }
                " and " code { "quorate job logs " (id) " --to DIR" }
            }
        }
    }
}

/// Returns the last rank of the slot that left data.
fn last_rank(kept: &JobDataView) -> u32 {
    kept.ranks.first.saturating_add(kept.ranks.count.saturating_sub(1))
}

/// Returns microseconds as seconds with one decimal, rounded down.
fn seconds(micros: u64) -> String {
    format!("{}.{} s", micros / 1_000_000, micros % 1_000_000 / 100_000)
}

fn last_end(end: &JobEndView) -> Markup {
    html! {
        section {
            h2 { @if end.attempt == 0 { "End" } @else { "End of attempt " (end.attempt) } }
            p { (time(end.at)) ": " (foreign(&end.cause)) }
            @if !end.ends.is_empty() {
                ul {
                    @for rank in &end.ends {
                        li { "rank " (rank.rank) ": " (foreign(&rank.outcome.to_string())) }
                    }
                }
            }
        }
    }
}

/// Returns the lines of the ranks. While the job has not ended, a script adds those that follow.
fn written(job: &JobView, shown: &ShownLines) -> Markup {
    let after = shown.lines.last().map_or(0, |line| line.sequence);
    let follow = (!job.has_ended()).then(|| lines_path(job.id));
    html! {
        section {
            h2 { "Lines" }
            @if let Some(note) = &shown.note { p { span.badge.warn { "not known" } " " (foreign(note)) } }
            pre.log tabindex="0" aria-label="Lines of the ranks" data-follow=[follow] data-after=(after)
                data-epoch=(shown.epoch) {
                @for line in &shown.lines { span.line { (written_line(line)) "\n" } }
            }
            p.quiet {
                "Each line begins with its attempt and its rank. More: "
                code { "quorate job logs " (job.id.short()) }
            }
        }
    }
}

/// Returns the path at which a page of ours reads the lines that follow.
pub(crate) fn lines_path(id: JobId) -> String {
    format!("/console/jobs/{id}/lines")
}

/// Returns a line of a rank as one line that acts on nothing around it.
pub(crate) fn written_line(written: &JobLogLine) -> String {
    let dropped = match written.dropped {
        0 => String::new(),
        count => format!("({} dropped) ", counted(count, "line")),
    };
    format!("{}.{} {dropped}{}", written.attempt, written.rank, line(&written.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_attempt_its_rank_and_what_was_dropped_before_it() {
        let node = "node-1".parse().expect("a name");
        let mut written = JobLogLine {
            sequence: 9,
            attempt: 2,
            rank: 3,
            number: 9,
            node,
            dropped: 0,
            text: "loss 0.5".into(),
        };
        assert_eq!(written_line(&written), "2.3 loss 0.5");
        (written.dropped, written.text) = (4, "a\u{202e}b\nc".into());
        assert_eq!(written_line(&written), "2.3 (4 lines dropped) a\\u{202e}b\\nc");
    }

    #[test]
    fn time_of_a_processor_is_rounded_down() {
        assert_eq!([0, 99_999, 1_250_000, 60_000_000].map(seconds), ["0.0 s", "0.0 s", "1.2 s", "60.0 s"]);
    }
}

//! `quorate job events`: what happened to a job, from its submission on.

use super::Environment;
use super::job_ids::find;
use super::job_runs::{POLL_WAIT_MS, view_of};
use super::status::events_table;
use crate::print;
use crate::terminal;
use anyhow::Result;
use clap::Args;
use protocol::api::{AuditEvent, Page};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate job events 3f9c
  quorate job events 3f9c -f

The events of all jobs and services are in `quorate events`; control keeps the last 4,096.")]
pub(super) struct JobEventsArguments {
    /// Id of the job, or the beginning of it
    id: String,
    /// Keep printing new events until the job has ended
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn print(arguments: JobEventsArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let id = find(&client, &arguments.id).await?;
    let (mut after, mut wait_ms, mut kept) = (0, 0, Vec::new());
    loop {
        let was_ended = arguments.follow && view_of(&client, id).await?.has_ended();
        let wait = if was_ended { 0 } else { wait_ms };
        let path = format!("/v1/jobs/{id}/events?after={after}&wait_ms={wait}");
        let Page { items, .. }: Page<AuditEvent> = client.get(&path).await?;
        after = items.last().map_or(after, |event| event.sequence);
        let is_done = items.is_empty() && (was_ended || !arguments.follow);
        if arguments.follow {
            items.iter().for_each(|event| environment.output().print(event, event_text));
            wait_ms = POLL_WAIT_MS;
        } else {
            kept.extend(items);
        }
        if is_done || print::is_closed() {
            break;
        }
    }
    if !arguments.follow {
        environment.output().print(&Page::whole(kept), |page| events_table(&page.items));
    }
    Ok(())
}

/// Returns an event of a job as one line.
fn event_text(event: &AuditEvent) -> String {
    let at = human_chain::show_time(event.at);
    let AuditEvent { actor, action, detail, .. } = event;
    terminal::line(&format!("{at}  {actor}  {action}  {detail}")).trim_end().to_string()
}

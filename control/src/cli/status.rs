//! `quorate status`, `why`, `explain` and `events`: the state of the cluster and the reasons for it.

use super::Environment;
use super::output::table;
use super::verdict;
use crate::explain;
use crate::terminal::line;
use anyhow::{Result, bail};
use clap::Args;
use protocol::api::{AuditEvent, Page, Why};
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate why minilm       a service
  quorate why minilm/1     one of its slots
  quorate why 7f3a         a proposal, by the first digits of its id")]
pub(crate) struct WhyArguments {
    /// A service, `service/slot`, or a proposal's id or its first digits
    subject: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate explain order-replayed")]
pub(crate) struct ExplainArguments {
    /// Error code, as the error printed it
    code: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate events                  the last 50
  quorate events --last 500 --before 1200")]
pub(crate) struct EventsArguments {
    /// Number of events to show
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    last: usize,
    /// Show only events before this number, to page back
    #[arg(long, value_name = "NUMBER")]
    before: Option<u64>,
}

/// Prints the state of the cluster and returns the matching exit status.
///
/// The status is 0 if all is well and 1 if something is wrong. It is 2 if the quorum is lost or the state
/// cannot be determined.
pub(crate) async fn status(environment: &Environment) -> Result<ExitCode> {
    let report = verdict::query(&environment.context()?.client()?).await?;
    environment.output().print(&report.to_json(), |_| report.to_text());
    Ok(ExitCode::from(report.exit_code()))
}

pub(crate) async fn why(arguments: WhyArguments, environment: &Environment) -> Result<()> {
    let why: Why = environment.context()?.client()?.get(&format!("/v1/why/{}", arguments.subject)).await?;
    environment.output().print(&why, why_text);
    Ok(())
}

fn why_text(why: &Why) -> String {
    let mut text = format!("{}: {}\n", line(&why.subject), line(&why.answer));
    for reason in &why.reasons {
        text.push_str(&format!("  {}\n", line(reason)));
    }
    if let Some(remedy) = &why.remedy {
        text.push_str(&format!("remedy: {}\n", line(remedy)));
    }
    text
}

pub(crate) async fn events(arguments: EventsArguments, environment: &Environment) -> Result<()> {
    let client = environment.context()?.client()?;
    let (mut items, mut before) = (Vec::<AuditEvent>::new(), arguments.before);
    while items.len() < arguments.last {
        let path = before.map_or("/v1/events".into(), |before| format!("/v1/events?before={before}"));
        let mut page: Page<AuditEvent> = client.get(&path).await?;
        let Some(first) = page.items.first() else { break };
        before = Some(first.sequence);
        page.items.extend(items);
        items = page.items;
    }
    let page = Page { items: items.split_off(items.len().saturating_sub(arguments.last)) };
    environment.output().print(&page, |page| {
        let row = |event: &AuditEvent| {
            vec![
                event.sequence.to_string(),
                human_chain::show_time(event.at),
                event.actor.clone(),
                event.action.clone(),
                event.subject.clone(),
                event.detail.clone(),
            ]
        };
        table(
            &["number", "time", "actor", "action", "subject", "detail"],
            page.items.iter().map(row).collect(),
        )
    });
    Ok(())
}

pub(crate) fn explain(arguments: &ExplainArguments, environment: &Environment) -> Result<()> {
    let Some(page) = explain::page(&arguments.code) else {
        let similar = explain::similar(&arguments.code);
        if similar.is_empty() {
            bail!("`{}` is not an error code of this release", arguments.code);
        }
        bail!("`{}` is not an error code; did you mean {}?", arguments.code, similar.join(", "));
    };
    let value = serde_json::json!({ "code": arguments.code, "page": page });
    environment.output().print(&value, |_| page.to_string());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_lists_its_reasons_and_ends_with_the_remedy() {
        let mut why = Why {
            subject: "minilm/1".into(),
            answer: "waits for a node".into(),
            reasons: vec!["node-1: 200 millicores are free".into(), "node-2: is silent".into()],
            remedy: Some("quorate node admit node-3".into()),
        };
        let expected = "\
minilm/1: waits for a node
  node-1: 200 millicores are free
  node-2: is silent
remedy: quorate node admit node-3
";
        assert_eq!(why_text(&why), expected);
        (why.reasons, why.remedy) = (vec![], None);
        assert_eq!(why_text(&why), "minilm/1: waits for a node\n");
    }
}

//! `quorate status`, `why`, `explain` and `events`: the state of the cluster and the reasons for it.

use super::Environment;
use super::output::table;
use super::verdict;
use crate::explain;
use crate::reviewed::{RefusedBallot, ReviewedProposal};
use crate::session::Session;
use crate::terminal::line;
use anyhow::{Result, bail};
use clap::Args;
use human_chain::CircleState;
use protocol::MemberId;
use protocol::api::{AuditEvent, Page, ProposalState, Why};
use std::process::ExitCode;

/// Beginning of the subject of an answer about a proposal.
const PROPOSAL_SUBJECT: &str = "proposal/";

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
    let context = environment.context()?;
    let mut why: Why = context.client()?.get(&format!("/v1/why/{}", arguments.subject)).await?;
    if why.subject.starts_with(PROPOSAL_SUBJECT) {
        let session = Session::open(&context).await?;
        let proposal = session.find_proposal(&arguments.subject).await?;
        why = why_proposal(&session.circle, &proposal);
    }
    environment.output().print(&why, why_text);
    Ok(())
}

/// Explains a proposal by the votes as counted on this machine.
fn why_proposal(circle: &CircleState, proposal: &ReviewedProposal) -> Why {
    let view = &proposal.view;
    let rule = circle.rule_text(&view.proposal.change);
    let answer = match view.state {
        ProposalState::Open if !proposal.quorum_reached => format!("waits for votes: {rule} must approve"),
        ProposalState::Draft => {
            format!("waits for votes: {rule} must approve; {}", proposal.state_text())
        }
        _ => proposal.state_text(),
    };
    let voted = |members: &[MemberId], what| -> Vec<String> {
        members.iter().map(|member| format!("{member}: {what}")).collect()
    };
    let not_counted = |ballot: &RefusedBallot| {
        format!("{}: has a ballot that does not count: {} ({})", ballot.member, ballot.reason, ballot.code)
    };
    let reasons = [
        voted(&view.approved, "approved"),
        voted(&view.rejected, "rejected"),
        voted(&view.missing, "has not voted"),
        proposal.refused.iter().map(not_counted).collect(),
    ];
    let id = view.id.short();
    let remedy = match view.state {
        ProposalState::Open | ProposalState::Waiting | ProposalState::Draft => {
            Some(format!("quorate review {id}"))
        }
        ProposalState::Expired | ProposalState::Stale | ProposalState::Void => {
            Some("propose it again".to_string())
        }
        ProposalState::Approved | ProposalState::Rejected | ProposalState::Withdrawn => None,
    };
    Why { subject: format!("{PROPOSAL_SUBJECT}{id}"), answer, reasons: reasons.concat(), remedy }
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
    let page = Page::whole(items.split_off(items.len().saturating_sub(arguments.last)));
    environment.output().print(&page, |page| events_table(&page.items));
    Ok(())
}

pub(super) fn events_table(events: &[AuditEvent]) -> String {
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
    table(&["number", "time", "actor", "action", "subject", "detail"], events.iter().map(row).collect())
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
    use crate::testing::{SampleCircle, proposal_view};
    use protocol::governance::Choice;

    /// Attack: `quorate why` repeats that members voted who did not.
    #[test]
    fn an_answer_about_a_proposal_names_the_votes_that_are_counted_here() {
        let circle = SampleCircle::founded();
        let proposal = circle.proposal("run it");
        let mut view = proposal_view(&proposal, vec![circle.ballot(0, &proposal, Choice::Approve)]);
        view.approved.push("bob".parse().expect("a name"));
        let reviewed = ReviewedProposal::with_decision(&circle.state, None, view).expect("its own id");
        let why = why_proposal(&circle.state, &reviewed);
        assert_eq!(why.answer, "waits for votes: 2 of (alice, bob, carol) must approve");
        assert_eq!(why.reasons, ["alice: approved", "bob: has not voted", "carol: has not voted"]);
        assert_eq!(why.remedy, Some(format!("quorate review {}", proposal.id().short())));
        let mut decided = reviewed;
        decided.view.state = ProposalState::Approved;
        let why = why_proposal(&circle.state, &decided);
        assert!(why.answer.contains("do not reach the quorum") && why.remedy.is_none(), "{why:?}");
    }

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

//! `quorate propose`, `review`, `approve` and `reject`: submitting, reading and voting.
//!
//! The text that a member reads is rendered on the member's machine, from the proposal, by the code that also
//! verifies signatures. The votes are counted there too. No text and no count of the server is trusted.

use super::Environment;
use super::output::table;
use super::sharing::{member_key, share_after};
use super::words::WordsArguments;
use crate::reviewed::ReviewedProposal;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use crate::terminal::line;
use anyhow::{Context as _, Result};
use clap::Args;
use human_chain::CircleState;
use protocol::MemberId;
use protocol::api::{Page, ProposalState};
use protocol::governance::{Change, Choice};
use std::cmp::Reverse;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate propose --change members.json --reason 'welcome dana'")]
pub(crate) struct ProposeArguments {
    /// Change as JSON, in the form that the OpenAPI document calls `Change`
    #[arg(long, value_name = "FILE")]
    change: PathBuf,
    /// Reason shown to the voters
    #[arg(long)]
    reason: String,
    /// Number of days until the proposal expires
    #[arg(long, default_value_t = 3)]
    days: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate review          proposals that wait for votes
  quorate review 7f3a     one proposal in full")]
pub(crate) struct ReviewArguments {
    /// Id of a proposal, or its first digits
    proposal: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VoteArguments {
    /// Id of the proposal, or its first digits
    proposal: String,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    words: WordsArguments,
}

pub(crate) async fn propose(arguments: ProposeArguments, environment: &Environment) -> Result<()> {
    let text = std::fs::read_to_string(&arguments.change)
        .with_context(|| format!("read `{}`", arguments.change.display()))?;
    let change: Change = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not a change", arguments.change.display()))?;
    let session = Session::open(&environment.context()?).await?;
    let lifetime = arguments.days.saturating_mul(PROPOSAL_LIFETIME_MS / 3);
    let proposal = session.propose(change, arguments.reason, lifetime).await?;
    print_submitted(environment, &session, &proposal);
    Ok(())
}

/// Returns the given reason, or else a default that repeats the change.
pub(super) fn reason_or(given: String, change: impl FnOnce() -> String) -> String {
    if given.is_empty() { change() } else { given }
}

/// Prints a submitted proposal for its proposer: id, words, missing signatures and the next command.
pub(crate) fn print_submitted(environment: &Environment, session: &Session, proposal: &ReviewedProposal) {
    environment.output().print(proposal, |proposal| {
        let words = proposal.words.join(" ");
        let (id, waits) = (proposal.view.id, proposal.lacking(&session.circle));
        format!("proposal {id}\nwords: {words}\n{waits}\nnext: quorate approve {}", id.short())
    });
}

pub(crate) async fn review(arguments: ReviewArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    if let Some(prefix) = arguments.proposal {
        let proposal = session.find_proposal(&prefix).await?;
        environment.output().print(&proposal, |proposal| full_text(&session.circle, proposal));
        return Ok(());
    }
    let mut proposals = session.proposals().await?;
    // The list is in the order of ids; a member looks for what is new.
    proposals.sort_by_key(|proposal| {
        let view = &proposal.view;
        (
            !matches!(view.state, ProposalState::Open | ProposalState::Waiting),
            Reverse(view.proposal.created_at),
            view.id,
        )
    });
    let page = Page::whole(proposals);
    environment.output().print(&page, |page| open_table(&page.items));
    Ok(())
}

fn open_table(proposals: &[ReviewedProposal]) -> String {
    let is_open =
        |item: &&ReviewedProposal| matches!(item.view.state, ProposalState::Open | ProposalState::Waiting);
    let open: Vec<_> = proposals.iter().filter(is_open).collect();
    if open.is_empty() {
        return "no proposal waits for votes".into();
    }
    let row = |proposal: &&ReviewedProposal| {
        let missing: Vec<String> = proposal.view.missing.iter().map(ToString::to_string).collect();
        let missing = match proposal.view.takes_effect_at {
            Some(at) => format!("a veto, until {}", human_chain::show_time(at)),
            None => missing.join(","),
        };
        let text = human_chain::render(&proposal.view.proposal).text;
        let first = text.lines().next().unwrap_or_default().trim_start_matches("| ").to_string();
        vec![proposal.view.id.to_string()[..8].to_string(), missing, first]
    };
    table(&["proposal", "missing", "change"], open.iter().map(row).collect())
}

/// Returns the text that members sign, the difference beside it, and the votes as counted on this machine.
fn full_text(circle: &CircleState, reviewed: &ReviewedProposal) -> String {
    let ReviewedProposal { view, words, quorum_reached: _, only_passkeys: _, proposed_lacking: _, refused } =
        reviewed;
    let rendering = human_chain::render(&view.proposal);
    let difference = human_chain::render_difference(circle, &view.proposal);
    let names = |members: &[MemberId]| {
        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
        if names.is_empty() { "no member".to_string() } else { names.join(", ") }
    };
    let mut text = format!(
        "{}\nChanges\n{difference}\n\nwords: {}\nstate: {}; approved by {}; rejected by {}",
        rendering.text,
        words.join(" "),
        reviewed.state_text(),
        names(&view.approved),
        names(&view.rejected),
    );
    for ballot in refused {
        let reason = line(&ballot.reason);
        text.push_str(&format!("\nballot of {} does not count: {reason} ({})", ballot.member, ballot.code));
    }
    if view.state == ProposalState::Open {
        text.push_str(&format!("\n{}", reviewed.lacking(circle)));
    }
    text
}

pub(crate) async fn approve(arguments: VoteArguments, environment: &Environment) -> Result<()> {
    vote(arguments, environment, Choice::Approve).await
}

pub(crate) async fn reject(arguments: VoteArguments, environment: &Environment) -> Result<()> {
    vote(arguments, environment, Choice::Reject).await
}

async fn vote(arguments: VoteArguments, environment: &Environment, choice: Choice) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let proposal = session.find_proposal(&arguments.proposal).await?;
    eprintln!("{}\n", full_text(&session.circle, &proposal));
    arguments.words.confirm(&format!("{choice} as {}", member.member), &proposal.words)?;
    let proposal = session.vote(&proposal.view.proposal, &member, choice).await?;
    environment.output().print(&proposal, |proposal| {
        let outcome = match proposal.view.state {
            ProposalState::Open if !proposal.quorum_reached => proposal.lacking(&session.circle),
            _ => proposal.state_text(),
        };
        format!("recorded: {choice} by {}\n{outcome}", member.member)
    });
    share_after(&session, &member).await;
    Ok(())
}

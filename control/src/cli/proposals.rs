//! `quorate propose`, `review`, `approve`, `reject` and `withdraw`: proposing, reading and voting.
//!
//! A command that names a member's key proposes with that member's approval. Any other makes a draft, which
//! the first member that approves it proposes.
//!
//! The text that a member reads is rendered on the member's machine, from the proposal, by the code that also
//! verifies signatures. The votes are counted there too. No text and no count of the server is trusted.

use super::Environment;
use super::output::table;
use super::sharing::{member_key, share_after};
use super::words::{WordsArguments, confirm_own};
use crate::member_key::MemberKey;
use crate::print;
use crate::reviewed::ReviewedProposal;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use crate::terminal::line;
use anyhow::{Context as _, Result};
use clap::Args;
use human_chain::CircleState;
use protocol::MemberId;
use protocol::api::{Page, ProposalState};
use protocol::governance::{Change, Choice, Proposal, SignedBallot};
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
    #[command(flatten)]
    proposer: ProposerArguments,
}

/// Member that proposes.
#[derive(Debug, Args)]
pub(crate) struct ProposerArguments {
    /// Key file of the member that proposes, and approves, after reading the text [default: the command makes
    /// a draft, and the first member that approves it proposes it]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate withdraw 7f3a --key alice.key    a proposal of alice's, or any draft
  quorate withdraw 7f3a                    a draft that this access token made")]
pub(crate) struct WithdrawArguments {
    /// Id of the proposal or draft, or its first digits
    proposal: String,
    /// Key file of the member who withdraws it [default: the access token withdraws its own draft]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
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
    /// Reason of the vote, signed with it and shown beside it
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
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
    let proposal = session.draft(change, arguments.reason, lifetime)?;
    arguments.proposer.submit(environment, &session, proposal).await?;
    Ok(())
}

impl ProposerArguments {
    /// Proposes a change for the usual time, as its member or as a draft, and prints it.
    pub(super) async fn propose(
        &self,
        environment: &Environment,
        session: &Session,
        change: Change,
        reason: String,
    ) -> Result<ReviewedProposal> {
        let proposal = session.draft(change, reason, PROPOSAL_LIFETIME_MS)?;
        self.submit(environment, session, proposal).await
    }

    async fn submit(
        &self,
        environment: &Environment,
        session: &Session,
        proposal: Proposal,
    ) -> Result<ReviewedProposal> {
        let Some(file) = &self.key else {
            let draft = session.submit(proposal).await?;
            print_submitted(environment, session, &draft);
            return Ok(draft);
        };
        let member = MemberKey::load(file)?;
        let rendering = human_chain::render(&proposal);
        let difference = human_chain::render_difference(&session.circle, &proposal);
        print::err(format_args!(
            "{}\nChanges\n{difference}\n\nwords: {}\n",
            rendering.text,
            rendering.words.join(" ")
        ));
        confirm_own(&format!("propose and approve as {}", member.member), &rendering.words)?;
        let proposed = session.submit_as(proposal, &member).await?;
        print_submitted(environment, session, &proposed);
        share_after(session, &member).await;
        Ok(proposed)
    }
}

pub(crate) async fn withdraw(arguments: WithdrawArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let session = Session::open(&context).await?;
    let found = session.find_proposal(&arguments.proposal).await?;
    // The context's key is used for a proposal, which only its proposer withdraws.
    let member = match (found.view.state, arguments.key) {
        (ProposalState::Draft, None) => None,
        (_, given) => Some(member_key(&context, given)?),
    };
    session.withdraw(&found.view, member.as_ref()).await?;
    environment.output().print(&found, |found| format!("withdrawn: {}", found.view.id));
    Ok(())
}

/// Returns the given reason, or else a default that repeats the change.
pub(super) fn reason_or(given: String, change: impl FnOnce() -> String) -> String {
    if given.is_empty() { change() } else { given }
}

/// Prints a submitted proposal for its maker: id, words, missing signatures and the next command.
pub(crate) fn print_submitted(environment: &Environment, session: &Session, proposal: &ReviewedProposal) {
    environment.output().print(proposal, |proposal| {
        let words = proposal.words.join(" ");
        let id = proposal.view.id;
        let (kind, waits) = match proposal.view.state {
            ProposalState::Draft => {
                let note = "no member has signed it: the first that approves it proposes it";
                ("draft", format!("{note}\n{}", proposal.lacking(&session.circle)))
            }
            ProposalState::Open if !proposal.quorum_reached => {
                ("proposal", proposal.lacking(&session.circle))
            }
            _ => ("proposal", proposal.state_text()),
        };
        format!("{kind} {id}\nwords: {words}\n{waits}\nnext: quorate approve {}", id.short())
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
        (!is_pending(view.state), Reverse(view.proposal.created_at), view.id)
    });
    let page = Page::whole(proposals);
    environment.output().print(&page, |page| open_table(&page.items));
    Ok(())
}

fn is_pending(state: ProposalState) -> bool {
    matches!(state, ProposalState::Open | ProposalState::Waiting | ProposalState::Draft)
}

fn open_table(proposals: &[ReviewedProposal]) -> String {
    let open: Vec<_> = proposals.iter().filter(|item| is_pending(item.view.state)).collect();
    if open.is_empty() {
        return "no proposal waits for votes".into();
    }
    let row = |proposal: &&ReviewedProposal| {
        let missing: Vec<String> = proposal.view.missing.iter().map(ToString::to_string).collect();
        let missing = match (proposal.view.takes_effect_at, &proposal.view.drafted_by) {
            (Some(at), _) => format!("a veto, until {}", human_chain::show_time(at)),
            (None, Some(maker)) => format!("a proposer; draft of {}", line(maker)),
            (None, None) => missing.join(","),
        };
        let questions = match proposal.thread.unanswered() {
            0 => String::new(),
            count => count.to_string(),
        };
        vec![proposal.view.id.short(), missing, questions, proposal.sentence.clone()]
    };
    table(&["proposal", "missing", "asked", "change"], open.iter().map(row).collect())
}

/// Returns the text that members sign, the difference beside it, and the votes as counted on this machine.
fn full_text(circle: &CircleState, reviewed: &ReviewedProposal) -> String {
    let ReviewedProposal { view, words, refused, counted, .. } = reviewed;
    let rendering = human_chain::render(&view.proposal);
    let difference = human_chain::render_difference(circle, &view.proposal);
    let names = |members: &[MemberId]| {
        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
        if names.is_empty() { "no member".to_string() } else { names.join(", ") }
    };
    let mut text = format!(
        "{}\nChanges\n{difference}\n\nwords: {}\nproposer: {}\nstate: {}; approved by {}; rejected by {}",
        rendering.text,
        words.join(" "),
        line(&reviewed.proposer_text()),
        reviewed.state_text(),
        names(&view.approved),
        names(&view.rejected),
    );
    for SignedBallot { ballot, .. } in counted.iter().filter(|signed| !signed.ballot.reason.is_empty()) {
        text.push_str(&format!("\n{} ({}): {}", ballot.member, ballot.choice, line(&ballot.reason)));
    }
    for ballot in refused {
        let reason = line(&ballot.reason);
        text.push_str(&format!("\nballot of {} does not count: {reason} ({})", ballot.member, ballot.code));
    }
    if reviewed.can_be_approved() {
        text.push_str(&format!("\n{}", reviewed.lacking(circle)));
    }
    if !reviewed.thread.is_empty() {
        text.push_str(&format!("\n\nQuestions\n{}", human_chain::render_thread(&reviewed.thread).trim_end()));
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
    print::err(format_args!("{}\n", full_text(&session.circle, &proposal)));
    arguments.words.confirm(&format!("{choice} as {}", member.member), &proposal.words)?;
    let proposal = session.vote(&proposal.view.proposal, &member, choice, arguments.reason).await?;
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

//! Proposing, reading and voting. The text that a member reads is rendered here, from the proposal, by
//! the code that also checks signatures; the server's word is not asked.

use super::Environment;
use super::output::table;
use crate::session::{MemberKeyFile, PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use protocol::api::{Page, ProposalState, ProposalView};
use protocol::error_code;
use protocol::governance::{Change, Choice};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate propose --change members.json --reason 'welcome dana'")]
pub(crate) struct ProposeArguments {
    /// The change as JSON, in the form that the OpenAPI document calls `Change`
    #[arg(long, value_name = "FILE")]
    change: PathBuf,
    /// Why, for those who vote
    #[arg(long)]
    reason: String,
    /// Days until the proposal expires
    #[arg(long, default_value_t = 3)]
    days: u64,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate review          what waits for votes\n  quorate review 7f3a     one proposal, whole"
)]
pub(crate) struct ReviewArguments {
    /// Id of a proposal, or its first digits
    proposal: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct VoteArguments {
    /// Id of the proposal, or its first digits
    proposal: String,
    /// The member's key file [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Sign without being asked; the text is printed all the same
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn propose(arguments: ProposeArguments, environment: &Environment) -> Result<()> {
    let text = std::fs::read_to_string(&arguments.change)
        .with_context(|| format!("read `{}`", arguments.change.display()))?;
    let change: Change = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not a change", arguments.change.display()))?;
    let session = Session::open(&environment.context()?).await?;
    let lifetime = arguments.days.saturating_mul(PROPOSAL_LIFETIME_MS / 3);
    let view = session.propose(change, arguments.reason, lifetime).await?;
    print_submitted(environment, &view);
    Ok(())
}

/// What a proposer sees.
pub(crate) fn print_submitted(environment: &Environment, view: &ProposalView) {
    environment.output().print(view, |view| {
        let words = human_chain::render(&view.proposal).words.join(" ");
        let missing: Vec<String> = view.missing.iter().map(ToString::to_string).collect();
        format!(
            "proposal {}  words: {words}\nwaits for {}; next: quorate approve {}",
            view.id,
            missing.join(", "),
            &view.id.to_string()[..8]
        )
    });
}

pub(crate) async fn review(arguments: ReviewArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    if let Some(prefix) = arguments.proposal {
        let view = session.find_proposal(&prefix).await?;
        environment.output().print(&view, |view| whole(&session, view));
        return Ok(());
    }
    let page: Page<ProposalView> = session.client.get("/v1/proposals").await?;
    environment.output().print(&page, |page| {
        let open: Vec<_> = page.items.iter().filter(|view| view.state == ProposalState::Open).collect();
        if open.is_empty() {
            return "nothing waits for votes".into();
        }
        let row = |view: &&ProposalView| {
            let missing: Vec<String> = view.missing.iter().map(ToString::to_string).collect();
            let text = human_chain::render(&view.proposal).text;
            let first = text.lines().next().unwrap_or_default().to_string();
            vec![view.id.to_string()[..8].to_string(), missing.join(","), first]
        };
        table(&["proposal", "waits for", "what"], open.iter().map(row).collect())
    });
    Ok(())
}

fn whole(session: &Session, view: &ProposalView) -> String {
    let rendering = human_chain::render(&view.proposal);
    let difference = human_chain::render_difference(&session.circle, &view.proposal);
    let names = |members: &[protocol::MemberId]| {
        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
        if names.is_empty() { "nobody".to_string() } else { names.join(", ") }
    };
    format!(
        "{}\nWhat changes\n{difference}\n\nwords: {}\nstate: {:?}; approved by {}; rejected by {}; may still sign: {}",
        rendering.text,
        rendering.words.join(" "),
        view.state,
        names(&view.approved),
        names(&view.rejected),
        names(&view.missing),
    )
}

pub(crate) async fn approve(arguments: VoteArguments, environment: &Environment) -> Result<()> {
    vote(arguments, environment, Choice::Approve).await
}

pub(crate) async fn reject(arguments: VoteArguments, environment: &Environment) -> Result<()> {
    vote(arguments, environment, Choice::Reject).await
}

async fn vote(arguments: VoteArguments, environment: &Environment, choice: Choice) -> Result<()> {
    let context = environment.context()?;
    let Some(key) = arguments.key.or_else(|| context.member_key_file.clone()) else {
        let code = error_code::KEY_FILE_UNUSABLE;
        bail!("{code}: no member key: give --key FILE, or name one in the context");
    };
    let member = MemberKeyFile::load(&key)?;
    let session = Session::open(&context).await?;
    let view = session.find_proposal(&arguments.proposal).await?;
    eprintln!("{}\n", whole(&session, &view));
    let verb = if choice == Choice::Approve { "approve" } else { "reject" };
    if !arguments.yes && !confirmed(&format!("{verb} as {}? [y/N] ", member.member))? {
        bail!("nothing was signed");
    }
    let view = session.vote(&view.proposal, &member, choice).await?;
    environment.output().print(&view, |view| {
        let outcome = match view.state {
            ProposalState::Open => format!("{} more may sign", view.missing.len()),
            ProposalState::Approved => "quorum reached: it is in force".into(),
            other => format!("{other:?}").to_lowercase(),
        };
        format!("{verb} by {} counted; {outcome}", member.member)
    });
    Ok(())
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is no terminal; use --yes to sign without being asked");
    }
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

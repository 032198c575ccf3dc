//! `quorate propose`, `review`, `approve` and `reject`: submitting, reading and voting.
//!
//! The text that a member reads is rendered on the member's machine, from the proposal, by the code that also
//! verifies signatures. No text from the server is trusted.

use super::Environment;
use super::output::table;
use super::sharing::{member_key, share_after};
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use human_chain::CircleState;
use protocol::MemberId;
use protocol::api::{Page, ProposalState, ProposalView};
use protocol::governance::{Change, Choice, Quorum};
use std::io::{IsTerminal, Write};
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
    /// Sign without confirmation; the text is still printed
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
    print_submitted(environment, &session, &view);
    Ok(())
}

/// Returns the given reason, or else a default that repeats the change.
pub(super) fn reason_or(given: String, change: impl FnOnce() -> String) -> String {
    if given.is_empty() { change() } else { given }
}

/// Prints a submitted proposal for its proposer: id, words, missing signatures and the next command.
pub(crate) fn print_submitted(environment: &Environment, session: &Session, view: &ProposalView) {
    environment.output().print(view, |view| {
        let words = human_chain::render(&view.proposal).words.join(" ");
        let (id, waits) = (view.id, signatures(&session.circle, view));
        format!("proposal {id}\nwords: {words}\n{waits}\nnext: quorate approve {}", id.short())
    });
}

/// Describes the votes of an open proposal: `1 of 2 signed; 1 more signature needed; bob or carol may sign`.
pub(super) fn signatures(circle: &CircleState, view: &ProposalView) -> String {
    let rule = circle.policy().quorums.get(&view.class);
    rule.map(|rule| signatures_under(rule, &view.approved, &view.missing)).unwrap_or_default()
}

fn signatures_under(rule: &Quorum, approved: &[MemberId], missing: &[MemberId]) -> String {
    let (signed, open) = (approved.iter().cloned().collect(), missing.iter().cloned().collect());
    let Some(needed) = human_chain::approvals_lacking(rule, &signed, &open) else {
        return format!("{} can no longer be reached", human_chain::describe(rule));
    };
    let may_sign = missing.iter().filter(|member| human_chain::names(rule, member));
    let names: Vec<&str> = may_sign.map(MemberId::as_str).collect();
    let joint = if names.len() == needed { "and" } else { "or" };
    let names = match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {joint} {last}", rest.join(", ")),
        _ => names.concat(),
    };
    let plural = if needed == 1 { "" } else { "s" };
    let all = signed.len() + needed;
    format!("{} of {all} signed; {needed} more signature{plural} needed; {names} may sign", signed.len())
}

pub(crate) async fn review(arguments: ReviewArguments, environment: &Environment) -> Result<()> {
    let session = Session::open(&environment.context()?).await?;
    if let Some(prefix) = arguments.proposal {
        let view = session.find_proposal(&prefix).await?;
        environment.output().print(&view, |view| full_text(&session, view));
        return Ok(());
    }
    let page: Page<ProposalView> = session.client.get("/v1/proposals").await?;
    environment.output().print(&page, |page| {
        let open: Vec<_> = page.items.iter().filter(|view| view.state == ProposalState::Open).collect();
        if open.is_empty() {
            return "no proposal waits for votes".into();
        }
        let row = |view: &&ProposalView| {
            let missing: Vec<String> = view.missing.iter().map(ToString::to_string).collect();
            let text = human_chain::render(&view.proposal).text;
            let first = text.lines().next().unwrap_or_default().to_string();
            vec![view.id.to_string()[..8].to_string(), missing.join(","), first]
        };
        table(&["proposal", "missing", "change"], open.iter().map(row).collect())
    });
    Ok(())
}

fn full_text(session: &Session, view: &ProposalView) -> String {
    let rendering = human_chain::render(&view.proposal);
    let difference = human_chain::render_difference(&session.circle, &view.proposal);
    let names = |members: &[protocol::MemberId]| {
        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
        if names.is_empty() { "no member".to_string() } else { names.join(", ") }
    };
    format!(
        "{}\nChanges\n{difference}\n\nwords: {}\nstate: {}; approved by {}; rejected by {}{}",
        rendering.text,
        rendering.words.join(" "),
        view.state,
        names(&view.approved),
        names(&view.rejected),
        if view.state == ProposalState::Open {
            format!("\n{}", signatures(&session.circle, view))
        } else {
            String::new()
        },
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
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let view = session.find_proposal(&arguments.proposal).await?;
    eprintln!("{}\n", full_text(&session, &view));
    if !arguments.yes && !confirmed(&format!("{choice} as {}? [y/N] ", member.member))? {
        bail!("nothing was signed");
    }
    let view = session.vote(&view.proposal, &member, choice).await?;
    environment.output().print(&view, |view| {
        let outcome = match view.state {
            ProposalState::Open => signatures(&session.circle, view),
            ProposalState::Approved => "quorum reached; the change is in force".into(),
            other => other.to_string(),
        };
        format!("recorded: {choice} by {}\n{outcome}", member.member)
    });
    share_after(&session, &member).await;
    Ok(())
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("standard input is not a terminal; use --yes to sign without confirmation");
    }
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a threshold rule, as `describe` renders it.
    fn rule(required: u32, of: &[Quorum]) -> Quorum {
        Quorum::Threshold { required, of: of.to_vec() }
    }

    #[test]
    fn needed_signatures_are_counted_and_not_eligible_members() {
        let [a, b, c, d] =
            ["alice", "bob", "carol", "dave"].map(|name| Quorum::Member(name.parse().expect("a name")));
        let two = rule(2, &[a.clone(), b.clone(), c.clone()]);
        let nested = rule(2, &[a, rule(2, &[b, c]), d]);
        for (rule, approved, missing, expected) in [
            (
                &two,
                "",
                "alice bob carol",
                "0 of 2 signed; 2 more signatures needed; alice, bob or carol may sign",
            ),
            (&two, "alice", "bob carol", "1 of 2 signed; 1 more signature needed; bob or carol may sign"),
            (&two, "alice", "carol", "1 of 2 signed; 1 more signature needed; carol may sign"),
            (&two, "", "bob carol", "0 of 2 signed; 2 more signatures needed; bob and carol may sign"),
            (&two, "alice", "bob dave", "1 of 2 signed; 1 more signature needed; bob may sign"),
            (&two, "", "carol", "2 of (alice, bob, carol) can no longer be reached"),
            (
                &nested,
                "bob",
                "alice carol dave",
                "1 of 3 signed; 2 more signatures needed; alice, carol or dave may sign",
            ),
        ] {
            let names = |text: &str| -> Vec<MemberId> {
                text.split_whitespace().map(|name| name.parse().expect("a name")).collect()
            };
            assert_eq!(signatures_under(rule, &names(approved), &names(missing)), expected);
        }
    }
}

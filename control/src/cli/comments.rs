//! `quorate ask` and `quorate answer`: questions about a proposal, signed by members, read beside its text.

use super::Environment;
use super::sharing::member_key;
use crate::reviewed::ReviewedProposal;
use crate::session::Session;
use anyhow::Result;
use clap::Args;
use human_chain::{CommentThread, render_thread};
use protocol::{CommentId, Refusal, error_code};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  quorate ask 7f3a 'why six replicas?'

All members read it with `quorate review 7f3a` until the vote ends. It counts for nothing.")]
pub(crate) struct AskArguments {
    /// Id of the proposal or draft, or its first digits
    proposal: String,
    /// Question, at most 1024 bytes
    text: String,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  quorate answer 7f3a 51c0 'the archive grows by a third'")]
pub(crate) struct AnswerArguments {
    /// Id of the proposal or draft, or its first digits
    proposal: String,
    /// Id of the question, or its first digits; `quorate review` shows it
    question: String,
    /// Answer, at most 1024 bytes
    text: String,
    /// Key file of the member [default: the context's]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

pub(crate) async fn ask(arguments: AskArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let proposal = session.find_proposal(&arguments.proposal).await?;
    let shown = session.comment(proposal.view.id, &member, None, arguments.text).await?;
    print_thread(environment, &shown);
    Ok(())
}

pub(crate) async fn answer(arguments: AnswerArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let member = member_key(&context, arguments.key)?;
    let session = Session::open(&context).await?;
    let proposal = session.find_proposal(&arguments.proposal).await?;
    let question = find_question(&proposal.thread, &arguments.question)?;
    let shown = session.comment(proposal.view.id, &member, Some(question), arguments.text).await?;
    print_thread(environment, &shown);
    Ok(())
}

/// Finds a question by the first digits of its id, among those that were verified here.
fn find_question(thread: &CommentThread, prefix: &str) -> Result<CommentId, Refusal> {
    let ids = thread.questions.iter().map(|question| question.asked.id());
    let mut found = ids.filter(|id| id.to_string().starts_with(prefix));
    let not_found = |message: String| Refusal::new(error_code::QUESTION_NOT_FOUND, message);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (Some(_), Some(_)) => {
            Err(not_found(format!("several questions begin with `{prefix}`; give more digits")))
        }
        (None, _) => Err(not_found(format!("the proposal has no question that begins with `{prefix}`"))),
    }
}

fn print_thread(environment: &Environment, shown: &ReviewedProposal) {
    environment.output().print(shown, |shown| render_thread(&shown.thread).trim_end().to_string());
}

//! `quorate inbox`: the proposals, drafts and changes that wait for a member, once or as they come; with
//! `--watch` also as signed webhooks and mail.
//!
//! The watcher trusts no server: it verifies the history, computes ids and words itself, and counts votes
//! from their ballots. A hostile control can hide a proposal from it, and invent none of another circle. It
//! never votes. With a member's key it also shares the keys of models with admitted parties that lack them.

mod announce;
mod deliver;
mod delivered;
mod mail;
mod stage;
#[cfg(test)]
mod watching;
mod webhook;

use super::Environment;
use super::failure::{code_of, is_silence};
use super::output::{Output, table};
use super::sharing::{member_key, share_after};
use crate::context::Context;
use crate::member_key::MemberKey;
use crate::print;
use crate::reviewed::ReviewedProposal;
use crate::session::Session;
use crate::terminal;
use announce::{Announced, Announcement};
use anyhow::Result;
use clap::Args;
use deliver::{Notice, deliver};
use delivered::DeliveredNotices;
use host::Clock;
use human_chain::{is_vetoable, show_time, waiting_ms};
use mail::{MailAddress, MailProgram};
use protocol::api::{Page, ProposalView};
use protocol::governance::Choice;
use protocol::{Digest, MemberId, Millis};
use stage::{NoticeId, WaitingStage};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use webhook::Webhook;

/// Interval between two looks at the list of proposals. A vote takes minutes at least.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two rounds of sharing models' keys, each of which verifies the history again.
const SHARE_INTERVAL: Duration = Duration::from_secs(60);
/// Most notices on their way at the same time: one for each open proposal that control keeps.
const NOTICES_MAX: usize = 256;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate inbox                                 what waits for you
  quorate inbox --watch --key alice.key         print what comes, and share models' keys
  quorate inbox --watch --webhook https://chat.example.org/hook --webhook-secret-file hook.secret
  quorate inbox --watch --mail-to alice@example.org")]
pub(crate) struct InboxArguments {
    /// Key file of the member [default: the context's; without one, every open proposal is listed]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Keep running, and print each proposal, draft and vetoable change once
    #[arg(long)]
    watch: bool,
    /// Address in the links [default: that of the context's first control replica]
    #[arg(long, value_name = "URL")]
    link: Option<String>,
    /// Address to which each proposal is posted, signed as Standard Webhooks has it
    #[arg(long, value_name = "URL", requires_all = ["watch", "webhook_secret_file"])]
    webhook: Option<String>,
    /// File with the secret that signs the posts: `whsec_` and base64
    #[arg(long, value_name = "FILE", requires = "webhook")]
    webhook_secret_file: Option<PathBuf>,
    /// Address to which each proposal is mailed; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "watch")]
    mail_to: Vec<MailAddress>,
    /// Program that takes a message as sendmail does, called without a shell
    #[arg(long, value_name = "PROGRAM", default_value = "sendmail", requires = "mail_to")]
    mail_command: PathBuf,
}

pub(crate) async fn run(arguments: InboxArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    let is_member = arguments.key.is_some() || context.member_key_file.is_some();
    let member = is_member.then(|| member_key(&context, arguments.key.clone())).transpose()?;
    let notices = notices(&arguments, &context)?;
    let link = arguments.link.clone().or_else(|| context.control.first().cloned()).unwrap_or_default();
    let session = Session::open(&context).await?;
    let clock = Clock::machine();
    let mut inbox = Inbox { session, member, link, announced: Announced::default(), clock };
    if arguments.watch {
        let mut delivered = DeliveredNotices::open(&context);
        return watch(&mut inbox, &notices, &mut delivered, environment.output()).await;
    }
    let page = Page::whole(inbox.look().await?);
    environment.output().print(&page, |page| list_text(&page.items));
    Ok(())
}

/// Returns the ways on which proposals are announced beside the output.
fn notices(arguments: &InboxArguments, context: &Context) -> Result<Vec<Arc<Notice>>> {
    let mut notices = Vec::new();
    if let (Some(url), Some(file)) = (&arguments.webhook, &arguments.webhook_secret_file) {
        notices.push(Arc::new(Notice::Webhook(Box::new(Webhook::new(url, file)?))));
    }
    if !arguments.mail_to.is_empty() {
        let (program, to) = (arguments.mail_command.clone(), arguments.mail_to.clone());
        let circle = context.circle.short();
        notices.push(Arc::new(Notice::Mail(MailProgram { program, to, circle })));
    }
    Ok(notices)
}

/// A member's inbox over a verified session.
struct Inbox {
    session: Session,
    member: Option<MemberKey>,
    /// Beginning of every link.
    link: String,
    announced: Announced,
    clock: Clock,
}

impl Inbox {
    /// Returns what waits and was not announced before: proposals, drafts, and changes with an open veto.
    ///
    /// # Errors
    /// If control does not answer, or shows what does not verify.
    async fn look(&mut self) -> Result<Vec<Announcement>> {
        let views: Vec<ProposalView> = self.session.client.list("/v1/proposals").await?;
        let member = self.member.as_ref().map(|key| key.member.clone());
        let new_stage = |view: &ProposalView| {
            let stage = WaitingStage::of(view.state)?;
            // A member may veto what was approved in its name: its key may have been stolen.
            let is_done = stage != WaitingStage::Veto && claims_vote_of(view, member.as_ref());
            let is_known = self.announced.contains(&NoticeId { proposal: view.id, stage });
            (!is_done && !is_known).then_some(stage)
        };
        let staged = views.into_iter().filter_map(|view| Some((new_stage(&view)?, view)));
        let new: Vec<(WaitingStage, ProposalView)> = staged.collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        self.session = self.session.refresh().await?;
        let now = self.clock.wall();
        let mut present = Vec::new();
        for (stage, view) in new {
            let reviewed = ReviewedProposal::with_decision(&self.session.circle, None, view)?;
            if self.waits(stage, &reviewed) {
                let end = self.end_of(stage, &reviewed, now);
                present.push(Announcement::new(&reviewed, stage, end, &self.link));
            }
        }
        Ok(self.announced.take_new(present, now))
    }

    /// Returns whether a proposal waits for this member, or without one for any. A veto is open only if the
    /// ballots bear out the quorum here.
    fn waits(&self, stage: WaitingStage, reviewed: &ReviewedProposal) -> bool {
        let (circle, member) = (&self.session.circle, self.member.as_ref().map(|key| &key.member));
        match (stage, member) {
            (WaitingStage::Veto, member) => {
                let may_veto = |member| reviewed.may_be_vetoed_by(circle, member);
                let is_carried =
                    reviewed.quorum_reached && is_vetoable(circle, &reviewed.view.proposal.change);
                is_carried && member.is_none_or(may_veto)
            }
            (WaitingStage::Draft | WaitingStage::Vote, Some(_)) => reviewed.waits_for(circle, member),
            (WaitingStage::Draft | WaitingStage::Vote, None) => !reviewed.quorum_reached,
        }
    }

    /// Returns the end of the wait. That of a veto follows from the last approval that counts here. Control
    /// counts from its own clock, and rightly later if the holders of stolen keys have antedated their
    /// approvals; a waiting time from now is the most that it can claim.
    fn end_of(&self, stage: WaitingStage, reviewed: &ReviewedProposal, now: Millis) -> Millis {
        let view = &reviewed.view;
        if stage != WaitingStage::Veto {
            return view.proposal.expires_at;
        }
        let waiting = waiting_ms(&self.session.circle, &view.proposal.change);
        let approvals = reviewed.counted.iter().filter(|signed| signed.ballot.choice == Choice::Approve);
        let decided_at = approvals.map(|signed| signed.ballot.issued_at).max().unwrap_or(now);
        let claimed = view.takes_effect_at.unwrap_or_default().min(now.plus(waiting));
        decided_at.plus(waiting).max(claimed)
    }
}

/// Returns whether control shows a ballot in this member's name. If it is forged, control hides the proposal,
/// as it could by leaving it out; each look is spared the signatures of what the member has voted on.
fn claims_vote_of(view: &ProposalView, member: Option<&MemberId>) -> bool {
    member.is_some_and(|member| view.ballots.iter().any(|signed| signed.ballot.member == *member))
}

/// A notice whose attempts have ended: its way, its name, the end of the wait, and what became of it.
type NoticeOutcome = (Digest, NoticeId, Millis, Result<(), String>);

/// Announces what begins to wait, until the process ends. On the output each start lists what waits; a notice
/// that was delivered on another way is not sent again.
async fn watch(
    inbox: &mut Inbox,
    notices: &[Arc<Notice>],
    delivered: &mut DeliveredNotices,
    output: Output,
) -> Result<()> {
    let (mut outgoing, mut silence) = (JoinSet::new(), None);
    let mut share_at = Instant::now();
    loop {
        match inbox.look().await {
            Ok(new) => {
                silence = None;
                for announcement in new {
                    print(output, &announcement);
                    send(&mut outgoing, notices, delivered, &announcement, &inbox.clock);
                }
            }
            Err(error) if code_of(&error).is_some_and(is_silence) => {
                let reason = terminal::line(&format!("{error:#}"));
                if silence.as_ref() != Some(&reason) {
                    print::err(format_args!("note: {reason}; watching on"));
                }
                silence = Some(reason);
            }
            Err(error) => return Err(error),
        }
        if let Some(member) =
            inbox.member.as_ref().filter(|_| silence.is_none() && share_at <= Instant::now())
        {
            share_after(&inbox.session, member).await;
            share_at = Instant::now() + SHARE_INTERVAL;
        }
        pause(&mut outgoing, delivered, &inbox.clock).await;
    }
}

/// Waits until the next look. Records the notices whose attempts have ended, and reports those that failed.
async fn pause(outgoing: &mut JoinSet<NoticeOutcome>, delivered: &mut DeliveredNotices, clock: &Clock) {
    let next = Instant::now() + POLL_INTERVAL;
    let note = |reason: &str| print::err(format_args!("note: {}", terminal::line(reason)));
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => return,
            Some(done) = outgoing.join_next() => {
                let Ok((way, id, expires_at, outcome)) = done else { continue };
                if let Err(reason) = outcome {
                    note(&reason);
                }
                if let Err(error) = delivered.record(&way, id, expires_at, clock.wall()) {
                    note(&format!("{error:#}; the next watcher may send it again"));
                }
            }
        }
    }
}

fn send(
    outgoing: &mut JoinSet<NoticeOutcome>,
    notices: &[Arc<Notice>],
    delivered: &DeliveredNotices,
    announcement: &Announcement,
    clock: &Clock,
) {
    let (id, expires_at) = (announcement.notice(), announcement.expires_at);
    for notice in notices {
        let way = notice.way();
        if delivered.contains(&way, &id) {
            continue;
        }
        if outgoing.len() >= NOTICES_MAX {
            print::err(format_args!(
                "note: {NOTICES_MAX} notices are on their way; {} is sent to none",
                announcement.id.short()
            ));
            return;
        }
        let (notice, announcement, clock) = (notice.clone(), announcement.clone(), clock.clone());
        outgoing.spawn(async move {
            let sent = deliver(&announcement, || clock.wall(), || notice.send(&announcement)).await;
            (way, id, expires_at, sent)
        });
    }
}

/// Prints one announcement: as text, or as one line of JSON.
fn print(output: Output, announcement: &Announcement) {
    match output {
        Output::Text => print::out(format_args!("{}\n", terminal::lines(&announcement.text()))),
        Output::Json => {
            let line = serde_json::to_string(announcement).expect("an announcement is JSON");
            print::out(terminal::json(&line));
        }
    }
}

fn list_text(list: &[Announcement]) -> String {
    if list.is_empty() {
        return "nothing waits for you".into();
    }
    let row = |item: &Announcement| {
        let words = item.words.join(" ");
        let asked = if item.open_questions == 0 { String::new() } else { item.open_questions.to_string() };
        let (id, until) = (item.id.short(), show_time(item.expires_at));
        vec![id, item.stage.awaited().into(), until, words, asked, item.change.clone()]
    };
    let columns = ["proposal", "waits for", "until", "words", "asked", "change"];
    table(&columns, list.iter().map(row).collect())
}

#[cfg(test)]
mod tests;

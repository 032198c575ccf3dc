//! `quorate console`: the circle's pages from the member's own machine, over a history that it verified; and
//! `quorate console link`, a link to the console of a replica.

use super::Environment;
use super::failure::{code_of, is_silence};
use super::halts::{CollectedHalt, collect, send};
use super::sharing::{member_key, share_after};
use crate::client::ClientError;
use crate::context::Context;
use crate::member_key::MemberKey;
use crate::print;
use crate::session::{PROPOSAL_LIFETIME_MS, Session};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use console::{
    BackendAnswer, ChangeOutlook, CircleReading, ClusterReport, Console, ConsoleBackend, HaltRecord,
    HaltReport, PageSource, ProposalRecord, SignIn, Visitor, WebOrigins, is_about, model_root,
};
use host::{Clock, wall_clock};
use human_chain::{check_in_time, show_duration, show_time, sign_ballot, sign_comment, sign_halt};
use overlay::CancellationToken;
use overlay::people::KeyExchanges;
use protocol::agent::PendingNode;
use protocol::api::{
    AuditEvent, ConsoleLink, DryRunRequest, NodeView, Page, ProposalState, ProposalView, ServiceView, Status,
};
use protocol::comment::{Comment, SignedComment};
use protocol::governance::{Ballot, Bundle, Change, Proposal, SignedBallot};
use protocol::halt::{Halt, SignedHalt};
use protocol::job_api::{JobLogPage, JobView};
use protocol::job_data::JobDataView;
use protocol::model::ModelRecord;
use protocol::project::ProjectList;
use protocol::{JobId, Millis, ProposalId, Refusal, error_code};
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  quorate console                          read and vote in a browser of this machine
  quorate console --key member-a.key
  quorate console link                     a link to the console of a control replica, to read there"
)]
pub(crate) struct ConsoleArguments {
    /// Port on this machine; the pages are open to this machine alone. 0 takes a free one
    #[arg(long, default_value_t = 7607)]
    port: u16,
    /// Key file of the member [default: the context's; without one the pages are only read]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<ConsoleCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConsoleCommand {
    /// Print a link that signs one browser in at a control replica's console, once, for five minutes
    #[command(after_help = "Example:\n  quorate console link")]
    Link,
}

pub(crate) async fn run(arguments: ConsoleArguments, environment: &Environment) -> Result<()> {
    let context = environment.context()?;
    match arguments.command {
        Some(ConsoleCommand::Link) => {
            let link: ConsoleLink = context.client()?.query("/v1/console/links", &()).await?;
            environment.output().print(&link, |link| {
                let minutes = link.expires_in_seconds / 60;
                format!(
                    "{}\nopens once, for {minutes} minutes, with the rights of your access token",
                    link.url
                )
            });
            Ok(())
        }
        None => serve(&context, arguments).await,
    }
}

/// Serves the pages until the process ends.
async fn serve(context: &Context, arguments: ConsoleArguments) -> Result<()> {
    let is_member = arguments.key.is_some() || context.member_key_file.is_some();
    let member = is_member.then(|| member_key(context, arguments.key)).transpose()?;
    let session = open(context).await?;
    let listener = super::daemons::listen(&format!("127.0.0.1:{}", arguments.port)).await?;
    let origins = WebOrigins::of_localhost(listener.local_addr()?.port());
    let sign_in = Arc::new(SignIn::new(Clock::machine()));
    let owner = Visitor::Owner { member: member.as_ref().map(|key| key.member.clone()) };
    let link = origins.sign_in_url(&sign_in.create_link(owner));
    print::out(format_args!("console of {}, verified on this machine", crate::terminal::line(&context.name)));
    print::out(format_args!("open {link}"));
    print::out("opens once, for five minutes; Ctrl-C stops the console");
    let router = router(session, member, sign_in, origins);
    let limits = overlay::Limits::default();
    let (exchanges, running) = (Arc::new(KeyExchanges::default()), CancellationToken::new());
    overlay::people::serve(listener, None, limits, router, exchanges, running)
        .await
        .context("serve the console")
}

/// Opens a session. Without a leader it is over the state that this machine keeps: a member reads that, and
/// halts by it, also in the night in which no replica or one is left.
async fn open(context: &Context) -> Result<Session> {
    let error = match Session::open(context).await {
        Ok(session) => return Ok(session),
        Err(error) => error,
    };
    if !code_of(&error).is_some_and(is_silence) {
        return Err(error);
    }
    let Some(session) = Session::kept(context).await? else {
        return Err(error.context("this machine keeps no verified history to show instead"));
    };
    print::err(format_args!("note: {}", age_note(session.confirmed_at(), wall_clock())));
    Ok(session)
}

/// Says how old a history may be that no leader confirms.
fn age_note(confirmed_at: Option<Millis>, now: Millis) -> String {
    let since = match confirmed_at {
        Some(at) => {
            let age = show_duration(now.0.saturating_sub(at.0) / 1000);
            let (at, age) = (show_time(at), age.split(" (").next().unwrap_or_default().to_string());
            format!("a leader confirmed it last at {}, {age} ago", at.split(" (").next().unwrap_or_default())
        }
        None => "no leader has confirmed it here".into(),
    };
    format!("No leader answers. This is the history as verified on this machine; {since}.")
}

/// Returns the routes of a console over this session.
pub(super) fn router(
    session: Session,
    member: Option<MemberKey>,
    sign_in: Arc<SignIn>,
    origins: WebOrigins,
) -> axum::Router {
    let backend = MemberBackend { session: Mutex::new(Arc::new(session)), member, silence: Mutex::default() };
    console::router(Arc::new(Console::new(Arc::new(backend), sign_in, origins)))
}

/// Most decisions that are fetched to find those about one subject: a few pages of the history.
const DECISIONS_SEARCHED_MAX: usize = 256;

/// Time for which a page does not ask for a leader again after a search without success: a page asks several
/// times, and each search takes seconds.
const SILENCE_REMEMBERED: Duration = Duration::from_secs(3);

/// A member's own binary as the source of the pages.
struct MemberBackend {
    /// The session that was verified last.
    session: Mutex<Arc<Session>>,
    member: Option<MemberKey>,
    /// The last search for a leader without success, and its end.
    silence: Mutex<Option<(Instant, Refusal)>>,
}

/// Returns an error of the client as a refusal.
fn refused(error: impl Into<anyhow::Error>) -> Refusal {
    let error = error.into();
    Refusal::new(code_of(&error).unwrap_or(error_code::CONTROL_UNAVAILABLE), format!("{error:#}"))
}

/// Checks that control shows what it was sent.
fn check_shown(is_shown: bool) -> Result<(), Refusal> {
    if is_shown {
        return Ok(());
    }
    let message = "control does not show what it took; look at the proposal again";
    Err(Refusal::new(error_code::OUTCOME_UNKNOWN, message))
}

impl MemberBackend {
    fn session(&self) -> Arc<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what control lists of a job under this part of its path; nothing if control does not know it.
    async fn of_job<T: DeserializeOwned>(&self, id: JobId, part: &str) -> Result<Vec<T>, Refusal> {
        match self.session().client.get::<Page<T>>(&format!("/v1/jobs/{id}/{part}")).await {
            Err(ClientError::Refused(problem)) if problem.code == error_code::JOB_NOT_FOUND.as_str() => {
                Ok(Vec::new())
            }
            page => page.map(|page| page.items).map_err(refused),
        }
    }

    /// Asks a question that only a leader answers. After a search without success, the next questions fail at
    /// once.
    async fn ask<T>(&self, question: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let known = self.silence.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, refusal)) = known.filter(|(ended, _)| ended.elapsed() < SILENCE_REMEMBERED) {
            return Err(refusal);
        }
        let answer = question.await;
        let silent = answer.as_ref().err().filter(|refusal| is_silence(refusal.code));
        let silence = silent.map(|refusal| (Instant::now(), refusal.clone()));
        *self.silence.lock().unwrap_or_else(PoisonError::into_inner) = silence;
        answer
    }

    /// Fetches the history again and verifies that it continues the one that was verified last. Without a
    /// leader the last one stays, and what other replicas add to it: a member reads it and halts by it. A
    /// history that ends earlier is refused.
    async fn refresh(&self) -> Result<CircleReading, Refusal> {
        let last = self.session();
        let (session, note) = match self.ask(async { last.refresh().await.map_err(refused) }).await {
            Ok(session) => (session, None),
            Err(refusal) if is_silence(refusal.code) => {
                let session = last.refresh_without_leader().await.map_err(refused)?;
                let note = age_note(session.confirmed_at(), wall_clock());
                (session, Some(note))
            }
            Err(refusal) => return Err(refusal),
        };
        let (state, session) = (session.circle.clone(), Arc::new(session));
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
        Ok(CircleReading { state: Arc::new(state), note })
    }

    /// Asks every replica for its halts and verifies each here.
    async fn collect_halts(&self) -> Result<HaltReport, Refusal> {
        let session = self.session();
        let collected = collect(&session.client).await.map_err(refused)?;
        let answered = collected.replicas - collected.silent.len();
        let record = |halt: CollectedHalt| {
            let (signed, urls, verified) = halt.judged(Some(&session.circle));
            HaltRecord { verified, replicas: Some((urls.len(), answered)), signed: signed.clone() }
        };
        let note = (!collected.silent.is_empty()).then(|| collected.silent.join("; "));
        Ok(HaltReport { halts: collected.halts.into_values().map(record).collect(), note })
    }

    async fn open(&self) -> Result<Vec<ProposalView>, Refusal> {
        let session = self.session();
        let listed = async { session.client.list("/v1/proposals").await.map_err(refused) };
        let views: Vec<ProposalView> = self.ask(listed).await?;
        let is_pending = |view: &ProposalView| {
            matches!(view.state, ProposalState::Open | ProposalState::Waiting | ProposalState::Draft)
        };
        Ok(views.into_iter().filter(is_pending).collect())
    }

    async fn find(&self, id: ProposalId) -> Result<Option<ProposalRecord>, Refusal> {
        let session = self.session();
        let view: ProposalView = match session.client.get(&format!("/v1/proposals/{id}")).await {
            Err(ClientError::Refused(problem)) if problem.code == error_code::PROPOSAL_NOT_FOUND.as_str() => {
                return Ok(None);
            }
            answer => answer.map_err(refused)?,
        };
        let certificate = session.decision_on(&view.proposal.id()).await.map_err(refused)?;
        Ok(Some(ProposalRecord { view, certificate }))
    }

    /// Has the leader place a deployment in a simulation, and asks for the record of its model.
    async fn simulate(&self, change: &Change) -> ChangeOutlook {
        let client = self.session().client.clone();
        let Some(root) = model_root(change) else { return ChangeOutlook::default() };
        let models = client.list::<ModelRecord>("/v1/models").await.unwrap_or_default();
        let model = models.into_iter().find(|record| record.root == root);
        let Change::Deploy(manifest) = change else {
            return ChangeOutlook { model, ..ChangeOutlook::default() };
        };
        let body = DryRunRequest { manifest: manifest.as_ref().clone() };
        let (placement, note) = match client.query("/v1/dry-run", &body).await {
            Ok(run) => (Some(run), None),
            Err(error) => (None, Some(error.to_string())),
        };
        ChangeOutlook { placement, model, note }
    }

    async fn report(&self) -> ClusterReport {
        let client = &self.session().client;
        // The search for a leader without success is the reason for all that is missing.
        if let Err(refusal) = self.ask(async { Ok(()) }).await {
            return ClusterReport { note: Some(refusal.message), ..ClusterReport::default() };
        }
        let (status, services, nodes) = tokio::join!(
            client.get::<Status>("/v1/status"),
            client.get::<Page<ServiceView>>("/v1/services"),
            client.get::<Page<NodeView>>("/v1/nodes"),
        );
        let failed = [status.as_ref().err(), services.as_ref().err(), nodes.as_ref().err()];
        let note = failed.into_iter().flatten().next().map(ToString::to_string);
        ClusterReport {
            status: status.ok(),
            services: services.map(|page| page.items).unwrap_or_default(),
            nodes: nodes.map(|page| page.items).unwrap_or_default(),
            note,
        }
    }

    /// Delivers a ballot; control must show it. The member's key then also serves parties that lack keys.
    async fn cast(&self, ballot: SignedBallot) -> Result<(), Refusal> {
        let session = self.session();
        let path = format!("/v1/proposals/{}/ballots", ballot.ballot.proposal);
        let view: ProposalView = session.client.post(&path, &ballot).await.map_err(refused)?;
        check_shown(view.ballots.contains(&ballot))?;
        if let Some(member) = &self.member {
            share_after(&session, member).await;
        }
        Ok(())
    }
}

impl ConsoleBackend for MemberBackend {
    fn source(&self) -> PageSource {
        PageSource::OwnMachine
    }

    fn circle(&self) -> BackendAnswer<'_, CircleReading> {
        Box::pin(self.refresh())
    }

    fn last_circle(&self) -> Result<CircleReading, Refusal> {
        Ok(CircleReading { state: Arc::new(self.session().circle.clone()), note: None })
    }

    fn open_proposals(&self) -> BackendAnswer<'_, Vec<ProposalView>> {
        Box::pin(self.open())
    }

    fn proposal(&self, id: ProposalId) -> BackendAnswer<'_, Option<ProposalRecord>> {
        Box::pin(self.find(id))
    }

    fn decisions(&self, before: u64, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        Box::pin(async move {
            let session = self.session();
            let end = before.min(session.circle.length() + 1);
            let mut next = end.saturating_sub(count as u64).max(1);
            let mut page = Vec::new();
            while next < end {
                let left = usize::try_from(end - next).unwrap_or(usize::MAX);
                let asked = async { session.decisions(next, left).await.map_err(refused) };
                let bundles = match self.ask(asked).await {
                    Err(refusal) if is_silence(refusal.code) => {
                        session.decisions_of_any(next, left).await.map_err(refused)?
                    }
                    bundles => bundles?,
                };
                page.extend((next..).zip(bundles));
                next = page.last().map_or(end, |(number, _)| number + 1);
            }
            page.reverse();
            Ok(page)
        })
    }

    fn decisions_on(&self, subject: String, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        Box::pin(async move {
            let latest = self.decisions(u64::MAX, DECISIONS_SEARCHED_MAX).await?;
            Ok(latest.into_iter().filter(|(_, bundle)| is_about(bundle, &subject)).take(count).collect())
        })
    }

    fn outlook<'a>(&'a self, change: &'a Change) -> BackendAnswer<'a, ChangeOutlook> {
        Box::pin(async move { Ok(self.simulate(change).await) })
    }

    fn cluster(&self) -> BackendAnswer<'_, ClusterReport> {
        Box::pin(async { Ok(self.report().await) })
    }

    fn pending_nodes(&self) -> BackendAnswer<'_, Vec<PendingNode>> {
        Box::pin(async {
            let page: Page<PendingNode> =
                self.session().client.get("/v1/pending-nodes").await.map_err(refused)?;
            Ok(page.items)
        })
    }

    fn jobs(&self) -> BackendAnswer<'_, Vec<JobView>> {
        Box::pin(async {
            let session = self.session();
            let listed = async { session.client.get::<Page<JobView>>("/v1/jobs").await.map_err(refused) };
            Ok(self.ask(listed).await?.items)
        })
    }

    fn job(&self, id: JobId) -> BackendAnswer<'_, Option<JobView>> {
        Box::pin(async move {
            match self.session().client.get(&format!("/v1/jobs/{id}")).await {
                Err(ClientError::Refused(problem)) if problem.code == error_code::JOB_NOT_FOUND.as_str() => {
                    Ok(None)
                }
                view => view.map(Some).map_err(refused),
            }
        })
    }

    fn job_lines(&self, id: JobId, after: u64) -> BackendAnswer<'_, JobLogPage> {
        Box::pin(async move {
            let path = format!("/v1/jobs/{id}/logs?after={after}");
            self.session().client.get(&path).await.map_err(refused)
        })
    }

    fn job_data(&self, id: JobId) -> BackendAnswer<'_, Vec<JobDataView>> {
        Box::pin(async move { self.of_job(id, "data").await })
    }

    fn job_events(&self, id: JobId) -> BackendAnswer<'_, Vec<AuditEvent>> {
        Box::pin(async move { self.of_job(id, "events").await })
    }

    fn projects(&self) -> BackendAnswer<'_, ProjectList> {
        Box::pin(async {
            let session = self.session();
            self.ask(async { session.client.get("/v1/projects").await.map_err(refused) }).await
        })
    }

    fn halts(&self) -> BackendAnswer<'_, HaltReport> {
        Box::pin(self.collect_halts())
    }

    fn sign(&self, proposal: &Proposal, ballot: Ballot) -> Result<Option<SignedBallot>, Refusal> {
        let own = self.member.as_ref().filter(|key| key.member == ballot.member);
        let Some(key) = own else { return Ok(None) };
        let choice = ballot.choice;
        let signed = sign_ballot(&key.signer, proposal, ballot)?;
        check_in_time(&self.session().circle, proposal, choice, wall_clock())?;
        Ok(Some(signed))
    }

    fn sign_halt(&self, halt: Halt) -> Result<Option<SignedHalt>, Refusal> {
        self.member.as_ref().map(|key| sign_halt(&key.signer, halt)).transpose()
    }

    fn sign_comment(&self, comment: Comment) -> Result<Option<SignedComment>, Refusal> {
        self.member.as_ref().map(|key| sign_comment(&key.signer, comment)).transpose()
    }

    fn holds_key(&self) -> bool {
        self.member.is_some()
    }

    fn propose(&self, change: Change, reason: String) -> BackendAnswer<'_, ProposalId> {
        Box::pin(async move {
            let session = self.session();
            let proposed = session.propose(change, reason, PROPOSAL_LIFETIME_MS).await.map_err(refused)?;
            Ok(proposed.view.id)
        })
    }

    fn deliver(&self, ballot: SignedBallot) -> BackendAnswer<'_, ()> {
        Box::pin(self.cast(ballot))
    }

    fn deliver_comment(&self, comment: SignedComment) -> BackendAnswer<'_, ()> {
        Box::pin(async move {
            let session = self.session();
            let path = format!("/v1/proposals/{}/comments", comment.comment.proposal);
            let view: ProposalView = session.client.post(&path, &comment).await.map_err(refused)?;
            check_shown(view.comments.iter().any(|kept| kept.comment == comment.comment))
        })
    }

    fn deliver_halt(&self, halt: SignedHalt) -> BackendAnswer<'_, ()> {
        Box::pin(async move {
            let session = self.session();
            send(&session.client, halt).await.map(drop).map_err(refused)
        })
    }

    fn admits(&self, visitor: &Visitor) -> bool {
        let own = self.member.as_ref().map(|key| &key.member);
        matches!(visitor, Visitor::Owner { member } if member.as_ref() == own)
    }
}

#[cfg(test)]
mod tests;

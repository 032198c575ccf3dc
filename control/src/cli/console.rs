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
use human_chain::{CircleState, sign_ballot, sign_halt, unsigned_ballot};
use overlay::CancellationToken;
use overlay::people::KeyExchanges;
use protocol::agent::PendingNode;
use protocol::api::{
    ConsoleLink, DryRunRequest, NodeView, Page, ProposalState, ProposalView, ServiceView, Status,
};
use protocol::governance::{Ballot, Bundle, Change, Choice, Proposal, SignedBallot};
use protocol::halt::{Halt, SignedHalt};
use protocol::model::ModelRecord;
use protocol::{ProposalId, Refusal, error_code};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

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
    let session = Session::open(context).await?;
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

/// Returns the routes of a console over this session.
pub(super) fn router(
    session: Session,
    member: Option<MemberKey>,
    sign_in: Arc<SignIn>,
    origins: WebOrigins,
) -> axum::Router {
    let backend = MemberBackend { session: Mutex::new(Arc::new(session)), member };
    console::router(Arc::new(Console::new(Arc::new(backend), sign_in, origins)))
}

/// Most decisions that are fetched to find those about one subject: a few pages of the history.
const DECISIONS_SEARCHED_MAX: usize = 256;

/// A member's own binary as the source of the pages.
struct MemberBackend {
    /// The session that was verified last.
    session: Mutex<Arc<Session>>,
    member: Option<MemberKey>,
}

/// Returns an error of the client as a refusal.
fn refused(error: impl Into<anyhow::Error>) -> Refusal {
    let error = error.into();
    Refusal::new(code_of(&error).unwrap_or(error_code::CONTROL_UNAVAILABLE), format!("{error:#}"))
}

impl MemberBackend {
    fn session(&self) -> Arc<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the history again and verifies that it continues the one that was verified last. Without a
    /// leader the last one stays: a member reads it and halts by it. A history that ends earlier is refused.
    async fn refresh(&self) -> Result<CircleReading, Refusal> {
        let last = self.session();
        match last.refresh().await.map_err(refused) {
            Ok(session) => {
                let (state, session) = (session.circle.clone(), Arc::new(session));
                *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
                Ok(CircleReading { state: Arc::new(state), note: None })
            }
            Err(refusal) if is_silence(refusal.code) => {
                let note = "No leader shows a newer history than this one, which was verified before.".into();
                Ok(CircleReading { state: Arc::new(last.circle.clone()), note: Some(note) })
            }
            Err(refusal) => Err(refusal),
        }
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
        let views: Vec<ProposalView> = self.session().client.list("/v1/proposals").await.map_err(refused)?;
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
        if !view.ballots.contains(&ballot) {
            let message = "control does not show the ballot that it took; look at the proposal again";
            return Err(Refusal::new(error_code::OUTCOME_UNKNOWN, message));
        }
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
                let bundles = session.decisions(next, left).await.map_err(refused)?;
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

    fn halts(&self) -> BackendAnswer<'_, HaltReport> {
        Box::pin(self.collect_halts())
    }

    fn sign(
        &self,
        circle: &CircleState,
        proposal: &Proposal,
        choice: Choice,
        reason: String,
    ) -> Result<Option<SignedBallot>, Refusal> {
        let Some(key) = &self.member else { return Ok(None) };
        let ballot = unsigned_ballot(key.member.clone(), circle.head(), proposal, choice, wall_clock());
        sign_ballot(&key.signer, proposal, Ballot { reason, ..ballot }).map(Some)
    }

    fn sign_halt(&self, halt: Halt) -> Result<Option<SignedHalt>, Refusal> {
        self.member.as_ref().map(|key| sign_halt(&key.signer, halt)).transpose()
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

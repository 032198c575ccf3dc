//! The console of this replica: its state as pages for people.
//!
//! Every replica serves them, leader or not, after it has applied all that was committed before. Readiness
//! and liveness are reported to the leader alone, so another replica names it instead. Without a leader a
//! page shows what this replica last applied, and says so.

use super::Server;
use super::comments::CommentSubmitter;
use super::problem::{Failure, accepted};
use axum::Router;
use console::{
    BackendAnswer, ChangeOutlook, CircleReading, ClusterReport, Console, ConsoleBackend, HaltRecord,
    HaltReport, PageSource, ProposalRecord, Visitor, WebOrigins, is_about, model_root,
};
use human_chain::CircleState;
use protocol::agent::PendingNode;
use protocol::api::{AuditEvent, ProposalView};
use protocol::comment::{Comment, SignedComment};
use protocol::governance::{Ballot, Bundle, Change, Proposal, SignedBallot};
use protocol::halt::{Halt, SignedHalt};
use protocol::job_api::{JobLogPage, JobView};
use protocol::job_data::JobDataView;
use protocol::project::ProjectList;
use protocol::{ErrorCode, JobId, ProposalId, Refusal, error_code};
use scheduler::{Action, Actor, JobSelection, LeaderView};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time to wait for the leader's confirmation before a page shows the last applied state.
const CURRENT_TIMEOUT: Duration = Duration::from_secs(2);

/// A replica as the source of the pages.
struct ReplicaBackend {
    server: Arc<Server>,
    /// The circle as it was copied last. Pages share the copy until the next decision.
    copied: Mutex<Option<Arc<CircleState>>>,
}

/// Returns the addresses of this replica's console.
pub(super) fn origins(server: &Server) -> WebOrigins {
    let own = server.genesis.genesis.control.iter().find(|replica| replica.id == server.id);
    WebOrigins::of_replica(own.map_or("", |replica| replica.api.as_str()))
}

/// Builds the routes of this replica's console.
pub(super) fn router(server: Arc<Server>) -> Router {
    let (sign_in, origins) = (server.sign_in.clone(), origins(&server));
    let console =
        Console::new(Arc::new(ReplicaBackend { server, copied: Mutex::default() }), sign_in, origins);
    console::router(Arc::new(console))
}

/// Returns a failure of the API as the refusal behind it.
fn refusal_of(failure: &Failure) -> Refusal {
    let problem = failure.problem();
    let code = ErrorCode::find(&problem.code).unwrap_or(error_code::CONTROL_UNAVAILABLE);
    Refusal::new(code, problem.message.clone())
}

impl ReplicaBackend {
    /// Returns the reason for which this replica's state may be old.
    async fn staleness(&self) -> Option<String> {
        let confirmed = tokio::time::timeout(CURRENT_TIMEOUT, self.server.read_barrier()).await;
        match confirmed {
            Ok(Ok(())) => None,
            Ok(Err(_)) | Err(_) => {
                Some("No leader answers: this is the state that this replica last applied.".into())
            }
        }
    }

    fn report(&self) -> ClusterReport {
        let leader = LeaderView { leader: Some(self.server.id), silent: self.server.peers.silent() };
        let viewed = self.server.read_view(|view| ClusterReport {
            status: Some(scheduler::status(view, leader)),
            services: scheduler::service_views(view),
            nodes: scheduler::node_views(view),
            note: None,
        });
        viewed.unwrap_or_else(|_| {
            let id = self.server.handle.status().leader;
            let leader = self.server.genesis.genesis.control.iter().find(|replica| Some(replica.id) == id);
            let note = leader.map_or("no leader reports what is ready".to_string(), |leader| {
                format!("replica {} leads and knows what is ready: {}/console", leader.id, leader.api)
            });
            ClusterReport { note: Some(note), ..ClusterReport::default() }
        })
    }

    /// Places a deployment in a simulation, if this replica leads.
    fn simulate(&self, change: &Change) -> ChangeOutlook {
        let root = model_root(change);
        let models = |root| self.server.cluster(|cluster| cluster.models().get(&root).cloned());
        let model = root.and_then(models);
        let Change::Deploy(manifest) = change else {
            return ChangeOutlook { model, ..ChangeOutlook::default() };
        };
        let (placement, note) = match self.server.read_view(|view| scheduler::dry_run(view, manifest)) {
            Ok(Ok(run)) => (Some(run), None),
            Ok(Err(refusal)) => (None, Some(refusal.message)),
            Err(_) => (None, Some("only the leader simulates it".into())),
        };
        ChangeOutlook { placement, model, note }
    }

    /// Returns the circle's state for pages. It is copied once after each decision, so a visitor without a
    /// session costs no copy.
    fn copy_of(&self, state: &CircleState) -> Arc<CircleState> {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        let present = copied.take().filter(|copy| (copy.id(), copy.head()) == (state.id(), state.head()));
        copied.insert(present.unwrap_or_else(|| Arc::new(state.clone()))).clone()
    }

    async fn comment(&self, signed: SignedComment) -> Result<(), Refusal> {
        let member = signed.comment.member.clone();
        let submitter = CommentSubmitter::Member(member.clone());
        self.server.comments.admit(&submitter).map_err(|failure| refusal_of(&failure))?;
        let action = Action::PutComment(Box::new(signed));
        let reply = self.server.write(Actor::Member(member), action, None).await;
        reply.and_then(accepted).map(|_| ()).map_err(|failure| refusal_of(&failure))
    }

    async fn cast(&self, ballot: SignedBallot) -> Result<(), Refusal> {
        let actor = Actor::Member(ballot.ballot.member.clone());
        let reply = self.server.write(actor, Action::CastBallot(Box::new(ballot)), None).await;
        reply.and_then(accepted).map(|_| ()).map_err(|failure| refusal_of(&failure))
    }

    /// Takes a halt on this replica's disk, from which the other replicas and every node fetch it.
    async fn halt(&self, signed: SignedHalt) -> Result<(), Refusal> {
        let taken = self.server.take_halt(signed).await;
        taken.map(drop).map_err(|failure| refusal_of(&failure))
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BackendAnswer<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}

fn answer<'a, T: Send + 'a>(read: Result<T, Failure>) -> BackendAnswer<'a, T> {
    Box::pin(std::future::ready(read.map_err(|failure| refusal_of(&failure))))
}

impl ConsoleBackend for ReplicaBackend {
    fn source(&self) -> PageSource {
        PageSource::Replica(self.server.id)
    }

    fn circle(&self) -> BackendAnswer<'_, CircleReading> {
        Box::pin(async {
            let note = self.staleness().await;
            Ok(CircleReading { note, ..self.last_circle()? })
        })
    }

    fn last_circle(&self) -> Result<CircleReading, Refusal> {
        let missing = || Refusal::new(error_code::CIRCLE_NOT_FOUNDED, "the circle is being founded; retry");
        let state = self.server.cluster(|cluster| cluster.circle_state().map(|state| self.copy_of(state)));
        Ok(CircleReading { state: state.ok_or_else(missing)?, note: None })
    }

    fn open_proposals(&self) -> BackendAnswer<'_, Vec<ProposalView>> {
        ready(self.server.cluster(|cluster| {
            let pending = cluster.open_proposals().keys().chain(cluster.drafts().keys());
            pending.filter_map(|id| scheduler::proposal_view(cluster, id)).collect()
        }))
    }

    fn proposal(&self, id: ProposalId) -> BackendAnswer<'_, Option<ProposalRecord>> {
        ready(self.server.cluster(|cluster| {
            let view = scheduler::proposal_view(cluster, &id)?;
            let bundle = view.certificate.and_then(|certificate| cluster.bundle(&certificate));
            Some(ProposalRecord { certificate: bundle.map(|bundle| bundle.certificate.clone()), view })
        }))
    }

    fn decisions(&self, before: u64, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        ready(self.server.cluster(|cluster| {
            let chain = (1..).zip(cluster.governance_chain()).take_while(|(number, _)| *number < before);
            let skipped = chain.clone().count().saturating_sub(count);
            let mut page: Vec<_> =
                chain.skip(skipped).map(|(number, bundle)| (number, bundle.clone())).collect();
            page.reverse();
            page
        }))
    }

    fn decisions_on(&self, subject: String, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        ready(self.server.cluster(|cluster| {
            let chain = (1..).zip(cluster.governance_chain());
            let about = chain.filter(|(_, bundle)| is_about(bundle, &subject));
            let mut found: Vec<_> = about.collect();
            let skipped = found.len().saturating_sub(count);
            found.drain(..skipped);
            found.into_iter().rev().map(|(number, bundle)| (number, bundle.clone())).collect()
        }))
    }

    fn outlook<'a>(&'a self, change: &'a Change) -> BackendAnswer<'a, ChangeOutlook> {
        ready(self.simulate(change))
    }

    fn cluster(&self) -> BackendAnswer<'_, ClusterReport> {
        ready(self.report())
    }

    fn pending_nodes(&self) -> BackendAnswer<'_, Vec<PendingNode>> {
        ready(self.server.cluster(|cluster| cluster.pending_nodes().values().cloned().collect()))
    }

    fn jobs(&self) -> BackendAnswer<'_, Vec<JobView>> {
        answer(self.server.read_view(|view| scheduler::job_views(view, &JobSelection::default())))
    }

    fn job(&self, id: JobId) -> BackendAnswer<'_, Option<JobView>> {
        answer(self.server.read_view(|view| scheduler::job_view(view, id)))
    }

    fn job_lines(&self, id: JobId, after: u64) -> BackendAnswer<'_, JobLogPage> {
        answer(self.server.job_lines(id, None, after))
    }

    fn job_data(&self, id: JobId) -> BackendAnswer<'_, Vec<JobDataView>> {
        ready(self.server.cluster(|cluster| scheduler::job_data_views(cluster, id)).unwrap_or_default())
    }

    fn job_events(&self, id: JobId) -> BackendAnswer<'_, Vec<AuditEvent>> {
        let events = self.server.cluster(|cluster| scheduler::job_events(cluster, id, 0, usize::MAX));
        ready(events.unwrap_or_default())
    }

    fn projects(&self) -> BackendAnswer<'_, ProjectList> {
        answer(self.server.read_view(scheduler::project_list))
    }

    fn halts(&self) -> BackendAnswer<'_, HaltReport> {
        let record = |(_, signed)| HaltRecord { signed, verified: true, replicas: None };
        let halts = self.server.halts.listed(None).into_iter().map(record).collect();
        ready(HaltReport { halts, note: None })
    }

    fn sign(&self, _: &Proposal, _: Ballot) -> Result<Option<SignedBallot>, Refusal> {
        Ok(None)
    }

    fn sign_halt(&self, _: Halt) -> Result<Option<SignedHalt>, Refusal> {
        Ok(None)
    }

    fn sign_comment(&self, _: Comment) -> Result<Option<SignedComment>, Refusal> {
        Ok(None)
    }

    fn holds_key(&self) -> bool {
        false
    }

    fn propose(&self, _: Change, _: String) -> BackendAnswer<'_, ProposalId> {
        let refusal = Refusal::new(error_code::CONSOLE_NO_KEY, "a control replica proposes nothing");
        Box::pin(std::future::ready(Err(refusal)))
    }

    fn deliver(&self, ballot: SignedBallot) -> BackendAnswer<'_, ()> {
        Box::pin(self.cast(ballot))
    }

    fn deliver_comment(&self, comment: SignedComment) -> BackendAnswer<'_, ()> {
        Box::pin(self.comment(comment))
    }

    fn deliver_halt(&self, halt: SignedHalt) -> BackendAnswer<'_, ()> {
        Box::pin(self.halt(halt))
    }

    fn admits(&self, visitor: &Visitor) -> bool {
        match visitor {
            Visitor::Owner { .. } => false,
            Visitor::Token { hash, .. } => self.server.standing_token(*hash).is_ok(),
            Visitor::Member { .. } => self.server.cluster(|cluster| {
                cluster.circle_state().is_some_and(|circle| visitor.holds_passkey(circle))
            }),
        }
    }
}

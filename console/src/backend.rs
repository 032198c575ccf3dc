//! The circle and the cluster behind the pages.

use crate::sign_in::Visitor;
use futures::future::BoxFuture;
use human_chain::CircleState;
use protocol::agent::PendingNode;
use protocol::api::{AuditEvent, DryRun, NodeView, ProposalView, ServiceView, Status};
use protocol::comment::{Comment, SignedComment};
use protocol::governance::{Ballot, Bundle, Certificate, Change, Proposal, SignedBallot};
use protocol::halt::{Halt, SignedHalt};
use protocol::job_api::{JobLogPage, JobView};
use protocol::job_data::JobDataView;
use protocol::manifest::Manifest;
use protocol::model::ModelRecord;
use protocol::project::ProjectList;
use protocol::{JobId, ModelRoot, ProposalId, Refusal, ReplicaId};
use std::sync::Arc;

/// Answer of a backend.
pub type BackendAnswer<'a, T> = BoxFuture<'a, Result<T, Refusal>>;

/// Party that vouches for the pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageSource {
    /// A control replica: the pages are as honest as it is.
    Replica(ReplicaId),
    /// The member's own binary, which verified everything from genesis on.
    OwnMachine,
}

/// The circle, and the reason for which it may be older than the cluster's.
#[derive(Debug, Clone)]
pub struct CircleReading {
    pub state: Arc<CircleState>,
    /// Text for people; none if the state is current.
    pub note: Option<String>,
}

/// A proposal with the certificate that decided it.
#[derive(Debug, Clone)]
pub struct ProposalRecord {
    /// The proposal as control reports it.
    pub view: ProposalView,
    /// Its certificate, if the verified history holds one.
    pub certificate: Option<Certificate>,
}

/// State of the cluster as its leader reports it.
#[derive(Debug, Clone, Default)]
pub struct ClusterReport {
    /// Findings and counts; none if no leader answered.
    pub status: Option<Status>,
    /// Services with their slots.
    pub services: Vec<ServiceView>,
    /// Admitted nodes.
    pub nodes: Vec<NodeView>,
    /// Reason for what is missing, for people.
    pub note: Option<String>,
}

/// Effects that a change would have now, as control computes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeOutlook {
    /// Simulated placement of a deployment.
    pub placement: Option<DryRun>,
    /// Record of the model that the change names.
    pub model: Option<ModelRecord>,
    /// Reason for a placement that is missing, for people.
    pub note: Option<String>,
}

/// Returns whether a decision is about this subject.
#[must_use]
pub fn is_about(bundle: &Bundle, subject: &str) -> bool {
    human_chain::subject_of(&bundle.certificate.proposal.change) == subject
}

/// Returns the root of the model that a change names.
#[must_use]
pub fn model_root(change: &Change) -> Option<ModelRoot> {
    match change {
        Change::Deploy(manifest) => match manifest.as_ref() {
            Manifest::Service(service) => Some(service.model.root),
            _ => None,
        },
        Change::ForgetModel { model, .. } => Some(model.root),
        _ => None,
    }
}

/// A halt as a source of the pages knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaltRecord {
    /// The halt with its signature.
    pub signed: SignedHalt,
    /// True if the source verified the signature: a replica when it took the halt, a member's binary now.
    pub verified: bool,
    /// Number of replicas that have it, and of those that answered; none if one replica speaks for itself.
    pub replicas: Option<(usize, usize)>,
}

/// Halts that control replicas have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HaltReport {
    /// Halts by id.
    pub halts: Vec<HaltRecord>,
    /// Reason for what may be missing, for people.
    pub note: Option<String>,
}

/// Source of all that the pages show, and destination of the ballots that they collect.
///
/// A control replica and a member's own binary implement it; the tests have a third one, with fixed values.
pub trait ConsoleBackend: Send + Sync + 'static {
    /// Returns the party that vouches for the pages.
    fn source(&self) -> PageSource;

    /// Returns the circle, verified from genesis on. Each page asks for it first.
    fn circle(&self) -> BackendAnswer<'_, CircleReading>;

    /// Returns the circle as it was read last, without asking any other party: enough to halt by.
    fn last_circle(&self) -> Result<CircleReading, Refusal>;

    /// Returns the proposals that are open for votes, and the drafts.
    fn open_proposals(&self) -> BackendAnswer<'_, Vec<ProposalView>>;

    /// Returns a proposal, open or closed recently.
    fn proposal(&self, id: ProposalId) -> BackendAnswer<'_, Option<ProposalRecord>>;

    /// Returns at most `count` decisions with numbers below `before`, newest first. The first decision after
    /// genesis has the number 1.
    fn decisions(&self, before: u64, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>>;

    /// Returns at most `count` of the latest decisions about a subject, newest first. A client looks through
    /// the latest decisions of the circle alone, since it fetches them.
    fn decisions_on(&self, subject: String, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>>;

    /// Returns what a change would do now.
    fn outlook<'a>(&'a self, change: &'a Change) -> BackendAnswer<'a, ChangeOutlook>;

    /// Returns the state of the cluster. Without a leader the report says so.
    fn cluster(&self) -> BackendAnswer<'_, ClusterReport>;

    /// Returns the nodes that ask for admission.
    fn pending_nodes(&self) -> BackendAnswer<'_, Vec<PendingNode>>;

    /// Returns the jobs that control knows, the latest submission first. Only a leader knows why one waits.
    fn jobs(&self) -> BackendAnswer<'_, Vec<JobView>>;

    /// Returns a job; none if control does not know it.
    fn job(&self, id: JobId) -> BackendAnswer<'_, Option<JobView>>;

    /// Returns lines of a job's ranks after a sequence number, oldest first, in pages of bounded size.
    fn job_lines(&self, id: JobId, after: u64) -> BackendAnswer<'_, JobLogPage>;

    /// Returns the checkpoints of a job, oldest first, and its outputs; nothing if control does not know it.
    fn job_data(&self, id: JobId) -> BackendAnswer<'_, Vec<JobDataView>>;

    /// Returns the events of a job that control keeps, oldest first; nothing if control does not know it.
    fn job_events(&self, id: JobId) -> BackendAnswer<'_, Vec<AuditEvent>>;

    /// Returns the projects with what each holds and held.
    fn projects(&self) -> BackendAnswer<'_, ProjectList>;

    /// Returns the halts that replicas have. It needs neither a leader nor a quorum.
    fn halts(&self) -> BackendAnswer<'_, HaltReport>;

    /// Signs a ballot on this proposal with the key of its member; none if this backend does not hold that
    /// key.
    ///
    /// # Errors
    /// The refusal of the member's external signer, if the key is in one; `proposal-expired` if the signature
    /// is ready only after the end of the vote.
    fn sign(&self, proposal: &Proposal, ballot: Ballot) -> Result<Option<SignedBallot>, Refusal>;

    /// Returns a halt signed by the member whose key this backend holds; none if it holds no key.
    ///
    /// # Errors
    /// As [`ConsoleBackend::sign`].
    fn sign_halt(&self, halt: Halt) -> Result<Option<SignedHalt>, Refusal>;

    /// Returns a comment signed by the member whose key this backend holds; none if it holds no key.
    ///
    /// # Errors
    /// As [`ConsoleBackend::sign`].
    fn sign_comment(&self, comment: Comment) -> Result<Option<SignedComment>, Refusal>;

    /// Returns whether [`ConsoleBackend::sign`] and [`ConsoleBackend::sign_halt`] can sign.
    fn holds_key(&self) -> bool;

    /// Proposes a change of the member whose key this backend holds, and returns the proposal's id.
    fn propose(&self, change: Change, reason: String) -> BackendAnswer<'_, ProposalId>;

    /// Delivers a signed ballot to control.
    fn deliver(&self, ballot: SignedBallot) -> BackendAnswer<'_, ()>;

    /// Delivers a signed comment to control.
    fn deliver_comment(&self, comment: SignedComment) -> BackendAnswer<'_, ()>;

    /// Delivers a signed halt to every replica that this backend reaches. One that has it is enough.
    fn deliver_halt(&self, halt: SignedHalt) -> BackendAnswer<'_, ()>;

    /// Returns whether a visitor who signed in before may still read.
    fn admits(&self, visitor: &Visitor) -> bool;
}

//! Test fixture: a circle of three with a model service, a pending node and a control that may claim what is
//! not so. All is in memory.

use console::{
    BackendAnswer, ChangeOutlook, CircleReading, ClusterReport, Console, ConsoleBackend, HaltRecord,
    HaltReport, PageSource, ProposalRecord, SignIn, Visitor, WebOrigins,
};
use ed25519_dalek::{Signer, SigningKey};
use host::{Clock, wall_clock};
use human_chain::{CircleState, MemberSecret};
use protocol::agent::PendingNode;
use protocol::api::{
    AuditEvent, DryRun, DryRunPlacement, Finding, NodeView, ProposalState, ProposalView, RollOutProgress,
    RollOutView, ServiceView, SlotView, Status,
};
use protocol::comment::{Comment, SignedComment};
use protocol::governance::*;
use protocol::halt::{Halt, HaltScope, SignedHalt};
use protocol::job_api::{JobLogLine, JobLogPage, JobView};
use protocol::job_data::JobDataView;
use protocol::keys::{ByteString, EncryptionKey, signing_input};
use protocol::manifest::Manifest;
use protocol::model::{ErasureCode, ModelRecord, StoredKind};
use protocol::passkey::{Passkey, PasskeyKey, PasskeyPolicy};
use protocol::project::ProjectList;
use protocol::{
    CommentId, Digest, Epoch, Fence, JobId, MemberId, Millis, NodeId, ProposalId, PublicKey, Refusal,
    ReplicaId, Signature, SlotIndex,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// A circle, its control, and the machine of one of its members.
pub(crate) struct World {
    source: PageSource,
    /// Member whose key the console holds.
    key: Option<usize>,
    state: Arc<Mutex<WorldState>>,
}

/// State that changes while a test runs.
pub(crate) struct WorldState {
    pub(crate) circle: Arc<CircleState>,
    pub(crate) bundles: Vec<Bundle>,
    pub(crate) open: BTreeMap<ProposalId, ProposalView>,
    pub(crate) closed: BTreeMap<ProposalId, ProposalView>,
    pub(crate) report: ClusterReport,
    pub(crate) pending: Vec<PendingNode>,
    /// Ballots that were delivered, also those that control refused.
    pub(crate) delivered: Vec<SignedBallot>,
    /// Halts that were delivered and taken.
    pub(crate) halts: Vec<SignedHalt>,
    /// Jobs that control knows, with the lines of their ranks.
    pub(crate) jobs: Vec<JobView>,
    pub(crate) job_lines: BTreeMap<JobId, Vec<JobLogLine>>,
    pub(crate) job_epoch: u64,
    pub(crate) job_data: BTreeMap<JobId, Vec<JobDataView>>,
    pub(crate) job_events: BTreeMap<JobId, Vec<AuditEvent>>,
    /// Projects; none if no replica leads.
    pub(crate) projects: Option<ProjectList>,
    /// True if no leader answers.
    pub(crate) no_leader: bool,
    /// True if control claims that every member approved everything.
    pub(crate) claims_votes: bool,
    /// True once the token of the visitor was revoked.
    pub(crate) revoked: bool,
    /// Number of times that the circle was asked for as it is now.
    pub(crate) barriers: usize,
}

/// Number of a job's lines in one answer.
const LINES_PER_PAGE: usize = 300;

/// Names of the members.
pub(crate) const MEMBERS: [&str; 3] = ["alice", "bob", "carol"];

/// Returns the keys of a member. They are made once: a part of them does not come from the seed.
pub(crate) fn secret(member: usize) -> &'static MemberSecret {
    static SECRETS: OnceLock<Vec<MemberSecret>> = OnceLock::new();
    &SECRETS.get_or_init(|| (1..=3).map(|seed| MemberSecret::generate(&[seed; 64])).collect())[member]
}

pub(crate) fn member(member: usize) -> MemberId {
    MEMBERS[member].parse().unwrap()
}

/// Returns a node of this name, which claims its keys.
fn node(name: &str) -> NodeAdmission {
    let signing = SigningKey::from_bytes(&Digest::of(name.as_bytes()).0);
    let mut x25519 = Digest::of_domain("test/x25519", name.as_bytes()).0;
    x25519[31] &= 0x3f;
    let ml_kem = Digest::of(name.as_bytes()).0.map(|byte| byte & 7).repeat(37);
    let mut node = NodeAdmission {
        name: name.parse().unwrap(),
        id: NodeId(PublicKey(signing.verifying_key().to_bytes())),
        encryption: EncryptionKey { x25519: PublicKey(x25519), ml_kem: ByteString(ml_kem) },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "eu-1".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: Signature([0; 64]),
    };
    node.proof = Signature(signing.sign(&signing_input(NODE_KEYS_DOMAIN, &node.key_claim())).to_bytes());
    node
}

fn genesis(ports: &[u16]) -> SignedGenesis {
    let entry = |at: usize| Member { id: member(at), keys: secret(at).public() };
    let of: Vec<Quorum> = (0..3).map(|at| Quorum::Member(member(at))).collect();
    let two = Quorum::Threshold { required: 2, of };
    let quorums = [(ActionClass::Routine, two.clone()), (ActionClass::Sensitive, two)].into();
    let origins = ports.iter().map(|port| format!("http://localhost:{port}")).collect();
    let passkeys = PasskeyPolicy { rp_id: "localhost".into(), origins, routine: true };
    let policy = Policy { quorums, passkeys: Some(passkeys), veto_seconds: 0, proposer_counts: true };
    let control = ControlReplica {
        id: ReplicaId(1),
        key: PublicKey(SigningKey::from_bytes(&[7; 32]).verifying_key().to_bytes()),
        address: "127.0.0.1:1".into(),
        api: "http://127.0.0.1:2".into(),
    };
    let genesis = Genesis {
        name: "lab".into(),
        founded_at: Millis(1_790_000_000_000),
        members: (0..3).map(entry).collect(),
        policy,
        control: vec![control],
        nodes: vec![node("node-1"), node("node-2")],
        access: protocol::access::AccessEnvelope::standard((0..3).map(member)),
    };
    let founders: Vec<(MemberId, &MemberSecret)> = (0..3).map(|at| (member(at), secret(at))).collect();
    human_chain::sign_genesis(genesis, &founders)
}

/// Returns a manifest of this service.
pub(crate) fn manifest(name: &str, replicas: u32) -> Manifest {
    let root = Digest::of(b"model");
    Manifest::from_toml(&format!(
        "kind = \"service\"\nname = \"{name}\"\ntask = \"embed\"\n\
         [model]\nname = \"minilm\"\nroot = \"{root}\"\n\
         [replicas]\nmin = 1\nmax = {replicas}\n[resources]\ncpu_millicores = 400\nmemory = \"512 MiB\"\n\
         [placement]\nisolation = \"full\"\n"
    ))
    .unwrap()
}

/// Returns a running service as control shows it.
fn service(manifest: Manifest, certificate: Digest) -> ServiceView {
    let slot = |slot: u32, name: &str| SlotView {
        slot: SlotIndex(slot),
        node: Some(name.parse().unwrap()),
        fence: Fence::default(),
        report: None,
        why: "most free cores in eu-1".into(),
    };
    ServiceView {
        name: manifest.name().clone(),
        manifest,
        certificate,
        roll_out: RollOutView {
            progress: RollOutProgress::Complete,
            available: 0,
            failed_starts: 0,
            returns_to: None,
            returned_from: None,
            cause: None,
        },
        desired: 2,
        ready: 2,
        ready_current: 2,
        retiring: false,
        slots: vec![slot(0, "node-1"), slot(1, "node-2")],
    }
}

fn status() -> Status {
    Status {
        healthy: false,
        summary: "1 service, 1 of 2 nodes alive".into(),
        findings: vec![Finding {
            message: "node-2 has been silent for 4 minutes".into(),
            next: "quorate why minilm/1".into(),
        }],
        leader: Some(ReplicaId(1)),
        replicas: 3,
        replicas_silent: vec![],
        nodes: 2,
        nodes_alive: 1,
        services: 1,
        epoch: Epoch(1),
        simulated: vec!["8x H100 on node-1".into()],
        not_enforced: vec![],
    }
}

fn node_view(admission: NodeAdmission, alive: bool) -> NodeView {
    NodeView {
        name: admission.name.clone(),
        id: admission.id,
        admission,
        alive,
        heard_ms_ago: Some(300),
        cpu_millicores: 8000,
        memory_bytes: 1 << 35,
        gpus: vec![],
        isolation: None,
        not_enforced: vec![],
        slots: 1,
        keys_lacking: vec![],
    }
}

impl World {
    /// Founds the circle, lets it decide to run `minilm`, and leaves three proposals open.
    pub(crate) fn new(source: PageSource, key: Option<usize>, ports: &[u16]) -> Arc<Self> {
        let circle = Arc::new(CircleState::found(&genesis(ports), None).unwrap());
        let pending =
            vec![PendingNode { id: node("node-3").id, admission: node("node-3"), last_seen: wall_clock() }];
        let report = ClusterReport { status: Some(status()), ..ClusterReport::default() };
        let state = WorldState {
            circle,
            bundles: vec![],
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            report,
            pending,
            delivered: vec![],
            halts: vec![],
            jobs: vec![],
            job_lines: BTreeMap::new(),
            job_epoch: 1,
            job_data: BTreeMap::new(),
            job_events: BTreeMap::new(),
            projects: None,
            no_leader: false,
            claims_votes: false,
            revoked: false,
            barriers: 0,
        };
        let world = Arc::new(Self { source, key, state: Arc::new(Mutex::new(state)) });
        let first =
            world.propose(Change::Deploy(Box::new(manifest("minilm", 3))), "semantic search for the archive");
        (0..2).for_each(|at| world.vote(at, &first, Choice::Approve));
        world.propose(Change::Deploy(Box::new(manifest("minilm", 6))), "the archive grows by a third");
        world.propose(Change::AdmitNode(Box::new(node("node-3"))), "a third machine in the same rack");
        let model = protocol::manifest::ModelChoice {
            name: "old".parse().unwrap(),
            root: protocol::ModelRoot(Digest::of(b"old")),
        };
        let forget =
            world.propose(Change::ForgetModel { model, grace_seconds: 86_400 }, "its licence has ended");
        world.vote_because(1, &forget, Choice::Reject, "the licence was renewed last week");
        world.state().delivered.clear();
        world
    }

    /// Returns a replica of the same circle and cluster.
    pub(crate) fn replica(&self) -> Arc<Self> {
        Arc::new(Self { source: PageSource::Replica(ReplicaId(1)), key: None, state: self.state.clone() })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, WorldState> {
        self.state.lock().unwrap()
    }

    fn circle_now(&self) -> Arc<CircleState> {
        self.state().circle.clone()
    }

    /// Has a member halt something, on another machine.
    pub(crate) fn halt(&self, at: usize, scope: HaltScope, reason: &str) -> Halt {
        let halt = Halt {
            circle: self.circle_now().id(),
            member: member(at),
            signer: secret(at).public().ed25519,
            scope,
            reason: reason.into(),
            issued_at: wall_clock(),
            nonce: Digest::of(reason.as_bytes()),
        };
        self.state().halts.push(human_chain::sign_halt(secret(at), halt.clone()));
        halt
    }

    /// Makes a proposal now and opens it for votes.
    pub(crate) fn propose(&self, change: Change, reason: &str) -> Proposal {
        let mut state = self.state();
        let (now, nonce) = (wall_clock(), Digest::of(reason.as_bytes()));
        let later = now.plus(3 * 86_400_000 + 3_600_000);
        let proposal = human_chain::propose(&state.circle, change, reason.into(), now, later, nonce).unwrap();
        let view = ProposalView {
            id: proposal.id(),
            class: human_chain::class_of(&proposal.change),
            proposal: proposal.clone(),
            state: ProposalState::Open,
            ballots: vec![],
            approved: vec![],
            rejected: vec![],
            missing: vec![],
            certificate: None,
            takes_effect_at: None,
            proposer: None,
            drafted_by: None,
            comments: vec![],
        };
        state.open.insert(view.id, view);
        proposal
    }

    /// Lets bob and carol approve a change, which waits for a veto until this time.
    pub(crate) fn wait_for_veto(&self, proposal: &Proposal, until: Millis) {
        let mut state = self.state();
        let seen = state.circle.head();
        let approval = |at: usize| {
            human_chain::vote(secret(at), member(at), seen, proposal, Choice::Approve, wall_clock())
        };
        let ballots: Vec<SignedBallot> = [1, 2].map(approval).into();
        let view = state.open.get_mut(&proposal.id()).unwrap();
        (view.ballots, view.state, view.takes_effect_at) = (ballots, ProposalState::Waiting, Some(until));
    }

    /// Turns an open proposal into a draft of an access token.
    pub(crate) fn draft(&self, proposal: &Proposal) {
        let mut state = self.state();
        let view = state.open.get_mut(&proposal.id()).unwrap();
        (view.state, view.drafted_by) = (ProposalState::Draft, Some("token/ci\u{202e}".into()));
    }

    /// Returns the open proposal of the service `minilm`.
    pub(crate) fn deployment(&self) -> Proposal {
        let state = self.state();
        let mut open = state.open.values().map(|view| &view.proposal);
        open.find(|proposal| matches!(proposal.change, Change::Deploy(_))).unwrap().clone()
    }

    /// Lets a member vote, on another machine.
    pub(crate) fn vote(&self, at: usize, proposal: &Proposal, choice: Choice) {
        self.vote_because(at, proposal, choice, "");
    }

    /// Lets a member vote with a reason, on another machine.
    pub(crate) fn vote_because(&self, at: usize, proposal: &Proposal, choice: Choice, reason: &str) {
        let seen = self.state().circle.head();
        let ballot = human_chain::unsigned_ballot(member(at), seen, proposal, choice, wall_clock());
        let ballot = Ballot { reason: reason.into(), ..ballot };
        self.take(human_chain::sign_ballot(secret(at), proposal, ballot)).unwrap();
    }

    /// Lets a member ask about a proposal, or answer a question, on another machine.
    pub(crate) fn comment(
        &self,
        at: usize,
        proposal: &Proposal,
        answers: Option<CommentId>,
        text: &str,
    ) -> CommentId {
        let comment = Comment {
            proposal: proposal.id(),
            member: member(at),
            answers,
            text: text.into(),
            issued_at: wall_clock(),
        };
        let id = comment.id();
        self.take_comment(human_chain::sign_comment(secret(at), comment)).unwrap();
        id
    }

    /// Takes a comment as control does.
    fn take_comment(&self, signed: SignedComment) -> Result<(), Refusal> {
        let mut state = self.state();
        let circle = state.circle.clone();
        let Some(view) = state.open.get_mut(&signed.comment.proposal) else {
            return Err(Refusal::new(protocol::error_code::PROPOSAL_NOT_FOUND, "no open proposal"));
        };
        human_chain::check_comment(&circle, &view.proposal, &signed)?;
        view.comments.push(signed);
        Ok(())
    }

    /// Gives a member a passkey of which no authenticator is needed: the member decided it alone.
    pub(crate) fn give_passkey(&self, at: usize) -> ByteString {
        let credential = ByteString(format!("phone of {}", MEMBERS[at]).into_bytes());
        if self.circle_now().passkeys(&member(at)).is_empty() {
            let key = PasskeyKey::EdDsa(MemberSecret::generate(&[9 + at as u8; 64]).public().ed25519);
            let passkey = Passkey { credential: credential.clone(), key, label: "phone".into() };
            self.set_passkeys(at, vec![passkey]);
        }
        credential
    }

    /// Lets a member decide which passkeys it has.
    pub(crate) fn set_passkeys(&self, at: usize, passkeys: Vec<Passkey>) {
        let change = Change::SetPasskeys { member: member(at), passkeys };
        let reason = format!("decision {}", self.circle_now().length());
        let proposal = self.propose(change, &reason);
        self.vote(at, &proposal, Choice::Approve);
        self.state().delivered.clear();
    }

    /// Takes a ballot as control does: checks it, counts, and puts the change into force.
    fn take(&self, ballot: SignedBallot) -> Result<(), Refusal> {
        let mut state = self.state();
        state.delivered.push(ballot.clone());
        let circle = state.circle.clone();
        let id = ballot.ballot.proposal;
        let Some(view) = state.open.get_mut(&id) else {
            return Err(Refusal::new(protocol::error_code::PROPOSAL_NOT_FOUND, "no open proposal"));
        };
        human_chain::check_ballot(&circle, &view.proposal, &ballot, wall_clock())?;
        if view.state == ProposalState::Draft {
            (view.state, view.drafted_by) = (ProposalState::Open, None);
            view.proposer = Some(ballot.ballot.member.clone());
        }
        view.ballots.push(ballot);
        if human_chain::tally(&circle, &view.proposal, &view.ballots).reached {
            let mut view = state.open.remove(&id).unwrap();
            let certificate = human_chain::certify(&circle, &view.proposal, &view.ballots).unwrap();
            let approved = human_chain::verify(&circle, &certificate, wall_clock()).unwrap();
            Arc::make_mut(&mut state.circle).advance(approved).unwrap();
            if let Change::Deploy(manifest) = &view.proposal.change {
                state.report.services = vec![service(manifest.as_ref().clone(), certificate.digest())];
                state.report.nodes = vec![node_view(node("node-1"), true), node_view(node("node-2"), false)];
            }
            (view.state, view.certificate) = (ProposalState::Approved, Some(certificate.digest()));
            state.closed.insert(id, view);
            state.bundles.push(Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None });
        }
        Ok(())
    }
}

impl WorldState {
    /// Returns a proposal as this control shows it.
    fn shown(&self, view: &ProposalView) -> ProposalView {
        let mut view = view.clone();
        if self.claims_votes {
            view.approved = (0..3).map(member).collect();
            view.state = ProposalState::Approved;
        }
        view
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> BackendAnswer<'a, T> {
    Box::pin(std::future::ready(Ok(value)))
}

fn silent<'a, T: Send + 'a>() -> BackendAnswer<'a, T> {
    let refusal = Refusal::new(protocol::error_code::NO_LEADER, "no leader answers");
    Box::pin(std::future::ready(Err(refusal)))
}

impl ConsoleBackend for World {
    fn source(&self) -> PageSource {
        self.source.clone()
    }

    fn circle(&self) -> BackendAnswer<'_, CircleReading> {
        let mut state = self.state();
        state.barriers += 1;
        ready(CircleReading { state: state.circle.clone(), note: state.report.note.clone() })
    }

    fn last_circle(&self) -> Result<CircleReading, Refusal> {
        Ok(CircleReading { state: self.circle_now(), note: None })
    }

    fn open_proposals(&self) -> BackendAnswer<'_, Vec<ProposalView>> {
        let state = self.state();
        if state.no_leader {
            return silent();
        }
        ready(state.open.values().map(|view| state.shown(view)).collect())
    }

    fn proposal(&self, id: ProposalId) -> BackendAnswer<'_, Option<ProposalRecord>> {
        let state = self.state();
        let view = state.open.get(&id).or_else(|| state.closed.get(&id)).map(|view| state.shown(view));
        let decided = |bundle: &&Bundle| bundle.certificate.proposal.id() == id;
        let certificate = state.bundles.iter().find(decided).map(|bundle| bundle.certificate.clone());
        ready(view.map(|view| ProposalRecord { view, certificate }))
    }

    fn decisions(&self, before: u64, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        let state = self.state();
        let numbered = (1..).zip(state.bundles.iter().cloned()).filter(|(number, _)| *number < before);
        let mut found: Vec<(u64, Bundle)> = numbered.collect();
        found.reverse();
        found.truncate(count);
        ready(found)
    }

    fn decisions_on(&self, subject: String, count: usize) -> BackendAnswer<'_, Vec<(u64, Bundle)>> {
        let state = self.state();
        let numbered = (1..)
            .zip(state.bundles.iter().cloned())
            .filter(|(_, bundle)| console::is_about(bundle, &subject));
        let mut found: Vec<(u64, Bundle)> = numbered.collect();
        found.reverse();
        found.truncate(count);
        ready(found)
    }

    fn outlook<'a>(&'a self, change: &'a Change) -> BackendAnswer<'a, ChangeOutlook> {
        let Change::Deploy(manifest) = change else { return ready(ChangeOutlook::default()) };
        let Manifest::Service(service) = manifest.as_ref() else { panic!("a service") };
        let placed =
            |slot: u32, name: &str| DryRunPlacement { slot: SlotIndex(slot), node: name.parse().unwrap() };
        let placement = DryRun {
            desired: 2,
            placements: vec![placed(0, "node-1"), placed(1, "node-2")],
            possible: vec![placed(2, "node-1")],
            waiting: vec!["slot 3: 512 MiB are free on no node".into()],
            needs: "2 signatures".into(),
            priority: 50,
            outranked: vec![],
            roll_out: vec!["the roll-out replaces 1 replica at once".into()],
            spend_micro_units_per_hour: None,
        };
        let model = ModelRecord {
            name: service.model.name.clone(),
            kind: StoredKind::Model,
            root: service.model.root,
            bytes: 90_000_000,
            segments: 23,
            erasure: ErasureCode { data: 4, parity: 2 },
            stores: vec![],
            architecture: "bert".into(),
        };
        ready(ChangeOutlook { placement: Some(placement), model: Some(model), note: None })
    }

    fn cluster(&self) -> BackendAnswer<'_, ClusterReport> {
        ready(self.state().report.clone())
    }

    fn pending_nodes(&self) -> BackendAnswer<'_, Vec<PendingNode>> {
        ready(self.state().pending.clone())
    }

    fn jobs(&self) -> BackendAnswer<'_, Vec<JobView>> {
        let state = self.state();
        if state.no_leader { silent() } else { ready(state.jobs.clone()) }
    }

    fn job(&self, id: JobId) -> BackendAnswer<'_, Option<JobView>> {
        let state = self.state();
        if state.no_leader { silent() } else { ready(state.jobs.iter().find(|job| job.id == id).cloned()) }
    }

    fn job_data(&self, id: JobId) -> BackendAnswer<'_, Vec<JobDataView>> {
        ready(self.state().job_data.get(&id).cloned().unwrap_or_default())
    }

    fn job_lines(&self, id: JobId, after: u64) -> BackendAnswer<'_, JobLogPage> {
        let state = self.state();
        let lines = state.job_lines.get(&id).into_iter().flatten().filter(|line| line.sequence > after);
        ready(JobLogPage { epoch: state.job_epoch, items: lines.take(LINES_PER_PAGE).cloned().collect() })
    }

    fn job_events(&self, id: JobId) -> BackendAnswer<'_, Vec<AuditEvent>> {
        ready(self.state().job_events.get(&id).cloned().unwrap_or_default())
    }

    fn projects(&self) -> BackendAnswer<'_, ProjectList> {
        self.state().projects.clone().map_or_else(silent, ready)
    }

    fn halts(&self) -> BackendAnswer<'_, HaltReport> {
        let record = |signed: &SignedHalt| HaltRecord {
            verified: human_chain::check_halt(&self.circle_now(), signed.clone()).is_ok(),
            replicas: self.key.map(|_| (1, 3)),
            signed: signed.clone(),
        };
        let taken = self.state().halts.clone();
        ready(HaltReport { halts: taken.iter().map(record).collect(), note: None })
    }

    fn sign(&self, proposal: &Proposal, ballot: Ballot) -> Result<Option<SignedBallot>, Refusal> {
        Ok(self.key.map(|at| human_chain::sign_ballot(secret(at), proposal, ballot)))
    }

    fn sign_comment(&self, comment: Comment) -> Result<Option<SignedComment>, Refusal> {
        Ok(self.key.map(|at| human_chain::sign_comment(secret(at), comment)))
    }

    fn sign_halt(&self, halt: Halt) -> Result<Option<SignedHalt>, Refusal> {
        Ok(self.key.map(|at| human_chain::sign_halt(secret(at), halt)))
    }

    fn holds_key(&self) -> bool {
        self.key.is_some()
    }

    fn propose(&self, change: Change, reason: String) -> BackendAnswer<'_, ProposalId> {
        ready(World::propose(self, change, &reason).id())
    }

    fn deliver(&self, ballot: SignedBallot) -> BackendAnswer<'_, ()> {
        Box::pin(std::future::ready(self.take(ballot)))
    }

    fn deliver_comment(&self, comment: SignedComment) -> BackendAnswer<'_, ()> {
        Box::pin(std::future::ready(self.take_comment(comment)))
    }

    fn deliver_halt(&self, halt: SignedHalt) -> BackendAnswer<'_, ()> {
        let taken = human_chain::check_halt(&self.circle_now(), halt.clone()).map_err(Refusal::from);
        let taken = taken.map(|_| self.state().halts.push(halt));
        Box::pin(std::future::ready(taken))
    }

    fn admits(&self, visitor: &Visitor) -> bool {
        let state = self.state();
        let is_member = matches!(visitor, Visitor::Member { .. });
        !state.revoked && (!is_member || visitor.holds_passkey(&state.circle))
    }
}

/// A console over a world.
pub(crate) struct Lab {
    pub(crate) world: Arc<World>,
    pub(crate) sign_in: Arc<SignIn>,
    pub(crate) origins: WebOrigins,
    pub(crate) router: axum::Router,
}

impl Lab {
    /// Returns the console of a member on his own machine: 0 is alice, who has voted nothing that is open.
    pub(crate) fn of_member(at: usize, port: u16) -> Self {
        Self::new(World::new(PageSource::OwnMachine, Some(at), &[port]), port, Clock::machine())
    }

    /// Returns the console of a replica.
    pub(crate) fn of_replica(port: u16, clock: Clock) -> Self {
        Self::new(World::new(PageSource::Replica(ReplicaId(1)), None, &[port]), port, clock)
    }

    pub(crate) fn new(world: Arc<World>, port: u16, clock: Clock) -> Self {
        let (sign_in, origins) = (Arc::new(SignIn::new(clock)), WebOrigins::of_localhost(port));
        let console = Console::new(world.clone(), sign_in.clone(), origins.clone());
        let router = console::router(Arc::new(console));
        Self { world, sign_in, origins, router }
    }

    /// Returns the code of a link for the user of this machine, who is this member.
    pub(crate) fn owner_link(&self, at: usize) -> String {
        self.sign_in.create_link(Visitor::Owner { member: Some(member(at)) })
    }

    /// Returns the code of a link for a member that signed in by passkey, who has one from now on.
    pub(crate) fn member_link(&self, at: usize) -> String {
        let credential = self.world.give_passkey(at);
        self.sign_in.create_link(Visitor::Member { member: member(at), credential })
    }

    /// Returns the code of a link for the holder of a token that reads.
    pub(crate) fn token_link(&self) -> String {
        self.sign_in.create_link(Visitor::Token {
            name: "ops".parse().unwrap(),
            hash: Digest::of(b"token"),
            scopes: BTreeSet::from([TokenScope::Read]),
        })
    }
}

/// Returns the first two words of a proposal's text.
pub(crate) fn words(proposal: &Proposal) -> String {
    human_chain::render(proposal).words[..2].join(" ")
}

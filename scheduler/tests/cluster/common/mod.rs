//! Test cluster: a circle of three in memory, its state, and nodes with reports that a test chooses.
#![allow(dead_code, reason = "the unit tests and the fuzz target use a part of it")]

pub(crate) mod samples;
pub(crate) mod script;
pub(crate) mod sim;

use human_chain::{
    MemberSecret, propose, recipient_key, sign_comment, sign_genesis, sign_grant, sign_revocation,
    sign_withdrawal, sign_wrap, vote,
};
use protocol::access::{
    ACCESS_VERSION, AccessEnvelope, AccessGrant, AccessRevocation, GRANT_SECONDS_MAX, GrantedAccess,
    SignedGrant, SignedRevocation,
};
use protocol::agent::{Gpu, NodeResources, SlotReport, SlotState, SyncRequest};
use protocol::comment::{Comment, SignedComment};
use protocol::governance::*;
use protocol::job_data::{JOB_DATA_DOMAIN, JobData, SignedJobData};
use protocol::job_report::JobSlotReport;
use protocol::keys::{ByteString, EncryptionKey};
use protocol::manifest::Isolation;
use protocol::manifest::*;
use protocol::model::{
    ErasureCode, KeyWrap, ModelRecord, Recipient, RecipientSignature, SignedComplaint, SignedWrap,
    StoreReference, StoredKind, WRAP_COMPLAINT_DOMAIN, WrapComplaint,
};
use protocol::slot_usage::{SLOT_USAGE_DOMAIN, SignedSlotUsage, SlotUsage};
use protocol::{
    CircleId, CommentId, Digest, GrantId, MemberId, Millis, ModelName, ModelRoot, NodeId, NodeName,
    PublicKey, ReplicaId, ServiceName, Signature,
};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

pub(crate) const START: Millis = Millis(1_700_000_000_000);
const MEMBERS: [&str; 3] = ["alice", "bob", "carol"];
/// Holders of access tokens, with their scopes.
const TOKENS: [(&str, &[TokenScope]); 2] = [
    ("reader", &[TokenScope::Read]),
    ("operator", &[TokenScope::Read, TokenScope::Propose, TokenScope::Submit]),
];

/// Returns the founders' secrets, made once per test process.
pub(crate) fn secrets() -> &'static BTreeMap<MemberId, MemberSecret> {
    static SECRETS: OnceLock<BTreeMap<MemberId, MemberSecret>> = OnceLock::new();
    SECRETS.get_or_init(|| {
        let secret = |(i, name): (usize, &&str)| (member(name), MemberSecret::generate(&[i as u8 + 1; 64]));
        MEMBERS.iter().enumerate().map(secret).collect()
    })
}

pub(crate) fn member(name: &str) -> MemberId {
    name.parse().unwrap()
}

/// Returns a member's question about a proposal, or an answer to this one.
pub(crate) fn comment_of(name: &str, proposal: &Proposal, answers: Option<CommentId>) -> SignedComment {
    let text = if answers.is_some() { "the archive grows" } else { "why so many?" };
    let comment = Comment {
        proposal: proposal.id(),
        member: member(name),
        answers,
        text: text.into(),
        issued_at: proposal.created_at,
    };
    sign_comment(&secrets()[&member(name)], comment)
}

pub(crate) fn service_name(name: &str) -> ServiceName {
    name.parse().unwrap()
}

pub(crate) fn root(model: &str) -> ModelRoot {
    ModelRoot(Digest::of(model.as_bytes()))
}

/// Returns the keys of a machine, made once per test process. The Ed25519 half of a member's secret signs as
/// a node's identity key does.
fn machine(name: &str) -> &'static MemberSecret {
    static MACHINES: Mutex<BTreeMap<String, &'static MemberSecret>> = Mutex::new(BTreeMap::new());
    let make = || {
        let half = Digest::of(format!("node/{name}").as_bytes()).0;
        let mut seed = [0; 64];
        seed[..32].copy_from_slice(&half);
        &*Box::leak(Box::new(MemberSecret::generate(&seed)))
    };
    MACHINES.lock().unwrap().entry(name.into()).or_insert_with(make)
}

pub(crate) fn node_id(name: &str) -> NodeId {
    NodeId(machine(name).public().ed25519)
}

/// Returns an encryption key of this name. It has the form of one; no secret belongs to it.
pub(crate) fn encryption(name: &str) -> EncryptionKey {
    let mut x25519 = Digest::of(format!("x25519/{name}").as_bytes()).0;
    x25519[31] &= 0x3f;
    EncryptionKey { x25519: PublicKey(x25519), ml_kem: ml_kem(name) }
}

/// Returns an ML-KEM key: its coefficients of three bits are below the modulus.
fn ml_kem(name: &str) -> ByteString {
    ByteString(Digest::of(name.as_bytes()).0.map(|byte| byte & 7).repeat(37))
}

/// Gives a node this machine's identity, and lets the machine claim all keys of the node.
pub(crate) fn claimed_by(name: &str, mut admission: NodeAdmission) -> NodeAdmission {
    admission.id = node_id(name);
    admission.proof = machine(name).sign(NODE_KEYS_DOMAIN, &admission.key_claim()).ed25519;
    admission
}

/// Returns a node's complaint about a wrap.
pub(crate) fn complaint(name: &str, complaint: WrapComplaint) -> SignedComplaint {
    let bytes = protocol::canonical::to_bytes(&complaint);
    let signature = machine(name).sign(WRAP_COMPLAINT_DOMAIN, &bytes).ed25519;
    SignedComplaint { complaint, signature: RecipientSignature::Node(signature) }
}

/// Returns a node's statement about data of a job.
pub(crate) fn job_data_of(name: &str, data: JobData) -> SignedJobData {
    let bytes = protocol::canonical::to_bytes(&data);
    let signature = machine(name).sign(JOB_DATA_DOMAIN, &bytes).ed25519;
    SignedJobData { data, signature }
}

/// Returns a statement with the signature of the node of this name.
pub(crate) fn slot_usage_of(name: &str, usage: SlotUsage) -> SignedSlotUsage {
    let bytes = protocol::canonical::to_bytes(&usage);
    let signature = machine(name).sign(SLOT_USAGE_DOMAIN, &bytes).ed25519;
    SignedSlotUsage { usage, signature }
}

/// A node as a test describes it.
#[derive(Debug, Clone)]
pub(crate) struct NodeSpec {
    pub(crate) admission: NodeAdmission,
    pub(crate) resources: NodeResources,
    pub(crate) isolation: Isolation,
    pub(crate) not_enforced: Vec<String>,
}

pub(crate) fn node(name: &str, cpu_millicores: u64, memory_mib: u64) -> NodeSpec {
    let admission = NodeAdmission {
        name: name.parse().unwrap(),
        id: node_id(name),
        encryption: encryption(name),
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "eu".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: Signature([0; 64]),
    };
    NodeSpec {
        admission: claimed_by(name, admission),
        resources: NodeResources { cpu_millicores, memory_bytes: memory_mib << 20, gpus: Vec::new() },
        isolation: Isolation::Full,
        not_enforced: Vec::new(),
    }
}

pub(crate) fn gpus(count: u32, memory_gib: u64, simulated: bool) -> Vec<Gpu> {
    let gpu = |index| Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: "H100".into(),
        memory_bytes: memory_gib << 30,
        simulated,
        healthy: true,
    };
    (0..count).map(gpu).collect()
}

/// Returns a service that is not exclusive, with this autonomy in seconds.
pub(crate) fn autonomous(autonomy_seconds: u64, manifest: ServiceManifest) -> ServiceManifest {
    ServiceManifest { autonomy_seconds, exclusive: false, ..manifest }
}

/// Returns a service of exclusive work.
pub(crate) fn manifest(
    name: &str,
    min: u32,
    max: u32,
    cpu_millicores: u64,
    memory_mib: u64,
) -> ServiceManifest {
    ServiceManifest {
        name: service_name(name),
        model: ModelChoice { name: "minilm".parse().unwrap(), root: root("minilm") },
        task: Task::Embed,
        runtime: Runtime::Candle,
        replicas: ReplicaRange { min, max },
        resources: Resources {
            cpu_millicores,
            memory_bytes: memory_mib << 20,
            gpu_count: 0,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        },
        placement: Placement { regions: vec![], node_selector: BTreeMap::new(), isolation: Isolation::None },
        egress: vec![],
        spend_micro_units_per_hour: None,
        valid_until: None,
        on_expiry: OnExpiry::Hold,
        autonomy_seconds: protocol::limits::AUTONOMY_SECONDS_MIN,
        exclusive: true,
        priority: protocol::limits::PRIORITY_DEFAULT,
        rollout: RollOutRules::default(),
        context_tokens_max: None,
        batch_sequences_max: 8,
    }
}

pub(crate) fn deploy(manifest: ServiceManifest) -> Change {
    Change::Deploy(Box::new(Manifest::Service(manifest)))
}

pub(crate) fn model(name: &str, bytes: u64) -> ModelRecord {
    let store = |i: u8| StoreReference { url: format!("file:///s{i}"), failure_domain: format!("d{i}") };
    ModelRecord {
        name: name.parse::<ModelName>().unwrap(),
        kind: StoredKind::Model,
        root: root(name),
        bytes,
        segments: bytes.div_ceil(1 << 20),
        erasure: ErasureCode { data: 4, parity: 2 },
        stores: (0..6).map(store).collect(),
        architecture: "bert".into(),
    }
}

/// Returns the decision to forget the sample model of this name.
pub(crate) fn forget(model: &str, grace_seconds: u32) -> Change {
    let model = ModelChoice { name: model.parse().unwrap(), root: root(model) };
    Change::ForgetModel { model, grace_seconds }
}

pub(crate) fn wrap(model: &str, recipient: Recipient) -> KeyWrap {
    KeyWrap {
        root: root(model),
        recipient,
        ephemeral: PublicKey([9; 32]),
        encapsulated: ByteString(vec![1; 1088]),
        sealed: ByteString(vec![2; 48]),
    }
}

/// Returns the wrap as alice signs it for this key. ML-DSA signatures differ each time, so the first one is
/// kept: the same wrap is signed the same way.
pub(crate) fn signed_for(circle: CircleId, to: &EncryptionKey, wrap: KeyWrap) -> SignedWrap {
    static SIGNED: Mutex<BTreeMap<Digest, SignedWrap>> = Mutex::new(BTreeMap::new());
    let alice = member("alice");
    let statement = Digest::of(&wrap.statement(circle, &alice, to));
    let sign = || sign_wrap(&secrets()[&alice], alice.clone(), circle, to, wrap);
    SIGNED.lock().unwrap().entry(statement).or_insert_with(sign).clone()
}

/// Returns the grant as alice signs it. ML-DSA signatures differ each time, so the first one is kept.
pub(crate) fn signed_grant(grant: AccessGrant) -> SignedGrant {
    static SIGNED: Mutex<BTreeMap<GrantId, SignedGrant>> = Mutex::new(BTreeMap::new());
    let id = grant.id();
    let sign = || sign_grant(&secrets()[&member("alice")], grant);
    SIGNED.lock().unwrap().entry(id).or_insert_with(sign).clone()
}

/// Returns alice's revocation of a grant; the first signature is kept.
fn signed_revocation(grant: AccessGrant) -> SignedRevocation {
    static SIGNED: Mutex<BTreeMap<GrantId, SignedRevocation>> = Mutex::new(BTreeMap::new());
    let id = grant.id();
    let sign = || {
        let (member, issued_at) = (member("alice"), START);
        let secret = &secrets()[&member];
        sign_revocation(secret, AccessRevocation { version: ACCESS_VERSION, grant, member, issued_at })
    };
    SIGNED.lock().unwrap().entry(id).or_insert_with(sign).clone()
}

pub(crate) fn quorum(required: u32) -> Quorum {
    Quorum::Threshold { required, of: MEMBERS.iter().map(|name| Quorum::Member(member(name))).collect() }
}

pub(crate) fn genesis(nodes: &[NodeSpec]) -> SignedGenesis {
    let member = |(id, secret): (&MemberId, &MemberSecret)| {
        let mut keys = secret.public();
        // The one key that no seed makes. Nothing is wrapped to it here, so a fixed value keeps the circle's
        // id constant.
        keys.encryption.ml_kem = ml_kem(&format!("member/{id}"));
        Member { id: id.clone(), keys }
    };
    let members = secrets().iter().map(member);
    let replica = |i: u64| ControlReplica {
        id: ReplicaId(i),
        key: PublicKey(Digest::of(format!("control/{i}").as_bytes()).0),
        address: format!("127.0.0.1:{}", 7000 + i),
        api: format!("http://127.0.0.1:{}", 8000 + i),
    };
    let genesis = Genesis {
        name: "test".into(),
        founded_at: START,
        members: members.collect(),
        policy: Policy {
            quorums: BTreeMap::from([(ActionClass::Routine, quorum(2)), (ActionClass::Sensitive, quorum(3))]),
            passkeys: None,
            veto_seconds: 0,
            proposer_counts: true,
        },
        control: (1..=3).map(replica).collect(),
        nodes: nodes.iter().map(|node| node.admission.clone()).collect(),
        access: AccessEnvelope::standard(secrets().keys().cloned()),
    };
    let founders: Vec<(MemberId, &MemberSecret)> = secrets().iter().map(|(id, s)| (id.clone(), s)).collect();
    sign_genesis(genesis, &founders)
}

/// A cluster, its leader's view, and the log that made it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) observed: Observed,
    /// Time of the leader's clock; [`Self::set_now`] sets it.
    pub(crate) now: Millis,
    /// Clocks of the replicas, as the leader knows them; [`Self::set_now`] sets them right.
    pub(crate) clocks: ClockReadings,
    pub(crate) log: Vec<Command>,
    pub(crate) specs: BTreeMap<NodeName, NodeSpec>,
    /// Reports that each node sends about its slots.
    pub(crate) reports: BTreeMap<NodeId, Vec<SlotReport>>,
    pub(crate) job_reports: BTreeMap<NodeId, Vec<JobSlotReport>>,
    /// Counts that each node states.
    pub(crate) usage: BTreeMap<NodeId, Vec<SignedSlotUsage>>,
}

impl World {
    /// Creates a founded cluster with a leader that has received a request of every node.
    pub(crate) fn new(nodes: &[NodeSpec]) -> Self {
        let mut world = Self::empty();
        world.must(Action::Found(Box::new(genesis(nodes))));
        for (holder, scopes) in TOKENS {
            let access = GrantedAccess::Token { scopes: scopes.iter().copied().collect() };
            world.must(world.granting(holder, holder, access));
        }
        world.specs = nodes.iter().map(|node| (node.admission.name.clone(), node.clone())).collect();
        world.lead(1);
        world.heartbeat_all();
        world
    }

    /// Creates a cluster in which nothing has happened.
    pub(crate) fn empty() -> Self {
        Self {
            cluster: Cluster::new(),
            observed: Observed::new(LeaderTime(START)),
            now: START,
            clocks: all_at(START),
            log: Vec::new(),
            specs: BTreeMap::new(),
            reports: BTreeMap::new(),
            job_reports: BTreeMap::new(),
            usage: BTreeMap::new(),
        }
    }

    /// Returns the cluster as its leader sees it now.
    pub(crate) fn view(&self) -> ClusterView<'_> {
        ClusterView {
            cluster: &self.cluster,
            observed: &self.observed,
            now: self.leader_now(),
            clocks: &self.clocks,
        }
    }

    pub(crate) fn leader_now(&self) -> LeaderTime {
        LeaderTime(self.now)
    }

    /// Sets the leader's clock and those of all replicas.
    pub(crate) fn set_now(&mut self, now: Millis) {
        (self.now, self.clocks) = (now, all_at(now));
    }

    /// Returns the present moment as a deadline.
    pub(crate) fn cluster_now(&self) -> ClusterTime {
        ClusterTime(self.now)
    }

    pub(crate) fn apply(&mut self, actor: Actor, action: Action) -> Reply {
        let command = Command { clocks: self.clocks.clone(), actor, action, idempotency: None };
        self.execute_command(command)
    }

    /// Applies a command and checks every invariant of the state and of its change.
    fn execute_command(&mut self, command: Command) -> Reply {
        let before = self.cluster.clone();
        self.log.push(command.clone());
        let reply = apply(&mut self.cluster, self.log.len() as u64, &command);
        check_change(&before, &self.cluster);
        reply
    }

    /// Applies a write of the operator's token under an idempotency key.
    pub(crate) fn apply_once(&mut self, key: &str, action: Action) -> Reply {
        let actor = Actor::Token("operator".parse().unwrap());
        let (clocks, idempotency) = (self.clocks.clone(), Some(samples::once(key)));
        let command = Command { clocks, actor, action, idempotency };
        self.execute_command(command)
    }

    /// Applies an action that must not be refused.
    pub(crate) fn must(&mut self, action: Action) -> Reply {
        let reply = self.apply(Actor::Scheduler, action);
        assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
        reply
    }

    pub(crate) fn lead(&mut self, replica: u64) {
        self.must(Action::Lead { replica: ReplicaId(replica) });
        self.observed = Observed::new(self.leader_now());
    }

    pub(crate) fn proposal(&self, change: Change) -> Proposal {
        let nonce = Digest::of(&self.log.len().to_le_bytes());
        let expires = self.now.plus(3_600_000);
        propose(self.cluster.circle_state().unwrap(), change, "test".into(), self.now, expires, nonce)
            .unwrap()
    }

    pub(crate) fn ballot(&self, name: &str, proposal: &Proposal, choice: Choice) -> SignedBallot {
        vote(&secrets()[&member(name)], member(name), proposal.history, proposal, choice, self.now)
    }

    /// Opens a proposal by the approval of this member.
    pub(crate) fn open_by(&mut self, name: &str, proposal: &Proposal) -> Reply {
        self.must(self.opening(name, proposal))
    }

    pub(crate) fn opening(&self, name: &str, proposal: &Proposal) -> Action {
        let ballot = Box::new(self.ballot(name, proposal, Choice::Approve));
        Action::OpenProposal { proposal: Box::new(proposal.clone()), ballot }
    }

    /// Submits a proposal and lets the first members approve it until the quorum is reached; returns the
    /// certificate's digest.
    pub(crate) fn approve(&mut self, change: Change) -> Digest {
        let rule = self.cluster.circle_state().unwrap().quorum_of(&change).into_owned();
        let needed = human_chain::least_approvals(&rule);
        let proposal = self.proposal(change);
        self.must(Action::SubmitProposal(Box::new(proposal.clone())));
        let mut reply = Reply::Done;
        for name in &MEMBERS[..needed] {
            let ballot = self.ballot(name, &proposal, Choice::Approve);
            reply = self.must(Action::CastBallot(Box::new(ballot)));
        }
        match reply {
            Reply::Counted { certificate: Some(certificate), .. } => certificate,
            other => panic!("not approved: {other:?}"),
        }
    }

    /// Registers the model and wraps its key to every admitted worker.
    pub(crate) fn share_model(&mut self, name: &str, bytes: u64) {
        let workers = self.cluster.nodes().filter(|node| node.roles.contains(&NodeRole::Worker));
        let nodes: Vec<NodeId> = workers.map(|node| node.id).collect();
        self.must(self.register(model(name, bytes), &nodes));
    }

    /// Returns the grant of alice to this holder, of a secret with this text.
    pub(crate) fn grant(&self, holder: &str, text: &str, access: GrantedAccess) -> AccessGrant {
        let state = self.cluster.circle_state();
        AccessGrant {
            version: ACCESS_VERSION,
            circle: state.map_or(CircleId(Digest([0; 32])), |state| state.id()),
            envelope: state.map_or(Digest([0; 32]), |state| state.access_certificate()),
            issuer: member("alice"),
            signer: secrets()[&member("alice")].public().ed25519,
            holder: holder.parse().unwrap(),
            access,
            secret: Digest::of(text.as_bytes()),
            issued_at: START,
            expires_at: START.plus(u64::from(GRANT_SECONDS_MAX) * 1000),
        }
    }

    /// Returns the command that grants access, signed by alice.
    pub(crate) fn granting(&self, holder: &str, text: &str, access: GrantedAccess) -> Action {
        Action::GrantAccess(Box::new(signed_grant(self.grant(holder, text, access))))
    }

    /// Returns the command that grants an inference key for every service, signed by alice.
    pub(crate) fn granting_key(&self, holder: &str, text: &str) -> Action {
        self.granting(holder, text, samples::every_service(None))
    }

    /// Returns the inference key of this holder that stands.
    pub(crate) fn key_of(&self, holder: &str) -> Option<AccessGrant> {
        let state = self.cluster.circle_state()?;
        let mut standing = self.cluster.access().standing(state, self.cluster.now().0);
        let is_asked = |grant: &AccessGrant| {
            grant.holder.as_str() == holder && matches!(grant.access, GrantedAccess::Key { .. })
        };
        standing.find(|(_, signed)| is_asked(&signed.grant)).map(|(_, signed)| signed.grant.clone())
    }

    /// Returns the command with which alice revokes the inference key of this holder, if there is one.
    pub(crate) fn revoking_key(&self, holder: &str) -> Action {
        let unknown = || self.grant(holder, "unknown", samples::every_service(None));
        let grant = self.key_of(holder).unwrap_or_else(unknown);
        Action::RevokeAccess(Box::new(signed_revocation(grant)))
    }

    /// Returns the wrap with alice's signature, for the key that its recipient has now. For a party without
    /// one she signs a key of her own choice.
    pub(crate) fn signed(&self, wrap: KeyWrap) -> SignedWrap {
        let state = self.cluster.circle_state();
        let circle = state.map_or(CircleId(Digest([0; 32])), |state| state.id());
        let to = state.and_then(|state| recipient_key(state, &wrap.recipient).ok().cloned());
        signed_for(circle, &to.unwrap_or_else(|| encryption("unknown")), wrap)
    }

    /// Returns the wrap of this model's key for one recipient, signed by alice.
    pub(crate) fn wrap(&self, model: &str, recipient: Recipient) -> SignedWrap {
        self.signed(wrap(model, recipient))
    }

    /// Returns the wrap of this model's key for the node of this name, signed by alice.
    pub(crate) fn wrap_to(&self, model: &str, node: &str) -> SignedWrap {
        self.wrap(model, Recipient::Node(node_id(node)))
    }

    /// Registers a model with its key wrapped to alice and to these nodes.
    pub(crate) fn register(&self, record: ModelRecord, nodes: &[NodeId]) -> Action {
        let nodes = nodes.iter().map(|node| Recipient::Node(*node));
        self.register_for(record, nodes.chain([Recipient::Member(member("alice"))]))
    }

    /// Registers a model with its key wrapped to these parties.
    pub(crate) fn register_for(
        &self,
        record: ModelRecord,
        recipients: impl IntoIterator<Item = Recipient>,
    ) -> Action {
        let (name, root) = (record.name.clone(), record.root);
        let wrap = |to| self.signed(KeyWrap { root, ..wrap(name.as_str(), to) });
        let wraps = recipients.into_iter().map(wrap).collect();
        Action::RegisterModel { record: Box::new(record), wraps }
    }

    pub(crate) fn request(&self, spec: &NodeSpec) -> SyncRequest {
        SyncRequest {
            boot: 1,
            version: "test".into(),
            resources: spec.resources.clone(),
            isolation: spec.isolation,
            not_enforced: spec.not_enforced.clone(),
            slots: self.reports.get(&spec.admission.id).cloned().unwrap_or_default(),
            governance_length: 0,
            routes_version: None,
            wait_ms: 0,
            desired: Digest::of(b""),
            logs: vec![],
            complaints: vec![],
            jobs: self.job_reports.get(&spec.admission.id).cloned().unwrap_or_default(),
            usage: self.usage.get(&spec.admission.id).cloned().unwrap_or_default(),
            rank_lines_term: 0,
            rank_lines: vec![],
        }
    }

    /// Delivers the node's request to the leader; returns true if it may be answered.
    pub(crate) fn heartbeat(&mut self, name: &str) -> bool {
        let spec = self.specs[&name.parse::<NodeName>().unwrap()].clone();
        let request = self.request(&spec);
        self.observed
            .record_heartbeat(spec.admission.id, &request, self.cluster.generation(), self.leader_now())
            .is_ok()
    }

    pub(crate) fn heartbeat_all(&mut self) {
        let names: Vec<NodeName> = self.specs.keys().cloned().collect();
        for name in names {
            self.heartbeat(name.as_str());
        }
    }

    /// Lets every node report each slot that it must run as ready, and each draining one as released.
    pub(crate) fn obey(&mut self) {
        let specs: Vec<NodeSpec> = self.specs.values().cloned().collect();
        for spec in specs {
            self.obey_node(&spec);
        }
    }

    pub(crate) fn obey_node(&mut self, spec: &NodeSpec) {
        let id = spec.admission.id;
        let mut reports = Vec::new();
        for assignment in desired_for(&self.cluster, id) {
            for order in &assignment.orders {
                let leaves = assignment.draining.contains(&order.slot);
                let state = if leaves { SlotState::Released } else { SlotState::Ready };
                reports.push(report(order, state, ""));
            }
        }
        self.reports.insert(id, reports);
        self.heartbeat(spec.admission.name.as_str());
    }

    pub(crate) fn set_state(&mut self, service: &str, slot: u32, state: SlotState, detail: &str) {
        let (service, slot) = (service_name(service), protocol::SlotIndex(slot));
        let order = self.cluster.services()[&service].slots[&slot].holding.clone().unwrap().order;
        let reports = self.reports.entry(order.node).or_default();
        reports.retain(|known| known.service != service || known.slot != slot);
        reports.push(report(&order, state, detail));
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(self.view())
    }

    /// Plans and executes the plan; returns it.
    pub(crate) fn execute(&mut self) -> Plan {
        let plan = self.plan();
        assert!(plan.dropped.is_empty(), "the planner is wrong: {:?}", plan.dropped);
        self.observed.begin_eviction(&plan);
        if let Some(command) = plan.command(self.clocks.clone()) {
            self.must(command.action);
        }
        plan
    }

    /// Plans, executes and obeys until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200 {
            if self.execute().is_empty() {
                return;
            }
            self.obey();
        }
        panic!("never settles: {:?}", self.plan());
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.set_now(self.now.plus(ms));
    }

    /// Lets time pass while every node sends a request each second.
    pub(crate) fn pass(&mut self, ms: u64) {
        let end = self.now.plus(ms);
        while self.now < end {
            self.set_now(self.now.plus(1000).min(end));
            self.heartbeat_all();
        }
    }

    /// Returns the running slots of a service as `slot@node`.
    pub(crate) fn placements(&self, service: &str) -> Vec<String> {
        let Some(service) = self.cluster.services().get(&service_name(service)) else { return vec![] };
        let runs = service.held().filter(|(_, holding)| holding.phase == HoldingPhase::Running);
        runs.map(|(slot, holding)| format!("{slot}@{}", self.cluster.node_name(&holding.order.node)))
            .collect()
    }
}

/// Returns a member's signed withdrawal of a proposal or of a draft.
pub(crate) fn withdrawn(name: &str, proposal: &Proposal, draft: bool) -> Action {
    let withdrawal = Withdrawal { proposal: proposal.id(), draft, member: member(name) };
    let signed = sign_withdrawal(&secrets()[&member(name)], withdrawal);
    Action::Withdraw { proposal: proposal.id(), withdrawal: Some(Box::new(signed)) }
}

/// Returns the same reading of each replica's clock.
pub(crate) fn all_at(now: Millis) -> ClockReadings {
    (1..=3).map(|id| (ReplicaId(id), WallTime(now))).collect()
}

/// Checks every invariant of a state, and of the change that led to it.
pub(crate) fn check_change(before: &Cluster, after: &Cluster) {
    assert_eq!(after.check_invariants(), Ok(()));
    assert_eq!(before.check_succession(after), Ok(()));
}

pub(crate) fn report(order: &protocol::order::SlotOrder, state: SlotState, detail: &str) -> SlotReport {
    SlotReport {
        service: order.service.clone(),
        slot: order.slot,
        fence: order.fence,
        state,
        detail: detail.into(),
        segments_verified: 3,
        segments_total: 12,
        restarts: if state == SlotState::Failed { 9 } else { 0 },
        metrics: None,
    }
}

/// Returns the code of a refusal, or `ok`.
pub(crate) fn code(reply: &Reply) -> &'static str {
    match reply {
        Reply::Refused { code, .. } => code.as_str(),
        _ => "ok",
    }
}

pub(crate) fn two_nodes() -> World {
    let mut world = World::new(&[node("node-1", 4000, 4096), node("node-2", 4000, 4096)]);
    world.share_model("minilm", 90 << 20);
    world
}

pub(crate) fn running() -> World {
    let mut world = two_nodes();
    world.approve(deploy(manifest("embed", 1, 3, 1000, 128)));
    world.settle();
    world
}

/// Applies an action and returns its outcome; a refusal must change nothing.
pub(crate) fn verdict(world: &World, actor: Actor, action: Action) -> &'static str {
    let mut world = world.clone();
    let before = world.cluster.digest();
    world.wait(5);
    let reply = world.apply(actor, action);
    if code(&reply) != "ok" {
        assert_eq!(world.cluster.digest(), before, "a refusal left a trace: {reply:?}");
    }
    code(&reply)
}

pub(crate) fn check(world: &World, cases: Vec<(&str, Action, &str)>) {
    for (name, action, expected) in cases {
        assert_eq!(verdict(world, Actor::Scheduler, action), expected, "{name}");
    }
}

pub(crate) fn token(name: &str) -> Actor {
    Actor::Token(name.parse().unwrap())
}

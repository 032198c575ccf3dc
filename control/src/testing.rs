//! Fixtures shared by the tests of several modules.

use crate::member_key::MemberKeyFile;
use crate::policy::simple_policy;
use human_chain::CircleState;
use protocol::access::AccessEnvelope;
use protocol::api::{
    History, HistoryPage, ProposalState, ProposalView, RollOutProgress, RollOutView, ServiceView, Status,
};
use protocol::governance::{
    BUNDLE_VERSION, Bundle, Change, Choice, ControlReplica, Genesis, Member, NodeAdmission, NodeRole, Policy,
    Proposal, SignedBallot,
};
use protocol::keys::{ByteString, EncryptionKey, HybridSignature, ML_KEM_768_PUBLIC_KEY_LENGTH};
use protocol::manifest::Manifest;
use protocol::model::{ErasureCode, ModelRecord, StoredKind};
use protocol::usage::{Prices, UsageEntry, UsageRate, bill};
use protocol::{
    Digest, Epoch, Fence, Millis, ModelRoot, NodeId, Passkey, PasskeyAssertion, PasskeyKey, PublicKey,
    ReplicaId, Signature, SlotIndex,
};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the status of a healthy cluster without findings.
pub(crate) fn status() -> Status {
    Status {
        healthy: true,
        summary: "all is well".into(),
        findings: vec![],
        leader: None,
        replicas: 3,
        replicas_silent: vec![],
        nodes: 4,
        nodes_alive: 4,
        services: 2,
        epoch: Epoch(1),
        simulated: vec![],
        not_enforced: vec![],
    }
}

/// Returns a signature that verifies nowhere.
pub(crate) fn hybrid_signature() -> HybridSignature {
    HybridSignature { ed25519: Signature([0; 64]), ml_dsa: ByteString(vec![0; 3309]) }
}

/// Returns the admission of a worker with this name.
pub(crate) fn admission(name: &str) -> NodeAdmission {
    let id = NodeId(PublicKey([7; 32]));
    NodeAdmission {
        name: name.parse().expect("a name"),
        id,
        encryption: EncryptionKey { x25519: id.0, ml_kem: ByteString(vec![7; ML_KEM_768_PUBLIC_KEY_LENGTH]) },
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "local".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: crate::node::UNSIGNED,
    }
}

/// Returns the record of a registered model with this name and architecture, in no store.
pub(crate) fn model_record(name: &str, architecture: &str) -> ModelRecord {
    ModelRecord {
        name: name.parse().expect("a name"),
        kind: StoredKind::Model,
        root: ModelRoot(Digest::of(b"model")),
        bytes: 1,
        segments: 1,
        erasure: ErasureCode { data: 4, parity: 2 },
        stores: Vec::new(),
        architecture: architecture.into(),
    }
}

/// Returns the manifest of the service `mine`, as `quorate new` prints it for a model of this architecture.
pub(crate) fn manifest(architecture: &str) -> Manifest {
    let record = model_record("mine", architecture);
    let text = crate::cli::service_template(&"mine".parse().expect("a name"), &record, 1, 3);
    Manifest::from_toml(&text).expect("the template is valid")
}

/// Returns a roll-out that is over, of an approval that names none to return to.
pub(crate) fn complete_roll_out() -> RollOutView {
    RollOutView {
        progress: RollOutProgress::Complete,
        available: 0,
        failed_starts: 0,
        returns_to: None,
        returned_from: None,
        cause: None,
    }
}

/// Returns the service `mine` with two desired replicas and no slots, approved by this certificate.
pub(crate) fn service_view(certificate: &[u8], ready: u32, ready_current: u32) -> ServiceView {
    ServiceView {
        name: "mine".parse().expect("a name"),
        manifest: manifest("bert"),
        certificate: Digest::of(certificate),
        roll_out: complete_roll_out(),
        desired: 2,
        ready,
        ready_current,
        retiring: false,
        slots: vec![],
    }
}

/// An authenticator in software, with an EdDSA passkey of the relying party `localhost`.
pub(crate) struct SoftwarePasskey {
    key: aws_lc_rs::signature::Ed25519KeyPair,
}

impl SoftwarePasskey {
    /// Flags of an authenticator that saw and verified its user.
    pub(crate) const VERIFIED: u8 = 0x05;
    /// Flags of an authenticator that saw a person, and did not verify it.
    pub(crate) const PRESENT: u8 = 0x01;

    pub(crate) fn new(seed: u8) -> Self {
        let key = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]);
        Self { key: key.expect("a seed") }
    }

    /// Returns the passkey to register.
    pub(crate) fn passkey(&self) -> Passkey {
        use aws_lc_rs::signature::KeyPair;
        let public = self.key.public_key().as_ref().try_into().expect("32 bytes");
        let key = PasskeyKey::EdDsa(PublicKey(public));
        Passkey { credential: ByteString(vec![1; 16]), key, label: "phone".into() }
    }

    /// Signs a challenge as a browser has it signed on a page of this origin.
    pub(crate) fn sign(&self, challenge: &[u8], origin: &str, flags: u8) -> PasskeyAssertion {
        let sha256 =
            |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec();
        let challenge = base64url(challenge);
        let client_data = format!(
            "{{\"type\":\"webauthn.get\",\"challenge\":\"{challenge}\",\"origin\":\"{origin}\",\
             \"crossOrigin\":false}}"
        )
        .into_bytes();
        let data = [&sha256(b"localhost")[..], &[flags], &[0; 4]].concat();
        let signed = [data.as_slice(), &sha256(&client_data)].concat();
        PasskeyAssertion {
            credential: self.passkey().credential,
            signature: ByteString(self.key.sign(&signed).as_ref().to_vec()),
            authenticator_data: ByteString(data),
            client_data: ByteString(client_data),
        }
    }
}

fn base64url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// A circle of alice, bob and carol, two of whom decide, with the keys of all three.
pub(crate) struct SampleCircle {
    pub(crate) members: [MemberKeyFile; 3],
    pub(crate) history: History,
    pub(crate) state: CircleState,
}

impl SampleCircle {
    /// Founds the circle; nothing has been decided.
    pub(crate) fn founded() -> Self {
        Self::founded_with(|policy| policy)
    }

    /// Founds the circle with a policy of its own.
    pub(crate) fn founded_with(edit: impl FnOnce(Policy) -> Policy) -> Self {
        let members =
            ["alice", "bob", "carol"].map(|name| MemberKeyFile::generate(name.parse().expect("a name")));
        let entry = |file: &MemberKeyFile| Member { id: file.member.clone(), keys: file.secret.public() };
        let entries: Vec<Member> = members.iter().map(entry).collect();
        let control = ControlReplica {
            id: ReplicaId(1),
            key: MemberKeyFile::generate("control".parse().expect("a name")).secret.public().ed25519,
            address: "127.0.0.1:1".into(),
            api: "http://127.0.0.1:1".into(),
        };
        let genesis = Genesis {
            name: "lab".into(),
            founded_at: Millis(1),
            policy: edit(simple_policy(&entries, 2)),
            access: AccessEnvelope::standard(entries.iter().map(|entry| entry.id.clone())),
            members: entries,
            control: vec![control],
            nodes: vec![],
        };
        let founders: Vec<_> = members.iter().map(|file| (file.member.clone(), &file.secret)).collect();
        let genesis = human_chain::sign_genesis(genesis, &founders);
        let state = CircleState::found(&genesis, None).expect("a sound genesis");
        Self { members, history: History { genesis, bundles: vec![] }, state }
    }

    /// Returns a proposal to run the service `mine`, made now in the state of the circle.
    pub(crate) fn proposal(&self, reason: &str) -> Proposal {
        self.proposal_of(Change::Deploy(Box::new(manifest("bert"))), reason)
    }

    pub(crate) fn proposal_of(&self, change: Change, reason: &str) -> Proposal {
        self.proposal_at(change, reason, host::wall_clock())
    }

    /// Returns a proposal that was made at this time, for an hour.
    pub(crate) fn proposal_at(&self, change: Change, reason: &str, now: Millis) -> Proposal {
        let nonce = Digest::of(reason.as_bytes());
        human_chain::propose(&self.state, change, reason.into(), now, now.plus(3_600_000), nonce)
            .expect("it may be proposed")
    }

    /// Returns a member's ballot: 0 is alice, 1 is bob, 2 is carol.
    pub(crate) fn ballot(&self, member: usize, proposal: &Proposal, choice: Choice) -> SignedBallot {
        self.ballot_at(member, proposal, choice, host::wall_clock())
    }

    /// Returns a member's ballot as signed at this time.
    pub(crate) fn ballot_at(
        &self,
        member: usize,
        proposal: &Proposal,
        choice: Choice,
        now: Millis,
    ) -> SignedBallot {
        let file = &self.members[member];
        human_chain::vote(&file.secret, file.member.clone(), self.state.head(), proposal, choice, now)
    }

    /// Decides a change with the votes of alice and bob, made so long ago that its waiting time is over.
    pub(crate) fn decide(&mut self, change: Change, reason: &str) {
        let waiting = human_chain::waiting_ms(&self.state, &change);
        let at = Millis(host::wall_clock().0 - waiting);
        let proposal = self.proposal_at(change, reason, at);
        let ballots = [0, 1].map(|member| self.ballot_at(member, &proposal, Choice::Approve, at));
        let certificate = human_chain::certify(&self.state, &proposal, &ballots).expect("a quorum");
        let approved = human_chain::verify(&self.state, &certificate, host::wall_clock()).expect("sound");
        self.state.advance(approved).expect("applicable");
        self.history.bundles.push(Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None });
    }
}

/// Returns the page that a server with this history answers with: the decisions after `after`, or the genesis
/// and all decisions. It names the head of these decisions.
pub(crate) fn history_page(history: &History, after: Option<u64>) -> HistoryPage {
    let certificates = history.bundles.iter().map(|bundle| &bundle.certificate);
    let state = CircleState::replay(&history.genesis, None, certificates).expect("a history that verifies");
    let genesis = after.is_none().then(|| history.genesis.clone());
    let skip = usize::try_from(after.unwrap_or(0)).expect("a few decisions");
    let bundles = history.bundles.iter().skip(skip).cloned().collect();
    HistoryPage { genesis, head: state.head(), bundles, next_page_token: None }
}

/// Parameters of a request for the history, as an honest server reads them.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct HistoryQuery {
    pub(crate) after: Option<u64>,
    pub(crate) page_token: Option<String>,
    pub(crate) page_size: Option<usize>,
}

/// Returns an open proposal as an honest server shows it, with these ballots.
pub(crate) fn proposal_view(proposal: &Proposal, ballots: Vec<SignedBallot>) -> ProposalView {
    let voted = |choice| {
        let chosen = ballots.iter().filter(|signed| signed.ballot.choice == choice);
        chosen.map(|signed| signed.ballot.member.clone()).collect()
    };
    ProposalView {
        id: proposal.id(),
        proposal: proposal.clone(),
        class: human_chain::class_of(&proposal.change),
        state: ProposalState::Open,
        approved: voted(Choice::Approve),
        rejected: voted(Choice::Reject),
        missing: vec![],
        certificate: None,
        takes_effect_at: None,
        proposer: ballots.first().map(|signed| signed.ballot.member.clone()),
        drafted_by: None,
        comments: vec![],
        ballots,
    }
}

/// Returns a sound entry of usage with this number: a minute of a core, at no price.
pub(crate) fn usage_entry(sequence: u64) -> UsageEntry {
    let rate = UsageRate { gpu_millis: 0, cpu_millicores: 1000, memory_mib: 64 };
    UsageEntry {
        sequence,
        envelope: "mine".parse().expect("a name"),
        slot: SlotIndex(0),
        fence: Fence { version: 1, count: sequence },
        certificate: Digest::of(b"certificate"),
        node: NodeId(PublicKey([7; 32])),
        owner: None,
        project: None,
        submitter: None,
        job: None,
        attempt: 0,
        from: Millis(sequence * 60_000),
        until: Millis((sequence + 1) * 60_000),
        rate,
        stored: None,
        price_version: 0,
        amounts: bill(&rate, 60_000, &Prices::default()),
        credit_of: None,
    }
}

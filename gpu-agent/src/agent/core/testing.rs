//! Test fixture: a circle of three members that can decide, and its control replicas that can sign orders. It
//! is shared with the integration tests, so it depends on other crates alone.

use human_chain::{CircleState, MemberSecret, certify, propose, sign_genesis, verify, vote};
use overlay::Identity;
use protocol::access::{ACCESS_VERSION, AccessEnvelope, AccessGrant, GrantedAccess, SignedGrant};
use protocol::agent::{Assignment, Desired};
use protocol::gateway::{Route, RoutedService};
use protocol::governance::{
    ActionClass, BUNDLE_VERSION, Bundle, Change, Choice, ControlReplica, Genesis, HistoryHead, Member,
    NODE_KEYS_DOMAIN, NodeAdmission, NodeRole, Policy, Quorum, SignedGenesis,
};
use protocol::halt::{Halt, HaltScope, SignedHalt};
use protocol::keys::EncryptionKey;
use protocol::manifest::{
    ArtifactChoice, Isolation, JobManifest, JobSubmitters, Manifest, ModelChoice, OnExpiry, Placement,
    ReplicaRange, Resources, RollOutRules, Runtime, ServiceManifest, Task,
};
use protocol::model::{ErasureCode, KeyWrap, ModelRecord, SignedWrap, StoredKind};
use protocol::order::{ORDER_DOMAIN, SignedOrder, SlotOrder};
use protocol::{
    ArtifactRoot, Digest, Fence, MemberId, Millis, ModelName, ModelRoot, NodeId, ReplicaId, Signature,
    SlotIndex, canonical,
};
use std::collections::{BTreeMap, BTreeSet};

/// Default time of all fixtures.
pub(crate) const NOW: Millis = Millis(1_800_000_000_000);

/// A circle, its control replicas, and its decisions.
pub(crate) struct TestCircle {
    pub(crate) founders: Vec<(MemberId, MemberSecret)>,
    pub(crate) control: Vec<Identity>,
    pub(crate) genesis: SignedGenesis,
    pub(crate) state: CircleState,
    pub(crate) bundles: Vec<Bundle>,
    /// Head of the history after each number of decisions.
    pub(crate) heads: Vec<HistoryHead>,
    /// Time of the next decision.
    pub(crate) now: Millis,
}

impl TestCircle {
    /// Creates a circle with these nodes, and a control replica at each address.
    pub(crate) fn new(nodes: Vec<NodeAdmission>, control: &[String], now: Millis) -> Self {
        let secret = |seed: u8| MemberSecret::generate(&[seed; 64]);
        let founders: Vec<(MemberId, MemberSecret)> = [("alice", 1), ("bob", 2), ("carol", 3)]
            .map(|(name, seed)| (name.parse().unwrap(), secret(seed)))
            .into();
        let members = founders.iter().map(|(id, secret)| Member { id: id.clone(), keys: secret.public() });
        let of: Vec<Quorum> = founders.iter().map(|(id, _)| Quorum::Member(id.clone())).collect();
        let rule = |required| Quorum::Threshold { required, of: of.clone() };
        let quorums = BTreeMap::from([(ActionClass::Routine, rule(2)), (ActionClass::Sensitive, rule(2))]);
        let identities: Vec<Identity> =
            (0..control.len()).map(|n| Identity::from_seed(&[100 + n as u8; 32])).collect();
        let replica = |(n, address): (usize, &String)| ControlReplica {
            id: ReplicaId(n as u64 + 1),
            key: identities[n].public_key(),
            address: address.clone(),
            api: "http://127.0.0.1:1".into(),
        };
        let genesis = Genesis {
            name: "test".into(),
            founded_at: now,
            members: members.collect(),
            policy: Policy { quorums, passkeys: None, veto_seconds: 0, proposer_counts: true },
            control: control.iter().enumerate().map(replica).collect(),
            nodes,
            access: AccessEnvelope::standard(founders.iter().map(|(id, _)| id.clone())),
        };
        let signers: Vec<_> = founders.iter().map(|(id, secret)| (id.clone(), secret)).collect();
        let genesis = sign_genesis(genesis, &signers);
        let state = CircleState::found(&genesis, None).unwrap();
        let heads = vec![state.head()];
        Self { founders, control: identities, genesis, state, bundles: vec![], heads, now }
    }

    /// Returns a wrap with the signature of a member, made for this key.
    pub(crate) fn sign_wrap(&self, wrap: KeyWrap, to: &EncryptionKey) -> SignedWrap {
        let (maker, secret) = &self.founders[0];
        human_chain::sign_wrap(secret, maker.clone(), self.state.id(), to, wrap)
    }

    /// Returns the grant of an inference key for an hour, by alice.
    pub(crate) fn key_grant(&self, holder: &str) -> AccessGrant {
        let (issuer, secret) = &self.founders[0];
        AccessGrant {
            version: ACCESS_VERSION,
            circle: self.state.id(),
            envelope: self.state.access_certificate(),
            issuer: issuer.clone(),
            signer: secret.public().ed25519,
            holder: holder.parse().unwrap(),
            access: GrantedAccess::Key { services: None, requests_per_minute: None },
            secret: Digest::of(holder.as_bytes()),
            issued_at: self.now,
            expires_at: self.now.plus(3_600_000),
        }
    }

    /// Signs a grant as alice.
    pub(crate) fn sign_grant(&self, grant: AccessGrant) -> SignedGrant {
        human_chain::sign_grant(&self.founders[0].1, grant)
    }

    /// Returns a halt by a founder: 0 is alice, 1 is bob, 2 is carol.
    pub(crate) fn halt(&self, founder: usize, scope: HaltScope, number: u64) -> SignedHalt {
        let (member, secret) = &self.founders[founder];
        self.halt_by(member.as_str(), secret, scope, number)
    }

    /// Returns a halt by a person, member or not.
    pub(crate) fn halt_by(
        &self,
        member: &str,
        secret: &MemberSecret,
        scope: HaltScope,
        number: u64,
    ) -> SignedHalt {
        let halt = Halt {
            circle: self.state.id(),
            member: member.parse().unwrap(),
            signer: secret.public().ed25519,
            scope,
            reason: "smoke".into(),
            issued_at: self.now,
            nonce: Digest::of(&number.to_le_bytes()),
        };
        human_chain::sign_halt(secret, halt)
    }

    /// Returns the head of the bundles, which a test may have truncated.
    pub(crate) fn served(&self) -> HistoryHead {
        self.heads[self.bundles.len()]
    }

    /// Returns a certificate for a change, signed by two members and not yet part of the chain.
    pub(crate) fn certify(&self, change: Change) -> Bundle {
        let expires = self.now.plus(24 * 3600 * 1000);
        let nonce = Digest::of(&[self.bundles.len() as u8]);
        let proposal = propose(&self.state, change, "test".into(), self.now, expires, nonce).unwrap();
        let ballots: Vec<_> = self.founders[..2]
            .iter()
            .map(|(id, secret)| {
                vote(secret, id.clone(), self.state.head(), &proposal, Choice::Approve, self.now)
            })
            .collect();
        let certificate = certify(&self.state, &proposal, &ballots).unwrap();
        Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None }
    }

    /// Makes the circle decide a change.
    pub(crate) fn decide(&mut self, change: Change) -> Bundle {
        let bundle = self.certify(change);
        let approved = verify(&self.state, &bundle.certificate, self.now).unwrap();
        self.state.advance(approved).unwrap();
        self.heads.push(self.state.head());
        self.bundles.push(bundle.clone());
        bundle
    }

    /// Makes the circle deploy a service.
    pub(crate) fn deploy(&mut self, service: &ServiceManifest) -> Bundle {
        self.decide(Change::Deploy(Box::new(Manifest::Service(service.clone()))))
    }

    /// Returns the content of an order, unsigned.
    pub(crate) fn plain_order(&self, bundle: &Bundle, node: NodeId, slot: u32, fence: u64) -> SlotOrder {
        let Change::Deploy(manifest) = &bundle.certificate.proposal.change else { panic!("no deployment") };
        SlotOrder {
            circle: self.state.id(),
            service: manifest.name().clone(),
            certificate: bundle.certificate.digest(),
            slot: SlotIndex(slot),
            fence: Fence::new(bundle.certificate.proposal.subjects[0].version + 1, fence),
            node,
            gpus: vec![],
            issued_at: self.now,
        }
    }

    /// Returns an order signed by the first control replica.
    pub(crate) fn order(&self, bundle: &Bundle, node: NodeId, slot: u32, fence: u64) -> SignedOrder {
        self.sign(0, self.plain_order(bundle, node, slot, fence))
    }

    /// Returns an order signed by the given replica.
    pub(crate) fn sign(&self, replica: usize, order: SlotOrder) -> SignedOrder {
        let signer = &self.control[replica];
        let signature = signer.sign(ORDER_DOMAIN, &canonical::to_bytes(&order));
        SignedOrder { order, signer: signer.public_key(), signature }
    }
}

/// Returns a node's admission.
pub(crate) fn admission(name: &str, identity: &Identity, encryption: EncryptionKey) -> NodeAdmission {
    let admission = NodeAdmission {
        name: name.parse().unwrap(),
        id: NodeId(identity.public_key()),
        encryption,
        roles: BTreeSet::from([NodeRole::Worker]),
        region: "here".into(),
        owner: None,
        labels: BTreeMap::new(),
        storage: None,
        gateway: None,
        proof: Signature([0; 64]),
    };
    claimed_by(identity, admission)
}

/// Lets a node claim the keys of its admission.
pub(crate) fn claimed_by(identity: &Identity, mut admission: NodeAdmission) -> NodeAdmission {
    admission.proof = identity.sign(NODE_KEYS_DOMAIN, &admission.key_claim());
    admission
}

/// Returns a model's name: each root has another one, since a name is bound to the first.
pub(crate) fn model_name(root: ModelRoot) -> ModelName {
    format!("tiny-{}", root.short()).parse().unwrap()
}

/// Returns a service with small resource requests.
pub(crate) fn service(name: &str, root: ModelRoot, max: u32) -> ServiceManifest {
    ServiceManifest {
        name: name.parse().unwrap(),
        model: ModelChoice { name: model_name(root), root },
        task: Task::Embed,
        runtime: Runtime::Candle,
        replicas: ReplicaRange { min: 1, max },
        resources: Resources {
            cpu_millicores: 500,
            memory_bytes: 256 << 20,
            gpu_count: 0,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        },
        placement: Placement { regions: vec![], node_selector: BTreeMap::new(), isolation: Isolation::None },
        egress: vec![],
        spend_micro_units_per_hour: None,
        valid_until: None,
        on_expiry: OnExpiry::Hold,
        autonomy_seconds: protocol::limits::AUTONOMY_SECONDS_DEFAULT,
        exclusive: false,
        priority: protocol::limits::PRIORITY_DEFAULT,
        rollout: RollOutRules::default(),
        context_tokens_max: None,
        batch_sequences_max: 4,
    }
}

/// Returns a job of two ranks in one slot, with small resource requests.
pub(crate) fn job(name: &str) -> JobManifest {
    JobManifest {
        name: name.parse().unwrap(),
        project: None,
        artifact: Some(ArtifactChoice {
            name: "trainer".parse().unwrap(),
            root: ArtifactRoot(Digest::of(b"tree")),
        }),
        command: Some(vec!["/bin/train".into()]),
        environment: BTreeMap::new(),
        parameters: BTreeMap::new(),
        models: vec![],
        datasets: vec![],
        ranks: 2,
        ranks_per_slot: 2,
        slots: 4,
        resources: Resources {
            cpu_millicores: 500,
            memory_bytes: 256 << 20,
            gpu_count: 0,
            gpu_share_percent: 0,
            gpu_memory_bytes: 0,
        },
        gpu_models: vec![],
        placement: Placement { regions: vec![], node_selector: BTreeMap::new(), isolation: Isolation::None },
        egress: vec![],
        priority: protocol::limits::PRIORITY_DEFAULT,
        run_seconds_max: 3600,
        grace_seconds: 10,
        autonomy_seconds: 3600,
        retries: 0,
        checkpoints: 0,
        budget: None,
        submit: JobSubmitters { any_token: true, ..JobSubmitters::default() },
        valid_until: None,
    }
}

/// Returns control's record of a model that is stored nowhere, and takes no memory.
pub(crate) fn record(root: ModelRoot) -> ModelRecord {
    ModelRecord {
        name: "tiny".parse().unwrap(),
        kind: StoredKind::Model,
        root,
        bytes: 0,
        segments: 1,
        erasure: ErasureCode { data: 1, parity: 0 },
        stores: vec![],
        architecture: "bert".into(),
    }
}

/// Returns a service of the model `model`, with slots and the nodes that hold them.
pub(crate) fn routed(name: &str, holders: &[(u32, NodeId)]) -> RoutedService {
    let route = |(slot, node): &(u32, NodeId)| Route {
        slot: SlotIndex(*slot),
        fence: Fence::default(),
        node: *node,
        draining: false,
    };
    RoutedService {
        service: name.parse().unwrap(),
        model: model_name(ModelRoot(Digest::of(b"model"))),
        task: Task::Embed,
        routes: holders.iter().map(route).collect(),
    }
}

/// Returns a desired state with one deployment.
pub(crate) fn desired(bundle: &Bundle, orders: Vec<SignedOrder>, draining: &[u32]) -> Desired {
    let Change::Deploy(manifest) = &bundle.certificate.proposal.change else { panic!("no deployment") };
    let Manifest::Service(service) = manifest.as_ref() else { panic!("no service") };
    let assignment = Assignment {
        certificate: bundle.certificate.digest(),
        orders,
        draining: draining.iter().map(|slot| SlotIndex(*slot)).collect(),
        model: record(service.model.root),
        wrap: None,
    };
    Desired { assignments: vec![assignment], routes: None, jobs: vec![] }
}

//! Sample proposals, one per kind of change, for renderings and properties.

use crate::authenticator::{Authenticator, passkey_policy};
use crate::support::{HOUR, NOW, circle, deploy, forget, halt, member, name, node, policy, retire, secret};
use protocol::access::AccessEnvelope;
use protocol::governance::{Change, NodeRole, Policy, Proposal, SubjectVersion};
use protocol::halt::HaltScope;
use protocol::keys::{ByteString, HybridSignature};
use protocol::manifest::{
    ArtifactChoice, Decimal, EdgeManifest, Isolation, JobBudget, JobManifest, JobParameter, JobSubmitters,
    Manifest, ModelChoice, OnExpiry, OnFailure, ParameterRule, Placement, ReplicaRange, Resources,
    RollOutRules, Runtime, ServiceManifest, SubmitKey, Task, TextCharacters,
};
use protocol::project::{Project, ProjectQuota, ProjectTree};
use protocol::usage::Prices;
use protocol::{ArtifactRoot, Digest, ModelRoot, Signature};
use std::collections::BTreeMap;

/// Returns every kind of change, with the name of its golden file. Not all of them can be approved: a
/// renderer must render any proposal.
pub(crate) fn proposals() -> Vec<(&'static str, Proposal)> {
    let all = [NodeRole::Worker, NodeRole::Storage, NodeRole::Gateway];
    let mut readmitted = node("n1", &all);
    readmitted.labels = BTreeMap::from([("gpu".into(), "h200".into()), ("row \"7\"".into(), "ö".into())]);
    let of_vision = JobManifest { project: Some(name("vision")), ..full_job() };
    let members = ["alice", "bob", "carol", "dave", "erin"].map(member).to_vec();
    let mut rules =
        policy("3 of (alice, bob, carol, dave, erin)", "2 of (2 of (alice, bob, carol), 2 of (dave, erin))");
    rules.veto_seconds = 86_400;
    // A proof that does not hold, but is the same each time.
    let proof = HybridSignature { ed25519: Signature([7; 64]), ml_dsa: ByteString(vec![7; 3309]) };
    let proofs = ["dave", "erin"].map(|who| (name(who), proof.clone())).into();
    let halts = [Digest::of(b"one"), Digest::of(b"two")].into();
    let envelope = AccessEnvelope {
        services: Some(["chat", "embed"].map(name).into()),
        ends_earlier: true,
        ..AccessEnvelope::standard(["alice", "bob"].map(name))
    };
    let suspended = Change::SuspendMember { member: name("bob"), halts };
    let mut hostile = plain(deploy(4), "service/embed", None);
    hostile.reason =
        "Nothing.\ncircle                             0000\u{202e}gnihton\u{202c} \u{200b}\"quoted\" \
        p\u{430}ypal \u{ff41} \u{0} café \\u{202e}"
            .into();
    vec![
        ("deploy", plain(deploy(4), "service/embed", None)),
        (
            "deploy-everything",
            plain(Change::Deploy(Box::new(Manifest::Service(full_service()))), "service/chat", Some(b"old")),
        ),
        ("retire", plain(retire("embed"), "service/embed", Some(b"old"))),
        ("admit-node", plain(Change::AdmitNode(Box::new(node("n9", &[NodeRole::Worker]))), "node/n9", None)),
        ("readmit-node", plain(Change::AdmitNode(Box::new(readmitted)), "node/n1", Some(b"old"))),
        ("remove-node", plain(Change::RemoveNode { node: name("n2") }, "node/n2", Some(b"old"))),
        ("forget-model", plain(forget("llama-3.1_8b", 604_800), "model/llama-3.1_8b", None)),
        ("lift", plain(lift_all(), "halts", None)),
        ("set-members", plain(Change::SetMembers { members, policy: rules, proofs }, "circle", Some(b"old"))),
        ("set-passkeys", plain(set_passkeys(), "passkeys/alice", None)),
        (
            "drop-passkeys",
            plain(
                Change::SetPasskeys { member: name("alice"), passkeys: vec![] },
                "passkeys/alice",
                Some(b"old"),
            ),
        ),
        (
            "passkeys-count",
            Proposal { passkeys_count: true, ..plain(retire("embed"), "service/embed", Some(b"old")) },
        ),
        ("set-members-passkeys", plain(set_policy(), "circle", Some(b"old"))),
        ("suspend-member", plain(suspended, "member/bob", None)),
        ("set-prices", plain(Change::SetPrices(prices()), "prices", Some(b"old"))),
        ("set-projects", plain(Change::SetProjects(Box::new(projects())), "projects", Some(b"old"))),
        ("set-access", plain(Change::SetAccess(Box::new(envelope)), "access", Some(b"old"))),
        ("job", plain(Change::Deploy(Box::new(Manifest::Job(full_job()))), "service/train", None)),
        ("job-of-project", plain(Change::Deploy(Box::new(Manifest::Job(of_vision))), "service/train", None)),
        ("job-open", plain(Change::Deploy(Box::new(Manifest::Job(open_job()))), "service/train", None)),
        ("edge", plain(Change::Deploy(Box::new(Manifest::Edge(edge()))), "service/detector", None)),
        ("hostile-reason", hostile),
    ]
}

/// Returns prices that differ from one another.
pub(crate) fn prices() -> Prices {
    Prices {
        gpu_hour_micro_units: 2_500_000,
        cpu_hour_micro_units: 40_000,
        memory_gib_hour_micro_units: 5_001,
        storage_gib_hour_micro_units: 301,
        million_prompt_tokens_micro_units: 500_000,
        million_generated_tokens_micro_units: 1_500_003,
    }
}

/// Returns projects of both depths, with and without a limit of what they borrow.
pub(crate) fn projects() -> ProjectTree {
    let quota = |cpu_millicores, memory_gib: u64, gpus| ProjectQuota {
        cpu_millicores,
        memory_bytes: memory_gib << 30,
        gpus,
    };
    let project = |own: &str, parent: Option<&str>, weight, quota, borrow| Project {
        name: name(own),
        parent: parent.map(name),
        weight,
        quota,
        borrow,
    };
    ProjectTree {
        half_life_seconds: 7 * 86_400,
        own_weight: 1,
        projects: vec![
            project("operations", None, 1, quota(0, 0, 0), None),
            project("research", None, 3, quota(64_000, 512, 16), Some(quota(32_000, 256, 8))),
            project("vision", Some("research"), 2, quota(16_000, 128, 4), Some(quota(0, 0, 12))),
        ],
    }
}

/// Returns the lift of a halt of each scope.
pub(crate) fn lift_all() -> Change {
    let state = circle();
    let mut spoken = halt(&state, "bob", HaltScope::Region("ghent".into()), "3");
    spoken.reason = "Smoke.\n\u{202e}| lift.9".into();
    human_chain::lift(vec![
        halt(&state, "alice", HaltScope::Service(name("embed")), "1"),
        halt(&state, "alice", HaltScope::Node(name("n1")), "2"),
        spoken,
        halt(&state, "carol", HaltScope::Circle, "4"),
    ])
}

fn plain(change: Change, subject: &str, value: Option<&[u8]>) -> Proposal {
    let subject = SubjectVersion {
        subject: subject.into(),
        version: u64::from(value.is_some()) * 3,
        value: value.map(Digest::of),
    };
    Proposal {
        circle: circle().id(),
        epoch: protocol::Epoch(1),
        history: circle().head(),
        subjects: vec![subject],
        change,
        passkeys_count: false,
        reason: "because".into(),
        created_at: NOW,
        expires_at: NOW.plus(HOUR),
        nonce: Digest::of(b"nonce"),
    }
}

fn set_passkeys() -> Change {
    let passkeys = vec![
        Authenticator::es256("alice phone").passkey("phone"),
        Authenticator::eddsa("alice spare").passkey("spare \"key\""),
    ];
    Change::SetPasskeys { member: name("alice"), passkeys }
}

/// Returns a change of the policy alone: routine changes may be approved by passkey.
fn set_policy() -> Change {
    let members = vec![member("alice")];
    Change::SetMembers {
        members,
        policy: Policy { passkeys: Some(passkey_policy()), ..policy("alice", "alice") },
        proofs: [].into(),
    }
}

fn model() -> ModelChoice {
    ModelChoice { name: name("llama-3.1_8b"), root: ModelRoot(Digest::of(b"llama")) }
}

fn resources() -> Resources {
    Resources {
        cpu_millicores: 4000,
        memory_bytes: 16 << 30,
        gpu_count: 2,
        gpu_share_percent: 0,
        gpu_memory_bytes: 80 << 30,
    }
}

fn placement() -> Placement {
    Placement {
        regions: vec!["ghent".into(), "oslo".into()],
        node_selector: BTreeMap::from([("gpu".into(), "h200".into())]),
        isolation: Isolation::Full,
    }
}

/// Returns a service with every optional field set.
pub(crate) fn full_service() -> ServiceManifest {
    ServiceManifest {
        name: name("chat"),
        model: model(),
        task: Task::Generate,
        runtime: Runtime::Candle,
        replicas: ReplicaRange { min: 3, max: 3 },
        resources: resources(),
        placement: placement(),
        egress: vec!["api.example".into()],
        spend_micro_units_per_hour: Some(2_500_000),
        valid_until: Some(NOW.plus(1000 * HOUR)),
        on_expiry: OnExpiry::Drain,
        autonomy_seconds: 3,
        exclusive: true,
        priority: 70,
        rollout: RollOutRules {
            ready_seconds: 10,
            max_unavailable: 2,
            failure_limit: 3,
            on_failure: OnFailure::Return,
        },
        context_tokens_max: Some(8192),
        batch_sequences_max: 64,
    }
}

/// Returns a job with every optional field set but its project, which a tree would have to name.
pub(crate) fn full_job() -> JobManifest {
    let parameter = |rule, default: Option<&str>| JobParameter { rule, default: default.map(str::to_string) };
    let characters = TextCharacters::Path;
    let decimal = |text: &str| -> Decimal { text.parse().expect("a decimal number") };
    let (least, most) = (decimal("0.0001"), decimal("1"));
    let parameters = BTreeMap::from([
        (name("steps"), parameter(ParameterRule::Integer { least: 1, most: 1000 }, Some("100"))),
        (name("rate"), parameter(ParameterRule::Decimal { least, most }, Some("0.1"))),
        (name("mode"), parameter(ParameterRule::Choice(vec!["fast".into(), "slow, 2".into()]), Some("fast"))),
        (name("file"), parameter(ParameterRule::Text { length: 32, characters }, None)),
    ]);
    let command =
        ["/bin/train", "--lr, 1", "--steps={steps}", "{rate}", "{mode}", "/datasets/{file}", "{{}}"];
    let robot = secret("robot").public();
    let signers = [(name("robot"), SubmitKey { ed25519: robot.ed25519, ml_dsa: robot.ml_dsa })].into();
    let budget = JobBudget { period_seconds: 86_400, gpu_seconds: Some(7200), spend_micro_units: Some(5) };
    JobManifest {
        name: name("train"),
        project: None,
        artifact: Some(ArtifactChoice { name: name("trainer"), root: ArtifactRoot(Digest::of(b"tree")) }),
        command: Some(command.map(str::to_string).to_vec()),
        environment: BTreeMap::from([("XLA_FLAGS".into(), "--xla \"1\"".into())]),
        parameters,
        models: vec![model()],
        datasets: vec![ModelChoice { name: name("corpus"), root: ModelRoot(Digest::of(b"corpus")) }],
        ranks: 8,
        ranks_per_slot: 2,
        slots: 6,
        resources: resources(),
        gpu_models: vec!["NVIDIA H100".into(), "NVIDIA H200".into()],
        placement: Placement {
            regions: Vec::new(),
            node_selector: BTreeMap::new(),
            isolation: Isolation::None,
        },
        egress: Vec::new(),
        priority: 10,
        run_seconds_max: 86_400,
        grace_seconds: 60,
        autonomy_seconds: 3600,
        retries: 3,
        checkpoints: 2,
        budget: Some(budget),
        submit: JobSubmitters { any_token: false, tokens: [name("ci")].into(), members: true, signers },
        valid_until: Some(NOW.plus(1000 * HOUR)),
    }
}

/// Returns a job of which each submission names artifact and command.
pub(crate) fn open_job() -> JobManifest {
    let submit = JobSubmitters { members: true, ..JobSubmitters::default() };
    JobManifest {
        artifact: None,
        command: None,
        environment: BTreeMap::new(),
        parameters: BTreeMap::new(),
        gpu_models: Vec::new(),
        budget: None,
        submit,
        valid_until: None,
        ..full_job()
    }
}

fn edge() -> EdgeManifest {
    EdgeManifest {
        name: name("detector"),
        model: model(),
        sites: "ca-*".into(),
        waves_percent: vec![1, 10, 100],
        rollback: Some(ModelRoot(Digest::of(b"before"))),
    }
}

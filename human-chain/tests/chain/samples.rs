//! Sample proposals, one per kind of change, for renderings and properties.

use crate::support::{HOUR, NOW, circle, deploy, member, name, node, policy, retire};
use protocol::governance::{Change, NodeRole, Proposal, SubjectVersion};
use protocol::manifest::{
    EdgeManifest, Isolation, JobManifest, Manifest, ModelChoice, OnExpiry, Placement, ReplicaRange,
    Resources, Runtime, ServiceManifest, Task,
};
use protocol::{Digest, ModelRoot};
use std::collections::BTreeMap;

/// Returns every kind of change, with the name of its golden file. Not all of them can be approved: a
/// renderer must render any proposal.
pub(crate) fn proposals() -> Vec<(&'static str, Proposal)> {
    let all = [NodeRole::Worker, NodeRole::Storage, NodeRole::Gateway];
    let mut readmitted = node("n1", &all);
    readmitted.labels = BTreeMap::from([("gpu".into(), "h200".into()), ("row \"7\"".into(), "ö".into())]);
    let members = ["alice", "bob", "carol", "dave", "erin"].map(member).to_vec();
    let rules =
        policy("3 of (alice, bob, carol, dave, erin)", "2 of (2 of (alice, bob, carol), 2 of (dave, erin))");
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
        ("set-members", plain(Change::SetMembers { members, policy: rules }, "circle", Some(b"old"))),
        ("job", plain(Change::Deploy(Box::new(Manifest::Job(job()))), "service/train", None)),
        ("edge", plain(Change::Deploy(Box::new(Manifest::Edge(edge()))), "service/detector", None)),
        ("hostile-reason", hostile),
    ]
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
        reason: "because".into(),
        created_at: NOW,
        expires_at: NOW.plus(HOUR),
        nonce: Digest::of(b"nonce"),
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
        context_tokens_max: Some(8192),
        batch_sequences_max: 64,
    }
}

fn job() -> JobManifest {
    JobManifest {
        name: name("train"),
        artefact: Digest::of(b"artefact"),
        command: vec!["bin/train".into(), "--lr, 1".into()],
        ranks: 8,
        resources: resources(),
        placement: Placement {
            regions: Vec::new(),
            node_selector: BTreeMap::new(),
            isolation: Isolation::None,
        },
        egress: Vec::new(),
        run_seconds_max: 86_400,
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

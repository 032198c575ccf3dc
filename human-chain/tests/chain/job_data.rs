//! Tests of statements about checkpoints and outputs: a node's word counts for data that it made under its
//! own key, for the job that it names, and for later attempts alone.

use crate::jobs::{BOTH, approved, n1, order, sign_order};
use crate::samples::full_job;
use crate::support::{NOW, check, enact, key, name, node, signing_key, suspend};
use ed25519_dalek::Signer;
use human_chain::{
    CircleState, JobGrant, check_checkpoint, check_job_data, check_job_order, data_recipients,
};
use protocol::canonical::to_bytes;
use protocol::governance::{Change, NodeRole};
use protocol::job::SlotRanks;
use protocol::job_data::{
    JOB_DATA_DOMAIN, JOB_DATA_WRAPS_MAX, JobData, JobDataKind, SignedJobData, wraps_digest,
};
use protocol::keys::signing_input;
use protocol::manifest::JobManifest;
use protocol::model::{ErasureCode, ModelRecord, Recipient, StoreReference, StoredKind};
use protocol::{ArtifactRoot, Digest, Fence, JobId, ModelRoot, NodeId, Signature, SlotIndex};

/// Returns the grant of a slot in the third attempt of the sample job.
fn grant(state: &CircleState) -> JobGrant {
    let mut order = order(state);
    order.attempt = 3;
    check_job_order(state, &sign_order(order, "control"), n1(), None, NOW).expect("sound").into_inner()
}

/// Returns a sound statement about a checkpoint of the second attempt.
fn data(state: &CircleState) -> JobData {
    let stored = ModelRecord {
        name: name("train.step-100"),
        kind: StoredKind::JobData { tree: ArtifactRoot(Digest::of(b"tree")) },
        root: ModelRoot(Digest::of(b"stored")),
        bytes: 1 << 20,
        segments: 1,
        erasure: ErasureCode { data: 1, parity: 0 },
        stores: vec![StoreReference { url: "node://n1/disk-0".into(), failure_domain: "n1".into() }],
        architecture: "data".into(),
    };
    JobData {
        version: 1,
        circle: state.id(),
        node: n1(),
        job: name("train"),
        id: grant(state).id,
        attempt: 2,
        slot: SlotIndex(0),
        fence: Fence::new(1, 2),
        ranks: SlotRanks { first: 0, count: 2 },
        kind: JobDataKind::Checkpoint(name("step-100")),
        stored,
        key_commitment: Digest::of(b"key"),
        wraps: wraps_digest(&[]),
    }
}

fn sign(data: JobData, who: &str) -> SignedJobData {
    let input = signing_input(JOB_DATA_DOMAIN, &to_bytes(&data));
    SignedJobData { data, signature: Signature(signing_key(who).sign(&input).to_bytes()) }
}

type Alter = fn(&mut JobData);

/// Attacks of a hostile node, which signs any statement: each alters one field of a sound one.
const STATEMENTS: [(&str, Alter); 13] = [
    ("approved", |_| {}),
    ("approved", |d| d.kind = JobDataKind::Outputs),
    ("approved", |d| d.attempt = 9),
    ("job-data-invalid: another release", |d| d.version = 2),
    ("circle-mismatch: belongs to circle", |d| d.circle.0.0[0] ^= 1),
    ("job-data-invalid: no data of a job", |d| d.stored.kind = StoredKind::Model),
    ("job-data-invalid: no data of a job", |d| {
        d.stored.kind = StoredKind::Artifact { tree: ArtifactRoot(Digest::of(b"tree")) };
    }),
    ("job-data-invalid: rank 0", |d| d.ranks.first = 1),
    ("job-data-invalid: no rank", |d| d.ranks.count = 0),
    ("job-data-invalid: no rank", |d| d.attempt = 0),
    ("approved", |d| (d.kind, d.ranks.first) = (JobDataKind::Logs, 1)),
    ("job-data-invalid: no rank", |d| (d.kind, d.ranks.count) = (JobDataKind::Logs, 0)),
    ("node-not-admitted", |d| d.node = NodeId(key("n9"))),
];

#[test]
fn a_statement_is_of_an_admitted_node_about_data_of_a_job() {
    let state = approved(full_job());
    for (number, (expected, alter)) in STATEMENTS.iter().enumerate() {
        let mut altered = data(&state);
        alter(&mut altered);
        let who = if altered.node == n1() { "n1" } else { "n9" };
        check(&format!("statement {number}"), check_job_data(&state, &sign(altered, who)), expected);
    }
}

/// The attacks are a statement that another node signs, and one that is altered after it was signed.
#[test]
fn a_statement_is_signed_by_the_node_that_it_names() {
    let state = approved(full_job());
    let refused = "job-data-invalid: did not sign";
    check("by another node", check_job_data(&state, &sign(data(&state), "n2")), refused);
    check("by control", check_job_data(&state, &sign(data(&state), "control")), refused);
    let sound = sign(data(&state), "n1");
    check("as signed", check_job_data(&state, &sound), "approved");
    let altered: [Alter; 6] = [
        |d| d.stored.root.0.0[0] ^= 1,
        |d| d.stored.kind = StoredKind::JobData { tree: ArtifactRoot(Digest::of(b"other")) },
        |d| d.key_commitment.0[0] ^= 1,
        |d| d.wraps.0[0] ^= 1,
        |d| d.fence.count += 1,
        |d| d.id.0.0[0] ^= 1,
    ];
    for (number, alter) in altered.iter().enumerate() {
        let mut forged = sound.clone();
        alter(&mut forged.data);
        check(&format!("alteration {number}"), check_job_data(&state, &forged), refused);
    }
}

/// Attacks of a hostile control, which chooses the checkpoint with which an attempt begins.
#[test]
fn an_attempt_begins_with_a_checkpoint_of_its_own_job_and_of_an_earlier_attempt() {
    let state = approved(full_job());
    let cases: [(&str, Alter); 8] = [
        ("approved", |_| {}),
        ("approved", |d| d.attempt = 1),
        ("job-data-invalid: no earlier attempt", |d| d.attempt = 3),
        ("job-data-invalid: no earlier attempt", |d| d.attempt = 4),
        ("job-data-invalid: another job", |d| d.id = JobId(Digest::of(b"another submission"))),
        ("job-data-invalid: another job", |d| d.job = name("other")),
        ("job-data-invalid: no checkpoint", |d| d.kind = JobDataKind::Outputs),
        ("job-data-invalid: no checkpoint", |d| d.kind = JobDataKind::Logs),
    ];
    for (number, (expected, alter)) in cases.iter().enumerate() {
        let mut altered = data(&state);
        alter(&mut altered);
        let outcome = check_checkpoint(&state, &sign(altered, "n1"), &grant(&state));
        check(&format!("checkpoint {number}"), outcome, expected);
    }
}

/// The attack is a stolen node, which the circle has removed: its checkpoints count no more.
#[test]
fn the_checkpoints_of_a_removed_node_do_not_count() {
    let mut state = approved(full_job());
    enact(&mut state, Change::AdmitNode(Box::new(node("n7", &[NodeRole::Worker]))), &BOTH);
    let stolen = |state: &CircleState| sign(JobData { node: NodeId(key("n7")), ..data(state) }, "n7");
    let signed = stolen(&state);
    check("admitted", check_checkpoint(&state, &signed, &grant(&state)), "approved");
    enact(&mut state, Change::RemoveNode { node: name("n7") }, &BOTH);
    check("removed", check_checkpoint(&state, &signed, &grant(&state)), "node-not-admitted");
}

#[test]
fn the_key_goes_to_active_members_and_to_workers_that_the_envelope_admits() {
    let mut state = approved(full_job());
    let mut elsewhere = node("n7", &[NodeRole::Worker]);
    elsewhere.region = "oslo".into();
    let elsewhere = crate::support::claimed_by("n7", elsewhere);
    enact(&mut state, Change::AdmitNode(Box::new(elsewhere)), &BOTH);
    let of_kind = |state: &CircleState, job: &JobManifest, kind| -> Vec<Recipient> {
        data_recipients(state, job, &kind).into_iter().map(|(recipient, _)| recipient).collect()
    };
    let of = |state: &CircleState, job: &JobManifest| of_kind(state, job, JobDataKind::Outputs);
    let members = ["alice", "bob", "carol"].map(|who| Recipient::Member(name(who)));
    let nodes = |names: &[&str]| -> Vec<Recipient> {
        names.iter().map(|who| Recipient::Node(NodeId(key(who)))).collect()
    };
    let sorted = |mut all: Vec<Recipient>| {
        all.sort();
        all
    };
    let mut job = full_job();
    assert_eq!(sorted(of(&state, &job)), sorted([&members[..], &nodes(&["n1", "n7"])].concat()));
    let logs = of_kind(&state, &job, JobDataKind::Logs);
    assert_eq!(sorted(logs), sorted(members.to_vec()), "no node reads logs");
    job.placement.regions = vec!["ghent".into()];
    assert_eq!(sorted(of(&state, &job)), sorted([&members[..], &nodes(&["n1"])].concat()));
    job.placement.node_selector.insert("disk".into(), "tape".into());
    assert_eq!(sorted(of(&state, &job)), sorted(members.to_vec()));
    enact(&mut state, suspend("carol"), &BOTH);
    assert_eq!(sorted(of(&state, &job)), sorted(members[..2].to_vec()), "a thief of keys gets none");
    assert!(of(&state, &job).len() <= JOB_DATA_WRAPS_MAX);
}

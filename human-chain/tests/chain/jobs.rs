//! Tests of jobs: a node runs what a submission chose within an approved manifest, and nothing that control
//! adds to it.

use crate::samples::{full_job, open_job};
use crate::support::{
    HOUR, NOW, check, circle, deploy, enact, forget, key, name, node, retire, secret, signing_key, suspend,
    try_propose,
};
use ed25519_dalek::Signer;
use human_chain::{CircleState, FENCE_LEAP_MAX, check_gang, check_job_order, check_submission};
use protocol::canonical::{from_bytes, to_bytes};
use protocol::governance::{Change, NodeRole};
use protocol::job::{
    ArrayTask, JOB_ORDER_DOMAIN, JobOrder, JobSubmission, SUBMISSION_DOMAIN, SignedJobOrder,
    SignedSubmission, SlotRanks, Submitter,
};
use protocol::keys::signing_input;
use protocol::limits::{CLOCK_GRACE_MS, JOB_AFTER_MAX, SUBMISSION_SECONDS_MAX};
use protocol::manifest::{ArtifactChoice, JobManifest, Manifest};
use protocol::{ArtifactRoot, Digest, Fence, JobId, Millis, NodeId, Signature, SlotIndex};

pub(crate) const BOTH: [&str; 2] = ["alice", "bob"];

pub(crate) fn approve_job(state: &mut CircleState, job: JobManifest) {
    enact(state, Change::Deploy(Box::new(Manifest::Job(job))), &BOTH);
}

/// Returns a circle with this job in force.
pub(crate) fn approved(job: JobManifest) -> CircleState {
    let mut state = circle();
    approve_job(&mut state, job);
    state
}

pub(crate) fn n1() -> NodeId {
    NodeId(key("n1"))
}

/// Returns a sound submission by the holder of a token.
fn submission(state: &CircleState) -> JobSubmission {
    let job = state.job(&name("train"));
    JobSubmission {
        circle: state.id(),
        job: name("train"),
        certificate: job.map_or(Digest([0; 32]), |job| job.certificate),
        idempotency: Digest::of(b"key"),
        parameters: [(name("file"), "a/b".to_string())].into(),
        artifact: None,
        command: None,
        priority: 10,
        submitter: Submitter::Token(name("ci")),
        issued_at: NOW,
        deadline: NOW.plus(HOUR),
        after: vec![],
        array: None,
    }
}

fn unsigned(submission: JobSubmission) -> SignedSubmission {
    SignedSubmission { submission, signature: None }
}

fn signed_by(who: &str, submission: JobSubmission) -> SignedSubmission {
    let signature = secret(who).sign(SUBMISSION_DOMAIN, &to_bytes(&submission));
    SignedSubmission { submission, signature: Some(signature) }
}

/// Returns a sound order for the last slot, with its last ranks.
pub(crate) fn order(state: &CircleState) -> JobOrder {
    let submission = unsigned(submission(state));
    JobOrder {
        circle: state.id(),
        certificate: submission.submission.certificate,
        submission,
        attempt: 1,
        slot: SlotIndex(5),
        fence: Fence::new(state.job(&name("train")).map_or(1, |job| job.version), 5),
        node: n1(),
        ranks: SlotRanks { first: 6, count: 2 },
        gpus: ["GPU-a", "GPU-b", "GPU-c", "GPU-d"].map(str::to_string).to_vec(),
        issued_at: NOW,
    }
}

pub(crate) fn sign_order(order: JobOrder, who: &str) -> SignedJobOrder {
    let signature = signing_key(who).sign(&signing_input(JOB_ORDER_DOMAIN, &to_bytes(&order)));
    SignedJobOrder { order, signer: key(who), signature: Signature(signature.to_bytes()) }
}

#[test]
fn an_order_grants_the_ranks_of_one_slot() {
    let state = approved(full_job());
    let order = order(&state);
    let grant =
        check_job_order(&state, &sign_order(order.clone(), "control"), n1(), None, NOW).expect("sound");
    let job = state.job(&name("train")).expect("approved");
    assert_eq!((grant.certificate_digest(), grant.proposal()), (job.certificate, job.proposal));
    let grant = grant.into_inner();
    assert_eq!((grant.id, grant.attempt), (order.submission.submission.id(), 1));
    assert_eq!((grant.slot, grant.fence, grant.node), (SlotIndex(5), Fence::new(1, 5), n1()));
    assert_eq!(grant.hosts, ["rank-6", "rank-7"]);
    let devices = grant.ranks.iter().map(|rank| rank.environment["CUDA_VISIBLE_DEVICES"].as_str());
    assert_eq!(devices.collect::<Vec<_>>(), ["GPU-a,GPU-b", "GPU-c,GPU-d"], "each rank has its own");
    let arguments = ["/bin/train", "--lr, 1", "--steps=100", "0.1", "fast", "/datasets/a/b", "{}"];
    assert!(grant.ranks.iter().all(|rank| rank.arguments == arguments), "{:?}", grant.ranks);
}

type Alter = fn(&mut JobOrder);

/// Attacks of a hostile control, which signs any order: each alters one field of a sound order. The
/// first four are sound.
const ALTERATIONS: [(&str, Alter); 27] = [
    ("approved", |_| {}),
    ("approved", |o| o.slot = SlotIndex(0)),
    ("approved", |o| {
        o.ranks = SlotRanks { first: 0, count: 1 };
        o.gpus.truncate(2);
    }),
    ("approved", |o| o.attempt = u32::MAX),
    ("order-mismatch: another circle", |o| o.circle.0.0[0] ^= 1),
    ("order-mismatch: another node", |o| o.node = NodeId(key("n2"))),
    ("order-mismatch: to another certificate", |o| o.certificate.0[0] ^= 1),
    ("submission-mismatch: not the one in force", |o| {
        o.certificate.0[0] ^= 1;
        o.submission.submission.certificate = o.certificate;
    }),
    ("submission-mismatch: another circle", |o| o.submission.submission.circle.0.0[0] ^= 1),
    ("submission-mismatch: no certificate approves", |o| o.submission.submission.job = name("other")),
    ("order-mismatch: no such slot", |o| o.slot = SlotIndex(6)),
    ("order-replayed: fence 1.4", |o| o.fence = Fence::new(1, 4)),
    ("order-mismatch: not of the certificate", |o| o.fence = Fence::new(2, 5)),
    ("order-mismatch: does not go on", |o| o.fence = Fence::new(1, FENCE_LEAP_MAX + 6)),
    ("order-mismatch: counted from 1", |o| o.attempt = 0),
    ("order-mismatch: its ranks are none", |o| o.ranks.count = 0),
    ("order-mismatch: its ranks are none", |o| o.ranks = SlotRanks { first: 0, count: 3 }),
    ("order-mismatch: its ranks are none", |o| o.ranks.first = 7),
    ("order-mismatch: its ranks are none", |o| o.ranks.first = u32::MAX),
    ("order-mismatch: its GPUs", |o| o.gpus.push("GPU-e".into())),
    ("order-mismatch: its GPUs", |o| o.gpus[3] = "GPU-a".into()),
    ("order-mismatch: its GPUs", |o| o.gpus[3] = "GPU-d,GPU-e".into()),
    ("parameter-out-of-bounds: `steps`", |o| {
        o.submission.submission.parameters.insert(name("steps"), "1001".into());
    }),
    ("parameter-out-of-bounds: `file`", |o| {
        o.submission.submission.parameters.insert(name("file"), "../../etc".into());
    }),
    ("submission-mismatch: names a command", |o| {
        o.submission.submission.command = Some(vec!["/bin/sh".into(), "-c".into(), "id".into()]);
    }),
    ("submission-mismatch: names an artifact", |o| {
        let root = ArtifactRoot(Digest::of(b"evil"));
        o.submission.submission.artifact = Some(ArtifactChoice { name: name("trainer"), root });
    }),
    ("submission-mismatch: priority 11", |o| o.submission.submission.priority = 11),
];

#[test]
fn a_hostile_control_runs_nothing_outside_of_the_envelope() {
    let state = approved(full_job());
    for (expected, alter) in ALTERATIONS {
        let mut altered = order(&state);
        alter(&mut altered);
        let signed = sign_order(altered, "control");
        check(expected, check_job_order(&state, &signed, n1(), Some(Fence::new(1, 4)), NOW), expected);
    }
}

#[test]
fn every_bit_of_an_order_counts() {
    let state = approved(full_job());
    let bytes = to_bytes(&sign_order(order(&state), "control"));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(signed) = from_bytes::<SignedJobOrder>(&flipped, 1 << 16) else { continue };
        assert!(check_job_order(&state, &signed, n1(), None, NOW).is_err(), "bit {bit}");
    }
}

#[test]
fn only_control_signs_orders_and_only_for_workers() {
    let state = approved(full_job());
    let judge = |case: &str, signed: &SignedJobOrder, node: NodeId, expected: &str| {
        check(case, check_job_order(&state, signed, node, None, NOW), expected);
    };
    let sound = sign_order(order(&state), "control");
    judge("sound", &sound, n1(), "approved");
    judge("an unknown key", &sign_order(order(&state), "mallory"), n1(), "order-signature-invalid");
    let mut altered = sound.clone();
    altered.order.slot = SlotIndex(1);
    judge("altered", &altered, n1(), "order-signature-invalid");
    let storage = NodeId(key("n2"));
    let elsewhere = sign_order(JobOrder { node: storage, ..order(&state) }, "control");
    judge("a node that stores", &elsewhere, storage, "order-mismatch: not admitted as a worker");
    let unknown = NodeId(key("n9"));
    let elsewhere = sign_order(JobOrder { node: unknown, ..order(&state) }, "control");
    judge("no node", &elsewhere, unknown, "node-not-admitted");
}

/// Checks a submission to this job after altering a sound one, which a person signed or none did.
fn submitted(
    state: &CircleState,
    signer: Option<&str>,
    expected: &str,
    alter: impl FnOnce(&mut JobSubmission),
) {
    let mut submission = submission(state);
    alter(&mut submission);
    let signed = match signer {
        Some(who) => signed_by(who, submission),
        None => unsigned(submission),
    };
    check(expected, check_submission(state, &signed, NOW), expected);
}

#[test]
fn the_manifest_says_who_submits() {
    let state = approved(full_job());
    let by = |submitter: Submitter| move |s: &mut JobSubmission| s.submitter = submitter;
    let alice = || by(Submitter::Member(name("alice")));
    let robot = || by(Submitter::Signer(name("robot")));
    submitted(&state, None, "approved", |_| {});
    submitted(&state, None, "submitter-refused: token of `eve`", by(Submitter::Token(name("eve"))));
    submitted(&state, Some("alice"), "submission-mismatch: by token", |_| {});
    submitted(&state, Some("alice"), "approved", alice());
    submitted(&state, None, "submission-unsigned", alice());
    submitted(&state, Some("bob"), "signature-invalid", alice());
    submitted(&state, Some("eve"), "not-a-member", by(Submitter::Member(name("eve"))));
    submitted(&state, Some("robot"), "approved", robot());
    submitted(&state, None, "submission-unsigned", robot());
    submitted(&state, Some("alice"), "signature-invalid", robot());
    submitted(&state, Some("eve"), "submitter-refused: submit key `eve`", by(Submitter::Signer(name("eve"))));
    let mut narrow = full_job();
    narrow.submit.members = false;
    submitted(&approved(narrow), Some("alice"), "submitter-refused: member `alice`", alice());
    let mut wide = full_job();
    wide.submit.tokens.clear();
    wide.submit.any_token = true;
    submitted(&approved(wide), None, "approved", by(Submitter::Token(name("eve"))));
    let mut state = approved(full_job());
    enact(&mut state, suspend("carol"), &BOTH);
    submitted(&state, Some("carol"), "member-suspended", by(Submitter::Member(name("carol"))));
}

/// Either half of a signature alone submits nothing, and a signature is for one submission.
#[test]
fn a_signature_is_whole_and_for_one_submission() {
    let state = approved(full_job());
    let submission = JobSubmission { submitter: Submitter::Member(name("alice")), ..submission(&state) };
    let sound = signed_by("alice", submission);
    check("sound", check_submission(&state, &sound, NOW), "approved");
    let mut other = sound.clone();
    other.submission.parameters.insert(name("steps"), "1".into());
    check("another parameter", check_submission(&state, &other, NOW), "signature-invalid");
    for half in [0, 1] {
        let mut damaged = sound.clone();
        let signature = damaged.signature.as_mut().expect("signed");
        if half == 0 {
            signature.ed25519.0[0] ^= 1
        } else {
            signature.ml_dsa.0[0] ^= 1
        }
        check("half", check_submission(&state, &damaged, NOW), "signature-invalid");
    }
}

#[test]
fn an_open_job_runs_what_a_signed_submission_names() {
    let state = approved(open_job());
    let named = |s: &mut JobSubmission| {
        s.submitter = Submitter::Member(name("alice"));
        s.parameters.clear();
        let root = ArtifactRoot(Digest::of(b"tree"));
        s.artifact = Some(ArtifactChoice { name: name("trainer"), root });
        s.command = Some(vec!["/bin/run".into(), "{steps}".into()]);
    };
    submitted(&state, Some("alice"), "approved", named);
    submitted(&state, None, "submission-unsigned", named);
    let by_token = |s: &mut JobSubmission| {
        named(s);
        s.submitter = Submitter::Token(name("ci"));
    };
    submitted(&state, None, "submission-unsigned", by_token);
    let lacking = |lack: fn(&mut JobSubmission)| {
        move |s: &mut JobSubmission| {
            named(s);
            lack(s);
        }
    };
    submitted(&state, Some("alice"), "submission-mismatch: no artifact", lacking(|s| s.artifact = None));
    submitted(&state, Some("alice"), "submission-mismatch: no command", lacking(|s| s.command = None));
    let empty = lacking(|s| s.command = Some(vec![]));
    submitted(&state, Some("alice"), "submission-mismatch: command is empty", empty);
    let long = lacking(|s| s.command = Some(vec!["x".repeat(1 << 18)]));
    submitted(&state, Some("alice"), "submission-mismatch: bytes; accepted", long);
}

#[test]
fn approvals_and_submissions_end() {
    let state = approved(full_job());
    let until = full_job().valid_until.expect("given");
    let at = |now: Millis, deadline: Millis, expected: &str| {
        let issued_at = Millis(deadline.0 - HOUR);
        let named = unsigned(JobSubmission { issued_at, deadline, ..submission(&state) });
        check(expected, check_submission(&state, &named, now), expected);
    };
    at(NOW, NOW.plus(HOUR), "approved");
    at(NOW.plus(HOUR + CLOCK_GRACE_MS), NOW.plus(HOUR), "approved");
    at(NOW.plus(HOUR + CLOCK_GRACE_MS + 1), NOW.plus(HOUR), "submission-expired");
    at(until.plus(CLOCK_GRACE_MS), until.plus(HOUR / 2), "approved");
    at(until.plus(CLOCK_GRACE_MS + 1), until.plus(HOUR / 2), "envelope-expired");
    at(NOW, NOW.plus(2 * HOUR), "submission-mismatch: in the future");
    let month = SUBMISSION_SECONDS_MAX * 1000;
    submitted(&state, None, "approved", |s| s.deadline = NOW.plus(month));
    submitted(&state, None, "submission-mismatch: its deadline", |s| s.deadline = NOW.plus(month + 1));
}

#[test]
fn dependencies_and_tasks_of_arrays_are_written_in_one_way() {
    let state = approved(full_job());
    let ids = |numbers: &[u8]| numbers.iter().map(|number| JobId(Digest([*number; 32]))).collect::<Vec<_>>();
    let after = |list: Vec<JobId>| move |s: &mut JobSubmission| s.after = list;
    submitted(&state, None, "approved", after(ids(&[1, 2, 9])));
    for list in [&[2, 1][..], &[1, 1]] {
        submitted(&state, None, "submission-mismatch: once each, ascending", after(ids(list)));
    }
    let many: Vec<u8> = (0..=JOB_AFTER_MAX as u8).collect();
    submitted(&state, None, "approved", after(ids(&many[1..])));
    submitted(&state, None, "submission-mismatch: accepted: at most 32", after(ids(&many)));
    let task = |index, count| {
        move |s: &mut JobSubmission| {
            s.array = Some(ArrayTask { array: JobId(Digest([7; 32])), index, count });
        }
    };
    submitted(&state, None, "approved", task(0, 1));
    submitted(&state, None, "approved", task(999, 1000));
    for (index, count) in [(0, 0), (0, 1001)] {
        submitted(&state, None, "submission-mismatch: accepted: 1 to 1000", task(index, count));
    }
    submitted(&state, None, "submission-mismatch: task 5 of an array of 5", task(5, 5));
}

/// A node with a slow clock starts nothing that control ordered after the deadline.
#[test]
fn an_order_issued_after_a_deadline_grants_nothing_to_a_slow_clock() {
    let state = approved(full_job());
    let issued = |late: u64| {
        let issued_at = NOW.plus(HOUR + CLOCK_GRACE_MS + late);
        let signed = sign_order(JobOrder { issued_at, ..order(&state) }, "control");
        check_job_order(&state, &signed, n1(), None, NOW)
    };
    check("in time", issued(0), "approved");
    check("late", issued(1), "submission-expired");
}

#[test]
fn a_name_stands_for_one_workload_at_a_time() {
    let job = || Change::Deploy(Box::new(Manifest::Job(full_job())));
    let mut state = approved(full_job());
    let old = sign_order(order(&state), "control");
    let service = || {
        let Change::Deploy(manifest) = deploy(4) else { unreachable!("a deployment") };
        let Manifest::Service(mut service) = *manifest else { unreachable!("a service") };
        service.name = name("train");
        Change::Deploy(Box::new(Manifest::Service(service)))
    };
    check("a service", try_propose(&state, service()), "governance-invalid: is a job in force");
    check("its model", try_propose(&state, forget("corpus", 60)), "model-in-use: `train`");
    check("its artifact", try_propose(&state, forget("trainer", 60)), "model-in-use: `train`");
    enact(&mut state, job(), &BOTH);
    check("changed", check_job_order(&state, &old, n1(), None, NOW), "submission-mismatch: in force");
    enact(&mut state, retire("train"), &BOTH);
    check("retired", check_job_order(&state, &old, n1(), None, NOW), "submission-mismatch: is retired");
    enact(&mut state, service(), &BOTH);
    check("a job", try_propose(&state, job()), "governance-invalid: is a service in force");
    assert_eq!(
        state.service(&name("train")).map(|service| service.version),
        Some(4),
        "versions never restart"
    );
    enact(&mut state, retire("train"), &BOTH);
    enact(&mut state, job(), &BOTH);
    assert_eq!(state.job(&name("train")).map(|job| job.version), Some(6));
    let kept = CircleState::from_kept_bytes(&state.to_kept_bytes(), state.id());
    assert_eq!(kept.as_ref(), Ok(&state), "a kept state has its jobs");
}

/// Returns the orders of a whole gang of 8 ranks: the one of this node has the last two, `n3` has the others.
pub(crate) fn gang_orders(state: &CircleState) -> Vec<JobOrder> {
    let part = |slot: u32| JobOrder {
        slot: SlotIndex(slot),
        ranks: SlotRanks { first: 2 * slot, count: 2 },
        gpus: (0..4).map(|gpu| format!("GPU-{slot}-{gpu}")).collect(),
        node: if slot == 3 { n1() } else { NodeId(key("n3")) },
        ..order(state)
    };
    (0..4).map(part).collect()
}

type AlterPeers = fn(&mut Vec<JobOrder>);

/// Attacks of a hostile control on the way between ranks: each alters the peers of a sound gang.
const PEERS: [(&str, AlterPeers); 14] = [
    ("approved", |_| {}),
    ("approved", |peers| peers.reverse()),
    ("approved", |peers| peers[0].node = n1()),
    ("approved", |peers| peers[0].fence = Fence::new(1, FENCE_LEAP_MAX + 9)),
    ("order-mismatch: another submission or attempt", |peers| peers[1].attempt = 2),
    ("order-mismatch: another submission or attempt", |peers| {
        peers[1].submission.submission.idempotency = Digest::of(b"another submission of the same job");
    }),
    ("order-mismatch: do not have each rank once", |peers| drop(peers.pop())),
    ("order-mismatch: do not have each rank once", |peers| peers[1].ranks.count = 1),
    ("order-mismatch: do not have each rank once", |peers| peers[1].ranks.first = 3),
    ("order-mismatch: do not have each rank once", |peers| peers[0].slot = SlotIndex(3)),
    ("order-mismatch: another order of the gang has its ranks", |peers| {
        let twice = JobOrder { slot: SlotIndex(5), ..peers[0].clone() };
        peers.push(twice);
    }),
    ("order-mismatch: another order of the gang has its ranks", |peers| peers[0].ranks.first = 6),
    ("order-mismatch: not admitted as a worker", |peers| peers[2].node = NodeId(key("n2"))),
    ("node-not-admitted", |peers| peers[2].node = NodeId(key("n9"))),
];

#[test]
fn a_gang_has_each_rank_once_on_nodes_that_the_envelope_allows() {
    let mut state = circle();
    enact(&mut state, Change::AdmitNode(Box::new(node("n3", &[NodeRole::Worker]))), &BOTH);
    approve_job(&mut state, full_job());
    let mut orders = gang_orders(&state);
    let own = sign_order(orders.pop().expect("four"), "control");
    let grant = check_job_order(&state, &own, n1(), None, NOW).expect("sound").into_inner();
    let judge = |peers: Vec<JobOrder>, signer: &str| {
        let sign = |mut order: JobOrder| {
            // Some alterations change the number of ranks; each rank has two GPUs.
            order.gpus.truncate(2 * order.ranks.count as usize);
            sign_order(order, signer)
        };
        let signed: Vec<SignedJobOrder> = peers.into_iter().map(sign).collect();
        check_gang(&state, &grant, &signed, NOW)
    };
    for (number, (expected, alter)) in PEERS.into_iter().enumerate() {
        let mut peers = orders.clone();
        alter(&mut peers);
        check(&format!("peers {number}"), judge(peers, "control"), expected);
    }
    check("signed by no replica", judge(orders.clone(), "mallory"), "order-signature-invalid");
    let members = judge(orders, "control").expect("sound");
    assert_eq!((members.id, members.attempt), (grant.id, 1));
    let slots = members.slots.iter().map(|slot| (slot.slot.0, slot.ranks.first, slot.node == n1()));
    assert_eq!(slots.collect::<Vec<_>>(), [(0, 0, false), (1, 2, false), (2, 4, false), (3, 6, true)]);
    assert_eq!(members.peers_of(n1()), [NodeId(key("n3"))].into());
}

#[test]
fn a_gang_in_one_slot_has_no_peers() {
    let state = approved(JobManifest { ranks: 2, ..full_job() });
    let own = JobOrder { ranks: SlotRanks { first: 0, count: 2 }, ..order(&state) };
    let grant = check_job_order(&state, &sign_order(own, "control"), n1(), None, NOW).expect("sound");
    let members = check_gang(&state, grant.get(), &[], NOW).expect("whole");
    assert!(members.slots.len() == 1 && members.peers_of(n1()).is_empty());
}

//! Checkpoints and outputs: kept under the fence in force alone, the newest of them, and placed where the
//! whole gang can open them. Logs: kept for each slot once its ranks have ended.

use crate::common::*;
use crate::jobs::{approved, job, linked_nodes_with, report_all, running_job, state, submit};
use protocol::governance::Change;
use protocol::job::SlotRanks;
use protocol::job_data::{JobData, JobDataKind, JobDataSource, RegisterJobData, wraps_digest};
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::keys::ByteString;
use protocol::limits::LEASE_MS;
use protocol::model::{ErasureCode, KeyWrap, ModelRecord, Recipient, StoreReference, StoredKind};
use protocol::{ArtifactRoot, CheckpointName, Digest, Fence, JobId, ModelRoot, NodeId, PublicKey, SlotIndex};
use scheduler::*;
use std::collections::BTreeMap;

pub(crate) fn checkpoint(name: &str) -> JobDataKind {
    JobDataKind::Checkpoint(name.parse().unwrap())
}

fn wrap_of(root: ModelRoot, recipient: Recipient) -> KeyWrap {
    KeyWrap {
        root,
        recipient,
        ephemeral: PublicKey([7; 32]),
        encapsulated: ByteString(vec![8; 1088]),
        sealed: ByteString(vec![9; 48]),
    }
}

/// Returns the name of the node that holds rank 0.
fn holder(world: &World, id: JobId) -> String {
    let jobs = world.cluster.jobs();
    let (_, held) = jobs.held().find(|(_, held)| held.id == id && held.ranks.first == 0).unwrap();
    world.cluster.node_name(&held.node)
}

/// Returns a sound registration by the holder of rank 0, its key wrapped to these nodes and to alice.
fn registration_to(world: &World, id: JobId, kind: JobDataKind, nodes: &[&str]) -> RegisterJobData {
    registration_of(world, (id, 0), kind, nodes)
}

/// Returns a sound registration by the holder of the slot of a first rank.
fn registration_of(
    world: &World,
    (id, first): (JobId, u32),
    kind: JobDataKind,
    nodes: &[&str],
) -> RegisterJobData {
    let jobs = world.cluster.jobs();
    let (name, held) = jobs.held().find(|(_, held)| held.id == id && held.ranks.first == first).unwrap();
    let seed = format!("{kind} {} {} {first}", held.attempt, name.fence);
    let root = ModelRoot(Digest::of(seed.as_bytes()));
    let mut wraps: Vec<KeyWrap> =
        nodes.iter().map(|node| wrap_of(root, Recipient::Node(node_id(node)))).collect();
    wraps.push(wrap_of(root, Recipient::Member(member("alice"))));
    wraps.sort_by(|one, other| one.recipient.cmp(&other.recipient));
    let stored = ModelRecord {
        name: "data".parse().unwrap(),
        kind: StoredKind::JobData { tree: ArtifactRoot(Digest::of(b"tree")) },
        root,
        bytes: 1 << 20,
        segments: 1,
        erasure: ErasureCode { data: 1, parity: 0 },
        stores: vec![StoreReference { url: "node://node-1/disk-0".into(), failure_domain: "node-1".into() }],
        architecture: "data".into(),
    };
    let data = JobData {
        version: 1,
        circle: world.cluster.circle_id().unwrap(),
        node: held.node,
        job: service_name("train"),
        id,
        attempt: held.attempt,
        slot: name.slot,
        fence: name.fence,
        ranks: held.ranks,
        kind,
        stored,
        key_commitment: Digest::of(b"key"),
        wraps: wraps_digest(&wraps),
    };
    RegisterJobData { signed: job_data_of(&world.cluster.node_name(&held.node), data), wraps }
}

/// Returns the registrations of the logs of both slots.
fn logs_of_both(world: &World, id: JobId) -> [RegisterJobData; 2] {
    [0, 1].map(|first| registration_of(world, (id, first), JobDataKind::Logs, &[]))
}

pub(crate) fn registration(world: &World, id: JobId, kind: JobDataKind) -> RegisterJobData {
    registration_to(world, id, kind, &["node-1", "node-2"])
}

pub(crate) fn action(request: RegisterJobData) -> Action {
    Action::RegisterJobData(Box::new(request))
}

/// Registers a checkpoint, after the shortest time between two.
fn keep(world: &mut World, id: JobId, name: &str) -> RegisterJobData {
    world.wait(limits::CHECKPOINT_INTERVAL_MS);
    let request = registration(world, id, checkpoint(name));
    world.must(action(request.clone()));
    request
}

fn names(world: &World, id: JobId) -> Vec<String> {
    let kept = world.cluster.jobs().jobs()[&id].checkpoints.iter();
    kept.filter_map(|kept| kept.name().map(ToString::to_string)).collect()
}

/// Returns the checkpoint with which a node's slot is to begin.
fn begins_with(world: &World, node: &str) -> Option<JobDataSource> {
    desired_jobs(&world.cluster, node_id(node)).into_iter().find_map(|part| part.checkpoint)
}

fn name_of(source: &JobDataSource) -> String {
    source.signed.data.kind.to_string()
}

/// Ends the attempt by a lost node, and lets the next one be ordered.
fn next_attempt(world: &mut World, id: JobId) {
    let attempt = world.cluster.jobs().jobs()[&id].attempts;
    world.job_reports = BTreeMap::new();
    world.heartbeat_all();
    world.execute();
    for _ in 0..4 {
        world.wait(limits::JOB_BACKOFF_MS + 1_000);
        world.heartbeat_all();
        world.execute();
    }
    assert_eq!(world.cluster.jobs().jobs()[&id].attempts, attempt + 1);
    assert_eq!(state(world, id), JobState::Starting);
}

fn run(world: &mut World) {
    report_all(world, JobSlotState::Ready, None);
    world.execute();
    report_all(world, JobSlotState::Running, None);
}

#[test]
fn the_newest_checkpoints_are_kept_and_the_next_attempt_begins_with_the_last() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    assert_eq!(begins_with(&world, "node-1"), None, "nothing was kept before");
    for name in ["step-1", "step-2", "step-3"] {
        keep(&mut world, id, name);
    }
    assert_eq!(names(&world, id), ["step-2", "step-3"]);
    let stored = stored_job_data(&world.cluster);
    assert_eq!(stored.len(), 2, "a collection of garbage keeps these, and removes the first");
    next_attempt(&mut world, id);
    for node in ["node-1", "node-2"] {
        let source = begins_with(&world, node).expect("the gang begins with a checkpoint");
        assert_eq!(name_of(&source), "checkpoint `step-3`");
        let wrap = source.wrap.expect("wrapped to this node");
        assert_eq!(wrap.recipient, Recipient::Node(node_id(node)), "a wrap leaves for its recipient alone");
    }
    run(&mut world);
    assert_eq!(begins_with(&world, "node-1"), None, "the ranks run");
    keep(&mut world, id, "step-3");
    assert_eq!(names(&world, id), ["step-2", "step-3"], "a resumed run makes the step again");
    let attempts: Vec<u32> =
        world.cluster.jobs().jobs()[&id].data().map(|kept| kept.signed.data.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()).as_ref(), Ok(&world.cluster));
}

/// The attack is an orphaned rank, which runs on after its gang was placed elsewhere: its checkpoint would
/// take the place of the newer ones.
#[test]
fn a_checkpoint_under_a_lower_fence_is_refused() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    keep(&mut world, id, "step-1");
    let orphan = registration(&world, id, checkpoint("orphan"));
    world.wait(limits::CHECKPOINT_INTERVAL_MS);
    assert_eq!(verdict(&world, Actor::Scheduler, action(orphan.clone())), "ok", "positive control");
    next_attempt(&mut world, id);
    run(&mut world);
    assert_eq!(verdict(&world, Actor::Scheduler, action(orphan.clone())), "job-data-fenced");
    let refused = refused_job_data(&world.cluster, &orphan, &world.clocks).expect("before the log, too");
    assert_eq!(refused.code.as_str(), "job-data-fenced");
    // Its node may hold a slot of the new attempt; what it states is still of the old one.
    assert_eq!(names(&world, id), ["step-1"]);
}

type Alter = fn(&mut JobData);

/// Attacks of a node that signs any statement about a slot that it does not hold so.
#[test]
fn a_statement_is_of_the_order_in_force() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    let other = submit(&mut world, "b");
    let cases: [(&str, &str, Alter); 8] = [
        ("as it is", "ok", |_| {}),
        ("a higher fence", "job-data-fenced", |data| data.fence.count += 1),
        ("a lower version", "job-data-fenced", |data| data.fence = Fence::new(0, 1)),
        ("another attempt", "job-data-fenced", |data| data.attempt += 1),
        ("a slot that nobody holds", "job-data-fenced", |data| data.slot = SlotIndex(7)),
        ("more ranks", "job-data-fenced", |data| data.ranks = SlotRanks { first: 0, count: 2 }),
        ("another job's name", "job-data-fenced", |data| data.job = service_name("other")),
        ("an unknown job", "job-not-found", |data| data.id = JobId(Digest::of(b"unknown"))),
    ];
    let node = holder(&world, id);
    for (what, expected, alter) in cases {
        let mut request = registration(&world, id, checkpoint("step-1"));
        alter(&mut request.signed.data);
        request.signed = job_data_of(&node, request.signed.data);
        assert_eq!(verdict(&world, Actor::Scheduler, action(request)), expected, "{what}");
    }
    let mut moved = registration(&world, id, checkpoint("step-1"));
    moved.signed.data.id = other;
    moved.signed = job_data_of(&node, moved.signed.data);
    assert_eq!(verdict(&world, Actor::Scheduler, action(moved)), "job-data-fenced", "a job that waits");
}

/// Attacks of a node that holds a slot, on the jobs of others and on the members.
#[test]
fn a_statement_that_does_not_hold_is_refused() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    let sound = registration(&world, id, checkpoint("step-1"));
    let node = holder(&world, id);
    let resigned = |alter: &dyn Fn(&mut RegisterJobData)| {
        let mut request = sound.clone();
        alter(&mut request);
        request.signed = job_data_of(&node, request.signed.data);
        request
    };
    let forged = |signer: &str| {
        let mut request = sound.clone();
        request.signed = job_data_of(signer, request.signed.data);
        request
    };
    let rewrapped = |request: &mut RegisterJobData| {
        request.signed.data.wraps = wraps_digest(&request.wraps);
    };
    let other = if node == "node-1" { "node-2" } else { "node-1" };
    for (what, request) in [
        ("another node signs", forged(other)),
        (
            "a root of a model",
            resigned(&|request| {
                request.signed.data.stored.root = root("minilm");
                request.wraps.iter_mut().for_each(|wrap| wrap.root = root("minilm"));
                rewrapped(request);
            }),
        ),
        ("fewer stores than shards", resigned(&|request| request.signed.data.stored.stores.clear())),
        ("a model as data", resigned(&|request| request.signed.data.stored.kind = StoredKind::Model)),
        ("wraps that were not signed", resigned(&|request| request.wraps.truncate(1))),
        (
            "no member has the key",
            resigned(&|request| {
                request.wraps.retain(|wrap| matches!(wrap.recipient, Recipient::Node(_)));
                rewrapped(request);
            }),
        ),
        (
            "no member of this circle has the key",
            resigned(&|request| {
                let stranger = Recipient::Member(member("mallory"));
                request.wraps.retain(|wrap| matches!(wrap.recipient, Recipient::Node(_)));
                request.wraps.push(wrap_of(request.signed.data.stored.root, stranger));
                rewrapped(request);
            }),
        ),
        (
            "a wrap of another length",
            resigned(&|request| {
                request.wraps[0].sealed = ByteString(vec![1; 47]);
                rewrapped(request);
            }),
        ),
    ] {
        assert_eq!(verdict(&world, Actor::Scheduler, action(request)), "job-data-invalid", "{what}");
    }
    assert_eq!(verdict(&world, Actor::Scheduler, action(sound)), "ok", "positive control");
}

#[test]
fn only_rank_0_leaves_data() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    let jobs = world.cluster.jobs();
    let (name, held) = jobs.held().find(|(_, held)| held.ranks.first == 1).unwrap();
    let mut request = registration(&world, id, checkpoint("step-1"));
    let data = &mut request.signed.data;
    (data.node, data.slot, data.fence, data.ranks) = (held.node, name.slot, name.fence, held.ranks);
    request.signed = job_data_of(&world.cluster.node_name(&held.node), request.signed.data.clone());
    assert_eq!(verdict(&world, Actor::Scheduler, action(request)), "job-data-invalid");
}

#[test]
fn the_same_registration_again_changes_nothing_and_another_of_its_name_is_refused() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    let first = keep(&mut world, id, "step-1");
    let before = world.cluster.jobs().clone();
    world.must(action(first.clone()));
    assert_eq!(*world.cluster.jobs(), before, "an answer that was lost costs nothing");
    world.wait(limits::CHECKPOINT_INTERVAL_MS);
    let mut doubled = first;
    doubled.signed.data.key_commitment = Digest::of(b"another");
    doubled.signed = job_data_of(&holder(&world, id), doubled.signed.data);
    assert_eq!(verdict(&world, Actor::Scheduler, action(doubled)), "job-data-invalid");
}

/// The attack is a node that fills the log with checkpoints.
#[test]
fn a_job_leaves_checkpoints_at_a_bounded_pace() {
    let mut world = approved("checkpoints = 64");
    let id = running_job(&mut world);
    keep(&mut world, id, "step-1");
    let next = registration(&world, id, checkpoint("step-2"));
    assert_eq!(verdict(&world, Actor::Scheduler, action(next.clone())), "limit-reached");
    let early = refused_job_data(&world.cluster, &next, &world.clocks).expect("not written to the log");
    assert_eq!(early.code.as_str(), "limit-reached");
    world.wait(limits::CHECKPOINT_INTERVAL_MS);
    assert_eq!(refused_job_data(&world.cluster, &next, &world.clocks), None);
    assert_eq!(verdict(&world, Actor::Scheduler, action(next)), "ok");
}

#[test]
fn a_job_that_keeps_none_refuses_each() {
    let mut world = approved("");
    let id = running_job(&mut world);
    let request = registration(&world, id, checkpoint("step-1"));
    assert_eq!(verdict(&world, Actor::Scheduler, action(request)), "job-data-invalid");
    world.must(action(registration(&world, id, JobDataKind::Outputs)));
}

#[test]
fn outputs_are_those_of_an_attempt_that_succeeded() {
    let mut world = approved("retries = 1");
    let id = running_job(&mut world);
    world.must(action(registration(&world, id, JobDataKind::Outputs)));
    let views = job_data_views(&world.cluster, id).unwrap();
    assert_eq!((views.len(), views[0].kind.clone(), views[0].bytes), (1, JobDataKind::Outputs, 1 << 20));
    // Another rank fails after rank 0 has left its outputs: they are no result.
    let failed = Some(RankOutcome::Exited { code: 1 });
    report_all(&mut world, JobSlotState::Ended, failed);
    world.execute();
    assert_eq!(job_data_views(&world.cluster, id), Some(vec![]));
    next_attempt(&mut world, id);
    let early = registration(&world, id, JobDataKind::Outputs);
    assert_eq!(verdict(&world, Actor::Scheduler, action(early)), "job-data-fenced", "no rank runs yet");
    run(&mut world);
    world.must(action(registration(&world, id, JobDataKind::Outputs)));
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    assert_eq!(state(&world, id), JobState::Succeeded);
    assert_eq!(job_data_views(&world.cluster, id).unwrap().len(), 1);
    assert_eq!(job_data_views(&world.cluster, JobId(Digest::of(b"x"))), None);
}

/// Returns the attempts and first ranks whose logs are kept.
fn kept_logs(world: &World, id: JobId) -> Vec<(u32, u32)> {
    let logs = world.cluster.jobs().jobs()[&id].logs.iter();
    logs.map(|kept| (kept.signed.data.attempt, kept.signed.data.ranks.first)).collect()
}

#[test]
fn each_slot_leaves_its_logs_when_its_attempt_is_over_also_if_it_failed() {
    let mut world = approved("retries = 1");
    let id = running_job(&mut world);
    let [first, second] = logs_of_both(&world, id);
    world.must(action(second.clone()));
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 1 }));
    world.execute();
    world.job_reports = BTreeMap::new();
    world.heartbeat_all();
    world.execute();
    assert_eq!(world.cluster.jobs().held().count(), 0, "the slots are free again");
    world.must(action(first));
    assert_eq!(kept_logs(&world, id), [(1, 0), (1, 1)]);
    next_attempt(&mut world, id);
    run(&mut world);
    let [_, later] = logs_of_both(&world, id);
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    world.must(action(later));
    assert_eq!(kept_logs(&world, id), [(1, 0), (1, 1), (2, 1)], "those of the failure stay");
    assert_eq!(stored_job_data(&world.cluster).len(), 3, "a collection of garbage keeps them");
    let before = world.cluster.jobs().clone();
    world.must(action(second));
    assert_eq!(*world.cluster.jobs(), before, "the same again changes nothing");
    let views = job_data_views(&world.cluster, id).unwrap();
    let shown: Vec<(u32, u32)> = views.iter().map(|view| (view.attempt, view.ranks.first)).collect();
    assert_eq!(shown, kept_logs(&world, id));
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()).as_ref(), Ok(&world.cluster));
}

/// Attacks of a node that held one slot of an attempt, on the logs of the others, and of one that held a slot
/// of an attempt before.
#[test]
fn logs_are_of_the_holder_of_their_slot_in_the_last_attempt_that_ended() {
    let mut world = approved("retries = 2");
    let id = running_job(&mut world);
    let [first, second] = logs_of_both(&world, id);
    let checkpoint = registration(&world, id, JobDataKind::Outputs);
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 1 }));
    world.execute();
    let cases: [(&str, &str, Alter); 6] = [
        ("as it is", "ok", |_| {}),
        ("a higher fence", "job-data-fenced", |data| data.fence.count += 1),
        ("another attempt", "job-data-fenced", |data| data.attempt += 1),
        ("another slot", "job-data-fenced", |data| data.slot = SlotIndex(7)),
        ("the ranks of the other slot", "job-data-fenced", |data| data.ranks.first = 1),
        ("another job's name", "job-data-fenced", |data| data.job = service_name("other")),
    ];
    for (what, expected, alter) in cases {
        let mut request = first.clone();
        let node = world.cluster.node_name(&request.signed.data.node);
        alter(&mut request.signed.data);
        request.signed = job_data_of(&node, request.signed.data);
        assert_eq!(verdict(&world, Actor::Scheduler, action(request)), expected, "{what}");
    }
    let mut stolen = first.clone();
    stolen.signed.data.node = second.signed.data.node;
    let thief = world.cluster.node_name(&stolen.signed.data.node);
    stolen.signed = job_data_of(&thief, stolen.signed.data);
    assert_eq!(verdict(&world, Actor::Scheduler, action(stolen)), "job-data-fenced", "by the other node");
    let late = verdict(&world, Actor::Scheduler, action(checkpoint));
    assert_eq!(late, "job-data-fenced", "a result is of ranks that run");
    world.must(action(first.clone()));
    let mut doubled = first;
    doubled.signed.data.key_commitment = Digest::of(b"another");
    let node = world.cluster.node_name(&doubled.signed.data.node);
    doubled.signed = job_data_of(&node, doubled.signed.data);
    assert_eq!(verdict(&world, Actor::Scheduler, action(doubled)), "job-data-invalid", "other logs");
    next_attempt(&mut world, id);
    run(&mut world);
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 1 }));
    world.execute();
    assert_eq!(verdict(&world, Actor::Scheduler, action(second)), "job-data-fenced", "two attempts ago");
}

/// A grace is there so that the ranks can write a last checkpoint; it is kept. An output is a result, and a
/// withdrawn attempt has none.
#[test]
fn a_withdrawn_attempt_leaves_a_last_checkpoint_and_no_outputs() {
    let mut world = approved("checkpoints = 2");
    let id = running_job(&mut world);
    let last = registration(&world, id, checkpoint("last"));
    let outputs = registration(&world, id, JobDataKind::Outputs);
    world.must(Action::CancelJob { id });
    assert_eq!(verdict(&world, Actor::Scheduler, action(outputs)), "job-data-fenced");
    world.must(action(last));
    assert_eq!(names(&world, id), ["last"]);
    world.job_reports = BTreeMap::new();
    world.heartbeat_all();
    world.execute();
    assert_eq!(world.cluster.jobs().held().count(), 0);
}

#[test]
fn a_retry_begins_with_the_checkpoint_that_it_names() {
    let mut world = approved("checkpoints = 3\nretries = 0");
    let id = running_job(&mut world);
    for name in ["step-1", "step-2", "step-3"] {
        keep(&mut world, id, name);
    }
    report_all(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 1 }));
    world.execute();
    let from = |name: &str| -> Option<CheckpointName> { Some(name.parse().unwrap()) };
    let unknown = Action::RetryJob { id, from: from("step-9") };
    assert_eq!(verdict(&world, Actor::Scheduler, unknown), "job-data-missing");
    assert_eq!(names(&world, id).len(), 3, "a refused command changes nothing");
    world.must(Action::RetryJob { id, from: from("step-2") });
    assert_eq!(names(&world, id), ["step-1", "step-2"]);
    next_attempt(&mut world, id);
    assert_eq!(begins_with(&world, "node-1").map(|source| name_of(&source)).unwrap(), "checkpoint `step-2`");
}

/// All slots of a gang begin with the same checkpoint, or half of it would compute from another step.
#[test]
fn a_checkpoint_that_one_node_of_the_gang_cannot_open_is_passed_over_by_all() {
    let mut world = approved("checkpoints = 3");
    let id = running_job(&mut world);
    keep(&mut world, id, "step-1");
    world.wait(limits::CHECKPOINT_INTERVAL_MS);
    let own = holder(&world, id);
    let alone = registration_to(&world, id, checkpoint("step-2"), &[&own]);
    world.must(action(alone));
    next_attempt(&mut world, id);
    for node in ["node-1", "node-2"] {
        assert_eq!(name_of(&begins_with(&world, node).unwrap()), "checkpoint `step-1`", "{node}");
    }
}

/// The attack is a stolen node: once the circle has removed it, no attempt begins with what it made.
#[test]
fn a_checkpoint_of_a_removed_node_is_passed_over_and_its_wraps_are_dropped() {
    let third = node("node-3", 4000, 4096);
    let mut world = linked_nodes_with(job(2, 3000, "checkpoints = 2"));
    let id = running_job(&mut world);
    keep(&mut world, id, "step-1");
    let stolen = holder(&world, id);
    world.specs.insert("node-3".parse().unwrap(), third.clone());
    world.approve(Change::AdmitNode(Box::new(third.admission)));
    world.approve(Change::RemoveNode { node: stolen.parse().unwrap() });
    let kept = &world.cluster.jobs().jobs()[&id].checkpoints[0];
    let recipients: Vec<&Recipient> = kept.wraps.iter().map(|wrap| &wrap.recipient).collect();
    assert!(!recipients.contains(&&Recipient::Node(node_id(&stolen))), "{recipients:?}");
    world.specs.remove(&stolen.parse().unwrap());
    for _ in 0..6 {
        world.wait(LEASE_MS + 1_000);
        world.heartbeat_all();
        world.execute();
    }
    let all: Vec<NodeId> = world.cluster.jobs().gang(id).map(|(_, held)| held.node).collect();
    for node in &all {
        assert_eq!(begins_with(&world, &world.cluster.node_name(node)), None);
    }
}

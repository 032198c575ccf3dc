//! Jobs: submission, gangs that are placed whole, attempts and their ends.

use crate::common::*;
use protocol::governance::{Change, NodeRole, StorageEndpoint};
use protocol::job_report::{JobSlotReport, JobSlotState, RankEnd, RankOutcome};
use protocol::limits::LEASE_MS;
use protocol::manifest::Manifest;
use protocol::{Digest, Fence, JobId, Refusal};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

/// Returns a job of this many ranks, one on each node, with this CPU each.
pub(crate) fn job(ranks: u32, cpu_millicores: u64, more: &str) -> Change {
    let text = format!(
        "kind = 'job'\nname = 'train'\nartifact = {{ name = 'trainer', root = '{}' }}\n\
         command = ['/bin/train']\nranks = {ranks}\nranks_per_slot = 1\nrun_seconds_max = 600\n\
         submit = {{ any_token = true }}\n\
         resources = {{ cpu_millicores = {cpu_millicores}, memory = '1 GiB' }}\n{more}\n",
        "1".repeat(64)
    );
    Change::Deploy(Box::new(Manifest::from_toml(&text).expect("a sound manifest")))
}

pub(crate) fn request(key: &str) -> JobRequest {
    JobRequest {
        job: service_name("train"),
        idempotency: Digest::of(key.as_bytes()),
        parameters: BTreeMap::new(),
        priority: None,
        deadline_seconds: None,
        after: BTreeSet::new(),
        array: None,
    }
}

pub(crate) fn submit(world: &mut World, key: &str) -> JobId {
    match world.apply(token("operator"), Action::RequestJob(Box::new(request(key)))) {
        Reply::JobSubmitted { job } => job,
        other => panic!("not submitted: {other:?}"),
    }
}

/// Returns node-1, with 4 cores and a storage address.
pub(crate) fn listening_node() -> NodeSpec {
    let mut listens = node("node-1", 4000, 4096);
    listens.admission.roles.insert(NodeRole::Storage);
    let stores = ["disk-0".parse().expect("a name")].into();
    listens.admission.storage = Some(StorageEndpoint { address: "10.0.0.1:7443".into(), stores });
    listens.admission = claimed_by("node-1", listens.admission);
    listens
}

/// Returns two nodes of 4 cores each, of which one has a storage address.
pub(crate) fn linked_nodes() -> World {
    World::new(&[listening_node(), node("node-2", 4000, 4096)])
}

pub(crate) fn linked_nodes_with(job: Change) -> World {
    let mut world = linked_nodes();
    world.approve(job);
    world
}

/// Returns two nodes of 4 cores each, with an approved job of two ranks that need both.
pub(crate) fn approved(more: &str) -> World {
    let mut world = linked_nodes_with(job(2, 3000, more));
    world.share_model("minilm", 90 << 20);
    world
}

pub(crate) fn state(world: &World, id: JobId) -> JobState {
    world.cluster.jobs().jobs()[&id].state
}

/// Returns the report of a slot in this state, with this end of its ranks.
pub(crate) fn report_of(
    part: NodeJobAssignment,
    state: JobSlotState,
    end: Option<RankOutcome>,
) -> JobSlotReport {
    let order = part.order;
    let ranks = order.ranks.first..order.ranks.first + order.ranks.count;
    JobSlotReport {
        job: order.submission.submission.job.clone(),
        id: order.submission.submission.id(),
        attempt: order.attempt,
        slot: order.slot,
        fence: order.fence,
        ranks: order.ranks,
        state,
        ends: ranks.filter_map(|rank| Some(RankEnd { rank, outcome: end? })).collect(),
        refusal: None,
        cpu_micros: 0,
    }
}

/// Lets a node report each slot that it is to run in this state, with this end of its ranks.
pub(crate) fn report(world: &mut World, name: &str, state: JobSlotState, end: Option<RankOutcome>) {
    let node = node_id(name);
    let parts = desired_jobs(&world.cluster, node).into_iter();
    world.job_reports.insert(node, parts.map(|part| report_of(part, state, end)).collect());
    world.heartbeat(name);
}

pub(crate) fn report_all(world: &mut World, state: JobSlotState, end: Option<RankOutcome>) {
    ["node-1", "node-2"].iter().for_each(|name| report(world, name, state, end));
}

/// Returns the slots of gangs that a node is to run, with whether their ranks start.
pub(crate) fn starts(world: &World, name: &str) -> Vec<bool> {
    desired_jobs(&world.cluster, node_id(name)).iter().map(|part| part.start).collect()
}

/// Submits a job and lets its gang run.
pub(crate) fn running_job(world: &mut World) -> JobId {
    let id = submit(world, "a");
    world.execute();
    report_all(world, JobSlotState::Ready, None);
    world.execute();
    report_all(world, JobSlotState::Running, None);
    assert_eq!(state(world, id), JobState::Running);
    id
}

#[test]
fn a_gang_starts_whole_once_every_slot_is_ready_and_succeeds_with_every_rank() {
    let mut world = approved("");
    let id = submit(&mut world, "a");
    world.execute();
    assert_eq!(state(&world, id), JobState::Starting);
    let parts = desired_jobs(&world.cluster, node_id("node-1"));
    assert_eq!((parts.len(), parts[0].peers.len(), parts[0].start), (1, 1, false));
    assert_eq!(parts[0].peers[0].node, node_id("node-2"));
    report(&mut world, "node-1", JobSlotState::Ready, None);
    world.execute();
    assert_eq!(starts(&world, "node-1"), [false], "one slot of two is ready");
    report(&mut world, "node-2", JobSlotState::Ready, None);
    world.execute();
    assert_eq!((starts(&world, "node-1"), starts(&world, "node-2")), (vec![true], vec![true]));
    report(&mut world, "node-1", JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    report(&mut world, "node-2", JobSlotState::Running, None);
    assert!(world.execute().is_empty(), "one rank of two has ended");
    report(&mut world, "node-2", JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    assert_eq!(state(&world, id), JobState::Succeeded);
    assert!(starts(&world, "node-1").is_empty());
    world.execute();
    assert_eq!(world.cluster.jobs().held().count(), 0, "the nodes have reported the ends");
}

#[test]
fn a_slot_of_all_ranks_starts_with_its_order_and_may_end_before_it_is_known_to_run() {
    let mut world = linked_nodes_with(job(1, 3000, ""));
    let id = submit(&mut world, "a");
    world.execute();
    assert_eq!((state(&world, id), starts(&world, "node-1")), (JobState::Starting, vec![true]));
    report(&mut world, "node-1", JobSlotState::Running, None);
    world.execute();
    assert_eq!(state(&world, id), JobState::Running);
    report(&mut world, "node-1", JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    let second = submit(&mut world, "b");
    world.execute();
    report(&mut world, "node-1", JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    assert_eq!([id, second].map(|id| state(&world, id)), [JobState::Succeeded; 2]);
}

#[test]
fn the_same_request_under_the_same_key_is_one_job() {
    let mut world = approved("");
    let id = submit(&mut world, "a");
    world.wait(5_000);
    assert_eq!(submit(&mut world, "a"), id, "though time has passed");
    let other = JobRequest { deadline_seconds: Some(60), ..request("a") };
    let action = Action::RequestJob(Box::new(other));
    assert_eq!(verdict(&world, token("operator"), action), "idempotency-key-reused");
    assert_ne!(submit(&mut world, "b"), id);
    let action = Action::RequestJob(Box::new(request("c")));
    assert_eq!(verdict(&world, token("reader"), action), "token-scope-missing");
}

/// The attack is control that starts a part of a gang.
#[test]
fn a_plan_that_leaves_out_a_rank_is_refused() {
    let mut world = approved("");
    submit(&mut world, "a");
    let plan = world.plan();
    let whole = |steps: Vec<Step>| Action::Execute { parent_generation: plan.parent_generation, steps };
    assert_eq!(verdict(&world, Actor::Scheduler, whole(plan.steps.clone())), "ok");
    let mut steps = plan.steps.clone();
    for step in &mut steps {
        if let Step::StartGang(gang) = step {
            gang.slots.truncate(1);
        }
    }
    assert_eq!(verdict(&world, Actor::Scheduler, whole(steps)), "plan-stale");
}

#[test]
fn a_lost_node_ends_the_attempt_and_the_next_is_under_a_higher_fence() {
    let mut world = approved("");
    let id = running_job(&mut world);
    let before: BTreeMap<_, Fence> =
        world.cluster.jobs().held().map(|(name, _)| (name.slot, name.fence)).collect();
    world.wait(LEASE_MS + 1_000);
    report(&mut world, "node-1", JobSlotState::Running, None);
    world.execute();
    let job = world.cluster.jobs().jobs()[&id].clone();
    assert_eq!((job.lost_nodes, job.failures), (1, 0));
    assert_eq!(job.last_end.unwrap().cause, EndCause::NodeLost(node_id("node-2")));
    assert!(starts(&world, "node-1").is_empty(), "the other slot is withdrawn");
    let events = job_events(&world.cluster, id, 0, usize::MAX).unwrap();
    let end = events.last().unwrap();
    assert_eq!((end.action.as_str(), end.detail.as_str()), ("end-job", "attempt 1: node node-2 was lost"));
    let latest = job_events(&world.cluster, id, end.sequence - 1, usize::MAX).unwrap();
    assert_eq!(latest, std::slice::from_ref(end));
    world.job_reports = BTreeMap::new();
    world.wait(limits::JOB_BACKOFF_MS + 1_000);
    world.heartbeat_all();
    for _ in 0..3 {
        world.execute();
        world.heartbeat_all();
    }
    assert_eq!((state(&world, id), world.cluster.jobs().jobs()[&id].attempts), (JobState::Starting, 2));
    assert!(world.cluster.jobs().held().all(|(name, _)| name.fence > before[&name.slot]));
}

/// A rank that loses its peer fails at once, and its report precedes the end of the dead node's lease.
#[test]
fn a_rank_that_fails_beside_a_dead_node_counts_as_a_lost_node() {
    let failed = Some(RankOutcome::Exited { code: 1 });
    let dead: fn(&mut World) = |world| {
        world.wait(LEASE_MS);
        report(world, "node-1", JobSlotState::Ended, Some(RankOutcome::Exited { code: 1 }));
    };
    let started_again: fn(&mut World) =
        |world| report(world, "node-2", JobSlotState::Ended, Some(RankOutcome::Lost));
    let alive: fn(&mut World) = |world| report(world, "node-2", JobSlotState::Running, None);
    for (of_node_2, expected) in [(dead, (1, 0)), (started_again, (1, 0)), (alive, (0, 1))] {
        let mut world = approved("retries = 3");
        let id = running_job(&mut world);
        world.wait(700);
        report(&mut world, "node-1", JobSlotState::Ended, failed);
        assert!(world.execute().is_empty(), "node-2 has not reported since");
        world.wait(300);
        of_node_2(&mut world);
        world.execute();
        let job = &world.cluster.jobs().jobs()[&id];
        assert_eq!((job.lost_nodes, job.failures), expected, "{:?}", job.last_end);
    }
}

#[test]
fn a_failed_rank_ends_the_gang_and_a_retry_begins_again() {
    let mut world = approved("retries = 0");
    let id = running_job(&mut world);
    report(&mut world, "node-2", JobSlotState::Ended, Some(RankOutcome::Exited { code: 137 }));
    world.execute();
    assert_eq!(state(&world, id), JobState::Failed);
    let end = world.cluster.jobs().jobs()[&id].last_end.clone().unwrap();
    assert_eq!(end.ends, [RankEnd { rank: 1, outcome: RankOutcome::Exited { code: 137 } }]);
    world.must(Action::RetryJob { id, from: None });
    assert_eq!(verdict(&world, Actor::Scheduler, Action::RetryJob { id, from: None }), "job-not-ended");
    world.job_reports = BTreeMap::new();
    for _ in 0..3 {
        world.heartbeat_all();
        world.execute();
    }
    assert_eq!((state(&world, id), world.cluster.jobs().jobs()[&id].attempts), (JobState::Starting, 2));
}

#[test]
fn a_cancelled_job_is_withdrawn_and_ends_once() {
    let mut world = approved("");
    let id = running_job(&mut world);
    world.must(Action::CancelJob { id });
    assert_eq!(state(&world, id), JobState::Cancelled);
    assert!(starts(&world, "node-1").is_empty() && starts(&world, "node-2").is_empty());
    let digest = world.cluster.jobs().jobs()[&id].clone();
    world.must(Action::CancelJob { id });
    assert_eq!(world.cluster.jobs().jobs()[&id], digest, "a second order changes nothing");
    let unknown = JobId(Digest::of(b"unknown"));
    assert_eq!(verdict(&world, Actor::Scheduler, Action::CancelJob { id: unknown }), "job-not-found");
}

#[test]
fn a_gang_waits_whole_beside_services_and_says_why() {
    let mut world = approved("");
    world.approve(deploy(manifest("embed", 1, 1, 2000, 128)));
    world.settle();
    let id = submit(&mut world, "a");
    assert!(world.execute().is_empty(), "no part of the gang is placed");
    let view = job_view(world.view(), id).unwrap();
    assert_eq!((view.state.as_str(), view.waits.unwrap().reason.as_str()), ("queued", "no_room"));
    let listed = |selection: JobSelection| {
        job_views(world.view(), &selection).into_iter().map(|job| job.id).collect::<Vec<JobId>>()
    };
    let (all, project) = (JobSelection::default(), |name: &str| Some(name.parse().unwrap()));
    for selection in [
        all.clone(),
        JobSelection { job: Some(service_name("train")), ..all.clone() },
        JobSelection { state: Some("queued".into()), ..all.clone() },
        JobSelection { project: project("default"), ..all.clone() },
        JobSelection { has_ended: Some(false), ..all.clone() },
    ] {
        assert_eq!(listed(selection.clone()), [id], "{selection:?}");
    }
    for selection in [
        JobSelection { job: Some(service_name("embed")), ..all.clone() },
        JobSelection { state: Some("running".into()), ..all.clone() },
        JobSelection { project: project("vision"), ..all.clone() },
        JobSelection { array: Some(id), ..all.clone() },
        JobSelection { has_ended: Some(true), ..all },
    ] {
        assert_eq!(listed(selection.clone()), [], "{selection:?}");
    }
}

#[test]
fn a_gang_that_never_fits_is_refused_with_the_smallest_change() {
    let mut world = linked_nodes();
    world.approve(job(3, 3000, ""));
    let refusal: Refusal = check_fits(world.view(), &service_name("train")).unwrap_err();
    assert_eq!(refusal.code.as_str(), "job-never-fits");
    assert!(refusal.message.contains("`ranks = 2`"), "{refusal}");
}

#[test]
fn a_gang_on_nodes_that_cannot_meet_is_never_placed_and_says_why() {
    let mut world = two_nodes();
    world.approve(job(2, 3000, ""));
    let refusal: Refusal = check_fits(world.view(), &service_name("train")).unwrap_err();
    assert_eq!(refusal.code.as_str(), "job-never-fits");
    assert!(refusal.message.contains("role `storage`"), "{refusal}");
    // A submission that a follower took waits, and no part of it is ordered.
    let id = submit(&mut world, "a");
    assert!(world.execute().is_empty());
    let waits = job_view(world.view(), id).unwrap().waits.unwrap();
    assert_eq!(waits.reason, "no_network");
    assert!(waits.text.contains("storage address"), "{}", waits.text);
    // Positive controls: a gang on one node needs no link, and a storage node links two.
    assert_eq!(check_fits(linked_nodes_with(job(2, 3000, "")).view(), &service_name("train")), Ok(()));
    let mut world = two_nodes();
    world.approve(job(1, 3000, ""));
    assert_eq!(check_fits(world.view(), &service_name("train")), Ok(()));
    submit(&mut world, "b");
    assert!(!world.execute().is_empty());
}

#[test]
fn a_retired_job_ends_and_a_deadline_passes() {
    let mut world = approved("");
    let action = JobRequest { deadline_seconds: Some(60), ..request("late") };
    let Reply::JobSubmitted { job: late } =
        world.apply(token("operator"), Action::RequestJob(Box::new(action)))
    else {
        panic!("a job")
    };
    world.wait(61_000);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    assert_eq!(state(&world, late), JobState::Failed);
    world.heartbeat_all();
    let id = running_job(&mut world);
    world.approve(Change::Retire { service: service_name("train"), grace_seconds: 1 });
    assert_eq!(state(&world, id), JobState::Failed);
    assert!(starts(&world, "node-1").is_empty());
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()).as_ref(), Ok(&world.cluster));
}

//! Ends of attempts that neither a rank nor a member causes, and the order of the queue.

use crate::common::*;
use crate::halts::halt;
use crate::jobs::{
    approved, job, linked_nodes, listening_node, report, report_all, request, running_job, starts, state,
    submit,
};
use protocol::halt::HaltScope;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::manifest::Manifest;
use protocol::{JobId, Refusal, error_code};
use scheduler::*;
use std::collections::BTreeMap;

/// Returns the cause of the end of a job's last attempt.
fn last_cause(world: &World, id: JobId) -> EndCause {
    world.cluster.jobs().jobs()[&id].last_end.clone().expect("an attempt has ended").cause
}

/// Returns the reason for which a job waits.
fn waits(world: &World, id: JobId) -> String {
    job_view(world.view(), id).and_then(|view| view.waits).expect("it waits").reason
}

/// Lets both nodes confirm that they run nothing, and plans until nothing is left to do.
fn clear(world: &mut World) {
    world.job_reports = BTreeMap::new();
    for _ in 0..3 {
        world.heartbeat_all();
        world.execute();
    }
}

#[test]
fn a_service_of_a_higher_priority_takes_the_room_and_the_job_returns_to_the_queue() {
    let mut world = approved("priority = 10");
    let id = running_job(&mut world);
    let mut service = manifest("embed", 1, 1, 2000, 128);
    service.priority = 90;
    world.approve(deploy(service));
    world.execute();
    assert!(matches!(last_cause(&world, id), EndCause::Preempted(_)));
    assert_eq!((state(&world, id), starts(&world, "node-1").len()), (JobState::Queued, 0));
    clear(&mut world);
    assert_eq!(world.placements("embed").len(), 1, "{:?}", world.plan());
    assert_eq!(waits(&world, id), "no_room");
    let counts = &world.cluster.jobs().jobs()[&id];
    assert_eq!((counts.preemptions, counts.failures), (1, 0), "no failure of its own");
}

/// Without the promise of the node, the job that ended first starts again in its part of the room, is
/// preempted again, and so on forever.
#[test]
fn a_job_does_not_return_into_a_part_of_the_room_that_it_made() {
    let mut world = two_nodes();
    world.approve(job(1, 2000, "priority = 10\nslots = 4"));
    let ids: Vec<JobId> = ["a", "b", "c", "d"].iter().map(|key| submit(&mut world, key)).collect();
    world.execute();
    report_all(&mut world, JobSlotState::Ready, None);
    world.execute();
    report_all(&mut world, JobSlotState::Running, None);
    assert!(ids.iter().all(|id| state(&world, *id) == JobState::Running));
    let mut service = manifest("embed", 1, 1, 4000, 128);
    service.priority = 90;
    world.approve(deploy(service));
    world.execute();
    let queued = |world: &World| ids.iter().filter(|id| state(world, **id) == JobState::Queued).count();
    assert_eq!(queued(&world), 2, "both jobs of one node made room");
    let jobs = world.cluster.jobs();
    let ends = |held: &JobHolding| matches!(held.phase, JobHoldingPhase::Ending { .. });
    let node = jobs.held().find(|(_, held)| ends(held)).expect("a slot ends").1.node;
    world.job_reports.get_mut(&node).expect("it reports").remove(0);
    world.heartbeat_all();
    world.execute();
    assert_eq!((queued(&world), world.placements("embed").len()), (2, 0), "one of the two has ended");
    world.job_reports.remove(&node);
    world.heartbeat_all();
    world.execute();
    assert_eq!((queued(&world), world.placements("embed").len()), (2, 1));
}

/// The positive control of the first test.
#[test]
fn a_service_of_a_lower_priority_waits_for_the_job() {
    let mut world = approved("priority = 90");
    let id = running_job(&mut world);
    let mut service = manifest("embed", 1, 1, 2000, 128);
    service.priority = 10;
    world.approve(deploy(service));
    world.execute();
    assert_eq!(state(&world, id), JobState::Running);
    assert!(world.placements("embed").is_empty());
}

#[test]
fn a_halt_ends_the_attempt_and_the_job_waits_for_its_lift() {
    let mut world = approved("");
    let id = running_job(&mut world);
    halt(&mut world, HaltScope::Service(service_name("train")));
    world.execute();
    assert!(matches!(last_cause(&world, id), EndCause::Preempted(_)));
    clear(&mut world);
    assert_eq!((state(&world, id), waits(&world, id).as_str()), (JobState::Queued, "halted"));
}

#[test]
fn the_higher_priority_starts_first_and_the_other_has_a_reservation() {
    let mut world = approved("priority = 50");
    let low = JobRequest { priority: Some(10), ..request("low") };
    let Reply::JobSubmitted { job: low } = world.apply(token("operator"), Action::RequestJob(Box::new(low)))
    else {
        panic!("a job")
    };
    let high = submit(&mut world, "high");
    world.execute();
    assert_eq!((state(&world, high), state(&world, low)), (JobState::Starting, JobState::Queued));
    assert_eq!(waits(&world, low), "reserved");
    let above = JobRequest { priority: Some(51), ..request("above") };
    let refused = verdict(&world, token("operator"), Action::RequestJob(Box::new(above)));
    assert_ne!(refused, "ok", "no priority beyond that of the envelope");
}

#[test]
fn a_gang_that_is_not_ready_in_time_counts_as_a_failure() {
    let mut world = approved("retries = 1");
    let id = submit(&mut world, "a");
    world.execute();
    report(&mut world, "node-1", JobSlotState::Ready, None);
    world.wait(limits::START_PATIENCE_MS);
    report(&mut world, "node-1", JobSlotState::Ready, None);
    report(&mut world, "node-2", JobSlotState::Preparing, None);
    world.execute();
    assert_eq!(last_cause(&world, id), EndCause::NotReady);
    assert_eq!(world.cluster.jobs().jobs()[&id].failures, 1);
    clear(&mut world);
    assert_eq!(waits(&world, id), "back_off");
}

/// The attack is a node that runs a gang for longer than its members approved.
#[test]
fn an_attempt_beyond_its_run_time_ends_for_good() {
    let mut world = approved("retries = 3");
    let id = running_job(&mut world);
    world.wait(700_000);
    report_all(&mut world, JobSlotState::Running, None);
    world.execute();
    assert_eq!((last_cause(&world, id), state(&world, id)), (EndCause::TimeLimit, JobState::Failed));
    assert!(starts(&world, "node-1").is_empty());
}

#[test]
fn a_node_that_forgot_its_slot_has_lost_it() {
    let mut world = approved("");
    let id = running_job(&mut world);
    world.job_reports.insert(node_id("node-2"), Vec::new());
    world.heartbeat("node-2");
    world.execute();
    assert_eq!(last_cause(&world, id), EndCause::NodeLost(node_id("node-2")));
}

#[test]
fn a_refused_order_ends_the_attempt_by_the_code_of_the_node() {
    let mut world = approved("retries = 0");
    let id = submit(&mut world, "a");
    world.execute();
    report(&mut world, "node-1", JobSlotState::Ready, None);
    report(&mut world, "node-2", JobSlotState::Ended, None);
    let reports = world.job_reports.get_mut(&node_id("node-2")).expect("it reports");
    reports[0].refusal = Some(Refusal::new(error_code::ORDER_MISMATCH, "another artifact"));
    world.heartbeat("node-2");
    world.execute();
    let EndCause::Refused { code, message } = last_cause(&world, id) else { panic!("a refusal") };
    assert_eq!((code, message.as_str()), (error_code::ORDER_MISMATCH, "another artifact"));
    assert_eq!(state(&world, id), JobState::Failed);
}

#[test]
fn an_end_that_names_ranks_of_other_slots_proves_nothing() {
    let mut world = approved("");
    let id = running_job(&mut world);
    report(&mut world, "node-1", JobSlotState::Running, None);
    let reports = world.job_reports.get_mut(&node_id("node-1")).expect("it reports");
    let success = RankOutcome::Exited { code: 0 };
    reports[0].ends = (0..2).map(|rank| protocol::job_report::RankEnd { rank, outcome: success }).collect();
    world.heartbeat("node-1");
    world.execute();
    assert_eq!(state(&world, id), JobState::Running, "node-1 cannot speak for the rank of node-2");
}

#[test]
fn a_removed_node_ends_the_attempt_and_its_slot_lapses() {
    let mut world = approved("");
    let id = running_job(&mut world);
    world.approve(protocol::governance::Change::RemoveNode { node: "node-2".parse().expect("a name") });
    assert_eq!(last_cause(&world, id), EndCause::NodeLost(node_id("node-2")));
    assert!(desired_jobs(&world.cluster, node_id("node-2")).is_empty(), "it is told nothing more");
    let phases: Vec<JobHoldingPhase> = world.cluster.jobs().held().map(|(_, held)| held.phase).collect();
    assert!(phases.contains(&JobHoldingPhase::Lapsing), "{phases:?}");
}

#[test]
fn a_dry_run_of_a_job_says_who_signs_and_whether_it_ever_fits() {
    let world = linked_nodes();
    let of = |change: protocol::governance::Change| {
        let protocol::governance::Change::Deploy(manifest) = change else { panic!("a manifest") };
        let manifest: Manifest = *manifest;
        dry_run(world.view(), &manifest).expect("an answer")
    };
    let fits = of(job(2, 3000, ""));
    assert!(fits.waiting.is_empty() && fits.needs.ends_with("must approve"), "{fits:?}");
    let never = of(job(3, 3000, ""));
    assert!(never.waiting[0].contains("`ranks = 2`"), "{never:?}");
}

/// Returns two nodes with two GPUs each, and an approved job of two ranks with a whole GPU each.
fn approved_on_gpus() -> World {
    let mut nodes = [listening_node(), node("node-2", 4000, 4096)];
    nodes.iter_mut().for_each(|node| node.resources.gpus = gpus(2, 80, false));
    let mut world = World::new(&nodes);
    let change = job(2, 1000, "slots = 4");
    let protocol::governance::Change::Deploy(manifest) = change else { panic!("a manifest") };
    let Manifest::Job(mut manifest) = *manifest else { panic!("a job") };
    manifest.resources.gpu_count = 1;
    manifest.gpu_models = vec!["H100".into()];
    world.approve(protocol::governance::Change::Deploy(Box::new(Manifest::Job(manifest))));
    world
}

#[test]
fn each_rank_has_a_gpu_of_its_own_until_none_is_left() {
    let mut world = approved_on_gpus();
    let ids: Vec<JobId> = ["a", "b", "c"].iter().map(|key| submit(&mut world, key)).collect();
    world.execute();
    let mut held: Vec<(String, u32)> = Vec::new();
    for (_, holding) in world.cluster.jobs().held() {
        let node = world.cluster.node_name(&holding.node);
        held.extend(holding.gpus.iter().map(|gpu| (node.clone(), gpu.index)));
    }
    held.sort();
    let all = ["node-1", "node-2"].iter().flat_map(|name| [0, 1].map(|index| (name.to_string(), index)));
    assert_eq!(held, all.collect::<Vec<_>>(), "each GPU once");
    let states: Vec<JobState> = ids.iter().map(|id| state(&world, *id)).collect();
    assert_eq!(states.iter().filter(|state| **state == JobState::Starting).count(), 2);
    let orders = desired_jobs(&world.cluster, node_id("node-1"));
    assert!(orders.iter().all(|part| part.order.gpus.len() == 1 && part.order.gpus[0].starts_with("GPU-")));
    let waiting = ids.iter().find(|id| state(&world, **id) == JobState::Queued).expect("one waits");
    assert_eq!(waits(&world, *waiting), "reserved");
}

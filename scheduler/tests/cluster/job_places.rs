//! Places of gangs: which nodes hold which ranks, which nodes are left out, and plans that no replica takes.

use crate::common::*;
use crate::halts::halt;
use crate::jobs::{
    approved, job, linked_nodes, listening_node, report, report_all, running_job, state, submit,
};
use protocol::governance::Change;
use protocol::halt::HaltScope;
use protocol::job::SlotRanks;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::manifest::Manifest;
use protocol::{Fence, JobId, Millis, SlotIndex};
use scheduler::*;

/// Returns the job of one rank a node, changed.
fn changed(ranks: u32, change: impl Fn(&mut protocol::manifest::JobManifest)) -> Change {
    let Change::Deploy(manifest) = job(ranks, 1000, "") else { panic!("a manifest") };
    let Manifest::Job(mut manifest) = *manifest else { panic!("a job") };
    change(&mut manifest);
    Change::Deploy(Box::new(Manifest::Job(manifest)))
}

/// Returns the ranks of each held slot as `node: first+count`.
fn ranks(world: &World) -> Vec<String> {
    let text = |held: &JobHolding| {
        let SlotRanks { first, count } = held.ranks;
        format!("{}: {first}+{count}", world.cluster.node_name(&held.node))
    };
    world.cluster.jobs().held().map(|(_, held)| text(held)).collect()
}

fn waits(world: &World, id: JobId) -> (String, String) {
    let waits = job_view(world.view(), id).and_then(|view| view.waits).expect("it waits");
    (waits.reason, waits.text)
}

#[test]
fn a_gang_is_on_the_fewest_nodes_and_a_tie_goes_to_the_lower_name() {
    let nodes = [listening_node(), node("node-2", 4000, 8192), node("node-3", 2000, 8192)];
    let mut world = World::new(&nodes);
    world.approve(changed(2, |job| (job.ranks_per_slot, job.slots) = (2, 8)));
    submit(&mut world, "a");
    world.execute();
    assert_eq!(ranks(&world), ["node-1: 0+2"], "each of two nodes could hold it");
    let mut world = World::new(&nodes);
    world.approve(changed(6, |job| {
        (job.ranks_per_slot, job.slots, job.resources.memory_bytes) = (4, 8, 1 << 29);
    }));
    submit(&mut world, "b");
    world.execute();
    assert_eq!(ranks(&world), ["node-1: 0+4", "node-2: 4+2"], "node-3 is not needed");
}

#[test]
fn a_halted_node_gets_no_rank_and_a_gang_that_needs_it_waits() {
    let halted = |ranks: u32| {
        let mut world = linked_nodes();
        world.approve(job(ranks, 3000, ""));
        halt(&mut world, HaltScope::Node("node-1".parse().expect("a name")));
        let id = submit(&mut world, "a");
        world.execute();
        (world, id)
    };
    let (world, _) = halted(1);
    assert_eq!(ranks(&world), ["node-2: 0+1"], "the lower name is halted");
    let (mut world, id) = halted(2);
    assert_eq!((ranks(&world).len(), waits(&world, id).0.as_str()), (0, "no_room"));
    world.observed.note_halts(vec![]);
    world.execute();
    assert_eq!(ranks(&world), ["node-1: 0+1", "node-2: 1+1"], "the lift lets it start");
}

#[test]
fn the_reason_of_a_halted_job_is_the_text_of_its_halt() {
    let mut world = approved("");
    let halted = halt(&mut world, HaltScope::Service(service_name("train")));
    let id = submit(&mut world, "a");
    assert!(world.execute().is_empty());
    assert_eq!(waits(&world, id), ("halted".to_string(), human_chain::describe_halt(&halted)));
}

/// A node that still runs a slot of which the state knows nothing has less room than it seems.
#[test]
fn a_node_with_an_orphan_takes_no_rank_until_it_has_ended() {
    let mut world = linked_nodes();
    world.approve(job(1, 3000, "slots = 2"));
    let mut other = world.clone();
    submit(&mut other, "elsewhere");
    other.execute();
    report(&mut other, "node-1", JobSlotState::Running, None);
    let orphan = other.job_reports[&node_id("node-1")].clone();
    assert_eq!(orphan.len(), 1);
    world.job_reports.insert(node_id("node-1"), orphan.clone());
    world.heartbeat_all();
    submit(&mut world, "a");
    world.execute();
    assert_eq!(ranks(&world), ["node-2: 0+1"]);
    let second = submit(&mut world, "b");
    world.execute();
    assert_eq!(state(&world, second), JobState::Queued);
    let mut ended = orphan;
    ended[0].state = JobSlotState::Ended;
    world.job_reports.insert(node_id("node-1"), ended);
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, second).is_placed(), "{:?}", waits(&world, second));
}

#[test]
fn a_job_whose_approval_has_run_out_does_not_start() {
    let until = START.plus(60_000);
    let mut world = linked_nodes();
    world.approve(changed(1, |job| job.valid_until = Some(until)));
    let early = submit(&mut world, "early");
    world.set_now(Millis(until.0 - 1));
    world.heartbeat_all();
    let plan = world.plan();
    assert!(plan.steps.iter().any(|step| matches!(step, Step::StartGang(_))), "a millisecond is left");
    world.set_now(until);
    world.heartbeat_all();
    assert!(world.plan().is_empty());
    assert_eq!(waits(&world, early), ("approval".into(), "its approval has ended".into()));
    let action = Action::Execute { parent_generation: plan.parent_generation, steps: plan.steps };
    assert_eq!(verdict(&world, Actor::Scheduler, action), "plan-stale", "an old plan does not start it");
}

#[test]
fn a_replaced_approval_ends_what_waits_and_lets_an_attempt_run_to_its_last_end() {
    let mut world = approved("retries = 3");
    let id = running_job(&mut world);
    let waiting = submit(&mut world, "b");
    world.execute();
    assert_eq!(state(&world, waiting), JobState::Queued, "the room is taken");
    world.approve(job(2, 2000, "retries = 3"));
    assert_eq!((state(&world, id), state(&world, waiting)), (JobState::Running, JobState::Failed));
    let cause = |world: &World, id| world.cluster.jobs().jobs()[&id].last_end.clone().expect("an end").cause;
    assert_eq!(cause(&world, waiting), EndCause::Withdrawn);
    report(&mut world, "node-2", JobSlotState::Ended, Some(RankOutcome::Exited { code: 3 }));
    world.execute();
    assert!(matches!(cause(&world, id), EndCause::RankFailed(_)), "{:?}", cause(&world, id));
    assert_eq!(state(&world, id), JobState::Failed, "the new approval grants it no retry");
    world.job_reports.clear();
    world.heartbeat_all();
    world.execute();
    let next = submit(&mut world, "c");
    world.execute();
    assert!(state(&world, next).is_placed(), "the new approval is in force");
}

/// Attack: control changes one field of a sound gang. The sound plan is the positive control.
#[test]
fn attack_an_altered_gang_is_refused() {
    let mut world = approved("slots = 3");
    submit(&mut world, "a");
    let plan = world.plan();
    let refusal = |change: &dyn Fn(&mut GangPlan)| {
        let mut steps = plan.steps.clone();
        for step in &mut steps {
            if let Step::StartGang(gang) = step {
                change(gang);
            }
        }
        let action = Action::Execute { parent_generation: plan.parent_generation, steps };
        match world.clone().apply(Actor::Scheduler, action) {
            Reply::Refused { code, message, .. } => format!("{code}: {message}"),
            _ => "ok".to_string(),
        }
    };
    let refused = |change: &dyn Fn(&mut GangPlan), text: &str| {
        let refusal = refusal(change);
        assert!(refusal.starts_with("plan-stale: ") && refusal.contains(text), "{refusal}");
    };
    assert_eq!(refusal(&|_| {}), "ok");
    refused(&|gang| gang.attempt = 2, "does not wait for this attempt");
    refused(&|gang| gang.id = JobId(protocol::Digest::of(b"x")), "no such job");
    refused(&|gang| gang.slots.swap(0, 1), "do not hold the ranks of the gang in order");
    refused(&|gang| gang.slots[0].ranks.count = 2, "in order");
    refused(&|gang| drop(gang.slots.pop()), "1 of 2 ranks are placed");
    refused(&|gang| gang.slots[1].slot = SlotIndex(3), "train/3 cannot be ordered so");
    refused(&|gang| gang.slots[1].fence = Fence::default(), "cannot be ordered so");
    refused(&|gang| gang.slots[1].node = node_id("node-9"), "a node is not admitted");
    refused(&|gang| gang.slots[1].node = gang.slots[0].node, "each slot and each node once");
    let gpu = RankGpu { index: 0, uuid: "GPU-0".into() };
    refused(&|gang| gang.slots[0].gpus.push(gpu.clone()), "other GPUs than its ranks need");
}

#[test]
fn a_gang_outside_of_the_regions_of_its_envelope_never_fits() {
    let mut world = linked_nodes();
    world.approve(changed(1, |job| job.placement.regions = vec!["us".into()]));
    let refusal = check_fits(world.view(), &service_name("train")).expect_err("no node is there");
    assert_eq!(refusal.code.as_str(), "job-never-fits");
    let expected = "with 1000 millicores, 1 GiB of memory each, 0 fit on 0 workers";
    assert!(refusal.message.contains("of its 1 ranks"), "{refusal}");
    assert!(refusal.message.contains(expected) || refusal.message.contains("0 fit on"), "{refusal}");
    assert_eq!(check_fits(world.view(), &service_name("unknown")), Ok(()), "no approval, no obstacle");
}

#[test]
fn the_smallest_change_for_ranks_that_fit_on_no_node_is_a_smaller_rank() {
    let mut world = linked_nodes();
    world.approve(changed(1, |job| (job.resources.gpu_count, job.slots) = (2, 1)));
    let refusal = check_fits(world.view(), &service_name("train")).expect_err("no node has a GPU");
    assert!(refusal.message.contains(", 2 GPUs each, 0 fit on 2 workers"), "{refusal}");
    assert!(refusal.message.contains("approve ranks with smaller resources"), "{refusal}");
}

#[test]
fn a_view_of_a_job_follows_its_slots_from_the_order_to_the_end() {
    let mut world = approved("retries = 1");
    let id = submit(&mut world, "a");
    let shown = |world: &World| {
        let view = job_view(world.view(), id).expect("a job");
        let slots: Vec<String> = view.slots.iter().map(|slot| slot.state.clone()).collect();
        (view.state, slots.join(" "))
    };
    assert_eq!(shown(&world), ("queued".into(), String::new()));
    world.execute();
    assert_eq!(shown(&world), ("starting".into(), "ordered ordered".into()));
    report(&mut world, "node-1", JobSlotState::Preparing, None);
    report(&mut world, "node-2", JobSlotState::Ready, None);
    assert_eq!(shown(&world), ("starting".into(), "preparing ready".into()));
    report_all(&mut world, JobSlotState::Ready, None);
    world.execute();
    report_all(&mut world, JobSlotState::Running, None);
    world.job_reports.get_mut(&node_id("node-1")).expect("its reports")[0].cpu_micros = 77;
    world.heartbeat("node-1");
    assert_eq!(shown(&world), ("running".into(), "running running".into()));
    let view = job_view(world.view(), id).expect("a job");
    let parts: Vec<(&str, u32, u64)> =
        view.slots.iter().map(|slot| (slot.node.as_str(), slot.ranks.first, slot.cpu_micros)).collect();
    assert_eq!(parts, [("node-1", 0, 77), ("node-2", 1, 0)]);
    assert!(view.waits.is_none() && view.last_end.is_none());
    report(&mut world, "node-2", JobSlotState::Ended, Some(RankOutcome::Exited { code: 3 }));
    world.execute();
    let view = job_view(world.view(), id).expect("a job");
    assert_eq!((view.attempts, view.failures, view.slots.len()), (1, 1, 0));
    let end = view.last_end.expect("an end");
    assert!(end.attempt == 1 && end.cause.starts_with("rank 1: "), "{end:?}");
    let waits = view.waits.expect("it backs off");
    let at = human_chain::show_time(world.now.plus(limits::JOB_BACKOFF_MS));
    assert_eq!(waits.reason, "back_off");
    assert_eq!(waits.text, format!("the next attempt begins at {at} at the earliest"));
}

#[test]
fn jobs_are_listed_the_latest_submission_first() {
    let mut world = approved("");
    let mut expected = Vec::new();
    for key in ["a", "b", "c"] {
        expected.insert(0, submit(&mut world, key));
        world.wait(1_000);
    }
    let listed: Vec<JobId> =
        job_views(world.view(), &JobSelection::default()).iter().map(|view| view.id).collect();
    assert_eq!(listed, expected);
    assert_eq!(job_view(world.view(), JobId(protocol::Digest::of(b"unknown"))), None);
}

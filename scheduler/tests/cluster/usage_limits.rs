//! Limits of envelopes at their boundaries: what counts as used, as bespoken and as free again, and the text
//! of each refusal.

use crate::common::*;
use crate::usage::{
    CORE_HOUR, HOUR_MS, entries, job, priced, prices, report_jobs, service, spend, state, submit, waits_for,
};
use human_chain::show_time;
use protocol::Millis;
use protocol::governance::Change;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::limits::LEASE_MS;
use protocol::manifest::{Manifest, OnExpiry};
use scheduler::*;

const SUCCESS: Option<RankOutcome> = Some(RankOutcome::Exited { code: 0 });

fn spend_limit(period_seconds: u64, limit: u64) -> String {
    format!("budget = {{ period_seconds = {period_seconds}, spend_micro_units = {limit} }}")
}

/// Returns the cause for which the only service that waits does.
fn waiting_cause(world: &World) -> String {
    let waiting = world.plan().waiting;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    waiting[0].cause.clone()
}

/// Lets the only job under way run for a time and succeed, and its nodes release it.
fn run_for(world: &mut World, ms: u64) {
    report_jobs(world, JobSlotState::Ready, None, 0);
    world.execute();
    report_jobs(world, JobSlotState::Running, None, 0);
    world.pass(ms);
    report_jobs(world, JobSlotState::Ended, SUCCESS, 0);
    world.execute();
    world.job_reports.clear();
    world.heartbeat_all();
    world.execute();
}

#[test]
fn a_gang_at_exactly_its_budget_starts_and_a_millionth_less_holds_all_of_it() {
    for (limit, expected) in [(200_000, true), (199_999, false)] {
        let mut world = priced();
        world.approve(job(2, 99, &spend_limit(3600, limit)));
        let id = submit(&mut world, "a");
        world.execute();
        assert_eq!(state(&world, id).is_placed(), expected, "a limit of {limit}");
        assert_eq!(world.cluster.jobs().held().count(), if expected { 2 } else { 0 });
        if !expected {
            let end = show_time(Millis(world.now.0 + HOUR_MS));
            let text = format!(
                "with it, its envelope could spend 200000 of 199999 millionths in the period that ends at \
                 {end}; 0 are spent"
            );
            assert_eq!(waits_for(&world, id), ("limit".to_string(), text));
        }
    }
}

#[test]
fn an_envelope_without_a_budget_holds_no_job_back() {
    let mut world = priced();
    world.approve(prices(1000 * CORE_HOUR));
    world.approve(job(1, 3599, ""));
    let ids = ["a", "b", "c", "d"].map(|key| submit(&mut world, key));
    world.execute();
    assert!(ids.iter().all(|id| state(&world, *id).is_placed()), "{:?}", world.plan().waiting_jobs);
}

#[test]
fn what_is_used_counts_and_the_rest_of_a_run_counts_to_the_next_period() {
    let mut world = priced();
    world.approve(job(1, 99, &spend_limit(3600, 120_000)));
    let first = submit(&mut world, "a");
    world.execute();
    run_for(&mut world, 30_000);
    assert_eq!((state(&world, first), spend(&entries(&world))), (JobState::Succeeded, 30_000));
    let second = submit(&mut world, "b");
    world.execute();
    let (reason, text) = waits_for(&world, second);
    assert_eq!(reason, "limit");
    assert!(text.contains("could spend 130000 of 120000 millionths"), "{text}");
    assert!(text.ends_with("; 30000 are spent"), "{text}");
    // 90 s of its run fit into the period; the last 10 s may be in the next.
    let next = Millis((world.now.0 / HOUR_MS + 1) * HOUR_MS);
    world.set_now(Millis(next.0 - 90_001));
    world.heartbeat_all();
    world.execute();
    assert!(waits_for(&world, second).1.contains("could spend 120001 of 120000 millionths"));
    world.set_now(Millis(next.0 - 90_000));
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, second).is_placed(), "the period ends with exactly its limit");
}

#[test]
fn what_a_running_gang_has_used_and_may_still_use_stays_what_it_declared() {
    let mut world = priced();
    world.approve(job(1, 99, &spend_limit(3600, 199_999)));
    submit(&mut world, "a");
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    let second = submit(&mut world, "b");
    for (passed, spent) in [(0, "; 0 are spent"), (50_000, "; 50000 are spent")] {
        report_jobs(&mut world, JobSlotState::Running, None, 0);
        world.pass(passed);
        world.execute();
        let (reason, text) = waits_for(&world, second);
        assert_eq!(reason, "limit");
        assert!(text.contains("could spend 200000 of 199999") && text.ends_with(spent), "{text}");
    }
}

/// A gang that prepares uses its slots, and its run time begins only once it runs.
#[test]
fn a_gang_that_still_starts_counts_with_its_whole_run_time_beside_its_preparation() {
    let mut world = priced();
    world.approve(job(1, 99, &spend_limit(3600, 200_000)));
    submit(&mut world, "a");
    world.execute();
    report_jobs(&mut world, JobSlotState::Preparing, None, 0);
    world.pass(7_000);
    let second = submit(&mut world, "b");
    world.execute();
    let (_, text) = waits_for(&world, second);
    assert!(text.contains("could spend 207000 of 200000 millionths"), "{text}");
    assert!(text.ends_with("; 7000 are spent"), "{text}");
}

#[test]
fn a_withdrawn_slot_counts_with_its_grace_until_its_node_confirms() {
    for (limit, expected) in [(101_000, true), (100_999, false)] {
        let mut world = priced();
        world.approve(job(1, 99, &spend_limit(3600, limit)));
        let first = submit(&mut world, "a");
        world.execute();
        world.must(Action::CancelJob { id: first });
        assert_eq!(world.cluster.jobs().held().count(), 1, "its node has not confirmed the end");
        // The node still reports the slot, so that it is not free.
        let second = submit(&mut world, "b");
        let started = world.plan().steps.iter().any(|step| matches!(step, Step::StartGang(_)));
        assert_eq!(started, expected, "a limit of {limit}");
        if !expected {
            let (_, text) = waits_for(&world, second);
            assert!(text.contains("could spend 101000 of 100999 millionths"), "{text}");
        }
        world.heartbeat_all();
        world.execute();
        world.execute();
        assert!(state(&world, second).is_placed(), "the slot of the first is free: {limit}");
    }
}

#[test]
fn a_run_across_the_end_of_a_period_is_held_by_the_limit_of_the_next() {
    for (limit, expected) in [(60_000, true), (59_999, false)] {
        let mut world = priced();
        world.wait(50_000);
        world.heartbeat_all();
        world.approve(job(1, 119, &spend_limit(60, limit)));
        let id = submit(&mut world, "a");
        world.execute();
        assert_eq!(state(&world, id).is_placed(), expected, "a limit of {limit}");
        if !expected {
            let begin = show_time(Millis(world.now.0 + 10_000));
            let text = format!("60000 of 59999 millionths in the period that begins at {begin}; 0 are spent");
            assert!(waits_for(&world, id).1.ends_with(&text), "{:?}", waits_for(&world, id));
        }
    }
}

#[test]
fn gpu_seconds_are_limited_without_any_price() {
    let mut one = node("node-1", 8000, 8192);
    one.resources.gpus = gpus(4, 80, false);
    let mut world = World::new(&[one]);
    world.set_now(Millis((START.0 / HOUR_MS + 1) * HOUR_MS));
    world.heartbeat_all();
    let Change::Deploy(manifest) = job(1, 99, "budget = { period_seconds = 3600, gpu_seconds = 200 }") else {
        panic!("a job")
    };
    let Manifest::Job(mut job) = *manifest else { panic!("a job") };
    job.resources.gpu_count = 1;
    world.approve(Change::Deploy(Box::new(Manifest::Job(job))));
    let ids = ["a", "b", "c"].map(|key| submit(&mut world, key));
    world.execute();
    let waiting: Vec<_> = ids.iter().filter(|id| !state(&world, **id).is_placed()).collect();
    assert_eq!(waiting.len(), 1, "two of 100 s fit 200 GPU-seconds");
    let (reason, text) = waits_for(&world, *waiting[0]);
    assert_eq!(reason, "limit");
    let end = show_time(Millis(world.now.0 + HOUR_MS));
    let expected = format!("300 of 200 GPU-seconds in the period that ends at {end}; 0 are used");
    assert!(text.ends_with(&expected), "{text}");
}

#[test]
fn the_cause_of_a_replica_that_waits_names_the_sum_the_limit_and_what_is_spent() {
    let mut world = priced();
    world.approve(deploy(service(2, 2, Some(2 * CORE_HOUR - 1), OnExpiry::Hold)));
    world.settle();
    let cause = waiting_cause(&world);
    let expected = "with one more replica it could spend 7200000 of 7199999 millionths in an hour; 0 of this \
                    hour are spent";
    assert!(cause.ends_with(expected), "{cause}");
    world.pass(600_000);
    let cause = waiting_cause(&world);
    assert!(cause.ends_with("; 600000 of this hour are spent"), "{cause}");
}

/// The second replica waits for the hour, and the next order of a lost one does not: it costs no more.
#[test]
fn a_replacement_of_a_silent_holder_costs_no_more_than_the_holder_did() {
    let mut world = priced();
    world.approve(deploy(service(1, 2, Some(CORE_HOUR), OnExpiry::Hold)));
    world.settle();
    let lost = world.cluster.holdings().next().unwrap().2.order.node;
    let other = if world.cluster.node_name(&lost) == "node-1" { "node-2" } else { "node-1" };
    let mut scaled = world.clone();
    scaled.must(Action::Scale { service: service_name("embed"), replicas: 2 });
    scaled.settle();
    assert_eq!(scaled.placements("embed").len(), 1, "a second one would pass the limit");
    world.wait(LEASE_MS + 500);
    world.heartbeat(other);
    world.execute();
    let holders: Vec<String> = world.placements("embed");
    assert!(holders.iter().any(|slot| slot.ends_with(other)), "{holders:?}");
}

#[test]
fn replicas_drain_at_the_millisecond_in_which_the_hour_is_spent() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, Some(CORE_HOUR), OnExpiry::Drain)));
    world.settle();
    world.approve(prices(2 * CORE_HOUR));
    world.pass(HOUR_MS / 2 - 1);
    world.execute();
    assert_eq!(world.placements("embed").len(), 1, "two millionths are left");
    world.pass(1);
    world.execute();
    assert!(world.placements("embed").is_empty(), "the limit is spent");
    world.obey();
    world.execute();
    assert_eq!(spend(&entries(&world)), CORE_HOUR, "not a millionth more than the limit");
}

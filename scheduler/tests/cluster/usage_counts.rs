//! Tests of what nodes count and state under their signatures, of stored data, and of the accounts to which
//! usage is added up: projects, submitters and owners.

use crate::common::*;
use crate::job_data::{action, checkpoint, registration};
use crate::jobs::{approved, report_all, running_job};
use crate::projects::vote;
use crate::usage::{HOUR_MS, counted, entries, job, priced, report_jobs, service, spend, submit};
use protocol::governance::Change;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::manifest::OnExpiry;
use protocol::slot_usage::SignedSlotUsage;
use protocol::usage::{Prices, UsageCounts};
use protocol::{Fence, JobId, SlotIndex};
use scheduler::*;

/// A millionth of a unit for each token of an answer, and two for each of a prompt.
const TOKENS: Prices = Prices {
    gpu_hour_micro_units: 0,
    cpu_hour_micro_units: 0,
    memory_gib_hour_micro_units: 0,
    storage_gib_hour_micro_units: 3_600_000,
    million_prompt_tokens_micro_units: 2_000_000,
    million_generated_tokens_micro_units: 1_000_000,
};

fn counts(cpu: u64, prompt: u64, generated: u64) -> UsageCounts {
    UsageCounts { cpu_used_microseconds: cpu, prompt_tokens: prompt, generated_tokens: generated }
}

/// Returns a world with one replica, whose tokens have a price.
fn answering() -> World {
    let mut world = priced();
    world.approve(Change::SetPrices(TOKENS));
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world
}

/// Returns the statement of the holder of the only replica.
fn stated(world: &World, counts: UsageCounts) -> SignedSlotUsage {
    let (name, slot, held) = world.cluster.holdings().next().expect("a holding");
    let node = world.cluster.node_name(&held.order.node);
    counted(world, &node, (name, slot, held.order.fence), counts)
}

fn state(world: &mut World, signed: SignedSlotUsage) {
    world.usage.insert(signed.usage.node, vec![signed]);
    world.heartbeat_all();
    world.execute();
}

/// Returns the outcome of a plan of this one step.
fn count(world: &World, signed: SignedSlotUsage) -> &'static str {
    let steps = vec![Step::CountUsage(Box::new(signed))];
    let action = Action::Execute { parent_generation: world.cluster.generation(), steps };
    verdict(world, Actor::Scheduler, action)
}

#[test]
fn tokens_are_billed_when_a_slot_ends_and_in_between_each_once() {
    let mut world = answering();
    let early = stated(&world, counts(7, 10, 5));
    state(&mut world, early.clone());
    assert_eq!(world.cluster.usage().totals(world.cluster.now()).last().unwrap().open.prompt_tokens, 0);
    world.pass(limits::COUNT_INTERVAL_MS);
    state(&mut world, early.clone());
    let open = |world: &World| {
        let totals = world.cluster.usage().totals(world.cluster.now());
        let open = totals.iter().map(|row| row.open);
        open.map(|open| (open.prompt_tokens, open.generated_tokens, open.spend_micro_units)).max()
    };
    assert_eq!(open(&world), Some((10, 5, 25)), "what is open has its price");
    let before = world.cluster.generation();
    state(&mut world, early);
    assert_eq!(world.cluster.generation(), before, "the same again costs no entry of the log");
    let last = stated(&world, counts(9, 30, 6));
    world.usage.insert(last.usage.node, vec![last]);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    let all = entries(&world);
    assert_eq!(all.iter().map(|entry| entry.amounts.counts()).collect::<Vec<_>>(), [counts(9, 30, 6)]);
    assert_eq!(spend(&all), 66, "two millionths for each token of a prompt, one for each generated");
    let quiet = world.cluster.audit().last(usize::MAX).all(|event| event.action != "count");
    assert!(quiet, "the audit log has no line of it");
}

#[test]
fn a_change_of_prices_leaves_what_was_counted_at_its_own() {
    let mut world = answering();
    world.pass(limits::COUNT_INTERVAL_MS);
    let first = stated(&world, counts(0, 100, 0));
    state(&mut world, first);
    world.approve(Change::SetPrices(Prices { million_prompt_tokens_micro_units: 5_000_000, ..TOKENS }));
    world.pass(limits::COUNT_INTERVAL_MS);
    let second = stated(&world, counts(0, 110, 0));
    state(&mut world, second);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    let spent: Vec<u64> = entries(&world).iter().map(|entry| entry.amounts.spend_micro_units).collect();
    assert_eq!(spent, [200, 50]);
}

type Alter = fn(&mut SignedSlotUsage);

/// Attacks of a hostile leader, which has old statements and signs none, and of a node that signs any.
#[test]
fn counts_are_of_the_holder_of_the_slot_under_its_fence_and_only_rise() {
    let mut world = answering();
    world.pass(limits::COUNT_INTERVAL_MS);
    let sound = stated(&world, counts(7, 10, 5));
    assert_eq!(count(&world, sound.clone()), "ok", "positive control");
    let holder = world.cluster.node_name(&sound.usage.node);
    let other = if holder == "node-1" { "node-2" } else { "node-1" };
    let resigned: [(&str, Alter); 5] = [
        ("another version", |signed| signed.usage.version = 2),
        ("another fence", |signed| signed.usage.fence = Fence::new(9, 9)),
        ("another slot", |signed| signed.usage.slot = SlotIndex(4)),
        ("another envelope", |signed| signed.usage.envelope = service_name("other")),
        ("more than a slot can do", |signed| signed.usage.counts.generated_tokens = u64::MAX),
    ];
    for (what, alter) in resigned {
        let mut altered = sound.clone();
        alter(&mut altered);
        let signed = slot_usage_of(&holder, altered.usage);
        assert_eq!(count(&world, signed), "plan-stale", "{what}");
    }
    let mut raised = sound.clone();
    raised.usage.counts.generated_tokens += 1;
    assert_eq!(count(&world, raised.clone()), "plan-stale", "the leader raises what a node signed");
    assert_eq!(count(&world, slot_usage_of(other, raised.usage.clone())), "plan-stale", "another node signs");
    let mut stolen = sound.usage.clone();
    stolen.node = node_id(other);
    assert_eq!(count(&world, slot_usage_of(other, stolen)), "plan-stale", "another node's own statement");
    world.must(Action::Execute {
        parent_generation: world.cluster.generation(),
        steps: vec![Step::CountUsage(Box::new(slot_usage_of(&holder, raised.usage)))],
    });
    assert_eq!(count(&world, sound), "plan-stale", "an earlier statement again");
}

/// The leader drops what its replicas would refuse: a plan with it would end nothing that must end.
#[test]
fn a_false_statement_stops_no_plan() {
    let mut world = answering();
    world.pass(limits::COUNT_INTERVAL_MS);
    let mut forged = stated(&world, counts(0, 1, 1));
    forged.usage.counts.prompt_tokens = 2;
    state(&mut world, forged);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    assert_eq!(entries(&world)[0].amounts.counts(), UsageCounts::default());
}

#[test]
fn stored_data_is_billed_from_its_registration_until_it_is_forgotten() {
    let mut world = approved("checkpoints = 1");
    world.approve(Change::SetPrices(TOKENS));
    let id = running_job(&mut world);
    world.must(action(registration(&world, id, checkpoint("step-1"))));
    world.pass(HOUR_MS);
    world.must(action(registration(&world, id, checkpoint("step-2"))));
    let stored: Vec<_> = entries(&world).into_iter().filter(|entry| entry.stored.is_some()).collect();
    assert_eq!(stored.len(), 1, "the first checkpoint went");
    let (entry, item) = (&stored[0], stored[0].stored.expect("an item"));
    assert_eq!((item.mib, entry.milliseconds()), (1, HOUR_MS));
    assert_eq!((entry.job, &entry.owner, entry.rate), (Some(id), &None, Default::default()));
    // A gibibyte costs 3.6 units an hour, and this is a mebibyte.
    assert_eq!((entry.amounts.storage_mib_seconds, entry.amounts.spend_micro_units), (3_600, 3_515));
    end(&mut world, id);
    world.pass(1_000);
    let (charged, credited) = world.cluster.usage().sums();
    assert_eq!((charged.storage_mib_seconds, credited.storage_mib_seconds), (3_600, 0));
    let totals = world.cluster.usage().totals(world.view().cluster_time());
    let open: u64 = totals.iter().map(|row| row.open.storage_mib_seconds).sum();
    assert!(open > 0, "the checkpoint of a job that ended is stored on, and billed");
    assert_eq!(Cluster::from_snapshot(&world.cluster.to_snapshot()).as_ref(), Ok(&world.cluster));
}

fn end(world: &mut World, id: JobId) {
    report_all(world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    world.job_reports.clear();
    world.heartbeat_all();
    world.execute();
    assert_eq!(world.cluster.jobs().jobs()[&id].state, JobState::Succeeded);
}

#[test]
fn a_job_counts_to_its_project() {
    let mut world = priced();
    world.approve(vote(&[("vision", 4, None)]));
    world.approve(job(1, 600, "project = 'vision'"));
    let id = submit(&mut world, "a");
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.pass(2_000);
    end(&mut world, id);
    let totals = world.cluster.usage().totals(world.cluster.now());
    let projects: Vec<_> = totals.iter().map(|row| row.project.as_ref().map(ToString::to_string)).collect();
    assert_eq!(projects, [Some("vision".to_string())]);
    assert_eq!(entries(&world)[0].project.as_ref().map(ToString::to_string).as_deref(), Some("vision"));
}

/// A circle of several parties settles by owner who brought the machines, and by project who used them.
#[test]
fn totals_are_apart_by_project_and_by_owner() {
    let mut world = answering();
    let node = world.cluster.holdings().next().expect("a holding").2.order.node;
    let name = world.cluster.node_name(&node);
    let owned = |world: &World, owner: &str| {
        let mut admission = world.specs[&name.parse().unwrap()].admission.clone();
        admission.owner = Some(owner.parse().unwrap());
        Change::AdmitNode(Box::new(claimed_by(&name, admission)))
    };
    let change = owned(&world, "acme");
    world.approve(change);
    world.pass(1_000);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    assert_eq!(
        entries(&world)[0].owner,
        None,
        "the owner is that of the admission when the slot was ordered"
    );
    world.approve(deploy(autonomous(60, manifest("rank", 2, 2, 1000, 128))));
    world.settle();
    world.pass(1_000);
    world.approve(Change::Retire { service: service_name("rank"), grace_seconds: 0 });
    world.settle();
    let totals = world.cluster.usage().totals(world.cluster.now());
    let rows: Vec<(Option<String>, u64)> = totals
        .iter()
        .filter(|row| row.envelope == service_name("rank"))
        .map(|row| (row.owner.as_ref().map(ToString::to_string), row.entries))
        .collect();
    assert_eq!(rows, [(None, 1), (Some("acme".into()), 1)]);
}

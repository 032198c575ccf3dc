//! Tests of metering: what is billed, once and at which price, and which limits hold back what would pass
//! them.

use crate::common::sim::{Event, JUMPS, NODES, Sim};
use crate::common::*;
use crate::jobs::{linked_nodes, report_of};
use proptest::prelude::*;
use protocol::api::Why;
use protocol::governance::Change;
use protocol::job::Submitter;
use protocol::job_report::{JobSlotReport, JobSlotState, RankOutcome};
use protocol::limits::LEASE_MS;
use protocol::manifest::{Manifest, OnExpiry, ServiceManifest};
use protocol::slot_usage::{SignedSlotUsage, SlotUsage};
use protocol::usage::{Prices, UsageAmounts, UsageCounts, UsageEntry, bill};
use protocol::{Digest, Fence, JobId, Millis, ServiceName, SlotIndex};
use scheduler::*;
use std::collections::{BTreeMap, BTreeSet};

/// A thousandth of a unit for a core-second: 3.6 units an hour.
pub(crate) const CORE_HOUR: u64 = 3_600_000;
pub(crate) const HOUR_MS: u64 = 3_600_000;

pub(crate) fn prices(cpu_hour_micro_units: u64) -> Change {
    Change::SetPrices(Prices { cpu_hour_micro_units, ..Prices::default() })
}

/// Returns two nodes at the begin of a clock hour, with a price for cores alone.
pub(crate) fn priced() -> World {
    let mut world = linked_nodes();
    world.share_model("minilm", 90 << 20);
    world.set_now(Millis((START.0 / HOUR_MS + 1) * HOUR_MS));
    world.heartbeat_all();
    world.approve(prices(CORE_HOUR));
    world
}

/// Returns a service of one-core replicas that is not exclusive.
pub(crate) fn service(min: u32, max: u32, spend: Option<u64>, on_expiry: OnExpiry) -> ServiceManifest {
    let manifest = autonomous(60, manifest("embed", min, max, 1000, 128));
    ServiceManifest { spend_micro_units_per_hour: spend, on_expiry, ..manifest }
}

pub(crate) fn job(ranks: u32, run_seconds: u64, budget: &str) -> Change {
    let text = format!(
        "kind = 'job'\nname = 'train'\nartifact = {{ name = 'trainer', root = '{}' }}\n\
         command = ['/bin/train']\nranks = {ranks}\nranks_per_slot = 1\nslots = 4\n\
         run_seconds_max = {run_seconds}\ngrace_seconds = 1\nretries = 1\nautonomy_seconds = 600\n\
         submit = {{ any_token = true }}\n\
         resources = {{ cpu_millicores = 1000, memory = '1 GiB' }}\n{budget}\n",
        "1".repeat(64)
    );
    Change::Deploy(Box::new(Manifest::from_toml(&text).expect("a sound manifest")))
}

pub(crate) fn submit(world: &mut World, key: &str) -> JobId {
    let request = JobRequest {
        job: service_name("train"),
        idempotency: Digest::of(key.as_bytes()),
        parameters: BTreeMap::new(),
        priority: None,
        deadline_seconds: None,
        after: BTreeSet::new(),
        array: None,
    };
    match world.apply(token("operator"), Action::RequestJob(Box::new(request))) {
        Reply::JobSubmitted { job } => job,
        other => panic!("not submitted: {other:?}"),
    }
}

/// Lets every node that is alive report each slot of a job in this state.
pub(crate) fn report_jobs(world: &mut World, state: JobSlotState, end: Option<RankOutcome>, cpu_micros: u64) {
    for name in ["node-1", "node-2"] {
        let of = |part| JobSlotReport { cpu_micros, ..report_of(part, state, end) };
        let known: Vec<JobSlotReport> =
            desired_jobs(&world.cluster, node_id(name)).into_iter().map(of).collect();
        let counts = UsageCounts { cpu_used_microseconds: cpu_micros, ..UsageCounts::default() };
        let stated = known.iter().filter(|_| cpu_micros > 0);
        let stated =
            stated.map(|report| counted(world, name, (&report.job, report.slot, report.fence), counts));
        world.usage.insert(node_id(name), stated.collect());
        if !known.is_empty() {
            world.job_reports.insert(node_id(name), known);
        }
        world.heartbeat(name);
    }
}

/// Returns the statement of a node about one of its slots.
pub(crate) fn counted(
    world: &World,
    node: &str,
    (envelope, slot, fence): (&ServiceName, SlotIndex, Fence),
    counts: UsageCounts,
) -> SignedSlotUsage {
    let circle = world.cluster.circle_id().expect("founded");
    let (node, name) = (node_id(node), node);
    let usage = SlotUsage { version: 1, circle, node, envelope: envelope.clone(), slot, fence, counts };
    slot_usage_of(name, usage)
}

pub(crate) fn entries(world: &World) -> Vec<UsageEntry> {
    world.cluster.usage().recent().cloned().collect()
}

pub(crate) fn spend(entries: &[UsageEntry]) -> u64 {
    entries.iter().map(|entry| entry.amounts.spend_micro_units).sum()
}

pub(crate) fn state(world: &World, id: JobId) -> JobState {
    world.cluster.jobs().jobs()[&id].state
}

pub(crate) fn waits_for(world: &World, id: JobId) -> (String, String) {
    let waits = job_view(world.view(), id).and_then(|view| view.waits).expect("it waits");
    (waits.reason, waits.text)
}

fn why_service(world: &World) -> Why {
    why(world.view(), &Question::Service(service_name("embed"))).expect("a service")
}

/// The usage of a job equals its slot-seconds times the price, to the millionth, in both of its attempts.
#[test]
fn both_attempts_of_a_job_are_billed_to_the_millionth() {
    let mut world = priced();
    world.approve(job(2, 600, ""));
    let id = submit(&mut world, "a");
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    world.pass(7_001);
    report_jobs(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 9 }), 5_000);
    world.execute();
    world.execute();
    assert!(matches!(state(&world, id), JobState::BackingOff { .. }), "{:?}", state(&world, id));
    let first = entries(&world);
    assert_eq!(first.iter().map(UsageEntry::milliseconds).collect::<Vec<_>>(), [7_001, 7_001]);
    assert_eq!(spend(&first), 2 * 7_001, "a core-second costs a thousand millionths");
    assert!(first.iter().all(|entry| entry.amounts.cpu_used_microseconds == 5_000));
    let submitter = Some(Submitter::Token("operator".parse().unwrap()));
    assert!(first.iter().all(|entry| entry.submitter == submitter && entry.job == Some(id)));
    world.job_reports.clear();
    world.pass(limits::JOB_BACKOFF_MS);
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    world.pass(3_000);
    report_jobs(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }), 1);
    world.execute();
    world.execute();
    assert_eq!(state(&world, id), JobState::Succeeded);
    let all = entries(&world);
    assert_eq!((all.len(), spend(&all)), (4, 2 * 7_001 + 2 * 3_000));
    assert_eq!(all.iter().map(|entry| entry.attempt).collect::<Vec<_>>(), [1, 1, 2, 2]);
    let totals = world.cluster.usage().totals(world.cluster.now());
    assert_eq!(totals.len(), 1);
    assert_eq!((totals[0].entries, totals[0].amounts.spend_micro_units), (4, spend(&all)));
    assert_eq!((&totals[0].submitter, totals[0].open), (&submitter, UsageAmounts::default()));
}

#[test]
fn a_job_shows_what_all_of_its_attempts_used() {
    let mut world = priced();
    world.approve(job(2, 600, ""));
    let (id, other) = (submit(&mut world, "a"), submit(&mut world, "b"));
    let used = |world: &World, id: JobId| job_view(world.view(), id).unwrap().used.spend_micro_units;
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    let id = if state(&world, id) == JobState::Running { id } else { other };
    world.pass(7_000);
    assert_eq!(used(&world, id), 2 * 7_000, "open intervals count");
    report_jobs(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 9 }), 0);
    world.execute();
    world.execute();
    assert_eq!(used(&world, id), 2 * 7_000, "so do closed ones");
    let of_jobs = world.cluster.usage().of_jobs(world.cluster.now());
    let spent: u64 = of_jobs.values().map(|used| used.spend_micro_units).sum();
    let totals = world.cluster.usage().totals(world.cluster.now());
    let rows = totals.iter().map(|row| row.amounts.spend_micro_units + row.open.spend_micro_units);
    assert_eq!(spent, rows.sum::<u64>(), "the jobs used what their envelope did");
    let views = job_views(world.view(), &JobSelection::default());
    assert_eq!(views.iter().map(|view| view.used.spend_micro_units).sum::<u64>(), spent);
}

#[test]
fn prices_that_change_in_a_run_bill_each_part_at_its_own() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.pass(10_000);
    world.approve(prices(2 * CORE_HOUR));
    world.pass(5_000);
    world.must(Action::Scale { service: service_name("embed"), replicas: 1 });
    let open = world.cluster.usage().totals(world.cluster_now());
    assert_eq!(open.iter().map(|row| row.open.spend_micro_units).sum::<u64>(), 5_000 * 2);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    let parts: Vec<(u64, u64, u64)> = entries(&world)
        .iter()
        .map(|entry| (entry.price_version, entry.milliseconds(), entry.amounts.spend_micro_units))
        .collect();
    assert_eq!(parts, [(1, 10_000, 10_000), (2, 5_000, 10_000)]);
    let versions = price_versions(&world.cluster);
    let known: Vec<(u64, u64)> =
        versions.iter().map(|known| (known.version, known.prices.cpu_hour_micro_units)).collect();
    assert_eq!(known, [(0, 0), (1, CORE_HOUR), (2, 2 * CORE_HOUR)]);
}

/// A replica is admitted if the hour then costs exactly the limit, and waits at one millionth more.
#[test]
fn a_replica_at_exactly_the_spend_limit_runs_and_one_beyond_waits() {
    let an_hour = CORE_HOUR;
    for (limit, expected) in [(2 * an_hour, 2), (2 * an_hour - 1, 1), (an_hour, 1), (an_hour - 1, 0)] {
        let mut world = priced();
        world.approve(deploy(service(2, 2, Some(limit), OnExpiry::Hold)));
        world.settle();
        assert_eq!(world.placements("embed").len(), expected, "a limit of {limit}");
        let waiting = world.plan().waiting;
        assert_eq!(waiting.is_empty(), expected == 2, "{waiting:?}");
        if expected < 2 {
            assert!(waiting[0].cause.contains("its spend limit holds"), "{}", waiting[0].cause);
            let why = why_service(&world);
            assert!(why.answer.contains("its spend limit holds"), "{}", why.answer);
            assert!(why.remedy.is_some_and(|remedy| remedy.contains("higher spend limit")));
        }
        // The running replicas spend the limit of the hour exactly, and the next hour is no different.
        world.pass(2 * HOUR_MS);
        world.settle();
        assert_eq!(world.placements("embed").len(), expected, "after two hours");
    }
}

/// Attack: control orders a replica, or starts a gang, beyond the limit. No replica of the log takes it.
#[test]
fn attack_a_plan_beyond_a_limit_is_refused() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, Some(CORE_HOUR), OnExpiry::Hold)));
    let plan = world.plan();
    let action = Action::Execute { parent_generation: plan.parent_generation, steps: plan.steps };
    assert_eq!(verdict(&world, Actor::Scheduler, action.clone()), "ok");
    let Action::Execute { steps, .. } = action else { panic!("a plan") };
    world.approve(prices(CORE_HOUR + 1));
    let parent_generation = world.cluster.generation();
    let action = Action::Execute { parent_generation, steps };
    assert_eq!(verdict(&world, Actor::Scheduler, action), "plan-stale");
    let mut world = priced();
    world.approve(job(
        1,
        99,
        "budget = { period_seconds = 3600, gpu_seconds = 9, spend_micro_units = 100000 }",
    ));
    submit(&mut world, "a");
    let steps = world.plan().steps;
    let parent_generation = world.cluster.generation();
    let action = Action::Execute { parent_generation, steps: steps.clone() };
    assert_eq!(verdict(&world, Actor::Scheduler, action), "ok");
    world.approve(prices(CORE_HOUR + 36));
    let parent_generation = world.cluster.generation();
    let action = Action::Execute { parent_generation, steps };
    assert_eq!(verdict(&world, Actor::Scheduler, action), "plan-stale");
}

#[test]
fn prices_that_rise_end_what_runs_only_if_the_envelope_says_so() {
    for (on_expiry, expected) in [(OnExpiry::Hold, 2), (OnExpiry::Drain, 0)] {
        let mut world = priced();
        world.approve(deploy(service(2, 2, Some(2 * CORE_HOUR), on_expiry)));
        world.settle();
        world.approve(prices(4 * CORE_HOUR));
        world.pass(HOUR_MS / 4 - 1_000);
        world.settle();
        assert_eq!(world.placements("embed").len(), 2, "the limit is not spent yet");
        world.pass(2_000);
        world.execute();
        world.obey();
        world.execute();
        assert_eq!(world.placements("embed").len(), expected, "{on_expiry:?}");
        // A new hour has a new limit, in which half a replica is no replica.
        world.pass(HOUR_MS);
        world.settle();
        assert_eq!(world.placements("embed").len(), expected, "{on_expiry:?}");
    }
}

/// Attempts are admitted by what they declare: two of 100 s fit 200 core-seconds, and a third waits for the
/// next period.
#[test]
fn a_job_that_would_pass_its_envelope_waits_with_the_reason() {
    let budget = |spend: u64| format!("budget = {{ period_seconds = 3600, spend_micro_units = {spend} }}");
    let mut world = priced();
    world.approve(job(1, 99, &budget(200_000)));
    let ids: Vec<JobId> = ["a", "b", "c"].iter().map(|key| submit(&mut world, key)).collect();
    world.execute();
    let states: Vec<bool> = ids.iter().map(|id| state(&world, *id).is_placed()).collect();
    assert_eq!(states.iter().filter(|placed| **placed).count(), 2, "{states:?}");
    let waiting = ids[states.iter().position(|placed| !placed).unwrap()];
    let (reason, text) = waits_for(&world, waiting);
    assert_eq!(reason, "limit");
    assert!(text.contains("could spend 300000 of 200000 millionths in the period that ends at"), "{text}");
    let why = why(world.view(), &Question::Service(service_name("train"))).expect("an approved job");
    assert_eq!(why.answer, "2 jobs of train placed, 1 job waiting");
    assert!(why.reasons.iter().any(|reason| reason.contains("waits (limit): with it")), "{:?}", why.reasons);
    let found = status(world.view(), LeaderView { leader: None, silent: None }).findings;
    let limit = found.iter().find(|found| found.message.contains("of train waits for its envelope"));
    assert_eq!(limit.map(|found| found.next.as_str()), Some("quorate why train"), "{found:?}");
    // The two end after 30 s each. Their unused part is free again: 60 + 100 of 200.
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    world.pass(30_000);
    report_jobs(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }), 0);
    world.execute();
    world.job_reports.clear();
    world.heartbeat_all();
    world.execute();
    assert!(state(&world, waiting).is_placed(), "{:?}", waits_for(&world, waiting));
}

#[test]
fn the_gpu_hours_of_an_envelope_hold_in_the_next_period_too() {
    let gpu = |budget: &str| {
        let Change::Deploy(manifest) = job(1, 119, budget) else { panic!("a job") };
        let Manifest::Job(mut job) = *manifest else { panic!("a job") };
        job.resources.gpu_count = 1;
        Change::Deploy(Box::new(Manifest::Job(job)))
    };
    for (seconds, expected) in [(60, true), (59, false)] {
        let mut one = node("node-1", 4000, 4096);
        one.resources.gpus = gpus(2, 80, false);
        let mut world = World::new(&[one]);
        // The period ends in 10 s; the whole next one is the attempt's.
        world.set_now(Millis((START.0 / 60_000 + 1) * 60_000 + 50_000));
        world.heartbeat_all();
        world.approve(gpu(&format!("budget = {{ period_seconds = 60, gpu_seconds = {seconds} }}")));
        let id = submit(&mut world, "a");
        world.execute();
        assert_eq!(state(&world, id).is_placed(), expected, "{seconds} GPU-seconds");
        if !expected {
            let (reason, text) = waits_for(&world, id);
            assert_eq!(reason, "limit");
            assert!(text.contains("could use 60 of 59 GPU-seconds in the period that begins at"), "{text}");
        }
    }
}

/// A slot of a lost node is billed until it is replaced, or until the node's autonomy ended: never twice.
#[test]
fn a_lost_nodes_slot_is_billed_to_its_replacement_or_its_autonomy_at_most_once() {
    let mut world = priced();
    world.approve(deploy(service(1, 2, None, OnExpiry::Hold)));
    world.settle();
    let lost = world.cluster.holdings().next().unwrap().2.order.node;
    let name = world.cluster.node_name(&lost);
    let other = if name == "node-1" { "node-2" } else { "node-1" };
    let begin = world.cluster.now();
    // The other node has no room at first: the silent one may run the slot on.
    world.wait(LEASE_MS + 500);
    world.heartbeat(other);
    world.execute();
    let replaced = entries(&world);
    assert_eq!(replaced.len(), 1, "replaced at once: {replaced:?}");
    assert_eq!(replaced[0].until, world.now, "billed to its replacement");
    assert_eq!((replaced[0].node, replaced[0].from), (lost, begin.0));
    let slots: Vec<(SlotIndex, Millis)> = world
        .cluster
        .holdings()
        .filter(|(_, _, held)| held.order.node != lost)
        .map(|(_, slot, held)| (slot, held.order.issued_at))
        .collect();
    assert_eq!(slots, [(replaced[0].slot, world.now)], "the next meter begins where the first ended");
}

#[test]
fn a_slot_that_nothing_replaces_is_billed_until_the_autonomy_of_its_node_ends() {
    let mut world = World::new(&[node("node-1", 4000, 4096)]);
    world.share_model("minilm", 90 << 20);
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    let begin = world.cluster.now().0;
    world.wait(LEASE_MS + 1_000);
    world.execute();
    assert!(entries(&world).is_empty(), "it may run on");
    let noticed = world.now;
    // The leader looks again only an hour later.
    world.wait(HOUR_MS);
    world.execute();
    let billed = entries(&world);
    assert_eq!(billed.len(), 1);
    assert_eq!((billed[0].from, billed[0].until), (begin, noticed.plus(60_000)), "60 s of autonomy");
}

#[test]
fn midnight_ends_an_interval_and_each_day_has_its_own_total() {
    const DAY_MS: u64 = 24 * HOUR_MS;
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    let midnight = Millis((world.now.0 / DAY_MS + 1) * DAY_MS);
    world.set_now(midnight.plus(HOUR_MS));
    assert!(tick_is_due(&world.cluster, &world.clocks), "a day is over");
    world.must(Action::Tick);
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    assert_eq!(entries(&world).last().map(|entry| entry.until), Some(midnight));
    let rows = world.cluster.usage().totals(world.cluster.now());
    let days: Vec<Millis> = rows.iter().map(|row| row.day).collect();
    assert_eq!(days, [Millis(midnight.0 - DAY_MS), midnight]);
    assert_eq!(rows[1].open.spend_micro_units, CORE_HOUR, "an hour of the new day is open");
}

/// A majority of the clocks jumps ahead by a month and back: what was billed for that month is credited.
#[test]
fn a_clock_that_jumps_ahead_and_back_bills_no_time_that_never_was() {
    const MONTH_MS: u64 = 30 * 24 * HOUR_MS;
    let mut world = priced();
    world.approve(deploy(service(1, 1, Some(CORE_HOUR), OnExpiry::Hold)));
    world.settle();
    let begin = world.cluster.now().0;
    world.pass(60_000);
    let right = world.now;
    world.clocks = all_at(right.plus(MONTH_MS));
    world.must(Action::Tick);
    assert!(spend(&entries(&world)) > CORE_HOUR * 24 * 29, "the jump is believed at first");
    world.set_now(right);
    world.must(Action::Tick);
    let (charged, credited) = world.cluster.usage().sums();
    let settled = charged.spend_micro_units - credited.spend_micro_units;
    let last = entries(&world).into_iter().filter(|entry| entry.credit_of.is_some()).count();
    assert!(last > 0, "credits name what they take back");
    assert!(settled.abs_diff(right.0 - begin.0) <= 3, "{settled} for {} ms", right.0 - begin.0);
    world.pass(60_000);
    let totals = world.cluster.usage().totals(world.cluster_now());
    let all: u64 = totals.iter().map(|row| row.amounts.spend_micro_units + row.open.spend_micro_units).sum();
    assert!(all.abs_diff(120_000) <= 3, "two minutes of a core: {all}");
    world.heartbeat_all();
    world.settle();
    assert_eq!(world.placements("embed").len(), 1, "the limit of the hour is not spent by it");
}

#[test]
fn a_restored_state_bills_alike_and_knows_no_entry_twice() {
    let mut world = priced();
    world.approve(deploy(service(2, 2, Some(9 * CORE_HOUR), OnExpiry::Hold)));
    world.settle();
    world.pass(5_000);
    let restored = Cluster::from_snapshot(&world.cluster.to_snapshot()).unwrap();
    assert_eq!(restored, world.cluster);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    let mut second = Cluster::new();
    for (at, command) in world.log.iter().enumerate() {
        let _ = apply(&mut second, at as u64 + 1, command);
        // A command that comes twice is stale or changes nothing that is metered.
        let before = (second.usage().recorded(), second.usage().head());
        let mut again = second.clone();
        let _ = apply(&mut again, at as u64 + 1, command);
        let recorded = (again.usage().recorded(), again.usage().head());
        let is_plan = matches!(command.action, Action::Execute { .. });
        assert!(!is_plan || recorded == before, "a plan is executed once");
    }
    assert_eq!(second.usage().sums(), world.cluster.usage().sums());
    assert_eq!(second.usage().head(), world.cluster.usage().head());
}

/// Collects the entries of a simulation, without gaps.
fn collect(all: &mut Vec<UsageEntry>, cluster: &Cluster) {
    for entry in cluster.usage().recent() {
        if entry.sequence > all.len() as u64 {
            assert_eq!(entry.sequence, all.len() as u64 + 1, "no entry is lost");
            all.push(entry.clone());
        }
    }
}

/// Returns the intervals of each slot for which entries were charged and not credited.
fn effective(all: &[UsageEntry]) -> BTreeMap<(ServiceName, SlotIndex), Vec<(Millis, Millis)>> {
    let mut slots: BTreeMap<_, Vec<(Millis, Millis)>> = BTreeMap::new();
    for entry in all.iter().filter(|entry| entry.credit_of.is_none()) {
        let credits = all.iter().filter(|credit| credit.credit_of == Some(entry.sequence));
        let until = credits.map(|credit| credit.from).min().unwrap_or(entry.until);
        if entry.from < until {
            let slot = (entry.envelope.clone(), entry.slot);
            slots.entry(slot).or_default().push((entry.from, until));
        }
    }
    slots
}

fn usage_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => prop::sample::select(vec![200, 1500, LEASE_MS, 40_000, 4_000_000]).prop_map(Event::Wait),
        6 => (0..NODES).prop_map(Event::Sync),
        8 => Just(Event::Plan),
        1 => Just(Event::FormerPlan),
        2 => (0..4usize, prop::bool::weighted(0.5)).prop_map(|(which, again)| Event::Arrive { which, again }),
        2 => Just(Event::Propose),
        1 => (0..3usize).prop_map(Event::Lead),
        1 => (0..NODES).prop_map(Event::Crash),
        2 => (0..5u32).prop_map(Event::Scale),
        1 => (0..3usize, prop::sample::select(JUMPS.to_vec()))
            .prop_map(|(replica, by)| Event::Jump { replica, by }),
        1 => Just(Event::Mend),
        1 => Just(Event::Retire),
        1 => (0..NODES).prop_map(Event::Remove),
        1 => (0..NODES).prop_map(Event::Admit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// No moment of a slot is billed twice when messages are lost, doubled or late and clocks jump, and the
    /// totals are the sums of the entries, which bill again as they are, in any order.
    #[test]
    fn no_moment_of_a_slot_is_billed_twice_and_sums_are_conserved(
        events in prop::collection::vec(usage_event(), 1..100),
    ) {
        let mut sim = Sim::new();
        let (cpu, memory) = (123_457, 7);
        let prices = Prices {
            cpu_hour_micro_units: cpu,
            memory_gib_hour_micro_units: memory,
            ..Prices::default()
        };
        sim.world.approve(Change::SetPrices(prices));
        let mut all = Vec::new();
        for event in &events {
            sim.step(event);
            collect(&mut all, &sim.world.cluster);
        }
        let usage = sim.world.cluster.usage();
        prop_assert_eq!(usage.recorded(), all.len() as u64);
        let versions = price_versions(&sim.world.cluster);
        let mut run = Rebill::new(usage.recorded(), &versions).unwrap();
        for entry in all.iter().rev().chain(&all) {
            prop_assert!(run.add(entry).is_ok(), "{:?}", entry);
        }
        let sum = run.finish().unwrap();
        prop_assert_eq!((sum.charged, sum.credited), usage.sums());
        let mut rows = UsageAmounts::default();
        usage.totals(sim.world.cluster.now()).iter().for_each(|row| rows.add(&row.amounts));
        let mut settled = sum.charged;
        settled.take(&sum.credited);
        prop_assert_eq!(rows, settled);
        let head = all.iter().fold(Digest([0; 32]), |head, entry| entry.head_after(&head));
        prop_assert_eq!(head, usage.head());
        for (slot, mut intervals) in effective(&all) {
            intervals.sort_unstable();
            let apart = intervals.windows(2).all(|pair| pair[0].1 <= pair[1].0);
            prop_assert!(apart, "{:?}: {:?}", slot, intervals);
        }
    }
}

/// An entry that was made at another price does not pass as one of this price: the control of the property.
#[test]
fn an_entry_of_another_price_is_found() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.pass(1_000);
    world.approve(Change::Retire { service: service_name("embed"), grace_seconds: 0 });
    world.settle();
    let versions = price_versions(&world.cluster);
    let mut entry = entries(&world).remove(0);
    assert_eq!(Rebill::new(1, &versions).unwrap().add(&entry), Ok(true));
    entry.amounts =
        bill(&entry.rate, entry.milliseconds(), &Prices { cpu_hour_micro_units: 1, ..Prices::default() });
    let fault = Rebill::new(1, &versions).unwrap().add(&entry).unwrap_err();
    assert!(matches!(fault, RebillFault::AmountsDiffer { sequence: 1, .. }), "{fault}");
}

//! Meters and their entries: when one opens, what it names, and at which boundaries its interval ends.

use crate::common::*;
use crate::usage::{
    CORE_HOUR, HOUR_MS, entries, job, priced, prices, report_jobs, service, spend, state, submit,
};
use protocol::governance::Change;
use protocol::job::Submitter;
use protocol::job_report::{JobSlotState, RankOutcome};
use protocol::manifest::{Manifest, OnExpiry};
use protocol::usage::{Prices, UsageAmounts, UsageEntry, UsageRate, bill};
use protocol::{Digest, Millis};
use scheduler::*;

fn retire(world: &mut World, name: &str) {
    world.approve(Change::Retire { service: service_name(name), grace_seconds: 0 });
    world.settle();
}

fn lengths(entries: &[UsageEntry]) -> Vec<u64> {
    entries.iter().map(UsageEntry::milliseconds).collect()
}

#[test]
fn a_meter_is_open_for_each_held_slot_and_closes_when_its_node_releases_it() {
    let mut world = priced();
    world.approve(deploy(service(1, 3, None, OnExpiry::Hold)));
    assert_eq!(world.cluster.usage().open_meters(), 0, "an approval holds nothing");
    world.must(Action::Scale { service: service_name("embed"), replicas: 3 });
    world.settle();
    assert_eq!(world.cluster.usage().open_meters(), 3);
    world.pass(4_000);
    world.must(Action::Scale { service: service_name("embed"), replicas: 1 });
    world.execute();
    assert_eq!((entries(&world).len(), world.cluster.usage().open_meters()), (0, 3), "they drain");
    world.pass(2_000);
    world.obey();
    world.settle();
    assert_eq!(world.cluster.usage().open_meters(), 1);
    let closed = entries(&world);
    assert_eq!(lengths(&closed), [6_000, 6_000], "a slot that drains is billed until its release");
    assert_eq!(closed.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn an_entry_of_a_service_names_its_order_and_no_submitter() {
    let mut world = priced();
    let certificate = world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    let (_, slot, held) = world.cluster.holdings().next().expect("a holding");
    let (fence, node) = (held.order.fence, held.order.node);
    world.pass(1_000);
    retire(&mut world, "embed");
    let all = entries(&world);
    assert_eq!(all.len(), 1);
    let entry = &all[0];
    assert_eq!((&entry.envelope, entry.slot, entry.fence), (&service_name("embed"), slot, fence));
    assert_eq!((entry.certificate, entry.node), (certificate, node));
    assert_eq!((&entry.submitter, entry.job, entry.attempt, entry.credit_of), (&None, None, 0, None));
    assert_eq!(entry.rate, UsageRate { gpu_millis: 0, cpu_millicores: 1000, memory_mib: 128 });
    assert_eq!(world.cluster.usage().head(), entry.head_after(&Digest([0; 32])), "the chain begins here");
}

#[test]
fn what_ran_before_the_first_vote_on_prices_is_counted_and_costs_nothing() {
    let mut world = two_nodes();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.pass(8_000);
    world.approve(prices(CORE_HOUR));
    let all = entries(&world);
    assert_eq!((all.len(), all[0].price_version, spend(&all)), (1, 0, 0));
    assert_eq!(all[0].amounts.cpu_microseconds, 8_000_000);
    assert_eq!(all[0].amounts.memory_mib_seconds, 8 * 128);
    world.pass(2_000);
    retire(&mut world, "embed");
    let last = entries(&world).pop().expect("a second entry");
    assert_eq!((last.price_version, last.amounts.spend_micro_units), (1, 2_000));
}

#[test]
fn each_rank_is_billed_for_its_gpu_its_cores_and_its_memory() {
    let mut one = node("node-1", 4000, 4096);
    one.resources.gpus = gpus(2, 80, false);
    let mut world = World::new(&[one]);
    let votes = Prices {
        gpu_hour_micro_units: 10 * CORE_HOUR,
        cpu_hour_micro_units: CORE_HOUR,
        memory_gib_hour_micro_units: CORE_HOUR / 5,
        ..Prices::default()
    };
    world.approve(Change::SetPrices(votes));
    let Change::Deploy(manifest) = job(2, 99, "") else { panic!("a job") };
    let Manifest::Job(mut manifest) = *manifest else { panic!("a job") };
    (manifest.ranks_per_slot, manifest.resources.gpu_count) = (2, 1);
    world.approve(Change::Deploy(Box::new(Manifest::Job(manifest))));
    let id = submit(&mut world, "a");
    world.execute();
    let node_1 = node_id("node-1");
    let report = |world: &mut World, state, end| {
        let parts = desired_jobs(&world.cluster, node_1).into_iter();
        let reports = parts.map(|part| crate::jobs::report_of(part, state, end)).collect();
        world.job_reports.insert(node_1, reports);
        world.heartbeat("node-1");
    };
    report(&mut world, JobSlotState::Ready, None);
    world.execute();
    world.pass(10_000);
    report(&mut world, JobSlotState::Ended, Some(RankOutcome::Exited { code: 0 }));
    world.execute();
    world.execute();
    assert_eq!(state(&world, id), JobState::Succeeded);
    let all = entries(&world);
    assert_eq!(all.len(), 1, "one slot holds both ranks");
    assert_eq!(all[0].rate, UsageRate { gpu_millis: 2000, cpu_millicores: 2000, memory_mib: 2048 });
    let seconds = 2 * 10;
    assert_eq!(all[0].amounts.gpu_microseconds, seconds * 1_000_000);
    assert_eq!(spend(&all), seconds * (10_000 + 1_000 + 200));
    assert_eq!(all[0].amounts, bill(&all[0].rate, 10_000, &votes));
}

#[test]
fn the_end_of_an_hour_ends_intervals_of_envelopes_with_a_limit_alone() {
    for (limit, expected) in [(Some(9 * CORE_HOUR), vec![HOUR_MS, 1_800_000]), (None, vec![5_400_000])] {
        let mut world = priced();
        // Midnight, which ends each interval, is an hour away.
        world.wait(2 * HOUR_MS);
        world.heartbeat_all();
        world.approve(deploy(service(1, 1, limit, OnExpiry::Hold)));
        world.settle();
        world.set_now(world.now.plus(5_400_000));
        world.heartbeat_all();
        world.obey();
        retire(&mut world, "embed");
        let all = entries(&world);
        assert_eq!(lengths(&all), expected, "{limit:?}");
        assert_eq!(spend(&all), CORE_HOUR + CORE_HOUR / 2, "a boundary costs nothing");
        assert!(all.windows(2).all(|pair| pair[0].until == pair[1].from), "without a gap");
    }
}

#[test]
fn two_votes_in_one_moment_leave_no_entry_without_length() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.pass(3_000);
    world.approve(prices(2 * CORE_HOUR));
    world.approve(prices(3 * CORE_HOUR));
    world.pass(1_000);
    retire(&mut world, "embed");
    let parts: Vec<(u64, u64)> =
        entries(&world).iter().map(|entry| (entry.price_version, entry.milliseconds())).collect();
    assert_eq!(parts, [(1, 3_000), (3, 1_000)]);
}

#[test]
fn totals_of_a_job_are_of_its_submitter_and_those_of_a_service_of_none() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.approve(job(1, 99, ""));
    submit(&mut world, "a");
    world.execute();
    report_jobs(&mut world, JobSlotState::Ready, None, 0);
    world.execute();
    world.pass(5_000);
    let rows = world.cluster.usage().totals(world.cluster_now());
    let open = |row: &protocol::usage::UsageTotal| {
        (row.envelope.to_string(), row.submitter.clone(), row.entries, row.open.spend_micro_units)
    };
    let operator = Some(Submitter::Token("operator".parse().unwrap()));
    let expected = [("embed".to_string(), None, 0, 5_000), ("train".to_string(), operator, 0, 5_000)];
    assert_eq!(rows.iter().map(open).collect::<Vec<_>>(), expected);
    assert!(rows.iter().all(|row| row.amounts == UsageAmounts::default()), "no interval has closed");
}

/// Attack: a run is given an entry that ends before it begins, one of a later price list, and too many. The
/// positive control is the sound entry.
#[test]
fn attack_each_fault_of_an_entry_has_its_text() {
    let mut world = priced();
    world.approve(deploy(service(1, 1, None, OnExpiry::Hold)));
    world.settle();
    world.pass(2_000);
    retire(&mut world, "embed");
    let versions = price_versions(&world.cluster);
    let sound = entries(&world).remove(0);
    let fault = |entry: &UsageEntry| match Rebill::new(1, &versions).unwrap().add(entry) {
        Ok(is_new) => format!("new: {is_new}"),
        Err(fault) => fault.to_string(),
    };
    assert_eq!(fault(&sound), "new: true");
    let reversed = UsageEntry { until: Millis(sound.from.0 - 1), ..sound.clone() };
    assert_eq!(fault(&reversed), "entry 1 ends before it begins");
    let later = UsageEntry { price_version: 2, ..sound.clone() };
    assert_eq!(fault(&later), "entry 1 names prices 2, which are unknown");
    let second = UsageEntry { sequence: 2, ..sound.clone() };
    assert_eq!(fault(&second), "entry 2 is not among those that the totals count");
    let mut cheaper = sound.clone();
    cheaper.amounts.spend_micro_units = 1_999;
    assert_eq!(
        fault(&cheaper),
        "entry 1 claims 1999 millionths and bills as 2000; its other amounts count too"
    );
    let used = UsageAmounts { cpu_used_microseconds: 7, ..sound.amounts };
    assert_eq!(fault(&UsageEntry { amounts: used, ..sound }), "new: true", "CPU time is shown, not billed");
    let missing = Rebill::new(70, &versions).unwrap().finish().unwrap_err();
    assert_eq!(missing.to_string(), "70 entries are missing, the first of them number 1");
    let many = Rebill::new((1 << 30) + 1, &versions).expect_err("too many");
    assert_eq!(many.to_string(), "1073741825 entries; one run takes at most 1073741824");
}

//! Tests of the cluster's time under wrong clocks, in simulated time.
//!
//! One wrong clock moves it nowhere. A majority is believed, and the time heals with the clocks, down to what
//! is signed.

use crate::common::samples::{running, tree};
use crate::common::*;
use proptest::prelude::*;
use protocol::Millis;
use protocol::limits::CLOCK_GRACE_MS;
use scheduler::limits::*;
use scheduler::*;

const DAY_MS: i64 = 86_400_000;
const MONTH_MS: i64 = 30 * DAY_MS;

/// Returns readings of clocks that err by these milliseconds; a replica without one is unknown.
fn erring(now: Millis, errors: &[Option<i64>]) -> ClockReadings {
    let wall = |by: i64| WallTime(Millis(now.0.saturating_add_signed(by)));
    let reading = |(id, by): (u64, &Option<i64>)| Some((protocol::ReplicaId(id), wall((*by)?)));
    (1..).zip(errors).filter_map(reading).collect()
}

/// Returns whether a proposal that a right clock makes is accepted, or the code of its refusal.
fn propose_now(world: &World) -> &'static str {
    let mut world = world.clone();
    let proposal = world.proposal(deploy(manifest("other", 1, 1, 100, 64)));
    code(&world.apply(token("operator"), Action::SubmitProposal(Box::new(proposal))))
}

fn findings(world: &World) -> Vec<String> {
    let leader = LeaderView { leader: Some(protocol::ReplicaId(1)), silent: None };
    let status = status(world.view(), leader);
    let clocks = status.findings.into_iter().filter(|finding| finding.next.contains("clock"));
    clocks.map(|finding| finding.message).collect()
}

/// A replica boots a month ahead, leads once and is gone: nothing is locked.
#[test]
fn one_clock_a_month_ahead_moves_no_time() {
    for (name, errors, expected) in [
        ("it knows its own clock alone", &[Some(MONTH_MS), None, None][..], "ok"),
        ("it knows one other", &[Some(MONTH_MS), Some(0), None], "ok"),
        ("it knows all", &[Some(MONTH_MS), Some(0), Some(0)], "ok"),
        (
            "the control: a majority is believed",
            &[Some(MONTH_MS), Some(MONTH_MS), Some(0)],
            "proposal-expired",
        ),
    ] {
        let mut world = two_nodes();
        world.clocks = erring(world.now, errors);
        world.lead(1);
        world.must(Action::Tick);
        world.set_now(world.now);
        assert_eq!(propose_now(&world), expected, "{name}");
        assert_eq!(world.cluster.now() == world.cluster_now(), expected == "ok", "{name}");
    }
}

#[test]
fn a_clock_400_days_behind_stops_no_time_while_a_majority_is_known() {
    let mut world = two_nodes();
    world.wait(60_000);
    world.clocks = erring(world.now, &[Some(-400 * DAY_MS), Some(0), Some(0)]);
    world.must(Action::Tick);
    assert_eq!(world.cluster.now(), world.cluster_now(), "it goes on");
    world.wait(60_000);
    let before = world.cluster.now();
    for errors in [&[Some(-400 * DAY_MS), Some(0), None][..], &[None, Some(0), None], &[]] {
        world.clocks = erring(world.now, errors);
        world.must(Action::Tick);
        assert_eq!(world.cluster.now(), before, "{errors:?}: it stands still, and does not fall");
    }
}

#[test]
fn a_small_difference_passes_without_a_correction() {
    let mut world = two_nodes();
    let grace = CLOCK_GRACE_MS as i64;
    let before = world.cluster.now();
    world.clocks = erring(world.now, &[Some(-grace); 3]);
    assert!(!tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    assert_eq!(world.cluster.now(), before);
    world.clocks = erring(world.now, &[Some(-grace - 1); 3]);
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(scale_nothing());
    assert_eq!(world.cluster.now(), before, "no other command sets the time back");
    world.must(Action::Tick);
    assert_eq!(world.cluster.now(), ClusterTime(Millis(before.0.0 - CLOCK_GRACE_MS - 1)));
    assert!(!tick_is_due(&world.cluster, &world.clocks));
}

/// Returns a command that changes next to nothing.
fn scale_nothing() -> Action {
    Action::Lead { replica: protocol::ReplicaId(1) }
}

/// A whole cluster boots a month ahead, and its clocks are corrected: nothing waits for a month.
#[test]
fn everything_heals_with_the_clocks_of_a_majority() {
    let mut world = running();
    let right = world.now;
    world.clocks = erring(right, &[Some(MONTH_MS), Some(MONTH_MS), Some(0)]);
    world.lead(2);
    let ahead = world.granting_key("ahead", "ahead");
    world.apply_once("ahead", ahead);
    world.must(Action::Enrol(Box::new(node("n10", 1000, 1024).admission)));
    world.must(Action::Scale { service: service_name("chat"), replicas: 3 });
    world.must(Action::Scale { service: service_name("chat"), replicas: 2 });
    let stale = world.plan();
    world.set_now(right);
    assert_eq!(propose_now(&world), "proposal-expired", "the control: it is locked");

    let generation = world.cluster.generation();
    assert!(tick_is_due(&world.cluster, &world.clocks));
    world.must(Action::Tick);
    assert_eq!(world.cluster.now(), world.cluster_now());
    assert!(world.cluster.generation() > generation, "a plan of the wrong time is stale");
    assert!(stale.is_empty() || stale.parent_generation < world.cluster.generation());
    assert_eq!(propose_now(&world), "ok");
    let last = world.cluster.audit().last(1).next().unwrap().clone();
    assert_eq!((last.action.as_str(), last.at), ("set-back", right));
    assert!(last.detail.starts_with("by 30 days"), "{}", last.detail);
    let snapshot = world.cluster.to_snapshot();
    assert_eq!(Cluster::from_snapshot(&snapshot).as_ref(), Ok(&world.cluster));
    // Deadlines are as far ahead as they were, so that nothing drains for a month.
    let latest = right.plus(DRAIN_MS + IDEMPOTENCY_MS);
    for name in ["until", "since", "at", "last_seen", "closed_at", "submitted_at"] {
        for time in named(&tree(&world.cluster), name) {
            assert!(time <= latest, "{name}: {time:?}");
        }
    }
}

/// Returns the numbers in the fields of this name, at any depth.
fn named(value: &ciborium::value::Value, name: &str) -> Vec<Millis> {
    use ciborium::value::Value;
    match value {
        Value::Map(entries) => {
            let number = |value: &Value| Some(Millis(u64::try_from(value.as_integer()?).ok()?));
            let own = entries.iter().filter(|(key, _)| key.as_text() == Some(name));
            let own = own.filter_map(|(_, value)| number(value)).collect::<Vec<_>>();
            own.into_iter().chain(entries.iter().flat_map(|(_, value)| self::named(value, name))).collect()
        }
        Value::Array(items) => items.iter().flat_map(|item| self::named(item, name)).collect(),
        _ => vec![],
    }
}

#[test]
fn the_time_never_falls_behind_what_is_signed() {
    let mut world = two_nodes();
    let right = world.now;
    world.set_now(right.plus(MONTH_MS as u64));
    let signed_at = world.now;
    world.approve(deploy(manifest("embed", 1, 1, 500, 64)));
    world.wait(3_600_000);
    world.must(Action::Tick);
    world.set_now(right);
    world.must(Action::Tick);
    let floor = ClusterTime(Millis(signed_at.0 - CLOCK_GRACE_MS));
    assert_eq!(world.cluster.now(), floor);
    assert!(!tick_is_due(&world.cluster, &world.clocks), "it falls no further");
    let said = findings(&world);
    let expected =
        "the clocks of a majority of the control replicas are 30 days behind what members have signed";
    assert_eq!(said, [expected]);
    world.set_now(signed_at);
    world.must(Action::Tick);
    assert_eq!(world.cluster.now(), world.cluster_now(), "and goes on with the clocks");
    assert!(findings(&world).is_empty());
}

#[test]
fn a_wrong_clock_is_a_finding_that_names_its_replica() {
    let mut world = two_nodes();
    for (errors, expected) in [
        (&[Some(0), Some(0), Some(0)][..], vec![]),
        (&[Some(0), Some(CLOCK_BOUND_MS as i64), Some(0)], vec![]),
        (
            &[Some(0), Some(MONTH_MS), Some(0)],
            vec!["the clock of control-2 is 30 days ahead, by the clocks of a majority; it may not lead"],
        ),
        (
            &[Some(0), Some(0), Some(-45_000)],
            vec!["the clock of control-3 is 45 seconds behind, by the clocks of a majority; it may not lead"],
        ),
        (
            &[Some(0), None, Some(-3 * DAY_MS)],
            vec!["the clocks of the control replicas differ by 3 days, and no majority of them agrees"],
        ),
        (&[Some(MONTH_MS), None, None], vec![]),
    ] {
        world.clocks = erring(world.now, errors);
        assert_eq!(findings(&world), expected, "{errors:?}");
    }
}

/// A step of a random history of clocks.
#[derive(Debug, Clone)]
struct ClockStep {
    /// Time that passes.
    wait_ms: u64,
    /// A replica's clock that jumps, and its error from then on.
    jump: Option<(usize, i64)>,
    /// Whether each replica's clock is known to the proposer of the next command.
    known: [bool; 3],
}

fn clock_step() -> impl Strategy<Value = ClockStep> {
    let error = prop_oneof![
        3 => Just(0_i64),
        1 => -20_000..20_000_i64,
        1 => Just(MONTH_MS),
        1 => Just(-400 * DAY_MS),
        1 => Just(3650 * DAY_MS),
    ];
    let jump = prop::option::weighted(0.4, (0..3usize, error));
    let known = prop::array::uniform3(prop::bool::weighted(0.8));
    (0..200_000_u64, jump, known).prop_map(|(wait_ms, jump, known)| ClockStep { wait_ms, jump, known })
}

/// Returns the time that a majority of three clocks has reached: the second of them.
fn median(errors: [i64; 3], now: Millis) -> ClusterTime {
    let mut walls = errors.map(|by| now.0.saturating_add_signed(by));
    walls.sort_unstable();
    ClusterTime(Millis(walls[1]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// The time goes forward no further than a majority's clocks, for any jumps. It is right as soon as all
    /// of them are.
    #[test]
    fn no_history_of_clocks_leads_the_time_past_a_majority(
        steps in prop::collection::vec(clock_step(), 1..60)
    ) {
        let mut world = two_nodes();
        let mut errors = [0_i64; 3];
        for step in &steps {
            world.wait(step.wait_ms);
            if let Some((replica, by)) = step.jump {
                errors[replica] = by;
            }
            let known: Vec<Option<i64>> =
                errors.iter().zip(step.known).map(|(by, known)| known.then_some(*by)).collect();
            world.clocks = erring(world.now, &known);
            let before = world.cluster.now();
            world.must(Action::Tick);
            let after = world.cluster.now();
            let median = median(errors, world.now);
            if known.iter().flatten().count() < 2 {
                prop_assert_eq!(after, before, "no majority is known");
            }
            let shown = format!("{known:?}: {before:?} to {after:?}, median {median:?}");
            prop_assert!(after <= before.max(median), "{}", shown);
            // It goes back only to a time that a majority has not passed.
            prop_assert!(after >= before.min(median), "{}", shown);
            let wrong = errors.iter().filter(|by| by.unsigned_abs() > CLOCK_BOUND_MS).count();
            if wrong <= 1 && known.iter().all(Option::is_some) {
                let apart = after.ms_until(world.cluster_now()).max(world.cluster_now().ms_until(after));
                prop_assert!(apart <= CLOCK_GRACE_MS + CLOCK_BOUND_MS, "{apart} ms off with {errors:?}");
            }
        }
        world.set_now(world.now);
        world.must(Action::Tick);
        let ahead = world.cluster_now().ms_until(world.cluster.now());
        let falls = world.cluster.now() < world.cluster_now();
        prop_assert!(!falls && ahead <= CLOCK_GRACE_MS, "{ahead} ms ahead");
        prop_assert_eq!(propose_now(&world), "ok");
    }
}

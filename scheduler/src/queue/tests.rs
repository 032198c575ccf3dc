//! Unit tests of the queue: turns of priority and time, reservations, backfill, quotas and reclaim.

mod histories;
mod table;

use super::*;
use crate::fair_share::TurnKey;
use histories::{Places, amounts, charge, running, tree};
use protocol::project::ProjectTree;
use protocol::usage::UsageRate;

type Waiting = WaitingGang<u32>;
type Running = RunningGang<u32, Vec<u32>>;

/// Returns the quotas of no projects.
fn no_projects() -> QuotaTree {
    QuotaTree::new(&ProjectTree::default(), &UsageRate::default(), |_| [0; 3])
}

fn gang(ranks: u32, priority: u32, submitted_at: u64, run_ms: u64) -> Waiting {
    let charge = charge(&no_projects(), None, ranks);
    WaitingGang { gang: ranks, charge, priority, submitted_at, run_ms }
}

/// Returns the turns of gangs that come in any order, and the running gangs that are preempted.
fn decide(
    quotas: &QuotaTree,
    room: &Places,
    running: &[Running],
    waiting: &[Waiting],
    now: u64,
) -> (Vec<GangTurn<Vec<u32>>>, Vec<usize>) {
    let key = |entry: &Waiting| TurnKey {
        charge: entry.charge,
        priority: entry.priority,
        submitted_at: entry.submitted_at,
    };
    let keys: Vec<TurnKey> = waiting.iter().map(key).collect();
    let mut quotas = quotas.clone();
    running.iter().for_each(|gang| quotas.take(&gang.charge));
    let order = quotas.turns(&keys, usize::MAX);
    let sorted: Vec<Waiting> = order.iter().map(|at| waiting[*at].clone()).collect();
    let state = QueueState { room, quotas: &quotas, running, now, preempted_max: 16 };
    let Schedule { turns, preempted } = schedule(&state, &sorted);
    let mut back: Vec<(usize, GangTurn<Vec<u32>>)> = order.into_iter().zip(turns).collect();
    back.sort_by_key(|(at, _)| *at);
    (back.into_iter().map(|(_, turn)| turn).collect(), preempted)
}

fn schedule_all(
    room: &Places,
    running: &[Running],
    waiting: &[Waiting],
    now: u64,
) -> Vec<GangTurn<Vec<u32>>> {
    decide(&no_projects(), room, running, waiting, now).0
}

fn starts(turns: &[GangTurn<Vec<u32>>]) -> Vec<usize> {
    let started = turns.iter().enumerate().filter(|(_, turn)| matches!(turn, GangTurn::Starts(_)));
    started.map(|(at, _)| at).collect()
}

#[test]
fn priority_comes_before_time_of_submission() {
    let waiting = [gang(2, 10, 1, 5), gang(2, 20, 2, 5), gang(2, 10, 0, 5)];
    let turns = schedule_all(&Places(vec![4]), &[], &waiting, 100);
    assert_eq!(starts(&turns), [1, 2], "the highest priority, then the earlier");
    assert_eq!(turns[0], GangTurn::Reserved { at: 105 });
}

/// The attack is a stream of narrow gangs: without the reservation, the wide one never finds the nodes
/// free.
#[test]
fn backfill_does_not_move_the_reservation() {
    let held = [running(&no_projects(), None, 2, vec![2, 0], 50)];
    let room = Places(vec![0, 2]);
    let wide = gang(4, 10, 0, 100);
    let turn = |narrow: WaitingGang<u32>| schedule_all(&room, &held, &[wide.clone(), narrow], 10);
    let fits = turn(gang(2, 10, 1, 40));
    assert_eq!(fits[0], GangTurn::Reserved { at: 50 });
    assert_eq!(starts(&fits), [1], "it is over when the wide one starts");
    assert_eq!(starts(&turn(gang(2, 10, 1, 41))), [0_usize; 0], "it would be in the way");
}

#[test]
fn a_gang_beside_the_reservation_may_run_on() {
    let held = [running(&no_projects(), None, 2, vec![2, 0], 50)];
    let waiting = [gang(3, 10, 0, 100), gang(1, 10, 1, 1_000)];
    let turns = schedule_all(&Places(vec![0, 2]), &held, &waiting, 10);
    assert_eq!(starts(&turns), [1]);
}

#[test]
fn a_gang_for_which_nodes_are_missing_holds_nothing_up() {
    let turns = schedule_all(&Places(vec![2, 2]), &[], &[gang(5, 10, 0, 1), gang(4, 10, 1, 1)], 0);
    assert_eq!(turns[0], GangTurn::NoRoom);
    assert_eq!(starts(&turns), [1]);
}

#[test]
fn gangs_that_end_together_give_their_space_together() {
    let held =
        [running(&no_projects(), None, 2, vec![2, 0], 50), running(&no_projects(), None, 2, vec![0, 2], 50)];
    let turns = schedule_all(&Places(vec![0, 0]), &held, &[gang(4, 10, 0, 5), gang(2, 10, 1, 5)], 10);
    assert_eq!(turns, [GangTurn::Reserved { at: 50 }, GangTurn::Behind]);
}

#[test]
fn a_reservation_is_not_in_the_past_though_a_gang_is_overdue() {
    let held = [running(&no_projects(), None, 2, vec![2], 50)];
    let turns = schedule_all(&Places(vec![0]), &held, &[gang(2, 10, 0, 5)], 80);
    assert_eq!(turns, [GangTurn::Reserved { at: 80 }]);
    assert!(schedule_all(&Places(vec![0]), &held, &[], 80).is_empty(), "an empty queue has no turns");
}

/// The bound of one pass: of many narrow gangs behind a reservation, each could start.
#[test]
fn a_pass_considers_a_bounded_number_of_gangs_behind_the_reservation() {
    let held = [running(&no_projects(), None, 1, vec![1, 0], 50)];
    let narrow = (1..).take(BACKFILL_MAX + 3).map(|at| gang(1, 10, at, 5));
    let waiting: Vec<WaitingGang<u32>> = std::iter::once(gang(1_001, 10, 0, 5)).chain(narrow).collect();
    let turns = schedule_all(&Places(vec![0, 1_000]), &held, &waiting, 10);
    assert_eq!(turns[0], GangTurn::Reserved { at: 50 });
    assert_eq!(starts(&turns), (1..=BACKFILL_MAX).collect::<Vec<_>>());
    assert!(turns[BACKFILL_MAX + 1..].iter().all(|turn| *turn == GangTurn::Behind));
}

/// Returns two projects of four places each, without limits of what they borrow, and one of none.
fn thirds() -> QuotaTree {
    tree(&[("a", None, 4, None), ("b", None, 4, None), ("c", None, 0, Some(2))], 8)
}

fn of(quotas: &QuotaTree, project: &str, ranks: u32, submitted_at: u64, run_ms: u64) -> Waiting {
    WaitingGang { charge: charge(quotas, Some(project), ranks), ..gang(ranks, 10, submitted_at, run_ms) }
}

#[test]
fn a_project_borrows_what_is_idle_and_its_owner_reclaims_it() {
    let quotas = thirds();
    let alone = [of(&quotas, "a", 4, 0, 50), of(&quotas, "a", 4, 1, 50)];
    let (turns, _) = decide(&quotas, &Places(vec![8]), &[], &alone, 0);
    assert_eq!(starts(&turns), [0, 1], "the second borrows");
    let held = [
        running(&quotas, Some("a"), 4, vec![4], 500),
        RunningGang { since: 7, ..running(&quotas, Some("a"), 2, vec![2], 500) },
        RunningGang { since: 9, ..running(&quotas, Some("a"), 2, vec![2], 500) },
    ];
    let owner = |ranks| [of(&quotas, "b", ranks, 20, 50)];
    let (turns, preempted) = decide(&quotas, &Places(vec![0]), &held, &owner(2), 100);
    assert_eq!((turns, preempted), (vec![GangTurn::Reclaims { at: 105 }], vec![2]), "the latest alone");
    let (turns, preempted) = decide(&quotas, &Places(vec![0]), &held, &owner(4), 100);
    assert_eq!((turns, preempted), (vec![GangTurn::Reclaims { at: 105 }], vec![2, 1]));
    let (turns, preempted) = decide(&quotas, &Places(vec![0]), &held, &owner(5), 100);
    assert!(preempted.is_empty(), "beyond its own quota it has no claim: {turns:?}");
}

#[test]
fn the_lowest_priority_goes_first_and_no_gang_that_need_not_go() {
    let quotas = thirds();
    let held = [
        RunningGang { priority: 5, ..running(&quotas, Some("a"), 1, vec![1], 500) },
        RunningGang { priority: 9, since: 90, ..running(&quotas, Some("a"), 3, vec![3], 500) },
        RunningGang { priority: 1, since: 3, ..running(&quotas, Some("a"), 4, vec![4], 500) },
    ];
    let of_b = |ranks| [of(&quotas, "b", ranks, 20, 50)];
    let (_, preempted) = decide(&quotas, &Places(vec![0]), &held, &of_b(1), 100);
    assert_eq!(preempted, [2], "the lowest priority");
    let lower = [held[0].clone(), RunningGang { priority: 6, ..held[1].clone() }];
    let (_, preempted) = decide(&thirds(), &Places(vec![0]), &lower, &of_b(1), 100);
    assert!(preempted.is_empty(), "a project within its quota keeps it");
    let more = [lower.to_vec(), vec![RunningGang { priority: 7, ..held[2].clone() }]].concat();
    let (_, preempted) = decide(&quotas, &Places(vec![0]), &more, &of_b(3), 100);
    assert_eq!(preempted, [1], "the gang of one place frees too little, and need not go");
}

/// Attack: what was preempted waits again, and would take its own room back, in turn with its owner.
#[test]
fn attack_a_preempted_gang_does_not_take_its_room_back() {
    let quotas = thirds();
    let ends = |gang: Running| RunningGang { grace_ms: None, ends_at: 105, ..gang };
    let held =
        [running(&quotas, Some("a"), 4, vec![4], 500), ends(running(&quotas, Some("a"), 2, vec![2], 500))];
    // Two places are free already, and two end: the owner needs all of them.
    let waiting = [of(&quotas, "b", 4, 20, 50), of(&quotas, "a", 2, 0, 50), of(&quotas, "c", 2, 0, 1)];
    let (turns, preempted) = decide(&quotas, &Places(vec![2]), &held, &waiting, 101);
    assert_eq!((&turns[0], preempted.len()), (&GangTurn::Reclaims { at: 105 }, 0), "no further victim");
    assert_eq!(starts(&turns), [0_usize; 0], "the room is kept: {turns:?}");
    let (turns, _) = decide(&quotas, &Places(vec![2]), &held, &waiting[1..], 101);
    assert_eq!(starts(&turns).len(), 1, "the control: without the owner, the room is taken");
}

#[test]
fn a_limit_holds_and_its_quota_is_kept_for_the_first_that_it_keeps_back() {
    let quotas = tree(&[("c", None, 0, Some(4))], 16);
    let held = [running(&quotas, Some("c"), 2, vec![2], 50)];
    let waiting = [of(&quotas, "c", 3, 0, 100), of(&quotas, "c", 2, 1, 100), of(&quotas, "c", 2, 2, 40)];
    let (turns, _) = decide(&quotas, &Places(vec![14]), &held, &waiting, 10);
    let GangTurn::Quota(shortfall) = &turns[0] else { panic!("{turns:?}") };
    let amounts = (shortfall.sum, shortfall.nominal, shortfall.limit, shortfall.resource);
    assert_eq!((shortfall.project.as_str(), amounts), ("c", (5000, 0, 4000, 2)));
    assert!(matches!(turns[1], GangTurn::Quota(_)), "it would hold the quota of the first");
    assert_eq!(starts(&turns), [2], "it is over when the first starts");
    let (turns, _) = decide(&quotas, &Places(vec![14]), &held, &[of(&quotas, "c", 5, 0, 1)], 10);
    assert!(matches!(&turns[0], GangTurn::Quota(shortfall) if shortfall.sum == 5000), "it never fits");
}

#[test]
fn gangs_that_a_limit_keeps_back_do_not_hold_up_other_projects() {
    let quotas = tree(&[("c", None, 0, Some(2)), ("d", None, 0, None)], 8);
    let held = [running(&quotas, Some("c"), 2, vec![2], 50)];
    let waiting = [of(&quotas, "c", 2, 0, 100), of(&quotas, "d", 6, 1, 100)];
    let (turns, _) = decide(&quotas, &Places(vec![6]), &held, &waiting, 10);
    assert_eq!(starts(&turns), [1]);
}

#[test]
fn what_a_sibling_borrows_within_a_project_is_reclaimed_there() {
    let projects = [("a", None, 4, Some(0)), ("a1", Some("a"), 2, None), ("a2", Some("a"), 2, None)];
    let quotas = tree(&projects, 8);
    let held = [
        running(&quotas, Some("a1"), 2, vec![2], 500),
        RunningGang { since: 9, ..running(&quotas, Some("a1"), 2, vec![2], 500) },
    ];
    let waiting = [of(&quotas, "a2", 2, 0, 100)];
    let (turns, preempted) = decide(&quotas, &Places(vec![4]), &held, &waiting, 10);
    assert_eq!(
        (&turns[0], preempted),
        (&GangTurn::Reclaims { at: 15 }, vec![1]),
        "there is space, but no quota"
    );
}

#[test]
fn turns_go_to_the_lowest_share_by_weight_and_count_those_before() {
    let quotas = tree(&[("a", None, 0, None), ("b", None, 0, None)], 100);
    let key = |project: &str, at: u64, priority: u32| TurnKey {
        charge: charge(&quotas, Some(project), 1),
        priority,
        submitted_at: at,
    };
    let equal: Vec<TurnKey> = (0..6).map(|at| key(if at < 3 { "a" } else { "b" }, at, 1)).collect();
    assert_eq!(quotas.turns(&equal, 9), [0, 3, 1, 4, 2, 5], "they take turns");
    let mut used = quotas.clone();
    used.take(&charge(&quotas, Some("a"), 2));
    assert_eq!(used.turns(&equal, 4), [3, 4, 0, 5], "what is held counts");
    let within = [key("a", 5, 1), key("a", 9, 7), key("b", 0, 0)];
    assert_eq!(quotas.turns(&within, 9), [2, 1, 0], "priority orders one project alone");
    assert_eq!(amounts(3), [0, 0, 3000]);
}

#[test]
fn a_weight_that_would_change_the_turn_is_named() {
    let mut quotas = tree(&[("a", None, 0, None), ("b", None, 0, None)], 100);
    let (a, b) = (charge(&quotas, Some("a"), 6), charge(&quotas, Some("b"), 2));
    quotas.take(&a);
    quotas.take(&b);
    let named = quotas.weight_to_precede(&a, &b).map(|(name, now, then)| (name.to_string(), now, then));
    assert_eq!(named, Some(("a".into(), 1, 4)), "six beside two: more than three times the weight");
    assert_eq!(quotas.weight_to_precede(&b, &a), None, "it comes first already");
    assert_eq!(quotas.weight_to_precede(&a, &a), None, "of one project");
}

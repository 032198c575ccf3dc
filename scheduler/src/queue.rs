//! Queue of gangs: the order in which they start, and backfill behind a reservation.
//!
//! Gangs are taken by priority, then by time of submission. The first that does not fit gets a reservation:
//! the earliest time at which it fits if every running gang takes all of its declared run time. A later gang
//! starts before it only if that does not move the reservation. A wide gang is thus never starved by narrow
//! ones, and each gang starts whole.
//!
//! Space is abstract here ([`GangRoom`]); the planner's is made of nodes and slots.

use std::cmp::Reverse;

/// Most gangs that are considered for backfill in one pass; the next pass begins at the head again.
const BACKFILL_MAX: usize = 256;

/// Space in which gangs are placed.
pub(crate) trait GangRoom: Clone {
    /// Gang with its demands.
    type Gang;
    /// Whole placement of a gang.
    type Place: Clone;

    /// Returns a placement of the whole gang in what is free; none if it does not fit.
    fn place(&self, gang: &Self::Gang) -> Option<Self::Place>;

    /// Takes a placement; returns false and changes nothing if part of it is not free.
    fn take(&mut self, gang: &Self::Gang, place: &Self::Place) -> bool;

    /// Gives a placement back.
    fn give(&mut self, gang: &Self::Gang, place: &Self::Place);
}

/// Gang that holds its placement.
#[derive(Debug, Clone)]
pub(crate) struct RunningGang<G, P> {
    pub(crate) gang: G,
    pub(crate) place: P,
    /// Time at which its run time is over, in milliseconds.
    pub(crate) ends_at: u64,
}

/// Gang that waits.
#[derive(Debug, Clone)]
pub(crate) struct WaitingGang<G> {
    pub(crate) gang: G,
    pub(crate) priority: u32,
    pub(crate) submitted_at: u64,
    /// Declared run time in milliseconds.
    pub(crate) run_ms: u64,
}

/// Decision about a waiting gang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GangTurn<P> {
    /// It starts now, here.
    Starts(P),
    /// It is the first that waits for space; it starts at this time in milliseconds at the latest.
    Reserved { at: u64 },
    /// It would not fit if every running gang had ended: nodes are missing.
    NoRoom,
    /// It waits behind the gang that has the reservation, or does not fit yet.
    Behind,
}

/// Decides which waiting gangs start now. The result has one decision for each waiting gang, in their order.
pub(crate) fn schedule<R: GangRoom>(
    room: &R,
    running: &[RunningGang<R::Gang, R::Place>],
    waiting: &[WaitingGang<R::Gang>],
    now: u64,
) -> Vec<GangTurn<R::Place>> {
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|at| (Reverse(waiting[*at].priority), waiting[*at].submitted_at, *at));
    let mut turns: Vec<GangTurn<R::Place>> = waiting.iter().map(|_| GangTurn::Behind).collect();
    let mut free = room.clone();
    let mut started: Vec<(usize, R::Place)> = Vec::new();
    let mut reservation: Option<(u64, R)> = None;
    let mut considered = 0;
    for at in order {
        considered += usize::from(reservation.is_some());
        if considered > BACKFILL_MAX {
            break;
        }
        let entry = &waiting[at];
        let ends_at = now.saturating_add(entry.run_ms);
        let place = free.place(&entry.gang);
        if let Some((time, future)) = &mut reservation {
            let Some(place) = place else { continue };
            // A gang that is over before the reserved time takes nothing of it.
            if (ends_at <= *time || future.take(&entry.gang, &place)) && free.take(&entry.gang, &place) {
                turns[at] = GangTurn::Starts(place);
            }
        } else if let Some(place) = place {
            let taken = free.take(&entry.gang, &place);
            debug_assert!(taken, "a placement is of what is free");
            started.push((at, place.clone()));
            turns[at] = GangTurn::Starts(place);
        } else if let Some((time, future)) = reserve(&free, running, waiting, &started, entry, now) {
            turns[at] = GangTurn::Reserved { at: time };
            reservation = Some((time, future));
        } else {
            turns[at] = GangTurn::NoRoom;
        }
    }
    debug_assert_eq!(turns.len(), waiting.len(), "each gang has its decision");
    turns
}

/// Returns the earliest time at which a gang fits, and the space that is left then beside it.
fn reserve<R: GangRoom>(
    free: &R,
    running: &[RunningGang<R::Gang, R::Place>],
    waiting: &[WaitingGang<R::Gang>],
    started: &[(usize, R::Place)],
    head: &WaitingGang<R::Gang>,
    now: u64,
) -> Option<(u64, R)> {
    let held = running.iter().map(|gang| (gang.ends_at.max(now), &gang.gang, &gang.place));
    let fresh = started.iter().map(|(at, place)| {
        let entry = &waiting[*at];
        (now.saturating_add(entry.run_ms), &entry.gang, place)
    });
    let mut ends: Vec<(u64, &R::Gang, &R::Place)> = held.chain(fresh).collect();
    ends.sort_by_key(|(time, ..)| *time);
    let mut future = free.clone();
    for (at, (time, gang, place)) in ends.iter().enumerate() {
        future.give(gang, place);
        // Gangs that end at the same time give their space back together.
        if ends.get(at + 1).is_some_and(|(next, ..)| next == time) {
            continue;
        }
        if let Some(place) = future.place(&head.gang) {
            let taken = future.take(&head.gang, &place);
            debug_assert!(taken && *time >= now, "a reservation is of what is free, and not in the past");
            return Some((*time, future));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Nodes with free places each; a gang takes one place for each rank, on any nodes.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Places(Vec<u32>);

    impl GangRoom for Places {
        type Gang = u32;
        type Place = Vec<u32>;

        fn place(&self, gang: &u32) -> Option<Vec<u32>> {
            let mut left = *gang;
            let place: Vec<u32> = self
                .0
                .iter()
                .map(|free| {
                    let here = left.min(*free);
                    left -= here;
                    here
                })
                .collect();
            (left == 0).then_some(place)
        }

        fn take(&mut self, _: &u32, place: &Vec<u32>) -> bool {
            if self.0.iter().zip(place).any(|(free, taken)| free < taken) {
                return false;
            }
            self.0.iter_mut().zip(place).for_each(|(free, taken)| *free -= taken);
            true
        }

        fn give(&mut self, _: &u32, place: &Vec<u32>) {
            self.0.iter_mut().zip(place).for_each(|(free, taken)| *free += taken);
        }
    }

    fn gang(ranks: u32, priority: u32, submitted_at: u64, run_ms: u64) -> WaitingGang<u32> {
        WaitingGang { gang: ranks, priority, submitted_at, run_ms }
    }

    fn starts(turns: &[GangTurn<Vec<u32>>]) -> Vec<usize> {
        let started = turns.iter().enumerate().filter(|(_, turn)| matches!(turn, GangTurn::Starts(_)));
        started.map(|(at, _)| at).collect()
    }

    #[test]
    fn priority_comes_before_time_of_submission() {
        let waiting = [gang(2, 10, 1, 5), gang(2, 20, 2, 5), gang(2, 10, 0, 5)];
        let turns = schedule(&Places(vec![4]), &[], &waiting, 100);
        assert_eq!(starts(&turns), [1, 2], "the highest priority, then the earlier");
        assert_eq!(turns[0], GangTurn::Reserved { at: 105 });
    }

    /// The attack is a stream of narrow gangs: without the reservation, the wide one never finds the nodes
    /// free.
    #[test]
    fn backfill_does_not_move_the_reservation() {
        let running = [RunningGang { gang: 2, place: vec![2, 0], ends_at: 50 }];
        let room = Places(vec![0, 2]);
        let wide = gang(4, 10, 0, 100);
        let turn = |narrow: WaitingGang<u32>| schedule(&room, &running, &[wide.clone(), narrow], 10);
        let fits = turn(gang(2, 10, 1, 40));
        assert_eq!(fits[0], GangTurn::Reserved { at: 50 });
        assert_eq!(starts(&fits), [1], "it is over when the wide one starts");
        assert_eq!(starts(&turn(gang(2, 10, 1, 41))), [0_usize; 0], "it would be in the way");
    }

    #[test]
    fn a_gang_beside_the_reservation_may_run_on() {
        let running = [RunningGang { gang: 2, place: vec![2, 0], ends_at: 50 }];
        let waiting = [gang(3, 10, 0, 100), gang(1, 10, 1, 1_000)];
        let turns = schedule(&Places(vec![0, 2]), &running, &waiting, 10);
        assert_eq!(starts(&turns), [1]);
    }

    #[test]
    fn a_gang_for_which_nodes_are_missing_holds_nothing_up() {
        let turns = schedule(&Places(vec![2, 2]), &[], &[gang(5, 10, 0, 1), gang(4, 10, 1, 1)], 0);
        assert_eq!(turns[0], GangTurn::NoRoom);
        assert_eq!(starts(&turns), [1]);
    }

    #[test]
    fn gangs_that_end_together_give_their_space_together() {
        let running = [
            RunningGang { gang: 2, place: vec![2, 0], ends_at: 50 },
            RunningGang { gang: 2, place: vec![0, 2], ends_at: 50 },
        ];
        let turns = schedule(&Places(vec![0, 0]), &running, &[gang(4, 10, 0, 5), gang(2, 10, 1, 5)], 10);
        assert_eq!(turns, [GangTurn::Reserved { at: 50 }, GangTurn::Behind]);
    }

    #[test]
    fn a_reservation_is_not_in_the_past_though_a_gang_is_overdue() {
        let running = [RunningGang { gang: 2, place: vec![2], ends_at: 50 }];
        let turns = schedule(&Places(vec![0]), &running, &[gang(2, 10, 0, 5)], 80);
        assert_eq!(turns, [GangTurn::Reserved { at: 80 }]);
        assert!(schedule(&Places(vec![0]), &running, &[], 80).is_empty(), "an empty queue has no turns");
    }

    /// The bound of one pass: of many narrow gangs behind a reservation, each could start.
    #[test]
    fn a_pass_considers_a_bounded_number_of_gangs_behind_the_reservation() {
        let running = [RunningGang { gang: 1, place: vec![1, 0], ends_at: 50 }];
        let narrow = (1..).take(BACKFILL_MAX + 3).map(|at| gang(1, 10, at, 5));
        let waiting: Vec<WaitingGang<u32>> = std::iter::once(gang(1_001, 10, 0, 5)).chain(narrow).collect();
        let turns = schedule(&Places(vec![0, 1_000]), &running, &waiting, 10);
        assert_eq!(turns[0], GangTurn::Reserved { at: 50 });
        assert_eq!(starts(&turns), (1..=BACKFILL_MAX).collect::<Vec<_>>());
        assert!(turns[BACKFILL_MAX + 1..].iter().all(|turn| *turn == GangTurn::Behind));
    }

    /// One history: gangs arrive, run for at most their declared time, and end.
    fn run(nodes: &[u32], mut arrivals: Vec<(u64, WaitingGang<u32>, u64)>) -> Result<(), TestCaseError> {
        let total: u32 = nodes.iter().sum();
        arrivals.sort_by_key(|(at, ..)| *at);
        let (mut free, mut now) = (Places(nodes.to_vec()), 0);
        let mut waiting: Vec<(WaitingGang<u32>, u64)> = Vec::new();
        let mut running: Vec<(RunningGang<u32, Vec<u32>>, u64)> = Vec::new();
        let mut promised: Option<(u64, u64)> = None;
        for _ in 0..1_000 {
            while arrivals.first().is_some_and(|(at, ..)| *at <= now) {
                let (at, gang, real) = arrivals.remove(0);
                waiting.push((WaitingGang { submitted_at: at, ..gang }, real));
            }
            let (over, kept): (Vec<_>, Vec<_>) = running.into_iter().partition(|(_, ends)| *ends <= now);
            over.iter().for_each(|(gang, _)| free.give(&gang.gang, &gang.place));
            running = kept;
            let entries: Vec<WaitingGang<u32>> = waiting.iter().map(|(gang, _)| gang.clone()).collect();
            let held: Vec<RunningGang<u32, Vec<u32>>> =
                running.iter().map(|(gang, _)| gang.clone()).collect();
            let turns = schedule(&free, &held, &entries, now);
            let mut left = Vec::new();
            for ((entry, real), turn) in waiting.into_iter().zip(turns) {
                match turn {
                    GangTurn::Starts(place) => {
                        prop_assert_eq!(place.iter().sum::<u32>(), entry.gang, "a gang starts whole");
                        prop_assert!(free.take(&entry.gang, &place), "in what is free");
                        let ends_at = now + entry.run_ms;
                        running.push((RunningGang { gang: entry.gang, place, ends_at }, now + real));
                        continue;
                    }
                    GangTurn::Reserved { at } => {
                        let same = promised.filter(|(of, _)| *of == entry.submitted_at);
                        prop_assert!(same.is_none_or(|(_, by)| at <= by), "a reservation moves forward only");
                        promised = Some((entry.submitted_at, at));
                    }
                    GangTurn::NoRoom => prop_assert!(entry.gang > total, "what fits alone gets a turn"),
                    GangTurn::Behind => {}
                }
                left.push((entry, real));
            }
            waiting = left;
            let next_end = running.iter().map(|(_, ends)| *ends).min();
            let next_arrival = arrivals.first().map(|(at, ..)| *at);
            let Some(next) = next_end.into_iter().chain(next_arrival).min() else { break };
            now = next.max(now + 1);
        }
        prop_assert!(waiting.iter().all(|(gang, _)| gang.gang > total), "no gang that fits is starved");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

        #[test]
        fn no_history_starts_part_of_a_gang_or_starves_one(
            nodes in prop::collection::vec(1_u32..6, 1..5),
            gangs in prop::collection::vec((1_u32..9, 1_u64..30, 0_u64..30), 1..25),
        ) {
            let arrivals = gangs.iter().enumerate().map(|(at, (ranks, declared, early))| {
                // One arrival at a time, so that the time of submission names the gang.
                let real = declared.saturating_sub(*early).max(1);
                (at as u64, gang(*ranks, 10, 0, *declared), real)
            });
            run(&nodes, arrivals.collect())?;
        }
    }
}

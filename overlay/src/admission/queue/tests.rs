//! Tables of arrivals and decisions, and properties that hold after every one of them.

use super::Decision::{Admit, Evict, Reject};
use super::*;
use proptest::prelude::*;

/// Plays a line of events and returns the decisions, event by event.
///
/// Events: `a` a silent connection of source `a` arrives, `a!` one with a handshake or request under way.
/// `>3` a request begins on connection 3, `<3` it ends, `-3` the connection departs. Decisions: `3` is
/// admitted, `x3` evicted, `r3` rejected, `.` none.
fn play(queue: &mut FairQueue<String>, events: &str) -> String {
    let decided = events.split_whitespace().map(|event| {
        let number = |text: &str| text.parse().unwrap();
        let decisions = match event.split_at(1) {
            (">", text) => {
                queue.begin(number(text));
                Vec::new()
            }
            ("<", text) => {
                queue.end(number(text));
                Vec::new()
            }
            ("-", text) => queue.depart(number(text)),
            _ => match event.strip_suffix('!') {
                Some(source) => queue.arrive(source.to_owned(), Activity::Busy).1,
                None => queue.arrive(event.to_owned(), Activity::Silent).1,
            },
        };
        queue.check_invariants();
        let texts = decisions.iter().map(|decision| match decision {
            Admit(number) => number.to_string(),
            Evict(number) => format!("x{number}"),
            Reject(number) => format!("r{number}"),
        });
        let text = texts.collect::<Vec<_>>().join("+");
        if text.is_empty() { ".".to_owned() } else { text }
    });
    decided.collect::<Vec<_>>().join(" ")
}

fn check(policy: EvictionPolicy, permits: usize, waiting_max: usize, table: &[(&str, &str, &str)]) {
    for (behaviour, events, expected) in table {
        let mut queue = FairQueue::new(policy, permits, waiting_max);
        assert_eq!(&play(&mut queue, events), expected, "{behaviour}: {events}");
    }
}

#[test]
fn established_connections_yield_by_share_and_activity() {
    check(
        EvictionPolicy::MaxMinFair,
        4,
        0,
        &[
            ("while there is room all are kept, idle ones too", "a >0 <0 a b c", "0 . . 1 2 3"),
            ("a source with many silent ones yields its oldest", "a a a a b", "0 1 2 3 x0+4"),
            ("again and again, down to its share", "a a a a b b c", "0 1 2 3 x0+4 x1+5 x2+6"),
            ("a silent one before an idle one", "a a a a >0 <0 b", "0 1 2 3 . . x1+4"),
            ("the one idle longest", "a a a a >0 >1 >2 >3 <3 <1 <2 <0 b", "0 1 2 3 . . . . . . . . x3+4"),
            ("an idle one before a busy one", "a a a a >0 >1 >2 >3 <2 b", "0 1 2 3 . . . . . x2+4"),
            ("a busy one where all are", "a! a! a! a! b!", "0 1 2 3 x0+4"),
            (
                "two requests on one connection",
                "a a a a >0 >0 <0 >1 <1 >2 >3 b",
                "0 1 2 3 . . . . . . . x1+4",
            ),
            ("a newcomer replaces a silent one of its own source", "a! a! a! a a", "0 1 2 3 x3+4"),
            ("and never a busy one of its own", "a! a! a! a! a", "0 1 2 3 r4"),
            ("of the others before its own", "a b! b! b! a", "0 1 2 3 x1+4"),
            ("no source takes requests from one that would have fewer", "a! a! b! b! a b", "0 1 2 3 r4 r5"),
            ("a source within its share loses nothing", "a b! b! b! c", "0 1 2 3 x1+4"),
            ("each with one request: the next is rejected", "a! b! c! d! e", "0 1 2 3 r4"),
            ("each with one connection: the silent one yields", "a! b >1 <1 c d! e", "0 1 . . 2 3 x2+4"),
            ("each with one connection: then the idle one", "a! b >1 <1 c! d! e", "0 1 . . 2 3 x1+4"),
            ("a permit that was given back is free", "a! a! a! a! -2 b -2 b", "0 1 2 3 . 4 . x0+5"),
        ],
    );
}

#[test]
fn handshakes_wait_in_turn_and_many_yield_to_few() {
    check(
        EvictionPolicy::MaxMinFair,
        3,
        2,
        &[
            ("its own source yields nothing", "a! a! a! a!", "0 1 2 ."),
            ("many yield to few", "a! a! a! a! b!", "0 1 2 . x0+4"),
            ("two and one are even", "a! a! a! b! b!", "0 1 2 x0+3 ."),
            ("the source with fewest permits is next", "a! a! a! a! b! b! c! -4", "0 1 2 . x0+4 . x1+6 5"),
            ("a flood makes room among those that wait", "a! a! a! a! a! b! b!", "0 1 2 . . x0+5 r4"),
            ("a departed one that waited", "a! a! a! a! a! -3 -0", "0 1 2 . . . 4"),
        ],
    );
    check(EvictionPolicy::MaxMinFair, 1, 2, &[("the newest of the flood", "a! a! a! b! -0", "0 . . r2 1")]);
}

#[test]
fn unadmitted_peers_yield_the_oldest_of_the_most() {
    check(
        EvictionPolicy::EvictOldest,
        2,
        0,
        &[
            ("of its own where that is the most", "a a a", "0 1 x0+2"),
            ("of the others where these are", "a a b", "0 1 x0+2"),
            ("two of one source would be more than one of another", "a b b", "0 1 x1+2"),
            ("the oldest where all are equal", "a b c", "0 1 x0+2"),
            ("busy or not", "a! a >0 b", "0 1 . x0+2"),
        ],
    );
}

#[derive(Debug, Clone)]
enum QueueStep {
    Arrive(u8, bool),
    Depart(usize),
    Begin(usize),
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<QueueStep>> {
    let step = prop_oneof![
        3 => (0u8..6, any::<bool>()).prop_map(|(source, busy)| QueueStep::Arrive(source, busy)),
        1 => any::<usize>().prop_map(QueueStep::Depart),
        1 => any::<usize>().prop_map(QueueStep::Begin),
        1 => any::<usize>().prop_map(QueueStep::End),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// Checks the invariants after every event. An eviction for another source takes nothing from a source
    /// within its equal share. It ends no request while a silent or idle connection can be evicted. A source
    /// that holds nothing is rejected only if every other source holds one busy connection at most.
    #[test]
    fn no_source_locks_another_out(steps in steps(), waiting_max in 0usize..4) {
        let permits = 5;
        let mut queue = FairQueue::new(EvictionPolicy::MaxMinFair, permits, waiting_max);
        let mut requests: BTreeMap<u64, u32> = BTreeMap::new();
        for step in steps {
            let pick = |which: usize| queue.members.keys().nth(which % queue.members.len().max(1)).copied();
            match step {
                QueueStep::Arrive(source, busy) => {
                    let before = held(&queue);
                    // Connections wait only where all are busy, as handshakes are.
                    let is_busy = busy || waiting_max > 0;
                    let activity = if is_busy { Activity::Busy } else { Activity::Silent };
                    let sources: BTreeMap<u64, u8> =
                        queue.members.iter().map(|(n, member)| (*n, member.source)).collect();
                    let (number, decisions) = queue.arrive(source, activity);
                    // Connections of sources that waited may be admitted too.
                    let share = permits / (before.len() + 1);
                    for decision in &decisions {
                        let Evict(victim) = decision else { continue };
                        let of = sources[victim];
                        prop_assert!(of == source || before[&of] > share, "{of} was within its share");
                    }
                    if decisions == [Reject(number)] && !before.contains_key(&source) {
                        prop_assert!(before.values().all(|held| *held <= 1));
                    }
                }
                QueueStep::Depart(which) => {
                    if let Some(number) = pick(which) {
                        queue.depart(number);
                        requests.remove(&number);
                    }
                }
                QueueStep::Begin(which) => {
                    if let Some(number) = pick(which).filter(|_| waiting_max == 0) {
                        queue.begin(number);
                        *requests.entry(number).or_default() += 1;
                    }
                }
                QueueStep::End(which) => {
                    if let Some(number) = pick(which)
                        && requests.get(&number).is_some_and(|requests| *requests > 0)
                    {
                        queue.end(number);
                        *requests.entry(number).or_default() -= 1;
                    }
                }
            }
            queue.check_invariants();
        }
    }

    /// An occasional source is served, however many connections one other source opens: the flood never takes
    /// its connection, busy or idle.
    #[test]
    fn a_flood_of_one_source_takes_nothing_from_another(
        flood in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..60),
        serves in any::<bool>(),
    ) {
        let mut queue = FairQueue::new(EvictionPolicy::MaxMinFair, 4, 0);
        for (busy, _) in &flood {
            queue.arrive("flood", if *busy { Activity::Busy } else { Activity::Silent });
        }
        let (good, decisions) = queue.arrive("good", Activity::Silent);
        prop_assert!(decisions.contains(&Admit(good)));
        if serves {
            queue.begin(good);
            queue.end(good);
        }
        for (busy, requests) in flood {
            let (number, decisions) =
                queue.arrive("flood", if busy { Activity::Busy } else { Activity::Silent });
            prop_assert!(!decisions.contains(&Evict(good)));
            if requests {
                queue.begin(number);
            }
            queue.check_invariants();
        }
    }
}

fn held(queue: &FairQueue<u8>) -> BTreeMap<u8, usize> {
    queue.holders.iter().map(|(source, holdings)| (*source, holdings.len())).collect()
}

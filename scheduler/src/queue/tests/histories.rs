//! Random histories of the queue, in simulated time: gangs of projects arrive, start, borrow, are preempted
//! and end. Each pass is checked by rules that are stated here again, without the tree of the product.

use crate::clock::ClusterTime;
use crate::fair_share::{Amounts, ShareBook, TurnKey};
use crate::queue::*;
use proptest::prelude::*;
use protocol::project::{Project, ProjectQuota, ProjectTree};
use protocol::usage::UsageRate;
use protocol::{Millis, ProjectName};
use std::collections::BTreeMap;

/// Grace of each gang that is preempted.
pub(super) const GRACE_MS: u64 = 5;

/// Nodes with free places each; a gang takes one place for each rank, on any nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places(pub(super) Vec<u32>);

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

fn rate(ranks: u32) -> UsageRate {
    UsageRate { gpu_millis: u64::from(ranks) * 1000, cpu_millicores: 0, memory_mib: 0 }
}

/// Returns what a gang of these ranks takes: a GPU each.
pub(super) fn amounts(ranks: u32) -> Amounts {
    crate::fair_share::amounts_of(&rate(ranks))
}

fn name(text: &str) -> ProjectName {
    text.parse().expect("a name")
}

/// Returns the charge of a gang of a project.
pub(super) fn charge(quotas: &QuotaTree, project: Option<&str>, ranks: u32) -> GangCharge {
    quotas.charge(project.map(name).as_ref(), &rate(ranks)).expect("a project of the tree")
}

/// Returns a gang that runs.
pub(super) fn running(
    quotas: &QuotaTree,
    project: Option<&str>,
    gang: u32,
    place: Vec<u32>,
    ends_at: u64,
) -> RunningGang<u32, Vec<u32>> {
    let charge = charge(quotas, project, gang);
    RunningGang { gang, place, charge, priority: 5, since: 0, ends_at, grace_ms: Some(GRACE_MS) }
}

/// Project of a test: name, parent, places of its quota, and places that it may borrow.
pub(super) type ProjectRow<'a> = (&'a str, Option<&'a str>, u32, Option<u32>);

pub(super) fn voted(rows: &[ProjectRow<'_>], weights: &[u32]) -> ProjectTree {
    let quota = |gpus| ProjectQuota { gpus, ..ProjectQuota::default() };
    let mut projects: Vec<Project> = rows
        .iter()
        .zip(weights)
        .map(|((own, parent, nominal, borrow), weight)| Project {
            name: name(own),
            parent: parent.map(name),
            weight: *weight,
            quota: quota(*nominal),
            borrow: borrow.map(quota),
        })
        .collect();
    projects.sort_by(|a, b| a.name.cmp(&b.name));
    ProjectTree { half_life_seconds: 300, own_weight: 1, projects }
}

/// Returns the tree of these projects on this many places.
pub(super) fn tree(rows: &[ProjectRow<'_>], capacity: u32) -> QuotaTree {
    QuotaTree::new(&voted(rows, &vec![1; rows.len()]), &rate(capacity), |_| [0; 3])
}

/// Gang of a history.
#[derive(Debug, Clone)]
struct Arrival {
    at: u64,
    project: Option<String>,
    ranks: u32,
    priority: u32,
    declared_ms: u64,
    real_ms: u64,
}

/// Gang that holds places.
#[derive(Debug, Clone)]
struct Held {
    arrival: Arrival,
    gang: RunningGang<u32, Vec<u32>>,
    /// Time at which its places are free: it has run, or its grace is over.
    leaves_at: u64,
}

/// World of a history.
struct World {
    tree: ProjectTree,
    total: u32,
    free: Places,
    now: u64,
    shares: ShareBook,
    waiting: Vec<Arrival>,
    held: Vec<Held>,
    preemptions: u32,
    /// Gang with the last reservation, and the time of it.
    promised: Option<(u64, u64)>,
    /// Whether a reservation may move back: another project or priority may come before it.
    may_move_back: bool,
    /// Places times milliseconds that each project held.
    used: BTreeMap<Option<String>, u64>,
}

impl World {
    fn new(nodes: &[u32], tree: ProjectTree, step_ms: u64) -> Self {
        let mut shares = ShareBook::default();
        shares.set_step(step_ms, ClusterTime(Millis(0)));
        Self {
            tree,
            total: nodes.iter().sum(),
            free: Places(nodes.to_vec()),
            now: 0,
            shares,
            waiting: Vec::new(),
            held: Vec::new(),
            preemptions: 0,
            promised: None,
            may_move_back: true,
            used: BTreeMap::new(),
        }
    }

    fn quotas(&self) -> QuotaTree {
        let mean = |project: Option<&ProjectName>| self.shares.mean(project);
        let mut quotas = QuotaTree::new(&self.tree, &rate(self.total), mean);
        self.held.iter().for_each(|held| quotas.take(&held.gang.charge));
        quotas
    }

    /// Returns the projects from that of a gang up to the root, as the vote names them.
    fn lineage(&self, project: &Option<String>) -> Vec<&Project> {
        let Some(own) = project else { return Vec::new() };
        self.tree.lineage(&name(own)).collect()
    }

    /// Returns the places that a project and those that belong to it hold.
    fn places_of(&self, project: &Project) -> u32 {
        let of =
            |held: &&Held| self.lineage(&held.arrival.project).iter().any(|own| own.name == project.name);
        self.held.iter().filter(of).map(|held| held.arrival.ranks).sum()
    }

    /// Returns the first project that passes its quota and what it may borrow.
    fn passed(&self, arrival: &Arrival) -> Option<String> {
        let passed = |project: &&&Project| {
            let limit = project.borrow.map(|borrow| project.quota.gpus + borrow.gpus);
            limit.is_some_and(|limit| self.places_of(project) > limit)
        };
        self.lineage(&arrival.project).iter().find(passed).map(|project| project.name.to_string())
    }

    /// Returns whether a gang could start if it were alone.
    fn fits_alone(&self, arrival: &Arrival) -> bool {
        let within = |project: &&Project| {
            let limit = project.borrow.map(|borrow| project.quota.gpus + borrow.gpus);
            limit.is_none_or(|limit| arrival.ranks <= limit)
        };
        arrival.ranks <= self.total && self.lineage(&arrival.project).iter().all(within)
    }

    /// Returns whether a gang that runs is one of a project that borrows: its own, one above it, or the jobs
    /// of a project itself, which have what its children leave of its quota. Gangs that end already do not
    /// count, and those for which room is kept do.
    fn borrows(&self, arrival: &Arrival, kept: &[Arrival]) -> bool {
        let lineage = self.lineage(&arrival.project);
        let Some(own) = lineage.first() else { return true };
        let stays = |held: &&Held| held.gang.grace_ms.is_some();
        let held = || self.held.iter().filter(stays).map(|held| &held.arrival).chain(kept);
        let children = self.tree.projects.iter().filter(|child| child.parent.as_ref() == Some(&own.name));
        let left = own.quota.gpus - children.map(|child| child.quota.gpus).sum::<u32>();
        let beyond = |project: &&Project| {
            let below =
                |gang: &&Arrival| self.lineage(&gang.project).iter().any(|above| above.name == project.name);
            held().filter(below).map(|gang| gang.ranks).sum::<u32>() > project.quota.gpus
        };
        let alone = held().filter(|gang| gang.project == arrival.project).map(|gang| gang.ranks);
        alone.sum::<u32>() > left || lineage.iter().any(beyond)
    }

    /// Moves the time on, and frees the places of gangs that leave by then.
    fn advance(&mut self, to: u64) {
        for held in &self.held {
            let used = self.used.entry(held.arrival.project.clone()).or_default();
            *used += u64::from(held.arrival.ranks) * (to - self.now);
        }
        self.now = to;
        self.shares.advance(ClusterTime(Millis(to)));
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.leaves_at <= to);
        gone.iter().for_each(|held| self.free.give(&held.gang.gang, &held.gang.place));
        self.held = kept;
        self.follow();
    }

    fn follow(&mut self) {
        let mut rates: BTreeMap<ProjectName, UsageRate> = BTreeMap::new();
        for held in &self.held {
            let row = held.arrival.project.as_deref().unwrap_or(protocol::project::ROOT_PROJECT);
            let sum = rates.entry(name(row)).or_default();
            *sum = sum.plus(rate(held.arrival.ranks));
        }
        for project in &self.tree.projects {
            rates.entry(project.name.clone()).or_default();
        }
        rates.entry(name(protocol::project::ROOT_PROJECT)).or_default();
        self.shares.follow(&rates);
    }

    /// Decides once, and checks each decision.
    fn pass(&mut self) -> Result<(), TestCaseError> {
        let quotas = self.quotas();
        let waiting: Vec<WaitingGang<u32>> = self.waiting.iter().map(|gang| waits(&quotas, gang)).collect();
        let key = |entry: &WaitingGang<u32>| TurnKey {
            charge: entry.charge,
            priority: entry.priority,
            submitted_at: entry.submitted_at,
        };
        let keys: Vec<TurnKey> = waiting.iter().map(key).collect();
        let order = quotas.turns(&keys, usize::MAX);
        let sorted: Vec<WaitingGang<u32>> = order.iter().map(|at| waiting[*at].clone()).collect();
        let running: Vec<RunningGang<u32, Vec<u32>>> =
            self.held.iter().map(|held| held.gang.clone()).collect();
        let (room, now) = (self.free.clone(), self.now);
        let state = QueueState { room: &room, quotas: &quotas, running: &running, now, preempted_max: 16 };
        let Schedule { turns, preempted } = schedule(&state, &sorted);
        let (mut started, mut kept) = (Vec::new(), Vec::new());
        for (at, turn) in order.iter().zip(turns) {
            let arrival = self.waiting[*at].clone();
            match turn {
                GangTurn::Starts(place) => {
                    self.start(&arrival, &quotas, place)?;
                    started.push(*at);
                }
                GangTurn::NoRoom => prop_assert!(!self.fits_alone(&arrival), "{arrival:?} gets its turn"),
                GangTurn::Reserved { at } => {
                    prop_assert!(at >= self.now, "no reservation is in the past");
                    let same = self.promised.filter(|(of, _)| *of == arrival.at);
                    let by = same.map_or(u64::MAX, |(_, by)| by);
                    prop_assert!(self.may_move_back || at <= by, "a reservation moves forward only");
                    self.promised = Some((arrival.at, at));
                }
                GangTurn::Reclaims { at } => {
                    prop_assert!(at >= self.now, "nothing is kept for the past");
                    kept.push(arrival);
                }
                GangTurn::Quota(_) | GangTurn::Behind => {}
            }
        }
        for victim in preempted {
            prop_assert!(self.borrows(&self.held[victim].arrival, &kept), "only borrowers are preempted");
            let ends_at = self.now + GRACE_MS;
            let held = &mut self.held[victim];
            (held.gang.grace_ms, held.gang.ends_at) = (None, ends_at.min(held.leaves_at));
            if held.leaves_at > ends_at {
                held.leaves_at = ends_at;
                self.waiting.push(held.arrival.clone());
                self.preemptions += 1;
            }
        }
        started.sort_unstable();
        started.into_iter().rev().for_each(|at| drop(self.waiting.remove(at)));
        self.follow();
        Ok(())
    }

    fn start(&mut self, arrival: &Arrival, quotas: &QuotaTree, place: Vec<u32>) -> Result<(), TestCaseError> {
        prop_assert_eq!(place.iter().sum::<u32>(), arrival.ranks, "a gang starts whole");
        prop_assert!(self.free.take(&arrival.ranks, &place), "in what is free");
        let charge = charge(quotas, arrival.project.as_deref(), arrival.ranks);
        let gang = RunningGang {
            gang: arrival.ranks,
            place,
            charge,
            priority: arrival.priority,
            since: self.now,
            ends_at: self.now + arrival.declared_ms,
            grace_ms: Some(GRACE_MS),
        };
        let leaves_at = self.now + arrival.real_ms;
        self.held.push(Held { arrival: arrival.clone(), gang, leaves_at });
        prop_assert_eq!(self.passed(arrival), None, "no quota is passed beyond what is borrowed");
        Ok(())
    }

    fn next_end(&self) -> Option<u64> {
        self.held.iter().map(|held| held.leaves_at).min()
    }
}

fn waits(quotas: &QuotaTree, gang: &Arrival) -> WaitingGang<u32> {
    WaitingGang {
        gang: gang.ranks,
        charge: charge(quotas, gang.project.as_deref(), gang.ranks),
        priority: gang.priority,
        submitted_at: gang.at,
        run_ms: gang.declared_ms,
    }
}

/// Returns a tree of up to three projects at the top and two below each, whose quotas fit into the places.
fn trees(total: u32) -> impl Strategy<Value = ProjectTree> {
    let borrow = prop::option::of(0..=total);
    let project =
        (0..=total, borrow.clone(), 1..4_u32, prop::collection::vec((0..=total, borrow, 1..4_u32), 0..3));
    prop::collection::vec(project, 0..4).prop_map(move |tops| {
        let (mut rows, mut weights, mut left) = (Vec::new(), Vec::new(), total);
        let names: Vec<Vec<String>> = (0..tops.len())
            .map(|top| {
                (0..4).map(|at| if at == 0 { format!("p{top}") } else { format!("p{top}-{at}") }).collect()
            })
            .collect();
        for (names, (nominal, borrow, weight, below)) in names.iter().zip(tops) {
            let nominal = nominal.min(left);
            left -= nominal;
            rows.push((names[0].as_str(), None, nominal, borrow));
            weights.push(weight);
            let mut inner = nominal;
            for (own, (nominal, borrow, weight)) in names[1..].iter().zip(below) {
                let nominal = nominal.min(inner);
                inner -= nominal;
                rows.push((own.as_str(), Some(names[0].as_str()), nominal, borrow));
                weights.push(weight);
            }
        }
        voted(&rows, &weights)
    })
}

fn histories() -> impl Strategy<Value = (Vec<u32>, ProjectTree, Vec<Arrival>)> {
    let gang = (0..16_usize, 1..9_u32, 0..3_u32, (1..30_u64, 0..30_u64), 0..4_u64);
    (prop::collection::vec(1..6_u32, 1..5), prop::collection::vec(gang, 1..25)).prop_flat_map(
        |(nodes, gangs)| {
            let total = nodes.iter().sum();
            (Just(nodes), trees(total), Just(gangs)).prop_map(|(nodes, tree, gangs)| {
                let mut at = 0;
                let arrivals =
                    gangs.into_iter().map(|(project, ranks, priority, (declared, early), later)| {
                        at += later;
                        let project = tree.projects.get(project % (tree.projects.len() + 1));
                        Arrival {
                            at,
                            project: project.map(|project| project.name.to_string()),
                            ranks,
                            priority,
                            declared_ms: declared,
                            real_ms: declared.saturating_sub(early).max(1),
                        }
                    });
                let arrivals = arrivals.collect();
                (nodes, tree, arrivals)
            })
        },
    )
}

/// One history: gangs arrive, run for at most their declared time, and end. A preempted one begins again.
fn run(mut world: World, mut arrivals: Vec<Arrival>) -> Result<(), TestCaseError> {
    let all = arrivals.len() as u32;
    for _ in 0..2_000 {
        while arrivals.first().is_some_and(|gang| gang.at <= world.now) {
            world.waiting.push(arrivals.remove(0));
        }
        world.pass()?;
        let next = world.next_end().into_iter().chain(arrivals.first().map(|gang| gang.at)).min();
        let Some(next) = next else { break };
        world.advance(next.max(world.now + 1));
    }
    let starved = world.waiting.iter().find(|gang| world.fits_alone(gang));
    prop_assert!(starved.is_none() && arrivals.is_empty(), "starved: {starved:?}");
    prop_assert!(world.preemptions <= all * all, "{} preemptions of {all} gangs", world.preemptions);
    Ok(())
}

/// Returns the largest distance of a project from its due part of what was used, in thousandths of all, and
/// in thousandths of that part, while each always has gangs that wait.
fn distance_of_shares(
    places: u32,
    weights: &[u32],
    lengths: &[u64],
    ranks: &[u32],
) -> Result<(u64, u64), TestCaseError> {
    let names: Vec<String> = (0..weights.len()).map(|at| format!("p{at}")).collect();
    let rows: Vec<ProjectRow<'_>> = names.iter().map(|own| (own.as_str(), None, 0, None)).collect();
    let mut world = World::new(&[places], voted(&rows, weights), 4);
    let mut drawn = 0_usize;
    while world.now < 3_000 {
        if world.used.values().sum::<u64>() > 0 && world.now < 1_000 {
            world.used.clear();
        }
        let mut refill = |world: &mut World| {
            for own in &names {
                let of_project = |gang: &&Arrival| gang.project.as_ref() == Some(own);
                let mut waiting: u32 = world.waiting.iter().filter(of_project).map(|gang| gang.ranks).sum();
                while waiting < places {
                    drawn += 1;
                    let real_ms = lengths[drawn % lengths.len()];
                    let (at, ranks) = (drawn as u64, ranks[drawn % ranks.len()]);
                    let declared_ms = real_ms + lengths[(drawn / 2) % lengths.len()];
                    let project = Some(own.clone());
                    waiting += ranks;
                    world.waiting.push(Arrival { at, project, ranks, priority: 1, declared_ms, real_ms });
                }
            }
        };
        refill(&mut world);
        world.pass()?;
        let next = world.next_end().unwrap_or(world.now + 1);
        world.advance(next.max(world.now + 1));
    }
    let (all, due): (u64, u64) = (world.used.values().sum(), weights.iter().map(|one| u64::from(*one)).sum());
    let distances = names.iter().zip(weights).map(|(own, weight)| {
        let used = world.used.get(&Some(own.clone())).copied().unwrap_or(0);
        let expected = all * u64::from(*weight) / due;
        (used.abs_diff(expected) * 1000 / all, used.abs_diff(expected) * 1000 / expected.max(1))
    });
    Ok(distances.fold((0, 0), |(a, b), (c, d)| (a.max(c), b.max(d))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_history_passes_a_quota_starts_part_of_a_gang_or_starves_one(history in histories()) {
        let (nodes, tree, arrivals) = history;
        run(World::new(&nodes, tree, 2), arrivals)?;
    }

    /// Without projects and priorities, time alone decides, and a reservation holds.
    #[test]
    fn no_reservation_moves_back_among_gangs_of_one_project_and_priority(history in histories()) {
        let (nodes, _, arrivals) = history;
        let mut world = World::new(&nodes, ProjectTree::default(), 2);
        world.may_move_back = false;
        // One arrival at a time, so that its time names the gang.
        let alike = (0..).zip(arrivals).map(|(at, gang)| Arrival { at, project: None, priority: 1, ..gang });
        run(world, alike.collect())?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 30, ..ProptestConfig::default() })]

    #[test]
    fn shares_are_within_five_percent_of_their_weights(
        places in 40..80_u32,
        weights in prop::collection::vec(1..5_u32, 2..5),
        lengths in prop::collection::vec((2..8_u64).prop_map(|tens| tens * 10), 3..20),
        ranks in prop::collection::vec(1..4_u32, 3..20),
    ) {
        let (of_all, of_part) = distance_of_shares(places, &weights, &lengths, &ranks)?;
        prop_assert!(of_all <= 50, "{of_all} thousandths of all, {of_part} of its part");
    }
}

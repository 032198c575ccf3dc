//! Laws of quotas and shares, over random trees of projects.

use super::*;
use proptest::prelude::*;
use protocol::project::Project;

fn name(text: &str) -> ProjectName {
    text.parse().expect("a name")
}

fn quota(gpus: u32) -> ProjectQuota {
    ProjectQuota { gpus, ..ProjectQuota::default() }
}

fn project(own: &str, parent: Option<&str>, gpus: u32, borrow: Option<u32>, weight: u32) -> Project {
    let parent = parent.map(name);
    Project { name: name(own), parent, weight, quota: quota(gpus), borrow: borrow.map(quota) }
}

fn gpus(count: u32) -> UsageRate {
    UsageRate { gpu_millis: u64::from(count) * 1000, cpu_millicores: 0, memory_mib: 0 }
}

fn tree_of(projects: Vec<Project>) -> QuotaTree {
    let tree = ProjectTree { half_life_seconds: 300, own_weight: 1, projects };
    QuotaTree::new(&tree, &gpus(64), |_| [0; RESOURCES])
}

fn charge_of(quotas: &QuotaTree, project: Option<&str>, count: u32) -> GangCharge {
    quotas.charge(project.map(name).as_ref(), &gpus(count)).expect("a project of the tree")
}

/// Returns two projects at the top and two below the first, with quotas and weights.
fn trees() -> impl Strategy<Value = QuotaTree> {
    let limit = || prop::option::of(0..8_u32);
    let amounts = (0..4_u32, 0..4_u32, 0..4_u32, 0..8_u32);
    (amounts, limit(), limit(), prop::collection::vec(1..5_u32, 4)).prop_map(
        |((left, one, two, other), first, second, weights)| {
            tree_of(vec![
                project("a", None, left + one + two, first, weights[0]),
                project("a1", Some("a"), one, None, weights[1]),
                project("a2", Some("a"), two, second, weights[2]),
                project("b", None, other, None, weights[3]),
            ])
        },
    )
}

const OWNERS: [Option<&str>; 5] = [None, Some("a"), Some("a1"), Some("a2"), Some("b")];

fn gangs(most: usize) -> impl Strategy<Value = Vec<(usize, u32)>> {
    prop::collection::vec((0..OWNERS.len(), 1..5_u32), 1..most)
}

fn held(quotas: &QuotaTree) -> Vec<Amounts> {
    quotas.nodes.iter().map(|node| node.held).collect()
}

#[test]
fn jobs_of_a_dropped_project_count_to_the_root() {
    let mut quotas = tree_of(vec![project("a", None, 4, None, 1)]);
    let ghost = name("ghost");
    assert_eq!(quotas.charge(Some(&ghost), &gpus(1)), None, "no gang of it starts");
    quotas.take(&quotas.charge_of_held(Some(&ghost), &gpus(3)));
    assert_eq!(quotas.holdings(None).map(|(held, ..)| held), Some([0, 0, 3000]));
    assert_eq!(quotas.holdings(Some(&name("a"))).map(|(held, ..)| held), Some([0; RESOURCES]));
}

#[test]
fn a_parent_shows_what_its_projects_hold_with_its_own() {
    let mut quotas = tree_of(vec![project("a", None, 4, None, 1), project("a1", Some("a"), 2, None, 1)]);
    for (owner, count) in [(Some("a"), 16), (Some("a1"), 16), (None, 32)] {
        quotas.take(&charge_of(&quotas, owner, count));
    }
    let shown = |project: Option<&str>| quotas.holdings(project.map(name).as_ref()).expect("it is known");
    assert_eq!(shown(Some("a")), ([0, 0, 32_000], [0; RESOURCES], 500_000));
    assert_eq!(shown(Some("a1")), ([0, 0, 16_000], [0; RESOURCES], 250_000));
    assert_eq!(shown(None), ([0, 0, 32_000], [0; RESOURCES], 500_000), "its own jobs alone");
}

#[test]
fn the_dominant_resource_is_the_one_of_which_most_is_taken() {
    let tree = ProjectTree {
        half_life_seconds: 300,
        own_weight: 1,
        projects: vec![project("a", None, 0, None, 1), project("b", None, 0, None, 1)],
    };
    let offered = UsageRate { gpu_millis: 8000, cpu_millicores: 64_000, memory_mib: 512 };
    let mut quotas = QuotaTree::new(&tree, &offered, |_| [0; RESOURCES]);
    // A quarter of the GPUs beside half of the cores: the other holds less of what it takes most of.
    let cores = UsageRate { gpu_millis: 0, cpu_millicores: 32_000, memory_mib: 64 };
    for (owner, rate) in
        [("a", UsageRate { gpu_millis: 2000, cpu_millicores: 1000, memory_mib: 1 }), ("b", cores)]
    {
        quotas.take(&quotas.charge(Some(&name(owner)), &rate).expect("a project"));
    }
    let share = |owner: &str| quotas.holdings(Some(&name(owner))).map(|(_, _, share)| share);
    assert_eq!((share("a"), share("b")), (Some(250_000), Some(500_000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Each gang counts once at every node above it, and not at all once it has ended.
    #[test]
    fn what_is_given_back_was_taken(quotas in trees(), gangs in gangs(12)) {
        let before = held(&quotas);
        let mut quotas = quotas;
        let charges: Vec<GangCharge> =
            gangs.iter().map(|(owner, count)| charge_of(&quotas, OWNERS[*owner], *count)).collect();
        charges.iter().for_each(|charge| quotas.take(charge));
        let all: u64 = gangs.iter().map(|(_, count)| u64::from(*count) * 1000).sum();
        prop_assert_eq!(quotas.nodes[ROOT].held[2], all);
        charges.iter().for_each(|charge| quotas.give(charge));
        prop_assert_eq!(held(&quotas), before);
    }

    /// Each gang has one turn, and those of one project have theirs by priority, then by time.
    #[test]
    fn turns_are_an_order_of_all_gangs_that_keeps_that_of_each_project(
        quotas in trees(), gangs in gangs(16), priorities in prop::collection::vec(0..3_u32, 16),
    ) {
        let key = |(at, (owner, count)): (usize, &(usize, u32))| TurnKey {
            charge: charge_of(&quotas, OWNERS[*owner], *count),
            priority: priorities[at],
            submitted_at: at as u64 / 2,
        };
        let keys: Vec<TurnKey> = gangs.iter().enumerate().map(key).collect();
        let order = quotas.turns(&keys, usize::MAX);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert!(sorted.into_iter().eq(0..keys.len()));
        for leaf in 0..quotas.nodes.len() {
            let of_leaf = order.iter().filter(|at| keys[**at].charge.leaf == leaf);
            let ranks: Vec<_> =
                of_leaf.map(|at| (Reverse(keys[*at].priority), keys[*at].submitted_at, *at)).collect();
            prop_assert!(ranks.is_sorted(), "{ranks:?}");
        }
        prop_assert_eq!(quotas.turns(&keys, 1), order[..1].to_vec(), "a shorter list is its begin");
    }

    /// Attack: a victim reclaims from the gang for which it was preempted, and the two take turns forever.
    #[test]
    fn a_victim_never_reclaims_from_the_gang_that_took_its_room(
        quotas in trees(), running in gangs(12), gang in (0..OWNERS.len(), 1..5_u32),
    ) {
        let mut quotas = quotas;
        let running: Vec<GangCharge> =
            running.iter().map(|(owner, count)| charge_of(&quotas, OWNERS[*owner], *count)).collect();
        running.iter().for_each(|charge| quotas.take(charge));
        let gang = charge_of(&quotas, OWNERS[gang.0], gang.1);
        for victim in &running {
            if quotas.may_reclaim(&gang, victim) {
                prop_assert!(quotas.is_borrower(victim), "only what is borrowed is reclaimed");
                prop_assert!(quotas.has_claim(&gang), "only a gang with a claim reclaims");
                let mut after = quotas.clone();
                after.give(victim);
                after.take(&gang);
                prop_assert!(!after.may_reclaim(victim, &gang));
            }
        }
    }

    /// The weight that a text names is the smallest that changes the turn.
    #[test]
    fn a_weight_that_is_named_precedes_and_one_less_does_not(
        held in (1..9_u32, 1..9_u32), weight in 1..5_u32,
    ) {
        let share_with = |own: u32| {
            let mut quotas =
                tree_of(vec![project("a", None, 0, None, own), project("b", None, 0, None, weight)]);
            let (a, b) = (charge_of(&quotas, Some("a"), held.0), charge_of(&quotas, Some("b"), held.1));
            quotas.take(&a);
            quotas.take(&b);
            (quotas.weight_to_precede(&a, &b), quotas.share(a.leaf), quotas.share(b.leaf))
        };
        let (named, own, other) = share_with(1);
        match named {
            None => prop_assert!(own < other, "it comes first already"),
            Some((project, present, needed)) => {
                prop_assert_eq!((project.as_str(), present), ("a", 1));
                let (_, own, other) = share_with(u32::try_from(needed).expect("a small weight"));
                prop_assert!(own < other, "it precedes with {needed}");
                let (_, own, other) = share_with(u32::try_from(needed - 1).expect("a small weight"));
                prop_assert!(own >= other, "it does not with one less than {needed}");
            }
        }
    }
}

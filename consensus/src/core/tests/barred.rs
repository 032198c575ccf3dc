//! Tests of replicas that are barred from leading.

use super::*;

/// Runs a group whose leader is cut off, and returns the replica that the shells bar and the next leader.
fn next_leader(seed: u64, barring: bool) -> (u64, u64) {
    let mut world = World::new(3, seed);
    let leader = world.elect();
    world.settle();
    let barred = 1 + leader % 3;
    if barring {
        bar(&mut world, barred);
    }
    world.cut.insert(leader);
    (barred, world.elect())
}

fn bar(world: &mut World, barred: u64) {
    world.nodes.values_mut().for_each(|node| node.core.bar(BTreeSet::from([ReplicaId(barred)])));
}

#[test]
fn a_barred_replica_leaves_campaigns_to_the_others_and_votes_for_them() {
    for seed in 0..40 {
        let (barred, leader) = next_leader(seed, true);
        assert_ne!(leader, barred, "seed {seed}");
    }
    let control = (0..40).map(|seed| next_leader(seed, false)).filter(|(barred, next)| barred == next);
    assert!(control.count() > 5, "the control: it would have led now and then");
}

#[test]
fn leadership_is_not_transferred_to_a_barred_replica_while_another_can_take_it() {
    for barring in [true, false] {
        let mut world = World::new(3, 21);
        let leader = world.elect();
        world.run(5);
        // The lower of two equal followers is preferred otherwise.
        let preferred = (1..=3).find(|id| *id != leader).expect("three replicas");
        if barring {
            bar(&mut world, preferred);
        }
        world.node(leader).core.transfer_leadership();
        world.settle();
        assert_eq!(world.elect() == preferred, !barring);
    }
}

/// Only the barred replica holds everything committed: it leads until another one does too.
#[test]
fn a_barred_replica_leads_if_no_other_can_and_then_hands_over() {
    let mut world = World::new(3, 22);
    let leader = world.elect();
    let (barred, behind) = (1 + leader % 3, 1 + (leader + 1) % 3);
    bar(&mut world, barred);
    world.cut.insert(behind);
    world.propose(leader, "committed");
    world.run(5);
    assert_eq!(world.texts(barred), ["committed"]);
    world.cut = BTreeSet::from([leader]);
    assert_eq!(world.elect(), barred);
    world.run(5);
    assert_eq!(world.texts(behind), ["committed"]);
    world.node(barred).core.transfer_leadership();
    world.settle();
    assert_eq!(world.elect(), behind);
}

#[test]
fn a_barred_leader_does_not_hand_over_to_another_barred_replica() {
    let mut world = World::new(3, 23);
    let leader = world.elect();
    world.run(5);
    let all: BTreeSet<ReplicaId> = (1..=3).map(ReplicaId).collect();
    world.node(leader).core.bar(all);
    world.node(leader).core.transfer_leadership();
    assert_eq!(world.nodes[&leader].core.raw.raft.lead_transferee, None);
}

#[test]
fn a_new_group_elects_its_first_leader_among_those_that_are_not_barred() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        bar(&mut world, 1 + seed % 3);
        world.run(8);
        let leaders = world.leaders();
        assert!(leaders.len() == 1 && leaders[0] != 1 + seed % 3, "seed {seed}: {leaders:?}");
    }
}

/// Every replica is barred, which no judgement by a majority gives: the group still gets a leader.
#[test]
fn a_group_of_barred_replicas_elects_a_leader_in_the_end() {
    for seed in 0..20 {
        let mut world = World::new(3, seed);
        for barred in world.nodes.values_mut().map(|node| &mut node.core) {
            barred.bar((1..=3).map(ReplicaId).collect());
            assert!(barred.is_barred());
        }
        let leader = world.elect();
        world.propose(leader, "a");
        world.run(10);
        assert_eq!(world.texts(1 + leader % 3), ["a"], "seed {seed}");
    }
}

/// Bars come and go while leaders are cut off: nothing committed is lost, and the next leader is a free one
/// once all replicas have caught up.
#[test]
fn changing_bars_lose_nothing_and_leave_the_leadership_to_a_free_replica() {
    for seed in 0..30 {
        let mut world = World::new(5, seed);
        let mut written: Vec<String> = Vec::new();
        for round in 0..8 {
            let leader = world.elect();
            let text = format!("{seed}/{round}");
            world.propose(leader, &text);
            written.push(text);
            world.run(5);
            let barred = 1 + world.dice.roll(5);
            bar(&mut world, barred);
            world.cut = BTreeSet::from([leader]);
            let next = world.elect();
            assert_ne!(next, barred, "seed {seed}, round {round}: all others have caught up");
            world.cut.clear();
            world.run(25);
            assert_eq!(world.leaders().len(), 1, "seed {seed}, round {round}");
        }
        for id in 1..=5 {
            assert_eq!(world.texts(id), written, "seed {seed}: replica {id}");
        }
    }
}

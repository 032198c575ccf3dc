//! Planted violations: each invariant of the core detects the state that breaks it.

use super::*;

/// Returns a group with a leader and committed entries, and the leader's id. The leader has taken a snapshot.
fn running() -> (World, u64) {
    let mut world = World::new(3, 20);
    let leader = world.elect();
    for number in 0..4 {
        world.propose(leader, &number.to_string());
        world.settle();
    }
    let snapshot = world.node(leader).core.snapshot_here(Bytes::new());
    world.node(leader).core.snapshot_saved(snapshot);
    world.propose(leader, "after the snapshot");
    world.run(2);
    (world, leader)
}

/// Plants a violation in the leader, and compares what the check finds.
fn check(plant: fn(&mut Core), expected: &str) {
    let (mut world, leader) = running();
    let core = &mut world.node(leader).core;
    assert_eq!(core.check_invariants(), Ok(()));
    plant(core);
    let found = core.check_invariants().err().unwrap_or_else(|| "sound".to_owned());
    assert!(found.contains(expected), "`{found}` instead of `{expected}`");
}

#[test]
fn progress_that_is_taken_back_is_found() {
    check(|_| (), "sound");
    check(|core| core.raw.raft.term -= 1, "the term fell from");
    check(|core| core.durable_term = Term(0), "the durable term fell from");
    check(|core| core.raw.raft.raft_log.committed -= 1, "the commit index fell from");
    check(|core| core.applied = LogIndex(5), "the applied index fell from");
    check(|core| core.checked.snapshot = LogIndex(99), "the snapshot index fell from");
}

#[test]
fn a_second_vote_in_one_term_is_found_and_one_in_the_next_term_is_not() {
    check(|core| core.raw.raft.vote = 9, "the vote in term");
    check(|core| core.raw.raft.vote = 0, "the vote in term");
    let (mut world, leader) = running();
    let follower = 1 + leader % 3;
    let core = &mut world.node(follower).core;
    core.raw.raft.term += 1;
    core.raw.raft.vote = follower;
    assert_eq!(core.check_invariants(), Ok(()));
    core.raw.raft.term += 1;
    core.raw.raft.vote = leader;
    assert_eq!(core.check_invariants(), Ok(()));
}

#[test]
fn an_index_that_overtakes_the_one_ahead_of_it_is_found() {
    check(|core| core.raw.raft.raft_log.committed += 9, "is committed, but the log ends at");
    check(|core| core.applied = core.applied.next(), "is applied, but only");
    let ahead = |core: &mut Core| {
        core.applied = LogIndex(4);
        core.checked.applied = LogIndex(4);
    };
    check(ahead, "the snapshot ends at");
}

#[test]
fn state_of_a_term_that_was_not_reached_is_found() {
    check(|core| core.durable_term = Term(99), "the durable term is of term 99, ahead of term");
    let deferred = |core: &mut Core| {
        core.deferred = Some(HardState { term: Term(99), ..HardState::default() });
    };
    check(deferred, "the deferred hard state is of term 99");
    let stored = |core: &mut Core| {
        let hard_state = core.raw.store().hard_state();
        core.raw.mut_store().set_hard_state(HardState { term: Term(99), ..hard_state });
    };
    check(stored, "the hard state is of term 99");
    let appended = |core: &mut Core| {
        let index = core.raw.raft.raft_log.last_index() + 1;
        core.raw.mut_store().append(&[Entry { index, term: 99, ..Entry::default() }]);
    };
    check(appended, "the last entry is of term 99");
}

#[test]
fn batches_that_are_out_of_order_or_miscounted_are_found() {
    let batch = |number| Outstanding { number: BatchNumber(number), term: None, bytes: 0 };
    let (mut world, leader) = running();
    let core = &mut world.node(leader).core;
    core.outstanding.extend([batch(900), batch(901)]);
    assert_eq!(core.check_invariants(), Ok(()));
    core.outstanding.push_back(batch(901));
    let found = core.check_invariants();
    assert_eq!(found, Err("batch 901 waits for the disk behind batch 901".to_owned()));
    check(|core| core.unwritten_bytes += 7, "0 bytes wait for the disk, counted as 7");
}

#[test]
fn a_leader_that_follows_another_and_a_transfer_by_a_follower_are_found() {
    check(|core| core.raw.raft.leader_id = 9, "follows leader 9");
    let voted = |core: &mut Core| {
        core.raw.raft.term += 1;
        core.raw.raft.vote = 9;
    };
    check(voted, "voted for 9");
    let (mut world, leader) = running();
    let core = &mut world.node(1 + leader % 3).core;
    core.raw.raft.lead_transferee = Some(leader);
    let found = core.check_invariants();
    assert_eq!(found, Err("a replica that does not lead transfers leadership".to_owned()));
}

#[test]
fn violations_of_the_log_and_of_the_reads_are_found_through_the_core() {
    let commit = |core: &mut Core| {
        let hard_state = core.raw.store().hard_state();
        core.raw.mut_store().set_hard_state(HardState { commit: LogIndex(99), ..hard_state });
    };
    check(commit, "entry 99 is committed, but the log ends at");
    let reads = |core: &mut Core| {
        core.read(ReadId(5));
        assert!(core.reads.issue().is_some());
        core.read(ReadId(5));
    };
    check(reads, "read 5 is queued twice");
}

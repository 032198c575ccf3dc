//! Requests to a leader that has fallen silent: retried as soon as another replica leads, if that is safe.
//!
//! Simulated time makes each wait visible.

use crate::group::{Client, after, ids, insist, lines, text};
use crate::simulated::{disks, start};
use consensus::{LinearizableReadError, ProposeError, RaftStatus, Role, Timings};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Longer than any election among connected replicas, far shorter than the timeout of a request.
const ELECTED: Duration = Duration::from_secs(4);

#[tokio::test(start_paused = true)]
async fn reads_and_session_commands_leave_a_paused_leader_for_the_next_one() {
    let group = start();
    let paused = group.leader().await;
    let follower = group.handle(after(paused));
    let (mut client, mut own) = (Client::new(&follower).await, Client::new(&follower).await);
    client.propose(&follower, "before").await.expect("a leader");
    group.set_paused(paused, true);
    let begin = Instant::now();
    let (read, done) = tokio::join!(follower.read_barrier(), client.propose(&follower, "meanwhile"));
    assert!(begin.elapsed() <= ELECTED, "they waited for a paused leader: {:?}", begin.elapsed());
    assert!(read.is_ok(), "{read:?}");
    assert_eq!(done, Ok(text("2")));
    // The same holds for a request to the former leader itself, once it resumes.
    let former = group.handle(paused);
    let asked = tokio::spawn(async move { own.propose(&former, "through the former leader").await });
    sleep(Duration::from_millis(1)).await;
    group.set_paused(paused, false);
    assert_eq!(asked.await.expect("no panic"), Ok(text("3")));
    let expected = ["before", "meanwhile", "through the former leader"];
    for id in ids() {
        assert_eq!(lines(&group.handle(id)).await, expected, "replica {id}: each once");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_outside_a_session_that_reached_a_paused_leader_stays_unknown() {
    let group = start();
    let paused = group.leader().await;
    let follower = group.handle(after(paused));
    insist(&follower, "before").await;
    group.set_paused(paused, true);
    let begin = Instant::now();
    let outcome = follower.propose(text("open"), None).await;
    assert_eq!(outcome, Err(ProposeError::OutcomeUnknown));
    assert_eq!(begin.elapsed(), Timings::default().request);
    group.set_paused(paused, false);
    let kept = lines(&follower).await;
    assert!(kept == ["before"] || kept == ["before", "open"], "never twice: {kept:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_over_a_cut_link_are_retried_at_the_next_leader() {
    let group = start();
    let cut_off = group.leader().await;
    let follower = group.handle(after(cut_off));
    let mut client = Client::new(&follower).await;
    group.network().set_delay(Duration::from_millis(10));
    let begin = Instant::now();
    let ((), read, done) = tokio::join!(
        async {
            // The requests have arrived, but no answer returns.
            sleep(Duration::from_millis(15)).await;
            group.network().set_isolated(cut_off, true);
        },
        follower.read_barrier(),
        client.propose(&follower, "once"),
    );
    assert!(begin.elapsed() <= ELECTED, "{:?}", begin.elapsed());
    assert!(read.is_ok(), "{read:?}");
    assert_eq!(done, Ok(text("1")));
    group.network().set_isolated(cut_off, false);
    assert_eq!(lines(&group.handle(cut_off)).await, ["once"]);
}

#[tokio::test(start_paused = true)]
async fn a_barred_leader_transfers_its_leadership_and_does_not_take_it_back() {
    let group = start();
    let barred = group.leader().await;
    let handle = group.handle(barred);
    let mut client = Client::new(&handle).await;
    client.propose(&handle, "before").await.expect("a leader");
    let bar = |replicas: BTreeSet<_>| ids().for_each(|id| group.handle(id).bar(replicas.clone()));
    bar(BTreeSet::from([barred]));
    let begin = Instant::now();
    let other = |status: &RaftStatus| status.leader.is_some_and(|leader| leader != barred);
    let next = handle.watch_status().wait_for(other).await.expect("it runs").leader.expect("checked");
    assert!(begin.elapsed() < Duration::from_secs(1), "without an election timeout: {:?}", begin.elapsed());
    assert_eq!(client.propose(&handle, "after").await, Ok(text("2")));
    // The next leader falls silent: the third one leads, and the barred one votes for it.
    group.set_paused(next, true);
    sleep(ELECTED).await;
    let leader = handle.status().leader.expect("a majority runs");
    assert!(leader != barred && leader != next, "{leader} leads");
    // Barred no more, it may lead again.
    group.set_paused(next, false);
    bar(BTreeSet::from([leader]));
    sleep(ELECTED).await;
    let leaders = [handle.status().leader, group.handle(next).status().leader];
    assert_eq!(leaders[0], leaders[1]);
    assert_ne!(leaders[0], Some(leader));
}

#[tokio::test(start_paused = true)]
async fn abandoned_reads_are_dropped_by_a_leader_that_cannot_commit() {
    let group = start();
    group.network().set_delay(Duration::from_millis(10));
    // The next leader is elected, but no disk has space for its first entry.
    let leader = loop {
        sleep(Duration::from_millis(1)).await;
        if let Some(id) = ids().find(|id| group.handle(*id).status().role == Role::Leader) {
            break id;
        }
    };
    disks(&group).for_each(|disk| disk.set_out_of_space(true));
    let handle = group.handle(leader);
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.read_barrier().await })
        })
        .collect();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(handle.metrics().reads_waiting, 100, "the control: they wait");
    for asked in asked {
        assert_eq!(asked.await.expect("no panic"), Err(LinearizableReadError::NoLeader));
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!((handle.metrics().reads_waiting, handle.status().role), (0, Role::Leader));
    disks(&group).for_each(|disk| disk.set_out_of_space(false));
    handle.read_barrier().await.expect("the next one is answered");
}

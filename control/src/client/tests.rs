//! Tests of the client against simulated replicas that hang, are dead, redirect, respond late or lose
//! responses.

use super::simulated::{Arrived, Does, SimulatedReplicas, url};
use super::{ClientError, ControlClient};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const AT_ONCE: Does = Does::Leads(Duration::ZERO);

async fn read(client: &ControlClient) -> Result<Value, ClientError> {
    client.get("/v1/services").await
}

async fn write(client: &ControlClient) -> Result<Value, ClientError> {
    client.post("/v1/proposals", &json!({})).await
}

fn keys(arrived: &[Arrived]) -> BTreeSet<Option<String>> {
    arrived.iter().map(|arrived| arrived.key.clone()).collect()
}

/// Returns all orders of three replicas.
fn orders<T: Clone>(replicas: [T; 3]) -> impl Iterator<Item = Vec<T>> {
    let indices = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    indices.into_iter().map(move |order| order.map(|index| replicas[index].clone()).to_vec())
}

#[tokio::test(start_paused = true)]
async fn one_silent_replica_of_three_costs_less_than_a_second() {
    for silent in [Does::Hangs, Does::IsDead] {
        for replicas in orders([silent.clone(), AT_ONCE, Does::Follows(None)]) {
            let told = format!("{replicas:?}");
            let (client, world) = SimulatedReplicas::client(replicas.clone());
            assert_eq!(read(&client).await.expect(&told), json!({"done": true}));
            assert!(world.elapsed() < SECOND, "{told}: {:?}", world.elapsed());
            let (client, world) = SimulatedReplicas::client(replicas);
            write(&client).await.expect(&told);
            assert!(world.elapsed() < SECOND, "{told}: {:?}", world.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_silent_replicas_of_three_end_a_read_within_three_seconds_and_are_named() {
    for replicas in orders([Does::Hangs, Does::Hangs, Does::Follows(None)]) {
        let silent: Vec<usize> = (0..3).filter(|index| matches!(replicas[*index], Does::Hangs)).collect();
        let (client, world) = SimulatedReplicas::client(replicas);
        let error = read(&client).await.expect_err("nobody leads");
        assert!(world.elapsed() <= 3 * SECOND, "{:?}", world.elapsed());
        assert_eq!(error.code().map(|code| code.as_str()), Some("control-unavailable"));
        let said = error.to_string();
        assert!(said.starts_with("quorum lost: "), "{said}");
        for index in silent {
            assert!(said.contains(&format!("{} does not answer", url(index))), "{said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_leader_that_another_names_is_asked_at_once() {
    let (client, world) = SimulatedReplicas::client(vec![Does::Follows(Some(2)), Does::Hangs, AT_ONCE]);
    read(&client).await.expect("it leads");
    assert_eq!(world.elapsed(), Duration::ZERO, "no delay was waited for");
    let before = world.arrived().len();
    read(&client).await.expect("it leads");
    let replicas: Vec<usize> = world.arrived()[before..].iter().map(|arrived| arrived.replica).collect();
    assert_eq!(replicas, [2], "the one that answered is asked first the next time");
}

#[tokio::test(start_paused = true)]
async fn replicas_that_name_one_another_are_not_asked_without_pause() {
    let (client, world) = SimulatedReplicas::client(vec![
        Does::Follows(Some(1)),
        Does::Follows(Some(0)),
        Does::Follows(Some(0)),
    ]);
    let error = read(&client).await.expect_err("nobody leads");
    assert!(error.to_string().starts_with("no control replica leads: "), "{error}");
    let rounds = world.elapsed().as_millis() / 200;
    assert!(world.arrived().len() as u128 <= 3 * (rounds + 1), "{} requests", world.arrived().len());
}

#[tokio::test(start_paused = true)]
async fn a_read_waits_for_an_election_while_a_majority_answers() {
    let late = |then| Does::Until(4 * SECOND, Box::new((Does::Follows(None), then)));
    let (client, world) =
        SimulatedReplicas::client(vec![Does::Hangs, late(Does::Follows(Some(2))), late(AT_ONCE)]);
    read(&client).await.expect("it leads at last");
    assert!(world.elapsed() < 5 * SECOND, "{:?}", world.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_responses_are_lost_is_retried_under_the_same_key() {
    let (client, world) =
        SimulatedReplicas::client(vec![Does::Follows(Some(1)), Does::LosesAnswers(3), Does::Hangs]);
    write(&client).await.expect("the fourth answer came");
    let (arrived, to_leader) = (world.arrived(), |arrived: &&Arrived| arrived.replica == 1);
    assert_eq!(arrived.iter().filter(to_leader).count(), 4);
    let keys = keys(&arrived);
    assert!(keys.len() == 1 && keys.iter().all(Option::is_some), "{keys:?}");
    let before = world.arrived().len();
    write(&client).await.expect("done");
    let next = world.arrived()[before].key.clone();
    assert!(!keys.contains(&next), "another write has another key");
}

#[tokio::test(start_paused = true)]
async fn a_write_is_retried_after_a_refusal_and_after_a_lost_response() {
    for (status, code) in [(503, "control-unavailable"), (504, "outcome-unknown"), (421, "not-leader")] {
        let late = |first| Does::Until(8 * SECOND, Box::new((first, AT_ONCE)));
        let (client, world) =
            SimulatedReplicas::client(vec![late(Does::Refuses(status, code)), Does::Hangs, Does::IsDead]);
        write(&client).await.expect(code);
        assert_eq!(keys(&world.arrived()).len(), 1, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_response_has_an_unknown_outcome() {
    let cases = [
        (
            vec![Does::LosesAnswers(u32::MAX), Does::Follows(Some(0)), Does::Follows(Some(0))],
            "outcome-unknown",
        ),
        (vec![Does::Hangs, Does::Hangs, Does::Hangs], "outcome-unknown"),
        (vec![Does::Refuses(504, "outcome-unknown"), Does::IsDead, Does::IsDead], "outcome-unknown"),
        (vec![Does::Refuses(503, "log-busy"), Does::Follows(Some(0)), Does::Follows(Some(0))], "log-busy"),
        (
            vec![Does::Refuses(507, "log-disk-full"), Does::Follows(Some(0)), Does::Follows(None)],
            "log-disk-full",
        ),
        (vec![Does::Refuses(409, "name-taken"), Does::Hangs, Does::Hangs], "name-taken"),
        (vec![Does::IsDead, Does::IsDead, Does::IsDead], "control-unavailable"),
    ];
    for (replicas, expected) in cases {
        let told = format!("{replicas:?}");
        let (client, world) = SimulatedReplicas::client(replicas);
        let error = write(&client).await.expect_err(&told);
        assert_eq!(error.code().map(|code| code.as_str()), Some(expected), "{told}");
        assert!(world.elapsed() <= 20 * SECOND, "{told}: {:?}", world.elapsed());
        assert_eq!(keys(&world.arrived()).len(), 1, "{told}");
    }
}

/// The write is lost once, and every later copy is refused as not done: the refusals concern the later copies
/// alone.
#[tokio::test(start_paused = true)]
async fn a_lost_write_stays_of_unknown_outcome_after_later_refusals() {
    let (client, world) = SimulatedReplicas::client(vec![Does::LosesAnswers(1), Does::IsDead, Does::IsDead]);
    let writing = tokio::spawn(async move { write(&client).await });
    while world.arrived().is_empty() {
        tokio::task::yield_now().await;
    }
    world.set(0, Does::Refuses(503, "control-unavailable"));
    let error = writing.await.expect("no panic").expect_err("it was never answered");
    assert_eq!(error.code().map(|code| code.as_str()), Some("outcome-unknown"));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_answers_late_is_waited_for() {
    let (client, world) = SimulatedReplicas::client(vec![
        Does::Leads(7 * SECOND),
        Does::Follows(Some(0)),
        Does::Follows(Some(0)),
    ]);
    write(&client).await.expect("late");
    let to_leader = world.arrived().iter().filter(|arrived| arrived.replica == 0).count();
    assert_eq!(to_leader, 1, "while it is being asked it is not asked again");
}

#[tokio::test(start_paused = true)]
async fn reads_carry_no_key() {
    let (client, world) = SimulatedReplicas::client(vec![AT_ONCE]);
    read(&client).await.expect("read");
    client.query::<_, Value>("/v1/dry-run", &json!({})).await.expect("read");
    assert_eq!(keys(&world.arrived()), BTreeSet::from([None]));
}

//! Tests of wrong wall clocks: a replica that has one does not lead, moves no time, and is named.

use super::faults::{SimulatedServers, ask, create, keys};
use super::in_time;
use super::outcomes::proposal;
use crate::server::{Server, leader};
use axum::http::{Method, StatusCode};
use protocol::api::{Problem, Status, SubmitProposal};
use std::sync::Arc;
use std::time::Duration;

/// A month and an hour: a difference is shown in whole days, and time passes between two readings.
const MONTH_MS: i64 = 30 * 86_400_000 + 3_600_000;
/// Longer than any reading of a clock counts.
const FORGOTTEN: Duration = Duration::from_secs(11);

/// Submits a proposal that was made by a right clock; returns the code of its refusal.
async fn propose(server: &Arc<Server>, name: &str) -> Option<String> {
    let body = SubmitProposal { proposal: proposal(server, name), ballot: None };
    let (status, body) = ask(server, Method::POST, "/v1/proposals", Some(&body)).await;
    (status != StatusCode::OK).then(|| serde_json::from_slice::<Problem>(&body).unwrap().code)
}

async fn status(server: &Arc<Server>) -> Status {
    let (status, body) = ask::<()>(server, Method::GET, "/v1/status", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Waits until another replica leads than this one, and has announced itself.
async fn another_leads(world: &SimulatedServers, than: usize) -> usize {
    let changed = async {
        loop {
            let leads = world.lead().await;
            if leads != than {
                return leads;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    in_time(changed).await
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_clock_is_a_month_ahead_moves_no_time_and_hands_over() {
    let world = SimulatedServers::start(3);
    let wrong = world.lead().await;
    let server = &world.servers[wrong];
    // As after a boot: its clock is wrong, and it has not read the others' yet.
    world.clocks[wrong].step_wall(MONTH_MS);
    tokio::time::sleep(FORGOTTEN).await;
    assert_eq!(create(server, "app").await.0, StatusCode::OK, "it leads, and writes");
    let ahead = server.clocks.wall();
    assert!(
        server.cluster(scheduler::Cluster::now).plus(3_600_000).0 < ahead,
        "its clock alone counts nothing"
    );
    assert_eq!(propose(server, "first").await, None, "a proposal is not expired");

    world.check_clocks(&[0, 1, 2]);
    leader::round(server).await;
    let (refused, _) = ask::<()>(server, Method::GET, "/v1/status", None).await;
    assert_eq!(refused, StatusCode::MISDIRECTED_REQUEST, "it answers as no leader");
    let next = another_leads(&world, wrong).await;
    let leads = &world.servers[next];
    assert_eq!(propose(leads, "second").await, None);
    let named = status(leads).await;
    let finding = format!("the clock of control-{} is 30 days ahead", server.id);
    assert!(!named.healthy && named.findings[0].message.starts_with(&finding), "{:?}", named.findings);

    // Everything heals with the clock.
    world.clocks[wrong].step_wall(-MONTH_MS);
    world.check_clocks(&[0, 1, 2]);
    assert!(status(leads).await.healthy);
    assert_eq!(propose(leads, "third").await, None);
    assert_eq!(keys(leads).await, ["app"]);
    assert!(leads.cluster(scheduler::Cluster::now).plus(3_600_000).0 < ahead);
}

/// The clock of the only replica is believed, which shows the attack; and its time heals with it.
#[tokio::test(start_paused = true)]
async fn the_time_of_a_lone_replica_follows_its_clock_there_and_back() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    world.clocks[0].step_wall(MONTH_MS);
    assert_eq!(create(server, "app").await.0, StatusCode::OK);
    assert_eq!(
        propose(server, "early").await.as_deref(),
        Some("proposal-expired"),
        "nothing can be proposed"
    );
    world.clocks[0].step_wall(-MONTH_MS);
    assert_eq!(propose(server, "early").await.as_deref(), Some("proposal-expired"), "not yet");
    world.lead().await;
    assert_eq!(propose(server, "early").await, None, "the leader's next round sets the time back");
    assert!(status(server).await.healthy);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_far_behind_is_named_and_the_time_goes_on() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let (slow, server) = ((leads + 1) % 3, &world.servers[leads]);
    world.clocks[slow].step_wall(-400 * 86_400_000);
    let before = server.cluster(scheduler::Cluster::now);
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.check_clocks(&[0, 1, 2]);
    assert_eq!(create(server, "app").await.0, StatusCode::OK);
    let went = before.ms_until(server.cluster(scheduler::Cluster::now));
    assert!(went >= 60_000, "{went}");
    let findings = status(server).await.findings;
    let named = format!("the clock of control-{} is 400 days behind", world.servers[slow].id);
    assert!(findings[0].message.starts_with(&named), "{findings:?}");
    // The other one dies: the two that are left differ, neither is a majority, and the time stands still.
    tokio::time::sleep(FORGOTTEN).await;
    world.check_clocks(&[leads, slow]);
    let before = server.cluster(scheduler::Cluster::now);
    assert_eq!(create(server, "later").await.0, StatusCode::OK);
    assert_eq!(server.cluster(scheduler::Cluster::now), before);
    let findings = status(server).await.findings;
    assert!(findings[0].message.contains("no majority of them agrees"), "{findings:?}");
}

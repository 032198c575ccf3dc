//! Tests of writes with an idempotency key: applied once, with the same response from every replica.

use super::faults::{SimulatedServers, ask_with_key, deposed_unnoticed, key, keys};
use super::outcomes::{ballot, proposal};
use crate::server::Server;
use axum::http::{Method, StatusCode};
use protocol::api::{Problem, ProposalView, SubmitProposal};
use protocol::governance::Proposal;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

async fn post<B: Serialize>(server: &Arc<Server>, path: &str, body: &B, key: &str) -> (StatusCode, Vec<u8>) {
    ask_with_key(server, Method::POST, path, Some(body), Some(key)).await
}

async fn create(server: &Arc<Server>, name: &str, under: &str) -> (StatusCode, String) {
    let (status, body) = post(server, "/v1/access/grants", &key(server, name), under).await;
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    (status, problem.map(|problem| problem.code).unwrap_or_default())
}

async fn submit(server: &Arc<Server>, proposal: &Proposal, under: &str) -> (StatusCode, String) {
    let body = SubmitProposal { proposal: proposal.clone(), ballot: None };
    let (status, body) = post(server, "/v1/proposals", &body, under).await;
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    (status, problem.map(|problem| problem.code).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_repeated_key_gets_the_same_response_and_refuses_another_request() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let (app, other) = (proposal(server, "app"), proposal(server, "other"));
    let done = (StatusCode::OK, String::new());
    assert_eq!(submit(server, &app, "one").await, done);
    assert_eq!(submit(server, &app, "one").await, done);
    assert_eq!(submit(server, &app, "\"one\"").await, done, "as the draft writes it");
    let reused = (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused".to_string());
    assert_eq!(submit(server, &other, "one").await, reused);
    for unusable in ["", "two words", &"k".repeat(129)] {
        let refused = (StatusCode::BAD_REQUEST, "request-invalid".to_string());
        assert_eq!(submit(server, &other, unusable).await, refused);
    }
    let drafts = server.cluster(|cluster| cluster.drafts().keys().copied().collect::<Vec<_>>());
    assert_eq!(drafts, [app.id()]);
}

#[tokio::test(start_paused = true)]
async fn a_ballot_sent_again_under_its_key_gets_the_first_response() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let proposed = proposal(server, "late");
    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    let path = format!("/v1/proposals/{}/ballots", proposed.id());
    let vote = ballot(&proposed);
    for _ in 0..2 {
        let (status, answer) = post(server, "/v1/proposals", &body, "submit").await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
    }
    let mut answers = Vec::new();
    for _ in 0..2 {
        let (status, answer) = post(server, &path, &vote, "vote").await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
        answers.push(serde_json::from_slice::<ProposalView>(&answer).unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].certificate.is_some());
    let (status, _) = post(server, &path, &vote, "another").await;
    assert_ne!(status, StatusCode::OK, "without its key it is a second ballot");
}

/// The leader applies a write, its response is lost permanently, and another replica is elected. The same
/// write to the new leader, under the same key, gets the response that was lost.
#[tokio::test(start_paused = true)]
async fn a_write_sent_again_to_the_next_leader_is_applied_once() {
    let world = SimulatedServers::start(3);
    let first = world.lead().await;
    let follows = world.servers[(first + 1) % 3].clone();
    deposed_unnoticed(&follows).await;
    // Opens the session that the write will use.
    assert_eq!(create(&follows, "before", "zero").await.0, StatusCode::OK);
    world.group.network().lose_answers(follows.id, usize::MAX);
    let lost = create(&follows, "app", "once").await;
    assert_eq!(lost, (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown".into()));
    assert_eq!(keys(&world.servers[first]).await, ["app", "before"]);

    world.group.network().set_isolated(world.servers[first].id, true);
    let next = loop {
        match world.lead().await {
            leads if leads == first => tokio::time::sleep(Duration::from_secs(1)).await,
            leads => break leads,
        }
    };
    let server = &world.servers[next];
    assert_eq!(create(server, "app", "once").await, (StatusCode::OK, String::new()), "not `name-taken`");
    let created = server
        .cluster(|cluster| cluster.audit().last(1000).filter(|event| event.action == "issue-key").count());
    assert_eq!(created, 2, "one of each name");
}

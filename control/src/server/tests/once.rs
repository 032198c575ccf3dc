//! Tests of writes with an idempotency key: applied once, with the same response from every replica.

use super::faults::{SimulatedServers, ask_with_key, deposed_unnoticed, key, keys};
use super::outcomes::{ballot, proposal};
use crate::server::Server;
use axum::http::{Method, StatusCode};
use protocol::api::{CreateKey, Problem, ProposalView, SubmitProposal};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

async fn post<B: Serialize>(server: &Arc<Server>, path: &str, body: &B, key: &str) -> (StatusCode, Vec<u8>) {
    ask_with_key(server, Method::POST, path, Some(body), Some(key)).await
}

async fn create(server: &Arc<Server>, name: &str, under: &str) -> (StatusCode, String) {
    let (status, body) = post::<CreateKey>(server, "/v1/keys", &key(name), under).await;
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    (status, problem.map(|problem| problem.code).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn a_repeated_key_gets_the_same_response_and_refuses_another_request() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let done = (StatusCode::OK, String::new());
    assert_eq!(create(server, "app", "one").await, done);
    assert_eq!(create(server, "app", "one").await, done, "not `name-taken`");
    assert_eq!(create(server, "app", "\"one\"").await, done, "as the draft writes it");
    assert_eq!(create(server, "app", "two").await, (StatusCode::CONFLICT, "name-taken".into()));
    let reused = (StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused".to_string());
    assert_eq!(create(server, "other", "one").await, reused);
    for unusable in ["", "two words", &"k".repeat(129)] {
        assert_eq!(
            create(server, "other", unusable).await,
            (StatusCode::BAD_REQUEST, "request-invalid".into())
        );
    }
    assert_eq!(keys(server).await, ["app"]);
    let path = "/v1/keys/app";
    for _ in 0..2 {
        let (status, _) = ask_with_key::<()>(server, Method::DELETE, path, None, Some("three")).await;
        assert_eq!(status, StatusCode::OK, "not `key-not-found`");
    }
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
        .cluster(|cluster| cluster.audit().last(1000).filter(|event| event.action == "create-key").count());
    assert_eq!(created, 2, "one of each name");
}

//! Tests of a replica's console: sign-in by an access token, and pages on replicas that lead and that do not.

use super::circle::TOKEN;
use super::faults::{SimulatedServers, ask};
use super::outcomes::{ballot, proposal};
use crate::server::{Server, console_pages};
use axum::body::Body;
use axum::http::response::Parts;
use axum::http::{Method, Request, StatusCode};
use protocol::api::{ConsoleLink, SubmitProposal};
use std::sync::Arc;
use tower::ServiceExt as _;

async fn send(
    server: &Arc<Server>,
    method: Method,
    path: &str,
    cookie: &str,
    body: String,
) -> (Parts, String) {
    let host = console_pages::origins(server).address().trim_start_matches("http://").to_string();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("sec-fetch-site", "same-origin")
        .header("cookie", cookie)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(body));
    let answer = console_pages::router(server.clone()).oneshot(request.unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (head, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn link(server: &Arc<Server>) -> ConsoleLink {
    let (status, body) = ask::<()>(server, Method::POST, "/v1/console/links", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// Signs in with the token of the tests and returns the cookie.
async fn enter(server: &Arc<Server>) -> String {
    let link = link(server).await;
    let code = link.url.split_once("code=").unwrap().1;
    let (head, page) = send(server, Method::POST, "/console/enter", "", format!("code={code}")).await;
    assert_eq!(head.status, StatusCode::SEE_OTHER, "{page}");
    let cookie = head.headers["set-cookie"].to_str().unwrap();
    assert!(!cookie.contains(TOKEN) && cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    cookie.split(';').next().unwrap().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_token_opens_the_console_of_any_replica_for_reading() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let leader = &world.servers[leads];
    let proposed = proposal(leader, "late");
    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    assert_eq!(ask(leader, Method::POST, "/v1/proposals", Some(&body)).await.0, StatusCode::OK);
    for (index, server) in world.servers.iter().enumerate() {
        server.read_barrier().await.unwrap();
        assert!(link(server).await.url.starts_with(console_pages::origins(server).address()));
        let cookie = enter(server).await;
        let path = format!("/console/proposals/{}", proposed.id());
        let (head, page) = send(server, Method::GET, &path, &cookie, String::new()).await;
        assert_eq!(head.status, StatusCode::OK, "{page}");
        assert!(page.contains("0 of 1 signed") && page.contains("as honest as it is"), "{page}");
        let (_, page) = send(server, Method::GET, "/console", &cookie, String::new()).await;
        assert_eq!(page.contains("leads and knows what is ready"), index != leads, "{page}");
        assert!(!page.contains("No leader answers"), "{page}");
        // No other replica knows the session.
        let other = &world.servers[(index + 1) % 3];
        let (_, page) = send(other, Method::GET, "/console", &cookie, String::new()).await;
        assert!(page.contains("Sign in") && !page.contains("Overview"), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_shows_what_was_decided() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let proposed = proposal(server, "late");
    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    assert_eq!(ask(server, Method::POST, "/v1/proposals", Some(&body)).await.0, StatusCode::OK);
    let cast = format!("/v1/proposals/{}/ballots", proposed.id());
    assert_eq!(ask(server, Method::POST, &cast, Some(&ballot(&proposed))).await.0, StatusCode::OK);
    let cookie = enter(server).await;
    for (path, expected) in [
        (format!("/console/proposals/{}", proposed.id()), "quorum reached; the change is in force"),
        ("/console/history".into(), "signed by alice"),
        ("/console/history/1".into(), "Decision 1 of 1"),
        ("/console/nodes".into(), "late"),
        ("/console".into(), "replica 1 leads"),
    ] {
        let (head, page) = send(server, Method::GET, &path, &cookie, String::new()).await;
        assert_eq!(head.status, StatusCode::OK, "{path}: {page}");
        assert!(page.contains(expected), "{path} lacks `{expected}`: {page}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_the_pages_show_the_last_state_and_say_so() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let server = &world.servers[(leads + 1) % 3];
    server.read_barrier().await.unwrap();
    let cookie = enter(server).await;
    world.group.network().set_isolated(server.id, true);
    let (head, page) = send(server, Method::GET, "/console/members", &cookie, String::new()).await;
    assert_eq!(head.status, StatusCode::OK, "{page}");
    assert!(page.contains("No leader answers") && page.contains("alice"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn a_link_needs_a_token_that_reads() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let request = Request::builder().method(Method::POST).uri("/v1/console/links").body(Body::empty());
    let answer = crate::server::api::router(server.clone()).oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

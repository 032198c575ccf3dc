//! Tests of a replica's console: sign-in by an access token, and pages on replicas that lead and that do not.

use super::circle::{TOKEN, alice};
use super::faults::{SimulatedServers, ask};
use super::halts::{decide, listed};
use super::outcomes::{ballot, proposal};
use crate::server::comments::CommentSubmitter;
use crate::server::{Server, console_pages};
use crate::testing::SoftwarePasskey;
use axum::body::Body;
use axum::http::response::Parts;
use axum::http::{Method, Request, StatusCode};
use console::Visitor;
use protocol::PasskeyAssertion;
use protocol::api::{ConsoleLink, HistoryPage, ProposalView, SubmitProposal};
use protocol::comment::Comment;
use protocol::governance::Change;
use protocol::halt::HaltScope;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

async fn send(
    server: &Arc<Server>,
    method: Method,
    path: &str,
    cookie: &str,
    body: String,
) -> (Parts, String) {
    let kind = if body.starts_with('{') { "application/json" } else { "application/x-www-form-urlencoded" };
    let host = console_pages::origins(server).address().trim_start_matches("http://").to_string();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host)
        .header("sec-fetch-site", "same-origin")
        .header("cookie", cookie)
        .header("content-type", kind)
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
    enter_by(server, link.url.split_once("code=").unwrap().1).await
}

async fn enter_by(server: &Arc<Server>, code: &str) -> String {
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

/// One replica is left of three. A member halts there by passkey, without a leader and without a quorum.
#[tokio::test(start_paused = true)]
async fn a_member_halts_by_passkey_at_the_one_replica_that_is_left() {
    let mut world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let left = world.servers[(leads + 1) % 3].clone();
    let origin = console_pages::origins(&left).address().replace("127.0.0.1", "localhost");
    let phone = SoftwarePasskey::new(7);
    let change = Change::SetPasskeys { member: alice().0, passkeys: vec![phone.passkey()] };
    decide(&world.servers[leads].clone(), change).await;
    left.read_barrier().await.unwrap();
    let credential = phone.passkey().credential;
    let code = left.sign_in.create_link(Visitor::Member { member: alice().0, credential });
    let cookie = enter_by(&left, &code).await;
    let others: Vec<_> = world.servers.iter().filter(|server| server.id != left.id).map(|s| s.id).collect();
    others.into_iter().for_each(|id| world.group.crash(id));
    let (_, page) = send(&left, Method::GET, "/console/halt", &cookie, String::new()).await;
    assert!(page.contains("Halt with a passkey") && !page.contains("Halt now"), "{page}");
    let compose = async |scope: &str| {
        let body = format!("{{\"scope\":\"{scope}\",\"reason\":\"smoke\"}}");
        let (head, body) = send(&left, Method::POST, "/console/halt/compose", &cookie, body).await;
        assert_eq!(head.status, StatusCode::OK, "{body}");
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    };
    let deliver = async |halt: &serde_json::Value, assertion: &PasskeyAssertion| {
        let body = serde_json::json!({ "halt": halt, "assertion": assertion }).to_string();
        let (head, body) = send(&left, Method::POST, "/console/halt/passkey", &cookie, body).await;
        let code = serde_json::from_str::<serde_json::Value>(&body).unwrap()["code"].clone();
        (head.status, code.as_str().unwrap_or_default().to_string())
    };
    let (node, circle) = (compose("region:local").await, compose("circle").await);
    let challenge = hex::decode(node["challenge"].as_str().unwrap()).unwrap();
    let sound = phone.sign(&challenge, &origin, SoftwarePasskey::VERIFIED);
    let elsewhere = phone.sign(&challenge, "http://localhost:1", SoftwarePasskey::VERIFIED);
    let unverified = phone.sign(&challenge, &origin, SoftwarePasskey::PRESENT);
    let thief = SoftwarePasskey::new(8).sign(&challenge, &origin, SoftwarePasskey::VERIFIED);
    for (case, halt, assertion, expected) in [
        ("another origin", &node, &elsewhere, "passkey-origin"),
        ("an unverified user", &node, &unverified, "passkey-unverified"),
        ("another scope", &circle, &sound, "passkey-challenge"),
        ("another key", &node, &thief, "signature-invalid"),
    ] {
        let (status, code) = deliver(&halt["signed"], assertion).await;
        assert!(!status.is_success() && code == expected, "{case}: {status} {code}");
    }
    assert_eq!(listed(&left).await, [], "no attack has left a trace");
    // Positive control: the same assertion under its own halt, which every node verifies.
    assert_eq!(deliver(&node["signed"], &sound).await.0, StatusCode::OK);
    let taken = listed(&left).await;
    assert!(taken.len() == 1 && !taken[0].is_hybrid(), "{taken:?}");
    assert_eq!(taken[0].halt.scope, HaltScope::Region("local".into()));
    let (head, page) = send(&left, Method::GET, "/console/halts", &cookie, String::new()).await;
    assert_eq!(head.status, StatusCode::OK, "{page}");
    assert!(page.contains("alice, by passkey") && page.contains("No leader answers"), "{page}");
}

/// Signs in with a passkey, as a browser does, and returns the cookie.
async fn enter_by_passkey(server: &Arc<Server>, phone: &SoftwarePasskey) -> Result<String, String> {
    let origin = console_pages::origins(server).address().replace("127.0.0.1", "localhost");
    let (head, body) = send(server, Method::POST, "/console/passkeys/challenge", "", "{}".to_string()).await;
    assert_eq!(head.status, StatusCode::OK, "{body}");
    let made = serde_json::from_str::<serde_json::Value>(&body).unwrap();
    let challenge = hex::decode(made["challenge"].as_str().unwrap()).unwrap();
    let assertion = phone.sign(&challenge, &origin, SoftwarePasskey::VERIFIED);
    let entry = serde_json::json!({ "challenge": made["challenge"], "assertion": assertion }).to_string();
    let (head, body) = send(server, Method::POST, "/console/passkeys/enter", "", entry.clone()).await;
    if head.status != StatusCode::OK {
        return Err(body);
    }
    // Attack: the answer is sent a second time.
    let (again, refused) = send(server, Method::POST, "/console/passkeys/enter", "", entry).await;
    assert!(!again.status.is_success() && refused.contains("console-link-invalid"), "{refused}");
    let cookie = head.headers["set-cookie"].to_str().unwrap();
    Ok(cookie.split(';').next().unwrap().to_string())
}

/// Attack: the holder of a stolen phone reads on after its member has dropped the passkey.
#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_passkey_at_a_replica() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let phone = SoftwarePasskey::new(7);
    assert!(enter_by_passkey(&server, &phone).await.unwrap_err().contains("passkey-unknown"));
    let set = |passkeys| Change::SetPasskeys { member: alice().0, passkeys };
    decide(&server, set(vec![phone.passkey()])).await;
    let cookie = enter_by_passkey(&server, &phone).await.expect("the member's own");
    let (head, page) = send(&server, Method::GET, "/console/members", &cookie, String::new()).await;
    assert!(head.status == StatusCode::OK && page.contains("Signed in as"), "positive control: {page}");
    decide(&server, set(vec![])).await;
    let (head, page) = send(&server, Method::GET, "/console/members", &cookie, String::new()).await;
    assert_eq!(head.status, StatusCode::UNAUTHORIZED, "{page}");
    assert!(page.contains("console-signed-out") && !page.contains("Ed25519 key"), "{page}");
    assert!(enter_by_passkey(&server, &phone).await.unwrap_err().contains("passkey-unknown"));
}

/// Attack: a client without a session makes a replica ask the others for what was committed.
#[tokio::test(start_paused = true)]
async fn a_sign_in_asks_no_other_replica() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let phone = SoftwarePasskey::new(7);
    let change = Change::SetPasskeys { member: alice().0, passkeys: vec![phone.passkey()] };
    decide(&world.servers[leads].clone(), change).await;
    let alone = world.servers[(leads + 1) % 3].clone();
    alone.read_barrier().await.unwrap();
    world.group.network().set_isolated(alone.id, true);
    let began = tokio::time::Instant::now();
    for _ in 0..20 {
        let none = String::new();
        let (head, body) = send(&alone, Method::POST, "/console/passkeys/challenge", "", none.clone()).await;
        assert_eq!(head.status, StatusCode::OK, "{body}");
        send(&alone, Method::GET, "/console", "", none).await;
    }
    let cookie = enter_by_passkey(&alone, &phone).await.expect("the member's own");
    assert!(began.elapsed() < Duration::from_millis(1), "no barrier was waited for: {:?}", began.elapsed());
    // Positive control: a page of the session waits for the leader that does not answer, and says so.
    let (_, page) = send(&alone, Method::GET, "/console/members", &cookie, String::new()).await;
    assert!(began.elapsed() >= Duration::from_secs(1) && page.contains("No leader answers"), "{page}");
}

/// A question goes through the API to every reader; one that its member did not sign, or too many, do not.
#[tokio::test(start_paused = true)]
async fn questions_are_taken_by_the_api_and_shown_on_the_page() {
    let world = SimulatedServers::start(1);
    let server = world.servers[world.lead().await].clone();
    let proposed = proposal(&server, "late");
    let body = SubmitProposal { proposal: proposed.clone(), ballot: None };
    assert_eq!(ask(&server, Method::POST, "/v1/proposals", Some(&body)).await.0, StatusCode::OK);
    let path = format!("/v1/proposals/{}/comments", proposed.id());
    let signed = |text: &str| {
        let (member, secret) = alice();
        let (answers, issued_at) = (None, host::wall_clock());
        let comment = Comment { proposal: proposed.id(), member, answers, text: text.into(), issued_at };
        human_chain::sign_comment(secret, comment)
    };
    let mut forged = signed("why late?");
    forged.comment.text = "buy now".into();
    let (status, body) = ask(&server, Method::POST, &path, Some(&forged)).await;
    assert!(!status.is_success() && String::from_utf8_lossy(&body).contains("signature-invalid"));
    let elsewhere = "/v1/proposals/".to_string() + &"0".repeat(64) + "/comments";
    let (status, _) = ask(&server, Method::POST, &elsewhere, Some(&signed("why late?"))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "another proposal than that of the path");
    let (status, body) = ask(&server, Method::POST, &path, Some(&signed("why late?"))).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let view: ProposalView = serde_json::from_slice(&body).unwrap();
    assert_eq!(view.comments.len(), 1);
    let cookie = enter(&server).await;
    let page = format!("/console/proposals/{}", proposed.id());
    let (_, page) = send(&server, Method::GET, &page, &cookie, String::new()).await;
    assert!(page.contains("why late?") && !page.contains("buy now"), "{page}");
    // Attack: a token sends them as fast as it can.
    let token = CommentSubmitter::Token("flood".parse().unwrap());
    let taken = (0..1000).take_while(|_| server.comments.admit(&token).is_ok()).count();
    assert!((8..100).contains(&taken), "{taken}");
    assert!(
        server.comments.admit(&CommentSubmitter::Member(alice().0)).is_ok(),
        "others have their own limit"
    );
}

/// A client without a leader reads the history of any replica, and of the leader alone otherwise.
#[tokio::test(start_paused = true)]
async fn a_replica_without_a_leader_hands_out_the_history_when_it_is_asked_to() {
    let mut world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let left = world.servers[(leads + 1) % 3].clone();
    let change = Change::SetPasskeys { member: alice().0, passkeys: vec![SoftwarePasskey::new(7).passkey()] };
    decide(&world.servers[leads].clone(), change).await;
    left.read_barrier().await.unwrap();
    let others: Vec<_> = world.servers.iter().filter(|server| server.id != left.id).map(|s| s.id).collect();
    others.into_iter().for_each(|id| world.group.crash(id));
    let (status, body) = ask::<()>(&left, Method::GET, "/v1/history?after=0&any_replica=true", None).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let page: HistoryPage = serde_json::from_slice(&body).unwrap();
    assert_eq!((page.bundles.len(), page.head.size), (1, 1));
    // Positive control: without the word, only a leader answers, which is up to date.
    for path in ["/v1/history", "/v1/history?after=0", "/v1/history?any_replica=false"] {
        let (status, _) = ask::<()>(&left, Method::GET, path, None).await;
        assert!(!status.is_success(), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_needs_a_token_that_reads() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let request = Request::builder().method(Method::POST).uri("/v1/console/links").body(Body::empty());
    let answer = crate::server::api::router(server.clone()).oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

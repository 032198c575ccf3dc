//! Tests of access at the control API: a member's signature grants and revokes, and nothing else does.

use super::circle::{admission, alice, granted, other};
use super::faults::{SimulatedServers, ask, key, keys};
use super::halts::decide;
use crate::server::{Server, agents, api};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use human_chain::{MemberSecret, sign_revocation};
use overlay::{Identity, Peer};
use protocol::access::{
    ACCESS_VERSION, AccessRecord, AccessRequest, AccessRevocation, GrantedAccess, SignedGrant,
    SignedRevocation,
};
use protocol::api::{AuditEvent, Page, Problem};
use protocol::canonical;
use protocol::governance::{Change, TokenScope};
use protocol::limits::POLL_WAIT_MS_MAX;
use serde::Serialize;
use std::sync::Arc;
use tower::ServiceExt as _;

/// Sends a request with this access token, or without any, and returns the status and the code of a refusal.
async fn send<B: Serialize>(
    server: &Arc<Server>,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: Option<&B>,
) -> (StatusCode, String) {
    let body = body.map_or_else(Body::empty, |body| Body::from(serde_json::to_vec(body).unwrap()));
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = api::router(server.clone()).oneshot(request.body(body).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let problem: Option<Problem> = serde_json::from_slice(&body).ok();
    (head.status, problem.map(|problem| problem.code).unwrap_or_default())
}

fn revoked(signed: &SignedGrant, secret: &MemberSecret) -> SignedRevocation {
    let (grant, member, issued_at) = (signed.grant.clone(), alice().0, host::wall_clock());
    sign_revocation(secret, AccessRevocation { version: ACCESS_VERSION, grant, member, issued_at })
}

fn ok() -> (StatusCode, String) {
    (StatusCode::OK, String::new())
}

/// The first token of a new circle comes from a member's signature alone.
#[tokio::test(start_paused = true)]
async fn a_signed_grant_needs_no_token_and_its_token_is_named_in_the_events() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let access = GrantedAccess::Token { scopes: [TokenScope::Read].into() };
    let bob = granted(&server.genesis, "bob", "text of bob", access);
    let grants = "/v1/access/grants";
    assert_eq!(
        send::<()>(server, Method::GET, grants, Some("text of bob"), None).await.0,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(send(server, Method::POST, grants, None, Some(&bob)).await, ok());
    assert_eq!(send(server, Method::POST, grants, None, Some(&bob)).await, ok(), "the same again");
    assert_eq!(send::<()>(server, Method::GET, grants, Some("text of bob"), None).await, ok());
    let denied = send::<()>(server, Method::POST, "/v1/services/chat/scale", Some("text of bob"), None).await;
    assert_eq!(denied, (StatusCode::FORBIDDEN, "token-scope-missing".into()));
    assert_eq!(send::<()>(server, Method::GET, "/v1/status", Some("stolen"), None).await.1, "token-unknown");
    let (_, body) = ask::<()>(server, Method::GET, "/v1/events", None).await;
    let events: Page<AuditEvent> = serde_json::from_slice(&body).unwrap();
    let of_bob: Vec<_> = events.items.iter().filter(|event| event.subject == "token/bob").collect();
    assert_eq!(of_bob.len(), 1);
    assert_eq!((of_bob[0].actor.as_str(), of_bob[0].action.as_str()), ("member/alice", "issue-token"));
}

/// Attack: an unauthenticated client grants itself access, alters a grant, or revokes that of another.
#[tokio::test(start_paused = true)]
async fn what_no_member_signed_is_refused() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let sound = key(server, "app");
    let mut altered = sound.clone();
    altered.grant.secret = protocol::Digest::of(b"of a thief");
    let mut longer = sound.clone();
    longer.grant.expires_at = longer.grant.expires_at.plus(1000);
    for (attack, status, code) in [
        (altered, StatusCode::BAD_REQUEST, "signature-invalid"),
        (longer, StatusCode::FORBIDDEN, "grant-outside-envelope"),
    ] {
        let refused = send(server, Method::POST, "/v1/access/grants", None, Some(&attack)).await;
        assert_eq!(refused, (status, code.to_string()));
    }
    assert!(keys(server).await.is_empty());
    let outsider = MemberSecret::generate(&[77; 64]);
    assert_ne!(outsider.public().ed25519, other(1).public_key());
    assert_eq!(send(server, Method::POST, "/v1/access/grants", None, Some(&sound)).await, ok());
    let path = "/v1/access/revocations";
    let forged = send(server, Method::POST, path, None, Some(&revoked(&sound, &outsider))).await;
    assert_eq!(forged, (StatusCode::BAD_REQUEST, "signature-invalid".into()));
    assert_eq!(keys(server).await, ["app"]);
    // Positive control: the member's own signature revokes it.
    assert_eq!(send(server, Method::POST, path, None, Some(&revoked(&sound, alice().1))).await, ok());
    assert!(keys(server).await.is_empty());
    let again = send(server, Method::POST, "/v1/access/grants", None, Some(&sound)).await;
    assert_eq!(again, (StatusCode::UNAUTHORIZED, "grant-revoked".into()));
    let unknown =
        send(server, Method::POST, path, None, Some(&revoked(&key(server, "never"), alice().1))).await;
    assert_eq!(unknown, (StatusCode::NOT_FOUND, "grant-not-found".into()));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_opens_nothing() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let access = GrantedAccess::Token { scopes: [TokenScope::Read].into() };
    let bob = granted(&server.genesis, "bob", "text of bob", access);
    assert_eq!(send(server, Method::POST, "/v1/access/grants", None, Some(&bob)).await, ok());
    let status = "/v1/status";
    assert_eq!(send::<()>(server, Method::GET, status, Some("text of bob"), None).await, ok(), "control");
    let revocation = revoked(&bob, alice().1);
    assert_eq!(send(server, Method::POST, "/v1/access/revocations", None, Some(&revocation)).await, ok());
    let refused = send::<()>(server, Method::GET, status, Some("text of bob"), None).await;
    assert_eq!(refused, (StatusCode::UNAUTHORIZED, "grant-revoked".into()));
}

/// Agents ask every replica; one that does not lead answers as well.
#[tokio::test(start_paused = true)]
async fn every_replica_hands_out_grants_and_revocations() {
    let world = SimulatedServers::start(3);
    let leads = world.lead().await;
    let (leader, follower) = (&world.servers[leads], &world.servers[(leads + 1) % 3]);
    let app = key(leader, "app");
    assert_eq!(send(leader, Method::POST, "/v1/access/grants", None, Some(&app)).await, ok());
    follower.read_barrier().await.unwrap();
    let first = follower.access_after(AccessRequest { after: 0, wait_ms: 0 }).await;
    assert!(first.records.contains(&AccessRecord::Grant(app.clone())), "{first:?}");
    let revocation = revoked(&app, alice().1);
    let waiting = follower.access_after(AccessRequest { after: first.last, wait_ms: u32::MAX });
    let revoking = send(leader, Method::POST, "/v1/access/revocations", None, Some(&revocation));
    let (news, outcome) = tokio::join!(waiting, revoking);
    assert_eq!((news.records, outcome), (vec![AccessRecord::Revocation(revocation)], ok()));
    let nothing = follower.access_after(AccessRequest { after: news.last, wait_ms: u32::MAX }).await;
    assert_eq!((nothing.last, nothing.records), (news.last, vec![]));
}

/// Asks for grants as this node, over its own connection; returns the status.
async fn asked_by(server: &Arc<Server>, node: &Identity, request: AccessRequest) -> StatusCode {
    let body = Body::from(canonical::to_bytes(&request));
    let mut request = Request::post("/agent/v1/access").body(body).unwrap();
    request.extensions_mut().insert(Peer(node.public_key()));
    agents::router(server.clone()).oneshot(request).await.unwrap().status()
}

/// The attack: a node sends a request for grants, which is held, and the circle removes the node.
#[tokio::test(start_paused = true)]
async fn attack_a_request_that_is_held_brings_no_grant_to_a_removed_node() {
    for (removed, expected) in [(true, StatusCode::FORBIDDEN), (false, StatusCode::OK)] {
        let world = SimulatedServers::start(1);
        let server = &world.servers[world.lead().await];
        let node = other(1);
        decide(server, Change::AdmitNode(Box::new(admission("late", &node)))).await;
        let last = server.access_after(AccessRequest { after: 0, wait_ms: 0 }).await.last;
        let asking = asked_by(server, &node, AccessRequest { after: last, wait_ms: POLL_WAIT_MS_MAX });
        let granting = async {
            if removed {
                decide(server, Change::RemoveNode { node: "late".parse().unwrap() }).await;
            }
            send(server, Method::POST, "/v1/access/grants", None, Some(&key(server, "app"))).await
        };
        let (status, granted) = tokio::join!(asking, granting);
        assert_eq!((status, granted), (expected, ok()), "removed: {removed}");
    }
}

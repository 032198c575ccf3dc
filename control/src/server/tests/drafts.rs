//! Tests of drafts over HTTP: deployments by any client, signed proposals beside them, and withdrawals.

use super::circle::{TOKEN, alice};
use super::faults::{SimulatedServers, ask};
use super::outcomes::{ballot, proposal};
use crate::server::Server;
use crate::testing::{manifest, model_record};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use human_chain::{MemberSecret, sign_withdrawal};
use protocol::api::{
    DeploymentDraft, Page, Problem, ProposalState, ProposalView, SubmitProposal, WithdrawProposal,
};
use protocol::governance::{Proposal, SignedBallot, Withdrawal};
use protocol::limits::MANIFEST_BYTES_MAX;
use scheduler::limits::DRAFTS_PER_TOKEN_MAX;
use std::sync::Arc;
use tower::ServiceExt;

/// Sends a manifest as a client without any code of this project does.
async fn deploy(
    server: &Arc<Server>,
    query: &str,
    kind: &str,
    body: &str,
) -> Result<DeploymentDraft, String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("/v1/deployments{query}"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", kind)
        .body(Body::from(body.to_string()));
    let answer = crate::server::api::router(server.clone()).oneshot(request.unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    match head.status {
        StatusCode::OK => Ok(serde_json::from_slice(&body).unwrap()),
        _ => {
            let problem: Problem = serde_json::from_slice(&body).unwrap();
            Err(format!("{} at {}", problem.code, problem.at.unwrap_or_default()))
        }
    }
}

fn toml() -> String {
    crate::cli::service_template(&"mine".parse().unwrap(), &model_record("mine", "bert"), 1, 3)
}

async fn submit(
    server: &Arc<Server>,
    proposal: &Proposal,
    ballot: Option<SignedBallot>,
) -> Result<ProposalView, String> {
    let body = SubmitProposal { proposal: proposal.clone(), ballot };
    let (status, body) = ask(server, Method::POST, "/v1/proposals", Some(&body)).await;
    match status {
        StatusCode::OK => Ok(serde_json::from_slice(&body).unwrap()),
        _ => Err(serde_json::from_slice::<Problem>(&body).unwrap().code),
    }
}

/// Withdraws by a member's signature, or as the token; returns the code of a refusal.
async fn withdraw(
    server: &Arc<Server>,
    proposal: &Proposal,
    by: Option<(&MemberSecret, bool)>,
) -> Result<(), (u16, String)> {
    let sign = |(secret, draft): (&MemberSecret, bool)| {
        let withdrawal = Withdrawal { proposal: proposal.id(), draft, member: alice().0 };
        sign_withdrawal(secret, withdrawal)
    };
    let body = WithdrawProposal { withdrawal: by.map(sign) };
    let path = format!("/v1/proposals/{}/withdrawal", proposal.id());
    let (status, body) = ask(server, Method::POST, &path, Some(&body)).await;
    match status {
        StatusCode::OK => Ok(()),
        _ => Err((status.as_u16(), serde_json::from_slice::<Problem>(&body).unwrap().code)),
    }
}

async fn listed(server: &Arc<Server>) -> Vec<(ProposalState, String)> {
    let (_, body) = ask::<()>(server, Method::GET, "/v1/proposals", None).await;
    let page: Page<ProposalView> = serde_json::from_slice(&body).unwrap();
    page.items.into_iter().map(|view| (view.state, view.proposal.reason)).collect()
}

#[tokio::test(start_paused = true)]
async fn any_client_drafts_a_deployment_and_a_member_proposes_it() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let tried = deploy(server, "?dry_run=true", "application/toml", &toml()).await.expect("a dry run");
    assert_eq!((tried.draft, tried.dry_run.desired), (None, 1));
    assert!(tried.dry_run.needs.contains("must approve"), "{:?}", tried.dry_run);
    assert!(listed(server).await.is_empty(), "a dry run drafts nothing");
    let json = serde_json::to_string(&manifest("bert")).unwrap();
    let kind = "application/json; charset=utf-8";
    let mut drafted = Vec::new();
    for (query, kind, body, reason) in [
        ("", "application/toml", toml(), "deploy mine"),
        ("?reason=support%20desk", kind, json, "support desk"),
    ] {
        let answer = deploy(server, query, kind, &body).await.expect("drafted");
        let draft = answer.draft.expect("a draft");
        assert_eq!((draft.state, draft.proposal.reason.as_str()), (ProposalState::Draft, reason));
        assert!(
            draft.drafted_by.as_ref().is_some_and(|maker| maker.starts_with("token/"))
                && draft.proposer.is_none()
        );
        assert_eq!(draft.id, draft.proposal.id());
        drafted.push(draft.proposal);
    }
    assert_eq!(drafted[0].change, drafted[1].change, "both forms say the same");
    assert_eq!(listed(server).await.len(), 2);
    let cast = format!("/v1/proposals/{}/ballots", drafted[0].id());
    let (status, body) = ask(server, Method::POST, &cast, Some(&ballot(&drafted[0]))).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let view: ProposalView = serde_json::from_slice(&body).unwrap();
    assert_eq!((view.state, view.proposer), (ProposalState::Approved, Some(alice().0)));
    assert_eq!(listed(server).await, [(ProposalState::Approved, "deploy mine".into())], "the other is stale");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_cannot_be_drafted_is_refused_by_code() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let large = "#".repeat(MANIFEST_BYTES_MAX + 1);
    let larger = " ".repeat(6 * MANIFEST_BYTES_MAX + 1);
    let costly = |texts: usize| format!("[{}\"\"]", "\"\",".repeat(texts));
    let reversed = toml().replacen("\nmin = 1 ", "\nmin = 9 ", 1);
    let unknown = toml().replacen("kind = \"service\"", "kind = \"service\"\nunknown = 1", 1);
    for (query, kind, body, expected) in [
        ("", "", toml().as_str(), "request-invalid at header Content-Type"),
        ("", "text/plain", &toml(), "request-invalid at header Content-Type"),
        ("?dry=1", "application/toml", &toml(), "request-invalid at query"),
        ("", "application/toml", "kind", "manifest-invalid at body 1:"),
        ("", "application/toml", &unknown, "manifest-unknown-field at body 3:"),
        ("", "application/toml", &reversed, "manifest-invalid at body"),
        ("", "application/json", "{", "manifest-invalid at body"),
        // Attack: a list of texts, each of three bytes here and 24 in memory. Fewer of them are read.
        ("", "application/json", &costly(100_000), "request-invalid at body"),
        ("", "application/json", &costly(1_000), "manifest-invalid at body"),
        ("", "application/toml", &large, "request-too-large at body"),
        ("", "application/json", &larger, "request-too-large at body"),
    ] {
        let refused = deploy(server, query, kind, body).await.expect_err("refused");
        assert!(refused.starts_with(expected), "{kind}: expected {expected}, found {refused}");
    }
    assert!(listed(server).await.is_empty());
}

/// Attack: a leaked token with the scope to propose fills what it can. The member proposes through the same
/// token all the same.
#[tokio::test(start_paused = true)]
async fn attack_a_leaked_token_keeps_no_member_from_proposing() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let mut refused = 0;
    for number in 0..DRAFTS_PER_TOKEN_MAX + 4 {
        let spam = proposal(server, &format!("spam-{number}"));
        refused += usize::from(submit(server, &spam, None).await == Err("limit-reached".into()));
    }
    assert_eq!(refused, 4);
    let wanted = proposal(server, "wanted");
    // Control: without a member's approval it is one draft too many.
    assert_eq!(submit(server, &wanted, None).await, Err("limit-reached".into()));
    assert_eq!(deploy(server, "", "application/toml", &toml()).await, Err("limit-reached at ".into()));
    let other = ballot(&proposal(server, "other"));
    assert_eq!(submit(server, &wanted, Some(other)).await, Err("ballot-mismatch".into()));
    let view = submit(server, &wanted, Some(ballot(&wanted))).await.expect("proposed");
    assert_eq!((view.state, view.proposer), (ProposalState::Approved, Some(alice().0)));
}

#[tokio::test(start_paused = true)]
async fn a_draft_is_withdrawn_by_its_token_or_by_a_member() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let (first, second) = (proposal(server, "first"), proposal(server, "second"));
    for draft in [&first, &second] {
        assert!(submit(server, draft, None).await.is_ok());
    }
    let (_, own) = alice();
    let thief = MemberSecret::generate(&[66; 64]);
    let forged = withdraw(server, &second, Some((&thief, true))).await;
    assert_eq!(forged, Err((400, "signature-invalid".into())));
    let as_proposal = withdraw(server, &second, Some((own, false))).await;
    assert_eq!(as_proposal, Err((403, "withdrawal-refused".into())));
    assert_eq!(withdraw(server, &first, None).await, Ok(()));
    assert_eq!(withdraw(server, &second, Some((own, true))).await, Ok(()));
    assert!(listed(server).await.is_empty());
    assert_eq!(withdraw(server, &second, None).await, Err((404, "proposal-not-found".into())));
}

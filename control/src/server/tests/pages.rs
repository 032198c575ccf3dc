//! Tests of the lists that are read in pages, against a replica with simulated log and time.

use super::circle::{self, alice};
use super::faults::{SimulatedServers, ask};
use crate::server::Server;
use axum::http::{Method, StatusCode};
use host::wall_clock;
use protocol::api::{HistoryPage, Page, Problem, ProposalView};
use protocol::governance::{Change, Choice, Proposal};
use protocol::model::{KeyWrap, ModelRecord, Recipient};
use protocol::{Digest, ModelRoot, ProposalId};
use scheduler::{Action, Actor, Reply};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;

async fn get<T: DeserializeOwned>(server: &Arc<Server>, path: &str) -> T {
    let (status, body) = ask::<()>(server, Method::GET, path, None).await;
    assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

async fn refused(server: &Arc<Server>, path: &str) -> (StatusCode, String) {
    let (status, body) = ask::<()>(server, Method::GET, path, None).await;
    let problem: Problem = serde_json::from_slice(&body).unwrap();
    (status, problem.code)
}

/// Proposes that the node with this number join.
async fn propose(server: &Arc<Server>, number: u16) -> Proposal {
    let node = circle::admission(&format!("node-{number}"), &circle::other(number));
    let (change, now) = (Change::AdmitNode(Box::new(node)), wall_clock());
    let nonce = Digest::of(&number.to_le_bytes());
    let proposal = server.cluster(|cluster| {
        let state = cluster.circle_state().unwrap();
        human_chain::propose(state, change, "test".into(), now, now.plus(3_600_000), nonce).unwrap()
    });
    must(server, Action::SubmitProposal(Box::new(proposal.clone()))).await;
    proposal
}

/// Lets the circle admit the node with this number.
async fn admit(server: &Arc<Server>, number: u16) {
    let proposal = propose(server, number).await;
    let (member, secret) = alice();
    let ballot =
        human_chain::vote(secret, member, proposal.history, &proposal, Choice::Approve, wall_clock());
    must(server, Action::CastBallot(Box::new(ballot))).await;
}

async fn must(server: &Arc<Server>, action: Action) {
    let reply = server.command(Actor::Scheduler, action).await.unwrap();
    assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
}

/// Reads all pages of a list, with `size` items each; `change` runs between the first two.
async fn pages<T: DeserializeOwned>(
    server: &Arc<Server>,
    path: &str,
    size: usize,
    change: impl AsyncFnOnce(),
) -> Vec<Vec<T>> {
    let (mut pages, mut change) = (Vec::new(), Some(change));
    let mut token = String::new();
    loop {
        let page: Page<T> = get(server, &format!("{path}?page_size={size}{token}")).await;
        pages.push(page.items);
        match page.next_page_token {
            Some(next) => token = format!("&page_token={next}"),
            None => return pages,
        }
        if let Some(change) = change.take() {
            change().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_is_read_in_pages_that_continue_each_other_while_it_grows() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    for number in 0..5 {
        admit(server, number).await;
    }
    let first: HistoryPage = get(server, "/v1/history?page_size=2").await;
    assert_eq!(first.genesis.as_ref(), Some(&server.genesis));
    assert_eq!(first.bundles.len(), 2);
    admit(server, 5).await;
    let mut bundles = first.bundles;
    let mut next = first.next_page_token;
    while let Some(token) = next {
        let page: HistoryPage = get(server, &format!("/v1/history?page_size=2&page_token={token}")).await;
        assert!(page.genesis.is_none(), "the first page alone has it");
        bundles.extend(page.bundles);
        next = page.next_page_token;
    }
    assert_eq!(bundles, server.cluster(|cluster| cluster.governance_chain().to_vec()));
    assert_eq!(bundles.len(), 6);
    let whole: HistoryPage = get(server, "/v1/history").await;
    assert_eq!((whole.bundles, whole.next_page_token), (bundles, None));
}

/// A client that verified some decisions gets those after them, and the head of them all.
#[tokio::test(start_paused = true)]
async fn the_history_is_read_after_what_was_verified() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    for number in 0..3 {
        admit(server, number).await;
    }
    let (chain, head) = server
        .cluster(|cluster| Some((cluster.governance_chain().to_vec(), cluster.circle_state()?.head())))
        .unwrap();
    for (after, expected) in [(0, &chain[..]), (2, &chain[2..]), (3, &[]), (9, &[]), (i64::MAX as u64, &[])] {
        let page: HistoryPage = get(server, &format!("/v1/history?after={after}")).await;
        assert_eq!(page.bundles, expected, "{after}");
        assert!(page.genesis.is_none() && page.head == head && page.next_page_token.is_none());
    }
    let page: HistoryPage = get(server, "/v1/history?after=1&page_size=1").await;
    assert_eq!(page.bundles, chain[1..2]);
    let token = page.next_page_token.unwrap();
    let rest: HistoryPage = get(server, &format!("/v1/history?page_token={token}")).await;
    assert_eq!((rest.bundles, rest.head), (chain[2..].to_vec(), head));
    let too_large = format!("after={}", i64::MAX as u64 + 1);
    for query in [format!("after=1&page_token={token}"), "after=-1".into(), "after=x".into(), too_large] {
        let found = refused(server, &format!("/v1/history?{query}")).await;
        assert_eq!(found, (StatusCode::BAD_REQUEST, "request-invalid".into()), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_proposal_that_is_decided_between_two_pages_is_read_once() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let mut ids = BTreeSet::new();
    for number in 0..5 {
        ids.insert(propose(server, number).await.id());
    }
    let approve_all = async || {
        let (member, secret) = alice();
        let open: Vec<Proposal> =
            server.cluster(|cluster| cluster.drafts().values().map(|draft| draft.proposal.clone()).collect());
        let first = open.first().unwrap();
        let ballot = human_chain::vote(secret, member, first.history, first, Choice::Approve, wall_clock());
        must(server, Action::CastBallot(Box::new(ballot))).await;
    };
    let pages: Vec<Vec<ProposalView>> = pages(server, "/v1/proposals", 2, approve_all).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let read: Vec<ProposalId> = pages.concat().iter().map(|view| view.id).collect();
    assert_eq!(read, ids.into_iter().collect::<Vec<_>>(), "by id, each once");
}

#[tokio::test(start_paused = true)]
async fn models_are_read_by_root_in_pages() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    let mut roots = BTreeSet::new();
    for name in ["a", "b", "c", "d", "e"] {
        let root = ModelRoot(Digest::of(name.as_bytes()));
        let record = ModelRecord {
            root,
            erasure: protocol::model::ErasureCode { data: 1, parity: 0 },
            stores: vec![protocol::model::StoreReference {
                url: "file:///s".into(),
                failure_domain: "d".into(),
            }],
            ..crate::testing::model_record(name, "bert")
        };
        let wrap = KeyWrap {
            root,
            recipient: Recipient::Member(alice().0),
            ephemeral: protocol::PublicKey([9; 32]),
            encapsulated: protocol::keys::ByteString(vec![1; 1088]),
            sealed: protocol::keys::ByteString(vec![2; 48]),
        };
        let (maker, secret) = alice();
        let circle = server.cluster(|cluster| cluster.circle_id()).unwrap();
        let signed = human_chain::sign_wrap(secret, maker, circle, &secret.public().encryption, wrap);
        must(server, Action::RegisterModel { record: Box::new(record), wraps: vec![signed] }).await;
        roots.insert(root);
    }
    let pages: Vec<Vec<ModelRecord>> = pages(server, "/v1/models", 3, async || {}).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    let read: Vec<ModelRoot> = pages.concat().iter().map(|record| record.root).collect();
    assert_eq!(read, roots.into_iter().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_page_token_of_another_list_or_of_none_is_refused_by_code() {
    let world = SimulatedServers::start(1);
    let server = &world.servers[world.lead().await];
    for number in 0..3 {
        admit(server, number).await;
    }
    let page: HistoryPage = get(server, "/v1/history?page_size=1").await;
    let token = page.next_page_token.unwrap();
    for path in ["/v1/history", "/v1/proposals", "/v1/models"] {
        for token in ["", "zz", "00", &token] {
            if path == "/v1/history" && token.len() > 2 {
                continue;
            }
            let found = refused(server, &format!("{path}?page_token={token}")).await;
            assert_eq!(found, (StatusCode::BAD_REQUEST, "page-token-invalid".into()), "{path} {token}");
        }
        let found = refused(server, &format!("{path}?page_size=-1")).await;
        assert_eq!(found, (StatusCode::BAD_REQUEST, "request-invalid".into()));
        let found = refused(server, &format!("{path}?limit=1")).await;
        assert_eq!(found, (StatusCode::BAD_REQUEST, "request-invalid".into()));
    }
}

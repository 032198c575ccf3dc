//! Tests of reading against fake controls, honest and hostile.

use super::*;
use crate::client::{ClientError, ControlClient};
use crate::policy::simple_policy;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use human_chain::{MemberSecret, certify, propose, sign_genesis, verify, vote};
use overlay::Identity;
use protocol::api::Page;
use protocol::governance::*;
use protocol::{Digest, MemberId, Millis, NodeId, ReplicaId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const NOW: Millis = Millis(1_800_000_000_000);
/// Number of decisions.
const DECISIONS: usize = 7;

/// Answer to a page's token, and the number of pages asked for.
struct FakeControl {
    page: fn(&History, &str) -> HistoryPage,
    history: History,
    asked: u32,
}

type FakeState = State<Arc<Mutex<FakeControl>>>;

fn node() -> NodeAdmission {
    let identity = Identity::from_seed(&[8; 32]);
    let id = NodeId(identity.public_key());
    let encryption = MemberSecret::generate(&[8; 64]).public().encryption;
    let mut node = NodeAdmission { id, encryption, ..crate::testing::admission("first") };
    node.proof = identity.sign(NODE_KEYS_DOMAIN, &node.key_claim());
    node
}

/// Founds a circle of one member that admits as many nodes.
fn circle() -> History {
    let (member, secret) = ("alice".parse::<MemberId>().expect("a name"), MemberSecret::generate(&[9; 64]));
    let members = vec![Member { id: member.clone(), keys: secret.public() }];
    let control = ControlReplica {
        id: ReplicaId(1),
        key: Identity::from_seed(&[7; 32]).public_key(),
        address: "127.0.0.1:1".into(),
        api: "http://127.0.0.1:1".into(),
    };
    let genesis = Genesis {
        name: "pages".into(),
        founded_at: NOW,
        policy: simple_policy(&members, 1),
        members,
        control: vec![control],
        nodes: vec![node()],
        tokens: vec![],
    };
    let genesis = sign_genesis(genesis, &[(member.clone(), &secret)]);
    let mut state = CircleState::found(&genesis, None).expect("a circle");
    let mut bundles = Vec::new();
    for number in 0..DECISIONS {
        let mut node = node();
        node.labels.insert("number".into(), number.to_string());
        let (change, nonce) = (Change::AdmitNode(Box::new(node)), Digest::of(&[number as u8]));
        let proposal =
            propose(&state, change, "test".into(), NOW, NOW.plus(3_600_000), nonce).expect("valid");
        let ballot = vote(&secret, member.clone(), state.head(), &proposal, Choice::Approve, NOW);
        let certificate = certify(&state, &proposal, &[ballot]).expect("a quorum");
        state.advance(verify(&state, &certificate, NOW).expect("valid")).expect("next");
        bundles.push(Bundle { version: BUNDLE_VERSION, certificate, log_evidence: None });
    }
    History { genesis, bundles }
}

/// Returns the page of two decisions behind this token, which is their number.
fn honest(history: &History, token: &str) -> HistoryPage {
    let after: usize = token.parse().unwrap_or(0);
    let end = (after + 2).min(history.bundles.len());
    HistoryPage {
        genesis: token.is_empty().then(|| history.genesis.clone()),
        bundles: history.bundles[after..end].to_vec(),
        next_page_token: (end < history.bundles.len()).then(|| end.to_string()),
    }
}

async fn serve(page: fn(&History, &str) -> HistoryPage) -> (ControlClient, History, Arc<Mutex<FakeControl>>) {
    let history = circle();
    let fake = Arc::new(Mutex::new(FakeControl { page, history: history.clone(), asked: 0 }));
    let answer = |State(state): FakeState, Query(query): Query<BTreeMap<String, String>>| async move {
        let mut fake = state.lock().expect("no panic");
        fake.asked += 1;
        Json((fake.page)(&fake.history, query.get("page_token").map_or("", String::as_str)))
    };
    let forever = || async { Json(Page { items: vec![1_u32], next_page_token: Some("again".into()) }) };
    let nothing = || async { Json(Page::<u32> { items: vec![], next_page_token: Some("again".into()) }) };
    let numbers = |Query(query): Query<BTreeMap<String, String>>| async move {
        let after: u32 = query.get("page_token").map_or(0, |token| token.parse().expect("a number"));
        let next = (after < 8).then(|| (after + 4).to_string());
        Json(Page { items: (after..after + 4).collect(), next_page_token: next })
    };
    let injected =
        || async { Json(Page { items: vec![1_u32], next_page_token: Some("a&page_size=0".into()) }) };
    let router = Router::new()
        .route("/v1/history", get(answer))
        .route("/numbers", get(numbers))
        .route("/forever", get(forever))
        .route("/nothing", get(nothing))
        .route("/injected", get(injected))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = ControlClient::new(vec![format!("http://{address}")], "token".into(), None);
    (client.expect("a client"), history, fake)
}

#[tokio::test]
async fn a_history_is_read_whole_from_its_pages() {
    let (client, expected, fake) = serve(honest).await;
    let id = human_chain::circle_id(&expected.genesis.genesis);
    let (history, state) = read_history(&client, id).await.expect("it verifies");
    assert_eq!(history, expected);
    assert_eq!(state.length(), DECISIONS as u64);
    assert_eq!(fake.lock().expect("no panic").asked, 4);
}

/// Pages without end, without decisions, or out of order end the reading at once.
#[tokio::test]
async fn a_server_that_pages_without_end_is_given_up_on() {
    type Attack = (fn(&History, &str) -> HistoryPage, &'static str, u32);
    let attacks: [Attack; 5] = [
        // The first page again and again: its decisions are stale the second time.
        (
            |history, token| HistoryPage {
                bundles: history.bundles[..1].to_vec(),
                next_page_token: Some("1".into()),
                ..honest(history, token)
            },
            "does not verify",
            2,
        ),
        (
            |history, token| HistoryPage {
                bundles: vec![],
                next_page_token: Some("1".into()),
                ..honest(history, token)
            },
            "the list does not end",
            1,
        ),
        // A page left out.
        (
            |history, token| HistoryPage { next_page_token: Some("4".into()), ..honest(history, token) },
            "does not verify",
            2,
        ),
        (|history, _| HistoryPage { genesis: None, ..honest(history, "") }, "has no genesis", 1),
        (
            |history, token| HistoryPage { next_page_token: Some("1 2".into()), ..honest(history, token) },
            "the page token is not one",
            1,
        ),
    ];
    for (page, expected, asked) in attacks {
        let (client, history, fake) = serve(page).await;
        let id = human_chain::circle_id(&history.genesis.genesis);
        let error = read_history(&client, id).await.expect_err(expected);
        let text = format!("{error:#}");
        assert!(text.contains(expected), "{text}");
        assert_eq!(fake.lock().expect("no panic").asked, asked, "{expected}");
    }
}

const ENDLESS: &str = "the list does not end";

#[tokio::test]
async fn a_list_is_read_whole_or_refused_when_it_does_not_end() {
    let (client, ..) = serve(honest).await;
    assert_eq!(client.list::<u32>("/numbers").await.expect("a list"), (0..12).collect::<Vec<_>>());
    for (path, expected) in
        [("/nothing", ENDLESS), ("/forever", ENDLESS), ("/injected", "the page token is not one")]
    {
        match client.list::<u32>(path).await {
            Err(ClientError::Unexpected { detail, .. }) => assert_eq!(detail, expected),
            other => panic!("{path}: {other:?}"),
        }
    }
}

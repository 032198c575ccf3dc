//! Tests of reading against fake controls, honest and hostile.

use super::*;
use crate::client::{ClientError, ControlClient};
use crate::policy::simple_policy;
use crate::testing::{HistoryQuery, SampleCircle, history_page, manifest};
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use human_chain::{MemberSecret, certify, propose, sign_genesis, verify, vote};
use overlay::Identity;
use protocol::api::Page;
use protocol::governance::*;
use protocol::manifest::Manifest;
use protocol::{Digest, MemberId, Millis, NodeId, ReplicaId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const NOW: Millis = Millis(1_800_000_000_000);
/// Number of decisions.
const DECISIONS: usize = 7;

/// Answer to a page's token, and the number of pages asked for.
struct FakeControl {
    page: Pages,
    history: History,
    asked: u32,
}

type FakeState = State<Arc<Mutex<FakeControl>>>;
type Pages = fn(&History, &HistoryQuery) -> HistoryPage;

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
        access: protocol::access::AccessEnvelope::standard([member.clone()]),
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

/// Returns a page of two decisions, or of as many as were asked for. A token is the number of the decisions
/// before its page.
fn honest(history: &History, query: &HistoryQuery) -> HistoryPage {
    let token = query.page_token.as_ref().map(|token| token.parse().expect("a token of this server"));
    let after = token.or(query.after);
    let mut page = history_page(history, after);
    let size = query.page_size.unwrap_or(2);
    let end = after.unwrap_or(0) + size as u64;
    page.next_page_token = (page.bundles.len() > size).then(|| end.to_string());
    page.bundles.truncate(size);
    page
}

async fn serve(page: Pages) -> (ControlClient, History, Arc<Mutex<FakeControl>>) {
    let history = circle();
    let (client, fake) = serve_history(page, history.clone()).await;
    (client, history, fake)
}

async fn serve_history(page: Pages, history: History) -> (ControlClient, Arc<Mutex<FakeControl>>) {
    let fake = Arc::new(Mutex::new(FakeControl { page, history, asked: 0 }));
    let answer = |State(state): FakeState, Query(query): Query<HistoryQuery>| async move {
        let mut fake = state.lock().expect("no panic");
        fake.asked += 1;
        Json((fake.page)(&fake.history, &query))
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
    (client.expect("a client"), fake)
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
    type Attack = (Pages, &'static str, u32);
    let attacks: [Attack; 5] = [
        // The first page again and again: its decisions are stale the second time.
        (
            |history, query| HistoryPage {
                bundles: history.bundles[..1].to_vec(),
                next_page_token: Some("1".into()),
                ..honest(history, query)
            },
            "does not verify",
            2,
        ),
        (
            |history, query| HistoryPage {
                bundles: vec![],
                next_page_token: Some("1".into()),
                ..honest(history, query)
            },
            "the list does not end",
            1,
        ),
        // A page left out.
        (
            |history, query| HistoryPage { next_page_token: Some("4".into()), ..honest(history, query) },
            "does not verify",
            2,
        ),
        (|history, query| HistoryPage { genesis: None, ..honest(history, query) }, "has no genesis", 1),
        (
            |history, query| HistoryPage { next_page_token: Some("1 2".into()), ..honest(history, query) },
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

/// Returns a circle of as many decisions as there are names, each to deploy one service of its own.
fn decided(services: &[&str]) -> SampleCircle {
    let mut circle = SampleCircle::founded();
    services.iter().for_each(|service| decide(&mut circle, service));
    circle
}

fn decide(circle: &mut SampleCircle, service: &str) {
    let Manifest::Service(mut manifest) = manifest("bert") else { panic!("a service") };
    manifest.name = service.parse().expect("a name");
    circle.decide(Change::Deploy(Box::new(Manifest::Service(manifest))), "run it");
}

fn code<T>(outcome: Result<T>) -> Option<protocol::ErrorCode> {
    Some(outcome.err()?.downcast_ref::<Refusal>()?.code)
}

#[tokio::test]
async fn a_verified_state_is_continued_by_what_follows_it_alone() {
    let mut circle = decided(&["a", "b", "c"]);
    let kept = circle.state.clone();
    let (client, fake) = serve_history(honest, circle.history.clone()).await;
    let same = continue_history(&client, kept.clone()).await.expect("nothing was added");
    assert_eq!((same, fake.lock().expect("no panic").asked), (kept.clone(), 1));
    ["d", "e", "f"].iter().for_each(|service| decide(&mut circle, service));
    fake.lock().expect("no panic").history = circle.history.clone();
    let continued = continue_history(&client, kept).await.expect("it verifies");
    assert_eq!(continued, circle.state);
    assert_eq!(fake.lock().expect("no panic").asked, 3, "two pages of the three that were added");
    let bundles = read_decisions(&client, &continued, 2, 3).await.expect("as they were verified");
    assert_eq!(bundles, circle.history.bundles[1..4]);
}

/// Attack: a server shows a client with a kept state a history that is shorter, forked, or differs below what
/// the client verified.
#[tokio::test]
async fn a_verified_state_is_continued_by_no_other_history() {
    let mut circle = decided(&["a"]);
    let founded = (circle.state.clone(), circle.history.clone());
    ["b", "c"].iter().for_each(|service| decide(&mut circle, service));
    let (kept, shorter) = (circle.state.clone(), founded.1.clone());
    (circle.state, circle.history) = founded.clone();
    ["x", "y"].iter().for_each(|service| decide(&mut circle, service));
    let (forked, beside) = (circle.history.clone(), founded.0.clone());
    decide(&mut circle, "z");
    let named = circle.history.clone();
    (circle.state, circle.history) = (beside, forked.clone());
    decide(&mut circle, "z");
    for (history, expected) in [
        (&shorter, error_code::HISTORY_SHORTER),
        (&forked, error_code::HISTORY_FORKED),
        // The longer ones differ in decisions that are not sent again: the signers of the last one name them,
        // or have seen the first alone, and then the head of the page differs.
        (&named, error_code::HISTORY_FORKED),
        (&circle.history, error_code::HISTORY_FORKED),
    ] {
        let (client, _) = serve_history(honest, history.clone()).await;
        let outcome = continue_history(&client, kept.clone()).await;
        let error = outcome.expect_err("another history");
        let of_signers = error.chain().find_map(|cause| Some(cause.downcast_ref::<ChainError>()?.code()));
        assert_eq!(
            error.downcast_ref::<Refusal>().map(|refusal| refusal.code).or(of_signers),
            Some(expected)
        );
        // Positive control: a client that has verified nothing takes each of them.
        verify_history(&client, kept.id()).await.expect("it verifies from the genesis");
    }
}

/// Attack: decisions are left out that no later signer has seen, and the server names its head.
#[tokio::test]
async fn a_page_with_a_gap_is_refused_by_the_head_that_it_names() {
    let mut circle = decided(&["a"]);
    let kept = circle.state.clone();
    // Two decisions side by side: their signers have seen the first alone.
    let side = |circle: &mut SampleCircle, service: &str| {
        circle.state = kept.clone();
        decide(circle, service);
    };
    side(&mut circle, "b");
    side(&mut circle, "c");
    fn with_gap(history: &History, query: &HistoryQuery) -> HistoryPage {
        let mut page = history_page(history, query.after);
        let gap = page.bundles.len() - 2;
        page.bundles.remove(gap);
        page
    }
    let (client, fake) = serve_history(with_gap, circle.history.clone()).await;
    assert_eq!(code(continue_history(&client, kept.clone()).await), Some(error_code::HISTORY_SHORTER));
    assert_eq!(code(verify_history(&client, kept.id()).await), Some(error_code::HISTORY_SHORTER));
    // Positive control: each certificate that was sent verifies, so that only the head differs.
    let mut sent = circle.history.clone();
    sent.bundles.remove(1);
    fake.lock().expect("no panic").page = honest;
    fake.lock().expect("no panic").history = sent;
    continue_history(&client, kept).await.expect("it verifies under a head of its own");
}

/// Attack: another decision in place of one that was verified, where it is fetched again.
#[tokio::test]
async fn a_decision_that_is_fetched_again_is_the_one_that_was_verified() {
    let circle = decided(&["a", "b", "c"]);
    fn moved(history: &History, query: &HistoryQuery) -> HistoryPage {
        history_page(history, query.after.map(|after| after.saturating_sub(1)))
    }
    let (client, fake) = serve_history(moved, circle.history.clone()).await;
    let read = async || read_decisions(&client, &circle.state, 2, 1).await;
    assert_eq!(code(read().await), Some(error_code::HISTORY_FORKED));
    fake.lock().expect("no panic").page = |history, _| history_page(history, Some(3));
    assert_eq!(code(read().await), Some(error_code::HISTORY_SHORTER));
    // Positive control: an honest server's answer is taken.
    fake.lock().expect("no panic").page = honest;
    assert_eq!(read().await.expect("sound"), circle.history.bundles[1..2]);
}

//! Tests of the routes: who may read, who may act, and what every answer carries.

use crate::world::{Lab, words};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use host::Clock;
use protocol::governance::Choice;
use protocol::{BootTime, ProposalId};
use std::time::Duration;
use tower::ServiceExt as _;

/// Port in the addresses of these tests; nothing listens.
pub(crate) const PORT: u16 = 7607;

/// An answer of the console.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// Sends a request with these headers beside the host.
pub(crate) async fn ask(
    lab: &Lab,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answered {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", format!("localhost:{PORT}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer =
        lab.router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
    Answered { status: head.status, headers: head.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// Opens a link and returns the cookie, as a browser sends it.
pub(crate) async fn enter(lab: &Lab, code: &str) -> String {
    let own = [("sec-fetch-site", "same-origin"), ("origin", "null")];
    let answer = ask(lab, Method::POST, "/console/enter", &own, &format!("code={code}")).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    cookie.split(';').next().unwrap().to_string()
}

pub(crate) async fn get(lab: &Lab, cookie: &str, path: &str) -> Answered {
    ask(lab, Method::GET, path, &[("cookie", cookie)], "").await
}

/// Posts a vote from a page of ours.
pub(crate) async fn vote(lab: &Lab, cookie: &str, id: ProposalId, words: &str, choice: &str) -> Answered {
    let own = [("sec-fetch-site", "same-origin"), ("origin", "null"), ("cookie", cookie)];
    let body = format!("words={}&choice={choice}", words.replace(' ', "+"));
    ask(lab, Method::POST, &format!("/console/proposals/{id}/vote"), &own, &body).await
}

pub(crate) const PAGES: [&str; 9] = [
    "/console",
    "/console/inbox",
    "/console/jobs",
    "/console/history",
    "/console/history/1",
    "/console/members",
    "/console/nodes",
    "/console/halts",
    "/console/halt",
];

#[tokio::test]
async fn every_answer_forbids_foreign_code_and_frames() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let others =
        ["/", "/console/none", "/console/static/console.css", "/console/static/none", "/console/enter"];
    for path in PAGES.iter().chain(&others) {
        for headers in [vec![("cookie", cookie.as_str())], vec![], vec![("host", "evil.example")]] {
            for method in [Method::GET, Method::POST] {
                let answer = ask(&lab, method, path, &headers, "").await;
                let policy = answer.headers["content-security-policy"].to_str().unwrap();
                assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
                assert!(policy.contains("frame-ancestors 'none'"), "{path}");
                assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
                assert_eq!(answer.headers["referrer-policy"], "no-referrer", "{path}");
                assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
            }
        }
    }
}

#[tokio::test]
async fn every_page_needs_a_session_and_shows_the_circle() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = format!("/console/proposals/{}", lab.world.deployment().id());
    for path in PAGES.into_iter().chain([proposal.as_str()]) {
        let answer = get(&lab, &cookie, path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        assert!(answer.text.contains("Verified on this machine: 1 decision"), "{path}: {}", answer.text);
        let without = ask(&lab, Method::GET, path, &[], "").await;
        assert!(without.text.contains("Sign in") && !without.text.contains("minilm"), "{path}");
    }
    for (path, expected) in [
        ("/console", "node-2 has been silent for 4 minutes"),
        ("/console", "quorate why minilm/1"),
        ("/console", "2 of 2 ready"),
        ("/console/inbox", "Waits for you, alice"),
        ("/console/inbox", "3 days left"),
        ("/console/history", "signed by alice, bob"),
        ("/console/members", "2 of (alice, bob, carol)"),
        ("/console/nodes", "quorate node admit node-3"),
    ] {
        let text = get(&lab, &cookie, path).await.text;
        assert!(text.contains(expected), "{path} lacks `{expected}`: {text}");
    }
    let missing = get(&lab, &cookie, &format!("/console/proposals/{}", "0".repeat(64))).await;
    assert!(missing.status == StatusCode::NOT_FOUND && missing.text.contains("proposal-not-found"));
    let far = get(&lab, &cookie, "/console/history/9").await;
    assert!(far.status == StatusCode::NOT_FOUND && far.text.contains("path-not-found"));
    for path in
        ["/console/history?before=x", "/console/history?sort=up", "/console/proposals/zz", "/console/nodes?x"]
    {
        let answer = get(&lab, &cookie, path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.text.contains("request-invalid"), "{path}");
    }
    let put = ask(&lab, Method::PUT, "/console", &[("sec-fetch-site", "same-origin")], "").await;
    assert!(put.status == StatusCode::METHOD_NOT_ALLOWED && put.text.contains("method-not-allowed"));
}

#[tokio::test]
async fn a_browser_that_opens_the_address_is_led_to_the_overview() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let browser =
        ask(&lab, Method::GET, "/", &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")], "").await;
    assert_eq!(
        (browser.status, &browser.headers["location"]),
        (StatusCode::SEE_OTHER, &"/console".parse().unwrap())
    );
    for accept in ["*/*", "application/json"] {
        let program = ask(&lab, Method::GET, "/", &[("accept", accept)], "").await;
        assert_eq!(program.status, StatusCode::NOT_FOUND);
        assert!(program.text.contains("\"path-not-found\""), "{}", program.text);
    }
}

#[tokio::test]
async fn the_page_of_a_proposal_has_the_bytes_and_words_of_the_terminal() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let page = get(&lab, &cookie, &format!("/console/proposals/{}", proposal.id())).await.text;
    let rendering = human_chain::render(&proposal);
    let (_, shown) = page.split_once("<pre class=\"rendering\">").unwrap();
    let shown = shown.split("</pre>").next().unwrap();
    let mut text = String::new();
    for part in shown.split('<') {
        text.push_str(part.split_once('>').map_or(part, |(_, rest)| rest));
    }
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    assert_eq!(text, rendering.text);
    for word in rendering.words {
        assert!(page.contains(&format!("<li>{word}</li>")), "{word}");
    }
    assert!(
        page.contains("~ replicas.max: 3 -&gt; 6") || page.contains("3 -&gt; 6"),
        "the difference: {page}"
    );
    assert!(page.contains("service minilm, node node-1, node node-2"), "{page}");
    let root = human_chain::words_of(&protocol::Digest::of(b"model")).join(" ");
    for expected in [
        root.as_str(),
        "85.8 MiB in 23 segments",
        "used by 1 approved service",
        "slot 0 on node-1, slot 1 on node-2",
        "512 MiB are free on no node",
        "<a href=\"/console/history/1\">",
    ] {
        assert!(page.contains(expected), "the evidence lacks `{expected}`: {page}");
    }
}

#[tokio::test]
async fn two_members_decide_on_their_own_machines() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let done = vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
    let path = format!("/console/proposals/{}", proposal.id());
    assert_eq!(
        (done.status, done.headers["location"].to_str().unwrap()),
        (StatusCode::SEE_OTHER, path.as_str())
    );
    let page = get(&lab, &cookie, &path).await.text;
    assert!(page.contains("1 of 2 signed; 1 more signature needed; bob or carol may sign"), "{page}");
    assert!(page.contains("You have voted"), "{page}");
    lab.world.vote(1, &proposal, Choice::Approve);
    let page = get(&lab, &cookie, &path).await.text;
    assert!(page.contains("quorum reached; the change is in force"), "{page}");
    assert_eq!(lab.world.state().circle.length(), 2);
    let history = get(&lab, &cookie, "/console/history").await.text;
    assert!(history.contains("2 decisions since the founding"), "{history}");
}

#[tokio::test]
async fn a_draft_is_listed_apart_and_its_first_approval_proposes_it() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let path = format!("/console/proposals/{}", proposal.id());
    let inbox = get(&lab, &cookie, "/console/inbox").await.text;
    assert!(!inbox.contains("Drafts"), "{inbox}");
    lab.world.draft(&proposal);
    let inbox = get(&lab, &cookie, "/console/inbox").await.text;
    assert!(inbox.contains("<h2>Drafts</h2>") && inbox.contains("Drafted by"), "{inbox}");
    // The maker's name is text of others.
    assert!(inbox.contains("token/ci\\u{202e}") && !inbox.contains('\u{202e}'), "{inbox}");
    let page = get(&lab, &cookie, &path).await.text;
    assert!(page.contains("a draft, which no member has signed") && page.contains("none yet"), "{page}");
    assert!(page.contains("value=\"approve\"") && !page.contains("value=\"reject\""), "{page}");
    let done = vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
    assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
    let page = get(&lab, &cookie, &path).await.text;
    assert!(page.contains("<dt>Proposer</dt><dd><bdi>alice</bdi></dd>"), "{page}");
    assert!(page.contains("1 of 2 signed"), "{page}");
}

#[tokio::test]
async fn a_rejection_is_recorded_and_does_not_count() {
    let lab = Lab::of_member(0, PORT);
    let cookie = enter(&lab, &lab.owner_link(0)).await;
    let proposal = lab.world.deployment();
    let done = vote(&lab, &cookie, proposal.id(), &words(&proposal), "reject").await;
    assert_eq!(done.status, StatusCode::SEE_OTHER);
    let page = get(&lab, &cookie, &format!("/console/proposals/{}", proposal.id())).await.text;
    assert!(page.contains("rejects") && page.contains("0 of 2 signed"), "{page}");
    // A second vote is refused by control, and the page says so.
    let again = vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
    assert!(!again.status.is_success() && lab.world.state().circle.length() == 1, "{}", again.text);
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_after_a_pause_and_says_so() {
    let lab = Lab::of_replica(PORT, Clock::of_runtime(BootTime(0), host::wall_clock()));
    let cookie = enter(&lab, &lab.token_link()).await;
    assert!(get(&lab, &cookie, "/console").await.text.contains("Overview"));
    tokio::time::advance(Duration::from_secs(59 * 60)).await;
    assert_eq!(
        get(&lab, &cookie, "/console").await.status,
        StatusCode::OK,
        "positive control: a shorter pause"
    );
    tokio::time::advance(Duration::from_secs(60 * 60)).await;
    let ended = get(&lab, &cookie, "/console").await;
    assert_eq!(ended.status, StatusCode::UNAUTHORIZED);
    assert!(ended.text.contains("console-signed-out") && !ended.text.contains("minilm"), "{}", ended.text);
}

#[tokio::test]
async fn a_visitor_signs_out_and_a_revoked_token_signs_out_too() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.token_link()).await;
    let own = [("sec-fetch-site", "same-origin"), ("cookie", cookie.as_str())];
    let left = ask(&lab, Method::POST, "/console/leave", &own, "").await;
    assert!(left.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(get(&lab, &cookie, "/console").await.status, StatusCode::UNAUTHORIZED);
    let cookie = enter(&lab, &lab.token_link()).await;
    assert_eq!(get(&lab, &cookie, "/console").await.status, StatusCode::OK);
    lab.world.state().revoked = true;
    assert_eq!(get(&lab, &cookie, "/console").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_replica_says_that_it_is_believed_and_holds_no_key() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.token_link()).await;
    let page = get(&lab, &cookie, "/console").await.text;
    assert!(page.contains("control replica 1, and as honest as it is"), "{page}");
    let proposal = lab.world.deployment();
    let page = get(&lab, &cookie, &format!("/console/proposals/{}", proposal.id())).await.text;
    assert!(
        page.contains("An access token reads and never votes") && !page.contains("<button name"),
        "{page}"
    );
    // Neither does the route sign, for a token or for a member.
    let as_member = lab.member_link(1);
    for cookie in [cookie, enter(&lab, &as_member).await] {
        let refused = vote(&lab, &cookie, proposal.id(), &words(&proposal), "approve").await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        assert!(refused.text.contains("console-no-key"), "{}", refused.text);
    }
    assert!(lab.world.state().delivered.is_empty());
}

#[tokio::test]
async fn without_a_leader_the_overview_shows_what_is_approved() {
    let lab = Lab::of_replica(PORT, Clock::machine());
    let cookie = enter(&lab, &lab.token_link()).await;
    let note = Some("no leader answers".to_string());
    lab.world.state().report = console::ClusterReport { note, ..console::ClusterReport::default() };
    let page = get(&lab, &cookie, "/console").await.text;
    for expected in ["no leader answers", "approved, model minilm", "Unknown: no leader reports"] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    assert!(get(&lab, &cookie, "/console/nodes").await.text.contains("unknown"));
}

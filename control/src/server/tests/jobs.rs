//! Tests of jobs at the control API: arrays, and requests that wait for news of a job.

use super::circle::{other, sync_request};
use super::faults::{ask, ask_with_key};
use super::usage::{begin, end, get, lab, must};
use crate::server::{Server, agents};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use overlay::Peer;
use protocol::agent::{SyncRequest, SyncResponse};
use protocol::api::{AuditEvent, Page, Problem};
use protocol::job_api::{JobLogLine, JobLogPage, JobView, SubmittedJob};
use protocol::job_data::JobDataView;
use protocol::job_report::RankLine;
use protocol::limits::{POLL_WAIT_MS_MAX, SYNC_BYTES_MAX};
use protocol::{Digest, JobId, canonical};
use scheduler::{Action, Actor};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tower::ServiceExt as _;

#[tokio::test(start_paused = true)]
async fn a_request_for_a_job_waits_until_it_is_in_another_state() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    let path = |state: &str| format!("/v1/jobs/{id}?state={state}&wait_ms={POLL_WAIT_MS_MAX}");
    let began = Instant::now();
    let at_once: JobView = get(&server, &path("running")).await;
    assert_eq!((at_once.state.as_str(), began.elapsed()), ("queued", Duration::ZERO));
    let same: JobView = get(&server, &path("queued")).await;
    assert_eq!((same.state.as_str(), began.elapsed().as_millis()), ("queued", POLL_WAIT_MS_MAX.into()));
    let began = Instant::now();
    let waiting = tokio::spawn({
        let (server, path) = (server.clone(), path("queued"));
        async move { get::<JobView>(&server, &path).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    must(&server, Actor::Scheduler, Action::CancelJob { id }).await;
    assert_eq!(waiting.await.unwrap().state, "cancelled");
    assert!(began.elapsed() < Duration::from_secs(6), "news end the wait: {:?}", began.elapsed());
    let (status, _) = ask::<()>(&server, Method::GET, &format!("/v1/jobs/{id}?wait=1"), None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "an unknown parameter");
    let path = format!("/v1/jobs/{id}?wait_ms={}", POLL_WAIT_MS_MAX + 1);
    let (status, _) = ask::<()>(&server, Method::GET, &path, None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a longer wait than any client gets");
}

#[tokio::test(start_paused = true)]
async fn a_request_for_outputs_waits_for_the_end_of_the_job() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    let path = format!("/v1/jobs/{id}/outputs?wait_ms=10000");
    let began = Instant::now();
    let none: Page<JobDataView> = get(&server, &path).await;
    assert_eq!((none.items.len(), began.elapsed().as_secs()), (0, 10), "it has not ended");
    let waiting = tokio::spawn({
        let (server, path) = (server.clone(), path.clone());
        async move { get::<Page<JobDataView>>(&server, &path).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (status, _) = ask::<()>(&server, Method::POST, &format!("/v1/jobs/{id}/cancel"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((waiting.await.unwrap().items.len(), began.elapsed().as_secs()), (0, 13), "it left nothing");
    let again: Page<JobDataView> = get(&server, &path).await;
    assert_eq!((again.items.len(), began.elapsed().as_secs()), (0, 13), "nothing more will come");
    for (path, expected) in [
        (format!("/v1/jobs/{id}/outputs?wait_ms=25001"), StatusCode::BAD_REQUEST),
        (format!("/v1/jobs/{id}/outputs?kind=logs"), StatusCode::BAD_REQUEST),
        (format!("/v1/jobs/{}/outputs", "0".repeat(64)), StatusCode::NOT_FOUND),
    ] {
        assert_eq!(ask::<()>(&server, Method::GET, &path, None).await.0, expected, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_for_lines_waits_for_the_first_one() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    let path = format!("/v1/jobs/{id}/logs?after=0&wait_ms=10000");
    let began = Instant::now();
    let none: JobLogPage = get(&server, &path).await;
    assert_eq!((none.items.len(), began.elapsed().as_secs()), (0, 10));
    let waiting = tokio::spawn({
        let server = server.clone();
        async move { get::<JobLogPage>(&server, &path).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let line = RankLine { id, attempt: 1, rank: 0, sequence: 1, dropped: 0, text: "step 1".into() };
    server.keep_rank_lines(none.epoch, &"node-1".parse().unwrap(), vec![line]);
    let lines: Vec<JobLogLine> = waiting.await.unwrap().items;
    assert_eq!((lines[0].text.as_str(), began.elapsed().as_secs()), ("step 1", 13));
    // The end of the job ends the wait, and a job that has ended keeps none waiting.
    let path = format!("/v1/jobs/{id}/logs?after=1&wait_ms=10000");
    let waiting = tokio::spawn({
        let (server, path) = (server.clone(), path.clone());
        async move { get::<JobLogPage>(&server, &path).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (status, _) = ask::<()>(&server, Method::POST, &format!("/v1/jobs/{id}/cancel"), None).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((waiting.await.unwrap().items.len(), began.elapsed().as_secs()), (0, 16));
    for (body, expected) in [
        (json!([]), StatusCode::BAD_REQUEST),
        (json!({"form": 1}), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::OK),
    ] {
        let path = format!("/v1/jobs/{id}/retry");
        let (status, answer) = ask(&server, Method::POST, &path, Some(&body)).await;
        assert_eq!(status, expected, "{body}: {}", String::from_utf8_lossy(&answer));
    }
    let (status, _) = ask::<()>(&server, Method::POST, &format!("/v1/jobs/{id}/cancel"), None).await;
    assert_eq!(status, StatusCode::OK);
    let after_its_end: JobLogPage = get(&server, &path).await;
    assert_eq!((after_its_end.items.len(), began.elapsed().as_secs()), (0, 16));
}

/// Sends lines of rank 0 from the node, addressed to the leader of a term; returns the term that answers.
async fn send_lines(server: &Arc<Server>, id: JobId, term: u64, sequences: &[u64]) -> u64 {
    send_lines_of(server, (id, 1, 0), term, sequences).await
}

/// Sends lines of a rank of an attempt from the node.
async fn send_lines_of(
    server: &Arc<Server>,
    (id, attempt, rank): (JobId, u32, u32),
    term: u64,
    sequences: &[u64],
) -> u64 {
    let line = |sequence: &u64| RankLine {
        id,
        attempt,
        rank,
        sequence: *sequence,
        dropped: 0,
        text: format!("step {sequence}"),
    };
    let request = SyncRequest {
        wait_ms: 25_000,
        usage: vec![],
        rank_lines_term: term,
        rank_lines: sequences.iter().map(line).collect(),
        ..sync_request()
    };
    let mut request = Request::post(agents::SYNC).body(Body::from(canonical::to_bytes(&request))).unwrap();
    request.extensions_mut().insert(Peer(other(1).public_key()));
    let answer = agents::router(server.clone()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = axum::body::to_bytes(answer.into_body(), SYNC_BYTES_MAX).await.unwrap();
    canonical::from_bytes::<SyncResponse>(&body, SYNC_BYTES_MAX).unwrap().term
}

/// A leader that took the newest lines of a rank first would take the earlier ones for known.
#[tokio::test(start_paused = true)]
async fn a_leader_takes_lines_that_are_addressed_to_its_term_and_none_before() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    begin(&server, id, 1).await;
    let term = send_lines(&server, id, 0, &[7]).await;
    let texts = async || -> Vec<String> {
        let page: JobLogPage = get(&server, &format!("/v1/jobs/{id}/logs")).await;
        page.items.into_iter().map(|line| line.text).collect()
    };
    assert_eq!((term > 0, texts().await), (true, vec![]), "a leader of another term has the lines before");
    assert_eq!(send_lines(&server, id, term, &[6, 7]).await, term);
    assert_eq!(texts().await, ["step 6", "step 7"]);
}

/// Attack: a node sends lines of ranks and attempts that it never held.
#[tokio::test(start_paused = true)]
async fn lines_of_the_last_attempt_come_from_the_nodes_that_held_it() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    let term = send_lines(&server, id, 0, &[]).await;
    send_lines(&server, id, term, &[1]).await;
    let slot = begin(&server, id, 1).await;
    send_lines(&server, id, term, &[2]).await;
    end(&server, id, 1, slot).await;
    send_lines(&server, id, term, &[3]).await;
    for (attempt, rank) in [(1, 1), (2, 0), (0, 0)] {
        send_lines_of(&server, (id, attempt, rank), term, &[4]).await;
    }
    let page: JobLogPage = get(&server, &format!("/v1/jobs/{id}/logs")).await;
    let texts: Vec<String> = page.items.into_iter().map(|line| line.text).collect();
    assert_eq!(texts, ["step 2", "step 3"], "neither before the first order nor of others");
}

#[tokio::test(start_paused = true)]
async fn events_of_a_job_are_its_own_and_a_request_waits_for_the_next() {
    let (world, leads, id) = lab().await;
    let server = world.servers[leads].clone();
    let path = |after: u64| format!("/v1/jobs/{id}/events?after={after}&wait_ms=10000");
    let actions = |page: &Page<AuditEvent>| -> Vec<String> {
        page.items.iter().map(|event| format!("{} {}", event.action, event.subject)).collect()
    };
    let first: Page<AuditEvent> = get(&server, &path(0)).await;
    let subject = format!("job/{}", id.short());
    assert_eq!(actions(&first), [format!("submit-job {subject}")]);
    let after = first.items[0].sequence;
    let began = Instant::now();
    let none: Page<AuditEvent> = get(&server, &path(after)).await;
    assert_eq!((none.items.len(), began.elapsed().as_secs()), (0, 10));
    let waiting = tokio::spawn({
        let (server, path) = (server.clone(), path(after));
        async move { get::<Page<AuditEvent>>(&server, &path).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    must(&server, Actor::Scheduler, Action::CancelJob { id }).await;
    assert_eq!(actions(&waiting.await.unwrap()), [format!("cancel-job {subject}")]);
    let unknown = JobId(Digest([9; 32]));
    let (status, _) = ask::<()>(&server, Method::GET, &format!("/v1/jobs/{unknown}/events"), None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn an_array_is_requested_once_and_listed_by_its_id() {
    let (world, leads, one) = lab().await;
    let server = &world.servers[leads];
    let submit =
        async |body: Value| ask_with_key(server, Method::POST, "/v1/jobs", Some(&body), Some("sweep")).await;
    let array = json!({"job": "train", "array": 3, "after": [one]});
    let (status, body) = submit(array.clone()).await;
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    let made: SubmittedJob = serde_json::from_slice(&body).unwrap();
    let id = made.array.expect("an array");
    let listed: Page<JobView> = get(server, &format!("/v1/jobs?array={id}")).await;
    let tasks: Vec<(u32, u32, Vec<JobId>)> = listed
        .items
        .iter()
        .filter_map(|job| Some((job.array?.index, job.array?.count, job.after.clone())))
        .collect();
    assert_eq!(tasks, [(0, 3, vec![one]), (1, 3, vec![one]), (2, 3, vec![one])]);
    assert_eq!(listed.items[0].id, made.id);
    for (query, count) in
        [("", 4), ("?has_ended=false", 4), ("?has_ended=true", 0), ("?job=train&project=default", 4)]
    {
        let listed: Page<JobView> = get(server, &format!("/v1/jobs{query}")).await;
        assert_eq!(listed.items.len(), count, "{query}");
    }
    for query in ["state=asleep", "has_ended=perhaps", "project=Vision", "colour=red"] {
        let (status, answer) = ask::<()>(server, Method::GET, &format!("/v1/jobs?{query}"), None).await;
        let problem: Problem = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, problem.code.as_str()), (StatusCode::BAD_REQUEST, "request-invalid"), "{query}");
    }
    let (status, body) = submit(array).await;
    assert_eq!((status, serde_json::from_slice::<SubmittedJob>(&body).unwrap()), (StatusCode::OK, made));
    for (body, code) in [
        (json!({"job": "train", "array": 4}), "idempotency-key-reused"),
        (json!({"job": "train", "arrays": 4}), "request-invalid"),
        // A list of the fields in their order is no form of a body.
        (json!(["train"]), "request-invalid"),
    ] {
        let (_, answer) = submit(body).await;
        assert_eq!(serde_json::from_slice::<Problem>(&answer).unwrap().code, code);
    }
}

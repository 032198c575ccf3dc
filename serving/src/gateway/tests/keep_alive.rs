//! Tests of silent streams through the whole gateway: before a worker, before the first token, and while a
//! stream waits to be continued.

use super::*;

const STREAM: &str = r#", "stream": true"#;
const COMMENT: &str = ": keep-alive\n\n";

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_its_first_token_is_kept_alive() {
    let simulation = Simulation::new(1 << 20);
    let _worker = simulation.worker().await;
    let began = Instant::now();
    let answer = simulation.ask("app", Act::Stream(100_000, 40_000), STREAM).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::OK, String::new()));
    let text = String::from_utf8(answer.body.to_vec()).expect("UTF-8");
    let expected = [COMMENT.repeat(6), "data: piece\n\n".into(), COMMENT.repeat(2), "data: piece\n\n".into()];
    assert_eq!(text, expected.concat());
    assert_eq!(began.elapsed().as_secs(), 140);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_worker_gets_its_status() {
    let simulation = Simulation::new(1 << 20);
    let answer = simulation.ask("app", Act::Stream(0, 0), STREAM).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "no_worker"));
}

/// The second worker of a suspect is lost after the headers have gone out.
#[tokio::test(start_paused = true)]
async fn a_late_failure_is_an_event_without_an_end() {
    let simulation = Simulation::new(1 << 20);
    let first = simulation.worker().await;
    let second = simulation.worker().await;
    let answer = simulation.ask("app", Act::Kill(20_000), STREAM).await;
    assert_eq!(answer.status, StatusCode::OK);
    let text = String::from_utf8(answer.body.to_vec()).expect("UTF-8");
    let event = text.strip_prefix(&COMMENT.repeat(2)).expect("two comments");
    assert!(event.starts_with("data: {\"error\":{\"message\":"), "{event}");
    assert!(event.ends_with("\"code\":\"worker_lost\"}}\n\n"), "{event}");
    assert!(!text.contains("[DONE]"));
    assert!(first.death().is_some() && second.death().is_some(), "each has had the request");
    assert_eq!(simulation.gateway.memory.used(), 0, "nothing of the request is left");
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_gets_no_comment() {
    let simulation = Simulation::new(1 << 20);
    let _worker = simulation.worker().await;
    let answer = simulation.ask("app", Act::Answer(100_000), "").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, br#"{"done": true}"#.as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_a_silent_stream_frees_its_worker() {
    let simulation = Simulation::new(1 << 20);
    let worker = simulation.worker().await;
    let script = r#"{"model": "echo", "prompt": "x", "user": "stream 100000 0", "stream": true}"#;
    let (status, _, body) = simulation.begin("app", Body::from(script)).await;
    assert_eq!((status, worker.in_flight()), (StatusCode::OK, 1));
    drop(body);
    while worker.in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(simulation.gateway.memory.used(), 0);
}

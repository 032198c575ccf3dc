//! Tests of streams that outlive their worker: cut at every byte, and with workers that do not keep to the
//! framing.

use super::*;
use crate::resumable::{RESUMABLE, StreamFrame, StreamOrigin, read_tokens};
use http_body_util::StreamBody;
use hyper::body::Frame;

/// Misbehaviour of a worker in streams of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamFault {
    /// Dies after the bytes that the request names.
    Dies,
    /// Ends the answer there.
    Ends,
    /// Reports tokens that it did not draw.
    Forges,
    /// Sends frames without end.
    Endless,
    /// Sends bytes that are no frames after the last one.
    Garbage,
}

/// A stream at its beginning, as a simulated worker sees it.
pub(super) struct BegunStream {
    origin: Option<(StreamOrigin, Vec<u32>)>,
}

impl BegunStream {
    /// Separates the tokens from the body of a request.
    pub(super) fn read(headers: &HeaderMap, mut body: Bytes) -> (Self, Bytes) {
        let origin = headers.get(RESUMABLE).map(|value| {
            let (origin, tokens) = StreamOrigin::parse(value).expect("a gateway wrote it");
            (origin, read_tokens(&body.split_to(4 * tokens)))
        });
        (Self { origin }, body)
    }

    /// Streams the rest of `tokens` tokens, or in events without frames where the gateway asked for none.
    pub(super) fn answer(
        self,
        worker: Arc<Worker>,
        in_flight: InFlight,
        tokens: usize,
        bytes: usize,
    ) -> axum::response::Response {
        let Some((origin, drawn)) = self.origin else {
            return axum::response::Response::new(Body::from("data: plain\n\n"));
        };
        let known: Vec<u32> = (0..drawn.len() as u32).collect();
        if drawn != known {
            let mut refusal = axum::response::Response::new(Body::empty());
            *refusal.status_mut() = StatusCode::BAD_REQUEST;
            return refusal;
        }
        let fault = *worker.fault.lock().expect("whole");
        let mut sent = frames(origin, tokens, drawn.len(), fault == Some(StreamFault::Forges));
        match fault {
            None => {}
            Some(StreamFault::Garbage) => sent.extend([0xff; 64]),
            Some(StreamFault::Endless) => sent = frames(origin, 100_000, 0, false),
            Some(StreamFault::Dies | StreamFault::Ends | StreamFault::Forges) => sent.truncate(bytes),
        }
        // Two pieces, so that frames are cut inside the body too.
        let second = sent.split_off(sent.len() / 2);
        let pieces = [sent, second].map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
        let end = futures::stream::once(async move {
            let _held = in_flight;
            tokio::time::sleep(Duration::from_millis(10)).await;
            if matches!(fault, Some(StreamFault::Dies | StreamFault::Forges)) {
                worker.kill();
                std::future::pending::<()>().await;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert(crate::worker::COMPLETION_TOKENS, http::HeaderValue::from(tokens));
            Ok(Frame::trailers(trailers))
        });
        let body = Body::new(StreamBody::new(futures::stream::iter(pieces).chain(end)));
        let mut response = axum::response::Response::new(body);
        response.headers_mut().insert(RESUMABLE, http::HeaderValue::from_static("frames"));
        response
    }
}

/// Returns the frames of a stream after its first `skipped` tokens. The text of each third token waits for
/// the next one.
fn frames(origin: StreamOrigin, tokens: usize, skipped: usize, is_forged: bool) -> Vec<u8> {
    let (mut bytes, mut waiting) = (Vec::new(), Vec::new());
    for token in skipped..tokens {
        waiting.push(token as u32 + 1000 * u32::from(is_forged));
        if token % 3 == 1 && token + 1 < tokens {
            continue;
        }
        let data = Bytes::from(format!("data: {} {token}\n\n", origin.number));
        let frame = StreamFrame { tokens: std::mem::take(&mut waiting), data, is_last: false };
        bytes.extend_from_slice(&frame.write());
    }
    let data = Bytes::from_static(b"data: [DONE]\n\n");
    bytes.extend_from_slice(&StreamFrame { tokens: Vec::new(), data, is_last: true }.write());
    bytes
}

/// Returns the bytes that a client gets of an undisturbed stream with this number.
fn undisturbed(number: &str, tokens: usize) -> String {
    let shown = (0..tokens).filter(|token| token % 3 != 1 || token + 1 == tokens);
    let events: String = shown.map(|token| format!("data: {number} {token}\n\n")).collect();
    events + "data: [DONE]\n\n"
}

fn class(name: &str) -> Option<Digest> {
    Some(Digest::of(name.as_bytes()))
}

const STREAM: &str = r#", "stream": true, "max_tokens": 50"#;

impl Simulation {
    /// Connects a worker of this class.
    async fn worker_of(self: &Arc<Self>, class: Option<Digest>, fault: Option<StreamFault>) -> Arc<Worker> {
        *self.class.lock().expect("whole") = class;
        let worker = self.worker().await;
        *worker.fault.lock().expect("whole") = fault;
        worker
    }

    /// Returns the text of a stream of frames; its worker may die after this many bytes.
    async fn stream(&self, tokens: usize, bytes: usize) -> String {
        let answer = self.ask("app", Act::Frames(tokens, bytes), STREAM).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        String::from_utf8(answer.body.to_vec()).expect("UTF-8")
    }
}

/// Returns the number of a stream, which each of its events repeats.
fn number_of(stream: &str) -> &str {
    stream.strip_prefix("data: ").and_then(|rest| rest.split(' ').next()).expect("an event")
}

fn is_lost(stream: &str) -> bool {
    stream.contains(r#""code":"worker_lost""#) && !stream.contains("[DONE]")
}

#[tokio::test(start_paused = true)]
async fn a_stream_continues_byte_for_byte_at_every_cut() {
    const TOKENS: usize = 7;
    let origin = StreamOrigin { number: u64::MAX, at: protocol::Millis(0) };
    // As long as the longest number makes it.
    let most = frames(origin, TOKENS, 0, false).len();
    for fault in [StreamFault::Dies, StreamFault::Ends] {
        for cut in 0..=most {
            let simulation = Simulation::new(1 << 24);
            let first = simulation.worker_of(class("a"), Some(fault)).await;
            let asked = tokio::spawn({
                let simulation = simulation.clone();
                async move { simulation.stream(TOKENS, cut).await }
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
            let second = simulation.worker_of(class("a"), None).await;
            let found = asked.await.expect("no panic");
            assert_eq!(found, undisturbed(number_of(&found), TOKENS), "{fault:?}, cut at {cut}");
            assert_eq!(first.death().is_some(), fault == StreamFault::Dies);
            // No text is left to continue once the last frame is there.
            assert!(second.others_on_arrival().len() == 1 || cut + 60 > most, "{fault:?}, cut at {cut}");
            assert_eq!(simulation.gateway.memory.used(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn forty_streams_continue_at_once() {
    let simulation = Simulation::new(1 << 24);
    let first = simulation.worker_of(class("a"), Some(StreamFault::Dies)).await;
    let asked = tokio::spawn({
        let simulation = simulation.clone();
        async move { futures::future::join_all((0..40).map(|_| simulation.stream(30, 200))).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = simulation.worker_of(class("a"), None).await;
    let begun = Instant::now();
    for found in asked.await.expect("no panic") {
        assert_eq!(found, undisturbed(number_of(&found), 30));
    }
    assert_eq!((first.death().is_some(), second.others_on_arrival().len()), (true, 40));
    assert!(begun.elapsed() < Duration::from_secs(1), "they do not wait for one another");
}

/// Attack: an answer of another model or another machine would be mixed into the stream.
#[tokio::test(start_paused = true)]
async fn a_worker_of_another_class_never_continues_a_stream() {
    for (own, other, continues) in [
        (class("a"), class("a"), true),
        (class("a"), class("b"), false),
        (class("a"), None, false),
        (None, None, false),
    ] {
        let simulation = Simulation::new(1 << 24);
        let _first = simulation.worker_of(own, Some(StreamFault::Dies)).await;
        let asked = tokio::spawn({
            let simulation = simulation.clone();
            async move { simulation.stream(7, 150).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let second = simulation.worker_of(other, None).await;
        let found = asked.await.expect("no panic");
        assert_eq!(second.others_on_arrival().len(), usize::from(continues), "{own:?} {other:?}");
        // A worker without a class streams without frames, and this one to its end.
        assert_eq!(is_lost(&found), !continues && own.is_some(), "{found}");
    }
}

/// Attack: a stream that ends each worker that reads it.
#[tokio::test(start_paused = true)]
async fn a_stream_ends_two_workers_at_most() {
    let simulation = Simulation::new(1 << 24);
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(simulation.worker_of(class("a"), Some(StreamFault::Dies)).await);
    }
    let found = simulation.stream(7, 100).await;
    assert!(is_lost(&found), "{found}");
    assert_eq!(workers.iter().filter(|worker| worker.death().is_some()).count(), 2);
}

/// Attack: a client asks for frames, and names tokens of its own.
#[tokio::test(start_paused = true)]
async fn a_clients_header_reaches_no_worker() {
    let forged = "5 6 0";
    for (class, more, is_asked) in [
        (None, STREAM, false),
        (class("a"), "", false),
        (class("a"), r#", "stream": true, "n": 2"#, false),
        (class("a"), r#", "stream": true, "echo": true"#, false),
        (class("a"), STREAM, true),
    ] {
        let simulation = Simulation::new(1 << 24);
        let worker = simulation.worker_of(class, None).await;
        let script = Act::Frames(7, 0).script();
        let body = format!(r#"{{"model": "echo", "prompt": "x", "user": "{script}"{more}}}"#);
        let request = Request::post("/v1/completions").header("authorization", "Bearer app");
        let request = request.header(RESUMABLE, forged).body(Body::from(body)).expect("valid");
        let response = simulation.router.clone().oneshot(request).await.expect("infallible");
        assert!(response.status() == 200 && !response.headers().contains_key(RESUMABLE), "{more}");
        let found = response.into_body().collect().await.expect("whole").to_bytes();
        assert!(found.starts_with(b"data: "), "no frame reaches a client: {found:?}");
        let seen = worker.resumable.lock().expect("whole").clone();
        assert_eq!(seen.is_some(), is_asked, "{more}");
        assert_ne!(seen, Some(http::HeaderValue::from_static(forged)));
    }
}

/// Attack: a worker fills the gateway with tokens, or has another worker compute what it did not draw.
#[tokio::test(start_paused = true)]
async fn a_stream_of_a_worker_that_breaks_the_framing_ends_with_it() {
    for (fault, on_second) in [
        (StreamFault::Endless, 0),
        (StreamFault::Garbage, 0),
        (StreamFault::Forges, 1),
        (StreamFault::Dies, 1),
    ] {
        let simulation = Simulation::new(1 << 24);
        let _first = simulation.worker_of(class("a"), Some(fault)).await;
        let asked = tokio::spawn({
            let simulation = simulation.clone();
            async move { simulation.stream(7, 150).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        let second = simulation.worker_of(class("a"), None).await;
        let found = asked.await.expect("no panic");
        assert_eq!(second.others_on_arrival().len(), on_second, "{fault:?}");
        match fault {
            StreamFault::Dies => assert_eq!(found, undisturbed(number_of(&found), 7), "the control"),
            // The stream is complete; its end is the client's.
            StreamFault::Garbage => assert_eq!(found, undisturbed(number_of(&found), 7)),
            _ => assert!(is_lost(&found) && found.len() < 4096, "{fault:?}: {} bytes", found.len()),
        }
        assert_eq!(simulation.gateway.memory.used(), 0);
    }
}

/// Attack: a key fills the memory with streams that could continue, and its next request is refused.
#[tokio::test(start_paused = true)]
async fn streams_are_kept_only_while_memory_is_free() {
    let simulation = Simulation::new(1 << 20);
    let _worker = simulation.worker_of(class("a"), None).await;
    let script = Act::Frames(7, 0).script();
    let large = "x".repeat(200 << 10);
    let body = format!(r#"{{"model": "echo", "prompt": "{large}", "user": "{script}"{STREAM}}}"#);
    let mut unread = Vec::new();
    for _ in 0..6 {
        let (status, _, body) = simulation.begin("app", Body::from(body.clone())).await;
        assert_eq!(status, 200);
        unread.push(body);
        assert!(simulation.gateway.memory.used() <= (1 << 20) / 4 * 3, "the next request has room");
    }
    assert!(simulation.gateway.memory.used() > 200 << 10, "the control: some are kept");
}

/// A stream that is evicted from memory is not broken off.
#[tokio::test(start_paused = true)]
async fn an_evicted_stream_only_loses_its_right_to_continue() {
    let simulation = Simulation::new(1 << 20);
    let first = simulation.worker_of(class("a"), None).await;
    let large = "x".repeat(700 << 10);
    let script = Act::Frames(7, 0).script();
    let body = format!(r#"{{"model": "echo", "prompt": "{large}", "user": "{script}"{STREAM}}}"#);
    // With its length, so that the buffer has the size of the body.
    let request = Request::post("/v1/completions").header("authorization", "Bearer app");
    let request = request.header("content-length", body.len()).body(Body::from(body)).expect("valid");
    let response = simulation.router.clone().oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), 200);
    let mut unread = response.into_body();
    assert!(simulation.gateway.memory.used() > 700 << 10, "the request is kept");
    let large = "x".repeat(400 << 10);
    let other = tokio::spawn({
        let simulation = simulation.clone();
        let body = format!(r#"{{"model": "echo", "prompt": "{large}", "user": "answer 0 0"}}"#);
        async move { simulation.send("other", Body::from(body)).await }
    });
    let mut read = Vec::new();
    while let Some(frame) = unread.frame().await {
        read.extend_from_slice(&frame.expect("not broken off").into_data().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let read = String::from_utf8(read).expect("UTF-8");
    assert_eq!(read, undisturbed(number_of(&read), 7));
    assert_eq!(other.await.expect("no panic").status, 200);
    assert!(first.death().is_none());
    assert_eq!(simulation.gateway.memory.used(), 0);
}

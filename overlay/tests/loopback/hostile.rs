//! Hostile peers that follow TLS and abuse HTTP/2: endless heads, countless streams, resets, pings, silence.
//!
//! Each is cut off while others are served. Frames are written by hand here, because no client library sends
//! such things.

use crate::common::{REACHED, Server, get, identity, patient, until_some, within_deadline};
use axum::Router;
use axum::routing::get as on_get;
use http::StatusCode;
use overlay::{Body, Error, Limits, PeerPolicy, Stream, accept, connect};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// `GET /` as HPACK: three fields of the static table, and an authority.
const GET_ROOT: &[u8] = b"\x82\x87\x84\x41\x07quorate";

/// Returns limits that are reached within a test: a dead or stubborn peer is detected after a second or two.
/// On a starved machine other peers may reach them too; they then retry.
fn quick() -> Limits {
    Limits {
        idle: 2 * REACHED,
        ping_interval: Duration::from_millis(100),
        ping_timeout: REACHED,
        ..patient()
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Connects as a client that writes single frames.
async fn dial(server: &Server) -> Stream {
    let (key, limits) = (identity(2), patient());
    let connection = connect(&key, server.address, server.identity.public_key(), &limits);
    let mut stream = connection.await.unwrap().stream;
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
    stream.write_all(&opening).await.unwrap();
    stream
}

/// Reads the next frame: kind, stream and payload; `None` when the connection has ended.
async fn next_frame(stream: &mut Stream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// Writes chunks until the connection breaks, and returns their number. Fails if the server takes them all.
async fn write_until_refused(stream: &mut Stream, most: usize, chunk: impl Fn(usize) -> Vec<u8>) -> usize {
    for count in 0..most {
        if stream.write_all(&chunk(count)).await.is_err() || stream.flush().await.is_err() {
            return count;
        }
    }
    panic!("the server took {most} chunks and would take more");
}

fn router() -> Router {
    Router::new().route("/", on_get(|| async { "in" })).route("/never", on_get(pending::<()>))
}

/// Checks that other peers are served despite this one; they may have to retry.
async fn serves_others(server: &Server) {
    let client = server.client(3, patient());
    let answer = until_some(async || client.request(get("/")).await.ok()).await;
    assert_eq!(answer.body(), "in");
}

#[tokio::test]
async fn stalled_handshakes_keep_others_out_no_longer_than_their_limit() {
    let limits = Limits { handshake: REACHED, handshakes_max: 2, ..patient() };
    let server = Server::start(PeerPolicy::any(), limits, router()).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    serves_others(&server).await;
    for mut stream in silent {
        let mut rest = Vec::new();
        // A reset is as good an end as any other.
        let _ = within_deadline(stream.read_to_end(&mut rest)).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = Server::start(PeerPolicy::any(), patient(), router()).await;
    let mut stream = dial(&server).await;
    stream.write_all(&frame(HEADERS, END_STREAM, 1, GET_ROOT)).await.unwrap();
    // A field that is never indexed: name `x`, value of 1,000 bytes.
    let mut field = b"\x10\x01x\x7f\xe9\x06".to_vec();
    field.extend_from_slice(&[b'y'; 1000]);
    let more = |_| frame(CONTINUATION, 0, 1, &field);
    let sent = within_deadline(write_until_refused(&mut stream, 10_000, more)).await;
    assert!(sent < 5_000, "{sent} kB of one head were taken");
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_head_above_the_limit_is_answered_431() {
    let server = Server::start(PeerPolicy::any(), patient(), router()).await;
    let mut request = get("/");
    request.headers_mut().insert("x-long", "y".repeat(20_000).parse().unwrap());
    let answer = within_deadline(server.client(2, patient()).request(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    server.stop().await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    let limits = Limits { streams_max: 4, ..patient() };
    let (begun, router) = counting();
    let server = Server::start(PeerPolicy::any(), limits, router).await;
    let mut stream = dial(&server).await;
    for number in [1, 3, 5, 7, 9, 11] {
        stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, number, GET_ROOT)).await.unwrap();
    }
    stream.flush().await.unwrap();
    let mut refused = Vec::new();
    while refused.len() < 2 {
        let (kind, number, payload) = within_deadline(next_frame(&mut stream)).await.expect("it lives on");
        assert!(![DATA, HEADERS].contains(&kind), "nothing is answered");
        if kind == RESET {
            assert_eq!(payload, REFUSED_STREAM.to_be_bytes());
            refused.push(number);
        }
    }
    assert_eq!((refused, begun.load(Ordering::Relaxed)), (vec![9, 11], 4));
    drop(stream);
    server.stop().await;
}

/// Returns a router whose only answer never comes, and the number of requests to it.
fn counting() -> (Arc<AtomicUsize>, Router) {
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = begun.clone();
    let handler = move || {
        counter.fetch_add(1, Ordering::Relaxed);
        pending::<()>()
    };
    (begun, Router::new().route("/", on_get(handler)))
}

#[tokio::test]
async fn requests_that_are_reset_as_soon_as_they_begin_end_the_connection() {
    let server = Server::start(PeerPolicy::any(), patient(), router()).await;
    let stream = dial(&server).await;
    let burst = |count: usize| -> Vec<u8> {
        let numbers = (0..100u32).map(|place| 2 * (100 * count as u32 + place) + 1);
        let pair = |number| {
            let head = frame(HEADERS, END_STREAM | END_HEADERS, number, GET_ROOT);
            [head, frame(RESET, 0, number, &8u32.to_be_bytes())].concat()
        };
        numbers.flat_map(pair).collect()
    };
    let (mut reading, mut writing) = tokio::io::split(stream);
    let reply = tokio::spawn(async move {
        let mut bytes = Vec::new();
        // Reading ends with an error if the end of the connection overtakes the server's alert.
        let _ = reading.read_to_end(&mut bytes).await;
        bytes
    });
    let mut sent = 0;
    while sent < 1_000 && writing.write_all(&burst(sent)).await.is_ok() && writing.flush().await.is_ok() {
        sent += 1;
    }
    assert!(sent < 1_000, "100,000 requests were begun and reset");
    let reply = within_deadline(reply).await.unwrap();
    let calm = reply.windows(17).any(|part| {
        part[3] == GO_AWAY && part[..3] != [0, 0, 0] && part[13..17] == ENHANCE_YOUR_CALM.to_be_bytes()
    });
    assert!(calm, "the peer receives the reason");
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn pings_without_end_from_a_peer_that_reads_nothing_end_the_connection() {
    let server = Server::start(PeerPolicy::any(), quick(), router()).await;
    let mut stream = dial(&server).await;
    let pings: Vec<u8> = (0..500).flat_map(|_| frame(PING, 0, 0, b"any-data")).collect();
    let flood = write_until_refused(&mut stream, usize::MAX, |_| pings.clone());
    within_deadline(flood).await;
    serves_others(&server).await;
    server.stop().await;
}

/// Signals when it is dropped, which shows that a handler has ended.
struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn a_peer_that_stops_reading_is_dropped_and_its_work_ends() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let endless = move || {
        begun.send(()).unwrap();
        let guard = OnDrop(ended.clone());
        async move {
            Body::from_stream(futures::stream::repeat_with(move || {
                let _kept = &guard;
                Ok::<_, std::io::Error>(vec![7; 64 * 1024])
            }))
        }
    };
    let server = Server::start(PeerPolicy::any(), quick(), router().route("/endless", on_get(endless))).await;
    let path = b"\x82\x87\x04\x08/endless\x41\x07quorate";
    let stream = until_some(async || {
        let mut stream = dial(&server).await;
        stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, path)).await.ok()?;
        stream.flush().await.ok()?;
        // Bounds only the wait until the next attempt: the peer may be cut off before its request is read.
        tokio::time::timeout(10 * REACHED, begins.recv()).await.ok()?;
        Some(stream)
    })
    .await;
    within_deadline(ends.recv()).await.unwrap();
    serves_others(&server).await;
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_falls_silent_is_detected_long_before_the_request_would_time_out() {
    let (listener, address) = crate::common::bind().await;
    let accepting = tokio::spawn(async move {
        let mut silent = Vec::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            silent.push(accept(tcp, &identity(1), &PeerPolicy::any(), &patient()).await);
        }
    });
    let client = overlay::Client::new(identity(2), address, identity(1).public_key(), quick());
    until_some(async || {
        let lost = client.request(get("/")).await;
        // The loss may be detected before the request was sent.
        assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
        matches!(lost, Err(Error::Lost { sent: true, .. })).then_some(())
    })
    .await;
    accepting.abort();
}

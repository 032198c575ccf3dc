//! HTTP/2 from client to server: admission, limits, cancellation, reconnection, orderly shutdown.

use crate::common::{REACHED, Server, get, identity, patient, post, until_some, within_deadline};
use axum::extract::Request;
use axum::routing::{get as on_get, post as on_post};
use axum::{Extension, Router};
use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use http_body_util::BodyExt;
use overlay::{Backoff, Body, Error, Limits, Peer, PeerPolicy};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc};

/// Signals when it is dropped, which shows that a handler has ended.
struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn every_request_carries_the_proven_key() {
    let who = |Extension(Peer(key)): Extension<Peer>| async move { key.to_string() };
    let router = Router::new().route("/who", on_get(who));
    let server = Server::start(PeerPolicy::any(), patient(), router).await;
    for seed in [2, 3] {
        let answer = server.client(seed, patient()).request(get("/who")).await.unwrap();
        assert_eq!(answer.body(), identity(seed).public_key().to_string().as_bytes());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_is_not_admitted_is_refused_on_first_use() {
    let policy = PeerPolicy::only([identity(3).public_key()]);
    let server = Server::start(policy, patient(), Router::new()).await;
    // Repeated, because the refusal races with the first request.
    for _ in 0..20 {
        let refused = within_deadline(server.client(2, patient()).request(get("/"))).await;
        let Err(Error::PeerRefused { peer }) = refused else {
            panic!("expected a refusal: {refused:?}");
        };
        assert_eq!(peer, server.identity.public_key());
    }
    let admitted = server.client(3, patient()).request(get("/")).await.unwrap();
    assert_eq!(admitted.status(), StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test]
async fn a_removed_key_loses_its_open_connection() {
    let admitted = Arc::new(AtomicBool::new(true));
    let policy = PeerPolicy::new({
        let admitted = admitted.clone();
        move |_| admitted.load(Ordering::Relaxed)
    });
    let router = Router::new().route("/", on_get(|| async { "in" }));
    let server = Server::start(policy, patient(), router).await;
    let client = server.client(2, patient());
    assert_eq!(client.request(get("/")).await.unwrap().status(), StatusCode::OK);
    admitted.store(false, Ordering::Relaxed);
    assert_eq!(client.request(get("/")).await.unwrap().status(), StatusCode::FORBIDDEN);
    server.stop().await;
}

#[tokio::test]
async fn bodies_above_the_limit_are_refused_on_both_sides() {
    let limits = Limits { request_bytes_max: 1000, response_bytes_max: 1000, ..patient() };
    let echo = |body: Bytes| async move { body };
    let twice = |body: Bytes| async move { [body.clone(), body].concat() };
    let router = Router::new().route("/echo", on_post(echo)).route("/twice", on_post(twice));
    let server = Server::start(PeerPolicy::any(), limits.clone(), router).await;
    let client = server.client(2, limits);
    let send = |path: &'static str, bytes: usize| client.request(post(path, vec![7; bytes]));

    assert_eq!(send("/echo", 1000).await.unwrap().body().len(), 1000);
    assert_eq!(send("/echo", 1001).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send("/echo", 5_000_000).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send("/twice", 500).await.unwrap().body().len(), 1000);
    assert!(matches!(send("/twice", 501).await, Err(Error::BodyTooLarge { limit: 1000 })));

    // A body of unknown length is counted as it arrives.
    let chunks = futures::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(vec![7; 100])));
    let request = http::Request::post("/echo").body(Body::from_stream(chunks)).unwrap();
    assert_eq!(client.send(request).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    server.stop().await;
}

#[tokio::test]
async fn large_bodies_within_the_limit_arrive_whole() {
    let echo = |body: Bytes| async move { body };
    let router = Router::new().route("/echo", on_post(echo));
    let server = Server::start(PeerPolicy::any(), patient(), router).await;
    let body: Vec<u8> = (0..10_000_000_u32).map(|i| (i % 251) as u8).collect();
    let answer = server.client(2, patient()).request(post("/echo", body.clone())).await.unwrap();
    assert!(answer.body() == &body, "10 MB come back as they were sent");
    server.stop().await;
}

#[tokio::test]
async fn a_missing_response_times_out_on_the_side_with_the_shorter_limit() {
    let router = Router::new().route("/never", on_get(pending::<()>));
    let impatient = Limits { request: Duration::from_millis(100), ..patient() };
    let server = Server::start(PeerPolicy::any(), patient(), router.clone()).await;
    let answer = server.client(2, impatient.clone()).request(get("/never")).await;
    assert!(matches!(answer, Err(Error::TimedOut { step: "request", .. })));
    server.stop().await;

    let server = Server::start(PeerPolicy::any(), impatient, router).await;
    let answer = server.client(2, patient()).request(get("/never")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    server.stop().await;
}

#[tokio::test]
async fn a_response_that_falls_silent_times_out() {
    let stalling = || async {
        let first = futures::stream::iter([Ok::<_, std::io::Error>("first")]);
        Body::from_stream(first.chain(futures::stream::pending()))
    };
    let router = Router::new().route("/", on_get(stalling));
    let server = Server::start(PeerPolicy::any(), patient(), router).await;
    let impatient = Limits { body_idle: REACHED, ..patient() };
    let client = server.client(2, impatient);
    let mut body = until_some(async || {
        let mut body = client.send(get("/").map(Body::from)).await.unwrap().into_body();
        let first = body.frame().await.unwrap().ok()?;
        assert_eq!(first.into_data().unwrap(), "first");
        Some(body)
    })
    .await;
    let silence = within_deadline(body.frame()).await.unwrap();
    assert!(matches!(silence, Err(Error::TimedOut { step: "response body", .. })));
    drop(body);
    server.stop().await;
}

#[tokio::test]
async fn dropping_a_request_ends_its_work_on_the_server() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let started = Arc::new(Notify::new());
    let work = {
        let started = started.clone();
        move || {
            let guard = OnDrop(ended.clone());
            started.notify_one();
            async move {
                let _guard = guard;
                pending::<()>().await;
            }
        }
    };
    let router = Router::new().route("/work", on_get(work));
    let server = Server::start(PeerPolicy::any(), patient(), router).await;
    let client = server.client(2, patient());
    let request = tokio::spawn({
        let client = client.clone();
        async move { client.request(get("/work")).await }
    });
    within_deadline(started.notified()).await;
    request.abort();
    within_deadline(ends.recv()).await.unwrap();
    // The connection itself remains open.
    assert_eq!(client.request(get("/")).await.unwrap().status(), StatusCode::NOT_FOUND);
    server.stop().await;
}

#[tokio::test]
async fn a_client_reconnects_to_a_restarted_server_and_not_to_an_impostor() {
    let router = Router::new().route("/", on_get(|| async { "here" }));
    let server = Server::start(PeerPolicy::any(), patient(), router.clone()).await;
    let client = server.client(2, patient());
    let address = server.address.to_string();
    assert_eq!(client.request(get("/")).await.unwrap().body(), "here");
    server.stop().await;

    let down = within_deadline(client.request(get("/"))).await.unwrap_err();
    assert!(matches!(down, Error::Dial { .. } | Error::Lost { .. }), "{down:?}");

    let listener = overlay::listen::tcp(&address).await.unwrap();
    let server = Server::start_on(listener, identity(1), PeerPolicy::any(), patient(), router.clone());
    let answer = within_deadline(async {
        loop {
            if let Ok(answer) = client.request(get("/")).await {
                return answer;
            }
        }
    });
    assert_eq!(answer.await.body(), "here");
    server.stop().await;

    let listener = overlay::listen::tcp(&address).await.unwrap();
    let impostor = Server::start_on(listener, identity(66), PeerPolicy::any(), patient(), router);
    let refused = within_deadline(async {
        loop {
            match client.request(get("/")).await {
                Err(error @ Error::WrongPeer { .. }) => return error,
                Err(_) => {}
                Ok(answer) => panic!("an impostor answered: {answer:?}"),
            }
        }
    });
    assert!(refused.await.never_sent());
    impostor.stop().await;
}

#[tokio::test]
async fn repeated_failures_are_spaced_out() {
    // Bound but not listening: a dial is refused, and no other process gets the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let backoff = Backoff { first: Duration::from_millis(40), most: Duration::from_secs(1) };
    let limits = Limits { backoff, ..patient() };
    let client = overlay::Client::new(identity(2), address, identity(1).public_key(), limits);
    let start = std::time::Instant::now();
    for _ in 0..4 {
        let failed = within_deadline(client.request(get("/"))).await;
        assert!(matches!(failed, Err(Error::Dial { .. })));
    }
    // The waits are at least half of 40 + 80 + 160 ms.
    assert!(start.elapsed() >= Duration::from_millis(140), "{:?}", start.elapsed());
}

#[tokio::test]
async fn requests_in_progress_survive_an_orderly_shutdown() {
    let (started, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let work = {
        let (started, proceed) = (started.clone(), proceed.clone());
        move || {
            let (started, proceed) = (started.clone(), proceed.clone());
            async move {
                started.notify_one();
                proceed.notified().await;
                "done"
            }
        }
    };
    let router = Router::new().route("/work", on_get(work));
    let server = Server::start(PeerPolicy::any(), patient(), router).await;
    let client = server.client(2, patient());
    let request = tokio::spawn(async move { client.request(get("/work")).await });
    within_deadline(started.notified()).await;
    server.shutdown.cancel();
    proceed.notify_one();
    assert_eq!(within_deadline(request).await.unwrap().unwrap().body(), "done");
    server.stop().await;
}

#[tokio::test]
async fn a_shutdown_waits_no_longer_than_the_drain_limit() {
    let started = Arc::new(Notify::new());
    let work = {
        let started = started.clone();
        move || {
            started.notify_one();
            pending::<()>()
        }
    };
    let limits = Limits { drain: Duration::from_millis(50), ..patient() };
    let server = Server::start(PeerPolicy::any(), limits, Router::new().route("/", on_get(work))).await;
    let client = server.client(2, patient());
    let request = tokio::spawn(async move { client.request(get("/")).await });
    within_deadline(started.notified()).await;
    server.stop().await;
    assert!(matches!(within_deadline(request).await.unwrap(), Err(Error::Lost { .. })));
}

#[tokio::test]
async fn a_connection_above_the_limit_is_rejected_and_served_once_a_permit_is_free() {
    let limits = Limits { connections_max: 1, ..patient() };
    let (begun, mut begins) = mpsc::unbounded_channel();
    let waits = move || {
        begun.send(()).unwrap();
        pending::<()>()
    };
    let router = Router::new().route("/", on_get(|| async { "in" })).route("/never", on_get(waits));
    let server = Server::start(PeerPolicy::any(), limits, router).await;
    let first = server.client(2, patient());
    let request = tokio::spawn(async move { first.request(get("/never")).await });
    within_deadline(begins.recv()).await.unwrap();
    let second = server.client(3, patient());
    assert!(within_deadline(second.request(get("/"))).await.is_err());
    // Nothing is under way on the first connection any more.
    request.abort();
    within_deadline(async { while second.request(get("/")).await.is_err() {} }).await;
    server.stop().await;
}

#[tokio::test]
async fn many_requests_share_one_connection() {
    let echo = |request: Request| async move { request.uri().path().to_owned() };
    let limits = Limits { connections_max: 1, streams_max: 8, ..patient() };
    let server = Server::start(PeerPolicy::any(), limits.clone(), Router::new().fallback(echo)).await;
    let client = server.client(2, limits);
    let answers = (0..200).map(|i| {
        let client = client.clone();
        async move {
            let path = format!("/{i}");
            assert_eq!(client.request(get(&path)).await.unwrap().body(), path.as_bytes());
        }
    });
    within_deadline(futures::future::join_all(answers)).await;
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_silent_after_its_handshake_is_dropped() {
    let limits = Limits { idle: REACHED, ..patient() };
    let server = Server::start(PeerPolicy::any(), limits, Router::new()).await;
    let key = server.identity.public_key();
    let mut silent = overlay::connect(&identity(2), server.address, key, &patient()).await.unwrap();
    let mut sent = Vec::new();
    // The server's settings, then the end, orderly or not.
    let _ = within_deadline(silent.stream.read_to_end(&mut sent)).await;
    assert!(!sent.is_empty());
    server.stop().await;
}

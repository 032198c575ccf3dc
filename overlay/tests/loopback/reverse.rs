//! Tests of reversed roles: the dialling side answers the requests.

use crate::common::{bind, get, identity, patient, within_deadline};
use axum::routing::get as on_get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use overlay::{
    Body, CancellationToken, Channel, Error, Limits, PREFACE_BYTES_MAX, Peer, PeerPolicy, Reversed,
    accept_reverse, reverse_serve,
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

struct Worker {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

/// Returns a worker with key 2 that expects a gateway with key 1, and the gateway's end as accepted.
async fn pair(preface: &[u8], policy: PeerPolicy, router: Router) -> (Worker, Result<Reversed, Error>) {
    let (listener, address) = bind().await;
    let shutdown = CancellationToken::new();
    let (preface, ending) = (Bytes::copy_from_slice(preface), shutdown.clone());
    let task = tokio::spawn(async move {
        let tcp = TcpStream::connect(address).await.unwrap();
        let gateway = identity(1).public_key();
        reverse_serve(tcp, &identity(2), gateway, preface, patient(), router, ending).await
    });
    let (tcp, _) = listener.accept().await.unwrap();
    let reversed = within_deadline(accept_reverse(tcp, &identity(1), &policy, &patient())).await;
    (Worker { shutdown, task }, reversed)
}

async fn open(router: Router) -> (Worker, Channel) {
    let (worker, reversed) = pair(b"ticket", PeerPolicy::any(), router).await;
    (worker, reversed.unwrap().open().await.unwrap())
}

#[tokio::test]
async fn the_dialling_side_answers_after_its_preface() {
    let who = |Extension(Peer(key)): Extension<Peer>| async move { key.to_string() };
    let router = Router::new().route("/who", on_get(who));
    let (worker, reversed) = pair(b"ticket", PeerPolicy::any(), router).await;
    let reversed = reversed.unwrap();
    assert_eq!(reversed.preface, "ticket");
    assert_eq!(reversed.peer(), identity(2).public_key());

    let channel = reversed.open().await.unwrap();
    assert_eq!(channel.peer(), identity(2).public_key());
    let answer = channel.request(get("/who")).await.unwrap();
    assert_eq!(answer.body(), identity(1).public_key().to_string().as_bytes());
    drop(channel);
    within_deadline(worker.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_longest_preface_passes_and_a_longer_one_is_not_sent() {
    for (bytes, passes) in [(0, true), (PREFACE_BYTES_MAX, true), (PREFACE_BYTES_MAX + 1, false)] {
        let (worker, reversed) = pair(&vec![5; bytes], PeerPolicy::any(), Router::new()).await;
        assert_eq!(reversed.is_ok(), passes, "{bytes} bytes");
        drop(reversed);
        let served = within_deadline(worker.task).await.unwrap();
        assert_eq!(served.is_ok(), passes, "{bytes} bytes: {served:?}");
    }
}

#[tokio::test]
async fn a_worker_that_is_not_admitted_is_refused() {
    let policy = PeerPolicy::only([identity(3).public_key()]);
    let (worker, reversed) = pair(b"ticket", policy, Router::new()).await;
    assert!(matches!(reversed, Err(Error::Handshake(_))));
    let served = within_deadline(worker.task).await.unwrap();
    assert!(matches!(served, Err(Error::PeerRefused { .. })), "{served:?}");
}

#[tokio::test]
async fn a_missing_preface_times_out() {
    let (listener, address) = bind().await;
    let limits = Limits { handshake: Duration::from_millis(300), ..patient() };
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(&[22, 3]).await.unwrap();
    let (tcp, _) = listener.accept().await.unwrap();
    let accepted = within_deadline(accept_reverse(tcp, &identity(1), &PeerPolicy::any(), &limits)).await;
    assert!(matches!(accepted, Err(Error::TimedOut { .. })));
}

#[tokio::test]
async fn a_forward_client_cannot_speak_to_a_reversed_listener() {
    let (listener, address) = bind().await;
    let gateway = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept_reverse(tcp, &identity(1), &PeerPolicy::any(), &patient()).await
    });
    let key = identity(1).public_key();
    let connected = overlay::connect(&identity(2), address, key, &patient()).await;
    assert!(matches!(connected, Err(Error::Handshake(_))), "{connected:?}");
    assert!(matches!(within_deadline(gateway).await.unwrap(), Err(Error::Handshake(_))));
}

/// Returns a router of endless tokens; `dropped` is signalled when their generation stops.
fn tokens(dropped: mpsc::UnboundedSender<()>) -> Router {
    struct OnDrop(mpsc::UnboundedSender<()>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let generate = move || {
        let guard = OnDrop(dropped.clone());
        let tokens = futures::stream::unfold(guard, |guard| async {
            tokio::task::yield_now().await;
            Some((Ok::<_, std::io::Error>("token "), guard))
        });
        async move { Body::from_stream(tokens.boxed()) }
    };
    Router::new().route("/generate", on_get(generate))
}

#[tokio::test]
async fn a_response_streams_and_dropping_it_stops_the_worker() {
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let (worker, channel) = open(tokens(dropped)).await;
    let answer = channel.send(get("/generate").map(Body::from)).await.unwrap();
    let mut body = answer.into_body();
    let frame = within_deadline(body.frame()).await.unwrap().unwrap();
    assert!(frame.into_data().unwrap().starts_with(b"token "));
    assert!(drops.try_recv().is_err(), "the worker is still generating");
    drop(body);
    within_deadline(drops.recv()).await.unwrap();
    assert!(!channel.is_closed());
    drop(channel);
    within_deadline(worker.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_gateway_that_dies_mid_stream_stops_the_worker() {
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let (worker, channel) = open(tokens(dropped)).await;
    let answer = channel.send(get("/generate").map(Body::from)).await.unwrap();
    drop((answer, channel));
    within_deadline(drops.recv()).await.unwrap();
    within_deadline(worker.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_that_dies_is_detected_immediately() {
    let (dropped, _drops) = mpsc::unbounded_channel();
    let (worker, channel) = open(tokens(dropped)).await;
    let answer = channel.send(get("/generate").map(Body::from)).await.unwrap();
    worker.task.abort();
    within_deadline(channel.closed()).await;
    assert!(within_deadline(answer.into_body().collect()).await.is_err());
    let lost = channel.request(get("/")).await.unwrap_err();
    assert!(matches!(lost, Error::Lost { sent: false, .. }), "{lost:?}");
    assert!(lost.never_sent());
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_began() {
    let slow = || async {
        let parts = futures::stream::unfold(0, |part| async move {
            tokio::task::yield_now().await;
            (part < 1000).then(|| (Ok::<_, std::io::Error>("x"), part + 1))
        });
        Body::from_stream(parts)
    };
    let (worker, channel) = open(Router::new().route("/slow", on_get(slow))).await;
    let answer = channel.send(get("/slow").map(Body::from)).await.unwrap();
    worker.shutdown.cancel();
    let body = within_deadline(answer.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes().len(), 1000);
    drop(channel);
    within_deadline(worker.task).await.unwrap().unwrap();
}
